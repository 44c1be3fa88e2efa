package mysql

import (
	"context"
	"database/sql"
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
	"github.com/mqim/mqim/store"
)

// The first byte of the ids of lanes that messages and publications go through, so that their rows lie together.
const (
	laneFeeds = 'w'
	laneOther = 'o'
)

// Writes is a hash over the rows of the lanes that messages and publications go through: each transaction writes its own.
// It differs, too, when a row is removed of a process that has been gone for long.
func (s *Store) Writes(ctx context.Context) (uint64, error) {
	if err := s.enter(ctx); err != nil {
		return 0, err
	}
	defer s.life.RUnlock()
	h := xxhash.New()
	for after := string([]byte{laneFeeds}); ; {
		n := 0
		p := s.packet()
		p.get(listFeeds, func(r *sql.Rows) error {
			var batch uint64
			if err := r.Scan(&after, &batch); err != nil {
				return err
			}
			n++
			_, _ = h.WriteString(after)
			_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, batch))
			return nil
		}, after, string([]byte{laneFeeds + 1}), maxRows)
		if err := s.read(ctx, p, "writes"); err != nil || n < maxRows {
			return h.Sum64(), err
		}
	}
}

// InboxHeads are the heads of inboxes.
func (s *Store) InboxHeads(ctx context.Context, users []string, dst []uint64) ([]uint64, error) {
	return s.numbers(ctx, getInboxHeads, "heads of inboxes", users, dst)
}

// ConvHeads are the heads of conversations.
func (s *Store) ConvHeads(ctx context.Context, convs []store.Conv, dst []uint64) ([]uint64, error) {
	return s.numbers(ctx, getConvHeads, "heads of conversations", strs(convs), dst)
}

// QueueHeads are the heads of sessions' queues.
func (s *Store) QueueHeads(ctx context.Context, clients []string, dst []uint64) ([]uint64, error) {
	return s.numbers(ctx, getQueueHeads, "heads of queues", clients, dst)
}

// Epochs are those of the last claims.
func (s *Store) Epochs(ctx context.Context, clients []string, dst []uint64) ([]uint64, error) {
	return s.numbers(ctx, getClaims, "claims", clients, dst)
}

// Living counts the processes whose beats come (Store.lives), tools that read the store as well.
func (s *Store) Living(ctx context.Context) (int, error) {
	if err := s.enter(ctx); err != nil {
		return 0, err
	}
	defer s.life.RUnlock()
	var all nodes
	p := s.packet()
	s.askNodes(p, &all)
	if err := s.read(ctx, p, "processes"); err != nil {
		return 0, err
	}
	n := 1
	for id := range all.seen {
		if id != s.node && s.lives(&all, id) {
			n++
		}
	}
	return n, nil
}

// numbers asks, in one round trip, for a number for each name; 0 where there is none.
func (s *Store) numbers(ctx context.Context, st *statement, what string, names []string, dst []uint64) ([]uint64, error) {
	if err := s.enter(ctx); err != nil {
		return dst, err
	}
	defer s.life.RUnlock()
	found := make(map[string]uint64, len(names))
	p := s.packet()
	p.names(st, func(r *sql.Rows) error { return scanNumber(r, found) }, names)
	if err := s.read(ctx, p, "%s", what); err != nil {
		return dst, err
	}
	for _, name := range names {
		dst = append(dst, found[name])
	}
	return dst, nil
}
