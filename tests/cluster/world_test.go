package cluster

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mqim/mqim/tests/mqtest"
)

// patience is how long a scenario waits for what must come: long, since the machine may be busy with other things, and nodes
// may have to find out that others have died.
const patience = 60 * time.Second

// world is what the devices of a scenario live in.
type world struct {
	t        *testing.T
	h        *history
	nodes    []*node
	devices  []*device
	users    []string      // that messages go to
	life     time.Duration // of connections, on average
	interval time.Duration // between two messages of a device, on average
	seed     uint64
	wg       sync.WaitGroup
	done     chan struct{} // closed at the end

	mu      sync.Mutex // guards what follows
	quiet   bool       // no new messages
	final   bool       // devices look whether they have got everything
	conns   int
	up      map[*device]bool
	stored  map[*device]int    // messages acknowledged
	ready   map[*device]string // at the end, what a device still lacks; "": nothing
	left    []*node            // that devices stay away from
	faults  []fault            // that devices have met
	counts  map[string]int     // of events, for the log
	open    map[*device]int    // messages on their way
	slowest time.Duration      // attempt that was acknowledged
}

// newWorld makes the devices; they come to life with start.
func newWorld(t *testing.T, seed uint64, nodes []*node) *world {
	w := &world{
		t: t, h: newHistory(), nodes: nodes, life: 1500 * time.Millisecond, interval: 150 * time.Millisecond, seed: seed, done: make(chan struct{}),
		up: map[*device]bool{}, stored: map[*device]int{}, ready: map[*device]string{}, counts: map[string]int{}, open: map[*device]int{},
	}
	w.h.TakeOver = 10 * time.Second
	for _, x := range []struct {
		id, user string
		v        byte
		plain    bool
	}{
		{"ann-phone", "ann", 5, false}, {"ann-desk", "ann", 4, false}, {"bea-phone", "bea", 5, true}, {"cid-meter", "cid", 4, true},
		{"cid-phone", "cid", 5, false}, {"dan-phone", "dan", 4, false}, {"eve-meter", "eve", 5, true}, {"eve-old", "eve", 4, true},
	} {
		d := w.device(x.id, x.user, x.v)
		d.plain, d.filter = x.plain, "im/u/"+x.user+"/+"
		if x.plain {
			d.filter = "im/u/" + x.user
		}
	}
	for i, v := range []byte{4, 5} {
		p := w.device(fmt.Sprint("pub", v), fmt.Sprint("pub", v), v)
		p.topic = fmt.Sprint("plant/", i)
		s := w.device(fmt.Sprint("sub", v), fmt.Sprint("sub", v), v)
		s.filter, s.Topics, s.mute = "plant/+", []string{"t/plant/0", "t/plant/1"}, true
	}
	return w
}

func (w *world) device(id, user string, v byte) *device {
	d := &device{party: party{ID: id, User: user}, w: w, rng: rand.New(rand.NewPCG(w.seed, uint64(100+len(w.devices)))), v: v, tag: id, acks: map[string]*mark{}}
	w.devices = append(w.devices, d)
	return d
}

// twin makes another client that claims to be d.
func (w *world) twin(d *device) {
	e := w.device(d.ID, d.User, d.v)
	e.plain, e.filter, e.second = d.plain, d.filter, true
	d.tag, e.tag = d.ID+"-a", d.ID+"-b"
	d.Twins, e.Twins, d.twin, e.twin = true, true, true, true
}

// start has all devices connect, makes the groups, and has messages sent.
func (w *world) start() {
	w.t.Helper()
	w.quiet = true
	for _, d := range w.devices {
		if !d.ordinary() && !slices.Contains(w.users, d.User) {
			w.users = append(w.users, d.User)
		}
	}
	for _, d := range w.devices {
		if !slices.ContainsFunc(w.h.Devices, func(p party) bool { return p.ID == d.ID }) {
			w.h.Devices = append(w.h.Devices, d.party)
		}
	}
	for _, d := range w.devices {
		w.wg.Go(d.run)
	}
	w.t.Cleanup(w.stop)
	w.until("all devices to be there", func() string {
		for _, d := range w.devices {
			if !d.twin && !w.up[d] {
				return d.ID
			}
		}
		return ""
	})
	for _, user := range w.users {
		w.keep(user)
	}
	boss := w.dial("boss")
	w.group(boss, "team", "small", w.users[:4])
	w.group(boss, "crowd", "large", w.users)
	boss.Disconnect()
	w.set(func() { w.quiet = false })
}

// keep has a user's inbox kept whole, for the dump: what every cursor has passed is trimmed, and here is one that passes nothing.
func (w *world) keep(user string) {
	w.t.Helper()
	c := mqtest.Dial(w.t, w.nodes[0].address, mqtest.Options{Version: 4, User: user, ID: user + "-keeps", Persistent: true})
	if codes := c.Subscribe("im/u/" + user + "/msg"); codes[0] != 1 {
		w.t.Fatalf("%s: %#x", c.ID, codes)
	}
	c.Disconnect()
}

func (w *world) group(boss *mqtest.Client, id, kind string, members []string) {
	boss.OK("group.create", mqtest.Map{"group": id, "name": id, "kind": kind, "members": members}, nil)
	w.h.Groups[id] = group{Members: members, Large: kind == "large"}
}

// dial connects a client that asks, and gets no messages.
func (w *world) dial(user string) *mqtest.Client {
	w.t.Helper()
	for _, n := range w.nodes {
		if c := mqtest.TryDial(w.t, n.address, mqtest.Options{Version: 5, User: user, ID: user + "-asks", Patience: deaf}); c != nil && c.Connack.ReasonCode == 0 {
			c.Subscribe("im/u/" + user + "/reply")
			return c
		}
	}
	w.t.Fatalf("no node lets %s in", user)
	return nil
}

func (w *world) stop() {
	select {
	case <-w.done:
	default:
		close(w.done)
	}
	w.wg.Wait()
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// until waits until lacks, which is called with mu held, says that nothing is lacking any more.
func (w *world) until(what string, lacks func() string) {
	w.t.Helper()
	if !w.wait(what, lacks) {
		w.report()
		w.t.FailNow()
	}
}

// wait is until for those who go on all the same; it reports whether nothing is lacking.
func (w *world) wait(what string, lacks func() string) bool {
	w.t.Helper()
	last := ""
	for end := time.Now().Add(patience); ; {
		w.set(func() { last = lacks() })
		if last == "" {
			return true
		}
		if time.Now().After(end) {
			w.t.Errorf("waited in vain for %s: %s", what, last)
			return false
		}
		w.sleep(nap / 5) // between looks, not instead of them
	}
}

// progress waits until every device has had n more messages stored.
func (w *world) progress(what string, n int) {
	w.t.Helper()
	var from map[*device]int
	w.set(func() { from = maps.Clone(w.stored) })
	w.until(what, func() string {
		for _, d := range w.devices {
			if !d.mute && !d.twin && w.stored[d] < from[d]+n {
				return fmt.Sprintf("%s has had %d messages stored, want %d", d.ID, w.stored[d]-from[d], n)
			}
		}
		return ""
	})
}

// sum waits until all devices together have had n more messages stored.
func (w *world) sum(what string, n int) {
	w.t.Helper()
	total := func() (k int) {
		for _, x := range w.stored {
			k += x
		}
		return k
	}
	from := 0
	w.set(func() { from = total() })
	w.until(what, func() string {
		if k := total() - from; k < n {
			return fmt.Sprintf("%d messages stored, want %d", k, n)
		}
		return ""
	})
}

// count is how often something has happened.
func (w *world) count(what string) (n int) {
	w.set(func() { n = w.counts[what] })
	return n
}

// happens waits until something has happened n more times.
func (w *world) happens(what string, n int) {
	w.t.Helper()
	from := w.count(what)
	w.until(fmt.Sprintf("%q, %d times", what, n), func() string {
		if k := w.counts[what] - from; k < n {
			return fmt.Sprint(k, " times; ", w.counts)
		}
		return ""
	})
}

// finish ends the sending, waits until every message is stored and every device has got everything, and checks it all.
func (w *world) finish() {
	w.t.Helper()
	begin := time.Now()
	w.set(func() { w.quiet = true })
	pending := func() string {
		for _, d := range w.devices {
			if n := w.open[d]; n > 0 {
				return fmt.Sprintf("%s has %d on their way", d.ID, n)
			}
		}
		return ""
	}
	w.until("all messages to be stored", pending)
	stored := time.Since(begin)
	w.set(func() { w.final, w.ready = true, map[*device]string{} })
	w.wait("all cursors to reach their heads", func() string {
		for _, d := range w.devices {
			s, found := w.ready[d]
			if !d.ordinary() && !d.twin && (!found || s != "") {
				return d.ID + ": " + s
			}
		}
		if s := pending(); s != "" {
			return s
		}
		return w.lacking()
	})
	healed := time.Since(begin)
	w.stop()
	w.dump()
	w.report()
	w.t.Logf("all stored after %v, all cursors at their heads after %v", stored.Round(time.Millisecond), healed.Round(time.Millisecond))
	w.faults = append(w.faults, check(w.h)...)
	w.tell()
}

// lacking names something that a subscriber of ordinary topics, or a device that two claim, has not got.
func (w *world) lacking() string {
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	got := map[[2]string]bool{}
	for _, x := range w.h.Deliveries {
		got[[2]string{x.Device, x.Cid}] = true
	}
	for _, s := range w.h.Sends {
		if s.Outcome != ok {
			continue
		}
		for _, d := range w.h.Devices {
			entitled := slices.Contains(d.Topics, s.Conv)
			if !isTopic(s.Conv) && s.Device != d.ID {
				in, large := (&checker{h: w.h}).has(d.User, s.Conv)
				entitled = in || large
			}
			if entitled && !got[[2]string{d.ID, s.Cid}] {
				return d.ID + " has not got " + s.Cid
			}
		}
	}
	return ""
}

// dump reads all inboxes and logs from the store.
func (w *world) dump() {
	w.t.Helper()
	for _, user := range w.users {
		c := w.dial(user)
		d := &device{party: party{User: user}}
		for after := uint64(0); ; {
			var page struct {
				Messages []mqtest.Message
				Next     uint64
				More     bool
			}
			c.OK("sync", mqtest.Map{"after": after, "limit": 500}, &page)
			for _, m := range page.Messages {
				w.h.Inboxes[user] = append(w.h.Inboxes[user], d.entry(&m))
			}
			if after = page.Next; !page.More {
				break
			}
		}
		addresses := []string{"g/crowd"}
		if slices.Contains(w.h.Groups["team"].Members, user) {
			addresses = append(addresses, "g/team")
		}
		for _, peer := range w.users {
			if user < peer {
				addresses = append(addresses, "u/"+peer)
			}
		}
		for _, address := range addresses {
			conv := d.conv(address)
			if w.h.Logs[conv] == nil {
				w.h.Logs[conv] = w.log(c, d, address)
			}
		}
		c.Disconnect()
	}
}

func (w *world) log(c *mqtest.Client, d *device, address string) (list []entry) {
	w.t.Helper()
	for after := uint64(0); ; {
		r, _ := c.Command("history", mqtest.Map{"conv": address, "after": after, "limit": 500})
		if !r.OK {
			w.t.Logf("history of %s: %s", address, r.Error.Code)
			return nil
		}
		var page struct {
			Messages []mqtest.Message
			More     bool
		}
		c.Parse(r.Data, &page)
		for _, m := range page.Messages {
			list = append(list, d.entry(&m))
			after = m.Cseq
		}
		if !page.More {
			return list
		}
	}
}

// tell fails the test with what was found, the first few of each kind.
func (w *world) tell() {
	w.t.Helper()
	n := map[string]int{}
	for _, f := range w.faults {
		if n[f.Kind]++; n[f.Kind] <= 8 {
			w.t.Errorf("%s: %s", f.Kind, f.Text)
		}
	}
	if len(n) > 0 {
		w.t.Errorf("faults: %v", n)
	}
}

// report logs what has happened.
func (w *world) report() {
	w.t.Helper()
	w.set(func() {
		total := 0
		for _, k := range w.stored {
			total += k
		}
		w.t.Logf("seed %d: %d messages stored, %d attempts, %d deliveries, %d reads, %d connections, slowest answer %v; %v",
			w.seed, total, len(w.h.Sends), len(w.h.Deliveries), len(w.h.Reads), w.conns, w.slowest.Round(time.Millisecond), w.counts)
	})
}

// What follows is called by the devices.

func (w *world) over() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

// sleep paces those who try again; the end of the world wakes them.
func (w *world) sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.done:
	}
}

func (w *world) sending() (on bool)   { w.set(func() { on = !w.quiet }); return on }
func (w *world) finishing() (on bool) { w.set(func() { on = w.final }); return on }

// pick chooses a node: the one at an address, or any, another than the last if possible.
func (w *world) pick(rng *rand.Rand, last *node, address string) *node {
	for _, n := range w.nodes {
		if n.address == address {
			w.note("followed a reference")
			return n
		}
	}
	var open []*node
	w.set(func() {
		for _, n := range w.nodes {
			if !slices.Contains(w.left, n) {
				open = append(open, n)
			}
		}
	})
	if i := slices.Index(open, last); i >= 0 && len(open) > 1 {
		open = slices.Delete(open, i, i+1)
	}
	return open[rng.IntN(len(open))]
}

func (w *world) connection() (n int) { w.set(func() { w.conns++; n = w.conns }); return n }

func (w *world) note(what string) { w.set(func() { w.counts[what]++ }) }

func (w *world) fault(kind, format string, args ...any) {
	w.set(func() { w.faults = append(w.faults, fault{kind, fmt.Sprintf(format, args...)}) })
}

// pending notes how many messages a device has on their way.
func (w *world) pending(d *device, n int) { w.set(func() { w.open[d] = n }) }

// online notes whether a device is connected and subscribed.
func (w *world) online(d *device, on bool) { w.set(func() { w.up[d] = on }) }

// refused judges a CONNACK: a server may say that it cannot serve now, and send clients elsewhere, and nothing else.
func (w *world) refused(d *device, code byte) {
	w.note(fmt.Sprintf("CONNACK %#x", code))
	if d.v == 5 && !slices.Contains([]byte{0x88, 0x89, 0x9c}, code) || d.v == 4 && code != 3 {
		w.fault("refused connection", "%s on %s: %#x", d.ID, d.at.name, code)
	}
}

// complained judges the refusal of a command that must succeed: the store may be unavailable, and nothing else.
func (w *world) complained(d *device, what, code string) {
	w.note(what + " " + code)
	if code != "unavailable" {
		w.fault("refused", "%s: %s: %s", d.ID, what, code)
	}
}

// sentAway notes a DISCONNECT.
func (w *world) sentAway(reason byte) {
	w.note(fmt.Sprintf("DISCONNECT %#x", reason))
}

// passing are the refusals after which a client sends again: the store cannot commit now (in a reply, in a PUBACK, in
// one for an ordinary topic), or the node is overloaded, as it is when commits take seconds.
var passing = []string{"unavailable", "store cannot commit", "implementation specific error", "quota exceeded"}

// outcome notes what became of an attempt.
func (w *world) outcome(d *device, l *letter, o outcome, code string, took time.Duration) {
	switch o {
	case ok:
		w.set(func() {
			w.stored[d]++
			w.counts["stored by "+d.at.name]++
			w.slowest = max(w.slowest, took)
		})
	case refused:
		if !slices.ContainsFunc(passing, func(s string) bool { return strings.Contains(code, s) }) {
			w.fault("refused", "%s: %s", l.cid, code)
		}
		w.note("refused")
	default:
		w.note("no answer")
	}
}

// target chooses whom a device writes to.
func (w *world) target(d *device) string {
	switch n := d.rng.IntN(10); {
	case n < 2:
		return "g/crowd"
	case n < 4 && slices.Contains(w.h.Groups["team"].Members, d.User):
		return "g/team"
	}
	for {
		if peer := w.users[d.rng.IntN(len(w.users))]; peer != d.User {
			return "u/" + peer
		}
	}
}

// caught notes whether a device has got everything.
func (w *world) caught(d *device, all bool, lacks string) {
	w.set(func() {
		if w.ready[d] = lacks; all {
			w.ready[d] = ""
		}
	})
}
