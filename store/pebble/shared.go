package pebble

import (
	"context"

	"github.com/mqim/mqim/store"
)

// Writes counts the batches of this process that had messages or publications: there is no other process.
func (s *Store) Writes(ctx context.Context) (uint64, error) {
	if err := s.enter(ctx); err != nil {
		return 0, err
	}
	defer s.life.RUnlock()
	return s.writes.Load(), nil
}

// Living is 1: there is no other process.
func (s *Store) Living(ctx context.Context) (int, error) {
	if err := s.enter(ctx); err != nil {
		return 0, err
	}
	defer s.life.RUnlock()
	return 1, nil
}

// InboxHeads are the heads of inboxes.
func (s *Store) InboxHeads(ctx context.Context, users []string, dst []uint64) ([]uint64, error) {
	return each(ctx, s, users, dst, func(user string) (uint64, error) {
		r, ok, err := s.lastRecord(user, s.durable.Load())
		if err != nil {
			return 0, err
		}
		if ok {
			return r.last(), nil
		}
		f, err := s.floor(user) // retention has removed all
		return f.head, err
	})
}

// ConvHeads are the heads of conversations.
func (s *Store) ConvHeads(ctx context.Context, convs []store.Conv, dst []uint64) ([]uint64, error) {
	return each(ctx, s, convs, dst, func(conv store.Conv) (uint64, error) {
		r, ok, err := s.lastRef(conv, s.durable.Load())
		if !ok || err != nil {
			return 0, err
		}
		return r.last(), nil
	})
}

// QueueHeads are the heads of sessions' queues.
func (s *Store) QueueHeads(ctx context.Context, clients []string, dst []uint64) ([]uint64, error) {
	return each(ctx, s, clients, dst, func(client string) (uint64, error) {
		q, err := s.viewQueue(s.db, client, s.durable.Load())
		if err != nil {
			return 0, err
		}
		return q.Head, s.wrap(q.it.Close(), "queue of %q", client)
	})
}

// Epochs are those of the last claims.
func (s *Store) Epochs(ctx context.Context, clients []string, dst []uint64) ([]uint64, error) {
	return each(ctx, s, clients, dst, s.claimed)
}

// each appends what look finds for each key.
func each[K any](ctx context.Context, s *Store, keys []K, dst []uint64, look func(K) (uint64, error)) ([]uint64, error) {
	if err := s.enter(ctx); err != nil {
		return dst, err
	}
	defer s.life.RUnlock()
	for _, k := range keys {
		n, err := look(k)
		if err != nil {
			return dst, err
		}
		dst = append(dst, n)
	}
	return dst, nil
}
