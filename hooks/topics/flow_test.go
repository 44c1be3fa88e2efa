package topics

import (
	"fmt"
	"io"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/transport"
)

// Trap 6: Receive Maximum and concurrent publishers made mochi's inflight table lock up.
func TestReceiveMaximum(t *testing.T) {
	const publishers, each, limit = 8, 120, 10
	r := newRig(t, setup{})
	sub := r.connect("sub", receiveMaximum(limit))
	sub.subscribe("t/#", 1)
	var wg sync.WaitGroup
	for i := range publishers {
		p := r.connect(fmt.Sprintf("pub%d", i), v5)
		wg.Go(func() {
			for n := range each {
				if code := p.publish("t/"+p.name, fmt.Sprintf("%s %d", p.name, n), 1); code != 0 {
					t.Errorf("PUBACK: got %#x, want 0", code)
				}
			}
		})
	}
	wg.Wait() // nobody waits for the subscriber, who has not acknowledged anything yet
	var open []uint16
	next := map[string]int{}
	for got := 0; got < publishers*each; {
		if len(open) == limit || got+len(open) == publishers*each {
			sub.ping() // the next packet is the answer: nothing came beyond the limit
			for _, id := range open {
				sub.reply(packets.Puback, id)
			}
			got += len(open)
			open = nil
			continue
		}
		pk := sub.expect(packets.Publish)
		name, n, _ := strings.Cut(string(pk.Payload), " ")
		if want := strconv.Itoa(next[name]); n != want {
			t.Fatalf("message of %s: got %s, want %s", name, n, want)
		}
		next[name]++
		open = append(open, pk.PacketID)
	}
	if d := r.counts.all(); d != "map[]" {
		t.Errorf("dropped: got %s, want nothing", d)
	}
}

// Trap 4: a subscriber that does not read delays nobody and costs no more than its buffers.
func TestStalledReaderDelaysNobody(t *testing.T) {
	const queue = 64 << 10
	r := newRig(t, setup{Options: Options{QueueBytes: queue}, transport: transport.Options{WriteBuffer: 32 << 10}})
	for name, how := range map[string][]connect{"stalled": nil, "stalled-persistent": {persistent}} {
		r.connect(name, how...).subscribe("t", 1) // and reads no more
	}
	slow := r.connect("stalled-at-0")
	slow.subscribe("t", 0)
	good, pub := r.connect("good"), r.connect("pub")
	good.subscribe("t", 1)
	body := strings.Repeat("x", 8<<10)
	for range 2000 { // 16 MB, more than the kernel's buffers hold
		if code := pub.publish("t", body, 1); code != 0 {
			t.Fatalf("PUBACK: got %#x, want 0", code)
		}
		good.message(body)
	}
	for _, name := range []string{"stalled", "stalled-persistent"} {
		s := r.session(name)
		s.mu.Lock()
		if s.waiting > windowBytes+2*len(body) || s.flying > queue+len(body)+overhead+16 {
			t.Errorf("%s: got %d bytes waiting and %d on their way, want at most %d each", name, s.waiting, s.flying, queue)
		}
		s.mu.Unlock()
	}
	if r.counts.drops(dropBytes) == 0 || r.counts.drops(dropNoRoom) == 0 {
		t.Errorf("dropped: got %s, want %s and %s counted", r.counts.all(), dropBytes, dropNoRoom)
	}
}

// Trap 7: a slow subscriber at QoS 1 loses nothing that its queue can hold.
func TestSlowSubscriberLosesNothing(t *testing.T) {
	const n = 900
	r := newRig(t, setup{transport: transport.Options{WriteBuffer: 4 << 10}})
	for _, kind := range []struct {
		name string
		how  []connect
	}{{"3.1.1", nil}, {"3.1.1 persistent", []connect{persistent}}, {"5", []connect{receiveMaximum(3)}}} {
		t.Run(kind.name, func(t *testing.T) {
			sub, pub := r.connect("sub", kind.how...), r.connect("pub")
			sub.subscribe("t", 1)
			for i := range n {
				pub.publish("t", strconv.Itoa(i), 1)
			}
			for i := range n {
				sub.message(strconv.Itoa(i))
			}
			sub.ping()
			if d := r.counts.all(); d != "map[]" {
				t.Errorf("dropped: got %s, want nothing", d)
			}
		})
	}
}

// What does not fit is dropped, the oldest first, and counted.
func TestFullQueueDropsTheOldest(t *testing.T) {
	r := newRig(t, setup{Options: Options{QueueMessages: 5}})
	sub, pub := r.connect("sub", receiveMaximum(1)), r.connect("pub")
	sub.subscribe("t", 1)
	for i := range 10 {
		pub.publish("t", strconv.Itoa(i), 1)
	}
	for _, i := range []int{0, 5, 6, 7, 8, 9} {
		sub.message(strconv.Itoa(i))
	}
	sub.ping()
	if got := r.counts.drops(dropMessages); got != 4 {
		t.Errorf("dropped: got %d, want 4", got)
	}
}

// Traps 7 and 18: reconnecting and taking over lose nothing and keep the order.
func TestReconnectsLoseNothing(t *testing.T) {
	const n = 6000
	for _, kind := range []struct {
		name string
		how  []connect
		qos  byte
	}{{"3.1.1", []connect{persistent}, 1}, {"5", []connect{expiry(100), receiveMaximum(7)}, 1}, {"QoS 2", []connect{expiry(100)}, 2}} {
		t.Run(kind.name, func(t *testing.T) {
			r := newRig(t, setup{Options: Options{QueueMessages: n}})
			sub := r.connect("sub", kind.how...)
			sub.subscribe("t", kind.qos)
			pub := r.connect("pub")
			var wg sync.WaitGroup
			wg.Go(func() {
				for i := range n {
					if code := pub.publish("t", strconv.Itoa(i), kind.qos); code != 0 {
						t.Errorf("acknowledged with %#x, want 0", code)
					}
				}
			})
			seen, again := 0, 0
			received := map[uint16]bool{} // QoS 2: this client's state [MQTT-4.3.3-2]
			for round := 0; seen < n; round++ {
				for step, open := 0, 0; step < 200 && open < 7 && seen < n; step++ {
					pk, err := sub.read()
					if err != nil {
						t.Fatalf("after %d messages: %v", seen, err)
					}
					if pk.FixedHeader.Type == packets.Pubrel {
						delete(received, pk.PacketID)
						sub.reply(packets.Pubcomp, pk.PacketID)
						continue
					}
					i, err := strconv.Atoi(string(pk.Payload))
					if err != nil || pk.FixedHeader.Type != packets.Publish {
						t.Fatalf("got %v, want a message", pk)
					}
					switch {
					case kind.qos == 2 && received[pk.PacketID]:
						again++
					case i == seen:
						seen++
					case i > seen || kind.qos == 2:
						t.Fatalf("got message %d, want %d", i, seen)
					default:
						again++
						if !pk.FixedHeader.Dup {
							t.Errorf("message %d again without DUP", i)
						}
					}
					if kind.qos == 2 {
						received[pk.PacketID] = true
						sub.reply(packets.Pubrec, pk.PacketID)
					} else if step%15 > 0 {
						sub.reply(packets.Puback, pk.PacketID)
					} else {
						open++
					}
				}
				if seen == n {
					break
				}
				switch round % 3 {
				case 0: // the server sees all acknowledgements before the end
					_ = sub.conn.(*net.TCPConn).CloseWrite()
					_, _ = io.Copy(io.Discard, sub.r)
					_ = sub.conn.Close()
				case 1: // perhaps not
					_ = sub.conn.Close()
				} // else the new connection takes over
				sub = r.connect("sub", kind.how...)
				if !sub.present {
					t.Fatal("session present: got false, want true")
				}
			}
			wg.Wait()
			t.Logf("%d messages, %d of them again, dropped: %s", seen, again, r.counts.all())
			if d := r.counts.all(); d != "map[]" {
				t.Errorf("dropped: got %s, want nothing", d)
			}
		})
	}
}

// A persistent session collects while it is away, at QoS 1 and 2; another clean start throws it away.
func TestOfflineSession(t *testing.T) {
	r := newRig(t, setup{})
	pub := r.connect("pub")
	for name, how := range map[string]connect{"3.1.1": persistent, "5": expiry(60)} {
		t.Run(name, func(t *testing.T) {
			sub := r.connect("sub", how)
			sub.subscribe("t", 2)
			sub.disconnect(0)
			r.gone("sub")
			pub.publish("t", "zero", 0)
			pub.publish("t", "one", 1)
			pub.publish("t", "two", 2)
			sub = r.connect("sub", how)
			if !sub.present {
				t.Error("session present: got false, want true")
			}
			for _, want := range []string{"one", "two"} {
				if pk := sub.message(want); pk.FixedHeader.Dup {
					t.Errorf("message %s: got DUP, want none: it was never sent", want)
				}
			}
			sub.ping()
			_ = sub.conn.Close()
			r.gone("sub")
			pub.publish("t", "three", 1)
			sub = r.connect("sub") // clean
			if sub.present {
				t.Error("session present after a clean start: got true, want false")
			}
			pub.publish("t", "four", 1)
			sub.ping()
			sub.disconnect(0)
			r.gone("sub")
		})
	}
}

// mochi resumes a session of MQTT 5 that was to end with its connection when another connection takes it over.
func TestTakeOverEndsSessionWithoutExpiry(t *testing.T) {
	r := newRig(t, setup{})
	old := r.connect("sub", v5)
	old.subscribe("t", 1)
	sub := r.connect("sub", expiry(60))
	if sub.present {
		t.Error("session present: got true, want false")
	}
	r.connect("pub").publish("t", "x", 1)
	sub.ping()
	old.expect(packets.Disconnect)
	// The registration survives what mochi does after the old connection.
	sub.subscribe("t", 1)
	_ = sub.conn.Close()
	r.gone("sub")
	if sub = r.connect("sub", expiry(60)); !sub.present {
		t.Error("session present: got false, want true")
	}
}

// Trap 18: what mochi does for a connection after OnDisconnect does not hit the one that has taken over.
func TestTakeOverInALoop(t *testing.T) {
	r := newRig(t, setup{})
	slow := func(*mqtt.Client) { time.Sleep(2 * time.Millisecond) } // widens the gap
	r.tail.disconnected.Store(&slow)
	for i := range 50 {
		r.connect("x", v5)              // ends with its connection,
		a := r.connect("x", expiry(60)) // which this one ends,
		a.subscribe("t", 1)             //
		b := r.connect("x", expiry(60)) // and this one goes on
		time.Sleep(3 * time.Millisecond)
		if now, ok := r.server.Clients.Get("x"); !b.present || !ok || now.State.Subscriptions.Len() != 1 {
			t.Fatalf("round %d: session present: got %v, known to mochi: %v", i, b.present, ok)
		}
	}
}

// What is sent first on a new connection leaves the packet ids alone that are to be used again.
func TestPacketIDsAreKeptForResending(t *testing.T) {
	r := newRig(t, setup{pipes: true})
	c := r.attachDeaf("sub", "t", 1)
	s := r.session("sub")
	for id := range uint16(3) {
		c.Keep(id + 1)
	}
	publish := func(id uint16) {
		if !c.Publish(&link.Publication{Topic: "t", QoS: 1, Owner: s, ID: id}) {
			t.Fatal("no room")
		}
	}
	for _, id := range []uint16{0, 2, 0, 1} {
		publish(id)
	}
	ids := map[uint16]bool{}
	for _, f := range c.Flights(s) {
		ids[f.ID] = true
	}
	if want := (map[uint16]bool{1: true, 2: true, 4: true, 5: true}); !maps.Equal(ids, want) {
		t.Errorf("packet ids: got %v, want %v", ids, want)
	}
}

// A message does not overtake those that wait, though there is room.
func TestNoOvertaking(t *testing.T) {
	r := newRig(t, setup{})
	sub, pub := r.connect("sub"), r.connect("pub")
	sub.subscribe("t", 1)
	s := r.session("sub")
	s.mu.Lock()
	s.push(item{m: &message{Topic: "t", Payload: []byte("first"), QoS: 1}, qos: 1})
	s.mu.Unlock()
	pub.publish("t", "second", 1)
	s.Room()
	sub.message("first")
	sub.message("second")
}

// A session that the registry has forgotten (the device was removed) is not one that mochi resumes.
func TestForgottenSession(t *testing.T) {
	r := newRig(t, setup{})
	sub := r.connect("sub", expiry(60))
	sub.subscribe("t", 1)
	r.hook.opt.Registry.Forget("sub")
	_ = sub.conn.Close()
	r.gone("sub")
	if sub = r.connect("sub", expiry(60)); sub.present {
		t.Error("session present: got true, want false")
	}
	r.connect("pub").publish("t", "x", 1)
	sub.ping()
}

// A connection that takes over between two messages of one batch is kicked, too.
func TestKicksFollowTheConnection(t *testing.T) {
	r := newRig(t, setup{pipes: true})
	r.attachDeaf("sub", "t", 0)
	s, other := r.session("sub"), r.attachDeaf("other", "", 0)
	k := kicks{stamp: r.hook.stamps.Add(1)}
	offer := func(want int) {
		t.Helper()
		if got := s.offer(&outgoing{message: message{Topic: "t"}}, &target{s: s}, &k, 0); got != delivered || len(k.conns) != want {
			t.Errorf("got outcome %d and %d connections to kick, want %d and %d", got, len(k.conns), delivered, want)
		}
	}
	offer(1)
	offer(1)
	s.attach(other)
	offer(2)
	k.flush(r.hook)
	offer(1)
	k.flush(r.hook)
}
