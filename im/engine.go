// Package im is the engine: it accepts messages, has them numbered and stored, and delivers them to every device
// that is entitled to them, at least once, in order.
//
// One idea carries it: a message is appended to a log once, durably; everything else is a cursor over a log. What is
// pushed to a device that is caught up is the tail of the same log that an offline device reads later.
//
// The package knows no MQTT and no SQL. A connected device is a [Link], a place to keep messages a [store.Store].
//
// Who owns what:
//
//   - the committer goroutine takes what has queued up and has it stored, one batch after the other;
//   - the deliverer goroutine answers the senders of a committed batch and hands the messages to the devices that
//     are caught up, while the next batch is being synced;
//   - a pump goroutine a device, only while the device is behind and has room, reads pages from the log;
//   - what other nodes say is handed over on the goroutines of the bus, which do what the deliverer does (peers.go);
//   - the flusher goroutine writes cursors and watermarks behind; the receipts and presence goroutines merge and send
//     what they are named after; another one has the store forget what retention lets go.
//
// Rules about groups are decided here, on a version of the group that was read; that it still is the present one is
// decided by the store, in the commit. So what is cached of groups spares work and decides nothing.
//
// Locks: Engine.mu guards who is forgotten, user.mu everything below a user. user.mu is taken inside Engine.mu, never
// the other way round, and of two users' locks never both; feeds.mu, receipts.mu and presence.mu are taken inside
// user.mu. A Link may be called under user.mu and must not call back before it returns.
package im

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/store"
)

// Config are the engine's settings. A limit of 0 is no limit, except where a default is named.
type Config struct {
	Window      int           // messages unacknowledged per device; default 256
	AckTimeout  time.Duration // until a message that the application does not acknowledge is sent again; default 10 s
	MaxAttempts int           // retransmissions, at doubling intervals

	MessageBytes   int     // size of a body
	CommandBytes   int     // size of a command, envelope included
	SendsPerSecond float64 // per user
	SendBurst      int     // per user; at least 1 when SendsPerSecond is set
	DevicesPerUser int     // sessions a user may have
	GroupsPerUser  int     // groups a user may be in

	GroupSmallMax int // members of a group whose messages go to their inboxes; default 500
	GroupLargeMax int // members of any group; default 100,000

	QueueMessages int           // messages waiting for the committer; default 8192
	QueueBytes    int           // their bodies; default 64 MiB
	FlushInterval time.Duration // cursors are written this often; default 200 ms
	PresenceGrace time.Duration // a user who is back within it was never away; default 1 s
	RecallWindow  time.Duration // how long a sender may recall a message

	Bus bus.Bus // to the other nodes; nil: there are none. It is started after the engine was made
	// Trusted is 0 while another node may have changed something unheard; otherwise a number that is another one each time
	// that this is over: see bus.Trust. Called often. nil: as the bus is up.
	Trusted func() uint64
	Look    time.Duration // how often the store is asked for what no other node has told of; default 30 s

	Metrics Metrics      // nil: none are kept
	Log     *slog.Logger // nil: slog.Default
}

func (c Config) withDefaults() Config {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&c.Window, 256)
	def(&c.GroupSmallMax, 500)
	def(&c.GroupLargeMax, 100_000)
	def(&c.QueueMessages, 8192)
	def(&c.QueueBytes, 64<<20)
	if c.AckTimeout == 0 {
		c.AckTimeout = 10 * time.Second
	}
	if c.FlushInterval == 0 {
		c.FlushInterval = 200 * time.Millisecond
	}
	if c.PresenceGrace == 0 {
		c.PresenceGrace = time.Second
	}
	if c.SendsPerSecond > 0 {
		c.SendBurst = max(c.SendBurst, 1)
	}
	if c.Look == 0 {
		c.Look = 30 * time.Second
	}
	if c.Metrics == nil {
		c.Metrics = noMetrics{}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

// Metrics is told what happens. Its methods are called on the hot path, concurrently: they must be cheap.
type Metrics interface {
	Accepted()                                        // a message has been queued for the committer
	Refused(code Code)                                // a message or command has been refused
	Committed(messages, dups int, took time.Duration) // a batch is durable
	Delivered(n int)                                  // first deliveries
	Retransmitted()                                   // a message went out again for want of an ack
	Acked(n int)                                      // messages acknowledged by devices
	Receipt()                                         // a receipt went out
	Dropped(reason string)                            // a notification was not sent, or a message skipped: why
	Queue(messages, bytes int)                        // the committer's queue, sampled once a batch
}

// Engine is the engine of one node. Its methods may be called concurrently.
type Engine struct {
	cfg   atomic.Pointer[Config]
	store store.Store
	log   *slog.Logger
	m     Metrics

	mu    sync.Mutex // guards user.pins and the deletion from users
	users sync.Map   // name → *user: connected, being connected, or with something to flush

	queue      queue
	commits    chan committed  // committed batches on their way to the deliverer
	spares     chan []*pending // and the emptied ones on their way back
	blocks     cache[string, map[string]bool]
	groups     cache[string, standing]
	members    cache[memberKey, part]
	changes    changeLocks
	receipts   receipts
	feeds      feeds
	presence   presence
	peers      *peers // nil: there is no bus
	acquainted acquaintedCache
	pumps      chan struct{} // bounds the pages that pumps hold in memory
	walks      chan struct{} // bounds the commands at work whose cost grows with the members of a group, or with groups
	flushing   chan struct{} // full while the flusher's batch is being stored
	dirty      dirtyList

	ctx    context.Context
	cancel context.CancelFunc
	core   sync.WaitGroup // committer and deliverer
	closed atomic.Bool
	bg     struct {
		sync.Mutex
		sync.WaitGroup // flusher, receipts, pumps, maintenance
		stopped        bool
	}
}

// concurrentWalks commands are the most that may keep processors busy with long walks through the store; others wait, on the
// goroutines that read their connections.
const concurrentWalks = 2

// concurrentPumps pages of about 1 MiB are the most that catching up costs in memory.
const concurrentPumps = 32

// New returns an engine on st, which stays the caller's to close, after the engine.
func New(st store.Store, cfg Config) *Engine {
	cfg = cfg.withDefaults()
	e := &Engine{
		store: st, log: cfg.Log, m: cfg.Metrics,
		commits: make(chan committed, 1),
		spares:  make(chan []*pending, 2),
		pumps:   make(chan struct{}, concurrentPumps),
		walks:   make(chan struct{}, concurrentWalks),

		flushing: make(chan struct{}, 1),
	}
	e.cfg.Store(&cfg)
	e.initCaches()
	e.changes.init()
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.queue.init(cfg.QueueMessages, cfg.QueueBytes)
	e.receipts.init()
	e.feeds.init(e)
	e.presence.init(e)
	e.initPeers(cfg.Bus, cfg.Trusted)
	e.dirty.init()
	e.core.Go(e.commitLoop)
	e.core.Go(e.deliverLoop)
	e.spawn(e.flushLoop)
	e.spawn(e.receiptLoop)
	e.spawn(e.presence.loop)
	e.spawn(e.maintainLoop)
	if e.peers != nil {
		e.spawn(e.peers.lookLoop)
	}
	return e
}

// Reconfigure replaces the settings that may change while running: window, acknowledgement, recall, and the limits of
// users and groups. Sizes, of messages and of the queue, and intervals keep their values.
func (e *Engine) Reconfigure(cfg Config) {
	cfg = cfg.withDefaults()
	old := e.cfg.Load()
	cfg.QueueMessages, cfg.QueueBytes = old.QueueMessages, old.QueueBytes
	cfg.MessageBytes, cfg.CommandBytes = old.MessageBytes, old.CommandBytes
	cfg.FlushInterval, cfg.PresenceGrace = old.FlushInterval, old.PresenceGrace
	cfg.Metrics, cfg.Log, cfg.Bus, cfg.Look = old.Metrics, old.Log, old.Bus, old.Look
	e.cfg.Store(&cfg)
	e.users.Range(func(_, u any) bool {
		u.(*user).limiter.Store(cfg.limiter())
		return true
	})
}

func (c *Config) limiter() *rate.Limiter {
	if c.SendsPerSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(c.SendsPerSecond), c.SendBurst)
}

// Healthy is nil when messages are accepted; otherwise it says why not.
func (e *Engine) Healthy() error {
	if e.closed.Load() {
		return store.ErrClosed
	}
	return e.store.Healthy()
}

// Close commits and answers everything that was accepted, writes the cursors and stops. Devices that are still
// connected get nothing more. A second Close is a no-op.
func (e *Engine) Close(ctx context.Context) error {
	if e.closed.Swap(true) {
		return nil
	}
	e.queue.close()
	e.core.Wait()
	e.cancel() // nothing that runs beside the core has promised anything to anybody
	e.bg.Lock()
	e.bg.stopped = true
	e.bg.Unlock()
	e.bg.Wait()
	e.presence.stop()
	return e.flush(ctx)
}

// walk waits until a command may walk far through the store; it has to call done.
func (e *Engine) walk() (done func()) {
	e.walks <- struct{}{}
	return func() { <-e.walks }
}

// spawn runs f on a goroutine that Close waits for; f must end soon after e.ctx does. It reports whether it did.
func (e *Engine) spawn(f func()) bool {
	e.bg.Lock()
	defer e.bg.Unlock()
	if e.bg.stopped {
		return false
	}
	e.bg.Go(f)
	return true
}

// Drain waits until everything that was accepted before the call has been committed and answered.
func (e *Engine) Drain(ctx context.Context) error {
	done := make(chan struct{})
	p := &pending{op: func(*store.Batch) {}, after: func(error) { close(done) }}
	if !e.queue.put(p) {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// maintainLoop does the store's housekeeping in small pieces: on one node of those that share the store, as far as they hear of
// each other. Where a node hears of none it does, less often: it may be that all do.
func (e *Engine) maintainLoop() {
	const pause = 30 * time.Second
	t := time.NewTimer(pause)
	defer t.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-t.C:
		}
		between := pause
		if p := e.peers; p != nil {
			if !p.keeper() {
				t.Reset(pause)
				continue
			}
			if !p.bus.Up() {
				between = 10 * pause
			}
		}
		more, err := e.store.Maintain(e.ctx, time.Now())
		if err != nil && e.ctx.Err() == nil && !errors.Is(err, store.ErrUnavailable) {
			e.log.Error("retention failed", "error", err)
		}
		if more && err == nil {
			t.Reset(50 * time.Millisecond)
		} else {
			t.Reset(between)
		}
	}
}

type noMetrics struct{}

func (noMetrics) Accepted()                           {}
func (noMetrics) Refused(Code)                        {}
func (noMetrics) Committed(_, _ int, _ time.Duration) {}
func (noMetrics) Delivered(int)                       {}
func (noMetrics) Retransmitted()                      {}
func (noMetrics) Acked(int)                           {}
func (noMetrics) Receipt()                            {}
func (noMetrics) Dropped(string)                      {}
func (noMetrics) Queue(_, _ int)                      {}
