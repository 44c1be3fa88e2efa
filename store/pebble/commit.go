package pebble

import (
	"context"
	"fmt"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
)

// Commit stores the batch as one durable step.
//
// Numbers are assigned and the batch is applied under mu; the sync is waited for outside it, so that the next
// batch is built meanwhile. Applied and durable order are the order in which mu was taken. A failed sync ends the
// process: the error is ErrUnknownOutcome only where a test keeps it from ending.
func (s *Store) Commit(ctx context.Context, b *store.Batch) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.life.RUnlock()
	if err := s.space.check(); err != nil {
		return err
	}
	pb := s.db.NewBatch()
	lazy := b.Lazy && len(b.Claims)+len(b.Sends)+len(b.Recalls)+len(b.Deletes)+len(b.Blocks)+len(b.Notices) == 0
	wait, end, err := s.apply(pb, lazy, func(w *writer) error { return w.build(b) })
	if err != nil {
		return err // the batch is not reused: after an error Pebble may still hold it
	}
	if wait {
		if err := pb.SyncWait(); err != nil {
			s.fatalf("sync of the write-ahead log failed: %v", err)
			return fmt.Errorf("%w: %v", store.ErrUnknownOutcome, err)
		}
	}
	if end.lsn != 0 {
		s.advance(end)
	}
	if len(b.Sends)+len(b.Publishes) > 0 {
		s.writes.Add(1)
	}
	return pb.Close()
}

// position is where the log stands after a batch.
type position struct {
	lsn    uint64
	lastID int64
}

// advance makes everything up to p visible. Calls may come out of order: a later sync covers the earlier batches.
func (s *Store) advance(p position) {
	for {
		id := s.lastID.Load()
		if id >= p.lastID || s.lastID.CompareAndSwap(id, p.lastID) {
			break
		}
	}
	for {
		lsn := s.durable.Load()
		if lsn >= p.lsn || s.durable.CompareAndSwap(lsn, p.lsn) {
			return
		}
	}
}

// apply assigns, builds and applies. wait says that the caller has to wait for the sync; end.lsn is 0 when the
// batch appended nothing.
func (s *Store) apply(pb *pdb.Batch, lazy bool, build func(*writer) error) (wait bool, end position, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.space.refuse(); err != nil {
		return false, end, err // the disk filled up while this call waited for mu
	}
	w := &s.w
	lsn := w.lsn
	w.begin(pb)
	applied := false
	defer func() {
		if !applied {
			w.lsn = lsn
		}
		w.end(applied)
	}()
	if err := build(w); err != nil {
		return false, end, err
	}
	if pb.Empty() {
		applied = true
		if !w.repeats {
			return false, end, nil
		}
		// What this batch repeats may be written but not synced: an empty record makes the sync wait for it.
		if err := pb.LogData(nil, nil); err != nil {
			return false, end, err
		}
	}
	s.space.written.Add(int64(pb.Len()))
	wait = s.opts.Sync == SyncCommit && (!lazy || w.sync)
	if wait {
		err = s.db.ApplyNoSyncWait(pb, pdb.Sync)
	} else {
		err = s.db.Apply(pb, pdb.NoSync)
	}
	if err != nil {
		return false, end, s.wrap(err, "apply a batch")
	}
	applied = true
	s.latest.move(w.touched)
	s.tidy(&w.deleted)
	if w.lsn != lsn {
		end = position{w.lsn, w.lastID}
	}
	return wait, end, nil
}

// build puts the batch into w.pb. Everything that reads stored chunks comes before the Sends, whose chunks cannot
// be read until they are applied.
func (w *writer) build(b *store.Batch) error {
	b, err := w.fence(b)
	if err != nil {
		return err
	}
	for _, r := range b.Recalls {
		if err := w.recall(r); err != nil {
			return err
		}
	}
	for i := range b.Deletes {
		if err := w.hide(&b.Deletes[i]); err != nil {
			return err
		}
	}
	for _, m := range b.Reads {
		if err := w.move(m, readMark); err != nil {
			return err
		}
	}
	for _, m := range b.Delivered {
		if err := w.move(m, deliveredMark); err != nil {
			return err
		}
	}
	if err := w.records(b); err != nil {
		return err
	}
	if err := w.notices(b.Notices); err != nil {
		return err
	}
	if err := w.findCids(b.Sends); err != nil {
		return err
	}
	for i, m := range b.Sends {
		if err := w.send(i, m); err != nil {
			return err
		}
		if m.Err == nil {
			if err := w.inbound(m.Inbound); err != nil {
				return err
			}
		}
	}
	if err := w.flush(); err != nil {
		return err
	}
	return w.topics(&b.TopicBatch)
}

// Healthy is nil when there is room on the disk.
func (s *Store) Healthy() error {
	s.life.RLock()
	defer s.life.RUnlock()
	if s.closed {
		return store.ErrClosed
	}
	return s.space.check()
}

// LastID is the greatest durable message id.
func (s *Store) LastID(ctx context.Context) (int64, error) {
	if err := s.enter(ctx); err != nil {
		return 0, err
	}
	defer s.life.RUnlock()
	return s.lastID.Load(), nil
}
