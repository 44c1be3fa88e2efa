package storetest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
)

func testInboxPaging(t *testing.T, e *env) {
	e.start(store.Retention{})
	peers := []string{"bob", "cyd", "dan"}
	all := e.sendN(100, 9, func(i int) *store.Send { return e.direct(peers[i%3], "ann") })
	for _, limit := range []int{1, 2, 7, 100, 1000} {
		got := e.drain("ann", 0, limit)
		e.equal(fmt.Sprint("seqs in pages of ", limit), seqs(got), count(1, 100))
		for _, x := range got {
			e.equal("entry", x.Message, &all[x.Seq-1].Message)
		}
	}
	for after := range uint64(101) {
		e.equal(fmt.Sprint("after ", after), seqs(e.read("ann", after, 3)), count(after+1, min(after+3, 100)))
	}
	for _, after := range []uint64{100, 1 << 60, 1<<64 - 2, 1<<64 - 1} {
		e.equal("beyond the head", e.read("ann", after, 3), []store.Entry(nil))
	}
	dst := make([]store.Entry, 1, 10)
	dst[0].Seq = 77
	dst, err := e.st.ReadInbox(ctx, "ann", 98, 5, dst)
	if err != nil {
		t.Fatal(err)
	}
	e.equal("appended to dst", seqs(dst), []uint64{77, 99, 100})
}

func testInboxPageBytes(t *testing.T, e *env) {
	e.start(store.Retention{})
	e.sendN(12, 5, func(i int) *store.Send {
		m := e.direct("bob", "ann")
		m.Body = make([]byte, 300<<10)
		if i == 6 {
			m.Body = make([]byte, 3<<20)
		}
		return m
	})
	var after uint64
	for after < 12 {
		page := e.read("ann", after, 100)
		if len(page) == 0 {
			t.Fatalf("an empty page after %d of 12", after)
		}
		size := 0
		for _, x := range page[:len(page)-1] {
			size += len(x.Body)
		}
		if size > 2<<20 {
			t.Errorf("page of %d bytes before its last message", size)
		}
		after = page[len(page)-1].Seq
	}
}

// testReadWhileCommitting: a reader that follows the head sees every entry once, whole and in order.
func testReadWhileCommitting(t *testing.T, e *env) {
	e.start(store.Retention{})
	const n = 300
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range n {
			m := e.direct("bob", "ann")
			m.Body = fmt.Append(nil, i+1)
			if err := e.st.Commit(ctx, &store.Batch{Sends: []*store.Send{m}}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	deadline := time.Now().Add(time.Minute)
	var after uint64
	for after < n && !t.Failed() && time.Now().Before(deadline) {
		b := e.inbox("ann")
		c := e.conv("ann", store.Direct("ann", "bob"))
		list := e.read("ann", after, 50)
		if len(list) == 0 && b.Head > after {
			t.Errorf("head is %d, nothing after %d", b.Head, after)
		}
		for _, x := range list {
			if x.Seq != after+1 || x.Cseq != x.Seq || string(x.Body) != fmt.Sprint(x.Seq) {
				t.Errorf("after %d: got seq %d, cseq %d, body %s", after, x.Seq, x.Cseq, x.Body)
			}
			after = x.Seq
		}
		if c.Unread != c.Head || c.Head > 0 && c.Last == nil {
			t.Errorf("unread %d, head %d, last %v", c.Unread, c.Head, c.Last)
		}
	}
	wg.Wait()
	if after != n {
		t.Errorf("read up to %d, want %d", after, n)
	}
}

func testInboxMessages(_ *testing.T, e *env) {
	e.start(store.Retention{InboxMessages: 10})
	e.sendN(8, 3, func(int) *store.Send { return e.direct("bob", "ann") })
	e.equal("below the bound", e.inbox("ann"), store.Inbox{Head: 8})
	e.sendN(27, 4, func(int) *store.Send { return e.direct("bob", "ann") })
	check := func() {
		e.Helper()
		e.equal("inbox", e.inbox("ann"), store.Inbox{Head: 35, Trimmed: 25})
		e.equal("all that is left", seqs(e.read("ann", 0, 100)), count(26, 35))
		e.equal("from within", seqs(e.read("ann", 30, 100)), count(31, 35))
	}
	check()
	e.maintain(time.Now())
	check()
	e.reopen()
	check()
	e.equal("history is untouched", cseqs(e.history("ann", store.Direct("ann", "bob"), store.Range{Limit: 100})),
		count(1, 35))
}

func testInboxTTL(_ *testing.T, e *env) {
	const ttl = time.Hour
	e.start(store.Retention{InboxTTL: ttl})
	now := time.Now()
	n := 0
	at := func(age time.Duration) *store.Send {
		n++
		m := e.direct([]string{"bob", "cyd"}[n%2], "ann")
		m.TS = now.Add(-age).UnixMilli()
		return m
	}
	for range 5 {
		e.send(at(3*ttl), at(3*ttl), at(2*ttl))
	}
	check := func(what string, head, trimmed uint64) {
		e.Helper()
		e.equal(what, e.inbox("ann"), store.Inbox{Head: head, Trimmed: trimmed})
		e.equal(what+", entries", seqs(e.drain("ann", trimmed, 100)), count(trimmed+1, head))
		e.equal(what+", from the start", seqs(e.read("ann", 0, 100)), count(trimmed+1, head))
	}
	check("all expired", 15, 15)
	e.send(at(2*ttl), at(0), at(0)) // the border runs through a batch
	check("border in a batch", 18, 16)
	e.send(at(0))
	check("a live batch", 19, 16)
	e.maintain(now)
	check("after Maintain", 19, 16)
	e.reopen()
	check("after reopening", 19, 16)
	e.send(at(0))
	check("and on", 20, 16)
}

// testInboxTTLClockBack: only the front expires; an old entry behind a young one stays, there are no holes.
func testInboxTTLClockBack(_ *testing.T, e *env) {
	const ttl = time.Hour
	e.start(store.Retention{InboxTTL: ttl})
	for _, age := range []time.Duration{2 * ttl, 0, 2 * ttl, 3 * ttl, 0} {
		m := e.direct("bob", "ann")
		m.TS -= age.Milliseconds()
		e.send(m)
	}
	for range 2 {
		e.equal("inbox", e.inbox("ann"), store.Inbox{Head: 5, Trimmed: 1})
		e.equal("entries", seqs(e.read("ann", 0, 100)), count(2, 5))
		e.equal("entries", seqs(e.read("ann", 2, 100)), count(3, 5))
		e.maintain(time.Now())
	}
}

// testTrimCursors: what every cursor has passed goes, and nothing else.
func testTrimCursors(t *testing.T, e *env) {
	e.start(store.Retention{})
	const n = 3000
	e.sendN(n, 500, func(int) *store.Send { return e.direct("bob", "ann") })
	phone, laptop := store.DeviceKey{User: "ann", Device: "phone"}, store.DeviceKey{User: "ann", Device: "laptop"}
	cursors := func(user, p, l uint64) {
		e.commit(&store.Batch{
			Users:   []store.User{{Name: "ann", Cursor: user}},
			Devices: []store.Device{{DeviceKey: phone, Cursor: p}, {DeviceKey: laptop, Cursor: l}},
		})
		e.maintain(time.Now())
	}
	cursors(2900, 2900, 100)
	if b := e.inbox("ann"); b.Trimmed > 100 || b.Head != n {
		t.Errorf("got %+v, a cursor is at 100", b)
	}
	e.equal("what the slow device needs", seqs(e.drain("ann", 100, 500)), count(101, n))
	cursors(2900, 2900, 2500)
	b := e.inbox("ann")
	if b.Trimmed > 2500 || b.Head != n {
		t.Errorf("got %+v, a cursor is at 2500", b)
	}
	if b.Trimmed == 0 {
		t.Log("nothing was trimmed, which is allowed")
	}
	e.reopen()
	e.equal("state after reopening", e.inbox("ann"), b)
	e.equal("what the slow device needs", seqs(e.drain("ann", 2500, 500)), count(2501, n))
	if list := e.read("ann", 0, 10); len(list) == 0 || list[0].Seq != b.Trimmed+1 {
		t.Errorf("the first entry is not %d", b.Trimmed+1)
	}
}

// testSeqNeverRestarts: an inbox that was emptied goes on where it was.
func testSeqNeverRestarts(_ *testing.T, e *env) {
	e.start(store.Retention{InboxTTL: time.Minute})
	e.sendN(2000, 1000, func(int) *store.Send {
		m := e.direct("bob", "ann")
		m.TS -= time.Hour.Milliseconds()
		return m
	})
	e.maintain(time.Now())
	e.reopen()
	e.equal("emptied", e.inbox("ann"), store.Inbox{Head: 2000, Trimmed: 2000})
	m := e.direct("bob", "ann")
	e.send(m)
	e.equal("next", m.Inboxes, []store.InboxRef{{User: "bob", Seq: 2001}, {User: "ann", Seq: 2001}})
	e.equal("entries", seqs(e.read("ann", 0, 10)), []uint64{2001})
}
