package topics

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/store"
)

// $share: one member each, a connected one if there is one.
func TestSharedSubscriptions(t *testing.T) {
	r := newRig(t, setup{})
	pub := r.connect("pub")
	away := r.connect("away", persistent)
	away.subscribe("$share/g/t/+", 1)
	a, b, plain := r.connect("a", v5), r.connect("b"), r.connect("plain")
	a.subscribe("$share/g/t/+", 1)
	b.subscribe("$share/g/t/+", 1)
	plain.subscribe("t/+", 1)
	away.disconnect(0)
	r.gone("away")
	const n = 20
	for i := range n {
		pub.publish("t/x", fmt.Sprint(i), 1)
		plain.message(fmt.Sprint(i))
	}
	got := map[*peer]int{}
	for _, p := range []*peer{a, b} {
		for p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}}); ; {
			pk := p.next()
			if pk.FixedHeader.Type == packets.Pingresp {
				break
			}
			got[p]++
			p.ack(pk)
		}
	}
	if got[a]+got[b] != n || got[a] < n/4 || got[b] < n/4 {
		t.Errorf("messages: got %d and %d, want %d shared about evenly", got[a], got[b], n)
	}
	a.disconnect(0)
	b.disconnect(0)
	r.gone("a")
	r.gone("b")
	pub.publish("t/x", "kept", 1) // nobody is connected: it waits for one who will be
	away = r.connect("away", persistent)
	away.message("kept")
	for filter, want := range map[string]byte{
		"$share/g": 0x8f, "$share/+/t": 0x8f, "$share/g/im/u/pub": 0x87, "$share/g/im/#": 0x87,
	} {
		p := r.connect("forms", v5)
		if got := p.subscribe(filter, 1); got != want {
			t.Errorf("SUBACK for %s: got %#x, want %#x", filter, got, want)
		}
	}
}

// Retain Handling 0, 1 and 2, Retain As Published, deleting, and the topic above a/#.
func TestRetainedMessages(t *testing.T) {
	r := newRig(t, setup{})
	pub := r.connect("pub", v5)
	for _, topic := range []string{"a", "a/b", "a/b/c", "x"} {
		pub.publish(topic, topic, 1, retain)
	}
	pub.publish("x", "", 1, retain)
	handling := func(n byte) func(*packets.Subscription) {
		return func(s *packets.Subscription) { s.RetainHandling = n }
	}
	expect := func(p *peer, want ...string) {
		t.Helper()
		got := map[string]bool{}
		for range want {
			pk := p.expect(packets.Publish)
			p.ack(pk)
			if !pk.FixedHeader.Retain {
				t.Errorf("%s: got RETAIN 0, want 1", pk.TopicName)
			}
			got[pk.TopicName] = true
		}
		p.ping()
		for _, w := range want {
			if !got[w] {
				t.Errorf("retained: got %v, want %v", got, want)
			}
		}
	}
	sub := r.connect("sub", v5)
	sub.subscribe("a/#", 1)
	expect(sub, "a", "a/b", "a/b/c")
	sub.subscribe("a/#", 0, handling(0))
	expect(sub, "a", "a/b", "a/b/c")
	sub.subscribe("a/#", 1, handling(1))
	expect(sub)
	sub.subscribe("+/b", 1, handling(1))
	expect(sub, "a/b")
	sub.subscribe("a", 1, handling(2))
	expect(sub)
	sub.subscribe("$share/g/a", 1)
	expect(sub)
	sub.subscribe("x", 1)
	expect(sub)
	old := r.connect("old")
	old.subscribe("#", 1)
	expect(old, "a", "a/b", "a/b/c")

	// To a subscription that exists RETAIN is 0 [MQTT-3.3.1-12], but where it asked for it [MQTT-3.3.1-13].
	as := r.connect("as", v5)
	as.subscribe("y", 1, func(s *packets.Subscription) { s.RetainAsPublished = true })
	pub.publish("y", "new", 1, retain)
	if pk := as.message("new"); !pk.FixedHeader.Retain {
		t.Error("Retain As Published: got 0, want 1")
	}
	if pk := old.message("new"); pk.FixedHeader.Retain {
		t.Error("RETAIN: got 1, want 0")
	}
	for topic := range r.server.Topics.Retained.GetAll() {
		if !strings.HasPrefix(topic, "$SYS/") {
			t.Errorf("mochi retains %s", topic)
		}
	}
	sys := r.connect("sys")
	sys.subscribe("$SYS/broker/version", 0)
	expect(sys, "$SYS/broker/version")
}

// A subscription to more retained messages than the queue holds gets them all, as the client takes them.
func TestManyRetainedMessages(t *testing.T) {
	const n = 300
	r := newRig(t, setup{Options: Options{QueueMessages: 10}, queues: store.QueueLimits{Retained: n}})
	pub, sub := r.connect("pub", v5), r.connect("sub", receiveMaximum(2))
	for i := range n {
		pub.publish(fmt.Sprintf("r/%d", i), "x", 1, retain)
	}
	if code := pub.publish("r/more", "x", 1, retain); code != 0x97 {
		t.Errorf("beyond RetainedMessages: got %#x, want 0x97", code)
	}
	for range 3 {
		sub.id++
		sub.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: sub.id, Filters: packets.Subscriptions{{Filter: "r/#", Qos: 1}}})
	}
	seen := map[string]int{}
	for got := 0; got < 3*n; {
		if pk := sub.next(); pk.FixedHeader.Type == packets.Publish {
			seen[pk.TopicName]++
			got++
			sub.ack(pk)
		}
	}
	for topic, times := range seen {
		if times != 3 {
			t.Errorf("%s: got it %d times, want once for each SUBSCRIBE", topic, times)
		}
	}
	sub.ping()
}

// [MQTT-3.8.3-3], and what mochi makes of two filters of which one has it.
func TestNoLocal(t *testing.T) {
	r := newRig(t, setup{})
	p, q := r.connect("p", v5), r.connect("q", v5)
	local := func(s *packets.Subscription) { s.NoLocal = true }
	p.subscribe("t", 1, local)
	p.publish("t", "mine", 1)
	q.publish("t", "theirs", 1)
	p.message("theirs")
	p.subscribe("+", 1)
	p.publish("t", "mine too", 0)
	p.message("mine too")
	p.unsubscribe("+")
	p.publish("t", "mine again", 1)
	p.ping()
}

// Unsubscribing ends what routes remember.
func TestUnsubscribe(t *testing.T) {
	r := newRig(t, setup{})
	a, b, pub := r.connect("a"), r.connect("b"), r.connect("pub")
	for i := range 20 {
		a.subscribe("t", 1)
		pub.publish("t", fmt.Sprint(i), 1)
		a.message(fmt.Sprint(i))
		b.subscribe("+", 1)
		a.unsubscribe("t")
		pub.publish("t", "b", 1)
		a.ping()
		b.message("b")
		b.unsubscribe("+")
	}
}

// Rules that have changed end subscriptions, of those who are away too.
func TestRecheck(t *testing.T) {
	r := newRig(t, setup{})
	sub, away, pub := r.connect("sub"), r.connect("away", persistent), r.connect("pub")
	for _, f := range []string{"a", "b", "$share/g/a"} {
		sub.subscribe(f, 1)
	}
	away.subscribe("a", 1)
	away.disconnect(0)
	r.gone("away")
	pub.publish("a", "before", 1)
	sub.message("before")
	sub.message("before")
	r.rules.deny("$share/g/a", "+")
	r.hook.Recheck()
	pub.publish("a", "between", 1)
	sub.message("between")
	r.rules.deny("a")
	r.hook.Recheck()
	r.until("the stored subscription ends", func() bool {
		subs, err := r.store.Subscriptions(t.Context(), "away")
		return err == nil && len(subs) == 0
	})
	_ = r.hook.Drain(t.Context())
	r.rules.mu.Lock()
	clear(r.rules.denied)
	r.rules.mu.Unlock()
	pub.publish("a", "after", 1)
	pub.publish("b", "other", 1)
	sub.message("other")
	sub.ping()
	away = r.connect("away", persistent)
	away.message("before")
	away.message("between")
	away.ping()
}
