package mysql

import (
	"context"
	"database/sql"
	"slices"
	"time"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// record is what one batch has put into one inbox.
type record struct {
	first, count uint64
	maxTS        int64 // greatest TS of this record and all before it
	minTS        int64 // least TS of this record
	runs         []byte
}

func (r *record) last() uint64 { return r.first + r.count - 1 }

func scanRecord(rows *sql.Rows) (r record, err error) {
	err = rows.Scan(&r.first, &r.count, &r.maxTS, &r.minTS, &r.runs)
	return r, err
}

// Inbox tells head and trimming; it is exact, however far Maintain has come.
func (s *Store) Inbox(ctx context.Context, user string) (store.Inbox, error) {
	if err := s.enter(ctx); err != nil {
		return store.Inbox{}, err
	}
	defer s.life.RUnlock()
	var b store.Inbox
	var list []record
	p := s.packet()
	s.askInbox(p, user, &b)
	if s.inboxTTL > 0 {
		s.askRecords(p, user, 0, 1, &list)
	}
	if err := s.read(ctx, p, "inbox of %q", user); err != nil {
		return b, err
	}
	s.touch(user)
	err := s.trim(ctx, user, &b, 0, list, time.Now())
	return b, err
}

func (s *Store) askInbox(p *packet, user string, b *store.Inbox) {
	p.get(getInbox, func(r *sql.Rows) error { return r.Scan(&b.Head, &b.Trimmed) }, user)
}

// askRecords asks for up to n records, from the one on that holds seq.
func (s *Store) askRecords(p *packet, user string, seq uint64, n int, list *[]record) {
	p.get(getEntries, func(rows *sql.Rows) error {
		r, err := scanRecord(rows)
		*list = append(*list, r)
		return err
	}, user, user, seq, n)
}

// trim sets b.Trimmed as retention has it, for somebody who has read up to after: what is trimmed below that is not
// looked at. list are the records from there on, as far as they are known.
func (s *Store) trim(ctx context.Context, user string, b *store.Inbox, after uint64, list []record, now time.Time) error {
	if n := s.opts.Retention.InboxMessages; n > 0 && b.Head > n {
		b.Trimmed = max(b.Trimmed, b.Head-n)
	}
	if s.inboxTTL == 0 || b.Trimmed >= b.Head {
		return nil
	}
	cutoff := now.Add(-s.inboxTTL).UnixMilli()
	from := max(after, b.Trimmed) + 1
	if from > b.Head {
		return nil
	}
	// Mostly all that is left is young: then the record that from lies in says so.
	for _, r := range list {
		if r.first <= from && from <= r.last() && r.minTS >= cutoff {
			return nil
		}
	}
	live, err := s.firstLive(ctx, user, from, b.Head, cutoff)
	if err == nil && live > from {
		b.Trimmed = live - 1
	}
	return err
}

// firstLive is the first seq >= from, at most head+1, that does not belong to the expired front of the inbox: the
// entries before the first one that was accepted at cutoff or later. Records carry the greatest TS so far, which
// never falls, so the place is found by bisection.
func (s *Store) firstLive(ctx context.Context, user string, from, head uint64, cutoff int64) (uint64, error) {
	lo, hi := from, head+1
	for probe := from; lo < hi; probe = lo + (hi-lo)/2 {
		list, err := s.recordsAt(ctx, user, probe)
		if err != nil {
			return 0, err
		}
		if len(list) == 0 {
			return hi, nil
		}
		r := list[0]
		if r.maxTS < cutoff {
			lo = max(r.last(), probe) + 1
			continue
		}
		if r.first > probe {
			lo = max(lo, r.first) // what is in front of it has been removed
		}
		if r.minTS < cutoff && (len(list) == 1 || list[1].maxTS < cutoff) {
			n, err := s.liveIn(ctx, user, &r, cutoff)
			return min(max(lo, n), hi), err
		}
		hi = min(hi, max(lo, r.first))
	}
	return lo, nil
}

// recordsAt is the record that seq lies in, or the last before it, and the one before that; or the first there is.
func (s *Store) recordsAt(ctx context.Context, user string, seq uint64) (list []record, err error) {
	scan := func(rows *sql.Rows) error {
		r, err := scanRecord(rows)
		list = append(list, r)
		return err
	}
	p := s.packet()
	p.get(entryAt, scan, user, seq)
	if err := s.read(ctx, p, "inbox of %q", user); err != nil || len(list) > 0 {
		return list, err
	}
	p.get(firstEntry, scan, user)
	err = s.read(ctx, p, "inbox of %q", user)
	return list, err
}

// liveIn finds the first live entry of a record through which the border runs.
func (s *Store) liveIn(ctx context.Context, user string, rec *record, cutoff int64) (uint64, error) {
	seq := rec.first
	runs := wire.Runs(rec.runs)
	for runs.Next() {
		n, err := s.expiredIn(ctx, &runs.Run, cutoff)
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
func (s *Store) expiredIn(ctx context.Context, r *wire.Run, cutoff int64) (n uint64, err error) {
	n = r.Count // where retention has removed the chunk
	p := s.packet()
	k := chunkKey{r.Conv, r.Cseq - r.Index}
	s.askChunks(p, []chunkKey{k}, func(_ chunkKey, c wire.Chunk) error {
		m := c.Walk()
		for i := uint64(0); i < r.Index+r.Count; i++ {
			if !m.Next() {
				return s.damaged(wire.ErrChunk, k)
			}
			if i >= r.Index && m.TS >= cutoff {
				n = i - r.Index
				return nil
			}
		}
		return nil
	})
	err = s.read(ctx, p, "%s from cseq %d", r.Conv, r.Cseq)
	return n, err
}

func (s *Store) askChunks(p *packet, keys []chunkKey, take func(chunkKey, wire.Chunk) error) {
	p.many(getChunks, func(r *sql.Rows) error {
		k, c, err := s.scanChunk(r)
		if err != nil {
			return err
		}
		return take(k, c)
	}, len(keys), func(i int, args []any) []any { return append(args, string(keys[i].conv), keys[i].first) })
}

// recordRound is how many records of an inbox are read at once.
const recordRound = 64

// ReadInbox reads a page of an inbox.
func (s *Store) ReadInbox(
	ctx context.Context, user string, after uint64, limit int, dst []store.Entry,
) ([]store.Entry, error) {
	if err := s.enter(ctx); err != nil {
		return dst, err
	}
	defer s.life.RUnlock()
	var b store.Inbox
	var list []record
	pg := page{s: s, ctx: ctx, user: user, limit: limit, dst: dst}
	p := s.packet()
	s.askInbox(p, user, &b)
	s.askRecords(p, user, after+1, min(recordRound, max(limit, 1)), &list)
	p.get(anyDeletion, func(r *sql.Rows) error {
		pg.hidden = true
		var n int
		return r.Scan(&n)
	}, user)
	if err := s.read(ctx, p, "inbox of %q", user); err != nil {
		return dst, err
	}
	if after >= b.Head {
		return dst, nil
	}
	if err := s.trim(ctx, user, &b, after, list, time.Now()); err != nil {
		return dst, err
	}
	pg.next, pg.head = max(after, b.Trimmed)+1, b.Head
	for !pg.full() && pg.next <= pg.head {
		if len(list) == 0 || list[len(list)-1].last() < pg.next {
			list = nil
			s.askRecords(p, user, pg.next, recordRound, &list)
			if err := s.read(ctx, p, "inbox of %q", user); err != nil {
				return dst, err
			}
		}
		before := pg.next
		if err := pg.add(list); err != nil {
			return dst, err
		}
		if pg.next == before {
			return dst, s.corrupt("inbox of %q: seq %d is missing", user, pg.next)
		}
	}
	s.touch(user)
	return pg.dst, nil
}

// page is a page of an inbox being filled.
type page struct {
	s      *Store
	ctx    context.Context
	user   string
	next   uint64 // seq wanted
	head   uint64
	limit  int
	n      int
	bytes  int
	hidden bool // the user has deleted something somewhere
	dst    []store.Entry
}

func (p *page) full() bool { return p.n >= p.limit || p.bytes >= pageBytes }

// part is what is wanted of a run.
type part struct {
	wire.Run
	skip, n uint64
	list    []store.Message
}

func (p *part) key() chunkKey { return chunkKey{p.Conv, p.Cseq - p.Index} }

// add takes what is wanted from records.
func (p *page) add(list []record) error {
	parts, err := p.parts(list)
	if err != nil {
		return err
	}
	for round := range slices.Chunk(parts, chunkRound) {
		if p.full() {
			break
		}
		if err := p.load(round); err != nil {
			return err
		}
		for i := range round {
			p.take(&round[i])
		}
	}
	return nil
}

// parts cuts what is wanted out of records.
func (p *page) parts(list []record) (parts []part, err error) {
	next, left := p.next, uint64(p.limit-p.n)
	for _, r := range list {
		seq := r.first
		runs := wire.Runs(r.runs)
		for left > 0 && next <= p.head && runs.Next() {
			first := seq
			seq += runs.Count
			if seq <= next {
				continue
			}
			if next < first {
				return nil, p.s.corrupt("inbox of %q: seq %d is missing", p.user, next)
			}
			skip := next - first
			n := min(runs.Count-skip, left, p.head-next+1)
			parts = append(parts, part{Run: runs.Run, skip: skip, n: n})
			next += n
			left -= n
		}
		if runs.D.Bad {
			return nil, p.s.corrupt("inbox of %q, seq %d", p.user, r.first)
		}
	}
	return parts, nil
}

// load reads the messages of parts.
func (p *page) load(parts []part) error {
	at := map[chunkKey][]*part{}
	for i := range parts {
		at[parts[i].key()] = append(at[parts[i].key()], &parts[i])
	}
	keys := slices.SortedFunc(mapKeys(at), chunkKey.compare)
	q := p.s.packet()
	p.s.askChunks(q, keys, func(k chunkKey, c wire.Chunk) error {
		for _, x := range at[k] {
			i := int(x.Index + x.skip)
			if i+int(x.n) > c.Count {
				return p.s.corrupt("inbox of %q: %s from cseq %d has %d messages", p.user, k.conv, k.first, c.Count)
			}
			var err error
			if x.list, err = c.Messages(x.Conv, i, i+int(x.n)); err != nil {
				return p.s.damaged(err, k)
			}
		}
		return nil
	})
	if p.hidden {
		for i := range parts {
			x := &parts[i]
			first := x.Cseq + x.skip
			q.get(getDeletions, func(r *sql.Rows) error {
				var n uint64
				var own bool
				if err := r.Scan(&n, &own); err != nil {
					return err
				}
				if i := n - first; i < uint64(len(x.list)) {
					x.list[i].Recalled, x.list[i].Body = true, nil
				}
				return nil
			}, p.user, string(x.Conv), first, first+x.n-1)
		}
	}
	if err := p.s.read(p.ctx, q, "inbox of %q", p.user); err != nil {
		return err
	}
	return p.missing(parts)
}

// missing fills in tombstones for what retention has removed, and finds out where that is not the reason.
func (p *page) missing(parts []part) error {
	q := p.s.packet()
	firsts := map[store.Conv]uint64{}
	for i := range parts {
		x := &parts[i]
		if x.list != nil {
			continue
		}
		for n := range x.n {
			x.list = append(x.list, store.Message{Conv: x.Conv, Cseq: x.Cseq + x.skip + n, Recalled: true})
		}
		if _, asked := firsts[x.Conv]; asked {
			continue
		}
		firsts[x.Conv] = 0
		q.get(firstRef, func(r *sql.Rows) error {
			ref, err := scanRef(r)
			firsts[x.Conv] = ref.first
			return err
		}, string(x.Conv))
	}
	if len(firsts) == 0 {
		return nil
	}
	if err := p.s.read(p.ctx, q, "inbox of %q", p.user); err != nil {
		return err
	}
	for i := range parts {
		x := &parts[i]
		if first, asked := firsts[x.Conv]; asked && first <= x.key().first && x.list[0].ID == 0 {
			return p.s.corrupt("inbox of %q: %s: chunk from cseq %d is missing", p.user, x.Conv, x.key().first)
		}
	}
	return nil
}

// take appends what was read.
func (p *page) take(x *part) {
	for i := range x.list {
		if p.full() {
			return
		}
		m := &x.list[i]
		p.dst = append(p.dst, store.Entry{Seq: p.next, Message: m})
		p.next++
		p.n++
		p.bytes += len(m.Body)
	}
}
