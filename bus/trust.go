package bus

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Trust tells whether every node that lives hears the bus, and is heard: only then what this one remembers of the store can
// be gone by, since whoever changes something there says so. A node that is cut off from Redis, and not from the store, cannot.
//
// When the bus goes down, or a node is gone from it, trust ends at once. It begins again when no more processes use the
// store than are on the bus: one that said goodbye has left the store as well, one that was killed counts as living there
// for as long as the store waits for its signs of life. Until then everything is right, and asked of the store more often.
type Trust struct {
	bus    Bus
	living func(context.Context) (int, error)
	term   atomic.Uint64 // 0: there is no trust
	poke   chan struct{}

	mu    sync.Mutex // guards what follows
	last  uint64     // the last term
	seen  uint64     // counts what ended trust, so that what was asked before it does not begin it
	known []Peer
}

const (
	livingSoon  = time.Second     // between two questions while there is no trust
	livingEvery = 5 * time.Second // and while there is: the node that was never on the bus is found so
	livingWait  = 2 * time.Second // for an answer
)

// NewTrust is called before the bus is started, and before OnChange's other functions are set, so that they find trust
// ended. living tells how many processes use the store, this one included.
func NewTrust(b Bus, living func(context.Context) (int, error)) *Trust {
	t := &Trust{bus: b, living: living, poke: make(chan struct{}, 1)}
	b.OnChange(t.change)
	return t
}

// Term is 0 while there is no trust; otherwise it is greater each time that trust has begun. What was read from the store in
// an earlier term, or in none, may have changed since without a word. It takes no lock.
func (t *Trust) Term() uint64 { return t.term.Load() }

func (t *Trust) change() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.bus.Peers()
	gone := func(p Peer) bool { return !slices.ContainsFunc(now, func(q Peer) bool { return q.ID == p.ID }) }
	if !t.bus.Up() || slices.ContainsFunc(t.known, gone) {
		t.end()
	}
	t.known = now
	select {
	case t.poke <- struct{}{}:
	default:
	}
}

// end ends trust; mu is held.
func (t *Trust) end() {
	t.seen++
	t.term.Store(0)
}

// Run begins trust and looks after it, until ctx ends. It asks living one question every livingEvery, or livingSoon while
// there is no trust and the bus is up, and one when something has changed.
func (t *Trust) Run(ctx context.Context) {
	for {
		t.check(ctx)
		next := livingEvery
		if t.Term() == 0 {
			next = livingSoon
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-t.poke:
		case <-timer.C:
		}
		if timer.Stop(); ctx.Err() != nil {
			return
		}
	}
}

// check counts the nodes on the bus before it asks how many there are: one that comes meanwhile must not stand for one that
// is missing.
func (t *Trust) check(ctx context.Context) {
	if !t.bus.Up() {
		return // change has ended trust, or there was none
	}
	t.mu.Lock()
	seen := t.seen
	t.mu.Unlock()
	here := len(t.bus.Peers()) + 1
	ctx, cancel := context.WithTimeout(ctx, livingWait)
	n, err := t.living(ctx)
	cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil || n > here:
		t.end()
	case t.seen == seen && t.term.Load() == 0 && t.bus.Up():
		t.last++
		t.term.Store(t.last)
	}
}
