package im

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqim/mqim/store"
)

const team = store.Conv("g/team")

// postTeam sends a text to the group from no device in particular, and returns its cseq.
func (w *world) postTeam(from, body string) uint64 {
	w.t.Helper()
	return w.post("team", from, "", body)
}

func (w *world) postMany(from string, n int) (last uint64) {
	w.t.Helper()
	for i := range n {
		last = w.postTeam(from, fmt.Sprint(i))
	}
	return last
}

// change changes the group and returns the message's cseq.
func (w *world) change(edit func(c *store.Change), attach ...string) uint64 {
	w.t.Helper()
	return w.changeGroup("team", "owner", edit, attach...)
}

func asMembers(r store.Role, users ...string) (list []store.Member) {
	for _, u := range users {
		list = append(list, store.Member{User: u, Role: r})
	}
	return list
}

// create makes the group, with owner and members.
func (w *world) create(large bool, members ...string) uint64 {
	w.t.Helper()
	return w.change(func(c *store.Change) {
		c.Large, c.Members = large, asMembers(store.Ordinary, append([]string{"owner"}, members...)...)
	})
}

func (w *world) join(users ...string) uint64 {
	w.t.Helper()
	return w.change(func(c *store.Change) { c.Members = asMembers(store.Ordinary, users...) })
}

func (w *world) leave(users ...string) uint64 {
	w.t.Helper()
	return w.change(func(c *store.Change) { c.Members = asMembers(store.NoRole, users...) })
}

func (w *world) grow(members ...string) uint64 {
	w.t.Helper()
	return w.change(func(c *store.Change) { c.Large = true }, members...)
}

// hide deletes messages of the group for a user.
func (w *world) hide(user string, cseqs ...uint64) {
	w.t.Helper()
	b := store.Batch{Deletes: []store.Delete{{User: user, Conv: team, Cseqs: cseqs}}}
	if err := w.st.Commit(context.Background(), &b); err != nil {
		w.t.Fatal(err)
	}
}

// teamSeqs lists the cseqs of the group's first deliveries, in the order of arrival.
func (l *fakeLink) teamSeqs() (list []uint64) {
	for _, d := range l.deliveries() {
		if d.conv == team && d.attempt == 0 {
			list = append(list, d.cseq)
		}
	}
	return list
}

func wantTeam(t testing.TB, l *fakeLink, want ...uint64) {
	t.Helper()
	synctest.Wait()
	if got := l.teamSeqs(); !slices.Equal(got, want) {
		t.Fatalf("%s/%s: got cseqs %v, want %v", l.dev.User(), l.dev.ID(), got, want)
	}
}

func (w *world) ackTeam(l *fakeLink, cseq uint64) {
	w.t.Helper()
	w.ok(l, nil, "ack", `{"conv":"g/team","cseq":%d}`, cseq)
}

// bye ends a connection as the network does.
func (l *fakeLink) bye() { l.dev.Disconnect(!l.dev.session.Persistent) }

func (l *fakeLink) teamCursor() uint64 {
	l.dev.u.mu.Lock()
	defer l.dev.u.mu.Unlock()
	return l.dev.group(team).cursor
}

// TestLargeOnline: everybody who is connected gets a message at once, but for the device that sent it, without a seq.
func TestLargeOnline(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		w.create(true, "alice", "bob")
		a1, a2 := w.connect("alice", "1", persistent, IM), w.connect("alice", "2", Session{}, IM)
		b, c := w.connect("bob", "b", persistent, Plain), w.connect("carol", "c", persistent, IM)
		for i := uint64(2); i <= 5; i++ {
			w.post("team", "alice", "1", "hi")
		}
		wantTeam(t, a1, 1)
		wantTeam(t, a2, span(1, 5)...)
		wantTeam(t, b, span(1, 5)...)
		wantTeam(t, c)
		for _, d := range append(a2.deliveries(), b.deliveries()...) {
			if d.seq != 0 {
				t.Errorf("cseq %d has seq %d", d.cseq, d.seq)
			}
		}
		if n := b.teamCursor(); n != 5 {
			t.Errorf("plain: taken is acknowledged: cursor is %d, want 5", n)
		}
		w.ackTeam(a1, 1)
		if n := a1.teamCursor(); n != 5 {
			t.Errorf("sender: cursor is %d, want 5, beyond what it has sent", n)
		}
		w.ackTeam(a2, 3)
		if n := a2.teamCursor(); n != 3 {
			t.Errorf("cursor is %d, want 3", n)
		}
		w.ackTeam(b, 5)
		time.Sleep(time.Second) // written behind, while they are connected
		list, err := w.st.Streams(context.Background(), store.DeviceKey{User: "bob", Device: "b"})
		if err != nil || len(list) != 1 || list[0].Cursor != 5 || list[0].Delivered != 5 {
			t.Errorf("in the store: %+v, %v", list, err)
		}
	})
}

// TestLargeCatchUp: a device that was away gets what it has missed, each from its own place; a new one begins at its
// user's.
func TestLargeCatchUp(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		w.create(true, "bob")
		b1, b2 := w.connect("bob", "1", persistent, IM), w.connect("bob", "2", persistent, IM)
		w.postMany("owner", 4)
		w.ackTeam(b1, 4)
		w.ackTeam(b2, 2)
		b2.bye() // what it has acknowledged is not flushed yet
		b2 = w.connect("bob", "2", persistent, IM)
		wantTeam(t, b2, 3, 4, 5)
		b1.bye()
		b2.bye()
		time.Sleep(time.Second) // flushed, and forgotten by the engine
		last := w.postMany("owner", 300)
		b1, b2 = w.connect("bob", "1", persistent, IM), w.connect("bob", "2", persistent, IM)
		synctest.Wait()
		wantTeam(t, b1, span(5, 4+256)...)
		wantTeam(t, b2, span(3, 2+256)...)
		w.ackTeam(b1, 260)
		wantTeam(t, b1, span(5, last)...)
		b3 := w.connect("bob", "3", Session{}, IM)
		synctest.Wait()
		if got := b3.teamSeqs(); len(got) != 45 || got[0] != 261 {
			t.Errorf("new device: got %d messages, %v, want 45 from 261", len(got), got)
		}
		w.ackTeam(b1, last)
		b1.bye()
		b1 = w.connect("bob", "1", Session{Clean: true, Persistent: true}, IM)
		wantTeam(t, b1)
	})
}

// TestLargeSpans: between leaving and coming back nothing is delivered, neither to who is connected nor to who is not; the
// messages that say so are.
func TestLargeSpans(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		w.create(true, "bob")
		on := w.connect("bob", "on", persistent, IM)
		off := w.connect("bob", "off", persistent, IM)
		off.bye()
		w.postMany("owner", 2) // 2, 3
		w.leave("bob")         // 4
		w.postMany("owner", 3) // 5, 6, 7
		wantTeam(t, on, span(1, 4)...)
		w.refused(BadRequest, on, "ack", `{"conv":"g/team","cseq":5}`)
		w.ackTeam(on, 4)
		late := w.connect("bob", "off", persistent, IM)
		wantTeam(t, late, span(1, 4)...)
		late.bye()
		w.join("bob") // 8
		w.postTeam("owner", "x")
		wantTeam(t, on, 1, 2, 3, 4, 8, 9)
		late = w.connect("bob", "off", persistent, IM)
		wantTeam(t, late, 1, 2, 3, 4, 8, 9)
		w.ackTeam(late, 9)
		w.change(func(c *store.Change) { c.End = true }) // 10
		wantTeam(t, on, 1, 2, 3, 4, 8, 9, 10)
		w.ackTeam(on, 10)
		if n := len(w.e.feeds.m); n != 0 {
			t.Errorf("the feed of a group that has ended is kept")
		}
		late.bye()
		late = w.connect("bob", "off", persistent, IM)
		wantTeam(t, late, 10)
		late.bye()
		if n := len(w.e.feeds.m); n != 0 {
			t.Errorf("the feed of a device that has gone is kept")
		}
	})
}

// TestLargeJoin: who joins while connected gets the message that says so first of all, what is muted or promoted nothing
// new.
func TestLargeJoin(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		w.create(true)
		b := w.connect("bob", "b", persistent, IM)
		w.postMany("owner", 3)
		w.join("bob") // 5
		w.postTeam("owner", "x")
		wantTeam(t, b, 5, 6)
		w.change(func(c *store.Change) { c.Members = asMembers(store.Admin, "bob") })
		wantTeam(t, b, 5, 6, 7)
		time.Sleep(time.Second)
		b.bye()
		w.leave("bob") // 8
		w.join("bob")  // 9
		b = w.connect("bob", "b", persistent, IM)
		wantTeam(t, b, span(5, 9)...)
	})
}

// TestLargeGrowth: a group that grows, while messages flow, loses and repeats nothing, and keeps the order.
func TestLargeGrowth(t *testing.T) {
	for _, window := range []int{0, 3} {
		bubble(t, Config{AckTimeout: time.Hour, Window: window}, func(t *testing.T, w *world) {
			w.create(false, "bob", "carol", "dave")
			b, d := w.connect("bob", "b", persistent, IM), w.connect("dave", "d", persistent, Plain)
			c := w.connect("carol", "c", persistent, IM)
			c.bye()
			w.postMany("owner", 10)
			from := w.grow("owner", "bob", "carol", "dave")
			last := w.postMany("owner", 10)
			c = w.connect("carol", "c", persistent, IM)
			for _, l := range []*fakeLink{b, c} {
				for range last {
					synctest.Wait()
					got := l.teamSeqs()
					w.ackTeam(l, got[len(got)-1])
				}
			}
			for _, l := range []*fakeLink{b, c, d} {
				wantTeam(t, l, span(1, last)...)
				for _, d := range l.deliveries() {
					if (d.seq == 0) != (d.cseq >= from) {
						t.Errorf("cseq %d has seq %d; large from %d", d.cseq, d.seq, from)
					}
				}
			}
		})
	}
}

// TestLargeGrowthAtOnce: whoever joins or leaves with the message that makes the group large gets it, once.
func TestLargeGrowthAtOnce(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		w.create(false, "bob", "carol")
		b, c := w.connect("bob", "b", persistent, IM), w.connect("carol", "c", persistent, IM)
		d := w.connect("dave", "d", persistent, IM)
		w.change(func(c *store.Change) {
			c.Large = true
			c.Members = append(asMembers(store.Ordinary, "dave"), asMembers(store.NoRole, "carol")...)
		}, "owner", "bob", "carol", "dave")
		w.postTeam("owner", "x")
		wantTeam(t, b, 1, 2, 3)
		wantTeam(t, c, 1, 2)
		wantTeam(t, d, 2, 3)
	})
}

// TestLargeCrash: what a crash takes of the cursors costs duplicates, not messages.
func TestLargeCrash(t *testing.T) {
	fs := vfs.NewCrashableMem()
	var w *world
	open := func(t *testing.T, fs vfs.FS) {
		w = &world{t: t, st: &faultStore{Store: openStore(t, fs, store.Retention{}, nil)}}
		w.e = New(w.st, Config{AckTimeout: time.Hour, Log: quiet, FlushInterval: time.Hour})
	}
	shut := func(t *testing.T) {
		if err := errors.Join(w.e.Close(context.Background()), w.st.Close()); err != nil {
			t.Fatal(err)
		}
	}
	var crashed *vfs.MemFS
	synctest.Test(t, func(t *testing.T) {
		open(t, fs)
		w.create(true, "bob")
		w.postMany("owner", 3)
		b := w.connect("bob", "b", persistent, IM)
		wantTeam(t, b, 1, 2, 3, 4)
		w.ackTeam(b, 4)
		w.connect("bob", "new", persistent, IM) // its session begins after 4, and is durable
		w.postMany("owner", 2)
		w.ackTeam(b, 6)
		synctest.Wait()
		crashed = fs.CrashClone(vfs.CrashCloneCfg{})
		shut(t)
	})
	synctest.Test(t, func(t *testing.T) {
		open(t, crashed)
		b, n := w.connect("bob", "b", persistent, IM), w.connect("bob", "new", persistent, IM)
		if !b.dev.Resumed() || !n.dev.Resumed() {
			t.Error("a session is lost")
		}
		wantTeam(t, n, 5, 6)
		wantTeam(t, b, 1, 2, 3, 4, 5, 6)
		shut(t)
	})
}

// TestLargeWindow: all streams of a device share one window, and a group waits for the inbox.
func TestLargeWindow(t *testing.T) {
	bubble(t, Config{AckTimeout: time.Hour, Window: 4}, func(t *testing.T, w *world) {
		w.create(true, "bob")
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.sendMany(a, "bob", 1, 2)
		w.postMany("owner", 3) // 2, 3, 4
		wantTeam(t, b, 1, 2)
		w.sendMany(a, "bob", 3, 6)
		w.ackTeam(b, 2)
		wantTeam(t, b, 1, 2) // the inbox took the room
		if got := len(b.deliveries()); got != 6 {
			t.Fatalf("got %d messages, want 6", got)
		}
		w.ok(b, nil, "ack", `{"seq":4}`)
		wantTeam(t, b, 1, 2, 3, 4)
		w.ok(b, nil, "ack", `{"seq":6}`)
		w.ackTeam(b, 4)
		w.postTeam("owner", "x")
		wantTeam(t, b, 1, 2, 3, 4, 5)
		if b.dev.held != 1 {
			t.Errorf("%d messages are held, want 1", b.dev.held)
		}
	})
}

// TestLargeSlowLink: where the link has no room nothing is lost or repeated.
func TestLargeSlowLink(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		w.create(true, "bob")
		b := w.connect("bob", "b", persistent, Plain)
		wantTeam(t, b, 1)
		b.setRoom(2)
		w.postMany("owner", 9)
		wantTeam(t, b, 1, 2, 3)
		b.setRoom(3)
		wantTeam(t, b, span(1, 6)...)
		b.setRoom(-1)
		wantTeam(t, b, span(1, 10)...)
		w.postTeam("owner", "x")
		wantTeam(t, b, span(1, 11)...)
	})
}

// TestLargeProfile: a device that changes its profile goes on where it was.
func TestLargeProfile(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		w.create(true, "bob")
		b := w.connect("bob", "b", persistent, IM)
		w.postTeam("owner", "x")
		wantTeam(t, b, 1, 2)
		b.dev.SetProfile(None, 0)
		w.postMany("owner", 2)
		wantTeam(t, b, 1, 2)
		b.dev.SetProfile(Plain, 0)
		wantTeam(t, b, 1, 2, 3, 4)
		if got := b.deliveries(); got[1].profile != IM || got[2].profile != Plain {
			t.Errorf("got %+v", got)
		}
		w.ackTeam(b, 2)
		if n := b.teamCursor(); n != 4 {
			t.Errorf("cursor is %d, want 4", n)
		}
	})
}

// TestLargeDeleted: what its reader has deleted is not there, be it a whole page.
func TestLargeDeleted(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		w.create(true, "bob")
		w.postMany("owner", 5)
		b := w.connect("bob", "b", persistent, None)
		w.hide("bob", 2, 3, 5, 6)
		b.dev.SetProfile(IM, everything)
		wantTeam(t, b, 1, 4)
		w.ackTeam(b, 4)
		if n := b.teamCursor(); n != 6 {
			t.Errorf("cursor is %d, want 6", n)
		}
		if n := b.notesOf(Events, "inbox.trimmed"); len(n) > 0 {
			t.Errorf("what was deleted is called trimmed: %v", n)
		}
		w.postTeam("owner", "x")
		wantTeam(t, b, 1, 4, 7)
	})
}

// TestLargeRemoved: a device that is removed begins anew, at its user's place.
func TestLargeRemoved(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		w.create(true, "bob")
		b1, b2 := w.connect("bob", "1", persistent, IM), w.connect("bob", "2", persistent, IM)
		w.postMany("owner", 4)
		w.ackTeam(b1, 4)
		w.ackTeam(b2, 2)
		b2.bye()
		w.ok(b1, nil, "device.remove", `{"device":"2"}`)
		b2 = w.connect("bob", "2", persistent, IM)
		wantTeam(t, b2, 5)
		b2.bye()
		time.Sleep(time.Second)
		w.ok(b1, nil, "device.remove", `{"device":"2"}`)
		time.Sleep(time.Second)
		list, err := w.st.Streams(context.Background(), store.DeviceKey{User: "bob", Device: "2"})
		if err != nil || len(list) != 1 || list[0].Cursor != 0 {
			t.Errorf("cursors of a removed device: %+v, %v", list, err)
		}
	})
}
