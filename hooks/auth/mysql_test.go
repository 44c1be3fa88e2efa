package auth_test

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/mqim/mqim/hooks/auth"
	"github.com/mqim/mqim/tests/mariadb"
	"github.com/mqim/mqim/users"
)

const query = "SELECT password_hash, name FROM users WHERE name = ?"

func newMySQL(t *testing.T, o auth.MySQLOptions) *auth.MySQL {
	t.Helper()
	m, err := auth.NewMySQL(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// database is a server with a table of users.
func database(t *testing.T) *mariadb.Server {
	t.Helper()
	s := mariadb.Start(t)
	s.Exec("CREATE TABLE mqim.users (name VARCHAR(64), password_hash VARCHAR(255)) COLLATE utf8mb4_general_ci")
	return s
}

func cheap(t *testing.T, password string) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(hash)
}

func insert(s *mariadb.Server, name, hash string) {
	s.Exec(fmt.Sprintf("INSERT INTO mqim.users VALUES ('%s', '%s')", name, hash))
}

// selects is how many SELECTs the server has answered, but for those that ask this.
func selects(t *testing.T, s *mariadb.Server) (n int) {
	t.Helper()
	var name string
	if err := s.DB.QueryRow("SHOW GLOBAL STATUS LIKE 'Com_select'").Scan(&name, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestMySQL(t *testing.T) {
	s := database(t)
	argon, err := users.HashPassword([]byte("a2"))
	if err != nil {
		t.Fatal(err)
	}
	insert(s, "alice", cheap(t, "a1"))
	insert(s, "argon", argon)
	insert(s, "twice", cheap(t, "x"))
	insert(s, "twice", cheap(t, "x"))
	insert(s, "plain", "hush-a-plain-password")
	s.Exec("INSERT INTO mqim.users VALUES ('locked', NULL)")

	t.Run("answers", func(t *testing.T) {
		m := newMySQL(t, auth.MySQLOptions{DSN: s.DSN(), Query: query, CacheTTL: time.Hour, NegativeTTL: time.Hour})
		for range 2 { // the second time from memory
			for _, tt := range []struct{ user, password, want string }{
				{"alice", "a1", "alice"}, {"argon", "a2", "argon"},
				{"alice", "a2", "refused: wrong password"}, {"argon", "a1", "refused: wrong password"},
				{"ALICE", "a1", "refused: unknown user"}, // the same to the database, another user to everybody else
				{"bob", "a1", "refused: unknown user"}, {"locked", "", "refused: user name or password missing"}, {"locked", "x", "refused: unknown user"},
				{"x' OR name='alice", "a1", "refused: not a valid user name"}, {"", "a1", "refused: user name or password missing"},
				{"twice", "x", "unavailable: auth.mysql: the query returns more than one row"},
				{"plain", "hush-a-plain-password", "unavailable: auth.mysql: what the query returns for a user is no hash"},
			} {
				if got := outcome(m, credentials(tt.user, tt.password)); !strings.HasPrefix(got, tt.want) || strings.Contains(got, "hush") {
					t.Errorf("%s with %s: got %q, want %q", tt.user, tt.password, got, tt.want)
				}
			}
		}
	})
	t.Run("queries", func(t *testing.T) {
		for query, want := range map[string]string{
			"SELECT password_hash FROM users WHERE name = ?":          "alice",
			"SELECT password_hash, name, 1 FROM users WHERE name = ?": "unavailable: auth.mysql: the query returns 3 columns",
			"SELECT nothing FROM users WHERE name = ?":                "unavailable: auth.mysql: Error 1054",
			"UPDATE users SET name = ?":                               "unavailable: auth.mysql: Error 1142",
		} {
			m := newMySQL(t, auth.MySQLOptions{DSN: s.DSN(), Query: query})
			if got := outcome(m, credentials("alice", "a1")); !strings.HasPrefix(got, want) {
				t.Errorf("%s: got %q, want %q", query, got, want)
			}
		}
		m := newMySQL(t, auth.MySQLOptions{DSN: strings.Replace(s.DSN(), mariadb.Password, "hush-wrong", 1), Query: query})
		if got := outcome(m, credentials("alice", "a1")); !strings.HasPrefix(got, "unavailable: ") || strings.Contains(got, "hush") {
			t.Errorf("a wrong password for the database: got %q, want unavailable, without the password", got)
		}
	})
	t.Run("memory", func(t *testing.T) {
		m := newMySQL(t, auth.MySQLOptions{DSN: s.DSN(), Query: query, CacheTTL: time.Hour, NegativeTTL: time.Hour, CacheSize: 20})
		var wg sync.WaitGroup
		before := selects(t, s)
		for range 30 {
			wg.Go(func() {
				for user, want := range map[string]string{"alice": "alice", "nobody": "refused: unknown user"} {
					if got := outcome(m, credentials(user, "a1")); got != want {
						t.Errorf("%s: got %q, want %q", user, got, want)
					}
				}
			})
		}
		wg.Wait()
		if got := selects(t, s) - before; got != 2 {
			t.Errorf("30 logins of each of two users: got %d queries, want one a user", got)
		}
		for i := range 200 {
			outcome(m, credentials(fmt.Sprint("made-up-", i), "x"))
		}
		before = selects(t, s)
		if got := outcome(m, credentials("alice", "a1")); got != "alice" || selects(t, s) != before {
			t.Errorf("after a flood of unknown users: got %q and a query, want alice from memory", got)
		}
		if known, unknown := m.Cached(); known != 1 || unknown > 20 {
			t.Errorf("got %d known and %d unknown users in caches of 20, want 1 and at most 20", known, unknown)
		}
		// A change counts when the time is up, or with a reload.
		s.Exec("UPDATE mqim.users SET password_hash = '" + cheap(t, "new") + "' WHERE name = 'alice'")
		outcome(m, credentials("nobody", "n")) // the flood may have pushed it out
		insert(s, "nobody", cheap(t, "n"))
		if got := outcome(m, credentials("nobody", "n")); got != "refused: unknown user" {
			t.Errorf("a new user within the time: got %q, want unknown", got)
		}
		if err := m.Reload(); err != nil {
			t.Error(err)
		}
		for user, password := range map[string]string{"alice": "new", "nobody": "n"} {
			if got := outcome(m, credentials(user, password)); got != user {
				t.Errorf("%s after a reload: got %q, want a login", user, got)
			}
		}
		if got := outcome(m, credentials("alice", "a1")); got != "refused: wrong password" {
			t.Errorf("the old password after a reload: got %q, want wrong", got)
		}
	})
}

// A database that is gone, or hangs: users whose hash is remembered get in, the others hear that nobody can tell, in
// time; when it is back, so is everything.
func TestMySQLDown(t *testing.T) {
	s := database(t)
	insert(s, "alice", cheap(t, "a"))
	insert(s, "bob", cheap(t, "b"))
	log := &syncBuffer{}
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(log, nil)))
	t.Cleanup(func() { slog.SetDefault(before) })
	m := newMySQL(t, auth.MySQLOptions{DSN: s.DSN(), Query: query, Timeout: 2 * time.Second, Connections: 2, CacheTTL: time.Hour, NegativeTTL: time.Hour})
	up := func(what string) {
		t.Helper()
		if got := outcome(m, credentials("bob", "b")); got != "bob" {
			t.Errorf("%s: got %q, want bob", what, got)
		}
	}
	if got := outcome(m, credentials("alice", "a")); got != "alice" {
		t.Fatalf("got %q, want alice", got)
	}
	for _, fault := range []string{"gone", "hangs"} {
		if fault == "gone" {
			s.Stop()
		} else {
			s.Hang()
		}
		begin := time.Now()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				user := []string{"bob", "carol", "dave", "erin"}[i%4]
				if got := outcome(m, credentials(user, "b")); !strings.HasPrefix(got, "unavailable: auth.mysql: ") || strings.Contains(got, mariadb.Password) {
					t.Errorf("%s, %s: got %q, want unavailable", fault, user, got)
				}
			})
		}
		wg.Wait()
		if took := time.Since(begin); took > 20*time.Second { // two seconds, and a machine that does other things too
			t.Errorf("%s: took %s, want the timeout", fault, took)
		}
		if got := outcome(m, credentials("alice", "a")); got != "alice" {
			t.Errorf("%s, a remembered user: got %q, want alice", fault, got)
		}
		if fault == "gone" {
			s.Run()
		} else {
			s.Resume()
		}
		up("after it " + fault)
		if err := m.Reload(); err != nil {
			t.Error(err)
		}
		if got := outcome(m, credentials("alice", "a")); got != "alice" {
			t.Fatalf("after it %s: got %q, want alice", fault, got)
		}
	}
	if got := log.String(); got != "" {
		t.Errorf("the driver logs: %s", got)
	}
}

func TestMySQLOptionsChecked(t *testing.T) {
	for _, dsn := range []string{"", "hush", "u:hush@tcp(h:1)", "u:hush@tcp(h:1)/", "u:hush@tcp(h:1)/db?tls=hush"} {
		if _, err := auth.NewMySQL(auth.MySQLOptions{DSN: dsn, Query: query}); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: got %v, want an error that does not quote it", dsn, err)
		}
	}
	for _, q := range []string{"", "SELECT 1", "SELECT ? FROM x WHERE y = ?"} {
		if _, err := auth.NewMySQL(auth.MySQLOptions{DSN: "u:p@tcp(h:1)/db", Query: q}); err == nil {
			t.Errorf("query %q: got no error", q)
		}
	}
}
