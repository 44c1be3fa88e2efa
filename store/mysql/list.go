package mysql

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/mqim/mqim/store"
)

// recent is a conversation with its newest id.
type recent struct {
	id   int64
	conv store.Conv
}

// ListConversations merges the direct conversations, which are stored in the order of their newest messages, with the
// user's groups, which are sorted at each call: its cost grows with the number of groups the user is or was in, not with
// that of messages. The cursor is the id of the newest message of the last conversation listed that the user was there for.
func (s *Store) ListConversations(
	ctx context.Context, user, cursor string, limit int,
) (list []store.Conversation, next string, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, "", err
	}
	defer s.life.RUnlock()
	below := int64(math.MaxInt64)
	if cursor != "" {
		n, err := strconv.ParseInt(cursor, 16, 64)
		if err != nil {
			return nil, "", fmt.Errorf("%w: %q", store.ErrCursor, cursor)
		}
		below = n
	}
	err = s.near(ctx, func(ctx context.Context, src *source) (err error) {
		list, next, err = s.listConversations(ctx, src, user, below, limit)
		return err
	})
	return list, next, err
}

func (s *Store) listConversations(
	ctx context.Context, src *source, user string, below int64, limit int,
) ([]store.Conversation, string, error) {
	all, err := s.newest(ctx, src, user, below, limit+1)
	if err != nil {
		return nil, "", err
	}
	slices.SortFunc(all, func(a, b recent) int { return cmp.Compare(b.id, a.id) })
	more := len(all) > limit
	all = all[:min(len(all), max(limit, 0))]
	convs := make([]store.Conv, len(all))
	for i, r := range all {
		convs[i] = r.conv
	}
	if err := src.require(strs(convs)...); err != nil {
		return nil, "", err // what peers have read touches their conversations
	}
	list, err := s.conversations(ctx, src, user, convs)
	if err != nil {
		return nil, "", err
	}
	bytes := 0
	for i := range list {
		if bytes >= pageBytes {
			list, all, more = list[:i], all[:i], true
			break
		}
		if m := list[i].Last; m != nil {
			bytes += len(m.Body)
		}
	}
	next := ""
	if more && len(all) > 0 {
		next = strconv.FormatInt(all[len(all)-1].id, 16)
	}
	return slices.DeleteFunc(list, func(c store.Conversation) bool { return c.Head == 0 }), next, nil
}

// newest lists direct conversations with a newest id below the given one, at most limit, and all such groups, in no order.
func (s *Store) newest(ctx context.Context, src *source, user string, below int64, limit int) (all []recent, err error) {
	p := s.packet()
	p.get(listDirects, func(r *sql.Rows) error {
		var x recent
		err := r.Scan(&x.conv, &x.id)
		all = append(all, x)
		return err
	}, user, below, max(limit, 0))
	var groups []string
	err = s.memberships(ctx, src, p, user, "", func(m membership) {
		groups = append(groups, string(store.GroupConv(m.Group)))
		id := m.lastID
		if !m.Current {
			id = m.leftID
		}
		if id > 0 && id < below {
			all = append(all, recent{id, store.GroupConv(m.Group)})
		}
	})
	if err == nil {
		err = src.require(groups...) // a message to a group touches the group, not each member
	}
	return all, err
}

// membership is an entry of a user's list of groups. leftID is the id of the message that a former member left with,
// lastID that of the newest message.
type membership struct {
	store.Membership
	leftID, lastID int64
}

// memberships walks over a user's groups from after on, with what else p asks for at the start.
func (s *Store) memberships(
	ctx context.Context, src *source, p *packet, user, after string, take func(membership),
) error {
	if after != "" {
		after = string(store.GroupConv(after))
	}
	for {
		n := 0
		s.askMemberships(p, user, after, maxRows, func(m membership) {
			n++
			after = string(store.GroupConv(m.Group))
			take(m)
		})
		if err := src.read(ctx, p, "groups of %q", user); err != nil || n < maxRows {
			return err
		}
	}
}

func (s *Store) askMemberships(p *packet, user, after string, limit int, take func(membership)) {
	p.get(listMemberships, func(r *sql.Rows) error {
		var conv store.Conv
		var m membership
		if err := r.Scan(&conv, &m.Current, &m.Large, &m.leftID, &m.lastID); err != nil {
			return err
		}
		m.Group, _ = conv.Group()
		take(m)
		return nil
	}, user, after, limit)
}
