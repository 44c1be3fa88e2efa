package mysql_test

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/mysql"
	"github.com/mqim/mqim/tests/mariadb"
)

func seed(t *testing.T) uint64 {
	n := new(maphash.Hash).Sum64()
	t.Logf("seed %d", n)
	return n
}

func nodes(t *testing.T, dsn string, n int, o mysql.Options) (list []*mysql.Store) {
	for i := range n {
		o.DSN, o.IDs = dsn, nodeIDs{int64(i), int64(n)}
		list = append(list, open(t, o))
	}
	return list
}

// TestNodes: two stores commit to the same conversations, groups and inboxes at once.
func TestNodes(t *testing.T) {
	dsn := database(t, server)
	x := newTraffic(t, nodes(t, dsn, 2, mysql.Options{Timeout: patience})...)
	x.setUp()
	x.run(seed(t), 40)
	x.check(x.stores[0])
	for _, s := range x.stores {
		_, retries, _ := s.Counts()
		t.Logf("%d attempts had to be repeated", retries)
	}
}

// TestMarks: a watermark that two stores move at once goes forward only, and is said to have moved once for each place.
func TestMarks(t *testing.T) {
	stores := nodes(t, database(t, server), 2, mysql.Options{Timeout: patience})
	const head = 300
	conv := store.Direct("ann", "bob")
	b := &store.Batch{}
	for range head {
		b.Sends = append(b.Sends, &store.Send{Message: store.Message{Conv: conv, From: "ann", Type: "text", TS: 1}})
	}
	if err := stores[0].Commit(ctx, b); err != nil {
		t.Fatal(err)
	}
	for n := uint64(2); n <= head; n += 2 {
		var moved [4]store.Mark
		var wg sync.WaitGroup
		for i := range moved {
			moved[i] = store.Mark{User: "bob", Conv: conv, Cseq: n - uint64(i/2)}
			wg.Go(func() {
				if err := stores[i%2].Commit(ctx, &store.Batch{Lazy: true, Reads: []*store.Mark{&moved[i]}}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		c, err := stores[0].Conversation(ctx, "bob", conv)
		if err != nil || c.Read != n {
			t.Fatalf("after marks up to %d: got %d, %v", n, c.Read, err)
		}
		if moved[0].Moved == moved[1].Moved || moved[2].Moved && moved[3].Moved {
			t.Fatalf("marks at %d: moved %t, %t, %t, %t; want one of the first two", n, moved[0].Moved, moved[1].Moved, moved[2].Moved, moved[3].Moved)
		}
	}
}

// TestFirstMessages: two stores take the first message of a conversation and of its users at once, and it is the same
// message: one has it stored, the other finds it.
func TestFirstMessages(t *testing.T) {
	stores := nodes(t, database(t, server), 2, mysql.Options{Timeout: patience})
	for n := range 60 {
		a, b := fmt.Sprint("a", n), fmt.Sprint("b", n)
		var sent [2]*store.Send
		var wg sync.WaitGroup
		for i := range sent {
			sent[i] = &store.Send{
				Message: store.Message{Conv: store.Direct(a, b), From: a, Cid: "c", Type: "text", TS: 1}, Hash: 1,
				Inboxes: []store.InboxRef{{User: a}, {User: b}},
			}
			wg.Go(func() {
				if err := stores[i].Commit(ctx, &store.Batch{Sends: []*store.Send{sent[i]}}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if sent[0].Dup == sent[1].Dup || sent[0].Cseq != 1 || sent[1].Cseq != 1 || sent[0].ID != sent[1].ID {
			t.Fatalf("got dup %t and %t, cseq %d and %d, want one message", sent[0].Dup, sent[1].Dup, sent[0].Cseq, sent[1].Cseq)
		}
	}
	_, x, _ := stores[0].Counts()
	_, y, _ := stores[1].Counts()
	if x+y == 0 {
		t.Error("the stores have not met")
	}
}

// TestIDs: an id is greater than those before it in its conversation, whatever the clocks of the nodes say.
func TestIDs(t *testing.T) {
	dsn := database(t, server)
	ahead := open(t, mysql.Options{DSN: dsn, IDs: fixedIDs{1 << 50}})
	behind := open(t, mysql.Options{DSN: dsn, IDs: fixedIDs{1 << 10}})
	last := int64(0)
	for i := range 6 {
		s := []*mysql.Store{ahead, behind}[i%2]
		m := &store.Send{Message: store.Message{Conv: "u/a/b", From: "a", Type: "text", TS: 1}}
		if err := s.Commit(ctx, &store.Batch{Sends: []*store.Send{m}}); err != nil {
			t.Fatal(err)
		}
		if m.ID <= last {
			t.Errorf("id %d after %d", m.ID, last)
		}
		last = m.ID
		for _, s := range []*mysql.Store{ahead, behind} {
			if got, err := s.LastID(ctx); err != nil || got != last {
				t.Errorf("last id: got %d, %v, want %d", got, err, last)
			}
		}
	}
}

// fixedIDs is a node whose clock stands still.
type fixedIDs struct{ at int64 }

func (f fixedIDs) Next(after int64) int64 { return max(after+1, f.at) }

// TestCut: connections are lost before, during and after COMMIT and between other commands.
func TestCut(t *testing.T) {
	dsn0 := database(t, server)
	n, queries, opened := 0, 0, false
	p := newProxy(t, server.Addr(), func(command string) cut {
		if !opened {
			return pass
		}
		if queries++; queries%41 == 0 {
			return before
		}
		if !isCommit(command) {
			return pass
		}
		if n++; n%4 == 0 {
			return pass
		}
		return cut(n % 4)
	})
	_, name, _ := cutLast(dsn0, "/")
	x := newTraffic(t, nodes(t, dsn(p.addr(), name), 2, mysql.Options{Timeout: patience})...)
	x.setUp()
	p.mu.Lock()
	opened = true
	p.mu.Unlock()
	x.run(seed(t), 12)
	_, retries, unknown := x.stores[0].Counts()
	if retries == 0 || unknown == 0 {
		t.Errorf("%d repeated attempts, %d unknown outcomes: nothing was cut", retries, unknown)
	}
	x.check(open(t, mysql.Options{DSN: dsn0}))
	t.Logf("%d attempts had to be repeated, %d answers to COMMIT were lost", retries, unknown)
}

func cutLast(s, sep string) (before, after string, ok bool) {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i:i+1] == sep {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// TestOutcome: one message at a time, and each way for its COMMIT to get lost.
func TestOutcome(t *testing.T) {
	dsn0 := database(t, server)
	next := pass
	p := newProxy(t, server.Addr(), func(command string) cut {
		if !isCommit(command) {
			return pass
		}
		c := next
		next = pass
		return c
	})
	_, name, _ := cutLast(dsn0, "/")
	s := open(t, mysql.Options{DSN: dsn(p.addr(), name)})
	var want []uint64
	for i, how := range []cut{pass, before, during, after, late, before, after} {
		p.mu.Lock()
		next = how
		p.mu.Unlock()
		// No cid: nothing but the outcome itself keeps it from being stored twice.
		m := &store.Send{Message: store.Message{Conv: "u/a/b", From: "a", Type: "text", TS: 1}, Inboxes: []store.InboxRef{{User: "b"}}}
		if err := s.Commit(ctx, &store.Batch{Sends: []*store.Send{m}}); err != nil || m.Cseq != uint64(i+1) || m.Inboxes[0].Seq != m.Cseq {
			t.Errorf("cut %d: got %v, cseq %d, want %d", how, err, m.Cseq, i+1)
		}
		want = append(want, uint64(i+1))
	}
	if _, _, unknown := s.Counts(); unknown != 6 {
		t.Errorf("got %d unknown outcomes, want 6", unknown)
	}
	// A change begins again from the state that it is built on.
	p.mu.Lock()
	next = before
	p.mu.Unlock()
	m := &store.Send{
		Message: store.Message{Conv: "g/g", From: "a", Type: "sys.group", TS: 1},
		Change:  &store.Change{Members: []store.Member{{User: "a", Role: store.Owner}, {User: "b", Role: store.Ordinary}}},
	}
	if err := s.Commit(ctx, &store.Batch{Sends: []*store.Send{m}}); err != nil || m.Err != nil || m.Change.Group.Version != 1 || m.Change.Group.MemberCount != 2 || len(m.Inboxes) != 2 {
		t.Errorf("a change: got %v, %v, %+v", err, m.Err, m.Change.Group)
	}
	list, err := s.History(ctx, "a", "u/a/b", store.Range{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	var got []uint64
	for _, m := range list {
		got = append(got, m.Cseq)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestAway: a database that stays away after COMMIT was sent leaves the outcome unknown; before that the batch is
// refused; then service resumes.
func TestAway(t *testing.T) {
	dsn0 := database(t, server)
	_, name, _ := cutLast(dsn0, "/")
	var p *proxy
	lose := false
	p = newProxy(t, server.Addr(), func(command string) cut {
		if lose && isCommit(command) {
			p.leave()
			return during
		}
		return pass
	})
	s := open(t, mysql.Options{DSN: dsn(p.addr(), name), Timeout: time.Second})
	send := func() (*store.Send, error) {
		m := &store.Send{Message: store.Message{Conv: "u/a/b", From: "a", Cid: "c", Type: "text", TS: time.Now().UnixMilli()}, Hash: 1}
		return m, s.Commit(ctx, &store.Batch{Sends: []*store.Send{m}})
	}
	p.mu.Lock()
	lose = true
	p.mu.Unlock()
	if _, err := send(); !errors.Is(err, store.ErrUnknownOutcome) {
		t.Errorf("cut during COMMIT and away: got %v, want ErrUnknownOutcome", err)
	}
	if err := s.Healthy(); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("healthy: got %v, want ErrUnavailable", err)
	}
	if _, err := send(); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("away: got %v, want ErrUnavailable", err)
	}
	if _, err := s.Inbox(ctx, "a"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("read while away: got %v, want ErrUnavailable", err)
	}
	p.mu.Lock()
	lose = false
	p.mu.Unlock()
	p.setAway(false)
	for end := time.Now().Add(patience); s.Healthy() != nil; {
		if time.Now().After(end) {
			t.Fatal("the store does not notice that the database is back")
		}
		<-time.After(10 * time.Millisecond) // between looks
	}
	m, err := send()
	if err != nil || m.Cseq != 1 {
		t.Errorf("back: got %v, cseq %d, want 1", err, m.Cseq)
	}
}

// TestKill: the server is killed under commits, several times, and comes back.
func TestKill(t *testing.T) {
	s := mariadb.Start(t)
	prepare(s)
	s.Exec("CREATE DATABASE killed")
	x := newTraffic(t, nodes(t, dsn(s.Addr(), "killed"), 2, mysql.Options{Timeout: 2 * time.Second})...)
	x.setUp()
	stop, done := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for stop.Err() == nil {
			x.mu.Lock()
			n := len(x.acked)
			x.mu.Unlock()
			for stop.Err() == nil { // some more have been acknowledged
				x.mu.Lock()
				more := len(x.acked) > n+150
				x.mu.Unlock()
				if more {
					break
				}
				<-time.After(5 * time.Millisecond) // between looks
			}
			if stop.Err() == nil {
				s.Stop()
				s.Run()
			}
		}
	})
	x.run(seed(t), 40)
	done()
	wg.Wait()
	_, retries, unknown := x.stores[0].Counts()
	if retries == 0 {
		t.Error("nothing was repeated: nothing was killed")
	}
	t.Logf("%d attempts had to be repeated, %d answers to COMMIT were lost", retries, unknown)
	x.check(open(t, mysql.Options{DSN: dsn(s.Addr(), "killed")}))
}
