package spec

import (
	"fmt"
	"testing"

	"github.com/mqim/mqim/tests/mqtest"
)

func TestPublishRefused(t *testing.T) {
	t.Parallel()
	breaches(t, []breach{
		{"[MQTT-3.3.1-4] QoS 3", "45", 0x81, 0x36, parts{"~", id, P{}}},
		{"[MQTT-1.5.4] a control character in a topic name", "45", 0x81, 0x30, parts{"~/\x01", P{}}},
		{"[MQTT-1.5.4] DEL in a topic name", "45", 0x81, 0x30, parts{"~/\x7f", P{}}},
		{"[MQTT-3.3.1-4] QoS 3, retained and DUP", "45", 0x81, 0x3f, parts{"~", id, P{}}},
		{"[MQTT-3.3.1-2] DUP at QoS 0", "45", 0x82, 0x38, parts{"~", P{}}},
		{"[MQTT-3.3.2-2] + in a topic name", "45", 0x82, 0x30, parts{"~/+", P{}}},
		{"[MQTT-3.3.2-2] # in a topic name", "45", 0x82, 0x30, parts{"~/#", P{}}},
		{"[MQTT-4.7.0-1] a wildcard amid a level", "45", 0x82, 0x30, parts{"~a+b", P{}}},
		{"[MQTT-4.7.3-1] a topic name without a character", "45", 0x82, 0x30, parts{"", P{}}},
		{"[MQTT-3.3.2-1] no topic name", "45", 0x81, 0x30, nil},
		{"[MQTT-3.3.2-8] Topic Alias 0", "5", 0x94, 0x30, parts{"~", P{0x23, u16(0)}}},
		{"[MQTT-3.3.2-9] Topic Alias beyond the maximum", "5", 0x94, 0x30, parts{"~", P{0x23, u16(0xffff)}}},
		{"[MQTT-3.2.2-17] Topic Alias just beyond the maximum", "5", 0x94, 0x30, parts{"~", P{0x23, u16(65)}}},
		{"[MQTT-3.3.2-7] Topic Alias that stands for nothing", "5", 0x82, 0x30, parts{"", P{0x23, u16(1)}}},
	})
}

// Not in parallel with others, some of whom subscribe to everything.
func TestPublishToNobody(t *testing.T) {
	t.Run("[MQTT-3.4.2.1] PUBACK says when nobody has subscribed 5", func(t *testing.T) {
		x := &ctx{T: t, v: 5, tag: fmt.Sprintf("s%d", tags.Add(1))}
		a := x.dial("a")
		publish := func(code byte) {
			a.send(0x32, "~", id, P{}, text("m")).want("PUBACK 1")
			if a.last.ReasonCode != code {
				x.Errorf("got %#x, want %#x", a.last.ReasonCode, code)
			}
		}
		publish(0x10)
		a.sub("~", 4) // No Local
		publish(0)
		x.session("b", 0).sub("~", 1).bye()
		a.send(0xa2, id, P{}, "~").want("UNSUBACK 1: 00")
		publish(0)
		x.session("b", 1).want("PUBLISH ~ m q1").ack().send(0xa2, id, P{}, "~").want("UNSUBACK 1: 00")
		publish(0x10)
	})
}

func TestPublish(t *testing.T) {
	t.Parallel()
	check(t, []clause{
		{"[MQTT-3.3.4-1] no answer at QoS 0, PUBACK at 1, PUBREC at 2", "45", func(x *ctx) {
			a := x.dial("a")
			a.send(0x30, "~", P{}, text("m")).ping()
			a.send(0x32, "~", u16(7), P{}, text("m")).want("PUBACK 7").ping()
			a.send(0x34, "~", u16(8), P{}, text("m")).want("PUBREC 8").ping()
		}},
		{"[MQTT-4.3.3] a publish is answered before its publisher gets the message", "45", func(x *ctx) {
			for i, a := range []*peer{x.dial("a"), x.session("b", 0)} {
				topic := "~/" + x.n(i)
				a.sub(topic, 2)
				a.send(0x32, topic, u16(7), P{}, text("m")).want("PUBACK 7", "PUBLISH "+topic+" m q1").ack()
				a.send(0x34, topic, u16(8), P{}, text("m")).want("PUBREC 8", "PUBLISH "+topic+" m q2").ack()
				a.send(0x62, u16(8)).want("PUBCOMP 8").ping()
			}
		}},
		{"[MQTT-3.3.4-2] the highest QoS of the subscriptions that match", "45", func(x *ctx) {
			a, b := x.dial("a").sub("~/+", 0).sub("~/#", 2).sub("~/t", 1), x.dial("b")
			b.pub("~/t", "2", 4)
			a.want("PUBLISH ~/t 2 q2").ack()
			a.ping()
		}},
		{"[MQTT-3.8.4-8] the lower of what was published and granted", "45", func(x *ctx) {
			b := x.dial("b")
			for granted := range 3 {
				a := x.dial("a"+x.n(granted)).sub("~/t"+x.n(granted), granted)
				for qos := range 3 {
					b.pub("~/t"+x.n(granted), "m", qos<<1)
					want := "PUBLISH ~/t" + x.n(granted) + " m"
					if low := min(qos, granted); low > 0 {
						want += " q" + x.n(low)
					}
					a.want(want).ack()
				}
			}
		}},
		{"[MQTT-3.3.2-3] the topic name, as it was published", "45", func(x *ctx) {
			a, b := x.dial("a").sub("~/#", 0), x.dial("b")
			for _, topic := range []string{"~", "~/", "~//", "~/ /é", "~/$x", "~/\u65e5"} {
				b.pub(topic, "m", 0)
				a.want("PUBLISH " + topic + " m")
			}
		}},
		{"[MQTT-3.3.3] payloads of any bytes, and of none", "45", func(x *ctx) {
			a, b := x.dial("a").sub("~", 0), x.dial("b")
			for _, payload := range []string{"", "\x00\xff\xfe", "{|}"} {
				b.send(0x30, "~", P{}, text(payload))
				pk, _ := a.Any()
				if got := string(pk.Payload); got != payload {
					x.Errorf("got %q, want %q", got, payload)
				}
			}
		}},
		{"[MQTT-3.3.1-3] DUP is not handed on", "45", func(x *ctx) {
			a, b := x.dial("a").sub("~", 1), x.dial("b")
			b.send(0x3a, "~", id, P{}, text("m")).want("PUBACK 1")
			a.want("PUBLISH ~ m q1")
		}},
		{"[MQTT-3.3.2-4] properties reach subscribers unaltered", "5", func(x *ctx) { // -15 -16 -17 -20
			a, b := x.dial("a").sub("~", 1), x.dial("b")
			b.send(0x32, "~", id, P{0x01, 1, 0x03, "text/plain", 0x08, "~/answers", 0x09, "\x00\x01c", 0x26, "k", "v"}, text("m")).want("PUBACK 1")
			a.want("PUBLISH ~ m q1 format=1 type=text/plain response=~/answers correlation=000163 k=v")
		}},
		{"[MQTT-3.3.2-4] Payload Format Indicator 0 is handed on, too", "5", func(x *ctx) {
			a := x.dial("a").sub("~", 0)
			a.send(0x30, "~", P{0x01, 0}, text("m")).want("PUBLISH ~ m format=0")
		}},
		{"[MQTT-3.3.2-18] user properties keep their order, and equal names", "5", func(x *ctx) { // [MQTT-3.1.3-10]
			a := x.dial("a").sub("~", 0)
			a.send(0x30, "~", P{0x26, "b", "1", 0x26, "a", "2", 0x26, "b", "3", 0x26, "b", "1"}, text("m"))
			a.want("PUBLISH ~ m b=1 a=2 b=3 b=1")
		}},
		{"[MQTT-2.2.2] what 5 publishes with properties 3.1.1 gets without, and the other way", "45", func(x *ctx) {
			other := &ctx{T: x.T, v: 9 - x.v, tag: x.tag}
			a, b := other.dial("a").sub("~", 1), x.dial("b")
			b.send(0x32, "~", id, P{0x26, "k", "v", 0x02, u32(60)}, text("m")).want("PUBACK 1")
			a.want("PUBLISH ~ m q1")
		}},
		{"[MQTT-3.3.2-14] Response Topic with a wildcard", "5", func(x *ctx) {
			a, b := x.dial("a").sub("~", 1), x.dial("b")
			b.send(0x32, "~", id, P{0x08, "~/#"}, text("m")).want("PUBACK 1 90")
			a.none(b)
		}},
		{"[MQTT-3.3.2-12] every Topic Alias up to the maximum", "5", func(x *ctx) {
			a := x.dial("a")
			most := int(a.last.Properties.TopicAliasMaximum)
			a.sub("~/#", 0)
			for _, alias := range []int{1, 2, most} {
				a.send(0x30, "~/"+x.n(alias), P{0x23, u16(alias)}, text("x")).want("PUBLISH ~/" + x.n(alias) + " x")
			}
			for _, alias := range []int{most, 1, 2} {
				a.send(0x30, "", P{0x23, u16(alias)}, text("y")).want("PUBLISH ~/" + x.n(alias) + " y")
			}
		}},
		{"[MQTT-3.3.2.3.4] an alias may be set anew", "5", func(x *ctx) {
			a := x.dial("a").sub("~/#", 0)
			a.send(0x30, "~/a", P{0x23, u16(1)}, text("x")).want("PUBLISH ~/a x")
			a.send(0x30, "~/b", P{0x23, u16(1)}, text("x")).want("PUBLISH ~/b x")
			a.send(0x30, "", P{0x23, u16(1)}, text("x")).want("PUBLISH ~/b x")
		}},
		{"[MQTT-3.3.2-7] aliases end with their connection, though the session stays", "5", func(x *ctx) {
			a := x.session("a", 0)
			a.send(0x30, "~", P{0x23, u16(1)}, text("x")).ping().bye()
			x.session("a", 1).send(0x30, "", P{0x23, u16(1)}, text("x")).refused(0x82)
		}},
		{"[MQTT-3.1.2-27] no alias for a client that wants none", "5", func(x *ctx) {
			a, b := x.dial("a").sub("~", 0), x.dial("b")
			for range 3 {
				b.send(0x30, "~", P{0x23, u16(1)}, text("m"))
				a.want("PUBLISH ~ m")
			}
		}},
		{"[MQTT-3.3.2.3.4] aliases are 1, 2, 3 as topics come, while there are any", "5", func(x *ctx) {
			a := x.connect("a", clean, P{0x22, u16(20)}).want("CONNACK 0 00").sub("~/+", 0)
			b := x.dial("b")
			for i := 1; i <= 20; i++ {
				b.pub("~/"+x.n(i), "x", 0)
				a.want("PUBLISH ~/" + x.n(i) + " x alias=" + x.n(i))
			}
			for i := 1; i <= 20; i++ {
				b.pub("~/"+x.n(i), "y", 0)
				a.want("PUBLISH  y alias=" + x.n(i))
			}
		}},
		{"[MQTT-3.1.2-26] no alias beyond the client's maximum, and each stands for its topic", "5", func(x *ctx) { // [MQTT-3.3.2-11]
			a, b := x.connect("a", clean, P{0x22, u16(2)}).want("CONNACK 0 00").sub("~/#", 0), x.dial("b")
			names := map[uint16]string{}
			for i := range 12 {
				topic := x.tag + "/" + x.n(i%4)
				b.pub(topic, x.n(i), 0)
				pk, _ := a.Any()
				if alias := pk.Properties.TopicAlias; pk.Properties.TopicAliasFlag && (alias == 0 || alias > 2) {
					x.Errorf("got alias %d", alias)
				} else if pk.TopicName == "" {
					pk.TopicName = names[alias]
				} else if pk.Properties.TopicAliasFlag {
					names[alias] = pk.TopicName
				}
				if pk.TopicName != topic || string(pk.Payload) != x.n(i) {
					x.Errorf("got %q %q, want %q %d", pk.TopicName, pk.Payload, topic, i)
				}
			}
		}},
		{"[MQTT-3.3.4-3] subscription identifiers come with the message", "5", func(x *ctx) {
			a, b := x.dial("a"), x.dial("b")
			a.send(0x82, id, P{0x0b, vi(7)}, "~", 0).want("SUBACK 1: 00")
			b.pub("~", "m")
			a.want("PUBLISH ~ m ids=[7]")
		}},
		{"[MQTT-3.3.4-4] those of all subscriptions that match", "5", func(x *ctx) {
			a, b := x.dial("a"), x.dial("b")
			a.send(0x82, id, P{0x0b, vi(1)}, "~/a", 0).want("SUBACK 1: 00")
			a.send(0x82, id, P{0x0b, vi(268435455)}, "~/+", 0).want("SUBACK 1: 00")
			a.sub("~/#", 0)
			b.pub("~/a", "m")
			pk, _ := a.Any()
			ids := pk.Properties.SubscriptionIdentifier
			if len(ids) != 2 || min(ids[0], ids[1]) != 1 || max(ids[0], ids[1]) != 268435455 {
				x.Errorf("got %v, want 1 and 268435455", ids)
			}
			a.ping()
		}},
		{"[MQTT-3.8.4-3] a subscription anew changes its identifier, or ends it", "5", func(x *ctx) {
			a, b := x.dial("a"), x.dial("b")
			a.send(0x82, id, P{0x0b, vi(1)}, "~", 0).want("SUBACK 1: 00")
			a.send(0x82, id, P{0x0b, vi(2)}, "~", 0).want("SUBACK 1: 00")
			b.pub("~", "m")
			a.want("PUBLISH ~ m ids=[2]").sub("~", 0)
			b.pub("~", "m")
			a.want("PUBLISH ~ m")
		}},
		{"[MQTT-3.8.2.1.2] identifiers are kept with the session", "5", func(x *ctx) {
			a, b := x.session("a", 0), x.dial("b")
			a.send(0x82, id, P{0x0b, vi(9)}, "~", 1).want("SUBACK 1: 01").bye()
			b.pub("~", "m")
			x.session("a", 1).want("PUBLISH ~ m q1 ids=[9]")
		}},
		{"[MQTT-3.3.2-6] Message Expiry Interval, less the time that the message waited", "5", func(x *ctx) {
			a := x.session("a", 0).sub("~", 1)
			a.bye()
			x.dial("b").send(0x32, "~", id, P{0x02, u32(1000)}, text("m")).want("PUBACK 1")
			a = x.session("a", 1).want("PUBLISH ~ m q1")
			if left := a.last.Properties.MessageExpiryInterval; left == 0 || left > 1000 || left < 900 {
				x.Errorf("got %d s left of 1000", left)
			}
		}},
		{"[MQTT-3.3.2-5] a message that has expired is not delivered", "5", func(x *ctx) {
			a, b := x.session("a", 0).sub("~", 1), x.dial("b")
			a.bye()
			b.send(0x32, "~", id, P{0x02, u32(1)}, text("old")).want("PUBACK 1")
			b.send(0x33, "~/clock", id, P{0x02, u32(2)}, text("tick")).want("PUBACK 1")
			x.gone("~/clock")
			b.pub("~", "new")
			x.session("a", 1).want("PUBLISH ~ new q1").ack().ping()
		}},
		{"[MQTT-3.3.2-5] a retained message that has expired is not sent", "5", func(x *ctx) {
			b := x.dial("b").send(0x33, "~", id, P{0x02, u32(1)}, text("m")).want("PUBACK 1")
			b.send(0x33, "~/stays", id, P{0x02, u32(1000)}, text("m")).want("PUBACK 1")
			x.gone("~")
			x.dial("c").sub("~/#", 0).want("PUBLISH ~/stays m retain").ping()
		}},
		{"[MQTT-4.6.0-5] messages of a client keep their order", "45", func(x *ctx) { // [MQTT-4.6.0-6]
			a, b := x.dial("a").sub("~/#", 1), x.dial("b")
			const n = 200
			for i := range n {
				b.send(0x32, "~/"+x.n(i%3), u16(i+1), P{}, text(x.n(i)))
			}
			for i := range n {
				a.want("PUBLISH ~/" + x.n(i%3) + " " + x.n(i) + " q1").ack()
				b.want("PUBACK " + x.n(i+1)) // [MQTT-4.6.0-2]
			}
		}},
	})
}

// gone waits until nothing is retained under a topic any more.
func (x *ctx) gone(topic string) {
	x.Helper()
	p := x.dial("gone")
	mqtest.Eventually(x, topic+" to expire", func() bool {
		p.sub(topic, 0).send(0xc0)
		if pk, _ := p.Any(); x.show(&pk) == "PINGRESP" {
			return true
		}
		p.want("PINGRESP")
		return false
	})
}

func TestRetained(t *testing.T) {
	t.Parallel()
	check(t, []clause{
		{"[MQTT-3.3.1-5] a retained message is sent to who subscribes later", "45", func(x *ctx) { // [MQTT-3.3.1-9]
			x.dial("b").pub("~", "m", 2, retain).bye()
			x.dial("a").sub("~", 1).want("PUBLISH ~ m q1 retain")
		}},
		{"[MQTT-3.3.1-5] and replaces the one before", "45", func(x *ctx) {
			x.dial("b").pub("~", "1", 2, retain).pub("~", "2", 0, retain)
			x.dial("a").sub("~", 1).want("PUBLISH ~ 2 retain").ping()
		}},
		{"[MQTT-3.3.1-5] each topic has one", "45", func(x *ctx) {
			x.dial("b").pub("~/a", "m", 2, retain).pub("~/b", "m", 2, retain)
			x.dial("a").sub("~/b", 0).want("PUBLISH ~/b m retain").ping()
		}},
		{"[MQTT-3.3.1-6] no payload removes it", "45", func(x *ctx) { // [MQTT-3.3.1-7]
			b := x.dial("b").pub("~", "m", 2, retain)
			c := x.dial("c").sub("~", 0).want("PUBLISH ~ m retain")
			b.pub("~", "", 2, retain)
			c.want("PUBLISH ~ ")
			x.dial("a").sub("~", 1).ping()
		}},
		{"[MQTT-3.3.1-8] without the flag nothing is kept or removed", "45", func(x *ctx) {
			x.dial("b").pub("~", "kept", 2, retain).pub("~", "other").pub("~", "")
			x.dial("a").sub("~", 0).want("PUBLISH ~ kept retain").ping()
		}},
		{"[MQTT-3.3.1-12] who is subscribed gets it without the flag", "45", func(x *ctx) { // 3.1.1:MQTT-3.3.1-9
			a := x.dial("a").sub("~", 0)
			x.dial("b").pub("~", "m", 2, retain)
			a.want("PUBLISH ~ m")
		}},
		{"[MQTT-3.3.1-13] with Retain As Published as it was published", "5", func(x *ctx) {
			a, b := x.dial("a").sub("~", 0x08), x.dial("b")
			b.pub("~", "m", 2, retain).pub("~", "n")
			a.want("PUBLISH ~ m retain", "PUBLISH ~ n")
		}},
		{"[MQTT-3.8.4-4] every SUBSCRIBE with Retain Handling 0 is sent it", "45", func(x *ctx) { // 3.1.1:MQTT-3.8.4-3
			x.dial("b").pub("~", "m", 2, retain)
			x.dial("a").sub("~", 0).want("PUBLISH ~ m retain").sub("~", 0).want("PUBLISH ~ m retain")
		}},
		{"[MQTT-3.3.1-10] Retain Handling 1: where there was no subscription", "5", func(x *ctx) {
			x.dial("b").pub("~", "m", 2, retain)
			a := x.dial("a").sub("~", 0x10).want("PUBLISH ~ m retain").sub("~", 0x10).ping()
			a.send(0xa2, id, P{}, "~").want("UNSUBACK 1: 00").sub("~", 0x10).want("PUBLISH ~ m retain")
		}},
		{"[MQTT-3.3.1-11] Retain Handling 2: never", "5", func(x *ctx) {
			x.dial("b").pub("~", "m", 2, retain)
			x.dial("a").sub("~", 0x20).ping()
		}},
		{"[MQTT-3.8.4-4] all that match a wildcard", "45", func(x *ctx) {
			x.dial("b").pub("~/a", "1", 2, retain).pub("~/a/b", "2", 2, retain).pub("~", "3", 2, retain)
			x.dial("a").sub("~/+", 0).want("PUBLISH ~/a 1 retain").ping()
			x.dial("c").sub("~/+/b", 0).want("PUBLISH ~/a/b 2 retain").ping()
		}},
		{"[MQTT-3.8.4-8] at the lower QoS", "45", func(x *ctx) {
			x.dial("b").pub("~/0", "m", 0, retain).pub("~/2", "m", 4, retain)
			x.dial("a").sub("~/0", 2).want("PUBLISH ~/0 m retain").sub("~/2", 1).want("PUBLISH ~/2 m q1 retain")
		}},
		{"[MQTT-3.3.1-5] a retained message keeps its properties", "5", func(x *ctx) {
			x.dial("b").send(0x33, "~", id, P{0x03, "t", 0x26, "k", "v", 0x02, u32(600)}, text("m")).want("PUBACK 1")
			a := x.dial("a")
			a.send(0x82, id, P{0x0b, vi(3)}, "~", 0).want("SUBACK 1: 00", "PUBLISH ~ m retain type=t ids=[3] k=v")
			if left := a.last.Properties.MessageExpiryInterval; left == 0 || left > 600 {
				x.Errorf("got %d s left of 600", left)
			}
		}},
		{"[MQTT-3.8.3-3] No Local: a retained message of one's own is sent when one subscribes", "5", func(x *ctx) {
			x.dial("a").pub("~", "m", 2, retain).sub("~", 0x04).want("PUBLISH ~ m retain")
		}},
	})
}
