package mysql

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// chunkRound is how many chunks are read at once where each may be large.
const chunkRound = 16

// chunkKey names a chunk.
type chunkKey struct {
	conv  store.Conv
	first uint64
}

func (k chunkKey) compare(o chunkKey) int {
	return cmp.Or(strings.Compare(string(k.conv), string(o.conv)), cmp.Compare(k.first, o.first))
}

// place is one message.
type place struct {
	conv store.Conv
	cseq uint64
}

// edit does the recalls and deletions of the batch.
func (w *writer) edit(ctx context.Context, b *store.Batch) error {
	if len(b.Recalls) == 0 && len(b.Deletes) == 0 {
		return nil
	}
	recalls := map[place][]*store.Recall{}
	hide := map[place][]viewKey{}
	for _, r := range b.Recalls {
		r.Err = store.ErrNotFound
		recalls[place{r.Conv, r.Cseq}] = append(recalls[place{r.Conv, r.Cseq}], r)
	}
	for i := range b.Deletes {
		d := &b.Deletes[i]
		for _, n := range d.Cseqs {
			if w.there(d, n) {
				p := place{d.Conv, n}
				hide[p] = append(hide[p], viewKey{d.User, d.Conv})
			}
		}
	}
	chunks, err := w.locate(ctx, recalls, hide)
	if err != nil {
		return err
	}
	e := editor{w: w, recalls: recalls, hide: hide, chunks: chunks}
	keys := slices.SortedFunc(mapKeys(chunks), chunkKey.compare)
	for round := range slices.Chunk(keys, chunkRound) {
		w.q.many(getChunks, e.take, len(round), func(i int, args []any) []any {
			return append(args, string(round[i].conv), round[i].first)
		})
		if err := w.run(ctx); err != nil {
			return err
		}
	}
	e.flush()
	return nil
}

func mapKeys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// there reports whether the user was there for a message.
func (w *writer) there(d *store.Delete, cseq uint64) bool {
	id, inGroup := d.Conv.Group()
	if !inGroup {
		return true
	}
	m := w.members[viewKey{d.User, d.Conv}]
	if m == nil {
		return false
	}
	x := ended(*m, w.groups[id].Ended)
	return x.Has(cseq)
}

// locate finds the chunks that hold messages, and which those are.
func (w *writer) locate(ctx context.Context, recalls map[place][]*store.Recall, hide map[place][]viewKey) (map[chunkKey][]uint64, error) {
	wanted := map[place]bool{}
	for p := range recalls {
		wanted[p] = true
	}
	for p := range hide {
		wanted[p] = true
	}
	chunks := map[chunkKey][]uint64{}
	for p := range wanted {
		w.q.get(refAt, func(r *sql.Rows) error {
			x, err := scanRef(r)
			if err == nil && p.cseq <= x.last() {
				k := chunkKey{p.conv, x.first}
				chunks[k] = append(chunks[k], p.cseq)
			}
			return err
		}, string(p.conv), p.cseq)
	}
	return chunks, w.run(ctx)
}

// editor rewrites chunks without the bodies of what is recalled, and finds out who sent what is deleted.
type editor struct {
	w       *writer
	recalls map[place][]*store.Recall
	hide    map[place][]viewKey
	chunks  map[chunkKey][]uint64
	marks   []mark
	tombs   []tomb
}

type mark struct {
	viewKey
	cseq uint64
	own  bool
}

type tomb struct {
	place
	sender string
}

// take is called for each chunk.
func (e *editor) take(r *sql.Rows) error {
	s := e.w.s
	k, c, err := s.scanChunk(r)
	if err != nil {
		return err
	}
	ms, err := c.Messages(k.conv, 0, c.Count)
	if err != nil {
		return s.damaged(err, k)
	}
	changed := false
	for _, cseq := range e.chunks[k] {
		m := &ms[cseq-k.first]
		p := place{k.conv, cseq}
		for _, key := range e.hide[p] {
			e.marks = append(e.marks, mark{key, cseq, m.From == key.user})
			e.w.views[key].deleted, e.w.views[key].dirty = true, true
		}
		list := e.recalls[p]
		for _, x := range list {
			x.Err = nil
		}
		if len(list) > 0 && !m.Recalled {
			m.Recalled, m.Body, changed = true, nil, true
			e.tombs = append(e.tombs, tomb{p, m.From})
		}
	}
	if changed {
		all := make([]*store.Message, len(ms))
		for i := range ms {
			all[i] = &ms[i]
		}
		body, _ := wire.AppendChunk(nil, nil, k.conv, all, ms[len(ms)-1].ID)
		e.w.later.do(setChunk, body, string(k.conv), k.first)
	}
	return nil
}

func (e *editor) flush() {
	slices.SortFunc(e.tombs, func(a, b tomb) int {
		return cmp.Or(strings.Compare(string(a.conv), string(b.conv)), cmp.Compare(a.cseq, b.cseq))
	})
	e.w.later.many(addRecalls, nil, len(e.tombs), func(i int, args []any) []any {
		return append(args, string(e.tombs[i].conv), e.tombs[i].cseq, e.tombs[i].sender)
	})
	slices.SortFunc(e.marks, func(a, b mark) int {
		return cmp.Or(strings.Compare(a.user, b.user), strings.Compare(string(a.conv), string(b.conv)), cmp.Compare(a.cseq, b.cseq))
	})
	e.w.later.many(addDeletions, nil, len(e.marks), func(i int, args []any) []any {
		m := &e.marks[i]
		return append(args, m.user, string(m.conv), m.cseq, m.own)
	})
}

// marks moves watermarks forward, to the head at most.
func (w *writer) marks(b *store.Batch) {
	move := func(m *store.Mark, at func(*view) *uint64) {
		v := w.views[viewKey{m.User, m.Conv}]
		to := min(m.Cseq, w.heads[m.Conv])
		p := at(&v.view)
		if m.Moved = to > *p; m.Moved {
			*p, v.dirty = to, true
		}
	}
	for _, m := range b.Reads {
		move(m, func(v *view) *uint64 { return &v.read })
	}
	for _, m := range b.Delivered {
		move(m, func(v *view) *uint64 { return &v.delivered })
	}
}

// records adds block lists, users, devices and places in large groups. Where something occurs twice in a statement, the
// later row counts.
func (w *writer) records(b *store.Batch) {
	q := w.later
	blocks := map[[2]string]bool{}
	for i := range b.Blocks {
		blocks[[2]string{b.Blocks[i].User, b.Blocks[i].Peer}] = b.Blocks[i].Remove
	}
	for _, k := range slices.SortedFunc(mapKeys(blocks), func(a, b [2]string) int {
		return cmp.Or(strings.Compare(a[0], b[0]), strings.Compare(a[1], b[1]))
	}) {
		if blocks[k] {
			q.do(dropBlock, k[0], k[1])
		} else {
			q.do(addBlock, k[0], k[1])
		}
	}
	users := slices.Clone(b.Users)
	slices.SortStableFunc(users, func(a, b store.User) int { return strings.Compare(a.Name, b.Name) })
	q.many(setUsers, nil, len(users), func(i int, args []any) []any {
		return append(args, users[i].Name, users[i].Cursor, users[i].LastSeen)
	})
	devices := slices.Clone(b.Devices)
	slices.SortStableFunc(devices, func(a, b store.Device) int { return compareDevices(a.DeviceKey, b.DeviceKey) })
	q.many(setDevices, nil, len(devices), func(i int, args []any) []any {
		d := &devices[i]
		return append(args, d.User, d.Device, d.Cursor, d.LastSeen, d.Expires, d.Profile)
	})
	removed := slices.Clone(b.Removed)
	slices.SortFunc(removed, compareDevices)
	for _, k := range removed {
		q.do(dropDevice, k.User, k.Device)
	}
	for _, k := range removed {
		q.do(dropCursors, k.User, k.Device)
	}
	cursors := slices.Clone(b.Cursors)
	slices.SortFunc(cursors, func(a, b store.Cursor) int {
		return cmp.Or(compareDevices(a.DeviceKey, b.DeviceKey), strings.Compare(string(a.Conv), string(b.Conv)))
	})
	q.many(setCursors, nil, len(cursors), func(i int, args []any) []any {
		c := &cursors[i]
		return append(args, c.User, c.Device, string(c.Conv), c.Cseq)
	})
}

func compareDevices(a, b store.DeviceKey) int {
	return cmp.Or(strings.Compare(a.User, b.User), strings.Compare(a.Device, b.Device))
}

// flushNotices adds notices; the same one twice is one.
func (w *writer) flushNotices(notices []store.Notice) {
	list := slices.Clone(notices)
	slices.SortFunc(list, func(a, b store.Notice) int {
		return cmp.Or(strings.Compare(a.To, b.To), cmp.Compare(a.TS, b.TS), slices.Compare(a.Payload, b.Payload))
	})
	w.q.many(addNotices, nil, len(list), func(i int, args []any) []any {
		n := &list[i]
		return append(args, n.To, n.TS, xxhash.Sum64(n.Payload), append([]byte{}, n.Payload...))
	})
}

// chunkRef is what is known of a chunk without its messages.
type chunkRef struct {
	first, count uint64
	cumA, cumB   uint64 // messages of the first and the second user of a direct conversation before it
	inA, inB     uint64 // and within it
}

func (r *chunkRef) last() uint64 { return r.first + r.count - 1 }

func scanRef(r *sql.Rows) (x chunkRef, err error) {
	err = r.Scan(&x.first, &x.count, &x.cumA, &x.cumB, &x.inA, &x.inB)
	return x, err
}

// scanChunk takes a row of conv, first, n, body apart. The chunk is valid until the next row.
func (s *Store) scanChunk(r *sql.Rows) (k chunkKey, c wire.Chunk, err error) {
	var body sql.RawBytes
	var n int
	if err := r.Scan(&k.conv, &k.first, &n, &body); err != nil {
		return k, c, err
	}
	c, err = wire.ParseChunk(body)
	if err == nil && (string(c.Conv) != string(k.conv) || c.First != k.first || c.Count != n) {
		err = fmt.Errorf("%w: it is the one of %q from cseq %d with %d messages", wire.ErrChunk, c.Conv, c.First, c.Count)
	}
	if err != nil {
		return k, c, s.damaged(err, k)
	}
	return k, c, nil
}

// damaged is the error for a chunk that does not decode.
func (s *Store) damaged(err error, k chunkKey) error {
	return s.corrupt("%s: chunk from cseq %d: %v", k.conv, k.first, err)
}
