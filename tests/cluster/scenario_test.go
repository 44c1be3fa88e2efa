package cluster

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"testing"
)

var torture = os.Getenv("MQIM_TORTURE") != ""

// rounds is how often a scenario does its harm: short, or long under MQIM_TORTURE.
func rounds(short, long int) int {
	if torture {
		return long
	}
	return short
}

func newSeed(t *testing.T) uint64 {
	seed := rand.Uint64()
	if s := os.Getenv("SEED"); s != "" {
		_, _ = fmt.Sscan(s, &seed)
	}
	t.Logf("seed %d", seed)
	return seed
}

// freeAddress finds a port below those that the system gives to outgoing connections: one of these could have it when the
// node is started again.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		a := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(10000))
		if l, err := net.Listen("tcp", a); err == nil {
			_ = l.Close()
			return a
		}
	}
	t.Fatal("no free port")
	return ""
}

// TestOneNode: the workload and its checks on a single server, which is killed and loses its database.
func TestOneNode(t *testing.T) {
	t.Parallel()
	seed := newSeed(t)
	s := start(t, 1, seed)
	w := newWorld(t, seed, s.nodes)
	w.start()
	w.progress("messages before any harm", 10)
	n := s.nodes[0]
	n.Kill()
	n.Run()
	w.progress("messages after a kill", 10)
	n.db.CutCommits(0.3)
	w.happens("refused", 0)
	w.progress("messages with COMMITs cut", 10)
	n.db.Heal()
	s.Stop()
	w.happens("refused", 3)
	s.Run()
	w.progress("messages after the database was killed", 10)
	w.finish()
	cuts, _ := n.db.Counts()
	t.Logf("%d COMMITs were cut", cuts)
}
