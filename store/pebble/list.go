package pebble

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/mqim/mqim/store"
)

// ListConversations merges the recency index of direct conversations with the user's groups, which are looked up
// and sorted at each call: its cost grows with the number of groups the user is in, not with that of messages. The
// cursor is the id of the last message of the last conversation listed.
func (s *Store) ListConversations(
	ctx context.Context, user, cursor string, limit int,
) ([]store.Conversation, string, error) {
	if err := s.enter(ctx); err != nil {
		return nil, "", err
	}
	defer s.life.RUnlock()
	below := ^uint64(0)
	if cursor != "" {
		n, err := strconv.ParseUint(cursor, 16, 64)
		if err != nil {
			return nil, "", fmt.Errorf("%w: %q", store.ErrCursor, cursor)
		}
		below = n
	}
	all, err := s.groupsBelow(user, below)
	if err != nil {
		return nil, "", err
	}
	direct, err := s.directBelow(user, below, limit+1)
	if err != nil {
		return nil, "", err
	}
	all = append(all, direct...)
	slices.SortFunc(all, func(a, b recent) int { return cmp.Compare(b.id, a.id) })
	more := len(all) > limit
	all = all[:min(len(all), max(limit, 0))]
	out := make([]store.Conversation, 0, len(all))
	bytes := 0
	for i, r := range all {
		if bytes >= pageBytes {
			all, more = all[:i], true
			break
		}
		c, err := s.conversation(user, r.conv)
		if err != nil {
			return nil, "", err
		}
		if c.Head > 0 { // else its first message is not durable yet
			out = append(out, c)
			if c.Last != nil {
				bytes += len(c.Last.Body)
			}
		}
	}
	next := ""
	if more && len(all) > 0 {
		next = strconv.FormatUint(all[len(all)-1].id, 16)
	}
	return out, next, nil
}

// recent is a conversation with its newest id.
type recent struct {
	id   uint64
	conv store.Conv
}

// directBelow lists direct conversations with a newest id below the given one, newest first.
func (s *Store) directBelow(user string, below uint64, limit int) ([]recent, error) {
	it, err := s.names(tabRecent, user)
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var out []recent
	for ok := it.SeekGE(keyNum(nil, tabRecent, user, ^below+1)); ok && len(out) < limit; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, s.wrap(err, "conversations of %q", user)
		}
		out = append(out, recent{^tail(it.Key()), store.Conv(v)})
	}
	return out, s.wrap(it.Error(), "conversations of %q", user)
}

// groupsBelow lists all groups of the user whose newest id is below the given one, in no order.
func (s *Store) groupsBelow(user string, below uint64) ([]recent, error) {
	it, err := s.names(tabGroup, user)
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var out []recent
	for ok := it.First(); ok; ok = it.Next() {
		conv := store.Conv(it.Key()[len(user)+2:])
		r, ok, err := s.lastRef(conv, s.durable.Load())
		if err != nil {
			return nil, err
		}
		if ok && uint64(r.lastID) < below {
			out = append(out, recent{uint64(r.lastID), conv})
		}
	}
	return out, s.wrap(it.Error(), "conversations of %q", user)
}
