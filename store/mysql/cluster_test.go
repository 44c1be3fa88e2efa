package mysql_test

import (
	"testing"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/mysql"
)

// waiting counts the statements that wait for a lock on a row.
func waiting(t *testing.T) (n int) {
	t.Helper()
	const q = "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'Innodb_row_lock_current_waits'"
	if err := server.DB.QueryRow(q).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestClaimWaits: a batch that has looked at the claim comes before the claim that follows, however slow it is: once a
// claim is committed nothing of those before it appears.
func TestClaimWaits(t *testing.T) {
	dsn := database(t, server)
	list := nodes(t, dsn, 2, mysql.Options{Timeout: patience})
	a, b := list[0], list[1]
	record := func(since int64) store.TopicBatch {
		return store.TopicBatch{Sessions: []store.Session{{Client: "c", User: "u", Expiry: store.NoExpiry, Since: since}}}
	}
	first := &store.Claim{Client: "c"}
	if err := a.Commit(ctx, &store.Batch{Claims: []*store.Claim{first}, TopicBatch: record(1)}); err != nil {
		t.Fatal(err)
	}
	slow, err := server.DB.BeginTx(ctx, nil) // keeps the session from a, which then waits between its look and its COMMIT
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slow.Rollback() }()
	if _, err := slow.Exec("SELECT * FROM " + name(dsn) + ".mqim_sessions WHERE client = 'c' FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	said, claimed := make(chan error, 1), make(chan error, 1)
	fence := &store.Fence{Client: "c", Epoch: first.Epoch}
	go func() {
		said <- a.Commit(ctx, &store.Batch{Fences: []*store.Fence{fence}, TopicBatch: record(2)})
	}()
	eventually(t, "the batch to wait", func() bool { return waiting(t) == 1 })
	second := &store.Claim{Client: "c"}
	go func() { claimed <- b.Commit(ctx, &store.Batch{Claims: []*store.Claim{second}}) }()
	eventually(t, "the claim to wait", func() bool { return waiting(t) == 2 || len(claimed) > 0 })
	if len(claimed) > 0 {
		t.Error("the claim did not wait for a batch that has looked at the one before")
	}
	if err := slow.Rollback(); err != nil {
		t.Fatal(err)
	}
	for _, done := range []chan error{said, claimed} {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if fence.Lost || second.Epoch <= first.Epoch {
		t.Errorf("lost %t, claims %d and %d", fence.Lost, first.Epoch, second.Epoch)
	}
	if x, err := b.Session(ctx, "c"); err != nil || x.Since != 2 {
		t.Errorf("after the claim: got %+v, %v, want what was said before it", x, err)
	}
	if err := a.Commit(ctx, &store.Batch{Fences: []*store.Fence{fence}, TopicBatch: record(3)}); err != nil || !fence.Lost {
		t.Errorf("afterwards: got %v, lost %t", err, fence.Lost)
	}
	if x, err := b.Session(ctx, "c"); err != nil || x.Since != 2 {
		t.Errorf("afterwards: got %+v, %v, want no change", x, err)
	}
}

// TestFencesAndCuts: two nodes claim clients in turn and speak for them, while connections are cut. What is stored in the
// end is of whose claim stands, and nobody was told that it is lost who had the last claim.
func TestFencesAndCuts(t *testing.T) {
	dsn0 := database(t, server)
	n, opened := 0, false
	p := newProxy(t, server.Addr(), func(command string) cut {
		if !opened || !isCommit(command) {
			return pass
		}
		if n++; n%9 < 4 {
			return cut(n % 9)
		}
		return pass
	})
	list := nodes(t, dsn(p.addr(), name(dsn0)), 2, mysql.Options{Timeout: patience})
	p.mu.Lock()
	opened = true
	p.mu.Unlock()
	type word struct {
		epoch uint64
		lost  bool
		said  int64
	}
	words := make(chan []word, 2)
	for i, s := range list {
		go func() {
			var all []word
			defer func() { words <- all }()
			for k := range 15 {
				c := &store.Claim{Client: "c"}
				if err := s.Commit(ctx, &store.Batch{Claims: []*store.Claim{c, {Client: "d"}}}); err != nil {
					t.Error(err)
					return
				}
				for j := range 3 {
					w := word{epoch: c.Epoch, said: int64(1000*k + 10*j + i + 1)}
					f := &store.Fence{Client: "c", Epoch: c.Epoch}
					err := s.Commit(ctx, &store.Batch{Fences: []*store.Fence{f}, TopicBatch: store.TopicBatch{
						Sessions: []store.Session{{Client: "c", User: "u", Expiry: store.NoExpiry, Since: w.said}},
					}})
					if err != nil {
						t.Error(err)
						return
					}
					w.lost = f.Lost
					all = append(all, w)
				}
			}
		}()
	}
	last := word{}
	epochs := map[uint64]int{}
	losses := 0
	for range list {
		for _, w := range <-words {
			epochs[w.epoch]++
			if w.lost {
				losses++
			} else if w.epoch >= last.epoch {
				last = w
			}
		}
	}
	if len(epochs) != 30 {
		t.Errorf("got %d epochs of 30 claims", len(epochs))
	}
	t.Logf("%d of 90 batches were lost", losses)
	got, err := list[0].Session(ctx, "c")
	stands, err2 := list[0].Epochs(ctx, []string{"c"}, nil)
	if err != nil || err2 != nil || got.Since != last.said || stands[0] < last.epoch {
		t.Errorf("got what %d has said (%v), epoch %d (%v); want %+v", got.Since, err, stands, err2, last)
	}
	_, _, x := list[0].Counts()
	_, _, y := list[1].Counts()
	if x+y == 0 {
		t.Error("no answer to COMMIT was lost")
	}
}
