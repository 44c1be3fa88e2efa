package pebble

import (
	"context"
	"errors"

	"github.com/mqim/mqim/store"
)

var errSoon = errors.New("not yet")

func (s *Store) Notices(ctx context.Context, to string, since int64, limit int) ([]store.Notice, error) {
	return nil, errSoon
}
func (s *Store) Sent(ctx context.Context, from, cid string) (m store.Message, hash uint64, ok bool, err error) {
	return m, 0, false, errSoon
}
