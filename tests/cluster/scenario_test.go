package cluster

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/tests/mqtest"
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

// scene is a scenario that is under way: three nodes, and devices that talk.
type scene struct {
	*servers
	w   *world
	t   *testing.T
	rng *rand.Rand
}

// play starts the servers, the nodes and, after prepare, the devices, and waits until all of them have talked.
func play(t *testing.T, nodes int, prepare func(w *world)) *scene {
	t.Helper()
	seed := newSeed(t)
	s := start(t, nodes, seed)
	x := &scene{servers: s, w: newWorld(t, seed, s.nodes), t: t, rng: rand.New(rand.NewPCG(seed, 0))}
	if prepare != nil {
		prepare(x.w)
	}
	x.w.start()
	x.goesOn("before any harm")
	return x
}

// goesOn waits until every device has had some more messages stored.
func (x *scene) goesOn(when string) {
	x.t.Helper()
	x.w.progress("messages "+when, 5)
}

// ready waits until nodes say that they are.
func (x *scene) ready(when string, nodes ...*node) {
	x.t.Helper()
	for _, n := range nodes {
		x.w.until(fmt.Sprintf("%s to be ready %s", n.name, when), func() string {
			status, body := n.readyz()
			if status != http.StatusOK || body != readyBody {
				return fmt.Sprint(status, " ", body)
			}
			return ""
		})
	}
}

// noRedis waits until nodes say that they cannot reach Redis.
func (x *scene) noRedis(nodes ...*node) {
	x.t.Helper()
	for _, n := range nodes {
		x.w.until(n.name+" to say that it cannot reach Redis", func() string {
			status, body := n.readyz()
			if low := strings.ToLower(body); !strings.Contains(low, "redis") && !strings.Contains(low, "cluster") {
				return fmt.Sprint(status, " ", body)
			}
			return ""
		})
	}
}

// A node is killed under load, and comes back later.
func TestNodeKilled(t *testing.T) {
	t.Parallel()
	x := play(t, 3, nil)
	for range rounds(2, 20) {
		n := x.nodes[x.rng.IntN(len(x.nodes))]
		n.Kill()
		x.goesOn("with " + n.name + " killed")
		n.Run()
		x.goesOn("with " + n.name + " back")
	}
	x.w.finish()
}

// A node stops for a while, without an end of its connections, and goes on.
func TestNodeHangs(t *testing.T) {
	t.Parallel()
	x := play(t, 3, nil)
	for range rounds(1, 20) {
		n := x.nodes[x.rng.IntN(len(x.nodes))]
		n.stop()
		x.goesOn("with " + n.name + " stopped")
		n.resume()
		x.goesOn("with " + n.name + " back")
	}
	x.ready("in the end", x.nodes...)
	x.w.finish()
}

// A node stops for so long that another takes its number over, and goes on: it may not store anything under that number.
func TestNumberTaken(t *testing.T) {
	t.Parallel()
	x := play(t, 3, nil)
	n, other := x.nodes[0], x.nodes[1]
	var taken int
	if err := x.DB.QueryRow("SELECT number FROM mqim.mqim_numbers WHERE name LIKE ?", "node "+n.name+",%").Scan(&taken); err != nil {
		t.Fatal(err)
	}
	n.stop()
	n.db.Cut() // so that it has no transaction under way, for which its number would be passed over
	x.Exec(fmt.Sprintf("DELETE FROM mqim.mqim_nodes WHERE id = (SELECT node FROM mqim.mqim_numbers WHERE number = %d)", taken))
	other.Kill()
	other.Run()
	var name string
	if err := x.DB.QueryRow("SELECT name FROM mqim.mqim_numbers WHERE number = ?", taken).Scan(&name); err != nil || !strings.HasPrefix(name, "node "+other.name+",") {
		t.Fatalf("number %d is that of %s, %v, want %s", taken, name, err, other.name)
	}
	x.goesOn("with the number taken over")
	begin := x.w.h.now()
	n.db.Heal()
	n.resume()
	x.ready("with another number", n)
	x.served(n)
	x.w.finish()
	for _, s := range x.w.h.Sends {
		if s.Node == n.name && s.Begin > begin && s.ID != "" && !s.Dup && int(number(s.ID)>>12&1023) == taken {
			t.Errorf("%s: stored by %s at %v as %s, with number %d, which was another's since %v", s.Cid, s.Node, s.End, s.ID, taken, begin)
		}
	}
}

// Redis is flushed, killed and paused: sends go on, nodes tell, and all recovers by itself.
func TestRedis(t *testing.T) {
	t.Parallel()
	x := play(t, 3, nil)
	for range rounds(1, 10) {
		x.redis.Flush()
		x.goesOn("after FLUSHALL")
		x.ready("after FLUSHALL", x.nodes...)

		x.redis.Stop()
		x.noRedis(x.nodes...)
		x.goesOn("with Redis killed")
		x.redis.Run()
		x.ready("with Redis back", x.nodes...)
		x.goesOn("with Redis back")

		x.redis.Hang()
		x.noRedis(x.nodes...)
		x.goesOn("with Redis paused")
		x.redis.Resume()
		x.ready("with Redis going on", x.nodes...)
		x.goesOn("with Redis going on")
	}
	x.w.finish()
}

// The database is slow, loses COMMITs, is killed and paused: senders are told so, nothing is acknowledged that is not stored.
func TestDatabase(t *testing.T) {
	t.Parallel()
	x := play(t, 3, nil)
	for range rounds(1, 10) {
		x.each(func(n *node) { n.db.Slow(20 * time.Millisecond) })
		x.goesOn("with a slow database")
		x.each(func(n *node) { n.db.Heal(); n.db.CutCommits(0.3) })
		x.goesOn("with COMMITs cut")
		x.each(func(n *node) { n.db.Heal(); n.db.CutAfter(200_000) })
		x.goesOn("with connections cut")
		x.each(func(n *node) { n.db.Heal() })

		x.Stop()
		x.w.happens("refused", 3)
		x.Run()
		x.ready("with the database back", x.nodes...)
		x.goesOn("with the database back")

		x.Hang()
		x.w.happens("no answer", 3)
		x.Resume()
		x.ready("with the database going on", x.nodes...)
		x.goesOn("with the database going on")
	}
	x.w.finish()
	total := 0
	x.each(func(n *node) { cuts, _ := n.db.Counts(); total += cuts })
	t.Logf("%d COMMITs were cut", total)
	if total == 0 {
		t.Error("no COMMIT was cut")
	}
}

// each does something to all nodes.
func (x *scene) each(f func(*node)) {
	for _, n := range x.nodes {
		f(n)
	}
}

// One node is cut off from Redis and not from the database, another from the database and not from Redis.
func TestPartition(t *testing.T) {
	t.Parallel()
	x := play(t, 3, nil)
	for range rounds(1, 10) {
		one, other := x.nodes[x.rng.IntN(2)], x.nodes[2]
		for _, how := range []struct {
			name string
			do   func(*proxy)
		}{{"cut off", (*proxy).Cut}, {"silent", (*proxy).Stall}} {
			how.do(one.redis)
			x.noRedis(one)
			x.goesOn("with Redis " + how.name)
			x.served(one)
			one.redis.Heal()
			x.ready("after Redis was "+how.name, one)

			how.do(other.db)
			x.goesOn("with the database " + how.name)
			other.db.Heal()
			x.ready("after the database was "+how.name, other)
			x.served(other)
		}
	}
	x.w.finish()
}

// served waits until messages that came to one node are stored.
func (x *scene) served(n *node) {
	x.t.Helper()
	x.w.happens("stored by "+n.name, 5)
}

// Hints are lost on their way: some of everything that concerns users, groups, clients and nodes, then all of what is for
// users and groups. The periodic look finds what they would have told.
//
// It is Redis that the messages are taken from, between it and the nodes: the server that is tested is the one that
// is shipped, and it sees what it sees when a buffer overflows or a connection breaks.
func TestHintsLost(t *testing.T) {
	t.Parallel()
	x := play(t, 3, nil)
	for range rounds(1, 10) {
		x.each(func(n *node) { n.redis.Lose(0.3, "ugncp") })
		x.goesOn("with hints lost")
		x.each(func(n *node) { n.redis.Lose(1, "ug") })
		x.goesOn("with all hints lost")
		x.each(func(n *node) { n.redis.Heal() })
	}
	x.each(func(n *node) { n.redis.Lose(1, "ug") }) // what was sent last is found without any hint
	x.w.finish()
	total := 0
	x.each(func(n *node) { _, lost := n.redis.Counts(); total += lost })
	t.Logf("%d messages of pub/sub were lost", total)
	if total == 0 {
		t.Error("nothing was lost")
	}
}

// Two clients claim to be one device, on different nodes, over and over.
func TestTwoClaims(t *testing.T) {
	t.Parallel()
	x := play(t, 3, func(w *world) {
		for _, d := range w.devices {
			if d.ID == "ann-phone" || d.ID == "dan-phone" || d.ID == "cid-meter" {
				w.twin(d)
			}
		}
	})
	for range rounds(1, 10) {
		x.w.happens("DISCONNECT 0x8e", 20)
		x.goesOn("with two claims")
		x.each(func(n *node) { n.redis.Lose(0.5, "c") }) // half of the claims are not told of
		x.w.happens("DISCONNECT 0x8e", 5)
		x.each(func(n *node) { n.redis.Heal() })
		x.redis.Stop()
		x.goesOn("with two claims and no Redis")
		x.redis.Run()
		x.goesOn("with two claims and Redis back")
	}
	x.w.finish()
}

// The nodes are restarted one after the other under load, as for an upgrade.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	x := play(t, 3, nil)
	for range rounds(1, 10) {
		for _, n := range x.nodes {
			var guests []*mqtest.Client
			for v := byte(4); v <= 5; v++ {
				user := fmt.Sprint("guest", v)
				c := mqtest.Dial(t, n.address, mqtest.Options{Version: v, User: user, ID: user, Persistent: true})
				if c.Connack.ReasonCode != 0 {
					t.Fatalf("%s: CONNACK %#x", user, c.Connack.ReasonCode)
				}
				guests = append(guests, c)
			}
			n.Stop()
			x.handedOver(n, guests)
			x.goesOn("with " + n.name + " stopped")
			n.Run()
			x.goesOn("with " + n.name + " back")
		}
	}
	x.w.finish()
	if n := x.w.count("refused"); n > 0 {
		t.Errorf("%d sends were refused", n)
	}
}

// handedOver checks what clients, one of MQTT 3.1.1 and one of 5, were told by a node that has stopped.
func (x *scene) handedOver(n *node, guests []*mqtest.Client) {
	x.t.Helper()
	if code := guests[0].Closed(); code != 0 || guests[0].Err() != io.EOF {
		x.t.Errorf("3.1.1: DISCONNECT %#x, %v, want the end of the connection", code, guests[0].Err())
	}
	bye, came := guests[1].TryTake(func(p *packets.Packet) bool { return p.FixedHeader.Type == packets.Disconnect }, mqtest.Patience)
	to := bye.Properties.ServerReference
	if !came || bye.ReasonCode != 0x9c || to == n.address || !slices.ContainsFunc(x.nodes, func(n *node) bool { return n.address == to }) {
		x.t.Fatalf("5: DISCONNECT %#x to %q, want 0x9c to another node", bye.ReasonCode, to)
	}
	c := mqtest.Dial(x.t, to, guests[1].Options)
	if c.Connack.ReasonCode != 0 || !c.Connack.SessionPresent {
		x.t.Errorf("5: at %s CONNACK %#x, session %t, want it to be let in with its session", to, c.Connack.ReasonCode, c.Connack.SessionPresent)
	}
	c.Disconnect()
}

// Everything at once, in random order: two faults at a time, in any two places.
func TestEverything(t *testing.T) {
	t.Parallel()
	x := play(t, 3, func(w *world) { w.twin(w.devices[0]) })
	type harm struct {
		name       string
		begin, end func(*node)
	}
	heal := func(n *node) { n.db.Heal(); n.redis.Heal() }
	harms := []harm{
		{"kill", func(n *node) { n.Kill() }, func(n *node) { n.Run() }},
		{"stop", func(n *node) { n.Stop() }, func(n *node) { n.Run() }},
		{"hang", func(n *node) { n.stop() }, func(n *node) { n.resume() }},
		{"no Redis", func(n *node) { n.redis.Cut() }, heal},
		{"silent Redis", func(n *node) { n.redis.Stall() }, heal},
		{"slow Redis", func(n *node) { n.redis.Slow(50 * time.Millisecond) }, heal},
		{"Redis cut in between", func(n *node) { n.redis.CutAfter(20_000) }, heal},
		{"hints lost", func(n *node) { n.redis.Lose(0.5, "augncp") }, heal},
		{"no database", func(n *node) { n.db.Cut() }, heal},
		{"silent database", func(n *node) { n.db.Stall() }, heal},
		{"slow database", func(n *node) { n.db.Slow(20 * time.Millisecond) }, heal},
		{"database cut in between", func(n *node) { n.db.CutAfter(50_000) }, heal},
		{"COMMITs cut", func(n *node) { n.db.CutCommits(0.3) }, heal},
		{"Redis flushed", func(*node) { x.redis.Flush() }, heal},
		{"Redis killed", func(*node) { x.redis.Stop(); x.redis.Run() }, heal},
		{"database killed", func(*node) { x.Stop(); x.Run() }, heal},
	}
	for i := range rounds(3, 100) {
		order := x.rng.Perm(len(x.nodes))
		one, other := harms[x.rng.IntN(len(harms))], harms[x.rng.IntN(len(harms))]
		a, b := x.nodes[order[0]], x.nodes[order[1]]
		what := fmt.Sprintf("in round %d: %s at %s, %s at %s", i, one.name, a.name, other.name, b.name)
		t.Log(what)
		one.begin(a)
		x.w.sum("messages "+what, 20)
		other.begin(b)
		x.w.sum("messages "+what, 20)
		one.end(a)
		other.end(b)
		x.ready("after "+what, x.nodes...)
		x.goesOn("after " + what)
	}
	x.w.finish()
}

// TestOneNode: the workload and its checks on a single server, which is killed and loses its database.
func TestOneNode(t *testing.T) {
	t.Parallel()
	x := play(t, 1, nil)
	n := x.nodes[0]
	n.Kill()
	n.Run()
	x.goesOn("after a kill")
	n.db.CutCommits(0.3)
	x.goesOn("with COMMITs cut")
	n.db.Heal()
	x.Stop()
	x.w.happens("refused", 3)
	x.Run()
	x.goesOn("after the database was killed")
	x.w.finish()
}
