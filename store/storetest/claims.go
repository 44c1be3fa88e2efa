package storetest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mqim/mqim/store"
)

// claim claims clients in one batch and returns the epochs.
func (e *env) claim(clients ...string) (epochs []uint64) {
	e.Helper()
	b := &store.Batch{}
	for _, c := range clients {
		b.Claims = append(b.Claims, &store.Claim{Client: c})
	}
	e.commit(b)
	for _, c := range b.Claims {
		epochs = append(epochs, c.Epoch)
	}
	return epochs
}

func (e *env) epochs(clients ...string) []uint64 {
	e.Helper()
	list, err := e.st.Epochs(ctx, clients, nil)
	if err != nil {
		e.Fatal(err)
	}
	return list
}

// testLiving: a process is alone with its store, also after a restart.
func testLiving(t *testing.T, e *env) {
	e.start(store.Retention{})
	for range 2 {
		if n, err := e.st.Living(ctx); n != 1 || err != nil {
			t.Errorf("got %d, %v, want 1", n, err)
		}
		e.reopen()
	}
}

// testClaims: each claim of a client has a greater epoch than those before, in one batch, in another, after a restart.
func testClaims(t *testing.T, e *env) {
	e.start(store.Retention{})
	e.equal("nobody", e.epochs("b", "a"), []uint64{0, 0})
	last := map[string]uint64{}
	for n, list := range [][]string{{"b", "a"}, {"a"}, {"b", "a", "b", "b"}, {"c", "c"}, {"a", "b", "c"}} {
		for i, epoch := range e.claim(list...) {
			if epoch <= last[list[i]] {
				t.Errorf("batch %d: claim of %s: got %d after %d", n, list[i], epoch, last[list[i]])
			}
			last[list[i]] = epoch
		}
		e.equal("epochs", e.epochs("c", "b", "none", "a", "b"), []uint64{last["c"], last["b"], 0, last["a"], last["b"]})
		e.reopen()
	}
}

// testClaimsTogether: connections that claim a client at once get different epochs, and the greatest stands.
func testClaimsTogether(t *testing.T, e *env) {
	e.start(store.Retention{})
	var mu sync.Mutex
	seen := map[uint64]bool{}
	var last uint64
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			mine := uint64(0)
			for range 6 {
				c := &store.Claim{Client: "c"}
				b := &store.Batch{Claims: []*store.Claim{c}, Fences: []*store.Fence{{Client: fmt.Sprint("other", i), Epoch: 1}}}
				if err := e.st.Commit(ctx, b); err != nil {
					t.Error(err)
					return
				}
				if c.Epoch <= mine {
					t.Errorf("got %d after %d", c.Epoch, mine)
				}
				mine = c.Epoch
				mu.Lock()
				if seen[mine] {
					t.Errorf("%d was given twice", mine)
				}
				seen[mine], last = true, max(last, mine)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	e.equal("epoch", e.epochs("c"), []uint64{last})
}

// everything is a batch that says something of each kind about a client's session, n telling one from the other.
func everything(client string, n int) *store.Batch {
	k := store.DeviceKey{User: "ann", Device: client}
	u := uint64(n)
	return &store.Batch{
		Devices: []store.Device{{DeviceKey: k, Cursor: u}},
		Cursors: []store.Cursor{{DeviceKey: k, Conv: "g/g", Cseq: u}},
		TopicBatch: store.TopicBatch{
			Sessions:   []store.Session{{Client: client, User: "ann", Expiry: store.NoExpiry, Since: int64(n)}},
			Subscribes: []store.Subscription{{Client: client, Filter: fmt.Sprint("f/", n)}},
			Passed:     []store.Passed{{Client: client, Seq: u}},
			Outbound:   []store.Outbound{{Client: client, Seq: 10, ID: uint16(n)}},
			Inbound:    []store.Inbound{{Client: client, ID: uint16(n)}},
			Wills:      []store.Will{{Client: client, User: "ann", Publication: store.Publication{Topic: fmt.Sprint("w/", n)}}},
		},
	}
}

// state is all that is stored of a client's session.
func (e *env) state(client string) string {
	e.Helper()
	k := store.DeviceKey{User: "ann", Device: client}
	d, _ := e.st.Device(ctx, k)
	s, _ := e.st.Session(ctx, client)
	subs, err1 := e.st.Subscriptions(ctx, client)
	q, err2 := e.st.Queue(ctx, client)
	out, err3 := e.st.Outbound(ctx, client)
	in, err4 := e.st.Inbound(ctx, client)
	wills, err5 := e.st.Wills(ctx, "", 100)
	streams, err6 := e.st.Streams(ctx, k)
	for _, err := range []error{err1, err2, err3, err4, err5, err6} {
		if err != nil {
			e.Fatal(err)
		}
	}
	will, cursor := "", uint64(0)
	for _, w := range wills {
		if w.Client == client {
			will = w.Topic
		}
	}
	for _, x := range streams {
		cursor = x.Cursor
	}
	return fmt.Sprint(d.Cursor, " ", s.Since, " ", len(subs), " ", q.Passed, " ", out, " ", in, " ", will, " ", cursor)
}

// testFences: what is said for a client by one whose claim was followed by another is left out, and it is told so; the rest
// of the batch is stored, and so is what the others say.
func testFences(t *testing.T, e *env) {
	e.start(store.Retention{})
	change := e.toGroup("g", "ann") // the cursor is of a large group
	change.Change = &store.Change{Large: true, Members: joining("ann")}
	e.send(change)
	if change.Err != nil {
		t.Fatal(change.Err)
	}
	e.session("c", store.NoExpiry)
	e.session("d", store.NoExpiry)
	var pubs []*store.Publish
	for range 12 {
		pubs = append(pubs, e.pub("t", "c", "d"))
	}
	e.publish(pubs...)
	old := e.claim("c")[0]
	fences := func(epochs ...uint64) (list []*store.Fence) {
		for _, n := range epochs {
			list = append(list, &store.Fence{Client: "c", Epoch: n})
		}
		return list
	}
	lost := func(list []*store.Fence) (out []bool) {
		for _, f := range list {
			out = append(out, f.Lost)
		}
		return out
	}
	commit := func(b *store.Batch, f []*store.Fence) {
		t.Helper()
		b.Fences = f
		before := *b
		before.Fences = nil
		text := fmt.Sprintf("%+v", before)
		e.commit(b)
		after := *b
		after.Fences = nil
		if d := cmp.Diff(text, fmt.Sprintf("%+v", after)); d != "" {
			t.Errorf("the batch has changed: -before +after\n%s", d)
		}
	}

	commit(everything("c", 1), fences(old))
	held := e.state("c")
	now := e.claim("c")[0]

	f := fences(old)
	b := everything("c", 2)
	d := everything("d", 3)
	b.Devices, b.Cursors = append(b.Devices, d.Devices...), append(b.Cursors, d.Cursors...)
	b.Sessions, b.Subscribes = append(b.Sessions, d.Sessions...), append(d.Subscribes, b.Subscribes...)
	b.Passed, b.Outbound = append(b.Passed, d.Passed...), append(d.Outbound, b.Outbound...)
	b.Inbound, b.Wills = append(b.Inbound, d.Inbound...), append(d.Wills, b.Wills...)
	b.Unsubscribes = []store.Subscription{{Client: "c", Filter: "f/1"}}
	b.Users = []store.User{{Name: "ann", Cursor: 5}}
	commit(b, f)
	e.equal("lost", lost(f), []bool{true})
	e.equal("what the lost client has", e.state("c"), held)
	e.equal("what the other has", e.state("d"), "3 3 1 3 [{d 10 3 false false}] [3] w/3 3")
	if u, err := e.st.User(ctx, "ann"); err != nil || u.Cursor != 5 {
		t.Errorf("the rest of the batch: got %+v, %v", u, err)
	}

	f = fences(old)
	commit(&store.Batch{Removed: []store.DeviceKey{{User: "ann", Device: "c"}}, Lazy: true, TopicBatch: store.TopicBatch{
		Sessions: []store.Session{{Client: "c", Over: true}}, Wills: []store.Will{{Client: "c", Remove: true}},
	}}, f)
	e.equal("lost", lost(f), []bool{true})
	e.reopen()
	e.equal("the lost cannot remove it", e.state("c"), held)

	// Of several the highest counts; and one that was lost once may be right with another epoch.
	f = append(f, fences(now, old)...)
	commit(everything("c", 4), f)
	e.equal("lost", lost(f), []bool{true, false, true})
	e.equal("what the later has said", e.state("c"), "4 4 2 4 [{c 10 4 false false}] [1 4] w/4 4")
	f[0].Epoch = now
	commit(&store.Batch{}, f[:1])
	e.equal("lost", lost(f[:1]), []bool{false})

	// A claim comes before all else of its batch.
	f = fences(now)
	b = everything("c", 6)
	b.Claims = []*store.Claim{{Client: "c"}}
	b.Fences = f
	e.commit(b)
	e.equal("lost", lost(f), []bool{true})
	e.equal("after a claim in the same batch", e.state("c"), "4 4 2 4 [{c 10 4 false false}] [1 4] w/4 4")

	// Who has no fence is not looked at.
	e.commit(everything("c", 7))
	e.equal("without a fence", e.state("c"), "7 7 3 7 [{c 10 7 false false}] [1 4 7] w/7 7")
}

// testFencedInbound: what a client has sent is stored, though the packet id is none of its any more.
func testFencedInbound(t *testing.T, e *env) {
	e.start(store.Retention{})
	e.session("c", store.NoExpiry)
	old := e.claim("c")[0]
	now := e.claim("c")[0]
	for i, epoch := range []uint64{old, now} {
		m, p := e.direct("ann", "bob"), e.pub("t", "c")
		m.Inbound, p.Inbound = &store.Inbound{Client: "c", ID: uint16(10 + i)}, &store.Inbound{Client: "c", ID: uint16(20 + i)}
		e.commit(&store.Batch{
			Fences: []*store.Fence{{Client: "c", Epoch: epoch}}, Sends: []*store.Send{m}, TopicBatch: store.TopicBatch{Publishes: []*store.Publish{p}},
		})
		if m.Cseq != uint64(i+1) || p.Queues[0].Seq != uint64(i+1) || m.Inbound == nil || p.Inbound == nil {
			t.Errorf("got cseq %d, seq %d, want %d", m.Cseq, p.Queues[0].Seq, i+1)
		}
	}
	in, err := e.st.Inbound(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	e.equal("packet ids", in, []uint16{11, 21})
}

// testClaimsGo: claims are removed a week after, unless there is something of the client; the next claim is greater all
// the same.
func testClaimsGo(t *testing.T, e *env) {
	e.start(store.Retention{})
	e.session("session", store.NoExpiry)
	e.commit(&store.Batch{TopicBatch: store.TopicBatch{Wills: []store.Will{{Client: "will", Publication: store.Publication{Topic: "t"}}}}})
	clients := []string{"gone", "session", "will", "gone too"}
	before := e.claim(clients...)
	e.maintain(time.Now().Add(6 * 24 * time.Hour))
	e.equal("within a week", e.epochs(clients...), before)
	e.reopen() // jobs rest after a pass
	e.maintain(time.Now().Add(8 * 24 * time.Hour))
	e.equal("after a week", e.epochs(clients...), []uint64{0, before[1], before[2], 0})
	for end := time.Now().Add(20 * time.Second); time.Now().UnixMilli() <= int64(before[0]) && time.Now().Before(end); {
		time.Sleep(time.Millisecond) // until the clock has gone on
	}
	for i, epoch := range e.claim(clients...) {
		if epoch <= before[i] {
			t.Errorf("%s: claim %d after %d", clients[i], epoch, before[i])
		}
	}
}

func testWrites(t *testing.T, e *env) {
	e.start(store.Retention{})
	e.session("c", store.NoExpiry)
	last := map[uint64]bool{}
	writes := func() uint64 {
		t.Helper()
		n, err := e.st.Writes(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	last[writes()] = true
	retained := e.pub("r")
	retained.Retain = true
	for i, b := range []*store.Batch{
		{Sends: []*store.Send{e.direct("ann", "bob")}},
		{Sends: []*store.Send{e.direct("ann", "bob")}},
		{TopicBatch: store.TopicBatch{Publishes: []*store.Publish{e.pub("t", "c")}}},
		{TopicBatch: store.TopicBatch{Publishes: []*store.Publish{retained}}, Lazy: true},
		{Sends: []*store.Send{e.direct("ann", "bob")}, TopicBatch: store.TopicBatch{Publishes: []*store.Publish{e.pub("t", "c")}}},
	} {
		e.commit(b)
		n := writes()
		if last[n] {
			t.Errorf("batch %d: %d again", i, n)
		}
		last[n] = true
	}
	n := writes()
	e.commit(&store.Batch{Lazy: true, Users: []store.User{{Name: "ann", Cursor: 1}}})
	if got := writes(); got != n {
		t.Errorf("got %d after %d, though nothing was sent", got, n)
	}
}

// testHeads: heads of many at once are those of one at a time.
func testHeads(t *testing.T, e *env) {
	e.start(store.Retention{InboxMessages: 10})
	e.session("c1", store.NoExpiry)
	e.session("c2", store.NoExpiry)
	e.sendN(1200, 100, func(i int) *store.Send {
		switch i % 3 {
		case 0:
			return e.direct("ann", "bob")
		case 1:
			return e.direct("bob", "cyd")
		}
		return e.direct("ann", "ann")
	})
	e.publish(e.pub("t", "c1"), e.pub("t", "c1", "c2"))
	e.commit(&store.Batch{TopicBatch: store.TopicBatch{Passed: []store.Passed{{Client: "c2", Seq: 1}}}})
	e.maintain(time.Now())
	for range 2 {
		got, err := e.st.InboxHeads(ctx, []string{"zoe", "cyd", "ann", "bob", "ann"}, []uint64{7})
		e.equal("inboxes", got, []uint64{7, 0, 400, 800, 800, 800})
		convs, err2 := e.st.ConvHeads(ctx, []store.Conv{"u/bob/cyd", "g/none", "u/ann/ann", "u/ann/bob"}, nil)
		e.equal("conversations", convs, []uint64{400, 0, 400, 400})
		queues, err3 := e.st.QueueHeads(ctx, []string{"c2", "c1", "none"}, nil)
		e.equal("queues", queues, []uint64{1, 2, 0})
		none, err4 := e.st.InboxHeads(ctx, nil, nil)
		e.equal("none", none, []uint64(nil))
		for _, err := range []error{err, err2, err3, err4} {
			if err != nil {
				t.Fatal(err)
			}
		}
		e.reopen()
	}
	var most []string
	for i := range store.MaxLook {
		most = append(most, fmt.Sprint("u", i))
	}
	most[store.MaxLook-1] = "ann"
	got, err := e.st.InboxHeads(ctx, most, nil)
	if err != nil || len(got) != store.MaxLook || got[store.MaxLook-1] != 800 || got[0] != 0 {
		t.Errorf("the most at once: got %d, %v", len(got), err)
	}
}
