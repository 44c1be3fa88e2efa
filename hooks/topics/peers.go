package topics

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/store"
)

// Each node tells the others what its connected clients subscribe to, each filter once, so that what is published goes to
// the nodes that want it and to no others. It tells what has changed, numbered, and waits for the others to have taken it
// before it tells more: what changes meanwhile gathers. Who has missed something asks for all of it.

// busTopic is the hook's letter on the bus. What a message is about is its first byte.
const (
	busTopic = 't'

	sayChanges = 'd' // a question: answered when the changes are taken
	sayVersion = 'v' // the number of the last changes
	sayAll     = 'q' // a question: a part of everything
	sayMessage = 'p' // a publication
)

// What changes is keyed by one of these and a filter as in SUBSCRIBE. Values are absolute, 0: there is none any more.
const (
	keyPlain  = 'f' // bits: wantClean, wantDurable
	keyShared = 's' // how many members with sessions that end with their connection are connected
	keyMember = 'm' // filter, 0, client: a connected member whose session is stored

	// What has happened, once:
	keyStored = 'x' // stored subscriptions with the filter, everyFilter: any of them, have changed
	keyEnded  = 'y' // a client's session is over
)

const (
	wantClean   = 1 // by a session that ends with its connection
	wantDurable = 2 // by one that is stored
)

const (
	changesPage  = 2000 // in a message
	changesWait  = time.Second
	versionEvery = 5 * time.Second
	heldChanges  = 1000 // messages that wait for everything to have come
	allRetry     = 200 * time.Millisecond
	revealRetry  = 200 * time.Millisecond
	// unheard is how long a node has been silent at most when the others have lost their trust in what they remember: it is
	// missed after 5 s, and looked for every second.
	unheard = 8 * time.Second
)

// change is one of them.
type change struct {
	key   string
	value uint64
}

// cluster is what the hook knows of other nodes, and they of this one.
type cluster struct {
	h   *Hook
	bus bus.Bus

	poke, quit chan struct{}
	turned     chan struct{} // the bus has come up or gone down

	mu      sync.Mutex           // guards what follows; taken after an index's
	own     map[string]uint64    // what the others are to know
	plain   map[string]*interest // by filter: how many want it here
	pending map[string]uint64    // changes that are not told yet
	events  map[string]struct{}  // and what has happened
	batch   *told                // that they are told with
	flying  *told                // that is being told
	version uint64               // of what was told last

	pmu    sync.RWMutex // guards what follows
	peers  map[string]*neighbour
	top    level[remote]
	synced chan struct{} // closed when a peer has become known, and made anew
	down   bool          // when last looked
	fell   time.Time     // when it was first seen to be
}

// interest counts who wants a filter on this node.
type interest struct{ clean, durable int }

func (i *interest) bits() (b uint64) {
	if i.clean > 0 {
		b |= wantClean
	}
	if i.durable > 0 {
		b |= wantDurable
	}
	return b
}

// told is closed when the others know, or some of them cannot be told; which of the two, heard says then.
type told struct {
	done  chan struct{}
	heard bool
}

// neighbour is another node, and what it has told. Guarded by cluster.pmu, but for id.
type neighbour struct {
	id      string
	version uint64
	known   bool
	asking  bool // for everything
	held    []changes
	subs    map[string]*remote // by key
}

// remote is what a node wants.
type remote struct {
	peer   *neighbour
	kind   byte
	filter string
	client string // keyMember
	value  uint64
}

// changes is one message of them.
type changes struct {
	version uint64
	list    []change
	answer  func([]byte)
}

func newCluster(h *Hook, b bus.Bus) *cluster {
	c := &cluster{
		h: h, bus: b, poke: make(chan struct{}, 1), quit: make(chan struct{}), turned: make(chan struct{}, 1),
		own: map[string]uint64{}, plain: map[string]*interest{}, pending: map[string]uint64{}, events: map[string]struct{}{},
		batch: newTold(), peers: map[string]*neighbour{}, synced: make(chan struct{}),
	}
	b.Handle(busTopic, c.heard)
	b.OnChange(c.wake)
	return c
}

func (c *cluster) wake() {
	select {
	case c.poke <- struct{}{}:
	default:
	}
}

func newTold() *told { return &told{done: make(chan struct{})} }

func encodeChanges(version uint64, list []change) []byte {
	b := appendUint([]byte{sayChanges}, version)
	for _, x := range list {
		b = appendUint(appendBytes(b, x.key), x.value)
	}
	return b
}

func decodeChanges(r *reader) (list []change) {
	for len(r.b) > 0 && !r.bad {
		list = append(list, change{string(r.bytes()), r.uint()})
	}
	return list
}

// part answers a question for everything: which part, of how many; 0 of 0 has this node say how many there are.
func (c *cluster) part(r *reader) []byte {
	i, n := r.uint(), r.uint()
	c.mu.Lock()
	defer c.mu.Unlock()
	if n == 0 {
		i, n = 0, uint64(1+len(c.own)/changesPage)
	}
	b := appendUint(appendUint(nil, n), c.version)
	for key, value := range c.own {
		// What is pending may be told here first; values are absolute.
		if n == 1 || xxhash.Sum64String(key)%n == i {
			b = appendUint(appendBytes(b, key), value)
		}
	}
	return b
}

// heard is given what comes from other nodes.
func (c *cluster) heard(m *bus.Message) {
	r := &reader{b: m.Payload}
	switch r.byte() {
	case sayMessage:
		c.receive(m.From, r)
	case sayChanges:
		x := changes{version: r.uint(), answer: m.Answer}
		if x.answer == nil {
			x.answer = func([]byte) {}
		}
		if x.list = decodeChanges(r); !r.bad {
			c.take(m.From, x)
		}
	case sayVersion:
		c.look(m.From, r.uint())
	case sayAll:
		if m.Answer != nil {
			c.h.spawn(func() { m.Answer(c.part(r)) })
		}
	}
}

// peer returns a node, known or not; pmu is held.
func (c *cluster) peer(id string) *neighbour {
	p := c.peers[id]
	if p == nil {
		p = &neighbour{id: id, subs: map[string]*remote{}}
		c.peers[id] = p
		c.wake() // it may be a node that is not there any more
	}
	return p
}

// take takes what a node has told, or keeps it until everything before it has come.
func (c *cluster) take(from string, x changes) {
	var events []change
	c.pmu.Lock()
	p := c.peer(from)
	switch {
	case p.asking && len(p.held) < heldChanges:
		p.held = append(p.held, x)
		x.answer = nil // when it is applied
	case p.asking: // it is asked again
	case x.version == p.version+1:
		c.apply(p, &x)
		if !p.known {
			p.known = true
			c.announce()
		}
	case x.version > p.version:
		p.held = append(p.held, x)
		x.answer = nil
		c.ask(p)
	}
	c.pmu.Unlock()
	for _, y := range x.list {
		if y.key != "" && (y.key[0] == keyStored || y.key[0] == keyEnded) {
			events = append(events, y)
		}
	}
	for _, y := range events {
		if y.key[0] == keyStored {
			c.h.matches.changed(y.key[1:])
		} else {
			c.h.matches.ended(y.key[1:])
		}
	}
	c.h.routes.changed()
	if x.answer != nil {
		x.answer(nil)
	}
}

// look compares what a node says of itself with what is known of it.
func (c *cluster) look(from string, version uint64) {
	c.pmu.Lock()
	defer c.pmu.Unlock()
	if p := c.peer(from); !p.asking && (p.version < version || !p.known) {
		c.ask(p)
	}
}

// apply takes changes; pmu is held.
func (c *cluster) apply(p *neighbour, x *changes) {
	p.version = x.version
	for _, y := range x.list {
		c.put(p, y)
	}
}

func (c *cluster) put(p *neighbour, y change) {
	if y.key == "" || y.key[0] == keyStored || y.key[0] == keyEnded {
		return
	}
	old := p.subs[y.key]
	switch {
	case old != nil && y.value != 0:
		old.value = y.value
	case old != nil:
		_, path := store.SplitShared(old.filter)
		c.top.remove(old, path)
		delete(p.subs, y.key)
	case y.value != 0:
		s := &remote{peer: p, kind: y.key[0], filter: y.key[1:], value: y.value}
		if s.kind == keyMember {
			s.filter, s.client, _ = strings.Cut(s.filter, "\x00")
		}
		_, path := store.SplitShared(s.filter)
		c.top.insert(s, path)
		p.subs[y.key] = s
	}
}

// match calls f with what other nodes want of a topic.
func (c *cluster) match(topic string, f func(*remote)) {
	c.pmu.RLock()
	defer c.pmu.RUnlock()
	c.top.match(topic, strings.HasPrefix(topic, "$"), f)
}

// announce tells those who wait in Ready; pmu is held.
func (c *cluster) announce() {
	close(c.synced)
	c.synced = make(chan struct{})
}

// forget forgets what a node has told; pmu is held.
func (c *cluster) forget(p *neighbour) {
	for key := range p.subs {
		c.put(p, change{key, 0})
	}
}

// reconcile forgets nodes that are gone, and asks new ones for everything; all of them, where messages may be missing.
func (c *cluster) reconcile() {
	up := c.bus.Up()
	c.pmu.Lock()
	back, changed := up && c.down, false
	if up == c.down {
		select {
		case c.turned <- struct{}{}:
		default:
		}
	}
	if !up { // what is known of the others stays, for what cannot be sent to be counted
		if !c.down {
			c.down, c.fell = true, time.Now()
		}
		c.pmu.Unlock()
		return
	}
	c.down = false
	there := map[string]bool{}
	for _, x := range c.bus.Peers() {
		there[x.ID] = true
		if p := c.peers[x.ID]; p == nil || back || !p.known {
			if p = c.peer(x.ID); !p.asking {
				c.ask(p)
			}
		}
	}
	for id, p := range c.peers {
		if !there[id] {
			c.forget(p)
			delete(c.peers, id)
			for _, x := range p.held {
				x.answer(nil)
			}
			p.held = nil
			changed = true
			c.announce()
		}
	}
	c.pmu.Unlock()
	if back {
		c.h.matches.changed(everyFilter)
	}
	if back || changed {
		c.h.routes.changed()
	}
}

// ask has everything asked of a node; pmu is held.
func (c *cluster) ask(p *neighbour) {
	p.asking = true
	if !c.h.spawn(func() { c.askAll(p) }) {
		p.asking = false
	}
}

// askAll asks a node for everything, again where something is missing.
func (c *cluster) askAll(p *neighbour) {
	for try := 0; ; try++ {
		all, version, ok := c.parts(p)
		c.pmu.Lock()
		if ok && c.peers[p.id] == p {
			c.replace(p, all, version)
			ok = p.known
		}
		if ok || c.peers[p.id] != p || try >= 5 || !c.bus.Up() {
			p.asking = false // sayVersion has it asked again
			held := p.held
			p.held = nil
			c.announce()
			c.pmu.Unlock()
			c.h.matches.changed(everyFilter)
			c.h.routes.changed()
			for _, x := range held {
				x.answer(nil)
			}
			return
		}
		c.pmu.Unlock()
		select {
		case <-time.After(allRetry):
		case <-c.quit:
		}
	}
}

// replace has a peer be what it said that it is; p.known is false where changes are missing that came after. pmu is held.
func (c *cluster) replace(p *neighbour, all []change, version uint64) {
	keep := map[string]bool{}
	for _, y := range all {
		keep[y.key] = true
		c.put(p, y)
	}
	for key := range p.subs {
		if !keep[key] {
			c.put(p, change{key, 0})
		}
	}
	p.version, p.known = version, true
	for i := range p.held {
		switch x := &p.held[i]; {
		case x.version <= p.version:
		case x.version == p.version+1:
			c.apply(p, x)
		default:
			p.known = false
		}
	}
	if len(p.held) >= heldChanges {
		p.known = false
	}
}

// parts asks for one part after the other. version is that of the first.
func (c *cluster) parts(p *neighbour) (all []change, version uint64, ok bool) {
	for i, n := uint64(0), uint64(0); i == 0 || i < n; i++ {
		q := appendUint(appendUint([]byte{sayAll}, i), n)
		ctx, cancel := context.WithTimeout(context.Background(), changesWait)
		answers, err := c.bus.Ask(ctx, bus.Channel{Kind: bus.Node, Name: p.id}, busTopic, q)
		cancel()
		if err != nil || len(answers) != 1 {
			return nil, 0, false
		}
		r := &reader{b: answers[0].Payload}
		of, v := r.uint(), r.uint()
		if n == 0 {
			n, version = of, v
		}
		all = append(all, decodeChanges(r)...)
		if r.bad || of != n {
			return nil, 0, false
		}
	}
	return all, version, true
}

// Ready waits until it is known what the clients of all other nodes subscribe to: before that, what is published here does
// not reach all of them. Without Options.Bus it returns at once.
func (h *Hook) Ready(ctx context.Context) error {
	c := h.cluster
	if c == nil {
		return nil
	}
	c.reconcile()
	for {
		c.pmu.RLock()
		synced, ready := c.synced, true
		for _, x := range c.bus.Peers() {
			p := c.peers[x.ID]
			ready = ready && p != nil && p.known && !p.asking
		}
		c.pmu.RUnlock()
		if ready {
			return nil
		}
		select {
		case <-synced:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
