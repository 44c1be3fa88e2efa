package im

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

type convState struct {
	Conv          string
	Head, Read    uint64
	Unread        uint64
	PeerDelivered uint64 `json:"peer_delivered"`
	PeerRead      uint64 `json:"peer_read"`
	Last          *struct{ Body any }
}

// TestUnread: counts follow reads, recalls and deletions; one's own messages are not unread.
func TestUnread(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		b2 := w.connect("bob", "b2", persistent, IM)
		unread := func(want uint64) {
			t.Helper()
			var list []convState
			w.ok(b, &list, "conversations", `{"rid":"1"}`)
			if len(list) != 1 || list[0].Unread != want || list[0].Conv != "u/alice" {
				t.Fatalf("got %+v, want %d unread", list, want)
			}
		}
		w.sendMany(a, "bob", 1, 6)
		w.send(b, "alice", "mine")
		unread(6)
		w.ok(b, nil, "read", `{"conv":"u/alice","cseq":2}`)
		unread(4)
		w.ok(b, nil, "read", `{"conv":"u/alice","cseq":1}`) // forward only
		unread(4)
		w.ok(a, nil, "recall", `{"conv":"u/bob","cseq":3}`)
		unread(3)
		w.ok(a, nil, "recall", `{"conv":"u/bob","cseq":3}`)
		unread(3)
		w.ok(b, nil, "delete", `{"conv":"u/alice","cseqs":[4,3,99]}`)
		unread(2)
		w.refused(BadRequest, b, "read", `{"conv":"u/alice","cseq":8}`)
		w.refused(Forbidden, b, "recall", `{"conv":"u/alice","cseq":1}`)
		w.refused(NotFound, b, "recall", `{"conv":"u/alice","cseq":99}`)

		if ev := b2.notesOf(Events, "read"); len(ev) != 1 || ev[0].Cseq != 2 || ev[0].Conv != "u/alice" {
			t.Errorf("the other device's read events: %+v", ev)
		}
		if ev := b2.notesOf(Events, "delete"); len(ev) != 1 || !slices.Equal(ev[0].Cseqs, []uint64{4, 3, 99}) {
			t.Errorf("the other device's delete events: %+v", ev)
		}
		for _, l := range []*fakeLink{a, b, b2} {
			if ev := l.notesOf(Events, "recall"); len(ev) != 1 || ev[0].Cseq != 3 || ev[0].By != "" && ev[0].By != "alice" {
				t.Errorf("%s: recall events %+v", l.dev.ID(), ev)
			}
		}
		var page struct {
			Messages []struct {
				Cseq uint64
				Type string
			}
			More bool
		}
		w.ok(b, &page, "history", `{"rid":"1","conv":"u/alice","after":1,"limit":3}`)
		if got := fmt.Sprint(page); got != "{[{2 text} {5 text} {6 text}] true}" {
			t.Errorf("history of bob: %s", got)
		}
		w.ok(a, &page, "history", `{"rid":"1","conv":"u/bob","before":5,"limit":3}`)
		if got := fmt.Sprint(page); got != "{[{2 text} {3 recalled} {4 text}] true}" {
			t.Errorf("history of alice: %s", got)
		}
	})
}

// TestWatermarks: conversations and receipts tell of deliveries and reads at once, before anything is flushed.
func TestWatermarks(t *testing.T) {
	bubble(t, Config{FlushInterval: time.Hour, AckTimeout: time.Hour}, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.sendMany(a, "bob", 1, 3)
		check := func(delivered, read uint64) {
			t.Helper()
			var list []convState
			w.ok(a, &list, "conversations", `{"rid":"1"}`)
			if len(list) != 1 || list[0].PeerDelivered != delivered || list[0].PeerRead != read {
				t.Fatalf("got %+v, want delivered %d, read %d", list, delivered, read)
			}
			for cseq := uint64(1); cseq <= 3; cseq++ {
				var rc struct {
					Delivered, Read int
					DeliveredBy     []string `json:"delivered_by"`
				}
				w.ok(a, &rc, "receipts", `{"rid":"1","conv":"u/bob","cseq":%d}`, cseq)
				if (rc.Delivered == 1) != (cseq <= delivered) || (rc.Read == 1) != (cseq <= read) || len(rc.DeliveredBy) != rc.Delivered {
					t.Fatalf("cseq %d: got %+v, want delivered up to %d, read up to %d", cseq, rc, delivered, read)
				}
			}
		}
		check(0, 0)
		w.ok(b, nil, "ack", `{"seq":2}`)
		check(2, 0)
		w.ok(b, nil, "read", `{"conv":"u/alice","cseq":1}`)
		check(2, 1)
		w.ok(b, nil, "ack", `{"seq":3}`)
		check(3, 1)
	})
}

// TestConversationsPage: pages through many, the newest first.
func TestConversationsPage(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		for i := range 5 {
			w.send(a, fmt.Sprint("peer", i), "x")
		}
		var got []string
		cursor := ""
		for {
			tk := a.start("conversations", `{"rid":"1","limit":2,"cursor":%q}`, cursor)
			r := w.answer(a, tk)
			var page []convState
			unmarshal(t, r.Data, &page)
			for _, c := range page {
				got = append(got, c.Conv)
			}
			if cursor = r.Cursor; cursor == "" {
				break
			}
		}
		if want := []string{"u/peer4", "u/peer3", "u/peer2", "u/peer1", "u/peer0"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// TestSync: nothing moves by reading; what expired is left out, what is gone is named.
func TestSync(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		w.sendMany(a, "bob", 1, 4)
		w.ok(a, nil, "send", `{"rid":"1","to":"u/bob","body":"expires","ttl":5}`)
		w.sendMany(a, "bob", 6, 7)
		time.Sleep(6 * time.Second)
		w.hole("bob", 2)
		b := w.connect("bob", "b", persistent, None)
		b.dev.SetProfile(None, Replies)
		var page struct {
			Messages   []struct{ Seq uint64 }
			Head, Next uint64
			More       bool
			Epoch      string
			Trimmed    *struct{ From, To uint64 }
		}
		w.ok(b, &page, "sync", `{"rid":"1","limit":3}`)
		if got := fmt.Sprint(page.Messages, page.Head, page.Next, page.More, *page.Trimmed); got != "[{3} {4}] 7 5 true {1 2}" {
			t.Errorf("first page: %s", got)
		}
		if page.Epoch != w.st.Epoch() {
			t.Errorf("epoch %q", page.Epoch)
		}
		page.Trimmed = nil
		w.ok(b, &page, "sync", `{"rid":"1","after":5}`)
		if got := fmt.Sprint(page.Messages, page.Next, page.More, page.Trimmed); got != "[{6} {7}] 7 false <nil>" {
			t.Errorf("second page: %s", got)
		}
		wantCursor(t, b, 0)
	})
}

// TestPresence: who comes and goes is told to those who watch, but not to whom they have blocked; who is back within
// the grace was never away.
func TestPresence(t *testing.T) {
	bubble(t, Config{PresenceGrace: 2 * time.Second}, func(t *testing.T, w *world) {
		a, eve := w.connect("alice", "a", persistent, IM), w.connect("eve", "e", persistent, IM)
		b := w.connect("bob", "b", persistent, IM)
		w.send(a, "bob", "hi")
		w.send(eve, "bob", "hi")
		w.ok(b, nil, "block.add", `{"user":"eve"}`)
		var list []struct {
			User   string
			Online bool
		}
		w.ok(a, &list, "presence.watch", `{"rid":"1","users":["bob","carol"]}`)
		if fmt.Sprint(list) != "[{bob true} {carol false}]" {
			t.Errorf("alice sees %v", list)
		}
		w.ok(eve, &list, "presence.watch", `{"rid":"1","users":["bob"]}`)
		if fmt.Sprint(list) != "[{bob false}]" {
			t.Errorf("eve sees %v", list)
		}
		want := func(n int, online bool) {
			t.Helper()
			synctest.Wait()
			ev := a.notesOf(Events, "presence")
			if len(ev) != n || n > 0 && (ev[n-1].User != "bob" || ev[n-1].Online != online) {
				t.Fatalf("got %+v, want %d, the last %v", ev, n, online)
			}
		}
		b.dev.Disconnect(false)
		time.Sleep(1900 * time.Millisecond)
		b = w.connect("bob", "b", persistent, IM)
		time.Sleep(10 * time.Second)
		want(0, false)
		b.dev.Disconnect(false)
		time.Sleep(1900 * time.Millisecond)
		want(0, false)
		time.Sleep(200 * time.Millisecond)
		want(1, false)
		b = w.connect("bob", "b", persistent, IM)
		want(2, true)
		w.connect("bob", "b2", persistent, IM)
		b.dev.Disconnect(false)
		time.Sleep(10 * time.Second)
		want(2, true)
		if ev := eve.notesOf(Events, "presence"); len(ev) != 0 {
			t.Errorf("eve was told %+v", ev)
		}
		w.ok(a, nil, "presence.unwatch", `{"users":["bob"]}`)
		w.refused(BadRequest, a, "presence.get", `{"users":[]}`)
		w.refused(BadRequest, a, "presence.get", `{"users":["a/b"]}`)
	})
}

// TestBlock: a blocked user is told so; what was sent before stands.
func TestBlock(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.send(a, "bob", "1")
		w.ok(b, nil, "block.add", `{"user":"alice"}`)
		w.refused(Blocked, a, "send", `{"to":"u/bob","body":"2"}`)
		w.ok(a, nil, "typing", `{"to":"u/bob","state":"on"}`)
		w.send(b, "alice", "3") // one way only
		var list []string
		w.ok(b, &list, "block.list", `{"rid":"1"}`)
		if !slices.Equal(list, []string{"alice"}) {
			t.Errorf("list %q", list)
		}
		w.ok(b, nil, "block.remove", `{"user":"alice"}`)
		w.ok(a, nil, "typing", `{"to":"u/bob","state":"on"}`)
		w.send(a, "bob", "4")
		synctest.Wait()
		if got := b.bodies(); !slices.Equal(got, []string{"1", "4"}) {
			t.Errorf("bob got %q", got)
		}
		if ev := b.notesOf(Events, "typing"); len(ev) != 1 || ev[0].From != "alice" {
			t.Errorf("typing events %+v", ev)
		}
		w.refused(BadRequest, b, "block.add", `{"user":"bob"}`)
		w.refused(BadRequest, b, "block.add", `{}`)
	})
}

// TestTime: the three moments that a client computes its offset from.
func TestTime(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		var data struct{ T0, T1, T2 int64 }
		w.ok(a, &data, "time", `{"rid":"1","t0":12}`)
		if now := time.Now().UnixMilli(); data.T0 != 12 || data.T1 != now || data.T2 != now {
			t.Errorf("got %+v, want 12 and twice %d", data, now)
		}
		w.refused(BadRequest, a, "time", `{"t0":"x"}`)
		w.refused(BadRequest, a, "time", `{}`)
	})
}
