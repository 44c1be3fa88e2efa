package spec

import "testing"

func TestQoS1(t *testing.T) {
	t.Parallel()
	check(t, []clause{
		{"[MQTT-4.3.2-4] PUBACK has the packet id of the PUBLISH", "45", func(x *ctx) { // [MQTT-2.2.1-5]
			a := x.dial("a")
			for _, id := range []int{1, 255, 256, 65535} {
				a.send(0x32, "~", u16(id), P{}, text("m")).want("PUBACK " + x.n(id))
			}
		}},
		{"[MQTT-4.3.2-5] after PUBACK the same packet id is a new message", "45", func(x *ctx) {
			a, b := x.dial("a").sub("~", 1), x.dial("b")
			b.send(0x32, "~", id, P{}, text("1")).want("PUBACK 1")
			b.send(0x3a, "~", id, P{}, text("2")).want("PUBACK 1")
			a.want("PUBLISH ~ 1 q1", "PUBLISH ~ 2 q1")
		}},
		{"[MQTT-4.4.0-1] what was not acknowledged comes again, DUP and with its packet id", "45", func(x *ctx) { // [MQTT-3.3.1-1]
			a, b := x.session("a", 0).sub("~", 1), x.dial("b")
			b.pub("~", "1").pub("~", "2").pub("~", "3")
			a.want("PUBLISH ~ 1 q1")
			one := a.last.PacketID
			a.want("PUBLISH ~ 2 q1").ack()
			a.want("PUBLISH ~ 3 q1")
			three := a.last.PacketID
			a.ping().Kill()
			a = x.session("a", 1).want("PUBLISH ~ 1 q1 dup")
			if a.last.PacketID != one {
				x.Errorf("packet id: got %d, want %d", a.last.PacketID, one)
			}
			a.ack().want("PUBLISH ~ 3 q1 dup") // [MQTT-4.6.0-1]
			if a.last.PacketID != three {
				x.Errorf("packet id: got %d, want %d", a.last.PacketID, three)
			}
			a.ack().ping()
		}},
		{"[MQTT-4.4.0-1] nothing is sent again on the same connection", "45", func(x *ctx) {
			a, b := x.session("a", 0).sub("~", 1), x.dial("b")
			b.pub("~", "1")
			a.want("PUBLISH ~ 1 q1").none(b)
		}},
		{"[MQTT-4.4.0-2] a PUBACK with an error is an acknowledgement", "5", func(x *ctx) {
			a, b := x.session("a", 0).sub("~", 1), x.dial("b")
			b.pub("~", "1")
			a.want("PUBLISH ~ 1 q1")
			a.send(0x40, u16(a.last.PacketID), 0x97).ping().bye()
			x.session("a", 1).none(b)
		}},
		{"[MQTT-4.3.2] PUBACK of an unknown packet id is nothing", "45", func(x *ctx) { x.dial("a").send(0x40, u16(99)).ping() }},
		{"[MQTT-4.5.0-1] what waits for a session keeps its order", "45", func(x *ctx) {
			a, b := x.session("a", 0).sub("~/+", 2), x.dial("b")
			a.bye()
			for i := range 20 {
				b.pub("~/"+x.n(i%2), x.n(i), (1+i%2)<<1)
			}
			a = x.session("a", 1)
			for i := range 20 {
				a.want("PUBLISH ~/" + x.n(i%2) + " " + x.n(i) + " q" + x.n(1+i%2))
			}
		}},
	})
}

func TestQoS2(t *testing.T) {
	t.Parallel()
	const two = 4
	check(t, []clause{
		{"[MQTT-4.3.3-8] PUBREC, and PUBCOMP for PUBREL, with the packet id", "45", func(x *ctx) { // -11
			a := x.dial("a")
			a.send(0x34, "~", u16(513), P{}, text("m")).want("PUBREC 513").send(0x62, u16(513)).want("PUBCOMP 513").ping()
		}},
		{"[MQTT-4.3.3-10] until PUBREL the same packet id is the same message", "45", func(x *ctx) {
			a, b := x.dial("a").sub("~", 2), x.dial("b")
			b.send(0x34, "~", id, P{}, text("m")).want("PUBREC 1")
			b.send(0x3c, "~", id, P{}, text("m")).want("PUBREC 1")
			b.send(0x3c, "~", id, P{}, text("m")).want("PUBREC 1")
			b.send(0x62, id).want("PUBCOMP 1")
			a.want("PUBLISH ~ m q2").ack().none(b)
		}},
		{"[MQTT-4.3.3-10] and so it is on the session's next connection", "45", func(x *ctx) {
			a, b := x.dial("a").sub("~", 2), x.session("b", 0)
			b.send(0x34, "~", id, P{}, text("m")).want("PUBREC 1").Kill()
			b = x.session("b", 1).send(0x3c, "~", id, P{}, text("m")).want("PUBREC 1").send(0x62, id).want("PUBCOMP 1")
			a.want("PUBLISH ~ m q2").ack().none(b)
		}},
		{"[MQTT-4.3.3-12] after PUBCOMP the same packet id is a new message", "45", func(x *ctx) {
			a, b := x.dial("a").sub("~", 2), x.dial("b")
			b.pub("~", "1", two).pub("~", "2", two)
			a.want("PUBLISH ~ 1 q2", "PUBLISH ~ 2 q2")
		}},
		{"[MQTT-4.3.3-9] after a PUBREC with an error the packet id is free", "5", func(x *ctx) {
			a := x.dial("a")
			a.send(0x34, "$x/~", id, P{}, text("m")).want("PUBREC 1 90")
			a.sub("~", 0).send(0x34, "~", id, P{}, text("m"))
			a.want("PUBREC 1", "PUBLISH ~ m").ping()
		}},
		{"[MQTT-4.3.3-11] PUBREL of an unknown packet id: it may be that PUBCOMP was lost", "45", func(x *ctx) {
			x.dial("a").send(0x62, u16(9)).want("PUBCOMP 9").ping()
		}},
		{"[MQTT-4.3.3-4] PUBREC of an unknown packet id is answered by PUBREL", "45", func(x *ctx) {
			x.dial("a").send(0x50, u16(9)).want("PUBREL 9").ping()
		}},
		{"[MQTT-4.3.3-4] PUBREC with an error, of an unknown packet id, is nothing", "5", func(x *ctx) {
			x.dial("a").send(0x50, u16(9), 0x80).ping()
		}},
		{"[MQTT-4.8.0-1 of 3.1.1] an acknowledgement of another QoS, or out of turn", "45", func(x *ctx) { // MQTT 5, 4.13.1
			for i, steps := range [][]int{{1, 0x50}, {1, 0x70}, {2, 0x40}, {2, 0x70}, {2, 0x50, 0x40}} {
				a := x.dial("a"+x.n(i)).sub("~", steps[0])
				x.dial("b"+x.n(i)).pub("~", "m", two)
				a.want("PUBLISH ~ m q" + x.n(steps[0]))
				id := a.last.PacketID
				for _, typ := range steps[1 : len(steps)-1] {
					a.send(typ, u16(id)).want("PUBREL " + x.n(int(id)))
				}
				a.send(steps[len(steps)-1], u16(id)).refused(0x82)
			}
		}},
		{"[MQTT-4.3.3-4] PUBREC twice is answered twice", "45", func(x *ctx) {
			a := x.dial("a").sub("~", 2)
			x.dial("b").pub("~", "m", two)
			a.want("PUBLISH ~ m q2")
			id := a.last.PacketID
			for range 2 {
				a.send(0x50, u16(id)).want("PUBREL " + x.n(int(id)))
			}
			a.send(0x70, u16(id)).ping()
		}},
		{"[MQTT-4.3.3-4] PUBCOMP of an unknown packet id is nothing", "45", func(x *ctx) { x.dial("a").send(0x70, u16(9)).ping() }},
		{"[MQTT-4.3.3-4] PUBREC is answered by PUBREL", "45", func(x *ctx) {
			a := x.dial("a").sub("~", 2)
			x.dial("b").pub("~", "m", two)
			a.want("PUBLISH ~ m q2").ack().ping()
		}},
		{"[MQTT-4.4.0-2] a PUBREC with an error ends it", "5", func(x *ctx) {
			a, b := x.session("a", 0).sub("~", 2), x.dial("b")
			b.pub("~", "m", two)
			a.want("PUBLISH ~ m q2")
			a.send(0x50, u16(a.last.PacketID), 0x80).ping().bye()
			x.session("a", 1).none(b)
		}},
		{"[MQTT-4.3.3-6] after PUBREC it is PUBREL that comes again", "45", func(x *ctx) { // -5
			a := x.session("a", 0).sub("~", 2)
			x.dial("b").pub("~", "m", two)
			a.want("PUBLISH ~ m q2")
			id := int(a.last.PacketID)
			a.send(0x50, u16(id)).want("PUBREL " + x.n(id)).Kill()
			a = x.session("a", 1).want("PUBREL "+x.n(id)).send(0x70, u16(id)).ping()
			a.bye()
			x.session("a", 1).ping()
		}},
		{"[MQTT-4.3.3-3] before PUBREC it is PUBLISH that comes again", "45", func(x *ctx) {
			a := x.session("a", 0).sub("~", 2)
			x.dial("b").pub("~", "m", two)
			a.want("PUBLISH ~ m q2")
			id := a.last.PacketID
			a.Kill()
			if a = x.session("a", 1).want("PUBLISH ~ m q2 dup"); a.last.PacketID != id {
				x.Errorf("packet id: got %d, want %d", a.last.PacketID, id)
			}
			a.ack().ping()
		}},
		{"[MQTT-4.6.0-2] acknowledgements come in the order of the publishes, QoS 1 and 2", "45", func(x *ctx) { // -3
			a := x.dial("a")
			var want []string
			for i := 1; i <= 60; i++ {
				qos := 1 + i%2
				a.send(0x30|qos<<1, "~", u16(i), P{}, text("m"))
				want = append(want, map[int]string{1: "PUBACK ", 2: "PUBREC "}[qos]+x.n(i))
			}
			a.want(want...)
		}},
	})
}

func TestFlowControl(t *testing.T) {
	t.Parallel()
	check(t, []clause{
		{"[MQTT-3.3.4-9] no more than Receive Maximum unacknowledged", "5", func(x *ctx) { // [MQTT-4.9.0-1] -2
			a, b := x.connect("a", clean, P{0x21, u16(2)}).want("CONNACK 0 00").sub("~", 2), x.dial("b")
			for i := range 5 {
				b.pub("~", x.n(i), (1+i%2)<<1)
			}
			a.want("PUBLISH ~ 0 q1")
			first := a.last.PacketID
			a.want("PUBLISH ~ 1 q2").ping() // [MQTT-4.9.0-3] [MQTT-3.3.4-10]
			second := u16(a.last.PacketID)
			a.send(0x40, u16(first)).want("PUBLISH ~ 2 q1").ack().want("PUBLISH ~ 3 q2").ping()
			a.send(0x50, second).want("PUBREL " + x.n(int(second))).ping() // PUBREC makes no room
			a.send(0x70, second).want("PUBLISH ~ 4 q1").ping()
		}},
		{"[MQTT-3.3.4-9] QoS 0 is not counted", "5", func(x *ctx) {
			a, b := x.connect("a", clean, P{0x21, u16(1)}).want("CONNACK 0 00").sub("~/1", 1).sub("~/0", 0), x.dial("b")
			b.pub("~/1", "1").pub("~/1", "2").pub("~/0", "3")
			a.want("PUBLISH ~/1 1 q1")
			held := u16(a.last.PacketID)
			a.want("PUBLISH ~/0 3").ping().send(0x40, held).want("PUBLISH ~/1 2 q1")
		}},
		{"[MQTT-4.9.0-1] Receive Maximum holds on what waited for a session", "5", func(x *ctx) {
			a, b := x.session("a", 0).sub("~", 1), x.dial("b")
			a.bye()
			b.pub("~", "1").pub("~", "2").pub("~", "3")
			a = x.connect("a", 0, P{0x11, u32(60), 0x21, u16(1)}).want("CONNACK 1 00", "PUBLISH ~ 1 q1").ping()
			a.ack().want("PUBLISH ~ 2 q1").ping().ack().want("PUBLISH ~ 3 q1").ack().ping()
		}},
		{"[MQTT-3.3.4-7] a client that exceeds the server's Receive Maximum", "5", func(x *ctx) {
			a := x.dial("a")
			most := int(a.last.Properties.ReceiveMaximum)
			for i := range most {
				a.send(0x34, "~", u16(i+1), P{}, text("m")).want("PUBREC " + x.n(i+1))
			}
			a.send(0x34, "~", u16(most+1), P{}, text("m")).refused(0x93)
		}},
		{"[MQTT-3.1.2-24] no packet larger than Maximum Packet Size", "5", func(x *ctx) { // -25
			a, b := x.connect("a", clean, P{0x27, u32(60)}).want("CONNACK 0 00").sub("~", 1), x.dial("b")
			long := make([]byte, 60)
			b.pub("~", string(long)).pub("~", "m")
			a.want("PUBLISH ~ m q1").ack().none(b)
		}},
		{"[MQTT-3.1.2-24] counted with its header and properties, to the byte", "5", func(x *ctx) {
			limit := 2 + 2 + len(x.tag) + 2 + 1 + 10
			a, b := x.connect("a", clean, P{0x27, u32(limit)}).want("CONNACK 0 00").sub("~", 1), x.dial("b")
			b.pub("~", "12345678901").pub("~", "1234567890")
			a.want("PUBLISH ~ 1234567890 q1")
		}},
		{"[MQTT-3.1.2-25] one too large does not stay with the session", "5", func(x *ctx) {
			a, b := x.session("a", 0).sub("~", 1), x.dial("b")
			a.bye()
			b.pub("~", string(make([]byte, 100))).pub("~", "m")
			x.connect("a", 0, P{0x11, u32(60), 0x27, u32(60)}).want("CONNACK 1 00", "PUBLISH ~ m q1").ack().bye()
			x.session("a", 1).ping()
		}},
		{"[MQTT-3.4.2-2] no reason string that is too large", "5", func(x *ctx) { // [MQTT-3.5.2-2] [MQTT-3.14.2-3]
			a := x.connect("a", clean, P{0x27, u32(16)}).want("CONNACK 0 00")
			a.send(0x32, "$x", id, P{}, text("m")).want("PUBACK 1 90")
			a.send(0x34, "$x", id, P{}, text("m")).want("PUBREC 1 90")
			if s := a.last.Properties.ReasonString; s != "" {
				x.Errorf("got a reason string: %s", s)
			}
			a.send(0x30, "", P{}).want("DISCONNECT 82", "closed")
			if s := a.last.Properties.ReasonString; s != "" {
				x.Errorf("got a reason string: %s", s)
			}
		}},
		{"[MQTT-3.2.2-19] a CONNACK that fits", "5", func(x *ctx) {
			p := x.connect("a", clean, P{0x27, u32(20), 0x15, "method"}).want("CONNACK 0 8c")
			if p.last.FixedHeader.Remaining+2 > 20 {
				x.Errorf("got %d bytes", p.last.FixedHeader.Remaining+2)
			}
		}},
		{"[MQTT-3.1.2-29] Request Problem Information 0: no reason strings", "5", func(x *ctx) {
			for i, props := range []P{{0x17, 0}, {0x17, 1}, {}} {
				a := x.connect("a"+x.n(i), clean, props).want("CONNACK 0 00")
				a.send(0x32, "$x", id, P{}, text("m")).want("PUBACK 1 90")
				if s := a.last.Properties.ReasonString; (s == "") != (i == 0) {
					x.Errorf("%v: reason string %q", props, s)
				}
				a.send(0x82, id, P{0x26, "k", "v"}, "~/#/", 0).want("SUBACK 1: 8f")
				if p := a.last.Properties; i == 0 && (p.ReasonString != "" || len(p.User) > 0) {
					x.Errorf("SUBACK: got %q and %v", p.ReasonString, p.User)
				}
			}
		}},
		{"[MQTT-3.2.2-15] a packet larger than the server takes", "45", func(x *ctx) {
			x.dial("a").bytes([]byte{0x82, 0xff, 0xff, 0xff, 0x7f}).refused(0x95)
		}},
	})
}
