// Package topics is the mochi hook for ordinary topics, everything that is not under im/: publishing, fan-out, retained
// messages, wills and the queues of sessions. mochi keeps the handshake and SUBSCRIBE. Its own trie, fan-out and inflight
// table are not used: under pressure they lose acknowledged messages, deadlock with Receive Maximum, reorder on take-over,
// and let a reader that stalls stall its publishers.
//
//	reg := link.NewRegistry(transport.Options{})
//	server.AddHook(im.New(e, im.Options{Registry: reg}), nil)
//	server.AddHook(topics.New(server, topics.Options{Registry: reg, Store: st}), nil)
//	reg.Exclusive()
//
// The hook needs hooks/im before it, which claims connections and calls this hook through the link.Registry that both
// share. It knows no engine and no configuration.
//
// A publish is handled on the publisher's reading goroutine, from the frame to each subscriber's write buffer, and never
// waits for a subscriber: what does not fit waits in the subscriber's session, bounded. Where it concerns a session that
// outlives its connection, or is to be retained, it is in the store before it is acknowledged and shown to anybody:
// link.Journal has many of them stored at a time. Sessions, subscriptions, queues, retained messages and wills are in
// the store, and of a session in memory only while its client is connected.
//
// Subscriptions are checked when they are made, by whoever answers OnACLCheck, again by Recheck, which is to be
// called when rules have changed, and when a session is resumed.
//
// Handlers of mochi's inline subscriptions run on the goroutine that delivers everything that is stored: they must not
// wait, and one that publishes does so on a goroutine of its own.
package topics

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"golang.org/x/time/rate"

	"github.com/mqim/mqim/bus"
	imhook "github.com/mqim/mqim/hooks/im"
	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/store"
)

// Options are the hook's settings. Registry and Store are required.
type Options struct {
	Registry *link.Registry // the one that hooks/im has
	Store    store.Store    // stays the caller's to close, after the server. Its own limits bound queues and retained messages
	// Allow reports whether a client may publish to a topic (write), or subscribe to a filter. It is asked for each
	// publish, for wills when the client connects and again when they are due, and by Recheck. nil allows everything.
	Allow func(cl *mqtt.Client, topic string, write bool) bool

	// Of sessions that end with their connection:
	QueueMessages int // messages that wait for room; default 10,000
	QueueBytes    int // their size; default 4 MiB. Also what is sent and not acknowledged in a durable session
	// RefuseWhenFull refuses a message at QoS 1 or 2 that one of its subscribers on this node has no room for; otherwise the
	// oldest of what waits is dropped, as it is on other nodes in any case.
	RefuseWhenFull bool

	// Bus is to the other nodes, which share Store; nil: there are none. It is started after the hook was made, and when the
	// server serves Ready says when other nodes' subscribers are known. Subscriptions that the program which embeds the server
	// has made, and $SYS, stay within the node.
	Bus bus.Bus
	// Trusted is 0 while another node may have changed something unheard; otherwise a number that is another one each time
	// that this is over: see bus.Trust. Called for each publish. nil: as Bus is up.
	Trusted func() uint64
	Look    time.Duration // how often the store is asked for what no other node has told of; default 30 s

	// System is the tree under $SYS, which PublishSystem publishes; nil leaves it to mochi.
	System []SystemTopic

	Metrics Metrics      // nil: none are kept
	Log     *slog.Logger // nil: slog.Default
}

// Metrics are told what happens. Methods are called often, from many goroutines, with locks held.
type Metrics interface {
	// TopicDelivered: n messages were handed to subscribers' connections.
	TopicDelivered(n int)
	// Dropped: a message was not delivered to a subscriber, or not taken from a publisher; reason is one of those below.
	Dropped(reason string)
}

type noMetrics struct{}

func (noMetrics) TopicDelivered(int) {}
func (noMetrics) Dropped(string)     {}

// The reasons to drop a message, as they are counted.
const (
	dropNoRoom      = "topic_qos0_no_room"        // QoS 0, and the subscriber does not read fast enough
	dropOffline     = "topic_qos0_offline"        // QoS 0, and the subscriber has a session but no connection
	dropMessages    = "topic_queue_messages"      // the session's queue is full
	dropBytes       = "topic_queue_bytes"         // the session's queue is full
	dropExpired     = "topic_expired"             // Message Expiry Interval passed while it waited
	dropTooLarge    = "topic_too_large"           // larger than the subscriber's Maximum Packet Size
	dropEnded       = "topic_session_ended"       // the session was over before it was delivered
	dropRefused     = "topic_queue_refused"       // a subscriber's queue is full, and the publisher was told so
	dropUnavailable = "topic_unavailable"         // the store cannot commit now
	dropDenied      = "topic_denied"              // the publisher may not publish there
	dropInvalid     = "topic_invalid"             // not a topic to publish to
	dropRetained    = "topic_retained_full"       // no room for one more retained message
	dropWill        = "topic_will_denied"         // the rules have changed since the client connected
	dropRejected    = "topic_outside_session"     // from a client that hooks/im has not claimed
	dropUnreachable = "topic_cluster_unreachable" // for subscribers on another node, whose sessions are not stored
)

// Hook is the hook. Its methods may be called concurrently.
type Hook struct {
	mqtt.HookBase
	server    *mqtt.Server
	opt       Options
	log       *slog.Logger
	metrics   Metrics
	store     store.Store
	journal   *link.Journal
	doneKicks kicks // the journal's
	index     index // sessions that end with their connection
	durables  index // with a cluster: connected sessions that are stored
	routes    routes
	arriving  routes // of what comes from other nodes; the version is that of routes
	matches   matches
	cluster   *cluster // nil: there are no other nodes
	cursors   cursors
	loading   chan struct{} // bounds the pages that loaders hold in memory
	stamps    atomic.Uint64 // the next kicks.stamp
	retaining atomic.Int64  // retained messages that are not stored yet
	finding   sync.Once     // of the wills that were left
	found     chan struct{} // closed when they are
	loud      rate.Sometimes
	losses    atomic.Uint64 // dropped since the hook was made

	mu       sync.RWMutex        // guards what follows; taken after a session's and before mochi's locks
	sessions map[string]*session // of those who are connected, by client id
	wills    map[string]*delayed // that wait for their delay, by client id
	stopped  bool
	// recheck says that stored subscriptions are to be looked at, and rechecking that a goroutine is at it.
	recheck, rechecking bool

	running sync.WaitGroup // loaders, recheckStored, and wills that are being published by their timers
}

// New returns the hook for a server. The caller adds it, after hooks/im.
func New(server *mqtt.Server, o Options) *Hook {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.QueueMessages, 10_000)
	def(&o.QueueBytes, 4<<20)
	if o.Look == 0 {
		o.Look = 30 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	h := &Hook{
		server: server, opt: o, log: o.Log, metrics: o.Metrics, store: o.Store,
		loading:  make(chan struct{}, loaders),
		found:    make(chan struct{}),
		loud:     rate.Sometimes{First: 1, Interval: 10 * time.Second},
		sessions: map[string]*session{},
		wills:    map[string]*delayed{},
	}
	if h.metrics == nil {
		h.metrics = noMetrics{}
	}
	h.cursors.h = h
	h.doneKicks.stamp = h.stamps.Add(1)
	h.journal = link.NewJournal(o.Store, o.Log, func() { h.doneKicks.flush(h) })
	o.Registry.Handle(h)
	o.Registry.Journal(h.journal)
	o.Registry.BeforeRelease(h.release)
	o.Registry.OnRenew(h.renewed)
	if o.Bus != nil {
		h.cluster = newCluster(h, o.Bus)
		h.index.counted, h.durables.counted = h.cluster.counted, h.cluster.counted
		o.Registry.OnYield(h.yield)
	}
	return h
}

// ID implements mqtt.Hook.
func (h *Hook) ID() string { return "topics" }

// Provides implements mqtt.Hook.
func (h *Hook) Provides(b byte) bool {
	switch b {
	case mqtt.OnConnect, mqtt.OnSessionEstablish, mqtt.OnSessionEstablished, mqtt.OnDisconnect,
		mqtt.OnPacketProcessed, mqtt.OnSubscribe, mqtt.OnSubscribed, mqtt.OnUnsubscribe, mqtt.OnUnsubscribed,
		mqtt.OnPublish, mqtt.OnStarted:
		return true
	}
	return false
}

// OnStarted looks for the wills that an earlier run has left.
func (h *Hook) OnStarted() {
	h.findWills()
	if c := h.cluster; c != nil {
		h.spawn(c.run)
		h.spawn(c.lookLoop)
	}
}

// spawn runs f on a goroutine that Stop waits for. It reports whether it did.
func (h *Hook) spawn(f func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return false
	}
	h.running.Go(f)
	return true
}

// Drain waits until everything that was accepted before the call is stored and answered.
func (h *Hook) Drain(ctx context.Context) error { return h.journal.Flush(ctx) }

// Stop implements mqtt.Hook: what was accepted is stored. Wills that wait for their delay go on waiting at the next start.
// A second call does nothing.
func (h *Hook) Stop() error {
	h.mu.Lock()
	if !h.stopped && h.cluster != nil {
		close(h.cluster.quit)
	}
	h.stopped = true
	for _, w := range h.wills {
		w.timer.Stop()
	}
	clear(h.wills)
	h.mu.Unlock()
	h.opt.Registry.Close()
	h.running.Wait()
	h.cursors.stop()
	h.journal.Close()
	return nil
}

// client is what the hook keeps of a connection. It is the reading goroutine's, but for pending and stamp.
type client struct {
	h       *Hook
	c       *link.Conn
	s       *session // nil before the session is established
	last    *route   // the last publish's
	scratch []byte   // properties of a copy
	kicks   kicks
	will    *store.Will
	asked   []request    // the SUBSCRIBE that is being answered
	fresh   bool         // and whether it has a filter that the session has not, or not so
	pending atomic.Int32 // publishes that are being stored: what comes after waits its turn behind them
	stamp   uint64       // of the journal's kicks
	ended   bool
}

var errNeedsIM = errors.New("hooks/topics: hooks/im must be added to the server before it")

// OnConnect checks the will and takes it out of mochi's hands.
func (h *Hook) OnConnect(cl *mqtt.Client, pk packets.Packet) error {
	c := link.Of(cl)
	if c == nil {
		h.log.Error("connection refused", "error", errNeedsIM)
		return errNeedsIM
	}
	x := &client{h: h, c: c}
	x.kicks.stamp = h.stamps.Add(1)
	if err := x.takeWill(&pk); err != nil {
		return err
	}
	c.Topics = x
	c.AfterEnd(func() { x.end(mqtt.ErrConnectionClosed, !c.Session.Persistent()) }) // if OnDisconnect is not called
	return nil
}

func clientOf(cl *mqtt.Client) *client {
	if c := link.Of(cl); c != nil {
		x, _ := c.Topics.(*client)
		return x
	}
	return nil
}

// OnSessionEstablish begins the session, or goes on with the one that is stored: mochi is shown its subscriptions. mochi
// itself may have another opinion, since it resumes sessions that ended with their connection.
func (h *Hook) OnSessionEstablish(cl *mqtt.Client, pk packets.Packet) {
	x := clientOf(cl)
	if x == nil || cl.Closed() {
		return
	}
	if old, ok := h.server.Clients.Get(cl.ID); ok && old != cl {
		h.server.UnsubscribeClient(old)
		h.server.Clients.Delete(cl.ID)
	}
	c := x.c
	s := &session{h: h, client: cl.ID, durable: c.Session.Durable(), epoch: c.Epoch(), will: x.will != nil, q: ring{base: 1, next: 1}}
	h.mu.Lock()
	h.sessions[cl.ID] = s
	h.mu.Unlock()
	x.s = s
	resumed := c.Session.Resumed
	err := x.keepWill(resumed)
	if err == nil && resumed {
		if first := h.inherit(cl, s, c.Session.Stored); first {
			h.cluster.wait() // who publishes on another node tells of what comes after the head that restore reads
		}
		err = s.restore(c)
	}
	if err != nil {
		h.log.Warn("a session cannot be resumed", "client", cl.ID, "error", err)
		imhook.Refuse(cl, packets.ErrServerUnavailable, 0x03, "the store cannot be used now")
		if x.will != nil {
			h.removeWill(cl.ID, c.Epoch())
			x.will = nil
		}
		cl.Stop(err)
	}
	c.Session.Stored = nil
}

// inherit lets mochi find a client with the session's subscriptions, for the new one to take over. Those that the rules
// do not allow any more end here. It reports whether other nodes are to be told of a filter.
func (h *Hook) inherit(cl *mqtt.Client, s *session, stored []store.Subscription) (first bool) {
	old := h.server.NewClient(nil, cl.Net.Listener, cl.ID, false)
	old.Properties.ProtocolVersion, old.Properties.Clean = cl.Properties.ProtocolVersion, false
	var gone []store.Subscription
	for i := range stored {
		sub, ok := decodeSubscription(&stored[i])
		switch {
		case !ok || h.opt.Allow != nil && !h.opt.Allow(cl, sub.Filter, false):
			gone = append(gone, stored[i])
		default:
			old.State.Subscriptions.Add(sub.Filter, sub)
			first = h.note(s, &sub) || first
		}
	}
	h.forget(cl, gone)
	h.server.Clients.Add(old)
	return first
}

// note notes what a connected session subscribes to. It reports whether other nodes are to be told of the filter.
func (h *Hook) note(s *session, sub *packets.Subscription) (first bool) {
	switch {
	case !s.durable:
		return h.index.add(s, sub)
	case h.cluster != nil:
		return h.durables.add(s, sub)
	}
	return false
}

// noted is the index that a session is in.
func (h *Hook) noted(s *session) *index {
	if s.durable {
		return &h.durables
	}
	return &h.index
}

// OnSessionEstablished begins delivery: CONNACK is on its way.
func (h *Hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	if x := clientOf(cl); x != nil && x.s != nil {
		for filter := range cl.State.Subscriptions.GetAll() { // that mochi has found with the session
			h.forgo(cl, filter)
		}
		h.routes.changed()
		x.s.attach(x.c)
	}
}

// OnDisconnect lets go of the connection, publishes the will if the client did not say goodbye, and ends the session if
// it ends with the connection.
func (h *Hook) OnDisconnect(cl *mqtt.Client, err error, expire bool) {
	x := clientOf(cl)
	if x == nil {
		return
	}
	if err == nil && !errors.Is(cl.StopCause(), packets.CodeDisconnect) {
		// The connection was closed from here while a packet was being handled, and mochi takes it for a farewell.
		if err = cl.StopCause(); err == nil {
			err = mqtt.ErrConnectionClosed
		}
	}
	x.end(err, expire)
	x.c.Settled()
}

// end is what happens once when a connection ends. err is nil where the client's DISCONNECT ended it, or where it never
// had a session.
func (x *client) end(err error, expire bool) {
	if x.ended || x.s == nil {
		return
	}
	x.ended = true
	h := x.h
	x.kicks.flush(h)
	switch {
	case x.will == nil || x.c.Lost(): // whoever has the client has its will
	case err != nil:
		h.leaveWill(x.will, x.c.Epoch(), x.willDelay(expire))
	default:
		h.removeWill(x.c.Client.ID, x.c.Epoch())
	}
	x.letGo()
}

// willDelay is how long the will waits: no longer than the session lives [MQTT-3.1.3.2.2].
func (x *client) willDelay(expire bool) time.Duration {
	if expire {
		return 0
	}
	delay := time.Duration(x.will.Delay) * time.Second
	if p := &x.c.Client.Properties; p.ProtocolVersion == 5 && p.Props.SessionExpiryInterval < math.MaxUint32 {
		delay = min(delay, time.Duration(p.Props.SessionExpiryInterval)*time.Second)
	}
	return delay
}

// release is called by the registry before somebody else may have the session.
func (h *Hook) release(c *link.Conn, _ bool) {
	if x, _ := c.Topics.(*client); x != nil && x.s != nil {
		x.letGo()
	}
}

// letGo takes the session off the connection, and out of memory.
func (x *client) letGo() {
	h, s, cl := x.h, x.s, x.c.Client
	s.end()
	h.noted(s).leave(s)
	h.mu.Lock()
	mine := h.sessions[s.client] == s
	if mine {
		delete(h.sessions, s.client)
	}
	h.mu.Unlock()
	if now, ok := h.server.Clients.Get(cl.ID); mine && ok && (now == cl || now.Net.Conn == nil) {
		h.server.UnsubscribeClient(now)
		h.server.Clients.Delete(cl.ID)
	}
	h.routes.changed()
}

// drop counts a message that was not delivered, and says so in the log, though not for each.
func (h *Hook) drop(reason, client string) { h.dropN(reason, client, 1) }

func (h *Hook) dropN(reason, client string, n int) {
	if n == 0 {
		return
	}
	total := h.losses.Add(uint64(n))
	for range n {
		h.metrics.Dropped(reason)
	}
	if reason == dropOffline || reason == dropExpired {
		return // as MQTT has it
	}
	h.loud.Do(func() {
		h.log.Warn("messages on ordinary topics dropped (one line in 10 s)", "reason", reason, "client", client, "total", total)
	})
}
