package im

import (
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"github.com/mqim/mqim/store"
)

// conv reads the command's conversation and cseq.
func (d *Device) convArg(c *command, cseq bool) (store.Conv, *Error) {
	if err := c.need(c.Conv != "", "conv"); err != nil {
		return "", err
	}
	if cseq {
		if err := c.need(c.Cseq != nil, "cseq"); err != nil {
			return "", err
		}
	}
	conv, err := ParseAddress(d.u.name, c.Conv)
	if err == nil && conv.Peer(d.u.name) == "" {
		err = errorf(NotFound, "there is no group %q", clip(c.Conv[2:]))
	}
	return conv, err
}

// commit has op stored in its turn among the device's messages and answers when it is durable; then runs after.
func (d *Device) commit(c *command, t Ticket, op func(*store.Batch), then func() *Error) *Error {
	p := &pending{op: op}
	p.after = func(err error) {
		var rerr *Error
		if errors.Is(err, store.ErrUnknownOutcome) {
			d.link.Close(CloseStore) // no answer rather than a wrong one
			return
		}
		if err != nil {
			rerr = d.e.failed(c.name, err)
		} else if then != nil {
			rerr = then()
		}
		if rerr != nil {
			d.refuse(t, c.Rid, "", rerr)
		} else {
			d.accept(t, c.Rid, nil)
		}
		d.link.Kick()
	}
	if d.e.store.Healthy() != nil || !d.e.queue.put(p) {
		return errUnavailable
	}
	return errAnswered
}

// cmdRead moves the read watermark, forward only, and tells the peer and the user's other devices.
func (d *Device) cmdRead(c *command, t Ticket) ([]byte, *Error) {
	conv, err := d.convArg(c, true)
	if err != nil {
		return nil, err
	}
	st, serr := d.e.store.Conversation(d.e.ctx, d.u.name, conv)
	if serr != nil {
		return nil, d.e.failed("conversation", serr)
	}
	if *c.Cseq > st.Head {
		return nil, errorf(BadRequest, "cseq: %d is in the future, the head is %d", *c.Cseq, st.Head)
	}
	if *c.Cseq <= st.Read {
		return nil, nil
	}
	mark := &store.Mark{User: d.u.name, Conv: conv, Cseq: *c.Cseq}
	return nil, d.commit(c, t, func(b *store.Batch) { b.Reads = append(b.Reads, mark) }, func() *Error {
		if !mark.Moved {
			return nil
		}
		if peer := conv.Peer(d.u.name); peer != d.u.name {
			d.e.receipts.add(d.e, peer, receipt{conv: conv, cseq: mark.Cseq, state: "read", by: d.u.name})
		}
		b := append([]byte(nil), `{"type":"read"`...)
		b = appendConv(b, d.u.name, conv)
		b = append(appendUint(b, "cseq", mark.Cseq), '}')
		d.u.notify(d.e, Events, b, d)
		return nil
	})
}

// cmdHistory reads a conversation's log.
func (d *Device) cmdHistory(c *command, _ Ticket) ([]byte, *Error) {
	conv, err := d.convArg(c, false)
	if err != nil {
		return nil, err
	}
	limit, err := c.limit(50, 500)
	if err != nil {
		return nil, err
	}
	r := store.Range{Limit: limit + 1} // one more, to know whether there are more
	switch {
	case c.After != nil && c.Before != nil:
		return nil, errorf(BadRequest, "history: want before or after, not both")
	case c.After != nil:
		r.After, r.Forward = *c.After, true
	case c.Before != nil:
		if r.Before = *c.Before; r.Before == 0 {
			return nil, errorf(BadRequest, "before: want a cseq, 1 or more")
		}
	}
	list, serr := d.e.store.History(d.e.ctx, d.u.name, conv, r)
	if serr != nil {
		return nil, d.e.failed("history", serr)
	}
	more := len(list) > limit
	if more && r.Forward {
		list = list[:limit]
	} else if more {
		list = list[1:]
	}
	now := time.Now().UnixMilli()
	b := append([]byte(nil), `{"messages":[`...)
	n, size := 0, 0
	for _, m := range list {
		size += len(m.Body)
		if m.Expired(now) {
			continue
		}
		if n++; n > 1 {
			b = append(b, ',')
		}
		b = AppendMessage(b, d.u.name, 0, m, 0)
	}
	b = append(b, ']')
	more = more || size >= store.PageBytes // it may have ended early
	return append(appendBool(b, "more", more), '}'), nil
}

// cmdConversations lists the user's conversations, the one with the newest message first.
func (d *Device) cmdConversations(c *command, t Ticket) ([]byte, *Error) {
	limit, rerr := c.limit(50, 200)
	if rerr != nil {
		return nil, rerr
	}
	list, next, err := d.e.store.ListConversations(d.e.ctx, d.u.name, c.Cursor, limit)
	if err != nil {
		return nil, d.e.failed("conversations", err)
	}
	now := time.Now().UnixMilli()
	b := []byte{'['}
	for i := range list {
		st := &list[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"head":`...)
		b = strconv.AppendUint(b, st.Head, 10)
		b = appendConv(b, d.u.name, st.Conv)
		b = appendUint(b, "read", st.Read)
		b = appendUint(b, "unread", st.Unread)
		if peer := st.Conv.Peer(d.u.name); peer != "" {
			b = appendUint(b, "peer_delivered", max(st.PeerDeliv, d.e.unflushedMark(peer, st.Conv)))
			b = appendUint(b, "peer_read", st.PeerRead)
		}
		if st.Last != nil && !st.Last.Expired(now) {
			b = append(b, `,"last":`...)
			b = AppendMessage(b, d.u.name, 0, st.Last, 0)
		}
		b = append(b, '}')
	}
	b = append(b, ']')
	return d.acceptPage(c, t, b, next)
}

// cmdReceipts tells who has a message and who has read it.
func (d *Device) cmdReceipts(c *command, _ Ticket) ([]byte, *Error) {
	conv, err := d.convArg(c, true)
	if err != nil {
		return nil, err
	}
	m, serr := d.e.store.Message(d.e.ctx, conv, *c.Cseq)
	if serr != nil {
		return nil, d.e.failed("message", serr)
	}
	to := conv.Peer(m.From)
	var delivered, read []string
	if to != m.From {
		st, serr := d.e.store.Conversation(d.e.ctx, to, conv)
		if serr != nil {
			return nil, d.e.failed("conversation", serr)
		}
		if st.Read >= *c.Cseq {
			read = append(read, to)
		}
		if max(st.Delivered, d.e.unflushedMark(to, conv)) >= *c.Cseq || read != nil {
			delivered = append(delivered, to)
		}
	}
	b := append([]byte(nil), `{"delivered":`...)
	b = strconv.AppendInt(b, int64(len(delivered)), 10)
	b = appendInt(b, "read", int64(len(read)))
	b = appendStrings(b, "delivered_by", delivered)
	return append(appendStrings(b, "read_by", read), '}'), nil
}

func appendStrings(b []byte, key string, list []string) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, `":[`...)
	for i, s := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, s)
	}
	return append(b, ']')
}

// cmdRecall puts a tombstone in the place of a message that the user sent.
func (d *Device) cmdRecall(c *command, t Ticket) ([]byte, *Error) {
	conv, err := d.convArg(c, true)
	if err != nil {
		return nil, err
	}
	m, serr := d.e.store.Message(d.e.ctx, conv, *c.Cseq)
	switch {
	case serr != nil:
		return nil, d.e.failed("message", serr)
	case m.From != d.u.name:
		return nil, errorf(Forbidden, "only the sender may recall a message")
	case m.Recalled:
		return nil, nil
	}
	r := &store.Recall{Conv: conv, Cseq: *c.Cseq}
	return nil, d.commit(c, t, func(b *store.Batch) { b.Recalls = append(b.Recalls, r) }, func() *Error {
		if r.Err != nil {
			return d.e.failed("recall", r.Err)
		}
		a, b, _ := conv.Users()
		for _, name := range compact(a, b) {
			if u := d.e.user(name); u != nil && u.events.Load() > 0 {
				ev := append([]byte(nil), `{"type":"recall"`...)
				ev = appendConv(ev, name, conv)
				ev = appendUint(ev, "cseq", r.Cseq)
				ev = append(ev, `,"id":"`...)
				ev = strconv.AppendInt(ev, m.ID, 10)
				ev = append(ev, '"')
				ev = appendField(ev, "by", d.u.name)
				u.notify(d.e, Events, append(appendInt(ev, "ts", time.Now().UnixMilli()), '}'), nil)
			}
		}
		return nil
	})
}

func compact(a, b string) []string {
	if a == b {
		return []string{a}
	}
	return []string{a, b}
}

// cmdDelete hides messages from the user, on all devices.
func (d *Device) cmdDelete(c *command, t Ticket) ([]byte, *Error) {
	conv, err := d.convArg(c, false)
	if err != nil {
		return nil, err
	}
	if n := len(c.Cseqs); n == 0 || n > maxIDs {
		return nil, errorf(BadRequest, "cseqs: want 1 to %d, found %d", maxIDs, n)
	}
	del := store.Delete{User: d.u.name, Conv: conv, Cseqs: c.Cseqs}
	return nil, d.commit(c, t, func(b *store.Batch) { b.Deletes = append(b.Deletes, del) }, func() *Error {
		ev := append([]byte(nil), `{"type":"delete"`...)
		ev = appendConv(ev, d.u.name, conv)
		list, _ := json.Marshal(c.Cseqs)
		ev = append(append(ev, `,"cseqs":`...), list...)
		d.u.notify(d.e, Events, append(ev, '}'), d)
		return nil
	})
}

// unflushedMark is a delivered watermark that may not have reached the store yet, 0 where there is none.
func (e *Engine) unflushedMark(name string, conv store.Conv) uint64 {
	u := e.user(name)
	if u == nil {
		return 0
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return max(u.delivered[conv], u.flushing.delivered[conv])
}
