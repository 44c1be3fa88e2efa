package pebble

import (
	"context"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// retain keeps a publication as its topic's retained message, or removes that.
func (w *writer) retain(p *store.Publish) error {
	w.key = wire.KeyPath(w.key[:0], tabRetained, p.Topic)
	had, known := w.retainedNow[p.Topic]
	if !known {
		v, err := w.s.get(w.key)
		if err != nil {
			return err
		}
		had = v != nil
	}
	keep := len(p.Payload) > 0
	if limit := w.s.opts.Retention.Topics.Retained; keep && !had && limit > 0 && w.retained >= limit {
		p.Err = store.ErrRetainedFull
		return nil
	}
	w.retainedNow[p.Topic] = keep
	switch {
	case keep && !had:
		w.retained++
	case !keep && had:
		w.retained--
	}
	if !keep && !had {
		return nil
	}
	w.val = w.val[:0]
	if keep {
		w.val = wire.AppendWhole(w.val, p.Publication)
	}
	return w.put(!keep, w.val)
}

// Retained lists retained messages in the order of their keys.
func (s *Store) Retained(ctx context.Context, filter, after string, limit int, now int64) (list []*store.Publication, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	it, err := s.db.NewIter(&pdb.IterOptions{LowerBound: []byte{tabRetained}, UpperBound: []byte{tabRetained + 1}})
	if err != nil {
		return nil, s.wrap(err, "retained messages")
	}
	defer it.Close()
	m := wire.NewPathMatcher(filter)
	start := []byte{tabRetained}
	if after != "" {
		start = append(wire.KeyPath(nil, tabRetained, after), 0)
	}
	bytes := 0
	for ok := it.SeekGE(start); ok && len(list) < limit && bytes < pageBytes; {
		match, seek := m.Look(it.Key())
		if !match {
			if seek == nil {
				break
			}
			ok = it.SeekGE(seek)
			continue
		}
		d := wire.Decoder{B: it.Value()}
		p, good := wire.ReadWhole(&d)
		if !good {
			topic, _, _ := wire.PathOf(it.Key())
			return nil, s.corrupt("retained message of %q", topic)
		}
		if p.Expires == 0 || p.Expires > now {
			list = append(list, p)
			bytes += len(p.Payload)
		}
		ok = it.Next()
	}
	return list, s.wrap(it.Error(), "retained messages")
}

// RetainedCount counts them.
func (s *Store) RetainedCount(ctx context.Context) (uint64, error) {
	if err := s.enter(ctx); err != nil {
		return 0, err
	}
	defer s.life.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.retained, nil
}

// dropRetained removes retained messages that have expired.
func (s *Store) dropRetained(pos []byte, now int64) (next []byte, err error) {
	expired := func(_, value []byte) bool {
		d := wire.Decoder{B: value}
		m, _ := wire.ReadPublication(&d)
		return !d.Bad && m.Expires != 0 && m.Expires <= now
	}
	keys, next, err := s.scan(tabRetained, pos, expired)
	if err != nil || len(keys) == 0 {
		return next, err
	}
	return next, s.change("drop expired retained messages", func(w *writer) error {
		for _, k := range keys {
			v, err := s.get(k)
			if err != nil {
				return err
			}
			if v != nil && expired(nil, v) {
				w.retained--
				w.deleted.note(tabRetained)
				w.note(w.pb.Delete(k, nil))
			}
		}
		return w.flushQueues()
	})
}
