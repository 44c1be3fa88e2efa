package im

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/store"
)

// The cluster model has devices connect to one of some nodes after the other, and their users write to each other and to a
// large group that they join and leave, while what the nodes say to each other is lost, late, out of order, or not heard at all.
// Then every device must have been shown everything that is its user's, in order, and nothing else.

type clusterModel struct {
	*cluster
	r     *rand.Rand
	devs  []*roamer
	mu    sync.Mutex
	tally map[string]int // guarded by mu
}

// roamer is a device with a session; it may be connected to several nodes, all but the last of which do not know yet.
type roamer struct {
	user, id string
	links    []*fakeLink // all that there ever were
	at       []int       // and the node of each
	over     int         // links before it have ended
	seq      uint64      // acknowledged
	cseq     uint64
}

func TestClusterModel(t *testing.T) {
	runSeeds(t, seeds{short: 20, steps: 150, longSteps: 400, sure: 20}, runClusterModel,
		"shown", "shown of the group", "dropped", "late", "cut", "taken", "left")
}

func runClusterModel(t *testing.T, seed uint64, steps int) map[string]int {
	cfg := Config{Window: 8, AckTimeout: time.Hour, Look: 10 * time.Second, DevicesPerUser: 9}
	m := &clusterModel{cluster: newCluster(t, 3, cfg), r: rand.New(rand.NewPCG(seed, 2)), tally: map[string]int{}}
	for i := range 4 {
		for k := range 1 + i%2 {
			d := &roamer{user: fmt.Sprint("u", i), id: fmt.Sprintf("u%d-%d", i, k)}
			m.devs = append(m.devs, d)
			m.connect(d, i%3)
		}
	}
	first := m.devs[0].links[0]
	m.nodes[0].ok(first, nil, "group.create", `{"group":"team","name":"n","kind":"large","members":["u1","u2","u3"]}`)
	synctest.Wait()
	for range steps {
		m.step()
		if m.r.IntN(3) > 0 {
			synctest.Wait()
		}
	}
	m.heal()
	for _, d := range m.devs {
		m.check(seed, d)
	}
	return m.tally
}

func (m *clusterModel) count(what string, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tally[what] += n
}

func (m *clusterModel) connect(d *roamer, at int) {
	s := persistent
	s.Epoch = m.st.claim(m.t, d.id)
	l := newLink()
	dev, err := m.nodes[at].e.Connect(context.Background(), d.user, d.id, s, l)
	if err != nil {
		m.t.Errorf("connect %s to node %d: %v", d.id, at, err)
		return
	}
	l.mu.Lock()
	l.dev = dev
	l.mu.Unlock()
	m.nodes[at].links = append(m.nodes[at].links, l)
	dev.SetProfile(IM, everything)
	d.links, d.at = append(d.links, l), append(d.at, at)
}

// disconnect ends the connections of a device up to one.
func (m *clusterModel) disconnect(d *roamer, upto int) {
	for ; d.over < upto; d.over++ {
		d.links[d.over].dev.Disconnect(false)
		if err := m.nodes[d.at[d.over]].e.Flush(context.Background()); err != nil {
			m.t.Error(err)
		}
	}
}

// live is the device's last connection, where it has not ended; nil: it has.
func (d *roamer) live() *fakeLink {
	if d.over == len(d.links) {
		return nil
	}
	return d.links[len(d.links)-1]
}

func (m *clusterModel) step() {
	for _, d := range m.devs {
		for i := d.over; i < len(d.links); i++ {
			if got := d.links[i].closes(); len(got) > 0 && got[0] == CloseTaken {
				m.count("taken", 1)
				m.disconnect(d, i+1)
			}
		}
	}
	d := m.devs[m.r.IntN(len(m.devs))]
	l := d.live()
	n := m.r.IntN(100)
	switch {
	case n < 8:
		m.faults()
	case n < 16:
		time.Sleep(time.Duration(m.r.Int64N(int64(3 * time.Second))))
	case n < 18:
		time.Sleep(time.Duration(m.r.Int64N(int64(30 * time.Second))))
	case l == nil || n < 26:
		m.move(d)
	case n < 30:
		m.disconnect(d, len(d.links))
	case n < 50:
		l.start("send", `{"to":"u/u%d","body":"x"}`, m.r.IntN(4))
	case n < 70:
		l.start("send", `{"to":"g/team","body":"x"}`)
	case n < 90:
		m.ack(d)
	default:
		m.membership()
	}
}

// move has a device connect to a node; the one that it was connected to may not know.
func (m *clusterModel) move(d *roamer) {
	at := m.r.IntN(len(m.nodes))
	known := m.r.IntN(2) == 0
	for i := d.over; i < len(d.links); i++ {
		known = known || d.at[i] == at
	}
	if known {
		m.disconnect(d, len(d.links))
	} else {
		m.count("raced", 1)
	}
	m.connect(d, at)
}

func (m *clusterModel) membership() {
	l := m.devs[0].live()
	if l == nil {
		return
	}
	what := []string{"add", "remove"}[m.r.IntN(2)]
	m.count(map[string]string{"add": "joined", "remove": "left"}[what], 1)
	user := 1 + m.r.IntN(3)
	go l.start("group."+what, `{"group":"team","users":["u%d"]}`, user) // it may wait for nodes that do not answer
}

// ack acknowledges all that the device's last connection was shown.
func (m *clusterModel) ack(d *roamer) {
	l := d.live()
	if l == nil {
		return
	}
	for _, x := range l.deliveries() {
		if x.seq != 0 {
			d.seq = max(d.seq, x.seq)
		} else {
			d.cseq = max(d.cseq, x.cseq)
		}
	}
	if d.seq > 0 {
		l.start("ack", `{"seq":%d}`, d.seq)
	}
	if d.cseq > 0 {
		l.start("ack", `{"conv":"g/team","cseq":%d}`, d.cseq)
	}
}

func (m *clusterModel) faults() {
	switch m.r.IntN(3) {
	case 0:
		node := m.nodes[m.r.IntN(len(m.nodes))].bus
		cut := m.r.IntN(2) == 0
		node.Cut(cut)
		if cut {
			m.count("cut", 1)
		}
	case 1:
		m.hub.Drop(nil)
	case 2:
		percent := []int{10, 50, 100}[m.r.IntN(3)]
		seed := m.r.Uint64()
		r := rand.New(rand.NewPCG(seed, 3)) // the hub is locked when it is used
		m.hub.Drop(func(to string, msg *bus.Message) bool {
			if r.IntN(100) >= percent {
				return false
			}
			if msg.Answer == nil && msg.Channel.Kind != bus.Node && r.IntN(2) == 0 {
				m.count("late", 1)
				time.AfterFunc(time.Duration(r.Int64N(int64(2*time.Second))), func() { m.late(to, msg) })
			} else {
				m.count("dropped", 1)
			}
			return true
		})
	}
}

func (m *clusterModel) late(to string, msg *bus.Message) {
	for _, n := range m.nodes {
		if n.bus.ID() == to {
			n.e.peers.receive(msg)
		}
	}
}

// heal has everything work again, and everybody read to the end.
func (m *clusterModel) heal() {
	m.hub.Drop(nil)
	for _, n := range m.nodes {
		n.bus.Cut(false)
	}
	time.Sleep(30 * time.Second)
	for _, d := range m.devs {
		if d.live() == nil {
			m.connect(d, m.r.IntN(len(m.nodes)))
		}
	}
	before := -1
	for total := 0; total != before; {
		before, total = total, 0
		for range 3 {
			time.Sleep(11 * time.Second)
			synctest.Wait()
			for _, d := range m.devs {
				m.ack(d)
			}
		}
		for _, d := range m.devs {
			total += len(d.live().deliveries())
		}
	}
}

func (m *clusterModel) check(seed uint64, d *roamer) {
	fail := func(format string, args ...any) {
		m.t.Errorf("seed %d: %s: %s", seed, d.id, fmt.Sprintf(format, args...))
	}
	ctx := context.Background()
	inbox, err := m.st.ReadInbox(ctx, d.user, 0, 10000, nil)
	if err != nil {
		fail("%v", err)
	}
	mem, err := m.st.Member(ctx, "team", d.user)
	if err != nil {
		fail("%v", err)
	}
	log, err := m.st.History(ctx, d.user, team, store.Range{Limit: 10000, Forward: true})
	if err != nil {
		fail("%v", err)
	}
	seqs, cseqs := map[uint64]bool{}, map[uint64]bool{}
	for i, l := range d.links {
		var seq, cseq uint64
		for _, x := range l.deliveries() {
			switch {
			case x.seq != 0 && (x.seq <= seq || x.seq > uint64(len(inbox)) || inbox[x.seq-1].ID != x.id):
				fail("connection %d: got seq %d, message %d, after %d", i, x.seq, x.id, seq)
			case x.seq != 0:
				seq = x.seq
				seqs[seq] = true
			case x.conv != team || x.cseq <= cseq || !mem.Has(x.cseq):
				fail("connection %d: got %s %d after %d, spans %v", i, x.conv, x.cseq, cseq, mem.Spans)
			default:
				cseq = x.cseq
				cseqs[cseq] = true
			}
		}
	}
	m.count("shown", len(seqs))
	m.count("shown of the group", len(cseqs))
	for _, x := range inbox {
		if !seqs[x.Seq] && x.Device != d.id {
			fail("was never shown seq %d", x.Seq)
		}
	}
	for _, x := range log {
		if !cseqs[x.Cseq] && x.Device != d.id && mem.Has(x.Cseq) {
			fail("was never shown cseq %d of the group, spans %v", x.Cseq, mem.Spans)
		}
	}
	rec, err := m.st.Device(ctx, store.DeviceKey{User: d.user, Device: d.id})
	if err != nil || rec.Cursor != uint64(len(inbox)) {
		fail("the cursor is %d, the head %d, %v", rec.Cursor, len(inbox), err)
	}
}
