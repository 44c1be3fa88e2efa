package im

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mqim/mqim/store"
)

// changeGroup commits a change of a group by one of its members, made on its present state, and returns its cseq.
func (w *world) changeGroup(id, by string, edit func(*store.Change), attach ...string) uint64 {
	w.t.Helper()
	g, err := w.st.Group(context.Background(), id)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		w.t.Fatalf("group %s: %v", id, err)
	}
	p := &pending{attach: attach}
	p.Change = &store.Change{Group: g}
	edit(p.Change)
	p.Type, p.Encoding, p.Body = "sys.group", store.JSON, []byte(`{"change":"test","by":"test"}`)
	return w.commit(p, id, by, "")
}

// newGroup creates a small group.
func (w *world) newGroup(id, owner string, members ...string) uint64 {
	w.t.Helper()
	return w.changeGroup(id, owner, func(c *store.Change) {
		c.Group.Owner = owner
		c.Members = []store.Member{{User: owner, Role: store.Owner, Joined: 1}}
		for _, u := range members {
			c.Members = append(c.Members, store.Member{User: u, Role: store.Ordinary, Joined: 1})
		}
	})
}

// setRole has a user join, leave (NoRole) or change its role.
func (w *world) setRole(id, by, user string, r store.Role) uint64 {
	w.t.Helper()
	return w.changeGroup(id, by, func(c *store.Change) {
		c.Members = []store.Member{{User: user, Role: r, Joined: 1}}
	})
}

// post commits a message to a group.
func (w *world) post(id, from, device, body string) uint64 {
	w.t.Helper()
	p := &pending{}
	p.Type, p.Body = "text", []byte(body)
	return w.commit(p, id, from, device)
}

// commit has a message to a group stored, past the commands, and returns its cseq. It is on its way to the devices then.
func (w *world) commit(p *pending, id, from, device string) uint64 {
	w.t.Helper()
	p.Conv, p.From, p.Device, p.TS = store.GroupConv(id), from, device, time.Now().UnixMilli()
	if !w.e.queue.put(p) {
		w.t.Fatal("the engine is closing")
	}
	if err := w.e.Drain(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	if p.Err != nil {
		w.t.Fatalf("%s of %s to group %s: %v", p.Type, from, id, p.Err)
	}
	return p.Cseq
}

// historyPage runs history and returns the cseqs.
func (w *world) historyPage(l *fakeLink, args string) (cseqs []uint64, more bool) {
	w.t.Helper()
	var page struct {
		Messages []struct{ Cseq uint64 }
		More     bool
	}
	w.ok(l, &page, "history", `{"rid":"h",%s}`, args)
	for _, m := range page.Messages {
		cseqs = append(cseqs, m.Cseq)
	}
	return cseqs, page.More
}

// TestGroupReadingRights: a stranger is told, a former member reads what it was there for.
func TestGroupReadingRights(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b, eve := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM), w.connect("eve", "e", persistent, IM)
		w.newGroup("g", "alice", "bob")       // 1
		w.post("g", "alice", "a", "2")        // 2
		w.setRole("g", "alice", "bob", 0)     // 3
		last := w.post("g", "alice", "a", "") // 4
		for _, c := range []struct{ command, args string }{
			{"read", `"cseq":1`}, {"history", `"limit":1`}, {"receipts", `"cseq":2`}, {"recall", `"cseq":2`}, {"delete", `"cseqs":[2]`},
		} {
			w.refused(NotFound, a, c.command, `{"conv":"g/none",%s}`, c.args)
			w.refused(NotMember, eve, c.command, `{"conv":"g/g",%s}`, c.args)
		}
		w.refused(NotFound, a, "typing", `{"to":"g/none"}`)
		w.refused(NotMember, eve, "typing", `{"to":"g/g"}`)
		w.refused(NotMember, b, "typing", `{"to":"g/g"}`)
		w.refused(NotMember, b, "recall", `{"conv":"g/g","cseq":2}`)
		w.refused(NotFound, b, "receipts", `{"conv":"g/g","cseq":%d}`, last)
		w.refused(BadRequest, b, "read", `{"conv":"g/g","cseq":%d}`, last)
		w.ok(b, nil, "read", `{"conv":"g/g","cseq":3}`)
		w.refused(NotMember, b, "receipts", `{"conv":"g/g","cseq":2}`)
		w.ok(b, nil, "delete", `{"conv":"g/g","cseqs":[2,4]}`)
		if got, more := w.historyPage(b, `"conv":"g/g"`); !slices.Equal(got, []uint64{1, 3}) || more {
			t.Errorf("a former member reads %v, more %v", got, more)
		}
	})
}

// TestGroupReadReceipts: whoever sent what was read is told once, up to its last message of it; only where the group
// names readers.
func TestGroupReadReceipts(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b, c := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM), w.connect("carol", "c", persistent, IM)
		b2 := w.connect("bob", "b2", persistent, IM)
		w.newGroup("g", "alice", "bob", "carol") // 1
		w.post("g", "carol", "c", "2")
		w.post("g", "alice", "a", "3")
		w.post("g", "carol", "c", "4")
		w.post("g", "bob", "b", "5")
		w.post("g", "alice", "a", "6")
		want := func(l *fakeLink, cseqs ...uint64) {
			t.Helper()
			synctest.Wait()
			var got []uint64
			for _, n := range l.notesOf(Receipts, "read") {
				if got = append(got, n.Cseq); n.Conv != "g/g" || n.By != "bob" {
					t.Errorf("%s: receipt %+v", l.dev.User(), n)
				}
			}
			if !slices.Equal(got, cseqs) {
				t.Errorf("%s: read receipts %v, want %v", l.dev.User(), got, cseqs)
			}
		}
		w.ok(b, nil, "read", `{"conv":"g/g","cseq":5}`)
		w.ok(b, nil, "read", `{"conv":"g/g","cseq":2}`)
		want(a, 3)
		want(c, 4)
		want(b2)
		if ev := b2.notesOf(Events, "read"); len(ev) != 1 || ev[0].Cseq != 5 || ev[0].Conv != "g/g" {
			t.Errorf("the other device's read events: %+v", ev)
		}
		if ev := b.notesOf(Events, "read"); len(ev) != 0 {
			t.Errorf("the reading device's read events: %+v", ev)
		}
		for _, mode := range []store.ReceiptMode{store.ReceiptsCounts, store.ReceiptsNone} {
			w.changeGroup("g", "alice", func(c *store.Change) { c.Group.Receipts = mode })
			w.ok(b, nil, "read", `{"conv":"g/g","cseq":%d}`, w.post("g", "carol", "c", "more"))
			want(a, 3)
			want(c, 4)
		}
		w.changeGroup("g", "alice", func(c *store.Change) { c.Group.Receipts = store.ReceiptsByKind })
		first := w.post("g", "alice", "a", "old news")
		for range receiptSpan {
			w.post("g", "carol", "c", "news")
		}
		w.ok(b, nil, "read", `{"conv":"g/g","cseq":%d}`, first+receiptSpan)
		want(a, 3)
		want(c, 4, first+receiptSpan)
		erin := w.connect("erin", "e", persistent, IM) // may read everything, but was not there for it
		w.changeGroup("g", "alice", func(c *store.Change) {
			c.Group.HistoryAll = true
			c.Members = []store.Member{{User: "erin", Role: store.Ordinary, Joined: 1}}
		})
		w.ok(erin, nil, "read", `{"conv":"g/g","cseq":%d}`, w.post("g", "bob", "b", "welcome"))
		want(c, 4, first+receiptSpan)
		if got := b.notesOf(Receipts, "read"); len(got) != 1 || got[0].By != "erin" {
			t.Errorf("bob: read receipts %+v", got)
		}
	})
}

// TestGroupHistory: pages cross the stretches when the reader was out, both ways.
func TestGroupHistory(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		b := w.connect("bob", "b", persistent, IM)
		w.newGroup("g", "alice")                       // 1
		w.post("g", "alice", "a", "2")                 // 2
		w.setRole("g", "alice", "bob", store.Ordinary) // 3
		w.post("g", "alice", "a", "4")
		w.setRole("g", "alice", "bob", store.NoRole) // 5
		for range 4 {
			w.post("g", "alice", "a", "6 to 9")
		}
		w.setRole("g", "alice", "bob", store.Ordinary) // 10
		w.post("g", "alice", "a", "11")
		w.post("g", "alice", "a", "12")
		visible := []uint64{3, 4, 5, 10, 11, 12}
		check := func() {
			t.Helper()
			for limit := 1; limit <= len(visible)+1; limit++ {
				var up, down []uint64
				for after, more := uint64(0), true; more; {
					var page []uint64
					page, more = w.historyPage(b, fmt.Sprintf(`"conv":"g/g","after":%d,"limit":%d`, after, limit))
					if len(page) == 0 || len(page) < limit && more || page[0] <= after {
						t.Fatalf("after %d, limit %d: %v, more %v", after, limit, page, more)
					}
					up = append(up, page...)
					after = up[len(up)-1]
				}
				for before, more := uint64(100), true; more; {
					var page []uint64
					page, more = w.historyPage(b, fmt.Sprintf(`"conv":"g/g","before":%d,"limit":%d`, before, limit))
					if len(page) == 0 || len(page) < limit && more || page[len(page)-1] >= before {
						t.Fatalf("before %d, limit %d: %v, more %v", before, limit, page, more)
					}
					down = append(page, down...)
					before = down[0]
				}
				if !slices.Equal(up, visible) || !slices.Equal(down, visible) {
					t.Errorf("limit %d: upwards %v, downwards %v, want %v", limit, up, down, visible)
				}
			}
		}
		check()
		w.ok(b, nil, "delete", `{"conv":"g/g","cseqs":[4,7,12]}`)
		visible = []uint64{3, 5, 10, 11}
		check()
		w.changeGroup("g", "alice", func(c *store.Change) { c.Group.HistoryAll = true }) // 13
		visible = []uint64{1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 13}
		check()
		for _, args := range []string{`"after":13`, `"before":1`, `"after":18446744073709551615`} {
			if got, more := w.historyPage(b, `"conv":"g/g",`+args); len(got) != 0 || more {
				t.Errorf("%s: %v, more %v", args, got, more)
			}
		}
	})
}

// TestHistoryPageBytes: a page over several stretches ends early and says so.
func TestHistoryPageBytes(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		b := w.connect("bob", "b", persistent, IM)
		w.newGroup("g", "alice") // 1
		for range 3 {            // 2 3 4, 6 7 8, 10 11 12: in, a large message, out
			w.setRole("g", "alice", "bob", store.Ordinary)
			w.post("g", "alice", "a", strings.Repeat("x", store.PageBytes*2/3))
			w.setRole("g", "alice", "bob", store.NoRole)
			w.post("g", "alice", "a", "not for bob")
		}
		var got []uint64
		pages := 0
		for after, more := uint64(0), true; more && pages < 9; pages++ {
			var page []uint64
			if page, more = w.historyPage(b, fmt.Sprintf(`"conv":"g/g","after":%d`, after)); len(page) == 0 {
				break
			}
			got = append(got, page...)
			after = got[len(got)-1]
		}
		if want := []uint64{2, 3, 4, 6, 7, 8, 10, 11, 12}; !slices.Equal(got, want) || pages != 2 {
			t.Errorf("got %v in %d pages, want %v in 2", got, pages, want)
		}
	})
}

// TestGroupReceipts: counts, and names where the group is small and gives them, also of what is not flushed yet.
func TestGroupReceipts(t *testing.T) {
	bubble(t, Config{FlushInterval: time.Hour, AckTimeout: time.Hour}, func(t *testing.T, w *world) {
		a, b, c := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM), w.connect("carol", "c", persistent, IM)
		w.newGroup("g", "alice", "bob", "carol", "dave") // 1
		cseq := w.post("g", "alice", "a", "2")
		erin := w.connect("erin", "e", persistent, IM)
		w.setRole("g", "alice", "erin", store.Ordinary) // who was not there for it
		w.ok(erin, nil, "ack", `{"seq":1}`)
		check := func(want string) {
			t.Helper()
			var raw map[string]any
			w.ok(a, &raw, "receipts", `{"rid":"1","conv":"g/g","cseq":%d}`, cseq)
			if got := fmt.Sprint(raw); got != "map["+want+"]" {
				t.Errorf("got %s, want %s", got, want)
			}
		}
		check("delivered:0 delivered_by:[] read:0 read_by:[]")
		w.ok(c, nil, "ack", `{"seq":2}`)
		check("delivered:1 delivered_by:[carol] read:0 read_by:[]")
		w.ok(b, nil, "read", `{"conv":"g/g","cseq":%d}`, cseq)
		check("delivered:2 delivered_by:[bob carol] read:1 read_by:[bob]")
		if err := w.e.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		check("delivered:2 delivered_by:[bob carol] read:1 read_by:[bob]")
		w.changeGroup("g", "alice", func(c *store.Change) { c.Group.Receipts = store.ReceiptsCounts })
		check("delivered:2 read:1")
		w.changeGroup("g", "alice", func(c *store.Change) { c.Group.Receipts = store.ReceiptsNone })
		w.refused(Forbidden, a, "receipts", `{"conv":"g/g","cseq":%d}`, cseq)
		w.changeGroup("g", "alice", func(c *store.Change) { c.Group.Receipts, c.Large = store.ReceiptsAll, true })
		check("delivered:2 read:1")
		w.refused(NotFound, a, "receipts", `{"conv":"g/g","cseq":99}`)
	})
}
