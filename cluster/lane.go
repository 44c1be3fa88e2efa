package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mqim/mqim/bus"
	"github.com/redis/go-redis/v9"
)

// probe is the kind of the channel on which a lane hears itself; its name is the node's id.
const probe bus.Kind = 'h'

// State of a lane.
const (
	laneOff       = iota
	laneConnected // can send answers; subscribed to nothing
	laneJoining   // Redis has not confirmed everything yet
	laneProbing   // everything is confirmed; the probe is under way
	laneUp
)

// lane is a slot of Redis'.
type lane struct {
	b      *Bus
	n      int
	prefix string // of the names of its channels, with the hash tag
	self   bus.Channel

	connected bool // once; run's own

	wake  chan struct{} // something for flush
	heard atomic.Int64  // when Redis was last heard, after Bus' start

	mu         sync.Mutex
	state      int
	connection uint32        // counted up by each failure
	ps         *redis.PubSub // subscribed; nil: off
	client     *redis.Client
	subs       map[bus.Channel]*sub
	dirty      []*sub // Redis may have to be told about them, in this order
	pending    int    // commands about a channel that Redis has not confirmed
	missing    int    // subscriptions to be confirmed before the lane can come up
	out        map[bus.Channel]*outbox
	queue      []*outbox
	counts     []*counting
	free       []*outbox     // empty
	freeBytes  int           // of their batches
	left       chan struct{} // closed when Redis knows of no subscription any more; nil: that is not waited for
}

// sub is a channel that somebody wants, or that Redis has yet to be told is not wanted any more. Guarded by lane.mu.
type sub struct {
	c         bus.Channel
	name      string // Redis'
	wanted    int
	told      bool // what Redis has been told last: it is wanted
	pending   int  // times told without being confirmed
	missing   bool // see lane.missing
	dirty     bool // in lane.dirty
	held      bool // something to publish has waited for the confirmation: it goes before the next change
	confirmed chan struct{}
}

func newLane(b *Bus, n int) *lane {
	l := &lane{
		b: b, n: n, prefix: fmt.Sprintf("{%s:%d}:", b.opts.Prefix, n), self: bus.Channel{Kind: probe, Name: b.id},
		wake: make(chan struct{}, 1), subs: map[bus.Channel]*sub{}, out: map[bus.Channel]*outbox{},
	}
	l.add(l.self)
	return l
}

// name is that of a channel in Redis.
func (l *lane) name(c bus.Channel) string { return l.prefix + string(byte(c.Kind)) + ":" + c.Name }

// channel is the reverse of name.
func (l *lane) channel(name string) (bus.Channel, bool) {
	rest, ok := strings.CutPrefix(name, l.prefix)
	if !ok || len(rest) < 2 || rest[1] != ':' {
		return bus.Channel{}, false
	}
	return bus.Channel{Kind: bus.Kind(rest[0]), Name: rest[2:]}, true
}

func (l *lane) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// add counts a subscription; mu is held. It returns what is closed when Redis has confirmed it, nil: it has.
func (l *lane) add(c bus.Channel) <-chan struct{} {
	s := l.subs[c]
	if s == nil {
		s = &sub{c: c, name: l.name(c)}
		l.subs[c] = s
	}
	if s.wanted++; s.wanted == 1 {
		l.touch(s)
	}
	if l.state >= laneJoining && s.told && s.pending == 0 {
		return nil
	}
	if s.confirmed == nil {
		s.confirmed = make(chan struct{})
	}
	return s.confirmed
}

// remove undoes an add; mu is held.
func (l *lane) remove(c bus.Channel) {
	s := l.subs[c]
	if s == nil || s.wanted == 0 {
		return
	}
	if s.wanted--; s.wanted == 0 {
		if l.state < laneJoining {
			l.forget(s)
			return
		}
		l.touch(s)
	}
}

// forget removes a channel that is not wanted; mu is held.
func (l *lane) forget(s *sub) {
	delete(l.subs, s.c)
	if len(l.subs) == 0 && l.left != nil {
		close(l.left)
		l.left = nil
	}
}

// leave ends all subscriptions. What it returns is closed when Redis has confirmed that; nil: the lane is not up.
func (l *lane) leave() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state != laneUp {
		return nil
	}
	left := make(chan struct{})
	l.left = left
	for _, s := range l.subs {
		s.wanted = 0
		l.touch(s)
	}
	return left
}

// touch has flush look at a channel; mu is held.
func (l *lane) touch(s *sub) {
	if !s.dirty && l.state >= laneJoining { // which looks at all of them
		s.dirty = true
		l.dirty = append(l.dirty, s)
		l.poke()
	}
}

// run keeps the lane connected, and hands out what comes.
func (l *lane) run() {
	defer l.b.wg.Done()
	backoff := backoffLeast
	for l.b.ctx.Err() == nil {
		connection, begun := l.current(), time.Now()
		l.fail(connection, l.receive(connection))
		if time.Since(begun) > steady {
			backoff = backoffLeast
		}
		select {
		case <-l.b.ctx.Done():
		case <-time.After(backoff/2 + rand.N(backoff)): // not all nodes at once
		}
		backoff = min(2*backoff, backoffMost)
	}
	l.fail(l.current(), context.Canceled)
}

// current is the number of the connection.
func (l *lane) current() uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.connection
}

// fail takes the lane down, if that connection is still the one.
func (l *lane) fail(connection uint32, err error) {
	l.mu.Lock()
	if l.connection != connection {
		l.mu.Unlock()
		return
	}
	l.connection++
	l.state = laneOff
	ps, queue, counts := l.ps, l.queue, l.counts
	l.ps, l.client, l.queue, l.counts, l.dirty = nil, nil, nil, nil, nil
	clear(l.out)
	l.pending = 0
	l.mu.Unlock()

	if ps != nil {
		_ = ps.Close()
	}
	l.b.fall(err)
	for _, o := range queue {
		l.finish(o, -1)
	}
	for _, c := range counts {
		c.done <- bus.ErrDown
	}
	l.b.report(l, err)
}

// fallen ends with the context that the library dials with when a subscribed connection has failed: never. It would subscribe
// to everything by itself; a lane that has failed is made anew.
var fallen = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

var errMoved = errors.New("the slot has moved")

// receive connects, and returns when the connection has failed.
func (l *lane) receive(connection uint32) error {
	ctx := l.b.ctx
	client, err := l.server(ctx)
	if err != nil {
		return err
	}
	if err := l.b.check(ctx, client); err != nil {
		return err
	}
	ps := client.SSubscribe(ctx) // to nothing yet
	if err := ps.Ping(ctx); err != nil {
		_ = ps.Close()
		return err
	}
	l.mu.Lock()
	if l.connection != connection {
		l.mu.Unlock()
		_ = ps.Close()
		return context.Canceled
	}
	l.ps, l.client, l.state = ps, client, laneConnected
	l.mu.Unlock()
	if err := l.waitForAll(); err != nil {
		return err
	}
	if !l.join(connection) {
		return context.Canceled
	}
	for {
		got, err := ps.ReceiveTimeout(fallen, 0)
		if err != nil {
			if c, ok := l.b.client.(*redis.ClusterClient); ok {
				c.ReloadState(ctx) // the slot may have another server now
			}
			return err
		}
		switch m := got.(type) {
		case *redis.Message:
			l.message(m)
		case *redis.Subscription:
			if !l.confirm(m) {
				return errMoved
			}
		}
	}
}

// waitForAll waits until all lanes have been connected once. A node that is starting subscribes only then: it could not
// answer a question of one lane in another.
func (l *lane) waitForAll() error {
	if !l.connected {
		l.connected = true
		if l.b.connecting.Add(-1) == 0 {
			close(l.b.connected)
		}
	}
	select {
	case <-l.b.connected:
		return nil
	case <-l.b.ctx.Done():
		return l.b.ctx.Err()
	}
}

// join has everything subscribed to; false: the connection has failed.
func (l *lane) join(connection uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.connection != connection {
		return false
	}
	l.state, l.missing = laneJoining, 0
	l.heard.Store(l.b.clock())
	for _, s := range l.subs {
		if s.wanted == 0 {
			l.forget(s)
			continue
		}
		s.told, s.pending, s.held, s.missing, s.dirty = false, 0, false, true, false
		l.missing++
		l.touch(s)
	}
	return true
}

// confirm takes a confirmation. false: Redis has ended a subscription by itself.
func (l *lane) confirm(m *redis.Subscription) bool {
	c, ok := l.channel(m.Channel)
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.subs[c]
	if !ok || s == nil || s.pending == 0 {
		return false
	}
	s.pending--
	l.pending--
	if l.state == laneJoining {
		l.heard.Store(l.b.clock()) // there may be many
	}
	if s.pending == 0 {
		switch {
		case s.told && s.confirmed != nil:
			close(s.confirmed)
			s.confirmed = nil
		case !s.told && s.wanted == 0 && !s.dirty:
			l.forget(s)
		}
		if s.missing {
			s.missing = false
			l.missing--
			if l.missing == 0 {
				l.state = laneProbing
				l.put(l.self, l.probe(), nil)
			}
		}
		l.poke() // something may have waited for it
	}
	return true
}

// probe is what the lane sends to itself: the time.
func (l *lane) probe() *frame {
	return &frame{kind: kindMessage, payload: binary.BigEndian.AppendUint64(nil, uint64(l.b.clock()))}
}

// echo is a probe that has come back.
func (l *lane) echo(connection uint32, sent int64) {
	now := l.b.clock()
	l.heard.Store(now)
	l.b.roundTrip.Store(now - sent)
	l.mu.Lock()
	up := l.state == laneProbing && connection == l.connection
	if up {
		l.state = laneUp
	}
	l.mu.Unlock()
	if up {
		l.b.nudge()
	}
}

// message hands out what has come on a channel.
func (l *lane) message(m *redis.Message) {
	id, connection, ok := header(m.Payload)
	c, known := l.channel(m.Channel)
	if !ok || !known {
		l.b.junk.Add(1)
		return
	}
	var f frame
	if id == l.b.id {
		if c == l.self {
			if _, err := nextFrame([]byte(m.Payload[headerLen:]), &f); err == nil && len(f.payload) == 8 {
				l.echo(connection, int64(binary.BigEndian.Uint64(f.payload)))
			}
		}
		return
	}
	s := l.b.senders.get(id, len(l.b.lanes), l.b.clock())
	if s == nil {
		l.b.junk.Add(1)
		return
	}
	defer s.mu.Unlock()
	if connection < s.connections[l.n] {
		l.b.stale.Add(1)
		return
	}
	s.connections[l.n] = connection
	l.b.batches.Add(1)
	for b := []byte(m.Payload[headerLen:]); len(b) > 0; {
		var err error
		if b, err = nextFrame(b, &f); err != nil {
			l.b.junk.Add(1)
			return
		}
		l.b.received.Add(1)
		l.b.hand(s.id, c, &f)
	}
}

// hand gives a frame to whom it is for.
func (b *Bus) hand(from string, c bus.Channel, f *frame) {
	switch f.kind {
	case kindAnswer:
		b.answered(f.question, bus.Answer{From: from, Payload: f.payload})
		return
	case kindMessage, kindQuestion:
	default:
		b.unknown.Add(1)
		return
	}
	h := b.handlers[f.topic]
	if h == nil {
		b.unknown.Add(1)
		return
	}
	m := &bus.Message{From: from, Channel: c, Topic: f.topic, Payload: f.payload}
	if f.kind == kindQuestion {
		m.Answer = b.answerer(from, f.topic, f.question)
	}
	h(m)
}

// senders are the nodes that something has come from. Their number is bounded, since whoever can publish can invent them.
type senders struct {
	mu   sync.Mutex
	list map[string]*sender
}

const (
	mostSenders = 4096
	senderIdle  = 30 * time.Second
)

// sender is another node. mu is held while what it has sent is handed out: the handlers are called for one of its messages at a
// time, though they come in several lanes.
type sender struct {
	mu          sync.Mutex
	id          string
	gone        bool
	connections []uint32 // by lane: the latest that something has come of
	seen        atomic.Int64
}

// get returns the sender locked; nil: there are too many.
func (s *senders) get(id string, lanes int, now int64) *sender {
	for {
		s.mu.Lock()
		x := s.list[id]
		if x == nil {
			if len(s.list) >= mostSenders {
				s.mu.Unlock()
				return nil
			}
			x = &sender{id: strings.Clone(id), connections: make([]uint32, lanes)}
			s.list[x.id] = x
		}
		s.mu.Unlock()
		x.seen.Store(now)
		x.mu.Lock()
		if !x.gone {
			return x
		}
		x.mu.Unlock()
	}
}

// prune forgets those that have long been silent.
func (s *senders) prune(now int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, x := range s.list {
		if now-x.seen.Load() > int64(senderIdle) && x.mu.TryLock() {
			x.gone = true
			delete(s.list, id)
			x.mu.Unlock()
		}
	}
}
