package link

import (
	"strings"
	"testing"
	"unicode/utf8"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// What the checks let pass mochi's decoders take, and do not panic over.
func FuzzCheck(f *testing.F) {
	for _, seed := range [][]byte{
		{0x82, 0, 1, 0, 0, 1, 'a', 0},
		{0x82, 0, 1, 2, 0x0b, 1, 0, 1, 'a', 1, 0, 1, 'b', 2},
		{0xa2, 0, 1, 0, 0, 1, 'a'},
		{0x40, 0, 1, 0x10, 4, 0x1f, 0, 1, 'x'},
		{0x62, 0, 1}, {0xe0}, {0xe0, 4}, {0xe0, 0, 5, 0x11, 0, 0, 0, 1}, {0xc0},
		{0x10, 0, 4, 'M', 'Q', 'T', 'T', 5, 2, 0, 60, 0, 0, 0},
		{0x10, 0, 4, 'M', 'Q', 'T', 'T', 4, 0xf6, 0, 60, 0, 1, 'a', 0, 1, 'w', 0, 0, 0, 1, 'u', 0, 1, 'p'},
		{0x10, 0, 4, 'M', 'Q', 'T', 'T', 5, 6, 0, 60, 3, 0x21, 0, 9, 0, 1, 'a', 5, 0x18, 0, 0, 0, 1, 0, 1, 'w', 0, 0},
	} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, v5 bool) {
		if len(b) == 0 {
			return
		}
		first, body := b[0], b[1:]
		pk := packets.Packet{ProtocolVersion: 4}
		if v5 {
			pk.ProtocolVersion = 5
		}
		if err := pk.FixedHeader.Decode(first); err != nil {
			return
		}
		pk.FixedHeader.Remaining = len(body)
		var err error
		if first>>4 == packets.Connect {
			if _, code := CheckConnect(first, body); code == packets.CodeSuccess {
				err = pk.ConnectDecode(body)
			}
		} else if first>>4 != packets.Publish && checkFrame(first, body, v5) == nil {
			switch first >> 4 {
			case packets.Subscribe:
				err = pk.SubscribeDecode(body)
			case packets.Unsubscribe:
				err = pk.UnsubscribeDecode(body)
			case packets.Disconnect:
				err = pk.DisconnectDecode(body)
			case packets.Puback, packets.Pubrec, packets.Pubrel, packets.Pubcomp:
				err = pk.PubackDecode(body)
			}
		}
		if err != nil {
			t.Errorf("% x (5: %v) passed the check, and mochi says %v", b, v5, err)
		}
	})
}

// Reason strings stay within the client's Maximum Packet Size and stay UTF-8 [MQTT-3.4.2-2] [MQTT-1.5.4-1].
func TestFitting(t *testing.T) {
	c := &Conn{Client: &mqtt.Client{}, V5: true}
	long := "x" + strings.Repeat("é", 200)
	for limit := uint32(0); limit < 400; limit++ {
		c.Client.Properties.Props.MaximumPacketSize = limit
		reason := c.fitting(long, 6)
		if !utf8.ValidString(reason) {
			t.Fatalf("limit %d: got %q", limit, reason)
		}
		if (reason == "") != (limit > 0 && limit < 6+5+255) {
			t.Errorf("limit %d: got a reason of %d bytes", limit, len(reason))
		}
		ack := len(appendAck(nil, packets.Puback, 1, true, 0x87, reason))
		bye := len(c.appendDisconnect(nil, packets.Code{Code: 0x87, Reason: long}, ""))
		if limit >= 6 && (ack > int(limit) || bye > int(limit)) {
			t.Errorf("limit %d: got PUBACK of %d bytes, DISCONNECT of %d", limit, ack, bye)
		}
	}
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a/b", "a", false}, {"a", "a/b", false},
		{"#", "a/b", true}, {"a/#", "a", true}, {"a/#", "a/b/c", true}, {"a/#", "ab", false},
		{"+", "a", true}, {"+", "a/b", false}, {"+/+", "/a", true}, {"a/+", "a/", true}, {"a/+", "a", false}, {"+/b/#", "a/b", true},
		{"#", "$x", false}, {"+/a", "$x/a", false}, {"$x/#", "$x/a", true}, {"#", "/", true},
	} {
		if got := Matches(c.filter, c.topic); got != c.want {
			t.Errorf("Matches(%q, %q): got %v, want %v", c.filter, c.topic, got, c.want)
		}
	}
}
