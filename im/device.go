package im

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/mqim/mqim/store"
)

// Session says what kind of session a device connects with.
type Session struct {
	Clean      bool          // forget the cursor of an earlier session: start at the user's
	Persistent bool          // the cursor outlives the connection
	Expiry     time.Duration // by how long; 0: until it is removed
	Epoch      uint64        // of the store.Claim that was made for the connection; 0: none was
}

// slot is a message that was handed to a device and is not known to be acknowledged, or lies between such.
type slot struct {
	seq     uint64 // its number in the stream
	id      int64
	cseq    uint64
	conv    store.Conv
	from    string
	cid     string
	due     int64 // IM: when to send it again, Unix milliseconds; 0 until the peer has taken it
	sent    int64 // when it was last sent, Unix milliseconds
	attempt uint8
	profile Profile // in which it was last sent
	acked   bool
	passed  bool // acknowledged without having been shown: the sender is told nothing
}

// Device is a connected device: its place in the user's inbox and in the logs of large groups, and what it has not
// acknowledged.
type Device struct {
	e       *Engine
	u       *user
	id      string
	link    Link
	session Session
	resumed bool // it goes on where an earlier connection was
	touched bool // the deliverer's
	chans   atomic.Uint32

	// Guarded by u.mu.
	profile  Profile
	inbox    stream
	groups   []*groupStream // append-only: places are made of indices
	turn     int            // which of groups the pump looks at first
	held     int            // messages in all windows
	loading  bool           // its groups are being read from the store
	reload   bool           // and are to be read again
	pumping  bool
	blocked  bool // the link had no room
	resting  bool // sent MaxAttempts times in vain: left alone until it acknowledges something
	closed   bool
	progress int64 // when the peer last took something, Unix milliseconds
	timer    *time.Timer
	armed    bool
	armedAt  int64                 // when check runs, Unix milliseconds
	watching map[string]bool       // presence
	lost     bool                  // another connection has claimed the session: nothing is written of it any more
	past     map[store.Conv]uint64 // what large groups are read to their end, up to where; nil where there is no bus
	nonce    string                // names a session that ends with the connection; made by onceCid
	missed   int64                 // since when there may be notices that it has not had, Unix milliseconds; 0: there are none
	catching bool                  // it is being sent them
}

// Connect tells the engine that a device of user is there. The device gets nothing until SetProfile. An earlier
// connection of the same device must have been closed before.
func (e *Engine) Connect(ctx context.Context, userName, device string, s Session, link Link) (*Device, error) {
	if e.closed.Load() {
		return nil, store.ErrClosed
	}
	u, err := e.pin(ctx, userName)
	if err != nil {
		return nil, err
	}
	defer e.unpin(u)
	if e.peers != nil && u.unflushed(device) { // the device may have been elsewhere since: the store knows
		if err := e.Flush(ctx); err != nil {
			return nil, err
		}
	}
	key := store.DeviceKey{User: userName, Device: device}
	rec, err := e.deviceRecord(ctx, u, key)
	found := err == nil
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	if max := e.cfg.Load().DevicesPerUser; max > 0 && !found {
		if list, err := e.devices(ctx, u); err != nil {
			return nil, err
		} else if n := len(list); n >= max {
			return nil, errorf(RateLimited, "user has %d devices already, the limit is %d", n, max)
		}
	}
	now := time.Now().UnixMilli()
	d := &Device{e: e, u: u, id: device, link: link, session: s, progress: now, loading: true}

	alive := found && (rec.Expires == 0 || rec.Expires > now)
	u.mu.Lock()
	d.inbox.cursor = u.cursor
	if alive && !s.Clean {
		d.inbox.cursor, d.resumed, d.missed = rec.Cursor, true, rec.LastSeen
	}
	d.inbox.next = d.inbox.cursor + 1
	if s.Persistent {
		delete(u.ended, device)
	}
	u.mu.Unlock()
	if s.Persistent && (!alive || s.Clean) {
		if err := e.createSession(ctx, u, d.record(0), s.Epoch); err != nil {
			return nil, err
		}
	}

	u.mu.Lock()
	delete(u.offline, device)
	if !s.Persistent && found {
		u.noteEnded(device, s.Epoch)
	}
	u.devices = append(u.devices, d)
	first := len(u.devices) == 1
	u.seen = now
	e.markDirty(u)
	u.mu.Unlock()
	if first {
		e.presence.online(userName)
	}
	if err := d.load(ctx, rec.cursors, false); err != nil {
		d.Disconnect(!s.Persistent)
		return nil, err
	}
	return d, nil
}

// createSession makes a new session durable. What a crash takes of a cursor costs duplicates, but a session that it
// takes whole would begin anew, at the user's cursor, beyond what the device has not seen. What the user's other devices
// have acknowledged goes with it, since the session begins after that; so do its places in large groups, for where one is
// missing the group was joined, or became large, later. Where the store cannot commit, there are no new sessions; the old
// ones and those that end with the connection read on.
func (e *Engine) createSession(ctx context.Context, u *user, rec store.Device, epoch uint64) error {
	u.mu.Lock()
	_, ending := u.flushing.ended[rec.Device]
	u.mu.Unlock()
	if ending { // the end of the session before must not come after the beginning of this one
		e.awaitFlush()
		u.mu.Lock()
		delete(u.ended, rec.Device) // where it could not be written
		u.mu.Unlock()
	}
	streams, err := e.streamsOf(ctx, u, rec.DeviceKey)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	p := &pending{after: func(err error) { done <- err }}
	f := &store.Fence{Client: rec.Device, Epoch: epoch}
	p.op = func(b *store.Batch) {
		u.mu.Lock()
		defer u.mu.Unlock()
		if epoch != 0 {
			b.Fences = append(b.Fences, f)
		}
		b.Devices = append(b.Devices, rec)
		for i := range streams {
			st := &streams[i]
			after := max(st.Delivered, firstOf(st)-1)
			b.Cursors = append(b.Cursors, store.Cursor{DeviceKey: rec.DeviceKey, Conv: st.Conv, Cseq: after})
		}
		b.Users = append(b.Users, store.User{Name: u.name, Cursor: u.cursor, LastSeen: u.seen})
		for _, marks := range []map[store.Conv]uint64{u.flushing.delivered, u.delivered} {
			for conv, cseq := range marks {
				b.Delivered = append(b.Delivered, &store.Mark{User: u.name, Conv: conv, Cseq: cseq})
			}
		}
	}
	if err := e.store.Healthy(); err != nil {
		return err
	}
	if !e.queue.put(p) {
		return store.ErrClosed
	}
	select {
	case err := <-done:
		if err == nil && f.Lost {
			err = ErrTaken
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// deviceRecord is a device's session as it was last seen, whether or not it has been flushed.
func (e *Engine) deviceRecord(ctx context.Context, u *user, key store.DeviceKey) (away, error) {
	u.mu.Lock()
	rec, ok := u.offline[key.Device]
	_, ended := u.ended[key.Device]
	if !ok && !ended {
		rec, ok = u.flushing.offline[key.Device]
		_, ended = u.flushing.ended[key.Device]
	}
	u.mu.Unlock()
	switch {
	case ok:
		return rec, nil
	case ended:
		return away{}, store.ErrNotFound
	}
	stored, err := e.store.Device(ctx, key)
	return away{Device: stored}, err
}

// SetExpiry changes how long the session outlives its connection; 0: until it is removed.
func (d *Device) SetExpiry(after time.Duration) {
	d.u.mu.Lock()
	defer d.u.mu.Unlock()
	d.session.Expiry = after
}

// Disconnect tells the engine that the connection has ended. ended says that the session has, too: always, where it
// was not persistent.
func (d *Device) Disconnect(ended bool) {
	e, u := d.e, d.u
	u.mu.Lock()
	if d.closed {
		u.mu.Unlock()
		return
	}
	d.closed = true
	rec := away{Device: d.record(0), epoch: d.session.Epoch}
	d.setProfile(None)
	d.setChannels(0)
	if d.timer != nil {
		d.timer.Stop()
	}
	for _, g := range d.groups {
		e.feeds.remove(g)
	}
	u.devices = slices.DeleteFunc(u.devices, func(x *Device) bool { return x == d })
	u.seen = time.Now().UnixMilli()
	switch {
	case d.lost || !d.session.Persistent:
	case ended:
		u.noteEnded(d.id, d.session.Epoch)
	default:
		if d.session.Expiry > 0 {
			rec.Expires = u.seen + d.session.Expiry.Milliseconds()
		}
		rec.cursors = d.cursors(nil, true)
		u.noteOffline(d.id, rec)
	}
	last := len(u.devices) == 0
	watching := d.watching
	d.watching = nil
	e.markDirty(u)
	u.mu.Unlock()
	e.presence.unwatch(d, watching)
	if last {
		e.presence.offline(u.name)
	}
}

// record is what is stored about the device; u.mu is held.
func (d *Device) record(expires int64) store.Device {
	seen := time.Now().UnixMilli()
	if d.catching && d.missed != 0 {
		seen = d.missed // should the connection end now, the next one has them to send again
	}
	return store.Device{
		DeviceKey: store.DeviceKey{User: d.u.name, Device: d.id},
		Cursor:    d.inbox.cursor, LastSeen: seen, Expires: expires, Profile: d.profile.String(),
	}
}

// SetProfile says how the device reads from now on, and which channels it listens to. Delivery begins at its cursor,
// or goes on where it was.
func (d *Device) SetProfile(p Profile, channels Channel) {
	d.u.mu.Lock()
	defer d.u.mu.Unlock()
	if d.closed {
		return
	}
	d.setProfile(p)
	d.setChannels(channels)
	if p != None && d.held > 0 {
		d.arm(time.Now().UnixMilli()) // what fell due while the device did not read
	}
	d.catchUp(p, channels)
	d.pump()
}

func (d *Device) setProfile(p Profile) {
	if was := d.profile != None; was != (p != None) {
		if was {
			d.u.readers.Add(-1)
		} else {
			d.u.readers.Add(1)
		}
	}
	d.profile = p
}

func (d *Device) setChannels(c Channel) {
	old := Channel(d.chans.Swap(uint32(c)))
	count := func(n *atomic.Int32, bit Channel) {
		if (old^c)&bit != 0 {
			if c&bit != 0 {
				n.Add(1)
			} else {
				n.Add(-1)
			}
		}
	}
	count(&d.u.receipts, Receipts)
	count(&d.u.events, Events)
}

func (d *Device) wants(c Channel) bool { return Channel(d.chans.Load())&c != 0 }

// Resumed reports whether the device goes on with a session that it had before: one that has expired, or that
// device.remove ended, is none.
func (d *Device) Resumed() bool { return d.resumed }

// User is the name of the device's user.
func (d *Device) User() string { return d.u.name }

// ID is the device's id.
func (d *Device) ID() string { return d.id }

// devices lists a user's sessions and connected devices as they are now, on all nodes that answer in time, ordered by id.
func (e *Engine) devices(ctx context.Context, u *user) ([]deviceState, error) {
	// What is not flushed is looked at before the store is: a flush in between must not hide a session.
	unflushed, ended := map[string]deviceState{}, map[string]bool{}
	u.mu.Lock()
	for id := range u.flushing.ended {
		ended[id] = true
	}
	for id, d := range u.flushing.offline {
		unflushed[id] = deviceState{Device: d.Device}
	}
	for id := range u.ended {
		delete(unflushed, id)
		ended[id] = true
	}
	for id, d := range u.offline {
		unflushed[id] = deviceState{Device: d.Device}
	}
	for _, d := range u.devices {
		unflushed[d.id] = deviceState{Device: d.record(0), online: true}
	}
	u.mu.Unlock()
	stored, err := e.store.Devices(ctx, u.name)
	if err != nil {
		return nil, err
	}
	now := time.Now().UnixMilli()
	byID := map[string]deviceState{}
	for _, d := range stored {
		if !ended[d.Device] {
			byID[d.Device] = deviceState{Device: d}
		}
	}
	maps.Copy(byID, unflushed)
	if e.peers != nil {
		for _, d := range e.peers.who(ctx, []string{u.name})[0].devices {
			if here := byID[d.Device]; !here.online {
				byID[d.Device] = deviceState{Device: d, online: true}
			}
		}
	}
	var list []deviceState
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		if d := byID[id]; d.online || d.Expires == 0 || d.Expires > now {
			list = append(list, d)
		}
	}
	return list, nil
}

type deviceState struct {
	store.Device
	online bool
}

// refuse answers a request with an error.
func (d *Device) refuse(t Ticket, rid, cid string, err *Error) {
	d.e.m.Refused(err.Code)
	var reply []byte
	if d.wants(Replies) {
		reply = appendErrorReply(nil, rid, cid, err)
	}
	d.link.Answer(t, reply, err)
}

// Refuse answers a request that the device's link found wrong.
func (d *Device) Refuse(t Ticket, cid string, err *Error) { d.refuse(t, "", cid, err) }

// Dropped counts something that the device's link had no room for.
func (d *Device) Dropped(reason string) { d.e.m.Dropped(reason) }
