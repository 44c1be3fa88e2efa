// Package topics is the mochi hook for ordinary topics, everything that is not under im/: publishing, fan-out, retained
// messages, wills and the queues of sessions. mochi keeps the handshake, the subscriptions and the trie that matches
// them. Its own fan-out and inflight table are not used: under pressure they lose acknowledged messages, deadlock with
// Receive Maximum, reorder on take-over, and let a reader that stalls stall its publishers.
//
//	reg := link.NewRegistry(transport.Options{})
//	server.AddHook(im.New(e, im.Options{Registry: reg}), nil)
//	server.AddHook(topics.New(server, topics.Options{Registry: reg}), nil)
//	reg.Exclusive()
//
// The hook needs hooks/im before it, which claims connections and calls this hook through the link.Registry that both
// share. It knows no engine and no configuration.
//
// A publish is handled on the publisher's reading goroutine, from the frame to each subscriber's write buffer, and never
// waits for a subscriber: what does not fit waits in the subscriber's session, bounded, and what does not fit there is
// dropped, counted and logged. Sessions are in memory.
//
// Subscriptions are checked when they are made, by whoever answers OnACLCheck, and again by Recheck, which is to be
// called when rules have changed.
package topics

import (
	"errors"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"golang.org/x/time/rate"

	"github.com/mqim/mqim/hooks/link"
)

// Options are the hook's settings. Registry is required.
type Options struct {
	Registry *link.Registry // the one that hooks/im has
	// Allow reports whether a client may publish to a topic (write), or subscribe to a filter. It is asked for each
	// publish, for wills when the client connects and again when they are due, and by Recheck. nil allows everything.
	Allow func(cl *mqtt.Client, topic string, write bool) bool

	QueueMessages int // messages that wait in a session for room or for a connection; default 1000
	QueueBytes    int // their size, and again that of those sent and not acknowledged; default 4 MiB

	RetainedMessages int // default 100,000
	RetainedBytes    int // default 256 MiB

	Metrics Metrics      // nil: none are kept
	Log     *slog.Logger // nil: slog.Default
}

// Metrics are told what happens. Methods are called often, from many goroutines, with locks held.
type Metrics interface {
	// TopicDelivered: n messages were handed to subscribers' connections.
	TopicDelivered(n int)
	// Dropped: a message was not delivered to a subscriber, or not taken from a publisher; reason is one of a dozen words.
	Dropped(reason string)
}

type noMetrics struct{}

func (noMetrics) TopicDelivered(int) {}
func (noMetrics) Dropped(string)     {}

// The reasons to drop a message, as they are counted.
const (
	dropNoRoom   = "topic_qos0_no_room"    // QoS 0, and the subscriber does not read fast enough
	dropOffline  = "topic_qos0_offline"    // QoS 0, and the subscriber has a session but no connection
	dropMessages = "topic_queue_messages"  // the session's queue is full
	dropBytes    = "topic_queue_bytes"     // the session's queue is full
	dropExpired  = "topic_expired"         // Message Expiry Interval passed while it waited
	dropTooLarge = "topic_too_large"       // larger than the subscriber's Maximum Packet Size
	dropEnded    = "topic_session_ended"   // the session was over before it was delivered
	dropDenied   = "topic_denied"          // the publisher may not publish there
	dropInvalid  = "topic_invalid"         // not a topic to publish to
	dropRetained = "topic_retained_full"   // no room for one more retained message
	dropWill     = "topic_will_denied"     // the rules have changed since the client connected
	dropRejected = "topic_outside_session" // from a client that hooks/im has not claimed
)

// Hook is the hook. Its methods may be called concurrently.
type Hook struct {
	mqtt.HookBase
	server   *mqtt.Server
	opt      Options
	log      *slog.Logger
	metrics  Metrics
	retained retained
	routes   routes
	stamps   atomic.Uint64 // the next kicks.stamp
	loud     rate.Sometimes
	losses   atomic.Uint64 // dropped since the hook was made

	mu       sync.RWMutex        // guards what follows; taken after a session's and before mochi's locks
	sessions map[string]*session // by client id
	wills    map[*delayed]bool   // that wait for their delay
	stopped  bool
	firing   sync.WaitGroup // wills that are being published by their timers
}

// New returns the hook for a server. The caller adds it, after hooks/im.
func New(server *mqtt.Server, o Options) *Hook {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.QueueMessages, 1000)
	def(&o.QueueBytes, 4<<20)
	def(&o.RetainedMessages, 100_000)
	def(&o.RetainedBytes, 256<<20)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	h := &Hook{
		server: server, opt: o, log: o.Log, metrics: o.Metrics,
		retained: retained{maxMessages: o.RetainedMessages, maxBytes: o.RetainedBytes},
		loud:     rate.Sometimes{First: 1, Interval: 10 * time.Second},
		sessions: map[string]*session{},
		wills:    map[*delayed]bool{},
	}
	if h.metrics == nil {
		h.metrics = noMetrics{}
	}
	o.Registry.Handle(h)
	return h
}

// ID implements mqtt.Hook.
func (h *Hook) ID() string { return "topics" }

// Provides implements mqtt.Hook.
func (h *Hook) Provides(b byte) bool {
	switch b {
	case mqtt.OnConnect, mqtt.OnSessionEstablish, mqtt.OnSessionEstablished, mqtt.OnDisconnect, mqtt.OnClientExpired,
		mqtt.OnPacketProcessed, mqtt.OnSubscribe, mqtt.OnSubscribed, mqtt.OnUnsubscribed, mqtt.OnPublish:
		return true
	}
	return false
}

// Stop implements mqtt.Hook: wills that wait for their delay are given up.
func (h *Hook) Stop() error {
	h.mu.Lock()
	h.stopped = true
	for w := range h.wills {
		w.timer.Stop()
	}
	clear(h.wills)
	h.mu.Unlock()
	h.firing.Wait()
	return nil
}

// client is what the hook keeps of a connection. It is the reading goroutine's.
type client struct {
	h       *Hook
	c       *link.Conn
	s       *session // nil before the session is established
	last    *route   // the last publish's
	scratch []byte   // properties of a copy
	kicks   kicks
	will    *will
	asked   []request // the SUBSCRIBE that is being answered
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

// saved is the session's state from earlier connections, nil if there is none.
func (x *client) saved() *session {
	x.c.Session.Lock()
	defer x.c.Session.Unlock()
	s, _ := x.c.Session.Topics.(*session)
	return s
}

// OnSessionEstablish makes mochi and the registry agree on whether there is a session. They may not: mochi resumes
// sessions that ended with their connection (MQTT 5, Session Expiry 0) or whose expiry it has not noticed yet.
func (h *Hook) OnSessionEstablish(cl *mqtt.Client, pk packets.Packet) {
	x := clientOf(cl)
	if x == nil {
		return
	}
	s := x.saved()
	existing, ok := h.server.Clients.Get(cl.ID)
	switch {
	case s == nil && ok && !pk.Connect.Clean && !(existing.Properties.ProtocolVersion < 5 && existing.Properties.Clean):
		h.server.UnsubscribeClient(existing)
		h.server.Clients.Delete(cl.ID)
	case s != nil && !ok:
		x.c.Session.Lock()
		x.c.Session.Topics, s = nil, nil
		x.c.Session.Unlock()
	}
	h.mu.Lock()
	old := h.sessions[cl.ID]
	if old != nil && old != s {
		delete(h.sessions, cl.ID)
	}
	h.mu.Unlock()
	if old != nil && old != s {
		h.routes.changed()
		old.end()
	}
	if s != nil {
		s.reserve(x.c)
	}
}

// OnSessionEstablished begins delivery: CONNACK is on its way.
func (h *Hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	x := clientOf(cl)
	if x == nil {
		return
	}
	persistent := x.c.Session.Persistent()
	s := x.saved()
	if s == nil {
		s = &session{h: h, link: x.c.Session, client: cl.ID, q: ring{base: 1, next: 1}}
		x.c.Session.Lock()
		x.c.Session.Topics = s
		x.c.Session.Unlock()
	}
	h.mu.Lock()
	h.sessions[cl.ID] = s
	h.mu.Unlock()
	x.s = s
	s.attach(x.c, persistent)
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
}

// end is what happens once when a connection ends. err is nil where the client's DISCONNECT ended it, or where it never
// had a session.
func (x *client) end(err error, expire bool) {
	if x.ended || x.s == nil {
		return
	}
	x.ended = true
	h, s := x.h, x.s
	x.kicks.flush(h)
	s.release(x.c)
	if err != nil && x.will != nil {
		s.leaveWill(x.will, x.willDelay(expire))
	}
	if expire {
		h.forget(s)
	}
}

// willDelay is how long the will waits: no longer than the session lives [MQTT-3.1.3.2.2].
func (x *client) willDelay(expire bool) time.Duration {
	if expire {
		return 0
	}
	delay := x.will.delay
	if p := &x.c.Client.Properties; p.ProtocolVersion == 5 && p.Props.SessionExpiryInterval < math.MaxUint32 {
		delay = min(delay, time.Duration(p.Props.SessionExpiryInterval)*time.Second)
	}
	return delay
}

// forget ends a session that no newer one has replaced.
func (h *Hook) forget(s *session) {
	h.mu.Lock()
	if h.sessions[s.client] == s {
		delete(h.sessions, s.client)
	}
	h.mu.Unlock()
	h.routes.changed()
	s.end()
}

// OnClientExpired ends the session of a client that has been away for too long, and removes its subscriptions, which
// mochi leaves in its trie.
func (h *Hook) OnClientExpired(cl *mqtt.Client) {
	if now, ok := h.server.Clients.Get(cl.ID); ok && now != cl {
		return // it is back
	}
	h.mu.RLock()
	s := h.sessions[cl.ID]
	h.mu.RUnlock()
	if s != nil && s.link.Taken() {
		return // it is about to be
	}
	h.server.UnsubscribeClient(cl)
	if s != nil {
		h.forget(s)
	}
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
