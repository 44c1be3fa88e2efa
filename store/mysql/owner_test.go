package mysql_test

import (
	"database/sql/driver"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/mysql"
)

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(5 * time.Millisecond) // between looks, not instead of them
	}
}

func note(s *mysql.Store) error {
	return s.Commit(ctx, &store.Batch{Users: []store.User{{Name: "u", Cursor: 1}}})
}

// TestExclusive: a second process is refused, and told who has the database; when the first has gone it gets it.
func TestExclusive(t *testing.T) {
	dsn := database(t, server)
	first := open(t, mysql.Options{DSN: dsn, Exclusive: true, Name: "node one"})
	_, err := mysql.Open(ctx, mysql.Options{DSN: dsn, Exclusive: true, Name: "node two", Logger: quiet})
	if !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), "node one") || strings.Contains(err.Error(), password) {
		t.Fatalf("second: got %v, want ErrLocked and the name of the first", err)
	}
	if err := note(first); err != nil {
		t.Errorf("the first, afterwards: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	// One that was killed a moment ago: its sessions would count as connected for as long as it is not missed.
	nodes := dsn[strings.LastIndex(dsn, "/")+1:] + ".mqim_nodes"
	if _, err := server.DB.Exec("INSERT INTO " + nodes + " SELECT 'killed', UNIX_TIMESTAMP() * 1000"); err != nil {
		t.Fatal(err)
	}
	if err := note(open(t, mysql.Options{DSN: dsn, Exclusive: true, Name: "node two"})); err != nil {
		t.Errorf("the second, alone: %v", err)
	}
	var n int
	if err := server.DB.QueryRow("SELECT COUNT(*) FROM " + nodes).Scan(&n); err != nil || n != 1 {
		t.Errorf("processes that live: got %d, %v, want the second alone", n, err)
	}
}

// TestLockLost: a process that loses the lock commits nothing until it has it again; one that another has taken over from
// commits nothing any more, though it has not noticed yet, and says so once.
func TestLockLost(t *testing.T) {
	dsn := database(t, server)
	taken := make(chan error, 2)
	s := open(t, mysql.Options{DSN: dsn, Exclusive: true, Name: "node one", Taken: func(err error) { taken <- err }})
	if err := note(s); err != nil {
		t.Fatal(err)
	}
	name := s.LockName()
	holder := func() (id int64) {
		if err := server.DB.QueryRow("SELECT COALESCE(IS_USED_LOCK(?), 0)", name).Scan(&id); err != nil {
			t.Fatal(err)
		}
		return id
	}

	// Another connection waits for the lock, so that it gets it when the store's is cut.
	other, err := server.DB.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	var id int64
	if err := other.QueryRowContext(ctx, "SELECT CONNECTION_ID()").Scan(&id); err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		_, err := other.ExecContext(ctx, "DO GET_LOCK(?, 60)", name)
		got <- err
	}()
	eventually(t, "the other to wait", func() bool {
		var n int
		err := server.DB.QueryRow("SELECT COUNT(*) FROM information_schema.processlist WHERE id = ? AND info LIKE 'DO GET_LOCK%'", id).Scan(&n)
		return err == nil && n == 1
	})
	if _, err := server.DB.Exec("KILL ?", holder()); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil || holder() != id {
		t.Fatalf("the other has the lock: %t, %v", holder() == id, err)
	}
	eventually(t, "the loss to be noticed", func() bool { return s.Healthy() != nil })
	if err := note(s); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("commit without the lock: got %v, want ErrUnavailable", err)
	}
	if !s.Metrics().Away {
		t.Error("metrics: not away")
	}
	if _, err := other.ExecContext(ctx, "DO RELEASE_LOCK(?)", name); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the lock to be held again", func() bool { return s.Healthy() == nil })
	if err := note(s); err != nil {
		t.Errorf("commit with the lock: %v", err)
	}

	// Another process writes itself down as the owner; this one does not know yet.
	if _, err := server.DB.Exec("UPDATE " + dsn[strings.LastIndex(dsn, "/")+1:] + ".mqim_meta SET value = 'ff node two' WHERE name = 'owner'"); err != nil {
		t.Fatal(err)
	}
	if err := note(s); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("commit of one that was taken over from: got %v, want ErrUnavailable", err)
	}
	if _, err := server.DB.Exec("KILL ?", holder()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-taken:
	case <-time.After(patience):
		t.Fatal("nobody was told of the takeover")
	}
	if s.Healthy() == nil {
		t.Error("healthy after the takeover")
	}
}

// TestMigrate says what it has applied, and nothing the second time.
func TestMigrate(t *testing.T) {
	dsn := database(t, server)
	list, err := mysql.Migrate(ctx, mysql.Options{DSN: dsn})
	if err != nil || len(list) < 2 || list[0] != "00001_log" {
		t.Errorf("first: got %v, %v", list, err)
	}
	list, err = mysql.Migrate(ctx, mysql.Options{DSN: dsn})
	if err != nil || len(list) != 0 {
		t.Errorf("second: got %v, %v", list, err)
	}
}

// TestMessageBytes: a server that could not take the largest message is refused at start, not at the message.
func TestMessageBytes(t *testing.T) {
	dsn := database(t, server)
	if got := refusal(t, mysql.Options{DSN: dsn, MessageBytes: 64 << 20}); !strings.Contains(got, "max_allowed_packet") {
		t.Errorf("got %q, want a word about max_allowed_packet", got)
	}
	if got := refusal(t, mysql.Options{DSN: dsn, MessageBytes: 512 << 10}); got != "" {
		t.Errorf("got %q, want none", got)
	}
}

// TestDoubt: while the database is away the lock on it counts as lost, until a look that has begun since has found it held.
func TestDoubt(t *testing.T) {
	s := mysql.NewExclusive()
	before := s.Looks()
	s.Heard(driver.ErrBadConn)
	s.Heard(nil) // the database answers again
	if s.Healthy() == nil {
		t.Error("ready before anybody has looked at the lock")
	}
	before(nil)
	if s.Healthy() == nil {
		t.Error("ready by what was found before the database was away")
	}
	s.Looks()(nil)
	if err := s.Healthy(); err != nil {
		t.Errorf("with the lock held: %v", err)
	}
}
