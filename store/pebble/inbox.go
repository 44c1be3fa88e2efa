package pebble

import (
	"context"
	"errors"
	"time"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// pageBytes is when a page ends early.
const pageBytes = store.PageBytes

// Inbox tells head and trimming; it is exact, however far Maintain has come.
func (s *Store) Inbox(ctx context.Context, user string) (store.Inbox, error) {
	if err := s.enter(ctx); err != nil {
		return store.Inbox{}, err
	}
	defer s.life.RUnlock()
	it, err := s.names(tabInbox, user)
	if err != nil {
		return store.Inbox{}, err
	}
	defer it.Close()
	return s.inboxState(it, user, 0)
}

// inboxState is the state of an inbox for somebody who has read up to after: what is trimmed below that is not
// looked at.
func (s *Store) inboxState(it *pdb.Iterator, user string, after uint64) (store.Inbox, error) {
	f, err := s.floor(user)
	if err != nil {
		return store.Inbox{}, err
	}
	b := store.Inbox{Head: f.head, Trimmed: f.trimmed}
	r, ok, err := s.seekLast(it, user, s.durable.Load())
	if err != nil {
		return b, err
	}
	if ok {
		b.Head = max(b.Head, r.last())
	}
	if n := s.opts.Retention.InboxMessages; n > 0 && b.Head > n {
		b.Trimmed = max(b.Trimmed, b.Head-n)
	}
	if s.inboxTTL > 0 && b.Trimmed < b.Head {
		cutoff := time.Now().Add(-s.inboxTTL).UnixMilli()
		from := max(after, b.Trimmed) + 1
		live, err := s.firstLive(it, user, from, b.Head, cutoff)
		if err != nil {
			return b, err
		}
		if live > from {
			b.Trimmed = live - 1
		}
	}
	return b, nil
}

// firstLive is the first seq >= from, at most head+1, that does not belong to the expired front of the inbox: the
// entries before the first one that was accepted at cutoff or later. Records carry the greatest TS so far, which
// never falls, so the place is found by bisection.
func (s *Store) firstLive(it *pdb.Iterator, user string, from, head uint64, cutoff int64) (uint64, error) {
	lo, hi := from, head+1
	for probe := from; lo < hi; probe = lo + (hi-lo)/2 {
		if !it.SeekLT(keyNum(nil, tabInbox, user, probe+1)) && !it.First() {
			return hi, s.wrap(it.Error(), "inbox of %q", user)
		}
		r, err := s.iterRecord(it, user)
		if err != nil {
			return 0, err
		}
		if r.maxTS < cutoff {
			lo = max(r.last(), probe) + 1
			continue
		}
		if r.first > probe {
			lo = max(lo, r.first) // what is in front of it has been removed
		}
		border := r.minTS < cutoff
		if border && it.Prev() {
			prev, err := s.iterRecord(it, user)
			if err != nil {
				return 0, err
			}
			border = prev.maxTS < cutoff
		}
		if border {
			n, err := s.liveIn(it, user, r.first, cutoff)
			return min(max(lo, n), hi), err
		}
		hi = min(hi, max(lo, r.first))
	}
	return lo, s.wrap(it.Error(), "inbox of %q", user)
}

// liveIn finds the first live entry of the record at first, through which the border runs.
func (s *Store) liveIn(it *pdb.Iterator, user string, first uint64, cutoff int64) (uint64, error) {
	if !it.SeekGE(keyNum(nil, tabInbox, user, first)) {
		return first, s.wrap(it.Error(), "inbox of %q", user)
	}
	rec, err := s.iterRecord(it, user)
	if err != nil {
		return 0, err
	}
	seq := rec.first
	runs := rec.walk()
	for runs.Next() {
		n, err := s.expiredIn(&runs.Run, cutoff)
		if err != nil {
			return 0, err
		}
		seq += n
		if n < runs.Count {
			break
		}
	}
	if runs.D.Bad {
		return 0, s.corrupt("inbox of %q, seq %d", user, rec.first)
	}
	return seq, nil
}

// expiredIn is how many messages at the front of a run were accepted before cutoff.
func (s *Store) expiredIn(r *wire.Run, cutoff int64) (uint64, error) {
	c, err := s.load(r.Conv, r.LSN, r.Cseq-r.Index)
	if errors.Is(err, errGone) {
		return r.Count, nil
	}
	if err != nil {
		return 0, err
	}
	defer c.close()
	m := c.Walk()
	for i := uint64(0); i < r.Index+r.Count; i++ {
		if !m.Next() {
			return 0, s.wrap(wire.ErrChunk, "%s: lsn %d", r.Conv, r.LSN)
		}
		if i >= r.Index && m.TS >= cutoff {
			return i - r.Index, nil
		}
	}
	return r.Count, nil
}

// ReadInbox reads a page of an inbox.
func (s *Store) ReadInbox(
	ctx context.Context, user string, after uint64, limit int, dst []store.Entry,
) ([]store.Entry, error) {
	if err := s.enter(ctx); err != nil {
		return dst, err
	}
	defer s.life.RUnlock()
	it, err := s.names(tabInbox, user)
	if err != nil {
		return dst, err
	}
	defer it.Close()
	b, err := s.inboxState(it, user, after)
	if err != nil {
		return dst, err
	}
	if max(after, b.Trimmed) >= b.Head {
		return dst, nil
	}
	p := page{s: s, user: user, next: max(after, b.Trimmed) + 1, limit: limit, dst: dst}
	defer p.close()
	ok := it.SeekLT(keyNum(nil, tabInbox, user, p.next+1))
	if !ok {
		ok = it.First()
	}
	for ; ok && !p.full() && p.next <= b.Head; ok = it.Next() {
		r, err := s.iterRecord(it, user)
		if err != nil {
			return dst, err
		}
		if err := p.add(&r, b.Head); err != nil {
			return dst, err
		}
	}
	return p.dst, s.wrap(it.Error(), "inbox of %q", user)
}

// page is a page of an inbox being filled.
type page struct {
	s      *Store
	user   string
	next   uint64 // seq wanted
	limit  int
	bytes  int
	n      int
	dst    []store.Entry
	log    *pdb.Iterator // over the log; nil before the first use
	hidden *pdb.Iterator // over the user's deletion marks; nil before the first use
	none   bool          // the user has deleted nothing
}

func (p *page) full() bool { return p.n >= p.limit || p.bytes >= pageBytes }

func (p *page) close() {
	for _, it := range []*pdb.Iterator{p.hidden, p.log} {
		if it != nil {
			it.Close()
		}
	}
}

// add takes what is wanted from a record, up to seq head.
func (p *page) add(r *record, head uint64) error {
	seq := r.first
	runs := r.walk()
	for !p.full() && runs.Next() {
		first := seq
		seq += runs.Count
		if seq <= p.next {
			continue
		}
		if p.next < first {
			return p.s.corrupt("inbox of %q: seq %d is missing", p.user, p.next)
		}
		skip := p.next - first
		take := min(runs.Count-skip, uint64(p.limit-p.n), head-p.next+1)
		if err := p.take(&runs.Run, skip, take); err != nil {
			return err
		}
		if p.next > head {
			return nil
		}
	}
	if runs.D.Bad {
		return p.s.corrupt("inbox of %q, seq %d", p.user, r.first)
	}
	return nil
}

// take appends the messages [skip, skip+n) of a run, or fewer when they are big.
func (p *page) take(r *wire.Run, skip, n uint64) error {
	if p.log == nil {
		it, err := p.s.db.NewIter(&pdb.IterOptions{LowerBound: []byte{tabLog}, UpperBound: []byte{tabLog + 1}})
		if err != nil {
			return p.s.wrap(err, "inbox of %q", p.user)
		}
		p.log = it
	}
	c, err := p.s.seek(p.log, r.Conv, r.LSN, r.Cseq-r.Index)
	if errors.Is(err, errGone) {
		for i := range n {
			m := &store.Message{Conv: r.Conv, Cseq: r.Cseq + skip + i, Recalled: true}
			p.append(m)
		}
		return nil
	}
	if err != nil {
		return err
	}
	i := int(r.Index + skip)
	if i+int(n) > c.Count {
		return p.s.corrupt("inbox of %q, seq %d: %s, lsn %d has %d messages", p.user, p.next, r.Conv, r.LSN, c.Count)
	}
	ms, err := c.Messages(r.Conv, i, i+int(n))
	if err != nil {
		return p.s.wrap(err, "%s: chunk from cseq %d, lsn %d", r.Conv, c.First, r.LSN)
	}
	if err := p.hide(r.Conv, ms); err != nil {
		return err
	}
	for i := range ms {
		p.append(&ms[i])
		if p.bytes >= pageBytes {
			break
		}
	}
	return nil
}

func (p *page) append(m *store.Message) {
	p.dst = append(p.dst, store.Entry{Seq: p.next, Message: m})
	p.next++
	p.n++
	p.bytes += len(m.Body)
}

// hide makes tombstones of what the user has deleted among ms, which follow each other.
func (p *page) hide(conv store.Conv, ms []store.Message) (err error) {
	if p.none {
		return nil
	}
	if p.hidden == nil {
		if p.hidden, err = p.s.names(tabDeleted, p.user); err != nil {
			return err
		}
		if !p.hidden.First() {
			p.none = true
			return p.s.wrap(p.hidden.Error(), "deletions of %q", p.user)
		}
	}
	end := keyDeleted(nil, p.user, conv, ms[len(ms)-1].Cseq+1)
	ok := p.hidden.SeekGE(keyDeleted(nil, p.user, conv, ms[0].Cseq))
	for ; ok && string(p.hidden.Key()) < string(end); ok = p.hidden.Next() {
		m := &ms[tail(p.hidden.Key())-ms[0].Cseq]
		m.Recalled, m.Body = true, nil
	}
	return p.s.wrap(p.hidden.Error(), "deletions of %q", p.user)
}
