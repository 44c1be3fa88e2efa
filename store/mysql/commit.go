package mysql

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/mqim/mqim/store"
)

// lane is what one batch at a time goes through. Its row in mqim_writers says which batch was the last: it is written
// by the statement before COMMIT, so whoever can lock it knows what became of a COMMIT without an answer.
type lane struct {
	s     *Store
	kind  byte // the first byte of id
	id    string
	row   atomic.Pointer[string] // id, for others
	batch uint64                 // number of the present attempt, or the last
	cache groupCache
}

func newLane(s *Store, kind byte) *lane {
	l := &lane{s: s, kind: kind}
	l.renew()
	return l
}

// renew takes another row, where nobody knows what may still become of the present one.
func (l *lane) renew() {
	var id [16]byte
	_, _ = rand.Read(id[:])
	id[0] = l.kind
	l.id, l.batch = string(id[:]), 0
	row := l.id
	l.row.Store(&row)
}

const (
	attempts     = 12 // of one batch
	firstPause   = time.Millisecond
	longestPause = 250 * time.Millisecond
)

// Commit stores the batch as one transaction. Batches with messages are committed one after the other, in the order of
// the calls; those without go beside them.
//
// What the database refuses because of others (deadlocks, lock waits, a row that two insert) is tried again, and so is
// what was lost with its connection. If that happens while the answer to COMMIT is waited for, the lane's row tells.
func (s *Store) Commit(ctx context.Context, b *store.Batch) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.life.RUnlock()
	if err := s.owned(); err != nil {
		return fmt.Errorf("store.mysql: %w", err)
	}
	if err := check(b); err != nil {
		return err
	}
	lanes := s.lazy
	switch {
	case len(b.Sends) > 0:
		lanes = s.sends
	case topicsIn(b):
		lanes = s.pubs
	}
	restore := remember(b)
	err := s.try(ctx, lanes, func(ctx context.Context, w *writer) error { return w.build(ctx, b) }, restore)
	if err == nil || errors.Is(err, store.ErrUnknownOutcome) {
		s.touchAll(b)
	}
	if err == nil {
		s.counters.commits.Add(1)
		s.counters.messages.Add(int64(len(b.Sends) + len(b.Publishes)))
	}
	return err
}

// try has build fill a transaction, as often as it takes; restore is called before each but the first.
func (s *Store) try(ctx context.Context, lanes chan *lane, build func(context.Context, *writer) error, restore func()) error {
	var l *lane
	select {
	case l = <-lanes:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { lanes <- l }()
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	pause := firstPause
	for n := 1; ; n++ {
		err := l.attempt(ctx, build)
		if errors.Is(err, store.ErrUnknownOutcome) {
			return err
		}
		s.heard(err)
		what := troubleOf(err)
		switch {
		case err == nil:
			return nil
		case what == lasting, n == attempts, ctx.Err() != nil:
			return s.failed(err, what, n)
		}
		restore()
		s.counters.retries[reasonOf(err)].Add(1)
		select {
		case <-ctx.Done():
			return s.failed(err, what, n)
		case <-time.After(pause/2 + mrand.N(pause)):
		}
		pause = min(2*pause, longestPause)
	}
}

// failed is the error of a batch of which nothing was stored.
func (s *Store) failed(err error, what trouble, n int) error {
	if what == lasting {
		return fmt.Errorf("store.mysql: commit: %w", err)
	}
	return fmt.Errorf("store.mysql: commit, attempt %d: %w: %v", n, store.ErrUnavailable, err)
}

// remember notes what Commit changes in a batch and needs as it was, should it begin again.
func remember(b *store.Batch) (restore func()) {
	type kept struct {
		change  *store.Change
		group   store.Group
		members []store.Member
	}
	var changes []kept
	for _, m := range b.Sends {
		if c := m.Change; c != nil {
			changes = append(changes, kept{c, c.Group, append([]store.Member(nil), c.Members...)})
		}
	}
	return func() {
		for _, m := range b.Sends {
			m.Cseq, m.ID = 0, 0
		}
		for _, k := range changes {
			k.change.Group = k.group
			copy(k.change.Members, k.members)
		}
	}
}

// attempt tries once. After an error nothing was stored, unless it is ErrUnknownOutcome.
func (l *lane) attempt(ctx context.Context, build func(context.Context, *writer) error) error {
	c, err := l.s.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	l.batch = l.s.batches.Add(1)
	w := newWriter(l, c)
	if err := build(ctx, w); err != nil {
		l.undo(ctx, c, err)
		return err
	}
	p := l.s.packet()
	p.do(commit)
	// The caller's patience ends before COMMIT or after it.
	if err := p.run(context.WithoutCancel(ctx), c); err != nil {
		discard(c)
		if troubleOf(err) == again {
			return err
		}
		stored, err := l.outcome(ctx, err)
		if err != nil || !stored {
			return err
		}
	}
	w.accepted()
	return nil
}

// undo ends a transaction that came to nothing.
func (l *lane) undo(ctx context.Context, c *sql.Conn, err error) {
	if t := troubleOf(err); t == away || ctx.Err() != nil {
		discard(c)
		return
	}
	p := l.s.packet()
	p.do(rollback)
	if p.run(ctx, c) != nil {
		discard(c)
	}
}

// errNotStored: COMMIT was lost before the server took it.
var errNotStored = errors.New("the connection was lost before COMMIT")

// outcome finds out what became of a COMMIT without an answer. Until the server has ended that transaction, one way or
// the other, it holds the lane's row.
func (l *lane) outcome(ctx context.Context, lost error) (stored bool, err error) {
	l.s.counters.unknown.Add(1)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*l.s.opts.Timeout)
	defer cancel()
	pause := firstPause
	for {
		batch, err := l.lastBatch(ctx)
		switch {
		case err == nil && batch >= l.batch:
			return true, nil
		case err == nil:
			return false, fmt.Errorf("%w: %v", errNotStored, lost)
		}
		l.s.heard(err)
		select {
		case <-ctx.Done():
			l.renew()
			return false, fmt.Errorf("store.mysql: %w: %v, then %v", store.ErrUnknownOutcome, lost, err)
		case <-time.After(pause):
		}
		pause = min(2*pause, longestPause)
	}
}

// lastBatch waits until nobody holds the lane's row, and reads it.
func (l *lane) lastBatch(ctx context.Context) (batch uint64, err error) {
	c, err := l.s.db.Conn(ctx)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	p := l.s.packet()
	p.do(begin)
	p.get(lockWriter, func(r *sql.Rows) error { return r.Scan(&batch) }, l.id)
	p.do(rollback)
	if err := p.run(ctx, c); err != nil {
		discard(c)
		return 0, err
	}
	return batch, nil
}
