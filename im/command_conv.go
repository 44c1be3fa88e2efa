package im

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/mqim/mqim/store"
)

// convArg reads the command's conversation and what of it the user may read, and whether there is a cseq where one is needed.
func (d *Device) convArg(c *command, cseq bool) (store.Conv, []store.Span, *Error) {
	if err := c.need(c.Conv != "", "conv"); err != nil {
		return "", nil, err
	}
	if cseq {
		if err := c.need(c.Cseq != nil, "cseq"); err != nil {
			return "", nil, err
		}
	}
	conv, err := ParseAddress(d.u.name, c.Conv)
	if err != nil {
		return "", nil, err
	}
	spans, err := d.e.readable(d.e.ctx, d.u.name, conv)
	return conv, spans, err
}

// message returns a message; NotFound where there is none, or none any more.
func (e *Engine) message(conv store.Conv, cseq uint64) (*store.Message, *Error) {
	m, err := e.store.Message(e.ctx, conv, cseq)
	if errors.Is(err, store.ErrNotFound) {
		return nil, errNoMessage(cseq)
	}
	if err != nil {
		return nil, e.failed("message", err)
	}
	return m, nil
}

func errNoMessage(cseq uint64) *Error {
	return errorf(NotFound, "you see no message with cseq %d in this conversation", cseq)
}

// commit has op stored in its turn among the device's messages and answers when it is durable; then runs after.
func (d *Device) commit(c *command, t Ticket, op func(*store.Batch), then func() *Error) *Error {
	p := &pending{op: op, cost: 4 * len(c.payload)} // op holds it decoded, and as a notice
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

// cmdRead moves the read watermark, forward only, and tells the senders and the user's other devices.
func (d *Device) cmdRead(c *command, t Ticket) ([]byte, *Error) {
	conv, _, err := d.convArg(c, true)
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
	senders, err := d.sendersRead(conv, st.Read, *c.Cseq)
	if err != nil {
		return nil, err
	}
	return nil, d.commit(c, t, func(b *store.Batch) { b.Reads = append(b.Reads, mark) }, func() *Error {
		if !mark.Moved {
			return nil
		}
		for to, rc := range senders {
			d.e.receipts.add(d.e, to, rc)
		}
		b := append([]byte(nil), `{"type":"read"`...)
		b = appendConv(b, d.u.name, conv)
		b = append(appendUint(b, "cseq", mark.Cseq), '}')
		d.e.notify(d.u.name, Events, b, d)
		return nil
	})
}

// receiptSpan is how many messages back from the one that is read their senders are told of it.
const receiptSpan = 200

// sendersRead are those who are told when the user reads what lies after old, up to upto: the peer or, in a group whose
// receipts name the readers, whoever sent one of the last receiptSpan messages of it, each with its last one.
func (d *Device) sendersRead(conv store.Conv, old, upto uint64) (map[string]receipt, *Error) {
	id, isGroup := conv.Group()
	rc := receipt{conv: conv, cseq: upto, state: "read", by: d.u.name}
	if !isGroup {
		if peer := conv.Peer(d.u.name); peer != d.u.name {
			return map[string]receipt{peer: rc}, nil
		}
		return nil, nil
	}
	g, err := d.e.store.Group(d.e.ctx, id)
	if err != nil {
		return nil, d.e.failed("group", err)
	}
	if g.ReceiptMode() != store.ReceiptsAll {
		return nil, nil
	}
	m, rerr := d.e.member(d.e.ctx, id, d.u.name)
	if rerr != nil {
		return nil, rerr
	}
	list, err := d.e.store.History(d.e.ctx, d.u.name, conv,
		store.Range{After: old, Before: upto + 1, Limit: receiptSpan})
	if err != nil {
		return nil, d.e.failed("history", err)
	}
	senders := map[string]receipt{}
	for _, x := range list {
		if x.From == d.u.name || !m.Has(x.Cseq) {
			continue
		}
		rc.cseq, rc.id, rc.cid = x.Cseq, x.ID, x.Cid
		senders[x.From] = rc
	}
	return senders, nil
}

// cmdHistory reads a conversation's log.
func (d *Device) cmdHistory(c *command, _ Ticket) ([]byte, *Error) {
	conv, spans, err := d.convArg(c, false)
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
	ctx := d.e.ctx
	if !r.Forward { // whoever goes forward wants to come to the end, whoever goes back looks around
		ctx = store.Relaxed(ctx, d.u.name)
	}
	list, serr := d.e.historyWithin(ctx, d.u.name, conv, spans, r)
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

// historyWithin reads a page of a log within spans; what lies between them is not read. Like the store's pages it ends
// early when its bodies reach store.PageBytes.
func (e *Engine) historyWithin(
	ctx context.Context, user string, conv store.Conv, spans []store.Span, r store.Range,
) (page []*store.Message, err error) {
	size := 0
	for i := range spans {
		s := spans[i]
		if !r.Forward {
			s = spans[len(spans)-1-i]
		}
		part := store.Range{After: max(r.After, s.From-1), Before: r.Before, Forward: r.Forward, Limit: r.Limit - len(page)}
		if s.To != 0 && (r.Before == 0 || s.To < r.Before) {
			part.Before = s.To + 1
		}
		if part.Before != 0 && part.Before-1 <= part.After {
			continue
		}
		list, err := e.store.History(ctx, user, conv, part)
		if err != nil {
			return nil, err
		}
		for _, m := range list {
			size += len(m.Body)
		}
		if r.Forward {
			page = append(page, list...)
		} else {
			page = append(list, page...)
		}
		if len(page) >= r.Limit || size >= store.PageBytes {
			break
		}
	}
	return page, nil
}

// cmdConversations lists the user's conversations, the one with the newest message first.
func (d *Device) cmdConversations(c *command, t Ticket) ([]byte, *Error) {
	limit, rerr := c.limit(50, 200)
	if rerr != nil {
		return nil, rerr
	}
	list, next, err := d.e.store.ListConversations(store.Relaxed(d.e.ctx, d.u.name), d.u.name, c.Cursor, limit)
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

// cmdRecall puts a tombstone in the place of a message.
func (d *Device) cmdRecall(c *command, t Ticket) ([]byte, *Error) {
	conv, _, err := d.convArg(c, true)
	if err != nil {
		return nil, err
	}
	m, err := d.e.message(conv, *c.Cseq)
	if err != nil {
		return nil, err
	}
	if err := d.mayRecall(m); err != nil {
		return nil, err
	}
	if m.Recalled {
		return nil, nil
	}
	to, err := d.e.audienceOf(d.e.ctx, conv)
	if err != nil {
		return nil, err
	}
	r := &store.Recall{Conv: conv, Cseq: *c.Cseq}
	news := recallOf(m, d.u.name)
	return nil, d.commit(c, t, func(b *store.Batch) {
		b.Recalls = append(b.Recalls, r)
		news.keep(b, to.notices())
	}, func() *Error {
		if r.Err != nil {
			return d.e.failed("recall", r.Err)
		}
		d.e.tell(&to, &news)
		return nil
	})
}

// mayRecall refuses whoever may not recall a message: in a group its sender, for a while, and the owner and admins may,
// between two users the sender alone. What says who belongs to a group stands for ever.
func (d *Device) mayRecall(m *store.Message) *Error {
	role := store.Ordinary
	if id, isGroup := m.Conv.Group(); isGroup {
		x, err := d.e.member(d.e.ctx, id, d.u.name)
		if err != nil {
			return err
		}
		if role = x.Role; role == store.NoRole {
			return errNotMember(id)
		}
		if m.Type == "sys.group" {
			return errorf(Forbidden, "a change of the group cannot be recalled")
		}
	}
	window := d.e.cfg.Load().RecallWindow
	switch {
	case role >= store.Admin:
	case m.From != d.u.name:
		return errorf(Forbidden, "only the sender may recall a message")
	case !m.Recalled && window > 0 && time.Now().UnixMilli()-m.TS > window.Milliseconds():
		return errorf(Expired, "a message may be recalled for %s", window)
	}
	return nil
}

// cmdDelete hides messages from the user, on all devices.
func (d *Device) cmdDelete(c *command, t Ticket) ([]byte, *Error) {
	conv, _, err := d.convArg(c, false)
	if err != nil {
		return nil, err
	}
	if n := len(c.Cseqs); n == 0 || n > maxIDs {
		return nil, errorf(BadRequest, "cseqs: want 1 to %d, found %d", maxIDs, n)
	}
	del := store.Delete{User: d.u.name, Conv: conv, Cseqs: c.Cseqs}
	news := deletionOf(conv, c.Cseqs)
	return nil, d.commit(c, t, func(b *store.Batch) {
		b.Deletes = append(b.Deletes, del)
		news.keep(b, []string{d.u.name})
	}, func() *Error {
		d.e.notify(d.u.name, Events, news.event(d.u.name), d)
		return nil
	})
}
