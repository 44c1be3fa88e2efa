package mysql

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// convHead is where a conversation's log ends. The row is locked, so nobody else appends.
type convHead struct {
	conv   store.Conv
	a, b   string // of a direct conversation
	direct bool
	stored bool // there is a row
	cseq   uint64
	lastID int64
	fromA  uint64 // messages so far by a and b
	fromB  uint64
	open   *openChunk // the chunk being filled
	fed    bool       // this batch has appended
}

// inboxHead is where an inbox ends; locked.
type inboxHead struct {
	user   string
	stored bool
	seq    uint64
	maxTS  int64 // greatest TS so far: it never falls, so that records can be searched by age

	first uint64 // seq of the batch's first entry; 0: it has none
	minTS int64
	runs  []byte // closed runs
	run   wire.Run
	conv  store.Conv // of the last closed run
}

// openChunk gathers the messages of one conversation in one batch.
type openChunk struct {
	head       *convHead
	first      uint64
	cumA, cumB uint64
	inA, inB   uint64
	msgs       []*store.Message
	bytes      int
	maxTS      int64
}

type viewKey struct {
	user string
	conv store.Conv
}

func (k viewKey) compare(o viewKey) int {
	return cmp.Or(strings.Compare(string(k.conv), string(o.conv)), strings.Compare(k.user, o.user))
}

// view is a user's relation to a conversation.
type view struct {
	read, delivered uint64
	deleted         bool   // there are deletion marks
	own             uint64 // groups: messages that the user has sent
}

type viewHead struct {
	view
	key    viewKey
	stored bool
	dirty  bool
}

type cidRecord struct {
	hash   uint64
	conv   store.Conv
	cseq   uint64
	id, ts int64
}

type cidKey struct{ from, cid string }

func (k cidKey) text() string { return k.from + "\x00" + k.cid }

// writer is one attempt at one batch: what it has locked and read, and what it is going to write.
type writer struct {
	s     *Store
	l     *lane
	lease *lease // checked when the transaction began
	c     *sql.Conn
	q     *packet // being gathered

	later *packet // what is written after the heads

	convs   map[store.Conv]*convHead
	heads   map[store.Conv]uint64 // cseq of conversations that are only looked at
	inboxes map[string]*inboxHead
	views   map[viewKey]*viewHead // locked
	owns    map[viewKey]uint64    // messages of a sender to a group so far
	groups  map[string]*groupHead
	members map[viewKey]*store.Member // by user and the group's conversation
	cids    map[string]cidRecord      // stored, by key, expired or not
	inBatch map[cidKey]cidRecord

	claims  map[string]uint64 // epochs that stand, this batch's included
	fenced  map[string]bool   // clients of whom nothing is taken
	claimed []*store.Claim    // by client

	lastID  int64
	chunks  []*openChunk
	fed     []*inboxHead // in the order of their first entries
	dups    []dup
	newCids []*store.Send
	listed  map[viewKey]listing // entries of users' lists of groups
	changed map[viewKey]bool    // members
	topics  topicWriter
}

// dup is a Send that stands for a message which is stored.
type dup struct {
	m *store.Send
	r cidRecord
}

func newWriter(l *lane, c *sql.Conn) *writer {
	return &writer{
		s: l.s, l: l, c: c, lease: l.s.lease.Load(), q: l.s.packet(), later: l.s.packet(),
		convs: map[store.Conv]*convHead{}, heads: map[store.Conv]uint64{}, inboxes: map[string]*inboxHead{},
		views: map[viewKey]*viewHead{}, owns: map[viewKey]uint64{}, groups: map[string]*groupHead{},
		members: map[viewKey]*store.Member{}, cids: map[string]cidRecord{}, inBatch: map[cidKey]cidRecord{},
		listed: map[viewKey]listing{}, changed: map[viewKey]bool{},
	}
}

// Lengths of names, as the schema has them.
const (
	nameBytes   = 128
	convBytes   = 300
	deviceBytes = 255
	cidBytes    = 511
)

// checkName refuses names that do not fit, before anything of the batch is sent.
func checkName(what, name string, limit int) error {
	if name == "" || len(name) > limit || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("store.mysql: %s %q is not a name", what, name[:min(len(name), limit)])
	}
	return nil
}

func checkUser(name string) error  { return checkName("user", name, nameBytes) }
func checkConv(c store.Conv) error { return checkName("conversation", string(c), convBytes) }
func checkDevice(k store.DeviceKey) error {
	return errors.Join(checkUser(k.User), checkName("device", k.Device, deviceBytes))
}

// check refuses a batch that cannot be stored, whatever the database holds.
func check(b *store.Batch) error {
	var errs []error
	note := func(err error) {
		if err != nil && len(errs) < 3 {
			errs = append(errs, err)
		}
	}
	for _, c := range b.Claims {
		note(checkName("client", c.Client, clientBytes))
	}
	for _, f := range b.Fences {
		note(checkName("client", f.Client, clientBytes))
	}
	checkTopics(&b.TopicBatch, note)
	for _, m := range b.Sends {
		note(checkConv(m.Conv))
		note(checkUser(m.From))
		if len(m.Cid) > cidBytes {
			note(fmt.Errorf("store.mysql: a cid of %d bytes", len(m.Cid)))
		}
		for i := range m.Inboxes {
			note(checkUser(m.Inboxes[i].User))
		}
		if m.Change != nil {
			for i := range m.Change.Members {
				note(checkUser(m.Change.Members[i].User))
			}
			note(checkOwner(m.Change.Group.Owner))
		}
	}
	for _, list := range [][]*store.Mark{b.Reads, b.Delivered} {
		for _, m := range list {
			note(checkUser(m.User))
			note(checkConv(m.Conv))
		}
	}
	for i := range b.Deletes {
		note(checkUser(b.Deletes[i].User))
		note(checkConv(b.Deletes[i].Conv))
	}
	for i := range b.Blocks {
		note(checkUser(b.Blocks[i].User))
		note(checkUser(b.Blocks[i].Peer))
	}
	for i := range b.Users {
		note(checkUser(b.Users[i].Name))
	}
	for i := range b.Devices {
		note(checkDevice(b.Devices[i].DeviceKey))
	}
	for i := range b.Cursors {
		note(checkDevice(b.Cursors[i].DeviceKey))
		note(checkConv(b.Cursors[i].Conv))
	}
	for i := range b.Notices {
		note(checkName("addressee of a notice", b.Notices[i].To, convBytes))
	}
	return errors.Join(errs...)
}

func checkOwner(name string) error {
	if name == "" {
		return nil
	}
	return checkUser(name)
}

// build locks, reads, numbers and writes, up to COMMIT. Locks are taken in one order by everybody: claims, conversations,
// inboxes, views, sessions, each by key; what is new is inserted in that order too.
func (w *writer) build(ctx context.Context, b *store.Batch) error {
	w.s.begin(w.q, w.lease)
	w.askClaims(b)
	grouped := w.lockConvs(b)
	w.findCids(b.Sends)
	if !grouped {
		w.lockInboxes(b, nil)
		w.lockViews(b)
		w.lockTopics(b)
	}
	if err := w.run(ctx); err != nil {
		return err
	}
	b = w.fence(b)
	if grouped {
		names, err := w.recipients(ctx, b)
		if err != nil {
			return err
		}
		w.lockInboxes(b, names)
		w.lockViews(b)
		w.lockTopics(b)
		if err := w.run(ctx); err != nil {
			return err
		}
	}
	if err := w.edit(ctx, b); err != nil {
		return err
	}
	if err := w.settleTopics(ctx, &b.TopicBatch); err != nil {
		return err
	}
	w.marks(b)
	w.records(b)
	for _, m := range b.Sends {
		if err := w.send(m); err != nil {
			return err
		}
		if m.Err == nil {
			w.topics.inbound(m.Inbound)
		}
	}
	w.topics.apply(&b.TopicBatch)
	w.flush(b)
	w.sign()
	return w.run(ctx)
}

// sign writes the lane's row, in the last packet before COMMIT.
func (w *writer) sign() {
	w.q.do(signWriter, w.l.id, w.l.batch, max(w.lastID, w.s.committed.Load()), time.Now().UnixMilli())
}

func (w *writer) run(ctx context.Context) error { return w.q.run(ctx, w.c) }

func sorted[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func sortedViews[V any](m map[viewKey]V) []viewKey {
	return slices.SortedFunc(maps.Keys(m), viewKey.compare)
}

// lockConvs asks for the heads of conversations that the batch appends to or changes, and for what must be known of
// groups; it reports whether there are any. Heads for watermarks are only looked at.
func (w *writer) lockConvs(b *store.Batch) (grouped bool) {
	for _, m := range b.Sends {
		if w.convs[m.Conv] == nil {
			w.addConv(m.Conv)
		}
		if id, ok := m.Conv.Group(); ok {
			grouped = true
			w.groups[id] = &groupHead{Group: store.Group{ID: id}, conv: m.Conv}
			w.owns[viewKey{m.From, m.Conv}] = 0
			if m.Change == nil {
				w.members[viewKey{m.From, m.Conv}] = nil
				continue
			}
			for i := range m.Change.Members {
				w.members[viewKey{m.Change.Members[i].User, m.Conv}] = nil
			}
		}
	}
	for _, r := range b.Recalls {
		if w.convs[r.Conv] == nil {
			w.addConv(r.Conv)
		}
	}
	w.q.names(lockConvs, w.scanConv, strs(sorted(w.convs)))
	for _, list := range [][]*store.Mark{b.Reads, b.Delivered} {
		for _, m := range list {
			w.heads[m.Conv] = 0
		}
	}
	w.q.names(getConvs, func(r *sql.Rows) error {
		var c convHead
		if err := c.scan(r); err != nil {
			return err
		}
		w.heads[c.conv] = c.cseq
		return nil
	}, strs(sorted(w.heads)))
	for i := range b.Deletes {
		if d := &b.Deletes[i]; isGroup(d.Conv) {
			w.members[viewKey{d.User, d.Conv}] = nil
			id, _ := d.Conv.Group()
			if w.groups[id] == nil {
				w.groups[id] = &groupHead{Group: store.Group{ID: id}, conv: d.Conv}
			}
		}
	}
	w.askGroups()
	return grouped
}

func isGroup(c store.Conv) bool {
	_, ok := c.Group()
	return ok
}

func strs[T ~string](list []T) []string {
	out := make([]string, len(list))
	for i, x := range list {
		out[i] = string(x)
	}
	return out
}

func (w *writer) addConv(conv store.Conv) {
	c := &convHead{conv: conv}
	c.a, c.b, c.direct = conv.Users()
	w.convs[conv] = c
}

func (c *convHead) scan(r *sql.Rows) error {
	return r.Scan(&c.conv, &c.cseq, &c.lastID, &c.fromA, &c.fromB)
}

func (w *writer) scanConv(r *sql.Rows) error {
	var x convHead
	if err := x.scan(r); err != nil {
		return err
	}
	c := w.convs[x.conv]
	c.stored, c.cseq, c.lastID, c.fromA, c.fromB = true, x.cseq, x.lastID, x.fromA, x.fromB
	return nil
}

// lockInboxes asks for the heads of the inboxes of direct messages, and of names.
func (w *writer) lockInboxes(b *store.Batch, names []string) {
	for _, m := range b.Sends {
		if isGroup(m.Conv) {
			continue
		}
		for i := range m.Inboxes {
			w.inboxes[m.Inboxes[i].User] = nil
		}
	}
	for _, u := range names {
		w.inboxes[u] = nil
	}
	for u := range w.inboxes {
		w.inboxes[u] = &inboxHead{user: u}
	}
	w.q.names(lockInboxes, func(r *sql.Rows) error {
		var user string
		var seq, trimmed uint64
		var ts int64
		if err := r.Scan(&user, &seq, &ts, &trimmed); err != nil {
			return err
		}
		h := w.inboxes[user]
		h.stored, h.seq, h.maxTS = true, seq, ts
		return nil
	}, sorted(w.inboxes))
}

// lockViews asks for the views that the batch moves.
func (w *writer) lockViews(b *store.Batch) {
	add := func(k viewKey) { w.views[k] = &viewHead{key: k} }
	for _, list := range [][]*store.Mark{b.Reads, b.Delivered} {
		for _, m := range list {
			add(viewKey{m.User, m.Conv})
		}
	}
	for i := range b.Deletes {
		add(viewKey{b.Deletes[i].User, b.Deletes[i].Conv})
	}
	keys := sortedViews(w.views)
	w.q.many(lockViews, func(r *sql.Rows) error {
		k, v, err := scanView(r)
		if err != nil {
			return err
		}
		w.views[k].view, w.views[k].stored = v, true
		return nil
	}, len(keys), func(i int, args []any) []any { return append(args, string(keys[i].conv), keys[i].user) })
}

func scanView(r *sql.Rows) (k viewKey, v view, err error) {
	err = r.Scan(&k.conv, &k.user, &v.read, &v.delivered, &v.deleted, &v.own)
	return k, v, err
}

// findCids asks for the cids of the batch.
func (w *writer) findCids(sends []*store.Send) {
	var keys []string
	seen := map[string]bool{}
	for _, m := range sends {
		if k := (cidKey{m.From, m.Cid}).text(); m.Cid != "" && !seen[k] {
			seen[k] = true
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	w.q.names(getCids, func(r *sql.Rows) error {
		k, x, err := scanCid(r)
		w.cids[k] = x
		return err
	}, keys)
}

func scanCid(r *sql.Rows) (k string, x cidRecord, err error) {
	err = r.Scan(&k, &x.hash, &x.conv, &x.cseq, &x.id, &x.ts)
	return k, x, err
}
