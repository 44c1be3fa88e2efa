package storetest

import (
	"fmt"
	"slices"

	"github.com/mqim/mqim/store"
)

// modelGroup is a group as testModel knows it.
type modelGroup struct {
	version, ended uint64
	large          bool
	present        map[string]bool
	spans          map[string][]store.Span
}

func (m *model) modelGroup(id string) *modelGroup {
	g := m.groups[id]
	if g == nil {
		g = &modelGroup{present: map[string]bool{}, spans: map[string][]store.Span{}}
		m.groups[id] = g
	}
	return g
}

// newChange makes a group that is not there yet, and now and then a change of one that is; else nil. Now and then it is
// built on a state that is not the present one.
func (m *model) newChange(id string) *store.Change {
	g := m.modelGroup(id)
	version := g.version + m.pending[id]
	if version > 0 && m.rng.IntN(3) > 0 {
		return nil
	}
	m.pending[id]++
	if m.rng.IntN(12) == 0 {
		version += uint64(m.rng.IntN(3)) - min(version, 1)
	}
	c := &store.Change{Group: store.Group{Version: version, Name: fmt.Sprint("v", version)}}
	c.Large, c.End = m.rng.IntN(12) == 0, version > 3 && m.rng.IntN(10) == 0
	for _, u := range people {
		switch m.rng.IntN(5) {
		case 0:
			c.Members = append(c.Members, leaving(u)...)
		case 1, 2:
			c.Members = append(c.Members, joining(u)...)
		}
	}
	return c
}

// refusal is why a message to a group is not stored, as the group is now.
func (m *model) refusal(s *store.Send) error {
	id, ok := s.Conv.Group()
	if !ok {
		return nil
	}
	g := m.modelGroup(id)
	switch {
	case g.ended > 0 || g.version == 0 && s.Change == nil:
		return store.ErrNotFound
	case s.Change != nil && s.Change.Group.Version != g.version:
		return store.ErrChanged
	case s.Change == nil && !g.present[s.From]:
		return store.ErrNotMember
	}
	return nil
}

// change does to a group what a message does, and says who gets it, in order.
func (m *model) change(id string, s *store.Send, cseq uint64) (to []string) {
	g := m.modelGroup(id)
	if c := s.Change; c != nil {
		g.version++
		g.large = g.large || c.Large
		if c.End {
			g.ended = cseq
			m.ended++
		}
		for _, x := range c.Members {
			switch is := x.Role != store.NoRole; {
			case is && !g.present[x.User]:
				g.spans[x.User] = append(g.spans[x.User], store.Span{From: cseq})
			case !is && g.present[x.User]:
				g.spans[x.User][len(g.spans[x.User])-1].To = cseq
				to = append(to, x.User)
			}
			g.present[x.User] = x.Role != store.NoRole
		}
	}
	if g.large {
		return nil
	}
	for u, is := range g.present {
		if is {
			to = append(to, u)
		}
	}
	slices.Sort(to)
	return to
}

// spans are what a user was there for.
func (m *model) spans(id, user string) []store.Span {
	g := m.modelGroup(id)
	out := slices.Clone(g.spans[user])
	if n := len(out); n > 0 && out[n-1].To == 0 {
		out[n-1].To = g.ended
	}
	return out
}

// sees reports whether a user was there for a message; for a direct conversation that is so.
func (m *model) sees(user string, c store.Conv, cseq uint64) bool {
	id, ok := c.Group()
	if !ok {
		return true
	}
	x := store.Member{Spans: m.spans(id, user)}
	return x.Has(cseq)
}

func (m *model) compareGroups(user string) {
	m.Helper()
	for id, g := range m.groups {
		x := m.member(id, user)
		m.equal(fmt.Sprintf("spans of %s in %s", user, id), x.Spans, m.spans(id, user))
		if (x.Role != store.NoRole) != g.present[user] {
			m.Errorf("%s in %s: got role %d", user, id, x.Role)
		}
	}
}
