package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"math"

	"github.com/mqim/mqim/store"
)

// Group returns the record of a group.
func (s *Store) Group(ctx context.Context, id string) (store.Group, error) {
	g := store.Group{ID: id}
	if err := s.enter(ctx); err != nil {
		return g, err
	}
	defer s.life.RUnlock()
	p := s.packet()
	s.askGroup(p, id, &g)
	err := s.read(ctx, p, "group %q", id)
	if err == nil && g.Version == 0 {
		err = fmt.Errorf("group %q: %w", id, store.ErrNotFound)
	}
	return g, err
}

func (s *Store) askGroup(p *packet, id string, g *store.Group) {
	p.names(getGroups, func(r *sql.Rows) (err error) {
		*g, err = scanGroup(r)
		return err
	}, []string{id})
}

func (s *Store) askMember(p *packet, group, user string, m *store.Member) {
	p.many(getMembers, func(r *sql.Rows) (err error) {
		*m, err = s.scanMember(r)
		return err
	}, 1, one(group, user))
}

// Member returns a user's part in a group.
func (s *Store) Member(ctx context.Context, group, user string) (store.Member, error) {
	m := store.Member{Group: group, User: user}
	if err := s.enter(ctx); err != nil {
		return m, err
	}
	defer s.life.RUnlock()
	var g store.Group
	p := s.packet()
	s.askMember(p, group, user, &m)
	s.askGroup(p, group, &g)
	err := s.read(ctx, p, "member %q of group %q", user, group)
	return ended(m, g.Ended), err
}

// Members lists present members by name.
func (s *Store) Members(
	ctx context.Context, group, after string, limit int,
) (list []store.Member, next string, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, "", err
	}
	defer s.life.RUnlock()
	err = s.near(ctx, func(ctx context.Context, src *source) (err error) {
		list, next, err = s.presentMembers(ctx, src, group, after, max(limit, 1))
		return err
	}, string(store.GroupConv(group)))
	return list, next, err
}

func (s *Store) presentMembers(
	ctx context.Context, src *source, group, after string, limit int,
) (list []store.Member, next string, err error) {
	var g store.Group
	p := s.packet()
	p.get(presentMembers, func(r *sql.Rows) error {
		m, err := s.scanMember(r)
		list = append(list, m)
		return err
	}, group, after, limit+1)
	s.askGroup(p, group, &g)
	if err := src.read(ctx, p, "members of group %q", group); err != nil {
		return nil, "", err
	}
	if len(list) > limit {
		list = list[:limit]
		next = list[limit-1].User
	}
	for i := range list {
		list[i] = ended(list[i], g.Ended)
	}
	return list, next, nil
}

// Memberships lists the groups that a user is or has been in.
func (s *Store) Memberships(
	ctx context.Context, user, after string, limit int,
) (list []store.Membership, next string, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, "", err
	}
	defer s.life.RUnlock()
	if after != "" {
		after = string(store.GroupConv(after))
	}
	err = s.near(ctx, func(ctx context.Context, src *source) (err error) {
		list, next, err = s.groupsOf(ctx, src, user, after, max(limit, 1))
		return err
	})
	return list, next, err
}

func (s *Store) groupsOf(
	ctx context.Context, src *source, user, after string, limit int,
) (list []store.Membership, next string, err error) {
	p := s.packet()
	s.askMemberships(p, user, after, limit+1, func(m membership) { list = append(list, m.Membership) })
	if err := src.read(ctx, p, "groups of %q", user); err != nil {
		return nil, "", err
	}
	if len(list) > limit {
		list = list[:limit]
		next = list[limit-1].Group
	}
	return list, next, nil
}

// Streams lists the large groups of a device.
func (s *Store) Streams(ctx context.Context, k store.DeviceKey) ([]store.Stream, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	var out []store.Stream
	err := s.memberships(ctx, &source{s: s}, s.packet(), k.User, "", func(m membership) {
		if m.Large {
			out = append(out, store.Stream{Conv: store.GroupConv(m.Group)})
		}
	})
	if err != nil {
		return nil, err
	}
	p := s.packet()
	members := make([]store.Member, len(out))
	groups := make([]store.Group, len(out))
	for i := range out {
		x := &out[i]
		id, _ := x.Conv.Group()
		p.names(getConvs, func(r *sql.Rows) error {
			var c convHead
			err := c.scan(r)
			x.Head = c.cseq
			return err
		}, []string{string(x.Conv)}) // before the spans: none is to be open that had ended by then
		s.askGroup(p, id, &groups[i])
		s.askMember(p, id, k.User, &members[i])
		p.many(getViews, func(r *sql.Rows) error {
			_, v, err := scanView(r)
			x.Delivered = v.delivered
			return err
		}, 1, one(string(x.Conv), k.User))
		p.get(getCursors, func(r *sql.Rows) error { return r.Scan(&x.Cursor) }, k.User, k.Device, string(x.Conv))
	}
	if err := s.read(ctx, p, "groups of %q", k.User); err != nil {
		return nil, err
	}
	for i := range out {
		out[i].LargeFrom, out[i].Mode = groups[i].LargeFrom, groups[i].ReceiptMode()
		out[i].Spans = ended(members[i], groups[i].Ended).Spans
	}
	return out, nil
}

// Receipts counts who has a message of a group: one walk over its present members and their watermarks.
func (s *Store) Receipts(
	ctx context.Context, group string, cseq uint64, from string, names bool,
) (r store.Receipts, err error) {
	if err := s.enter(ctx); err != nil {
		return r, err
	}
	defer s.life.RUnlock()
	after := ""
	for {
		n := 0
		p := s.packet()
		p.get(memberViews, func(rows *sql.Rows) error {
			n++
			return s.countReceipt(&r, rows, group, cseq, from, names, &after)
		}, string(store.GroupConv(group)), group, after, maxRows)
		if err := s.read(ctx, p, "receipts of group %q", group); err != nil || n < maxRows {
			return r, err
		}
	}
}

func (s *Store) countReceipt(
	r *store.Receipts, rows *sql.Rows, group string, cseq uint64, from string, names bool, user *string,
) error {
	var spans sql.RawBytes
	var read, delivered sql.Null[uint64]
	if err := rows.Scan(user, &spans, &read, &delivered); err != nil {
		return err
	}
	if max(read.V, delivered.V) < cseq || *user == from {
		return nil
	}
	list, err := s.spans(spans, group, *user)
	if err == nil {
		r.Count(&store.Member{User: *user, Spans: list}, delivered.V, read.V, cseq, names)
	}
	return err
}

// Notices lists notices in the order of their time.
func (s *Store) Notices(
	ctx context.Context, to string, since int64, after string, limit int,
) (list []store.Notice, next string, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, "", err
	}
	defer s.life.RUnlock()
	limit = max(limit, 1)
	ts, hash := max(since, 0)-1, uint64(math.MaxUint64)
	if after != "" {
		if _, err := fmt.Sscanf(after, "%x.%x", &ts, &hash); err != nil {
			return nil, "", fmt.Errorf("%w: %q", store.ErrCursor, after)
		}
	}
	p := s.packet()
	p.get(getNotices, func(r *sql.Rows) error {
		n := store.Notice{To: to}
		var h uint64
		err := r.Scan(&n.TS, &h, &n.Payload)
		if len(list) == limit {
			next = fmt.Sprintf("%x.%x", ts, hash)
			return err
		}
		ts, hash = n.TS, h
		list = append(list, n)
		return err
	}, to, ts, ts, hash, limit+1)
	err = s.read(ctx, p, "notices to %q", to)
	return list, next, err
}
