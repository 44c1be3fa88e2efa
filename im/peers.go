package im

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// Between the nodes of a cluster.
//
// The store has the truth; what goes over the bus spares reading it. A node is subscribed to {User} while it has an object of
// the user, to {Group} while a connected device reads the large group, to {Presence} while a connected device watches. What is
// subscribed is read from the store after the subscription stands, so that nothing falls between the two.
//
// A hint brings a message to the node that holds its reader, which hands it over as if it had been committed there: it may
// come early, late or never, since the number that a stream waits for decides, and pumps read the log. What hints say of large groups
// entitles nobody: before a page of a group's log is handed over the store is asked what the user may see of it (spans), and a
// message comes directly only after the one before it. So who has left gets nothing more, whatever is lost.
//
// Hints that are lost are made good by the next one, and by the look at the heads (look.go).

// busTopic is the engine's among those who use the bus.
const busTopic = 'i'

const (
	// askFor is the most that a client waits for other nodes, in a row.
	askFor = time.Second
	// countFor is the most that the answer to a send waits to know whether the peer is connected elsewhere.
	countFor = 100 * time.Millisecond
	// aloneFor is how long it is believed that no other node holds a user.
	aloneFor = 30 * time.Second
	// concurrentAsks questions are under way at a time.
	concurrentAsks = 64
)

// What a payload begins with.
const (
	sayHere     = 'h' // {User}, a question: this node holds the user, too; how far has it acknowledged?
	sayMessages = 'm' // {User}: committed messages
	sayGroup    = 'g' // {Group}: committed messages of a large group
	sayNotify   = 'n' // {User}: a notification, on a Channel
	sayEvent    = 'e' // {Group}: an event
	sayWho      = 'w' // {User}, a question: which devices are there
	sayRemove   = 'r' // {User}, a question: end the session of a device
	sayBlocks   = 'b' // {All}, a question: a block list has changed
	sayChanged  = 'c' // {All}, a question: a group has changed
	sayPresence = 'p' // {Presence}: the user has come or gone
)

// peers is what concerns other nodes.
type peers struct {
	e     *Engine
	bus   bus.Bus
	some  atomic.Bool  // there are other nodes, and the bus is up
	heard atomic.Bool  // the bus is up
	since atomic.Int64 // when one came or went, or the bus did, Unix nanoseconds: what was known of them before is void
	asks  chan struct{}
	again chan struct{} // the bus has come up or gone down: look again at when to look
	out   hints

	mu    sync.Mutex // guards what follows; innermost
	known []string   // ids of the others
	up    bool
	swept string // whose groups were loaded again last, by the look
}

func (e *Engine) initPeers(b bus.Bus, trusted func() uint64) {
	if b == nil {
		return
	}
	p := &peers{e: e, bus: b, asks: make(chan struct{}, concurrentAsks), again: make(chan struct{}, 1)}
	p.out.init(p)
	p.up = b.Up()
	p.ageCaches(trusted)
	e.peers = p
	b.Handle(busTopic, p.receive)
	b.OnChange(p.change)
	p.change()
}

// change takes in which nodes there are, and whether the bus is up.
func (p *peers) change() {
	if p.e.closed.Load() {
		return
	}
	p.mu.Lock()
	p.since.Store(time.Now().UnixNano())
	var ids []string
	for _, x := range p.bus.Peers() {
		ids = append(ids, x.ID)
	}
	up := p.bus.Up()
	back, turned := up && !p.up, up != p.up
	gone := slices.ContainsFunc(p.known, func(id string) bool { return !slices.Contains(ids, id) })
	p.known, p.up = ids, up
	p.heard.Store(up)
	p.some.Store(up && len(ids) > 0)
	p.mu.Unlock()
	if back { // what was said meanwhile has not been heard
		p.e.clearCaches()
	}
	if turned {
		select {
		case p.again <- struct{}{}:
		default:
		}
	}
	if up && (gone || back) { // a bus that is down tells nothing of who is there
		p.e.presence.recheck(back)
	}
}

// keeper reports whether this node does the housekeeping: of the nodes that are there, the one with the lowest id. Where the bus
// is down every node does.
func (p *peers) keeper() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !slices.ContainsFunc(p.known, func(id string) bool { return id < p.bus.ID() })
}

// subscription is one of this node's. It is made where locks are held, and stands when it is waited for.
type subscription struct {
	c    bus.Channel
	done chan struct{} // closed when Subscribe has returned

	begun, stands, over bool // guarded by peers.mu
}

func (p *peers) subscription(k bus.Kind, name string) *subscription {
	return &subscription{c: bus.Channel{Kind: k, Name: name}, done: make(chan struct{})}
}

// begin subscribes. It waits askFor at most: after that the subscription takes effect when the bus can be used again, and
// then the look makes good what was missed. Where somebody else has begun it is waited for.
func (p *peers) begin(ctx context.Context, s *subscription) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	p.mu.Lock()
	begun := s.begun
	s.begun = true
	p.mu.Unlock()
	if begun {
		select {
		case <-s.done:
		case <-ctx.Done():
		}
		return
	}
	defer close(s.done)
	_ = p.bus.Subscribe(ctx, s.c)
	p.mu.Lock()
	s.stands = true
	over := s.over
	p.mu.Unlock()
	if over {
		p.bus.Unsubscribe(s.c)
	}
}

// end undoes begin, which may be under way, or to come. It waits for nothing.
func (p *peers) end(s *subscription) {
	p.mu.Lock()
	stands := s.stands && !s.over
	s.over = true
	p.mu.Unlock()
	if stands {
		p.bus.Unsubscribe(s.c)
	}
}

// beginAll is begin for many at once, askFor in all.
func (p *peers) beginAll(ctx context.Context, list []*subscription) {
	if len(list) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	p.parallel(len(list), func(i int) { p.begin(ctx, list[i]) })
}

// parallel calls f with 0 … n-1 from some goroutines, and waits for them.
func (p *peers) parallel(n int, f func(i int)) {
	if n == 1 {
		f(0)
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(n, concurrentAsks) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}

// publish sends a payload where there is anybody to hear it.
func (p *peers) publish(k bus.Kind, name string, payload []byte, done func(nodes int)) {
	p.bus.Publish(bus.Channel{Kind: k, Name: name}, busTopic, payload, done)
}

// ask asks the other nodes that are subscribed to a channel, for askFor at most. complete says that all have answered.
func (p *peers) ask(ctx context.Context, k bus.Kind, name string, payload []byte) (list []bus.Answer, complete bool) {
	if !p.some.Load() {
		return nil, p.bus.Up()
	}
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	select {
	case p.asks <- struct{}{}:
		defer func() { <-p.asks }()
	case <-ctx.Done():
		return nil, false
	}
	list, err := p.bus.Ask(ctx, bus.Channel{Kind: k, Name: name}, busTopic, payload)
	return list, err == nil
}

// enter has what concerns a user come to this node, before its state is read. The nodes that hold it, too, learn of it, and tell how
// far its devices have acknowledged, which may not be written yet: who acknowledges there and connects here is not to have
// that again. Each of the two takes askFor at most. u.loading is held.
func (p *peers) enter(ctx context.Context, u *user) {
	if u.sub == nil {
		s := p.subscription(bus.User, u.name)
		u.mu.Lock()
		u.sub = s
		u.mu.Unlock()
		p.begin(ctx, s)
	}
	answers, _ := p.ask(ctx, bus.User, u.name, []byte{sayHere})
	for _, a := range answers {
		u.readReached(a.Payload)
	}
}

// appendReached appends how far the user's devices have acknowledged, as far as this node knows.
func (u *user) appendReached(b []byte) []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	b = wire.AppendUvarint(b, u.cursor)
	for conv, cseq := range u.large {
		b = wire.AppendUvarint(wire.AppendString(b, string(conv)), cseq)
	}
	return b
}

// readReached takes in what appendReached wrote.
func (u *user) readReached(b []byte) {
	d := wire.Decoder{B: b}
	cursor := d.Uvarint()
	large := map[store.Conv]uint64{}
	for !d.Bad && d.Off < len(d.B) {
		conv := store.Conv(d.Str())
		large[conv] = d.Uvarint()
	}
	if d.Bad {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.cursor = max(u.cursor, cursor)
	if u.large == nil && len(large) > 0 {
		u.large = map[store.Conv]uint64{}
	}
	for conv, cseq := range large {
		u.large[conv] = max(u.large[conv], cseq)
	}
}

// elsewhere is what a node knows of a user that it holds: whether others hold it, too. At first, after nodes have come or
// gone, and after a while it knows nothing.
type elsewhere struct {
	no  atomic.Int64 // when a publish found nobody, Unix nanoseconds
	yes atomic.Int64 // when another was heard, or found
}

// found notes how many nodes a publish at a moment has reached.
func (x *elsewhere) found(at int64, nodes int) {
	if nodes == 0 {
		raise(&x.no, at)
	} else {
		raise(&x.yes, at)
	}
}

func raise(n *atomic.Int64, to int64) {
	for old := n.Load(); old < to && !n.CompareAndSwap(old, to); old = n.Load() {
	}
}

// reaches reports whether what concerns a user is to be said to other nodes. u is its object; nil: it is not held here.
func (p *peers) reaches(u *user) bool {
	if !p.some.Load() {
		return false
	}
	if u == nil {
		return true
	}
	no := u.elsewhere.no.Load()
	return no <= max(u.elsewhere.yes.Load(), p.since.Load()) || time.Now().UnixNano()-no > aloneFor.Nanoseconds()
}

// say publishes a payload on {User}, and learns from it who is there. u is the user's object, or nil.
func (p *peers) say(name string, u *user, payload []byte, done func(nodes int)) {
	at := time.Now().UnixNano()
	p.publish(bus.User, name, payload, func(nodes int) {
		if u != nil {
			u.elsewhere.found(at, nodes)
		}
		if done != nil {
			done(nodes)
		}
	})
}

// wanted reports whether a notification to a user is worth making: a device here listens on the channel, or there may be one
// elsewhere.
func (e *Engine) wanted(name string, c Channel) bool {
	u := e.user(name)
	if u != nil && (c == Receipts && u.receipts.Load() > 0 || c == Events && u.events.Load() > 0) {
		return true
	}
	return e.peers != nil && e.peers.reaches(u)
}

// notify sends payload on a channel to the user's devices that listen, on all nodes, but for one.
func (e *Engine) notify(name string, c Channel, payload []byte, but *Device) {
	u := e.user(name)
	if u != nil {
		u.notify(c, payload, but)
	}
	if p := e.peers; p != nil && p.reaches(u) {
		p.say(name, u, append([]byte{sayNotify, byte(c)}, payload...), nil)
	}
}

// count asks whether the peers of direct messages are connected elsewhere, while the messages are stored. The function that it
// returns, which may be nil, waits for the answer and notes it: what is not known then counts as not there.
func (p *peers) count(items []*pending) func() {
	if !p.some.Load() {
		return nil
	}
	var list []*pending
	var channels []bus.Channel
	for _, x := range items {
		if x.dev == nil || x.peer == "" || x.peer == x.From || !x.dev.wants(Replies) {
			continue
		}
		if u := p.e.user(x.peer); (u == nil || u.readers.Load() == 0) && p.reaches(u) {
			list = append(list, x)
			channels = append(channels, bus.Channel{Kind: bus.User, Name: x.peer})
		}
	}
	if list == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(p.e.ctx, countFor)
	got := make(chan []int, 1)
	if !p.e.spawn(func() {
		counts, _ := p.bus.Count(ctx, channels)
		got <- counts
	}) {
		cancel()
		return nil
	}
	return func() {
		defer cancel()
		select {
		case counts := <-got:
			for i, n := range counts {
				list[i].elsewhere = n > 0
			}
		case <-ctx.Done():
		}
	}
}

// who tells of each user which devices are connected to other nodes, askFor at most. What does not answer in time is not
// there.
func (p *peers) who(ctx context.Context, names []string) []presentState {
	list := make([]presentState, len(names))
	if !p.some.Load() {
		return list
	}
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	p.parallel(len(names), func(i int) {
		if !p.reaches(p.e.user(names[i])) {
			return
		}
		answers, _ := p.ask(ctx, bus.User, names[i], []byte{sayWho})
		for _, a := range answers {
			list[i].read(names[i], a.Payload)
		}
	})
	return list
}

// presentState is what nodes tell of a user.
type presentState struct {
	devices []store.Device // that are connected
	seen    int64          // Unix milliseconds
}

func (s *presentState) read(user string, b []byte) {
	d := wire.Decoder{B: b}
	n := d.Uvarint()
	var list []store.Device
	for range min(n, uint64(len(b))) {
		x := store.Device{DeviceKey: store.DeviceKey{User: user, Device: d.Str()}, Profile: d.Str(), Cursor: d.Uvarint()}
		list = append(list, x)
	}
	seen := d.Varint()
	if d.Bad {
		return
	}
	now := time.Now().UnixMilli()
	for i := range list {
		list[i].LastSeen = now
	}
	s.devices, s.seen = append(s.devices, list...), max(s.seen, seen)
}

// present is the answer to sayWho.
func (e *Engine) present(name string) []byte {
	var b []byte
	u := e.user(name)
	if u == nil {
		return []byte{0, 0}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	b = wire.AppendUvarint(b, uint64(len(u.devices)))
	for _, d := range u.devices {
		b = wire.AppendString(wire.AppendString(b, d.id), d.profile.String())
		b = wire.AppendUvarint(b, d.inbox.cursor)
	}
	return wire.AppendVarint(b, u.seen)
}

// sleep waits; it returns false when the engine is closing.
func (e *Engine) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-e.ctx.Done():
		return false
	}
}
