package pebble

import (
	"context"
	"errors"
	"fmt"
	"slices"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// Message returns one message.
func (s *Store) Message(ctx context.Context, conv store.Conv, cseq uint64) (*store.Message, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	return s.message(conv, cseq)
}

func (s *Store) message(conv store.Conv, cseq uint64) (*store.Message, error) {
	r, ok, err := s.refAt(conv, cseq)
	if err != nil {
		return nil, err
	}
	if !ok || cseq < r.first || r.lsn > s.durable.Load() {
		return nil, fmt.Errorf("message %d of %s: %w", cseq, conv, store.ErrNotFound)
	}
	ms, err := s.slice(conv, &r, cseq, cseq)
	if errors.Is(err, errGone) {
		return nil, fmt.Errorf("message %d of %s: %w", cseq, conv, store.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return &ms[0], nil
}

// slice reads the messages from … to of a chunk.
func (s *Store) slice(conv store.Conv, r *chunkRef, from, to uint64) ([]store.Message, error) {
	c, err := s.load(conv, r.lsn, r.first)
	if err != nil {
		return nil, err
	}
	defer c.close()
	if uint64(c.Count) != r.count {
		return nil, s.corrupt("%s: chunk from cseq %d, lsn %d has %d messages, want %d", conv, r.first, r.lsn, c.Count, r.count)
	}
	ms, err := c.Messages(conv, int(from-r.first), int(to-r.first)+1)
	return ms, s.wrap(err, "%s: chunk from cseq %d, lsn %d", conv, r.first, r.lsn)
}

// marks are the cseqs with a deletion mark of the user in from … to, ascending.
func (s *Store) marks(user string, conv store.Conv, from, to uint64) ([]uint64, error) {
	it, err := s.db.NewIter(&pdb.IterOptions{
		LowerBound: keyDeleted(nil, user, conv, from), UpperBound: append(keyDeleted(nil, user, conv, to), 0),
	})
	if err != nil {
		return nil, s.wrap(err, "deletions of %q", user)
	}
	defer it.Close()
	var out []uint64
	for ok := it.First(); ok; ok = it.Next() {
		out = append(out, tail(it.Key()))
	}
	return out, s.wrap(it.Error(), "deletions of %q", user)
}

// History reads a page of a conversation's log.
func (s *Store) History(ctx context.Context, user string, conv store.Conv, r store.Range) ([]*store.Message, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	v, err := s.view(user, conv)
	if err != nil {
		return nil, err
	}
	it, err := s.names(tabChunk, string(conv))
	if err != nil {
		return nil, err
	}
	defer it.Close()
	h := history{
		s: s, it: it, user: user, conv: conv, limit: r.Limit, hidden: v.deleted > 0, durable: s.durable.Load(),
		after: r.After, before: r.Before,
	}
	if h.before == 0 {
		h.before = ^uint64(0)
	}
	switch {
	case h.after >= h.before-1:
	case r.Forward:
		err = h.forward()
	default:
		err = h.backward()
	}
	if err != nil {
		return nil, err
	}
	return h.out, s.wrap(it.Error(), "chunks of %s", conv)
}

// history is a page of a conversation's log being filled.
type history struct {
	s       *Store
	it      *pdb.Iterator
	user    string
	conv    store.Conv
	after   uint64 // after < cseq < before, of which there are some
	before  uint64
	limit   int
	hidden  bool // the user has deleted some
	durable uint64
	out     []*store.Message
	bytes   int
}

func (h *history) full() bool { return len(h.out) >= h.limit || h.bytes >= pageBytes }

func (h *history) take(ms []*store.Message) {
	h.out = append(h.out, ms...)
	for _, m := range ms {
		h.bytes += len(m.Body)
	}
}

func (h *history) forward() error {
	ok := h.it.SeekLT(keyNum(nil, tabChunk, string(h.conv), h.after+2))
	if !ok {
		ok = h.it.First()
	}
	for ; ok && !h.full(); ok = h.it.Next() {
		r, err := h.s.iterRef(h.it, h.conv)
		if err != nil {
			return err
		}
		if r.lsn > h.durable || r.first >= h.before {
			return nil
		}
		from, to := max(r.first, h.after+1), min(r.last(), h.before-1)
		if from > to {
			continue
		}
		if !h.hidden {
			to = min(to, from+uint64(h.limit-len(h.out))-1)
		}
		ms, err := h.visible(&r, from, to)
		if err != nil {
			return err
		}
		h.take(ms[:min(len(ms), h.limit-len(h.out))])
	}
	return nil
}

func (h *history) backward() error {
	ok := h.it.SeekLT(keyNum(nil, tabChunk, string(h.conv), h.before))
	for ; ok && !h.full(); ok = h.it.Prev() {
		r, err := h.s.iterRef(h.it, h.conv)
		if err != nil {
			return err
		}
		if r.lsn > h.durable {
			continue
		}
		from, to := max(r.first, h.after+1), min(r.last(), h.before-1)
		if from > to {
			break
		}
		missing := uint64(h.limit - len(h.out))
		if !h.hidden && to-from+1 > missing {
			from = to - missing + 1
		}
		ms, err := h.visible(&r, from, to)
		if err != nil {
			return err
		}
		slices.Reverse(ms)
		h.take(ms[:min(len(ms), int(missing))])
	}
	slices.Reverse(h.out)
	return nil
}

// visible reads from … to of a chunk without what the user has deleted.
func (h *history) visible(r *chunkRef, from, to uint64) ([]*store.Message, error) {
	ms, err := h.s.slice(h.conv, r, from, to)
	if errors.Is(err, errGone) {
		return nil, nil // retention has removed it since the iterator was made
	}
	if err != nil {
		return nil, err
	}
	var gone []uint64
	if h.hidden {
		if gone, err = h.s.marks(h.user, h.conv, from, to); err != nil {
			return nil, err
		}
	}
	out := make([]*store.Message, 0, len(ms))
	for i := range ms {
		if len(gone) > 0 && gone[0] == ms[i].Cseq {
			gone = gone[1:]
			continue
		}
		out = append(out, &ms[i])
	}
	return out, nil
}

// lastFew is how far back Conversation.Last is looked for.
const lastFew = 16

// Conversation returns the state of one conversation.
func (s *Store) Conversation(ctx context.Context, user string, conv store.Conv) (store.Conversation, error) {
	if err := s.enter(ctx); err != nil {
		return store.Conversation{}, err
	}
	defer s.life.RUnlock()
	return s.conversation(user, conv)
}

func (s *Store) conversation(user string, conv store.Conv) (store.Conversation, error) {
	out := store.Conversation{Conv: conv}
	head, ok, err := s.lastRef(conv, s.durable.Load())
	if !ok || err != nil {
		return out, err
	}
	out.Head = head.last()
	spans := []store.Span{{From: 1, To: out.Head}}
	group, inGroup := conv.Group()
	if inGroup { // looked at after the head, so that nothing is shown to one who has left before it
		m, err := s.member(group, user)
		if err != nil {
			return out, err
		}
		spans = store.Clip(m.Spans, 1, out.Head)
		if len(spans) == 0 {
			return store.Conversation{Conv: conv}, nil
		}
		out.Head = spans[len(spans)-1].To
	}
	v, err := s.view(user, conv)
	if err != nil {
		return out, err
	}
	out.Read, out.Delivered = v.read, v.delivered
	if peer := conv.Peer(user); peer != "" {
		p, err := s.view(peer, conv)
		if err != nil {
			return out, err
		}
		out.PeerRead, out.PeerDeliv = p.read, p.delivered
	}
	if out.Unread, err = s.unread(user, &head, spans, &out, v.deleted > 0); err != nil {
		return out, err
	}
	out.Last, err = s.newest(user, conv, spans, v.deleted > 0)
	return out, err
}

// newest is the newest message of spans, which are closed, that the user has not deleted: one of the last few before
// their end, nil if there is none.
func (s *Store) newest(user string, conv store.Conv, spans []store.Span, deleted bool) (*store.Message, error) {
	head := spans[len(spans)-1].To
	if deleted {
		low := head - min(head, lastFew) + 1
		gone, err := s.marks(user, conv, low, head)
		if err != nil {
			return nil, err
		}
		m := store.Member{Spans: spans}
		for ; head >= low; head-- {
			n := len(gone)
			hidden := n > 0 && gone[n-1] == head
			if hidden {
				gone = gone[:n-1]
			}
			if !hidden && m.Has(head) {
				break
			}
		}
		if head < low {
			return nil, nil
		}
	}
	m, err := s.message(conv, head)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return m, err
}

// unread counts the messages of spans after the read watermark that others sent and that are neither recalled nor
// deleted. Its cost does not depend on how many there are, but on how many of them were recalled or deleted.
func (s *Store) unread(
	user string, head *chunkRef, spans []store.Span, c *store.Conversation, deleted bool,
) (uint64, error) {
	if c.Read >= c.Head {
		return 0, nil
	}
	read := c.Read
	if s.opts.Retention.HistoryTTL > 0 {
		first, ok, err := s.firstRef(c.Conv)
		if err != nil {
			return 0, err
		}
		if ok {
			read = max(read, first.first-1) // what retention has removed cannot be read any more
		}
	}
	spans = store.Clip(spans, read+1, c.Head)
	if len(spans) == 0 {
		return 0, nil
	}
	var n, own uint64
	for _, x := range spans {
		n += x.To - x.From + 1
	}
	var err error
	if _, inGroup := c.Conv.Group(); inGroup {
		own, err = s.ownGroup(user, c.Conv, spans)
	} else {
		own, err = s.ownDirect(user, c.Conv, head, read)
	}
	if err != nil {
		return 0, err
	}
	gone, err := s.goneIn(user, c.Conv, spans, deleted)
	return n - min(n, own+gone), err
}

// ownDirect is how many of the messages read+1 … head of a direct conversation the user sent.
func (s *Store) ownDirect(user string, conv store.Conv, head *chunkRef, read uint64) (uint64, error) {
	a, b, _ := conv.Users()
	count := func(r *chunkRef) (before, within uint64) {
		switch user {
		case a:
			return r.cumA, r.inA
		case b:
			return r.cumB, r.inB
		}
		return 0, 0
	}
	before, within := count(head)
	total := before + within
	if read == 0 {
		return total, nil
	}
	r, ok, err := s.refAt(conv, read)
	if err != nil {
		return 0, err
	}
	if !ok {
		if r, ok, err = s.firstRef(conv); !ok || err != nil {
			return 0, err
		}
		before, _ = count(&r)
		return total - before, nil
	}
	before, within = count(&r)
	switch {
	case within == 0:
	case read == r.last():
		before += within
	default:
		n, err := s.sentBy(user, conv, &r, r.first, read)
		if err != nil {
			return 0, err
		}
		before += n
	}
	return total - before, nil
}

// ownGroup is how many of the messages of spans the user sent to a group.
func (s *Store) ownGroup(user string, conv store.Conv, spans []store.Span) (n uint64, err error) {
	it, err := s.owns(user, conv)
	if err != nil {
		return 0, err
	}
	defer it.Close()
	for _, x := range spans {
		upTo, err := s.sentUpTo(it, user, conv, x.To)
		if err != nil {
			return 0, err
		}
		if upTo == 0 {
			continue
		}
		before, err := s.sentUpTo(it, user, conv, x.From-1)
		if err != nil {
			return 0, err
		}
		n += upTo - before
	}
	return n, nil
}

// sentBy counts the user's messages among from … to of a chunk.
func (s *Store) sentBy(user string, conv store.Conv, r *chunkRef, from, to uint64) (uint64, error) {
	c, err := s.load(conv, r.lsn, r.first)
	if errors.Is(err, errGone) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer c.close()
	var n uint64
	m := c.Walk()
	for cseq := r.first; cseq <= to; cseq++ {
		if !m.Next() {
			return 0, s.wrap(wire.ErrChunk, "%s: chunk from cseq %d, lsn %d", conv, r.first, r.lsn)
		}
		if cseq >= from && string(m.Sender()) == user {
			n++
		}
	}
	return n, nil
}

// goneIn counts the messages of others in spans that are recalled or that the user has deleted.
func (s *Store) goneIn(user string, conv store.Conv, spans []store.Span, deleted bool) (n uint64, err error) {
	it, err := s.names(tabRecall, string(conv))
	if err != nil {
		return 0, err
	}
	defer it.Close()
	var recalled []uint64
	for _, x := range spans {
		for ok := it.SeekGE(keyNum(nil, tabRecall, string(conv), x.From)); ok && tail(it.Key()) <= x.To; ok = it.Next() {
			v, err := it.ValueAndErr()
			if err != nil {
				return 0, s.wrap(err, "recalls in %s", conv)
			}
			recalled = append(recalled, tail(it.Key()))
			if string(v) != user {
				n++
			}
		}
	}
	if err := it.Error(); err != nil || !deleted {
		return n, s.wrap(err, "recalls in %s", conv)
	}
	lower := keyDeletedConv(nil, user, conv)
	x, err := s.db.NewIter(&pdb.IterOptions{LowerBound: lower, UpperBound: after(lower)})
	if err != nil {
		return 0, s.wrap(err, "deletions of %q", user)
	}
	defer x.Close()
	for _, p := range spans {
		for ok := x.SeekGE(keyDeleted(nil, user, conv, p.From)); ok && tail(x.Key()) <= p.To; ok = x.Next() {
			v, err := x.ValueAndErr()
			if err != nil {
				return 0, s.wrap(err, "deletions of %q", user)
			}
			if _, twice := slices.BinarySearch(recalled, tail(x.Key())); !twice && string(v) == markOther {
				n++
			}
		}
	}
	return n, s.wrap(x.Error(), "deletions of %q", user)
}
