package pebble

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
)

// A publication for several queues is stored once, with the others of its batch (tabPubs), and each queue has
// references to it (tabQueue). tabPubRef is the way back: while a batch of publications has one, somebody still wants
// something of it.

// queueHead is where a session's queue ends and begins, counting what is assigned but not yet durable.
type queueHead struct {
	client  string
	session store.Session
	exists  bool
	seq     uint64 // highest assigned
	passed  uint64
	kept    uint64 // no record begins before it
	forgot  uint64 // up to this seq nothing is known of what was sent

	// Of the batch being built.
	batch  uint64
	first  uint64
	runs   []byte // closed runs
	run    pubRun // the open one
	moved  bool   // passed has changed
	newest uint64 // lsn that has a reference of this queue already
}

// pubRun is a stretch of a queue: publications that follow each other in one value of tabPubs.
type pubRun struct {
	count   uint64
	lsn     uint64
	index   uint64
	qos     byte
	options []byte
}

func (h *queueHead) closeRun() {
	if h.run.count == 0 {
		return
	}
	r := &h.run
	h.runs = appendUvarint(appendUvarint(appendUvarint(h.runs, r.count), r.lsn), r.index)
	h.runs = appendString(append(h.runs, r.qos), string(r.options))
	h.run = pubRun{}
}

// queueRecord is a value of tabQueue.
type queueRecord struct {
	first, count uint64
	d            decoder
}

func (r *queueRecord) last() uint64 { return r.first + r.count - 1 }

func (r *queueRecord) next() (x pubRun, ok bool) {
	if r.d.off >= len(r.d.b) {
		return x, false
	}
	x = pubRun{count: r.d.uvarint(), lsn: r.d.uvarint(), index: r.d.uvarint(), qos: r.d.byte()}
	x.options = r.d.bytes()
	return x, !r.d.bad && x.count > 0
}

func (s *Store) queueRecord(it *pdb.Iterator, client string) (queueRecord, error) {
	v, err := it.ValueAndErr()
	if err != nil {
		return queueRecord{}, s.wrap(err, "queue of %q", client)
	}
	r := queueRecord{first: tail(it.Key()), d: decoder{b: v}}
	if r.count = r.d.uvarint(); r.d.bad || r.count == 0 {
		return r, s.corrupt("queue of %q, seq %d", client, r.first)
	}
	return r, nil
}

// lsn is the one of the record's first run: if it is durable, all of the record is.
func (r queueRecord) lsn() uint64 {
	if x, ok := r.next(); ok {
		return x.lsn
	}
	return ^uint64(0)
}

// queueView is a queue in one state of the store.
type queueView struct {
	store.QueueState
	kept uint64 // no record begins before it: what is before is deleted, and takes time to pass over
	it   *pdb.Iterator
}

// viewQueue finds a queue's state among what is durable up to an lsn. The caller closes it.
func (s *Store) viewQueue(r pdb.Reader, client string, upTo uint64) (q queueView, err error) {
	v, closer, err := r.Get(append([]byte{tabPassed}, client...))
	if err == nil {
		d := decoder{b: v}
		q.Passed, q.kept = d.uvarint(), d.uvarint()
		if err = closer.Close(); d.bad {
			return q, s.corrupt("cursor of the queue of %q", client)
		}
	}
	if err != nil && !errors.Is(err, pdb.ErrNotFound) {
		return q, s.wrap(err, "cursor of the queue of %q", client)
	}
	q.Head = q.Passed
	q.it, err = r.NewIter(&pdb.IterOptions{
		LowerBound: keyNum(nil, tabQueue, client, q.kept), UpperBound: after(keyName(nil, tabQueue, client)),
	})
	if err != nil {
		return q, s.wrap(err, "queue of %q", client)
	}
	for ok := q.it.Last(); ok; ok = q.it.Prev() {
		r, err := s.queueRecord(q.it, client)
		if err != nil {
			return q, errors.Join(err, q.it.Close())
		}
		if r.lsn() <= upTo {
			q.Head = max(q.Head, r.last())
			break
		}
	}
	if err := q.it.Error(); err != nil {
		return q, errors.Join(s.wrap(err, "queue of %q", client), q.it.Close())
	}
	return q, nil
}

// queue returns the head of a session's queue.
func (w *writer) queue(client string) (*queueHead, error) {
	if h, ok := w.queues.get(client); ok {
		return h, nil
	}
	h := &queueHead{client: client}
	v, err := w.s.get(append([]byte{tabSession}, client...))
	if err != nil {
		return nil, err
	}
	if v != nil {
		if h.session, _, h.exists = decodeSession(client, v, w.s.boot, w.s.opened); !h.exists {
			return nil, w.s.corrupt("session %q", client)
		}
		q, err := w.s.viewQueue(w.s.db, client, ^uint64(0))
		if err != nil {
			return nil, err
		}
		h.seq, h.passed, h.kept, h.forgot = q.Head, q.Passed, q.kept, q.Passed
		if err := q.it.Close(); err != nil {
			return nil, w.s.wrap(err, "queue of %q", client)
		}
	}
	w.queues.put(client, h)
	return h, nil
}

func (h *queueHead) over(now int64) bool {
	ends := h.session.Ends()
	return !h.exists || ends != 0 && ends <= now
}

// publish puts one publication where it belongs.
func (w *writer) publish(p *store.Publish, now int64) error {
	p.Err = nil
	limits := &w.s.opts.Retention.Topics
	heads := w.heads[:0]
	for i := range p.Queues {
		ref := &p.Queues[i]
		ref.Seq, ref.Dropped = 0, 0
		h, err := w.queue(ref.Client)
		if err != nil {
			return err
		}
		heads = append(heads, h)
		full := limits.Messages > 0 && !p.Unlimited && h.seq-max(h.passed, min(ref.Acked, h.seq)) >= limits.Messages
		if full && limits.Refuse && !h.over(now) {
			p.Err = fmt.Errorf("the queue of a subscriber: %w", store.ErrFull)
		}
	}
	w.heads = heads
	if p.Err == nil && p.Retain {
		if err := w.retain(p); err != nil {
			return err
		}
	}
	if p.Err != nil {
		return nil
	}
	if err := w.inbound(p.Inbound); err != nil {
		return err
	}
	stored := false
	for i, h := range heads {
		if h.over(now) {
			continue
		}
		ref := &p.Queues[i]
		if !stored {
			w.appendPub(p.Publication)
			stored = true
		}
		w.enqueue(h, ref)
		if limits.Messages > 0 && !p.Unlimited && h.seq-h.passed > limits.Messages {
			floor := h.seq - limits.Messages
			if floor > ref.Acked {
				ref.Dropped = floor - max(h.passed, ref.Acked)
			}
			w.moveTo(h, max(floor, min(ref.Acked, h.seq)))
		}
	}
	return nil
}

// appendPub puts a publication into the batch's value of tabPubs.
func (w *writer) appendPub(m *store.Publication) {
	w.sync = true
	if n := len(w.pubs); n == 0 || n == chunkMessages || w.pubBytes >= chunkBytes {
		w.flushPubs()
		w.lsn++
	}
	w.pubs = append(w.pubs, m)
	w.pubBytes += len(m.Payload)
}

// flushPubs writes the publications gathered under the present lsn.
func (w *writer) flushPubs() {
	if len(w.pubs) == 0 {
		return
	}
	w.key = binary.BigEndian.AppendUint64(append(w.key[:0], tabPubs), w.lsn)
	w.val, w.metaScratch = appendPubs(w.val[:0], w.metaScratch, w.pubs)
	w.note(w.pb.Set(w.key, w.val, nil))
	clear(w.pubs)
	w.pubs, w.pubBytes = w.pubs[:0], 0
}

// note keeps the first error of writing to a batch, which is one of memory.
func (w *writer) note(err error) {
	if err != nil && w.failed == nil {
		w.failed = err
	}
}

// enqueue refers a queue to the publication that was appended last.
func (w *writer) enqueue(h *queueHead, ref *store.QueueRef) {
	if h.batch != w.batch {
		h.batch, h.first, h.runs, h.run, h.newest = w.batch, h.seq+1, h.runs[:0], pubRun{}, 0
		w.fedQueues = append(w.fedQueues, h)
	}
	h.seq++
	ref.Seq = h.seq
	index := uint64(len(w.pubs) - 1)
	if r := &h.run; r.count > 0 && r.lsn == w.lsn && r.index+r.count == index && r.qos == ref.QoS && string(r.options) == string(ref.Options) {
		r.count++
	} else {
		h.closeRun()
		h.run = pubRun{count: 1, lsn: w.lsn, index: index, qos: ref.QoS, options: ref.Options}
	}
	if h.newest != w.lsn {
		h.newest = w.lsn
		w.key = keyPubRef(w.key[:0], w.lsn, h.client)
		w.note(w.pb.Set(w.key, nil, nil))
		w.pubRefs[w.lsn]++
	}
}

func keyPubRef(dst []byte, lsn uint64, client string) []byte {
	return append(binary.BigEndian.AppendUint64(append(dst, tabPubRef), lsn), client...)
}

// moveTo says that a queue is passed up to seq; what that makes superfluous is removed when the batch is flushed.
func (w *writer) moveTo(h *queueHead, seq uint64) {
	if seq = min(seq, h.seq); seq <= h.passed {
		return
	}
	h.passed = seq
	if !h.moved {
		h.moved = true
		w.moved = append(w.moved, h)
	}
}

// flushQueues writes what publishes and cursors have gathered.
func (w *writer) flushQueues() error {
	w.flushPubs()
	for _, h := range w.fedQueues {
		h.closeRun()
		w.key = keyNum(w.key[:0], tabQueue, h.client, h.first)
		w.val = append(appendUvarint(w.val[:0], h.seq-h.first+1), h.runs...)
		w.note(w.pb.Set(w.key, w.val, nil))
		if cap(h.runs) > 4<<10 {
			h.runs = nil
		}
	}
	for _, h := range w.moved {
		h.moved = false
		if err := w.forgetPassed(h); err != nil {
			return err
		}
		w.key = append(append(w.key[:0], tabPassed), h.client...)
		w.val = appendUvarint(appendUvarint(w.val[:0], h.passed), h.kept)
		w.note(w.pb.Set(w.key, w.val, nil))
	}
	if w.retainedWas != w.retained {
		w.val = appendUvarint(w.val[:0], w.retained)
		w.note(w.pb.Set(keyMeta("retained"), w.val, nil))
	}
	if err := w.forgetPubs(); err != nil {
		return err
	}
	return w.failed
}

// forgetPassed removes what a queue no longer needs: records all of which is passed, and the state of what was sent.
func (w *writer) forgetPassed(h *queueHead) error {
	q, err := w.s.viewQueue(w.s.db, h.client, ^uint64(0))
	if err != nil {
		return err
	}
	defer q.it.Close()
	h.kept = h.passed + 1
	if h.batch == w.batch {
		h.kept = min(h.kept, h.first)
	}
	for ok := q.it.First(); ok; ok = q.it.Next() {
		r, err := w.s.queueRecord(q.it, h.client)
		if err != nil {
			return err
		}
		if r.last() > h.passed {
			h.kept = r.first
			break
		}
		w.dropRecord(q.it.Key(), r, h.client)
	}
	if err := q.it.Error(); err != nil {
		return w.s.wrap(err, "queue of %q", h.client)
	}
	return w.forgetOutbound(h)
}

// dropRecord deletes a record and its references.
func (w *writer) dropRecord(key []byte, r queueRecord, client string) {
	w.note(w.pb.Delete(key, nil))
	prev := uint64(0)
	for x, ok := r.next(); ok; x, ok = r.next() {
		if x.lsn != prev {
			w.unref(x.lsn, client)
		}
		prev = x.lsn
	}
}

// forgetOutbound removes what is known of messages that have been passed since the last time.
func (w *writer) forgetOutbound(h *queueHead) error {
	it, err := w.s.db.NewIter(&pdb.IterOptions{
		LowerBound: keyNum(nil, tabOutbound, h.client, h.forgot+1), UpperBound: keyNum(nil, tabOutbound, h.client, h.passed+1),
	})
	if err != nil {
		return w.s.wrap(err, "what was sent to %q", h.client)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		w.note(w.pb.Delete(it.Key(), nil))
	}
	h.forgot = h.passed
	return w.s.wrap(it.Error(), "what was sent to %q", h.client)
}

// unref takes back a queue's reference to publications.
func (w *writer) unref(lsn uint64, client string) {
	w.key = keyPubRef(w.key[:0], lsn, client)
	w.note(w.pb.Delete(w.key, nil))
	w.unrefs = append(w.unrefs, pubRef{lsn, client})
}

type pubRef struct {
	lsn    uint64
	client string
}

// forgetPubs removes publications whose last reference this batch takes back. The numbers of those that this process
// has stored are known; of others the references are looked for.
func (w *writer) forgetPubs() error {
	if len(w.unrefs) == 0 {
		return nil
	}
	slices.SortFunc(w.unrefs, func(a, b pubRef) int { return cmp.Compare(a.lsn, b.lsn) })
	for i := 0; i < len(w.unrefs); {
		lsn, j := w.unrefs[i].lsn, i
		for ; j < len(w.unrefs) && w.unrefs[j].lsn == lsn; j++ {
		}
		gone := w.unrefs[i:j]
		i = j
		if n, known := w.pubRefs[lsn]; known {
			if n -= len(gone); n > 0 {
				w.pubRefs[lsn] = n
				continue
			}
			delete(w.pubRefs, lsn)
		} else if more, err := w.referred(lsn, gone); more || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		w.key = binary.BigEndian.AppendUint64(append(w.key[:0], tabPubs), lsn)
		w.note(w.pb.Delete(w.key, nil))
	}
	return nil
}

// referred reports whether publications have references beside those that are going.
func (w *writer) referred(lsn uint64, gone []pubRef) (bool, error) {
	lower := keyPubRef(nil, lsn, "")
	it, err := w.s.db.NewIter(&pdb.IterOptions{LowerBound: lower, UpperBound: keyPubRef(nil, lsn+1, "")})
	if err != nil {
		return false, w.s.wrap(err, "references to publications")
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		client := it.Key()[len(lower):]
		if !slices.ContainsFunc(gone, func(r pubRef) bool { return r.client == string(client) }) {
			return true, nil
		}
	}
	return false, w.s.wrap(it.Error(), "references to publications")
}

// Queue tells where a session's queue stands.
func (s *Store) Queue(ctx context.Context, client string) (store.QueueState, error) {
	if err := s.enter(ctx); err != nil {
		return store.QueueState{}, err
	}
	defer s.life.RUnlock()
	q, err := s.viewQueue(s.db, client, s.durable.Load())
	if err != nil {
		return store.QueueState{}, err
	}
	return q.QueueState, s.wrap(q.it.Close(), "queue of %q", client)
}

// ReadQueue reads a page of a queue, in one state of the store: what it refers to may be removed meanwhile.
func (s *Store) ReadQueue(
	ctx context.Context, client string, after uint64, limit int, dst []store.Queued,
) ([]store.Queued, error) {
	if err := s.enter(ctx); err != nil {
		return dst, err
	}
	defer s.life.RUnlock()
	durable := s.durable.Load()
	snap := s.db.NewSnapshot()
	defer snap.Close()
	q, err := s.viewQueue(snap, client, durable)
	if err != nil {
		return dst, err
	}
	it := q.it
	defer it.Close()
	next := max(after, q.Passed) + 1
	start, bytes := len(dst), 0
	ok := it.SeekLT(keyNum(nil, tabQueue, client, next+1)) || it.First()
	for ; ok && next <= q.Head && len(dst)-start < limit && bytes < pageBytes; ok = it.Next() {
		r, err := s.queueRecord(it, client)
		if err != nil {
			return dst, err
		}
		seq := r.first
		for x, ok := r.next(); ok && next <= q.Head && len(dst)-start < limit && bytes < pageBytes; x, ok = r.next() {
			if seq += x.count; seq <= next {
				continue
			}
			skip := x.count - (seq - next)
			n := min(x.count-skip, uint64(limit-(len(dst)-start)))
			list, err := s.pubs(snap, &x, skip, n)
			if err != nil {
				return dst, fmt.Errorf("queue of %q, seq %d: %w", client, next, err)
			}
			options := slices.Clone(x.options)
			for i := range list {
				dst = append(dst, store.Queued{Seq: next, QoS: min(x.qos, list[i].QoS), Options: options, Publication: &list[i]})
				next++
				if bytes += len(list[i].Payload); bytes >= pageBytes {
					break
				}
			}
		}
		if r.d.bad {
			return dst, s.corrupt("queue of %q, seq %d", client, r.first)
		}
	}
	return dst, s.wrap(it.Error(), "queue of %q", client)
}

// pubs reads n publications of a run.
func (s *Store) pubs(snap pdb.Reader, x *pubRun, skip, n uint64) ([]store.Publication, error) {
	key := binary.BigEndian.AppendUint64([]byte{tabPubs}, x.lsn)
	v, closer, err := snap.Get(key)
	if err != nil {
		if errors.Is(err, pdb.ErrNotFound) {
			return nil, s.corrupt("publications at lsn %d are missing", x.lsn)
		}
		return nil, s.wrap(err, "publications at lsn %d", x.lsn)
	}
	defer closer.Close()
	i := int(x.index + skip)
	list, err := parsePubs(v, i, i+int(n))
	return list, s.wrap(err, "publications at lsn %d", x.lsn)
}

func milliseconds() int64 { return time.Now().UnixMilli() }
