package pebble

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// queueView is a queue in one state of the store.
type queueView struct {
	store.QueueState
	kept uint64 // no record begins before it: what is before is deleted, and takes time to pass over
	it   *pdb.Iterator
}

// viewQueue finds a queue's state among what is durable up to an lsn. The caller closes it.
func (s *Store) viewQueue(r pdb.Reader, client string, upTo uint64) (q queueView, err error) {
	v, closer, err := r.Get(append([]byte{tabPassed}, client...))
	if err == nil {
		d := wire.Decoder{B: v}
		q.Passed, q.kept = d.Uvarint(), d.Uvarint()
		if err = closer.Close(); d.Bad {
			return q, s.corrupt("cursor of the queue of %q", client)
		}
	}
	if err != nil && !errors.Is(err, pdb.ErrNotFound) {
		return q, s.wrap(err, "cursor of the queue of %q", client)
	}
	q.Head = q.Passed
	q.it, err = r.NewIter(&pdb.IterOptions{
		LowerBound: keyNum(nil, tabQueue, client, q.kept), UpperBound: after(keyName(nil, tabQueue, client)),
	})
	if err != nil {
		return q, s.wrap(err, "queue of %q", client)
	}
	for ok := q.it.Last(); ok; ok = q.it.Prev() {
		r, err := s.queueRecord(q.it, client)
		if err != nil {
			return q, errors.Join(err, q.it.Close())
		}
		if r.lsn() <= upTo {
			q.Head = max(q.Head, r.last())
			break
		}
	}
	if err := q.it.Error(); err != nil {
		return q, errors.Join(s.wrap(err, "queue of %q", client), q.it.Close())
	}
	return q, nil
}

// Queue tells where a session's queue stands.
func (s *Store) Queue(ctx context.Context, client string) (store.QueueState, error) {
	if err := s.enter(ctx); err != nil {
		return store.QueueState{}, err
	}
	defer s.life.RUnlock()
	q, err := s.viewQueue(s.db, client, s.durable.Load())
	if err != nil {
		return store.QueueState{}, err
	}
	return q.QueueState, s.wrap(q.it.Close(), "queue of %q", client)
}

// ReadQueue reads a page of a queue, in one state of the store: what it refers to may be removed meanwhile.
func (s *Store) ReadQueue(
	ctx context.Context, client string, after uint64, limit int, dst []store.Queued,
) ([]store.Queued, error) {
	if err := s.enter(ctx); err != nil {
		return dst, err
	}
	defer s.life.RUnlock()
	durable := s.durable.Load()
	snap := s.db.NewSnapshot()
	defer snap.Close()
	q, err := s.viewQueue(snap, client, durable)
	if err != nil {
		return dst, err
	}
	it := q.it
	defer it.Close()
	next := max(after, q.Passed) + 1
	start, bytes := len(dst), 0
	ok := it.SeekLT(keyNum(nil, tabQueue, client, next+1)) || it.First()
	for ; ok && next <= q.Head && len(dst)-start < limit && bytes < pageBytes; ok = it.Next() {
		r, err := s.queueRecord(it, client)
		if err != nil {
			return dst, err
		}
		seq := r.first
		for x, ok := r.next(); ok && next <= q.Head && len(dst)-start < limit && bytes < pageBytes; x, ok = r.next() {
			if seq += x.count; seq <= next {
				continue
			}
			skip := x.count - (seq - next)
			n := min(x.count-skip, uint64(limit-(len(dst)-start)))
			list, err := s.pubs(snap, &x, skip, n)
			if err != nil {
				return dst, fmt.Errorf("queue of %q, seq %d: %w", client, next, err)
			}
			options := slices.Clone(x.options)
			for i := range list {
				dst = append(dst, store.Queued{Seq: next, QoS: min(x.qos, list[i].QoS), Options: options, Publication: &list[i]})
				next++
				if bytes += len(list[i].Payload); bytes >= pageBytes {
					break
				}
			}
		}
		if r.d.Bad {
			return dst, s.corrupt("queue of %q, seq %d", client, r.first)
		}
	}
	return dst, s.wrap(it.Error(), "queue of %q", client)
}

// pubs reads n publications of a run.
func (s *Store) pubs(snap pdb.Reader, x *pubRun, skip, n uint64) ([]store.Publication, error) {
	key := binary.BigEndian.AppendUint64([]byte{tabPubs}, x.lsn)
	v, closer, err := snap.Get(key)
	if err != nil {
		if errors.Is(err, pdb.ErrNotFound) {
			return nil, s.corrupt("publications at lsn %d are missing", x.lsn)
		}
		return nil, s.wrap(err, "publications at lsn %d", x.lsn)
	}
	defer closer.Close()
	i := int(x.index + skip)
	list, err := wire.ParsePubs(v, i, i+int(n))
	return list, s.wrap(err, "publications at lsn %d", x.lsn)
}
