package tests

import (
	"fmt"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/tests/mqtest"
)

// published counts what was published to a client.
func published(c *mqtest.Client) (n int) {
	for _, pk := range c.Got() {
		if pk.FixedHeader.Type == packets.Publish {
			n++
		}
	}
	return n
}

func TestProfilePlain(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a, b := dial(t, shared, v, alice, "1"), plain(t, shared, v, bob, "1")
		body := "any bytes: \x00\xff\xfe"
		equal(t, "PUBACK", a.PublishAck("im/u/"+bob, body).ReasonCode, 0)
		pk := b.Plain()
		equal(t, "payload", string(pk.Payload), body)
		equal(t, "QoS", pk.FixedHeader.Qos, 1)
		equal(t, "retain", pk.FixedHeader.Retain, false)
		equal(t, "DUP", pk.FixedHeader.Dup, false)
	})
}

// MQTT 5 publishers say more of a message, and MQTT 5 subscribers hear it.
func TestProfilePlainProperties(t *testing.T) {
	t.Parallel()
	alice, bob := name("alice"), name("bob")
	a, b, chatter := dial(t, shared, 5, alice, "1"), plain(t, shared, 5, bob, "plain"), chat(t, shared, 4, bob, "im")
	cts := time.Now().Add(-time.Minute).UnixMilli()
	ack := a.PublishAck("im/u/"+bob, "hi", mqtest.UserProp("cid", "c1"), mqtest.UserProp("type", "note"), mqtest.UserProp("cts", fmt.Sprint(cts)),
		mqtest.Prop(func(p *packets.Properties) { p.ContentType, p.MessageExpiryInterval = "text/x-note", 3600 }))
	equal(t, "PUBACK", ack.ReasonCode, 0)
	pk := b.Plain()
	m := chatter.Msg()
	u := mqtest.UserProps(pk)
	for key, want := range map[string]string{
		"id": m.ID, "seq": "1", "conv": "u/" + alice, "cseq": "1", "from": alice, "type": "note", "cid": "c1",
	} {
		equal(t, "user property "+key, u[key], want)
	}
	if len(u["ts"]) != 13 {
		t.Errorf("user property ts: got %q, want Unix milliseconds", u["ts"])
	}
	equal(t, "content type", pk.Properties.ContentType, "text/x-note")
	if e := pk.Properties.MessageExpiryInterval; e == 0 || e > 3600 || e < 3500 {
		t.Errorf("message expiry: got %d, want what is left of 3600", e)
	}
	equal(t, "cts in the IM profile", m.CTS, cts)
	equal(t, "type in the IM profile", m.Type, "note")
	equal(t, "cid in the IM profile", m.Cid, "c1")
	equal(t, "seq in the IM profile", m.Seq, 1)
}

func TestProfileIM(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a, b := chat(t, shared, v, alice, "1"), chat(t, shared, v, bob, "1")
		var s mqtest.Sent
		a.OK("send", mqtest.Map{"to": "u/" + bob, "cid": "c1", "body": mqtest.Map{"x": []int{1, 2}}, "cts": 1700000000000, "type": "card"}, &s)
		m := b.Msg()
		equal(t, "body", string(m.Body), `{"x":[1,2]}`)
		equal(t, "id", m.ID, s.ID)
		equal(t, "conv", m.Conv, "u/"+alice)
		equal(t, "from", m.From, alice)
		equal(t, "seq", m.Seq, 1)
		equal(t, "cseq", m.Cseq, s.Cseq)
		equal(t, "ts", m.TS, s.TS)
		equal(t, "cid", m.Cid, "c1")
		equal(t, "type", m.Type, "card")
		equal(t, "cts", m.CTS, 1700000000000)
		equal(t, "attempt", m.Attempt, 0)
	})
}

// A device that matches …/msg reads in the IM profile whatever else it subscribes to, and gets a message once.
func TestProfilePrecedenceAndOnce(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		for _, filters := range [][]string{
			{"im/u/ME", "im/u/ME/msg"}, {"im/u/ME/msg", "im/u/ME"}, {"im/u/ME/#"}, {"im/u/ME/#", "im/u/ME/+", "im/u/ME/msg", "im/u/ME"},
			{"#", "im/u/ME/+", "+/u/#", "im/u/ME"},
		} {
			alice, bob := name("alice"), name("bob")
			a, b := dial(t, shared, v, alice, "1"), dial(t, shared, v, bob, "1")
			for i := range filters {
				filters[i] = replaceMe(filters[i], bob)
			}
			subscribed(t, b, filters...)
			a.PublishAck("im/u/"+bob, "once")
			m := b.Msg()
			equal(t, "text", m.Text(), "once")
			settle(a, b)
			equal(t, "further messages with the filters "+filters[0], published(b), 0)
		}
	})
}

func replaceMe(filter, me string) string {
	for i := 0; i+2 <= len(filter); i++ {
		if filter[i:i+2] == "ME" {
			return filter[:i] + me + filter[i+2:]
		}
	}
	return filter
}

// A device that matches only im/u/{me} reads in the plain profile, at most once too.
func TestProfilePlainOnce(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a, b := dial(t, shared, v, alice, "1"), plain(t, shared, v, bob, "1")
		subscribed(t, b, "im/u/"+bob, "im/u/"+bob+"/reply", "im/u/"+bob+"/event", "#")
		a.PublishAck("im/u/"+bob, "once")
		equal(t, "payload", string(b.Plain().Payload), "once")
		settle(a, b)
		equal(t, "further messages", published(b), 0)
	})
}

// A device changes its profile with its filters; what it has not acknowledged stays its own.
func TestProfileChanges(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a, b := dial(t, shared, v, alice, "1"), plain(t, shared, v, bob, "1")
		a.PublishAck("im/u/"+bob, "1")
		equal(t, "payload", string(b.Plain().Payload), "1")
		subscribed(t, b, "im/u/"+bob+"/msg")
		a.PublishAck("im/u/"+bob, "2")
		m := b.Msg()
		equal(t, "in the IM profile", m.Text(), "2")
		b.Unsubscribe("im/u/" + bob + "/msg")
		a.PublishAck("im/u/"+bob, "3")
		equal(t, "payload", string(b.Plain().Payload), "3")
		b.Unsubscribe("im/u/" + bob)
		a.PublishAck("im/u/"+bob, "4")
		settle(a, b)
		equal(t, "messages without a filter", published(b), 0)
		subscribed(t, b, "im/u/"+bob)
		equal(t, "payload", string(b.Plain().Payload), "4")
	})
}
