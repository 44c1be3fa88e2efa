package pebble

import (
	"errors"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// The value of a deletion mark: who sent the message.
const (
	markOwn   = "o"
	markOther = "p"
)

// chunkValue is a copy of a chunk's value as this batch leaves it; nil when retention has removed it.
func (w *writer) chunkValue(r *chunkRef) ([]byte, error) {
	if v, ok := w.rewritten[r.lsn]; ok {
		return v, nil
	}
	return w.s.get(keyLog(nil, r.lsn))
}

// recall rewrites the chunk without the body and marks the message for the unread counts.
func (w *writer) recall(r *store.Recall) error {
	r.Err = nil
	ref, ok, err := w.s.refAt(r.Conv, r.Cseq)
	if err != nil {
		return err
	}
	if !ok || r.Cseq < ref.first {
		r.Err = store.ErrNotFound
		return nil
	}
	v, err := w.chunkValue(&ref)
	if err != nil {
		return err
	}
	if v == nil {
		return w.s.corrupt("%s: chunk from cseq %d, lsn %d is missing", r.Conv, ref.first, ref.lsn)
	}
	c, err := wire.ParseChunk(v)
	if err != nil {
		return w.s.wrap(err, "%s: chunk from cseq %d, lsn %d", r.Conv, ref.first, ref.lsn)
	}
	ms, err := c.Messages(r.Conv, 0, c.Count)
	if err != nil || uint64(len(ms)) != ref.count || c.First != ref.first {
		return w.s.wrap(errors.Join(wire.ErrChunk, err), "%s: chunk from cseq %d, lsn %d", r.Conv, ref.first, ref.lsn)
	}
	m := &ms[r.Cseq-ref.first]
	if m.Recalled {
		w.repeats = true
		return nil
	}
	m.Recalled, m.Body = true, nil
	all := make([]*store.Message, len(ms))
	for i := range ms {
		all[i] = &ms[i]
	}
	v, w.metaScratch = wire.AppendChunk(nil, w.metaScratch, r.Conv, all, ms[len(ms)-1].ID+c.Above)
	if w.rewritten == nil {
		w.rewritten = map[uint64][]byte{}
	}
	w.rewritten[ref.lsn] = v
	w.key = keyLog(w.key[:0], ref.lsn)
	if err := w.pb.Set(w.key, v, nil); err != nil {
		return err
	}
	w.key = keyNum(w.key[:0], tabRecall, string(r.Conv), r.Cseq)
	return w.pb.Set(w.key, []byte(m.From), nil)
}

// hide sets deletion marks on those messages that exist, in a group on those that the user was there for.
func (w *writer) hide(d *store.Delete) error {
	v, err := w.view(d.User, d.Conv)
	if err != nil {
		return err
	}
	var m store.Member
	group, inGroup := d.Conv.Group()
	if inGroup {
		if m, err = w.s.member(group, d.User); err != nil {
			return err
		}
	}
	var at struct {
		ref   chunkRef
		chunk wire.Chunk
	}
	for _, cseq := range d.Cseqs {
		if inGroup && !m.Has(cseq) {
			continue
		}
		if cseq < at.ref.first || at.ref.count == 0 || cseq > at.ref.last() {
			ref, ok, err := w.s.refAt(d.Conv, cseq)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			value, err := w.chunkValue(&ref)
			if err != nil {
				return err
			}
			c, err := wire.ParseChunk(value)
			if err != nil {
				return w.s.wrap(err, "%s: chunk from cseq %d, lsn %d", d.Conv, ref.first, ref.lsn)
			}
			at.ref, at.chunk = ref, c
		}
		if err := w.hideOne(d, v, &at.chunk, cseq); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) hideOne(d *store.Delete, v *viewEntry, c *wire.Chunk, cseq uint64) error {
	w.key = keyDeleted(w.key[:0], d.User, d.Conv, cseq)
	old, err := w.s.get(w.key)
	if err != nil {
		return err
	}
	if old != nil {
		w.repeats = true
		return nil
	}
	m := c.Walk()
	for n := c.First; n <= cseq; n++ {
		if !m.Next() {
			return w.s.wrap(wire.ErrChunk, "%s: chunk from cseq %d", d.Conv, c.First)
		}
	}
	mark := markOther
	if string(m.Sender()) == d.User {
		mark = markOwn
	}
	v.deleted++
	w.touch(v)
	return w.pb.Set(w.key, []byte(mark), nil)
}

func readMark(v *view) *uint64      { return &v.read }
func deliveredMark(v *view) *uint64 { return &v.delivered }

// move moves a watermark, which of says, forward, to the head at most.
func (w *writer) move(m *store.Mark, of func(*view) *uint64) error {
	m.Moved = false
	c, err := w.conv(m.Conv)
	if err != nil {
		return err
	}
	v, err := w.view(m.User, m.Conv)
	if err != nil {
		return err
	}
	at, to := of(&v.view), min(m.Cseq, c.cseq)
	if to <= *at {
		return nil
	}
	*at, m.Moved = to, true
	w.touch(v)
	return nil
}

// records writes block lists, users and devices.
func (w *writer) records(b *store.Batch) error {
	for i := range b.Blocks {
		x := &b.Blocks[i]
		if err := errors.Join(checkName("user", x.User), checkName("user", x.Peer)); err != nil {
			return err
		}
		w.key = keyPair(w.key[:0], tabBlock, x.User, x.Peer)
		if err := w.put(x.Remove, nil); err != nil {
			return err
		}
	}
	if err := w.users(b.Users); err != nil {
		return err
	}
	for i := range b.Devices {
		d := &b.Devices[i]
		if err := errors.Join(checkName("user", d.User), checkName("device", d.Device)); err != nil {
			return err
		}
		w.key = keyPair(w.key[:0], tabDevice, d.User, d.Device)
		w.val = appendDevice(w.val[:0], d)
		if err := w.put(false, w.val); err != nil {
			return err
		}
	}
	for _, k := range b.Removed {
		w.key = keyPair(w.key[:0], tabDevice, k.User, k.Device)
		if err := w.put(true, nil); err != nil {
			return err
		}
		if err := w.s.dropCursors(w.pb, k); err != nil {
			return err
		}
	}
	return w.cursors(b.Cursors)
}

// users moves what is kept of users forward.
func (w *writer) users(list []store.User) error {
	if len(list) == 0 {
		return nil
	}
	now := make(map[string]store.User, len(list))
	for i := range list {
		u := &list[i]
		if err := checkName("user", u.Name); err != nil {
			return err
		}
		x, ok := now[u.Name]
		if !ok {
			var err error
			if x, err = w.s.user(u.Name); err != nil {
				return err
			}
		}
		x.Cursor, x.LastSeen = max(x.Cursor, u.Cursor), max(x.LastSeen, u.LastSeen)
		now[u.Name] = x
		w.key = keyUser(w.key[:0], u.Name)
		w.val = appendUserRecord(w.val[:0], &x)
		if err := w.put(false, w.val); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) put(remove bool, value []byte) error {
	if remove {
		w.deleted.note(w.key[0])
		return w.pb.Delete(w.key, nil)
	}
	return w.pb.Set(w.key, value, nil)
}
