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
	bustest.Promises(t, func(t *testing.T) (bustest.Maker, bustest.Cut) {
		opts := opts
		opts.Prefix = fmt.Sprintf("t%x", rand.Uint64())
		taps := map[bus.Bus]*tap{}
		join := func(t *testing.T, name string, set func(bus.Bus)) bus.Bus {
			opts := opts
			opts.Name = name
			if len(opts.Addresses) > 1 || opts.Master != "" {
				return start(t, opts, set) // Redis tells nodes to go elsewhere than to a tap
			}
			p := startTap(t, opts.Addresses[0])
			opts.Addresses = []string{p.Addr().String()}
			b := start(t, opts, set)
			taps[b] = p
			return b
		}
		cut := func(b bus.Bus, cut bool) { taps[b].setCut(cut) }
		if len(opts.Addresses) > 1 || opts.Master != "" {
			cut = nil
		}
		return join, cut
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
