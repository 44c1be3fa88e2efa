package pebble

import (
	"context"
	"fmt"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// Group returns the record of a group.
func (s *Store) Group(ctx context.Context, id string) (store.Group, error) {
	if err := s.enter(ctx); err != nil {
		return store.Group{}, err
	}
	defer s.life.RUnlock()
	g, err := s.group(id)
	if err == nil && g.Version == 0 {
		err = fmt.Errorf("group %q: %w", id, store.ErrNotFound)
	}
	return g, err
}

// group is a group's record, with Version 0 where there is none.
func (s *Store) group(id string) (store.Group, error) {
	v, err := s.get(keyGroup(nil, id))
	if v == nil || err != nil {
		return store.Group{ID: id}, err
	}
	g, ok := decodeGroup(id, v)
	if !ok {
		return g, s.corrupt("record of group %q", id)
	}
	return g, nil
}

// Member returns a user's part in a group.
func (s *Store) Member(ctx context.Context, group, user string) (store.Member, error) {
	if err := s.enter(ctx); err != nil {
		return store.Member{}, err
	}
	defer s.life.RUnlock()
	return s.member(group, user)
}

// member is a user's part in a group. The span that the end of the group has ended is closed.
func (s *Store) member(group, user string) (store.Member, error) {
	m, err := s.memberRecord(group, user)
	if n := len(m.Spans); err != nil || n == 0 || m.Spans[n-1].To != 0 {
		return m, err
	}
	g, err := s.group(group)
	m.Spans = store.CloseSpan(m.Spans, g.Ended)
	return m, err
}

// memberRecord is member as it is stored.
func (s *Store) memberRecord(group, user string) (store.Member, error) {
	v, err := s.get(keyPair(nil, tabMember, group, user))
	if v == nil && err == nil {
		v, err = s.get(keyPair(nil, tabFormer, group, user))
	}
	if v == nil || err != nil {
		return store.Member{Group: group, User: user}, err
	}
	m, ok := decodeMember(group, user, v)
	if !ok {
		return m, s.corrupt("member %q of group %q", user, group)
	}
	return m, nil
}

// Members lists present members by name.
func (s *Store) Members(
	ctx context.Context, group, after string, limit int,
) (list []store.Member, next string, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, "", err
	}
	defer s.life.RUnlock()
	g, err := s.group(group)
	if err != nil {
		return nil, "", err
	}
	it, err := s.names(tabMember, group)
	if err != nil {
		return nil, "", err
	}
	defer it.Close()
	for ok := seekAfter(it, tabMember, group, after); ok; ok = it.Next() {
		if len(list) >= limit {
			return list, after, nil
		}
		m, err := s.iterMember(it, group)
		if err != nil {
			return nil, "", err
		}
		after = m.User
		m.Spans = store.CloseSpan(m.Spans, g.Ended)
		list = append(list, m)
	}
	return list, "", s.wrap(it.Error(), "members of group %q", group)
}

// seekAfter moves to the first key of a name that comes after the one given; "" is before all.
func seekAfter(it *pdb.Iterator, table byte, name, after string) bool {
	if after == "" {
		return it.First()
	}
	return it.SeekGE(append(keyPair(nil, table, name, after), 0))
}

// iterMember decodes the member that it stands on.
func (s *Store) iterMember(it *pdb.Iterator, group string) (store.Member, error) {
	user := string(it.Key()[len(group)+2:])
	v, err := it.ValueAndErr()
	if err != nil {
		return store.Member{}, s.wrap(err, "members of group %q", group)
	}
	m, ok := decodeMember(group, user, v)
	if !ok {
		return m, s.corrupt("member %q of group %q", user, group)
	}
	return m, nil
}

// Memberships lists the groups that a user is or has been in.
func (s *Store) Memberships(
	ctx context.Context, user, after string, limit int,
) (list []store.Membership, next string, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, "", err
	}
	defer s.life.RUnlock()
	it, err := s.names(tabMembership, user)
	if err != nil {
		return nil, "", err
	}
	defer it.Close()
	if after != "" {
		after = string(store.GroupConv(after))
	}
	for ok := seekAfter(it, tabMembership, user, after); ok; ok = it.Next() {
		if len(list) >= limit {
			return list, list[len(list)-1].Group, nil
		}
		m, _, err := s.iterMembership(it, user)
		if err != nil {
			return nil, "", err
		}
		list = append(list, m)
	}
	return list, "", s.wrap(it.Error(), "groups of %q", user)
}

// iterMembership decodes the entry of a user's list that it stands on. leftID is the id of the message that a former
// member left with.
func (s *Store) iterMembership(it *pdb.Iterator, user string) (m store.Membership, leftID int64, err error) {
	m.Group, _ = store.Conv(it.Key()[len(user)+2:]).Group()
	v, err := it.ValueAndErr()
	if err != nil {
		return m, 0, s.wrap(err, "groups of %q", user)
	}
	d := wire.Decoder{B: v}
	flags := d.Byte()
	m.Current, m.Large = flags&listCurrent != 0, flags&listLarge != 0
	if !m.Current {
		leftID = int64(d.Uvarint())
	}
	if d.Bad {
		return m, 0, s.corrupt("group %q of %q", m.Group, user)
	}
	return m, leftID, nil
}

// Streams lists the large groups of a device.
func (s *Store) Streams(ctx context.Context, k store.DeviceKey) ([]store.Stream, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	it, err := s.names(tabMembership, k.User)
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var out []store.Stream
	for ok := it.First(); ok; ok = it.Next() {
		m, _, err := s.iterMembership(it, k.User)
		if err != nil {
			return nil, err
		}
		if !m.Large {
			continue
		}
		st, err := s.stream(k, m.Group)
		if err != nil {
			return nil, err
		}
		out = append(out, st)
	}
	return out, s.wrap(it.Error(), "groups of %q", k.User)
}

func (s *Store) stream(k store.DeviceKey, group string) (store.Stream, error) {
	st := store.Stream{Conv: store.GroupConv(group)}
	head, ok, err := s.lastRef(st.Conv, s.durable.Load()) // before the spans: none is to be open that had ended by then
	if err != nil {
		return st, err
	}
	if ok {
		st.Head = head.last()
	}
	g, err := s.group(group)
	if err != nil {
		return st, err
	}
	m, err := s.member(group, k.User)
	if err != nil {
		return st, err
	}
	st.LargeFrom, st.Mode, st.Spans = g.LargeFrom, g.ReceiptMode(), m.Spans
	v, err := s.view(k.User, st.Conv)
	if err != nil {
		return st, err
	}
	st.Delivered = v.delivered
	st.Cursor, err = s.cursor(k, st.Conv)
	return st, err
}

func (s *Store) cursor(k store.DeviceKey, conv store.Conv) (uint64, error) {
	v, err := s.get(keyCursor(nil, k, string(conv)))
	if v == nil || err != nil {
		return 0, err
	}
	d := wire.Decoder{B: v}
	n := d.Uvarint()
	if d.Bad {
		return 0, s.corrupt("cursor of device %q of %q in %s", k.Device, k.User, conv)
	}
	return n, nil
}

// Receipts counts who has a message of a group: one walk over its members beside one over their watermarks.
func (s *Store) Receipts(
	ctx context.Context, group string, cseq uint64, from string, names bool,
) (r store.Receipts, err error) {
	if err := s.enter(ctx); err != nil {
		return r, err
	}
	defer s.life.RUnlock()
	it, err := s.names(tabMember, group)
	if err != nil {
		return r, err
	}
	defer it.Close()
	conv := store.GroupConv(group)
	views, err := s.names(tabView, string(conv))
	if err != nil {
		return r, err
	}
	defer views.Close()
	prefix := len(conv) + 2
	more := views.First()
	for ok := it.First(); ok; ok = it.Next() {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		user := it.Key()[len(group)+2:]
		for more && string(views.Key()[prefix:]) < string(user) {
			more = views.Next()
		}
		if !more {
			break
		}
		if string(views.Key()[prefix:]) != string(user) || string(user) == from {
			continue
		}
		if err := s.countReceipt(&r, it, views, group, cseq, names); err != nil {
			return r, err
		}
	}
	if err := views.Error(); err != nil {
		return r, s.wrap(err, "watermarks in %s", conv)
	}
	return r, s.wrap(it.Error(), "members of group %q", group)
}

// countReceipt counts the member that both iterators stand on.
func (s *Store) countReceipt(
	r *store.Receipts, it, views *pdb.Iterator, group string, cseq uint64, names bool,
) error {
	value, err := views.ValueAndErr()
	if err != nil {
		return s.wrap(err, "watermarks in group %q", group)
	}
	v, ok := decodeView(value)
	if !ok {
		return s.corrupt("watermarks of %q in group %q", it.Key()[len(group)+2:], group)
	}
	if max(v.delivered, v.read) < cseq {
		return nil
	}
	m, err := s.iterMember(it, group)
	if err == nil {
		r.Count(&m, v.delivered, v.read, cseq, names)
	}
	return err
}

// The flags of an entry of a user's list of groups.
const (
	listCurrent = 1 << iota
	listLarge
)

func appendGroup(dst []byte, g *store.Group) []byte {
	dst = wire.AppendUvarint(dst, g.Version)
	dst = wire.AppendString(wire.AppendString(wire.AppendString(dst, g.Name), g.Notice), g.Owner)
	var flags byte
	if g.Open {
		flags |= 1
	}
	if g.HistoryAll {
		flags |= 2
	}
	dst = append(dst, flags, byte(g.Receipts))
	dst = wire.AppendVarint(dst, g.Created)
	for _, n := range [...]uint64{g.MemberCount, g.LargeFrom, g.Ended} {
		dst = wire.AppendUvarint(dst, n)
	}
	return dst
}

func decodeGroup(id string, value []byte) (g store.Group, ok bool) {
	d := wire.Decoder{B: value}
	g = store.Group{ID: id, Version: d.Uvarint(), Name: d.Str(), Notice: d.Str(), Owner: d.Str()}
	flags := d.Byte()
	g.Open, g.HistoryAll = flags&1 != 0, flags&2 != 0
	g.Receipts = store.ReceiptMode(d.Byte())
	g.Created = d.Varint()
	g.MemberCount, g.LargeFrom, g.Ended = d.Uvarint(), d.Uvarint(), d.Uvarint()
	return g, !d.Bad && g.Version > 0
}

func appendMember(dst []byte, m *store.Member) []byte {
	dst = append(dst, byte(m.Role))
	dst = wire.AppendVarint(wire.AppendVarint(dst, m.Joined), m.MutedUntil)
	return wire.AppendSpans(dst, m.Spans)
}

func decodeMember(group, user string, value []byte) (m store.Member, ok bool) {
	d := wire.Decoder{B: value}
	m = store.Member{Group: group, User: user, Role: store.Role(d.Byte()), Joined: d.Varint(), MutedUntil: d.Varint()}
	m.Spans = d.Spans()
	return m, !d.Bad && len(m.Spans) > 0
}
