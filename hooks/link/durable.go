package link

import (
	"context"
	"errors"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/store"
)

// What of a session is in the store, and how it gets there. A durable session is in memory only while it is connected;
// while it is away the store alone has it.

// storeTimeout bounds what a connection waits for the store.
const storeTimeout = 10 * time.Second

// expiry is how long a client's session outlives the connection, in seconds.
func (c *Conn) expiry() uint32 {
	p := &c.Client.Properties
	switch {
	case p.ProtocolVersion == 5:
		return p.Props.SessionExpiryInterval
	case p.Clean:
		return 0
	}
	return store.NoExpiry
}

// resume reads the session that c goes on with, or begins a new one.
func (r *Registry) resume(c *Conn, s *Session, clean, persistent bool) (present bool, err error) {
	if persistent && r.journal.Behind() {
		return false, store.ErrUnavailable
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	st := r.journal.Store
	if r.bus != nil {
		if !persistent { // where nothing is stored there is nothing to claim
			if _, err := st.Session(ctx, c.Session.Client); errors.Is(err, store.ErrNotFound) {
				return false, nil
			} else if err != nil {
				return false, err
			}
		}
		if err := r.claim(ctx, c); err != nil {
			return false, err
		}
	}
	rec, err := st.Session(ctx, c.Session.Client)
	switch {
	case errors.Is(err, store.ErrNotFound):
		if !persistent {
			return false, nil
		}
		return false, r.replace(ctx, c, s)
	case err != nil:
		return false, err
	case rec.User != c.User:
		return false, ErrForeign
	case clean:
		return false, r.begin(c, s, persistent)
	}
	subs, err := st.Subscriptions(ctx, c.Session.Client)
	if err != nil {
		return false, err
	}
	inbound, err := st.Inbound(ctx, c.Session.Client)
	if err != nil {
		return false, err
	}
	r.mu.Lock()
	parked := r.parking.take(c.Session.Client)
	r.mu.Unlock()
	s.mu.Lock()
	if parked.epoch == 0 || parked.epoch+1 == c.Epoch() { // else it has been connected to another node since
		s.recent = parked.r
	}
	s.Subs, s.received, s.Resumed, s.Cut = map[string]Sub{}, map[uint16]bool{}, true, rec.Cut
	for _, sub := range subs {
		if !sub.Hidden() {
			s.Stored = append(s.Stored, sub)
		} else if x, ok := decodeSub(sub.Options); ok {
			s.Subs[sub.Filter] = x
		}
	}
	for _, id := range inbound {
		s.received[id] = true
	}
	s.mu.Unlock()
	r.online(c, s, false)
	return true, nil
}

// replace begins a session where none is. One that has ended stays stored until somebody comes by, and the new one,
// perhaps another user's, must not inherit its subscriptions and queue: what is found by them has to be gone first.
func (r *Registry) replace(ctx context.Context, c *Conn, s *Session) error {
	left, err := r.journal.Store.Subscriptions(ctx, s.Client)
	if err == nil && len(left) > 0 {
		return r.begin(c, s, true)
	}
	if err == nil {
		r.online(c, s, true)
		r.renew(s.Client, true)
	}
	return err
}

func (r *Registry) renew(client string, wait bool) {
	if r.renewed != nil {
		r.renewed(client, wait)
	}
}

// begin ends the session that is stored and begins a new one, which is in the store, too, if it is persistent.
func (r *Registry) begin(c *Conn, s *Session, persistent bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	r.mu.Lock()
	r.parking.take(s.Client)
	r.mu.Unlock()
	s.mu.Lock()
	s.durable = false
	s.mu.Unlock()
	err := r.journal.Do(ctx, func(b *store.Batch) {
		c.fence(b)
		b.Sessions = append(b.Sessions, store.Session{Client: s.Client, Over: true})
	})
	if err == nil {
		r.renew(s.Client, true)
	}
	if err == nil && persistent {
		r.online(c, s, false)
	}
	return err
}

// online has it stored that the session is connected. Everything else that concerns the session is stored after that.
// fresh says that it has nothing to go on with.
func (r *Registry) online(c *Conn, s *Session, fresh bool) {
	s.mu.Lock()
	s.durable = true
	s.mu.Unlock()
	rec := store.Session{Client: s.Client, User: s.User, Expiry: c.expiry(), Since: time.Now().UnixMilli(), Online: true}
	r.journal.Later(func(b *store.Batch) {
		c.fence(b)
		if fresh {
			b.Sessions = append(b.Sessions, store.Session{Client: s.Client, Over: true})
		}
		b.Sessions = append(b.Sessions, rec)
	})
}

// leave has it stored that the session is not connected any more, or over, and waits for that and all before it: who
// comes next reads it from the store.
func (r *Registry) leave(c *Conn, s *Session, ended bool) {
	rec := store.Session{Client: s.Client, User: s.User, Expiry: c.expiry(), Since: time.Now().UnixMilli(), Over: ended}
	r.journal.Later(func(b *store.Batch) {
		c.fence(b)
		b.Sessions = append(b.Sessions, rec)
	})
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	_ = r.journal.Flush(ctx) // a store that cannot now gets it later, in the same order
	if ended {
		r.renew(s.Client, false)
	}
}

// Remember has subscriptions of a durable session stored, or removed, and waits for it. It does nothing to others.
func (c *Conn) Remember(subs []store.Subscription, remove bool) error {
	if len(subs) == 0 || !c.Session.Durable() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	return c.reg.journal.Do(ctx, func(b *store.Batch) {
		c.fence(b)
		if remove {
			b.Unsubscribes = append(b.Unsubscribes, subs...)
		} else {
			b.Subscribes = append(b.Subscribes, subs...)
		}
	})
}

// Stored is the subscription as it is stored.
func (s Sub) Stored(client, filter string) store.Subscription {
	return store.Subscription{Client: client, Filter: filter, Options: appendVarint([]byte{s.QoS}, s.ID)}
}

func decodeSub(b []byte) (s Sub, ok bool) {
	if len(b) < 2 {
		return s, false
	}
	x := scanner{b: b[1:]}
	s = Sub{QoS: b[0], ID: x.varint()}
	return s, x.err == nil
}

// handshake is a step of QoS 2 that is stored before the client hears of it.
type handshake struct {
	c     *Conn
	state store.Inbound
	after func()
}

func (h *handshake) Add(b *store.Batch) {
	h.c.fence(b)
	b.Inbound = append(b.Inbound, h.state)
}
func (h *handshake) Size() int  { return 128 }
func (h *handshake) Must() bool { return true }
func (h *handshake) Lazy() bool { return false }
func (h *handshake) Done(err error) {
	if err != nil {
		h.c.Disconnect(packets.ErrServerUnavailable) // it asks again on the next connection
		return
	}
	h.after()
	h.c.Kick()
}

// keep has the state of a packet id of the client stored, and calls after when it is.
func (c *Conn) keep(id uint16, released bool, after func()) {
	if !c.Session.Durable() {
		after()
		return
	}
	c.reg.journal.PutUrgent(&handshake{c: c, after: after, state: store.Inbound{Client: c.Session.Client, ID: id, Released: released}})
}
