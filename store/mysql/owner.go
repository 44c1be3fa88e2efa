package mysql

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/mqim/mqim/store"
)

// owner is how a store that wants a database to itself (Options.Exclusive) has it.
//
// A lock by name on a connection of its own says that this process lives: the server frees it with the connection, at
// once when the process dies. A row of mqim_meta says who had the lock last, and every transaction reads it under a shared
// lock: whoever takes the database writes it first, which waits for the transactions that have read it, and later ones of
// the other process fail. So no process commits after another has begun, however late it notices that it has lost the lock.
type owner struct {
	db   *sql.DB // of the connection that holds the lock
	conn *sql.Conn

	mu     sync.Mutex
	err    error     // nil: the lock, or the node number, is held; with mu goes Store.lease
	beaten time.Time // when the last beat that arrived was sent
	doubts uint64    // counts the times that the database was away
	cutOff time.Time // when the last one was sent before the process did not reach the database for long; see lives
	back   time.Time // and the first one after that
}

const (
	ownerRow  = "owner" // of mqim_meta: the process, hexadecimal, a space and its name
	ownerWait = 5       // seconds that a start waits for a process that has just died
	ownerIdle = 30      // seconds after which the server gives up a process whose machine does not answer
)

var (
	errNotHeld = fmt.Errorf("%w: the lock on the database is not held", store.ErrUnavailable)
	errTaken   = fmt.Errorf("%w: another process has taken over the database", store.ErrUnavailable)
)

func (s *Store) ownerName() string { return hex.EncodeToString([]byte(s.node)) }

// owned is nil while this process may commit.
func (s *Store) owned() error {
	s.owner.mu.Lock()
	defer s.owner.mu.Unlock()
	if s.owner.err == nil && s.opts.Shared && time.Since(s.owner.beaten) > s.opts.nodeTTL {
		return errSilent // the number may be another's
	}
	return s.owner.err
}

// doubt has the lock count as not held until it has been looked at.
func (o *owner) doubt() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.doubts++
	if o.err == nil {
		o.err = errNotHeld
	}
}

// looked notes what a look has found that began with so many doubts: a later one stands.
func (o *owner) looked(err error, doubts uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil || doubts == o.doubts {
		o.err = err
	}
}

func (o *owner) doubted() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.doubts
}

// begin starts a transaction, which fails if another process has taken over the database, or the node number.
func (s *Store) begin(p *packet, l *lease) {
	p.do(begin)
	if s.opts.Shared {
		s.shareNumber(p, l)
	}
	if !s.opts.Exclusive {
		return
	}
	p.get(shareMeta, func(r *sql.Rows) error {
		var value string
		if err := r.Scan(&value); err != nil {
			return err
		}
		if who, _, _ := strings.Cut(value, " "); who != s.ownerName() {
			return errTaken
		}
		return nil
	}, ownerRow)
}

// lockOwner takes the lock when the store is opened. Errors: ErrLocked, which names the process that has it.
func (s *Store) lockOwner(ctx context.Context) error {
	c, err := mysql.ParseDSN(s.opts.DSN)
	if err != nil {
		return errors.New("store.mysql: not a DSN")
	}
	if s.owner.db, err = s.pool(c, s.opts.Timeout, ownerIdle, ""); err != nil {
		return err
	}
	held, value, err := s.askOwner(ctx, ownerWait)
	switch {
	case err != nil:
		return fmt.Errorf("store.mysql: lock on the database: %w", err)
	case !held:
		_, who, _ := strings.Cut(value, " ")
		if who == "" {
			who = "not known by name yet"
		}
		return fmt.Errorf("store.mysql: database %s: %w: %s", s.name, store.ErrLocked, who)
	}
	return nil
}

// askOwner tries to take the lock on a new connection, which is kept if it is held, and reads who has it.
func (s *Store) askOwner(ctx context.Context, wait int) (held bool, value string, err error) {
	c, err := s.owner.db.Conn(ctx)
	if err != nil {
		return false, "", err
	}
	var got sql.NullInt64
	p := s.packet()
	p.get(getLock, func(r *sql.Rows) error { return r.Scan(&got) }, s.lockName("owner"), wait)
	if err := p.run(ctx, c); err != nil {
		discard(c)
		return false, "", err
	}
	held = got.Int64 == 1
	p.get(getMeta, func(r *sql.Rows) error { return r.Scan(&value) }, ownerRow)
	if err := p.run(ctx, c); err != nil {
		var server *mysql.MySQLError
		if !errors.As(err, &server) || server.Number != 1146 { // a new database has no tables yet
			discard(c)
			return false, "", err
		}
	}
	if !held {
		discard(c)
		return false, value, nil
	}
	s.owner.conn = c
	return true, value, nil
}

// claim notes that the database is this process's. Sessions of those before it are connected no longer.
func (s *Store) claim(ctx context.Context) error {
	p := s.packet()
	p.do(setMeta, ownerRow, s.ownerName()+" "+s.opts.Name)
	var n nodes
	s.askNodes(p, &n)
	if err := p.run(ctx, s.db); err != nil {
		return fmt.Errorf("store.mysql: %w", err)
	}
	p.names(dropNodes, nil, sorted(n.seen), int64(math.MaxInt64))
	if err := p.run(ctx, s.db); err != nil {
		return fmt.Errorf("store.mysql: %w", err)
	}
	return nil
}

// keepOwner looks every pingEvery whether the lock is still held, and takes it again where it was lost, until ctx ends or
// another process has taken over.
func (s *Store) keepOwner(ctx context.Context) {
	lost := false
	for t := time.NewTicker(pingEvery); ; {
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		doubts := s.owner.doubted()
		err := s.lookOwner(ctx)
		if ctx.Err() != nil {
			continue
		}
		s.owner.looked(err, doubts)
		switch {
		case errors.Is(err, errTaken):
			t.Stop()
			s.log.Error("store.mysql: another process has taken over the database")
			if s.opts.Taken != nil {
				s.opts.Taken(errTaken)
			}
			return
		case err != nil && !lost:
			lost = true
			s.log.Warn("store.mysql: the lock on the database is lost; nothing is accepted until it is held again", "err", err)
		case err == nil && lost:
			lost = false
			s.log.Info("store.mysql: the lock on the database is held again")
		}
	}
}

// lookOwner is nil when the lock is held. Where the database is away it takes Options.Timeout at most.
func (s *Store) lookOwner(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	if s.owner.conn != nil {
		err := s.owner.conn.PingContext(ctx)
		if err == nil {
			return nil
		}
		discard(s.owner.conn)
		s.owner.conn = nil
		return fmt.Errorf("%w: %v", errNotHeld, err)
	}
	held, value, err := s.askOwner(ctx, 0)
	who, _, _ := strings.Cut(value, " ")
	switch {
	case err != nil:
		return fmt.Errorf("%w: %v", errNotHeld, err)
	case who != s.ownerName():
		return errTaken
	case !held: // by the connection that was lost, which the server has not noticed yet
		return errNotHeld
	}
	return nil
}

// closeOwner gives the lock back.
func (s *Store) closeOwner() error {
	if s.owner.db == nil {
		return nil
	}
	if s.owner.conn != nil {
		discard(s.owner.conn)
	}
	return s.owner.db.Close()
}
