package spec

import "testing"

// Shared subscriptions, 4.8.2. 3.1.1 does not have them; the server grants them all the same.
func TestShared(t *testing.T) {
	t.Parallel()
	check(t, []clause{
		{"[MQTT-4.8.2] each message goes to one of a group, and to each group", "45", func(x *ctx) {
			b := x.dial("b")
			a1, a2 := x.dial("a1").sub("$share/one/~/+", 0), x.dial("a2").sub("$share/one/~/+", 0)
			c, d := x.dial("c").sub("$share/two/~/+", 0), x.dial("d").sub("~/+", 0)
			const n = 20
			for i := range n {
				b.pub("~/t", x.n(i), 0)
				c.want("PUBLISH ~/t " + x.n(i))
				d.want("PUBLISH ~/t " + x.n(i))
			}
			count := func(p *peer) (n int) {
				for p.send(0xc0); ; n++ {
					if pk, _ := p.Any(); x.show(&pk) == "PINGRESP" {
						return n
					}
				}
			}
			if one, two := count(a1), count(a2); one+two != n || one == 0 || two == 0 {
				x.Errorf("got %d and %d, want %d in all", one, two, n)
			}
		}},
		{"[MQTT-4.8.2] the members take turns, over all topics", "45", func(x *ctx) {
			a := []*peer{x.dial("a0"), x.dial("a1"), x.dial("a2")}
			for _, p := range a {
				p.sub("$share/one/~/+", 0)
			}
			b := x.dial("b")
			for i := range 9 {
				topic := "~/" + x.n(i)
				b.pub(topic, "m", 0)
				a[i%3].want("PUBLISH " + topic + " m")
			}
		}},
		{"[MQTT-4.8.2-3] at the QoS granted", "45", func(x *ctx) {
			a, b := x.dial("a").sub("$share/g/~", 0), x.dial("b")
			b.pub("~", "m", 4)
			a.want("PUBLISH ~ m")
		}},
		{"[MQTT-4.8.2] one client may be in a group and subscribe by itself", "5", func(x *ctx) {
			a, b := x.dial("a").sub("$share/g/~", 0).sub("~", 0), x.dial("b")
			b.pub("~", "m", 0)
			a.want("PUBLISH ~ m", "PUBLISH ~ m").none(b)
		}},
		{"[MQTT-4.8.2] no retained messages for a shared subscription", "45", func(x *ctx) {
			x.dial("b").pub("~", "m", 2, retain)
			x.dial("a").sub("$share/g/~", 0).ping()
		}},
		{"[MQTT-4.8.2] UNSUBSCRIBE with share name and filter", "45", func(x *ctx) {
			a, b := x.dial("a").sub("$share/g/~", 0), x.dial("b")
			a.send(0xa2, id, P{}, "~", "$share/h/~").want("UNSUBACK 1{|: 11 11}")
			a.send(0xa2, id, P{}, "$share/g/~").want("UNSUBACK 1{|: 00}")
			b.pub("~", "m")
			a.none(b)
		}},
		{"[MQTT-4.8.2] subscription identifiers", "5", func(x *ctx) {
			a, b := x.dial("a"), x.dial("b")
			a.send(0x82, id, P{0x0b, vi(5)}, "$share/g/~", 0).want("SUBACK 1: 00")
			b.pub("~", "m")
			a.want("PUBLISH ~ m ids=[5]")
		}},
		{"[MQTT-4.8.2-4] a message begun with a client is completed when it reconnects", "45", func(x *ctx) {
			a, b := x.session("a", 0).sub("$share/g/~", 1), x.dial("b")
			b.pub("~", "m")
			a.want("PUBLISH ~ m q1").Kill()
			c := x.dial("c").sub("$share/g/~", 1)
			x.session("a", 1).want("PUBLISH ~ m q1 dup").ack().ping()
			c.ping()
		}},
		{"[MQTT-4.8.2-6] a message answered with an error goes to nobody else", "5", func(x *ctx) {
			a, b := x.dial("a").sub("$share/g/~", 1), x.dial("b")
			b.pub("~", "m")
			a.want("PUBLISH ~ m q1")
			c := x.dial("c").sub("$share/g/~", 1)
			a.send(0x40, u16(a.last.PacketID), 0x80).ping()
			c.none(b)
		}},
		{"[MQTT-4.8.2] who has gone gets no share", "45", func(x *ctx) {
			a, b := x.dial("a").sub("$share/g/~", 1), x.dial("b")
			x.dial("c").sub("$share/g/~", 1).bye()
			for i := range 4 {
				b.pub("~", x.n(i))
				a.want("PUBLISH ~ " + x.n(i) + " q1")
			}
		}},
		{"[MQTT-4.8.2-1] another case is another topic", "45", func(x *ctx) {
			a, b := x.dial("a").sub("$share/G/~", 0).sub("$share/g/~", 0), x.dial("b")
			b.pub("~", "m", 0)
			a.want("PUBLISH ~ m", "PUBLISH ~ m").none(b)
		}},
	})
}
