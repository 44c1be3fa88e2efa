package tests

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/tests/mqtest"
)

// crossing is what a test does, step by step; the server is killed between the steps and started again on its folder.
// Many crossings share a server and its deaths, so each uses clients and topics of its own.
type crossing struct {
	name     string
	versions string // "45": of MQTT
	steps    func(x *traveller) []func(t *testing.T)
}

// traveller is what a crossing's steps have in common.
type traveller struct {
	s    *mqtest.Server
	v    byte
	base string // in front of its topics and client ids
	t    testing.TB
}

// stepT is the test of one step, whose clients live on until the server is killed.
type stepT struct {
	testing.TB
	whole *testing.T
}

func (t stepT) Cleanup(f func()) { t.whole.Cleanup(f) }

func (x *traveller) topic(tail string) string { return x.base + "/" + tail }

func (x *traveller) options(id string) mqtest.Options {
	return mqtest.Options{Version: x.v, User: "u", ID: x.base + "-" + id}
}

func (x *traveller) dial(o mqtest.Options) *mqtest.Client {
	x.t.Helper()
	c := mqtest.Dial(x.t, x.s.Addr("mqtt"), o)
	if c.Connack.ReasonCode != 0 {
		x.t.Fatalf("%s: CONNACK %#x, want 0", c.ID, c.Connack.ReasonCode)
	}
	return c
}

// clean connects without a session.
func (x *traveller) clean(id string) *mqtest.Client { x.t.Helper(); return x.dial(x.options(id)) }

// session connects with a persistent session and fails the test unless CONNACK says whether there was one.
func (x *traveller) session(id string, present bool, change ...func(*mqtest.Options)) *mqtest.Client {
	x.t.Helper()
	o := x.options(id)
	o.Persistent = true
	for _, f := range change {
		f(&o)
	}
	c := x.dial(o)
	if c.Connack.SessionPresent != present {
		x.t.Fatalf("%s: session present: got %t, want %t", c.ID, c.Connack.SessionPresent, present)
	}
	return c
}

func hold(o *mqtest.Options)   { o.Hold = true }
func noAuto(o *mqtest.Options) { o.NoAuto = true }
func silent(o *mqtest.Options) { o.Silent = true }

// away makes a persistent session that is subscribed at QoS 2, and disconnected.
func (x *traveller) away(id string, filters ...string) {
	x.t.Helper()
	c := x.session(id, false)
	x.subscribe(c, 2, filters...)
	c.Disconnect()
}

func (x *traveller) subscribe(c *mqtest.Client, qos byte, filters ...string) {
	x.t.Helper()
	for i, code := range c.SubscribeQoS(qos, filters...) {
		if code != qos {
			x.t.Fatalf("%s: filter %s: got %#x, want %d", c.ID, filters[i], code, qos)
		}
	}
}

// publish has messages acknowledged, one by one.
func (x *traveller) publish(c *mqtest.Client, topic string, payloads []string, opts ...mqtest.Option) {
	x.t.Helper()
	for _, p := range payloads {
		if ack := c.PublishAck(topic, p, opts...); ack.ReasonCode >= 0x80 {
			x.t.Fatalf("%s: PUBLISH %s: got %#x", c.ID, topic, ack.ReasonCode)
		}
	}
}

// receive takes the client's next messages, which must be these on this topic, in this order.
func (x *traveller) receive(c *mqtest.Client, topic string, payloads ...string) (list []packet) {
	x.t.Helper()
	for i, want := range payloads {
		pk := c.Take("message "+want, isPublish)
		if pk.TopicName != topic || string(pk.Payload) != want {
			x.t.Fatalf("%s: message %d: got %s %q, want %s %q", c.ID, i, pk.TopicName, pk.Payload, topic, want)
		}
		list = append(list, pk)
	}
	return list
}

// nothing fails the test if more than what was received has come, up to a message that comes after all others.
func (x *traveller) nothing(clients ...*mqtest.Client) {
	x.t.Helper()
	for _, c := range clients {
		last := x.topic("last/" + c.ID)
		x.subscribe(c, 0, last)
		c.Publish(last, "last", mqtest.QoS(0), mqtest.PacketID(0))
		x.receive(c, last, "last")
	}
}

func isPublish(p *packet) bool { return p.FixedHeader.Type == packets.Publish }

func is(typ byte, id uint16) func(*packet) bool {
	return func(p *packet) bool { return p.FixedHeader.Type == typ && p.PacketID == id }
}

// pubrel sends PUBREL and waits for PUBCOMP.
func pubrel(c *mqtest.Client, id uint16) packet {
	c.WriteRaw([]byte{packets.Pubrel<<4 | 2, 2, byte(id >> 8), byte(id)})
	return c.Take("PUBCOMP", is(packets.Pubcomp, id))
}

func pubrec(c *mqtest.Client, id uint16) {
	c.WriteRaw([]byte{packets.Pubrec << 4, 2, byte(id >> 8), byte(id)})
}
func pubcomp(c *mqtest.Client, id uint16) {
	c.WriteRaw([]byte{packets.Pubcomp << 4, 2, byte(id >> 8), byte(id)})
}

func numbered(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprint("message ", i))
	}
	return list
}

// passed waits until a moment of the clock, which the server and the test share.
func passed(t *testing.T, what string, since time.Time, d time.Duration) {
	t.Helper()
	mqtest.Eventually(t, what, func() bool { return time.Since(since) > d })
}

// will is a will for Options, with what an MQTT 5 client says of it.
func will(topic, payload string, delay uint32) *packets.Packet {
	return &packet{TopicName: topic, Payload: []byte(payload), FixedHeader: packets.FixedHeader{Qos: 1},
		Properties: packets.Properties{WillDelayInterval: delay}}
}

// TestKilled has the server killed while clients are in the middle of everything.
func TestKilled(t *testing.T) {
	both(t, func(whole *testing.T, v byte) {
		s := mqtest.Start(whole, nil)
		type running struct {
			*traveller
			name  string
			steps []func(*testing.T)
		}
		var list []*running
		for i, c := range crossings {
			if strings.Contains(c.versions, fmt.Sprint(v)) {
				x := &traveller{s: s, v: v, base: fmt.Sprint("x", i)}
				list = append(list, &running{x, c.name, c.steps(x)})
			}
		}
		for step := 0; ; step++ {
			left := false
			for _, r := range list {
				if step < len(r.steps) {
					whole.Run(fmt.Sprintf("%s/%d", r.name, step), func(t *testing.T) {
						r.t = stepT{t, whole}
						r.steps[step](t)
					})
					left = left || step+1 < len(r.steps)
				}
			}
			if !left || whole.Failed() {
				return
			}
			s.Kill()
			s.Run()
		}
	})
}

// nothingBut counts all messages that come up to one that comes after all others.
func (x *traveller) nothingBut(c *mqtest.Client, got map[string]int) {
	x.t.Helper()
	last := x.topic("last/" + c.ID)
	x.subscribe(c, 1, last)
	c.PublishAck(last, "last")
	for {
		pk := c.Take("a message", isPublish)
		if pk.TopicName == last {
			c.Disconnect()
			return
		}
		got[string(pk.Payload)]++
	}
}

// sessions.max_queued drops the oldest, counts them, and has them dropped after a crash, too.
func TestQueueLimitDropsOldest(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		s := mqtest.Start(t, mqtest.Config{"sessions": "{max_queued: 5, overflow: drop_oldest}"})
		x := &traveller{s: s, v: v, base: "x", t: t}
		x.away("sub", "x/q")
		x.publish(x.clean("pub"), "x/q", numbered(8))
		equal(t, "mqim_dropped_total", s.Metric(`mqim_dropped_total{reason="topic_queue_messages"}`), 3)
		s.Kill()
		s.Run()
		x.publish(x.clean("pub"), "x/q", []string{"one more"})
		equal(t, "mqim_dropped_total after a crash", s.Metric(`mqim_dropped_total{reason="topic_queue_messages"}`), 1)
		c := x.session("sub", true)
		x.receive(c, "x/q", append(numbered(8)[4:], "one more")...)
		x.nothing(c)
	})
}

// What limits.retained_messages refuses is counted as that, whatever becomes of what is too much for a queue.
func TestRetainedLimitCounted(t *testing.T) {
	for _, overflow := range []string{"drop_oldest", "refuse"} {
		s := mqtest.Start(t, mqtest.Config{"sessions": "{overflow: " + overflow + "}", "limits": "{retained_messages: 1}"})
		x := &traveller{s: s, v: 5, base: "x", t: t}
		p := x.clean("pub")
		retain := func(pk *packets.Packet) { pk.FixedHeader.Retain = true }
		equal(t, "the first", p.PublishAck("x/1", "a", retain).ReasonCode, 0x10)
		equal(t, "the second", p.PublishAck("x/2", "b", retain).ReasonCode, 0x97)
		equal(t, "mqim_dropped_total, overflow "+overflow, s.Metric(`mqim_dropped_total{reason="topic_retained_full"}`), 1)
	}
}

// … or refuses what is too much, to the publisher's face: nobody gets it.
func TestQueueLimitRefuses(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		s := mqtest.Start(t, mqtest.Config{"sessions": "{max_queued: 5, overflow: refuse}"})
		x := &traveller{s: s, v: v, base: "x", t: t}
		x.away("sub", "x/q")
		x.publish(x.clean("pub"), "x/q", numbered(5))
		refused := func() {
			t.Helper()
			before := s.Metric(`mqim_dropped_total{reason="topic_queue_refused"}`)
			p, other := x.clean("pub"), x.clean("other")
			x.subscribe(other, 1, "x/q")
			for _, qos := range []byte{1, 2} {
				if v == 5 {
					equal(t, "the answer", p.PublishAck("x/q", "no", mqtest.QoS(qos)).ReasonCode, 0x97)
				} else { // which has no other way to say so
					p.Publish("x/q", "no", mqtest.QoS(qos))
					p.Closed()
					equal(t, "what came", len(p.Got()), 0)
					p = x.clean("pub")
				}
			}
			equal(t, "mqim_dropped_total", s.Metric(`mqim_dropped_total{reason="topic_queue_refused"}`)-before, 2)
			x.nothing(other)
		}
		refused()
		s.Kill()
		s.Run()
		refused()
		c := x.session("sub", true)
		x.receive(c, "x/q", numbered(5)...)
		x.nothing(c)
		c.Disconnect()
		x.publish(x.clean("pub"), "x/q", []string{"there is room again"})
	})
}

// The server is ready soon after a crash, whatever is stored, and has it.
func TestManyStoredSessions(t *testing.T) {
	t.Parallel()
	const sessions, dialers = 2000, 8
	s := mqtest.Start(t, mqtest.Config{"limits": "{devices_per_user: 0, sends_per_second: 0}"})
	x := &traveller{s: s, v: 5, base: "x", t: t}
	var wg sync.WaitGroup
	for d := range dialers {
		wg.Go(func() {
			for i := d; i < sessions; i += dialers {
				o := x.options(fmt.Sprint(i))
				o.Persistent = true
				c := mqtest.TryDial(t, s.Addr("mqtt"), o)
				if c == nil {
					t.Error("a connection was refused")
					return
				}
				sub := packet{FixedHeader: header(packets.Subscribe), PacketID: 1, Filters: packets.Subscriptions{{Filter: "all", Qos: 1}}}
				raw, err := mqtest.Encode(sub, 5)
				if err == nil {
					err = c.TryWrite(raw)
				}
				if _, ok := c.TryTake(is(packets.Suback, 1), mqtest.Patience); err != nil || !ok {
					t.Errorf("subscribe: %v", err)
					return
				}
				c.Kill()
			}
		})
	}
	wg.Wait()
	x.publish(x.clean("pub"), "all", numbered(3))
	s.Kill()
	s.Run() // fails where that takes longer than mqtest.Patience
	for i := 0; i < sessions; i += sessions / 7 {
		c := x.session(fmt.Sprint(i), true)
		x.receive(c, "all", numbered(3)...)
		x.nothing(c)
	}
}
