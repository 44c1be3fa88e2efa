package im

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/mqim/mqim/store"
)

// user is a user with something going on: devices connected, or state to be flushed. A user of whom nothing is going
// on has no object; the store has everything.
type user struct {
	name     string
	readers  atomic.Int32 // connected devices that read the inbox
	receipts atomic.Int32 // connected devices that want receipts
	events   atomic.Int32 // connected devices that want events
	limiter  atomic.Pointer[rate.Limiter]
	pins     int // guarded by Engine.mu: connects under way

	elsewhere elsewhere     // whether other nodes hold the user
	sub       *subscription // of what concerns the user; nil: there is no bus, or not yet. Guarded by mu

	loading sync.Mutex // held while the state is read from the store; only connects of this user wait for it
	mu      sync.Mutex // guards what follows
	loaded  bool
	gone    bool                  // forgotten: the user's record belongs to another object, or to the store alone
	head    uint64                // highest seq known to be durable
	cursor  uint64                // highest seq that a device acknowledged
	large   map[store.Conv]uint64 // the same of large groups, as far as devices have been connected that read them
	devices []*Device
	seen    int64 // Unix milliseconds

	// What the flusher has to write: set under mu, taken by the flusher, which keeps it in flushing until it is durable.
	dirty     bool
	delivered map[store.Conv]uint64
	offline   map[string]away   // sessions of devices that have gone
	ended     map[string]uint64 // sessions that are over → the epoch to speak with; 0: none
	flushing  struct {
		delivered map[store.Conv]uint64
		offline   map[string]away
		ended     map[string]uint64
	}
}

// away is a session whose device has gone: its record, and its places in large groups.
type away struct {
	store.Device
	cursors []store.Cursor
	epoch   uint64 // of the connection
}

// user returns the object of a user, or nil.
func (e *Engine) user(name string) *user {
	u, ok := e.users.Load(name)
	if !ok {
		return nil
	}
	return u.(*user)
}

// pin returns the object of a user, loaded, and keeps it until unpin.
func (e *Engine) pin(ctx context.Context, name string) (*user, error) {
	e.mu.Lock()
	u := e.user(name)
	if u == nil {
		u = &user{name: name}
		u.limiter.Store(e.cfg.Load().limiter())
		e.users.Store(name, u)
	}
	u.pins++
	e.mu.Unlock()
	if err := e.load(ctx, u); err != nil {
		e.unpin(u)
		return nil, err
	}
	return u, nil
}

func (e *Engine) unpin(u *user) {
	e.mu.Lock()
	u.pins--
	e.mu.Unlock()
	e.reap(u)
}

// reap forgets a user of whom nothing is going on.
func (e *Engine) reap(u *user) {
	e.mu.Lock()
	defer e.mu.Unlock()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.pins == 0 && len(u.devices) == 0 && !u.dirty && u.flushing.delivered == nil {
		u.gone = true
		e.users.CompareAndDelete(u.name, u)
		if u.sub != nil {
			e.peers.end(u.sub)
		}
	}
}

// load reads a user's state: once or, where there are other nodes, for each connection, since what they have said may be lost. The
// object is in the map already, so a message that is committed meanwhile moves its head; one committed before is in the
// head that the store reports.
func (e *Engine) load(ctx context.Context, u *user) error {
	u.loading.Lock()
	defer u.loading.Unlock()
	u.mu.Lock()
	loaded := u.loaded
	u.mu.Unlock()
	if loaded && e.peers == nil {
		return nil
	}
	if e.peers != nil {
		e.peers.enter(ctx, u)
	}
	rec, err := e.store.User(ctx, u.name)
	if err != nil {
		return err
	}
	box, err := e.store.Inbox(ctx, u.name)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.head = max(u.head, box.Head)
	u.cursor = max(u.cursor, rec.Cursor)
	u.seen = max(u.seen, rec.LastSeen)
	u.loaded = true
	return nil
}

// markDirty has the flusher write the user's state; u.mu is held.
func (e *Engine) markDirty(u *user) {
	if !u.dirty {
		u.dirty = true
		e.dirty.add(u)
	}
}

// deliveredMark is how far user has acknowledged conv, as far as the engine or the store knows.
func (e *Engine) deliveredMark(name string, conv store.Conv) uint64 {
	if n := e.unflushedMark(name, conv); n > 0 {
		return n
	}
	c, err := e.store.Conversation(e.ctx, name, conv)
	if err != nil {
		return 0
	}
	return c.Delivered
}

// dirtyList is the list of users that the flusher has to look at.
type dirtyList struct {
	mu   sync.Mutex
	list []*user
	wake chan struct{}
}

func (l *dirtyList) init() { l.wake = make(chan struct{}, 1) }

func (l *dirtyList) add(u *user) {
	l.mu.Lock()
	l.list = append(l.list, u)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *dirtyList) take() []*user {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.list
	l.list = nil
	return list
}

// flushLoop writes cursors and watermarks behind: what a crash takes of them costs a duplicate, never a message.
func (e *Engine) flushLoop() {
	const slowest = 10 * time.Second
	t := time.NewTimer(0)
	defer t.Stop()
	pause := e.cfg.Load().FlushInterval
	failing := false
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-e.dirty.wake:
		}
		t.Reset(pause)
		select {
		case <-e.ctx.Done():
			return
		case <-t.C:
		}
		switch err := e.flush(e.ctx); {
		case err == nil && failing:
			e.log.Info("cursors are written again")
			failing, pause = false, e.cfg.Load().FlushInterval
		case err != nil && e.ctx.Err() == nil:
			if !failing {
				e.log.Warn("cursors cannot be written; will be tried again", "error", err)
			}
			failing, pause = true, min(2*pause, slowest)
		}
	}
}

// Flush writes what is written behind, of all users: what another node is to go on with.
func (e *Engine) Flush(ctx context.Context) error {
	if err := e.flush(ctx); err != nil {
		return err
	}
	e.awaitFlush()
	return nil
}

// flush writes the state of every dirty user in one batch that needs no sync.
func (e *Engine) flush(ctx context.Context) error {
	users := e.dirty.take()
	if len(users) == 0 {
		return nil
	}
	e.flushing <- struct{}{}
	defer func() { <-e.flushing }()
	b := store.Batch{Lazy: true}
	var fences []fence
	for _, u := range users {
		fences = u.collect(&b, fences)
	}
	err := e.store.Commit(ctx, &b)
	if err == nil {
		for _, f := range fences {
			if f.Lost {
				e.lose(f.u, f.Client, f.Epoch)
			}
		}
	}
	for _, u := range users {
		u.mu.Lock()
		if err != nil {
			u.restore()
			e.markDirty(u)
		}
		u.flushing.delivered, u.flushing.offline, u.flushing.ended = nil, nil, nil
		u.mu.Unlock()
		e.reap(u)
	}
	return err
}

// awaitFlush waits for the flush that is under way.
func (e *Engine) awaitFlush() {
	e.flushing <- struct{}{}
	<-e.flushing
}

// collect adds what is to be written to b, and to fences with which right.
func (u *user) collect(b *store.Batch, fences []fence) []fence {
	speak := func(id string, epoch uint64) {
		if epoch != 0 {
			fences = append(fences, fence{&store.Fence{Client: id, Epoch: epoch}, u})
			b.Fences = append(b.Fences, fences[len(fences)-1].Fence)
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.dirty = false
	if !u.gone { // a late acknowledgement must not put the cursor back
		b.Users = append(b.Users, store.User{Name: u.name, Cursor: u.cursor, LastSeen: u.seen})
	}
	for conv, cseq := range u.delivered {
		b.Delivered = append(b.Delivered, &store.Mark{User: u.name, Conv: conv, Cseq: cseq})
	}
	for id, d := range u.offline {
		speak(id, d.epoch)
		b.Devices = append(b.Devices, d.Device)
		b.Cursors = append(b.Cursors, d.cursors...)
	}
	for _, d := range u.devices {
		if d.session.Persistent && !d.lost {
			speak(d.id, d.session.Epoch)
			b.Devices = append(b.Devices, d.record(0))
			b.Cursors = d.cursors(b.Cursors, false)
		}
	}
	for id, epoch := range u.ended {
		speak(id, epoch)
		b.Removed = append(b.Removed, store.DeviceKey{User: u.name, Device: id})
	}
	u.flushing.delivered, u.flushing.offline, u.flushing.ended = u.delivered, u.offline, u.ended
	if u.flushing.delivered == nil {
		u.flushing.delivered = map[store.Conv]uint64{}
	}
	u.delivered, u.offline, u.ended = nil, nil, nil
	return fences
}

// restore puts back what could not be written; u.mu is held.
func (u *user) restore() {
	for _, d := range u.devices {
		for _, g := range d.groups {
			g.flushed = 0
		}
	}
	for conv, cseq := range u.flushing.delivered {
		u.noteDelivered(conv, cseq)
	}
	for id, d := range u.flushing.offline {
		_, newer := u.offline[id]
		if _, over := u.ended[id]; !newer && !over {
			u.noteOffline(id, d)
		}
	}
	for id, epoch := range u.flushing.ended {
		if _, newer := u.offline[id]; !newer && !u.resumed(id) {
			u.noteEnded(id, epoch)
		}
	}
}

// resumed reports whether a device is connected with a session that outlives the connection; u.mu is held.
func (u *user) resumed(id string) bool {
	return slices.ContainsFunc(u.devices, func(d *Device) bool { return d.id == id && d.session.Persistent })
}

func (u *user) noteDelivered(conv store.Conv, cseq uint64) {
	if u.delivered == nil {
		u.delivered = map[store.Conv]uint64{}
	}
	u.delivered[conv] = max(u.delivered[conv], cseq)
}

// unflushed reports whether something about a device that is not connected is to be written; the caller does not hold u.mu.
func (u *user) unflushed(id string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, a := u.offline[id]
	_, b := u.ended[id]
	_, c := u.flushing.offline[id]
	_, d := u.flushing.ended[id]
	return a || b || c || d
}

// fence is one of a batch, and whose.
type fence struct {
	*store.Fence
	u *user
}

// lose ends a device whose session another connection has claimed after the epoch given: nothing is written of it any more.
func (e *Engine) lose(u *user, id string, epoch uint64) {
	var list []*Device
	u.mu.Lock()
	for _, d := range u.devices {
		if d.id == id && d.session.Epoch <= epoch && d.session.Epoch != 0 && !d.lost {
			d.lost = true
			list = append(list, d)
		}
	}
	u.mu.Unlock()
	for _, d := range list {
		d.link.Close(CloseTaken)
	}
}

// noteEnded has a session forgotten: by the connection with that epoch; 0: by the user's will.
func (u *user) noteEnded(id string, epoch uint64) {
	delete(u.offline, id)
	if u.ended == nil {
		u.ended = map[string]uint64{}
	}
	u.ended[id] = epoch
}

func (u *user) noteOffline(id string, d away) {
	delete(u.ended, id)
	if u.offline == nil {
		u.offline = map[string]away{}
	}
	u.offline[id] = d
}
