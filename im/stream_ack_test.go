package im

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mqim/mqim/store"
)

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
		var small state
		w.ok(b, &small, "sync", `{"rid":"s","conv":"g/team","after":0}`) // it lies in the inbox
		if len(small.Messages) != 1 || small.Messages[0].Seq != 1 {
			t.Errorf("sync of a small group: %+v", small)
		}
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
