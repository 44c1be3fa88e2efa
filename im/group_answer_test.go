package im

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/mqim/mqim/store"
)

// checkCalm: when nothing is going on, nobody who has room waits for something that is there.
func (m *groupModel) checkCalm() {
	m.st.mu.Lock()
	faults := m.st.onCommit != nil
	m.st.mu.Unlock()
	if m.r.IntN(8) > 0 || faults {
		return
	}
	ctx := context.Background()
	for _, d := range m.devs {
		if d.link == nil || d.link.over {
			continue
		}
		box, _ := m.peb.Inbox(ctx, d.user)
		list, err := m.peb.Streams(ctx, store.DeviceKey{User: d.user, Device: d.id})
		if err != nil {
			m.t.Fatal(err)
		}
		x := d.link.dev
		x.u.mu.Lock()
		if x.u.head != box.Head || x.room() > 0 && x.behind() != nil {
			m.t.Errorf("%s/%s: head %d, want %d; waits though it has room: %v", d.user, d.id, x.u.head, box.Head, x.behind() != nil)
		}
		for i := range list {
			head, last := list[i].Head, list[i].Spans[len(list[i].Spans)-1].To
			if last != 0 {
				head = min(head, last)
			}
			if g := x.group(list[i].Conv); g == nil && last == 0 || g != nil && g.head != head {
				m.t.Errorf("%s/%s: %s is at %+v, want head %d", d.user, d.id, list[i].Conv, g, head)
			}
		}
		x.u.mu.Unlock()
	}
}

// checkAnswers has everybody ask for what the logs tell already.
func (m *groupModel) checkAnswers(tr *truth) {
	for _, d := range m.devs {
		m.checkConversations(tr, d.link)
		for _, id := range m.groups {
			if g := tr.group[store.GroupConv(id)]; g != nil {
				m.checkHistory(tr, d.link, g, m.r.IntN(2) == 0)
				m.checkReceipts(tr, d.link, g)
			}
		}
	}
}

// query runs a command that is answered at once.
func (m *groupModel) query(l *modelLink, name string, args map[string]any, data any) (code Code, cursor string) {
	args["rid"] = "q"
	payload, _ := json.Marshal(args)
	code = "none"
	l.command(name, string(payload), func(b []byte, err *Error) {
		r := struct {
			Data   any
			Cursor string
		}{Data: data}
		if code = ""; err != nil {
			code = err.Code
		} else if jerr := json.Unmarshal(b, &r); jerr != nil {
			m.failf("%s: %v: %s", name, jerr, b)
		}
		cursor = r.Cursor
	})
	return code, cursor
}

func (m *groupModel) checkConversations(tr *truth, l *modelLink) {
	user := l.d.user
	type line struct{ Head, Read, Unread uint64 }
	got, cursor := map[store.Conv]line{}, ""
	for {
		var page []struct {
			line
			Conv string
		}
		args := map[string]any{"limit": 1 + m.r.IntN(4)}
		if cursor != "" {
			args["cursor"] = cursor
		}
		var code Code
		if code, cursor = m.query(l, "conversations", args, &page); code != "" {
			m.failf("conversations of %s: %s", user, code)
			return
		}
		for _, x := range page {
			conv, _ := ParseAddress(user, x.Conv)
			if _, twice := got[conv]; twice {
				m.failf("conversations of %s: %s twice", user, conv)
			}
			got[conv] = x.line
		}
		if cursor == "" {
			break
		}
	}
	for conv, log := range tr.log {
		g := tr.group[conv]
		if g == nil && conv.Peer(user) == "" || len(log) == 0 {
			continue
		}
		if g != nil && len(g.spans[user]) == 0 {
			if x, ok := got[conv]; ok {
				m.failf("conversations of %s: %s %+v, in which the user never was", user, conv, x)
			}
			continue
		}
		want := line{Read: got[conv].Read}
		withdrawn := m.withdrawn(tr, user, conv)
		for _, msg := range log {
			if g != nil && !g.has(user, msg.Cseq) {
				continue
			}
			if want.Head = msg.Cseq; msg.Cseq > want.Read && msg.From != user && !withdrawn[msg.Cseq] {
				want.Unread++
			}
		}
		if got[conv] != want {
			m.failf("conversations of %s: %s is %+v, want %+v", user, conv, got[conv], want)
		}
	}
}

// checkHistory reads a group's log page by page, in either direction: it shows what the rights allow, and no more.
func (m *groupModel) checkHistory(tr *truth, l *modelLink, g *groupTruth, forward bool) {
	conv, user := store.GroupConv(g.id), l.d.user
	spans := g.spans[user]
	if g.last().all && len(spans) > 0 {
		m.tally["history of all"]++
		spans = []store.Span{{From: 1, To: spans[len(spans)-1].To}}
	}
	if len(spans) > 1 {
		m.tally["gap"]++
	}
	var want, got []uint64
	for _, msg := range tr.log[conv] {
		may := slices.ContainsFunc(spans, func(s store.Span) bool { return s.Has(msg.Cseq) })
		if may && !tr.gone[mark{user, conv}][msg.Cseq] && !msg.Expired(time.Now().UnixMilli()) {
			want = append(want, msg.Cseq)
		}
	}
	key, at := "after", uint64(0)
	if !forward {
		key, at = "before", 1<<40
	}
	for range 1000 {
		var page struct {
			Messages []struct{ Cseq uint64 }
			More     bool
		}
		args := map[string]any{"conv": "g/" + g.id, "limit": 1 + m.r.IntN(7), key: at}
		code, _ := m.query(l, "history", args, &page)
		if len(spans) == 0 && code == NotMember {
			return
		}
		if code != "" {
			m.failf("history of %s for %s: %s", conv, user, code)
			return
		}
		n := len(page.Messages)
		if n == 0 && page.More { // a page of what has expired: there is no number to go on from
			if at++; !forward {
				at = min(at-2, uint64(len(tr.log[conv])))
			}
			continue
		}
		var cseqs []uint64
		for _, x := range page.Messages {
			cseqs = append(cseqs, x.Cseq)
		}
		if forward {
			got = append(got, cseqs...)
		} else {
			got = append(cseqs, got...)
		}
		if !page.More {
			break
		}
		if at = cseqs[0]; forward {
			at = cseqs[n-1]
		}
	}
	if !slices.Equal(got, want) {
		m.failf("history of %s for %s, forward %v: got %v, want %v of %v", conv, user, forward, got, want, spans)
	}
}

// checkReceipts asks who has a message: everybody who was there for it, now that everything is acknowledged.
func (m *groupModel) checkReceipts(tr *truth, l *modelLink, g *groupTruth) {
	conv, s := store.GroupConv(g.id), g.last()
	msg := tr.log[conv][m.r.IntN(len(tr.log[conv]))]
	if !g.has(l.d.user, msg.Cseq) {
		return
	}
	var most, least, read []string
	for _, user := range s.members() {
		if user == msg.From || !g.has(user, msg.Cseq) {
			continue
		}
		most = append(most, user)
		withdrawn := m.withdrawn(tr, user, conv)
		if slices.ContainsFunc(tr.log[conv][msg.Cseq-1:], func(x *store.Message) bool {
			return g.has(user, x.Cseq) && x.From != user && x.Expires == 0 && !withdrawn[x.Cseq]
		}) {
			least = append(least, user)
		}
		if m.readOK[mark{user, conv}] >= msg.Cseq {
			read = append(read, user)
		}
	}
	var r struct {
		Delivered, Read uint64
		By              []string `json:"delivered_by"`
	}
	code, _ := m.query(l, "receipts", map[string]any{"conv": "g/" + g.id, "cseq": msg.Cseq}, &r)
	switch present := s.role[l.d.user] != store.NoRole; {
	case !present && code != NotMember:
		m.failf("receipts of %s %d for %s, who has left: %s", conv, msg.Cseq, l.d.user, code)
		return
	case !present, s.receipts == "none" && code == Forbidden:
		return
	}
	n := func(list []string) uint64 { return uint64(len(list)) }
	if code != "" || s.receipts == "none" || r.Delivered < n(least) || r.Delivered > n(most) || r.Read < n(read) || r.Read > r.Delivered ||
		r.By != nil && (s.large || s.receipts == "counts" || n(r.By) != r.Delivered) {
		m.failf("receipts of %s %d: %s %+v, want %v to %v, read by %v", conv, msg.Cseq, code, r, least, most, read)
	}
}
