package topics

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/store"
)

// meddler is a store in which something happens between a session's being read and what follows.
type meddler struct {
	store.Store
	session  func()                 // called after Session
	sessions atomic.Pointer[func()] // called before Sessions
	crashed  atomic.Bool            // it is as after a crash: what was sent is not known
	torn     atomic.Bool            // what was sent cannot be read
	full     atomic.Bool            // there is no room
	passed   atomic.Int64           // how many cursors the last batch had

	commit                atomic.Pointer[func()] // called before publishes are committed
	beforeRead, afterRead atomic.Pointer[func()] // around one ReadQueue
}

func (m *meddler) ReadQueue(ctx context.Context, client string, after uint64, limit int, dst []store.Queued) ([]store.Queued, error) {
	if f := m.beforeRead.Swap(nil); f != nil {
		(*f)()
	}
	list, err := m.Store.ReadQueue(ctx, client, after, limit, dst)
	if f := m.afterRead.Swap(nil); f != nil {
		(*f)()
	}
	return list, err
}

func (m *meddler) Commit(ctx context.Context, b *store.Batch) error {
	m.passed.Store(int64(len(b.Passed)))
	if f := m.commit.Load(); f != nil && len(b.Publishes) > 0 {
		(*f)()
	}
	if m.full.Load() {
		return store.ErrUnavailable
	}
	return m.Store.Commit(ctx, b)
}

func (m *meddler) Outbound(ctx context.Context, client string) ([]store.Outbound, error) {
	switch {
	case m.torn.Load():
		return nil, store.ErrCorrupt
	case m.crashed.Load():
		return nil, nil
	}
	return m.Store.Outbound(ctx, client)
}

func (m *meddler) Sessions(ctx context.Context, after string, limit int) ([]store.Session, error) {
	if f := m.sessions.Load(); f != nil {
		(*f)()
	}
	return m.Store.Sessions(ctx, after, limit)
}

func (m *meddler) Session(ctx context.Context, client string) (store.Session, error) {
	s, err := m.Store.Session(ctx, client)
	s.Cut = s.Cut || m.crashed.Load()
	if f := m.session; f != nil && err == nil {
		m.session = nil
		f()
	}
	return s, err
}

// A session that ends while it is being resumed is a new one, and never half of each.
func TestSessionEndsWhileItIsResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &meddler{}
		r := newRig(t, setup{pipes: true, wrap: func(s store.Store) store.Store { m.Store = s; return m }})
		sub, pub := r.connect("sub", expiry(10)), r.connect("pub")
		sub.subscribe("t", 1)
		sub.disconnect(0)
		r.gone("sub")
		time.Sleep(9 * time.Second)
		reads := 0
		var between func()
		between = func() {
			if reads++; reads == 1 {
				m.session = between // Claim looks, to tell whose it is
				return
			}
			time.Sleep(2 * time.Second)
			for more := true; more; {
				var err error
				if more, err = r.store.Maintain(t.Context(), time.Now()); err != nil {
					t.Error(err)
				}
			}
		}
		m.session = between
		sub = r.connect("sub", expiry(10))
		if reads != 2 {
			t.Fatalf("the session was read %d times, want 2", reads)
		}
		if !sub.present {
			sub.subscribe("t", 1)
		}
		pub.publish("t", "m", 1)
		sub.message("m")
	})
}

// Recheck does not wait for a store that is slow, looks once for many calls, and is given up when the hook stops.
func TestRecheckHoldsNothingUp(t *testing.T) {
	m := &meddler{}
	r := newRig(t, setup{wrap: func(s store.Store) store.Store { m.Store = s; return m }})
	const n = sessionsPage + 1
	var b store.Batch
	for i := range n {
		c := fmt.Sprintf("away%05d", i)
		b.Sessions = append(b.Sessions, store.Session{Client: c, User: c, Expiry: store.NoExpiry})
		b.Subscribes = append(b.Subscribes, store.Subscription{Client: c, Filter: "secret", Options: []byte{1}})
	}
	if err := r.store.Commit(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	stall, reads := make(chan struct{}), make(chan struct{}, 100)
	m.sessions.Store(ptr(func() { reads <- struct{}{}; <-stall }))
	r.rules.deny("secret")
	r.hook.Recheck() // returns, though the store does not answer
	<-reads
	for range 10 {
		r.hook.Recheck()
	}
	close(stall)
	r.until("both passes end", func() bool {
		r.hook.mu.RLock()
		defer r.hook.mu.RUnlock()
		return !r.hook.rechecking
	})
	if got := 1 + len(reads); got != 6 { // two full pages and an empty one, twice
		t.Errorf("pages read: got %d, want 6", got)
	}
	if subs, err := r.store.Match(t.Context(), "secret"); err != nil || len(subs) > 0 {
		t.Errorf("subscriptions left: got %d, %v, want none", len(subs), err)
	}
	m.sessions.Store(ptr(func() {
		reads <- struct{}{}
		r.hook.mu.RLock()
		for !r.hook.stopped {
			r.hook.mu.RUnlock()
			runtime.Gosched()
			r.hook.mu.RLock()
		}
		r.hook.mu.RUnlock()
	}))
	for len(reads) > 0 {
		<-reads
	}
	r.hook.Recheck()
	<-reads
	if err := r.hook.Stop(); err != nil {
		t.Error(err)
	}
	if n := len(reads); n > 0 {
		t.Errorf("pages read after Stop: got %d, want none", n)
	}
}

func ptr[T any](v T) *T { return &v }

// After a crash everything that may have been sent has DUP [MQTT-3.3.1-1], however much that was.
func TestAllThatACrashInterruptedIsDup(t *testing.T) {
	m := &meddler{}
	r := newRig(t, setup{wrap: func(s store.Store) store.Store { m.Store = s; return m }})
	sub, pub := r.connect("sub", persistent), r.connect("pub")
	sub.subscribe("t", 1)
	const n = 2 * windowMessages
	for range n {
		pub.publish("t", "m", 1)
		sub.expect(packets.Publish)
	}
	_ = sub.conn.Close()
	m.crashed.Store(true)
	sub = r.connect("sub", persistent)
	for i := range n {
		if !sub.message("m").FixedHeader.Dup {
			t.Fatalf("message %d: DUP 0, want 1", i)
		}
	}
	pub.publish("t", "new", 1)
	if sub.message("new").FixedHeader.Dup {
		t.Error("what came after: DUP 1, want 0")
	}
}

// A client whose session cannot be resumed leaves no will behind.
func TestRefusedClientLeavesNoWill(t *testing.T) {
	m := &meddler{}
	r := newRig(t, setup{wrap: func(s store.Store) store.Store { m.Store = s; return m }})
	r.connect("c", persistent).disconnect(0)
	r.gone("c")
	m.torn.Store(true)
	if _, ack := r.open("c", persistent, testament("t", "will", 1, false, 0)); ack.ReasonCode != 0x03 {
		t.Fatalf("CONNACK: got %#x, want 3", ack.ReasonCode)
	}
	r.gone("c")
	_ = r.hook.Drain(t.Context())
	if wills, err := r.store.Wills(t.Context(), "", 10); err != nil || len(wills) > 0 {
		t.Errorf("wills left: got %v, %v, want none", wills, err)
	}
}

// While there is no room a session waits to have one cursor stored, however far it goes meanwhile.
func TestCursorsDoNotPileUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &meddler{}
		r := newRig(t, setup{pipes: true, wrap: func(s store.Store) store.Store { m.Store = s; return m }})
		sub, pub := r.connect("sub", persistent), r.connect("pub")
		sub.subscribe("t", 1)
		const n = 10
		var got []packets.Packet
		for range n {
			pub.publish("t", "m", 1)
			got = append(got, sub.expect(packets.Publish))
		}
		m.full.Store(true)
		for _, pk := range got {
			sub.ack(pk)
			time.Sleep(time.Second)
		}
		if n := m.passed.Load(); n != 1 {
			t.Errorf("cursors that wait: got %d, want 1", n)
		}
		m.full.Store(false)
		time.Sleep(time.Second)
		if q, err := r.store.Queue(t.Context(), "sub"); err != nil || q.Passed != n {
			t.Errorf("passed: got %d, %v, want %d", q.Passed, err, n)
		}
	})
}

// While there is no room for what has to be stored sooner or later, clients that would add to it are not let in.
func TestNoSessionsWhileTheStoreIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &meddler{}
		r := newRig(t, setup{pipes: true, wrap: func(s store.Store) store.Store { m.Store = s; return m }})
		m.full.Store(true)
		for range 8192 {
			r.hook.journal.Later(func(*store.Batch) {})
		}
		time.Sleep(time.Second)
		if _, ack := r.open("a", persistent); ack.ReasonCode != 0x03 {
			t.Errorf("CONNACK: got %#x, want 3", ack.ReasonCode)
		}
		r.connect("b")
		m.full.Store(false)
		time.Sleep(time.Second)
		r.connect("c", persistent)
	})
}

// What was to be read has been dropped, and a message comes right after that was found out: it is not taken for dropped.
func TestMessageAfterAnEmptyPage(t *testing.T) {
	m := &meddler{}
	r := newRig(t, setup{wrap: func(s store.Store) store.Store { m.Store = s; return m }})
	sub, pub := r.connect("sub", persistent), r.connect("pub")
	sub.subscribe("t", 1)
	sub.disconnect(0)
	r.gone("sub")
	pub.publish("t", "dropped", 1)
	m.beforeRead.Store(ptr(func() {
		err := r.store.Commit(t.Context(), &store.Batch{TopicBatch: store.TopicBatch{Passed: []store.Passed{{Client: "sub", Seq: 1}}}})
		if err != nil {
			t.Error(err)
		}
	}))
	m.afterRead.Store(ptr(func() { pub.publish("t", "kept", 1) }))
	sub = r.connect("sub", persistent)
	sub.message("kept")
	pub.publish("t", "next", 1)
	sub.message("next")
}

// A member of a shared subscription leaves while a message for it is being stored: another member gets it.
func TestSharedMemberLeavesBeforeDelivery(t *testing.T) {
	m := &meddler{}
	r := newRig(t, setup{wrap: func(s store.Store) store.Store { m.Store = s; return m }})
	a, b, pub := r.connect("a"), r.connect("b"), r.connect("pub")
	a.subscribe("$share/g/t", 1)
	b.subscribe("$share/g/t", 1)
	var once sync.Once
	m.commit.Store(ptr(func() {
		once.Do(func() {
			r.until("both messages have their member", func() bool { return r.hook.retaining.Load() == 2 })
			_ = b.conn.Close()
			r.gone("b")
		})
	}))
	var both []byte
	for id := range uint16(2) {
		pk := publication("t", "m", 1)
		pk.PacketID, pk.FixedHeader.Retain = id+1, true
		both = append(both, encode(pk)...)
	}
	pub.write(both)
	a.message("m")
	a.message("m")
}

// What the store drops of the queue of a subscriber that takes its time does not leave a trace in memory, and what is in
// flight then is acknowledged as ever.
func TestDroppedBehindASlowSubscriber(t *testing.T) {
	for qos := byte(1); qos <= 2; qos++ {
		r := newRig(t, setup{queues: store.QueueLimits{Messages: 20}})
		sub, pub := r.connect("sub", receiveMaximum(10), expiry(60)), r.connect("pub")
		sub.subscribe("t", qos)
		const n = 3000
		for i := range n {
			pub.publish("t", fmt.Sprint(i), qos)
		}
		var held []uint16
		handshakes := 0 // of QoS 2 that are not complete
		for last := ""; last != fmt.Sprint(n-1) || handshakes > 0; {
			switch pk := sub.next(); pk.FixedHeader.Type {
			case packets.Publish:
				last = string(pk.Payload)
				held = append(held, pk.PacketID)
			case packets.Pubrel:
				sub.reply(packets.Pubcomp, pk.PacketID)
				handshakes--
			}
			if len(held) == 10 || last == fmt.Sprint(n-1) {
				for _, id := range held {
					sub.reply([]byte{1: packets.Puback, 2: packets.Pubrec}[qos], id)
					handshakes += int(qos - 1)
				}
				held = nil
			}
			s := r.session("sub")
			s.mu.Lock()
			n, items := s.q.n, len(s.q.items)
			s.mu.Unlock()
			if n > 2*windowMessages || items > 4*windowMessages {
				t.Fatalf("QoS %d: room for %d in memory, %d used", qos, items, n)
			}
		}
		pub.publish("t", "next", qos)
		sub.ack(sub.message("next"))
		r.until("all to be acknowledged", func() bool { return r.unacknowledged("sub") == 0 })
		// No packet id is kept for what was dropped.
		c := r.session("sub").conn
		for i, last := 0, c.Reserve(); i < 1<<16-2; i++ {
			if id := c.Reserve(); id != last%(1<<16-1)+1 {
				t.Fatalf("QoS %d: packet id %d after %d", qos, id, last)
			} else {
				last = id
			}
		}
		if got := r.counts.drops(dropMessages); got < n-2*windowMessages-20 {
			t.Errorf("QoS %d: %d dropped, want most of %d", qos, got, n)
		}
	}
}
