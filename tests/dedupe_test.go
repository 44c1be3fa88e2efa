package tests

import (
	"fmt"
	"testing"

	"github.com/mqim/mqim/tests/mqtest"
)

// repeat sends with a cid and returns what the reply says.
func repeat(c *mqtest.Client, to, cid, body string) (s mqtest.Sent) {
	c.OK("send", mqtest.Map{"to": "u/" + to, "cid": cid, "body": body}, &s)
	return s
}

// first is what of a reply must be the same on each repetition.
func first(s mqtest.Sent) string { return fmt.Sprint(s.ID, s.Cseq, s.TS, s.Conv, s.Cid) }

// The same cid again is the same message: in the connection, on a new one, from another device, after a restart and a
// crash; and in the plain profile.
func TestDedupeCid(t *testing.T) {
	t.Parallel()
	s := mqtest.Start(t, nil)
	for _, v := range []byte{4, 5} {
		alice, bob := name("alice"), name("bob")
		a, b := chat(t, s, v, alice, "1"), chat(t, s, v, bob, "1")
		one := repeat(a, bob, "c1", "hi")
		equal(t, "dup of the first", one.Dup, false)
		again := func(what string, c *mqtest.Client, state string) {
			t.Helper()
			two := repeat(c, bob, "c1", "hi")
			equal(t, what+": dup", two.Dup, true)
			equal(t, what+": id, cseq, ts, conv, cid", first(two), first(one))
			if state != "" {
				equal(t, what+": state", two.State, state)
			}
		}
		again("repeated", a, "sent")
		m := b.Msg()
		equal(t, "id", m.ID, one.ID)
		b.Ack(1)
		a.Receipt("delivered")
		again("after the ack", a, "delivered")
		again("from another device", chat(t, s, v, alice, "2"), "delivered")
		a.Kill()
		a = chat(t, s, v, alice, "1")
		again("on a new connection", a, "delivered")
		if v == 5 {
			for range 2 {
				equal(t, "PUBACK of a repeated plain publish", a.PublishAck("im/u/"+bob, "hi", mqtest.UserProp("cid", "c1")).ReasonCode, 0)
			}
		}
		// Nothing new was stored.
		equal(t, "cseq of the next message", a.Send(bob, "next").Cseq, 2)
		equal(t, "text of the next message", text(b.Msg()), "next")

		s.Kill()
		s.Run()
		a = chat(t, s, v, alice, "1")
		again("after kill -9", a, "") // the acknowledgement may be lost, the message not
		b = chat(t, s, v, bob, "1")
		b.Ack(2)
		a.Receipt("delivered")
		s.Stop()
		s.Run()
		a = chat(t, s, v, alice, "1")
		again("after a restart", a, "delivered")
		equal(t, "cseq after the restarts", a.Send(bob, "later").Cseq, 3)
	}
}

func text(m mqtest.Message) string { return m.Text() }

// The key is (sender, cid): another sender's same cid is another message.
func TestDedupeCidIsPerSender(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		p := people("alice carol bob")
		a, c, b := chat(t, shared, v, p[0], "1"), chat(t, shared, v, p[1], "1"), chat(t, shared, v, p[2], "1")
		x, y := repeat(a, p[2], "c1", "hi"), repeat(c, p[2], "c1", "hi")
		if x.ID == y.ID || y.Dup {
			t.Errorf("same cid of another sender: got %+v after %+v, want another message", y, x)
		}
		b.Msg()
		b.Msg()
	})
}

// The same cid with another body or to is refused with conflict; the first message stands.
func TestDedupeConflict(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		p := people("alice bob carol")
		a, b, c := chat(t, shared, v, p[0], "1"), chat(t, shared, v, p[1], "1"), chat(t, shared, v, p[2], "1")
		one := repeat(a, p[1], "c1", "hi")
		a.Refused("send", mqtest.Map{"to": "u/" + p[1], "cid": "c1", "body": "other"}, "conflict")
		a.Refused("send", mqtest.Map{"to": "u/" + p[2], "cid": "c1", "body": "hi"}, "conflict")
		r := a.Refused("send", mqtest.Map{"to": "u/" + p[1], "cid": "c1", "body": mqtest.Map{"hi": 1}}, "conflict")
		equal(t, "cid in the refusal", r.Cid, "c1")
		two := repeat(a, p[1], "c1", "hi")
		equal(t, "dup", two.Dup, true)
		equal(t, "id", two.ID, one.ID)
		m := b.Msg()
		equal(t, "text", m.Text(), "hi")
		settle(a, b, c)
		equal(t, "further messages", b.Count(b.Topic("msg"))+c.Count(c.Topic("msg")), 0)
	})
}

// Repeated within one pipelined burst, before anything is answered, it is one message still.
func TestDedupePipelined(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a, b := chat(t, shared, v, alice, "1"), chat(t, shared, v, bob, "1")
		var raw []byte
		for range 50 {
			buf, err := mqtest.Encode(a.Packet("im/cmd/send", fmt.Sprintf(`{"to":"u/%s","cid":"c1","body":"hi"}`, bob)), v)
			if err != nil {
				t.Fatal(err)
			}
			raw = append(raw, buf...)
		}
		a.WriteRaw(raw)
		var one mqtest.Sent
		for i := range 50 {
			r := a.Reply("a reply", func(r *mqtest.Reply) bool { return r.Cid == "c1" })
			var s mqtest.Sent
			a.Parse(r.Data, &s)
			if i == 0 {
				one = s
			}
			equal(t, "dup", s.Dup, i > 0)
			equal(t, "id", s.ID, one.ID)
		}
		b.Msg()
		settle(a, b)
		equal(t, "further messages", b.Count(b.Topic("msg")), 0)
	})
}

// Without a cid MQTT's means are left: DUP flag, same device, packet id and payload, within the session.
func TestDedupeDUPFlag(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		b := chat(t, shared, v, bob, "1")
		a := session(t, shared, v, alice, "1")
		send := func(c *mqtest.Client, id uint16, body string, opts ...mqtest.Option) {
			t.Helper()
			equal(t, "PUBACK", c.PublishAck("im/u/"+bob, body, append(opts, mqtest.PacketID(id))...).ReasonCode, 0)
		}
		expect := func(want string) {
			t.Helper()
			m := b.Msg()
			equal(t, "text", m.Text(), want)
		}
		send(a, 7, "one")
		expect("one")
		send(a, 7, "one", mqtest.Dup) // the PUBACK was lost
		a.Kill()
		a = session(t, shared, v, alice, "1")
		send(a, 7, "one", mqtest.Dup)
		send(a, 8, "one", mqtest.Dup) // another packet id
		expect("one")
		send(a, 7, "two", mqtest.Dup) // another payload
		expect("two")
		send(a, 9, "two") // no DUP
		expect("two")
		send(a, 9, "two")
		expect("two")
		payload := fmt.Sprintf(`{"to":"u/%s","body":"three"}`, bob)
		a.PublishAck("im/cmd/send", payload, mqtest.PacketID(11))
		expect("three")
		a.PublishAck("im/cmd/send", payload, mqtest.PacketID(11), mqtest.Dup)
		other := session(t, shared, v, alice, "2")
		send(other, 7, "one", mqtest.Dup) // another device
		expect("one")
		a.Kill()
		a = dial(t, shared, v, alice, "1") // a clean session
		send(a, 7, "one", mqtest.Dup)
		expect("one")
		settle(a, b)
		equal(t, "further messages", b.Count(b.Topic("msg")), 0)
	})
}

// A packet id that has been used for another message since stands for that one: what repeats an older use is new.
func TestDedupeReusedPacketID(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		b := chat(t, shared, v, bob, "1")
		a := session(t, shared, v, alice, "1")
		for _, body := range []string{"on", "off"} {
			a.PublishAck("im/u/"+bob, body, mqtest.PacketID(1))
			m := b.Msg()
			equal(t, "text", m.Text(), body)
		}
		a.Kill() // the next "on" never arrived, and is sent again
		a = session(t, shared, v, alice, "1")
		a.PublishAck("im/u/"+bob, "on", mqtest.PacketID(1), mqtest.Dup)
		m := b.Msg()
		equal(t, "text", m.Text(), "on")
	})
}
