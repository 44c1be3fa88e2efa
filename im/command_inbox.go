package im

import (
	"slices"
	"strconv"
	"time"

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

// ackSeq acknowledges everything up to seq, whether it was pushed or read by sync.
func (d *Device) ackSeq(seq uint64) *Error {
	u := d.u
	u.mu.Lock()
	if head := u.head; seq > head { // what a client has from sync may be ahead of the deliverer
		u.mu.Unlock()
		box, err := d.e.store.Inbox(d.e.ctx, u.name)
		if err != nil {
			return d.e.failed("inbox", err)
		}
		if head = max(head, box.Head); seq > head {
			return errorf(BadRequest, "seq: %d is in the future, the head is %d", seq, head)
		}
		u.mu.Lock()
		u.head = max(u.head, head)
	}
	unseen := max(d.next-1, u.cursor) // acknowledged without having been pushed: the window does not know those
	d.acked(func(s *slot) bool { return s.seq <= seq })
	if seq >= d.next {
		d.skipTo(seq + 1)
		if d.win.len() == 0 {
			d.moveCursor(seq)
		}
	}
	d.pump()
	u.mu.Unlock()
	if seq > unseen {
		return d.noteUnseen(unseen, seq)
	}
	return nil
}

// acked marks the messages in the window that match; u.mu is held.
func (d *Device) acked(match func(*slot) bool) {
	n := 0
	for i := range d.win.len() {
		if s := d.win.at(i); !s.acked && match(s) {
			s.acked = true
			n++
		}
	}
	d.e.m.Acked(n)
	d.advance()
	if d.resting {
		d.resting = false
		now := time.Now().UnixMilli()
		for i := range d.win.len() {
			if s := d.win.at(i); s.due != 0 { // those that the peer has taken
				s.attempt = 0
				s.due = now + d.backoff(0).Milliseconds()
			}
		}
		d.arm(now + d.backoff(0).Milliseconds())
	}
}

// noteUnseen moves the delivered watermarks over the inbox entries in (after, upto], which the device had from sync.
func (d *Device) noteUnseen(after, upto uint64) *Error {
	var page []store.Entry
	for after < upto {
		var err error
		page, err = d.e.store.ReadInbox(d.e.ctx, d.u.name, after, 256, page[:0])
		if err != nil {
			return d.e.failed("inbox", err)
		}
		if len(page) == 0 {
			return nil
		}
		now := time.Now().UnixMilli()
		d.u.mu.Lock()
		for _, e := range page {
			if e.Seq > upto {
				break
			}
			if e.From != d.u.name && !e.Expired(now) { // sync leaves out what has expired
				d.u.noteDelivered(e.Conv, e.Cseq)
				d.e.receipts.add(d.e, e.From, receipt{conv: e.Conv, cseq: e.Cseq, id: e.ID, cid: e.Cid, state: "delivered", by: d.u.name})
			}
		}
		d.e.markDirty(d.u)
		d.u.mu.Unlock()
		after = page[len(page)-1].Seq
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
	d.acked(func(s *slot) bool {
		found := want[s.id]
		if found {
			delete(want, s.id)
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
		return errorf(NotFound, "no message %d was sent to you", id)
	}
	d.u.mu.Lock()
	defer d.u.mu.Unlock()
	if seq < d.next {
		d.acked(func(s *slot) bool { return s.seq == seq })
		return nil
	}
	if len(d.early) >= d.e.cfg.Load().Window {
		return errorf(BadRequest, "ids: too many acknowledged out of order; acknowledge by seq")
	}
	if d.early == nil {
		d.early = map[uint64]bool{}
	}
	d.early[seq] = true
	return nil
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

// ackConv acknowledges what was pushed of a conversation up to cseq.
func (d *Device) ackConv(conv store.Conv, cseq uint64) *Error {
	st, err := d.e.store.Conversation(d.e.ctx, d.u.name, conv)
	if err != nil {
		return d.e.failed("conversation", err)
	}
	if cseq > st.Head {
		return errorf(BadRequest, "cseq: %d is in the future, the head is %d", cseq, st.Head)
	}
	d.u.mu.Lock()
	defer d.u.mu.Unlock()
	d.acked(func(s *slot) bool { return s.conv == conv && s.cseq <= cseq })
	d.pump()
	return nil
}

// cmdSync reads the inbox. Nothing moves by it: the client acknowledges what it has taken.
func (d *Device) cmdSync(c *command, _ Ticket) ([]byte, *Error) {
	limit, rerr := c.limit(100, 500)
	if rerr != nil {
		return nil, rerr
	}
	d.u.mu.Lock()
	after := d.cursor
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
	now := time.Now().UnixMilli()
	last := max(after, box.Trimmed)
	b := append([]byte(nil), `{"messages":[`...)
	n := 0
	for _, e := range page {
		last = e.Seq
		if e.Expired(now) {
			continue
		}
		if n++; n > 1 {
			b = append(b, ',')
		}
		b = AppendMessage(b, d.u.name, e.Seq, e.Message, 0)
	}
	b = append(b, ']')
	b = appendUint(b, "head", box.Head)
	b = appendBool(b, "more", last < box.Head)
	b = appendUint(b, "next", last)
	b = appendField(b, "epoch", d.e.store.Epoch())
	trimmed := box.Trimmed
	if len(page) > 0 {
		trimmed = page[0].Seq - 1 // age may have taken more than the state says
	}
	if after < trimmed {
		b = append(b, `,"trimmed":{"from":`...)
		b = strconv.AppendUint(b, after+1, 10)
		b = appendUint(b, "to", trimmed)
		b = append(b, '}')
	}
	return append(b, '}'), nil
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
	return nil, nil
}

// removeDevice forgets a device's cursor and tells all of the user's devices, the removed one first of all.
func (e *Engine) removeDevice(u *user, id string) {
	b := append([]byte(nil), `{"type":"device.removed"`...)
	b = append(appendField(b, "device", id), '}')
	u.notify(e, Events, b, nil)
	var removed *Device
	u.mu.Lock()
	u.noteEnded(id)
	for _, x := range u.devices {
		if x.id == id {
			removed = x
			x.session.Persistent = false
		}
	}
	e.markDirty(u)
	u.mu.Unlock()
	if removed != nil {
		removed.link.Close(CloseRemoved)
	}
}
