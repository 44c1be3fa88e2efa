// Package cluster connects the nodes of a cluster over Redis: it is bus.Bus on sharded pub/sub (Redis 7 or later), with one
// Redis, several watched by Sentinel, or a Redis Cluster. Nothing is kept in Redis: when it is flushed nothing changes, when
// it is restarted what was under way is lost.
//
// A channel of the bus is a channel of Redis, in one of a fixed number of lanes. A lane is a slot of Redis' (its channels have
// one hash tag), and has two connections: one that is subscribed, which the lane's goroutine run makes and reads, and one to
// publish, which its goroutine flush uses. While flush waits for the answers to one pipeline, what is published meanwhile
// gathers, by channel: the next pipeline has one SPUBLISH for each channel. Subscriptions gather likewise. There is no timer.
//
// A lane is up when Redis has confirmed all its subscriptions and a probe that it published to itself has come back. Whatever
// goes wrong on either connection takes the lane down: both are made anew. The bus is up when all lanes are, and the other
// nodes have been greeted; the goroutine manage sees to that, sends the signs of life, and misses those of others.
package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mqim/mqim/bus"
	"github.com/redis/go-redis/v9"
)

// Options says where Redis is. Only Addresses is needed.
type Options struct {
	// Addresses are host:port: one of a Redis alone; several of a Redis Cluster; with Master one or several of Sentinels.
	Addresses          []string
	Username, Password string
	DB                 int    // of a Redis Cluster 0. Pub/sub does not know databases: Prefix keeps clusters apart
	Master             string // the name that Sentinel has for the master
	// SentinelUsername and SentinelPassword are for the Sentinels, which have users of their own.
	SentinelUsername, SentinelPassword string
	TLS                                *tls.Config  // nil: none
	Prefix                             string       // of all channels, the same on all nodes; "": mqim
	Name                               string       // of this node, for people
	Logger                             *slog.Logger // nil: slog.Default
	// QueueMessages and QueueBytes bound what waits to be published; 0: 100,000 and 64 MiB.
	QueueMessages, QueueBytes int
}

const (
	defaultPrefix        = "mqim"
	defaultQueueMessages = 100_000
	defaultQueueBytes    = 64 << 20
	clusterLanes         = 16 // of a Redis Cluster, to spread over its masters; elsewhere one is enough

	dialTimeout  = 2 * time.Second
	replyTimeout = 2 * time.Second // Redis has not answered a pipeline: the lane is down
	deafTimeout  = 3 * time.Second // the lane's own probe has not come back: it is down
	beatEvery    = time.Second     // signs of life and probes
	goneAfter    = 5 * time.Second // a node that has given no sign of life
	greetTimeout = time.Second     // for the others to answer a new node
	startTimeout = 5 * time.Second // for Redis to answer a new node
	byeTimeout   = 500 * time.Millisecond
	announceGap  = 100 * time.Millisecond // between signs of life, however often Announce is called
	backoffLeast = 50 * time.Millisecond  // between attempts to connect
	backoffMost  = time.Second
	steady       = 10 * time.Second // a connection that has lasted so long is no reason to wait before the next
)

// Bus is the connection of one node. It implements bus.Bus.
type Bus struct {
	opts   Options
	log    *slog.Logger
	id     string
	client redis.UniversalClient
	lanes  []*lane

	// Set before Start, then read only.
	handlers [256]func(*bus.Message)
	onChange []func()

	session    atomic.Pointer[session] // nil: down
	changed    atomic.Bool             // OnChange is to be called
	poke       chan struct{}           // something for manage to look at
	announce   chan struct{}
	closing    atomic.Bool
	stop       context.CancelFunc
	ctx        context.Context // ends with the Bus
	wg         sync.WaitGroup
	connecting atomic.Int64  // lanes that have not been connected yet
	connected  chan struct{} // closed when there are none
	wrong      chan error    // what makes Start give up: one entry is enough
	first      chan error    // the first failure of each attempt to connect, for Start

	mu    sync.Mutex
	peers map[string]*peer
	info  []byte
	asks  map[uint64]*ask
	asked uint64

	senders senders
	refused refused
	counters
}

// session is the time from the bus' coming up until it goes down.
type session struct{ down chan struct{} }

var _ bus.Bus = (*Bus)(nil)

// Open checks the settings. It connects to nothing yet: that is Start.
func Open(_ context.Context, opts Options) (*Bus, error) {
	if opts.Prefix == "" {
		opts.Prefix = defaultPrefix
	}
	if opts.QueueMessages == 0 {
		opts.QueueMessages = defaultQueueMessages
	}
	if opts.QueueBytes == 0 {
		opts.QueueBytes = defaultQueueBytes
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	b := &Bus{
		opts: opts, log: opts.Logger, id: newID(), poke: make(chan struct{}, 1), announce: make(chan struct{}, 1),
		connected: make(chan struct{}), wrong: make(chan error, 1), first: make(chan error, 1),
		peers: map[string]*peer{}, asks: map[uint64]*ask{},
	}
	b.senders.list = map[string]*sender{}
	b.refused.wake = make(chan struct{}, 1)
	b.handlers[0] = b.sign
	lanes := 1
	switch {
	case len(opts.Addresses) == 0:
		return nil, wrong("no address of Redis: set cluster.redis.addresses")
	case strings.ContainsAny(opts.Prefix, "{}:"):
		return nil, wrong(`cluster.redis.prefix has one of "{}:"`)
	case opts.Master == "" && len(opts.Addresses) > 1:
		if opts.DB != 0 {
			return nil, wrong("a Redis Cluster has no database but 0, and cluster.redis.addresses has several addresses: leave cluster.redis.db out, or, if they are of Sentinels, set cluster.redis.master")
		}
		lanes = clusterLanes
	}
	b.client = newClient(opts)
	b.connecting.Store(int64(lanes))
	b.ctx, b.stop = context.WithCancel(context.Background())
	for i := range lanes {
		b.lanes = append(b.lanes, newLane(b, i))
	}
	b.keep(bus.Channel{Kind: bus.All})
	b.keep(bus.Channel{Kind: bus.Node, Name: b.id})
	return b, nil
}

// keep subscribes for the life of the Bus; before Start.
func (b *Bus) keep(c bus.Channel) {
	l := b.lane(c)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(c)
}

// Start connects, once. When it returns nil the bus is up, and all other nodes that answered within a second know this one.
// Where Redis does not answer within 5 seconds, or refuses the connection, the error is bus.ErrDown: the bus goes on trying, and
// serves when it can. ErrSettings: it would try in vain; what is wrong is in the text, and the Bus is closed.
func (b *Bus) Start(ctx context.Context) error {
	for _, l := range b.lanes {
		b.wg.Add(2)
		go l.run()
		go l.flush()
	}
	b.wg.Add(2)
	go b.manage()
	go b.refused.run(b)
	timer := time.NewTimer(startTimeout)
	defer timer.Stop()
	up := time.NewTicker(5 * time.Millisecond)
	defer up.Stop()
	for {
		select {
		case err := <-b.wrong:
			b.Close()
			return err
		case err := <-b.first:
			select {
			case better := <-b.wrong: // another lane knows better
				b.Close()
				return better
			default:
				return err
			}
		case <-up.C:
			if b.Up() {
				return nil
			}
		case <-timer.C:
			return fmt.Errorf("%w: Redis does not answer", bus.ErrDown)
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", bus.ErrDown, ctx.Err())
		}
	}
}

// Close says goodbye, so that the others do not wait for a sign of life, and disconnects. It may be called more than once.
func (b *Bus) Close() {
	if b.closing.Swap(true) {
		b.wg.Wait()
		return
	}
	if b.Up() {
		b.leave()
	}
	b.fall(errors.New("closed"))
	b.stop()
	for _, l := range b.lanes {
		l.fail(l.current(), context.Canceled)
	}
	_ = b.client.Close()
	b.wg.Wait()
}

// leave ends the subscriptions first: then nobody counts on an answer of this node, and those that do have it.
func (b *Bus) leave() {
	timeout := time.After(byeTimeout)
	for _, l := range b.lanes {
		select {
		case <-l.leave():
		case <-timeout:
			return
		}
	}
	// What follows the last answers in each lane is told when they are sent: goodbye in one, in others a probe that nobody hears.
	all := bus.Channel{Kind: bus.All}
	said := make(chan int, len(b.lanes))
	for _, l := range b.lanes {
		c, f := l.self, l.probe()
		if l == b.lane(all) {
			c, f = all, &frame{kind: kindMessage, payload: []byte{signBye}}
		}
		l.enqueue(c, f, func(nodes int) { said <- nodes })
	}
	for range b.lanes {
		select {
		case <-said:
		case <-timeout:
			return
		}
	}
}

// ID implements bus.Bus.
func (b *Bus) ID() string { return b.id }

// Handle implements bus.Bus. Topic 0 is the bus' own.
func (b *Bus) Handle(topic byte, f func(*bus.Message)) {
	if topic == 0 {
		panic("cluster: topic 0 is the bus' own")
	}
	b.handlers[topic] = f
}

// OnChange implements bus.Bus. Between going down and coming up f is always called, so that it sees Up say false.
func (b *Bus) OnChange(f func()) { b.onChange = append(b.onChange, f) }

// Up implements bus.Bus.
func (b *Bus) Up() bool { return b.session.Load() != nil }

// lane is where a channel is: on all nodes the same.
func (b *Bus) lane(c bus.Channel) *lane {
	if len(b.lanes) == 1 {
		return b.lanes[0]
	}
	h := (uint32(2166136261) ^ uint32(c.Kind)) * 16777619 // FNV-1a
	for i := range len(c.Name) {
		h = (h ^ uint32(c.Name[i])) * 16777619
	}
	return b.lanes[h%uint32(len(b.lanes))]
}

// Subscribe implements bus.Bus.
func (b *Bus) Subscribe(ctx context.Context, c bus.Channel) error {
	s := b.session.Load()
	l := b.lane(c)
	l.mu.Lock()
	confirmed := l.add(c)
	l.mu.Unlock()
	if s == nil {
		return bus.ErrDown
	}
	if confirmed == nil {
		return nil
	}
	select {
	case <-confirmed:
		return nil
	case <-s.down:
		return bus.ErrDown
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Unsubscribe implements bus.Bus.
func (b *Bus) Unsubscribe(c bus.Channel) {
	l := b.lane(c)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remove(c)
}

// Publish implements bus.Bus.
func (b *Bus) Publish(c bus.Channel, topic byte, payload []byte, done func(nodes int)) {
	if !b.Up() {
		b.drop(dropDown, done)
		return
	}
	b.lane(c).enqueue(c, &frame{kind: kindMessage, topic: topic, payload: payload}, done)
}

// drop counts a message that is not sent.
func (b *Bus) drop(reason int, done func(int)) {
	b.dropped[reason].Add(1)
	if done != nil {
		b.refused.add(done)
	}
}

// refused are those whose message was not sent. They are told on a goroutine of their own: who publishes may hold a lock that
// done wants. None of them waits, so the list is short.
type refused struct {
	mu   sync.Mutex
	list []func(int)
	wake chan struct{}
}

func (r *refused) add(done func(int)) {
	r.mu.Lock()
	r.list = append(r.list, done)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *refused) tell() {
	r.mu.Lock()
	list := r.list
	r.list = nil
	r.mu.Unlock()
	for _, done := range list {
		done(-1)
	}
}

func (r *refused) run(b *Bus) {
	defer b.wg.Done()
	for {
		select {
		case <-r.wake:
			r.tell()
		case <-b.ctx.Done():
			r.tell()
			return
		}
	}
}
