package im

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/mqim/mqim/store"
)

// truth is what the store holds at the end of a run.
type truth struct {
	inbox map[string]map[uint64]*store.Message // user → seq → message, withdrawn ones as Recalled
	head  map[string]uint64
	log   map[store.Conv][]*store.Message // as it stands, cseq 1 first
	group map[store.Conv]*groupTruth
	gone  map[mark]map[uint64]bool // what a user has deleted of a group
}

// load reads everything, checking the numbers on the way (I3).
func (m *model) load() *truth {
	ctx := context.Background()
	tr := &truth{
		map[string]map[uint64]*store.Message{}, map[string]uint64{}, map[store.Conv][]*store.Message{},
		map[store.Conv]*groupTruth{}, map[mark]map[uint64]bool{},
	}
	must := func(err error) {
		if err != nil {
			m.t.Fatalf("seed %d: read the store: %v", m.seed, err)
		}
	}
	for i, user := range m.users {
		box, err := m.peb.Inbox(ctx, user)
		must(err)
		tr.head[user] = box.Head
		tr.inbox[user] = map[uint64]*store.Message{}
		for next := uint64(1); next <= box.Head; {
			page, err := m.peb.ReadInbox(ctx, user, next-1, 100, nil)
			must(err)
			if len(page) == 0 {
				m.failf("I3: inbox of %s ends at %d, its head is %d", user, next-1, box.Head)
				break
			}
			for _, e := range page {
				if e.Seq != next {
					m.failf("I3: inbox of %s: seq %d after %d", user, e.Seq, next-1)
				}
				tr.inbox[user][e.Seq] = e.Message
				next = e.Seq + 1
			}
		}
		for _, peer := range m.users[i:] {
			conv := store.Direct(user, peer)
			st, err := m.peb.Conversation(ctx, user, conv)
			must(err)
			must(m.loadLog(tr, conv, st.Head))
		}
	}
	for _, id := range m.groups {
		conv := store.GroupConv(id)
		must(m.loadLog(tr, conv, m.logHead(conv)))
		if len(tr.log[conv]) > 0 {
			tr.group[conv] = m.replayGroup(tr, conv)
			must(m.loadDeleted(tr, conv))
		}
	}
	return tr
}

func (m *model) loadLog(tr *truth, conv store.Conv, head uint64) error {
	last := int64(0)
	for cseq := uint64(1); cseq <= head; cseq++ {
		msg, err := m.peb.Message(context.Background(), conv, cseq)
		if err != nil {
			return err
		}
		if msg.Cseq != cseq || msg.ID <= last {
			m.failf("I3: %s: cseq %d has number %d, id %d after %d", conv, cseq, msg.Cseq, msg.ID, last)
		}
		last = msg.ID
		tr.log[conv] = append(tr.log[conv], msg)
	}
	return nil
}

// view is what a user has to see through one stream: the inbox, or the log of a large group.
type view struct {
	conv store.Conv // "": the inbox
	head uint64
	box  map[uint64]*store.Message // by number
}

func (m *model) views(tr *truth, user string) []view {
	list := []view{{"", tr.head[user], tr.inbox[user]}}
	for conv, g := range tr.group {
		if g.largeFrom == 0 {
			continue
		}
		v := view{conv: conv, box: map[uint64]*store.Message{}}
		for _, msg := range tr.log[conv][g.largeFrom-1:] {
			if g.has(user, msg.Cseq) {
				v.head, v.box[msg.Cseq] = msg.Cseq, msg
			}
		}
		list = append(list, v)
	}
	return list
}

// check verifies what must hold after a run, and returns what there is.
func (m *model) check() *truth {
	m.mu.Lock()
	defer m.mu.Unlock()
	tr := m.load()
	m.checkSends(tr)
	m.checkInboxes(tr)
	m.checkDeliveries(tr)
	m.checkMarks(tr)
	m.checkShown(tr)
	return tr
}

// checkSends: what was answered is there, under the numbers that were told (I1), and once.
func (m *model) checkSends(tr *truth) {
	byBody := map[string][]*store.Message{}
	byCid := map[string]int{}
	for _, log := range tr.log {
		for _, msg := range log {
			if !msg.Recalled {
				byBody[string(msg.Body)] = append(byBody[string(msg.Body)], msg)
			}
			if msg.Cid != "" { // the engine's own, too
				if byCid[msg.From+" "+msg.Cid]++; byCid[msg.From+" "+msg.Cid] > 1 {
					m.failf("%s's cid %s is stored more than once", msg.From, msg.Cid)
				}
			}
		}
	}
	for _, s := range m.sends {
		conv, _ := ParseAddress(s.from, s.to)
		log := tr.log[conv]
		m.checkRefused(tr, s, byBody[s.body])
		for _, a := range s.answers {
			if a.Cseq == 0 || a.Cseq > uint64(len(log)) {
				m.failf("I1: %q was answered with cseq %d, but %s ends at %d", s.body, a.Cseq, conv, len(log))
				continue
			}
			msg := log[a.Cseq-1]
			if fmt.Sprint(msg.ID) != a.ID || msg.TS != a.TS || msg.From != s.from || msg.Cid != s.cid || !msg.Recalled && string(msg.Body) != s.body {
				m.failf("I1: %q was answered with %+v, but there is %+v", s.body, a, msg)
			}
			if a.ID != s.answers[0].ID || a.Cseq != s.answers[0].Cseq {
				m.failf("%q was answered with %+v and with %+v", s.body, s.answers[0], a)
			}
		}
		if s.cid != "" && len(byBody[s.body]) > 1 {
			m.failf("%q is there %d times", s.body, len(byBody[s.body]))
		}
	}
}

// inInbox reports whether msg lies in user's inbox.
func (tr *truth) inInbox(user string, msg *store.Message) bool {
	if g := tr.group[msg.Conv]; g != nil {
		return g.has(user, msg.Cseq) && (g.largeFrom == 0 || msg.Cseq < g.largeFrom)
	}
	return msg.Conv.Peer(user) != ""
}

// checkInboxes: each message lies in the inboxes of both sides, of a small group's in those of its members, once, in the
// order of its conversation.
func (m *model) checkInboxes(tr *truth) {
	for user, box := range tr.inbox {
		got, want := map[store.Conv][]uint64{}, map[store.Conv][]uint64{}
		lastID := int64(0)
		for seq := uint64(1); seq <= tr.head[user]; seq++ {
			msg := box[seq]
			if msg == nil {
				continue // said before
			}
			got[msg.Conv] = append(got[msg.Conv], msg.Cseq)
			if msg.ID <= lastID {
				m.failf("inbox of %s: seq %d has id %d after %d", user, seq, msg.ID, lastID)
			}
			lastID = msg.ID
		}
		for conv, log := range tr.log {
			for _, msg := range log {
				if tr.inInbox(user, msg) {
					want[conv] = append(want[conv], msg.Cseq)
				}
			}
			if !slices.Equal(got[conv], want[conv]) {
				m.failf("inbox of %s has of %s %v, want %v", user, conv, got[conv], want[conv])
			}
		}
	}
}

// stand is where a device stands in the replay of the events: what the server may take for acknowledged.
type stand struct {
	cursor uint64          // everything up to it is acknowledged, or was not for the device
	acked  map[uint64]bool // beyond it
	last   uint64          // of this connection's first deliveries
	open   bool
}

// checkDeliveries replays what the devices saw: on each connection first deliveries rise (I4) from the cursor or
// before it, and leave out only what is not for the device or is acknowledged (I2); what was shown is there (I9). Each
// stream stands by itself.
func (m *model) checkDeliveries(tr *truth) {
	for _, user := range m.users {
		for _, v := range m.views(tr, user) {
			m.replay(tr, user, &v)
		}
	}
}

func (m *model) replay(tr *truth, user string, v *view) {
	devs := map[*modelDevice]*stand{}
	for _, dev := range m.devs {
		if dev.user == user {
			devs[dev] = &stand{}
		}
	}
	for i := range m.events {
		ev := &m.events[i]
		s := devs[ev.dev]
		if s == nil || ev.kind == "deliver" && (ev.d.seq == 0) != (v.conv != "") {
			continue
		}
		// skips reports whether a number may be left out on the way to the device.
		skips := func(n uint64) bool {
			msg := v.box[n]
			return s.acked[n] || msg == nil || msg.From == user && msg.Device == ev.dev.id || msg.Expires != 0 || msg.Recalled ||
				tr.gone[mark{user, msg.Conv}][msg.Cseq]
		}
		switch conv, n := ev.d.stream(); {
		case ev.kind == "connect":
			if s.acked == nil || ev.fresh { // it starts at the user's cursor, the highest of its devices'
				s.acked = map[uint64]bool{}
				for _, o := range devs {
					s.cursor = max(s.cursor, min(o.cursor, ev.heads[v.conv]))
				}
			}
			s.last, s.open = 0, false
		case ev.kind == "deliver" && conv == v.conv:
			m.checkDelivery(ev, v, s, n, skips)
		case ev.kind == "ack" && ev.conv == v.conv:
			s.acked[ev.seq] = true
		case ev.kind == "ackSeq" && ev.conv == v.conv:
			s.cursor = max(s.cursor, ev.seq)
		}
		for n := s.cursor + 1; n <= v.head && skips(n); n++ {
			s.cursor = n
		}
	}
	// In the end everybody has got everything.
	for dev, s := range devs {
		if s.cursor < v.head {
			m.failf("I2: %s/%s has got everything of %q up to %d only, of %d", user, dev.id, v.conv, s.cursor, v.head)
		}
	}
}

func (m *model) checkDelivery(ev *event, v *view, s *stand, n uint64, skips func(uint64) bool) {
	d, who := ev.d, ev.dev.user+"/"+ev.dev.id
	if msg := v.box[n]; msg == nil || msg.ID != d.id || msg.Conv != d.conv || msg.Cseq != d.cseq ||
		!msg.Recalled && !d.recalled && string(msg.Body) != d.body {
		m.failf("I9: %s was shown %+v, but there is %+v", who, d, msg)
	}
	if d.attempt > 0 {
		if n > s.last {
			m.failf("%s got attempt %d of %q %d, having had %d only", who, d.attempt, v.conv, n, s.last)
		}
		return
	}
	if s.open && n <= s.last {
		m.failf("I4: %s got %q %d after %d", who, v.conv, n, s.last)
	}
	from := s.cursor
	if s.open {
		from = max(s.last, from)
	}
	for x := from + 1; x < n; x++ {
		if !skips(x) {
			m.failf("I2: %s got %q %d and was never sent %d, cursor %d", who, v.conv, n, x, s.cursor)
		}
	}
	s.last, s.open = n, true
}

// checkMarks: watermarks are not ahead of acks and reads, not behind what was answered, and unread counts fit them.
func (m *model) checkMarks(tr *truth) {
	for conv, log := range tr.log {
		a, b, _ := conv.Users()
		users := slices.Compact([]string{a, b})
		if g := tr.group[conv]; g != nil {
			users = slices.Sorted(maps.Keys(g.spans))
		}
		for _, user := range users {
			m.checkMark(tr, conv, log, user)
		}
	}
}

func (m *model) checkMark(tr *truth, conv store.Conv, log []*store.Message, user string) {
	k := mark{user, conv}
	st, err := m.peb.Conversation(context.Background(), user, conv)
	if err != nil {
		m.failf("%s: %v", conv, err)
		return
	}
	if st.Read > m.reads[k] || st.Read < m.readOK[k] {
		m.failf("%s has read %s up to %d, want %d to %d", user, conv, st.Read, m.readOK[k], m.reads[k])
	}
	g := tr.group[conv]
	atMost := max(m.acked[k], st.Read)
	if g != nil && g.largeFrom != 0 { // that log begins there, or where the user came
		atMost = max(atMost, g.largeFrom-1, g.spans[user][0].From-1)
	}
	var atLeast, unread, head uint64
	withdrawn := m.withdrawn(tr, user, conv)
	for _, msg := range log {
		visible := g == nil || g.has(user, msg.Cseq)
		if visible {
			head = msg.Cseq
		}
		if news := visible && msg.From != user && !withdrawn[msg.Cseq]; news {
			if msg.Expires == 0 {
				atLeast = msg.Cseq
			}
			if msg.Cseq > st.Read {
				unread++
			}
		}
		// In the log of a large group the watermark goes on over what is not for the user.
		if passed := msg.Expires != 0 || !visible || msg.From == user || withdrawn[msg.Cseq]; passed &&
			g != nil && g.largeFrom != 0 && msg.Cseq == atMost+1 {
			atMost++
		}
	}
	if st.Delivered > atMost || st.Delivered < atLeast {
		m.failf("%s has got %s up to %d, want %d to %d", user, conv, st.Delivered, atLeast, atMost)
	}
	if st.Unread != unread || st.Head != head {
		m.failf("%s has %d unread in %s, head %d, want %d, %d", user, st.Unread, conv, st.Head, unread, head)
	}
}

// withdrawn is the cseqs that user does not see: recalled, or deleted by the user.
func (m *model) withdrawn(tr *truth, user string, conv store.Conv) map[uint64]bool {
	set := map[uint64]bool{}
	for _, msg := range tr.inbox[user] {
		if msg.Conv == conv && msg.Recalled {
			set[msg.Cseq] = true
		}
	}
	for _, msg := range tr.log[conv] {
		if msg.Recalled || tr.gone[mark{user, conv}][msg.Cseq] {
			set[msg.Cseq] = true
		}
	}
	return set
}
