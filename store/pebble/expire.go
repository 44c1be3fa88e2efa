package pebble

import (
	"bytes"
	"slices"

	pdb "github.com/cockroachdb/pebble/v2"
)

// change applies what build writes, unsynced.
func (s *Store) change(what string, build func(w *writer) error) error {
	pb := s.db.NewBatch()
	if _, _, err := s.apply(pb, true, build); err != nil {
		return s.wrap(err, "%s", what)
	}
	return pb.Close()
}

// scan looks at up to maintainValues values of a table from pos on and returns the keys of those that want says.
func (s *Store) scan(table byte, pos []byte, want func(key, value []byte) bool) (keys [][]byte, next []byte, err error) {
	if pos == nil {
		pos = []byte{table}
	}
	it, err := s.db.NewIter(&pdb.IterOptions{LowerBound: pos, UpperBound: []byte{table + 1}})
	if err != nil {
		return nil, nil, s.wrap(err, "table %c", table)
	}
	defer it.Close()
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		if n++; n > maintainValues {
			next = slices.Clone(it.Key())
			break
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, nil, s.wrap(err, "table %c", table)
		}
		if want(it.Key(), v) {
			keys = append(keys, bytes.Clone(it.Key()))
		}
	}
	return keys, next, s.wrap(it.Error(), "table %c", table)
}

// endTopicSessions removes sessions that have ended, and writes down since when those have been disconnected that a
// crash has left connected.
func (s *Store) endTopicSessions(pos []byte, now int64) (next []byte, err error) {
	keys, next, err := s.scan(tabSession, pos, func(key, value []byte) bool {
		x, cut, ok := decodeSession("", value, s.boot, s.opened)
		ends := x.Ends()
		return ok && (cut || ends != 0 && ends <= now)
	})
	if err != nil || len(keys) == 0 {
		return next, err
	}
	return next, s.change("end sessions", func(w *writer) error {
		for _, k := range keys {
			// Looked at again under mu: one that was taken up meanwhile stays.
			h, err := w.queue(string(k[1:]))
			if err != nil {
				return err
			}
			switch {
			case h.over(now):
				err = w.endSession(h.client)
			case h.exists && !h.session.Online:
				record := h.session
				err = w.session(&record)
			}
			if err != nil {
				return err
			}
		}
		return w.flushQueues()
	})
}
