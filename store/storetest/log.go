package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
)

func testNumbering(t *testing.T, e *env) {
	e.start(store.Retention{})
	var last int64
	cseq := map[store.Conv]uint64{}
	seq := map[string]uint64{}
	check := func(list []*store.Send) {
		t.Helper()
		for _, m := range list {
			cseq[m.Conv]++
			if m.Cseq != cseq[m.Conv] {
				t.Errorf("%s: got cseq %d, want %d", m.Conv, m.Cseq, cseq[m.Conv])
			}
			if m.ID <= last {
				t.Errorf("id %d after %d", m.ID, last)
			}
			last = m.ID
			for _, r := range m.Inboxes {
				seq[r.User]++
				if r.Seq != seq[r.User] {
					t.Errorf("inbox of %s: got seq %d, want %d", r.User, r.Seq, seq[r.User])
				}
			}
		}
		if got, err := e.st.LastID(ctx); err != nil || got != last {
			t.Errorf("last id: got %d, %v, want %d", got, err, last)
		}
	}
	check([]*store.Send{e.group("g1", "ann", "bob", "cyd")})
	for round := range 4 {
		check(e.sendN(20, 7, func(i int) *store.Send {
			if i%3 == 0 {
				return e.toGroup("g1", "ann")
			}
			return e.direct([]string{"ann", "bob"}[i%2], []string{"bob", "ann"}[i%2])
		}))
		if round > 0 {
			e.reopen()
			if got, err := e.st.LastID(ctx); err != nil || got != last {
				t.Errorf("last id after reopening: got %d, %v, want %d", got, err, last)
			}
		}
	}
	for conv, n := range cseq {
		e.equal("history of "+string(conv),
			cseqs(e.history("ann", conv, store.Range{Forward: true, Limit: 1000})), count(1, n))
	}
	for user, n := range seq {
		e.equal("inbox of "+user, seqs(e.drain(user, 0, 9)), count(1, n))
		e.equal("head of "+user, e.inbox(user), store.Inbox{Head: n})
	}
	e.equal("unknown inbox", e.inbox("nobody"), store.Inbox{})
	e.equal("unknown conversation", e.conv("ann", store.Direct("ann", "zoe")),
		store.Conversation{Conv: store.Direct("ann", "zoe")})
}

// testNumberingConcurrent lets several goroutines commit at once.
func testNumberingConcurrent(t *testing.T, e *env) {
	e.start(store.Retention{})
	const workers, batches, per = 4, 10, 5
	var wg sync.WaitGroup
	var mu sync.Mutex
	all := map[uint64]*store.Send{1: e.group("g", "all", "u0", "u1", "u2", "u3")}
	for w := range workers {
		wg.Go(func() {
			for b := range batches {
				batch := &store.Batch{}
				for i := range per {
					batch.Sends = append(batch.Sends, &store.Send{
						Message: store.Message{
							Conv: store.GroupConv("g"), From: fmt.Sprint("u", w), Type: "text", TS: time.Now().UnixMilli(),
							Cid: fmt.Sprint(b, "-", i), Body: fmt.Append(nil, w, b, i),
						},
					})
				}
				if err := e.st.Commit(ctx, batch); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for i, m := range batch.Sends {
					if i > 0 && m.Cseq <= batch.Sends[i-1].Cseq {
						t.Errorf("cseq %d after %d within a batch", m.Cseq, batch.Sends[i-1].Cseq)
					}
					if all[m.Cseq] != nil {
						t.Errorf("cseq %d given twice", m.Cseq)
					}
					all[m.Cseq] = m
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	list := e.history("all", store.GroupConv("g"), store.Range{Forward: true, Limit: 10_000})
	e.equal("history", cseqs(list), count(1, 1+workers*batches*per))
	for i, m := range list {
		if i > 0 && m.ID <= list[i-1].ID {
			t.Errorf("id %d after %d", m.ID, list[i-1].ID)
		}
		if want := all[m.Cseq]; want == nil || string(want.Body) != string(m.Body) {
			t.Errorf("cseq %d has another body than the one committed with it", m.Cseq)
		}
	}
	inbox := e.drain("all", 0, 33)
	for i, m := range inbox {
		if m.Cseq != list[i].Cseq {
			t.Errorf("inbox seq %d is cseq %d, want %d", m.Seq, m.Cseq, list[i].Cseq)
		}
	}
	e.equal("inbox", seqs(inbox), count(1, 1+workers*batches*per))
}

func testEmptyBatch(t *testing.T, e *env) {
	e.start(store.Retention{})
	e.commit(&store.Batch{})
	e.commit(&store.Batch{Lazy: true})
	if id, err := e.st.LastID(ctx); id != 0 || err != nil {
		t.Errorf("last id of an empty store: got %d, %v", id, err)
	}
	if err := e.st.Healthy(); err != nil {
		t.Errorf("healthy: %v", err)
	}
}

// testFields stores every field, set and unset, in one chunk and across a reopening.
func testFields(t *testing.T, e *env) {
	e.start(store.Retention{})
	ab := store.Direct("ann", "bob")
	now := time.Now().UnixMilli()
	in := []store.Message{
		{Conv: ab, From: "ann", Device: "phone", Cid: "c1", Type: "text", TS: now, Body: []byte("hello")},
		{Conv: ab, From: "ann", Device: "phone", Type: "text", TS: now},
		{Conv: ab, From: "bob", Device: "", Cid: "ü\x00", Type: "bytes", ContentType: "image/png", Encoding: store.Bytes,
			TS: now - 5, CTS: now - 1000, Expires: now + 1000, Body: []byte{0, 1, 255}},
		{Conv: ab, From: "ann", Device: "laptop", Type: "", Encoding: store.JSON, TS: now + 3, CTS: now + 99,
			Body: []byte(`{"a":1}`)},
		{Conv: ab, From: "ann", Device: "phone", Cid: "c1b", Type: "text", TS: now, Expires: 1, Body: []byte("z")},
	}
	b := &store.Batch{}
	for _, m := range in {
		b.Sends = append(b.Sends, &store.Send{Message: m, Inboxes: []store.InboxRef{{User: "bob"}}})
	}
	e.commit(b)
	var want []*store.Message
	for _, m := range b.Sends {
		want = append(want, &m.Message)
	}
	for range 2 {
		e.equal("history", e.history("ann", ab, store.Range{Limit: 100}), want)
		for i := range want { // one by one: decoding may start anywhere in a chunk
			m, err := e.st.Message(ctx, ab, uint64(i+1))
			if err != nil {
				t.Fatal(err)
			}
			e.equal("message", m, want[i])
			e.equal("history", e.history("ann", ab, store.Range{After: uint64(i), Forward: true, Limit: 1}), want[i:i+1])
			e.equal("entry", e.read("bob", uint64(i), 1), []store.Entry{{Seq: uint64(i + 1), Message: want[i]}})
		}
		e.reopen()
	}
}

// testLargeBatch exceeds whatever a driver packs together.
func testLargeBatch(t *testing.T, e *env) {
	e.start(store.Retention{})
	big := make([]byte, 200<<10)
	for i := range big {
		big[i] = byte(i * 7)
	}
	all := e.sendN(1500, 1500, func(i int) *store.Send {
		m := e.direct("ann", "bob")
		if i%500 == 7 {
			m.Body = big
		}
		return m
	})
	for range 2 {
		list := e.history("bob", store.Direct("ann", "bob"), store.Range{Limit: 2000})
		inbox := e.drain("bob", 0, 400)
		if len(list) != len(all) || len(inbox) != len(all) {
			t.Fatalf("got %d of history and %d of inbox, want %d", len(list), len(inbox), len(all))
		}
		for i := range all {
			e.equal("history", list[i], &all[i].Message)
			e.equal("inbox", inbox[i].Message, &all[i].Message)
		}
		e.reopen()
	}
}

func withCid(m *store.Send, cid string, hash uint64) *store.Send {
	m.Cid, m.Hash = cid, hash
	return m
}

// again is the same message as a client repeats it, with nothing assigned.
func again(m *store.Send, ts int64) *store.Send {
	c := &store.Send{Message: m.Message, Hash: m.Hash}
	c.Cseq, c.ID, c.TS = 0, 0, ts
	for _, r := range m.Inboxes {
		c.Inboxes = append(c.Inboxes, store.InboxRef{User: r.User})
	}
	return c
}

func (e *env) wantDup(m, first *store.Send) {
	e.Helper()
	if !m.Dup || m.Err != nil {
		e.Errorf("cid %q: got dup %t, err %v, want a duplicate", m.Cid, m.Dup, m.Err)
	}
	got := [...]any{m.Conv, m.Cseq, m.ID, m.TS}
	want := [...]any{first.Conv, first.Cseq, first.ID, first.TS}
	if got != want {
		e.Errorf("cid %q: duplicate says %v, the first was %v", m.Cid, got, want)
	}
}

func testDupSameBatch(t *testing.T, e *env) {
	e.start(store.Retention{Dedupe: time.Hour})
	a := withCid(e.direct("ann", "bob"), "c1", 1)
	b := again(a, e.clock+5)
	c := withCid(e.direct("ann", "bob"), "c2", 2)
	other := withCid(e.direct("bob", "ann"), "c1", 9) // another sender's cid of the same text is another message
	e.send(a, b, other, c, again(a, e.clock))
	e.wantDup(b, a)
	if a.Dup || c.Dup || other.Dup || other.Err != nil {
		t.Error("a first message is called a duplicate")
	}
	e.equal("history", cseqs(e.history("bob", a.Conv, store.Range{Limit: 10})), count(1, 3))
	e.equal("inbox", seqs(e.drain("bob", 0, 10)), count(1, 3))
}

func testDupOtherBatch(t *testing.T, e *env) {
	e.start(store.Retention{Dedupe: time.Hour})
	a := withCid(e.direct("ann", "bob"), "c1", 1)
	e.group("g", "ann", "bob")
	g := withCid(e.toGroup("g", "ann"), "c2", 2)
	self := withCid(e.direct("ann", "ann"), "c3", 3)
	e.send(a, g, self)
	for range 3 {
		for _, first := range []*store.Send{a, g, self} {
			b := again(first, e.clock+1000)
			e.send(b)
			e.wantDup(b, first)
			b = again(first, e.clock+1000)
			e.send(e.direct("ann", "bob"), b)
			e.wantDup(b, first)
		}
		e.reopen()
	}
	e.equal("history", cseqs(e.history("bob", a.Conv, store.Range{Limit: 100})), count(1, 10))
}

// testDupWindow: a cid is remembered for the window at least, whatever Maintain does, also after it was changed.
func testDupWindow(t *testing.T, e *env) {
	const window = time.Hour
	e.start(store.Retention{Dedupe: window})
	first := withCid(e.direct("ann", "bob"), "c1", 1)
	e.send(first)
	for _, age := range []time.Duration{0, window / 3, window - time.Second} {
		now := first.TS + age.Milliseconds()
		filler := withCid(e.direct("bob", "ann"), fmt.Sprint("f", age), 1)
		filler.TS = now
		e.send(filler)
		e.maintain(time.UnixMilli(now))
		b := again(first, now)
		e.send(b)
		e.wantDup(b, first)
	}
	e.ret.Dedupe = window / 4
	e.reopen()
	e.ret.Dedupe = 3 * window
	e.reopen()
	b := again(first, first.TS+2*window.Milliseconds())
	e.send(b)
	e.wantDup(b, first)

	e.ret.Dedupe = window
	e.reopen()
	late := again(first, first.TS+5*window.Milliseconds())
	e.maintain(time.UnixMilli(late.TS))
	e.send(late)
	if late.Dup || late.Err != nil {
		t.Errorf("a cid outlives five windows and Maintain: dup %t, err %v", late.Dup, late.Err)
	}
	b = again(late, late.TS+1)
	e.send(b)
	e.wantDup(b, late)

	e.ret.Dedupe = 0 // for ever
	e.reopen()
	f := withCid(e.direct("ann", "bob"), "ever", 1)
	e.send(f)
	e.maintain(time.UnixMilli(f.TS).Add(1000 * time.Hour))
	b = again(f, f.TS+1000*window.Milliseconds())
	e.send(b)
	e.wantDup(b, f)
}

// testSent: Sent knows what a Commit of now would find.
func testSent(t *testing.T, e *env) {
	const window = time.Hour
	e.start(store.Retention{Dedupe: window})
	want := func(from, cid string, first *store.Send) {
		t.Helper()
		m, hash, ok, err := e.st.Sent(ctx, from, cid)
		if err != nil || ok != (first != nil) {
			t.Fatalf("cid %q of %s: got %t, %v", cid, from, ok, err)
		}
		if first == nil {
			if hash != 0 {
				t.Errorf("cid %q of %s is not known and has hash %d", cid, from, hash)
			}
			e.equal("what is not known", m, store.Message{})
			return
		}
		e.equal("cid "+cid, m, store.Message{Conv: first.Conv, Cseq: first.Cseq, ID: first.ID, TS: first.TS})
		e.equal("hash of cid "+cid, hash, first.Hash)
	}
	want("ann", "c", nil)
	made := e.newChange("g", "ann", func(c *store.Change) { c.Members = joining("ann", "bob") })
	made = withCid(made, "\xffphone\x00r1\x00h", 7)
	refused := withCid(e.toGroup("none", "ann"), "no", 1)
	old := withCid(e.direct("ann", "cyd"), "old", 5)
	old.TS -= (window + time.Minute).Milliseconds()
	aging := withCid(e.direct("ann", "cyd"), "aging", 6)
	aging.TS -= (window / 2).Milliseconds() // another bucket, if there are buckets
	e.send(old)
	e.send(aging)
	e.send(made, withCid(e.direct("ann", "bob"), "c", 8), refused)
	c := withCid(e.direct("ann", "bob"), "c2", 9)
	e.send(c)
	for range 2 {
		want("ann", made.Cid, made)
		want("ann", "c2", c)
		want("ann", "aging", aging)
		want("ann", "old", nil)
		want("ann", "no", nil)
		want("ann", "", nil)
		want("bob", "c2", nil)
		want("ann", "c2x", nil)
		e.reopen()
	}
	e.ret.Dedupe = 0 // for ever
	e.reopen()
	want("ann", "old", old)
}

// testDupClockBack: the server's clock was set back between the message and its repetition.
func testDupClockBack(_ *testing.T, e *env) {
	e.start(store.Retention{Dedupe: time.Hour})
	first := withCid(e.direct("ann", "bob"), "c1", 1)
	e.send(first)
	for _, back := range []time.Duration{time.Minute, time.Hour, 100 * time.Hour} {
		b := again(first, first.TS-back.Milliseconds())
		e.send(b)
		e.wantDup(b, first)
	}
}

func testConflict(t *testing.T, e *env) {
	e.start(store.Retention{Dedupe: time.Hour})
	a := withCid(e.direct("ann", "bob"), "c1", 1)
	same := withCid(e.direct("ann", "bob"), "c1", 2)
	e.send(a, same)
	later := withCid(e.direct("ann", "cyd"), "c1", 3)
	fine := withCid(e.direct("ann", "bob"), "c2", 3)
	e.send(later, fine)
	for _, m := range []*store.Send{same, later} {
		if !errors.Is(m.Err, store.ErrConflict) || m.Dup {
			t.Errorf("got dup %t, err %v, want %v", m.Dup, m.Err, store.ErrConflict)
		}
	}
	if fine.Err != nil || fine.Dup || fine.Cseq != 2 {
		t.Errorf("the rest of the batch: got dup %t, err %v, cseq %d", fine.Dup, fine.Err, fine.Cseq)
	}
	b := again(a, e.clock)
	e.send(b)
	e.wantDup(b, a)
	e.equal("history", cseqs(e.history("bob", a.Conv, store.Range{Limit: 100})), count(1, 2))
	e.equal("conversation of the refused message", e.conv("cyd", later.Conv), store.Conversation{Conv: later.Conv})
}

func testEpoch(t *testing.T, e *env) {
	e.start(store.Retention{})
	first := e.st.Epoch()
	if first == "" {
		t.Fatal("the epoch is empty")
	}
	e.send(e.direct("ann", "bob"))
	e.reopen()
	if got := e.st.Epoch(); got != first {
		t.Errorf("epoch after reopening: got %q, want %q", got, first)
	}
	other := e.open(t, t.TempDir(), store.Retention{})
	defer other.Close()
	if other.Epoch() == first {
		t.Errorf("two stores have the epoch %q", first)
	}
}

func testClosed(t *testing.T, e *env) {
	e.start(store.Retention{})
	e.send(e.direct("ann", "bob"))
	if err := e.st.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	if err := e.st.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	ab := store.Direct("ann", "bob")
	call := func(name string, err error) {
		if !errors.Is(err, store.ErrClosed) {
			t.Errorf("%s after Close: got %v, want %v", name, err, store.ErrClosed)
		}
	}
	call("Commit", e.st.Commit(ctx, &store.Batch{Sends: []*store.Send{e.direct("ann", "bob")}}))
	call("Healthy", e.st.Healthy())
	_, err := e.st.LastID(ctx)
	call("LastID", err)
	_, err = e.st.Inbox(ctx, "ann")
	call("Inbox", err)
	_, err = e.st.ReadInbox(ctx, "ann", 0, 1, nil)
	call("ReadInbox", err)
	_, err = e.st.Message(ctx, ab, 1)
	call("Message", err)
	_, err = e.st.History(ctx, "ann", ab, store.Range{Limit: 1})
	call("History", err)
	_, err = e.st.Conversation(ctx, "ann", ab)
	call("Conversation", err)
	_, _, err = e.st.ListConversations(ctx, "ann", "", 1)
	call("ListConversations", err)
	_, _, err = e.st.Notices(ctx, "ann", 0, "", 1)
	call("Notices", err)
	_, _, _, err = e.st.Sent(ctx, "ann", "c1")
	call("Sent", err)
	_, err = e.st.User(ctx, "ann")
	call("User", err)
	_, err = e.st.Device(ctx, store.DeviceKey{User: "ann", Device: "d"})
	call("Device", err)
	_, err = e.st.Devices(ctx, "ann")
	call("Devices", err)
	_, err = e.st.Blocks(ctx, "ann")
	call("Blocks", err)
	_, err = e.st.Maintain(ctx, time.Now())
	call("Maintain", err)
}

func testCanceled(t *testing.T, e *env) {
	e.start(store.Retention{})
	c, cancel := context.WithCancel(ctx)
	cancel()
	if err := e.st.Commit(c, &store.Batch{Sends: []*store.Send{e.direct("ann", "bob")}}); err == nil {
		t.Error("commit with a cancelled context: no error")
	}
	e.equal("inbox", e.inbox("bob"), store.Inbox{})
	m := e.direct("ann", "bob")
	e.send(m)
	if m.Cseq != 1 {
		t.Errorf("after a commit that failed: got cseq %d, want 1", m.Cseq)
	}
}
