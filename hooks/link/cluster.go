package link

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/store"
)

// What nodes of a cluster owe each other over a client: it is connected to one of them. Who is about to let a client in
// asks on the client's channel, and who has it lets go. That is for speed, and for what is in memory alone; what makes it
// safe is the store.Claim that follows, and the store.Fence with everything that is stored of the client afterwards.

const (
	claimTopic = 'l' // on the bus
	claimWait  = 2 * time.Second
	holdWait   = time.Second
)

// What is answered to a claim.
const (
	claimReleased = iota // nothing of the client is here any more
	claimForeign         // it is another user's
	claimBeaten          // somebody has connected under this id later
)

// ErrBeaten: two connections of one client were made at the same time, and the other one is let in.
var ErrBeaten = errors.New("another connection with this client id was made at the same time")

// claim is a connection that is about to be established. Guarded by Registry.mu.
type claim struct {
	stamp  stamp
	cancel context.CancelFunc // of its question
	err    error              // it is not to be: beaten, or foreign
}

// stamp orders claims that are made at the same time: milliseconds, and chance.
type stamp [16]byte

func newStamp() (s stamp) {
	binary.BigEndian.PutUint64(s[:], uint64(time.Now().UnixMilli()))
	_, _ = rand.Read(s[8:])
	return s
}

// next is the first stamp after s.
func (s stamp) next() stamp {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i]++; s[i] != 0 {
			break
		}
	}
	return s
}

// question is what is asked before a connection is established.
type question struct {
	stamp stamp
	clean bool // the session is not gone on with
	user  string
}

func (q *question) encode() []byte {
	b := append([]byte{0}, q.stamp[:]...)
	if q.clean {
		b[0] = 1
	}
	return append(b, q.user...)
}

func decodeQuestion(b []byte) (q question, ok bool) {
	if len(b) < 1+len(q.stamp) {
		return q, false
	}
	q.clean = b[0] == 1
	copy(q.stamp[:], b[1:])
	q.user = string(b[1+len(q.stamp):])
	return q, true
}

// Cluster has clients belong to one of several nodes at a time. It is called before the bus is started, and needs Journal:
// what other nodes are to find of a client that is not connected, is in the store.
func (r *Registry) Cluster(b bus.Bus) {
	r.bus = b
	b.Handle(claimTopic, r.asked)
}

// OnYield has f called when another node is about to let a client in: after the connection here, if there was one, has
// ended, and before the other node is told to go on. clean says that the session is not gone on with. What f has
// stored is in the store then.
func (r *Registry) OnYield(f func(ctx context.Context, client string, clean bool)) {
	r.yielders = append(r.yielders, f)
}

// Hold has other nodes ask this one before they let a client in, until Unhold.
func (r *Registry) Hold(client string) {
	if r.bus == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), holdWait)
	defer cancel()
	_ = r.bus.Subscribe(ctx, bus.Channel{Kind: bus.Client, Name: client}) // it stands, whatever the error
}

// Unhold undoes Hold.
func (r *Registry) Unhold(client string) {
	if r.bus != nil {
		r.bus.Unsubscribe(bus.Channel{Kind: bus.Client, Name: client})
	}
}

// Close waits for what the registry does of itself, and does no more of it. A second Close does nothing.
func (r *Registry) Close() {
	r.mu.Lock()
	r.closed = true
	for _, w := range r.wills {
		w.timer.Stop()
	}
	clear(r.wills)
	r.mu.Unlock()
	r.running.Wait()
}

// spawn runs f on a goroutine that Close waits for. mu is held.
func (r *Registry) spawn(f func()) bool {
	if r.closed {
		return false
	}
	r.running.Go(f)
	return true
}

// clear asks the other nodes to let go of c's client, and waits for that. A node that does not answer is not waited for
// longer than claimWait.
func (r *Registry) clear(c *Conn, clean bool) error {
	if r.bus == nil {
		return nil
	}
	client := c.Session.Client
	ctx, cancel := context.WithTimeout(context.Background(), claimWait)
	defer cancel()
	mine := &claim{stamp: newStamp(), cancel: cancel}
	r.mu.Lock()
	if old := r.claims[client]; old != nil {
		old.beat(ErrBeaten)
		// What the old one has beaten must not beat this one, or nobody would be left.
		if bytes.Compare(old.stamp[:], mine.stamp[:]) >= 0 {
			mine.stamp = old.stamp.next()
		}
	}
	r.claims[client] = mine
	c.claim = mine
	r.mu.Unlock()
	r.Hold(client) // not before, so that who asks after it finds the claim
	c.holds.Store(true)
	err := r.question(ctx, c, &question{stamp: mine.stamp, clean: clean, user: c.User})
	r.mu.Lock()
	defer r.mu.Unlock()
	if mine.err != nil {
		err = mine.err
	}
	if err != nil {
		r.unclaim(c)
	}
	return err
}

func (r *Registry) question(ctx context.Context, c *Conn, q *question) error {
	if len(r.bus.Peers()) == 0 {
		return nil
	}
	// Errors: who cannot be reached is kept from harm by the store's claim.
	answers, _ := r.bus.Ask(ctx, bus.Channel{Kind: bus.Client, Name: c.Session.Client}, claimTopic, q.encode())
	var err error
	for _, a := range answers {
		switch {
		case len(a.Payload) == 0:
		case a.Payload[0] == claimForeign:
			return ErrForeign
		case a.Payload[0] == claimBeaten:
			err = ErrBeaten
		}
	}
	return err
}

// unclaim ends c's claim, for better or worse. mu is held.
func (r *Registry) unclaim(c *Conn) {
	if c.claim != nil && r.claims[c.Session.Client] == c.claim {
		delete(r.claims, c.Session.Client)
	}
	c.claim = nil
}

func (x *claim) beat(err error) {
	x.err = err
	x.cancel()
}

// asked is given the other nodes' questions.
func (r *Registry) asked(m *bus.Message) {
	q, ok := decodeQuestion(m.Payload)
	if !ok || m.Answer == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.spawn(func() { m.Answer([]byte{r.yield(m.Channel.Name, &q)}) }) {
		m.Answer([]byte{claimReleased})
	}
}

// yield lets go of a client for another node, unless it has a reason not to, which it returns.
func (r *Registry) yield(client string, q *question) byte {
	r.mu.Lock()
	var old *Conn
	foreign, mine := false, r.claims[client]
	if s := r.sessions[client]; s != nil {
		s.mu.Lock()
		if s.conn != nil && s.conn.established() {
			old = s.conn
		}
		foreign = s.User != q.user && (old != nil || s.conn == nil && s.persistent)
		s.mu.Unlock()
	}
	if mine != nil && !foreign && bytes.Compare(mine.stamp[:], q.stamp[:]) > 0 {
		r.mu.Unlock()
		return claimBeaten
	}
	if foreign {
		r.mu.Unlock()
		return claimForeign
	}
	if mine != nil {
		mine.beat(ErrBeaten)
		delete(r.claims, client)
	}
	r.mu.Unlock()
	if old != nil {
		r.evict(old)
	}
	r.settleWill(client, !q.clean)
	ctx, cancel := context.WithTimeout(context.Background(), claimWait)
	defer cancel()
	for _, f := range r.yielders {
		f(ctx, client, q.clean)
	}
	if r.journal != nil {
		_ = r.journal.Flush(ctx) // a store that cannot commit now does not commit the other node's claim either
	}
	return claimReleased
}

// claim has it stored that the client is this connection's: before anything of its session is read.
func (r *Registry) claim(ctx context.Context, c *Conn) error {
	x := &store.Claim{Client: c.Session.Client}
	if err := r.journal.Do(ctx, func(b *store.Batch) { b.Claims = append(b.Claims, x) }); err != nil {
		return err
	}
	c.epoch.Store(x.Epoch)
	return nil
}

// Epoch is that of the store.Claim that was made for the connection; 0: none was. It does not change once the connection is
// established.
func (c *Conn) Epoch() uint64 { return c.epoch.Load() }

// AddFence has a batch speak for a client with an epoch; 0: no claim was made.
func AddFence(b *store.Batch, client string, epoch uint64) {
	if epoch == 0 {
		return
	}
	if n := len(b.Fences); n > 0 && b.Fences[n-1].Client == client && b.Fences[n-1].Epoch >= epoch {
		return
	}
	b.Fences = append(b.Fences, &store.Fence{Client: client, Epoch: epoch})
}

// fence has a batch speak for the connection's client.
func (c *Conn) fence(b *store.Batch) { AddFence(b, c.Session.Client, c.Epoch()) }

// Superseded ends the connection of a client if it was made with an epoch up to the given one: another node has made
// a later claim.
func (r *Registry) Superseded(client string, epoch uint64) {
	r.mu.Lock()
	s := r.sessions[client]
	r.mu.Unlock()
	if s == nil {
		return
	}
	s.mu.Lock()
	c := s.conn
	s.mu.Unlock()
	if c != nil && c.Epoch() > 0 && c.Epoch() <= epoch {
		c.Lose()
	}
}

// Lose ends a connection that another node has taken over without this one having been told: nothing that it has left to
// say concerns anybody, its will neither.
func (c *Conn) Lose() {
	if !c.lost.Swap(true) {
		c.Disconnect(packets.ErrSessionTakenOver)
	}
}

// Lost reports whether the connection was ended by Lose.
func (c *Conn) Lost() bool { return c.lost.Load() }

// delayedWill is a will that waits for its delay. Guarded by Registry.mu.
type delayedWill struct {
	publish func()
	timer   *time.Timer
}

// DelayWill has f called after the delay, unless the session is resumed before, on any node [MQTT-3.1.3-9]; at once where
// a new session takes its place.
func (c *Conn) DelayWill(delay time.Duration, f func()) {
	r, client := c.reg, c.Session.Client
	r.Hold(client)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	w := &delayedWill{publish: f}
	w.timer = time.AfterFunc(delay, func() { r.fireWill(client, w) })
	if r.wills == nil {
		r.wills = map[string]*delayedWill{}
	}
	r.wills[client] = w
}

func (r *Registry) fireWill(client string, w *delayedWill) {
	r.mu.Lock()
	mine := r.wills[client] == w
	if mine {
		delete(r.wills, client)
		mine = r.spawn(w.publish)
	}
	r.mu.Unlock()
	if mine {
		r.Unhold(client)
	}
}

// settleWill says what becomes of a will that waits: the client is back, with its session present or not.
func (r *Registry) settleWill(client string, present bool) {
	r.mu.Lock()
	w := r.wills[client]
	if w != nil {
		w.timer.Stop()
		delete(r.wills, client)
		if !present {
			r.spawn(w.publish)
		}
	}
	r.mu.Unlock()
	if w != nil {
		r.Unhold(client)
	}
}
