package tests

import (
	"fmt"
	"testing"

	"github.com/mqim/mqim/tests/mqtest"
)

// seqs reads n messages in the IM profile and checks that they are seq from … from+n-1.
func seqs(t *testing.T, c *mqtest.Client, from, n uint64) {
	t.Helper()
	for want := from; want < from+n; want++ {
		m := c.Msg()
		if m.Seq != want {
			t.Fatalf("%s: got seq %d, want %d", c.ID, m.Seq, want)
		}
	}
}

// nothing checks that no message has come to a device beyond those taken.
func nothing(t *testing.T, sender, c *mqtest.Client) {
	t.Helper()
	settle(sender, c)
	if n := c.Count(c.Topic("msg")) + c.Count("im/u/"+c.User); n > 0 {
		t.Errorf("%s: got %d further messages, want none", c.ID, n)
	}
}

// A user who has never connected has everything waiting, from the first message on.
func TestCursorNeverConnected(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a := chat(t, shared, v, alice, "1")
		for i := range 5 {
			a.Send(bob, fmt.Sprint(i))
		}
		b := chat(t, shared, v, bob, "1")
		seqs(t, b, 1, 5)
		nothing(t, a, b)
	})
}

// A persistent session keeps its cursor, whatever the user's other devices acknowledge.
func TestCursorPersistentSession(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a := chat(t, shared, v, alice, "1")
		b := session(t, shared, v, bob, "1")
		equal(t, "session present at first", b.Connack.SessionPresent, false)
		subscribed(t, b, "im/u/"+bob+"/+")
		for range 6 {
			a.Send(bob, "x")
		}
		seqs(t, b, 1, 6)
		b.Ack(2)
		b.Disconnect()

		other := chat(t, shared, v, bob, "2") // without a session: the user's cursor
		seqs(t, other, 3, 4)
		other.Ack(6)
		a.Send(bob, "7")
		seqs(t, other, 7, 1)
		other.Ack(7)

		b = session(t, shared, v, bob, "1")
		equal(t, "session present", b.Connack.SessionPresent, true)
		seqs(t, b, 3, 5) // its filters are the session's
		b.Ack(7)
		b.Kill()
		b = session(t, shared, v, bob, "1")
		nothing(t, a, b)
	})
}

// A device without a session starts at the user's cursor: the highest seq that any device acknowledged.
func TestCursorCleanSession(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a := chat(t, shared, v, alice, "1")
		b := chat(t, shared, v, bob, "1")
		for range 5 {
			a.Send(bob, "x")
		}
		seqs(t, b, 1, 5)
		b.Ack(3)
		b.Disconnect()
		b = chat(t, shared, v, bob, "1")
		seqs(t, b, 4, 2)
		b.Disconnect()
		b = chat(t, shared, v, bob, "fresh")
		seqs(t, b, 4, 2)
		b.Ack(5)
		b.Disconnect()
		nothing(t, a, chat(t, shared, v, bob, "another"))
	})
}

// A session that is ended by a clean one starts at the user's cursor, too.
func TestCursorSessionEnded(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a := chat(t, shared, v, alice, "1")
		slow := session(t, shared, v, bob, "slow")
		subscribed(t, slow, "im/u/"+bob+"/+")
		a.Send(bob, "1")
		a.Send(bob, "2")
		seqs(t, slow, 1, 2)
		slow.Disconnect()
		quick := chat(t, shared, v, bob, "quick")
		seqs(t, quick, 1, 2)
		quick.Ack(2)
		clean := chat(t, shared, v, bob, "slow")
		nothing(t, a, clean)
		clean.Disconnect()
		slow = session(t, shared, v, bob, "slow")
		equal(t, "session present", slow.Connack.SessionPresent, false)
		subscribed(t, slow, "im/u/"+bob+"/+")
		nothing(t, a, slow)
		if v == 5 { // Clean Start with a session
			slow.Disconnect()
			slow = mqtest.Dial(t, shared.Addr("mqtt"), mqtest.Options{Version: 5, User: bob, ID: bob + "/slow", Persistent: true, Clean: true})
			equal(t, "session present after Clean Start", slow.Connack.SessionPresent, false)
		}
	})
}

// Cursors of sessions and users outlive a restart.
func TestCursorAfterRestart(t *testing.T) {
	t.Parallel()
	s := mqtest.Start(t, nil)
	for _, v := range []byte{4, 5} {
		alice, bob := name("alice"), name("bob")
		a, b, c := chat(t, s, v, alice, "1"), session(t, s, v, bob, "1"), chat(t, s, v, bob, "2")
		subscribed(t, b, "im/u/"+bob+"/+")
		for range 5 {
			a.Send(bob, "x")
		}
		b.Ack(2)
		c.Ack(4)
		s.Stop()
		s.Run()
		a, b, c = chat(t, s, v, alice, "1"), session(t, s, v, bob, "1"), chat(t, s, v, bob, "2")
		subscribed(t, b, "im/u/"+bob+"/+")
		seqs(t, b, 3, 3)
		seqs(t, c, 5, 1)
		nothing(t, a, c)
	}
}

// In the plain profile PUBACK moves the cursor, and a gap before it holds it.
func TestCursorPlain(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a := dial(t, shared, v, alice, "1")
		b := session(t, shared, v, bob, "1")
		b.Hold(true)
		subscribed(t, b, "im/u/"+bob)
		for i := range 4 {
			a.PublishAck("im/u/"+bob, fmt.Sprint(i))
		}
		one, two, three := b.Plain(), b.Plain(), b.Plain()
		b.Puback(one)
		b.Puback(three)
		b.Alive()
		_ = two
		b.Disconnect()
		b = session(t, shared, v, bob, "1")
		for _, want := range []string{"1", "2", "3"} { // 2 again: at least once
			equal(t, "payload", string(b.Plain().Payload), want)
		}
		nothing(t, a, b)
	})
}

// MQTT 5: Session Expiry ends the session's place in the inbox.
func TestCursorSessionExpiry(t *testing.T) {
	t.Parallel()
	alice, bob := name("alice"), name("bob")
	a := chat(t, shared, 5, alice, "1")
	open := func() *mqtest.Client {
		o := mqtest.Options{Version: 5, User: bob, ID: bob + "/1"}
		c := mqtest.Dial(t, shared.Addr("mqtt"), expiring(o, 1))
		connected(t, c)
		return c
	}
	b := open()
	subscribed(t, b, "im/u/"+bob+"/+")
	a.Send(bob, "1")
	seqs(t, b, 1, 1)
	b.Kill()
	other := chat(t, shared, 5, bob, "2")
	seqs(t, other, 1, 1)
	other.Ack(1)
	mqtest.Eventually(t, "the session to be gone", func() bool {
		var list []struct{ Device string }
		other.OK("device.list", nil, &list)
		return len(list) == 1
	})
	b = open()
	subscribed(t, b, "im/u/"+bob+"/+")
	nothing(t, a, b)
}
