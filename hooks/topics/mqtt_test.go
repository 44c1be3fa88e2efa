package topics

import (
	"bytes"
	"fmt"
	"testing"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/store"
)

// [MQTT-4.6.0-2]: acknowledgements come in the order of the publishes, though those under im/ wait for a commit and the
// others do not.
func TestAcknowledgementsInOrder(t *testing.T) {
	r := newRig(t, setup{})
	p := r.connect("alice", v5)
	var b []byte
	const n = 200
	for i := range n {
		topic := "t"
		if i%3 == 0 {
			topic = "im/u/bob"
		}
		pk := publication(topic, fmt.Sprint(i), 1+byte(i%2))
		pk.ProtocolVersion, pk.PacketID = 5, uint16(i+1)
		b = append(b, encode(pk)...)
	}
	p.write(b)
	for i := range n {
		want := packets.Puback
		if i%2 == 1 {
			want = packets.Pubrec
		}
		if ack := p.expect(want); ack.PacketID != uint16(i+1) || ack.ReasonCode >= 0x80 {
			t.Fatalf("answer %d: got id %d, reason %#x; want id %d, below 0x80", i, ack.PacketID, ack.ReasonCode, i+1)
		}
	}
}

// Wildcards see ordinary topics and nothing of im/ or $….
func TestWildcardsSeeOrdinaryTopicsOnly(t *testing.T) {
	r := newRig(t, setup{})
	eve, bob, alice := r.connect("eve", v5), r.connect("bob"), r.connect("alice", v5)
	for _, f := range []string{"#", "+/+/+", "+/#", "$share/g/#"} {
		if code := eve.subscribe(f, 1); code != 1 {
			t.Fatalf("SUBACK for %s: got %#x, want 1", f, code)
		}
	}
	bob.subscribe("im/u/bob", 1)
	alice.publish("im/u/bob", "secret", 1)
	alice.publish("im/u/bob", "secret, retained", 1, retain)
	bob.message("secret")
	bob.message("secret, retained")
	for _, topic := range []string{"im/u/bob/msg", "im/x/y", "im", "$SYS/x/y", "$x/y/z"} {
		if code := alice.publish(topic, "no", 1, retain); code < 0x80 {
			t.Errorf("PUBACK for %s: got %#x, want a refusal", topic, code)
		}
	}
	r.connect("carol", testament("im/u/bob", "last words", 1, true, 0)).conn.Close()
	bob.message("last words")
	alice.publish("a/b/c", "end", 1)
	eve.message("end") // merged: the three ordinary filters
	eve.message("end") // the shared one
	eve.subscribe("#", 1)
	eve.subscribe("+/u/bob", 1)
	eve.ping() // nothing of it was retained
}

// Trap 10: what is published by alias is judged by the topic that the alias stands for.
func TestTopicAlias(t *testing.T) {
	r := newRig(t, setup{})
	r.rules.deny("secret")
	sub, pub := r.connect("sub"), r.connect("pub", v5)
	sub.subscribe("#", 1)
	alias := func(n uint16) func(*packets.Packet) {
		return func(pk *packets.Packet) { pk.Properties.TopicAlias, pk.Properties.TopicAliasFlag = n, true }
	}
	if code := pub.publish("secret", "1", 1, alias(1)); code != 0x87 {
		t.Errorf("PUBACK: got %#x, want 0x87", code)
	}
	if code := pub.publish("", "2", 1, alias(1)); code != 0x87 {
		t.Errorf("PUBACK by alias: got %#x, want 0x87", code)
	}
	if code := pub.publish("", "2", 2, alias(1)); code != 0x87 {
		t.Errorf("PUBREC by alias: got %#x, want 0x87", code)
	}
	pub.publish("open", "3", 1, alias(1))
	pub.publish("", "4", 1, alias(1))
	for _, want := range []string{"3", "4"} {
		if pk := sub.message(want); pk.TopicName != "open" {
			t.Errorf("topic: got %q, want open", pk.TopicName)
		}
	}
	if got := r.counts.drops(dropDenied); got != 3 {
		t.Errorf("denied: got %d, want 3", got)
	}
	for n, want := range map[uint16]byte{2: 0x82, 9: 0x94, 0: 0x82} { // unknown, beyond the maximum, no alias
		p := r.connect("bad", v5)
		pk := publication("", "x", 0)
		alias(n)(&pk)
		p.send(pk)
		if d := p.expect(packets.Disconnect); d.ReasonCode != want {
			t.Errorf("DISCONNECT for alias %d: got %#x, want %#x", n, d.ReasonCode, want)
		}
	}
}

// A refusal is told to MQTT 5; 3.1.1 has no words for it and is acknowledged.
func TestRefusedPublish(t *testing.T) {
	r := newRig(t, setup{})
	r.rules.deny("secret")
	sub := r.connect("sub")
	sub.subscribe("#", 1)
	for _, c := range []struct {
		topic string
		code  byte
	}{{"secret", 0x87}, {"$x", 0x90}} {
		for qos := byte(0); qos <= 2; qos++ {
			want := c.code
			if qos == 0 {
				want = 0
			}
			if got := r.connect("p5", v5).publish(c.topic, "x", qos, retain); got != want {
				t.Errorf("%s at QoS %d: got %#x, want %#x", c.topic, qos, got, want)
			}
			p := r.connect("p3")
			p.publish(c.topic, "x", qos, retain)
			p.ping()
		}
	}
	sub.ping()
	if n := r.retained(); n != 0 {
		t.Errorf("retained: got %d, want 0", n)
	}
}

// Trap 8: mochi's inflight table was shared by both directions.
func TestPacketIDsOfBothDirectionsAreApart(t *testing.T) {
	r := newRig(t, setup{})
	sub, pub := r.connect("sub", expiry(60)), r.connect("pub")
	sub.subscribe("t/#", 2)
	pub.publish("t/1", "a", 1)
	pub.publish("t/2", "b", 2)
	a, b := sub.expect(packets.Publish), sub.expect(packets.Publish)
	sub.reply(packets.Pubrec, b.PacketID)
	sub.expect(packets.Pubrel)
	for _, id := range []uint16{a.PacketID, b.PacketID} {
		for qos := byte(1); qos <= 2; qos++ {
			sub.id = id - 1
			if code := sub.publish("other", "x", qos); code >= 0x80 {
				t.Errorf("PUBLISH QoS %d with id %d: got %#x, want below 0x80", qos, id, code)
			}
		}
		sub.id = id - 1
		if code := sub.subscribe("more", 1); code != 1 {
			t.Errorf("SUBSCRIBE with id %d: got %#x, want 1", id, code)
		}
		sub.id = id - 1
		sub.unsubscribe("more")
	}
	if n := r.unacknowledged("sub"); n != 2 {
		t.Errorf("not acknowledged: got %d, want 2", n)
	}
	sub.reply(packets.Puback, a.PacketID)
	sub.reply(packets.Pubcomp, b.PacketID)
	sub.ping()
	if n := r.unacknowledged("sub"); n != 0 {
		t.Errorf("not acknowledged: got %d, want 0", n)
	}
	if cl, _ := r.server.Clients.Get("sub"); cl.State.Inflight.Len() != 0 {
		t.Errorf("mochi's inflight: got %d, want nothing", cl.State.Inflight.Len())
	}
}

// QoS 2 from the client: a PUBLISH that is repeated, on the same or the next connection, is one message.
func TestQoS2Inbound(t *testing.T) {
	r := newRig(t, setup{})
	sub, pub := r.connect("sub"), r.connect("pub", expiry(60))
	sub.subscribe("#", 1)
	pk := publication("t", "once", 2)
	pk.PacketID = 7
	for range 3 {
		pub.send(pk)
		pub.expect(packets.Pubrec)
		pk.FixedHeader.Dup = true
	}
	_ = pub.conn.Close()
	pub = r.connect("pub", expiry(60))
	pub.send(pk)
	pub.expect(packets.Pubrec)
	for range 2 {
		pub.reply(packets.Pubrel, 7)
		if ack := pub.expect(packets.Pubcomp); ack.ReasonCode != 0 {
			t.Errorf("PUBCOMP: got %#x, want 0", ack.ReasonCode)
		}
	}
	pk.FixedHeader.Dup = false
	pub.send(pk) // the id is free again
	pub.expect(packets.Pubrec)
	sub.message("once")
	sub.message("once")
	sub.ping()
}

// QoS 1 from the client: what it repeats after a reconnect, not having had the PUBACK, is one message.
func TestQoS1RepeatedAfterReconnect(t *testing.T) {
	r := newRig(t, setup{})
	sub, pub := r.connect("sub"), r.connect("pub", persistent)
	sub.subscribe("#", 1)
	pub.publish("t", "once", 1)
	pub.publish("t", "once", 1) // another message with the same words
	_ = pub.conn.Close()
	pub = r.connect("pub", persistent)
	pub.id = 1
	pub.publish("t", "once", 1, func(pk *packets.Packet) { pk.FixedHeader.Dup = true })
	pub.publish("t", "end", 1)
	sub.message("once")
	sub.message("once")
	sub.message("end")
}

// QoS 2 to the client survives a reconnect in each of its states, under its packet id.
func TestQoS2OutboundResumes(t *testing.T) {
	r := newRig(t, setup{})
	sub, pub := r.connect("sub", expiry(60)), r.connect("pub")
	sub.subscribe("t", 2)
	ids := map[string]uint16{}
	for _, m := range []string{"a", "b", "c"} {
		pub.publish("t", m, 2)
		ids[m] = sub.expect(packets.Publish).PacketID
	}
	sub.reply(packets.Pubrec, ids["a"])
	sub.reply(packets.Pubrec, ids["c"])
	sub.expect(packets.Pubrel)
	sub.expect(packets.Pubrel)
	for range 2 {
		_ = sub.conn.Close()
		sub = r.connect("sub", expiry(60))
		if id := sub.expect(packets.Pubrel).PacketID; id != ids["a"] {
			t.Errorf("PUBREL: got id %d, want %d", id, ids["a"])
		}
		if pk := sub.expect(packets.Publish); pk.PacketID != ids["b"] || !pk.FixedHeader.Dup {
			t.Errorf("PUBLISH: got id %d, DUP %v, want %d, true", pk.PacketID, pk.FixedHeader.Dup, ids["b"])
		}
		if id := sub.expect(packets.Pubrel).PacketID; id != ids["c"] {
			t.Errorf("PUBREL: got id %d, want %d", id, ids["c"])
		}
	}
	pub.publish("t", "d", 2)
	d := sub.expect(packets.Publish)
	for m, id := range ids {
		if d.PacketID == id {
			t.Errorf("message d: got the packet id of %s", m)
		}
	}
	sub.reply(packets.Pubrec, ids["b"])
	sub.expect(packets.Pubrel)
	for _, id := range ids {
		sub.reply(packets.Pubcomp, id)
	}
	sub.ack(d)
	sub.ping()
	if n := r.unacknowledged("sub"); n != 0 {
		t.Errorf("not acknowledged: got %d, want 0", n)
	}
}

// Properties reach MQTT 5 subscribers unchanged, with the identifiers of their subscriptions; 3.1.1 gets the message.
func TestProperties(t *testing.T) {
	r := newRig(t, setup{})
	sub, old, pub := r.connect("sub", v5), r.connect("old"), r.connect("pub", v5)
	ident := func(n int) func(*packets.Subscription) { return func(s *packets.Subscription) { s.Identifier = n } }
	sub.subscribe("t/+", 1, ident(300_000))
	sub.subscribe("t/#", 0, ident(1))
	sub.subscribe("t/x", 0)
	old.subscribe("t/x", 2)
	pub.publish("t/x", "body", 2, func(pk *packets.Packet) {
		pk.Properties = packets.Properties{
			PayloadFormat: 1, PayloadFormatFlag: true, ContentType: "text/plain", ResponseTopic: "answers/here", CorrelationData: []byte{1, 2},
			User: []packets.UserProperty{{Key: "k", Val: "1"}, {Key: "k", Val: "2"}}, MessageExpiryInterval: 100,
		}
	})
	pk := sub.message("body")
	p := pk.Properties
	if p.PayloadFormat != 1 || !p.PayloadFormatFlag || p.ContentType != "text/plain" || p.ResponseTopic != "answers/here" ||
		!bytes.Equal(p.CorrelationData, []byte{1, 2}) || len(p.User) != 2 || p.User[0].Val != "1" || p.User[1].Val != "2" {
		t.Errorf("properties: got %+v", p)
	}
	if p.MessageExpiryInterval < 99 || p.MessageExpiryInterval > 100 {
		t.Errorf("expiry: got %d, want 100", p.MessageExpiryInterval)
	}
	ids := p.SubscriptionIdentifier
	if len(ids) != 2 || ids[0]+ids[1] != 300_001 {
		t.Errorf("subscription identifiers: got %v, want 1 and 300000", ids)
	}
	if pk.FixedHeader.Qos != 1 {
		t.Errorf("QoS: got %d, want 1, the highest of the filters that match", pk.FixedHeader.Qos)
	}
	if pk := old.message("body"); pk.FixedHeader.Qos != 2 {
		t.Errorf("QoS: got %d, want 2", pk.FixedHeader.Qos)
	}
	pub.publish("t/x", "plain", 1)
	if p := sub.message("plain").Properties; p.MessageExpiryInterval != 0 {
		t.Errorf("expiry of a message without: got %d, want none", p.MessageExpiryInterval)
	}
	pub.write([]byte{0x32, 16, 0, 3, 't', '/', 'x', 0, 9, 6, 8, 0, 3, 'a', '/', '#', 'h', 'i'})
	if code := pub.expect(packets.Puback).ReasonCode; code != 0x90 {
		t.Errorf("wildcard in the response topic: got %#x, want 0x90 [MQTT-3.3.2-14]", code)
	}
}

// A message larger than the client takes is not sent, and does not block what follows [MQTT-3.1.2-24].
func TestMaximumPacketSize(t *testing.T) {
	r := newRig(t, setup{})
	pub := r.connect("pub")
	for _, session := range []uint32{0, 60} {
		sub := r.connect("sub", expiry(session), func(pk *packets.Packet) { pk.Properties.MaximumPacketSize = 30 })
		sub.subscribe("t", 1)
		fits := string(bytes.Repeat([]byte("x"), 30-2-3-2-1)) // fixed header, topic, id, properties
		pub.publish("t", fits+"x", 1)
		pub.publish("t", fits, 1)
		sub.message(fits)
		sub.disconnect(0)
		r.gone("sub")
	}
	if got := r.counts.drops(dropTooLarge); got != 2 {
		t.Errorf("dropped: got %d, want 2", got)
	}
}

// The program that embeds the server publishes and subscribes through mochi's inline client.
func TestInlineClient(t *testing.T) {
	r := newRig(t, setup{inline: true})
	got := make(chan string, 10)
	if err := r.server.Subscribe("t/#", 1, func(_ *mqtt.Client, _ packets.Subscription, pk packets.Packet) {
		got <- pk.TopicName + " " + string(pk.Payload)
	}); err != nil {
		t.Fatal(err)
	}
	p := r.connect("p")
	p.subscribe("t/#", 1)
	if err := r.server.Publish("t/1", []byte("in"), true, 1); err != nil {
		t.Fatal(err)
	}
	p.message("in")
	p.publish("t/2", "out", 0)
	p.message("out")
	p.publish("t", "above", 0)
	p.message("above")
	for _, want := range []string{"t/1 in", "t/2 out", "t above"} {
		if s := <-got; s != want {
			t.Errorf("got %q, want %q", s, want)
		}
	}
	if p.subscribe("t/1", 1); p.message("in").FixedHeader.Retain != true {
		t.Error("RETAIN: got 0, want 1")
	}
}

// The hook says so when hooks/im is not there before it.
func TestNeedsIM(t *testing.T) {
	r := newRig(t, setup{})
	cl := r.server.NewClient(nil, "t", "x", false)
	if err := r.hook.OnConnect(cl, packets.Packet{}); err != errNeedsIM {
		t.Errorf("got %v, want %v", err, errNeedsIM)
	}
}

// QoS 2 from a client with a stored session: what is refused leaves nothing behind, so that the next message under the
// same packet id is not taken for a repetition.
func TestRefusedQoS2IsNotTakenForStored(t *testing.T) {
	for _, how := range []connect{persistent, expiry(60)} {
		r := newRig(t, setup{queues: store.QueueLimits{Messages: 1, Refuse: true}})
		sub, pub := r.connect("sub", persistent), r.connect("pub", how)
		sub.subscribe("t", 2)
		sub.disconnect(0)
		pub.publish("t", "fills", 2)
		again := publication("t", "again", 2)
		again.PacketID = pub.nextID()
		pub.send(again)
		if pub.v == 5 {
			if code := pub.expect(packets.Pubrec).ReasonCode; code != packets.ErrQuotaExceeded.Code {
				t.Errorf("PUBREC: got reason %#x, want %#x", code, packets.ErrQuotaExceeded.Code)
			}
			_ = pub.conn.Close()
		} else if _, err := pub.read(); err == nil {
			t.Error("a refused publish was answered, want the end")
		}
		sub = r.connect("sub", persistent)
		sub.message("fills")
		sub.ping()
		pub = r.connect("pub", how)
		pub.send(again)
		pub.expect(packets.Pubrec)
		sub.message("again")
	}
}
