package pebble

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqim/mqim/store"
)

// TestGroupsCacheBound: groups that are used all the time count among the members that the cache may hold, whatever
// others come and go.
func TestGroupsCacheBound(t *testing.T) {
	s, err := Open(Options{Path: "d", FS: vfs.NewMem(), MinFree: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const size = 500
	members := make([]string, size)
	w := &s.w
	for i := range 10 * namedMembers / size {
		g := &groupHead{Group: store.Group{ID: fmt.Sprint("g", i)}, members: members}
		w.groups.put(g.ID, g)
		w.named += size
		for id := range w.groups.old {
			if _, err := w.group(id); err != nil {
				t.Fatal(err)
			}
			break
		}
		w.end(true)
		held := len(w.groups.young) * size
		for id, g := range w.groups.old {
			if w.groups.young[id] == nil {
				held += len(g.members)
			}
		}
		if held > 2*(namedMembers+size) {
			t.Fatalf("after %d groups of %d the cache holds %d names, want at most %d", i+1, size, held, 2*(namedMembers+size))
		}
	}
}
