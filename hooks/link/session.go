package link

import (
	"sync"

	"github.com/mqim/mqim/store"
)

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

// Lock guards Subs.
func (s *Session) Lock() { s.mu.Lock() }

// Unlock ends Lock.
func (s *Session) Unlock() { s.mu.Unlock() }
