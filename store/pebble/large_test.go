package pebble

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/mqim/mqim/store"
)

// TestLargeGroupWrites: what a message to a large group writes does not depend on how many members it has: the message and
// where it lies, three keys and no more.
func TestLargeGroupWrites(t *testing.T) {
	s, err := Open(Options{Path: "db", FS: vfs.NewMem(), IDs: &counter{}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	commit := func(m *store.Send) (bytes uint64) {
		t.Helper()
		m.Type, m.TS, m.Body = "text", time.Now().UnixMilli(), []byte("hello")
		before := s.db.Metrics().WAL.BytesIn
		if err := s.Commit(ctx, &store.Batch{Sends: []*store.Send{m}}); err != nil || m.Err != nil {
			t.Fatal(err, m.Err)
		}
		return s.db.Metrics().WAL.BytesIn - before
	}
	grow := func(id string, n int) {
		t.Helper()
		ch := &store.Change{Group: store.Group{Owner: "u0"}, Large: true}
		for made := 0; made < n; {
			ch.Members = nil
			for ; made < n && len(ch.Members) < 5000; made++ {
				ch.Members = append(ch.Members, store.Member{User: fmt.Sprint("u", made), Role: store.Ordinary, Joined: 1})
			}
			commit(&store.Send{Message: store.Message{Conv: store.GroupConv(id), From: "u0"}, Change: ch})
		}
		if ch.Group.MemberCount != uint64(n) {
			t.Fatalf("%d members, want %d", ch.Group.MemberCount, n)
		}
	}
	grow("few", 2)
	grow("all", 100_000)
	var bytes [2]uint64
	for i, id := range []string{"few", "all"} {
		commit(&store.Send{Message: store.Message{Conv: store.GroupConv(id), From: "u1"}}) // what it is read for the first time
		m := &store.Send{Message: store.Message{Conv: store.GroupConv(id), From: "u1"}}
		bytes[i] = commit(m)
		if len(m.Inboxes) != 0 {
			t.Errorf("group %s: %d inboxes", id, len(m.Inboxes))
		}
	}
	if d := int(bytes[1]) - int(bytes[0]); d < -8 || d > 8 || bytes[1] > 300 {
		t.Errorf("a message to 2 members writes %d bytes, one to 100,000 %d", bytes[0], bytes[1])
	}
}

type counter struct{ n int64 }

func (c *counter) Next(after int64) int64 {
	c.n = max(c.n, after) + 1
	return c.n
}
