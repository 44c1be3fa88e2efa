package im

import (
	"context"
	"fmt"
	"slices"

	"github.com/mqim/mqim/store"
)

// truth is what the store holds at the end of a run.
type truth struct {
	inbox map[string]map[uint64]*store.Message // user → seq → message, withdrawn ones as Recalled
	head  map[string]uint64
	log   map[store.Conv][]*store.Message // as it stands, cseq 1 first
}

// load reads everything, checking the numbers on the way (I3).
func (m *model) load() *truth {
	ctx := context.Background()
	tr := &truth{map[string]map[uint64]*store.Message{}, map[string]uint64{}, map[store.Conv][]*store.Message{}}
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
			last := int64(0)
			for cseq := uint64(1); cseq <= st.Head; cseq++ {
				msg, err := m.peb.Message(ctx, conv, cseq)
				must(err)
				if msg.Cseq != cseq || msg.ID <= last {
					m.failf("I3: %s: cseq %d has number %d, id %d after %d", conv, cseq, msg.Cseq, msg.ID, last)
				}
				last = msg.ID
				tr.log[conv] = append(tr.log[conv], msg)
			}
		}
	}
	return tr
}

// check verifies what must hold after a run.
func (m *model) check() {
	m.mu.Lock()
	defer m.mu.Unlock()
	tr := m.load()
	m.checkSends(tr)
	m.checkInboxes(tr)
	m.checkDeliveries(tr)
	m.checkMarks(tr)
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
			if msg.Cid != "" {
				if byCid[msg.From+" "+msg.Cid]++; byCid[msg.From+" "+msg.Cid] > 1 {
					m.failf("%s's cid %s is stored more than once", msg.From, msg.Cid)
				}
			}
		}
	}
	for _, s := range m.sends {
		conv := store.Direct(s.from, s.to)
		log := tr.log[conv]
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

// checkInboxes: each message lies in the inboxes of both sides, once, in the order of its conversation.
func (m *model) checkInboxes(tr *truth) {
	for user, box := range tr.inbox {
		next := map[store.Conv]uint64{}
		lastID := int64(0)
		for seq := uint64(1); seq <= tr.head[user]; seq++ {
			msg := box[seq]
			if msg == nil {
				continue // said before
			}
			if next[msg.Conv]++; msg.Cseq != next[msg.Conv] || msg.ID <= lastID {
				m.failf("inbox of %s: seq %d is %s %d, want %d", user, seq, msg.Conv, msg.Cseq, next[msg.Conv])
			}
			lastID = msg.ID
		}
		for conv, log := range tr.log {
			if conv.Peer(user) != "" && next[conv] != uint64(len(log)) {
				m.failf("inbox of %s has %d of %d messages of %s", user, next[conv], len(log), conv)
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
// before it, and leave out only what is not for the device or is acknowledged (I2); what was shown is there (I9).
func (m *model) checkDeliveries(tr *truth) {
	devs := map[*modelDevice]*stand{}
	for i := range m.events {
		ev := &m.events[i]
		s := devs[ev.dev]
		if s == nil {
			s = &stand{}
			devs[ev.dev] = s
		}
		box := tr.inbox[ev.dev.user]
		// skips reports whether seq may be left out on the way to the device.
		skips := func(seq uint64) bool {
			msg := box[seq]
			return s.acked[seq] || msg == nil || msg.From == ev.dev.user && msg.Device == ev.dev.id || msg.Expires != 0 || msg.Recalled
		}
		switch ev.kind {
		case "connect":
			if s.acked == nil || ev.fresh { // it starts at the user's cursor, the highest of its devices'
				s.acked = map[uint64]bool{}
				for other, o := range devs {
					if other.user == ev.dev.user {
						s.cursor = max(s.cursor, min(o.cursor, ev.seq))
					}
				}
			}
			s.last, s.open = 0, false
		case "deliver":
			d := ev.d
			if msg := box[d.seq]; msg == nil || msg.ID != d.id || msg.Conv != d.conv || msg.Cseq != d.cseq ||
				!msg.Recalled && !d.recalled && string(msg.Body) != d.body {
				m.failf("I9: %s/%s was shown %+v, but there is %+v", ev.dev.user, ev.dev.id, d, msg)
			}
			if d.attempt > 0 {
				if d.seq > s.last {
					m.failf("%s/%s got attempt %d of seq %d, having had %d only", ev.dev.user, ev.dev.id, d.attempt, d.seq, s.last)
				}
				continue
			}
			if s.open && d.seq <= s.last {
				m.failf("I4: %s/%s got seq %d after %d", ev.dev.user, ev.dev.id, d.seq, s.last)
			}
			from := s.cursor
			if s.open {
				from = max(s.last, from)
			}
			for seq := from + 1; seq < d.seq; seq++ {
				if !skips(seq) {
					m.failf("I2: %s/%s got seq %d and was never sent %d, cursor %d", ev.dev.user, ev.dev.id, d.seq, seq, s.cursor)
				}
			}
			s.last, s.open = d.seq, true
		case "ack":
			s.acked[ev.seq] = true
		case "ackSeq":
			s.cursor = max(s.cursor, ev.seq)
		}
		for seq := s.cursor + 1; seq <= tr.head[ev.dev.user] && skips(seq); seq++ {
			s.cursor = seq
		}
	}
	// In the end everybody has got everything.
	for dev, s := range devs {
		if head := tr.head[dev.user]; s.cursor != head {
			m.failf("I2: %s/%s has got everything up to %d only, of %d", dev.user, dev.id, s.cursor, head)
		}
	}
}

// checkMarks: watermarks are not ahead of acks and reads, not behind what was answered, and unread counts fit them.
func (m *model) checkMarks(tr *truth) {
	ctx := context.Background()
	for conv, log := range tr.log {
		a, b, _ := conv.Users()
		for _, user := range slices.Compact([]string{a, b}) {
			k := mark{user, conv}
			st, err := m.peb.Conversation(ctx, user, conv)
			if err != nil {
				m.failf("%s: %v", conv, err)
				continue
			}
			if st.Read > m.reads[k] || st.Read < m.readOK[k] {
				m.failf("%s has read %s up to %d, want %d to %d", user, conv, st.Read, m.readOK[k], m.reads[k])
			}
			var atLeast, unread uint64
			withdrawn := m.withdrawn(tr, user, conv)
			for _, msg := range log {
				if msg.From != user && !withdrawn[msg.Cseq] {
					if msg.Expires == 0 {
						atLeast = msg.Cseq
					}
					if msg.Cseq > st.Read {
						unread++
					}
				}
			}
			if st.Delivered > max(m.acked[k], st.Read) || st.Delivered < atLeast {
				m.failf("%s has got %s up to %d, want %d to %d", user, conv, st.Delivered, atLeast, m.acked[k])
			}
			if st.Unread != unread {
				m.failf("%s has %d unread in %s, want %d", user, st.Unread, conv, unread)
			}
		}
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
	return set
}
