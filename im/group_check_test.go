package im

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/mqim/mqim/store"
)

// groupState is what a group is between two of its changes.
type groupState struct {
	cseq     uint64 // of the change that made it so; 0: there is no group
	ts       int64
	role     map[string]store.Role // former members have none
	muted    map[string]int64
	owner    string
	open     bool
	all      bool // history
	receipts string
	large    bool
	ended    bool
}

// groupTruth is what the messages of a group say, and they alone, of who was in it and when.
type groupTruth struct {
	id        string
	states    []groupState // the first is that before there was the group
	spans     map[string][]store.Span
	largeFrom uint64
	ended     uint64
}

func (g *groupTruth) has(user string, cseq uint64) bool {
	return slices.ContainsFunc(g.spans[user], func(s store.Span) bool { return s.Has(cseq) })
}

func (g *groupTruth) last() *groupState { return &g.states[len(g.states)-1] }

// seen lists the states that a refusal may have come from: those that the group had while its log grew from a cseq to
// another, the next, which the store may show a moment before it is durable, and the one before, which is remembered until
// the change is answered.
func (g *groupTruth) seen(from, to uint64) []groupState {
	if i := slices.IndexFunc(g.states, func(s groupState) bool { return s.cseq >= g.at(from, from)[0].cseq }); i > 0 {
		from = g.states[i-1].cseq
	}
	states := g.at(from, to)
	if i := slices.IndexFunc(g.states, func(s groupState) bool { return s.cseq > to }); i > 0 {
		states = g.at(from, g.states[i].cseq)
	}
	return states
}

// at lists the states that the group had while its log grew from a cseq to another.
func (g *groupTruth) at(from, to uint64) []groupState {
	i := 0
	for i+1 < len(g.states) && g.states[i+1].cseq <= from {
		i++
	}
	k := i
	for k < len(g.states) && g.states[k].cseq <= to {
		k++
	}
	return g.states[i:max(k, i+1)]
}

// allReceipts reports whether senders of the message cseq, or of later ones, were ever told of each member.
func (g *groupTruth) allReceipts(cseq uint64) bool {
	return slices.ContainsFunc(g.at(cseq, ^uint64(0)), func(s groupState) bool {
		return s.receipts == "all" || s.receipts == "" && !s.large
	})
}

func (s *groupState) members() (list []string) {
	for user, role := range s.role {
		if role != store.NoRole {
			list = append(list, user)
		}
	}
	slices.Sort(list)
	return list
}

// refuses is what a change is refused with in the state s; "": it is not.
func (s *groupState) refuses(b *groupBody) Code {
	by, was := s.role[b.By]
	switch {
	case b.Change == "create" && s.cseq == 0:
		return ""
	case b.Change == "create":
		return Exists
	case s.ended && b.Change == "dissolve" && s.owner == b.By:
		return ""
	case s.cseq == 0 || s.ended:
		return NotFound
	case b.Change == "join" && (by != store.NoRole || s.open):
		return ""
	case b.Change == "leave" && by == store.NoRole && was:
		return ""
	case b.Change == "join" || b.Change == "leave" && by == store.Owner:
		return Forbidden
	case by == store.NoRole:
		return NotMember
	}
	need := map[string]store.Role{
		"add": store.Admin, "remove": store.Admin, "update": store.Admin, "mute": store.Admin,
		"role": store.Owner, "transfer": store.Owner, "dissolve": store.Owner,
	}
	if by < need[b.Change] {
		return Forbidden
	}
	for _, user := range b.Users {
		role := s.role[user]
		switch b.Change {
		case "role", "transfer", "mute":
			if role == store.NoRole {
				return NotFound
			}
			if b.Change == "role" && role == store.Owner {
				return Forbidden
			}
		}
		if (b.Change == "mute" || b.Change == "remove") && (role == store.Owner || role == store.Admin && by != store.Owner) {
			return Forbidden
		}
	}
	return ""
}

// holds reports whether what a change wants is so; now is when it was asked for.
func (s *groupState) holds(b *groupBody, now int64) bool {
	if s.cseq == 0 {
		return false
	}
	for _, user := range b.Users {
		in := s.role[user] != store.NoRole
		switch b.Change {
		case "add", "join":
			if !in {
				return false
			}
		case "remove", "leave":
			if in {
				return false
			}
		case "role":
			if roleNames[s.role[user]] != b.Role {
				return false
			}
		case "mute":
			if s.muted[user] != *b.Until && (s.muted[user] > now || *b.Until > now) {
				return false
			}
		case "transfer":
			if s.owner != user {
				return false
			}
		}
	}
	switch b.Change {
	case "update":
		return (b.Join == "" || (b.Join == "open") == s.open) && (b.History == "" || (b.History == "all") == s.all) &&
			(b.Receipts == "" || b.Receipts == s.receipts)
	case "dissolve":
		return s.ended
	}
	return true
}

// replayGroup derives what a group was from its log, and checks that each change was one that could be made.
func (m *model) replayGroup(tr *truth, conv store.Conv) *groupTruth {
	id, _ := conv.Group()
	g := &groupTruth{id: id, spans: map[string][]store.Span{}, states: make([]groupState, 1)}
	for _, msg := range tr.log[conv] {
		if msg.Type != "sys.group" {
			if g.last().role[msg.From] == store.NoRole || g.last().ended {
				m.failf("%s %d is from %s, who is no member", conv, msg.Cseq, msg.From)
			}
			continue
		}
		var b groupBody
		if err := json.Unmarshal(msg.Body, &b); err != nil || msg.Recalled || b.By != msg.From || msg.Device != "" {
			m.failf("%s %d: %v: %+v", conv, msg.Cseq, err, msg)
			continue
		}
		if code := g.last().refuses(&b); code != "" || g.last().ended {
			m.failf("%s %d: %s should have been refused: %s", conv, msg.Cseq, msg.Body, code)
		}
		g.apply(m, msg, &b)
	}
	return g
}

func (g *groupTruth) apply(m *model, msg *store.Message, b *groupBody) {
	s := *g.last()
	s.cseq, s.ts = msg.Cseq, msg.TS
	s.role, s.muted = maps.Clone(s.role), maps.Clone(s.muted)
	if s.role == nil {
		s.role, s.muted = map[string]store.Role{}, map[string]int64{}
	}
	grows := false
	for _, user := range b.Users {
		in := s.role[user] != store.NoRole
		switch b.Change {
		case "create", "add", "join":
			if in {
				m.failf("%s %d: %s is in already: %s", msg.Conv, msg.Cseq, user, msg.Body)
			}
			if len(g.spans[user]) > 0 {
				m.tally["come back"]++
			}
			s.role[user], grows = store.Ordinary, true
			g.spans[user] = append(g.spans[user], store.Span{From: msg.Cseq})
		case "remove", "leave":
			if !in {
				m.failf("%s %d: %s is not in: %s", msg.Conv, msg.Cseq, user, msg.Body)
				continue
			}
			s.role[user] = store.NoRole
			g.spans[user][len(g.spans[user])-1].To = msg.Cseq
		case "role":
			s.role[user] = map[string]store.Role{"admin": store.Admin, "member": store.Ordinary}[b.Role]
		case "mute":
			s.muted[user] = *b.Until
		case "transfer":
			s.role[user], s.role[b.By], s.muted[user], s.muted[b.By], s.owner = store.Owner, store.Admin, 0, 0, user
		}
	}
	switch b.Change {
	case "create":
		s.role[b.By], s.owner = store.Owner, b.By
	case "dissolve":
		s.ended, g.ended = true, msg.Cseq
		for user, list := range g.spans {
			if n := len(list) - 1; list[n].To == 0 {
				g.spans[user][n].To = msg.Cseq
			}
		}
	}
	if b.Join != "" {
		s.open = b.Join == "open"
	}
	if b.History != "" {
		s.all = b.History == "all"
	}
	if b.Receipts != "" {
		s.receipts = b.Receipts
	}
	over := grows && len(s.members()) > modelSmall
	switch {
	case b.Kind == "large" && !s.large:
		s.large, g.largeFrom = true, msg.Cseq
		if b.Change != "create" {
			m.tally["growth"]++
		}
		if b.Change != "create" && !over {
			m.failf("%s %d: became large with %d members", msg.Conv, msg.Cseq, len(s.members()))
		}
	case b.Kind != "" || over && !s.large:
		m.failf("%s %d: kind %q, large %v, %d members", msg.Conv, msg.Cseq, b.Kind, s.large, len(s.members()))
	}
	m.tally[b.Change]++
	g.states = append(g.states, s)
}

// loadDeleted reads what users have deleted of a group: what they asked for, if they were there for it.
func (m *model) loadDeleted(tr *truth, conv store.Conv) error {
	for _, user := range m.users {
		list, err := m.peb.History(context.Background(), user, conv, store.Range{Forward: true, Limit: 1 << 20})
		if err != nil {
			return err
		}
		there := map[uint64]bool{}
		for _, msg := range list {
			there[msg.Cseq] = true
		}
		gone := map[uint64]bool{}
		for _, msg := range tr.log[conv] {
			answered, asked := m.asked[sight{user, conv, msg.Cseq}]
			may := asked && tr.group[conv].has(user, msg.Cseq)
			if gone[msg.Cseq] = !there[msg.Cseq]; gone[msg.Cseq] && !may || !gone[msg.Cseq] && may && answered {
				m.failf("%s has deleted %s %d: asked %v, answered %v, gone %v", user, conv, msg.Cseq, asked, answered, gone[msg.Cseq])
			}
		}
		tr.gone[mark{user, conv}] = gone
	}
	return nil
}

// checkShown: nobody was shown what was sent while he was not there, and those who were there all the time have been
// shown everything.
func (m *model) checkShown(tr *truth) {
	had := map[sight]bool{}
	for _, s := range m.shown {
		had[s] = true
		if g := tr.group[s.conv]; g != nil && !g.has(s.user, s.cseq) {
			m.failf("%s was shown %s %d, and was there for %v", s.user, s.conv, s.cseq, g.spans[s.user])
		}
	}
	for at := range m.recall {
		if log := tr.log[at.conv]; at.cseq > uint64(len(log)) || !log[at.cseq-1].Recalled {
			m.failf("%s %d is not recalled, though it was said to be", at.conv, at.cseq)
		}
	}
	for _, user := range m.users {
		for conv, g := range tr.group {
			withdrawn := m.withdrawn(tr, user, conv)
			for _, msg := range tr.log[conv] {
				if g.has(user, msg.Cseq) && !had[sight{user, conv, msg.Cseq}] && !withdrawn[msg.Cseq] && msg.Expires == 0 && msg.From != user {
					m.failf("%s was never shown %s %d", user, conv, msg.Cseq)
				}
			}
		}
	}
}

// checkRefused: a message to a group that was refused is not there, and there was a reason; who was muted sent nothing.
func (m *model) checkRefused(tr *truth, s *modelSend, there []*store.Message) {
	conv, _ := ParseAddress(s.from, s.to)
	g := tr.group[conv]
	if g == nil {
		return
	}
	var reason func(*groupState) bool
	switch s.refused {
	case NotMember:
		reason = func(x *groupState) bool { return x.role[s.from] == store.NoRole }
	case NotFound:
		reason = func(x *groupState) bool { return x.ended || x.cseq == 0 }
	case Muted:
		reason = func(x *groupState) bool { return x.muted[s.from] > s.sentAt }
	default:
		return
	}
	if len(there) > 0 && s.cid != "" && !s.conflict {
		m.failf("%q to %s was refused: %s; but is there", s.body, s.to, s.refused)
	}
	if m.ends[s.refusedAt] {
		return // for what the crash may have taken
	}
	if states := g.seen(s.start, s.end); !slices.ContainsFunc(states, func(x groupState) bool { return reason(&x) }) {
		m.failf("%q to %s was refused: %s; there was no reason from %d to %d", s.body, s.to, s.refused, s.start, s.end)
	}
}

// checkGroups compares the store's records with what the logs say, and the answers to commands with both.
func (m *groupModel) checkGroups(tr *truth) {
	ctx := context.Background()
	for conv, g := range tr.group {
		s := g.last()
		rec, err := m.peb.Group(ctx, g.id)
		mode := max(0, slices.Index(receiptNames, s.receipts))
		if err != nil || rec.Owner != s.owner || rec.Open != s.open || rec.HistoryAll != s.all || rec.Ended != g.ended ||
			rec.LargeFrom != g.largeFrom || rec.MemberCount != uint64(len(s.members())) || rec.Version != uint64(len(g.states)-1) ||
			int(rec.Receipts) != mode {
			m.failf("%s: the store has %+v, %v, the log %+v, large from %d, ended %d", conv, rec, err, s, g.largeFrom, g.ended)
		}
		list, next, err := m.peb.Members(ctx, g.id, "", 100)
		var names []string
		for i := range list {
			names = append(names, list[i].User)
		}
		if err != nil || next != "" || !slices.Equal(names, s.members()) {
			m.failf("%s: members are %v, %v, want %v", conv, names, err, s.members())
		}
		for _, user := range m.users {
			x, err := m.peb.Member(ctx, g.id, user)
			if err != nil || x.Role != s.role[user] || x.MutedUntil != s.muted[user] || !slices.Equal(x.Spans, g.spans[user]) {
				m.failf("%s: %s is %+v, %v, want role %d, muted until %d, %v", conv, user, x, err, s.role[user], s.muted[user], g.spans[user])
			}
		}
		for _, msg := range tr.log[conv] { // a mute of a second ago is known to everybody
			for _, x := range g.at(msg.Cseq, msg.Cseq) {
				if msg.Type != "sys.group" && x.muted[msg.From] > msg.TS && x.ts+1000 < msg.TS {
					m.failf("%s %d is from %s, who is muted until %d", conv, msg.Cseq, msg.From, x.muted[msg.From])
				}
			}
		}
	}
	for _, c := range m.cmds {
		m.checkCommand(tr, c)
	}
	for _, r := range m.told {
		if g := tr.group[r.conv]; g == nil || !g.allReceipts(r.cseq) {
			m.failf("%s was told who has %s %d, which gives no such receipts", r.user, r.conv, r.cseq)
		}
	}
}

// checkCommand: what was answered to a command could be answered, in one of the states that the group had meanwhile, and
// what was granted was so in one of them.
func (m *groupModel) checkCommand(tr *truth, c *groupCommand) {
	conv := store.GroupConv(c.group)
	g := tr.group[conv]
	if g == nil {
		g = &groupTruth{states: make([]groupState, 1)}
	}
	done := slices.ContainsFunc(tr.log[conv], func(msg *store.Message) bool {
		return msg.From == c.body.By && strings.HasPrefix(msg.Cid, fmt.Sprintf("%s%s\x00%s\x00", ownCid, c.device.id, c.rid))
	})
	if !c.answered || c.code == Unavailable {
		return
	}
	states := g.at(c.start, c.end)
	what := fmt.Sprintf("%s: %s by %s of %v, cseq %d to %d, answered %q", conv, c.body.Change, c.body.By, c.body.Users, c.start, c.end, c.code)
	if c.code == "" {
		if !slices.ContainsFunc(states, func(s groupState) bool { return s.holds(&c.body, c.at) }) {
			m.failf("%s: it never was so", what)
		}
		return
	}
	if done && c.device.always {
		m.failf("%s, though it is done", what)
	}
	// Several changes at once may have been seen in part, and the last taken by a crash.
	if states = g.seen(c.start, c.end); len(states) <= 2 && !m.ends[c.endAt] && !slices.ContainsFunc(states, func(s groupState) bool { return s.refuses(&c.body) == c.code }) {
		m.failf("%s: there was no reason", what)
	}
}
