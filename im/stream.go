package im

import (
	"context"
	"errors"
	"maps"

	"github.com/mqim/mqim/store"
)

// stream is a device's place in a log: the inbox of its user, or that of a large group. Messages have numbers in it: the
// seq, or in a group's log the cseq. It is guarded by u.mu.
type stream struct {
	group  *groupStream // nil: the inbox
	cursor uint64       // everything up to it is acknowledged
	next   uint64       // the next to hand over; in a group's log, where the user may see one
	win    window       // handed over; the first is not acknowledged
	early  map[uint64]bool
}

// groupStream is what a stream of a large group has beside. It belongs to one device for as long as that is connected.
type groupStream struct {
	stream
	d     *Device
	conv  store.Conv
	base  uint64       // place of number 0
	head  uint64       // highest cseq known to be durable that the user may see
	spans []store.Span // what the user may see; replaced, never changed
	// flushed is the cursor that the flusher has taken; 0: it has taken none.
	flushed uint64
	feed    *feed
	at      int // in feed.streams, -1: not there; guarded by feeds.mu
}

// A place is what the link knows a message by: which of the device's streams it came in, and its number there. The inbox
// is stream 0, so that there the place is the seq.
const (
	placeBits  = 48
	maxStreams = 1<<(64-placeBits) - 1 // large groups per connection
)

func (s *stream) place(n uint64) uint64 {
	if s.group != nil {
		return s.group.base | n
	}
	return n
}

// number is the number of a message in its stream: what is not read from the inbox has no seq.
func number(e store.Entry) uint64 {
	if e.Seq != 0 {
		return e.Seq
	}
	return e.Cseq
}

// goTo has n, or what comes after it, handed over next.
func (s *stream) goTo(n uint64) {
	if s.group != nil {
		n = nextVisible(s.group.spans, n)
	}
	s.next = n
}

// skipTo is goTo past what may have been acknowledged early.
func (s *stream) skipTo(n uint64) {
	s.goTo(n)
	maps.DeleteFunc(s.early, func(x uint64, _ bool) bool { return x < s.next })
}

// nextVisible is the first number not below n that lies within one of the spans; n where there is none.
func nextVisible(spans []store.Span, n uint64) uint64 {
	for _, s := range spans {
		if n < s.From {
			return s.From
		}
		if s.Has(n) {
			return n
		}
	}
	return n
}

// learn takes in what is known of the group now. News may come twice, and out of order.
func (g *groupStream) learn(spans []store.Span, head uint64) {
	if changedAt(spans) > changedAt(g.spans) {
		g.spans = spans
	}
	g.head = max(g.head, head)
	if last := g.spans[len(g.spans)-1]; last.To != 0 {
		g.head = min(g.head, last.To)
	}
	g.goTo(g.next)
}

// changedAt is the cseq of the last message that made spans what they are.
func changedAt(spans []store.Span) uint64 {
	last := spans[len(spans)-1]
	return max(last.From, last.To)
}

// end closes the last span, when the group is dissolved.
func (g *groupStream) end(cseq uint64) {
	g.spans = store.CloseSpan(g.spans, cseq)
}

// source is what a stream reads.
type source struct {
	conv  store.Conv // "": the inbox
	spans []store.Span
}

func (s *stream) source() source {
	if s.group == nil {
		return source{}
	}
	return source{conv: s.group.conv, spans: s.group.spans}
}

// read appends to dst what user has in src after the number given, up to bound ≤ head, at most limit entries. When none
// comes there is nothing to be seen up to bound.
func (e *Engine) read(
	ctx context.Context, user string, src source, after, head uint64, limit int, dst []store.Entry,
) (page []store.Entry, bound uint64, err error) {
	if src.conv == "" {
		page, err = e.store.ReadInbox(ctx, user, after, limit, dst)
		return page, head, err
	}
	r := store.Range{After: nextVisible(src.spans, after+1) - 1, Forward: true, Limit: limit}
	bound = head
	for _, s := range src.spans {
		if s.Has(r.After+1) && s.To != 0 {
			bound = min(bound, s.To)
		}
	}
	if r.After >= bound {
		return dst, bound, nil
	}
	r.Before = bound + 1
	list, err := e.store.History(ctx, user, src.conv, r)
	for _, m := range list {
		dst = append(dst, store.Entry{Message: m})
	}
	return dst, bound, err
}

// lost reports whether the message after the number given is gone from the log, rather than deleted by its reader.
func (e *Engine) lost(ctx context.Context, src source, after uint64) bool {
	if src.conv == "" {
		return true // an inbox shows what was deleted
	}
	_, err := e.store.Message(ctx, src.conv, after+1)
	return errors.Is(err, store.ErrNotFound)
}

// streams is how many streams the device has; the first is the inbox.
func (d *Device) streams() int { return 1 + len(d.groups) }

func (d *Device) stream(i int) *stream {
	if i == 0 {
		return &d.inbox
	}
	return &d.groups[i-1].stream
}

// group is the stream of a large group, nil where the device has none; u.mu is held.
func (d *Device) group(conv store.Conv) *groupStream {
	for _, g := range d.groups {
		if g.conv == conv {
			return g
		}
	}
	return nil
}

// head is the highest number of s that is known to be durable; u.mu is held.
func (d *Device) head(s *stream) uint64 {
	if s.group != nil {
		return s.group.head
	}
	return d.u.head
}

// find finds a message in the windows; u.mu is held.
func (d *Device) find(place uint64) (s *stream, i int, ok bool) {
	k := int(place >> placeBits)
	if k >= d.streams() {
		return nil, 0, false
	}
	s = d.stream(k)
	n := place & (1<<placeBits - 1)
	i = s.win.search(n)
	return s, i, i < s.win.len() && s.win.at(i).seq == n
}

// behind is a stream with something to hand over: the inbox before all others, and those by turns. u.mu is held.
func (d *Device) behind() *stream {
	if d.inbox.next <= d.u.head {
		return &d.inbox
	}
	for i := range d.groups {
		if g := d.groups[(d.turn+i)%len(d.groups)]; g.next <= g.head {
			return &g.stream
		}
	}
	return nil
}

// advance moves the cursor of s over what is acknowledged; u.mu is held.
func (d *Device) advance(s *stream) {
	n := 0
	var news *slot // a run of one sender's messages makes one receipt
	for n < s.win.len() && s.win.at(n).acked {
		if x := s.win.at(n); d.isNews(s, x) {
			if news != nil && (news.conv != x.conv || news.from != x.from) {
				d.noteAcked(s, news)
			}
			news = x
		}
		n++
	}
	if n == 0 {
		return
	}
	if news != nil {
		d.noteAcked(s, news)
	}
	s.win.drop(n)
	d.held -= n
	if s.win.len() == 0 {
		d.moveCursor(s, s.next-1)
	} else {
		d.moveCursor(s, s.win.at(0).seq-1) // over a gap, too
	}
}

// moveCursor moves the device's cursor and the user's with it; u.mu is held.
func (d *Device) moveCursor(s *stream, to uint64) {
	u := d.u
	s.cursor = max(s.cursor, to)
	if g := s.group; g == nil {
		u.cursor = max(u.cursor, s.cursor)
	} else if s.cursor > u.large[g.conv] {
		u.large[g.conv] = s.cursor
		u.noteDelivered(g.conv, s.cursor)
	}
	d.e.markDirty(u)
}

// reached is how far in s any of the user's devices has acknowledged; u.mu is held.
func (d *Device) reached(s *stream) uint64 {
	if s.group != nil {
		return d.u.large[s.group.conv]
	}
	return d.u.cursor
}

// isNews reports whether this is the first of the user's devices to acknowledge what another user has sent; u.mu is held.
func (d *Device) isNews(s *stream, x *slot) bool {
	return !x.passed && x.from != d.u.name && x.seq > d.reached(s)
}

// noteAcked moves the delivered watermark and tells the sender; u.mu is held.
func (d *Device) noteAcked(s *stream, x *slot) {
	if s.group != nil && !s.group.feed.receipts() {
		return // moveCursor moves the watermark
	}
	d.u.noteDelivered(x.conv, x.cseq)
	d.e.receipts.add(d.e, x.from, receipt{conv: x.conv, cseq: x.cseq, id: x.id, cid: x.cid, state: "delivered", by: d.u.name})
}
