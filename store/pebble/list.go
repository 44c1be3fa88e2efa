package pebble

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
)

// ListConversations merges the recency index of direct conversations with the user's groups, which are looked up
// and sorted at each call: its cost grows with the number of groups the user is or was in, not with that of messages.
// The cursor is the id of the newest message of the last conversation listed that the user was there for.
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

// groupsBelow lists all groups that the user is or was in and whose newest id for the user is below the given one, in no
// order: of a group that the user has left it is the id of the message that says so.
func (s *Store) groupsBelow(user string, below uint64) ([]recent, error) {
	it, err := s.names(tabMembership, user)
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var out []recent
	var current []store.Conv
	durable := s.lastID.Load() // who leaves with a later message is still there
	for ok := it.First(); ok; ok = it.Next() {
		m, left, err := s.iterMembership(it, user)
		if err != nil {
			return nil, err
		}
		conv := store.GroupConv(m.Group)
		if m.Current || left > durable {
			current = append(current, conv)
		} else if uint64(left) < below {
			out = append(out, recent{uint64(left), conv})
		}
	}
	if err := it.Error(); err != nil {
		return nil, s.wrap(err, "conversations of %q", user)
	}
	ids, err := s.newestIDs(current)
	for i, id := range ids {
		if id > 0 && uint64(id) < below {
			out = append(out, recent{uint64(id), current[i]})
		}
	}
	return out, err
}

// latest remembers where the newest messages of groups are that somebody has listed. Each group has one entry, which
// readers make before they look and fill afterwards, and which the holder of Store.mu moves once a batch is applied: so
// an entry that is filled never misses a message.
type latest struct {
	mu sync.Mutex
	of cache[store.Conv, *latestMessage]
}

type latestMessage struct {
	lsn uint64 // of its chunk, durable or not; 0: not filled
	id  int64
}

func (m *latestMessage) set(lsn uint64, id int64) {
	if lsn > m.lsn {
		m.lsn, m.id = lsn, id
	}
}

// move notes what a batch has appended.
func (l *latest) move(heads []*convHead) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range heads {
		if c.direct {
			continue
		}
		if m, ok := l.of.get(c.conv); ok {
			m.set(c.open.ref.lsn, c.lastID)
		}
	}
}

// look returns the entries of groups, and what they say: id 0 where they are not filled or not durable.
func (l *latest) look(groups []store.Conv, durable uint64) (entries []*latestMessage, ids []int64) {
	entries, ids = make([]*latestMessage, len(groups)), make([]int64, len(groups))
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, c := range groups {
		m, ok := l.of.get(c)
		if !ok {
			m = &latestMessage{}
			l.of.put(c, m)
		}
		entries[i] = m
		if m.lsn <= durable {
			ids[i] = m.id
		}
	}
	l.of.settle()
	return entries, ids
}

// newestIDs are the ids of the newest durable messages of groups, 0 where there is none. groups are in order.
func (s *Store) newestIDs(groups []store.Conv) ([]int64, error) {
	durable := s.durable.Load()
	entries, ids := s.latest.look(groups, durable)
	if !slices.Contains(ids, 0) {
		return ids, nil
	}
	it, err := s.db.NewIter(&pdb.IterOptions{LowerBound: []byte{tabChunk}, UpperBound: []byte{tabChunk + 1}})
	if err != nil {
		return nil, s.wrap(err, "newest messages of groups")
	}
	defer it.Close()
	found := make([]uint64, len(groups)) // lsn of what no batch has come after
	for i, conv := range groups {
		if ids[i] != 0 {
			continue
		}
		prefix := keyName(nil, tabChunk, string(conv))
		last := true
		for ok := it.SeekLT(after(prefix)); ok && bytes.HasPrefix(it.Key(), prefix); ok = it.Prev() {
			r, err := s.iterRef(it, conv)
			if err != nil {
				return nil, err
			}
			if r.lsn <= durable {
				if ids[i] = r.lastID; last {
					found[i] = r.lsn
				}
				break
			}
			last = false
		}
	}
	if err := it.Error(); err != nil {
		return nil, s.wrap(err, "newest messages of groups")
	}
	s.latest.mu.Lock()
	defer s.latest.mu.Unlock()
	for i, lsn := range found {
		if lsn > 0 {
			entries[i].set(lsn, ids[i])
		}
	}
	return ids, nil
}
