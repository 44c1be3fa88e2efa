package mysql_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/mysql"
	"github.com/mqim/mqim/tests/mariadb"
)

// refusal is what Open says; "" when it opens.
func refusal(t *testing.T, o mysql.Options) string {
	t.Helper()
	s, err := mysql.Open(ctx, o)
	if err != nil {
		if strings.Contains(err.Error(), password) {
			t.Errorf("the error has the password in it: %v", err)
		}
		return err.Error()
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	return ""
}

// TestUnsafe: a server that may forget what it has committed is refused, unless it is allowed to.
func TestUnsafe(t *testing.T) {
	s := mariadb.Start(t, "--log-bin", "--server-id=1", "--binlog-format=MIXED", "--sync-binlog=1")
	prepare(s)
	dsn := database(t, s)
	for _, x := range []struct{ set, back, want string }{
		{"sync_binlog = 1", "sync_binlog = 1", ""},
		{"sync_binlog = 0", "sync_binlog = 1", "sync_binlog is 0, want 1"},
		{"innodb_flush_log_at_trx_commit = 2", "innodb_flush_log_at_trx_commit = 1", "innodb_flush_log_at_trx_commit is 2, want 1"},
		{"innodb_flush_log_at_trx_commit = 0", "innodb_flush_log_at_trx_commit = 1", "innodb_flush_log_at_trx_commit is 0, want 1"},
	} {
		s.Exec("SET GLOBAL " + x.set)
		if got := refusal(t, mysql.Options{DSN: dsn}); (got == "") != (x.want == "") || !strings.Contains(got, x.want) {
			t.Errorf("%s: got %q, want %q", x.set, got, x.want)
		}
		if got := refusal(t, mysql.Options{DSN: dsn, AllowUnsafe: true, Logger: quiet}); got != "" {
			t.Errorf("%s, allowed: got %q", x.set, got)
		}
		s.Exec("SET GLOBAL " + x.back)
	}
	s.Exec("SET GLOBAL binlog_format = 'STATEMENT'")
	if got := refusal(t, mysql.Options{DSN: dsn, AllowUnsafe: true, Logger: quiet}); !strings.Contains(got, "binlog_format") {
		t.Errorf("got %q, want a word about binlog_format", got)
	}
	s.Exec("SET GLOBAL binlog_format = 'ROW'", "SET GLOBAL max_allowed_packet = 1048576")
	if got := refusal(t, mysql.Options{DSN: dsn}); !strings.Contains(got, "max_allowed_packet of the server is 1048576, want at least") {
		t.Errorf("got %q, want a word about max_allowed_packet", got)
	}
}

func TestOptionsChecked(t *testing.T) {
	for _, dsn := range []string{"", password, "u:" + password + "@tcp(127.0.0.1:1)", "u:" + password + "@tcp(127.0.0.1:1)/", "u:" + password + "@tcp(127.0.0.1:1)/db"} {
		if got := refusal(t, mysql.Options{DSN: dsn}); got == "" {
			t.Errorf("%s: no error", dsn)
		}
	}
}

// TestOpenTogether: several processes make the schema of one database at once, and agree on its epoch.
func TestOpenTogether(t *testing.T) {
	dsn := database(t, server)
	var wg sync.WaitGroup
	var mu sync.Mutex
	epochs := map[string]int{}
	for range 5 {
		wg.Go(func() {
			s, err := mysql.Open(ctx, mysql.Options{DSN: dsn})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			mu.Lock()
			defer mu.Unlock()
			epochs[s.Epoch()]++
		})
	}
	wg.Wait()
	if len(epochs) != 1 {
		t.Errorf("epochs %v, want one", epochs)
	}
}

// TestBytes: names that a collation or a quote would confuse are apart from each other.
func TestBytes(t *testing.T) {
	s := open(t, mysql.Options{DSN: database(t, server)})
	names := []string{"a", "A", "á", "a ", "a\xff", "a\xfe", `a'`, `a"`, `a\`, `a\'`, "a\x1a", "a\n", "a;", "a?", "a%", "a_", "--a", "a\u0301"}
	var b store.Batch
	for i, n := range names {
		b.Users = append(b.Users, store.User{Name: n, Cursor: uint64(i + 1)})
		b.Sends = append(b.Sends, &store.Send{
			Message: store.Message{Conv: store.Direct(n, "z"), From: n, Cid: n, Type: n, TS: 1, Body: []byte(n + "\x00" + n)}, Hash: uint64(i),
			Inboxes: []store.InboxRef{{User: n}},
		})
	}
	if err := s.Commit(ctx, &b); err != nil {
		t.Fatal(err)
	}
	for i, n := range names {
		u, err := s.User(ctx, n)
		if err != nil || u.Cursor != uint64(i+1) {
			t.Errorf("user %q: got %d, %v, want %d", n, u.Cursor, err, i+1)
		}
		list, err := s.ReadInbox(ctx, n, 0, 10, nil)
		if err != nil || len(list) != 1 || list[0].From != n || list[0].Type != n || string(list[0].Body) != n+"\x00"+n {
			t.Errorf("inbox of %q: got %v, %v", n, list, err)
		}
		m, hash, ok, err := s.Sent(ctx, n, n)
		if err != nil || ok != false && (m.Cseq != 1 || hash != uint64(i)) {
			t.Errorf("cid %q: got %v, %v", n, m, err)
		}
		again := *b.Sends[i]
		again.Message.Cseq = 0
		if err := s.Commit(ctx, &store.Batch{Sends: []*store.Send{&again}}); err != nil || !again.Dup {
			t.Errorf("cid %q again: got dup %t, %v", n, again.Dup, err)
		}
	}
	long := &store.Batch{Users: []store.User{{Name: strings.Repeat("x", 129)}}}
	if err := s.Commit(ctx, long); err == nil || !strings.Contains(fmt.Sprint(err), "is not a name") {
		t.Errorf("a name that is too long: got %v", err)
	}
}
