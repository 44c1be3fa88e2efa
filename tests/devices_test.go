package tests

import (
	"testing"

	"github.com/mqim/mqim/tests/mqtest"
)

// Every device of the recipient gets a message, each in its profile, once; each acknowledges for itself.
func TestDevicesEachGetsIt(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a := chat(t, shared, v, alice, "1")
		b1, b2, b3 := chat(t, shared, v, bob, "1"), chat(t, shared, 9-v, bob, "2"), plain(t, shared, v, bob, "3")
		sent := a.Send(bob, "hi")
		for _, b := range []*mqtest.Client{b1, b2} {
			m := b.Msg()
			equal(t, "id at "+b.ID, m.ID, sent.ID)
			equal(t, "seq at "+b.ID, m.Seq, 1)
		}
		equal(t, "payload", string(b3.Plain().Payload), "hi")
		for _, b := range []*mqtest.Client{b1, b2, b3} {
			nothing(t, a, b)
		}
	})
}

// The sender's other devices get what it sent; the sending device does not, neither now nor later.
func TestDevicesSendersOther(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a1 := session(t, shared, v, alice, "1")
		subscribed(t, a1, "im/u/"+alice+"/+")
		a2, a3 := chat(t, shared, v, alice, "2"), plain(t, shared, v, alice, "3")
		sent := a1.Send(bob, "from me")
		m := a2.Msg()
		equal(t, "id", m.ID, sent.ID)
		equal(t, "from", m.From, alice)
		equal(t, "conv", m.Conv, "u/"+bob)
		equal(t, "cseq", m.Cseq, sent.Cseq)
		equal(t, "seq in the sender's own inbox", m.Seq, 1)
		pk := a3.Plain()
		equal(t, "payload in the plain profile", string(pk.Payload), "from me")
		if v == 5 {
			u := mqtest.UserProps(pk)
			equal(t, "user property from", u["from"], alice)
			equal(t, "user property conv", u["conv"], "u/"+bob)
		}
		// The other way round: a1 gets what a2 sent, and not what it sent itself.
		a2.Ack(1)
		a2.Send(bob, "from my other device")
		m = a1.Msg()
		equal(t, "text", m.Text(), "from my other device")
		equal(t, "seq", m.Seq, 2)
		a1.Disconnect()
		a1 = session(t, shared, v, alice, "1")
		m = a1.Msg() // not acknowledged
		equal(t, "seq", m.Seq, 2)
		// Both sides number the conversation alike.
		b := chat(t, shared, v, bob, "1")
		nothing(t, b, a1)
		seqs(t, b, 1, 2)
		b.Ack(2)
		equal(t, "cseq of the answer", b.Send(alice, "answer").Cseq, 3)
	})
}

// A message to oneself reaches one's other devices.
func TestDevicesToMyself(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice := name("alice")
		a1, a2 := chat(t, shared, v, alice, "1"), chat(t, shared, v, alice, "2")
		s := a1.Send(alice, "note to self")
		equal(t, "conv", s.Conv, "u/"+alice)
		m := a2.Msg()
		equal(t, "conv", m.Conv, "u/"+alice)
		equal(t, "from", m.From, alice)
		nothing(t, dial(t, shared, v, name("other"), "1"), a1)
	})
}

// device.list and device.remove.
func TestDevicesListAndRemove(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a := chat(t, shared, v, alice, "1")
		b1, b2 := chat(t, shared, v, bob, "1"), session(t, shared, v, bob, "2")
		subscribed(t, b2, "im/u/"+bob)
		a.Send(bob, "x")
		seqs(t, b1, 1, 1)
		b2.Plain()
		b2.Disconnect()
		type row struct {
			Device   string
			Online   bool
			Cursor   uint64
			LastSeen int64 `json:"last_seen"`
			Profile  string
		}
		list := func() (rows []row) { b1.OK("device.list", nil, &rows); return rows }
		rows := list()
		if len(rows) != 2 {
			t.Fatalf("got %+v, want two devices", rows)
		}
		for i, want := range []row{{bob + "/1", true, 0, 0, "im"}, {bob + "/2", false, 1, 0, "plain"}} {
			got := rows[i]
			if got.LastSeen == 0 {
				t.Errorf("%s: last_seen is 0", got.Device)
			}
			got.LastSeen = 0
			equal(t, "device", got, want)
		}
		// An offline one.
		b1.OK("device.remove", mqtest.Map{"device": bob + "/2"}, nil)
		equal(t, "event", b1.Event("device.removed")["device"], any(bob+"/2"))
		equal(t, "devices", len(list()), 1)
		b2 = session(t, shared, v, bob, "2")
		equal(t, "session present", b2.Connack.SessionPresent, false)
		// A connected one: it is told, and closed.
		subscribed(t, b2, "im/u/"+bob+"/+")
		b1.OK("device.remove", mqtest.Map{"device": bob + "/2"}, nil)
		equal(t, "event at the removed device", b2.Event("device.removed")["device"], any(bob+"/2"))
		equal(t, "DISCONNECT", b2.Closed(), code(v, 0, 0x98))
		mqtest.Eventually(t, "the device to be gone", func() bool { return len(list()) == 1 })
		b1.Refused("device.remove", mqtest.Map{"device": bob + "/2"}, "not_found")
		b1.Refused("device.remove", mqtest.Map{"device": alice + "/1"}, "not_found")
		a.Alive()
	})
}

// A will to a user is a message like any other, sent when the connection ends without DISCONNECT.
func TestDevicesWill(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		b := chat(t, shared, v, bob, "1")
		will := &packet{TopicName: "im/u/" + bob, Payload: []byte("gone")}
		open := func(topic string) *mqtest.Client {
			will.TopicName = topic
			return mqtest.Dial(t, shared.Addr("mqtt"), mqtest.Options{Version: v, User: alice, ID: alice + "/1", Will: will})
		}
		open("im/u/" + bob).Disconnect()
		open("im/u/" + bob).Kill()
		m := b.Msg()
		equal(t, "text", m.Text(), "gone")
		equal(t, "from", m.From, alice)
		nothing(t, b, b)
		for _, topic := range []string{"im/u/" + bob + "/msg", "im/cmd/send", "im/x"} {
			equal(t, "CONNACK for a will to "+topic, open(topic).Connack.ReasonCode, code(v, 0x05, 0x87))
		}
	})
}
