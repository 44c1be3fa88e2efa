package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
)

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
	if p := set("c", 0); !errors.Is(p.Err, store.ErrFull) || !errors.Is(p.Err, store.ErrRetainedFull) {
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
