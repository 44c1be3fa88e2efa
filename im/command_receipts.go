package im

import (
	"context"
	"slices"
	"strconv"

	"github.com/mqim/mqim/store"
)

// cmdReceipts tells who has a message and who has read it.
func (d *Device) cmdReceipts(c *command, _ Ticket) ([]byte, *Error) {
	conv, spans, err := d.convArg(c, true)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(spans, func(s store.Span) bool { return s.Has(*c.Cseq) }) {
		return nil, errNoMessage(*c.Cseq)
	}
	m, err := d.e.message(conv, *c.Cseq)
	if err != nil {
		return nil, err
	}
	var rc store.Receipts
	names := true
	if id, isGroup := conv.Group(); isGroup {
		x, merr := d.e.member(d.e.ctx, id, d.u.name)
		switch {
		case merr != nil:
			return nil, merr
		case x.Role == store.NoRole: // who may read what it was there for, but not learn who reads it today
			return nil, errNotMember(id)
		}
		rc, names, err = d.e.groupReceipts(d.e.ctx, id, m)
	} else {
		rc, err = d.e.directReceipts(d.e.ctx, m)
	}
	if err != nil {
		return nil, err
	}
	b := append([]byte(nil), `{"delivered":`...)
	b = strconv.AppendUint(b, rc.Delivered, 10)
	b = appendUint(b, "read", rc.Read)
	if names {
		b = appendStrings(b, "delivered_by", rc.DeliveredBy)
		b = appendStrings(b, "read_by", rc.ReadBy)
	}
	return append(b, '}'), nil
}

// directReceipts are the receipts of a message to one user.
func (e *Engine) directReceipts(ctx context.Context, m *store.Message) (rc store.Receipts, _ *Error) {
	to := m.Conv.Peer(m.From)
	if to == m.From {
		return rc, nil
	}
	unflushed := e.unflushedMark(to, m.Conv) // first: it is forgotten only when the store has it
	st, err := e.store.Conversation(ctx, to, m.Conv)
	if err != nil {
		return rc, e.failed("conversation", err)
	}
	if st.Read >= m.Cseq {
		rc.Read, rc.ReadBy = 1, []string{to}
	}
	if max(st.Delivered, unflushed, st.Read) >= m.Cseq {
		rc.Delivered, rc.DeliveredBy = 1, []string{to}
	}
	return rc, nil
}

// groupReceipts are the receipts of a message to a group, with or without names. Those of a large group lag what is
// acknowledged by Config.FlushInterval.
func (e *Engine) groupReceipts(ctx context.Context, id string, m *store.Message) (rc store.Receipts, names bool, _ *Error) {
	g, err := e.store.Group(ctx, id)
	if err != nil {
		return rc, false, e.failed("group", err)
	}
	mode, small := g.ReceiptMode(), g.LargeFrom == 0
	if mode == store.ReceiptsNone {
		return rc, false, errorf(Forbidden, "group %q gives no receipts", clip(id))
	}
	var have []string // who has it as far as the engine knows; first: that is forgotten only when the store has it
	if small {
		rerr := e.eachMember(ctx, id, func(x *store.Member) {
			if x.User != m.From && x.Has(m.Cseq) && e.unflushedMark(x.User, m.Conv) >= m.Cseq {
				have = append(have, x.User)
			}
		})
		if rerr != nil {
			return rc, false, rerr
		}
	}
	if !small {
		defer e.walk()()
	}
	if rc, err = e.store.Receipts(ctx, id, m.Cseq, m.From, small); err != nil {
		return rc, false, e.failed("receipts", err)
	}
	if small {
		have = append(append(have, rc.DeliveredBy...), rc.ReadBy...)
		slices.Sort(have)
		rc.DeliveredBy = slices.Compact(have)
		rc.Delivered = uint64(len(rc.DeliveredBy))
	}
	rc.Delivered = max(rc.Delivered, rc.Read)
	return rc, small && mode == store.ReceiptsAll, nil
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
