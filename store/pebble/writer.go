package pebble

import (
	"fmt"
	"strings"
	"time"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// generation is how many entries each half of a cache holds. An entry is some 200 bytes: the caches are bounded by
// about 200 MiB, and by far less when few users are active; groups, which know their members, have a bound of their own.
const generation = 1 << 16

// namedMembers is how many members of small groups are kept by name in each half of their cache: some 15 MiB.
const namedMembers = 1 << 18

// cache holds what was used lately: entries move from old to young when they are used, and old is dropped when
// young is full. Entries are dropped between batches only (see settle): within a batch, pointers stay the only ones.
type cache[K comparable, V any] struct{ young, old map[K]V }

func (c *cache[K, V]) get(k K) (V, bool) {
	if v, ok := c.young[k]; ok {
		return v, true
	}
	v, ok := c.old[k]
	if ok {
		c.put(k, v)
	}
	return v, ok
}

func (c *cache[K, V]) put(k K, v V) {
	if c.young == nil {
		c.young = map[K]V{}
	}
	c.young[k] = v
}

// settle drops the old half if the young one is full.
func (c *cache[K, V]) settle() {
	if len(c.young) >= generation {
		c.young, c.old = nil, c.young
	}
}

func (c *cache[K, V]) reset() { c.young, c.old = nil, nil }

// convHead is where a conversation's log ends, counting what is assigned but not yet durable.
type convHead struct {
	conv   store.Conv
	a, b   string // of a direct conversation
	direct bool
	cseq   uint64
	lastID int64
	fromA  uint64 // messages so far by a and b
	fromB  uint64

	// Of the batch being built; valid while batch is the writer's.
	batch   uint64
	startID int64      // lastID before it: the place in the recency index
	open    *openChunk // the chunk being filled
	// recipients of the last message: mostly those of the next
	recipients []recipient
}

type recipient struct {
	user  string
	inbox *inboxHead
}

// inboxHead is where an inbox ends.
type inboxHead struct {
	user  string
	seq   uint64
	maxTS int64 // greatest TS so far: it never falls, so that records can be searched by age

	// Of the batch being built.
	batch uint64
	first uint64 // seq of the first entry
	minTS int64
	runs  []byte   // closed runs
	run   wire.Run // the open one
	conv  store.Conv
}

// openChunk gathers the messages of one conversation in one batch.
type openChunk struct {
	head  *convHead
	ref   chunkRef
	msgs  []*store.Message
	bytes int
}

type viewKey struct {
	user string
	conv store.Conv
}

type viewEntry struct {
	view
	key   viewKey
	dirty bool
}

type cidKey struct{ from, cid string }

// writer builds batches. It belongs to the holder of Store.mu, and shows what has been applied to Pebble, durable
// or not; after a failure in the middle of a batch it is emptied and reads everything afresh.
type writer struct {
	s  *Store
	pb *pdb.Batch

	lsn     uint64   // last assigned
	lastID  int64    // greatest assigned
	buckets []uint64 // starts of the stretches of time that have cids, ascending

	convs   cache[store.Conv, *convHead]
	inboxes cache[string, *inboxHead]
	views   cache[viewKey, *viewEntry]
	senders cache[string, *sender]
	groups  cache[string, *groupHead]
	named   int                           // members in groups' young half
	members cache[viewKey, *store.Member] // who is not looked up in a groupHead
	owns    cache[viewKey, uint64]        // messages of a user to a group so far
	queues  cache[string, *queueHead]
	pubRefs map[uint64]int // references to publications that this process has stored; not of all of them

	retained uint64 // messages in tabRetained

	batch       uint64 // counts batches; marks the entries that take part
	repeats     bool   // something was found stored already, perhaps not yet durably
	inBatch     map[cidKey]cidRecord
	lookups     []cidLookup
	found       []cidFound
	cidsLooked  time.Time // when cidsFit was found out
	cidsFit     bool      // the filters of the cids fit into the cache
	touched     []*convHead
	fedInboxes  []*inboxHead
	dirty       []*viewEntry
	chunks      []*openChunk // of this batch; beyond its length are spare ones
	rewritten   map[uint64][]byte
	key, val    []byte
	metaScratch []byte
	order       []int

	sync        bool            // the batch must be synced, whatever the caller says
	fenced      map[string]bool // clients of whom nothing is taken
	failed      error
	heads       []*queueHead // scratch
	fedQueues   []*queueHead
	moved       []*queueHead
	unrefs      []pubRef
	pubs        []*store.Publication // under the present lsn
	pubBytes    int
	retainedNow map[string]bool // topics that this batch has retained, or not any more
	retainedWas uint64
	lost        uint64 // in the queues of sessions that have ended
	deleted     deletions
}

// load finds where the store ends; it reads one chunk and a few keys.
func (w *writer) load(s *Store) error {
	w.s = s
	w.inBatch = map[cidKey]cidRecord{}
	w.pubRefs, w.retainedNow = map[uint64]int{}, map[string]bool{}
	it, err := s.db.NewIter(&pdb.IterOptions{LowerBound: []byte{tabLog}, UpperBound: []byte{tabLog + 1}})
	if err != nil {
		return s.wrap(err, "find the end of the log")
	}
	defer it.Close()
	if it.Last() {
		value, err := it.ValueAndErr()
		if err != nil {
			return s.wrap(err, "read the end of the log")
		}
		w.lsn = tail(it.Key())
		c, err := wire.ParseChunk(value)
		if err != nil {
			return s.wrap(err, "last chunk of the log, lsn %d", w.lsn)
		}
		last, err := c.LastID()
		if err != nil {
			return s.wrap(err, "last chunk of the log, lsn %d", w.lsn)
		}
		w.lastID = last + c.Above
	}
	if err := it.Error(); err != nil {
		return s.wrap(err, "find the end of the log")
	}
	if err := w.loadTopics(); err != nil {
		return err
	}
	s.durable.Store(w.lsn)
	s.lastID.Store(w.lastID)
	w.buckets, err = s.loadBuckets()
	return err
}

// loadTopics finds the end of the publications, which count on the same lsn, and how many messages are retained.
func (w *writer) loadTopics() error {
	it, err := w.s.db.NewIter(&pdb.IterOptions{LowerBound: []byte{tabPubs}, UpperBound: []byte{tabPubs + 1}})
	if err != nil {
		return w.s.wrap(err, "find the end of the publications")
	}
	defer it.Close()
	if it.Last() {
		w.lsn = max(w.lsn, tail(it.Key()))
	}
	if err := it.Error(); err != nil {
		return w.s.wrap(err, "find the end of the publications")
	}
	v, err := w.s.get(keyMeta("retained"))
	if err != nil || v == nil {
		return err
	}
	d := wire.Decoder{B: v}
	if w.retained = d.Uvarint(); d.Bad {
		return w.s.corrupt("number of retained messages")
	}
	return nil
}

func (w *writer) begin(pb *pdb.Batch) {
	w.pb = pb
	w.batch++
	w.repeats = false
	clear(w.inBatch)
	w.rewritten, w.fenced = nil, nil
	w.sync, w.failed, w.retainedWas, w.lost, w.deleted = false, nil, w.retained, 0, deletions{}
}

// end lets go of what the batch referred to; ok is false when it was not applied.
func (w *writer) end(ok bool) {
	for _, c := range w.chunks {
		clear(c.msgs)
		c.msgs, c.head = c.msgs[:0], nil
	}
	w.chunks = w.chunks[:0]
	for _, c := range w.touched {
		clear(c.recipients)
		c.recipients, c.open = c.recipients[:0], nil
	}
	clear(w.lookups)
	clear(w.found)
	w.lookups, w.found = w.lookups[:0], w.found[:0]
	clear(w.touched)
	clear(w.fedInboxes)
	clear(w.dirty)
	w.touched, w.fedInboxes, w.dirty = w.touched[:0], w.fedInboxes[:0], w.dirty[:0]
	w.pb, w.rewritten = nil, nil
	clear(w.heads)
	clear(w.fedQueues)
	clear(w.moved)
	clear(w.unrefs)
	clear(w.pubs)
	clear(w.retainedNow)
	w.heads, w.fedQueues, w.moved, w.unrefs = w.heads[:0], w.fedQueues[:0], w.moved[:0], w.unrefs[:0]
	w.pubs, w.pubBytes = w.pubs[:0], 0
	if !ok || len(w.pubRefs) > generation {
		clear(w.pubRefs) // forgetPubs looks then
	}
	if ok {
		w.s.counters.lost.Add(w.lost)
	}
	if !ok {
		w.retained = w.retainedWas
		w.queues.reset()
		w.convs.reset()
		w.inboxes.reset()
		w.views.reset()
		w.groups.reset()
		w.named = 0
		w.members.reset()
		w.owns.reset()
		w.senders.reset()
		return
	}
	w.convs.settle()
	w.inboxes.settle()
	w.views.settle()
	if w.named >= namedMembers {
		w.groups.young, w.groups.old, w.named = nil, w.groups.young, 0
	}
	w.groups.settle()
	w.members.settle()
	w.owns.settle()
	w.senders.settle()
	w.queues.settle()
}

// checkName refuses names that would make keys ambiguous.
func checkName(what, name string) error {
	if name == "" || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("store.pebble: %s %q is not a name", what, name)
	}
	return nil
}

// conv returns the head of a conversation, all zero if it has no messages.
func (w *writer) conv(conv store.Conv) (*convHead, error) {
	if c, ok := w.convs.get(conv); ok {
		return c, nil
	}
	if err := checkName("conversation", string(conv)); err != nil {
		return nil, err
	}
	c := &convHead{conv: conv}
	c.a, c.b, c.direct = conv.Users()
	ref, ok, err := w.s.lastRef(conv, ^uint64(0))
	if err != nil {
		return nil, err
	}
	if ok {
		c.cseq, c.lastID = ref.last(), ref.lastID
		c.fromA, c.fromB = ref.cumA+ref.inA, ref.cumB+ref.inB
	}
	w.convs.put(conv, c)
	return c, nil
}

// inbox returns the head of an inbox, all zero if it never had an entry.
func (w *writer) inbox(user string) (*inboxHead, error) {
	if h, ok := w.inboxes.get(user); ok {
		return h, nil
	}
	if err := checkName("user", user); err != nil {
		return nil, err
	}
	h := &inboxHead{user: user}
	rec, ok, err := w.s.lastRecord(user, ^uint64(0))
	if err != nil {
		return nil, err
	}
	if ok {
		h.seq, h.maxTS = rec.last(), rec.maxTS
	}
	f, err := w.s.floor(user)
	if err != nil {
		return nil, err
	}
	h.seq = max(h.seq, f.head)
	w.inboxes.put(user, h)
	return h, nil
}

func (w *writer) view(user string, conv store.Conv) (*viewEntry, error) {
	k := viewKey{user, conv}
	if v, ok := w.views.get(k); ok {
		return v, nil
	}
	if err := checkName("user", user); err != nil {
		return nil, err
	}
	v, err := w.s.view(user, conv)
	if err != nil {
		return nil, err
	}
	e := &viewEntry{view: v, key: k}
	w.views.put(k, e)
	return e, nil
}

// touch marks a view as changed by this batch.
func (w *writer) touch(v *viewEntry) {
	if !v.dirty {
		v.dirty = true
		w.dirty = append(w.dirty, v)
	}
}
