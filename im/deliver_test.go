package im

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mqim/mqim/store"
)

// wantAttempts checks attempts and times of the deliveries of one seq.
func wantAttempts(t *testing.T, l *fakeLink, seq uint64, start time.Time, want ...time.Duration) {
	t.Helper()
	n := 0
	for _, d := range l.deliveries() {
		if d.seq != seq {
			continue
		}
		if n >= len(want) {
			t.Errorf("seq %d: attempt %d after %v, want none", seq, d.attempt, d.at.Sub(start))
		} else if d.attempt != n || d.at.Sub(start) != want[n] {
			t.Errorf("seq %d: attempt %d after %v, want %d after %v", seq, d.attempt, d.at.Sub(start), n, want[n])
		}
		n++
	}
	if n < len(want) {
		t.Errorf("seq %d: delivered %d times, want %d", seq, n, len(want))
	}
}

// TestRetransmit: a message that the peer has taken and the application does not acknowledge is sent again, attempt
// after attempt at doubling intervals, and then left alone until something is acknowledged.
func TestRetransmit(t *testing.T) {
	bubble(t, Config{AckTimeout: 10 * time.Second, MaxAttempts: 3}, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		start := time.Now()
		w.send(a, "bob", "1")
		time.Sleep(5 * time.Minute)
		wantAttempts(t, b, 1, start, 0, 10*time.Second, 30*time.Second, 70*time.Second)

		w.send(a, "bob", "2") // waits in the log: the device rests
		synctest.Wait()
		wantSeqs(t, b, 1)
		w.ok(b, nil, "ack", `{"seq":1}`)
		synctest.Wait()
		start = time.Now()
		wantSeqs(t, b, 1, 2)
		time.Sleep(20 * time.Second)
		wantAttempts(t, b, 2, start, 0, 10*time.Second)
		if len(b.closes()) > 0 {
			t.Errorf("closed: %v", b.closes())
		}
	})
}

// TestRetransmitBehindSlowOne: the timer of one message, far off after some attempts, does not put off another's.
func TestRetransmitBehindSlowOne(t *testing.T) {
	bubble(t, Config{AckTimeout: 10 * time.Second, MaxAttempts: 8}, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.send(a, "bob", "1")
		time.Sleep(155 * time.Second) // the next attempt is due at 310 s
		start := time.Now()
		w.send(a, "bob", "2")
		time.Sleep(11 * time.Second)
		wantAttempts(t, b, 2, start, 0, 10*time.Second)
	})
}

// TestRestResumesOthers: an ack ends the rest of all, and their attempts are counted anew.
func TestRestResumesOthers(t *testing.T) {
	bubble(t, Config{AckTimeout: 10 * time.Second, MaxAttempts: 1}, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.sendMany(a, "bob", 1, 2)
		time.Sleep(5 * time.Minute)
		if n := len(b.deliveries()); n != 4 {
			t.Fatalf("got %d deliveries before the rest, want 4", n)
		}
		w.ok(b, nil, "ack", `{"ids":["%d"]}`, b.deliveries()[1].id)
		time.Sleep(5 * time.Minute)
		got := b.deliveries()
		if len(got) != 5 || got[4].seq != 1 || got[4].attempt != 1 {
			t.Fatalf("after the ack of the second got %+v, want the first once more", got[4:])
		}
	})
}

// TestNoProgress: a peer that takes nothing for AckTimeout is closed, and not sent the message again on that connection.
func TestNoProgress(t *testing.T) {
	for _, p := range []Profile{Plain, IM} {
		t.Run(p.String(), func(t *testing.T) {
			bubble(t, Config{AckTimeout: 10 * time.Second, MaxAttempts: 3}, func(t *testing.T, w *world) {
				a := w.connect("alice", "a", persistent, IM)
				b := w.connect("bob", "b", persistent, p)
				b.auto = false
				w.sendMany(a, "bob", 1, 3)
				time.Sleep(9 * time.Second)
				b.dev.Taken(1) // progress: ten more seconds
				time.Sleep(9 * time.Second)
				synctest.Wait()
				if got := b.closes(); len(got) != 0 {
					t.Fatalf("closed %v although it makes progress", got)
				}
				time.Sleep(2 * time.Second)
				synctest.Wait()
				if got := b.closes(); !slices.Equal(got, []CloseReason{CloseNoAck}) {
					t.Fatalf("got closes %v, want one for want of an ack", got)
				}
				wantSeqs(t, b, 1, 2, 3)
				b.dev.Disconnect(false)
				c := w.connect("bob", "b", persistent, p)
				synctest.Wait()
				if p == IM {
					wantSeqs(t, c, 1, 2, 3)
				} else {
					wantSeqs(t, c, 2, 3)
				}
			})
		})
	}
}

// TestNoProgressOnRetransmission: the peer has to take a retransmission, too.
func TestNoProgressOnRetransmission(t *testing.T) {
	bubble(t, Config{AckTimeout: 10 * time.Second, MaxAttempts: 3}, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.send(a, "bob", "1")
		synctest.Wait()
		b.mu.Lock()
		b.auto = false
		b.mu.Unlock()
		time.Sleep(19 * time.Second)
		if n := len(b.deliveries()); n != 2 || len(b.closes()) != 0 {
			t.Fatalf("after 19 s: %d deliveries, closes %v; want 2 and none", n, b.closes())
		}
		time.Sleep(2 * time.Second)
		if n := len(b.deliveries()); n != 2 || len(b.closes()) != 1 {
			t.Fatalf("after 21 s: %d deliveries, closes %v; want 2 and one", n, b.closes())
		}
	})
}

// TestWindow: no more than Window messages are on their way; the rest waits in the log and follows the acks, in order.
func TestWindow(t *testing.T) {
	const window, total = 5, 23
	for _, p := range []Profile{Plain, IM} {
		t.Run(p.String(), func(t *testing.T) {
			bubble(t, Config{Window: window, AckTimeout: time.Hour}, func(t *testing.T, w *world) {
				a := w.connect("alice", "a", persistent, IM)
				b := w.connect("bob", "b", persistent, p)
				b.auto = p == IM
				w.sendMany(a, "bob", 1, total)
				synctest.Wait()
				for n := window; n < total; n += 2 {
					wantSeqs(t, b, span(1, uint64(n))...)
					if _, _, win := b.place(); win != window {
						t.Fatalf("%d in the window, want %d", win, window)
					}
					for seq := uint64(n - window + 1); seq <= uint64(n-window+2); seq++ {
						if p == Plain {
							b.dev.Taken(seq)
						} else {
							w.ok(b, nil, "ack", `{"seq":%d}`, seq)
						}
					}
					synctest.Wait()
				}
				wantSeqs(t, b, span(1, total)...)
			})
		})
	}
}

// TestNoRoom: a link without room gets nothing, loses nothing, and delays nobody.
func TestNoRoom(t *testing.T) {
	bubble(t, Config{AckTimeout: time.Hour}, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		slow, fast := w.connect("bob", "slow", persistent, IM), w.connect("bob", "fast", persistent, Plain)
		slow.setRoom(2)
		w.sendMany(a, "bob", 1, 6)
		synctest.Wait()
		wantSeqs(t, fast, span(1, 6)...)
		wantSeqs(t, slow, 1, 2)
		if _, next, win := slow.place(); next != 3 || win != 2 {
			t.Fatalf("slow: next %d with %d in the window, want 3 with 2", next, win)
		}
		slow.setRoom(1)
		synctest.Wait()
		wantSeqs(t, slow, 1, 2, 3)
		slow.setRoom(-1)
		synctest.Wait()
		wantSeqs(t, slow, span(1, 6)...)
		w.send(a, "bob", "7")
		synctest.Wait()
		wantSeqs(t, slow, span(1, 7)...)
	})
}

// TestNoRoomForRetransmission: an attempt that found no room does not count.
func TestNoRoomForRetransmission(t *testing.T) {
	bubble(t, Config{AckTimeout: 10 * time.Second, MaxAttempts: 2}, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.send(a, "bob", "1")
		synctest.Wait()
		b.setRoom(0)
		time.Sleep(4 * time.Minute)
		b.setRoom(-1)
		time.Sleep(4 * time.Minute)
		var attempts []int
		for _, d := range b.deliveries() {
			attempts = append(attempts, d.attempt)
		}
		if !slices.Equal(attempts, []int{0, 1, 2}) {
			t.Fatalf("got attempts %v, want 0 1 2", attempts)
		}
	})
}

// TestSwitchProfile: delivery goes on where it was; each message counts as acknowledged by the rules of the profile in
// which it was sent.
func TestSwitchProfile(t *testing.T) {
	bubble(t, Config{AckTimeout: 10 * time.Second, MaxAttempts: 5}, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		b.auto = false
		w.send(a, "bob", "1")
		synctest.Wait()
		b.dev.SetProfile(None, 0)
		w.send(a, "bob", "2")
		b.dev.Taken(1) // PUBACK is no acknowledgement for what was sent as JSON
		time.Sleep(time.Minute)
		wantSeqs(t, b, 1)
		wantCursor(t, b, 0)

		b.mu.Lock()
		b.auto, b.untaken = true, nil
		b.mu.Unlock()
		b.dev.SetProfile(Plain, everything)
		time.Sleep(time.Millisecond)
		wantCursor(t, b, 2) // sent again, and then the second
		var got []string
		for _, d := range b.deliveries() {
			got = append(got, fmt.Sprint(d.seq, d.profile, d.attempt))
		}
		slices.Sort(got)
		if want := []string{"1 im 0", "1 plain 1", "2 plain 0"}; !slices.Equal(got, want) {
			t.Fatalf("got %q, want %q", got, want)
		}
	})
}

// TestPumpFailure: an inbox that cannot be read is tried again, and nothing is passed over.
func TestPumpFailure(t *testing.T) {
	bubble(t, Config{Window: 4, AckTimeout: time.Minute, MaxAttempts: 5}, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		w.sendMany(a, "bob", 1, 9)
		var healed atomic.Bool
		w.st.set(func() {
			w.st.onRead = func(user string, _ uint64) error {
				if !healed.Load() && user == "bob" {
					return errors.New("injected")
				}
				return nil
			}
		})
		b := w.connect("bob", "b", persistent, Plain)
		time.Sleep(10 * time.Second)
		wantSeqs(t, b)
		healed.Store(true)
		time.Sleep(2 * time.Second)
		wantSeqs(t, b, span(1, 9)...)
	})
}

// TestPumpFailureIsNotPutOff: the pump is tried again within a second although the device's timer stands far off.
func TestPumpFailureIsNotPutOff(t *testing.T) {
	bubble(t, Config{Window: 2, AckTimeout: 2 * time.Minute, MaxAttempts: 5}, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		var failed atomic.Bool
		w.st.set(func() {
			w.st.onRead = func(user string, _ uint64) error {
				if user == "bob" && !failed.Swap(true) {
					return errors.New("injected")
				}
				return nil
			}
		})
		w.sendMany(a, "bob", 1, 3)
		w.ok(b, nil, "ack", `{"ids":["%d"]}`, b.deliveries()[0].id)
		synctest.Wait()
		wantSeqs(t, b, 1, 2)
		time.Sleep(2 * time.Second)
		wantSeqs(t, b, 1, 2, 3)
	})
}

// hole is a store of which one user's inbox has lost its entries up to upto.
func (w *world) hole(user string, upto uint64) {
	w.st.set(func() { w.st.trim = func(u string) uint64 { return map[bool]uint64{u == user: upto}[true] } })
}

// TestTrimmed: what retention took before the device saw it is announced, and the rest is delivered.
func TestTrimmed(t *testing.T) {
	bubble(t, Config{AckTimeout: time.Hour}, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		w.sendMany(a, "bob", 1, 9)
		w.hole("bob", 6)
		b := w.connect("bob", "b", persistent, IM)
		synctest.Wait()
		wantSeqs(t, b, 7, 8, 9)
		ev := b.notesOf(Events, "inbox.trimmed")
		if len(ev) != 1 || ev[0].RangeStart != 1 || ev[0].raw != `{"type":"inbox.trimmed","from":1,"to":6}` {
			t.Fatalf("got events %+v, want one for 1 to 6", ev)
		}
		wantCursor(t, b, 6)
		w.ok(b, nil, "ack", `{"seq":9}`)
		wantCursor(t, b, 9)
	})
}

// TestTrimmedRace: a page that came back empty says nothing of what was committed after it was read.
func TestTrimmedRace(t *testing.T) {
	bubble(t, Config{AckTimeout: time.Hour}, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		w.sendMany(a, "bob", 1, 5)
		w.hole("bob", 5)
		sent := false
		w.st.set(func() {
			w.st.afterGot = func(user string, _ uint64) {
				if user == "bob" && !sent {
					sent = true
					tk := a.start("send", `{"to":"u/bob","body":"6"}`)
					for len(a.answersTo(tk)) == 0 {
						time.Sleep(time.Millisecond)
					}
					time.Sleep(time.Millisecond)
				}
			}
		})
		b := w.connect("bob", "b", persistent, IM)
		time.Sleep(time.Second)
		wantSeqs(t, b, 6)
	})
}

// TestNotShown: own, expired, recalled and deleted messages are passed over as each profile wants, and the sender is
// told nothing of what nobody saw.
func TestNotShown(t *testing.T) {
	bubble(t, Config{AckTimeout: time.Hour}, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		w.ok(a, nil, "send", `{"rid":"1","to":"u/bob","body":"expires","ttl":5}`)
		s := w.send(a, "bob", "recalled")
		w.ok(a, nil, "recall", `{"conv":"u/bob","cseq":%d}`, s.Cseq)
		time.Sleep(6 * time.Second)

		b := w.connect("bob", "b", persistent, Plain)
		synctest.Wait()
		wantSeqs(t, b)
		wantCursor(t, b, 2)
		if got := a.notesOf(Receipts, "delivered"); len(got) > 0 {
			t.Fatalf("receipts %+v for messages that nobody was shown", got)
		}
		c := w.connect("alice", "c", Session{}, IM) // starts at alice's cursor
		m := w.connect("bob", "m", persistent, IM)
		w.send(b, "alice", "from b")
		synctest.Wait()
		wantSeqs(t, b) // its own
		if got := m.bodies(); !slices.Equal(got, []string{"from b"}) {
			t.Errorf("bob's other device got %q", got)
		}
		if got := c.bodies(); !slices.Equal(got, []string{"from b"}) {
			t.Errorf("alice's second device got %q", got)
		}
		wantCursor(t, b, 3)
	})
}

// TestTombstone: the IM profile is shown a tombstone in the place of what was recalled before it was delivered.
func TestTombstone(t *testing.T) {
	bubble(t, Config{AckTimeout: time.Hour}, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		w.sendMany(a, "bob", 1, 3)
		w.ok(a, nil, "recall", `{"conv":"u/bob","cseq":2}`)
		b := w.connect("bob", "b", persistent, IM)
		synctest.Wait()
		wantSeqs(t, b, 1, 2, 3)
		if d := b.deliveries()[1]; !d.recalled || d.body != "" {
			t.Fatalf("got %+v, want a tombstone", d)
		}
	})
}

// TestExpiresOnTheWay: a message is not sent again once it has expired, and does not hold up the cursor.
func TestExpiresOnTheWay(t *testing.T) {
	bubble(t, Config{AckTimeout: 10 * time.Second, MaxAttempts: 5}, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.ok(a, nil, "send", `{"rid":"1","to":"u/bob","body":"x","ttl":25}`)
		time.Sleep(5 * time.Minute)
		if got := len(b.deliveries()); got != 2 {
			t.Fatalf("delivered %d times, want 2 (at 0 and 10 s)", got)
		}
		wantCursor(t, b, 1)
	})
}

// TestTooLarge: a message that the peer cannot take is passed over, in its turn, and the sender is told nothing.
func TestTooLarge(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, Plain)
		b.auto = false
		w.sendMany(a, "bob", 1, 3)
		synctest.Wait()
		b.dev.TooLarge(2)
		b.dev.TooLarge(9) // nothing of the kind is on its way
		wantCursor(t, b, 0)
		b.dev.Taken(1)
		wantCursor(t, b, 2)
		b.dev.TooLarge(3)
		wantCursor(t, b, 3)
		synctest.Wait()
		if rc := a.notesOf(Receipts, "delivered"); len(rc) != 1 || rc[0].Cseq != 1 {
			t.Errorf("got receipts %+v, want delivered up to 1", rc)
		}
	})
}

// TestReconfigureWindow: a smaller window takes effect without losing what is on its way.
func TestReconfigureWindow(t *testing.T) {
	bubble(t, Config{Window: 10, AckTimeout: time.Hour}, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.sendMany(a, "bob", 1, 8)
		w.e.Reconfigure(Config{Window: 3, AckTimeout: time.Hour})
		w.sendMany(a, "bob", 9, 12)
		synctest.Wait()
		wantSeqs(t, b, span(1, 8)...)
		w.ok(b, nil, "ack", `{"seq":6}`)
		synctest.Wait()
		wantSeqs(t, b, span(1, 9)...)
	})
}

// TestAfterClose: timers that stand when the engine is closed do nothing any more.
func TestAfterClose(t *testing.T) {
	bubble(t, Config{AckTimeout: 10 * time.Second, MaxAttempts: 5}, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		b.auto = false
		w.send(a, "bob", "1")
		synctest.Wait()
		w.e.Close(t.Context())
		time.Sleep(5 * time.Minute)
		if len(b.deliveries()) != 1 || len(b.closes()) != 0 {
			t.Fatalf("after Close: %d deliveries, closes %v", len(b.deliveries()), b.closes())
		}
		w.refused(Unavailable, a, "send", `{"to":"u/bob","body":"late"}`)
		if _, err := w.e.Connect(t.Context(), "carol", "c", persistent, newLink()); !errors.Is(err, store.ErrClosed) {
			t.Errorf("Connect after Close: %v, want %v", err, store.ErrClosed)
		}
		b.dev.Disconnect(false)
	})
}
