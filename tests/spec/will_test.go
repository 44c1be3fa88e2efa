package spec

import "testing"

// will connects with a will to ~/w, whose properties stand in front of it.
func (x *ctx) will(name string, flags int, props, willProps P) *peer {
	x.Helper()
	return x.connect(name, flags|willFlag, props, willProps, "~/w", "gone")
}

func TestWill(t *testing.T) {
	t.Parallel()
	watch := func(x *ctx) *peer { return x.dial("watch").sub("~/w", 2) }
	check(t, []clause{
		{"[MQTT-3.1.2-8] a connection that breaks off leaves the will", "45", func(x *ctx) {
			w := watch(x)
			x.will("a", clean, P{}, P{}).want("CONNACK 0 00").Kill()
			w.want("PUBLISH ~/w gone")
		}},
		{"[MQTT-3.1.2-8] one that is closed for a breach of MQTT, too", "45", func(x *ctx) {
			w := watch(x)
			x.will("a", clean, P{}, P{}).want("CONNACK 0 00").send(0x30, "~/#", P{}).refused(0x82)
			w.want("PUBLISH ~/w gone")
		}},
		{"[MQTT-3.1.2-8] and one that sends a second CONNECT, once", "45", func(x *ctx) {
			w := watch(x)
			a := x.will("a", clean, P{}, P{}).want("CONNACK 0 00")
			a.send(0x10, "MQTT", int(x.v), clean, u16(60), P{}, "~.a").refused(0x82)
			w.want("PUBLISH ~/w gone").none(x.dial("b"))
		}},
		{"[MQTT-3.1.4-3] and one that is taken over", "45", func(x *ctx) {
			w := watch(x)
			a := x.will("a", clean, P{}, P{}).want("CONNACK 0 00")
			x.dial("a")
			a.refused(0x8e)
			w.want("PUBLISH ~/w gone")
		}},
		{"[MQTT-3.14.4-3] DISCONNECT discards it", "45", func(x *ctx) { // [MQTT-3.1.2-10]
			w := watch(x)
			x.will("a", clean, P{}, P{}).want("CONNACK 0 00").bye()
			w.none(x.dial("b"))
		}},
		{"[MQTT-3.14.4-3] DISCONNECT with code 0 and properties, too", "5", func(x *ctx) {
			w := watch(x)
			x.will("a", clean, P{}, P{}).want("CONNACK 0 00").send(0xe0, 0).want("closed")
			x.will("c", clean, P{}, P{}).want("CONNACK 0 00").send(0xe0, 0, P{0x1f, "bye"}).want("closed")
			w.none(x.dial("b"))
		}},
		{"[MQTT-3.14.4-3] DISCONNECT with any other code does not", "5", func(x *ctx) {
			w := watch(x)
			for i, code := range []int{0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99} {
				a := x.will("a"+x.n(i), clean, P{}, P{}).want("CONNACK 0 00")
				if i%2 == 0 {
					a.send(0xe0, code)
				} else {
					a.send(0xe0, code, P{0x26, "k", "v"})
				}
				a.want("closed")
				w.want("PUBLISH ~/w gone")
			}
		}},
		{"[MQTT-3.1.2-9] at its QoS", "45", func(x *ctx) {
			w := watch(x)
			x.will("a", clean|willQoS1, P{}, P{}).want("CONNACK 0 00").Kill()
			w.want("PUBLISH ~/w gone q1").ack()
			x.will("a", clean|willQoS2, P{}, P{}).want("CONNACK 0 00").Kill()
			w.want("PUBLISH ~/w gone q2")
		}},
		{"[MQTT-3.1.2-15] a will with Will Retain is retained", "45", func(x *ctx) {
			w := watch(x)
			x.will("a", clean|willKeep, P{}, P{}).want("CONNACK 0 00").Kill()
			w.want("PUBLISH ~/w gone")
			x.dial("b").sub("~/w", 0).want("PUBLISH ~/w gone retain")
		}},
		{"[MQTT-3.1.2-14] one without is not", "45", func(x *ctx) {
			w := watch(x)
			x.will("a", clean, P{}, P{}).want("CONNACK 0 00").Kill()
			w.want("PUBLISH ~/w gone")
			x.dial("b").sub("~/w", 0).ping()
		}},
		{"[MQTT-3.1.3-1] a will without payload", "45", func(x *ctx) {
			w := watch(x)
			x.connect("a", clean|willFlag, P{}, P{}, "~/w", "").want("CONNACK 0 00").Kill()
			w.want("PUBLISH ~/w ")
		}},
		{"[MQTT-3.1.3.2] with its properties", "5", func(x *ctx) { // [MQTT-3.1.3-10]
			w := watch(x)
			x.will("a", clean, P{}, P{0x01, 1, 0x02, u32(500), 0x03, "t", 0x08, "~/r", 0x09, "c", 0x26, "b", "1", 0x26, "a", "2"}).want("CONNACK 0 00").Kill()
			w.want("PUBLISH ~/w gone format=1 type=t response=~/r correlation=63 b=1 a=2")
			if left := w.last.Properties.MessageExpiryInterval; left == 0 || left > 500 {
				x.Errorf("expiry: got %d of 500", left)
			}
		}},
		{"[MQTT-3.1.2-10] a new connection has a will of its own, or none", "45", func(x *ctx) {
			w := watch(x)
			a := x.will("a", 0, P{0x11, u32(60)}, P{0x18, u32(60)}).want("CONNACK 0 00")
			if x.v == 4 {
				a.bye()
			} else {
				a.Kill()
			}
			a = x.session("a", 1)
			a.Kill()
			x.session("a", 1)
			w.none(x.dial("b"))
		}},
		{"[MQTT-3.1.3-9] no will where the client is back before Will Delay Interval", "5", func(x *ctx) {
			w := watch(x)
			x.will("a", 0, P{0x11, u32(600)}, P{0x18, u32(3)}).want("CONNACK 0 00").Kill()
			x.session("a", 1)
			// the will of another, which is due after the first would have been
			x.will("b", 0, P{0x11, u32(600)}, P{0x18, u32(3), 0x26, "of", "b"}).want("CONNACK 0 00").Kill()
			w.want("PUBLISH ~/w gone of=b")
		}},
		{"[MQTT-3.1.2-8] the will after Will Delay Interval, the session going on", "5", func(x *ctx) {
			w := watch(x)
			x.will("a", 0, P{0x11, u32(600)}, P{0x18, u32(3)}).want("CONNACK 0 00").Kill()
			w.none(x.dial("b")).want("PUBLISH ~/w gone")
			x.session("a", 1)
		}},
		{"[MQTT-3.1.2-8] the will with the end of the session, if that is sooner", "5", func(x *ctx) { // [MQTT-4.1.0-2]
			w := watch(x)
			x.will("a", 0, P{0x11, u32(3)}, P{0x18, u32(1000)}).want("CONNACK 0 00").Kill()
			w.none(x.dial("b")).want("PUBLISH ~/w gone")
		}},
		{"[MQTT-3.1.3.2.2] a session that ends at once leaves its will at once", "5", func(x *ctx) {
			w := watch(x)
			x.will("a", clean, P{}, P{0x18, u32(1000)}).want("CONNACK 0 00").Kill()
			w.want("PUBLISH ~/w gone")
		}},
		{"[MQTT-3.1.3.2.2] Clean Start ends the session, and the delay", "5", func(x *ctx) {
			w := watch(x)
			x.will("a", 0, P{0x11, u32(600)}, P{0x18, u32(600)}).want("CONNACK 0 00").Kill()
			x.dial("a")
			w.want("PUBLISH ~/w gone")
		}},
		{"[MQTT-3.1.3-9] taken over before Will Delay Interval: no will", "5", func(x *ctx) {
			w := watch(x)
			a := x.will("a", 0, P{0x11, u32(600)}, P{0x18, u32(600)}).want("CONNACK 0 00")
			x.session("a", 1)
			a.refused(0x8e)
			w.none(x.dial("b"))
		}},
		{"[MQTT-3.14.2.2.2] DISCONNECT that shortens the session shortens the delay", "5", func(x *ctx) {
			w := watch(x)
			x.will("a", 0, P{0x11, u32(600)}, P{0x18, u32(600)}).want("CONNACK 0 00").send(0xe0, 4, P{0x11, u32(0)}).want("closed")
			w.want("PUBLISH ~/w gone")
		}},
	})
}

func TestDisconnect(t *testing.T) {
	t.Parallel()
	check(t, []clause{
		{"[MQTT-3.14.4-2] after DISCONNECT the connection is closed", "45", func(x *ctx) { x.dial("a").bye() }},
		{"[MQTT-3.14.4-1] what follows DISCONNECT is not handled", "45", func(x *ctx) {
			w, a := x.dial("w").sub("~", 0), x.dial("a")
			a.bytes(append([]byte{0xe0, 0}, x.packet(0x30, "~", P{}, text("late"))...)).want("closed")
			w.none(x.dial("b"))
		}},
		{"[MQTT-3.14.4-1] what precedes DISCONNECT is", "45", func(x *ctx) {
			w, a := x.dial("w").sub("~", 1), x.dial("a")
			a.bytes(append(x.packet(0x32, "~", id, P{}, text("m")), 0xe0, 0)).want("PUBACK 1", "closed")
			w.want("PUBLISH ~ m q1")
		}},
		{"[MQTT-3.14.2.2.2] Session Expiry raised from 0", "5", func(x *ctx) {
			x.dial("a").send(0xe0, 0, P{0x11, u32(10)}).refused(0x82)
			x.session("a", 0)
		}},
		{"[MQTT-3.14.2.2.2] Session Expiry lowered to 0 ends the session", "5", func(x *ctx) {
			x.session("a", 0).send(0xe0, 0, P{0x11, u32(0)}).want("closed")
			x.session("a", 0)
		}},
		{"[MQTT-3.14.2.2.2] Session Expiry changed, or not", "5", func(x *ctx) {
			x.session("a", 0).send(0xe0, 0, P{0x11, u32(60)}).want("closed")
			x.session("a", 1).send(0xe0, 0, P{}).want("closed")
			x.session("a", 1)
		}},
		{"[MQTT-3.14.2.1] DISCONNECT with a reason string and user properties", "5", func(x *ctx) {
			x.dial("a").send(0xe0, 0x80, P{0x1f, "why", 0x26, "k", "v", 0x26, "k", "v"}).want("closed")
		}},
		{"[MQTT-3.12.4-1] PINGRESP for each PINGREQ", "45", func(x *ctx) { x.dial("a").ping().ping() }},
	})
}

func TestKeepAlive(t *testing.T) {
	t.Parallel()
	alive := func(x *ctx, seconds int) *peer {
		return x.open().send(0x10, "MQTT", int(x.v), clean|willFlag, u16(seconds), P{}, "~.a", P{}, "~/w", "gone").want("CONNACK 0 00")
	}
	check(t, []clause{
		{"[MQTT-3.1.2-22] silence for one and a half times Keep Alive", "45", func(x *ctx) {
			w := x.dial("w").sub("~/w", 0)
			alive(x, 1).refused(0x8d)
			w.want("PUBLISH ~/w gone") // as if the network had failed
		}},
		{"[MQTT-3.1.2-22] silence that lasts less does no harm", "45", func(x *ctx) {
			a := alive(x, 3)
			clock := x.open().send(0x10, "MQTT", int(x.v), clean, u16(1), P{}, "~.clock").want("CONNACK 0 00")
			clock.refused(0x8d) // 1.5 s
			a.ping()
		}},
		{"[MQTT-3.1.2-22] any packet counts", "45", func(x *ctx) {
			a := alive(x, 2)
			for range 2 { // 2 × 1.5 s together are the 3 s that a may be silent
				clock := x.open().send(0x10, "MQTT", int(x.v), clean, u16(1), P{}, "~.clock").want("CONNACK 0 00")
				clock.refused(0x8d)
				a.send(0x40, u16(9))
			}
			a.ping()
		}},
		{"[MQTT-3.1.2-22] Keep Alive 0: none", "45", func(x *ctx) {
			a, other := alive(x, 0), x.open()
			other.send(0x10, "MQTT", int(x.v), clean, u16(1), P{}, "~.b").want("CONNACK 0 00").refused(0x8d)
			a.ping()
		}},
		{"[MQTT-3.2.2-21] a Keep Alive beyond the server's is changed in CONNACK", "5", func(x *ctx) { // -22
			p := alive(x, 60)
			if p.last.Properties.ServerKeepAliveFlag {
				x.Errorf("60 was changed into %d", p.last.Properties.ServerKeepAlive)
			}
			p.bye()
			if p = alive(x, 65535); !p.last.Properties.ServerKeepAliveFlag || p.last.Properties.ServerKeepAlive == 0 {
				x.Errorf("65535 was not changed")
			}
		}},
	})
}
