package mysql

import (
	"context"
	"database/sql"
	"slices"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// groupHead is a group as this batch has made it so far. The head of its conversation is locked, and with it the group:
// nobody changes a group but by a message to it.
type groupHead struct {
	store.Group
	conv    store.Conv
	members []string // present ones, ascending, of a small group; not to be changed in place before own is set
	known   bool     // members is filled
	own     bool     // members is this batch's copy
	changed bool
}

func (g *groupHead) small() bool { return g.LargeFrom == 0 }

// namedMembers is how many members of small groups a lane remembers by name: some 15 MiB.
const namedMembers = 1 << 18

// groupCache remembers who is in small groups, by version. It belongs to the holder of the lane.
type groupCache struct {
	groups map[string]namedGroup
	named  int
}

type namedGroup struct {
	version uint64
	members []string
}

// keep remembers a group as it is committed.
func (c *groupCache) keep(g *groupHead) {
	if !g.known {
		return
	}
	if old, ok := c.groups[g.ID]; ok {
		c.named -= len(old.members)
		delete(c.groups, g.ID)
	}
	if g.Version == 0 || !g.small() {
		return
	}
	if c.groups == nil || c.named+len(g.members) > namedMembers {
		c.groups, c.named = map[string]namedGroup{}, 0
	}
	c.groups[g.ID] = namedGroup{g.Version, g.members}
	c.named += len(g.members)
}

// listing is an entry of a user's list of groups.
type listing struct {
	present, large bool
	leftID         int64
}

// askGroups asks for the groups of the batch, for those members that it names, and for what senders have sent so far.
func (w *writer) askGroups() {
	w.q.names(getGroups, func(r *sql.Rows) error {
		g, err := scanGroup(r)
		w.groups[g.ID].Group = g
		return err
	}, sorted(w.groups))
	keys := sortedViews(w.members)
	w.q.many(getMembers, func(r *sql.Rows) error {
		m, err := w.s.scanMember(r)
		w.members[viewKey{m.User, store.GroupConv(m.Group)}] = &m
		return err
	}, len(keys), func(i int, args []any) []any {
		id, _ := keys[i].conv.Group()
		return append(args, id, keys[i].user)
	})
	owns := sortedViews(w.owns)
	w.q.many(getViews, func(r *sql.Rows) error {
		k, v, err := scanView(r)
		w.owns[k] = v.own
		return err
	}, len(owns), func(i int, args []any) []any { return append(args, string(owns[i].conv), owns[i].user) })
}

// recipients learns who is in the small groups of the batch, and returns everybody whose inbox their messages may go to.
func (w *writer) recipients(ctx context.Context, b *store.Batch) ([]string, error) {
	for _, id := range sorted(w.groups) {
		g := w.groups[id]
		if w.convs[g.conv] == nil {
			continue // the batch has only deletions of its messages
		}
		if g.known = true; g.Version == 0 || !g.small() {
			continue
		}
		if known, ok := w.l.cache.groups[id]; ok && known.version == g.Version {
			g.members = known.members
			continue
		}
		g.own = true
		for {
			page := 0
			after := ""
			if n := len(g.members); n > 0 {
				after = g.members[n-1]
			}
			w.q.get(presentNames, func(r *sql.Rows) error {
				var user string
				err := r.Scan(&user)
				g.members = append(g.members, user)
				page++
				return err
			}, id, after, maxRows)
			if err := w.run(ctx); err != nil {
				return nil, err
			}
			if page < maxRows {
				break
			}
		}
	}
	var names []string
	for _, g := range w.groups {
		names = append(names, g.members...)
	}
	for _, m := range b.Sends {
		id, ok := m.Conv.Group()
		if !ok || m.Change == nil || m.Change.Large || !w.groups[id].small() {
			continue
		}
		for i := range m.Change.Members {
			names = append(names, m.Change.Members[i].User)
		}
	}
	return names, nil
}

// admit decides whether a message to a group may be stored as the group is now; if not it sets m.Err.
func (w *writer) admit(m *store.Send) (*groupHead, bool) {
	id, _ := m.Conv.Group()
	g := w.groups[id]
	switch {
	case g.Ended != 0, g.Version == 0 && m.Change == nil:
		m.Err = store.ErrNotFound
	case m.Change != nil:
		if m.Change.Group.Version != g.Version {
			m.Err = store.ErrChanged
		}
	case g.small():
		if _, present := slices.BinarySearch(g.members, m.From); !present {
			m.Err = store.ErrNotMember
		}
	default:
		if w.memberOf(g, m.From).Role == store.NoRole {
			m.Err = store.ErrNotMember
		}
	}
	return g, m.Err == nil
}

// memberOf is a user's record in a group as this batch has made it so far.
func (w *writer) memberOf(g *groupHead, user string) *store.Member {
	k := viewKey{user, g.conv}
	if w.members[k] == nil {
		w.members[k] = &store.Member{Group: g.ID, User: user}
	}
	return w.members[k]
}

// address fills in whose inboxes a message to a group goes to, and does to the group what the message says.
func (w *writer) address(g *groupHead, m *store.Send) {
	m.Inboxes = m.Inboxes[:0]
	if m.Change != nil {
		w.change(g, m)
	}
	if !g.small() {
		m.Inboxes = nil // beside those in the log there are no references
		return
	}
	m.Inboxes = slices.Grow(m.Inboxes, len(g.members))
	for _, u := range g.members {
		m.Inboxes = append(m.Inboxes, store.InboxRef{User: u})
	}
}

// change applies what a message does to its group. Those who leave with it are in m.Inboxes afterwards.
func (w *writer) change(g *groupHead, m *store.Send) {
	ch := m.Change
	rec := &ch.Group
	if ch.Become(&g.Group, m.Cseq) {
		for _, u := range g.members {
			w.listed[viewKey{u, g.conv}] = listing{present: true, large: true}
		}
		g.members, g.LargeFrom = nil, m.Cseq
	}
	if !g.own {
		g.members, g.own = slices.Clone(g.members), true
	}
	for i := range ch.Members {
		rec.MemberCount += uint64(w.changeMember(g, m, &ch.Members[i]))
	}
	g.Group, g.changed = *rec, true
}

// changeMember completes a member as given. n is how many members more there are.
func (w *writer) changeMember(g *groupHead, m *store.Send, given *store.Member) (n int) {
	old := w.memberOf(g, given.User)
	k := viewKey{given.User, g.conv}
	n = old.Become(given, m.Cseq)
	switch {
	case n > 0:
		w.listed[k] = listing{present: true, large: !g.small()}
	case n < 0:
		w.listed[k] = listing{large: !g.small(), leftID: m.ID}
	case old.Role == store.NoRole:
		return 0 // he was not there, nor is he
	}
	if n != 0 && g.small() {
		i, there := slices.BinarySearch(g.members, given.User)
		switch {
		case n > 0 && !there:
			g.members = slices.Insert(g.members, i, given.User)
		case n < 0 && there:
			g.members = slices.Delete(g.members, i, i+1)
			m.Inboxes = append(m.Inboxes, store.InboxRef{User: given.User})
		}
	}
	w.changed[k] = true
	return n
}

func (w *writer) flushGroups() {
	var changed []*groupHead
	for _, id := range sorted(w.groups) {
		if g := w.groups[id]; g.changed {
			changed = append(changed, g)
		}
	}
	w.q.many(setGroups, nil, len(changed), func(i int, args []any) []any {
		g := &changed[i].Group
		return append(args, g.ID, g.Version, g.Name, g.Notice, g.Open, g.HistoryAll, uint64(g.Receipts), g.Owner, g.Created,
			g.MemberCount, g.LargeFrom, g.Ended)
	})
	keys := sortedViews(w.changed)
	w.q.many(setMembers, nil, len(keys), func(i int, args []any) []any {
		m := w.members[keys[i]]
		return append(args, m.Group, m.User, m.Role != store.NoRole, uint64(m.Role), m.Joined, m.MutedUntil,
			wire.AppendSpans([]byte{}, m.Spans))
	})
	lists := sortedViews(w.listed)
	w.q.many(setMemberships, nil, len(lists), func(i int, args []any) []any {
		x := w.listed[lists[i]]
		return append(args, lists[i].user, string(lists[i].conv), x.present, x.large, x.leftID)
	})
}

func scanGroup(r *sql.Rows) (g store.Group, err error) {
	err = r.Scan(&g.ID, &g.Version, &g.Name, &g.Notice, &g.Open, &g.HistoryAll, &g.Receipts, &g.Owner, &g.Created,
		&g.MemberCount, &g.LargeFrom, &g.Ended)
	return g, err
}

func (s *Store) scanMember(r *sql.Rows) (m store.Member, err error) {
	var spans sql.RawBytes
	if err := r.Scan(&m.Group, &m.User, &m.Role, &m.Joined, &m.MutedUntil, &spans); err != nil {
		return m, err
	}
	if m.Spans, err = s.spans(spans, m.Group, m.User); err != nil {
		return m, err
	}
	return m, nil
}

func (s *Store) spans(value []byte, group, user string) ([]store.Span, error) {
	d := wire.Decoder{B: value}
	spans := d.Spans()
	if d.Bad || len(spans) == 0 {
		return nil, s.corrupt("member %q of group %q", user, group)
	}
	return spans, nil
}
