package mysql_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

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

// living opens a store that shows often that it lives, through a proxy that can kill it: it falls silent without a word.
// Others count it as gone after ttl.
func living(t *testing.T, dsn0 string, ttl time.Duration) (s *mysql.Store, kill func()) {
	t.Helper()
	p := newProxy(t, server.Addr(), func(string) cut { return pass })
	o := mysql.Options{DSN: dsn(p.addr(), name(dsn0))}
	o.SetBeats(time.Second/10, ttl)
	return open(t, o), func() { p.setAway(true) }
}

// TestNodeKilled: what a node holds, connected sessions and wills, is its own as long as it lives, whoever looks and
// however long that lasts; when it has been killed it is nobody's after the time.
func TestNodeKilled(t *testing.T) {
	dsn := database(t, server)
	const ttl = 5 * time.Second
	a, kill := living(t, dsn, ttl)
	b, _ := living(t, dsn, ttl)
	c, _ := living(t, dsn, ttl)
	record := func(client string) store.TopicBatch {
		return store.TopicBatch{
			Sessions: []store.Session{{Client: client, User: "u", Expiry: 3600, Since: time.Now().UnixMilli(), Online: true}},
			Wills:    []store.Will{{Client: client, User: "u", Publication: store.Publication{Topic: "t"}}},
		}
	}
	topics(t, a, record("of a"))
	topics(t, a, record("taken up by b"))
	topics(t, b, record("taken up by b"))
	state := func(s *mysql.Store) string {
		t.Helper()
		wills, err := s.Wills(ctx, "", 10)
		sessions, err2 := s.Sessions(ctx, "", 10)
		if err != nil || err2 != nil || len(wills) != 2 || len(sessions) != 2 {
			t.Fatalf("got %v, %v, %v, %v", wills, err, sessions, err2)
		}
		return fmt.Sprintf("of a: %t %t, of b: %t %t", sessions[0].Online, wills[0].Held, sessions[1].Online, wills[1].Held)
	}
	expect := func(s *mysql.Store, want string) {
		t.Helper()
		if got := state(s); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	begun := time.Now()
	eventually(t, "twice the time", func() bool { // that a silent node has
		expect(a, "of a: true false, of b: true true")
		expect(b, "of a: true true, of b: true false")
		expect(c, "of a: true true, of b: true true")
		return time.Since(begun) > 2*ttl || t.Failed()
	})
	maintain(t, c, time.Now()) // cuts nobody
	expect(c, "of a: true true, of b: true true")
	kill()
	killed := time.Now()
	eventually(t, "the session to be cut off", func() bool { return state(c) != "of a: true true, of b: true true" })
	if d := time.Since(killed); d < ttl-time.Second {
		t.Errorf("it was taken for gone after %s", d)
	}
	expect(c, "of a: false false, of b: true true")
	expect(b, "of a: false false, of b: true false")
	x, err := b.Session(ctx, "of a")
	if err != nil || !x.Cut || x.Since < killed.UnixMilli()-1000 {
		t.Errorf("got %+v, %v, want it cut off since its node was killed", x, err)
	}
}

// TestNodeSilent: a node that has not reached the database for so long that others have cut its sessions off, and is back,
// has them again: they do not end while their clients are connected. They are cut off anew when it is silent again.
func TestNodeSilent(t *testing.T) {
	dsn := database(t, server)
	o := mysql.Options{DSN: dsn}
	o.SetBeats(time.Hour, time.Second) // the test beats in its place
	a := open(t, o)
	o.SetBeats(20*time.Millisecond, time.Second)
	b := open(t, o)
	list := []*mysql.Store{a, b}
	const expiry = 60 // seconds
	topics(t, a, store.TopicBatch{Sessions: []store.Session{
		{Client: "c", User: "u", Expiry: expiry, Since: time.Now().UnixMilli(), Online: true},
		{Client: "left", User: "u", Expiry: expiry, Since: time.Now().UnixMilli(), Online: true},
	}})
	beat := func(in time.Duration) { // of a
		t.Helper()
		q := "UPDATE " + name(dsn) + ".mqim_nodes SET seen = CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED) + ? WHERE id = ?"
		if _, err := server.DB.Exec(q, in.Milliseconds(), a.Node()); err != nil {
			t.Fatal(err)
		}
	}
	stored := func() (state int, since int64) {
		t.Helper()
		q := "SELECT state, since FROM " + name(dsn) + ".mqim_sessions WHERE client = 'c'"
		if err := server.DB.QueryRow(q).Scan(&state, &since); err != nil {
			t.Fatal(err)
		}
		return state, since
	}
	was, _ := stored()
	beat(-time.Hour)
	eventually(t, "the sessions of a silent node to be cut off", func() bool {
		maintain(t, b, time.Now())
		now, _ := stored()
		return now != was
	})
	_, cut := stored()
	beat(time.Hour)
	for _, s := range list {
		if x, err := s.Session(ctx, "c"); err != nil || !x.Online || x.Cut {
			t.Errorf("its node is back: got %+v, %v, want it connected", x, err)
		}
	}
	topics(t, a, store.TopicBatch{Sessions: []store.Session{{Client: "left", User: "u", Expiry: expiry, Since: time.Now().UnixMilli()}}})
	later := time.Now().Add(expiry * time.Second)
	eventually(t, "the session of a client that has left to end", func() bool {
		maintain(t, b, later)
		_, err := b.Session(ctx, "left")
		return err != nil
	})
	if x, err := b.Session(ctx, "c"); err != nil || !x.Online {
		t.Errorf("that of a client which is connected: got %+v, %v", x, err)
	}
	beat(0)
	eventually(t, "its being cut off anew to be written down", func() bool {
		maintain(t, b, time.Now())
		_, since := stored()
		return since > cut
	})
	if x, err := b.Session(ctx, "c"); err != nil || !x.Cut {
		t.Errorf("its node is silent again: got %+v, %v, want it cut off", x, err)
	}
	eventually(t, "its end", func() bool {
		maintain(t, b, time.Now().Add(2*expiry*time.Second))
		_, err := b.Session(ctx, "c")
		return err != nil
	})
}

// TestAwayForAll: who finds the database back first does not take for gone those who could not reach it either.
func TestAwayForAll(t *testing.T) {
	dsn0 := database(t, server)
	const ttl = 2 * time.Second
	join := func() (*mysql.Store, *proxy) {
		p := newProxy(t, server.Addr(), func(string) cut { return pass })
		o := mysql.Options{DSN: dsn(p.addr(), name(dsn0)), Timeout: time.Second}
		o.SetBeats(time.Second/10, ttl)
		return open(t, o), p
	}
	a, pa := join()
	b, pb := join()
	topics(t, a, store.TopicBatch{
		Sessions: []store.Session{{Client: "c", User: "u", Expiry: 3600, Since: time.Now().UnixMilli(), Online: true}},
		Wills:    []store.Will{{Client: "c", User: "u", Publication: store.Publication{Topic: "t"}}},
	})
	pa.setAway(true)
	pb.setAway(true)
	begun := time.Now()
	eventually(t, "everybody to be silent", func() bool { return time.Since(begun) > ttl+ttl/2 })
	pb.setAway(false)
	state := func() string {
		wills, err := b.Wills(ctx, "", 10)
		x, err2 := b.Session(ctx, "c")
		if err != nil || err2 != nil || len(wills) != 1 {
			return fmt.Sprint(err, err2)
		}
		return fmt.Sprintf("held %t, online %t", wills[0].Held, x.Online)
	}
	var got string
	eventually(t, "b to read", func() bool { got = state(); return strings.HasPrefix(got, "held") })
	if got != "held true, online true" {
		t.Errorf("the other node has had no time to come back: %s", got)
	}
	eventually(t, "b to be well", func() bool { return b.Healthy() == nil })
	if got := state(); got != "held true, online true" {
		t.Errorf("b is well, and the other has had no time: %s", got)
	}
	eventually(t, "a, which does not come back, to count as gone", func() bool { return state() == "held false, online false" })
}

// TestMaintainTogether: two processes do the same piece of maintenance at once, no lock keeping them apart, while others
// write: nothing is lost that is to stay, and nothing stays that is to go.
func TestMaintainTogether(t *testing.T) {
	dsn := database(t, server)
	list := nodes(t, dsn, 3, mysql.Options{Timeout: patience, Retention: store.Retention{InboxMessages: 5000, Dedupe: time.Hour}})
	x := newTraffic(t, list[:2]...)
	x.setUp()
	var sessions []store.Session
	for i := range 40 { // half of them end
		sessions = append(sessions, store.Session{Client: fmt.Sprintf("c%02d", i), User: "u", Expiry: uint32(i % 2 * 1000), Since: time.Now().UnixMilli() - 1})
	}
	topics(t, list[0], store.TopicBatch{Sessions: sessions})
	var pubs []*store.Publish
	for i := range 40 {
		p := &store.Publish{Publication: &store.Publication{Topic: fmt.Sprint("t/", i), Payload: []byte("x"), QoS: 1}, Retain: true}
		p.Expires = time.Now().Add([]time.Duration{time.Hour, -time.Second}[i%2]).UnixMilli()
		p.Queues = []store.QueueRef{{Client: "c01", QoS: 1}, {Client: "c02", QoS: 1}, {Client: "c03", QoS: 1}}
		pubs = append(pubs, p)
	}
	topics(t, list[0], store.TopicBatch{Publishes: pubs})
	topics(t, list[0], store.TopicBatch{Passed: []store.Passed{{Client: "c01", Seq: 10}}})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, s := range list[1:] {
		wg.Go(func() {
			for {
				if err := s.MaintainAlone(ctx, time.Now()); err != nil {
					t.Error(err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	x.run(seed(t), 15)
	close(stop)
	wg.Wait()
	for _, s := range list[1:] {
		s.ForgetMaintenance()
		maintain(t, s, time.Now())
	}
	x.check(list[2])
	for round := range 25 { // both begin with the same retained messages
		var old []*store.Publish
		for i := range 10 {
			old = append(old, &store.Publish{Publication: &store.Publication{Topic: fmt.Sprint("old/", i), Payload: []byte("x"), Expires: 1}, Retain: true})
		}
		topics(t, list[0], store.TopicBatch{Publishes: old})
		for _, s := range list[1:] {
			wg.Go(func() {
				if err := s.MaintainAlone(ctx, time.Now()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n, err := list[0].RetainedCount(ctx); err != nil || n != 20 {
			t.Fatalf("round %d: %d retained messages are counted, %v, want 20", round, n, err)
		}
	}
	left, err := list[0].Sessions(ctx, "", 100)
	if err != nil || len(left) != 20 {
		t.Errorf("got %d sessions, %v, want 20", len(left), err)
	}
	n, err := list[0].RetainedCount(ctx)
	if err != nil || n != 20 || rows(t, dsn, "retained") != 20 {
		t.Errorf("got %d retained messages, counted as %d, %v, want 20", rows(t, dsn, "retained"), n, err)
	}
	queue, err := list[0].ReadQueue(ctx, "c01", 0, 100, nil)
	if err != nil || len(queue) == 0 || queue[0].Seq != 11 {
		t.Errorf("got %d queued, %v, want them from 11 on", len(queue), err)
	}
}
