package mysql_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/mysql"
	"github.com/mqim/mqim/store/storetest"
	"github.com/mqim/mqim/tests/mariadb"
)

// pair is a server and one that copies it.
type pair struct {
	t                *testing.T
	primary, replica *mariadb.Server
	n                int
}

func newPair(t *testing.T) *pair {
	p := &pair{t: t, primary: mariadb.Start(t, "--log-bin", "--server-id=1", "--binlog-format=ROW", "--sync-binlog=1")}
	p.replica = mariadb.StartReplica(t, p.primary)
	prepare(p.primary)
	return p
}

// database makes one, and returns how to connect to it and to its copy.
func (p *pair) database() (primary, replica string) {
	p.n++
	name := fmt.Sprint("copied", p.n)
	p.primary.Exec("CREATE DATABASE " + name)
	p.replica.CatchUp(p.primary)
	return dsn(p.primary.Addr(), name), dsn(p.replica.Addr(), name)
}

func (p *pair) open(o mysql.Options) *mysql.Store {
	var copied string
	o.DSN, copied = p.database()
	o.Replicas = append(o.Replicas, copied)
	s := open(p.t, o)
	eventually(p.t, "the replica serves", func() bool { return up(s) })
	return s
}

func up(s *mysql.Store) bool {
	return !slices.ContainsFunc(s.Metrics().Replicas, func(r mysql.ReplicaMetrics) bool { return !r.Up })
}

// served are the reads that replicas have answered.
func served(s *mysql.Store) (n int64) {
	for _, r := range s.Metrics().Replicas {
		n += r.Reads
	}
	return n
}

func commit(t testing.TB, s *mysql.Store, b *store.Batch) {
	t.Helper()
	if err := s.Commit(ctx, b); err != nil {
		t.Fatal(err)
	}
	for _, m := range b.Sends {
		if m.Err != nil {
			t.Fatal(m.Err)
		}
	}
}

func message(conv store.Conv, from, body string) *store.Send {
	m := &store.Send{Message: store.Message{Conv: conv, From: from, Type: "text", Body: []byte(body), TS: time.Now().UnixMilli()}}
	if a, b, ok := conv.Users(); ok {
		m.Inboxes = []store.InboxRef{{User: a}, {User: b}}
	}
	return m
}

// group makes a group.
func group(t testing.TB, s *mysql.Store, id string, large bool, members ...string) {
	t.Helper()
	m := message(store.GroupConv(id), members[0], "made")
	m.Change = &store.Change{Group: store.Group{ID: id, Owner: members[0]}, Large: large}
	for i, u := range members {
		role := store.Ordinary
		if i == 0 {
			role = store.Owner
		}
		m.Change.Members = append(m.Change.Members, store.Member{User: u, Role: role, Joined: 1})
	}
	commit(t, s, &store.Batch{Sends: []*store.Send{m}})
}

func bodies(list []*store.Message) (out []string) {
	for _, m := range list {
		out = append(out, string(m.Body))
	}
	return out
}

// TestReplicaServes: what people page through is read from the replica, and nothing else is; what is read is right.
func TestReplicaServes(t *testing.T) {
	p := newPair(t)
	s := p.open(mysql.Options{})
	conv := store.Direct("ann", "bob")
	commit(t, s, &store.Batch{Sends: []*store.Send{message(conv, "ann", "one"), message(conv, "bob", "two")}})
	group(t, s, "team", false, "ann", "bob", "cyd")
	relaxed := store.Relaxed(ctx, "ann")
	calls := map[string]func(context.Context) (string, error){
		"history": func(ctx context.Context) (string, error) {
			list, err := s.History(ctx, "ann", conv, store.Range{Limit: 9})
			return fmt.Sprint(bodies(list)), err
		},
		"conversations": func(ctx context.Context) (string, error) {
			list, _, err := s.ListConversations(ctx, "ann", "", 9)
			if len(list) != 2 {
				return fmt.Sprint(list), err
			}
			return fmt.Sprintf("%s %d %s %d %s", list[0].Conv, list[0].Head, list[1].Conv, list[1].Unread, list[1].Last.Body), err
		},
		"members": func(ctx context.Context) (string, error) {
			list, next, err := s.Members(ctx, "team", "", 2)
			return fmt.Sprintf("%d, %s", len(list), next), err
		},
		"memberships": func(ctx context.Context) (string, error) {
			list, _, err := s.Memberships(ctx, "ann", "", 9)
			return fmt.Sprint(list), err
		},
	}
	want := map[string]string{
		"history": "[one two]", "conversations": "g/team 1 u/ann/bob 1 two", "members": "2, bob", "memberships": "[{team true false}]",
	}
	for name, call := range calls {
		eventually(t, name+" comes from the replica", func() bool {
			before := served(s)
			got, err := call(relaxed)
			if err != nil || got != want[name] {
				t.Fatalf("%s: got %q, %v, want %q", name, got, err, want[name])
			}
			return served(s) == before+1
		})
		before := served(s)
		if got, err := call(ctx); err != nil || got != want[name] || served(s) != before {
			t.Errorf("%s without leave to lag: got %q, %v, from the replica: %t", name, got, err, served(s) != before)
		}
	}
	before := served(s)
	for name, call := range map[string]func() error{
		"message":      func() error { _, err := s.Message(relaxed, conv, 1); return err },
		"conversation": func() error { _, err := s.Conversation(relaxed, "ann", conv); return err },
		"inbox":        func() error { _, err := s.ReadInbox(relaxed, "ann", 0, 9, nil); return err },
		"group":        func() error { _, err := s.Group(relaxed, "team"); return err },
		"member":       func() error { _, err := s.Member(relaxed, "team", "ann"); return err },
		"blocks":       func() error { _, err := s.Blocks(relaxed, "ann"); return err },
		"streams":      func() error { _, err := s.Streams(relaxed, store.DeviceKey{User: "ann", Device: "d"}); return err },
	} {
		if err := call(); err != nil || served(s) != before {
			t.Errorf("%s: %v, from the replica: %t", name, err, served(s) != before)
		}
	}
}

// patient lets replicas lag for as long as the test takes; it is called before any store is open.
func patient(t *testing.T) {
	old := mysql.SetReplicaLag(time.Hour)
	t.Cleanup(func() { mysql.SetReplicaLag(old) })
}

// TestReadWhatWasWritten: where the replica stands still everybody still sees what was done here, and where others have
// to do with it they see it too. Each step has users and a conversation of its own: nothing else has touched them.
func TestReadWhatWasWritten(t *testing.T) {
	patient(t)
	p := newPair(t)
	s := p.open(mysql.Options{})
	steps := []string{"send", "read", "recall", "delete", "idle"}
	a := func(step string) string { return "ann" + step }
	b := func(step string) string { return "bob" + step }
	conv := func(step string) store.Conv { return store.Direct(a(step), b(step)) }
	for _, step := range steps {
		for i := range 4 {
			commit(t, s, &store.Batch{Sends: []*store.Send{message(conv(step), a(step), fmt.Sprint("old", i))}})
		}
	}
	for _, id := range []string{"crowd", "join"} {
		group(t, s, id, true, "owner", "sender"+id, "reader"+id)
	}
	history := func(user string, conv store.Conv) string {
		t.Helper()
		list, err := s.History(store.Relaxed(ctx, user), user, conv, store.Range{Limit: 2})
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(bodies(list))
	}
	state := func(user string, conv store.Conv) (c store.Conversation) {
		t.Helper()
		list, _, err := s.ListConversations(store.Relaxed(ctx, user), user, "", 9)
		if err != nil {
			t.Fatal(err)
		}
		for _, c = range list {
			if c.Conv == conv {
				break
			}
		}
		return c
	}
	eventually(t, "all of it is on the replica", func() bool {
		before := served(s)
		for _, step := range steps {
			history(a(step), conv(step))
			state(b(step), conv(step))
		}
		state("readercrowd", "g/crowd")
		state("readerjoin", "g/join")
		return served(s) == before+2*int64(len(steps))+2
	})
	check := func(what string, got any, want string) {
		t.Helper()
		if fmt.Sprint(got) != want {
			t.Errorf("%s: got %v, want %s", what, got, want)
		}
	}
	p.replica.Exec("STOP SLAVE SQL_THREAD")

	commit(t, s, &store.Batch{Sends: []*store.Send{message(conv("send"), a("send"), "new")}})
	check("sender's history", history(a("send"), conv("send")), "[old3 new]")
	check("receiver's history", history(b("send"), conv("send")), "[old3 new]")
	check("sender's list", state(a("send"), conv("send")).Head, "5")
	check("receiver's list", state(b("send"), conv("send")).Unread, "5")

	commit(t, s, &store.Batch{Lazy: true, Reads: []*store.Mark{{User: b("read"), Conv: conv("read"), Cseq: 3}}})
	check("reader's list", state(b("read"), conv("read")).Unread, "1")
	check("list of who was read", state(a("read"), conv("read")).PeerRead, "3")

	commit(t, s, &store.Batch{Recalls: []*store.Recall{{Conv: conv("recall"), Cseq: 4}}})
	check("history after a recall", history(b("recall"), conv("recall")), "[old2 ]")
	check("list after a recall", state(b("recall"), conv("recall")).Unread, "3")

	commit(t, s, &store.Batch{Deletes: []store.Delete{{User: b("delete"), Conv: conv("delete"), Cseqs: []uint64{4}}}})
	check("history after a deletion", history(b("delete"), conv("delete")), "[old1 old2]")
	check("list after a deletion", state(b("delete"), conv("delete")).Unread, "3")

	commit(t, s, &store.Batch{Sends: []*store.Send{message("g/crowd", "sendercrowd", "to all")}})
	check("list with a large group", state("readercrowd", "g/crowd").Head, "2")
	check("history of a large group", history("readercrowd", "g/crowd"), "[made to all]")

	m := message("g/join", "owner", "dan is in")
	g, err := s.Group(ctx, "join")
	if err != nil {
		t.Fatal(err)
	}
	m.Change = &store.Change{Group: g, Members: []store.Member{{User: "dan", Role: store.Ordinary, Joined: 1}}}
	commit(t, s, &store.Batch{Sends: []*store.Send{m}})
	list, _, err := s.Members(store.Relaxed(ctx, "readerjoin"), "join", "", 9)
	check("members", fmt.Sprint(len(list), err), "4 <nil>")
	lists, _, err := s.Memberships(store.Relaxed(ctx, "dan"), "dan", "", 9)
	check("memberships of who has joined", fmt.Sprint(len(lists), err), "1 <nil>")

	// What nobody has touched is still served by the replica; what is not there is asked of it in vain.
	before := served(s)
	check("history of another conversation", history(a("idle"), conv("idle")), "[old2 old3]")
	if served(s) != before+1 {
		t.Errorf("what is old was not read from the replica: %v", s.Metrics().Passed)
	}
	eventually(t, "a read finds the replica behind", func() bool {
		check("sender's history", history(a("send"), conv("send")), "[old3 new]")
		return s.Metrics().Passed["behind"] > 0
	})
	p.replica.Exec("START SLAVE SQL_THREAD")
	eventually(t, "what was new is read from it", func() bool {
		before := served(s)
		check("sender's history", history(a("send"), conv("send")), "[old3 new]")
		return served(s) > before
	})
}

// TestReplicaLags: a replica that lags too much is left out, for all users, and comes back.
func TestReplicaLags(t *testing.T) {
	p := newPair(t)
	s := p.open(mysql.Options{})
	p.replica.Exec("STOP SLAVE SQL_THREAD")
	eventually(t, "the replica is left out", func() bool { return !up(s) })
	if lag := s.Metrics().Replicas[0].Lag; lag < 4*time.Second {
		t.Errorf("left out with a lag of %s", lag)
	}
	before := served(s)
	if _, err := s.History(store.Relaxed(ctx, "ann"), "ann", "u/ann/bob", store.Range{Limit: 9}); err != nil || served(s) != before {
		t.Errorf("history: %v, from the replica: %t", err, served(s) != before)
	}
	p.replica.Exec("START SLAVE SQL_THREAD")
	eventually(t, "the replica is back", func() bool { return up(s) })
}

// TestFromAnotherNode: who comes from another node sees what it has written there.
func TestFromAnotherNode(t *testing.T) {
	patient(t)
	p := newPair(t)
	one := p.open(mysql.Options{})
	primary, replica := dsn(p.primary.Addr(), "copied1"), dsn(p.replica.Addr(), "copied1")
	two := open(t, mysql.Options{DSN: primary, Replicas: []string{replica}})
	conv := store.Direct("ann", "bob")
	commit(t, one, &store.Batch{Sends: []*store.Send{message(conv, "ann", "one")}})
	history := func() string {
		list, err := two.History(store.Relaxed(ctx, "ann"), "ann", conv, store.Range{Limit: 9})
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(bodies(list))
	}
	eventually(t, "the other node reads from the replica", func() bool { return up(two) && history() == "[one]" && served(two) > 0 })
	p.replica.Exec("STOP SLAVE SQL_THREAD")
	commit(t, one, &store.Batch{Sends: []*store.Send{message(conv, "ann", "two")}})
	for name, read := range map[string]func() error{
		"device": func() error {
			_, err := two.Device(ctx, store.DeviceKey{User: "ann", Device: "d"})
			if errors.Is(err, store.ErrNotFound) {
				err = nil
			}
			return err
		},
		"inbox":    func() error { _, err := two.Inbox(ctx, "ann"); return err },
		"messages": func() error { _, err := two.ReadInbox(ctx, "ann", 0, 9, nil); return err },
	} {
		if err := read(); err != nil {
			t.Fatal(err)
		}
		if got := history(); got != "[one two]" {
			t.Errorf("%s was read here: got %s, want [one two]", name, got)
		}
		commit(t, one, &store.Batch{Recalls: []*store.Recall{{Conv: conv, Cseq: 9}}})
	}
}

// TestReplicaKilled: whatever becomes of a replica under load, no read fails or takes long, and it comes back.
func TestReplicaKilled(t *testing.T) {
	p := newPair(t)
	var log lockedBuffer
	s := p.open(mysql.Options{Timeout: patience, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	const readers = 4
	var convs []store.Conv
	for i := range 20 {
		conv := store.Direct("ann", fmt.Sprint("peer", i))
		convs = append(convs, conv)
		commit(t, s, &store.Batch{Sends: []*store.Send{message(conv, "ann", fmt.Sprint(conv))}})
	}
	stop, done := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for k := range readers {
		wg.Go(func() {
			for i := k; stop.Err() == nil; i++ {
				conv := convs[i%len(convs)]
				start := time.Now()
				list, err := s.History(store.Relaxed(ctx, "ann"), "ann", conv, store.Range{Limit: 9})
				if err != nil || len(list) != 1 || string(list[0].Body) != string(conv) {
					t.Errorf("history of %s: got %v, %v", conv, bodies(list), err)
				}
				all, _, err := s.ListConversations(store.Relaxed(ctx, "ann"), "ann", "", 50)
				if err != nil || len(all) != len(convs) {
					t.Errorf("got %d conversations, %v", len(all), err)
				}
				if took := time.Since(start); took > 20*time.Second { // 1 s on an idle machine
					t.Errorf("two reads took %s", took)
				}
			}
		})
	}
	busy := func() {
		t.Helper()
		n := served(s)
		eventually(t, "reads come from the replica", func() bool { return up(s) && served(s) > n+50 })
	}
	busy()
	for range 2 {
		p.replica.Stop()
		eventually(t, "the replica is left out", func() bool { return !up(s) })
		p.replica.Run()
		busy()
	}
	p.replica.Hang()
	eventually(t, "the silent replica is left out", func() bool { return !up(s) })
	p.replica.Resume()
	busy()
	done()
	wg.Wait()
	m := s.Metrics()
	if m.Passed["failed"] == 0 || m.Passed["none"] == 0 || m.Away {
		t.Errorf("passed %v, away %t", m.Passed, m.Away)
	}
	// The first that fails has it left out for all: each reader fails once at most.
	if n := strings.Count(log.String(), "is left out"); m.Passed["failed"] > int64(readers*n) {
		t.Errorf("%d reads failed, and the replica was left out %d times", m.Passed["failed"], n)
	}
}

// TestWrongReplicas: a server that is no copy of this database is not read from, nor is one that does not answer; a start
// waits for none. What they say is logged once, without passwords; and a copy that could be written to is not.
func TestWrongReplicas(t *testing.T) {
	p := newPair(t)
	var log lockedBuffer
	other, _ := p.database()
	open(t, mysql.Options{DSN: other})
	s := p.open(mysql.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	good := dsn(p.replica.Addr(), "copied2")
	s.Close()
	s = open(t, mysql.Options{
		DSN: dsn(p.primary.Addr(), "copied2"), Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Replicas: []string{
			"store:" + password + "@tcp(127.0.0.1:1)/dead", other, dsn(p.primary.Addr(), "mqim"), strings.Replace(dsn(p.replica.Addr(), "copied1"), password, "not-"+password, 1),
			dsn(p.primary.Addr(), "copied2"), good,
		},
	})
	states := func() (list []bool) {
		for _, r := range s.Metrics().Replicas {
			list = append(list, r.Up)
		}
		return list
	}
	eventually(t, "the good ones serve", func() bool { return slices.Equal(states(), []bool{false, false, false, false, true, true}) })
	refusals := func(r mysql.ReplicaMetrics) (n int) {
		for line := range strings.Lines(log.String()) {
			if strings.Contains(line, "is left out") && strings.Contains(line, "replica="+r.Name+" ") {
				n++
			}
		}
		return n
	}
	for _, r := range s.Metrics().Replicas[:4] {
		eventually(t, r.Name+" is refused", func() bool { return refusals(r) > 0 })
	}
	conv := store.Direct("ann", "bob")
	commit(t, s, &store.Batch{Sends: []*store.Send{message(conv, "ann", "one")}})
	eventually(t, "both serve in turn", func() bool {
		list, err := s.History(store.Relaxed(ctx, "bob"), "bob", conv, store.Range{Limit: 9})
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		m := s.Metrics().Replicas
		return m[4].Reads > 2 && m[5].Reads > 2
	})
	text := log.String()
	if strings.Contains(text, password) {
		t.Errorf("the log has a password in it: %s", text)
	}
	for _, r := range s.Metrics().Replicas[:4] {
		if n := refusals(r); n != 1 {
			t.Errorf("%d words about %s, want 1: %s", n, r.Name, text)
		}
	}
	if !strings.Contains(text, "another store") {
		t.Errorf("no word about another store: %s", text)
	}
	for _, list := range [][]string{{"u:" + password + "@tcp(127.0.0.1:1)"}, {password}, {good, good}} {
		if got := refusal(t, mysql.Options{DSN: dsn(p.primary.Addr(), "copied2"), Replicas: list}); !strings.Contains(got, "replica ") {
			t.Errorf("got %q, want a word about the replica", got)
		}
	}
	for _, r := range s.ReplicaPools() {
		if _, err := r.Exec("DELETE FROM mqim_meta"); err == nil {
			t.Error("a replica was written to")
		}
	}
}

// TestReplicaQuiet: what is written to know how far replicas are is no sign to other nodes that somebody has sent something.
func TestReplicaQuiet(t *testing.T) {
	p := newPair(t)
	s := p.open(mysql.Options{})
	writes := func() uint64 {
		n, err := s.Writes(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := writes()
	signed := s.Signed()
	eventually(t, "two more signs", func() bool { return s.Signed() >= signed+2 })
	if writes() != before {
		t.Error("Writes has changed, and nobody has written")
	}
}

// TestReplicaOrder: a copy that may commit in another order than its server is refused.
func TestReplicaOrder(t *testing.T) {
	for _, x := range []struct {
		vars map[string]string
		want bool
	}{
		{map[string]string{"slave_parallel_workers": "4"}, true}, // MariaDB
		{map[string]string{"replica_preserve_commit_order": "ON", "replica_parallel_workers": "4"}, true},
		{map[string]string{"replica_preserve_commit_order": "OFF", "replica_parallel_workers": "4"}, false},
		{map[string]string{"slave_preserve_commit_order": "OFF", "slave_parallel_workers": "0"}, true},
		{map[string]string{"slave_preserve_commit_order": "0", "slave_parallel_workers": "2"}, false},
	} {
		if err := mysql.CheckOrder(x.vars); (err == nil) != x.want {
			t.Errorf("%v: got %v", x.vars, err)
		}
	}
}

// TestTouchedBounded: what is forgotten of users still counts, for all of them.
func TestTouchedBounded(t *testing.T) {
	var x mysql.Touched
	x.Put("first", 1)
	for i := range 3 * mysql.TouchedGeneration {
		x.Put(fmt.Sprint("user", i), uint64(i)+2)
		if n := x.Len(); n > 2*mysql.TouchedGeneration {
			t.Fatalf("%d entries", n)
		}
		if got := x.Need("first"); got < 1 {
			t.Fatalf("after %d others: got %d, want 1 at least", i, got)
		}
		if got, want := x.Need(fmt.Sprint("user", i/2), "nobody"), uint64(i/2)+2; got < want {
			t.Fatalf("user %d after %d others: got %d, want %d at least", i/2, i, got, want)
		}
	}
	if got, most := x.Need("nobody"), uint64(2*mysql.TouchedGeneration+2); got > most {
		t.Errorf("nobody: got %d, want %d at most", got, most)
	}
}

// TestStoreWithReplica is the conformance suite, with all reads that may go to a replica going there.
func TestStoreWithReplica(t *testing.T) {
	p := newPair(t)
	dsns := map[string][2]string{} // by folder
	var reads int64
	storetest.Run(t, func(t *testing.T, dir string, r store.Retention) store.Store {
		if _, ok := dsns[dir]; !ok {
			a, b := p.database()
			dsns[dir] = [2]string{a, b}
		}
		s := open(t, mysql.Options{DSN: dsns[dir][0], Replicas: []string{dsns[dir][1]}, Retention: r})
		t.Cleanup(func() { reads += served(s) })
		return relaxedStore{s}
	})
	if reads == 0 {
		t.Error("no read came from a replica")
	}
	t.Logf("%d reads came from a replica", reads)
}

// relaxedStore lets lag what may lag.
type relaxedStore struct{ *mysql.Store }

func (s relaxedStore) History(ctx context.Context, user string, conv store.Conv, r store.Range) ([]*store.Message, error) {
	return s.Store.History(store.Relaxed(ctx, user), user, conv, r)
}

func (s relaxedStore) ListConversations(ctx context.Context, user, cursor string, limit int) ([]store.Conversation, string, error) {
	return s.Store.ListConversations(store.Relaxed(ctx, user), user, cursor, limit)
}

func (s relaxedStore) Members(ctx context.Context, group, after string, limit int) ([]store.Member, string, error) {
	return s.Store.Members(store.Relaxed(ctx, "somebody"), group, after, limit)
}

func (s relaxedStore) Memberships(ctx context.Context, user, after string, limit int) ([]store.Membership, string, error) {
	return s.Store.Memberships(store.Relaxed(ctx, user), user, after, limit)
}

// lockedBuffer is a log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
