package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mqim/mqim/store"
)

// lease is a node number of a process that shares the database with others (Options.Shared), and the ids made with it.
//
// Whose a number is the row of mqim_numbers says. It is that process's for as long as it lives, which is to say beats
// (mqim_nodes, by the database's clock), and anybody's after that. Every transaction reads the row first, under a shared
// lock: whoever takes the number over writes the row, which waits for the transactions that have read it, and later ones of
// the former process fail. It takes another number then, and goes on.
//
// No id comes twice, whatever the clocks say. Ids with different numbers differ. What a former process has committed with
// a number ended before the row was written, and each of those transactions has left its greatest id in mqim_writers; so
// the greatest id there, read in the transaction that has written the row, is none less than any of them. The ids of the
// new process begin after it: where its clock is behind, they run ahead of the clock.
type lease struct {
	number int // -1: the process has none
	ids    ids
}

const (
	numbers     = 1024 // from 0
	sharedOwner = "shared"
	nodeName    = 255 // bytes
)

var (
	errNumberTaken = fmt.Errorf("%w: another process has taken over the node number", store.ErrUnavailable)
	errSilent      = fmt.Errorf("%w: the database has not been reached for too long", store.ErrUnavailable)
)

// Lease tells the node number of a Shared store, and whether it is held now; the number is -1 if the store is not Shared.
func (s *Store) Lease() (number int, held bool) {
	number = s.lease.Load().number
	return number, number >= 0 && s.owned() == nil
}

// shareNumber reads the row of the number that a transaction works with.
func (s *Store) shareNumber(p *packet, l *lease) {
	p.get(shareNumber, func(r *sql.Rows) error {
		var node string
		if err := r.Scan(&node); err != nil {
			return err
		}
		if node == s.node {
			return nil
		}
		s.owner.mu.Lock()
		defer s.owner.mu.Unlock()
		if s.lease.Load() == l { // there may be another by now
			s.owner.err = errNumberTaken
		}
		return errNumberTaken
	}, l.number)
}

// takeNumber leases a number. Errors: ErrLocked where an Exclusive process lives.
func (s *Store) takeNumber(ctx context.Context) error {
	if err := s.beat(ctx); err != nil {
		return fmt.Errorf("store.mysql: %w", err)
	}
	var l *lease
	// An Exclusive process has this lock for as long as it lives. One that has lost it for a moment finds in the owner's row
	// that it is not alone any more.
	free, err := s.locked(ctx, s.db, "owner", ownerWait, func(c *sql.Conn) (err error) {
		p := s.packet()
		p.do(setMeta, ownerRow, sharedOwner+" "+s.opts.Name)
		if err := p.run(ctx, c); err != nil {
			return err
		}
		l, err = s.chooseNumber(ctx, c)
		return err
	})
	if err == nil && !free {
		var value string
		p := s.packet()
		p.get(getMeta, func(r *sql.Rows) error { return r.Scan(&value) }, ownerRow)
		if err = p.run(ctx, s.db); err == nil {
			_, who, _ := strings.Cut(value, " ")
			err = fmt.Errorf("database %s: %w: %s, which wants it for itself: it has no cluster.redis.addresses", s.name, store.ErrLocked, who)
		}
	}
	if err != nil {
		return fmt.Errorf("store.mysql: node number: %w", err)
	}
	s.owner.mu.Lock()
	defer s.owner.mu.Unlock()
	s.lease.Store(l)
	s.owner.err = nil
	return nil
}

// chooseNumber takes the least number that is nobody's. A number is passed over whose former process has a transaction
// that does not end.
func (s *Store) chooseNumber(ctx context.Context, c *sql.Conn) (*lease, error) {
	list, err := s.holders(ctx, c)
	if err != nil {
		return nil, err
	}
	taken := map[int]bool{}
	for _, h := range list {
		taken[h.number] = h.lives
	}
	before := s.lease.Load().ids.greatest()
	for number := range numbers {
		if taken[number] {
			continue
		}
		var last sql.NullInt64
		p := s.packet()
		p.do(begin)
		p.do(setNumber, number, s.node, s.opts.Name[:min(len(s.opts.Name), nodeName)])
		p.get(lastID, func(r *sql.Rows) error { return r.Scan(&last) })
		p.do(commit)
		if err = p.run(ctx, c); err != nil {
			if troubleOf(err) != again {
				return nil, err
			}
			p.do(rollback)
			if err := p.run(ctx, c); err != nil {
				return nil, err
			}
			continue
		}
		from, err := s.opts.NewIDs(number)
		return &lease{number: number, ids: ids{from: from, last: max(before, last.Int64)}}, err
	}
	return nil, errors.Join(errors.New("all numbers are in use"), err)
}

// holder is a process that has or had a number.
type holder struct {
	number     int
	node, name string
	lives      bool
	silent     time.Duration // since it was last heard of; of one that lives
}

func (s *Store) holders(ctx context.Context, q querier) (list []holder, err error) {
	var n nodes
	p := s.packet()
	s.askNodes(p, &n)
	p.get(listNumbers, func(r *sql.Rows) error {
		var h holder
		err := r.Scan(&h.number, &h.node, &h.name)
		list = append(list, h)
		return err
	}, -1, numbers)
	if err := p.run(ctx, q); err != nil {
		return nil, err
	}
	for i := range list {
		h := &list[i]
		if h.lives = s.lives(&n, h.node); h.lives {
			h.silent = time.Duration(n.now-n.seen[h.node]) * time.Millisecond
		}
	}
	return list, nil
}

// refuseShared is what an Exclusive process does that has the lock: it gives way to Shared ones that live, and takes the
// numbers from the others, so that they commit nothing when they come back.
func (s *Store) refuseShared(ctx context.Context) error {
	list, err := s.holders(ctx, s.db)
	if err != nil {
		return fmt.Errorf("store.mysql: %w", err)
	}
	var living []string
	p := s.packet()
	for _, h := range list {
		switch {
		case h.lives:
			living = append(living, fmt.Sprintf("%s (heard of %s ago)", h.name, h.silent))
		case h.node != "":
			p.do(setNumber, h.number, "", h.name)
		}
	}
	if len(living) > 0 {
		return fmt.Errorf("store.mysql: database %s: %w: %s", s.name, store.ErrLocked, strings.Join(living[:min(len(living), 3)], ", ")+"; to be a node beside them, set cluster.redis as they have it")
	}
	if err := p.run(ctx, s.db); err != nil {
		return fmt.Errorf("store.mysql: %w", err)
	}
	return nil
}

// keepNumber leases another number where the present one is lost, until ctx ends.
func (s *Store) keepNumber(ctx context.Context) {
	var said error
	for t := time.NewTicker(pingEvery); ; {
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		before := s.lease.Load().number
		if !errors.Is(s.owned(), errNumberTaken) {
			said = nil
			continue
		}
		if said == nil {
			s.log.Warn("store.mysql: another process has taken over the node number; nothing is accepted until there is a new one", "number", before)
		}
		one, cancel := context.WithTimeout(ctx, s.opts.Timeout)
		err := s.takeNumber(one)
		cancel()
		switch {
		case ctx.Err() != nil:
		case err == nil:
			s.log.Info("store.mysql: there is a new node number", "number", s.lease.Load().number)
		case said == nil:
			s.log.Warn("store.mysql: no node number", "err", err)
		}
		said = errors.Join(errNumberTaken, err)
	}
}
