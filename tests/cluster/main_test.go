// Package cluster holds a cluster of real servers to what must always hold, while servers are killed, stopped, cut off and
// slowed down: simulated devices talk, a history of all that they do and see is kept, and checked in the end.
package cluster

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/mqim/mqim/tests/mariadb"
	"github.com/mqim/mqim/tests/mqtest"
	"github.com/mqim/mqim/tests/redis"
)

func TestMain(m *testing.M) { os.Exit(mqtest.Main(m, func(mqtest.TB) {})) }

// TestInputs has go test run the tests again when the server has changed.
func TestInputs(t *testing.T) { mqtest.Inputs(t, "../..") }

// node is a server process, and its network.
type node struct {
	*mqtest.Server
	name    string
	address string // of its listener, the same after a restart
	db      *proxy
	redis   *proxy
}

// servers are those of a scenario.
type servers struct {
	*mariadb.Server
	redis *redis.Server
	nodes []*node
}

// start starts n nodes on servers of their own.
func start(t *testing.T, n int, seed uint64) *servers {
	t.Helper()
	s := &servers{
		Server: mariadb.Start(t, "--log-bin=bin", "--sync-binlog=1", "--innodb-flush-log-at-trx-commit=1"),
		redis:  redis.Start(t),
	}
	s.Exec("GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX, DROP ON mqim.* TO mqim@'%'")
	for i := range n {
		x := &node{name: fmt.Sprint("node", i+1), db: newProxy(t, s.Addr(), seed+uint64(i), false), redis: newProxy(t, s.redis.Addr(), seed+uint64(10+i), true)}
		config := mqtest.Config{
			"node": "{name: " + x.name + "}", "inbox": "{max_messages: 0}", "sessions": "{max_queued: 0}",
			"limits":   "{sends_per_second: 0, topic_bytes: 2000}",
			"delivery": "{ack_timeout: 3s}", "log": "{level: info}",
			"store": fmt.Sprintf("{driver: mysql, mysql: {dsn: %q}}", fmt.Sprintf("mqim:%s@tcp(%s)/mqim", mariadb.Password, x.db.addr())),
		}
		if n > 1 {
			config["cluster"] = fmt.Sprintf("{redis: {addresses: [%q]}, look: 2s}", x.redis.addr())
		}
		x.address = freeAddress(t)
		config["listeners"] = fmt.Sprintf("[{name: mqtt, type: tcp, address: %q}]", x.address)
		x.Server = mqtest.New(t, config)
		x.Run()
		s.nodes = append(s.nodes, x)
	}
	return s
}

// stop holds a node's process: it does nothing, and nobody is told.
func (n *node) stop()   { n.Signal(syscall.SIGSTOP) }
func (n *node) resume() { n.Signal(syscall.SIGCONT) }

// readyBody is what a node answers to /readyz that lacks nothing.
const readyBody = "ready"

// readyz is what a node says of itself.
func (n *node) readyz() (status int, body string) {
	resp, err := (&http.Client{Timeout: deaf}).Get("http://" + n.HTTP + "/readyz")
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, strings.TrimSpace(string(b))
}
