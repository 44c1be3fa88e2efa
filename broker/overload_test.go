package broker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mqim/mqim/broker/config"
	"github.com/mqim/mqim/hooks/limit"
	"github.com/mqim/mqim/store"
)

func TestContainerMemory(t *testing.T) {
	const v2, v1 = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"
	for _, c := range []struct {
		files map[string]string
		want  int64
	}{
		{nil, 0}, {map[string]string{v2: "1000\n"}, 1000}, {map[string]string{v2: "max\n"}, 0},
		{map[string]string{v1: "2000\n"}, 2000}, {map[string]string{v1: "9223372036854771712\n"}, 0},
	} {
		got := containerMemory(func(name string) ([]byte, error) {
			if text, ok := c.files[name]; ok {
				return []byte(text), nil
			}
			return nil, fs.ErrNotExist
		})
		if got != c.want {
			t.Errorf("%v: got %d, want %d", c.files, got, c.want)
		}
	}
}

// A commit that hangs is seen before it ends; one that is over is seen once.
func TestCommitDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &watchedStore{overload: func() int { return limit.Normal }}
		s.started = time.Now()
		time.Sleep(3 * time.Second)
		if d, _ := s.delay(); d != 3 {
			t.Errorf("running for 3 s: got %v", d)
		}
		s.started, s.worst = time.Time{}, 4*time.Second
		a, _ := s.delay()
		b, _ := s.delay()
		if a != 4 || b != 0 {
			t.Errorf("over after 4 s: got %v, then %v", a, b)
		}
		s.overload = func() int { return limit.RefusePublishes }
		err := s.Commit(context.Background(), &store.Batch{Sends: []*store.Send{{}}})
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("overloaded: got %v, want ErrUnavailable", err)
		}
	})
}

// Memory and disk call for the highest level where there is none left, each by itself.
func TestSignals(t *testing.T) {
	old := debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetMemoryLimit(old) })
	for cause, set := range map[string]func(*config.Config){
		"memory": func(c *config.Config) { c.Limits.Memory = 1 << 10 },
		"disk":   func(c *config.Config) { c.Store.Pebble.MinFree = 1 << 50 },
	} {
		c := testConfig(t)
		set(c)
		s, err := New(c, quiet(), nil)
		if err != nil {
			t.Fatal(err)
		}
		levels := func() string {
			m := map[string]int{}
			s.overload.Levels(func(cause string, level func() int) { m[cause] = level() })
			return fmt.Sprint(m["memory"], m["disk"])
		}
		want := map[string]string{"memory": "3 0", "disk": "0 3"}[cause]
		for end := time.Now().Add(30 * time.Second); levels() != want && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond) // between looks, not instead of them
		}
		if got := levels(); got != want {
			t.Errorf("%s: levels of memory and disk: got %s, want %s", cause, got, want)
		}
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
		debug.SetMemoryLimit(old)
	}
}

// While new sessions are refused, a client may go on with one that is stored, unless it gets so bad that messages are
// refused, too.
func TestStoredSessionsAreNoNewOnes(t *testing.T) {
	s, err := New(testConfig(t), quiet(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	err = s.store.Commit(t.Context(), &store.Batch{TopicBatch: store.TopicBatch{
		Sessions: []store.Session{{Client: "old", User: "u", Expiry: store.NoExpiry}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.overload.Close()
	for level := limit.Normal; level <= limit.RefusePublishes; level++ {
		s.overload = limit.Watch(quiet(), limit.Signal{
			Cause: "test", At: [3]float64{limit.Slow, limit.RefuseSessions, limit.RefusePublishes},
			Read: func() (float64, bool) { return float64(level), true },
		})
		for end := time.Now().Add(20 * time.Second); s.overload.Level() != level; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("level: got %d, want %d", s.overload.Level(), level)
			}
		}
		for _, c := range []struct {
			client string
			clean  bool
			upTo   int
		}{{"old", false, limit.RefuseSessions}, {"old", true, limit.Slow}, {"new", false, limit.Slow}} {
			conn, peer := net.Pipe()
			_ = peer.Close()
			cl := s.mqtt.NewClient(conn, "", c.client, false)
			err := s.busy(cl, c.clean)
			if in := err == nil; in != (level <= c.upTo) {
				t.Errorf("level %d, client %s, clean %v: got %v", level, c.client, c.clean, err)
			}
			cl.Stop(nil)
		}
		s.overload.Close()
	}
}
