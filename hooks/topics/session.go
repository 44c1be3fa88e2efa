package topics

import (
	"sync"
	"sync/atomic"

	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/store"
)

// session is what a connected client's subscriptions have brought and it does not have yet: what waits for room on the
// connection, and in a durable session what was sent and is not acknowledged. Whoever publishes appends to it and never
// waits. A session that ends with its connection holds up to QueueMessages and QueueBytes; of a durable one it is
// but a window on the queue in the store, and it is gone when the connection ends.
//
// It is the link.Owner of what it sends. Its mu is taken before the locks of link.Conn, which calls it with none held.
type session struct {
	h       *Hook
	client  string
	durable bool          // its queue is in the store, and a token of q is a seq there
	will    bool          // its client has left a will
	epoch   uint64        // of the connection's store.Claim; 0: none was made
	acked   atomic.Uint64 // durable: every seq up to it is acknowledged

	mu       sync.Mutex
	conn     *link.Conn // nil: not yet, or not any more
	v5       bool
	dead     bool // the session is over, or the store alone has it; routes may still point here
	q        ring
	waiting  int    // bytes of what waits, and
	flying   int    // of what was sent and is not acknowledged, in a durable session
	extra    int    // messages that wait and do not count, being retained ones for a new subscription
	earliest int64  // when the first of what waits expires; 0: nothing does
	stamp    uint64 // of the kicks that have the connection already
	scratch  []byte
	scans    []scan // retained messages that are to be sent, but are not read yet

	loading bool // a goroutine reads what is to come into q

	// Of a durable session.
	head    uint64                    // the highest seq that the store is known to have
	sent    map[uint64]store.Outbound // by seq: what earlier connections have sent
	suspect uint64                    // up to this seq a connection that a crash has ended may have sent
	unsaved bool                      // acked is to be stored, and about to be
	saved   uint64                    // what was last given to the store of acked

	// Guarded by index.mu, not by mu.
	filters map[string]*subscription // that are in the index
	left    bool                     // none are to come
}

var _ link.Owner = (*session)(nil)
var _ link.Releaser = (*session)(nil)

// outcome is what became of a message for a session.
type outcome uint8

const (
	delivered outcome = iota // written to the connection
	queued
	dropped
	gone // nobody is there to have it
)

// fitness orders the members of a shared subscription.
type fitness uint8

const (
	none      fitness = iota
	offline           // it has a session
	connected         // and a connection
	ready             // and room
)

func (s *session) fit() fitness {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.durable && (s.dead || s.conn != nil && s.conn.Closed()):
		return none
	case s.conn == nil:
		return offline
	case s.q.waiting() > 0 || s.durable && s.head >= s.q.end():
		return connected
	}
	return ready
}

// crowded reports whether there is no room for a message.
func (s *session) crowded(m *message) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn != nil && s.full(m) != ""
}

// offer takes a message that is not in the store: of QoS 0, or for a session that ends with its connection.
func (s *session) offer(o *outgoing, t *target, k *kicks, now int64) outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead || s.conn == nil || s.conn.Closed() {
		return gone
	}
	qos := min(o.QoS, t.qos)
	var flags uint8
	if o.retain && t.retain {
		flags = retainFlag // [MQTT-3.3.1-13]; without Retain As Published it is 0 [MQTT-3.3.1-12]
	}
	if qos == 0 || s.q.waiting() == 0 && len(s.scans) == 0 {
		// Straight from the publisher's buffer to the subscriber's.
		var result sending
		result, o.extra = s.send(&item{ids: t.ids, qos: qos, flags: flags}, &o.message, 0, o.extra, now)
		switch {
		case result == wasSent:
			s.touch(k)
			return delivered
		case result == tooLarge:
			return dropped
		case qos == 0:
			s.h.drop(dropNoRoom, s.client)
			return dropped
		}
	}
	s.makeRoom(&o.message)
	if s.full(&o.message) != "" {
		s.h.drop(dropMessages, s.client)
		return dropped
	}
	s.push(item{m: o.keep(), ids: t.ids, qos: qos, flags: flags})
	return queued
}

// full says for what reason no more may wait.
func (s *session) full(m *message) string {
	switch {
	case s.durable:
		return ""
	case s.q.waiting()-s.extra >= s.h.opt.QueueMessages:
		return dropMessages
	case s.waiting+size(m) > s.h.opt.QueueBytes && s.waiting > 0:
		return dropBytes
	}
	return ""
}

// makeRoom drops what has expired, and then the oldest, until a message fits.
func (s *session) makeRoom(m *message) {
	reason := s.full(m)
	if reason == "" {
		return
	}
	if now := milliseconds(); s.earliest != 0 && s.earliest <= now {
		s.purge(now)
	}
	if reason = s.full(m); s.h.opt.RefuseWhenFull {
		return // whoever published was told that there is room, and somebody else has taken it
	}
	for reason != "" && s.dropOldest(reason) {
		reason = s.full(m)
	}
}

// dropOldest drops the first that waits and counts.
func (s *session) dropOldest(reason string) bool {
	first := s.q.next
	for t := first; t < s.q.end(); t++ {
		it := s.q.at(t)
		if it.is(extraFlag) {
			continue
		}
		s.leave(it)
		for ; t > first; t-- {
			*s.q.at(t) = *s.q.at(t - 1)
		}
		s.q.next++
		s.q.finish(first)
		s.h.drop(reason, s.client)
		return true
	}
	return false
}

func (s *session) push(it item) {
	s.q.push(it)
	if it.is(extraFlag) {
		s.extra++
	} else {
		s.waiting += size(it.m)
	}
	if e := it.m.Expires; e != 0 && (s.earliest == 0 || e < s.earliest) {
		s.earliest = e
	}
}

// leave accounts for an item that waits no more.
func (s *session) leave(it *item) {
	if it.is(extraFlag) {
		s.extra--
	} else {
		s.waiting -= size(it.m)
	}
}

// purge drops what has expired while it waited [MQTT-3.3.2-5].
func (s *session) purge(now int64) {
	s.earliest = 0
	for t := s.q.next; t < s.q.end(); t++ {
		it := s.q.at(t)
		if it.m == nil {
			continue
		}
		if expired(it.m, now) {
			s.leave(it)
			*it = item{}
			s.h.drop(dropExpired, s.client)
		} else if e := it.m.Expires; e != 0 && (s.earliest == 0 || e < s.earliest) {
			s.earliest = e
		}
	}
	s.compact()
}

// compact closes the gaps among what waits.
func (s *session) compact() {
	to := s.q.next
	for t := s.q.next; t < s.q.end(); t++ {
		if it := s.q.at(t); it.m != nil {
			if to != t {
				*s.q.at(to), *it = *it, item{}
			}
			to++
		}
	}
	s.q.n = int(to - s.q.base)
}

type sending uint8

const (
	wasSent sending = iota
	noRoom
	tooLarge
)

// send writes one message to the connection. m is passed beside it, since its payload may be the publisher's buffer.
func (s *session) send(it *item, m *message, token uint64, scratch []byte, now int64) (sending, []byte) {
	c := s.conn
	p := link.Publication{
		Topic: m.Topic, Payload: m.Payload, QoS: it.qos, ID: it.id, Retain: it.is(retainFlag), Dup: it.is(dupFlag) && it.qos > 0,
		Owner: s, Token: token,
	}
	if it.qos == 0 && it.m == nil {
		p.Owner = nil // it does not wait for room
	}
	if s.v5 {
		if m.Expires != 0 && now == 0 {
			now = milliseconds()
		}
		p.Props, scratch = properties(m, scratch, it.ids, now)
	}
	if limit := c.Client.Properties.Props.MaximumPacketSize; limit > 0 && p.Size(s.v5) > int(limit) {
		s.h.drop(dropTooLarge, s.client) // as if it had been sent [MQTT-3.1.2-25]
		return tooLarge, scratch
	}
	if c.Publish(&p) {
		return wasSent, scratch
	}
	c.Kick() // what fills the buffer may not have been
	return noRoom, scratch
}

// pump sends what waits, as far as there is room, and returns how many it sent. The caller kicks the connection.
func (s *session) pump() (sent int) {
	c := s.conn
	if c == nil {
		return 0
	}
	var now int64
	for s.q.next < s.q.end() {
		token := s.q.next
		it := s.q.at(token)
		if it.m == nil { // acknowledged on an earlier connection, or dropped
			s.q.next++
			s.q.advance()
			s.passed()
			continue
		}
		if it.is(receivedFlag) {
			s.rerelease(it, token)
			continue
		}
		if s.durable && it.qos > 0 && s.flying > s.h.opt.QueueBytes {
			break // Acked goes on
		}
		if it.m.Expires != 0 && now == 0 {
			now = milliseconds()
		}
		if !(it.is(dupFlag) && it.id != 0) && expired(it.m, now) {
			s.done(token, it)
			s.h.drop(dropExpired, s.client)
			continue
		}
		if s.durable && it.qos == 2 && it.id == 0 {
			s.reserve()
			break // it goes on when the packet ids are stored
		}
		if it.is(reservedFlag) {
			break
		}
		acked := token // Acked is to hear of it
		if !s.durable {
			acked = 0
		}
		var res sending
		res, s.scratch = s.send(it, it.m, acked, s.scratch, now)
		if res == noRoom {
			break
		}
		if res == wasSent {
			sent++
		}
		if res == tooLarge || acked == 0 || it.qos == 0 {
			s.done(token, it)
			continue
		}
		s.leave(it)
		s.flying += size(it.m)
		s.q.next++
	}
	if s.q.waiting() == 0 {
		s.earliest = 0
		s.scratch = trim(s.scratch)
	}
	s.load()
	return sent
}

// done finishes the first that waits.
func (s *session) done(token uint64, it *item) {
	if it.id != 0 {
		s.conn.Free(it.id)
	}
	s.leave(it)
	s.q.next++
	s.finish(token)
}

// finish marks an item as done with.
func (s *session) finish(token uint64) {
	s.q.finish(token)
	if s.durable {
		s.passed()
	}
}

// Acked implements link.Owner. Token 0 is a message that nobody waits to hear of.
func (s *session) Acked(token uint64, _ byte) {
	if token == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead || token < s.q.base || token >= s.q.next {
		return // of a connection that has ended
	}
	it := s.q.at(token)
	if it.m == nil {
		return
	}
	s.flying -= size(it.m)
	s.finish(token)
	s.resume()
}

// Room implements link.Owner.
func (s *session) Room() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resume()
}

// resume pumps and kicks.
func (s *session) resume() {
	if s.conn == nil {
		return
	}
	if s.q.waiting() == 0 {
		s.load()
		return
	}
	if n := s.pump(); n > 0 {
		s.conn.Kick()
		s.h.metrics.TopicDelivered(n)
	}
}

// attach begins delivery on a connection: what was not acknowledged first, in order [MQTT-4.4.0-1].
func (s *session) attach(c *link.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return
	}
	s.conn, s.v5, s.stamp = c, c.V5, 0
	s.resume()
	c.Kick()
}

// end lets go of the connection, and of what was for it: a durable session's queue is in the store.
func (s *session) end() {
	s.mu.Lock()
	c := s.conn
	lost := 0
	if c != nil && s.durable {
		s.leaveQueue(c)
	} else {
		lost = s.q.n
	}
	s.dead, s.conn = true, nil
	s.q, s.scans, s.sent, s.scratch = ring{}, nil, nil, nil
	s.mu.Unlock()
	s.h.dropN(dropEnded, s.client, lost)
}

// kicks collects connections that something was written to, so that each is kicked once.
type kicks struct {
	stamp uint64
	conns []*link.Conn
}

const maxKicks = 256

// touch has the connection kicked later; mu is held.
func (s *session) touch(k *kicks) {
	if s.stamp == k.stamp {
		return
	}
	s.stamp = k.stamp
	k.conns = append(k.conns, s.conn)
}

// publisher has the connection of a publisher kicked later.
func (k *kicks) publisher(x *client) {
	if x.stamp != k.stamp {
		x.stamp = k.stamp
		k.conns = append(k.conns, x.c)
	}
}

// full reports whether it is time to flush, whatever else is to come.
func (k *kicks) full() bool { return len(k.conns) >= maxKicks }

// flush kicks them.
func (k *kicks) flush(h *Hook) {
	for i, c := range k.conns {
		c.Kick()
		k.conns[i] = nil
	}
	if k.conns = k.conns[:0]; cap(k.conns) > maxKicks {
		k.conns = nil
	}
	k.stamp = h.stamps.Add(1)
}
