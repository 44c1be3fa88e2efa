package pebble

import (
	"context"
	"errors"
	"fmt"
	"slices"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
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
	if uint64(c.count) != r.count {
		return nil, s.corrupt("%s: chunk from cseq %d, lsn %d has %d messages, want %d", conv, r.first, r.lsn, c.count, r.count)
	}
	ms, err := c.messages(conv, int(from-r.first), int(to-r.first)+1)
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
	h := history{s: s, it: it, user: user, conv: conv, limit: r.Limit, hidden: v.deleted > 0, durable: s.durable.Load()}
	if r.After > 0 || r.Forward {
		err = h.forward(r.After)
	} else {
		err = h.backward(r.Before)
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

func (h *history) forward(after uint64) error {
	if after == ^uint64(0) {
		return nil
	}
	ok := h.it.SeekLT(keyNum(nil, tabChunk, string(h.conv), max(after+2, after)))
	if !ok {
		ok = h.it.First()
	}
	for ; ok && !h.full(); ok = h.it.Next() {
		r, err := h.s.iterRef(h.it, h.conv)
		if err != nil {
			return err
		}
		if r.lsn > h.durable {
			return nil
		}
		from := max(r.first, after+1)
		if from > r.last() {
			continue
		}
		to := r.last()
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

func (h *history) backward(before uint64) error {
	if before == 0 {
		before = ^uint64(0)
	}
	ok := h.it.SeekLT(keyNum(nil, tabChunk, string(h.conv), before))
	for ; ok && !h.full(); ok = h.it.Prev() {
		r, err := h.s.iterRef(h.it, h.conv)
		if err != nil {
			return err
		}
		if r.lsn > h.durable {
			continue
		}
		from, to := r.first, min(r.last(), before-1)
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
	v, err := s.view(user, conv)
	if err != nil {
		return out, err
	}
	head, ok, err := s.lastRef(conv, s.durable.Load())
	if !ok || err != nil {
		return out, err
	}
	out.Head, out.Read, out.Delivered = head.last(), v.read, v.delivered
	if peer := conv.Peer(user); peer != "" {
		p, err := s.view(peer, conv)
		if err != nil {
			return out, err
		}
		out.PeerRead, out.PeerDeliv = p.read, p.delivered
	}
	if out.Unread, err = s.unread(user, conv, &head, &v); err != nil {
		return out, err
	}
	out.Last, err = s.newest(user, conv, out.Head, v.deleted > 0)
	return out, err
}

// newest is the newest message among the last few that the user has not deleted, nil if there is none.
func (s *Store) newest(user string, conv store.Conv, head uint64, deleted bool) (*store.Message, error) {
	if deleted {
		low := head - min(head, lastFew) + 1
		gone, err := s.marks(user, conv, low, head)
		if err != nil {
			return nil, err
		}
		for i := len(gone) - 1; i >= 0 && gone[i] == head; i-- {
			head--
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

// unread counts the messages after the read watermark that others sent and that are neither recalled nor deleted.
// Its cost does not depend on how many there are, but on how many of them were recalled or deleted.
func (s *Store) unread(user string, conv store.Conv, head *chunkRef, v *view) (uint64, error) {
	_, _, direct := conv.Users()
	if v.read >= head.last() {
		return 0, nil
	}
	var own uint64
	var err error
	read := v.read
	if s.opts.Retention.HistoryTTL > 0 {
		first, ok, err := s.firstRef(conv)
		if err != nil {
			return 0, err
		}
		if ok {
			read = max(read, first.first-1) // what retention has removed cannot be read any more
		}
	}
	if direct {
		own, err = s.ownDirect(user, conv, head, read)
	} else {
		own, err = s.ownGroup(user, conv, head, v, read)
	}
	if err != nil {
		return 0, err
	}
	gone, err := s.goneAfter(user, conv, read, head.last(), v.deleted > 0)
	if err != nil {
		return 0, err
	}
	n := head.last() - read
	return n - min(n, own+gone), nil
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

// ownGroup is how many of the messages read+1 … head of a group the user sent. v counts what is assigned; what is
// not yet durable is taken off again.
func (s *Store) ownGroup(user string, conv store.Conv, head *chunkRef, v *view, read uint64) (uint64, error) {
	own := v.own - min(v.own, v.ownRead)
	if own == 0 {
		return 0, nil
	}
	if v.lastOwn > head.last() {
		n, err := s.sentIn(user, conv, head.last()+1, v.lastOwn)
		if err != nil {
			return 0, err
		}
		own -= min(own, n)
	}
	if read > v.read {
		n, err := s.sentIn(user, conv, read+1, head.last())
		return n, err
	}
	return own, nil
}

// sentIn counts the user's messages in from … to, durable or not, by walking over them.
func (s *Store) sentIn(user string, conv store.Conv, from, to uint64) (uint64, error) {
	it, err := s.names(tabChunk, string(conv))
	if err != nil {
		return 0, err
	}
	defer it.Close()
	var n uint64
	for ok := it.SeekLT(keyNum(nil, tabChunk, string(conv), from+1)) || it.First(); ok; ok = it.Next() {
		r, err := s.iterRef(it, conv)
		if err != nil {
			return 0, err
		}
		if r.first > to {
			break
		}
		if r.last() < from {
			continue
		}
		k, err := s.sentBy(user, conv, &r, max(from, r.first), min(to, r.last()))
		if err != nil {
			return 0, err
		}
		n += k
	}
	return n, s.wrap(it.Error(), "chunks of %s", conv)
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
	m := c.walk()
	for cseq := r.first; cseq <= to; cseq++ {
		if !m.next() {
			return 0, s.wrap(errChunk, "%s: chunk from cseq %d, lsn %d", conv, r.first, r.lsn)
		}
		if cseq >= from && string(m.sender()) == user {
			n++
		}
	}
	return n, nil
}

// goneAfter counts the messages of others in read+1 … head that are recalled or that the user has deleted.
func (s *Store) goneAfter(user string, conv store.Conv, read, head uint64, deleted bool) (n uint64, err error) {
	it, err := s.names(tabRecall, string(conv))
	if err != nil {
		return 0, err
	}
	defer it.Close()
	var recalled []uint64
	for ok := it.SeekGE(keyNum(nil, tabRecall, string(conv), read+1)); ok && tail(it.Key()) <= head; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return 0, s.wrap(err, "recalls in %s", conv)
		}
		recalled = append(recalled, tail(it.Key()))
		if string(v) != user {
			n++
		}
	}
	if err := it.Error(); err != nil || !deleted {
		return n, s.wrap(err, "recalls in %s", conv)
	}
	x, err := s.db.NewIter(&pdb.IterOptions{
		LowerBound: keyDeleted(nil, user, conv, read+1), UpperBound: append(keyDeleted(nil, user, conv, head), 0),
	})
	if err != nil {
		return 0, s.wrap(err, "deletions of %q", user)
	}
	defer x.Close()
	for ok := x.First(); ok; ok = x.Next() {
		v, err := x.ValueAndErr()
		if err != nil {
			return 0, s.wrap(err, "deletions of %q", user)
		}
		if _, twice := slices.BinarySearch(recalled, tail(x.Key())); !twice && string(v) == markOther {
			n++
		}
	}
	return n, s.wrap(x.Error(), "deletions of %q", user)
}
