package link

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/mqim/mqim/store"
)

// Change is something that is to be stored: a publish, or what has become of a session.
type Change interface {
	// Add puts it into a batch.
	Add(b *store.Batch)
	// Done is called when the batch is durable, or not to be: in the order in which changes were put, one at a time.
	// It must neither wait nor call Put.
	Done(err error)
	// Size is roughly what it holds in memory until then, in bytes.
	Size() int
	// Must says that it is tried again until the store can commit, since nobody could be told that it has failed.
	Must() bool
	// Lazy says that losing it in a crash costs repeated work only, so that it needs no sync.
	Lazy() bool
}

// What a journal holds of changes that are not stored yet.
const (
	journalChanges = 8192
	journalBytes   = 64 << 20
	journalRetry   = 500 * time.Millisecond
)

// Journal has changes stored, as many at a time as have come together: one goroutine commits, another calls Done
// meanwhile. Its methods may be called concurrently.
type Journal struct {
	Store store.Store
	log   *slog.Logger
	after func() // called after the Done of a batch
	// fenced is called for each store.Fence that is Lost, before the Done of what the batch has not stored because of that.
	fenced func(client string, epoch uint64)

	mu       sync.Mutex
	notEmpty sync.Cond
	room     sync.Cond
	changes  []Change
	bytes    int
	held     []Change // that the store could not commit, and must
	behind   bool     // held was long when the store was last asked
	closed   bool

	done    chan batchDone
	running sync.WaitGroup
}

type batchDone struct {
	changes []Change
	err     error
}

// NewJournal returns a journal over a store, which stays the caller's to close, after the journal. after, which may be
// nil, is called when all of a batch is done.
func NewJournal(st store.Store, log *slog.Logger, after func()) *Journal {
	j := &Journal{Store: st, log: log, after: after, done: make(chan batchDone, 1)}
	j.notEmpty.L, j.room.L = &j.mu, &j.mu
	j.running.Go(j.commitLoop)
	j.running.Go(j.doneLoop)
	return j
}

// Put has a change stored. It waits while the journal is full, and returns false when it is closed.
func (j *Journal) Put(c Change) bool { return j.put(c, true) }

// PutUrgent is Put for those who may not wait, and who bound what they put by other means.
func (j *Journal) PutUrgent(c Change) bool { return j.put(c, false) }

func (j *Journal) put(c Change, wait bool) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	size := c.Size()
	for wait && !j.closed && (len(j.changes) >= journalChanges || j.bytes > 0 && j.bytes+size > journalBytes) {
		j.room.Wait()
	}
	if j.closed {
		return false
	}
	j.changes = append(j.changes, c)
	j.bytes += size
	j.notEmpty.Signal()
	return true
}

// stored is a change that somebody waits for, or nobody.
type stored struct {
	add  func(*store.Batch) // nil: nothing, but what was put before is to be waited for
	must bool
	done chan error
}

func (s *stored) Done(err error) { s.done <- err }
func (s *stored) Size() int      { return 1024 }
func (s *stored) Must() bool     { return s.must }
func (s *stored) Lazy() bool     { return s.add == nil }
func (s *stored) Add(b *store.Batch) {
	if s.add != nil {
		s.add(b)
	}
}

// Flush waits until everything that was put before has been stored, or has failed, which is for others to know.
func (j *Journal) Flush(ctx context.Context) error {
	s := &stored{done: make(chan error, 1)}
	if !j.PutUrgent(s) {
		return store.ErrClosed
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Do has something stored and waits until it is durable.
func (j *Journal) Do(ctx context.Context, add func(*store.Batch)) error {
	s := &stored{done: make(chan error, 1), add: add}
	if !j.Put(s) {
		return store.ErrClosed
	}
	select {
	case err := <-s.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Later has something stored that nobody waits for, as soon as the store can.
func (j *Journal) Later(add func(*store.Batch)) bool {
	return j.PutUrgent(&stored{done: make(chan error, 1), add: add, must: true})
}

// Behind reports whether the store has for some time not been able to commit what must be. Nothing is to be begun then
// that has to be stored sooner or later, as sessions have.
func (j *Journal) Behind() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.behind
}

// Close stores what was put, and stops. A second Close does nothing.
func (j *Journal) Close() {
	j.mu.Lock()
	j.closed = true
	j.notEmpty.Broadcast()
	j.room.Broadcast()
	j.mu.Unlock()
	j.running.Wait()
}

// take waits for changes. Where some are held it does not wait for more, but for a moment.
func (j *Journal) take() []Change {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.held) > 0 && len(j.changes) == 0 && !j.closed {
		t := time.AfterFunc(journalRetry, j.notEmpty.Broadcast)
		j.notEmpty.Wait()
		t.Stop()
	}
	for len(j.changes) == 0 && len(j.held) == 0 && !j.closed {
		j.notEmpty.Wait()
	}
	changes := slices.Concat(j.held, j.changes)
	clear(j.changes)
	clear(j.held)
	j.changes, j.held, j.bytes = j.changes[:0], j.held[:0], 0
	j.room.Broadcast()
	return changes
}

func (j *Journal) commitLoop() {
	defer close(j.done)
	for {
		changes := j.take()
		if len(changes) == 0 {
			return
		}
		b := &store.Batch{Lazy: true}
		for _, c := range changes {
			c.Add(b)
			b.Lazy = b.Lazy && c.Lazy()
		}
		err := j.Store.Commit(context.Background(), b)
		if err != nil && !errors.Is(err, store.ErrUnavailable) {
			j.log.Error("commit of ordinary topics failed", "changes", len(changes), "error", err)
		}
		for _, f := range b.Fences {
			if err == nil && f.Lost && j.fenced != nil {
				j.fenced(f.Client, f.Epoch)
			}
		}
		changes = j.hold(changes, err)
		j.done <- batchDone{changes, err}
	}
}

// hold keeps those changes that must be stored for the next try, unless this was the last; it returns the others.
func (j *Journal) hold(changes []Change, err error) []Change {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.behind = false
	if j.closed || !errors.Is(err, store.ErrUnavailable) {
		return changes
	}
	rest := changes[:0]
	for _, c := range changes {
		if c.Must() {
			j.held = append(j.held, c)
		} else {
			rest = append(rest, c)
		}
	}
	j.behind = len(j.held) >= journalChanges
	return rest
}

func (j *Journal) doneLoop() {
	for b := range j.done {
		for _, c := range b.changes {
			c.Done(b.err)
		}
		if j.after != nil {
			j.after()
		}
	}
}
