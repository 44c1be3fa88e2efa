package mysql

import (
	"cmp"
	"slices"
	"strings"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// send numbers one message, unless its cid is known, and gathers it into chunk and inboxes.
func (w *writer) send(m *store.Send) error {
	m.Dup, m.Err = false, nil
	if m.Cid != "" && w.resolve(m) {
		return nil
	}
	c := w.convs[m.Conv]
	var g *groupHead
	if !c.direct {
		var ok bool
		if g, ok = w.admit(m); !ok {
			return nil
		}
	}
	id, err := w.lease.ids.next(c.lastID)
	if err != nil {
		return err
	}
	w.lastID = id
	m.ID, m.Cseq = id, c.cseq+1
	ch := w.chunkFor(c, len(m.Body))
	ch.msgs = append(ch.msgs, &m.Message)
	ch.bytes += len(m.Body)
	ch.maxTS = max(ch.maxTS, m.TS)
	c.cseq, c.lastID, c.fed = m.Cseq, id, true
	c.count(ch, m.From)
	if g != nil {
		w.address(g, m)
	}
	for i := range m.Inboxes {
		m.Inboxes[i].Seq = w.feed(w.inboxes[m.Inboxes[i].User], m, m.Cseq-ch.first)
	}
	if m.Cid != "" {
		w.inBatch[cidKey{m.From, m.Cid}] = cidRecord{m.Hash, m.Conv, m.Cseq, m.ID, m.TS}
		w.newCids = append(w.newCids, m)
	}
	return nil
}

// resolve looks whether m's cid stands for a message already; then nothing is to be stored.
func (w *writer) resolve(m *store.Send) (known bool) {
	window := w.s.opts.Retention.Dedupe.Milliseconds()
	k := cidKey{m.From, m.Cid}
	r, known := w.inBatch[k]
	if !known {
		r, known = w.cids[k.text()]
		if !known || window > 0 && m.TS-r.ts >= window {
			return false
		}
	}
	if r.hash != m.Hash {
		m.Err = store.ErrConflict
		return true
	}
	w.dups = append(w.dups, dup{m, r})
	return true
}

// accepted tells the caller what a batch that is committed has come to.
func (w *writer) accepted() {
	for _, d := range w.dups {
		d.m.Dup = true
		d.m.Conv, d.m.Cseq, d.m.ID, d.m.TS = d.r.conv, d.r.cseq, d.r.id, d.r.ts
	}
	w.tellClaims()
	for id := w.s.committed.Load(); w.lastID > id && !w.s.committed.CompareAndSwap(id, w.lastID); {
		id = w.s.committed.Load()
	}
	if w.l == w.s.sender {
		w.s.signed(w.l.batch)
	}
	for _, g := range w.groups {
		w.l.cache.keep(g)
	}
}

// count counts a message of a direct conversation by its sender.
func (c *convHead) count(ch *openChunk, from string) {
	switch {
	case !c.direct:
	case from == c.a:
		c.fromA++
		ch.inA++
	case from == c.b:
		c.fromB++
		ch.inB++
	}
}

// chunkFor is the chunk that the next message of c goes into, with room for size bytes.
func (w *writer) chunkFor(c *convHead, size int) *openChunk {
	if ch := c.open; ch != nil && len(ch.msgs) < wire.ChunkMessages && ch.bytes+size <= wire.ChunkBytes {
		return ch
	}
	c.open = &openChunk{head: c, first: c.cseq + 1, cumA: c.fromA, cumB: c.fromB}
	w.chunks = append(w.chunks, c.open)
	return c.open
}

// feed appends a reference to an inbox and returns its seq.
func (w *writer) feed(h *inboxHead, m *store.Send, index uint64) uint64 {
	if h.first == 0 {
		h.first, h.minTS = h.seq+1, m.TS
		w.fed = append(w.fed, h)
	}
	h.seq++
	h.maxTS, h.minTS = max(h.maxTS, m.TS), min(h.minTS, m.TS)
	if r := &h.run; r.Count > 0 && r.Conv == m.Conv && r.Cseq+r.Count == m.Cseq && r.Index+r.Count == index {
		r.Count++
		return h.seq
	}
	h.closeRun()
	h.run = wire.Run{Count: 1, Conv: m.Conv, Cseq: m.Cseq, Index: index}
	return h.seq
}

func (h *inboxHead) closeRun() {
	if h.run.Count > 0 {
		h.runs = wire.AppendRun(h.runs, &h.run, h.conv)
		h.conv = h.run.Conv
	}
}

// flush adds the statements that write what the batch has come to.
func (w *writer) flush(b *store.Batch) {
	w.flushConvs()
	w.flushInboxes()
	w.flushViews()
	w.topics.flush()
	w.flushChunks()
	w.flushCids()
	w.flushOwns()
	w.flushGroups()
	w.q.items = append(w.q.items, w.later.items...)
	w.flushNotices(b.Notices)
}

// split adds the rows of what is stored already with one statement and the others with another, each in order.
func split[T any](w *writer, list []T, stored func(T) bool, set, add *statement, row func(T, []any) []any) {
	var old, fresh []T
	for _, x := range list {
		if stored(x) {
			old = append(old, x)
		} else {
			fresh = append(fresh, x)
		}
	}
	w.q.many(set, nil, len(old), func(i int, args []any) []any { return row(old[i], args) })
	w.q.many(add, nil, len(fresh), func(i int, args []any) []any { return row(fresh[i], args) })
}

func (w *writer) flushConvs() {
	var heads []*convHead
	for _, conv := range sorted(w.convs) {
		if c := w.convs[conv]; c.fed {
			heads = append(heads, c)
		}
	}
	split(w, heads, func(c *convHead) bool { return c.stored }, setConvs, addConvs, func(c *convHead, args []any) []any {
		return append(args, string(c.conv), c.cseq, c.lastID, c.fromA, c.fromB)
	})
	type place struct {
		user string
		head *convHead
	}
	var places []place
	for _, c := range heads {
		if c.direct {
			places = append(places, place{c.a, c})
			if c.b != c.a {
				places = append(places, place{c.b, c})
			}
		}
	}
	slices.SortFunc(places, func(x, y place) int {
		return cmp.Or(strings.Compare(x.user, y.user), strings.Compare(string(x.head.conv), string(y.head.conv)))
	})
	w.q.many(setDirects, nil, len(places), func(i int, args []any) []any {
		return append(args, places[i].user, string(places[i].head.conv), places[i].head.lastID)
	})
}

func (w *writer) flushInboxes() {
	slices.SortFunc(w.fed, func(a, b *inboxHead) int { return strings.Compare(a.user, b.user) })
	split(w, w.fed, func(h *inboxHead) bool { return h.stored }, setInboxes, addInboxes, func(h *inboxHead, args []any) []any {
		return append(args, h.user, h.seq, h.maxTS)
	})
	w.q.many(addEntries, nil, len(w.fed), func(i int, args []any) []any {
		h := w.fed[i]
		h.closeRun()
		return append(args, h.user, h.first, h.seq-h.first+1, h.maxTS, h.minTS, h.runs)
	})
}

func (w *writer) flushViews() {
	var dirty []*viewHead
	for _, k := range sortedViews(w.views) {
		if v := w.views[k]; v.dirty {
			dirty = append(dirty, v)
		}
	}
	split(w, dirty, func(v *viewHead) bool { return v.stored }, setMarks, addViews, func(v *viewHead, args []any) []any {
		return append(args, string(v.key.conv), v.key.user, v.read, v.delivered, v.deleted, v.own)
	})
}

func (w *writer) flushChunks() {
	var meta []byte
	w.q.many(addChunks, nil, len(w.chunks), func(i int, args []any) []any {
		ch := w.chunks[i]
		var body []byte
		body, meta = wire.AppendChunk(nil, meta, ch.head.conv, ch.msgs, ch.msgs[len(ch.msgs)-1].ID)
		return append(args, string(ch.head.conv), ch.first, len(ch.msgs), ch.maxTS, ch.cumA, ch.cumB, ch.inA, ch.inB, body)
	})
}

func (w *writer) flushCids() {
	slices.SortFunc(w.newCids, func(a, b *store.Send) int {
		return cmp.Or(strings.Compare(a.From, b.From), strings.Compare(a.Cid, b.Cid))
	})
	known := func(m *store.Send) bool { _, ok := w.cids[cidKey{m.From, m.Cid}.text()]; return ok } // and has expired
	split(w, w.newCids, known, setCids, addCids, func(m *store.Send, args []any) []any {
		return append(args, cidKey{m.From, m.Cid}.text(), m.Hash, string(m.Conv), m.Cseq, m.ID, m.TS)
	})
}

// own is what one sender has in one chunk of a group.
type own struct {
	viewKey
	first, total uint64
	rest         []byte
}

// flushOwns notes who has sent what to groups: for each chunk and sender the first cseq, how many the sender had before,
// and the other cseqs, each less the one before it. So "how many up to a cseq" is one look.
func (w *writer) flushOwns() {
	var list []own
	senders := map[viewKey]bool{}
	for _, ch := range w.chunks {
		if ch.head.direct {
			continue
		}
		at := map[string]int{} // in list
		last := map[string]uint64{}
		for _, m := range ch.msgs {
			k := viewKey{m.From, ch.head.conv}
			if i, ok := at[m.From]; ok {
				list[i].rest = wire.AppendUvarint(list[i].rest, m.Cseq-last[m.From])
			} else {
				at[m.From] = len(list)
				list = append(list, own{viewKey: k, first: m.Cseq, total: w.owns[k], rest: []byte{}})
			}
			last[m.From] = m.Cseq
			w.owns[k]++
			senders[k] = true
		}
	}
	keys := sortedViews(senders)
	w.q.many(setOwn, nil, len(keys), func(i int, args []any) []any {
		return append(args, string(keys[i].conv), keys[i].user, w.owns[keys[i]])
	})
	slices.SortFunc(list, func(a, b own) int { return cmp.Or(a.viewKey.compare(b.viewKey), cmp.Compare(a.first, b.first)) })
	w.q.many(addOwns, nil, len(list), func(i int, args []any) []any {
		x := &list[i]
		return append(args, string(x.conv), x.user, x.first, x.total, x.rest)
	})
}
