package spec

import "testing"

// breach is a packet that ends the connection: with DISCONNECT and code in 5, without a word in 3.1.1.
type breach struct {
	name     string
	versions string
	code     byte
	first    int
	parts    []any
}

func breaches(t *testing.T, list []breach) {
	var all []clause
	for _, b := range list {
		all = append(all, clause{b.name, b.versions, func(x *ctx) { x.dial("a").send(b.first, b.parts...).refused(b.code) }})
	}
	check(t, all)
}

type parts = []any

var id = u16(1)

// Fixed headers, chapter 2.
func TestFixedHeader(t *testing.T) {
	t.Parallel()
	breaches(t, []breach{
		{"[MQTT-2.1.2] packet type 0 is forbidden", "45", 0x81, 0x00, nil},
		{"[MQTT-2.1.2] packet type 15 is reserved in 3.1.1", "4", 0, 0xf0, nil},
		{"[MQTT-2.1.2] CONNACK comes from the server only", "45", 0x82, 0x20, parts{0, 0, P{}}},
		{"[MQTT-2.1.2] SUBACK comes from the server only", "45", 0x82, 0x90, parts{id, P{}, 0}},
		{"[MQTT-2.1.2] UNSUBACK comes from the server only", "45", 0x82, 0xb0, parts{id, P{}, 0}},
		{"[MQTT-2.1.2] PINGRESP comes from the server only", "45", 0x82, 0xd0, nil},
		{"[MQTT-2.1.3-1] flags of PUBACK", "45", 0x81, 0x41, parts{id}},
		{"[MQTT-2.1.3-1] flags of PUBREC", "45", 0x81, 0x52, parts{id}},
		{"[MQTT-3.6.1-1] flags of PUBREL", "45", 0x81, 0x60, parts{id}},
		{"[MQTT-3.6.1-1] flags of PUBREL, all of them", "45", 0x81, 0x6f, parts{id}},
		{"[MQTT-2.1.3-1] flags of PUBCOMP", "45", 0x81, 0x78, parts{id}},
		{"[MQTT-3.8.1-1] flags of SUBSCRIBE", "45", 0x81, 0x80, parts{id, P{}, "~", 0}},
		{"[MQTT-3.8.1-1] flags of SUBSCRIBE, others", "45", 0x81, 0x8a, parts{id, P{}, "~", 0}},
		{"[MQTT-3.10.1-1] flags of UNSUBSCRIBE", "45", 0x81, 0xa0, parts{id, P{}, "~"}},
		{"[MQTT-2.1.3-1] flags of PINGREQ", "45", 0x81, 0xc1, nil},
		{"[MQTT-3.14.1-1] flags of DISCONNECT", "45", 0x81, 0xe1, nil},
		{"[MQTT-3.15.1-1] flags of AUTH", "5", 0x81, 0xf1, parts{0x18, P{}}},
		{"[MQTT-2.1.4] PINGREQ with a body", "45", 0x81, 0xc0, parts{0}},
		{"[MQTT-2.1.4] PUBACK without its packet id", "45", 0x81, 0x40, parts{0}},
		{"[MQTT-2.1.4] PUBREC without its packet id", "45", 0x81, 0x50, nil},
		{"[MQTT-2.1.4] PUBREL without its packet id", "45", 0x81, 0x62, nil},
		{"[MQTT-2.1.4] PUBCOMP without its packet id", "45", 0x81, 0x70, parts{0}},
		{"[3.1.1:MQTT-3.4.1] PUBACK that goes on after its packet id", "4", 0, 0x40, parts{id, 0}},
		{"[3.1.1:MQTT-3.14.1] DISCONNECT with a body", "4", 0, 0xe0, parts{0}},
	})
	check(t, []clause{
		{"[MQTT-1.5.5-1] a length of five bytes", "45", func(x *ctx) {
			x.dial("a").bytes([]byte{0x30, 0x80, 0x80, 0x80, 0x80, 0x01}).refused(0x81)
		}},
		{"[MQTT-4.2.0-1] a packet in many pieces, and many packets in one", "45", func(x *ctx) {
			a := x.dial("a")
			for _, b := range x.packet(0x82, id, P{}, "~/+", 1) {
				a.bytes([]byte{b})
			}
			a.want("SUBACK 1: 01")
			a.bytes(append(x.packet(0x32, "~/t", u16(5), P{}, text("x")), 0xc0, 0, 0xc0, 0))
			var got []string
			for range 4 {
				pk, _ := a.Any()
				got = append(got, x.show(&pk))
			}
			for _, want := range []string{"PUBACK 5", "PUBLISH ~/t x q1", "PINGRESP"} {
				found := false
				for _, g := range got {
					found = found || g == want
				}
				if !found {
					x.Errorf("got %q, want %s in it", got, want)
				}
			}
		}},
	})
}

// Packet ids, 2.2.1.
func TestPacketID(t *testing.T) {
	t.Parallel()
	breaches(t, []breach{
		{"[MQTT-2.2.1-3] PUBLISH at QoS 1 with packet id 0", "45", 0x82, 0x32, parts{"~", u16(0), P{}}},
		{"[MQTT-2.2.1-3] PUBLISH at QoS 2 with packet id 0", "45", 0x82, 0x34, parts{"~", u16(0), P{}}},
		{"[MQTT-2.2.1-3] SUBSCRIBE with packet id 0", "45", 0x82, 0x82, parts{u16(0), P{}, "~", 0}},
		{"[MQTT-2.2.1-3] UNSUBSCRIBE with packet id 0", "45", 0x82, 0xa2, parts{u16(0), P{}, "~"}},
		{"[MQTT-2.2.1-5] PUBACK with packet id 0", "45", 0x82, 0x40, parts{u16(0)}},
		{"[MQTT-2.2.1-5] PUBREL with packet id 0", "45", 0x82, 0x62, parts{u16(0)}},
		{"[MQTT-2.2.1] PUBLISH that ends before its packet id", "45", 0x81, 0x32, parts{"~", 0}},
	})
	check(t, []clause{
		{"[MQTT-2.2.1-4] the server's packet ids are not 0 and not in use", "45", func(x *ctx) {
			sub, pub := x.dial("sub").sub("~", 1), x.dial("pub")
			seen := map[uint16]bool{0: true}
			for range 20 {
				pub.pub("~", "m")
				sub.want("PUBLISH ~ m q1")
				if seen[sub.last.PacketID] {
					x.Errorf("packet id %d is in use", sub.last.PacketID)
				}
				seen[sub.last.PacketID] = true
			}
		}},
		{"[MQTT-2.2.1-3] a client's packet ids have nothing to do with the server's", "45", func(x *ctx) {
			a := x.dial("a").sub("~", 1)
			x.dial("b").pub("~", "one")
			a.want("PUBLISH ~ one q1")
			used := u16(a.last.PacketID)
			a.send(0x82, used, P{}, "~other", 0).want("SUBACK " + x.n(int(used)) + ": 00")
			a.send(0x34, "~elsewhere", used, P{}).want("PUBREC " + x.n(int(used)))
			a.send(0x62, used).want("PUBCOMP " + x.n(int(used)))
			a.send(0xa2, used, P{}, "~other").want("UNSUBACK " + x.n(int(used)) + "{|: 00}")
			a.send(0x40, used).ping()
		}},
	})
}

// Strings, 1.5.4. What is wrong with one is wrong wherever it stands.
func TestUTF8(t *testing.T) {
	t.Parallel()
	bad := map[string]raw{
		"[MQTT-1.5.4-1] a byte that no UTF-8 has": {0, 3, 'a', 0xff, 'b'},
		"[MQTT-1.5.4-1] a sequence cut short":     {0, 2, 'a', 0xc3},
		"[MQTT-1.5.4-1] an overlong sequence":     {0, 2, 0xc0, 0xaf},
		"[MQTT-1.5.4-1] a surrogate, U+D800":      {0, 3, 0xed, 0xa0, 0x80},
		"[MQTT-1.5.4-1] a surrogate, U+DFFF":      {0, 3, 0xed, 0xbf, 0xbf},
		"[MQTT-1.5.4-1] beyond U+10FFFF":          {0, 4, 0xf4, 0x90, 0x80, 0x80},
		"[MQTT-1.5.4-2] U+0000":                   {0, 3, 'a', 0, 'b'},
		"[MQTT-1.5.4-2] U+0000 alone":             {0, 1, 0},
		"[MQTT-1.5.4] longer than its packet":     {0xff, 0xff, 'a'},
	}
	var list []breach
	for what, s := range bad {
		short := s[0] == 0xff
		list = append(list,
			breach{"[MQTT-3.3.2-1] topic name: " + what, "45", 0x81, 0x30, parts{s}},
			breach{"[MQTT-3.8.3-1] topic filter: " + what, "45", 0x81, 0x82, parts{id, P{}, s, 0}},
			breach{"[MQTT-3.8.3-1] second topic filter: " + what, "45", 0x81, 0x82, parts{id, P{}, "~", 0, s, 0}},
			breach{"[MQTT-3.10.3-1] filter to end: " + what, "45", 0x81, 0xa2, parts{id, P{}, s}},
		)
		if !short {
			list = append(list,
				breach{"[MQTT-3.3.2-13] response topic: " + what, "5", 0x81, 0x30, parts{"~", P{0x08, s}}},
				breach{"[MQTT-3.3.2-19] content type: " + what, "5", 0x81, 0x30, parts{"~", P{0x03, s}}},
				breach{"[MQTT-1.5.7-1] name of a user property: " + what, "5", 0x81, 0x30, parts{"~", P{0x26, s, "v"}}},
				breach{"[MQTT-1.5.7-1] value of a user property: " + what, "5", 0x81, 0x82, parts{id, P{0x26, "k", s}, "~", 0}},
				breach{"[MQTT-3.4.2] reason string: " + what, "5", 0x81, 0x40, parts{id, 0, P{0x1f, s}}},
			)
		}
	}
	breaches(t, list)
	check(t, []clause{
		{"[MQTT-1.5.4-3] U+FEFF is a character and stays where it is", "45", func(x *ctx) {
			a := x.dial("a").sub("~/\ufeffa", 0)
			a.send(0x30, "~/\ufeffa", P{}, text("x")).want("PUBLISH ~/\ufeffa x")
			a.send(0x30, "~/a", P{}, text("x")).ping()
		}},
		{"[MQTT-4.7.3-4] topics are not normalized", "45", func(x *ctx) {
			a := x.dial("a").sub("~/\u00e9", 0)
			a.send(0x30, "~/e\u0301", P{}, text("x")).send(0x30, "~/\u00c9", P{}, text("x")).ping()
			a.send(0x30, "~/\u00e9", P{}, text("x")).want("PUBLISH ~/\u00e9 x")
		}},
	})
}

// Properties, 2.2.2: which may be where, how often, and how large.
func TestProperties(t *testing.T) {
	t.Parallel()
	long := raw{0x80, 0x80, 0x80, 0x80, 0x01} // a variable byte integer of five bytes
	breaches(t, []breach{
		{"[MQTT-2.2.2-1] PUBLISH without the length of its properties", "5", 0x81, 0x30, parts{"~"}},
		{"[MQTT-2.2.2-1] SUBSCRIBE without the length of its properties", "5", 0x81, 0x82, parts{id}},
		{"[MQTT-1.5.5-1] length of properties in five bytes, PUBLISH", "5", 0x81, 0x30, parts{"~", long}},
		{"[MQTT-1.5.5-1] length of properties in five bytes, SUBSCRIBE", "5", 0x81, 0x82, parts{id, long, "~", 0}},
		{"[MQTT-1.5.5-1] length of properties in five bytes, UNSUBSCRIBE", "5", 0x81, 0xa2, parts{id, long, "~"}},
		{"[MQTT-1.5.5-1] length of properties in five bytes, PUBACK", "5", 0x81, 0x40, parts{id, 0, long}},
		{"[MQTT-1.5.5-1] subscription identifier in five bytes", "5", 0x81, 0x82, parts{id, P{0x0b, long}, "~", 0}},
		{"[MQTT-2.2.2.1] properties longer than PUBLISH", "5", 0x81, 0x30, parts{"~", 5, 0x01, 0}},
		{"[MQTT-2.2.2.1] properties longer than SUBSCRIBE", "5", 0x81, 0x82, parts{id, 100, "~", 0}},
		{"[MQTT-2.2.2.1] properties longer than DISCONNECT", "5", 0x81, 0xe0, parts{0, 9, 0x11, u32(0)}},
		{"[MQTT-2.2.2.1] a property that goes on after the properties", "5", 0x81, 0x30, parts{"~", 2, 0x02, u32(60)}},
		{"[MQTT-2.2.2.1] a string that goes on after the properties", "5", 0x81, 0x82, parts{id, 4, 0x26, "k", "v", "~", 0}},
		{"[MQTT-2.2.2.1] PUBACK that goes on after its properties", "5", 0x81, 0x40, parts{id, 0, P{}, 0}},
		{"[MQTT-2.2.2.1] DISCONNECT that goes on after its properties", "5", 0x81, 0xe0, parts{0, P{}, 0}},
		{"[MQTT-2.2.2.2] a property that does not exist", "5", 0x81, 0x30, parts{"~", P{0x7f, 0}}},
		{"[MQTT-2.2.2.2] property 0", "5", 0x81, 0x82, parts{id, P{0x00, 0}, "~", 0}},
		{"[MQTT-2.2.2.2] Session Expiry Interval in PUBLISH", "5", 0x81, 0x30, parts{"~", P{0x11, u32(1)}}},
		{"[MQTT-2.2.2.2] Reason String in PUBLISH", "5", 0x81, 0x30, parts{"~", P{0x1f, "x"}}},
		{"[MQTT-2.2.2.2] Will Delay Interval in PUBLISH", "5", 0x81, 0x30, parts{"~", P{0x18, u32(1)}}},
		{"[MQTT-2.2.2.2] Message Expiry Interval in SUBSCRIBE", "5", 0x81, 0x82, parts{id, P{0x02, u32(1)}, "~", 0}},
		{"[MQTT-2.2.2.2] Subscription Identifier in UNSUBSCRIBE", "5", 0x81, 0xa2, parts{id, P{0x0b, vi(1)}, "~"}},
		{"[MQTT-2.2.2.2] Content Type in PUBACK", "5", 0x81, 0x40, parts{id, 0, P{0x03, "x"}}},
		{"[MQTT-2.2.2.2] Receive Maximum in DISCONNECT", "5", 0x81, 0xe0, parts{0, P{0x21, u16(1)}}},
		{"[MQTT-2.2.2.2] Server Reference in DISCONNECT of a client", "5", 0x81, 0xe0, parts{0, P{0x1c, "x"}}},
		{"[MQTT-3.3.2.3.2] Payload Format Indicator twice", "5", 0x82, 0x30, parts{"~", P{0x01, 0, 0x01, 0}}},
		{"[MQTT-3.3.2.3.3] Message Expiry Interval twice", "5", 0x82, 0x30, parts{"~", P{0x02, u32(9), 0x02, u32(9)}}},
		{"[MQTT-3.3.2.3.4] Topic Alias twice", "5", 0x82, 0x30, parts{"~", P{0x23, u16(1), 0x23, u16(1)}}},
		{"[MQTT-3.3.2.3.5] Response Topic twice", "5", 0x82, 0x30, parts{"~", P{0x08, "~r", 0x08, "~r"}}},
		{"[MQTT-3.3.2.3.6] Correlation Data twice", "5", 0x82, 0x30, parts{"~", P{0x09, "c", 0x09, "c"}}},
		{"[MQTT-3.3.2.3.9] Content Type twice", "5", 0x82, 0x30, parts{"~", P{0x03, "c", 0x03, "c"}}},
		{"[MQTT-3.8.2.1.2] Subscription Identifier twice", "5", 0x82, 0x82, parts{id, P{0x0b, vi(1), 0x0b, vi(2)}, "~", 0}},
		{"[MQTT-3.8.2.1.2] Subscription Identifier 0", "5", 0x82, 0x82, parts{id, P{0x0b, vi(0)}, "~", 0}},
		{"[MQTT-3.4.2.2.2] Reason String twice", "5", 0x82, 0x40, parts{id, 0, P{0x1f, "a", 0x1f, "b"}}},
		{"[MQTT-3.14.2.2.2] Session Expiry Interval twice", "5", 0x82, 0xe0, parts{0, P{0x11, u32(0), 0x11, u32(0)}}},
		{"[MQTT-3.3.2.3.2] Payload Format Indicator 2", "5", 0x82, 0x30, parts{"~", P{0x01, 2}}},
		{"[MQTT-3.3.4-6] Subscription Identifier from a client", "5", 0x82, 0x30, parts{"~", P{0x0b, vi(1)}}},
	})
}

// Reason codes that a client may send.
func TestReasonCodes(t *testing.T) {
	t.Parallel()
	breaches(t, []breach{
		{"[MQTT-3.4.2-1] PUBACK with a code of another packet", "5", 0x82, 0x40, parts{id, 0x8e}},
		{"[MQTT-3.5.2-1] PUBREC with a code of another packet", "5", 0x82, 0x50, parts{id, 0x92}},
		{"[MQTT-3.6.2-1] PUBREL with a code of another packet", "5", 0x82, 0x62, parts{id, 0x80}},
		{"[MQTT-3.7.2-1] PUBCOMP with a code of another packet", "5", 0x82, 0x70, parts{id, 0x10}},
		{"[MQTT-3.14.2-1] DISCONNECT with a code of another packet", "5", 0x82, 0xe0, parts{0x18}},
		{"[MQTT-3.14.2-1] DISCONNECT with a code of the server's", "5", 0x82, 0xe0, parts{0x8e}},
	})
	check(t, []clause{
		{"[MQTT-3.4.2-1] acknowledgements of nothing, with codes that they may have", "5", func(x *ctx) {
			a := x.dial("a")
			for _, code := range []int{0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99} {
				a.send(0x40, id, code)
			}
			a.send(0x40, id, 0x80, P{0x1f, "why", 0x26, "k", "v", 0x26, "k", "v"})
			a.send(0x70, id, 0x92)
			a.ping()
		}},
	})
}
