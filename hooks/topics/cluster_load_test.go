package topics

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/bus"
)

// seeded returns a source of chance, whose seed is printed where the test fails.
func seeded(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("SEED=", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

// receiver is a client as MQTT has it: what it has seen of QoS 2 outlives its connections.
type receiver struct {
	seen map[string]int
	open map[uint16]bool // QoS 2: PUBREL has not come
}

// handle handles a packet, and answers it unless the client is about to leave.
func (v *receiver) handle(p *peer, pk packets.Packet) {
	var typ byte
	switch pk.FixedHeader.Type {
	case packets.Publish:
		if pk.FixedHeader.Qos < 2 || !v.open[pk.PacketID] {
			v.seen[string(pk.Payload)]++
		}
		if typ = packets.Puback; pk.FixedHeader.Qos == 2 {
			v.open[pk.PacketID] = true
			typ = packets.Pubrec
		}
		if pk.FixedHeader.Qos == 0 {
			return
		}
	case packets.Pubrel:
		delete(v.open, pk.PacketID)
		typ = packets.Pubcomp
	default:
		return
	}
	fh := packets.FixedHeader{Type: typ}
	ack := packets.Packet{FixedHeader: fh, PacketID: pk.PacketID, ProtocolVersion: p.v}
	_, _ = p.conn.Write(encode(ack)) // it may be closed already
}

// A session that goes from node to node while messages for it are published loses none, and has those at QoS 2 once.
func TestTakeOverLoop(t *testing.T) {
	rng := seeded(t)
	s := newSwarm(t, 3, setup{})
	const n = 600
	first := s.nodes[0].connect("c", expiry(300))
	first.subscribe("q/#", 2)
	var load sync.WaitGroup
	for i := range 2 {
		pub := s.nodes[i].connect(fmt.Sprint("pub", i))
		load.Go(func() {
			for j := range n {
				qos := byte(1 + j%2)
				pub.publish(fmt.Sprint("q/", qos), fmt.Sprint(qos, ".", i, ".", j), qos)
			}
		})
	}
	v := &receiver{seen: map[string]int{}, open: map[uint16]bool{}}
	p := first
	hops := 0
	for end := time.Now().Add(3 * patience); len(v.seen) < 2*n || len(v.open) > 0; hops++ {
		if time.Now().After(end) {
			t.Fatalf("%d of %d messages came, %d are half way", len(v.seen), 2*n, len(v.open))
		}
		for range 1 + rng.IntN(60) {
			pk, err := p.readSoon(100 * time.Millisecond)
			if err != nil {
				break
			}
			v.handle(p, pk)
		}
		old := p
		p = s.nodes[rng.IntN(3)].connect("c", expiry(300))
		if !p.present {
			t.Fatal("the session was not resumed")
		}
		_ = old.conn.Close()
	}
	load.Wait()
	for what, times := range v.seen {
		if what[0] == '2' && times != 1 {
			t.Errorf("%s came %d times, want once", what, times)
		}
	}
	t.Logf("%d hops", hops)
}

// Whatever is lost between the nodes, stored sessions lose nothing, shared subscriptions have one member for each message,
// and what the bus carries reaches the others.
func TestFaultyCluster(t *testing.T) {
	rng := seeded(t)
	s := newSwarm(t, 3, setup{Options: Options{Look: time.Second}})
	type client struct {
		*peer
		seen   map[string]int
		stored bool
	}
	var mu sync.Mutex
	var clients []*client
	var reading sync.WaitGroup
	join := func(node int, name, filter string, how ...connect) {
		p := s.nodes[node].connect(name, how...)
		p.subscribe(filter, 1)
		c := &client{peer: p, seen: map[string]int{}, stored: len(how) > 0}
		clients = append(clients, c)
		reading.Go(func() {
			for {
				pk, err := p.read()
				if err != nil {
					return
				}
				if pk.FixedHeader.Type == packets.Publish {
					mu.Lock()
					c.seen[string(pk.Payload)]++
					mu.Unlock()
					p.ack(pk)
				}
			}
		})
	}
	for i := range s.nodes {
		join(i, fmt.Sprint("clean", i), "a/#")
		join(i, fmt.Sprint("stored", i), "a/+", persistent)
		join(i, fmt.Sprint("shared", i), "$share/g/a/+", persistent)
	}
	count := func(ok func(*client) bool, what string) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range clients {
			if ok(c) {
				n += c.seen[what]
			}
		}
		return n
	}
	shared := func(c *client) bool { return c.name[:2] == "sh" }
	stored := func(c *client) bool { return c.stored && !shared(c) }
	clean := func(c *client) bool { return !c.stored }
	var pubs []*peer
	for i := range s.nodes {
		pubs = append(pubs, s.nodes[i].connect(fmt.Sprint("pub", i)))
	}
	for round := range 6 {
		faulty := round%2 == 1
		var mean sync.Mutex
		if faulty {
			chance := rand.New(rand.NewPCG(rng.Uint64(), 1))
			s.hub.Drop(func(string, *bus.Message) bool {
				mean.Lock()
				defer mean.Unlock()
				return chance.IntN(3) == 0
			})
		}
		var all []string
		for i := range 60 {
			if faulty && i%10 == 0 {
				cut := rng.IntN(4)
				for j, b := range s.buses {
					b.Cut(j == cut)
				}
			}
			from := rng.IntN(3)
			what := fmt.Sprint(round, ".", i)
			pubs[from].publish(fmt.Sprint("a/", rng.IntN(5)), what, 1)
			all = append(all, what)
		}
		s.hub.Drop(nil)
		for _, b := range s.buses {
			b.Cut(false)
		}
		s.ready()
		for _, what := range all {
			s.nodes[0].until("a message reaches who is stored: "+what, func() bool { return count(stored, what) >= 3 && count(shared, what) >= 1 })
			if !faulty {
				s.nodes[0].until("a message reaches who is not", func() bool { return count(clean, what) == 3 })
			}
			if n := count(stored, what); n != 3 {
				t.Errorf("%s came %d times to three stored sessions", what, n)
			}
			if n := count(shared, what); n != 1 {
				t.Errorf("%s came to %d members of a shared subscription", what, n)
			}
			if n := count(clean, what); n > 3 {
				t.Errorf("%s came %d times to three clean sessions", what, n)
			}
		}
	}
	for _, c := range clients {
		_ = c.conn.Close()
	}
	reading.Wait()
}
