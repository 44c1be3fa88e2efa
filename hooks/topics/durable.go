package topics

import (
	"context"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/store"
)

// The window of a durable session on its queue: more waits in the store, not in memory.
const (
	windowMessages = 256
	windowBytes    = 1 << 20
	loadMessages   = 128 // at a time
	loaders        = 32  // that read at the same time
	saveCursors    = 100 * time.Millisecond
	loadRetry      = time.Second
)

// restore reads where a durable session's queue stands. It is called when the session is in the hook's map already, so
// that what is published meanwhile is known, and before anything is sent, so that packet ids can be kept.
func (s *session) restore(c *link.Conn) error {
	ctx := context.Background()
	state, err := s.h.store.Queue(ctx, s.client)
	if err != nil {
		return err
	}
	sent, err := s.h.store.Outbound(ctx, s.client)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.head = max(s.head, state.Head)
	s.q = ring{base: state.Passed + 1, next: state.Passed + 1}
	s.acked.Store(state.Passed)
	if len(sent) > 0 {
		s.sent = make(map[uint64]store.Outbound, len(sent))
	}
	under := map[uint16]uint64{}
	for _, o := range sent {
		s.sent[o.Seq] = o
		if o.Done {
			continue
		}
		c.Keep(o.ID)
		// A packet id is used again once it is free: of two messages under one the earlier is acknowledged, and a crash
		// has kept that from being stored. A PUBREL for it would have the client take the later one for new.
		if seq, again := under[o.ID]; again {
			s.sent[seq] = store.Outbound{Client: s.client, Seq: seq, Done: true}
		}
		under[o.ID] = o.Seq
	}
	if c.Session.Cut {
		s.suspect = state.Head
	}
	return nil
}

// committed takes a message that is in the queue now, if it is the next one and there is room; otherwise it is read later.
func (s *session) committed(ref *store.QueueRef, m *message, k *kicks) outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.head = max(s.head, ref.Seq)
	if s.conn == nil || s.dead {
		return queued
	}
	idle := s.q.waiting() == 0
	if ref.Seq != s.q.end() || !s.hasRoom() {
		s.load()
		return queued
	}
	s.append(store.Queued{Seq: ref.Seq, QoS: min(ref.QoS, m.QoS), Options: ref.Options, Publication: m})
	if idle && s.pump() > 0 {
		s.touch(k)
		return delivered
	}
	return queued
}

func (s *session) hasRoom() bool {
	return s.q.waiting() < windowMessages && s.waiting < windowBytes
}

// append takes the next entry of the queue.
func (s *session) append(e store.Queued) {
	flags, ids := fromQueueOptions(e.Options)
	it := item{m: e.Publication, ids: ids, qos: e.QoS, flags: flags}
	if o, ok := s.sent[e.Seq]; ok && o.Done {
		delete(s.sent, e.Seq)
		s.q.push(item{flags: storedFlag})
		return
	} else if ok {
		it.id = o.ID
		it.flags |= dupFlag | storedFlag
		if o.Received {
			it.flags |= receivedFlag
		}
		delete(s.sent, e.Seq)
	} else if e.Seq <= s.suspect && e.QoS == 1 {
		it.flags |= dupFlag
	}
	s.push(it)
}

// load has what is to come read, if there is room for it and nobody is at it. mu is held.
func (s *session) load() {
	if s.loading || s.dead || s.conn == nil || !s.hungry() {
		return
	}
	s.loading = true
	if !s.h.spawn(s.loader) {
		s.loading = false
	}
}

func (s *session) hungry() bool {
	return (len(s.scans) > 0 || s.durable && s.q.end() <= s.head) && s.q.waiting() <= windowMessages/2 && s.waiting < windowBytes
}

// loader reads the queue, or retained messages, page by page while there is room for more.
func (s *session) loader() {
	var page []store.Queued
	for {
		s.mu.Lock()
		c := s.conn
		if s.dead || c == nil || !s.hungry() {
			s.loading = false
			s.mu.Unlock()
			return
		}
		after, head := s.q.end()-1, s.head
		if len(s.scans) > 0 {
			sc := s.scans[0]
			s.mu.Unlock()
			s.loadRetained(c, sc)
			continue
		}
		s.mu.Unlock()

		s.h.loading <- struct{}{}
		var err error
		page, err = s.h.store.ReadQueue(context.Background(), s.client, after, loadMessages, page[:0])
		var state store.QueueState
		if err == nil && len(page) == 0 {
			state, err = s.h.store.Queue(context.Background(), s.client)
		}
		<-s.h.loading

		s.mu.Lock()
		if err != nil {
			s.h.log.Error("the queue of a session cannot be read", "client", s.client, "error", err)
			time.AfterFunc(loadRetry, s.retry) // loading stays set until then
			s.mu.Unlock()
			return
		}
		if s.conn == c && s.q.end()-1 == after {
			s.take(page, state.Passed, head)
		}
		s.mu.Unlock()
		clear(page)
	}
}

func (s *session) retry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loading = false
	s.load()
}

// take takes a page of the queue. What is missing in front of it, or where the page is empty up to where the queue is
// passed, was dropped, which whoever had it dropped has counted. head is what it was before the page was read: if it is
// still, there is no more than that. mu is held.
func (s *session) take(page []store.Queued, passed, head uint64) {
	if len(page) == 0 {
		s.skip(passed + 1)
		if s.head == head {
			s.head = s.q.end() - 1
		}
	}
	for i := range page {
		s.skip(page[i].Seq)
		s.append(page[i])
	}
	if n := s.pump(); n > 0 {
		s.conn.Kick()
		s.h.metrics.TopicDelivered(n)
	}
}

// skip goes on at seq, where that is further on. The store has dropped what comes before it, and so what is still here of
// that: acknowledgements of what was sent concern nobody any more.
func (s *session) skip(seq uint64) {
	if seq <= s.q.end() {
		return
	}
	for t := s.q.next; t < s.q.end(); t++ {
		if it := s.q.at(t); it.m != nil && it.id != 0 {
			s.conn.Free(it.id)
		}
	}
	s.q = ring{base: seq, next: seq}
	s.waiting, s.flying, s.earliest = 0, 0, 0
	s.passed()
}

// passed notes how far the client has acknowledged, to be stored before long: what a crash takes of that is sent again.
func (s *session) passed() {
	if s.acked.Load() == s.q.base-1 {
		return
	}
	s.acked.Store(s.q.base - 1)
	if !s.unsaved {
		s.unsaved = true
		s.h.cursors.add(s)
	}
}

// rerelease goes on with a QoS 2 message that the client has, and has not been sent PUBREL for.
func (s *session) rerelease(it *item, token uint64) {
	if !s.conn.Rerelease(it.id, s, token) {
		s.done(token, it)
		return
	}
	s.leave(it)
	s.flying += size(it.m)
	s.q.next++
}

// Received implements link.Releaser: PUBREC is stored before PUBREL goes out, since the client forgets the packet id
// with that, and would take what is sent again for new.
func (s *session) Received(token uint64, release func()) {
	if token == 0 {
		release()
		return
	}
	s.mu.Lock()
	c := s.conn
	if c == nil || s.dead {
		s.mu.Unlock()
		return
	}
	if token < s.q.base { // dropped meanwhile
		s.mu.Unlock()
		release()
		return
	}
	o := store.Outbound{Client: s.client, Seq: token, ID: s.q.at(token).id, Received: true}
	s.mu.Unlock()
	s.h.journal.PutUrgent(&sendState{s: s, list: []store.Outbound{o}, done: func(err error) {
		if err != nil {
			c.Disconnect(packets.ErrServerUnavailable)
			return
		}
		release()
		c.Kick()
	}})
}

// reserve has packet ids for what waits at QoS 2 stored, before it is sent: after a crash it must come under the same id,
// by which the client knows it.
func (s *session) reserve() {
	var list []store.Outbound
	for t := s.q.next; t < s.q.end() && len(list) < loadMessages; t++ {
		if it := s.q.at(t); it.m != nil && it.qos == 2 && it.id == 0 {
			it.id = s.conn.Reserve()
			it.flags |= reservedFlag
			list = append(list, store.Outbound{Client: s.client, Seq: t, ID: it.id})
		}
	}
	c := s.conn
	s.h.journal.PutUrgent(&sendState{s: s, list: list, done: func(err error) {
		if err != nil {
			c.Disconnect(packets.ErrServerUnavailable)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.conn != c {
			return
		}
		for _, o := range list {
			if o.Seq >= s.q.next && o.Seq < s.q.end() {
				s.q.at(o.Seq).flags &^= reservedFlag
			}
		}
		s.resume()
	}})
}

// sendState has stored what is known of messages that were, or will be, sent.
type sendState struct {
	s    *session
	list []store.Outbound
	lazy bool
	done func(error)
}

func (x *sendState) Add(b *store.Batch) {
	link.AddFence(b, x.s.client, x.s.epoch)
	b.Outbound = append(b.Outbound, x.list...)
}
func (x *sendState) Size() int  { return 128 + 48*len(x.list) }
func (x *sendState) Must() bool { return true }
func (x *sendState) Lazy() bool { return x.lazy }
func (x *sendState) Done(err error) {
	if x.done != nil {
		x.done(err)
	}
}

// leaveQueue has stored what the next connection has to know. mu is held.
func (s *session) leaveQueue(c *link.Conn) {
	var list []store.Outbound
	for _, f := range c.Flights(s) {
		if f.Token < s.q.base || f.Token >= s.q.next {
			continue
		}
		if it := s.q.at(f.Token); it.m != nil && (!it.is(storedFlag) || f.Received != it.is(receivedFlag)) {
			list = append(list, store.Outbound{Client: s.client, Seq: f.Token, ID: f.ID, Received: f.Received})
		}
	}
	for t := s.q.base; t < s.q.end(); t++ {
		if it := s.q.at(t); it.m == nil && !it.is(storedFlag) {
			list = append(list, store.Outbound{Client: s.client, Seq: t, Done: true})
		}
	}
	s.h.journal.PutUrgent(&sendState{s: s, list: list, lazy: true})
	s.h.journal.PutUrgent(&saveAcked{list: []*session{s}, last: true})
}

// cursors are the sessions whose cursors are to be stored, which is done for all of them at once, a little later.
type cursors struct {
	h     *Hook
	mu    sync.Mutex
	list  []*session
	timer *time.Timer
}

func (c *cursors) add(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, s)
	if c.timer == nil {
		c.timer = time.AfterFunc(saveCursors, c.save)
	}
}

func (c *cursors) save() {
	c.mu.Lock()
	list := c.list
	c.list, c.timer = nil, nil
	c.mu.Unlock()
	if len(list) > 0 {
		c.h.journal.PutUrgent(&saveAcked{list: list})
	}
}

// stop has the last ones stored.
func (c *cursors) stop() {
	c.mu.Lock()
	if c.timer != nil {
		c.timer.Stop()
	}
	c.mu.Unlock()
	c.save()
}

// saveAcked stores how far sessions have acknowledged.
type saveAcked struct {
	list []*session
	last bool // they have just ended
}

func (x *saveAcked) Add(b *store.Batch) {
	for _, s := range x.list {
		s.mu.Lock()
		stale := s.dead && !x.last // the client may have begun a new one
		s.saved = s.acked.Load()
		if !stale {
			link.AddFence(b, s.client, s.epoch)
			b.Passed = append(b.Passed, store.Passed{Client: s.client, Seq: s.saved})
		}
		s.mu.Unlock()
	}
}
func (x *saveAcked) Size() int  { return 64 * len(x.list) }
func (x *saveAcked) Must() bool { return true }
func (x *saveAcked) Lazy() bool { return true }

// Done goes on with those that have come further meanwhile. Until then they are not in another list: what waits for a
// store that cannot commit is one cursor a session.
func (x *saveAcked) Done(error) {
	for _, s := range x.list {
		s.mu.Lock()
		if s.unsaved = s.acked.Load() != s.saved && !s.dead; s.unsaved {
			s.h.cursors.add(s)
		}
		s.mu.Unlock()
	}
}
