package tests

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mqim/mqim/tests/mqtest"
)

// Beyond the burst sends are refused with rate_limited; commands are not, nor is another user, nor the connection ended.
func TestLimitRate(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		s := mqtest.Start(t, mqtest.Config{"limits": "{sends_per_second: 2, send_burst: 10}"})
		p := people("alice bob carol")
		a, a2, b, c := chat(t, s, v, p[0], "1"), chat(t, s, v, p[0], "2"), chat(t, s, v, p[1], "1"), chat(t, s, v, p[2], "1")
		start := time.Now()
		ok, refused := 0, 0
		for i := range 40 {
			from := []*mqtest.Client{a, a2}[i%2] // the limit is the user's
			r, ack := from.Command("send", mqtest.Map{"to": "u/" + p[1], "body": fmt.Sprint(i), "cid": fmt.Sprint(i)})
			if r.OK {
				ok++
				continue
			}
			refused++
			from.CheckRefusal("send beyond the burst", r, ack, "rate_limited")
			equal(t, "cid", r.Cid, fmt.Sprint(i))
		}
		if most := 11 + int(2*time.Since(start).Seconds()); ok < 10 || ok > most {
			t.Errorf("got %d sends through, want 10 to %d", ok, most)
		}
		a.CheckReason("plain publish", a.PublishAck("im/u/"+p[1], "x"), "rate_limited")
		a.OK("time", mqtest.Map{"t0": 1}, nil)
		c.Send(p[1], "not limited")
		for range ok + 1 {
			b.Msg()
		}
		mqtest.Eventually(t, "sends to be let through again", func() bool {
			r, _ := a.Command("send", mqtest.Map{"to": "u/" + p[1], "body": "later"})
			return r.OK
		})
	})
}

// limits.message_bytes and limits.command_bytes.
func TestLimitBytes(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		s := mqtest.Start(t, mqtest.Config{"limits": "{sends_per_second: 0, message_bytes: 100, command_bytes: 400}"})
		p := people("alice bob")
		a, b := chat(t, s, v, p[0], "1"), chat(t, s, v, p[1], "1")
		a.Refused("send", mqtest.Map{"to": "u/" + p[1], "body": strings.Repeat("x", 101)}, "too_large")
		a.Send(p[1], strings.Repeat("x", 100))
		a.Refused("time", mqtest.Map{"t0": 1, "junk": strings.Repeat("x", 400)}, "too_large")
		a.CheckReason("plain", a.PublishAck("im/u/"+p[1], strings.Repeat("x", 101)), "too_large")
		a.PublishAck("im/u/"+p[1], strings.Repeat("x", 100))
		seqs(t, b, 1, 2)
	})
}

// limits.devices_per_user: a further device is refused at CONNECT; those there stay.
func TestLimitDevices(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		s := mqtest.Start(t, mqtest.Config{"limits": "{sends_per_second: 0, devices_per_user: 2}"})
		alice := name("alice")
		one, two := chat(t, s, v, alice, "1"), session(t, s, v, alice, "2")
		open := func(device string) byte {
			return mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: v, User: alice, ID: alice + "/" + device}).Connack.ReasonCode
		}
		equal(t, "CONNACK of the third", open("3"), code(v, 0x03, 0x97))
		two.Disconnect()
		equal(t, "CONNACK of the third, a session away", open("3"), code(v, 0x03, 0x97))
		equal(t, "mqim_limited_total", s.Metric(`mqim_limited_total{limit="devices_per_user"}`), 2)
		one.Alive()
		session(t, s, v, alice, "2") // one that is known is let in
		one.OK("device.remove", mqtest.Map{"device": alice + "/2"}, nil)
		mqtest.Eventually(t, "room for another device", func() bool { return open("3") == 0 })
	})
}

// limits.connections counts connections of the node.
func TestLimitConnections(t *testing.T) {
	t.Parallel()
	s := mqtest.Start(t, mqtest.Config{"limits": "{sends_per_second: 0, connections: 2}"})
	one, two := chat(t, s, 4, name("a"), "1"), chat(t, s, 5, name("b"), "1")
	third := mqtest.TryDial(t, s.Addr("mqtt"), mqtest.Options{User: name("c"), ID: name("c")})
	if third != nil && third.Connack.ReasonCode == 0 {
		t.Error("a third connection was let in")
	}
	one.Alive()
	two.Disconnect()
	mqtest.Eventually(t, "room for another connection", func() bool {
		c := mqtest.TryDial(t, s.Addr("mqtt"), mqtest.Options{User: name("d"), ID: name("d")})
		return c != nil && c.Connack.ReasonCode == 0
	})
}

// The window of what a client may have outstanding: beyond Receive Maximum an MQTT 5 client breaks MQTT.
func TestLimitReceiveMaximum(t *testing.T) {
	t.Parallel()
	alice, bob := name("alice"), name("bob")
	a := dial(t, shared, 5, alice, "1")
	if n := a.Connack.Properties.ReceiveMaximum; n < 1000 {
		t.Errorf("Receive Maximum: got %d, want 1000 or more", n)
	}
	// The client's own Receive Maximum bounds what it is sent before PUBACK [MQTT-3.3.4-9].
	o := mqtest.Options{Version: 5, User: bob, ID: bob + "/1", Hold: true}
	o.Properties.ReceiveMaximum = 3
	b := mqtest.Dial(t, shared.Addr("mqtt"), o)
	subscribed(t, b, "im/u/"+bob)
	for i := range 10 {
		a.PublishAck("im/u/"+bob, fmt.Sprint(i))
	}
	settle(a, b)
	equal(t, "publishes before any PUBACK", b.Count("im/u/"+bob), 3)
	for i := range 10 {
		pk := b.Plain()
		equal(t, "payload", string(pk.Payload), fmt.Sprint(i))
		b.Puback(pk)
	}
}

// limits.keep_alive: who asks for more, or for no end, is told in MQTT 5 and refused in 3.1.1.
func TestLimitKeepAlive(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		for _, tt := range []struct {
			limit, asked uint16
			ok           bool
		}{{60, 60, true}, {60, 61, false}, {60, 0, false}, {60, 65535, false}, {0, 0, true}, {0, 61, true}} {
			s := mqtest.Start(t, mqtest.Config{"limits": fmt.Sprintf("{keep_alive: %ds}", tt.limit)})
			c := mqtest.Open(t, s.Addr("mqtt"), mqtest.Options{Version: v, Silent: true})
			body := append([]byte("\x00\x04MQTT"), v, 2, byte(tt.asked>>8), byte(tt.asked))
			if v == 5 {
				body = append(body, 0)
			}
			body = append(body, 0, 1, 'a')
			if err := c.TryWrite(append([]byte{0x10, byte(len(body))}, body...)); err != nil {
				t.Fatal(err)
			}
			pk, _ := c.Any()
			told := pk.Properties.ServerKeepAlive
			if v == 4 && !tt.ok {
				equal(t, "mqim_limited_total", s.Metric(`mqim_limited_total{limit="keep_alive"}`), 1)
			}
			switch {
			case v == 4 && (pk.ReasonCode == 0) != tt.ok:
				t.Errorf("limit %d, asked for %d: got %#x", tt.limit, tt.asked, pk.ReasonCode)
			case v == 5 && (pk.ReasonCode != 0 || (told == 0) != tt.ok || told != 0 && told != tt.limit):
				t.Errorf("limit %d, asked for %d: got %#x, Server Keep Alive %d", tt.limit, tt.asked, pk.ReasonCode, told)
			}
		}
	})
}
