package pebble

import (
	"encoding/binary"
	"fmt"
	"time"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
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
	h.runs = wire.AppendUvarint(wire.AppendUvarint(wire.AppendUvarint(h.runs, r.count), r.lsn), r.index)
	h.runs = wire.AppendString(append(h.runs, r.qos), string(r.options))
	h.run = pubRun{}
}

// queueRecord is a value of tabQueue.
type queueRecord struct {
	first, count uint64
	d            wire.Decoder
}

func (r *queueRecord) last() uint64 { return r.first + r.count - 1 }

func (r *queueRecord) next() (x pubRun, ok bool) {
	if r.d.Off >= len(r.d.B) {
		return x, false
	}
	x = pubRun{count: r.d.Uvarint(), lsn: r.d.Uvarint(), index: r.d.Uvarint(), qos: r.d.Byte()}
	x.options = r.d.Bytes()
	return x, !r.d.Bad && x.count > 0
}

func (s *Store) queueRecord(it *pdb.Iterator, client string) (queueRecord, error) {
	v, err := it.ValueAndErr()
	if err != nil {
		return queueRecord{}, s.wrap(err, "queue of %q", client)
	}
	r := queueRecord{first: tail(it.Key()), d: wire.Decoder{B: v}}
	if r.count = r.d.Uvarint(); r.d.Bad || r.count == 0 {
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
	if n := len(w.pubs); n == 0 || n == wire.ChunkMessages || w.pubBytes >= wire.ChunkBytes {
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
	w.val, w.metaScratch = wire.AppendPubs(w.val[:0], w.metaScratch, w.pubs)
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
		w.val = append(wire.AppendUvarint(w.val[:0], h.seq-h.first+1), h.runs...)
		w.note(w.pb.Set(w.key, w.val, nil))
		if cap(h.runs) > 256 {
			h.runs = nil
		}
	}
	for _, h := range w.moved {
		h.moved = false
		if err := w.forgetPassed(h); err != nil {
			return err
		}
		w.key = append(append(w.key[:0], tabPassed), h.client...)
		w.val = wire.AppendUvarint(wire.AppendUvarint(w.val[:0], h.passed), h.kept)
		w.note(w.pb.Set(w.key, w.val, nil))
	}
	if w.retainedWas != w.retained {
		w.val = wire.AppendUvarint(w.val[:0], w.retained)
		w.note(w.pb.Set(keyMeta("retained"), w.val, nil))
	}
	if err := w.forgetPubs(); err != nil {
		return err
	}
	return w.failed
}

func milliseconds() int64 { return time.Now().UnixMilli() }
