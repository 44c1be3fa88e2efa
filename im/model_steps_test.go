package im

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"testing/synctest"
	"time"

	"github.com/mqim/mqim/store"
)

// connect connects a device, taking over where it is connected.
func (m *model) connect(d *modelDevice, clean bool) {
	if d.link != nil {
		m.disconnect(d, clean)
	}
	m.mu.Lock()
	d.session = Session{Persistent: d.always || m.r.IntN(4) > 0, Clean: clean && !d.always}
	d.profile = []Profile{IM, IM, IM, Plain, Plain, None}[m.r.IntN(6)]
	fresh := d.session.Clean || !d.alive
	d.alive = true
	l := &modelLink{m: m, life: m.life, d: d, room: 1000, isAcked: map[uint64]bool{}, settled: map[uint64]bool{},
		upTo: map[store.Conv]uint64{}, risen: map[store.Conv]uint64{}, tickets: map[Ticket]func([]byte, *Error){}}
	if m.r.IntN(5) == 0 {
		l.room = m.r.IntN(3)
	}
	d.link = l
	m.events = append(m.events, event{kind: "connect", dev: d, fresh: fresh})
	at := len(m.events) - 1
	m.mu.Unlock()
	dev, err := m.e.Connect(context.Background(), d.user, d.id, d.session, l)
	if err != nil {
		if !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrUnknownOutcome) {
			m.t.Errorf("connect %s/%s: %v", d.user, d.id, err)
		}
		m.mu.Lock()
		d.link, d.alive = nil, d.alive && !fresh // no session, no promise
		m.mu.Unlock()
		return
	}
	l.dev = dev
	if d.always && dev.Resumed() == fresh {
		m.t.Errorf("%s/%s: resumed %v, fresh %v", d.user, d.id, dev.Resumed(), fresh)
	}
	box, _ := m.peb.Inbox(context.Background(), d.user)
	heads := map[store.Conv]uint64{"": box.Head}
	for _, id := range m.groups {
		heads[store.GroupConv(id)] = m.logHead(store.GroupConv(id))
	}
	m.mu.Lock()
	m.events[at].heads = heads
	m.mu.Unlock()
	dev.SetProfile(d.profile, everything)
}

// disconnect ends a connection; end ends the session, too.
func (m *model) disconnect(d *modelDevice, end bool) {
	end = end && !d.always
	l := d.link
	m.mu.Lock()
	m.gone(d)
	if end {
		d.alive = false
	}
	m.mu.Unlock()
	l.dev.Disconnect(end)
}

// send sends a new message, or one of the sender's again, or another one under a cid that was used.
func (m *model) send(l *modelLink) {
	m.mu.Lock()
	var s *modelSend
	if n := len(m.sends); n > 0 && m.r.IntN(4) == 0 {
		if old := m.sends[m.r.IntN(n)]; old.from == l.d.user && old.cid != "" {
			s = old
			if m.r.IntN(3) == 0 {
				s = &modelSend{from: old.from, to: old.to, cid: old.cid, body: fmt.Sprint("other ", n), conflict: true}
				m.sends = append(m.sends, s)
			}
		}
	}
	if s == nil {
		n := len(m.sends)
		s = &modelSend{from: l.d.user, to: m.someone(l.d.user), body: fmt.Sprint("body ", n), ttl: m.r.IntN(12) == 0}
		if m.r.IntN(4) > 0 {
			s.cid = fmt.Sprint("c", n)
		}
		m.sends = append(m.sends, s)
	}
	m.mu.Unlock()
	m.transmit(l, s)
}

func (m *model) transmit(l *modelLink, s *modelSend) {
	cmd := map[string]any{"rid": "r", "to": s.to, "body": s.body}
	if s.cid != "" {
		cmd["cid"] = s.cid
	}
	if s.ttl {
		cmd["ttl"] = 3
	}
	payload, _ := json.Marshal(cmd)
	conv, _ := ParseAddress(s.from, s.to)
	id, isGroup := conv.Group()
	m.mu.Lock()
	if s.tries++; s.tries == 1 {
		s.start = m.logHead(conv)
	}
	s.sentAt, s.refused = time.Now().UnixMilli(), "" // until this try is answered
	try := s.tries
	m.mu.Unlock()
	answer := func(b []byte, err *Error) {
		if try == s.tries {
			s.refused, s.end = "", m.logHead(conv)
			if err != nil {
				s.refused, s.refusedAt = err.Code, time.Now().UnixMilli()
			}
		}
		switch {
		case err == nil:
			var r struct{ Data sent }
			if jerr := json.Unmarshal(b, &r); jerr != nil {
				m.failf("reply %s: %v", b, jerr)
				return
			}
			s.done = true
			s.answers = append(s.answers, r.Data)
			if r.Data.Dup {
				m.tally["dup"]++
			}
		case err.Code == Conflict:
			m.tally["conflict"]++
			if s.cid == "" {
				m.failf("conflict without cid")
			}
			s.done = true
		case isGroup && (err.Code == NotMember || err.Code == Muted || err.Code == NotFound):
			m.tally[string(err.Code)]++
			s.done = true
		case err.Code != Unavailable:
			m.failf("send to %q refused: %v", id, err)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.command("send", string(payload), answer)
	}()
	select {
	case <-done:
	case <-time.After(time.Nanosecond): // it waits for the store, which may hang
	}
}

// take has the peer take what was delivered, all of it or the first. In the plain profile that acknowledges.
func (m *model) take(l *modelLink, all bool) {
	for {
		m.mu.Lock()
		if len(l.untaken) == 0 {
			m.mu.Unlock()
			return
		}
		d := l.untaken[0]
		l.untaken = l.untaken[1:]
		if d.profile == Plain {
			m.noteAck(l, d)
		} else {
			l.unacked = append(l.unacked, d)
		}
		m.mu.Unlock()
		l.dev.Taken(d.place)
		m.settle(l)
		if !all {
			return
		}
	}
}

// stream is which of the device's streams d came in, "" the inbox, and its number there.
func (d *delivery) stream() (store.Conv, uint64) {
	if d.seq == 0 {
		return d.conv, d.cseq
	}
	return "", d.seq
}

// noteEvent notes that a user was told of the change of a group; m.mu is held.
func (m *model) noteEvent(user string, conv store.Conv, payload []byte) {
	var n struct {
		Type string
		Cseq uint64
	}
	if json.Unmarshal(payload, &n) == nil && n.Type == "group" {
		m.shown = append(m.shown, sight{user, conv, n.Cseq})
	}
}

// noteAck notes that a message is about to be acknowledged; m.mu is held.
func (m *model) noteAck(l *modelLink, d delivery) {
	l.isAcked[d.place] = true
	conv, n := d.stream()
	m.events = append(m.events, event{kind: "ack", dev: l.d, conv: conv, seq: n})
	m.covers(l.d.user, d)
}

// covers raises how far user may be said to have got a conversation; m.mu is held.
func (m *model) covers(user string, d delivery) {
	k := mark{user, d.conv}
	m.acked[k] = max(m.acked[k], d.cseq)
}

// ack acknowledges by ids, seq or conversation some of what was delivered in the IM profile.
func (m *model) ack(l *modelLink) {
	m.mu.Lock()
	n := len(l.unacked)
	if n == 0 {
		m.mu.Unlock()
		m.take(l, false)
		return
	}
	d := l.unacked[m.r.IntN(n)]
	var payload string
	hit := func(x delivery) bool { return x.place == d.place }
	how := m.r.IntN(3)
	if d.seq == 0 { // of a large group
		how = m.r.IntN(2)
	}
	switch how {
	case 0:
		payload = fmt.Sprintf(`{"ids":["%d"]}`, d.id)
	case 1:
		payload = fmt.Sprintf(`{"conv":%q,"cseq":%d}`, d.conv.Address(l.d.user), d.cseq)
		hit = func(x delivery) bool { return x.conv == d.conv && x.cseq <= d.cseq }
	default:
		payload = fmt.Sprintf(`{"seq":%d}`, d.seq)
		hit = func(x delivery) bool { return x.seq != 0 && x.seq <= d.seq }
		m.events = append(m.events, event{kind: "ackSeq", dev: l.d, seq: d.seq})
	}
	// What is on its way to the peer has been handed over, and is acknowledged with the others.
	for _, list := range [][]delivery{l.unacked, l.untaken} {
		for _, x := range list {
			if hit(x) {
				m.noteAck(l, x)
			}
		}
	}
	var left []delivery
	for _, x := range l.unacked {
		if !l.isAcked[x.place] {
			left = append(left, x)
		}
	}
	l.unacked = left
	m.mu.Unlock()
	l.command("ack", payload, func(_ []byte, err *Error) {
		if err != nil {
			m.failf("ack %s refused: %v", payload, err)
		}
	})
	m.settle(l)
}

// settle notes that the engine has the acks: from here on what they cover must not come again on this connection.
func (m *model) settle(l *modelLink) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.Copy(l.settled, l.isAcked)
}

// sync reads a page of the inbox and sometimes acknowledges it, pushed or not.
func (m *model) sync(l *modelLink) {
	ack := m.r.IntN(2) == 0
	var last uint64
	l.command("sync", `{"rid":"r","limit":6}`, func(b []byte, err *Error) {
		var r struct {
			Data struct {
				Messages []struct {
					Seq, Cseq uint64
					Conv      string
				}
			}
		}
		if err != nil || json.Unmarshal(b, &r) != nil {
			m.failf("sync: %v %s", err, b)
			return
		}
		for _, x := range r.Data.Messages {
			last = x.Seq
			conv, _ := ParseAddress(l.d.user, x.Conv)
			m.shown = append(m.shown, sight{l.d.user, conv, x.Cseq})
			if ack {
				m.covers(l.d.user, delivery{conv: conv, cseq: x.Cseq})
			}
		}
		if !ack || last == 0 {
			return
		}
		m.events = append(m.events, event{kind: "ackSeq", dev: l.d, seq: last})
		for seq := uint64(1); seq <= last; seq++ {
			l.isAcked[seq] = true
		}
	})
	if ack && last > 0 {
		l.command("ack", fmt.Sprintf(`{"seq":%d}`, last), func(_ []byte, err *Error) {
			if err != nil {
				m.failf("ack after sync refused: %v", err)
			}
		})
		m.settle(l)
	}
}

func (m *model) setRoom(l *modelLink, n int) {
	m.mu.Lock()
	was := l.refused
	l.room = n
	if n > 0 {
		l.refused = false
		if was {
			m.tally["refused room"]++
		}
	}
	m.mu.Unlock()
	if was && n > 0 {
		l.dev.Ready()
	}
}

// someone is an address: a user's or, where there are groups, rather one of theirs, mostly of one that user is in.
func (m *model) someone(user string) string {
	if len(m.groups) > 0 && m.r.IntN(4) > 0 {
		var id string
		for range 3 {
			id = m.groups[m.r.IntN(len(m.groups))]
			if x, err := m.peb.Member(context.Background(), id, user); err == nil && x.Role != store.NoRole {
				break
			}
		}
		return "g/" + id
	}
	return "u/" + m.users[m.r.IntN(len(m.users))]
}

// logHead is the highest cseq of a log, whoever may see it.
func (m *model) logHead(conv store.Conv) uint64 {
	page, err := m.peb.History(context.Background(), "", conv, store.Range{Limit: 1})
	if err != nil || len(page) == 0 {
		return 0
	}
	return page[0].Cseq
}

// someMessage is a conversation of the device's user, and a number in it.
func (m *model) someMessage(l *modelLink) (addr string, conv store.Conv, cseq uint64) {
	addr = m.someone(l.d.user)
	conv, _ = ParseAddress(l.d.user, addr)
	st, err := m.peb.Conversation(context.Background(), l.d.user, conv)
	if err != nil || st.Head == 0 {
		return addr, conv, 0
	}
	return addr, conv, 1 + m.r.Uint64N(st.Head)
}

func (m *model) read(l *modelLink) {
	addr, conv, cseq := m.someMessage(l)
	if cseq == 0 {
		return
	}
	k := mark{l.d.user, conv}
	m.mu.Lock()
	m.reads[k] = max(m.reads[k], cseq)
	m.mu.Unlock()
	l.command("read", fmt.Sprintf(`{"conv":%q,"cseq":%d}`, addr, cseq), func(_ []byte, err *Error) {
		if err == nil {
			m.readOK[k] = max(m.readOK[k], cseq)
		}
	})
}

// withdraw recalls a message of one's own, or deletes any.
func (m *model) withdraw(l *modelLink) {
	addr, conv, cseq := m.someMessage(l)
	if cseq == 0 {
		return
	}
	name, payload := "recall", fmt.Sprintf(`{"conv":%q,"cseq":%d}`, addr, cseq)
	if m.r.IntN(2) == 0 {
		name, payload = "delete", fmt.Sprintf(`{"conv":%q,"cseqs":[%d]}`, addr, cseq)
	}
	at := sight{l.d.user, conv, cseq}
	m.mu.Lock()
	if name == "delete" {
		if !m.asked[at] {
			m.asked[at] = false
		}
	}
	m.mu.Unlock()
	l.command(name, payload, func(_ []byte, err *Error) {
		if err != nil {
			return
		}
		m.tally[name]++
		if name == "delete" {
			m.asked[at] = true
		} else {
			m.recall[sight{conv: conv, cseq: cseq}] = true
		}
	})
}

// heal ends all faults, connects everybody, repeats what was not answered, and takes and acknowledges everything.
func (m *model) heal() {
	m.st.set(func() { m.st.onCommit = nil })
	synctest.Wait()
	for _, d := range m.devs {
		if d.link == nil || d.link.over || d.profile == None {
			m.connect(d, false)
		}
		if d.profile == None {
			d.profile = IM
			d.link.dev.SetProfile(IM, everything)
		}
		m.setRoom(d.link, 1<<30)
	}
	m.mu.Lock()
	var again []*modelSend
	for _, s := range m.sends {
		if !s.done && s.cid != "" {
			again = append(again, s)
		}
	}
	m.mu.Unlock()
	for _, s := range again {
		for _, d := range m.devs {
			if d.user == s.from {
				m.transmit(d.link, s)
				break
			}
		}
	}
	synctest.Wait()
	quiet := 0
	for quiet < 3 {
		synctest.Wait()
		quiet++
		for _, d := range m.devs {
			if len(d.link.untaken) > 0 {
				m.take(d.link, true)
				quiet = 0
			}
			for len(d.link.unacked) > 0 {
				m.ack(d.link)
				quiet = 0
			}
		}
		time.Sleep(time.Second)
	}
	time.Sleep(15 * time.Second) // cursors that could not be written are written at growing intervals
	for _, d := range m.devs {
		if d.link.over {
			m.t.Errorf("%s/%s was closed although it takes and acknowledges everything", d.user, d.id)
		}
	}
	for _, s := range m.sends {
		if s.cid != "" && !s.done {
			m.t.Errorf("%s %q to %s was not answered", s.from, s.body, s.to)
		}
	}
}
