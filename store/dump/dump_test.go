package dump_test

import (
	"strings"
	"testing"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/dump"
	"github.com/mqim/mqim/store/mysql"
	"github.com/mqim/mqim/store/pebble"
	"github.com/mqim/mqim/store/storetest"
)

// moved copies the embedded store in dir into a new database and returns how to connect to it.
func moved(t *testing.T, dir string) (dsn string) {
	t.Helper()
	_, dsn = database(t)
	from := openPebble(t, pebble.Options{Path: dir, ReadOnly: true})
	to := openCopy(t, dsn, from)
	var x told
	if err := dump.Copy(ctx, from, to, x.options()); err != nil {
		t.Fatalf("copy: %v\n%q", err, x.lines)
	}
	closeNow(t, from)
	closeNow(t, to)
	return dsn
}

// TestConformance: what was begun on an embedded store goes on in its copy. A store that is opened again is a copy of what it
// was before, so that the suite, with its random model, compares everything that can be read, and goes on writing.
func TestConformance(t *testing.T) {
	if server == nil {
		t.Skip("mariadbd is not installed: make test-deps")
	}
	dsns := map[string]string{} // by folder; "": it is an embedded store so far
	storetest.Run(t, func(t *testing.T, dir string, r store.Retention) store.Store {
		if strings.Contains(t.Name(), "Claims") || strings.Contains(t.Name(), "Fences") {
			t.Skip("claims are not copied: no connection that has one goes on")
		}
		dsn, known := dsns[dir]
		if !known {
			dsns[dir] = ""
			return openPebble(t, pebble.Options{Path: dir, Retention: r})
		}
		if dsn == "" {
			dsn = moved(t, dir)
			dsns[dir] = dsn
		}
		return openMySQL(t, mysql.Options{DSN: dsn, Retention: r})
	})
}
