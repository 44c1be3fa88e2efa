package im

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/store"
)

const maxIDs = 500 // ids in one ack, cseqs in one delete, users in one presence command

// cmdAck acknowledges: one of seq (everything up to it), ids (those), conv and cseq.
func (d *Device) cmdAck(c *command, _ Ticket) ([]byte, *Error) {
	switch {
	case c.Seq != nil:
		return nil, d.ackSeq(*c.Seq)
	case c.IDs != nil:
		return nil, d.ackIDs(c.IDs)
	case c.Conv != "" && c.Cseq != nil:
		conv, err := ParseAddress(d.u.name, c.Conv)
		if err != nil {
			return nil, err
		}
		return nil, d.ackConv(conv, *c.Cseq)
	}
	return nil, errorf(BadRequest, `ack: want one of "seq", "ids", "conv" with "cseq"`)
}

// ackSeq acknowledges everything in the inbox up to seq, whether it was pushed or read by sync.
func (d *Device) ackSeq(seq uint64) *Error { return d.ackUpTo(&d.inbox, "seq", seq) }

// ackUpTo acknowledges everything in s up to n, which the client calls field.
func (d *Device) ackUpTo(s *stream, field string, n uint64) *Error {
	u := d.u
	u.mu.Lock()
	if s.group != nil && n >= s.next && d.e.peers != nil { // it moves past what was not handed over: see relearn
		spans := s.group.spans
		u.mu.Unlock()
		if _, err := d.relearn(s.group, spans); err != nil {
			return d.e.failed("member", err)
		}
		u.mu.Lock()
	}
	if head := d.head(s); n > head { // what a client has from sync may be ahead of the deliverer
		u.mu.Unlock()
		stored, err := d.storedHead(s)
		if err != nil {
			return d.e.failed("head", err)
		}
		u.mu.Lock()
		if s.group != nil {
			s.group.learn(s.group.spans, stored)
		} else {
			u.head = max(u.head, stored)
		}
		if head = d.head(s); n > head {
			d.pump()
			u.mu.Unlock()
			return errorf(BadRequest, "%s: %d is in the future, the head is %d", field, n, head)
		}
	}
	unseen := max(s.next-1, d.reached(s)) // acknowledged without having been pushed: the window does not know those
	d.acked(func(of *stream, x *slot) bool { return of == s && x.seq <= n })
	if n >= s.next {
		s.skipTo(n + 1)
		if s.win.len() == 0 {
			d.moveCursor(s, n)
		}
	}
	tell := s.group == nil || s.group.feed.receipts()
	src := s.source()
	d.pump()
	u.mu.Unlock()
	if n > unseen && tell {
		return d.noteUnseen(src, unseen, n)
	}
	return nil
}

// storedHead is the highest number of s in the store.
func (d *Device) storedHead(s *stream) (uint64, error) {
	if g := s.group; g != nil {
		st, err := d.e.store.Conversation(d.e.ctx, d.u.name, g.conv)
		return st.Head, err
	}
	box, err := d.e.store.Inbox(d.e.ctx, d.u.name)
	return box.Head, err
}

// acked marks the messages in the windows that match; u.mu is held.
func (d *Device) acked(match func(*stream, *slot) bool) {
	n := 0
	for k := range d.streams() {
		s := d.stream(k)
		for i := range s.win.len() {
			if x := s.win.at(i); !x.acked && match(s, x) {
				x.acked = true
				n++
			}
		}
		d.advance(s)
	}
	d.e.m.Acked(n)
	if d.resting {
		d.wake()
	}
}

// wake has what the peer has taken sent again in its turn, after a rest; u.mu is held.
func (d *Device) wake() {
	d.resting = false
	due := time.Now().UnixMilli() + d.backoff(0).Milliseconds()
	for k := range d.streams() {
		s := d.stream(k)
		for i := range s.win.len() {
			if x := s.win.at(i); x.due != 0 {
				x.attempt, x.due = 0, due
			}
		}
	}
	d.arm(due)
}

// noteUnseen moves the delivered watermarks over the entries of src in (after, upto], which the device had from sync, and
// tells their senders.
func (d *Device) noteUnseen(src source, after, upto uint64) *Error {
	var page []store.Entry
	for after < upto {
		var bound uint64
		var err error
		page, bound, err = d.e.read(d.e.ctx, d.u.name, src, after, upto, 256, page[:0])
		if err != nil {
			return d.e.failed("log", err)
		}
		now := time.Now().UnixMilli()
		d.u.mu.Lock()
		for _, e := range page {
			if bound = number(e); bound > upto {
				break
			}
			if e.From != d.u.name && !e.Expired(now) { // sync leaves out what has expired
				d.u.noteDelivered(e.Conv, e.Cseq)
				d.e.receipts.add(d.e, e.From, receipt{conv: e.Conv, cseq: e.Cseq, id: e.ID, cid: e.Cid, state: "delivered", by: d.u.name})
			}
		}
		d.e.markDirty(d.u)
		d.u.mu.Unlock()
		after = max(bound, after+1)
	}
	return nil
}

// ackIDs acknowledges single messages. The cursor moves when those before them are acknowledged, too.
func (d *Device) ackIDs(ids []string) *Error {
	if len(ids) == 0 || len(ids) > maxIDs {
		return errorf(BadRequest, "ids: want 1 to %d, found %d", maxIDs, len(ids))
	}
	want := make(map[int64]bool, len(ids))
	for _, s := range ids {
		id, err := strconv.ParseInt(s, 10, 64)
		if err != nil || id <= 0 {
			return errorf(BadRequest, "ids: %q is not a message id", clip(s))
		}
		want[id] = true
	}
	d.u.mu.Lock()
	d.acked(func(_ *stream, x *slot) bool {
		found := want[x.id]
		if found {
			delete(want, x.id)
		}
		return found
	})
	head := d.u.head
	d.pump()
	d.u.mu.Unlock()
	for id := range want {
		if err := d.ackUnpushed(id, head); err != nil {
			return err
		}
	}
	return nil
}

// ackUnpushed acknowledges a message that is not in the window: acknowledged before, or read by sync.
func (d *Device) ackUnpushed(id int64, head uint64) *Error {
	seq, err := d.seqOf(id, head)
	if err != nil {
		return err
	}
	if seq == 0 {
		return d.ackUnknown(id)
	}
	d.u.mu.Lock()
	defer d.u.mu.Unlock()
	s := &d.inbox
	if seq < s.next {
		d.acked(func(of *stream, x *slot) bool { return of == s && x.seq == seq })
		return nil
	}
	if len(s.early) >= d.e.cfg.Load().Window {
		return errorf(BadRequest, "ids: too many acknowledged out of order; acknowledge by seq")
	}
	if s.early == nil {
		s.early = map[uint64]bool{}
	}
	s.early[seq] = true
	return nil
}

// ackUnknown takes the id of a message that is neither in the inbox nor in a window. Where the user reads large groups it may
// be of their logs, and acknowledged before: an acknowledgement that comes twice is none to be refused, and one that came
// too early is made good by conv and cseq.
func (d *Device) ackUnknown(id int64) *Error {
	d.u.mu.Lock()
	groups := len(d.groups) > 0
	d.u.mu.Unlock()
	last, err := d.e.store.LastID(d.e.ctx)
	switch {
	case err != nil:
		return d.e.failed("last id", err)
	case groups && id <= last:
		return nil
	}
	return errorf(NotFound, "no message %d was sent to you", id)
}

// seqOf finds a message in the inbox by its id: ids rise with seq. It returns 0 where there is none.
func (d *Device) seqOf(id int64, head uint64) (uint64, *Error) {
	box, err := d.e.store.Inbox(d.e.ctx, d.u.name)
	if err != nil {
		return 0, d.e.failed("inbox", err)
	}
	lo, hi := box.Trimmed+1, head
	var page []store.Entry
	for lo <= hi {
		mid := lo + (hi-lo)/2
		page, err = d.e.store.ReadInbox(d.e.ctx, d.u.name, mid-1, 1, page[:0])
		if err != nil {
			return 0, d.e.failed("inbox", err)
		}
		switch {
		case len(page) == 0:
			return 0, nil
		case page[0].ID == id:
			return page[0].Seq, nil
		case page[0].ID < id:
			lo = page[0].Seq + 1
		default:
			hi = mid - 1
		}
	}
	return 0, nil
}

// ackConv acknowledges what was pushed of a conversation up to cseq; of a large group also what was read by sync.
func (d *Device) ackConv(conv store.Conv, cseq uint64) *Error {
	d.u.mu.Lock()
	g := d.group(conv)
	d.u.mu.Unlock()
	if g != nil {
		if err := d.ackUpTo(&g.stream, "cseq", cseq); err != nil {
			return err
		}
	} else {
		st, err := d.e.store.Conversation(d.e.ctx, d.u.name, conv)
		if err != nil {
			return d.e.failed("conversation", err)
		}
		if cseq > st.Head {
			return errorf(BadRequest, "cseq: %d is in the future, the head is %d", cseq, st.Head)
		}
	}
	d.u.mu.Lock()
	defer d.u.mu.Unlock()
	d.acked(func(_ *stream, x *slot) bool { return x.conv == conv && x.cseq <= cseq })
	d.pump()
	return nil
}

// cmdSync reads the inbox, or the log of a large group. Nothing moves by it: the client acknowledges what it has taken.
func (d *Device) cmdSync(c *command, _ Ticket) ([]byte, *Error) {
	limit, rerr := c.limit(100, 500)
	if rerr != nil {
		return nil, rerr
	}
	if id, ok := strings.CutPrefix(c.Conv, "g/"); ok { // all other conversations lie in the inbox
		g, rerr := d.e.knownGroup(d.e.ctx, id)
		if rerr != nil {
			return nil, rerr
		}
		if g.LargeFrom != 0 {
			return d.syncGroup(c, &g, limit)
		}
	}
	d.u.mu.Lock()
	after := d.inbox.cursor
	groups := d.groupsBehind()
	d.u.mu.Unlock()
	if c.After != nil {
		after = *c.After
	}
	box, err := d.e.store.Inbox(d.e.ctx, d.u.name)
	if err != nil {
		return nil, d.e.failed("inbox", err)
	}
	page, err := d.e.store.ReadInbox(d.e.ctx, d.u.name, after, limit, nil)
	if err != nil {
		return nil, d.e.failed("inbox", err)
	}
	trimmed := box.Trimmed
	if len(page) > 0 {
		trimmed = page[0].Seq - 1 // age may have taken more than the state says
	}
	last := max(after, box.Trimmed)
	if n := len(page); n > 0 {
		last = page[n-1].Seq
	}
	b := d.appendPage(nil, page, box.Head, last)
	if after < trimmed {
		b = appendTrimmed(b, after+1, trimmed)
	}
	return append(append(b, groups...), '}'), nil
}

// groupsBehind is the field "groups" of the reply to sync: the large groups of which the device has not acknowledged
// all. It is empty where there are none; u.mu is held.
func (d *Device) groupsBehind() (b []byte) {
	for _, g := range d.groups {
		if g.cursor >= g.head {
			continue
		}
		if b == nil {
			b = append(b, `,"groups":[`...)
		} else {
			b = append(b, ',')
		}
		b = append(b, `{"conv":`...)
		b = appendString(b, string(g.conv))
		b = appendUint(b, "cursor", g.cursor)
		b = append(appendUint(b, "head", g.head), '}')
	}
	if b != nil {
		b = append(b, ']')
	}
	return b
}

// syncGroup reads a large group's log, as far as the user was there for it. What it had before it was large lies in the
// inbox.
func (d *Device) syncGroup(c *command, g *store.Group, limit int) ([]byte, *Error) {
	e, user, conv := d.e, d.u.name, store.GroupConv(g.ID)
	st, err := e.store.Conversation(e.ctx, user, conv) // before the spans: see store.Stream
	if err != nil {
		return nil, e.failed("conversation", err)
	}
	m, rerr := e.member(e.ctx, g.ID, user)
	switch {
	case rerr != nil:
		return nil, rerr
	case len(m.Spans) == 0:
		return nil, errNotMember(g.ID)
	}
	after := st.Head
	d.u.mu.Lock()
	if s := d.group(conv); s != nil {
		after = s.cursor
	}
	d.u.mu.Unlock()
	if c.After != nil {
		after = *c.After
	}
	after = max(after, g.LargeFrom-1)
	src := source{conv: conv, spans: m.Spans}
	first := nextVisible(src.spans, after+1)
	var page []store.Entry
	last, size := after, 0
	for last < st.Head && len(page) < limit && size < store.PageBytes {
		n := len(page)
		page, last, err = e.read(e.ctx, user, src, last, st.Head, limit-n, page)
		if err != nil {
			return nil, e.failed("history", err)
		}
		if len(page) > n {
			last = page[len(page)-1].Cseq
		}
		for _, m := range page[n:] {
			size += len(m.Body)
		}
	}
	b := d.appendPage(nil, page, st.Head, last)
	gone := last
	if len(page) > 0 {
		gone = page[0].Cseq - 1
	}
	if after < st.Head && gone >= first && e.lost(e.ctx, src, first-1) {
		b = appendTrimmed(b, first, gone)
	}
	return append(b, '}'), nil
}

// appendPage appends the reply to sync, but for its end: what has expired is left out, last is where to go on.
func (d *Device) appendPage(b []byte, page []store.Entry, head, last uint64) []byte {
	now := time.Now().UnixMilli()
	b = append(b, `{"messages":[`...)
	n := 0
	for _, e := range page {
		if e.Expired(now) {
			continue
		}
		if n++; n > 1 {
			b = append(b, ',')
		}
		b = AppendMessage(b, d.u.name, e.Seq, e.Message, 0)
	}
	b = append(b, ']')
	b = appendUint(b, "head", head)
	b = appendBool(b, "more", last < head)
	b = appendUint(b, "next", last)
	return appendField(b, "epoch", d.e.store.Epoch())
}

func appendTrimmed(b []byte, from, to uint64) []byte {
	b = append(b, `,"trimmed":{"from":`...)
	b = strconv.AppendUint(b, from, 10)
	return append(appendUint(b, "to", to), '}')
}

func appendBool(b []byte, key string, val bool) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':')
	return strconv.AppendBool(b, val)
}

// cmdDeviceList lists the user's devices.
func (d *Device) cmdDeviceList(*command, Ticket) ([]byte, *Error) {
	list, err := d.e.devices(d.e.ctx, d.u)
	if err != nil {
		return nil, d.e.failed("devices", err)
	}
	b := []byte{'['}
	for i, s := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"device":`...)
		b = appendString(b, s.Device.Device)
		b = appendBool(b, "online", s.online)
		b = appendUint(b, "cursor", s.Cursor)
		b = appendInt(b, "last_seen", s.LastSeen)
		b = appendField(b, "profile", s.Profile)
		b = append(b, '}')
	}
	return append(b, ']'), nil
}

// cmdDeviceRemove ends a device's session, and its connection if it has one.
func (d *Device) cmdDeviceRemove(c *command, _ Ticket) ([]byte, *Error) {
	if err := c.need(c.Device != "", "device"); err != nil {
		return nil, err
	}
	list, err := d.e.devices(d.e.ctx, d.u)
	if err != nil {
		return nil, d.e.failed("devices", err)
	}
	if !slices.ContainsFunc(list, func(s deviceState) bool { return s.Device.Device == c.Device }) {
		return nil, errorf(NotFound, "you have no device %q", clip(c.Device))
	}
	d.e.removeDevice(d.u, c.Device)
	if p := d.e.peers; p != nil {
		p.ask(d.e.ctx, bus.User, d.u.name, append([]byte{sayRemove}, c.Device...))
		if err := d.e.Flush(d.e.ctx); err != nil { // before the device comes back, to whichever node
			return nil, d.e.failed("device", err)
		}
	}
	return nil, nil
}

// removeDevice forgets a device's cursor and tells all of the user's devices, the removed one first of all.
func (e *Engine) removeDevice(u *user, id string) {
	b := append([]byte(nil), `{"type":"device.removed"`...)
	b = append(appendField(b, "device", id), '}')
	e.notify(u.name, Events, b, nil)
	u.mu.Lock()
	u.noteEnded(id, 0)
	e.markDirty(u)
	removed := u.expel(id)
	u.mu.Unlock()
	if removed != nil {
		removed.link.Close(CloseRemoved)
	}
}

// expel takes the session from a device that is connected, and returns it; nil: it is not connected here. u.mu is held.
func (u *user) expel(id string) (d *Device) {
	delete(u.offline, id)
	for _, x := range u.devices {
		if x.id == id {
			d = x
			d.session.Persistent = false
		}
	}
	return d
}

// removeHere is the part of removeDevice on another node than that which was asked for it. The answer is empty where the
// device is not connected to this one.
func (e *Engine) removeHere(name, id string) []byte {
	u := e.user(name)
	if u == nil {
		return nil
	}
	u.mu.Lock()
	d := u.expel(id)
	u.mu.Unlock()
	if d == nil {
		return nil
	}
	d.link.Close(CloseRemoved)
	return []byte{1}
}
