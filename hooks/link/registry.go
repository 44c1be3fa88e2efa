package link

import (
	"context"
	"errors"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/transport"
)

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
	bus       bus.Bus       // nil: there are no other nodes
	yielders  []func(ctx context.Context, client string, clean bool)
	renewed   func(client string, wait bool)

	running sync.WaitGroup // see spawn

	mu       sync.Mutex
	sessions map[string]*Session
	claims   map[string]*claim       // of connections that are about to be established
	wills    map[string]*delayedWill // of connections that have ended
	parking  parking
	closed   bool
}

// NewRegistry returns a registry. o bounds connections that do not come through our listeners.
func NewRegistry(o transport.Options) *Registry {
	return &Registry{opt: o, takeover: 5 * time.Second, sessions: map[string]*Session{}, claims: map[string]*claim{}}
}

// Capabilities tells the registry what the server has announced; hooks call it from SetOpts.
func (r *Registry) Capabilities(c *mqtt.Capabilities) { r.caps = c }

// Journal has sessions that outlive their connection stored from now on. It is called before the server serves.
func (r *Registry) Journal(j *Journal) {
	r.journal = j
	j.fenced = r.Superseded
}

// OnRenew has f called when the session that is stored for a client has given way to a new one, or has ended: what it had
// subscribed to is no more. With wait the client is let in when f returns.
func (r *Registry) OnRenew(f func(client string, wait bool)) { r.renewed = f }

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

// Taken reports whether a connection has the session of a client, or is about to.
func (r *Registry) Taken(client string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[client]
	return s != nil && s.Taken()
}

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

// Establish makes c the connection of its session, after the client has been authenticated: an older one is ended
// and waited for first, so that there is never more than one that reads or is sent to. clean forgets the session's
// state. present tells whether there was a session to go on with. After an error the connection is to be refused.
func (r *Registry) Establish(c *Conn, clean, persistent bool) (present bool, err error) {
	if err := r.clear(c, clean); err != nil {
		return false, err
	}
	s, present, err := r.take(c, clean, persistent)
	if err == nil && r.journal != nil {
		present, err = r.resume(c, s, clean, persistent)
	}
	if err == nil {
		r.settleWill(c.Session.Client, present)
	}
	return present, err
}

// take ends and waits for an older connection.
func (r *Registry) take(c *Conn, clean, persistent bool) (s *Session, present bool, err error) {
	for {
		r.mu.Lock()
		if c.claim != nil && c.claim.err != nil {
			r.unclaim(c)
			r.mu.Unlock()
			return nil, false, ErrBeaten
		}
		s := r.sessions[c.Session.Client]
		if s != nil && s.User != c.User { // it ended, and another user has taken it
			r.unclaim(c)
			r.mu.Unlock()
			return nil, false, ErrForeign
		}
		if s == nil {
			s = &Session{Client: c.Session.Client, User: c.User}
			r.sessions[c.Session.Client] = s
		}
		c.Session = s
		s.mu.Lock()
		old := s.conn
		if old == nil || old == c || !old.established() {
			present = s.persistent && !clean
			if !present {
				s.Subs, s.received, s.recent = nil, nil, nil
			}
			s.conn, s.persistent = c, persistent
			c.in.open.Store(true)
			r.unclaim(c) // from now on who asks for the client has this connection ended
			s.mu.Unlock()
			r.mu.Unlock()
			return s, present, nil
		}
		s.mu.Unlock()
		r.mu.Unlock()
		r.evict(old)
	}
}

// evict ends a connection for the sake of another one, and waits until it has let go.
func (r *Registry) evict(old *Conn) {
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
func (r *Registry) release(c *Conn, ended bool) {
	c.letGo.Do(func() {
		r.releaseOnce(c, ended)
		if c.holds.Load() {
			r.Unhold(c.Session.Client)
		}
	})
}

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
			r.parking.park(s.Client, s.recent, c.Epoch())
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
