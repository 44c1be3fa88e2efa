package im

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// quietly is a configuration in which no timer gets in the way.
var quietly = Config{AckTimeout: time.Hour, MaxAttempts: 5}

// TestAckByIDs: single acks move the cursor when those before them are acknowledged, too.
func TestAckByIDs(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.sendMany(a, "bob", 1, 5)
		synctest.Wait()
		got := b.deliveries()
		for _, step := range []struct {
			ids    []int
			cursor uint64
		}{{[]int{3}, 0}, {[]int{1, 2}, 3}, {[]int{2}, 3}, {[]int{5, 4}, 5}} {
			var ids []string
			for _, n := range step.ids {
				ids = append(ids, fmt.Sprintf("%q", fmt.Sprint(got[n-1].id)))
			}
			w.ok(b, nil, "ack", `{"ids":[%s]}`, strings.Join(ids, ","))
			wantCursor(t, b, step.cursor)
		}
		time.Sleep(time.Second)
		rc := a.notesOf(Receipts, "delivered")
		if n := len(rc); n == 0 || rc[n-1].Cseq != 5 || rc[n-1].Conv != "u/bob" || rc[n-1].By != "bob" {
			t.Fatalf("got receipts %+v, want the last for cseq 5", rc)
		}
		for i, r := range rc {
			if i > 0 && r.Cseq <= rc[i-1].Cseq {
				t.Errorf("receipts go back: %+v", rc)
			}
		}
	})
}

// TestAckRefused: what nobody was sent cannot be acknowledged.
func TestAckRefused(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.sendMany(a, "bob", 1, 2)
		carol := w.send(a, "carol", "x")
		for _, c := range []struct {
			code    Code
			payload string
		}{
			{BadRequest, `{"seq":3}`},
			{BadRequest, `{"seq":18446744073709551615}`},
			{BadRequest, `{}`},
			{BadRequest, `{"ids":[]}`},
			{BadRequest, `{"ids":["x"]}`},
			{BadRequest, `{"ids":["-1"]}`},
			{BadRequest, `{"conv":"u/alice","cseq":3}`},
			{BadRequest, `{"conv":"alice","cseq":1}`},
			{BadRequest, `{"conv":"u/alice"}`},
			{NotFound, `{"ids":["1"]}`},
			{NotFound, `{"ids":["9223372036854775807"]}`},
			{NotFound, fmt.Sprintf(`{"ids":[%q]}`, carol.ID)},
		} {
			w.refused(c.code, b, "ack", "%s", c.payload)
		}
		wantCursor(t, b, 0)
	})
}

// TestAckByConv: an ack by conversation and cseq covers what was pushed of that conversation alone.
func TestAckByConv(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, c := w.connect("alice", "a", persistent, IM), w.connect("carol", "c", persistent, IM)
		b := w.connect("bob", "b", persistent, IM)
		w.send(a, "bob", "a1")
		w.send(a, "bob", "a2")
		w.send(c, "bob", "c1")
		w.send(a, "bob", "a3")
		w.ok(b, nil, "ack", `{"conv":"u/alice","cseq":3}`)
		wantCursor(t, b, 2)
		w.ok(b, nil, "ack", `{"conv":"u/carol","cseq":1}`)
		wantCursor(t, b, 4)
	})
}

// TestAckSynced: what a client has from sync alone is acknowledged by seq, its senders are told, and it is not pushed.
func TestAckSynced(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		w.sendMany(a, "bob", 1, 5)
		b := w.connect("bob", "b", persistent, None)
		b.dev.SetProfile(None, everything)
		var page struct {
			Messages []struct{ Seq uint64 }
			Head     uint64
			More     bool
		}
		w.ok(b, &page, "sync", `{"rid":"1","limit":3}`)
		if len(page.Messages) != 3 || page.Head != 5 || !page.More {
			t.Fatalf("got %+v, want three messages of five", page)
		}
		w.ok(b, nil, "ack", `{"seq":3}`)
		wantCursor(t, b, 3)
		time.Sleep(time.Second)
		if rc := a.notesOf(Receipts, "delivered"); len(rc) == 0 || rc[len(rc)-1].Cseq != 3 {
			t.Errorf("got receipts %+v, want delivered up to 3", rc)
		}
		b.dev.SetProfile(IM, everything)
		synctest.Wait()
		wantSeqs(t, b, 4, 5)
	})
}

// TestAckAheadOfDeliverer: a client may know of a message from sync before the engine has offered it to anybody.
func TestAckAheadOfDeliverer(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.send(a, "bob", "1")
		synctest.Wait()
		b.dev.u.mu.Lock()
		b.dev.u.head = 0 // as if it had not been offered
		b.dev.u.mu.Unlock()
		w.ok(b, nil, "ack", `{"seq":1}`)
		wantCursor(t, b, 1)
	})
}

// TestEarlyAck: what was read by sync and acknowledged by id before its turn is not pushed when its turn comes.
func TestEarlyAck(t *testing.T) {
	bubble(t, Config{Window: 2, AckTimeout: time.Hour}, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.sendMany(a, "bob", 1, 9)
		var page struct{ Messages []struct{ ID string } }
		w.ok(b, &page, "sync", `{"rid":"1"}`)
		early := func(n int) { w.ok(b, nil, "ack", `{"ids":[%q]}`, page.Messages[n-1].ID) }
		early(4)
		early(5)
		w.refused(BadRequest, b, "ack", `{"ids":[%q]}`, page.Messages[5].ID) // bounded
		w.ok(b, nil, "ack", `{"seq":2}`)
		synctest.Wait()
		wantSeqs(t, b, 1, 2, 3)
		w.ok(b, nil, "ack", `{"seq":3}`)
		synctest.Wait()
		wantSeqs(t, b, 1, 2, 3, 6, 7)
		wantCursor(t, b, 5)

		early(8)
		w.ok(b, nil, "ack", `{"seq":9}`) // jumps over it
		b.dev.u.mu.Lock()
		left := len(b.dev.inbox.early)
		b.dev.u.mu.Unlock()
		if left != 0 {
			t.Errorf("%d early acks are left behind the cursor", left)
		}
	})
}

// TestReceipts: queued, delivered, read; merged while they wait; nothing for one's own messages.
func TestReceipts(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		if s := w.send(a, "bob", "1"); s.State != "queued" {
			t.Errorf("state %q, want queued", s.State)
		}
		synctest.Wait()
		if rc := a.notesOf(Receipts, "queued"); len(rc) != 1 || rc[0].Cseq != 1 || rc[0].By != "bob" {
			t.Fatalf("got %+v, want queued for 1", rc)
		}
		b := w.connect("bob", "b", persistent, IM)
		if s := w.send(a, "bob", "2"); s.State != "sent" {
			t.Errorf("state %q, want sent", s.State)
		}
		synctest.Wait()
		if rc := a.notesOf(Receipts, "delivered"); len(rc) > 0 {
			t.Fatalf("delivered before the ack: %+v", rc)
		}
		w.ok(b, nil, "ack", `{"seq":2}`)
		synctest.Wait()
		rc := a.notesOf(Receipts, "delivered")
		if len(rc) == 0 || len(rc) > 2 || rc[len(rc)-1].Cseq != 2 {
			t.Fatalf("got %+v, want delivered up to 2", rc)
		}
		w.ok(b, nil, "read", `{"conv":"u/alice","cseq":2}`)
		synctest.Wait()
		if rc := a.notesOf(Receipts, "read"); len(rc) != 1 || rc[0].Cseq != 2 || rc[0].Conv != "u/bob" {
			t.Fatalf("got %+v, want read up to 2", rc)
		}
		if s := w.send(a, "alice", "note"); s.State != "delivered" {
			t.Errorf("note to oneself: state %q, want delivered", s.State)
		}
		synctest.Wait()
		if rc := b.notesOf(Receipts, ""); len(rc) > 0 {
			t.Errorf("bob, who sent nothing, got %+v", rc)
		}
	})
}

// TestReceiptOnce: the second device to acknowledge is no news to the sender.
func TestReceiptOnce(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		b, b2 := w.connect("bob", "b", persistent, IM), w.connect("bob", "b2", persistent, IM)
		w.send(a, "bob", "1")
		w.ok(b, nil, "ack", `{"seq":1}`)
		synctest.Wait()
		w.ok(b2, nil, "ack", `{"seq":1}`)
		synctest.Wait()
		if rc := a.notesOf(Receipts, "delivered"); len(rc) != 1 {
			t.Errorf("got receipts %+v, want one", rc)
		}
	})
}

// TestReceiptsMerge: under load one receipt speaks for many, and a watermark never goes back.
func TestReceiptsMerge(t *testing.T) {
	e := &Engine{m: noMetrics{}}
	e.receipts.init()
	u := &user{name: "alice"}
	u.receipts.Store(1)
	e.users.Store("alice", u)
	add := func(state string, cseq uint64) {
		e.receipts.add(e, "alice", receipt{conv: "u/alice/bob", cseq: cseq, state: state, by: "bob"})
	}
	add("delivered", 5)
	add("delivered", 3)
	add("queued", 6)
	add("delivered", 7)
	add("delivered", 6)
	m, order := e.receipts.take(nil)
	if len(order) != 2 || len(m) != 2 {
		t.Fatalf("got %d receipts %v, want 2", len(order), m)
	}
	if got := m[order[0]]; got.cseq != 7 || got.state != "delivered" {
		t.Errorf("got %+v, want delivered up to 7", got)
	}
}

// TestQueuedIsNotTheLastWord: a receipt that a message waits is not sent behind one that it was delivered.
func TestQueuedIsNotTheLastWord(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		gate := make(chan struct{})
		a.onNotify = func() { <-gate } // the receipts goroutine waits with the first
		w.e.receipts.add(w.e, "alice", receipt{conv: "u/alice/zoe", cseq: 1, state: "queued", by: "zoe"})
		synctest.Wait()
		for _, r := range []receipt{{cseq: 1, state: "delivered"}, {cseq: 2, state: "queued"}, {cseq: 2, state: "delivered"}} {
			r.conv, r.by = "u/alice/bob", "bob"
			w.e.receipts.add(w.e, "alice", r)
		}
		close(gate)
		synctest.Wait()
		var got []string
		for _, r := range a.notesOf(Receipts, "") {
			got = append(got, fmt.Sprint(r.By, r.State, r.Cseq))
		}
		if want := []string{"zoequeued1", "bobdelivered2"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}
