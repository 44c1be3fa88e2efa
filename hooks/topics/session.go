package topics

import (
	"sync"

	"github.com/mqim/mqim/hooks/link"
)

// session is what a client's subscriptions have brought and it does not have yet: what waits for room on the connection,
// or for a connection, and in a persistent session what was sent and not acknowledged. Whoever publishes appends to it
// and never waits; the bounds are QueueMessages and QueueBytes, once for what waits and once for what is on its way.
//
// It is the link.Owner of what it sends. Its mu is taken before the locks of link.Conn, which calls it with none held.
type session struct {
	h      *Hook
	link   *link.Session // that it hangs on
	client string

	mu         sync.Mutex
	conn       *link.Conn // nil: offline
	v5         bool
	persistent bool
	dead       bool // the session is over; routes may still point here
	q          ring
	waiting    int    // bytes of what waits, and
	flying     int    // of what was sent and is not acknowledged, in a persistent session
	extra      int    // messages that wait and do not count, being retained ones for a new subscription
	earliest   int64  // when the first of what waits expires; 0: nothing does
	stamp      uint64 // of the kicks that have the connection already
	scratch    []byte
	will       *delayed
}

var _ link.Owner = (*session)(nil)

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
	any_              // it has a session
	connected         // and a connection
	ready             // and room
)

func (s *session) fit(qos byte) fitness {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.dead:
		return none
	case s.conn == nil:
		return any_
	case s.q.waiting() > 0:
		return connected
	}
	return ready
}

// offer takes a message that was published.
func (s *session) offer(o *outgoing, t *target, k *kicks, now int64) outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return gone
	}
	qos := min(o.qos, t.qos)
	var flags uint8
	if o.retain && t.retain {
		flags = retainFlag // [MQTT-3.3.1-13]; without Retain As Published it is 0 [MQTT-3.3.1-12]
	}
	idle := s.conn != nil && s.q.waiting() == 0
	if qos == 0 && s.conn != nil || idle && !s.persistent {
		// Nothing is to be remembered: straight from the publisher's buffer to the subscriber's.
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
		idle = false
	}
	switch {
	case s.conn == nil && !s.persistent:
		return gone
	case qos == 0:
		s.h.drop(dropOffline, s.client)
		return dropped
	case !s.room(&o.message):
		return dropped
	}
	s.push(item{m: o.keep(), ids: t.ids, qos: qos, flags: flags})
	if idle && s.pump() > 0 {
		s.touch(k)
		return delivered
	}
	return queued
}

// room reports whether one more may wait, and counts it as dropped if not.
func (s *session) room(m *message) bool {
	full := func() string {
		switch {
		case s.q.waiting()-s.extra >= s.h.opt.QueueMessages:
			return dropMessages
		case s.waiting+m.size() > s.h.opt.QueueBytes && s.waiting > 0:
			return dropBytes
		}
		return ""
	}
	reason := full()
	if reason == "" {
		return true
	}
	if now := milliseconds(); s.earliest != 0 && s.earliest <= now {
		s.purge(now)
		if reason = full(); reason == "" {
			return true
		}
	}
	s.h.drop(reason, s.client)
	return false
}

func (s *session) push(it item) {
	s.q.push(it)
	if it.is(extraFlag) {
		s.extra++
	} else {
		s.waiting += it.m.size()
	}
	if e := it.m.expires; e != 0 && (s.earliest == 0 || e < s.earliest) {
		s.earliest = e
	}
}

// leave accounts for an item that waits no more.
func (s *session) leave(it *item) {
	if it.is(extraFlag) {
		s.extra--
	} else {
		s.waiting -= it.m.size()
	}
}

// purge drops what has expired while it waited [MQTT-3.3.2-5].
func (s *session) purge(now int64) {
	s.earliest = 0
	for t := s.q.next; t < s.q.end(); t++ {
		it := s.q.at(t)
		if it.m == nil || it.is(dupFlag) {
			continue
		}
		if it.m.expired(now) {
			s.leave(it)
			*it = item{}
			s.h.drop(dropExpired, s.client)
		} else if e := it.m.expires; e != 0 && (s.earliest == 0 || e < s.earliest) {
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
		Topic: m.topic, Payload: m.payload, QoS: it.qos, ID: it.id, Retain: it.is(retainFlag), Dup: it.is(dupFlag) && it.qos > 0,
		Owner: s, Token: token,
	}
	if it.qos == 0 && it.m == nil {
		p.Owner = nil // it does not wait for room
	}
	if s.v5 {
		if m.expires != 0 && now == 0 {
			now = milliseconds()
		}
		p.Props, scratch = m.properties(scratch, it.ids, now)
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
		if it.is(receivedFlag) {
			s.rerelease(it, token)
			continue
		}
		if s.persistent && it.qos > 0 && s.flying > s.h.opt.QueueBytes {
			break // Acked goes on
		}
		if it.m.expires != 0 && now == 0 {
			now = milliseconds()
		}
		if !it.is(dupFlag) && it.m.expired(now) {
			s.done(token, it)
			s.h.drop(dropExpired, s.client)
			continue
		}
		acked := token // Acked is to hear of it
		if !s.persistent {
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
		s.flying += it.m.size()
		s.q.next++
	}
	if s.q.waiting() == 0 {
		s.earliest = 0
		s.scratch = trim(s.scratch)
	}
	return sent
}

// done finishes the first that waits.
func (s *session) done(token uint64, it *item) {
	s.leave(it)
	s.q.next++
	s.q.finish(token)
}

// rerelease goes on with a QoS 2 message that the client has, and has not been sent PUBREL for.
func (s *session) rerelease(it *item, token uint64) {
	if !s.conn.Rerelease(it.id, s, token) {
		s.done(token, it)
		return
	}
	s.leave(it)
	s.flying += it.m.size()
	s.q.next++
}

// Acked implements link.Owner. Token 0 is a message that nobody waits to hear of.
func (s *session) Acked(token uint64, _ byte) {
	if token == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if token < s.q.base || token >= s.q.next {
		return // of a connection that has ended
	}
	it := s.q.at(token)
	if it.m == nil {
		return
	}
	s.flying -= it.m.size()
	s.q.finish(token)
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
	if s.conn == nil || s.q.waiting() == 0 {
		return
	}
	if n := s.pump(); n > 0 {
		s.conn.Kick()
		s.h.metrics.TopicDelivered(n)
	}
}

// sendRetained queues the retained messages for a new subscription [MQTT-3.8.4-4]. They may exceed the queue's limits by
// as many as there are retained messages at all: they are shared, and a subscription to many is to get them.
func (s *session) sendRetained(list []*message, qos byte, ids string, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return
	}
	extra := s.extra+len(list) <= max(limit, s.h.opt.QueueMessages)
	for _, m := range list {
		it := item{m: m, ids: ids, qos: min(m.qos, qos), flags: retainFlag} // [MQTT-3.3.1-8]
		if extra {
			it.flags |= extraFlag
		} else if !s.room(m) {
			continue
		}
		s.push(it)
	}
	s.resume()
}

// reserve keeps the packet ids of what will be sent again, before anything else is sent on the new connection.
func (s *session) reserve(c *link.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detach() // what is left of a connection that did not end in time
	for t := s.q.base; t < s.q.end(); t++ {
		if it := s.q.at(t); it.m != nil && it.id != 0 {
			c.Keep(it.id)
		}
	}
}

// attach goes on with the session on a new connection: what was not acknowledged first, in order [MQTT-4.4.0-1].
func (s *session) attach(c *link.Conn, persistent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detach()
	s.conn, s.v5, s.persistent, s.stamp = c, c.V5, persistent, 0
	if s.will != nil {
		s.will.cancel() // [MQTT-3.1.3-9]
		s.will = nil
	}
	s.resume()
	c.Kick()
}

// release takes the session off c, if it is on it.
func (s *session) release(c *link.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == c {
		s.detach()
	}
}

// detach is called with mu held. What was not acknowledged waits again, before everything else.
func (s *session) detach() {
	c := s.conn
	if c == nil {
		return
	}
	s.conn = nil
	for _, f := range c.Flights(s) {
		if f.Token < s.q.base || f.Token >= s.q.next {
			continue
		}
		it := s.q.at(f.Token)
		if it.m == nil {
			continue
		}
		it.id = f.ID
		it.flags |= dupFlag
		if f.Received {
			it.flags |= receivedFlag
		}
	}
	lost := 0
	s.q.rebuild(func(it *item) bool {
		if s.persistent && it.qos > 0 {
			return true
		}
		lost++
		return false
	})
	s.h.dropN(dropEnded, s.client, lost)
	s.waiting, s.flying, s.extra, s.earliest = 0, 0, 0, 0
	for t := s.q.base; t < s.q.end(); t++ {
		it := s.q.at(t)
		if it.is(extraFlag) {
			s.extra++
		} else {
			s.waiting += it.m.size()
		}
		if e := it.m.expires; e != 0 && !it.is(dupFlag) && (s.earliest == 0 || e < s.earliest) {
			s.earliest = e
		}
	}
	s.scratch = nil
}

// end is the end of the session. The caller has taken it out of the hook's map.
func (s *session) end() {
	s.mu.Lock()
	s.dead, s.conn = true, nil
	n := s.q.n
	s.q = ring{}
	w := s.will
	s.will = nil
	s.mu.Unlock()
	s.h.dropN(dropEnded, s.client, n)
	if w != nil {
		w.fire() // [MQTT-3.1.3.2.2]: the delay ends with the session
	}
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
