package mysql_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"testing"

	"github.com/mqim/mqim/store/mysql"
	"github.com/mqim/mqim/tests/mariadb"
)

var ctx = context.Background()

// server is what all tests share that do not stop it; nil where there is none.
var server *mariadb.Server

var quiet = slog.New(slog.DiscardHandler)

const password = "hush-hush-store"

func TestMain(m *testing.M) {
	os.Exit(mariadb.Main(m, func(s *mariadb.Server) {
		server = s
		prepare(s)
	}, "--innodb-buffer-pool-size=128M"))
}

// prepare makes the user of the stores.
func prepare(s *mariadb.Server) {
	s.Exec("CREATE USER store@'%' IDENTIFIED BY '"+password+"'", "GRANT ALL ON *.* TO store@'%'")
}

var databases atomic.Int64

// database makes a database and returns how to connect to it.
func database(t testing.TB, s *mariadb.Server) string {
	t.Helper()
	if s == nil {
		t.Skip("mariadbd is not installed: make test-deps")
	}
	name := fmt.Sprint("store", databases.Add(1))
	s.Exec("CREATE DATABASE " + name)
	t.Cleanup(func() { _, _ = s.DB.Exec("DROP DATABASE " + name) })
	return dsn(s.Addr(), name)
}

func dsn(addr, name string) string { return fmt.Sprintf("store:%s@tcp(%s)/%s", password, addr, name) }

func open(t testing.TB, o mysql.Options) *mysql.Store {
	t.Helper()
	if o.Logger == nil {
		o.Logger = quiet
	}
	s, err := mysql.Open(ctx, o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}
