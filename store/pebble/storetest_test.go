package pebble_test

import (
	"io"
	"log/slog"
	"testing"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/pebble"
	"github.com/mqim/mqim/store/storetest"
)

func open(t testing.TB, o pebble.Options) *pebble.Store {
	t.Helper()
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	s, err := pebble.Open(o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T, dir string, r store.Retention) store.Store {
		return open(t, pebble.Options{Path: dir, Retention: r, MinFree: 1})
	})
}

func TestStoreInterval(t *testing.T) {
	storetest.Run(t, func(t *testing.T, dir string, r store.Retention) store.Store {
		return open(t, pebble.Options{Path: dir, Retention: r, MinFree: 1, Sync: pebble.SyncInterval})
	})
}
