package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/bus/bustest"
	"github.com/mqim/mqim/tests/redis"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start joins a node, which leaves with the test.
func start(t testing.TB, opts Options, set func(bus.Bus)) *Bus {
	t.Helper()
	b := open(t, opts, set)
	if err := b.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	return b
}

func open(t testing.TB, opts Options, set func(bus.Bus)) *Bus {
	t.Helper()
	if os.Getenv("MQIM_TEST_LOG") == "" {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	b, err := Open(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if set != nil {
		set(b)
	}
	return b
}

// promises runs what every bus promises, each test apart from the others.
func promises(t *testing.T, opts Options) {
	bustest.Promises(t, func(*testing.T) bustest.Maker {
		opts := opts
		opts.Prefix = fmt.Sprintf("t%x", rand.Uint64())
		return func(t *testing.T, name string, set func(bus.Bus)) bus.Bus {
			opts.Name = name
			return start(t, opts, set)
		}
	})
}

func TestPromises(t *testing.T) {
	promises(t, Options{Addresses: []string{redis.Start(t).Addr()}})
}

func TestPromisesOfCluster(t *testing.T) {
	promises(t, Options{Addresses: redis.StartCluster(t).Addrs()})
}

func TestPromisesWithSentinel(t *testing.T) {
	w := redis.StartWatched(t, 1)
	promises(t, Options{Addresses: w.Addrs(), Master: w.Name})
}
