package storetest

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/mqim/mqim/store"
)

// group creates a small group.
func (e *env) group(id, owner string, members ...string) *store.Send {
	e.Helper()
	return e.change(id, owner, func(c *store.Change) {
		c.Group.Owner = owner
		c.Members = joining(append([]string{owner}, members...)...)
		c.Members[0].Role = store.Owner
	})
}

// change commits a change built on the present state of a group, by from.
func (e *env) change(id, from string, edit func(*store.Change)) *store.Send {
	e.Helper()
	m := e.newChange(id, from, edit)
	e.send(m)
	if m.Err != nil {
		e.Fatalf("change of group %s: %v", id, m.Err)
	}
	return m
}

func (e *env) newChange(id, from string, edit func(*store.Change)) *store.Send {
	e.Helper()
	g, err := e.st.Group(ctx, id)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		e.Fatalf("group %s: %v", id, err)
	}
	m := e.toGroup(id, from)
	m.Type, m.Encoding, m.Body = "sys.group", store.JSON, []byte("{}")
	m.Change = &store.Change{Group: g}
	edit(m.Change)
	return m
}

// toGroup makes a message to a group.
func (e *env) toGroup(id, from string) *store.Send {
	m := e.msg(store.GroupConv(id), from)
	m.Inboxes = nil
	return m
}

func joining(users ...string) []store.Member {
	var out []store.Member
	for _, u := range users {
		out = append(out, store.Member{User: u, Role: store.Ordinary, Joined: 7})
	}
	return out
}

func leaving(users ...string) []store.Member {
	var out []store.Member
	for _, u := range users {
		out = append(out, store.Member{User: u})
	}
	return out
}

func (e *env) member(id, user string) store.Member {
	e.Helper()
	m, err := e.st.Member(ctx, id, user)
	if err != nil {
		e.Fatalf("member %s of %s: %v", user, id, err)
	}
	return m
}

// members lists the present members of a group in pages.
func (e *env) members(id string, limit int) (names []string) {
	e.Helper()
	after := ""
	for range 10_000 {
		list, next, err := e.st.Members(ctx, id, after, limit)
		if err != nil {
			e.Fatalf("members of %s: %v", id, err)
		}
		if len(list) > limit {
			e.Fatalf("page of %d, limit is %d", len(list), limit)
		}
		for _, m := range list {
			e.equal("listed member", m, e.member(id, m.User))
			names = append(names, m.User)
		}
		if next == "" {
			return names
		}
		after = next
	}
	e.Fatal("members: always one more page")
	return nil
}

// recipients are the users whose inboxes a message was put in, sorted.
func recipients(m *store.Send) (users []string) {
	for _, r := range m.Inboxes {
		users = append(users, r.User)
	}
	slices.Sort(users)
	return users
}

func testGroupRecord(t *testing.T, e *env) {
	e.start(store.Retention{})
	if _, err := e.st.Group(ctx, "team"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("before it is made: got %v, want ErrNotFound", err)
	}
	m := e.change("team", "ann", func(c *store.Change) {
		c.Group.Name, c.Group.Notice, c.Group.Owner, c.Group.Created = "Team ☂", "be kind", "ann", 99
		c.Group.Open, c.Group.Receipts = true, store.ReceiptsNone
		c.Members = joining("bob", "ann")
	})
	want := store.Group{
		ID: "team", Version: 1, Name: "Team ☂", Notice: "be kind", Owner: "ann", Created: 99, Open: true, Receipts: store.ReceiptsNone,
		MemberCount: 2,
	}
	e.equal("group in the change", m.Change.Group, want)
	for range 2 {
		g, err := e.st.Group(ctx, "team")
		if err != nil {
			t.Fatal(err)
		}
		e.equal("group", g, want)
		e.equal("ann", e.member("team", "ann"), store.Member{
			Group: "team", User: "ann", Role: store.Ordinary, Joined: 7, Spans: []store.Span{{From: 1}},
		})
		e.equal("stranger", e.member("team", "zoe"), store.Member{Group: "team", User: "zoe"})
		e.reopen()
	}
	again := e.newChange("team", "cyd", func(c *store.Change) { c.Group.Version = 0 })
	e.send(again)
	if !errors.Is(again.Err, store.ErrChanged) {
		t.Errorf("made twice: got %v, want ErrChanged", again.Err)
	}
	m = e.change("team", "ann", func(c *store.Change) { c.Group.HistoryAll, c.Group.Name = true, "T" })
	want.HistoryAll, want.Name, want.Version = true, "T", 2
	e.equal("changed", m.Change.Group, want)
	e.equal("cseq of the change", m.Cseq, uint64(2))
}

func testGroupSend(t *testing.T, e *env) {
	e.start(store.Retention{})
	refused := func(m *store.Send, want error) {
		t.Helper()
		direct := e.direct("ann", "bob") // what is beside it is stored
		e.send(m, direct)
		if !errors.Is(m.Err, want) || m.Cseq != 0 || len(m.Inboxes) != 0 || direct.Err != nil || direct.Cseq == 0 {
			t.Errorf("got %v, cseq %d, %d inboxes; want %v", m.Err, m.Cseq, len(m.Inboxes), want)
		}
	}
	refused(e.toGroup("g", "ann"), store.ErrNotFound)
	e.equal("who is told of the group", recipients(e.group("g", "ann", "bob", "cyd")), []string{"ann", "bob", "cyd"})
	refused(e.toGroup("g", "zoe"), store.ErrNotMember)
	m := e.toGroup("g", "bob")
	e.send(m)
	e.equal("who gets a message", recipients(m), []string{"ann", "bob", "cyd"})

	// Within one batch each message finds the group as the one before has left it.
	out := e.newChange("g", "ann", func(c *store.Change) { c.Members = leaving("bob") })
	from, to := e.toGroup("g", "bob"), e.toGroup("g", "ann")
	stale := e.newChange("g", "ann", func(c *store.Change) { c.Members = joining("dan") })
	e.send(out, from, to, stale)
	e.equal("who is told that bob left", recipients(out), []string{"ann", "bob", "cyd"})
	e.equal("who gets the next", recipients(to), []string{"ann", "cyd"})
	if !errors.Is(from.Err, store.ErrNotMember) || !errors.Is(stale.Err, store.ErrChanged) {
		t.Errorf("got %v and %v, want ErrNotMember and ErrChanged", from.Err, stale.Err)
	}
	e.equal("cseqs", []uint64{m.Cseq, out.Cseq, to.Cseq}, []uint64{2, 3, 4})
	e.reopen()
	e.equal("bob's span", e.member("g", "bob").Spans, []store.Span{{From: 1, To: 3}})
	back := e.change("g", "ann", func(c *store.Change) { c.Members = joining("bob") })
	e.equal("bob's spans", back.Change.Members[0].Spans, []store.Span{{From: 1, To: 3}, {From: 5}})
	var got []uint64
	for _, x := range e.drain("bob", 0, 3) {
		if x.Conv == store.GroupConv("g") {
			got = append(got, x.Cseq)
		}
	}
	e.equal("what bob has of the group", got, []uint64{1, 2, 3, 5})

	e.change("g", "ann", func(c *store.Change) { c.End = true })
	refused(e.toGroup("g", "ann"), store.ErrNotFound)
	e.equal("bob's spans after the end", e.member("g", "bob").Spans, []store.Span{{From: 1, To: 3}, {From: 5, To: 6}})
	e.equal("members at the end", e.members("g", 10), []string{"ann", "bob", "cyd"})
}

func testGroupMembers(t *testing.T, e *env) {
	e.start(store.Retention{})
	const n = 60
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("u%03d", i))
	}
	e.group("g", names[0], names[1:]...)
	e.group("other", "u005")
	for range 2 {
		for _, limit := range []int{1, 7, 100} {
			e.equal("members", e.members("g", limit), names)
		}
		e.reopen()
	}
	e.change("g", "u000", func(c *store.Change) { c.Members = leaving(names[1 : n-1]...) })
	e.equal("who is left", e.members("g", 1), []string{"u000", "u059"})
	g, err := e.st.Group(ctx, "g")
	if err != nil || g.MemberCount != 2 {
		t.Errorf("got %d members, %v, want 2", g.MemberCount, err)
	}
	// Who leaves that was not there, and who joins that is, change nothing but what is given.
	m := e.change("g", "u000", func(c *store.Change) {
		c.Members = append(leaving("zoe"), store.Member{User: "u059", Role: store.Admin, MutedUntil: 5, Joined: 1000})
	})
	e.equal("count", m.Change.Group.MemberCount, uint64(2))
	e.equal("admin", e.member("g", "u059"), store.Member{
		Group: "g", User: "u059", Role: store.Admin, MutedUntil: 5, Joined: 7, Spans: []store.Span{{From: 1}},
	})
	e.equal("stranger", e.member("g", "zoe"), store.Member{Group: "g", User: "zoe"})

	for _, limit := range []int{1, 2, 50} {
		var list []store.Membership
		after := ""
		for {
			page, next, err := e.st.Memberships(ctx, "u005", after, limit)
			if err != nil || len(page) > limit {
				t.Fatalf("page of %d, %v", len(page), err)
			}
			list = append(list, page...)
			if after = next; next == "" {
				break
			}
		}
		e.equal("groups of u005", list, []store.Membership{{Group: "g"}, {Group: "other", Current: true}})
	}
}

func testGroupSpans(_ *testing.T, e *env) {
	e.start(store.Retention{})
	e.group("g", "ann")
	var want []store.Span
	for i := range uint64(store.MaxSpans + 3) {
		e.change("g", "ann", func(c *store.Change) { c.Members = joining("bob") })
		e.change("g", "ann", func(c *store.Change) { c.Members = leaving("bob") })
		want = append(want, store.Span{From: 2 + 2*i, To: 3 + 2*i})
	}
	e.reopen()
	m := e.member("g", "bob")
	e.equal("spans", m.Spans, want[3:])
	for cseq, in := range map[uint64]bool{1: false, 7: false, 8: true, 9: true, 135: true, 136: false} {
		if m.Has(cseq) != in {
			e.Errorf("cseq %d: got %t, want %t", cseq, m.Has(cseq), in)
		}
	}
}

func testGroupLarge(t *testing.T, e *env) {
	e.start(store.Retention{})
	e.group("g", "ann", "bob")
	e.group("small", "ann", "bob")
	k := store.DeviceKey{User: "bob", Device: "d"}
	streams := func(k store.DeviceKey) []store.Stream {
		t.Helper()
		list, err := e.st.Streams(ctx, k)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	e.equal("before it is large", streams(k), []store.Stream(nil))
	m := e.toGroup("g", "ann")
	grow := e.newChange("g", "ann", func(c *store.Change) { c.Members, c.Large = joining("cyd"), true })
	after := e.toGroup("g", "cyd")
	e.send(m, grow, after)
	e.equal("the last one in inboxes", recipients(m), []string{"ann", "bob"})
	e.equal("the first in the log alone", len(grow.Inboxes)+len(after.Inboxes), 0)
	e.equal("large from", grow.Change.Group.LargeFrom, uint64(3))
	g := store.GroupConv("g")
	want := store.Stream{Conv: g, LargeFrom: 3, Head: 4, Spans: []store.Span{{From: 1}}, Mode: store.ReceiptsCounts}
	for range 2 {
		e.equal("bob's stream", streams(k), []store.Stream{want})
		x := want
		x.Spans = []store.Span{{From: 3}}
		e.equal("cyd's stream", streams(store.DeviceKey{User: "cyd", Device: "d"}), []store.Stream{x})
		e.reopen()
	}
	e.commit(&store.Batch{
		Lazy: true, Cursors: []store.Cursor{{DeviceKey: k, Conv: g, Cseq: 4}, {DeviceKey: k, Conv: g, Cseq: 3}},
		Delivered: []*store.Mark{{User: "bob", Conv: g, Cseq: 3}},
	})
	e.commit(&store.Batch{Lazy: true, Cursors: []store.Cursor{{DeviceKey: k, Conv: g, Cseq: 2}}})
	want.Cursor, want.Delivered = 4, 3
	e.equal("cursor", streams(k), []store.Stream{want})
	e.change("g", "ann", func(c *store.Change) { c.Members, c.Group.Receipts = leaving("bob"), store.ReceiptsAll })
	want.Spans[0].To, want.Head, want.Mode = 5, 5, store.ReceiptsAll
	e.equal("after he left", streams(k), []store.Stream{want})
	late := e.toGroup("g", "bob")
	e.send(late)
	if !errors.Is(late.Err, store.ErrNotMember) {
		t.Errorf("got %v, want ErrNotMember", late.Err)
	}
	e.commit(&store.Batch{Removed: []store.DeviceKey{k}})
	want.Cursor = 0
	e.equal("cursor of a device that was removed", streams(k), []store.Stream{want})

	big := e.change("big", "ann", func(c *store.Change) { c.Members, c.Large = joining("ann", "bob"), true })
	e.equal("large from the start", big.Change.Group.LargeFrom, uint64(1))
	e.equal("and in nobody's inbox", recipients(big), []string(nil))
	e.reopen()
	e.equal("large groups of ann", len(streams(store.DeviceKey{User: "ann"})), 2)
}

func testGroupReceipts(_ *testing.T, e *env) {
	e.start(store.Retention{})
	for _, large := range []bool{false, true} {
		id := fmt.Sprint("g", large)
		g := store.GroupConv(id)
		e.change(id, "ann", func(c *store.Change) {
			c.Members, c.Large = joining("ann", "bob", "cyd", "dan", "eve"), large
		})
		e.send(e.toGroup(id, "ann"))
		e.change(id, "ann", func(c *store.Change) { c.Members = append(leaving("eve"), joining("fay")...) })
		mark := func(u string, n uint64) *store.Mark { return &store.Mark{User: u, Conv: g, Cseq: n} }
		e.commit(&store.Batch{
			Delivered: []*store.Mark{mark("ann", 3), mark("bob", 2), mark("dan", 3), mark("eve", 2), mark("fay", 3)},
			Reads:     []*store.Mark{mark("cyd", 2), mark("dan", 1), mark("zoe", 3)},
		})
		for _, names := range []bool{false, true} {
			want := store.Receipts{Delivered: 3, Read: 1}
			if names {
				want.DeliveredBy, want.ReadBy = []string{"bob", "cyd", "dan"}, []string{"cyd"}
			}
			got, err := e.st.Receipts(ctx, id, 2, "ann", names)
			if err != nil {
				e.Fatal(err)
			}
			e.equal("receipts", got, want)
		}
	}
}
