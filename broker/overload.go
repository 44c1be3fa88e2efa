package broker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime/debug"
	rtmetrics "runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/hooks/limit"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/transport"
)

// watchedStore tells how long commits take, and refuses messages while the server is overloaded. It is what one committer
// commits to: the engine, or ordinary topics.
type watchedStore struct {
	store.Store
	overload func() int

	mu      sync.Mutex
	started time.Time     // of the commit that runs; zero: none
	worst   time.Duration // since the last look
}

// Commit implements store.Log.
func (s *watchedStore) Commit(ctx context.Context, b *store.Batch) error {
	if len(b.Sends) > 0 && s.overload() >= limit.RefusePublishes {
		return fmt.Errorf("%w: the server is overloaded", store.ErrUnavailable)
	}
	start := time.Now()
	s.mu.Lock()
	s.started = start
	s.mu.Unlock()
	err := s.Store.Commit(ctx, b)
	s.mu.Lock()
	s.started = time.Time{}
	if !errors.Is(err, store.ErrUnavailable) {
		s.worst = max(s.worst, time.Since(start))
	}
	s.mu.Unlock()
	return err
}

// delay is the longest commit since it was last called, the one that runs included, in seconds.
func (s *watchedStore) delay() (float64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.worst
	s.worst = 0
	if !s.started.IsZero() {
		d = max(d, time.Since(s.started))
	}
	return d.Seconds(), true
}

func (s *Server) commitDelay() (float64, bool) {
	a, _ := s.commits.delay()
	b, _ := s.topicCommits.delay()
	return max(a, b), true
}

// watch starts watching for overload.
func (s *Server) watch() *limit.Overload {
	var signals []limit.Signal
	if d := s.cfg.Limits.CommitDelay.D().Seconds(); d > 0 {
		signals = append(signals, limit.Signal{Cause: "commit", Read: s.commitDelay, At: [3]float64{d, 4 * d, 8 * d}})
	}
	if max := s.memory(); max > 0 {
		signals = append(signals, limit.Signal{
			Cause: "memory", At: [3]float64{0.75, 0.85, 0.95},
			Read: func() (float64, bool) { return float64(memoryInUse()) / float64(max), true },
		})
	}
	path := s.cfg.Store.Pebble.Path
	if u, err := vfs.Default.GetDiskUsage(path); err == nil && s.cfg.Store.Driver == "pebble" {
		keep := uint64(s.cfg.Store.Pebble.MinFree)
		if keep == 0 {
			keep = min(64<<20, u.TotalBytes/10) // as the store has it
		}
		// How many times what is kept free would fit into what is free, the other way round: higher is worse.
		signals = append(signals, limit.Signal{
			Cause: "disk", At: [3]float64{1 / 4.0, 1 / 2.0, 1},
			Read: func() (float64, bool) {
				u, err := vfs.Default.GetDiskUsage(path)
				return float64(keep) / math.Max(1, float64(u.AvailBytes)), err == nil
			},
		})
	}
	return limit.Watch(s.log, signals...)
}

// memory is how much the process may use, in bytes: the setting, else what the Go runtime or the container was told;
// 0 is unknown. The runtime is told too, since what it does not collect looks like what is in use.
func (s *Server) memory() int64 {
	n := int64(s.cfg.Limits.Memory)
	if n == 0 {
		if n = debug.SetMemoryLimit(-1); n < math.MaxInt64 {
			return n
		}
		n = containerMemory(os.ReadFile) / 10 * 9
	}
	if n > 0 {
		debug.SetMemoryLimit(n)
	}
	return n
}

// containerMemory is the limit of the control group, version 2 or 1; 0: none.
func containerMemory(read func(string) ([]byte, error)) int64 {
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		b, err := read(file)
		if err != nil {
			continue
		}
		// Version 1 says "none" with a number near the largest.
		if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && n < 1<<60 {
			return n
		}
	}
	return 0
}

// memoryInUse is what the last collection left in the heap, and stacks.
func memoryInUse() uint64 {
	s := []rtmetrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	rtmetrics.Read(s)
	return s[0].Value.Uint64() + s[1].Value.Uint64()
}

// busy refuses a CONNECT while the server is overloaded. It returns nil where it is not, and for a client that goes on with
// a stored session while messages are still taken. A server that is being stopped takes nobody.
func (s *Server) busy(cl *mqtt.Client, clean bool) error {
	if s.leaving.Load() {
		s.turnAway(cl, packets.ErrServerUnavailable, "the server is stopping")
		return packets.ErrServerUnavailable
	}
	switch level := s.overload.Level(); {
	case level < limit.RefuseSessions:
		return nil
	case level == limit.RefuseSessions && !clean:
		if _, err := s.store.Session(context.Background(), cl.ID); err == nil {
			return nil
		}
	}
	s.metrics.Limited("overload_connect")
	s.turnAway(cl, packets.ErrServerBusy, "the server is overloaded")
	return packets.ErrServerBusy
}

// turnAway answers CONNECT with a refusal that is about this node, and where else to go if there is a place.
func (s *Server) turnAway(cl *mqtt.Client, code packets.Code, why string) {
	elsewhere := s.reference(cl.Net.Listener)
	if elsewhere != "" {
		code = packets.ErrUseAnotherServer
	}
	limit.Refuse(cl, code, why, elsewhere)
}

// refuseConnection serves a connection that the listener has no place for, as far as its CONNECT.
func (s *Server) refuseConnection(t *transport.Conn, why transport.Refusal) error {
	cl, _, err := s.readConnect("", t)
	if cl != nil {
		defer cl.Stop(nil)
	}
	if err != nil {
		return err
	}
	switch why {
	case transport.RefusedAddress:
		limit.Refuse(cl, packets.ErrQuotaExceeded, "too many connections from this address", "")
	case transport.RefusedBacklog:
		s.turnAway(cl, packets.ErrConnectionRateExceeded, "too many clients are connecting")
	default:
		s.turnAway(cl, packets.ErrServerBusy, "the server has no more connections to give")
	}
	return fmt.Errorf("refused: %s", why)
}
