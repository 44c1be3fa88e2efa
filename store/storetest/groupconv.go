package storetest

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
)

func testUnreadGroup(_ *testing.T, e *env) {
	e.start(store.Retention{})
	g := store.GroupConv("g")
	users := []string{"ann", "bob", "cyd"}
	e.group("g", "ann", "bob", "cyd") // cseq 1
	e.sendN(30, 4, func(i int) *store.Send { return e.toGroup("g", users[i%3]) })
	e.unread("ann", g, 20)
	e.unread("bob", g, 21)
	e.unread("cyd", g, 21)
	e.mark("ann", g, 6, true) // of 25 left, hers are 8 11 … 29
	e.unread("ann", g, 17)
	e.mark("ann", g, 8, true)
	e.unread("ann", g, 16)
	e.commit(&store.Batch{Recalls: []*store.Recall{{Conv: g, Cseq: 9}, {Conv: g, Cseq: 11}, {Conv: g, Cseq: 4}}})
	e.unread("ann", g, 15)
	e.unread("bob", g, 19) // 9 was his own
	e.commit(&store.Batch{Deletes: []store.Delete{{User: "ann", Conv: g, Cseqs: []uint64{9, 10, 14}}}})
	e.unread("ann", g, 14)
	e.reopen()
	e.unread("ann", g, 14)
	e.mark("ann", g, 27, true) // left: 28 29 30 31, 29 is hers
	e.unread("ann", g, 3)
	e.mark("bob", g, 31, true)
	e.unread("bob", g, 0)
	e.send(e.toGroup("g", "bob"))
	e.unread("bob", g, 0)
	e.unread("ann", g, 4)
	e.unread("zoe", g, 0)

	e.change("g", "ann", func(c *store.Change) { c.Members = append(leaving("bob"), joining("zoe")...) }) // 33
	e.send(e.toGroup("g", "ann"))
	e.unread("zoe", g, 2)
	e.unread("bob", g, 1) // that he is out
	e.equal("who left looks at", e.conv("bob", g).Head, uint64(33))
	e.commit(&store.Batch{Recalls: []*store.Recall{{Conv: g, Cseq: 34}, {Conv: g, Cseq: 30}}})
	e.unread("zoe", g, 1)
	e.unread("bob", g, 1)
	e.send(e.toGroup("g", "cyd"), e.toGroup("g", "zoe"))
	e.change("g", "ann", func(c *store.Change) { c.Members = joining("bob") }) // 37
	e.send(e.toGroup("g", "bob"), e.toGroup("g", "cyd"))                       // 38, 39
	e.unread("bob", g, 3)                                                      // 33, 37, 39
	e.commit(&store.Batch{Deletes: []store.Delete{{User: "bob", Conv: g, Cseqs: []uint64{35, 36, 37, 100}}}})
	e.unread("bob", g, 2) // 35 and 36 are none of his
	e.equal("bob's history", cseqs(e.history("bob", g, store.Range{After: 33, Limit: 10})), []uint64{34, 35, 36, 38, 39})
	e.mark("bob", g, 36, true)
	e.unread("bob", g, 1)
	e.reopen()
	e.unread("bob", g, 1)
	e.change("g", "ann", func(c *store.Change) { c.End = true }) // 40
	e.unread("bob", g, 2)
	e.equal("head of what has ended", e.conv("bob", g).Head, uint64(40))
}

// testUnreadGroupTTL: what retention has removed counts for nobody, whatever was noted of it.
func testUnreadGroupTTL(t *testing.T, e *env) {
	const ttl = time.Hour
	e.start(store.Retention{HistoryTTL: ttl})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	users := []string{"ann", "bob", "cyd"}
	g, other := store.GroupConv("g"), store.GroupConv("other")
	now := e.clock
	e.clock -= 2 * ttl.Milliseconds()
	e.group("g", "ann", "bob", "cyd")
	e.group("other", "ann", "bob", "cyd")
	message := func(int) *store.Send {
		return e.toGroup([]string{"g", "g", "other"}[rng.IntN(3)], users[rng.IntN(3)])
	}
	e.sendN(200, 7, message)
	e.change("g", "ann", func(c *store.Change) { c.Members = leaving("cyd") })
	e.sendN(100, 9, func(int) *store.Send { return e.toGroup("g", users[rng.IntN(2)]) })
	e.change("g", "ann", func(c *store.Change) { c.Members = joining("cyd") })
	e.sendN(100, 5, message)
	remove := func() {
		for _, c := range []store.Conv{g, other} {
			head := e.conv("ann", c).Head
			b := &store.Batch{}
			for _, u := range users {
				d := store.Delete{User: u, Conv: c}
				for range 20 {
					d.Cseqs = append(d.Cseqs, 1+rng.Uint64N(head))
				}
				b.Deletes = append(b.Deletes, d)
				b.Recalls = append(b.Recalls, &store.Recall{Conv: c, Cseq: 1 + rng.Uint64N(head)})
			}
			e.commit(b)
		}
	}
	check := func(what string) {
		t.Helper()
		for _, c := range []store.Conv{g, other} {
			for _, u := range users {
				e.checkUnread(what, u, c)
			}
		}
	}
	remove()
	check("before")
	e.mark("bob", g, 150, true)
	e.clock = now
	e.maintain(time.UnixMilli(now))
	check("after all that was old is gone")
	e.equal("head", e.conv("cyd", other).Head > 0, true)
	e.sendN(30, 4, message)
	e.maintain(time.UnixMilli(now))
	e.reopen()
	e.maintain(time.UnixMilli(now))
	check("with new ones")
	remove()
	check("with new deletions")
	e.mark("ann", g, e.conv("ann", g).Head-3, true)
	check("with a few left")
	e.clock += ttl.Milliseconds() / 2
	e.sendN(30, 4, message)
	e.maintain(time.UnixMilli(now + ttl.Milliseconds() + 1000))
	e.reopen()
	check("in the middle")
}

// checkUnread compares what is said of a group with its history and the user's spans.
func (e *env) checkUnread(what, user string, conv store.Conv) {
	e.Helper()
	id, _ := conv.Group()
	m, c := e.member(id, user), e.conv(user, conv)
	var want, head uint64
	for _, x := range e.history(user, conv, store.Range{Forward: true, Limit: 1 << 20}) {
		if !m.Has(x.Cseq) {
			continue
		}
		head = x.Cseq
		if x.Cseq > c.Read && x.From != user && !x.Recalled {
			want++
		}
	}
	if c.Unread != want || c.Head < head {
		e.Errorf("%s: %s in %s: got unread %d, head %d, want %d, %d at least", what, user, conv, c.Unread, c.Head, want, head)
	}
}

func testConversationGroup(_ *testing.T, e *env) {
	e.start(store.Retention{})
	g := store.GroupConv("g")
	e.equal("no group", e.conv("ann", g), store.Conversation{Conv: g})
	all := []*store.Send{e.group("g", "ann", "bob")}
	step := func(m *store.Send) { all = append(all, m) }
	for range 3 {
		m := e.toGroup("g", "ann")
		e.send(m)
		step(m)
	}
	// 5: bob leaves, 6 and 7 without him, 8: he is back, 9.
	step(e.change("g", "ann", func(c *store.Change) { c.Members = leaving("bob") }))
	two := []*store.Send{e.toGroup("g", "ann"), e.toGroup("g", "ann")}
	e.send(two...)
	all = append(all, two...)
	want := func(user string, head, unread, last uint64) {
		e.Helper()
		c := e.conv(user, g)
		e.equal("head and unread", []uint64{c.Head, c.Unread}, []uint64{head, unread})
		if last == 0 {
			e.equal("last", c.Last, (*store.Message)(nil))
			return
		}
		e.equal("last", c.Last, &all[last-1].Message)
	}
	want("bob", 5, 5, 5)
	e.commit(&store.Batch{Deletes: []store.Delete{{User: "bob", Conv: g, Cseqs: []uint64{5, 6, 7}}}})
	want("bob", 5, 4, 4)
	step(e.change("g", "ann", func(c *store.Change) { c.Members = joining("bob") }))
	want("bob", 8, 5, 8)
	e.reopen()
	e.commit(&store.Batch{Deletes: []store.Delete{{User: "bob", Conv: g, Cseqs: []uint64{8}}}})
	want("bob", 8, 4, 4) // over what he was not there for
	want("ann", 8, 0, 8)
	e.equal("stranger", e.conv("zoe", g), store.Conversation{Conv: g})
	e.mark("zoe", g, 3, true)
	e.equal("stranger", e.conv("zoe", g), store.Conversation{Conv: g})
	e.commit(&store.Batch{Deletes: []store.Delete{{User: "bob", Conv: g, Cseqs: count(1, 8)}}})
	want("bob", 8, 0, 0)
}

// testListGroups: present and former groups, small and large, among direct conversations.
func testListGroups(t *testing.T, e *env) {
	e.start(store.Retention{})
	newest := map[string]map[store.Conv]int64{"ann": {}, "bob": {}}
	told := func(m *store.Send, users ...string) {
		for _, u := range users {
			newest[u][m.Conv] = m.ID
		}
	}
	check := func(what string) {
		t.Helper()
		for u, of := range newest {
			var want []store.Conv
			for c := range of {
				want = append(want, c)
			}
			slices.SortFunc(want, func(a, b store.Conv) int { return cmp.Compare(of[b], of[a]) })
			for _, limit := range []int{1, 3, 100} {
				e.equal(what+": list of "+u, e.list(u, limit), want)
			}
		}
	}
	const n = 12
	id := func(i int) string { return fmt.Sprintf("g%02d", i) }
	for i := range n {
		m := e.change(id(i), "ann", func(c *store.Change) {
			c.Members, c.Large = joining("ann", "bob", "cyd"), i%2 == 0
		})
		told(m, "ann", "bob")
		if i%4 == 0 {
			d := e.direct("ann", fmt.Sprint("u", i))
			e.send(d)
			told(d, "ann")
		}
	}
	check("made")
	for i := n - 1; i >= 0; i -= 3 {
		told(e.change(id(i), "ann", func(c *store.Change) { c.Members = leaving("bob") }), "ann", "bob")
	}
	check("bob has left some")
	for i := range n {
		m := e.toGroup(id(n-1-i), "ann")
		e.send(m)
		told(m, "ann")
		if i%3 != 0 {
			told(m, "bob")
		}
	}
	check("and messages came")
	e.reopen()
	check("and from disk")
	told(e.change(id(2), "ann", func(c *store.Change) { c.Members = joining("bob") }), "ann", "bob")
	told(e.change(id(3), "ann", func(c *store.Change) { c.End = true }), "ann", "bob")
	told(e.change(id(5), "ann", func(c *store.Change) { c.End = true }), "ann")
	check("bob is back in one, others have ended")
	for range 3 { // what is remembered moves with each batch
		m, x := e.toGroup(id(4), "cyd"), e.toGroup(id(2), "cyd")
		e.send(m, x)
		told(m, "ann", "bob")
		told(x, "ann", "bob")
		check("more")
	}
	first, next, err := e.st.ListConversations(ctx, "bob", "", 3)
	if err != nil || len(first) != 3 || next == "" {
		t.Fatalf("got %d, %q, %v", len(first), next, err)
	}
	e.equal("stranger", e.list("zoe", 10), []store.Conv(nil))
}
