// Package link is a client's connection as the hooks share it: one sender and one packet-id space a direction for
// everything that passes, whichever hook it belongs to.
//
// mochi decodes CONNECT, SUBSCRIBE and the like; PUBLISH and its acknowledgements are handled here, on the frames of
// [transport.Conn] where the connection came through our listener, or on what mochi decoded (OnPacketRead) where the
// hooks run in somebody else's server. mochi's own inflight table and fan-out stay out of it: they lose messages
// under pressure and share one table between both directions.
package link

import (
	"context"
	"errors"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/transport"
)

// Owner is told what became of a publication that went out at QoS 1 or 2, or at QoS 0 with Notify.
type Owner interface {
	// Acked: the peer has it (PUBACK, PUBCOMP, or at QoS 0 the kernel took the bytes). reason is the peer's.
	Acked(token uint64, reason byte)
	// Room: the connection may take publications again, after Publish returned false.
	Room()
}

// Releaser is an Owner that wants to know of PUBREC before PUBREL goes out.
type Releaser interface {
	// Received: the peer has a publication at QoS 2. release sends PUBREL, and is called now or later.
	Received(token uint64, release func())
}

// Receiver handles publishes to some topics.
type Receiver interface {
	// Receive handles p, or returns false where the topic is not its own. It is called on the reading goroutine, in
	// the order of the packets; p and its payload are valid until it returns. Whoever handles p has it answered with
	// Conn.Answer(p.Ticket, …) exactly once, now or later. An error ends the connection.
	Receive(c *Conn, p *Inbound) (handled bool, err error)
}

// Drainer is a Receiver that wants to know when it has been given everything that came in one go.
type Drainer interface {
	// Drained is called on the reading goroutine, which is about to wait for more.
	Drained(c *Conn)
}

// Inbound is a PUBLISH from the client, its topic alias resolved.
type Inbound struct {
	Topic   string
	Payload []byte
	QoS     byte
	Retain  bool
	Dup     bool
	ID      uint16              // packet id, 0 at QoS 0
	Props   *packets.Properties // nil: none
	Ticket  uint64              // for Answer
}

// Conn is one connection of a client.
type Conn struct {
	*transport.Conn
	Client  *mqtt.Client
	User    string
	Session *Session
	V5      bool
	framed  bool // packets are handled by Frame, not by PacketRead
	quiet   bool // the client asked for no reason strings
	reg     *Registry

	// State is the im hook's.
	State any
	// Topics is the ordinary topics hook's.
	Topics any

	lastTopic string            // reading goroutine: spares an allocation for each publish
	aliases   map[uint16]string // reading goroutine: the client's topic aliases
	farewell  byte              // reading goroutine: the reason code of the client's DISCONNECT

	in  inbound
	out outbound

	lingers bool     // the listener says when the broker is through with it
	over    bool     // the connection's goroutine: the session ends with the connection
	onEnd   []func() // the connection's goroutine
	done    chan struct{}
	endOnce sync.Once
	letGo   sync.Once
}

// Done is closed when the connection has ended and the hooks have let go of it.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Farewell is the reason code of the client's DISCONNECT. It is the reading goroutine's.
func (c *Conn) Farewell() byte { return c.farewell }

// Finish marks the connection as ended; a hook that is told of the disconnect calls it. Where a listener of ours runs
// the connection that is put off until mochi has let go of it too: what mochi does after OnDisconnect to a session that
// ends (it removes subscriptions and client by client id) would else hit the connection that takes over.
func (c *Conn) Finish() {
	if !c.lingers && len(c.reg.releasers) == 0 {
		c.finish()
	}
}

// Settled says that the last hook is through with a connection that no listener of ours runs.
func (c *Conn) Settled() {
	if !c.lingers {
		c.reg.release(c, c.over)
		c.finish()
	}
}

func (c *Conn) finish() { c.endOnce.Do(func() { close(c.done) }) }

// AfterEnd has f called on the connection's goroutine when the connection has ended, even where mochi panicked over it
// or gave it up in the middle of its handshake, and does not call OnDisconnect then. ok is false where no listener of
// ours runs the connection, and f is not called. It is called on that goroutine, too.
func (c *Conn) AfterEnd(f func()) (ok bool) {
	if c.lingers {
		c.onEnd = append(c.onEnd, f)
	}
	return c.lingers
}

// end is what the listener calls last.
func (c *Conn) end() {
	for _, f := range c.onEnd {
		f()
	}
	c.reg.release(c, c.over)
	c.finish()
}

// Of returns the connection of a client, nil before OnConnect.
func Of(cl *mqtt.Client) *Conn {
	if t, ok := cl.Net.Conn.(*transport.Conn); ok {
		c, _ := t.Owner.(*Conn)
		return c
	}
	return nil
}

// Disconnect sends DISCONNECT with a reason to an MQTT 5 client (3.1.1 has none from the server) and ends the
// connection. It does not wait.
func (c *Conn) Disconnect(code packets.Code) {
	if c.V5 {
		if b, ok := c.Begin(64 + len(code.Reason)); ok {
			c.End(c.appendDisconnect(b, code))
		}
	}
	c.Client.Stop(code)
	_ = c.Close()
}

// abort is Disconnect for a peer that may have stopped reading: what is buffered for it is thrown away.
func (c *Conn) abort(code packets.Code) {
	c.Client.Stop(code)
	c.Conn.Abort()
}

// Registry knows who is connected: client ids are one flat namespace, and each belongs to the user who has a
// connection or a session under it.
type Registry struct {
	opt       transport.Options
	receivers []Receiver
	drainers  []Drainer
	oversized func(*Conn, *Inbound)
	guard     func(*Conn, *Inbound) Refused
	exclusive bool // no publish is left to mochi, so no acknowledgement is meant for it
	caps      *mqtt.Capabilities
	journal   *Journal // nil: sessions are in memory
	releasers []func(c *Conn, ended bool)
	takeover  time.Duration // how long to wait for an old connection to let go

	mu       sync.Mutex
	sessions map[string]*Session
	parking  parking
}

// NewRegistry returns a registry. o bounds connections that do not come through our listeners.
func NewRegistry(o transport.Options) *Registry {
	return &Registry{opt: o, takeover: 5 * time.Second, sessions: map[string]*Session{}}
}

// Capabilities tells the registry what the server has announced; hooks call it from SetOpts.
func (r *Registry) Capabilities(c *mqtt.Capabilities) { r.caps = c }

// Journal has sessions that outlive their connection stored from now on. It is called before the server serves.
func (r *Registry) Journal(j *Journal) { r.journal = j }

// BeforeRelease has f called when a connection lets go of its session, before the session may be taken by another one.
// ended says that the session is over.
func (r *Registry) BeforeRelease(f func(c *Conn, ended bool)) { r.releasers = append(r.releasers, f) }

// Handle adds a receiver; those added first are asked first. It is called before the server serves.
func (r *Registry) Handle(x Receiver) {
	r.receivers = append(r.receivers, x)
	if d, ok := x.(Drainer); ok {
		r.drainers = append(r.drainers, d)
	}
}

// Refused says why a publish is not let in. The zero value: it is.
type Refused struct {
	Code    packets.Code
	Passing bool // the same may be taken later: 3.1.1 has no other way to say so than the end of the connection without PUBACK
}

// Guard sets who judges publishes before the receivers see them; f is called on the reading goroutine.
func (r *Registry) Guard(f func(*Conn, *Inbound) Refused) { r.guard = f }

// Exclusive says that the receivers together handle every topic.
func (r *Registry) Exclusive() { r.exclusive = true }

// HandleOversized sets who answers publishes that are too large to be read; f calls Conn.Answer.
func (r *Registry) HandleOversized(f func(*Conn, *Inbound)) { r.oversized = f }

// TopicAliasMaximum is how many topic aliases a client may set.
func (r *Registry) TopicAliasMaximum() uint16 {
	if r.caps == nil {
		return 65535
	}
	return r.caps.TopicAliasMaximum
}

// Session is what outlives a connection. It belongs to one client id and one user.
type Session struct {
	Client string
	User   string

	mu         sync.Mutex
	conn       *Conn // the connection that has it or is about to
	persistent bool  // it stays when the connection ends
	durable    bool  // it is in the store

	// Stored are the filters outside im/ that the session had when it was read from the store, for the ordinary topics
	// hook. Resumed says that there was such a session, and Cut that a crash has ended its last connection.
	Stored  []store.Subscription
	Resumed bool
	Cut     bool

	// Subs are the client's filters under im/; the im hook's, guarded by Lock.
	Subs map[string]Sub

	will     func() // of a connection that has ended, and when it is due
	willDue  *time.Timer
	received map[uint16]bool // QoS 2 packet ids between PUBREC and PUBREL
	recent   *recent         // what was published without a cid
}

// Persistent reports whether the session outlives its connection.
func (s *Session) Persistent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.persistent
}

// Durable reports whether the session is in the store.
func (s *Session) Durable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.durable
}

// Taken reports whether a connection has the session, or is about to.
func (s *Session) Taken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn != nil
}

// Taken reports whether a connection has the session of a client, or is about to.
func (r *Registry) Taken(client string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[client]
	return s != nil && s.Taken()
}

// Lock guards Subs.
func (s *Session) Lock() { s.mu.Lock() }

// Unlock ends Lock.
func (s *Session) Unlock() { s.mu.Unlock() }

// ErrForeign: the client id belongs to another user.
var ErrForeign = errors.New("this client id belongs to another user")

// Claim sets up the connection of a client that has sent CONNECT, for user. It returns ErrForeign when the client id
// belongs to another user, and other errors when the store cannot tell. It is called from OnConnect, on the goroutine
// that reads the connection.
func (r *Registry) Claim(cl *mqtt.Client, user string) (*Conn, error) {
	if err := r.owned(cl.ID, user); err != nil {
		return nil, err
	}
	t, ok := cl.Net.Conn.(*transport.Conn)
	framed := ok
	if !framed {
		t = transport.Wrap(cl.Net.Conn, r.opt)
		cl.Net.Conn = t
	}
	c := &Conn{Conn: t, Client: cl, User: user, V5: cl.Properties.ProtocolVersion == 5, framed: framed, reg: r, done: make(chan struct{})}
	c.quiet = cl.Properties.Props.RequestProblemInfoFlag && cl.Properties.Props.RequestProblemInfo == 0
	c.in.init(c)
	c.out.init(c)

	r.mu.Lock()
	s := r.sessions[cl.ID]
	if s == nil {
		s = &Session{Client: cl.ID, User: user}
		r.sessions[cl.ID] = s
	}
	if s.User != user {
		r.mu.Unlock()
		return nil, ErrForeign
	}
	s.mu.Lock()
	if s.conn == nil {
		s.conn = c
	}
	s.mu.Unlock()
	r.mu.Unlock()
	c.Session = s
	c.lingers = t.AfterEnd(c.end) // not before: a connection that is refused above has no session to let go of
	t.Owner = c
	t.OnDrain = c.out.drained
	if framed {
		t.Open(c)
	} else {
		t.Open(nil)
	}
	t.AfterClose(func() {
		c.in.close()
		r.abandon(c)
	})
	return c, nil
}

// owned reports, by an error, that a client id's session belongs to another user.
func (r *Registry) owned(client, user string) error {
	r.mu.Lock()
	s := r.sessions[client]
	r.mu.Unlock()
	if s != nil || r.journal == nil {
		return nil // Claim looks
	}
	rec, err := r.journal.Store.Session(context.Background(), client)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err == nil && rec.User != user:
		return ErrForeign
	}
	return err
}

// abandon forgets a claim whose connection ended before it was taken over by Establish.
func (r *Registry) abandon(c *Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := c.Session
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != c || c.established() {
		return
	}
	s.conn = nil
	if !s.persistent && r.sessions[s.Client] == s {
		delete(r.sessions, s.Client)
	}
}

func (c *Conn) established() bool { return c.in.open.Load() }

// Establish makes c the connection of its session, after the client has been authenticated: an older one is ended
// and waited for first, so that there is never more than one that reads or is sent to. clean forgets the session's
// state. present tells whether there was a session to go on with. After an error the connection is to be refused.
func (r *Registry) Establish(c *Conn, clean, persistent bool) (present bool, err error) {
	s, present, err := r.take(c, clean, persistent)
	if err != nil || r.journal == nil {
		return present, err
	}
	return r.resume(c, s, clean, persistent)
}

// take ends and waits for an older connection.
func (r *Registry) take(c *Conn, clean, persistent bool) (s *Session, present bool, err error) {
	for {
		r.mu.Lock()
		s := r.sessions[c.Session.Client]
		if s != nil && s.User != c.User { // it ended, and another user has taken it
			r.mu.Unlock()
			return nil, false, ErrForeign
		}
		if s == nil {
			s = &Session{Client: c.Client.ID, User: c.User}
			r.sessions[c.Client.ID] = s
		}
		c.Session = s
		s.mu.Lock()
		old := s.conn
		if old == nil || old == c || !old.established() {
			present = s.persistent && !clean
			if s.willDue != nil && s.willDue.Stop() && !present {
				go s.will()
			}
			s.will, s.willDue = nil, nil
			if !present {
				s.Subs, s.received, s.recent = nil, nil, nil
			}
			s.conn, s.persistent = c, persistent
			c.in.open.Store(true)
			s.mu.Unlock()
			r.mu.Unlock()
			return s, present, nil
		}
		s.mu.Unlock()
		r.mu.Unlock()
		old.lastWords()
		old.Disconnect(packets.ErrSessionTakenOver)
		select {
		case <-old.done:
		case <-time.After(r.takeover):
			old.abort(packets.ErrSessionTakenOver)
			old.finish()
			r.release(old, false)
		}
	}
}

// lastWords gives a connection that is to be taken over the time to handle what its client has sent before: there may be a
// DISCONNECT among it, and without that its will would be published.
func (c *Conn) lastWords() {
	const most = 300 * time.Millisecond // of a client that does not stop sending, or that waits for room
	quiet := 0
	for end := time.Now().Add(most); time.Now().Before(end) && quiet < 2; {
		if c.Quiet() {
			quiet++
		} else {
			quiet = 0
		}
		select {
		case <-c.done:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// Reset forgets what the session has kept of earlier connections.
func (r *Registry) Reset(c *Conn) error {
	s := c.Session
	s.mu.Lock()
	s.Subs, s.Stored, s.received, s.recent, s.Resumed = nil, nil, nil, nil, false
	durable, persistent := s.durable, s.persistent
	s.mu.Unlock()
	if !durable {
		return nil
	}
	return r.begin(c, s, persistent)
}

// Release ends c's hold on its session; ended says that the session is over, too. Like Finish it is put off where
// others have yet to let go: a listener of ours, or the hook that BeforeRelease is for, which calls Settled.
func (r *Registry) Release(c *Conn, ended bool) {
	if c.lingers || len(r.releasers) > 0 {
		c.over = c.over || ended
		return
	}
	r.release(c, ended)
}

// release does it once: where an old connection takes too long, who takes its session over does it in its place, and what
// the old one stored later would concern the new one's session.
func (r *Registry) release(c *Conn, ended bool) { c.letGo.Do(func() { r.releaseOnce(c, ended) }) }

func (r *Registry) releaseOnce(c *Conn, ended bool) {
	s := c.Session
	s.mu.Lock()
	mine, durable := s.conn == c && c.established(), s.durable
	ended = ended || !s.persistent
	s.mu.Unlock()
	if mine && durable {
		for _, f := range r.releasers {
			f(c, ended)
		}
		r.leave(c, s, ended)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != c {
		return
	}
	s.conn = nil
	if (ended || durable) && r.sessions[s.Client] == s {
		delete(r.sessions, s.Client) // what is durable the store has
		if !ended {
			r.parking.park(s.Client, s.recent)
		}
	}
}

// Expire forgets the session of a client that has been away for too long, unless it is back.
func (r *Registry) Expire(client string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.sessions[client]; s != nil && !s.Taken() {
		delete(r.sessions, client)
	}
}

// DelayWill has f called after the delay, unless the session is resumed before [MQTT-3.1.3-9]; at once where a new
// session takes its place.
func (s *Session) DelayWill(delay time.Duration, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.will, s.willDue = f, time.AfterFunc(delay, f)
}

// Sessions is the number of clients that are connected or have a session.
func (r *Registry) Sessions() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sessions)
}

// Forget ends the session of a client with its connection.
func (r *Registry) Forget(client string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.sessions[client]; s != nil {
		s.mu.Lock()
		s.persistent = false
		s.mu.Unlock()
	}
}
