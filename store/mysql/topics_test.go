package mysql_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/mysql"
)

func topics(t *testing.T, s *mysql.Store, b store.TopicBatch) {
	t.Helper()
	if err := s.Commit(ctx, &store.Batch{TopicBatch: b}); err != nil {
		t.Fatal(err)
	}
}

// TestSessionsOfNodes: a session is connected as long as its node is alive. When the node has gone without a word the
// others see it cut off; one that was taken up by another node is that one's.
func TestSessionsOfNodes(t *testing.T) {
	dsn := database(t, server)
	list := nodes(t, dsn, 3, mysql.Options{})
	a, b, c := list[0], list[1], list[2]
	online := func(client string) store.Session {
		return store.Session{Client: client, User: "u", Expiry: 3600, Since: time.Now().UnixMilli(), Online: true}
	}
	topics(t, a, store.TopicBatch{Sessions: []store.Session{online("c1"), online("c2")}})
	state := func(s *mysql.Store, client string) string {
		t.Helper()
		x, err := s.Session(ctx, client)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("online %t, cut %t", x.Online, x.Cut)
	}
	expect := func(when, client, want string) {
		t.Helper()
		for i, s := range []*mysql.Store{b, c} {
			if got := state(s, client); got != want {
				t.Errorf("%s, %s at node %d: got %s, want %s", when, client, i+1, got, want)
			}
		}
	}
	expect("connected", "c1", "online true, cut false")
	topics(t, b, store.TopicBatch{Sessions: []store.Session{online("c2")}})
	processes(t, b, 3)
	closed := time.Now().UnixMilli()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	processes(t, b, 2)
	expect("its node is closed", "c1", "online false, cut true")
	expect("taken over by another", "c2", "online true, cut false")
	before, err := c.Session(ctx, "c1")
	if err != nil {
		t.Fatal(err)
	}
	if before.Since < closed {
		t.Errorf("cut off %d ms before its node was closed", closed-before.Since)
	}
	maintain(t, c, time.Now())
	for _, s := range []*mysql.Store{b, c} { // now it is written down for all
		if got, err := s.Session(ctx, "c1"); err != nil || got != before {
			t.Errorf("after Maintain: got %+v, %v, want %+v", got, err, before)
		}
	}
	// A node that does not beat any more.
	if _, err := server.DB.Exec("UPDATE " + name(dsn) + ".mqim_nodes SET seen = 1"); err != nil {
		t.Fatal(err)
	}
	processes(t, b, 1)
	if got := state(c, "c2"); got != "online false, cut true" {
		t.Errorf("its node is silent: got %s, want it cut off", got)
	}
	if got := state(b, "c2"); got != "online true, cut false" {
		t.Errorf("at the node itself: got %s, want it connected", got)
	}
}

func processes(t *testing.T, s *mysql.Store, want int) {
	t.Helper()
	if n, err := s.Living(ctx); n != want || err != nil {
		t.Errorf("processes that live: got %d, %v, want %d", n, err, want)
	}
}

func name(dsn string) string {
	_, name, _ := cutLast(dsn, "/")
	return name
}

func maintain(t *testing.T, s *mysql.Store, now time.Time) {
	t.Helper()
	for range 1000 {
		more, err := s.Maintain(ctx, now)
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			return
		}
	}
	t.Fatal("always more to do")
}

// rows counts the rows of a table.
func rows(t *testing.T, dsn, table string) (n int) {
	t.Helper()
	if err := server.DB.QueryRow("SELECT COUNT(*) FROM " + name(dsn) + ".mqim_" + table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestPublicationsGo: what all queues have passed, or whose sessions have ended, does not stay.
func TestPublicationsGo(t *testing.T) {
	dsn := database(t, server)
	s := open(t, mysql.Options{DSN: dsn})
	var sessions []store.Session
	var over []store.Session
	for i := range 3 {
		sessions = append(sessions, store.Session{Client: fmt.Sprint("c", i), Expiry: store.NoExpiry})
		over = append(over, store.Session{Client: fmt.Sprint("c", i), Over: true})
	}
	topics(t, s, store.TopicBatch{Sessions: sessions})
	publish := func() {
		p := &store.Publish{Publication: &store.Publication{Topic: "t", Payload: []byte("x"), QoS: 1}}
		for i := range 3 {
			p.Queues = append(p.Queues, store.QueueRef{Client: fmt.Sprint("c", i), QoS: 1})
		}
		topics(t, s, store.TopicBatch{Publishes: []*store.Publish{p}})
	}
	for range 10 {
		publish()
	}
	counts := func() [4]int {
		return [4]int{rows(t, dsn, "pubs"), rows(t, dsn, "pub_refs"), rows(t, dsn, "queues"), rows(t, dsn, "outbound")}
	}
	topics(t, s, store.TopicBatch{
		Passed:   []store.Passed{{Client: "c0", Seq: 10}, {Client: "c1", Seq: 4}, {Client: "c2", Seq: 6}},
		Outbound: []store.Outbound{{Client: "c1", Seq: 5, ID: 1}, {Client: "c1", Seq: 6, ID: 2}},
	})
	maintain(t, s, time.Now())
	if got, want := counts(), [4]int{6, 6 + 4, 6 + 4, 2}; got != want {
		t.Errorf("after cursors: got %v publications, references, records, sent; want %v", got, want)
	}
	s2 := open(t, mysql.Options{DSN: dsn}) // another process has jobs that do not rest yet
	topics(t, s, store.TopicBatch{Passed: []store.Passed{{Client: "c1", Seq: 5}}})
	topics(t, s, store.TopicBatch{Sessions: over[2:]})
	maintain(t, s2, time.Now())
	if got, want := counts(), [4]int{5, 5, 5, 1}; got != want {
		t.Errorf("after a session: got %v publications, references, records, sent; want %v", got, want)
	}
	list, err := s.ReadQueue(ctx, "c1", 0, 100, nil)
	if err != nil || len(list) != 5 || list[0].Seq != 6 {
		t.Errorf("what is left: got %d, %v", len(list), err)
	}
	s3 := open(t, mysql.Options{DSN: dsn})
	topics(t, s, store.TopicBatch{Sessions: over})
	maintain(t, s3, time.Now())
	if got, want := counts(), [4]int{}; got != want {
		t.Errorf("after all sessions: got %v publications, references, records, sent; want %v", got, want)
	}
}

// TestTopicsTogether: two nodes put publications into the same queues and set retained messages at once, while
// connections are cut: no queue has holes, and the retained messages are counted right.
func TestTopicsTogether(t *testing.T) {
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
	var sessions []store.Session
	for i := range 4 {
		sessions = append(sessions, store.Session{Client: fmt.Sprint("c", i), Expiry: store.NoExpiry})
	}
	topics(t, list[0], store.TopicBatch{Sessions: sessions})
	p.mu.Lock()
	opened = true
	p.mu.Unlock()
	const batches = 30
	var mu sync.Mutex
	got := map[string]string{} // payloads by client and seq
	var wg sync.WaitGroup
	for i, s := range list {
		wg.Go(func() {
			for k := range batches {
				var b store.Batch
				for j := range 3 {
					m := &store.Publish{Publication: &store.Publication{Topic: fmt.Sprint("t/", (k+j)%7), Payload: fmt.Append(nil, i, k, j), QoS: 1}, Retain: true}
					for c := range 4 {
						if (k+j+c)%3 > 0 {
							m.Queues = append(m.Queues, store.QueueRef{Client: fmt.Sprint("c", c), QoS: 1})
						}
					}
					b.Publishes = append(b.Publishes, m)
				}
				gone := &store.Publish{Publication: &store.Publication{Topic: fmt.Sprint("t/", k%5)}, Retain: true}
				b.Publishes = append(b.Publishes, gone)
				if err := s.Commit(ctx, &b); err != nil {
					t.Error(err)
					return
				}
				topics(t, s, store.TopicBatch{Passed: []store.Passed{{Client: "c3", Seq: uint64(k)}}})
				mu.Lock()
				for _, m := range b.Publishes {
					for _, q := range m.Queues {
						at := fmt.Sprint(q.Client, " ", q.Seq)
						if got[at] != "" {
							t.Errorf("%s was given twice", at)
						}
						got[at] = string(m.Payload)
					}
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	s := open(t, mysql.Options{DSN: dsn0})
	total := 0
	for i := range 4 {
		c := fmt.Sprint("c", i)
		list, err := s.ReadQueue(ctx, c, 0, 10_000, nil)
		if err != nil {
			t.Fatal(err)
		}
		state, err := s.Queue(ctx, c)
		if err != nil || i == 3 && state.Passed != batches-1 || i != 3 && state.Passed != 0 || state.Head != state.Passed+uint64(len(list)) {
			t.Errorf("queue of %s: %+v, %v, with %d entries", c, state, err, len(list))
		}
		for k, q := range list {
			if q.Seq != state.Passed+uint64(k+1) || string(q.Payload) != got[fmt.Sprint(c, " ", q.Seq)] {
				t.Fatalf("queue of %s: place %d has seq %d, %q, want %q", c, k+1, q.Seq, q.Payload, got[fmt.Sprint(c, " ", q.Seq)])
			}
		}
		total += int(state.Head)
	}
	if total != len(got) || total == 0 {
		t.Errorf("the queues have had %d entries, want %d", total, len(got))
	}
	count, err := s.RetainedCount(ctx)
	kept, err2 := s.Retained(ctx, "#", "", 100, 0)
	if err != nil || err2 != nil || count != uint64(len(kept)) {
		t.Errorf("got %d retained messages and a count of %d (%v, %v)", len(kept), count, err, err2)
	}
}
