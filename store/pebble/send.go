package pebble

import (
	"fmt"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// send numbers one message, unless its cid is known, and gathers it into chunk and inboxes.
func (w *writer) send(i int, m *store.Send) error {
	m.Dup, m.Err = false, nil
	if m.Cid != "" && w.resolve(i, m) {
		return nil
	}
	c, err := w.conv(m.Conv)
	if err != nil {
		return err
	}
	var g *groupHead
	if !c.direct {
		if g, err = w.admit(m); err != nil || m.Err != nil {
			return err
		}
	}
	id := w.s.opts.IDs.Next(max(w.lastID, c.lastID))
	if id <= w.lastID || id <= c.lastID {
		return fmt.Errorf("store.pebble: id generator gave %d after %d", id, max(w.lastID, c.lastID))
	}
	w.lastID = id
	m.ID, m.Cseq = id, c.cseq+1
	ch := w.chunkFor(c, len(m.Body))
	index := uint64(len(ch.msgs))
	ch.msgs = append(ch.msgs, &m.Message)
	ch.bytes += len(m.Body)
	c.cseq, c.lastID = m.Cseq, id
	c.count(ch, m.From)
	if g != nil {
		if err := w.address(g, m); err != nil {
			return err
		}
	}
	for i := range m.Inboxes {
		h, err := w.recipient(c, i, m.Inboxes[i].User)
		if err != nil {
			return err
		}
		m.Inboxes[i].Seq = w.feed(h, m, ch.ref.lsn, index)
	}
	if m.Cid != "" {
		return w.remember(m)
	}
	return nil
}

// count counts a message of a direct conversation by its sender.
func (c *convHead) count(ch *openChunk, from string) {
	switch {
	case !c.direct:
	case from == c.a:
		c.fromA++
		ch.ref.inA++
	case from == c.b:
		c.fromB++
		ch.ref.inB++
	}
}

// chunkFor is the chunk that the next message of c goes into, with room for size bytes.
func (w *writer) chunkFor(c *convHead, size int) *openChunk {
	if c.batch != w.batch {
		c.batch, c.startID, c.open = w.batch, c.lastID, nil
		w.touched = append(w.touched, c)
	}
	if ch := c.open; ch != nil && len(ch.msgs) < wire.ChunkMessages && ch.bytes+size <= wire.ChunkBytes {
		return ch
	}
	w.lsn++
	if len(w.chunks) < cap(w.chunks) {
		w.chunks = w.chunks[:len(w.chunks)+1]
	} else {
		w.chunks = append(w.chunks, nil)
	}
	ch := w.chunks[len(w.chunks)-1]
	if ch == nil {
		ch = &openChunk{}
		w.chunks[len(w.chunks)-1] = ch
	}
	ch.head, ch.bytes = c, 0
	ch.ref = chunkRef{first: c.cseq + 1, lsn: w.lsn, cumA: c.fromA, cumB: c.fromB}
	c.open = ch
	return ch
}

// recipient finds the inbox of the i-th recipient. Messages of one conversation mostly have the same recipients in the
// same order: then it costs one comparison.
func (w *writer) recipient(c *convHead, i int, user string) (*inboxHead, error) {
	if i < len(c.recipients) && c.recipients[i].user == user {
		return c.recipients[i].inbox, nil
	}
	h, err := w.inbox(user)
	if err != nil {
		return nil, err
	}
	if i == len(c.recipients) {
		c.recipients = append(c.recipients, recipient{h.user, h})
	}
	return h, nil
}

// feed appends a reference to an inbox and returns its seq.
func (w *writer) feed(h *inboxHead, m *store.Send, lsn, index uint64) uint64 {
	if h.batch != w.batch {
		h.batch, h.first = w.batch, h.seq+1
		h.runs, h.run, h.conv, h.minTS = h.runs[:0], wire.Run{}, "", m.TS
		w.fedInboxes = append(w.fedInboxes, h)
	}
	h.seq++
	h.maxTS, h.minTS = max(h.maxTS, m.TS), min(h.minTS, m.TS)
	if r := &h.run; r.LSN == lsn && r.Index+r.Count == index {
		r.Count++
		return h.seq
	}
	h.closeRun()
	h.run = wire.Run{Count: 1, Conv: m.Conv, Cseq: m.Cseq, LSN: lsn, Index: index}
	return h.seq
}

func (h *inboxHead) closeRun() {
	if h.run.Count > 0 {
		h.runs = wire.AppendRun(h.runs, &h.run, h.conv)
		h.conv = h.run.Conv
	}
}

// flush writes what the Sends and marks have gathered.
func (w *writer) flush() error {
	for _, ch := range w.chunks {
		if err := w.flushChunk(ch); err != nil {
			return err
		}
	}
	for _, c := range w.touched {
		if err := w.flushRecency(c); err != nil {
			return err
		}
	}
	for _, h := range w.fedInboxes {
		h.closeRun()
		w.key = keyNum(w.key[:0], tabInbox, h.user, h.first)
		w.val = appendRecord(w.val[:0], h)
		if err := w.pb.Set(w.key, w.val, nil); err != nil {
			return err
		}
		if cap(h.runs) > 256 {
			h.runs = nil // one big batch must not make every cached inbox big
		}
	}
	for _, v := range w.dirty {
		v.dirty = false
		w.key = keyView(w.key[:0], v.key.user, v.key.conv)
		w.val = v.append(w.val[:0])
		if err := w.pb.Set(w.key, w.val, nil); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) flushChunk(ch *openChunk) error {
	last := ch.msgs[len(ch.msgs)-1]
	ch.ref.count, ch.ref.lastID, ch.ref.lastTS = uint64(len(ch.msgs)), last.ID, last.TS
	w.key = keyLog(w.key[:0], ch.ref.lsn)
	w.val, w.metaScratch = wire.AppendChunk(w.val[:0], w.metaScratch, ch.head.conv, ch.msgs, w.lastID)
	if err := w.pb.Set(w.key, w.val, nil); err != nil {
		return err
	}
	w.key = keyNum(w.key[:0], tabChunk, string(ch.head.conv), ch.ref.first)
	w.val = ch.ref.append(w.val[:0])
	if err := w.pb.Set(w.key, w.val, nil); err != nil || ch.head.direct {
		return err
	}
	return w.indexOwn(ch)
}

// flushRecency moves a direct conversation to the top of both users' lists. Groups are not kept in order: moving
// one in a thousand lists for every batch would cost more than sorting a user's groups when he asks for them.
func (w *writer) flushRecency(c *convHead) error {
	if !c.direct {
		return nil
	}
	users := [2]string{c.a, c.b}
	n := 2
	if c.a == c.b {
		n = 1
	}
	for _, u := range users[:n] {
		if c.startID != 0 {
			w.key = keyNum(w.key[:0], tabRecent, u, ^uint64(c.startID))
			if err := w.pb.Delete(w.key, nil); err != nil {
				return err
			}
		}
		w.key = keyNum(w.key[:0], tabRecent, u, ^uint64(c.lastID))
		if err := w.pb.Set(w.key, []byte(c.conv), nil); err != nil {
			return err
		}
	}
	return nil
}
