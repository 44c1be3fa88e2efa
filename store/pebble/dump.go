package pebble

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	pdb "github.com/cockroachdb/pebble/v2"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/dump"
	"github.com/mqim/mqim/store/wire"
)

var _ dump.Source = (*Store)(nil)

// State counts the openings of the store that could change it.
func (s *Store) State() string { return s.epoch + "." + strconv.FormatUint(s.boot, 10) }

// Dump calls row for all that is stored, table by table, each in the order of its keys; see package dump. What damaged is
// asked about are chunks and publications: where an index is damaged, which everything else hangs on, Dump ends.
func (s *Store) Dump(ctx context.Context, damaged func(error) error, row func(dump.Row) error) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.life.RUnlock()
	d := &dumper{s: s, ctx: ctx, damaged: damaged, row: row}
	for _, step := range []func() error{
		d.convs, d.recalls, d.owns, d.views, d.deletions, d.directs, d.inboxes, d.floors, d.cids,
		d.groups, d.members, d.memberships, d.people, d.notices, d.sessions, d.filters, d.publications, d.retained,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// dumper is one walk over the store.
type dumper struct {
	s       *Store
	ctx     context.Context
	damaged func(error) error
	row     func(dump.Row) error
	n       int
}

func (d *dumper) put(k dump.Kind, values ...any) error {
	if d.n++; d.n%1024 == 0 && d.ctx.Err() != nil {
		return d.ctx.Err()
	}
	return d.row(dump.Row{Kind: k, Values: values})
}

// table walks over a table. A key that begins with names, each closed by a zero byte, has so many of them cut off; take gets
// them, what is left of the key, and the value. All are valid until it returns.
func (d *dumper) table(table byte, names int, take func(names [3]string, rest, value []byte) error) error {
	return d.keys([]byte{table}, []byte{table + 1}, names, take)
}

func (d *dumper) keys(lower, upper []byte, names int, take func(names [3]string, rest, value []byte) error) error {
	it, err := d.s.db.NewIter(&pdb.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return d.s.wrap(err, "table %c", lower[0])
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return d.s.wrap(err, "table %c", lower[0])
		}
		rest := it.Key()[1:]
		var parts [3]string
		for i := range names {
			name, after, ok := bytes.Cut(rest, []byte{0})
			if !ok {
				return d.s.corrupt("key %q", it.Key())
			}
			parts[i], rest = string(name), after
		}
		if err := take(parts, rest, v); err != nil {
			return err
		}
	}
	return d.s.wrap(it.Error(), "table %c", lower[0])
}

// number is what is left of a key that ends with a number.
func (d *dumper) number(table byte, name string, rest []byte) (uint64, error) {
	if len(rest) != 8 {
		return 0, d.s.corrupt("key %c %q %q", table, name, rest)
	}
	return tail(rest), nil
}

// convs has each conversation's chunks, and then its head.
func (d *dumper) convs() error {
	var at store.Conv
	var last chunkRef
	head := func() error {
		if at == "" {
			return nil
		}
		return d.put(dump.Convs, string(at), last.last(), last.lastID, last.cumA+last.inA, last.cumB+last.inB)
	}
	err := d.table(tabChunk, 1, func(names [3]string, rest, value []byte) error {
		conv := store.Conv(names[0])
		if _, err := d.number(tabChunk, names[0], rest); err != nil {
			return err
		}
		r, ok := decodeChunkRef(rest, value)
		if !ok {
			return d.s.corrupt("chunk of %s from cseq %d", conv, tail(rest))
		}
		if conv != at {
			if err := head(); err != nil {
				return err
			}
			at = conv
		}
		last = r
		return d.chunk(conv, &r)
	})
	if err != nil {
		return err
	}
	return head()
}

// chunk has one chunk, whose value is copied as it is: chunks are looked for by conversation and cseq in the copy.
func (d *dumper) chunk(conv store.Conv, r *chunkRef) error {
	var key [9]byte
	value, closer, err := d.s.db.Get(keyLog(key[:0], r.lsn))
	if errors.Is(err, pdb.ErrNotFound) {
		return d.damaged(d.s.corrupt("%s: chunk from cseq %d, lsn %d is missing", conv, r.first, r.lsn))
	}
	if err != nil {
		return d.pass(d.s.wrap(err, "%s: chunk from cseq %d, lsn %d", conv, r.first, r.lsn))
	}
	defer closer.Close()
	c, err := d.s.takeApart(value, conv, r.lsn, r.first)
	if err == nil && uint64(c.Count) != r.count {
		err = d.s.corrupt("%s: chunk from cseq %d, lsn %d has %d messages, want %d", conv, r.first, r.lsn, c.Count, r.count)
	}
	if err != nil {
		return d.pass(err)
	}
	maxTS := int64(0)
	m := c.Walk()
	for i := range c.Count {
		if !m.Next() {
			return d.damaged(d.s.wrap(wire.ErrChunk, "%s: chunk from cseq %d, lsn %d", conv, r.first, r.lsn))
		}
		if i == 0 || m.TS > maxTS {
			maxTS = m.TS
		}
	}
	return d.put(dump.Chunks, string(conv), r.first, r.count, maxTS, r.cumA, r.cumB, r.inA, r.inB, string(value))
}

// pass asks about damage and returns every other error.
func (d *dumper) pass(err error) error {
	if errors.Is(err, store.ErrCorrupt) {
		return d.damaged(err)
	}
	return err
}

func (d *dumper) recalls() error {
	return d.table(tabRecall, 1, func(names [3]string, rest, value []byte) error {
		cseq, err := d.number(tabRecall, names[0], rest)
		if err != nil {
			return err
		}
		return d.put(dump.Recalls, names[0], cseq, string(value))
	})
}

// owns has who has sent what to groups, and a view for each sender who has none: the number of messages stands there.
func (d *dumper) owns() error {
	var at [2]string
	var total uint64
	view := func() error {
		if at[0] == "" {
			return nil
		}
		v, err := d.s.get(keyView(nil, at[1], store.Conv(at[0])))
		if err != nil || v != nil {
			return err
		}
		return d.put(dump.Views, at[0], at[1], uint64(0), uint64(0), uint64(0), total)
	}
	err := d.table(tabOwn, 2, func(names [3]string, rest, value []byte) error {
		first, err := d.number(tabOwn, names[0], rest)
		if err != nil {
			return err
		}
		x := wire.Decoder{B: value}
		before := x.Uvarint()
		list := string(value[x.Off:])
		n := before + 1
		for ; x.Off < len(value); n++ {
			x.Uvarint()
		}
		if x.Bad {
			return d.s.corrupt("messages of %q in %s from cseq %d", names[1], names[0], first)
		}
		if key := [2]string{names[0], names[1]}; key != at {
			if err := view(); err != nil {
				return err
			}
			at = key
		}
		total = n
		return d.put(dump.Owns, names[0], names[1], first, before, list)
	})
	if err != nil {
		return err
	}
	return view()
}

func (d *dumper) views() error {
	return d.table(tabView, 1, func(names [3]string, rest, value []byte) error {
		user, conv := names[0], string(rest)
		group := false
		if _, group = store.Conv(names[0]).Group(); group { // names of users have no slash
			conv, user = names[0], string(rest)
		}
		v, ok := decodeView(value)
		if !ok {
			return d.s.corrupt("watermarks of %q in %s", user, conv)
		}
		own := uint64(0)
		if group {
			it, err := d.s.owns(user, store.Conv(conv))
			if err != nil {
				return err
			}
			own, err = d.s.sentUpTo(it, user, store.Conv(conv), ^uint64(0)-1)
			if err = errors.Join(err, it.Close()); err != nil {
				return err
			}
		}
		return d.put(dump.Views, conv, user, v.read, v.delivered, dump.Bool(v.deleted > 0), own)
	})
}

func (d *dumper) deletions() error {
	return d.table(tabDeleted, 2, func(names [3]string, rest, value []byte) error {
		cseq, err := d.number(tabDeleted, names[0], rest)
		if err != nil {
			return err
		}
		return d.put(dump.Deletions, names[0], names[1], cseq, dump.Bool(string(value) == markOwn))
	})
}

func (d *dumper) directs() error {
	return d.table(tabRecent, 1, func(names [3]string, rest, value []byte) error {
		id, err := d.number(tabRecent, names[0], rest)
		if err != nil {
			return err
		}
		return d.put(dump.Directs, names[0], string(value), int64(^id))
	})
}

// inboxes has each inbox's entries, and then its head.
func (d *dumper) inboxes() error {
	var last record
	at := ""
	head := func() error {
		if at == "" {
			return nil
		}
		f, err := d.s.floor(at)
		if err != nil {
			return err
		}
		return d.put(dump.Inboxes, at, max(last.last(), f.head), last.maxTS, f.trimmed)
	}
	err := d.table(tabInbox, 1, func(names [3]string, rest, value []byte) error {
		user := names[0]
		if _, err := d.number(tabInbox, user, rest); err != nil {
			return err
		}
		r, ok := decodeRecord(rest, value)
		if !ok {
			return d.s.corrupt("inbox of %q, seq %d", user, tail(rest))
		}
		var runs []byte
		var conv store.Conv
		w := r.walk()
		for w.Next() {
			x := w.Run
			x.LSN = 0 // the chunk is the one that begins Index before Cseq
			runs = wire.AppendRun(runs, &x, conv)
			conv = x.Conv
		}
		if w.D.Bad {
			return d.s.corrupt("inbox of %q, seq %d", user, r.first)
		}
		if user != at {
			if err := head(); err != nil {
				return err
			}
			at = user
		}
		last = r
		return d.put(dump.Entries, user, r.first, r.count, r.maxTS, r.minTS, string(runs))
	})
	if err != nil {
		return err
	}
	return head()
}

// floors has the inboxes all of whose entries are trimmed.
func (d *dumper) floors() error {
	return d.table(tabFloor, 0, func(_ [3]string, rest, value []byte) error {
		user := string(rest)
		f, ok := decodeFloor(value)
		if !ok {
			return d.s.corrupt("trimming of the inbox of %q", user)
		}
		_, there, err := d.s.lastRecord(user, ^uint64(0))
		if err != nil || there {
			return err
		}
		return d.put(dump.Inboxes, user, f.head, int64(0), f.trimmed)
	})
}

// cids has each cid once, as the last bucket that knows it has it: the buckets, which are of one order, are merged.
func (d *dumper) cids() error {
	var its []*pdb.Iterator
	defer func() {
		for _, it := range its {
			it.Close()
		}
	}()
	for _, b := range d.s.w.buckets {
		it, err := d.s.db.NewIter(&pdb.IterOptions{LowerBound: keyBucket(nil, b), UpperBound: keyBucket(nil, b+1)})
		if err != nil {
			return d.s.wrap(err, "cids")
		}
		its = append(its, it)
		it.First()
	}
	for {
		var best *pdb.Iterator
		for _, it := range its {
			if err := it.Error(); err != nil {
				return d.s.wrap(err, "cids")
			}
			if it.Valid() && (best == nil || bytes.Compare(it.Key()[9:], best.Key()[9:]) <= 0) {
				best = it
			}
		}
		if best == nil {
			return nil
		}
		key := bytes.Clone(best.Key()[9:])
		if err := d.cid(best, key); err != nil {
			return err
		}
		for _, it := range its {
			if it.Valid() && bytes.Equal(it.Key()[9:], key) {
				it.Next()
			}
		}
	}
}

func (d *dumper) cid(it *pdb.Iterator, key []byte) error {
	v, err := it.ValueAndErr()
	if err != nil {
		return d.s.wrap(err, "cids")
	}
	from, rest, ok := bytes.Cut(key, []byte{0})
	if !ok || len(rest) < 2 {
		return d.s.corrupt("key %q", it.Key())
	}
	r, ok := decodeCid(v, string(from))
	if !ok {
		return d.s.corrupt("record of a cid of %q", from)
	}
	return d.put(dump.Cids, string(from)+"\x00"+string(rest[2:]), r.hash, string(r.conv), r.cseq, r.id, r.ts)
}

func (d *dumper) groups() error {
	return d.table(tabGroupRecord, 0, func(_ [3]string, rest, value []byte) error {
		g, ok := decodeGroup(string(rest), value)
		if !ok {
			return d.s.corrupt("record of group %q", rest)
		}
		return d.put(dump.Groups, g.ID, g.Version, g.Name, g.Notice, dump.Bool(g.Open), dump.Bool(g.HistoryAll), uint64(g.Receipts), g.Owner,
			g.Created, g.MemberCount, g.LargeFrom, g.Ended)
	})
}

func (d *dumper) members() error {
	for _, table := range []byte{tabMember, tabFormer} {
		err := d.table(table, 1, func(names [3]string, rest, value []byte) error {
			m, ok := decodeMember(names[0], string(rest), value)
			if !ok {
				return d.s.corrupt("member %q of group %q", rest, names[0])
			}
			return d.put(dump.Members, m.Group, m.User, dump.Bool(m.Role != store.NoRole), uint64(m.Role), m.Joined, m.MutedUntil,
				string(wire.AppendSpans(nil, m.Spans)))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *dumper) memberships() error {
	return d.table(tabMembership, 1, func(names [3]string, rest, value []byte) error {
		x := wire.Decoder{B: value}
		flags := x.Byte()
		left := int64(0)
		if flags&listCurrent == 0 {
			left = int64(x.Uvarint())
		}
		if x.Bad {
			return d.s.corrupt("group %q of %q", rest, names[0])
		}
		return d.put(dump.Memberships, names[0], string(rest), dump.Bool(flags&listCurrent != 0), dump.Bool(flags&listLarge != 0), left)
	})
}

// people has block lists, users, and devices with their cursors.
func (d *dumper) people() error {
	return errors.Join(
		d.table(tabBlock, 1, func(names [3]string, rest, _ []byte) error {
			return d.put(dump.Blocks, names[0], string(rest))
		}),
		d.table(tabUser, 0, func(_ [3]string, rest, value []byte) error {
			u, ok := decodeUser(string(rest), value)
			if !ok {
				return d.s.corrupt("user %q", rest)
			}
			return d.put(dump.Users, u.Name, u.Cursor, u.LastSeen)
		}),
		d.table(tabDevice, 1, func(names [3]string, rest, value []byte) error {
			v, ok := decodeDevice(store.DeviceKey{User: names[0], Device: string(rest)}, value)
			if !ok {
				return d.s.corrupt("device %q of %q", rest, names[0])
			}
			return d.put(dump.Devices, v.User, v.Device, v.Cursor, v.LastSeen, v.Expires, v.Profile)
		}),
		d.table(tabCursor, 2, func(names [3]string, rest, value []byte) error {
			x := wire.Decoder{B: value}
			cseq := x.Uvarint()
			if x.Bad {
				return d.s.corrupt("cursor of device %q of %q in %s", names[1], names[0], rest)
			}
			return d.put(dump.Cursors, names[0], names[1], string(rest), cseq)
		}),
	)
}

func (d *dumper) notices() error {
	return d.table(tabNotice, 1, func(names [3]string, rest, value []byte) error {
		if len(rest) != 16 {
			return d.s.corrupt("key N %q %q", names[0], rest)
		}
		return d.put(dump.Notices, names[0], int64(tail(rest[:8])), tail(rest), string(value))
	})
}

// sessions has each session with what is its own.
func (d *dumper) sessions() error {
	return d.table(tabSession, 0, func(_ [3]string, rest, value []byte) error {
		client := string(rest)
		// As if the store had never been opened: it is the one who opens the copy who finds it cut off.
		x, cut, ok := decodeSession(client, value, d.s.boot, 0)
		if !ok {
			return d.s.corrupt("session %q", client)
		}
		state := uint64(dump.Offline)
		switch {
		case cut || x.Online:
			state = dump.Online
			x.Since = rawSince(value)
		case x.Cut:
			state = dump.Cut
		}
		q, err := d.s.viewQueue(d.s.db, client, ^uint64(0))
		if err != nil {
			return err
		}
		if err := q.it.Close(); err != nil {
			return d.s.wrap(err, "queue of %q", client)
		}
		queue := dump.Queue(client)
		if err := d.put(dump.Sessions, client, x.User, uint64(x.Expiry), x.Since, state, "", queue, q.Head, q.Passed); err != nil {
			return err
		}
		return d.session(client, queue, &q)
	})
}

// rawSince is the Since of a session's record, whatever became of its connection.
func rawSince(value []byte) int64 {
	d := wire.Decoder{B: value}
	d.Bytes()
	d.Uvarint()
	return d.Varint()
}

func (d *dumper) session(client, queue string, q *queueView) error {
	name := func(table byte) (lower, upper []byte) {
		lower = keyName(nil, table, client)
		return lower, after(lower)
	}
	lower, upper := name(tabSub)
	err := d.keys(lower, upper, 1, func(_ [3]string, rest, value []byte) error {
		return d.put(dump.Subscriptions, client, string(rest), string(value))
	})
	if err != nil {
		return err
	}
	lower, upper = keyNum(nil, tabQueue, client, q.kept), after(keyName(nil, tabQueue, client))
	err = d.keys(lower, upper, 1, func(_ [3]string, rest, value []byte) error {
		if _, err := d.number(tabQueue, client, rest); err != nil {
			return err
		}
		r := queueRecord{first: tail(rest), d: wire.Decoder{B: value}}
		if r.count = r.d.Uvarint(); r.d.Bad || r.count == 0 {
			return d.s.corrupt("queue of %q, seq %d", client, r.first)
		}
		var runs []byte
		pub := ""
		for x, ok := r.next(); ok; x, ok = r.next() {
			to := wire.PubRun{Count: x.count, Pub: pubName(x.lsn), Index: x.index, QoS: x.qos, Options: x.options}
			runs = wire.AppendPubRun(runs, &to, pub)
			pub = to.Pub
		}
		if r.d.Bad || r.d.Off < len(value) {
			return d.s.corrupt("queue of %q, seq %d", client, r.first)
		}
		return d.put(dump.Queues, queue, r.first, r.count, string(runs))
	})
	if err != nil {
		return err
	}
	_, upper = name(tabOutbound)
	err = d.keys(keyNum(nil, tabOutbound, client, q.Passed+1), upper, 1, func(_ [3]string, rest, v []byte) error {
		if len(v) != 3 || len(rest) != 8 {
			return d.s.corrupt("what was sent to %q", client)
		}
		return d.put(dump.Outbound, queue, tail(rest), uint64(binary.BigEndian.Uint16(v)), dump.Bool(v[2]&outReceived != 0), dump.Bool(v[2]&outDone != 0))
	})
	if err != nil {
		return err
	}
	lower, upper = name(tabInbound)
	return d.keys(lower, upper, 1, func(_ [3]string, rest, _ []byte) error {
		if len(rest) != 2 {
			return d.s.corrupt("what %q has sent", client)
		}
		return d.put(dump.Inbound, queue, uint64(binary.BigEndian.Uint16(rest)))
	})
}

// pubName names publications in records.
func pubName(lsn uint64) string { return fmt.Sprintf("lsn%016x", lsn) }

func (d *dumper) filters() error {
	return d.table(tabFilter, 0, func(_ [3]string, rest, value []byte) error {
		_, end, ok := wire.PathOf(append([]byte{tabFilter}, rest...))
		share, client, ok2 := bytes.Cut(end, []byte{0})
		if !ok || !ok2 {
			return d.s.corrupt("key t %q", rest)
		}
		return d.put(dump.Filters, string(rest[:len(rest)-len(end)]), string(share), string(client), string(value))
	})
}

// publications has what queues refer to, and their references.
func (d *dumper) publications() error {
	it, err := d.s.db.NewIter(&pdb.IterOptions{LowerBound: []byte{tabPubs}, UpperBound: []byte{tabPubs + 1}})
	if err != nil {
		return d.s.wrap(err, "publications")
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		if len(it.Key()) != 9 {
			return d.s.corrupt("key %q", it.Key())
		}
		lsn := tail(it.Key())
		v, err := it.ValueAndErr()
		if err == nil {
			_, err = wire.ParsePubs(v, 0, 0)
		}
		if err != nil {
			err = d.pass(d.s.wrap(err, "publications at lsn %d", lsn))
		} else {
			err = d.put(dump.Pubs, pubName(lsn), string(v))
		}
		if err != nil {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return d.s.wrap(err, "publications")
	}
	return d.table(tabPubRef, 0, func(_ [3]string, rest, _ []byte) error {
		if len(rest) < 9 {
			return d.s.corrupt("key f %q", rest)
		}
		return d.put(dump.PubRefs, pubName(binary.BigEndian.Uint64(rest)), dump.Queue(string(rest[8:])))
	})
}

// retained has retained messages and wills.
func (d *dumper) retained() error {
	err := d.table(tabRetained, 0, func(_ [3]string, rest, value []byte) error {
		x := wire.Decoder{B: value}
		m, ok := wire.ReadWhole(&x)
		if !ok {
			return d.s.corrupt("retained message %q", rest)
		}
		return d.put(dump.Retained, string(rest), m.Expires, string(value))
	})
	if err != nil {
		return err
	}
	return d.table(tabWill, 0, func(_ [3]string, rest, value []byte) error {
		if _, _, ok := wire.DecodeWill(string(rest), value); !ok {
			return d.s.corrupt("will of %q", rest)
		}
		return d.put(dump.Wills, string(rest), string(value))
	})
}
