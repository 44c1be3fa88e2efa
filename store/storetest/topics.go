package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
)

func (e *env) session(client string, expiry uint32) {
	e.Helper()
	e.commit(&store.Batch{TopicBatch: store.TopicBatch{Sessions: []store.Session{
		{Client: client, User: "ann", Expiry: expiry, Since: time.Now().UnixMilli(), Online: true},
	}}})
}

func (e *env) subscribe(client string, filters ...string) {
	e.Helper()
	var b store.Batch
	for _, f := range filters {
		b.Subscribes = append(b.Subscribes, store.Subscription{Client: client, Filter: f, Options: []byte(f)})
	}
	e.commit(&b)
}

// pub makes a publication for some queues.
func (e *env) pub(topic string, clients ...string) *store.Publish {
	e.clock++
	p := &store.Publish{Publication: &store.Publication{
		Topic: topic, Payload: fmt.Appendf(nil, "payload %d", e.clock), From: "pub", QoS: 1, TS: e.clock,
	}}
	for _, c := range clients {
		p.Queues = append(p.Queues, store.QueueRef{Client: c, QoS: 2, Options: []byte("o")})
	}
	return p
}

func (e *env) publish(ps ...*store.Publish) {
	e.Helper()
	e.commit(&store.Batch{TopicBatch: store.TopicBatch{Publishes: ps}})
}

func (e *env) queue(client string, after uint64, limit int) []store.Queued {
	e.Helper()
	list, err := e.st.ReadQueue(ctx, client, after, limit, nil)
	if err != nil {
		e.Fatalf("read queue of %s: %v", client, err)
	}
	return list
}

// queued is a queue's seqs and payloads.
func (e *env) queued(client string) (out []string) {
	e.Helper()
	for after := uint64(0); ; {
		page := e.queue(client, after, 7)
		if len(page) == 0 {
			return out
		}
		for _, q := range page {
			out = append(out, fmt.Sprintf("%d %s", q.Seq, q.Payload))
			after = q.Seq
		}
	}
}

func (e *env) queueState(client string) store.QueueState {
	e.Helper()
	q, err := e.st.Queue(ctx, client)
	if err != nil {
		e.Fatalf("queue of %s: %v", client, err)
	}
	return q
}

func want(first uint64, ps ...*store.Publish) (out []string) {
	for i, p := range ps {
		out = append(out, fmt.Sprintf("%d %s", first+uint64(i), p.Payload))
	}
	return out
}

func testSessions(t *testing.T, e *env) {
	e.start(store.Retention{})
	noSession := func(client string) {
		t.Helper()
		if s, err := e.st.Session(ctx, client); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("session %s: got %+v, %v, want %v", client, s, err, store.ErrNotFound)
		}
	}
	noSession("c1")
	e.session("c1", store.NoExpiry)
	e.session("c2", 1)
	e.subscribe("c1", "a/b", "im/u/ann")
	got, err := e.st.Session(ctx, "c1")
	if err != nil || got.User != "ann" || !got.Online || got.Expiry != store.NoExpiry || got.Ends() != 0 {
		t.Fatalf("got %+v, %v", got, err)
	}
	list, err := e.st.Sessions(ctx, "", 10)
	if err != nil || len(list) != 2 || list[0] != got || list[1].Client != "c2" {
		t.Errorf("sessions: got %+v, %v", list, err)
	}
	if list, err = e.st.Sessions(ctx, "c1", 10); err != nil || len(list) != 1 {
		t.Errorf("sessions after c1: got %+v, %v", list, err)
	}
	p := e.pub("a/b", "c1", "nobody")
	e.publish(p)
	e.equal("seqs", []uint64{p.Queues[0].Seq, p.Queues[1].Seq}, []uint64{1, 0})

	before := time.Now().UnixMilli()
	e.reopen() // what was connected has been disconnected since
	got, err = e.st.Session(ctx, "c1")
	if err != nil || got.Online || !got.Cut || got.Since < before {
		t.Fatalf("after a restart: got %+v, %v, want it cut off since then", got, err)
	}
	e.maintain(time.Now())
	e.reopen()
	again, err := e.st.Session(ctx, "c1")
	e.equal("since, after maintenance and another restart", again, got)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := e.st.Session(ctx, "c2"); err != nil {
			break // its time is up, whatever Maintain does
		}
		if time.Now().After(deadline) {
			t.Fatal("a session of one second does not end")
		}
	}
	q := e.pub("a/b", "c2")
	e.publish(q)
	e.equal("seq in a queue that has ended", q.Queues[0].Seq, uint64(0))
	e.maintain(time.Now())
	noSession("c2")

	e.commit(&store.Batch{TopicBatch: store.TopicBatch{
		Inbound: []store.Inbound{{Client: "c1", ID: 7}}, Outbound: []store.Outbound{{Client: "c1", Seq: 1, ID: 9}},
	}})
	e.commit(&store.Batch{TopicBatch: store.TopicBatch{Sessions: []store.Session{{Client: "c1", Over: true}, {Client: "never was", Over: true}}}})
	noSession("c1")
	e.equal("queue", e.queued("c1"), []string(nil))
	e.session("c1", 10)
	e.equal("subscriptions of a new session", e.subscriptions("c1"), []string(nil))
	e.equal("matches", e.match("a/b"), []string(nil))
	e.equal("state of a new queue", e.queueState("c1"), store.QueueState{})
	out, err1 := e.st.Outbound(ctx, "c1")
	in, err2 := e.st.Inbound(ctx, "c1")
	if len(out)+len(in) > 0 || err1 != nil || err2 != nil {
		t.Errorf("got %v %v (%v, %v), want nothing on its way", out, in, err1, err2)
	}
}

func (e *env) subscriptions(client string) (out []string) {
	e.Helper()
	list, err := e.st.Subscriptions(ctx, client)
	if err != nil {
		e.Fatalf("subscriptions of %s: %v", client, err)
	}
	for _, s := range list {
		if string(s.Options) != s.Filter {
			e.Errorf("%s: options %q", s.Filter, s.Options)
		}
		out = append(out, s.Filter)
	}
	return out
}

func (e *env) match(topic string) (out []string) {
	e.Helper()
	list, err := e.st.Match(ctx, topic)
	if err != nil {
		e.Fatalf("match %q: %v", topic, err)
	}
	for _, s := range list {
		if string(s.Options) != s.Filter {
			e.Errorf("%s: options %q", s.Filter, s.Options)
		}
		out = append(out, s.Client+" "+s.Filter)
	}
	slices.Sort(out)
	return out
}

// covers is MQTT's matching, plainly.
func covers(filter, topic string) bool {
	f, t := strings.Split(filter, "/"), strings.Split(topic, "/")
	if strings.HasPrefix(topic, "$") && (f[0] == "+" || f[0] == "#") {
		return false
	}
	for i, level := range f {
		switch {
		case level == "#":
			return true
		case i == len(t):
			return false
		case level != "+" && level != t[i]:
			return false
		}
	}
	return len(f) == len(t)
}

// levels are chosen to sort badly: separators, escapes and prefixes of each other.
var levels = []string{"", "a", "ab", "a\x01", "a\x02", "\x01", "$x", "b", "é"}

func randomTopic(r *rand.Rand, wild bool) string {
	n := 1 + r.IntN(4)
	var parts []string
	for i := range n {
		l := levels[r.IntN(len(levels))]
		if wild && r.IntN(3) == 0 {
			if l = "+"; i == n-1 && r.IntN(2) == 0 {
				l = "#"
			}
		}
		parts = append(parts, l)
	}
	if t := strings.Join(parts, "/"); t != "" {
		return t
	}
	return "a"
}

func testMatch(t *testing.T, e *env) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	e.start(store.Retention{})
	subs := map[string]map[string]bool{}
	for i := range 6 {
		c := fmt.Sprint("c", i)
		e.session(c, store.NoExpiry)
		subs[c] = map[string]bool{}
	}
	for range 400 {
		c := fmt.Sprint("c", r.IntN(6))
		f := randomTopic(r, true)
		if r.IntN(4) == 0 {
			f = "$share/g/" + f
		}
		if r.IntN(3) == 0 && len(subs[c]) > 0 {
			for f = range subs[c] {
				break
			}
			e.commit(&store.Batch{TopicBatch: store.TopicBatch{Unsubscribes: []store.Subscription{{Client: c, Filter: f}}}})
			delete(subs[c], f)
		} else {
			e.subscribe(c, f, "im/u/ann/+")
			subs[c][f] = true
		}
		topic := randomTopic(r, false)
		var want []string
		for c, fs := range subs {
			for f := range fs {
				plain, shared := strings.CutPrefix(f, "$share/g/")
				if !shared {
					plain = f
				}
				if covers(plain, topic) {
					want = append(want, c+" "+f)
				}
			}
		}
		slices.Sort(want)
		e.equal(fmt.Sprintf("match %q", topic), e.match(topic), want)
		if r.IntN(100) == 0 {
			e.reopen()
		}
	}
	if list := e.match("im/u/ann/msg"); slices.ContainsFunc(list, func(s string) bool { return strings.HasSuffix(s, " im/u/ann/+") }) {
		t.Errorf("hidden subscriptions are found: %v", list)
	}
}

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
	if !errors.Is(full.Err, store.ErrFull) || full.Queues[0].Seq != 0 {
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

// retained is the topics and payloads that a filter matches.
func (e *env) retained(filter string) (out []string) {
	e.Helper()
	for after := ""; ; {
		page, err := e.st.Retained(ctx, filter, after, 3, time.Now().UnixMilli())
		if err != nil {
			e.Fatalf("retained %q: %v", filter, err)
		}
		if len(page) == 0 {
			slices.Sort(out)
			return out
		}
		for _, p := range page {
			after = p.Topic
			out = append(out, fmt.Sprintf("%s=%s", p.Topic, p.Payload))
		}
	}
}

func testRetained(t *testing.T, e *env) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	e.start(store.Retention{})
	now := map[string]string{}
	for range 300 {
		var b store.Batch
		for range 1 + r.IntN(3) {
			p := e.pub(randomTopic(r, false))
			p.Retain, p.QoS = true, byte(r.IntN(3))
			if r.IntN(3) == 0 {
				p.Payload = nil
				delete(now, p.Topic)
			} else {
				now[p.Topic] = string(p.Payload)
			}
			b.Publishes = append(b.Publishes, p)
		}
		e.commit(&b)
		filter := randomTopic(r, true)
		var want []string
		for topic, payload := range now {
			if covers(filter, topic) {
				want = append(want, topic+"="+payload)
			}
		}
		slices.Sort(want)
		e.equal(fmt.Sprintf("retained %q", filter), e.retained(filter), want)
		if r.IntN(100) == 0 {
			e.reopen()
		}
		if n, err := e.st.RetainedCount(ctx); n != uint64(len(now)) || err != nil {
			t.Fatalf("got %d, %v, want %d", n, err, len(now))
		}
	}
}

func testRetainedLimits(t *testing.T, e *env) {
	e.start(store.Retention{Topics: store.QueueLimits{Retained: 2}})
	set := func(topic string, expires int64) *store.Publish {
		p := e.pub(topic)
		p.Retain, p.Expires, p.Payload = true, expires, []byte("x")
		e.publish(p)
		return p
	}
	set("a", 0)
	set("b", time.Now().Add(time.Hour).UnixMilli())
	if p := set("c", 0); !errors.Is(p.Err, store.ErrFull) {
		t.Errorf("one too many: got %v", p.Err)
	}
	if p := set("a", time.Now().Add(-time.Second).UnixMilli()); p.Err != nil {
		t.Errorf("in the place of another: got %v", p.Err)
	}
	e.equal("expired ones are not shown", e.retained("#"), []string{"b=x"})
	e.maintain(time.Now())
	if n, err := e.st.RetainedCount(ctx); n != 1 || err != nil {
		t.Errorf("got %d, %v, want 1 after maintenance", n, err)
	}
	e.reopen()
	if p := set("c", 0); p.Err != nil {
		t.Errorf("room again: got %v", p.Err)
	}
	e.equal("retained", e.retained("+"), []string{"b=x", "c=x"})
}

func testWills(t *testing.T, e *env) {
	e.start(store.Retention{})
	will := func(client string, due int64) store.Will {
		return store.Will{Client: client, User: "u", Due: due, Delay: 3, Expiry: 4, Retain: true,
			Publication: store.Publication{Topic: "w/" + client, Payload: []byte("gone"), QoS: 2, From: client, Props: []byte("p")}}
	}
	a, b, c := will("a", 0), will("b", 5), will("c", 0)
	e.commit(&store.Batch{TopicBatch: store.TopicBatch{Wills: []store.Will{c, a, b}}})
	a.Due = 7
	e.commit(&store.Batch{TopicBatch: store.TopicBatch{Wills: []store.Will{a, {Client: "b", Remove: true}}}})
	e.reopen()
	list, err := e.st.Wills(ctx, "", 10)
	if err != nil {
		t.Fatal(err)
	}
	e.equal("wills", list, []store.Will{a, c})
	list, err = e.st.Wills(ctx, "a", 1)
	e.equal("wills after a", list, []store.Will{c})
	if err != nil {
		t.Fatal(err)
	}
}
