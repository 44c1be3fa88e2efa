package mysql

import (
	"context"

	"github.com/mqim/mqim/store"
)

// Writes is store.Shared's.
func (s *Store) Writes(context.Context) (uint64, error) { return 0, nil }

// InboxHeads is store.Shared's.
func (s *Store) InboxHeads(ctx context.Context, users []string, dst []uint64) ([]uint64, error) {
	for _, u := range users {
		b, err := s.Inbox(ctx, u)
		if err != nil {
			return dst, err
		}
		dst = append(dst, b.Head)
	}
	return dst, nil
}

// ConvHeads is store.Shared's.
func (s *Store) ConvHeads(ctx context.Context, convs []store.Conv, dst []uint64) ([]uint64, error) {
	return append(dst, make([]uint64, len(convs))...), nil
}

// QueueHeads is store.Shared's.
func (s *Store) QueueHeads(ctx context.Context, clients []string, dst []uint64) ([]uint64, error) {
	for _, c := range clients {
		q, err := s.Queue(ctx, c)
		if err != nil {
			return dst, err
		}
		dst = append(dst, q.Head)
	}
	return dst, nil
}

// Epochs is store.Shared's.
func (s *Store) Epochs(ctx context.Context, clients []string, dst []uint64) ([]uint64, error) {
	return append(dst, make([]uint64, len(clients))...), nil
}
