package dump_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/dump"
	"github.com/mqim/mqim/store/mysql"
	"github.com/mqim/mqim/store/pebble"
	"github.com/mqim/mqim/tests/mariadb"
)

var (
	ctx    = context.Background()
	quiet  = slog.New(slog.DiscardHandler)
	server *mariadb.Server // nil where there is none
)

func TestMain(m *testing.M) {
	os.Exit(mariadb.Main(m, func(s *mariadb.Server) {
		server = s
		s.Exec("CREATE USER store@'%' IDENTIFIED BY 'store'", "GRANT ALL ON *.* TO store@'%'")
	}, "--innodb-buffer-pool-size=128M"))
}

var databases atomic.Int64

// database makes a database and returns its name and how to connect to it.
func database(t testing.TB) (name, dsn string) {
	t.Helper()
	if server == nil {
		t.Skip("mariadbd is not installed: make test-deps")
	}
	name = fmt.Sprint("copy", databases.Add(1))
	server.Exec("CREATE DATABASE " + name)
	t.Cleanup(func() { _, _ = server.DB.Exec("DROP DATABASE " + name) })
	return name, fmt.Sprintf("store:store@tcp(%s)/%s", server.Addr(), name)
}

func openPebble(t testing.TB, o pebble.Options) *pebble.Store {
	t.Helper()
	o.MinFree, o.Logger = 1, quiet
	s, err := pebble.Open(o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func openMySQL(t testing.TB, o mysql.Options) *mysql.Store {
	t.Helper()
	o.Logger = quiet
	s, err := mysql.Open(ctx, o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func openCopy(t testing.TB, dsn string, from dump.Source) *mysql.Copy {
	t.Helper()
	c, err := mysql.OpenCopy(ctx, mysql.Options{DSN: dsn, Logger: quiet}, from.State())
	if err != nil {
		t.Fatalf("open for a copy: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// told collects what the operator is told.
type told struct {
	mu    sync.Mutex
	lines []string
}

func (x *told) options() dump.Options {
	return dump.Options{Tell: func(format string, args ...any) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.lines = append(x.lines, fmt.Sprintf(format, args...))
	}}
}

func closeNow(t testing.TB, s store.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}
