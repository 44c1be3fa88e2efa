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

// TestTidy: subscriptions that have come and gone do not slow those down who look for what is there.
func TestTidy(t *testing.T) {
	s, err := Open(Options{Path: "data", FS: vfs.NewMem(), FreeSpace: func() (uint64, error) { return 1 << 40, nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	commit := func(b store.TopicBatch) {
		t.Helper()
		if err := s.Commit(ctx, &store.Batch{TopicBatch: b}); err != nil {
			t.Fatal(err)
		}
	}
	commit(store.TopicBatch{Sessions: []store.Session{{Client: "c", User: "u", Expiry: store.NoExpiry}}})
	const turns = 30
	for turn := range turns {
		var b store.TopicBatch
		for i := range tidyAfter / turns * 5 / 4 {
			b.Subscribes = append(b.Subscribes, store.Subscription{Client: "c", Filter: fmt.Sprintf("t/%d/%d", turn, i), Options: []byte("o")})
		}
		commit(b)
		commit(store.TopicBatch{Unsubscribes: b.Subscribes})
	}
	commit(store.TopicBatch{Subscribes: []store.Subscription{{Client: "c", Filter: "t/#", Options: []byte("o")}}})
	// steps is how many keys Pebble looks at for all that there are.
	steps := func() int {
		it, err := s.db.NewIter(&pdb.IterOptions{LowerBound: []byte{tabFilter}, UpperBound: []byte{tabFilter + 1}})
		if err != nil {
			t.Fatal(err)
		}
		defer it.Close()
		for ok := it.First(); ok; ok = it.Next() {
		}
		return it.Stats().ForwardStepCount[pdb.InternalIterCall]
	}
	for end := time.Now().Add(30 * time.Second); steps() > tidyAfter; time.Sleep(10 * time.Millisecond) { // between looks
		if time.Now().After(end) {
			t.Fatalf("%d keys are looked at for one", steps())
		}
	}
	if list, err := s.Match(ctx, "t/1"); err != nil || len(list) != 1 {
		t.Errorf("got %v, %v, want one subscription", list, err)
	}
}
