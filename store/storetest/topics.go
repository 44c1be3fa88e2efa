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
