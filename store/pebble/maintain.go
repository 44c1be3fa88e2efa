package pebble

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// How much one call of Maintain looks at, per job. It keeps a call to some milliseconds.
const (
	maintainInboxes = 256
	maintainChunks  = 128
	maintainValues  = 1024 // values of each table that is looked at one by one: sessions, notices and so on
)

const (
	trimPassed  = 1024 // entries that every cursor has passed, before they are worth a deletion
	trimExpired = 64   // the same for entries that retention lets go of
	trimPoints  = 16   // records up to which they are deleted one by one: readers pay for each range deletion
	passRest    = 20   // a job rests for this many times as long as its last pass took: it costs 5 % at most
)

// job is a walk over a table in pieces, one a call.
type job struct {
	pos   []byte        // where the next piece begins; nil: at the start
	spent time.Duration // so far in this pass
	rest  time.Time     // no new pass before
}

// step runs a piece of the job, unless it rests between two passes; it reports whether the pass goes on.
func (j *job) step(run func(pos []byte) (next []byte, err error)) (more bool, err error) {
	start := time.Now()
	if j.pos == nil && start.Before(j.rest) {
		return false, nil
	}
	next, err := run(j.pos)
	if err != nil {
		return false, err
	}
	j.pos = next
	j.spent += time.Since(start)
	if next == nil {
		j.rest = time.Now().Add(passRest * j.spent)
		j.spent = 0
	}
	return next != nil, nil
}

// maintainer is where Maintain's jobs have come to.
type maintainer struct{ inboxes, history, marks, notices, devices, sessions, retained, claims job }

// Maintain drops cids that are past the window, inbox entries that retention or every cursor has passed, old messages
// and what was noted of them, old notices, sessions that have ended, retained messages that have expired, and claims of
// clients of whom nothing is left. Nothing of it is needed for reads to be exact, so it may be lazy, and what a crash undoes is done again. It is not synced:
// in the write-ahead log it comes after what it follows from.
func (s *Store) Maintain(ctx context.Context, now time.Time) (more bool, err error) {
	if err := s.enter(ctx); err != nil {
		return false, err
	}
	defer s.life.RUnlock()
	if s.space.refuse() != nil && s.space.waiting.Load() > 0 {
		return false, nil // even a deletion needs room in the log
	}
	s.maintMu.Lock()
	defer s.maintMu.Unlock()
	if err := s.dropBuckets(now); err != nil {
		return false, err
	}
	m := &s.maint
	ms := now.UnixMilli()
	var errs []error
	step := func(j *job, run func(pos []byte) (next []byte, err error)) {
		waiting, err := j.step(run)
		more, errs = more || waiting, append(errs, err)
	}
	step(&m.devices, func(pos []byte) ([]byte, error) { return s.endSessions(pos, ms) })
	step(&m.inboxes, func(pos []byte) ([]byte, error) { return s.trimInboxes(ctx, pos, ms) })
	step(&m.sessions, func(pos []byte) ([]byte, error) { return s.endTopicSessions(pos, ms) })
	step(&m.retained, func(pos []byte) ([]byte, error) { return s.dropRetained(pos, ms) })
	step(&m.claims, func(pos []byte) ([]byte, error) { return s.dropClaims(pos, ms) })
	step(&m.notices, func(pos []byte) ([]byte, error) { return s.dropNotices(pos, ms) })
	if ttl := s.opts.Retention.HistoryTTL; ttl > 0 {
		cutoff := now.Add(-ttl).UnixMilli()
		step(&m.history, func(pos []byte) ([]byte, error) { return s.dropChunks(ctx, pos, cutoff) })
		step(&m.marks, s.dropMarks)
	}
	return more, errors.Join(errs...)
}

// dropBuckets removes the buckets of cids that are too old to matter.
func (s *Store) dropBuckets(now time.Time) error {
	window := s.opts.Retention.Dedupe.Milliseconds()
	if window <= 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &s.w
	for i := 0; i < len(w.buckets); {
		if w.bucketEnd(i) > now.UnixMilli()-window {
			i++
			continue
		}
		b := w.buckets[i]
		err := s.db.DeleteRange(keyBucket(nil, b), keyBucket(nil, b+1), pdb.NoSync)
		if err != nil {
			return s.wrap(err, "drop old cids")
		}
		w.buckets = slices.Delete(w.buckets, i, i+1)
	}
	return nil
}

// endSessions removes sessions that ended before now (Unix milliseconds).
func (s *Store) endSessions(pos []byte, now int64) (next []byte, err error) {
	ended := func(_, v []byte) bool {
		d, ok := decodeDevice(store.DeviceKey{}, v)
		return ok && d.Expires != 0 && d.Expires <= now
	}
	keys, next, err := s.scan(tabDevice, pos, ended)
	if err != nil || len(keys) == 0 {
		return next, err
	}
	// Under mu: a session that was taken up again in the meantime stays.
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.db.NewBatch()
	defer b.Close()
	for _, k := range keys {
		v, err := s.get(k)
		if err != nil {
			return nil, err
		}
		if v == nil || !ended(k, v) {
			continue
		}
		if err := b.Delete(k, nil); err != nil {
			return nil, err
		}
		user, device, _ := bytes.Cut(k[1:], []byte{0})
		if err := s.dropCursors(b, store.DeviceKey{User: string(user), Device: string(device)}); err != nil {
			return nil, err
		}
	}
	return next, s.wrap(s.db.Apply(b, pdb.NoSync), "remove ended sessions")
}

// trimInboxes hops from inbox to inbox and trims those where it is worth it.
func (s *Store) trimInboxes(ctx context.Context, pos []byte, now int64) (next []byte, err error) {
	if pos == nil {
		pos = []byte{tabInbox}
	}
	it, err := s.db.NewIter(&pdb.IterOptions{LowerBound: []byte{tabInbox}, UpperBound: []byte{tabInbox + 1}})
	if err != nil {
		return nil, s.wrap(err, "inboxes")
	}
	defer it.Close()
	b := s.db.NewBatch()
	defer b.Close()
	n := 0
	for ok := it.SeekGE(pos); ok; ok = it.SeekGE(pos) {
		if n++; n > maintainInboxes || ctx.Err() != nil {
			next = pos
			break
		}
		k := it.Key()
		if len(k) < 10 {
			return nil, s.corrupt("key %q", k)
		}
		user := string(k[1 : len(k)-9])
		first := tail(k)
		pos = after(keyName(nil, tabInbox, user))
		if err := s.trimInbox(b, user, first, now); err != nil {
			return nil, err
		}
	}
	if err := it.Error(); err != nil {
		return nil, s.wrap(err, "inboxes")
	}
	if b.Empty() {
		return next, nil
	}
	return next, s.wrap(s.db.Apply(b, pdb.NoSync), "trim inboxes")
}

// trimInbox trims one inbox, whose first record is at first.
func (s *Store) trimInbox(b *pdb.Batch, user string, first uint64, now int64) error {
	it, err := s.names(tabInbox, user)
	if err != nil {
		return err
	}
	defer it.Close()
	state, err := s.inboxState(it, user, 0)
	if err != nil || state.Head < first {
		return err
	}
	cut := state.Trimmed
	if cut+1 < first+trimExpired && cut < state.Head {
		cut = 0 // not worth it yet
	}
	if state.Head >= first+trimPassed {
		passed, err := s.passed(user, now)
		if err != nil {
			return err
		}
		if passed = min(passed, state.Head); passed >= first+trimPassed {
			cut = max(cut, passed)
		}
	}
	if cut < first {
		return nil
	}
	return s.cutInbox(b, it, user, floor{trimmed: max(cut, state.Trimmed), head: state.Head})
}

// cutInbox deletes the records that lie wholly within what is trimmed.
func (s *Store) cutInbox(b *pdb.Batch, it *pdb.Iterator, user string, f floor) error {
	var points [][]byte
	var from, to []byte
	for ok := it.First(); ok; ok = it.Next() {
		r, err := s.iterRecord(it, user)
		if err != nil {
			return err
		}
		if r.last() > f.trimmed {
			break
		}
		points = append(points, slices.Clone(it.Key()))
		if len(points) > trimPoints {
			// One range up to the record that the floor lies in.
			from = points[0]
			if !it.SeekLT(keyNum(nil, tabInbox, user, f.trimmed+1)) {
				break
			}
			if r, err = s.iterRecord(it, user); err != nil {
				return err
			}
			to = slices.Clone(it.Key())
			if r.last() <= f.trimmed {
				to = append(to, 0)
			}
			break
		}
	}
	if err := it.Error(); err != nil {
		return s.wrap(err, "inbox of %q", user)
	}
	if to != nil {
		points = nil
		if err := b.DeleteRange(from, to, nil); err != nil {
			return err
		}
	}
	for _, k := range points {
		if err := b.Delete(k, nil); err != nil {
			return err
		}
	}
	return b.Set(keyFloor(nil, user), f.append(nil), nil)
}

// passed is the seq that every cursor of the user has reached.
func (s *Store) passed(user string, now int64) (uint64, error) {
	u, err := s.user(user)
	if err != nil {
		return 0, err
	}
	list, err := s.devices(user)
	if err != nil {
		return 0, err
	}
	n := u.Cursor
	for _, d := range list {
		if d.Expires == 0 || d.Expires > now {
			n = min(n, d.Cursor)
		}
	}
	return n, nil
}

// dropChunks removes chunks that are older than cutoff, from the old end of the log on. The last chunk of a
// conversation stays: it tells the head.
func (s *Store) dropChunks(ctx context.Context, pos []byte, cutoff int64) (next []byte, err error) {
	if pos == nil {
		pos = []byte{tabLog}
	}
	it, err := s.db.NewIter(&pdb.IterOptions{LowerBound: pos, UpperBound: []byte{tabLog + 1}})
	if err != nil {
		return nil, s.wrap(err, "log")
	}
	defer it.Close()
	b := s.db.NewBatch()
	defer b.Close()
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		if n++; n > maintainChunks || ctx.Err() != nil {
			next = slices.Clone(it.Key())
			break
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, s.wrap(err, "log, lsn %d", tail(it.Key()))
		}
		c, err := wire.ParseChunk(v)
		if err != nil {
			s.log.Error("store.pebble: a damaged chunk is kept", "err", s.wrap(err, "log, lsn %d", tail(it.Key())))
			continue
		}
		young, err := s.dropChunk(b, it.Key(), &c, cutoff)
		if err != nil {
			return nil, err
		}
		if young {
			break
		}
	}
	if err := it.Error(); err != nil || b.Empty() {
		return next, s.wrap(err, "log")
	}
	// Under mu: a recall that has read one of the chunks must not write it again after it is gone.
	s.mu.Lock()
	defer s.mu.Unlock()
	return next, s.wrap(s.db.Apply(b, pdb.NoSync), "drop old messages")
}

// dropChunk removes one chunk and the marks on its messages; young says that it is not old enough, nor what follows.
func (s *Store) dropChunk(b *pdb.Batch, key []byte, c *wire.Chunk, cutoff int64) (young bool, err error) {
	conv := store.Conv(c.Conv)
	x, y, direct := conv.Users()
	var recalled []uint64
	firsts := map[string]uint64{} // groups: the first cseq of each sender, which has an entry of tabOwn
	r := c.Walk()
	for i := range c.Count {
		if !r.Next() {
			return false, s.wrap(wire.ErrChunk, "log, lsn %d", tail(key))
		}
		if r.TS >= cutoff {
			return true, nil
		}
		if r.Recalled() {
			recalled = append(recalled, c.First+uint64(i))
		}
		if _, ok := firsts[string(r.Sender())]; !ok && !direct {
			firsts[string(r.Sender())] = c.First + uint64(i)
		}
	}
	last, ok, err := s.lastRef(conv, ^uint64(0))
	if err != nil || !ok || last.first <= c.First {
		return false, err
	}
	keys := [][]byte{slices.Clone(key), keyNum(nil, tabChunk, string(conv), c.First)}
	for _, n := range recalled {
		keys = append(keys, keyNum(nil, tabRecall, string(conv), n))
	}
	if !direct { // dropMarks finds out who deleted what
		for user, n := range firsts {
			keys = append(keys, appendUint64(keyOwns(nil, conv, user), n))
		}
	} else {
		for _, u := range []string{x, y} {
			marks, err := s.marks(u, conv, c.First, c.First+uint64(c.Count)-1)
			if err != nil {
				return false, err
			}
			for _, n := range marks {
				keys = append(keys, keyDeleted(nil, u, conv, n))
			}
		}
	}
	for _, k := range keys {
		if err := b.Delete(k, nil); err != nil {
			return false, err
		}
	}
	return false, nil
}

// dropMarks removes the deletion marks of group messages that retention has removed. Those of direct conversations go
// with their messages.
func (s *Store) dropMarks(pos []byte) (next []byte, err error) {
	var at store.Conv
	var first uint64 // that at still has
	var failed error
	keys, next, err := s.scan(tabDeleted, pos, func(key, _ []byte) bool {
		_, rest, ok := bytes.Cut(key[1:], []byte{0})
		if !ok || len(rest) < 9 {
			failed = errors.Join(failed, s.corrupt("key %q", key))
			return false
		}
		conv := store.Conv(rest[:len(rest)-9])
		if _, inGroup := conv.Group(); !inGroup {
			return false
		}
		if conv != at {
			r, _, err := s.firstRef(conv)
			if err != nil {
				failed = errors.Join(failed, err)
				return false
			}
			at, first = conv, r.first
		}
		return tail(key) < first
	})
	if err = errors.Join(err, failed); err != nil || len(keys) == 0 {
		return next, err
	}
	return next, s.remove("deletions of old messages", keys)
}

// remove deletes keys, unsynced.
func (s *Store) remove(what string, keys [][]byte) error {
	return s.change("remove "+what, func(w *writer) error {
		for _, k := range keys {
			if err := w.pb.Delete(k, nil); err != nil {
				return err
			}
		}
		return nil
	})
}
