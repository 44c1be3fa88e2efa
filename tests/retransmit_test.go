package tests

import (
	"testing"
	"time"

	"github.com/mqim/mqim/tests/mqtest"
)

// fast is a server that sends again soon.
func fast(t *testing.T) *mqtest.Server {
	t.Helper()
	return mqtest.Start(t, mqtest.Config{"delivery": "{ack_timeout: 300ms, max_attempts: 3, window: 4}"})
}

// A message that the device took and the application does not acknowledge comes again with its attempt, at doubling
// intervals, max_attempts times; then there is silence until the device acknowledges something.
func TestRetransmission(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		s := fast(t)
		alice, bob := name("alice"), name("bob")
		a, b := chat(t, s, v, alice, "1"), chat(t, s, v, bob, "1")
		a.Send(bob, "one")
		one, pk := b.MsgPacket()
		times := []time.Time{time.Now()}
		ids := map[uint16]bool{pk.PacketID: true}
		for n := 1; n <= 3; n++ {
			m, pk := b.MsgPacket()
			times = append(times, time.Now())
			equal(t, "attempt", m.Attempt, n)
			equal(t, "id", m.ID, one.ID)
			equal(t, "seq", m.Seq, one.Seq)
			equal(t, "DUP: it is a new PUBLISH", pk.FixedHeader.Dup, false)
			ids[pk.PacketID] = true
		}
		// The first comes after 300 ms, the next after 600, then 1,200; they may be late, not early.
		for n, want := range []time.Duration{300, 600, 1200} {
			if got := times[n+1].Sub(times[n]); got < want*time.Millisecond*9/10 {
				t.Errorf("attempt %d came after %v, want %d ms or more", n+1, got, want)
			}
		}
		// Then silence, for longer than the next interval would be; new messages wait, too.
		if _, ok := b.TryTake(isMsg(b), 3*time.Second); ok {
			t.Error("the message came after the last attempt")
		}
		a.Send(bob, "two")
		if _, ok := b.TryTake(isMsg(b), time.Second); ok {
			t.Error("a message came to a device that is left alone")
		}
		b.Alive()
		b.Ack(1)
		m := b.Msg()
		equal(t, "text after the acknowledgement", m.Text(), "two")
		equal(t, "attempt", m.Attempt, 0)
		b.Ack(2)
		if _, ok := b.TryTake(isMsg(b), time.Second); ok {
			t.Error("an acknowledged message came again")
		}
	})
}

// A device that was left alone gets everything when it connects anew.
func TestRetransmissionEndsWithReconnect(t *testing.T) {
	t.Parallel()
	s := fast(t)
	alice, bob := name("alice"), name("bob")
	a, b := chat(t, s, 4, alice, "1"), session(t, s, 4, bob, "1")
	subscribed(t, b, "im/u/"+bob+"/+")
	a.Send(bob, "one")
	for b.Msg().Attempt < 3 {
	}
	b.Kill()
	b = session(t, s, 4, bob, "1")
	m := b.Msg()
	equal(t, "text", m.Text(), "one")
	equal(t, "attempt", m.Attempt, 0)
}

// The ack command ends retransmission, for that device alone.
func TestRetransmissionPerDevice(t *testing.T) {
	t.Parallel()
	s := fast(t)
	alice, bob := name("alice"), name("bob")
	a, b1, b2 := chat(t, s, 5, alice, "1"), chat(t, s, 5, bob, "1"), chat(t, s, 5, bob, "2")
	a.Send(bob, "one")
	b1.Msg()
	b1.Ack(1)
	b2.Msg()
	m := b2.Msg()
	equal(t, "attempt at the other device", m.Attempt, 1)
	b2.Ack(1)
	a.Receipt("delivered")
	if _, ok := b1.TryTake(isMsg(b1), time.Second); ok {
		t.Error("a message came again to the device that acknowledged it")
	}
}

// A message whose PUBACK stays out may not be repeated on the connection: it is closed, and the next one goes on from
// the cursor.
func TestRetransmissionWithoutPuback(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		s := fast(t)
		for _, filter := range []string{"im/u/ME", "im/u/ME/+"} {
			alice, bob := name("alice"), name("bob")
			a := chat(t, s, v, alice, "1")
			b := session(t, s, v, bob, "1")
			subscribed(t, b, replaceMe(filter, bob))
			next := func() string {
				if filter == "im/u/ME" {
					return string(b.Plain().Payload)
				}
				return text(b.Msg())
			}
			a.Send(bob, "one")
			equal(t, "first", next(), "one")
			if filter != "im/u/ME" {
				b.Ack(1)
			}
			settle(b, b)
			b.Hold(true)
			a.Send(bob, "two")
			equal(t, "second", next(), "two")
			equal(t, "DISCONNECT", b.Closed(), code(v, 0, 0x80))
			equal(t, "repetitions on that connection", b.Count("im/u/"+bob)+b.Count(b.Topic("msg")), 0)
			b = session(t, s, v, bob, "1")
			equal(t, "session present", b.Connack.SessionPresent, true)
			equal(t, "after reconnect", next(), "two")
			settle(b, b)
			b.Disconnect()
		}
	})
}

// The same holds for a retransmission whose own PUBACK stays out.
func TestRetransmissionItselfWithoutPuback(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		s := fast(t)
		alice, bob := name("alice"), name("bob")
		a, b := chat(t, s, v, alice, "1"), chat(t, s, v, bob, "1")
		a.Send(bob, "one")
		b.Msg()
		b.Hold(true)
		m := b.Msg()
		equal(t, "attempt", m.Attempt, 1)
		equal(t, "DISCONNECT", b.Closed(), code(v, 0, 0x80))
		equal(t, "repetitions on that connection", b.Count(b.Topic("msg")), 0)
	})
}

// At most delivery.window messages are unacknowledged; the rest waits in the log, in order.
func TestWindow(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		s := mqtest.Start(t, mqtest.Config{"delivery": "{window: 4, ack_timeout: 60s}"})
		alice, bob := name("alice"), name("bob")
		a := chat(t, s, v, alice, "1")
		b, p := chat(t, s, v, bob, "im"), plain(t, s, v, bob, "plain")
		p.Hold(true)
		for range 20 {
			a.Send(bob, "x")
		}
		settle(a, b, p)
		equal(t, "messages before any ack", b.Count(b.Topic("msg")), 4)
		equal(t, "plain messages before any PUBACK", p.Count("im/u/"+bob), 4)
		for want := uint64(1); want <= 20; want++ {
			m := b.Msg()
			equal(t, "seq", m.Seq, want)
			b.Ack(m.Seq)
			p.Puback(p.Plain())
		}
		a.Receipt("delivered")
	})
}

func isMsg(c *mqtest.Client) func(*packet) bool {
	topic := c.Topic("msg")
	return func(p *packet) bool { return p.TopicName == topic }
}
