package spec

import "testing"

func TestSubscribeRefused(t *testing.T) {
	t.Parallel()
	breaches(t, []breach{
		{"[MQTT-3.8.3-2] no filter", "45", 0x82, 0x82, parts{id, P{}}},
		{"[MQTT-3.8.3-1] a filter without options", "45", 0x81, 0x82, parts{id, P{}, "~"}},
		{"[MQTT-3.8.3-1] a second filter without options", "45", 0x81, 0x82, parts{id, P{}, "~", 0, "~/a"}},
		{"[MQTT-3.8.3-5] reserved options, bit 7", "45", 0x81, 0x82, parts{id, P{}, "~", 0x80}},
		{"[MQTT-3.8.3-5] reserved options, bit 6", "45", 0x81, 0x82, parts{id, P{}, "~", 0x41}},
		{"[3.1.1:MQTT-3.8.3-4] reserved options, bits 2 to 5", "4", 0, 0x82, parts{id, P{}, "~", 0x04}},
		{"[MQTT-3.8.3.1] QoS 3", "45", 0x82, 0x82, parts{id, P{}, "~", 3}},
		{"[MQTT-3.8.3.1] QoS 3 in the second filter", "45", 0x82, 0x82, parts{id, P{}, "~", 0, "~/a", 3}},
		{"[MQTT-3.8.3.1] Retain Handling 3", "5", 0x82, 0x82, parts{id, P{}, "~", 0x30}},
		{"[MQTT-3.8.3-4] No Local on a shared subscription", "5", 0x82, 0x82, parts{id, P{}, "$share/g/~", 0x04}},
		{"[MQTT-3.8.3-1] a cut-off packet id", "45", 0x81, 0x82, parts{0}},
		{"[MQTT-3.8.3-1] a cut-off filter", "45", 0x81, 0x82, parts{id, P{}, raw{0, 9, 'a'}}},
		{"[MQTT-3.8.3-1] a cut-off length", "45", 0x81, 0x82, parts{id, P{}, raw{0}}},
		{"[MQTT-3.10.3-2] UNSUBSCRIBE without a filter", "45", 0x82, 0xa2, parts{id, P{}}},
		{"[MQTT-4.7.3-1] a filter without a character", "45", 0x81, 0x82, parts{id, P{}, "", 0}},
		{"[MQTT-4.7.3-1] a second filter without a character", "45", 0x81, 0x82, parts{id, P{}, "~", 0, "", 0}},
		{"[MQTT-4.7.3-1] UNSUBSCRIBE, a filter without a character", "45", 0x81, 0xa2, parts{id, P{}, "~", ""}},
		{"[MQTT-1.5.4] a control character in a filter", "45", 0x81, 0x82, parts{id, P{}, "~/\x1f", 0}},
		{"[MQTT-1.5.4] UNSUBSCRIBE, a control character in a filter", "45", 0x81, 0xa2, parts{id, P{}, "~/\u009f"}},
		{"[MQTT-3.10.3-1] UNSUBSCRIBE with a cut-off filter", "45", 0x81, 0xa2, parts{id, P{}, raw{0, 9, 'a'}}},
	})
	var list []clause
	for filter, name := range map[string]string{
		"~/#/a":         "[MQTT-4.7.1-1] # is the last character",
		"#/":            "[MQTT-4.7.1-1] # is the last character, a level",
		"~a#":           "[MQTT-4.7.1-1] # follows a separator",
		"~/##":          "[MQTT-4.7.1-1] # follows a separator, not another",
		"~a+":           "[MQTT-4.7.1-2] + takes a whole level",
		"+~":            "[MQTT-4.7.1-2] + takes a whole level, the first",
		"~/+a/b":        "[MQTT-4.7.1-2] + takes a whole level, amid",
		"~/++":          "[MQTT-4.7.1-2] + takes a whole level, once",
		"$share":        "[MQTT-4.8.2-1] $share alone",
		"$share/":       "[MQTT-4.8.2-1] $share without a name",
		"$share//~":     "[MQTT-4.8.2-1] a share name without a character",
		"$share/g":      "[MQTT-4.8.2-2] a share name without a filter",
		"$share/g/":     "[MQTT-4.8.2-2] a share name, and a filter without a character",
		"$share/+/~":    "[MQTT-4.8.2-2] + as share name",
		"$share/g#/~":   "[MQTT-4.8.2-2] # in the share name",
		"$share/g/~a#":  "[MQTT-4.7.1-1] # in a shared filter",
		"$share/g/~a+b": "[MQTT-4.7.1-2] + in a shared filter",
	} {
		list = append(list, clause{name, "45", func(x *ctx) {
			a := x.dial("a")
			a.send(0x82, id, P{}, filter, 1).want("SUBACK 1: {80|8f}")
			a.send(0x82, id, P{}, "~/1", 1, filter, 1, "~/2", 0).want("SUBACK 1: 01 {80|8f} 00") // the others are granted
		}})
	}
	check(t, list)
}

func TestSubscribe(t *testing.T) {
	t.Parallel()
	check(t, []clause{
		{"[MQTT-3.9.2-2] user properties of the request are not sent back", "5", func(x *ctx) { // [MQTT-3.11.2-2]
			a := x.dial("a")
			a.send(0x82, id, P{0x26, "k", "v"}, "~", 0).want("SUBACK 1: 00")
			user := a.last.Properties.User
			a.send(0xa2, id, P{0x26, "k", "v"}, "~").want("UNSUBACK 1: 00")
			if user = append(user, a.last.Properties.User...); len(user) > 0 {
				x.Errorf("got %v", user)
			}
		}},
		{"[MQTT-3.8.4-1] SUBACK with the packet id", "45", func(x *ctx) { // -2 [MQTT-2.2.1-6]
			a := x.dial("a")
			for _, id := range []int{1, 256, 65535} {
				a.send(0x82, u16(id), P{}, "~", 0).want("SUBACK " + x.n(id) + ": 00")
			}
		}},
		{"[MQTT-3.8.4-6] a code for each filter, in their order", "45", func(x *ctx) { // -5 -7 [MQTT-3.9.3-1] -2
			x.dial("a").send(0x82, id, P{}, "~/2", 2, "im/u/other", 1, "~/0", 0, "~a#", 0, "~/1", 1).
				want("SUBACK 1: 02 {80|87} 00 {80|8f} 01")
		}},
		{"[MQTT-3.8.4-3] the same filter again replaces the subscription", "45", func(x *ctx) {
			a, b := x.dial("a").sub("~", 2).sub("~", 0), x.dial("b")
			b.pub("~", "m")
			a.want("PUBLISH ~ m").sub("~", 1)
			b.pub("~", "m")
			a.want("PUBLISH ~ m q1").none(b)
		}},
		{"[MQTT-3.8.4-5] the same filter twice in one packet: the second holds", "45", func(x *ctx) {
			a, b := x.dial("a"), x.dial("b")
			a.send(0x82, id, P{}, "~", 2, "~", 0).want("SUBACK 1: 02 00")
			b.pub("~", "m")
			a.want("PUBLISH ~ m").none(b)
		}},
		{"[MQTT-3.8.4-3] what waits is not lost when a subscription is replaced", "45", func(x *ctx) {
			a, b := x.session("a", 0).sub("~", 1), x.dial("b")
			b.pub("~", "1")
			a.want("PUBLISH ~ 1 q1").sub("~", 1)
			b.pub("~", "2")
			a.want("PUBLISH ~ 2 q1")
		}},
		{"[MQTT-3.10.4-4] UNSUBACK with the packet id, though nothing was subscribed", "45", func(x *ctx) { // -5
			a := x.dial("a").sub("~", 0)
			a.send(0xa2, u16(700), P{}, "~").want("UNSUBACK 700{|: 00}")
			a.send(0xa2, u16(701), P{}, "~").want("UNSUBACK 701{|: 11}")
		}},
		{"[MQTT-3.10.4-6] a code for each filter, in their order", "45", func(x *ctx) { // [MQTT-3.11.3-1] -2
			a := x.dial("a").sub("~/1", 0).sub("~/3", 0)
			a.send(0xa2, id, P{}, "~/1", "~/2", "~/3", "~/1").want("UNSUBACK 1{|: 00 11 00 11}")
		}},
		{"[MQTT-3.10.4-2] after UNSUBSCRIBE nothing comes", "45", func(x *ctx) {
			a, b := x.dial("a").sub("~/#", 1).sub("~/a", 1), x.dial("b")
			a.send(0xa2, id, P{}, "~/#").want("UNSUBACK 1{|: 00}")
			b.pub("~/b", "m").pub("~/a", "m")
			a.want("PUBLISH ~/a m q1").none(b)
		}},
		{"[MQTT-3.10.4-1] filters are compared character by character", "45", func(x *ctx) {
			a, b := x.dial("a").sub("~/+", 0), x.dial("b")
			a.send(0xa2, id, P{}, "~/a", "~/#", "~/+/").want("UNSUBACK 1{|: 11 11 11}")
			b.pub("~/a", "m")
			a.want("PUBLISH ~/a m")
		}},
		{"[MQTT-3.10.4-3] what was begun is completed after UNSUBSCRIBE", "45", func(x *ctx) {
			a, b := x.dial("a").sub("~", 2), x.dial("b")
			b.pub("~", "m", 4)
			a.want("PUBLISH ~ m q2")
			m := a.last
			a.send(0xa2, id, P{}, "~").want("UNSUBACK 1{|: 00}")
			a.last = m
			a.ack().ping()
		}},
		{"[MQTT-3.8.3-3] No Local: not what one publishes oneself", "5", func(x *ctx) {
			a, b := x.dial("a").sub("~", 0x05), x.dial("b")
			a.pub("~", "mine")
			b.pub("~", "other's")
			a.want("PUBLISH ~ other's q1").ack().none(b)
		}},
		{"[MQTT-3.8.3-3] without it what one publishes oneself, too", "45", func(x *ctx) {
			x.dial("a").sub("~", 0).send(0x30, "~", P{}, text("m")).want("PUBLISH ~ m")
		}},
		{"[MQTT-3.8.3-3] No Local on one of two subscriptions that match", "5", func(x *ctx) {
			a := x.dial("a").sub("~/+", 0x04).sub("~/a", 0)
			a.send(0x30, "~/a", P{}, text("m")).want("PUBLISH ~/a m").ping()
			a.send(0x30, "~/b", P{}, text("m")).ping()
		}},
		{"[MQTT-3.8.2.1.3] user properties in SUBSCRIBE and UNSUBSCRIBE", "5", func(x *ctx) {
			a := x.dial("a")
			a.send(0x82, id, P{0x26, "k", "v"}, "~", 0).want("SUBACK 1: 00")
			a.send(0xa2, id, P{0x26, "k", "v"}, "~").want("UNSUBACK 1: 00")
		}},
		{"[MQTT-3.2.2-3] subscriptions stay with the session", "45", func(x *ctx) {
			x.session("a", 0).sub("~/1", 1).sub("~/2", 0).bye()
			a, b := x.session("a", 1), x.dial("b")
			b.pub("~/1", "m").pub("~/2", "m")
			a.want("PUBLISH ~/1 m q1", "PUBLISH ~/2 m")
		}},
	})
}

// Which filters match which topics, 4.7.
func TestTopics(t *testing.T) {
	t.Parallel()
	var list []clause
	for _, m := range []struct {
		name, filter string
		match, not   []string
	}{
		{"[MQTT-4.7.1-1] # matches the level above and all below", "~/t/#", []string{"~/t", "~/t/", "~/t/a", "~/t/a/b/c"}, []string{"~/tt", "~/", "~"}},
		{"[MQTT-4.7.1-2] + matches one level", "~/+", []string{"~/a", "~/", "~/$a"}, []string{"~", "~/a/b", "~/a/"}},
		{"[MQTT-4.7.1-2] + amid and at the end", "~/+/b/+", []string{"~/a/b/c", "~//b/"}, []string{"~/b/c", "~/a/b", "~/a/b/c/d"}},
		{"[MQTT-4.7.1-2] + first", "+/~b", []string{"a/~b", "/~b"}, []string{"~b", "a/b/~b"}},
		{"[MQTT-4.7.1-1] + and #", "~/+/#", []string{"~/a", "~/", "~/a/b", "~/a/b/c", "~//"}, []string{"~"}},
		{"[MQTT-4.7.1-1] # after an empty level", "~//#", []string{"~/", "~//", "~//a"}, []string{"~", "~/a"}},
		{"[MQTT-4.7.3] case counts", "~/Topic", []string{"~/Topic"}, []string{"~/topic", "~/TOPIC"}},
		{"[MQTT-4.7.3] separators count", "/~/a", []string{"/~/a"}, []string{"~/a", "/~/a/", "//~/a"}},
		{"[MQTT-4.7.3] spaces count", "~/a b", []string{"~/a b"}, []string{"~/ab", "~/a  b", "~/a b "}},
	} {
		list = append(list, clause{m.name, "45", func(x *ctx) {
			a, b := x.dial("a").sub(m.filter, 0), x.dial("b")
			for _, topic := range m.not {
				b.pub(topic, "no", 0)
			}
			for _, topic := range m.match {
				b.pub(topic, "yes", 0)
				a.want("PUBLISH " + topic + " yes")
			}
			a.none(b)
		}})
	}
	check(t, list)
	check(t, []clause{
		{"[MQTT-4.7.2-1] wildcards in front match no topic that begins with $", "45", func(x *ctx) {
			for i, filter := range []string{"#", "+/#", "+/broker/#", "+/broker/uptime"} {
				a := x.dial("a" + x.n(i))
				a.send(0x82, id, P{}, filter, 0)
				for {
					pk, _ := a.Any()
					if len(pk.TopicName) > 0 && pk.TopicName[0] == '$' {
						x.Errorf("%s brought %s", filter, pk.TopicName)
					}
					if x.show(&pk) == "PINGRESP" {
						break
					}
					if x.show(&pk) == "SUBACK 1: 00" {
						a.send(0xc0)
					}
				}
				a.Kill()
			}
		}},
		{"[MQTT-4.7.2] clients do not publish where $ is in front", "45", func(x *ctx) {
			a := x.dial("a").sub("$~/t", 1)
			a.send(0x32, "$~/t", id, P{}, text("m")).want("PUBACK 1{| 90}").ping()
		}},
		{"[MQTT-4.7.3-3] topics of 65,535 bytes", "45", func(x *ctx) {
			long := make([]byte, 65535-len(x.tag))
			for i := range long {
				long[i] = 'x'
			}
			a := x.dial("a").sub("~"+string(long), 0)
			a.send(0x30, "~"+string(long), P{}, text("m")).want("PUBLISH ~" + string(long) + " m")
		}},
	})
}
