package im

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqim/mqim/store"
)

const team = store.Conv("g/team")

// commitTeam has a message stored and delivered as the committer does, and waits for that.
func (w *world) commitTeam(p *pending) *pending {
	w.t.Helper()
	p.Conv, p.TS = team, time.Now().UnixMilli()
	if !w.e.queue.put(p) {
		w.t.Fatal("the engine is closed")
	}
	if err := w.e.Drain(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	return p
}

// postTeam sends a text to the group from no device in particular, and returns its cseq.
func (w *world) postTeam(from, body string) uint64 {
	w.t.Helper()
	return w.postFrom(from, "", body)
}

func (w *world) postFrom(from, device, body string) uint64 {
	w.t.Helper()
	p := &pending{}
	p.From, p.Device, p.Type, p.Body = from, device, "text", []byte(body)
	if w.commitTeam(p); p.Err != nil {
		w.t.Fatalf("%s posts %q: %v", from, body, p.Err)
	}
	return p.Cseq
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
	g, err := w.st.Group(context.Background(), "team")
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		w.t.Fatal(err)
	}
	p := &pending{attach: attach}
	p.From, p.Type, p.Encoding, p.Body = "owner", "sys.group", store.JSON, []byte(`{"change":"test","by":"test"}`)
	p.Change = &store.Change{Group: g}
	edit(p.Change)
	if w.commitTeam(p); p.Err != nil {
		w.t.Fatalf("change: %v", p.Err)
	}
	return p.Cseq
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
			w.postFrom("alice", "1", "hi")
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

// TestLargeAck: a group is acknowledged up to a cseq, pushed or read by sync, or by id; not what is in the future.
func TestLargeAck(t *testing.T) {
	bubble(t, Config{AckTimeout: time.Hour, Window: 4}, func(t *testing.T, w *world) {
		w.create(true, "bob")
		b := w.connect("bob", "b", persistent, IM)
		w.postMany("owner", 9)
		wantTeam(t, b, 1, 2, 3, 4)
		r := w.refused(BadRequest, b, "ack", `{"conv":"g/team","cseq":11}`)
		if !strings.Contains(r.err.Message, "the head is 10") {
			t.Errorf("got %q, want the head", r.err.Message)
		}
		got := b.deliveries()
		w.ok(b, nil, "ack", `{"ids":["%d","%d"]}`, got[1].id, got[2].id)
		if n := b.teamCursor(); n != 0 {
			t.Errorf("cursor is %d, want 0", n)
		}
		w.ok(b, nil, "ack", `{"ids":["%d"]}`, got[0].id)
		if n := b.teamCursor(); n != 3 {
			t.Errorf("cursor is %d, want 3", n)
		}
		wantTeam(t, b, span(1, 7)...)
		w.ackTeam(b, 9) // 8 and 9 from sync
		wantTeam(t, b, 1, 2, 3, 4, 5, 6, 7, 10)
		if n := b.teamCursor(); n != 9 {
			t.Errorf("cursor is %d, want 9", n)
		}
		w.ok(b, nil, "ack", `{"ids":["%d"]}`, got[1].id) // again
		w.refused(NotFound, b, "ack", `{"ids":["%d"]}`, int64(1)<<62)
	})
}

// TestLargeSync: sync names the groups in which the device is behind, and reads their logs within what the user was there
// for.
func TestLargeSync(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		type state struct {
			Messages []struct {
				Seq, Cseq uint64
				Conv      string
			}
			Head, Next uint64
			More       bool
			Epoch      string
			Groups     []struct {
				Conv         string
				Cursor, Head uint64
			}
			Trimmed *struct{ From, To uint64 }
		}
		sync := func(l *fakeLink, payload string) (s state, list []uint64) {
			t.Helper()
			w.ok(l, &s, "sync", `{"rid":"s"%s}`, payload)
			for _, m := range s.Messages {
				if m.Seq != 0 || m.Conv != "g/team" {
					t.Errorf("sync shows %+v", m)
				}
				list = append(list, m.Cseq)
			}
			return s, list
		}
		w.create(false, "bob")
		b := w.connect("bob", "b", persistent, IM)
		wantTeam(t, b, 1)
		w.ackTeam(b, 1)
		w.refused(BadRequest, b, "sync", `{"conv":"g/team"}`)
		w.refused(NotFound, b, "sync", `{"conv":"g/none"}`)
		w.grow("owner", "bob") // 2
		if s, _ := sync(b, ""); len(s.Groups) != 1 || s.Groups[0].Conv != "g/team" || s.Groups[0].Cursor != 1 || s.Groups[0].Head != 2 {
			t.Errorf("got groups %+v", s.Groups)
		}
		w.leave("bob")         // 3
		w.postMany("owner", 3) // 4, 5, 6
		w.join("bob")          // 7
		w.postMany("owner", 2) // 8, 9
		w.ackTeam(b, 2)
		s, got := sync(b, `,"conv":"g/team"`)
		if !slices.Equal(got, []uint64{3, 7, 8, 9}) || s.Head != 9 || s.More || s.Next != 9 || s.Epoch == "" || s.Trimmed != nil {
			t.Errorf("from the cursor: got %v, %+v", got, s)
		}
		s, got = sync(b, `,"conv":"g/team","after":0,"limit":3`)
		if !slices.Equal(got, []uint64{2, 3, 7}) || !s.More || s.Next != 7 {
			t.Errorf("from the start: got %v, %+v", got, s)
		}
		if s, got = sync(b, `,"conv":"g/team","after":9`); len(got) != 0 || s.More || s.Next != 9 {
			t.Errorf("at the head: got %v, %+v", got, s)
		}
		w.ackTeam(b, 9)
		if s, _ := sync(b, ""); s.Groups != nil {
			t.Errorf("caught up: got groups %+v", s.Groups)
		}
		x := w.connect("xavier", "x", persistent, IM)
		w.refused(NotMember, x, "sync", `{"conv":"g/team"}`)
	})
}

// TestLargeAgain: what the application does not acknowledge is sent again, what the peer cannot take is passed over, and
// what the reader has deleted or the sender recalled meanwhile is treated as in the inbox.
func TestLargeAgain(t *testing.T) {
	bubble(t, Config{AckTimeout: time.Minute, MaxAttempts: 2}, func(t *testing.T, w *world) {
		w.create(true, "bob")
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.postMany("owner", 3) // 2, 3, 4
		w.send(a, "bob", "direct")
		synctest.Wait()
		w.ok(b, nil, "ack", `{"seq":1}`)
		w.hide("bob", 3)
		g := b.dev.group(team)
		b.dev.TooLarge(g.place(1))
		if n := b.teamCursor(); n != 1 {
			t.Errorf("too large: cursor is %d, want 1", n)
		}
		time.Sleep(61 * time.Second)
		synctest.Wait()
		var again []uint64
		for _, d := range b.deliveries() {
			if d.attempt == 1 {
				again = append(again, d.cseq)
			}
		}
		if !slices.Equal(again, []uint64{2, 4}) {
			t.Errorf("sent again: got %v, want 2 and 4", again)
		}
		w.ackTeam(b, 2)
		if n := b.teamCursor(); n != 3 {
			t.Errorf("cursor is %d, want 3: what was deleted is passed over", n)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(b.deliveries()); n != 5+2+1 {
			t.Errorf("%d deliveries, want 8: it rests after two attempts", n)
		}
		w.ackTeam(b, 4)
		b.auto = false
		w.postTeam("owner", "x")
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := b.closes(); len(got) != 1 || got[0] != CloseNoAck {
			t.Errorf("a peer that takes nothing: closed %v", got)
		}
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

// TestLargeReceipts: who sends to a large group is told of each member where the group says so, by name and once per run;
// else of nobody.
func TestLargeReceipts(t *testing.T) {
	for _, mode := range []store.ReceiptMode{store.ReceiptsByKind, store.ReceiptsAll, store.ReceiptsNone} {
		bubble(t, quietly, func(t *testing.T, w *world) {
			w.create(true, "bob", "alice")
			o, a := w.connect("owner", "o", persistent, IM), w.connect("alice", "a", persistent, IM)
			b1, b2 := w.connect("bob", "1", persistent, IM), w.connect("bob", "2", persistent, IM)
			w.change(func(c *store.Change) { c.Group.Receipts = mode }) // 2
			w.postTeam("alice", "x")                                    // 3
			w.postTeam("owner", "x")                                    // 4
			w.postTeam("alice", "x")                                    // 5
			synctest.Wait()
			w.ackTeam(b1, 5)
			w.ackTeam(b2, 5)
			synctest.Wait()
			want := 0
			if mode == store.ReceiptsAll {
				want = 1
			}
			for l, cseq := range map[*fakeLink]uint64{o: 4, a: 5} {
				got := l.notesOf(Receipts, "")
				if len(got) < want || want == 0 && len(got) > 0 {
					t.Fatalf("mode %d: %s got receipts %+v", mode, l.dev.User(), got)
				}
				if want > 0 && (got[len(got)-1].Cseq != cseq || got[len(got)-1].By != "bob") {
					t.Errorf("mode %d: %s got receipts %+v, want up to %d", mode, l.dev.User(), got, cseq)
				}
			}
			before := len(a.notesOf(Receipts, ""))
			b1.dev.SetProfile(None, everything)
			last := w.postMany("alice", 3)
			w.ackTeam(b1, last) // read by sync
			synctest.Wait()
			if got := a.notesOf(Receipts, ""); want > 0 && got[len(got)-1].Cseq != last || want == 0 && len(got) != before {
				t.Errorf("mode %d: got receipts %+v", mode, got)
			}
		})
	}
}

// TestInboxReceipts: of a small group's messages each sender gets its own receipt, unless the group wants none.
func TestInboxReceipts(t *testing.T) {
	for _, mode := range []store.ReceiptMode{store.ReceiptsByKind, store.ReceiptsAll, store.ReceiptsCounts, store.ReceiptsNone} {
		bubble(t, quietly, func(t *testing.T, w *world) { testInboxReceipts(t, w, mode) })
	}
}

func testInboxReceipts(t *testing.T, w *world, mode store.ReceiptMode) {
	w.create(false, "bob", "alice")
	o, a := w.connect("owner", "o", persistent, IM), w.connect("alice", "a", persistent, IM)
	b := w.connect("bob", "b", persistent, IM)
	w.change(func(c *store.Change) { c.Group.Receipts = mode }) // 2
	w.postTeam("alice", "x")                                    // 3
	w.postTeam("owner", "x")                                    // 4
	synctest.Wait()
	w.ok(b, nil, "ack", `{"seq":4}`)
	synctest.Wait()
	for l, cseq := range map[*fakeLink]uint64{o: 4, a: 3} {
		got := l.notesOf(Receipts, "")
		if mode == store.ReceiptsCounts || mode == store.ReceiptsNone {
			cseq = 0
		}
		// They may be merged: the last one counts.
		if len(got) == 0 && cseq != 0 || len(got) > 0 && got[len(got)-1].Cseq != cseq {
			t.Errorf("mode %d, %s: got receipts %+v, want the last of %d", mode, l.dev.User(), got, cseq)
		}
	}
}

// TestLargeConnectRace: what happens in a group while a device reads from the store where it stands is neither missed
// nor delivered twice.
func TestLargeConnectRace(t *testing.T) {
	for what, do := range map[string]func(w *world){
		"message": func(w *world) { w.postTeam("owner", "x") },
		"leave":   func(w *world) { w.leave("bob"); w.postTeam("owner", "x") },
		"back":    func(w *world) { w.leave("bob"); w.postTeam("owner", "x"); w.join("bob") },
		"end":     func(w *world) { w.change(func(c *store.Change) { c.End = true }) },
	} {
		for _, nth := range []int{1, 2, 3} {
			bubble(t, quietly, func(t *testing.T, w *world) {
				w.create(true, "bob", "other")
				w.connect("other", "o", persistent, IM) // there is a feed
				n := 0
				w.st.set(func() {
					w.st.onStream = func(k store.DeviceKey) {
						if n++; k.User == "bob" && n == nth {
							do(w)
						}
					}
				})
				b := w.connect("bob", "b", persistent, IM)
				want := map[string][]uint64{"message": {1, 2}, "leave": {1, 2}, "back": {1, 2, 4}, "end": {1, 2}}[what]
				wantTeam(t, b, want...)
				if what == "message" || what == "back" {
					wantTeam(t, b, append(want, w.postTeam("owner", "y"))...)
				}
			})
		}
	}
	t.Run("join", func(t *testing.T) {
		bubble(t, quietly, func(t *testing.T, w *world) {
			w.create(true)
			once := false
			w.st.set(func() {
				w.st.onStream = func(store.DeviceKey) {
					if !once {
						once = true
						w.join("bob")
					}
				}
			})
			b := w.connect("bob", "b", Session{}, IM)
			w.postTeam("owner", "x")
			wantTeam(t, b, 2, 3)
		})
	})
}

// TestLargeRandom has a group grow, members come and go, and devices of all kinds; after every step each device has got
// exactly what it is to see.
func TestLargeRandom(t *testing.T) {
	for i := range 30 {
		seed := rand.Uint64()
		bubble(t, quietly, func(t *testing.T, w *world) {
			defer func() {
				if t.Failed() {
					t.Logf("run %d, seed %d", i, seed)
				}
			}()
			newTeamModel(t, w, rand.New(rand.NewPCG(seed, 1))).run(150)
		})
	}
}

type teamDevice struct {
	user, id string
	s        Session
	link     *fakeLink
	known    bool
	acked    uint64 // of the session
	base     uint64 // where the connection began
}

type teamModel struct {
	t       *testing.T
	w       *world
	r       *rand.Rand
	head    uint64
	large   bool
	spans   map[string][]store.Span
	devices []*teamDevice
	reached map[string]uint64 // by user: what a device of it has acknowledged
	log     []string
}

func newTeamModel(t *testing.T, w *world, r *rand.Rand) *teamModel {
	m := &teamModel{t: t, w: w, r: r, spans: map[string][]store.Span{}, reached: map[string]uint64{}}
	m.large = r.IntN(3) == 0
	m.head = w.create(m.large)
	for u := range 3 {
		for d, s := range []Session{persistent, persistent, {}} {
			m.devices = append(m.devices, &teamDevice{user: fmt.Sprint("u", u), id: fmt.Sprint(d), s: s})
		}
	}
	return m
}

func (m *teamModel) in(user string) bool {
	s := m.spans[user]
	return len(s) > 0 && s[len(s)-1].To == 0
}

// step is a change or a message by the owner, or something that a device does.
func (m *teamModel) step() {
	d := m.devices[m.r.IntN(len(m.devices))]
	switch n := m.r.IntN(20); {
	case n < 6:
		m.head = m.w.postTeam("owner", "x")
		m.log = append(m.log, "post")
	case n < 9 && m.in(d.user):
		m.head = m.w.leave(d.user)
		s := m.spans[d.user]
		s[len(s)-1].To = m.head
		m.log = append(m.log, d.user+" leaves")
	case n < 9:
		m.head = m.w.join(d.user)
		m.spans[d.user] = append(m.spans[d.user], store.Span{From: m.head})
		m.log = append(m.log, d.user+" joins")
	case n == 9 && !m.large && m.head > 20:
		names := []string{"owner"}
		for u := range m.spans {
			if m.in(u) {
				names = append(names, u)
			}
		}
		m.large, m.head = true, m.w.grow(names...)
		m.log = append(m.log, "grows")
	case n < 14 && d.link != nil:
		m.ack(d)
	case n < 17 && d.link != nil:
		d.link.bye()
		d.link = nil
		d.known = d.s.Persistent
		m.log = append(m.log, d.user+"/"+d.id+" goes")
	case n < 18:
		time.Sleep(time.Second)
		m.log = append(m.log, "flush")
	case d.link == nil:
		m.connect(d)
	}
}

func (m *teamModel) ack(d *teamDevice) {
	if got := d.link.teamSeqs(); len(got) > 0 {
		n := got[m.r.IntN(len(got))]
		m.w.ackTeam(d.link, n)
		d.acked = max(d.acked, n)
		m.reached[d.user] = max(m.reached[d.user], n)
		m.log = append(m.log, fmt.Sprint(d.user, "/", d.id, " acks ", n))
	}
}

func (m *teamModel) connect(d *teamDevice) {
	if !d.known {
		d.acked = m.reached[d.user]
	}
	d.base = d.acked
	d.link = m.w.connect(d.user, d.id, d.s, IM)
	m.log = append(m.log, fmt.Sprint(d.user, "/", d.id, " comes, after ", d.base))
}

func (m *teamModel) run(steps int) {
	for range steps {
		m.step()
		synctest.Wait()
		for _, d := range m.devices {
			if d.link == nil {
				continue
			}
			var want []uint64
			for _, s := range m.spans[d.user] {
				for n := s.From; n <= m.head && s.Has(n); n++ {
					if n > d.base {
						want = append(want, n)
					}
				}
			}
			if got := d.link.teamSeqs(); !slices.Equal(got, want) {
				m.t.Fatalf("%s/%s: got %v, want %v after\n%s", d.user, d.id, got, want, strings.Join(m.log, "\n"))
			}
		}
	}
}
