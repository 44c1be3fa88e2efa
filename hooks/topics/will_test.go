package topics

import (
	"testing"
	"testing/synctest"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/hooks/link"
)

// Trap 9: mochi publishes wills unchecked.
func TestWillsAreChecked(t *testing.T) {
	r := newRig(t, setup{})
	r.rules.deny("secret")
	for _, c := range []struct {
		topic  string
		v5, v3 byte
	}{{"secret", 0x87, 5}, {"im/u/bob/msg", 0x87, 5}, {"im/x", 0x87, 5}, {"$SYS/x", 0x90, 5}, {"a/#", 0x90, 5}} {
		for v, want := range map[byte]byte{5: c.v5, 4: c.v3} {
			p, ack := r.open("p", func(pk *packets.Packet) { pk.ProtocolVersion = v }, testament(c.topic, "x", 1, false, 0))
			if ack.ReasonCode != want {
				t.Errorf("CONNACK for a will to %s, version %d: got %#x, want %#x", c.topic, v, ack.ReasonCode, want)
			}
			if _, err := p.read(); err == nil {
				t.Error("the connection goes on after a refusal")
			}
		}
	}
}

func TestWills(t *testing.T) {
	r := newRig(t, setup{})
	sub, bob := r.connect("sub", v5), r.connect("bob")
	sub.subscribe("#", 1)
	bob.subscribe("im/u/bob", 1)

	p := r.connect("p", testament("w", "said goodbye", 1, true, 0))
	p.disconnect(0)
	r.gone("p")
	p = r.connect("p", v5, testament("w", "0x04", 1, false, 0))
	p.disconnect(4)
	sub.message("0x04")

	r.connect("p", v5, testament("w", "taken over", 1, false, 0))
	q := r.connect("p", v5, testament("w", "lost", 1, false, 0), func(pk *packets.Packet) {
		pk.Connect.WillProperties.User = []packets.UserProperty{{Key: "k", Val: "v"}}
		pk.Connect.WillProperties.ContentType = "text"
		pk.Connect.WillProperties.MessageExpiryInterval = 50
	})
	sub.message("taken over")
	_ = q.conn.Close()
	if got := sub.message("lost").Properties; len(got.User) != 1 || got.ContentType != "text" || got.MessageExpiryInterval == 0 {
		t.Errorf("will properties: got %+v", got)
	}

	_ = r.connect("p", testament("w/retained", "stays", 1, true, 0)).conn.Close()
	sub.message("stays")
	late := r.connect("late")
	late.subscribe("w/+", 1)
	if pk := late.message("stays"); !pk.FixedHeader.Retain {
		t.Error("RETAIN: got 0, want 1")
	}

	p = r.connect("p", testament("changed", "no", 1, false, 0))
	r.rules.deny("changed")
	_ = p.conn.Close()
	r.gone("p")
	if got := r.counts.drops(dropWill); got != 1 {
		t.Errorf("denied when due: got %d, want 1", got)
	}

	// A breach of MQTT is no goodbye either.
	p = r.connect("p", testament("w", "breach", 1, false, 0))
	p.write([]byte{0x36, 5, 0, 1, 't', 0, 1})
	sub.message("breach")

	// Nor is what the server does while it handles a packet; mochi takes it for one.
	closing := func(cl *mqtt.Client) {
		if cl.ID == "p" {
			link.Of(cl).Disconnect(packets.ErrAdministrativeAction)
		}
	}
	r.tail.processed.Store(&closing)
	p = r.connect("p", testament("w", "closed", 1, false, 0))
	p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	sub.message("closed")

	_ = r.connect("p", testament("im/u/bob", "to bob", 1, true, 0)).conn.Close()
	bob.message("to bob")
	sub.ping()
}

// The will waits for its delay, but no longer than the session lives, and not if the client is back.
func TestWillDelay(t *testing.T) {
	for _, c := range []struct {
		name    string
		delay   uint32
		session uint32
		back    time.Duration // reconnects after
		clean   bool          // with a clean start
		at      time.Duration // when the will comes; 0: never
	}{
		{"delay", 10, 60, 0, false, 10 * time.Second},
		{"resumed", 10, 60, 5 * time.Second, false, 0},
		{"session shorter than delay", 10, 4, 0, false, 4 * time.Second},
		{"no session", 10, 0, 0, false, time.Nanosecond},
		{"clean start", 10, 60, 5 * time.Second, true, 5 * time.Second},
		{"no delay", 0, 60, 0, false, time.Nanosecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, setup{pipes: true})
				sub := r.connect("sub")
				sub.subscribe("w", 1)
				p := r.connect("p", expiry(c.session), testament("w", "gone", 1, false, c.delay))
				_ = p.conn.Close()
				synctest.Wait()
				start := time.Now()
				if c.back > 0 {
					time.Sleep(c.back)
					again := r.connect("p", expiry(c.session), func(pk *packets.Packet) { pk.Connect.Clean = c.clean })
					if again.present == c.clean {
						t.Errorf("session present: got %v", again.present)
					}
				}
				if c.at == 0 {
					time.Sleep(time.Minute)
					sub.ping()
					return
				}
				sub.message("gone")
				if d := time.Since(start); d < c.at-time.Second || d > c.at+time.Second {
					t.Errorf("the will came after %v, want %v", d, c.at)
				}
			})
		})
	}
}

// A will that waits is not published when the server stops: it waits on at the next start.
func TestWillsWaitOverStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, setup{pipes: true})
		_ = r.connect("p", expiry(100), testament("w", "x", 1, true, 50)).conn.Close()
		synctest.Wait()
		if err := r.hook.Stop(); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		if n := r.retained(); n != 0 {
			t.Errorf("retained: got %d, want 0", n)
		}
		if list, err := r.store.Wills(t.Context(), "", 10); err != nil || len(list) != 1 || list[0].Due == 0 {
			t.Errorf("wills: got %+v, %v, want the one that waits", list, err)
		}
	})
}

// What is left of the expiry interval is passed on, and what has expired is not [MQTT-3.3.2-5] [MQTT-3.3.2-6].
func TestMessageExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, setup{pipes: true, Options: Options{QueueMessages: 3}})
		sub, pub := r.connect("sub", expiry(3600)), r.connect("pub", v5)
		sub.subscribe("t/+", 1)
		sub.disconnect(0)
		lasts := func(n uint32) func(*packets.Packet) {
			return func(pk *packets.Packet) { pk.Properties.MessageExpiryInterval = n }
		}
		pub.publish("t/1", "short", 1, lasts(10), retain)
		pub.publish("t/2", "long", 1, lasts(100), retain)
		pub.publish("t/3", "ever", 1)
		time.Sleep(20*time.Second + 500*time.Millisecond)
		pub.publish("t/4", "fits, since short has expired", 1)
		sub = r.connect("sub", expiry(3600))
		if pk := sub.message("long"); pk.Properties.MessageExpiryInterval != 80 {
			t.Errorf("expiry: got %d, want 80", pk.Properties.MessageExpiryInterval)
		}
		if pk := sub.message("ever"); pk.Properties.MessageExpiryInterval != 0 {
			t.Errorf("expiry: got %d, want none", pk.Properties.MessageExpiryInterval)
		}
		sub.message("fits, since short has expired")
		sub.subscribe("+/+", 1)
		sub.message("long") // short is not retained any more
		sub.ping()
		if got := r.counts.drops(dropExpired); got != 1 {
			t.Errorf("expired: got %d, want 1", got)
		}
		// Nothing that waits for room is sent after its time.
		slow := r.connect("slow", receiveMaximum(1))
		slow.subscribe("u", 1)
		pub.publish("u", "first", 1)
		pub.publish("u", "second", 1, lasts(5))
		pub.publish("u", "third", 1)
		pk := slow.expect(packets.Publish)
		time.Sleep(6 * time.Second)
		slow.ack(pk)
		slow.message("third")
	})
}

// Trap 19: the subscriptions of sessions that have expired.
func TestExpiredSessionLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, setup{pipes: true})
		sub, pub := r.connect("sub", expiry(10)), r.connect("pub")
		sub.subscribe("t", 1)
		sub.subscribe("$share/g/t", 1)
		_ = sub.conn.Close()
		pub.publish("t", "lost", 1)
		time.Sleep(15 * time.Second)
		subs := r.server.Topics.Subscribers("t")
		if n := len(subs.Subscriptions) + len(subs.Shared); n != 0 {
			t.Errorf("subscriptions left: got %d, want 0", n)
		}
		if subs, err := r.store.Subscriptions(t.Context(), "sub"); err == nil && len(subs) != 2 {
			t.Errorf("before maintenance: got %d subscriptions, want 2", len(subs))
		}
		if _, err := r.store.Maintain(t.Context(), time.Now()); err != nil {
			t.Error(err)
		}
		if subs, err := r.store.Subscriptions(t.Context(), "sub"); err != nil || len(subs) > 0 {
			t.Errorf("got %v, %v, want no subscriptions", subs, err)
		}
		if got := r.store.Metrics().QueuedLost; got != 2 {
			t.Errorf("lost with the session: got %d, want 2", got)
		}
		if sub = r.connect("sub", expiry(10)); sub.present {
			t.Error("session present: got true, want false")
		}
	})
}
