package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/mqim/mqim/store"
)

func testQueue(t *testing.T, e *env) {
	e.start(store.Retention{})
	e.session("c1", store.NoExpiry)
	e.session("c2", store.NoExpiry)
	var all []*store.Publish
	for i := range 30 {
		p := e.pub("t", "c1", "c2")
		p.QoS, p.Props, p.Expires = byte(1+i%2), fmt.Appendf(nil, "p%d", i), int64(i)
		all = append(all, p)
	}
	e.publish(all[:1]...)
	e.publish(all[1:20]...)
	e.publish(all[20:]...)
	for range 2 {
		e.equal("queue", e.queued("c1"), want(1, all...))
		for i, q := range e.queue("c2", 4, 100) {
			m := all[i+4]
			if q.Seq != uint64(i+5) || q.QoS != m.QoS || string(q.Options) != "o" || q.Topic != "t" || q.From != "pub" ||
				q.TS != m.TS || q.Expires != m.Expires || string(q.Props) != string(m.Props) {
				t.Fatalf("entry %d: got %+v %+v, want %+v", i, q, q.Publication, m.Publication)
			}
		}
		e.reopen()
	}
	pass := func(client string, seq uint64) {
		e.commit(&store.Batch{Lazy: true, TopicBatch: store.TopicBatch{Passed: []store.Passed{{Client: client, Seq: seq}}}})
	}
	pass("c1", 10)
	pass("c1", 5) // never back
	pass("c2", 1000)
	for range 2 {
		e.equal("after a cursor", e.queued("c1"), want(11, all[10:]...))
		e.equal("state", e.queueState("c1"), store.QueueState{Head: 30, Passed: 10})
		e.equal("all passed", e.queued("c2"), []string(nil))
		e.equal("state", e.queueState("c2"), store.QueueState{Head: 30, Passed: 30})
		e.reopen()
	}
	pass("c1", 30)
	p := e.pub("t", "c1")
	e.publish(p)
	e.equal("seq goes on", e.queued("c1"), want(31, p))
}

// testQueueShared: a publication stays until its last queue has passed it, in whatever order and however many at once.
func testQueueShared(t *testing.T, e *env) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	e.start(store.Retention{})
	clients := []string{"c0", "c1", "c2", "c10", "d"}
	queues := map[string][]*store.Publish{}
	passed := map[string]int{}
	for _, c := range clients {
		e.session(c, store.NoExpiry)
	}
	for range 150 {
		switch r.IntN(5) {
		case 0:
			e.reopen()
		case 1, 2:
			var b store.Batch
			for range 1 + r.IntN(3) {
				c := clients[r.IntN(len(clients))]
				passed[c] += r.IntN(len(queues[c]) - passed[c] + 1)
				b.Passed = append(b.Passed, store.Passed{Client: c, Seq: uint64(passed[c])})
			}
			e.commit(&b)
		default:
			var ps []*store.Publish
			for range 1 + r.IntN(5) {
				p := e.pub("t")
				for _, c := range clients {
					if r.IntN(2) == 0 {
						p.Queues = append(p.Queues, store.QueueRef{Client: c, QoS: byte(r.IntN(3)), Options: []byte{byte(r.IntN(2))}})
						queues[c] = append(queues[c], p)
					}
				}
				ps = append(ps, p)
			}
			e.publish(ps...)
		}
		c := clients[r.IntN(len(clients))]
		e.equal("queue of "+c, e.queued(c), want(uint64(passed[c])+1, queues[c][passed[c]:]...))
	}
}

func testQueueLimits(t *testing.T, e *env) {
	e.start(store.Retention{Topics: store.QueueLimits{Messages: 5}})
	e.session("c1", store.NoExpiry)
	e.session("c2", store.NoExpiry)
	var all []*store.Publish
	for range 12 {
		all = append(all, e.pub("t", "c1"))
	}
	e.publish(all[:4]...)
	e.publish(all[4:]...)
	dropped := uint64(0)
	for _, p := range all {
		dropped += p.Queues[0].Dropped
	}
	e.equal("dropped", dropped, uint64(7))
	e.equal("the newest stay", e.queued("c1"), want(8, all[7:]...))
	acked := e.pub("t", "c1")
	acked.Queues[0].Acked = 10
	e.publish(acked)
	e.equal("none is dropped that is acknowledged", acked.Queues[0].Dropped, uint64(0))
	more := e.pub("t", "c1")
	more.Unlimited = true
	e.publish(more, more)

	e.ret.Topics.Refuse = true
	e.reopen()
	full := e.pub("t", "c2", "c1")
	full.Retain = true
	e.publish(full)
	if !errors.Is(full.Err, store.ErrFull) || errors.Is(full.Err, store.ErrRetainedFull) || full.Queues[0].Seq != 0 {
		t.Errorf("got %v and seq %d, want %v and nothing stored", full.Err, full.Queues[0].Seq, store.ErrFull)
	}
	e.equal("the other queue", e.queued("c2"), []string(nil))
	e.equal("retained", e.retained("#"), []string(nil))
	full.Queues[1].Acked = 13
	e.publish(full)
	e.equal("after an ack", full.Err, error(nil))
}

// testQueuePageBytes: a page of large payloads ends early.
func testQueuePageBytes(t *testing.T, e *env) {
	e.start(store.Retention{})
	e.session("c1", store.NoExpiry)
	for range 10 {
		p := e.pub("t", "c1")
		p.Payload = make([]byte, store.PageBytes/3)
		e.publish(p)
	}
	n := 0
	for after := uint64(0); ; n++ {
		page := e.queue("c1", after, 100)
		if len(page) == 0 {
			break
		}
		if len(page) > 4 {
			t.Fatalf("a page of %d", len(page))
		}
		after = page[len(page)-1].Seq
	}
	if n < 3 {
		t.Errorf("got %d pages", n)
	}
}

func testInflight(t *testing.T, e *env) {
	e.start(store.Retention{})
	e.session("c1", store.NoExpiry)
	e.publish(e.pub("t", "c1"), e.pub("t", "c1"), e.pub("t", "c1"))
	e.commit(&store.Batch{TopicBatch: store.TopicBatch{
		Outbound: []store.Outbound{
			{Client: "c1", Seq: 3, ID: 300}, {Client: "c1", Seq: 1, ID: 100}, {Client: "c1", Seq: 2, ID: 200}, {Client: "no", Seq: 1, ID: 1},
		},
		Inbound: []store.Inbound{{Client: "c1", ID: 65535}, {Client: "c1", ID: 1}, {Client: "no", ID: 1}},
	}})
	e.commit(&store.Batch{TopicBatch: store.TopicBatch{
		Passed:   []store.Passed{{Client: "c1", Seq: 1}},
		Outbound: []store.Outbound{{Client: "c1", Seq: 2, ID: 200, Received: true}, {Client: "c1", Seq: 1, ID: 5}, {Client: "c1", Seq: 3, Done: true}},
		Inbound:  []store.Inbound{{Client: "c1", ID: 1, Released: true}},
	}})
	e.reopen()
	out, err := e.st.Outbound(ctx, "c1")
	e.equal("outbound", out, []store.Outbound{{Client: "c1", Seq: 2, ID: 200, Received: true}, {Client: "c1", Seq: 3, Done: true}})
	in, err2 := e.st.Inbound(ctx, "c1")
	e.equal("inbound", in, []uint16{65535})
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
}

// testInboundWith: a packet id is noted together with what came under it, and not if that was refused.
func testInboundWith(t *testing.T, e *env) {
	e.start(store.Retention{Topics: store.QueueLimits{Messages: 1, Refuse: true}})
	e.session("c1", store.NoExpiry)
	e.session("c2", store.NoExpiry)
	id := func(n uint16) *store.Inbound { return &store.Inbound{Client: "c1", ID: n} }
	alone, queued, full := e.pub("t"), e.pub("t", "c2"), e.pub("t", "c2")
	alone.Inbound, queued.Inbound, full.Inbound = id(1), id(2), id(3)
	e.publish(alone, queued, full)
	if alone.Err != nil || queued.Err != nil || !errors.Is(full.Err, store.ErrFull) {
		t.Fatalf("got %v, %v, %v, want the third refused", alone.Err, queued.Err, full.Err)
	}
	first, again, other := e.direct("ann", "bob"), e.direct("ann", "bob"), e.direct("ann", "bob")
	for i, m := range []*store.Send{first, again, other} {
		m.Cid, m.Hash, m.Inbound = "cid", 7, id(uint16(11+i))
	}
	other.Hash = 8
	e.send(first, again, other)
	if !again.Dup || !errors.Is(other.Err, store.ErrConflict) {
		t.Fatalf("got a duplicate %v and %v, want true and %v", again.Dup, other.Err, store.ErrConflict)
	}
	e.reopen()
	in, err := e.st.Inbound(ctx, "c1")
	if err != nil {
		t.Fatal(err)
	}
	e.equal("inbound", in, []uint16{1, 2, 11, 12})
}
