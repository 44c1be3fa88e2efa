package mysql_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/mysql"
)

// numbered makes the ids of a number by a clock that stands still.
type numbered struct{ number, clock int64 }

func (n numbered) Next(after int64) int64 {
	id := n.clock<<22 | n.number<<12
	if id <= after {
		id = after>>22<<22 | n.number<<12
	}
	for id <= after {
		id += 1 << 22
	}
	return id
}

// shared are the options of a node whose clock shows something, and which shows that it lives when it is opened, but not
// again.
func shared(dsn, name string, clock int64) mysql.Options {
	o := mysql.Options{
		DSN: dsn, Shared: true, Name: name, Timeout: patience,
		NewIDs: func(number int) (store.IDs, error) { return numbered{int64(number), clock}, nil },
	}
	o.SetBeats(time.Hour, time.Hour)
	return o
}

// silence has a node not been heard of for long.
func silence(t *testing.T, dsn string, s *mysql.Store) {
	t.Helper()
	if _, err := server.DB.Exec("UPDATE "+name(dsn)+".mqim_nodes SET seen = 1 WHERE id = ?", s.Node()); err != nil {
		t.Fatal(err)
	}
}

func number(t *testing.T, s *mysql.Store, want int) {
	t.Helper()
	if n, held := s.Lease(); n != want || !held {
		t.Errorf("got number %d, held %t, want %d", n, held, want)
	}
}

// said sends a message in a conversation of its own and returns its id.
func said(s *mysql.Store, conv string) (int64, error) {
	m := &store.Send{Message: store.Message{Conv: store.Direct("ann", conv), From: "ann", Type: "text", TS: 1}}
	err := s.Commit(ctx, &store.Batch{Sends: []*store.Send{m}})
	return m.ID, err
}

// TestNumbers: processes have different numbers; that of one that has ended is given to another.
func TestNumbers(t *testing.T) {
	dsn := database(t, server)
	var list []*mysql.Store
	for i := range 3 {
		s := open(t, shared(dsn, fmt.Sprint("node", i), 1000))
		number(t, s, i)
		list = append(list, s)
	}
	if err := list[1].Close(); err != nil {
		t.Fatal(err)
	}
	number(t, open(t, shared(dsn, "again", 1000)), 1)
	if n, held := open(t, mysql.Options{DSN: dsn}).Lease(); n != -1 || held {
		t.Errorf("a store that is not shared: got number %d, held %t", n, held)
	}
	if got := refusal(t, mysql.Options{DSN: dsn, Shared: true}); got == "" {
		t.Error("without ids: no error")
	}
}

// TestNumberTaken: a process that was silent loses its number to another, whose ids begin after its own though its clock is
// behind. It commits nothing, says so, takes another number and goes on.
func TestNumberTaken(t *testing.T) {
	dsn := database(t, server)
	a := open(t, shared(dsn, "a", 5000))
	number(t, a, 0)
	ids := map[int64]bool{}
	greatest := int64(0)
	say := func(s *mysql.Store, conv string) {
		t.Helper()
		id, err := said(s, conv)
		if err != nil || ids[id] {
			t.Fatalf("got id %d, %v, and %v before", id, err, ids)
		}
		ids[id], greatest = true, max(greatest, id)
	}
	say(a, "c1")
	say(a, "c2")
	silence(t, dsn, a)
	b := open(t, shared(dsn, "b", 4000))
	number(t, b, 0)
	before := greatest
	say(b, "c3")
	if greatest == before {
		t.Error("the ids of the new process do not begin after those of the former")
	}
	if _, err := said(a, "c4"); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("commit with a number that was taken: got %v, want ErrUnavailable", err)
	}
	if err := a.Commit(ctx, &store.Batch{Lazy: true, Users: []store.User{{Name: "u", Cursor: 1}}}); !errors.Is(err, store.ErrUnavailable) && err != nil {
		t.Errorf("commit without messages: got %v", err)
	}
	eventually(t, "another number", func() bool { return a.Healthy() == nil })
	number(t, a, 1)
	for i := range 5 {
		say(a, fmt.Sprint("a", i))
		say(b, fmt.Sprint("b", i))
	}
	if got, err := b.LastID(ctx); err != nil || got != greatest {
		t.Errorf("last id: got %d, %v, want %d", got, err, greatest)
	}
}

// TestNumberLost: a process that has lost its number and finds no other says so for as long as that lasts.
func TestNumberLost(t *testing.T) {
	dsn := database(t, server)
	a := open(t, shared(dsn, "a", 5000))
	if _, err := server.DB.Exec("UPDATE " + name(dsn) + ".mqim_numbers SET node = 'somebody'"); err != nil {
		t.Fatal(err)
	}
	lock, err := server.DB.Conn(ctx) // nobody can lease one meanwhile
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := lock.ExecContext(ctx, "DO GET_LOCK(?, 60)", a.LockName()); err != nil {
		t.Fatal(err)
	}
	if _, err := said(a, "c"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	if err := a.Healthy(); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("healthy: got %v, want ErrUnavailable", err)
	}
	if n, held := a.Lease(); n != 0 || held {
		t.Errorf("got number %d, held %t, want one that is not held", n, held)
	}
	if _, err := lock.ExecContext(ctx, "DO RELEASE_LOCK(?)", a.LockName()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a number", func() bool { return a.Healthy() == nil })
	if _, err := said(a, "c"); err != nil {
		t.Errorf("with another number: %v", err)
	}
}

// TestNumberWaits: a number changes hands when the transactions that work with it have ended.
func TestNumberWaits(t *testing.T) {
	dsn := database(t, server)
	a := open(t, shared(dsn, "a", 5000))
	if _, err := said(a, "c"); err != nil {
		t.Fatal(err)
	}
	slow, err := server.DB.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slow.Rollback() }()
	if _, err := slow.Exec("SELECT * FROM " + name(dsn) + ".mqim_convs FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	type result struct {
		id  int64
		err error
	}
	late := make(chan result, 1)
	go func() {
		id, err := said(a, "c")
		late <- result{id, err}
	}()
	eventually(t, "the batch to wait", func() bool { return waiting(t) == 1 })
	silence(t, dsn, a)
	opened := make(chan *mysql.Store, 1)
	go func() {
		o := shared(dsn, "b", 5000)
		o.Logger = quiet
		b, err := mysql.Open(ctx, o)
		if err != nil {
			t.Error(err)
		}
		opened <- b
	}()
	eventually(t, "the other to wait", func() bool { return waiting(t) == 2 || len(opened) > 0 })
	if len(opened) > 0 {
		t.Error("the number was taken while a transaction works with it")
	}
	if err := slow.Rollback(); err != nil {
		t.Fatal(err)
	}
	x, b := <-late, <-opened
	if b == nil {
		t.FailNow()
	}
	defer b.Close()
	number(t, b, 0)
	id, err := said(b, "d")
	if err != nil || x.err != nil || id <= x.id {
		t.Errorf("got id %d, %v after %d, %v", id, err, x.id, x.err)
	}
}

// TestOwnClock: a process that could not show that it lives for too long accepts nothing, though nobody has taken its
// number yet.
func TestOwnClock(t *testing.T) {
	o := shared(database(t, server), "a", 1)
	o.SetBeats(time.Hour, 200*time.Millisecond)
	s := open(t, o)
	eventually(t, "its time to be over", func() bool { return s.Healthy() != nil })
	if err := note(s); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
}

// TestSharedAndExclusive: one that wants the database to itself is refused where nodes of a cluster live, and the reverse;
// both are told by whom. What comes back after its time commits nothing.
func TestSharedAndExclusive(t *testing.T) {
	dsn := database(t, server)
	refused := func(o mysql.Options, by string) {
		t.Helper()
		o.Logger = quiet
		s, err := mysql.Open(ctx, o)
		if err == nil {
			s.Close()
		}
		if !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), by) || strings.Contains(err.Error(), password) {
			t.Errorf("%s: got %v, want ErrLocked, and %q", o.Name, err, by)
		}
	}
	alone := mysql.Options{DSN: dsn, Exclusive: true, Name: "alone", Timeout: patience}
	first := open(t, alone)
	refused(shared(dsn, "node one", 1), "alone, which wants it for itself")
	if n := rows(t, dsn, "nodes"); n != 1 {
		t.Errorf("got %d processes that live, want the first", n)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	one := open(t, shared(dsn, "node one", 1))
	refused(alone, "node one")
	refused(alone, "set cluster.redis")
	if _, err := said(one, "c"); err != nil {
		t.Errorf("node one, afterwards: %v", err)
	}

	silence(t, dsn, one)
	second := open(t, alone)
	if _, err := said(one, "c"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("node one, when another has the database to itself: got %v, want ErrUnavailable", err)
	}
	if err := note(second); err != nil {
		t.Error(err)
	}
	if one.Healthy() == nil {
		t.Error("node one is healthy")
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "node one to have a number again", func() bool { return one.Healthy() == nil })
	if err := note(one); err != nil {
		t.Error(err)
	}
}

// TestExclusiveLost: an Exclusive process that loses its lock to a node of a cluster commits nothing any more.
func TestExclusiveLost(t *testing.T) {
	dsn := database(t, server)
	taken := make(chan error, 1)
	s := open(t, mysql.Options{DSN: dsn, Exclusive: true, Name: "alone", Taken: func(err error) { taken <- err }})
	opened := make(chan error, 1)
	go func() {
		o := shared(dsn, "node one", 1)
		o.Logger = quiet
		one, err := mysql.Open(ctx, o)
		if err == nil {
			err = one.Close()
		}
		opened <- err
	}()
	eventually(t, "the node to wait", func() bool {
		var n int
		err := server.DB.QueryRow("SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'SELECT GET_LOCK(%owner%'").Scan(&n)
		return err == nil && n == 1
	})
	var id int64
	if err := server.DB.QueryRow("SELECT IS_USED_LOCK(?)", s.LockName()).Scan(&id); err != nil {
		t.Fatal(err)
	}
	if _, err := server.DB.Exec("KILL ?", id); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Fatalf("node one: %v", err)
	}
	if err := note(s); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	select {
	case <-taken:
	case <-time.After(patience):
		t.Fatal("nobody was told")
	}
}
