package broker

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/broker/config"
	"github.com/mqim/mqim/tests/mqtest"
)

// resolve decodes the topic aliases of what a client got, in order, as it has to [MQTT-3.3.2-10], and calls f with each
// topic. It returns the number of topics that were left out.
func resolve(t *testing.T, c *mqtest.Client, most uint16, f func(topic string, pk *packets.Packet)) (saved int) {
	t.Helper()
	known := map[uint16]string{}
	for _, pk := range c.Got() {
		if !publishes(&pk) {
			continue
		}
		topic, alias := pk.TopicName, pk.Properties.TopicAlias
		switch {
		case pk.Properties.TopicAliasFlag && (alias == 0 || alias > most):
			t.Fatalf("alias %d, want 1 to %d", alias, most)
		case topic != "" && pk.Properties.TopicAliasFlag:
			known[alias] = topic
		case topic == "":
			if topic = known[alias]; topic == "" {
				t.Fatalf("alias %d was not set", alias)
			}
			saved++
		}
		f(topic, &pk)
	}
	return saved
}

func received(c *mqtest.Client) (n int) {
	for _, pk := range c.Got() {
		if publishes(&pk) {
			n++
		}
	}
	return n
}

// TestOutboundAliases: a client that takes topic aliases sees the right topics, with two publishers under load, messages
// to the user among theirs, more topics than aliases, and the same again when its session is resumed.
func TestOutboundAliases(t *testing.T) {
	for _, most := range []uint16{0, 1, 4, 65535} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			s := startSystem(t, func(c *config.Config) { c.Limits.SendsPerSecond = 0 })
			o := mqtest.Options{Version: 5, ID: "sub", User: "sub", Persistent: true}
			o.Properties.TopicAliasMaximum = most
			sub := mqtest.Dial(t, s.Addr("mqtt").String(), o)
			sub.Subscribe("load/#", "im/u/sub", "im/u/sub/reply")
			const each, topics = 400, 12
			load := func(round int) {
				var wg sync.WaitGroup
				for p := range 2 {
					pub := join(t, s, fmt.Sprintf("pub-%d", p))
					wg.Go(func() {
						for i := range each {
							topic := fmt.Sprintf("load/%d/%d", i%3, i%topics)
							if i%8 == 0 {
								topic = "im/u/sub"
							}
							b, _ := mqtest.Encode(packets.Packet{
								FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1},
								TopicName:   topic, PacketID: uint16(round*each + i + 1), Payload: []byte(topic),
							}, 5)
							if err := pub.TryWrite(b); err != nil {
								t.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			}
			check := func(what string, want int) {
				t.Helper()
				mqtest.Eventually(t, fmt.Sprintf("%d messages %s", want, what), func() bool { return received(sub) >= want })
				n := 0
				saved := resolve(t, sub, min(most, 64), func(topic string, pk *packets.Packet) {
					if n++; topic != string(pk.Payload) {
						t.Errorf("%s: got %q for a message to %q", what, topic, pk.Payload)
					}
				})
				if n != want {
					t.Errorf("%s: got %d messages, want %d", what, n, want)
				}
				if least := want / 2; most > topics && saved < least || most == 0 && saved > 0 {
					t.Errorf("%s: %d topics left out, with Topic Alias Maximum %d", what, saved, most)
				}
			}
			load(0)
			check("on the first connection", 2*each)

			sub.Kill()
			load(1)
			sub = mqtest.Dial(t, s.Addr("mqtt").String(), o)
			if !sub.Connack.SessionPresent {
				t.Fatal("the session was not resumed")
			}
			check("after it came back", 2*each)
		})
	}
}

// TestInboundAliasesAfterErrors: a PUBLISH that is refused has set its alias, and leaves the others alone.
func TestInboundAliasesAfterErrors(t *testing.T) {
	s := startSystem(t, func(c *config.Config) {
		c.ACL = []config.Rule{{Deny: "pub", Topic: "denied/#"}, {Allow: "pubsub", Topic: "#"}}
		c.Limits.MessageBytes, c.Limits.CommandBytes = 1000, 1000
	})
	c := join(t, s, "c")
	c.Subscribe("#", "im/u/c")
	alias := func(n uint16) mqtest.Option {
		return func(p *packets.Packet) { p.Properties.TopicAlias, p.Properties.TopicAliasFlag = n, true }
	}
	large := strings.Repeat("x", 100<<10)
	for _, step := range []struct {
		topic   string
		alias   uint16
		payload string
		want    byte
		comes   string // the topic that it arrives on
	}{
		{"good/topic", 1, "x", 0, "good/topic"},
		{"denied/topic", 2, "x", 0x87, ""},
		{"", 2, "x", 0x87, ""},
		{"im/reserved", 3, "x", 0x87, ""},
		{"", 3, "x", 0x87, ""},
		{"", 1, "x", 0, "good/topic"},
		{"im/u/c", 4, large, 0x95, ""},
		{"", 1, "x", 0, "good/topic"},
		{"", 4, "x", 0, ""}, // what the sending device sends itself does not come back
		{"large/topic", 1, large, 0x95, ""},
		{"", 1, "x", 0, "large/topic"},
		{"", 1, large, 0x95, ""},
		{"", 1, "y", 0, "large/topic"},
	} {
		if ack := c.PublishAck(step.topic, step.payload, mqtest.QoS(1), alias(step.alias)); ack.ReasonCode != step.want && (step.want != 0 || ack.ReasonCode >= 0x80) {
			t.Errorf("alias %d, topic %q, %d bytes: got %#x, want %#x", step.alias, step.topic, len(step.payload), ack.ReasonCode, step.want)
		}
		if step.comes != "" {
			if pk := c.Take("the message", publishes); pk.TopicName != step.comes {
				t.Errorf("alias %d: got %q, want %q", step.alias, pk.TopicName, step.comes)
			}
		}
	}
}
