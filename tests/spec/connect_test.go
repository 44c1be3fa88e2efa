package spec

import (
	"strings"
	"testing"
)

// badConnect is a CONNECT that is refused: with CONNACK and code in 5; 3.1.1 has a return code for some, else 0 here.
type badConnect struct {
	name     string
	versions string
	code     byte
	v3       byte
	first    int
	parts    []any
}

// level is the test's version in a packet, head CONNECT up to its properties.
type (
	level struct{}
	head  struct{ flags int }
)

func (x *ctx) connectParts(list []any) (all []any) {
	for _, p := range list {
		switch p := p.(type) {
		case level:
			all = append(all, int(x.v))
		case head:
			all = append(all, "MQTT", int(x.v), p.flags, u16(60))
		default:
			all = append(all, p)
		}
	}
	return all
}

func TestConnectRefused(t *testing.T) {
	t.Parallel()
	bad := raw{0, 2, 'a', 0xff}
	var all []clause
	for _, b := range []badConnect{
		{"[MQTT-2.1.3-1] flags of CONNECT", "45", 0x81, 0, 0x12, parts{head{clean}, P{}, "~.a"}},
		{"[MQTT-3.1.2-1] another protocol name", "45", 0x84, 0, 0x10, parts{"MQTX", level{}, clean, u16(60), P{}, "~.a"}},
		{"[MQTT-3.1.2-1] a protocol name in small letters", "45", 0x84, 0, 0x10, parts{"mqtt", level{}, clean, u16(60), P{}, "~.a"}},
		{"[MQTT-3.1.2-3] reserved connect flag", "45", 0x81, 0, 0x10, parts{head{clean | 1}, P{}, "~.a"}},
		{"[MQTT-3.1.2-9] Will Flag without a will", "45", 0x81, 0, 0x10, parts{head{clean | willFlag}, P{}, "~.a"}},
		{"[MQTT-3.1.2-11] Will QoS without Will Flag", "45", 0x81, 0, 0x10, parts{head{clean | willQoS1}, P{}, "~.a"}},
		{"[MQTT-3.1.2-12] Will QoS 3", "45", 0x81, 0, 0x10,
			parts{head{clean | willFlag | willQoS1 | willQoS2}, P{}, "~.a", P{}, "~/w", "x"}},
		{"[MQTT-3.1.2-13] Will Retain without Will Flag", "45", 0x81, 0, 0x10, parts{head{clean | willKeep}, P{}, "~.a"}},
		{"[MQTT-3.1.2-16] User Name without its flag", "45", 0x81, 0, 0x10, parts{head{clean}, P{}, "~.a", "user"}},
		{"[MQTT-3.1.2-17] User Name Flag without a user name", "45", 0x81, 0, 0x10, parts{head{clean | username}, P{}, "~.a"}},
		{"[MQTT-3.1.2-18] Password without its flag", "45", 0x81, 0, 0x10, parts{head{clean | username}, P{}, "~.a", "user", "pass"}},
		{"[MQTT-3.1.2-19] Password Flag without a password", "45", 0x81, 0, 0x10, parts{head{clean | username | password}, P{}, "~.a", "user"}},
		{"[3.1.1:MQTT-3.1.2-22] Password Flag without User Name Flag", "4", 0, 4, 0x10, parts{head{clean | password}, P{}, "~.a", "pass"}},
		{"[MQTT-3.1.3-1] nothing after the fields that the flags announce", "45", 0x81, 0, 0x10, parts{head{clean}, P{}, "~.a", 0}},
		{"[MQTT-3.1.3-3] no client id", "45", 0x81, 0, 0x10, parts{head{clean}, P{}}},
		{"[MQTT-3.1.3-4] client id in no UTF-8", "45", 0x81, 0, 0x10, parts{head{clean}, P{}, bad}},
		{"[MQTT-1.5.4-2] client id with U+0000", "45", 0x81, 0, 0x10, parts{head{clean}, P{}, "~.a\x00b"}},
		{"[MQTT-3.1.3-11] will topic in no UTF-8", "45", 0x81, 0, 0x10, parts{head{clean | willFlag}, P{}, "~.a", P{}, bad, "x"}},
		{"[MQTT-3.1.3-12] user name in no UTF-8", "45", 0x81, 0, 0x10, parts{head{clean | username}, P{}, "~.a", bad}},
		{"[MQTT-3.1.3-5 of 3.1] no client id", "4", 0, 2, 0x10, parts{"MQIsdp", 3, clean, u16(60), ""}},
		{"[MQTT-1.5.4] a control character in the will topic", "45", 0x81, 0, 0x10, parts{head{clean | willFlag}, P{}, "~.a", P{}, "~/\x1f", "x"}},
		{"[3.1.1:MQTT-3.1.3-8] no client id, and Clean Session 0", "4", 0, 2, 0x10, parts{head{0}, P{}, ""}},
		{"[MQTT-4.7.1-1] will topic with a wildcard", "45", 0x90, 5, 0x10, parts{head{clean | willFlag}, P{}, "~.a", P{}, "~/#", "x"}},
		{"[MQTT-4.7.3-1] will topic without a character", "45", 0x90, 5, 0x10, parts{head{clean | willFlag}, P{}, "~.a", P{}, "", "x"}},
		{"[MQTT-4.12.0-1] an authentication method that is not supported", "5", 0x8c, 0, 0x10, parts{head{clean}, P{0x15, "SCRAM-SHA-1"}, "~.a"}},
		{"[MQTT-4.12.0-1] an authentication method with data", "5", 0x8c, 0, 0x10, parts{head{clean}, P{0x15, "K5", 0x16, "data"}, "~.a"}},
		{"[MQTT-3.1.2.11.10] Authentication Data without a method", "5", 0x82, 0, 0x10, parts{head{clean}, P{0x16, "data"}, "~.a"}},
		{"[MQTT-3.1.2.11.3] Receive Maximum 0", "5", 0x82, 0, 0x10, parts{head{clean}, P{0x21, u16(0)}, "~.a"}},
		{"[MQTT-3.1.2.11.4] Maximum Packet Size 0", "5", 0x82, 0, 0x10, parts{head{clean}, P{0x27, u32(0)}, "~.a"}},
		{"[MQTT-3.1.2.11.6] Request Response Information 2", "5", 0x82, 0, 0x10, parts{head{clean}, P{0x19, 2}, "~.a"}},
		{"[MQTT-3.1.2.11.7] Request Problem Information 2", "5", 0x82, 0, 0x10, parts{head{clean}, P{0x17, 2}, "~.a"}},
		{"[MQTT-3.1.2.11.2] Session Expiry Interval twice", "5", 0x82, 0, 0x10, parts{head{clean}, P{0x11, u32(1), 0x11, u32(1)}, "~.a"}},
		{"[MQTT-3.1.2.11.3] Receive Maximum twice", "5", 0x82, 0, 0x10, parts{head{clean}, P{0x21, u16(1), 0x21, u16(1)}, "~.a"}},
		{"[MQTT-3.1.2.11.4] Maximum Packet Size twice", "5", 0x82, 0, 0x10, parts{head{clean}, P{0x27, u32(99), 0x27, u32(99)}, "~.a"}},
		{"[MQTT-3.1.2.11.5] Topic Alias Maximum twice", "5", 0x82, 0, 0x10, parts{head{clean}, P{0x22, u16(1), 0x22, u16(1)}, "~.a"}},
		{"[MQTT-3.1.2.11.6] Request Response Information twice", "5", 0x82, 0, 0x10, parts{head{clean}, P{0x19, 0, 0x19, 0}, "~.a"}},
		{"[MQTT-3.1.2.11.7] Request Problem Information twice", "5", 0x82, 0, 0x10, parts{head{clean}, P{0x17, 1, 0x17, 1}, "~.a"}},
		{"[MQTT-3.1.2.11.9] Authentication Method twice", "5", 0x82, 0, 0x10, parts{head{clean}, P{0x15, "a", 0x15, "a"}, "~.a"}},
		{"[MQTT-2.2.2.2] a property of PUBLISH", "5", 0x81, 0, 0x10, parts{head{clean}, P{0x23, u16(1)}, "~.a"}},
		{"[MQTT-2.2.2.2] a property of CONNACK", "5", 0x81, 0, 0x10, parts{head{clean}, P{0x12, "id"}, "~.a"}},
		{"[MQTT-2.2.2.2] a property of the will", "5", 0x81, 0, 0x10, parts{head{clean}, P{0x18, u32(1)}, "~.a"}},
		{"[MQTT-2.2.2.2] in the will, a property of CONNECT", "5", 0x81, 0, 0x10,
			parts{head{clean | willFlag}, P{}, "~.a", P{0x11, u32(1)}, "~/w", "x"}},
		{"[MQTT-3.1.3.2.2] Will Delay Interval twice", "5", 0x82, 0, 0x10,
			parts{head{clean | willFlag}, P{}, "~.a", P{0x18, u32(1), 0x18, u32(1)}, "~/w", "x"}},
		{"[MQTT-3.1.3.2.3] Payload Format Indicator 2", "5", 0x82, 0, 0x10,
			parts{head{clean | willFlag}, P{}, "~.a", P{0x01, 2}, "~/w", "x"}},
		{"[MQTT-1.5.5-1] length of properties in five bytes", "5", 0x81, 0, 0x10,
			parts{head{clean}, raw{0x80, 0x80, 0x80, 0x80, 1}, "~.a"}},
		{"[MQTT-2.2.2.1] properties longer than CONNECT", "5", 0x81, 0, 0x10, parts{head{clean}, 99, "~.a"}},
	} {
		all = append(all, clause{b.name, b.versions, func(x *ctx) {
			p := x.open().send(b.first, x.connectParts(b.parts)...)
			code := b.v3
			if x.v == 5 {
				code = b.code
			}
			if code != 0 {
				p.want("CONNACK 0 " + hex(code))
			}
			p.want("closed") // [MQTT-3.2.2-7]
		}})
	}
	check(t, all)
	check(t, []clause{
		{"[MQTT-3.1.0-1] the first packet is not CONNECT", "45", func(x *ctx) {
			for _, b := range [][]byte{x.packet(0x30, "~", P{}), x.packet(0xc0), x.packet(0x82, id, P{}, "~", 0), x.packet(0xe0), {0xf0, 0}, {0, 0}} {
				x.open().bytes(b).want("closed") // [MQTT-3.14.0-1]: no DISCONNECT before CONNACK
			}
		}},
		{"[MQTT-3.1.0-2] a second CONNECT", "45", func(x *ctx) {
			x.dial("a").send(0x10, "MQTT", int(x.v), clean, u16(60), P{}, "~.a").refused(0x82)
		}},
		{"[MQTT-3.1.2-2] another version", "4", func(x *ctx) {
			for _, v := range []int{0, 1, 2, 3, 6, 0x84, 255} {
				x.open().send(0x10, "MQTT", v, clean, u16(60), 0, "~.a").want("CONNACK 0 01", "closed")
			}
		}},
		{"[MQTT-3.1.4-6] after a refused CONNECT nothing is handled", "45", func(x *ctx) {
			sub := x.dial("sub").sub("~", 0)
			p := x.open()
			p.bytes(append(x.packet(0x10, "MQTT", int(x.v), clean|1, u16(60), P{}, "~.a"), x.packet(0x30, "~", P{}, text("x"))...))
			p.want("{closed|CONNACK 0 81}")
			sub.none(x.dial("b"))
		}},
		{"[MQTT-3.1.0-1] CONNECT that announces more than it may have", "45", func(x *ctx) {
			x.open().bytes([]byte{0x10, 0xff, 0xff, 0xff, 0x7f}).want("closed")
		}},
	})
}

func hex(b byte) string { const d = "0123456789abcdef"; return string([]byte{d[b>>4], d[b&15]}) }

func TestConnect(t *testing.T) {
	t.Parallel()
	check(t, []clause{
		{"[3.1:3.1] a flag that MQTT 3.1 does not use, DUP of PUBREL, and no Session Present", "4", func(x *ctx) {
			for range 2 {
				x.open().send(0x10, "MQIsdp", 3, 1, u16(60), "~.a").want("CONNACK 0 00").send(0x6a, u16(9)).want("PUBCOMP 9").bye()
			}
		}},
		{"[MQTT-3.1.4-5] CONNACK with 0x00", "45", func(x *ctx) {
			p := x.connect("a", clean, P{}).want("CONNACK 0 00") // [MQTT-3.2.2-1]
			p.ping()                                             // [MQTT-3.2.0-2]: and no second one
		}},
		{"[MQTT-3.1.3-5] client ids of 1 to 23 letters and digits", "45", func(x *ctx) {
			const all = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			for _, id := range []string{all[x.v : x.v+23], all[39-x.v : 62-x.v], all[x.v : x.v+1]} { // not those of the other version
				x.open().send(0x10, "MQTT", int(x.v), clean, u16(60), P{}, id).want("CONNACK 0 00").bye()
			}
		}},
		{"[MQTT-3.1.3-6] no client id: one is assigned", "45", func(x *ctx) {
			seen := map[string]bool{"": true}
			for range 3 {
				p := x.open().send(0x10, "MQTT", int(x.v), clean, u16(60), P{}, "").want("CONNACK 0 00")
				got := p.last.Properties.AssignedClientID // [MQTT-3.1.3-7] [MQTT-3.2.2-16]
				if x.v == 5 && seen[got] {
					x.Errorf("client id %q is assigned, and not new", got)
				}
				seen[got] = true
			}
		}},
		{"[MQTT-3.1.3-7] an assigned client id is one like others", "5", func(x *ctx) {
			p := x.open().send(0x10, "MQTT", 5, clean, u16(60), P{0x11, u32(60)}, "").want("CONNACK 0 00")
			id := p.last.Properties.AssignedClientID
			p.bye()
			x.open().send(0x10, "MQTT", 5, 0, u16(60), P{}, id).want("CONNACK 1 00")
		}},
		{"[MQTT-3.2.2-16] no Assigned Client Identifier for a client that has one", "5", func(x *ctx) {
			if p := x.dial("a"); p.last.Properties.AssignedClientID != "" {
				x.Errorf("got %q", p.last.Properties.AssignedClientID)
			}
		}},
		{"[MQTT-3.1.2-19] a password without a byte, and in 5 without a user name", "45", func(x *ctx) {
			x.connect("a", clean|username|password, P{}, "~", "").want("CONNACK 0 00")
			if x.v == 5 {
				x.connect("b", clean|password, P{}, "secret").want("CONNACK 0 00")
			}
		}},
		{"[MQTT-3.1.4-3] taking over: the old connection is told 0x8E and closed", "45", func(x *ctx) {
			old := x.dial("a")
			x.dial("a").ping()
			old.refused(0x8e)
		}},
		{"[MQTT-3.1.4-3] taking over across versions", "45", func(x *ctx) {
			old := x.dial("a")
			other := &ctx{T: x.T, v: 9 - x.v, tag: x.tag}
			other.dial("a").ping()
			old.refused(0x8e)
		}},
		{"[MQTT-3.1.2-4] Clean Start discards the session", "45", func(x *ctx) {
			x.session("a", 0).sub("~", 1).bye()
			p := x.connect("a", clean, P{}).want("CONNACK 0 00") // [MQTT-3.2.2-2]
			x.dial("b").pub("~", "m")
			p.none(x.dial("c"))
		}},
		{"[MQTT-3.1.2-4] what Clean Start discards does not come back", "45", func(x *ctx) {
			x.session("a", 0).sub("~", 1).bye()
			x.dial("b").pub("~", "m")
			x.connect("a", clean, P{}).want("CONNACK 0 00").bye()
			x.session("a", 0).none(x.dial("b"))
		}},
		{"[MQTT-3.1.2-5] without Clean Start the session goes on", "45", func(x *ctx) {
			x.session("a", 0).sub("~", 1).bye()
			x.dial("b").pub("~", "m")
			x.session("a", 1).want("PUBLISH ~ m q1") // [MQTT-3.2.2-3] [MQTT-3.1.2-23] [MQTT-4.5.0-1]
		}},
		{"[MQTT-3.1.2-6] without a session a new one", "45", func(x *ctx) { x.session("a", 0) }},
		{"[MQTT-3.1.2-6] a session that ends with its connection has gone", "45", func(x *ctx) {
			x.dial("a").sub("~", 1).bye()
			x.session("a", 0)
		}},
		{"[MQTT-3.1.2-5] a session outlives a connection that breaks off", "45", func(x *ctx) {
			x.session("a", 0).sub("~", 1).Kill()
			x.session("a", 1)
		}},
		{"[MQTT-4.1.0-2] Session Expiry 0 ends the session with its connection, though it was resumed", "5", func(x *ctx) {
			x.session("a", 0).sub("~", 1).bye()
			x.connect("a", 0, P{}).want("CONNACK 1 00").bye()
			x.session("a", 0)
		}},
		{"[MQTT-3.1.2.11.2] Session Expiry 0xFFFFFFFF does not expire", "5", func(x *ctx) {
			x.connect("a", 0, P{0x11, u32(0xffffffff)}).want("CONNACK 0 00").bye()
			x.session("a", 1)
		}},
		{"[MQTT-3.1.2-28] no Response Information for who did not ask", "5", func(x *ctx) {
			for _, props := range []P{{}, {0x19, 0}} {
				if p := x.connect("a", clean, props).want("CONNACK 0 00"); p.last.Properties.ResponseInfo != "" {
					x.Errorf("got %q", p.last.Properties.ResponseInfo)
				}
			}
		}},
		{"[MQTT-4.12.0-6] no Authentication Method in CONNACK", "5", func(x *ctx) {
			if p := x.dial("a"); p.last.Properties.AuthenticationMethod != "" {
				x.Errorf("got %q", p.last.Properties.AuthenticationMethod)
			}
		}},
		{"[MQTT-3.1.2.11.8] user properties in CONNECT", "5", func(x *ctx) {
			x.connect("a", clean, P{0x26, "k", "v", 0x26, "k", "v", 0x26, "", ""}).want("CONNACK 0 00").ping()
		}},
		{"[MQTT-3.1.4-6] what follows CONNECT at once is handled after it", "45", func(x *ctx) {
			p := x.open()
			b := x.packet(0x10, "MQTT", int(x.v), clean, u16(60), P{}, "~.a")
			p.bytes(append(append(b, x.packet(0x82, id, P{}, "~", 0)...), 0xc0, 0)).want("CONNACK 0 00", "SUBACK 1: 00", "PINGRESP")
		}},
		{"[MQTT-4.12.0-7] AUTH from who named no method", "5", func(x *ctx) {
			x.dial("a").send(0xf0, 0x18, P{0x15, "m"}).refused(0x82)
			x.dial("b").send(0xf0, 0x19, P{}).refused(0x82)
			x.dial("c").send(0xf0).refused(0x82)
		}},
		{"[MQTT-3.1.2.11.5] the server announces how many aliases it takes", "5", func(x *ctx) {
			if p := x.dial("a"); p.last.Properties.TopicAliasMaximum == 0 || p.last.Properties.ReceiveMaximum == 0 {
				x.Errorf("got Topic Alias Maximum %d, Receive Maximum %d", p.last.Properties.TopicAliasMaximum, p.last.Properties.ReceiveMaximum)
			}
		}},
		{"[MQTT-3.1.3-2] a client id with characters of all kinds", "45", func(x *ctx) {
			long := strings.Repeat("é", 32)
			p := x.open().send(0x10, "MQTT", int(x.v), clean|username, u16(60), P{}, "~ /+#"+long, "~").want("CONNACK 0 00")
			p.ping()
		}},
	})
}
