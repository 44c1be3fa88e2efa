package storetest

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
)

func testHistoryPaging(_ *testing.T, e *env) {
	e.start(store.Retention{})
	ab := store.Direct("ann", "bob")
	all := e.sendN(60, 7, func(i int) *store.Send { return e.direct("ann", "bob") })
	var want []*store.Message
	for _, m := range all {
		want = append(want, &m.Message)
	}
	type R = store.Range
	for _, c := range []struct {
		r        R
		from, to uint64
	}{
		{R{Limit: 5}, 56, 60},
		{R{Limit: 500}, 1, 60},
		{R{Before: 56, Limit: 5}, 51, 55},
		{R{Before: 3, Limit: 5}, 1, 2},
		{R{Before: 1, Limit: 5}, 1, 0},
		{R{Before: 1000, Limit: 2}, 59, 60},
		{R{Forward: true, Limit: 5}, 1, 5},
		{R{After: 5, Forward: true, Limit: 5}, 6, 10},
		{R{After: 58, Forward: true, Limit: 5}, 59, 60},
		{R{After: 60, Forward: true, Limit: 5}, 1, 0},
		{R{After: 1000, Forward: true, Limit: 5}, 1, 0},
		{R{After: ^uint64(0), Forward: true, Limit: 5}, 1, 0},
		{R{After: 20, Forward: true, Limit: 30}, 21, 50},
		{R{Before: 41, Limit: 30}, 11, 40},
		{R{After: 5, Limit: 5}, 56, 60},
		{R{After: 58, Limit: 5}, 59, 60},
		{R{After: 60, Limit: 5}, 1, 0},
		{R{After: ^uint64(0), Limit: 5}, 1, 0},
		{R{Before: 4, Forward: true, Limit: 5}, 1, 3},
		{R{After: 20, Before: 30, Limit: 5}, 25, 29},
		{R{After: 20, Before: 30, Forward: true, Limit: 5}, 21, 25},
		{R{After: 20, Before: 24, Limit: 5}, 21, 23},
		{R{After: 20, Before: 24, Forward: true, Limit: 5}, 21, 23},
		{R{After: 20, Before: 21, Limit: 5}, 1, 0},
		{R{After: 20, Before: 21, Forward: true, Limit: 5}, 1, 0},
		{R{After: 30, Before: 20, Limit: 5}, 1, 0},
		{R{After: 30, Before: 20, Forward: true, Limit: 5}, 1, 0},
		{R{Before: 1, Forward: true, Limit: 5}, 1, 0},
	} {
		e.equal(fmt.Sprintf("%+v", c.r), e.history("ann", ab, c.r), want[c.from-1:max(c.to, c.from-1)])
	}
	e.equal("unknown conversation", e.history("ann", store.GroupConv("no"), R{Limit: 3}), []*store.Message(nil))
	e.commit(&store.Batch{Deletes: []store.Delete{{User: "ann", Conv: ab, Cseqs: count(20, 40)}}})
	e.equal("around a hole", cseqs(e.history("ann", ab, R{Before: 43, Limit: 5})), []uint64{17, 18, 19, 41, 42})
	e.equal("around a hole", cseqs(e.history("ann", ab, R{After: 17, Forward: true, Limit: 4})), []uint64{18, 19, 41, 42})
	e.equal("up to a hole", cseqs(e.history("ann", ab, R{After: 17, Before: 41, Limit: 4})), []uint64{18, 19})
	e.equal("the other user", cseqs(e.history("bob", ab, R{After: 17, Forward: true, Limit: 4})), count(18, 21))
}

// testHistoryPageBytes: a page of large messages ends early, and paging on misses nothing, in both directions.
func testHistoryPageBytes(t *testing.T, e *env) {
	e.start(store.Retention{})
	ab := store.Direct("ann", "bob")
	const n, size = 20, 200 << 10
	e.sendN(n, 3, func(int) *store.Send {
		m := e.direct("ann", "bob")
		m.Body = make([]byte, size)
		return m
	})
	for _, forward := range []bool{true, false} {
		var got []uint64
		r := store.Range{Forward: forward, Limit: n}
		for {
			page := cseqs(e.history("ann", ab, r))
			if len(page) == 0 {
				break
			}
			if len(page)*size > 2*store.PageBytes {
				t.Fatalf("a page of %d messages of %d bytes, want about %d bytes", len(page), size, store.PageBytes)
			}
			if forward {
				got = append(got, page...)
				r.After = page[len(page)-1]
			} else {
				got = append(page, got...)
				if r.Before = page[0]; r.Before == 1 {
					break
				}
			}
		}
		e.equal(fmt.Sprintf("all pages, forward %t", forward), got, count(1, n))
	}
}

// testHistoryTTL: what is old may go, in the order of the log; heads and numbers stay.
func testHistoryTTL(t *testing.T, e *env) {
	const ttl = time.Hour
	e.start(store.Retention{HistoryTTL: ttl})
	ab, ac := store.Direct("ann", "bob"), store.Direct("ann", "cyd")
	old := func(from, to string) func(int) *store.Send {
		return func(int) *store.Send {
			m := e.direct(from, to)
			m.TS -= 2 * ttl.Milliseconds()
			return m
		}
	}
	e.sendN(1000, 100, old("ann", "bob"))
	e.sendN(10, 3, old("cyd", "ann"))
	e.sendN(10, 5, func(int) *store.Send { return e.direct("bob", "ann") })
	e.maintain(time.Now())
	for range 2 {
		list := e.history("ann", ab, store.Range{Limit: 5000})
		got := cseqs(list)
		if len(got) < 10 {
			t.Fatalf("young messages are gone: %v", got)
		}
		e.equal("history", got, count(got[0], 1010))
		if got[0] == 1 {
			t.Log("nothing was removed, which is allowed")
		}
		c := e.conv("ann", ab)
		e.equal("head", c.Head, uint64(1010))
		if c.Unread != 10 {
			t.Errorf("unread: got %d, want 10", c.Unread)
		}
		e.equal("head of a conversation that is all old", e.conv("ann", ac).Head, uint64(10))
		if got[0] > 1 {
			if _, err := e.st.Message(ctx, ab, got[0]-1); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("removed message: got %v, want %v", err, store.ErrNotFound)
			}
		}
		e.equal("entries", seqs(e.read("ann", 0, 100)), count(1011, 1020))
		e.reopen()
	}
	m := e.direct("cyd", "ann")
	e.send(m)
	e.equal("next cseq", m.Cseq, uint64(11))
}

func testMessage(t *testing.T, e *env) {
	e.start(store.Retention{})
	m := e.direct("ann", "bob")
	e.send(m)
	got, err := e.st.Message(ctx, m.Conv, 1)
	if err != nil {
		t.Fatal(err)
	}
	e.equal("message", got, &m.Message)
	for _, cseq := range []uint64{0, 2, ^uint64(0)} {
		if _, err := e.st.Message(ctx, m.Conv, cseq); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("cseq %d: got %v, want %v", cseq, err, store.ErrNotFound)
		}
	}
	if _, err := e.st.Message(ctx, store.GroupConv("no"), 1); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("unknown conversation: got %v, want %v", err, store.ErrNotFound)
	}
}

func testRecall(t *testing.T, e *env) {
	e.start(store.Retention{})
	all := e.sendN(10, 5, func(int) *store.Send { return e.direct("ann", "bob") })
	ab := all[0].Conv
	r := []*store.Recall{{Conv: ab, Cseq: 3}, {Conv: ab, Cseq: 4}, {Conv: ab, Cseq: 11}, {Conv: ab, Cseq: 0},
		{Conv: store.GroupConv("no"), Cseq: 1}}
	e.commit(&store.Batch{Recalls: r})
	for i, want := range []error{nil, nil, store.ErrNotFound, store.ErrNotFound, store.ErrNotFound} {
		if !errors.Is(r[i].Err, want) {
			t.Errorf("recall of %d: got %v, want %v", r[i].Cseq, r[i].Err, want)
		}
	}
	twice := &store.Recall{Conv: ab, Cseq: 3}
	e.commit(&store.Batch{Recalls: []*store.Recall{twice}})
	if twice.Err != nil {
		t.Errorf("recalling twice: %v", twice.Err)
	}
	for range 2 {
		for _, m := range e.history("bob", ab, store.Range{Limit: 100}) {
			want := all[m.Cseq-1].Message
			if m.Cseq == 3 || m.Cseq == 4 {
				want.Recalled, want.Body = true, nil
			}
			if !m.Recalled && m.Type != want.Type || m.Recalled != want.Recalled || string(m.Body) != string(want.Body) ||
				m.ID != want.ID || m.From != want.From || m.TS != want.TS {
				t.Errorf("got %+v, want %+v", m, want)
			}
		}
		for _, x := range e.read("bob", 0, 100) {
			if want := x.Seq == 3 || x.Seq == 4; x.Recalled != want || want == (len(x.Body) > 0) {
				t.Errorf("entry %d: got recalled %t with %d bytes", x.Seq, x.Recalled, len(x.Body))
			}
		}
		if id, err := e.st.LastID(ctx); err != nil || id != all[9].ID {
			t.Errorf("last id: got %d, %v, want %d", id, err, all[9].ID)
		}
		e.unread("bob", ab, 8)
		e.reopen()
	}
}

func testDelete(t *testing.T, e *env) {
	e.start(store.Retention{})
	ab := store.Direct("ann", "bob")
	e.sendN(8, 3, func(i int) *store.Send {
		if i%2 == 0 {
			return e.direct("ann", "bob")
		}
		return e.direct("bob", "ann")
	})
	del := &store.Batch{Deletes: []store.Delete{{User: "bob", Conv: ab, Cseqs: []uint64{2, 3, 8, 0, 99, 3}}}}
	e.commit(del)
	e.commit(del)
	for range 2 {
		e.equal("history", cseqs(e.history("bob", ab, store.Range{Limit: 100})), []uint64{1, 4, 5, 6, 7})
		e.equal("history of the other", cseqs(e.history("ann", ab, store.Range{Limit: 100})), count(1, 8))
		for _, x := range e.read("bob", 0, 100) {
			if want := slices.Contains([]uint64{2, 3, 8}, x.Cseq); x.Recalled != want || want && len(x.Body) > 0 {
				t.Errorf("entry %d of bob: got recalled %t, %d bytes", x.Seq, x.Recalled, len(x.Body))
			}
		}
		for _, x := range e.read("ann", 0, 100) {
			if x.Recalled {
				t.Errorf("entry %d of ann is recalled", x.Seq)
			}
		}
		e.unread("bob", ab, 3) // of 1, 3, 5, 7
		e.unread("ann", ab, 4)
		e.reopen()
	}
}

func (e *env) mark(user string, conv store.Conv, cseq uint64, moved bool) {
	e.Helper()
	m := &store.Mark{User: user, Conv: conv, Cseq: cseq}
	e.commit(&store.Batch{Reads: []*store.Mark{m}, Lazy: true})
	if m.Moved != moved {
		e.Errorf("read mark of %s at %d: got moved %t, want %t", user, cseq, m.Moved, moved)
	}
}

func testUnreadDirect(_ *testing.T, e *env) {
	e.start(store.Retention{})
	ab := store.Direct("ann", "bob")
	e.unread("ann", ab, 0)
	// bob sends 1 2 4 5 7 8 …, ann 3 6 9 …
	e.sendN(30, 4, func(i int) *store.Send {
		if i%3 == 2 {
			return e.direct("ann", "bob")
		}
		return e.direct("bob", "ann")
	})
	e.unread("ann", ab, 20)
	e.unread("bob", ab, 10)
	e.mark("ann", ab, 4, true) // left: 26 messages, ann's own 6 9 … 30
	e.unread("ann", ab, 17)
	e.mark("ann", ab, 3, false)
	e.unread("ann", ab, 17)
	e.commit(&store.Batch{Recalls: []*store.Recall{
		{Conv: ab, Cseq: 1}, // read already
		{Conv: ab, Cseq: 5},
		{Conv: ab, Cseq: 6}, // her own
	}})
	e.unread("ann", ab, 16)
	e.commit(&store.Batch{Deletes: []store.Delete{{User: "ann", Conv: ab, Cseqs: []uint64{2, 5, 7, 9}}}})
	e.unread("ann", ab, 15) // 5 was recalled, 9 is her own, 2 was read
	e.reopen()
	e.unread("ann", ab, 15)
	e.unread("bob", ab, 9) // one of ann's was recalled
	e.mark("ann", ab, 28, true)
	e.unread("ann", ab, 1)
	e.mark("ann", ab, 30, true)
	e.unread("ann", ab, 0)
	e.send(e.direct("bob", "ann"))
	e.unread("ann", ab, 1)

	notes := store.Direct("ann", "ann")
	e.sendN(3, 3, func(int) *store.Send { return e.direct("ann", "ann") })
	e.unread("ann", notes, 0)
}

func testWatermarks(t *testing.T, e *env) {
	e.start(store.Retention{})
	ab := store.Direct("ann", "bob")
	e.sendN(10, 10, func(int) *store.Send { return e.direct("ann", "bob") })
	e.mark("bob", ab, 4, true)
	d := &store.Mark{User: "bob", Conv: ab, Cseq: 7}
	e.commit(&store.Batch{Delivered: []*store.Mark{d}})
	low := &store.Mark{User: "bob", Conv: ab, Cseq: 6}
	e.commit(&store.Batch{Delivered: []*store.Mark{low}, Reads: []*store.Mark{{User: "ann", Conv: ab, Cseq: 10}}})
	if !d.Moved || low.Moved {
		t.Errorf("moved: got %t and %t, want true and false", d.Moved, low.Moved)
	}
	for range 2 {
		a, b := e.conv("ann", ab), e.conv("bob", ab)
		e.equal("ann's", [...]uint64{a.Read, a.Delivered, a.PeerRead, a.PeerDeliv}, [...]uint64{10, 0, 4, 7})
		e.equal("bob's", [...]uint64{b.Read, b.Delivered, b.PeerRead, b.PeerDeliv}, [...]uint64{4, 7, 10, 0})
		e.reopen()
	}
}

func testConversationLast(_ *testing.T, e *env) {
	e.start(store.Retention{})
	all := e.sendN(6, 2, func(int) *store.Send { return e.direct("ann", "bob") })
	ab := all[0].Conv
	e.equal("last", e.conv("bob", ab).Last, &all[5].Message)
	e.commit(&store.Batch{Deletes: []store.Delete{{User: "bob", Conv: ab, Cseqs: []uint64{6, 5, 3}}}})
	e.equal("last not deleted", e.conv("bob", ab).Last, &all[3].Message)
	e.equal("last of the other", e.conv("ann", ab).Last, &all[5].Message)
	e.commit(&store.Batch{Deletes: []store.Delete{{User: "bob", Conv: ab, Cseqs: count(1, 6)}}})
	e.equal("all deleted", e.conv("bob", ab).Last, (*store.Message)(nil))
}

func (e *env) list(user string, limit int) []store.Conv {
	e.Helper()
	var out []store.Conv
	cursor := ""
	for {
		page, next, err := e.st.ListConversations(ctx, user, cursor, limit)
		if err != nil {
			e.Fatalf("list: %v", err)
		}
		if len(page) > limit {
			e.Fatalf("page of %d, limit is %d", len(page), limit)
		}
		for _, c := range page {
			e.equal("listed conversation", c, e.conv(user, c.Conv))
			out = append(out, c.Conv)
		}
		if next == "" {
			return out
		}
		cursor = next
	}
}

func testList(t *testing.T, e *env) {
	e.start(store.Retention{})
	e.equal("nothing yet", e.list("ann", 3), []store.Conv(nil))
	var want []store.Conv
	touch := func(m *store.Send) *store.Send {
		want = slices.DeleteFunc(want, func(c store.Conv) bool { return c == m.Conv })
		want = slices.Insert(want, 0, m.Conv)
		return m
	}
	step := func(i int) *store.Send {
		switch {
		case i%5 == 0:
			return touch(e.toGroup(fmt.Sprint("g", i%3), "bob"))
		case i == 7:
			return touch(e.direct("ann", "ann"))
		case i%2 == 0:
			return touch(e.direct("ann", fmt.Sprint("u", i*7%11)))
		}
		return touch(e.direct(fmt.Sprint("u", i*7%11), "ann"))
	}
	for i := range 3 {
		touch(e.group(fmt.Sprint("g", i), "bob", "ann"))
	}
	e.sendN(40, 3, step)
	for range 2 {
		for _, limit := range []int{1, 2, 5, 100} {
			e.equal(fmt.Sprint("in pages of ", limit), e.list("ann", limit), want)
		}
		e.reopen()
	}
	e.equal("bob", len(e.list("bob", 10)), 3)
	first, next, err := e.st.ListConversations(ctx, "ann", "", 3)
	if err != nil || next == "" {
		t.Fatalf("next %q, err %v", next, err)
	}
	e.send(touch(e.direct("new", "ann"))) // between two pages: the second does not repeat the first
	second, _, err := e.st.ListConversations(ctx, "ann", next, 3)
	if err != nil {
		t.Fatal(err)
	}
	var got []store.Conv
	for _, c := range append(first, second...) {
		got = append(got, c.Conv)
	}
	e.equal("two pages with a message in between", got, want[1:7])
}
