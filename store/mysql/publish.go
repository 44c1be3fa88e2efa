package mysql

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// moveTo moves the queue's cursor forward.
func (h *queueHead) moveTo(seq uint64) {
	if seq = min(seq, h.head); seq > h.passed {
		h.passed, h.dirty = seq, true
	}
}

// publish puts a publication into its queues and retains it, unless limits refuse it.
func (t *topicWriter) publish(p *store.Publish, now int64) {
	p.Err = nil
	limits := &t.w.s.opts.Retention.Topics
	for i := range p.Queues {
		ref := &p.Queues[i]
		ref.Seq, ref.Dropped = 0, 0
		h := t.queues[ref.Client]
		full := limits.Messages > 0 && !p.Unlimited && h.head-max(h.passed, min(ref.Acked, h.head)) >= limits.Messages
		if full && limits.Refuse && !h.over(now) {
			p.Err = fmt.Errorf("the queue of a subscriber: %w", store.ErrFull)
		}
	}
	if p.Err == nil && p.Retain {
		t.keep(p)
	}
	if p.Err != nil {
		return
	}
	t.inbound(p.Inbound)
	stored := false
	for i := range p.Queues {
		ref := &p.Queues[i]
		h := t.queues[ref.Client]
		if h.over(now) {
			continue
		}
		if !stored {
			t.add(p.Publication)
			stored = true
		}
		t.enqueue(h, ref)
		if limits.Messages > 0 && !p.Unlimited && h.head-h.passed > limits.Messages {
			floor := h.head - limits.Messages
			if floor > ref.Acked {
				ref.Dropped = floor - max(h.passed, ref.Acked)
			}
			h.moveTo(max(floor, min(ref.Acked, h.head)))
		}
	}
}

// keep makes a publication its topic's retained message, or removes that.
func (t *topicWriter) keep(p *store.Publish) {
	key := path(p.Topic)
	m, changed := t.retain[key]
	had := m != nil
	if !changed {
		had = t.stored[key]
	}
	keep := len(p.Payload) > 0
	limit := t.w.s.opts.Retention.Topics.Retained
	if keep && !had && limit > 0 && t.count+t.counted >= int64(limit) {
		p.Err = store.ErrRetainedFull
		return
	}
	if keep && len(key) > pathBytes {
		p.Err = fmt.Errorf("a topic of %d bytes: %w", len(p.Topic), store.ErrRetainedFull)
		return
	}
	switch {
	case keep:
		t.retain[key] = p.Publication
	case had:
		t.retain[key] = nil
	}
	if keep != had {
		t.counted += map[bool]int64{true: 1, false: -1}[keep]
	}
}

// add makes room for a publication with the others of the batch.
func (t *topicWriter) add(m *store.Publication) {
	if n := len(t.pubs); n == 0 || n == wire.ChunkMessages || t.bytes >= wire.ChunkBytes {
		t.closePubs()
		name := binary.BigEndian.AppendUint64([]byte(t.w.l.id), t.w.l.batch)
		t.pub = string(binary.BigEndian.AppendUint32(name, uint32(t.named)))
		t.named++
	}
	t.pubs = append(t.pubs, m)
	t.bytes += len(m.Payload)
}

func (t *topicWriter) closePubs() {
	if len(t.pubs) == 0 {
		return
	}
	body, _ := wire.AppendPubs(nil, nil, t.pubs)
	t.keys, t.bodies = append(t.keys, t.pub), append(t.bodies, body)
	t.pubs, t.bytes = nil, 0
}

// enqueue appends the publication that add has stored last to a queue.
func (t *topicWriter) enqueue(h *queueHead, ref *store.QueueRef) {
	if h.first == 0 {
		h.first, h.refs = h.head+1, map[string]bool{}
		t.fed = append(t.fed, h)
	}
	h.head++
	h.dirty = true
	ref.Seq = h.head
	h.refs[t.pub] = true
	index := uint64(len(t.pubs) - 1)
	if r := &h.run; r.count > 0 && r.pub == t.pub && r.index+r.count == index && r.qos == ref.QoS && string(r.options) == string(ref.Options) {
		r.count++
		return
	}
	h.closeRun()
	h.run = pubRun{count: 1, pub: t.pub, index: index, qos: ref.QoS, options: ref.Options}
}

// flush adds the statements that write what the batch has come to.
func (t *topicWriter) flush() {
	q := t.w.q
	var heads []*queueHead
	var gone []string
	for _, client := range sorted(t.queues) {
		switch h := t.queues[client]; {
		case !h.dirty:
		case h.exists:
			heads = append(heads, h)
		case h.stored:
			gone = append(gone, client)
		}
	}
	split(t.w, heads, func(h *queueHead) bool { return h.stored }, setSessions, addSessions, func(h *queueHead, args []any) []any {
		return append(args, h.Client, h.User, h.Expiry, h.Since, h.state, h.node, h.queue, h.head, h.passed)
	})
	q.names(dropSessions, nil, gone)
	t.closePubs()
	q.many(addPubs, nil, len(t.keys), func(i int, args []any) []any { return append(args, t.keys[i], t.bodies[i]) })
	type ref struct{ pub, queue string }
	var refs []ref
	for _, h := range t.fed {
		for pub := range h.refs {
			refs = append(refs, ref{pub, h.queue})
		}
	}
	slices.SortFunc(refs, func(a, b ref) int { return cmp.Or(strings.Compare(a.pub, b.pub), strings.Compare(a.queue, b.queue)) })
	q.many(addRefs, nil, len(refs), func(i int, args []any) []any { return append(args, refs[i].pub, refs[i].queue) })
	q.many(addQueued, nil, len(t.fed), func(i int, args []any) []any {
		h := t.fed[i]
		h.closeRun()
		return append(args, h.queue, h.first, h.head-h.first+1, h.runs)
	})
	t.flushRetained()
}

func (t *topicWriter) flushRetained() {
	var keep, gone []string
	for _, key := range sorted(t.retain) {
		switch {
		case t.retain[key] != nil:
			keep = append(keep, key)
		case t.stored[key]:
			gone = append(gone, key)
		}
	}
	split(t.w, keep, func(key string) bool { return t.stored[key] }, setRetained, addRetained, func(key string, args []any) []any {
		m := t.retain[key]
		return append(args, key, m.Expires, wire.AppendWhole(nil, m))
	})
	t.w.q.names(dropRetained, nil, gone)
	if t.counted != 0 {
		t.w.q.do(moveCount, t.counted, countRetained)
	}
}
