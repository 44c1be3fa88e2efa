package pebble

import (
	"context"
	"fmt"
	"testing"
	"time"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqim/mqim/store"
)

// keysOf counts the keys of a table.
func keysOf(t *testing.T, s *Store, table byte) (n int) {
	t.Helper()
	it, err := s.db.NewIter(&pdb.IterOptions{LowerBound: []byte{table}, UpperBound: []byte{table + 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		n++
	}
	return n
}

// groupLog makes a group of three, who send n messages in turn, in chunks of ten.
func groupLog(t *testing.T, s *Store, n int, ts int64) {
	t.Helper()
	users := []string{"ann", "bob", "cyd"}
	b := &store.Batch{}
	for i := range n {
		m := &store.Send{Message: store.Message{Conv: "g/x", From: users[i%3], Type: "text", TS: ts, Body: []byte("hi")}}
		if i == 0 {
			m.Change = &store.Change{}
			for _, u := range users {
				m.Change.Members = append(m.Change.Members, store.Member{User: u, Role: store.Ordinary})
			}
		}
		if b.Sends = append(b.Sends, m); len(b.Sends) == 10 || i == n-1 {
			if err := s.Commit(context.Background(), b); err != nil {
				t.Fatal(err)
			}
			b = &store.Batch{}
		}
	}
}

// TestRetentionForgetsGroups: what is noted of a group's messages goes with them.
func TestRetentionForgetsGroups(t *testing.T) {
	const ttl = time.Hour
	o := Options{Path: "db", FS: vfs.NewMem(), MinFree: 1, Retention: store.Retention{HistoryTTL: ttl}}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	now := time.Now()
	const n = 1000
	groupLog(t, s, n, now.Add(-2*ttl).UnixMilli())
	b := &store.Batch{Recalls: []*store.Recall{{Conv: "g/x", Cseq: 5}, {Conv: "g/x", Cseq: n}}}
	for _, u := range []string{"ann", "bob", "cyd"} {
		d := store.Delete{User: u, Conv: "g/x"}
		for i := range uint64(n) {
			d.Cseqs = append(d.Cseqs, i+1)
		}
		b.Deletes = append(b.Deletes, d)
	}
	direct := &store.Send{Message: store.Message{Conv: store.Direct("ann", "bob"), From: "bob", TS: now.UnixMilli()}}
	if err := s.Commit(context.Background(), &store.Batch{Sends: []*store.Send{direct}}); err != nil {
		t.Fatal(err)
	}
	b.Deletes = append(b.Deletes, store.Delete{User: "ann", Conv: direct.Conv, Cseqs: []uint64{1}})
	if err := s.Commit(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	count := func(what string, chunks, own, deleted, recalled int) {
		t.Helper()
		got := [...]int{keysOf(t, s, tabChunk), keysOf(t, s, tabOwn), keysOf(t, s, tabDeleted), keysOf(t, s, tabRecall)}
		if want := [...]int{chunks, own, deleted, recalled}; got != want {
			t.Errorf("%s: got %v chunks, entries of senders, deletions, recalls, want %v", what, got, want)
		}
	}
	count("before", 101, 300, 3*n+1, 2)
	for range 2 { // the walk over the deletions may have been past them before the messages went
		for more := true; more; {
			if more, err = s.Maintain(context.Background(), now); err != nil {
				t.Fatal(err)
			}
		}
		s.maint = maintainer{} // none rests
	}
	count("after", 2, 3, 3*10+1, 1) // the last chunk tells the head
	if c, err := s.Conversation(context.Background(), "ann", "g/x"); err != nil || c.Head != n || c.Unread != 0 {
		t.Errorf("got head %d, unread %d, %v", c.Head, c.Unread, err)
	}
}

// TestUnreadReadsNoChunk: counting for one who has read little goes without the messages.
func TestUnreadReadsNoChunk(t *testing.T) {
	s, err := Open(Options{Path: "db", FS: vfs.NewMem(), MinFree: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	groupLog(t, s, 1000, 1)
	read := &store.Mark{User: "bob", Conv: "g/x", Cseq: 105} // in the middle of a chunk
	if err := s.Commit(context.Background(), &store.Batch{Reads: []*store.Mark{read}}); err != nil {
		t.Fatal(err)
	}
	v, err := s.get(keyLog(nil, s.w.lsn))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.db.DeleteRange([]byte{tabLog}, []byte{tabLog + 1}, pdb.NoSync); err != nil {
		t.Fatal(err)
	}
	if err := s.db.Set(keyLog(nil, s.w.lsn), v, pdb.NoSync); err != nil { // Last is in it
		t.Fatal(err)
	}
	for user, want := range map[string]uint64{"ann": 666, "bob": 597, "cyd": 667, "zoe": 0} {
		if c, err := s.Conversation(context.Background(), user, "g/x"); err != nil || c.Unread != want {
			t.Errorf("%s: got %s, %v, want %d", user, fmt.Sprint(c.Unread), err, want)
		}
	}
}
