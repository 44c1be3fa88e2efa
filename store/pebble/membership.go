package pebble

import (
	"errors"
	"slices"

	pdb "github.com/cockroachdb/pebble/v2"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// groupHead is a group as it is assigned, though perhaps not yet durable.
type groupHead struct {
	store.Group
	conv    store.Conv
	members []string // present ones, ascending, of a small group
}

func (g *groupHead) small() bool { return g.LargeFrom == 0 }

// group returns the state of a group, with Version 0 where there is none.
func (w *writer) group(id string) (*groupHead, error) {
	_, young := w.groups.young[id]
	if g, ok := w.groups.get(id); ok {
		if !young { // it was in the old half
			w.named += len(g.members)
		}
		return g, nil
	}
	if err := checkName("group", id); err != nil {
		return nil, err
	}
	rec, err := w.s.group(id)
	if err != nil {
		return nil, err
	}
	g := &groupHead{Group: rec, conv: store.GroupConv(id)}
	if rec.Version > 0 && g.small() {
		it, err := w.s.names(tabMember, id)
		if err != nil {
			return nil, err
		}
		defer it.Close()
		for ok := it.First(); ok; ok = it.Next() {
			m, err := w.s.iterMember(it, id)
			if err != nil {
				return nil, err
			}
			g.members = append(g.members, m.User)
		}
		if err := it.Error(); err != nil {
			return nil, w.s.wrap(err, "members of group %q", id)
		}
	}
	w.groups.put(id, g)
	w.named += len(g.members)
	return g, nil
}

// memberOf returns a user's record in a group as it is assigned.
func (w *writer) memberOf(g *groupHead, user string) (*store.Member, error) {
	k := viewKey{user, g.conv}
	if m, ok := w.members.get(k); ok {
		return m, nil
	}
	if err := checkName("user", user); err != nil {
		return nil, err
	}
	m, err := w.s.memberRecord(g.ID, user)
	if err != nil {
		return nil, err
	}
	w.members.put(k, &m)
	return &m, nil
}

// admit decides whether a message to a group may be stored as the group is now; if not it sets m.Err.
func (w *writer) admit(m *store.Send) (*groupHead, error) {
	id, _ := m.Conv.Group()
	g, err := w.group(id)
	if err != nil {
		return nil, err
	}
	if g.Ended != 0 || g.Version == 0 && m.Change == nil {
		m.Err = store.ErrNotFound
		return g, nil
	}
	if m.Change != nil {
		if m.Change.Group.Version != g.Version {
			m.Err = store.ErrChanged
		}
		return g, nil
	}
	present := false
	if g.small() {
		_, present = slices.BinarySearch(g.members, m.From)
	} else {
		x, err := w.memberOf(g, m.From)
		if err != nil {
			return nil, err
		}
		present = x.Role != store.NoRole
	}
	if !present {
		m.Err = store.ErrNotMember
	}
	return g, nil
}

// address fills in whose inboxes a message to a group goes to, and does to the group what the message says.
func (w *writer) address(g *groupHead, m *store.Send) error {
	m.Inboxes = m.Inboxes[:0]
	if m.Change != nil {
		if err := w.change(g, m); err != nil {
			return err
		}
	}
	if !g.small() {
		m.Inboxes = nil // beside those in the log there are no references
		return nil
	}
	m.Inboxes = slices.Grow(m.Inboxes, len(g.members))
	for _, u := range g.members {
		m.Inboxes = append(m.Inboxes, store.InboxRef{User: u})
	}
	return nil
}

// change applies what a message does to its group. Those who leave with it are in m.Inboxes afterwards.
func (w *writer) change(g *groupHead, m *store.Send) error {
	ch := m.Change
	rec := &ch.Group
	if ch.Become(&g.Group, m.Cseq) {
		for _, u := range g.members {
			if err := w.list(g.conv, u, listCurrent|listLarge, 0); err != nil {
				return err
			}
		}
		g.members, g.LargeFrom = nil, m.Cseq
	}
	for i := range ch.Members {
		n, err := w.changeMember(g, m, &ch.Members[i])
		if err != nil {
			return err
		}
		rec.MemberCount += uint64(n)
	}
	g.Group = *rec
	w.key = keyGroup(w.key[:0], g.ID)
	w.val = appendGroup(w.val[:0], rec)
	return w.pb.Set(w.key, w.val, nil)
}

// changeMember writes a member as given and completes it. n is how many members more there are.
func (w *writer) changeMember(g *groupHead, m *store.Send, given *store.Member) (n int, err error) {
	old, err := w.memberOf(g, given.User)
	if err != nil {
		return 0, err
	}
	n = old.Become(given, m.Cseq)
	flags := byte(0)
	if !g.small() {
		flags = listLarge
	}
	switch {
	case n > 0:
		err = w.list(g.conv, given.User, flags|listCurrent, 0)
	case n < 0:
		err = w.list(g.conv, given.User, flags, m.ID)
	case old.Role == store.NoRole:
		return 0, nil // he was not there, nor is he
	}
	if err != nil {
		return 0, err
	}
	if n != 0 && g.small() {
		i, there := slices.BinarySearch(g.members, given.User)
		switch {
		case n > 0 && !there:
			g.members = slices.Insert(g.members, i, given.User)
			w.named++
		case n < 0 && there:
			g.members = slices.Delete(g.members, i, i+1)
			m.Inboxes = append(m.Inboxes, store.InboxRef{User: given.User})
		}
	}
	return n, w.writeMember(g.ID, old, n != 0)
}

// writeMember writes a member where present ones are, or where the former ones are; moved says that it was in the other
// table until now.
func (w *writer) writeMember(group string, m *store.Member, moved bool) error {
	now, before := byte(tabMember), byte(tabFormer)
	if m.Role == store.NoRole {
		now, before = before, now
	}
	if moved {
		w.key = keyPair(w.key[:0], before, group, m.User)
		if err := w.put(true, nil); err != nil {
			return err
		}
	}
	w.key = keyPair(w.key[:0], now, group, m.User)
	w.val = appendMember(w.val[:0], m)
	return w.put(false, w.val)
}

// list writes an entry of a user's list of groups.
func (w *writer) list(conv store.Conv, user string, flags byte, leftID int64) error {
	w.key = keyPair(w.key[:0], tabMembership, user, string(conv))
	w.val = append(w.val[:0], flags)
	if flags&listCurrent == 0 {
		w.val = wire.AppendUvarint(w.val, uint64(leftID))
	}
	return w.pb.Set(w.key, w.val, nil)
}

// cursors moves the places of devices in large groups, forward only. An earlier one of this batch counts.
func (w *writer) cursors(list []store.Cursor) error {
	var now map[string]uint64
	if len(list) > 0 {
		now = make(map[string]uint64, len(list))
	}
	for i := range list {
		c := &list[i]
		if err := checkCursor(c); err != nil {
			return err
		}
		w.key = keyCursor(w.key[:0], c.DeviceKey, string(c.Conv))
		at, ok := now[string(w.key)]
		if !ok {
			var err error
			if at, err = w.s.cursor(c.DeviceKey, c.Conv); err != nil {
				return err
			}
		}
		if c.Cseq <= at {
			continue
		}
		now[string(w.key)] = c.Cseq
		w.val = wire.AppendUvarint(w.val[:0], c.Cseq)
		if err := w.pb.Set(w.key, w.val, nil); err != nil {
			return err
		}
	}
	return nil
}

func checkCursor(c *store.Cursor) error {
	return errors.Join(checkName("user", c.User), checkName("device", c.Device), checkName("conversation", string(c.Conv)))
}

// dropCursors removes a device's places in large groups.
func (s *Store) dropCursors(b *pdb.Batch, k store.DeviceKey) error {
	lower := keyCursors(nil, k)
	it, err := s.db.NewIter(&pdb.IterOptions{LowerBound: lower, UpperBound: after(lower)})
	if err != nil {
		return s.wrap(err, "cursors of %q", k.User)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		if err := b.Delete(it.Key(), nil); err != nil {
			return err
		}
	}
	return s.wrap(it.Error(), "cursors of %q", k.User)
}
