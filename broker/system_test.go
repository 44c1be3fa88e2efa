package broker

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"go.uber.org/goleak"

	"github.com/mqim/mqim/broker/config"
	"github.com/mqim/mqim/tests/mqtest"
)

func startSystem(t *testing.T, change func(*config.Config)) *Server {
	t.Helper()
	c := testConfig(t)
	change(c)
	s, err := New(c, quiet(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	return s
}

func join(t *testing.T, s *Server, user string) *mqtest.Client {
	t.Helper()
	c := mqtest.Dial(t, s.Addr("mqtt").String(), mqtest.Options{Version: 5, ID: user, User: user})
	if c.Connack.ReasonCode != 0 {
		t.Fatalf("CONNACK %#x", c.Connack.ReasonCode)
	}
	return c
}

func publishes(p *packets.Packet) bool { return p.FixedHeader.Type == packets.Publish }

// TestSystemRetained: whoever subscribes to $SYS gets the present values as retained messages, and nobody gets them by
// a wildcard that does not name $SYS [MQTT-4.7.2-1].
func TestSystemRetained(t *testing.T) {
	s := startSystem(t, func(c *config.Config) { c.Node.SysInterval = 0 })
	pub, sub := join(t, s, "pub"), join(t, s, "sub")
	sub.Subscribe("a/#", "im/u/sub", "#")
	for range 3 {
		pub.PublishAck("a/b", "x", mqtest.QoS(1), func(p *packets.Packet) { p.FixedHeader.Retain = true })
		sub.Take("the message", publishes)
	}
	gone := join(t, s, "gone")
	gone.Disconnect()
	before := sub.Count("$SYS/broker/uptime")
	sys := join(t, s, "sys")
	mqtest.Eventually(t, "everything to be counted", func() bool {
		return s.registry.Sessions() == 3 && s.listeners[0].Counters.In.Publishes.Load() == 3 && s.listeners[0].Counters.Out.Publishes.Load() == 3 &&
			s.listeners[0].Counters.In.Packets.Load() >= 3+3+1+4
	})
	sys.Subscribe("$SYS/#")
	sys.Alive()
	got := map[string]string{}
	for _, pk := range sys.Got() {
		if publishes(&pk) {
			if !pk.FixedHeader.Retain {
				t.Errorf("%s is not retained", pk.TopicName)
			}
			got[strings.TrimPrefix(pk.TopicName, "$SYS/broker/")] = string(pk.Payload)
		}
	}
	for topic, want := range map[string]string{
		"version": "mqim version dev", "clients/connected": "3", "clients/maximum": "3",
		"publish/messages/received": "3", "publish/messages/sent": "3", "publish/messages/dropped": "0", "retained messages/count": "1",
		"subscriptions/count": "4",
	} {
		if got[topic] != want {
			t.Errorf("%s: got %q, want %q", topic, got[topic], want)
		}
	}
	for topic, low := range map[string]int{"messages/received": 11, "messages/sent": 8, "bytes/received": 100, "bytes/sent": 40, "heap/current size": 100_000} {
		if n, err := strconv.Atoi(got[topic]); err != nil || n < low {
			t.Errorf("%s: got %q, want %d or more", topic, got[topic], low)
		}
	}
	if up := got["uptime"]; !strings.HasSuffix(up, " seconds") {
		t.Errorf("uptime: got %q, want seconds", up)
	}
	if len(got) != len(s.systemTopics()) {
		t.Errorf("got %d topics, want %d", len(got), len(s.systemTopics()))
	}
	if n := sub.Count("$SYS/broker/uptime"); n != before {
		t.Errorf("# brought %d messages under $SYS, want none", n)
	}
}

// TestSystemRounds: subscribers get a value again and again, from counters that go on.
func TestSystemRounds(t *testing.T) {
	before := goleak.IgnoreCurrent()
	s := startSystem(t, func(c *config.Config) { c.Node.SysInterval = config.Duration(5 * time.Millisecond) })
	sys := join(t, s, "sys")
	sys.Subscribe("$SYS/broker/publish/+/received")
	sys.Take("what is retained", func(p *packets.Packet) bool { return publishes(p) && p.FixedHeader.Retain && string(p.Payload) == "0" })
	sys.PublishAck("a", "x", mqtest.QoS(1))
	sys.Take("the next round", func(p *packets.Packet) bool { return publishes(p) && !p.FixedHeader.Retain && string(p.Payload) == "1" })
	if n := sys.Count("$SYS/broker/uptime"); n > 0 {
		t.Errorf("%d messages on a topic that was not subscribed to", n)
	}
	sys.Kill()
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	goleak.VerifyNone(t, before)
}

// TestSystemDenied: the rules hold for $SYS, too.
func TestSystemDenied(t *testing.T) {
	s := startSystem(t, func(c *config.Config) {
		c.Node.SysInterval = config.Duration(5 * time.Millisecond)
		c.ACL = []config.Rule{{Deny: "sub", Topic: "$SYS/#"}, {Allow: "pubsub", Topic: "#"}}
	})
	c := join(t, s, "c")
	for i, code := range c.Subscribe("$SYS/#", "$SYS/broker/uptime", "$share/g/$SYS/broker/+", "$SYS/+/uptime") {
		if code != 0x87 {
			t.Errorf("filter %d: got %#x, want 0x87", i, code)
		}
	}
	c.Alive()
	for _, pk := range c.Got() {
		if publishes(&pk) {
			t.Errorf("got %s all the same", pk.TopicName)
		}
	}
}
