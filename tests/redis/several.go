package redis

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// Watched is a master and its replica, watched by Sentinels.
type Watched struct {
	Name            string // of the master, as Sentinel calls it
	Master, Replica *Server
	Sentinels       []*Server
}

// StartWatched starts a master, a replica and so many Sentinels, one or three, which take the master for dead after a second
// without an answer. It returns when the Sentinels know the replica and each other.
func StartWatched(t testing.TB, sentinels int) *Watched {
	t.Helper()
	w := &Watched{Name: "mqim", Master: Start(t)}
	w.Replica = Start(t, "--replicaof", "127.0.0.1", fmt.Sprint(w.Master.port), "--repl-diskless-sync-delay", "0")
	if err := wait(func() error {
		if out := w.Replica.Do("INFO", "replication"); !strings.Contains(out, "master_link_status:up") {
			return errors.New(out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for range sentinels {
		settings := fmt.Sprintf("sentinel monitor %[1]s 127.0.0.1 %d %d\nsentinel down-after-milliseconds %[1]s 1000\nsentinel failover-timeout %[1]s 5000\n",
			w.Name, w.Master.port, sentinels/2+1)
		s, err := launch("sentinel", settings)
		skip(t, err)
		s.fatal = t.Fatal
		t.Cleanup(s.Close)
		w.Sentinels = append(w.Sentinels, s)
	}
	for _, s := range w.Sentinels {
		if err := wait(func() error {
			out := s.Do("INFO", "sentinel")
			if !strings.Contains(out, fmt.Sprintf("slaves=1,sentinels=%d", sentinels)) {
				return errors.New(out)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// Addrs are those of the Sentinels.
func (w *Watched) Addrs() []string { return addrs(w.Sentinels) }

func addrs(list []*Server) (a []string) {
	for _, s := range list {
		a = append(a, s.Addr())
	}
	return a
}

// Cluster is a Redis Cluster of three masters.
type Cluster struct{ Servers []*Server }

// slots of a Redis Cluster.
const slots = 16384

// StartCluster starts a Redis Cluster and returns when it serves.
func StartCluster(t testing.TB) *Cluster {
	t.Helper()
	c := &Cluster{}
	for i := range 3 {
		s := Start(t, "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no")
		s.Do("CLUSTER", "ADDSLOTSRANGE", fmt.Sprint(i*slots/3), fmt.Sprint((i+1)*slots/3-1))
		s.Do("CLUSTER", "SET-CONFIG-EPOCH", fmt.Sprint(i+1))
		if i > 0 {
			s.Do("CLUSTER", "MEET", "127.0.0.1", fmt.Sprint(c.Servers[0].port))
		}
		c.Servers = append(c.Servers, s)
	}
	for _, s := range c.Servers {
		if err := wait(func() error {
			out := s.Do("CLUSTER", "INFO")
			if !strings.Contains(out, "cluster_state:ok") || !strings.Contains(out, "cluster_known_nodes:3") || !strings.Contains(out, fmt.Sprintf("cluster_slots_ok:%d", slots)) {
				return errors.New(out)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// Addrs are those of the servers.
func (c *Cluster) Addrs() []string { return addrs(c.Servers) }
