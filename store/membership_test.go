package store_test

import (
	"slices"
	"testing"

	"github.com/mqim/mqim/store"
)

// TestMembership: what a change makes of spans and records, where that cannot be seen through a driver: what was handed out
// before does not change, and a group that is large stays so from where it became it.
func TestMembership(t *testing.T) {
	before := []store.Span{{From: 1, To: 2}, {From: 4}}
	if got := store.CloseSpan(before, 7); got[1].To != 7 || before[1].To != 0 {
		t.Errorf("closed: %v, before: %v", got, before)
	}
	if got := store.CloseSpan(before, 0); !slices.Equal(got, before) {
		t.Errorf("left open: %v", got)
	}
	m := store.Member{User: "bob"}
	given := store.Member{User: "bob", Role: store.Ordinary}
	if n := m.Become(&given, 3); n != 1 {
		t.Errorf("joining: %d members more", n)
	}
	m.Spans[0].From = 99
	if given.Spans[0].From != 3 {
		t.Error("what was handed out is shared")
	}
	c := store.Change{Large: true}
	if c.Become(&store.Group{LargeFrom: 5}, 9) || c.Group.LargeFrom != 5 {
		t.Errorf("a large group becomes large again, from %d", c.Group.LargeFrom)
	}
}
