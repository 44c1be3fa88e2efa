package pebble

import (
	"bytes"
	"cmp"
	"context"
	"math"
	"slices"
	"strings"
	"time"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
)

// cidLookup is one cid to be looked up, and what was found.
type cidLookup struct {
	from, cid string
	send      int // index in Batch.Sends
}

// sender is what is kept in memory about the cids of one sender: the last one in the order of their keys, short
// before long and then by bytes. Most clients count, or use ULIDs, so that each cid comes after all before it: then
// comparing it with max shows that it is new, and nothing is looked up.
type sender struct{ max []byte }

// comesAfter reports whether cid is after max in the order of keys.
func (s *sender) comesAfter(cid string) bool {
	if a, b := cidLength(cid), cidLength(s.max); a != b {
		return a > b
	}
	return cid > string(s.max)
}

// findCids looks up every cid of the batch that may be known and leaves what is in w.found, by the index of the Send.
//
// What matters is the price of finding nothing. DB.Get never uses the filters of the last level, so it pays for a
// data block of it each time and throws everything else out of the cache: 18 µs a message. One iterator with all
// filters, going through the keys in order, pays for the filters alone, but only while all of them fit into the
// cache; see useFilters.
func (w *writer) findCids(sends []*store.Send) error {
	w.found = append(w.found[:0], make([]cidFound, len(sends))...)
	w.lookups = w.lookups[:0]
	oldest := int64(math.MaxInt64)
	var from string
	var s *sender
	for i, m := range sends {
		if m.Cid == "" {
			continue
		}
		if s == nil || m.From != from {
			var err error
			if s, err = w.sender(m.From); err != nil {
				return err
			}
			from = m.From
		}
		if !s.comesAfter(m.Cid) {
			w.lookups = append(w.lookups, cidLookup{m.From, m.Cid, i})
			oldest = min(oldest, m.TS)
		}
	}
	if len(w.lookups) == 0 {
		return nil
	}
	slices.SortFunc(w.lookups, func(a, b cidLookup) int {
		return cmp.Or(strings.Compare(a.from, b.from), cmp.Compare(cidLength(a.cid), cidLength(b.cid)),
			strings.Compare(a.cid, b.cid))
	})
	it, err := w.s.db.NewIter(&pdb.IterOptions{
		LowerBound: []byte{tabCid}, UpperBound: []byte{tabCid + 1}, UseL6Filters: w.useFilters(),
	})
	if err != nil {
		return w.s.wrap(err, "look up cids")
	}
	defer it.Close()
	window := w.s.opts.Retention.Dedupe.Milliseconds()
	for i, b := range w.buckets {
		if window > 0 && w.bucketEnd(i) <= oldest-window {
			continue
		}
		for _, l := range w.lookups {
			if err := w.findCid(it, b, l, sends[l.send].TS, window); err != nil {
				return err
			}
		}
	}
	return w.s.wrap(it.Error(), "look up cids")
}

// filterBytes is how much the table of cids may take on disk for its filters, a thirtieth of it, to fit into the
// block cache. filterEvery is how often that is looked at.
const (
	filterBytes = 30 * cacheBytes * 3 / 4
	filterEvery = 10 * time.Second
)

// useFilters reports whether the filters of the last level fit into the cache. If they do not, each lookup would
// read a filter of hundreds of KiB; one data block is the lesser evil then.
func (w *writer) useFilters() bool {
	if now := time.Now(); now.Sub(w.cidsLooked) > filterEvery {
		w.cidsLooked = now
		n, err := w.s.db.EstimateDiskUsage([]byte{tabCid}, []byte{tabCid + 1})
		w.cidsFit = err == nil && n < filterBytes
	}
	return w.cidsFit
}

// sender finds the greatest cid of a sender that is stored.
func (w *writer) sender(from string) (*sender, error) {
	if s, ok := w.senders.get(from); ok {
		return s, nil
	}
	if err := checkName("sender", from); err != nil {
		return nil, err
	}
	s := &sender{}
	it, err := w.s.db.NewIter(&pdb.IterOptions{LowerBound: []byte{tabCid}, UpperBound: []byte{tabCid + 1}})
	if err != nil {
		return nil, w.s.wrap(err, "cids of %q", from)
	}
	defer it.Close()
	for _, b := range w.buckets {
		prefix := keySender(nil, b, from)
		if it.SeekLT(after(prefix)) && bytes.HasPrefix(it.Key(), prefix) {
			if k := it.Key()[len(prefix):]; len(k) < 2 {
				return nil, w.s.corrupt("key %q", it.Key())
			} else if s.comesAfter(string(k[2:])) {
				s.max = append(s.max[:0], k[2:]...)
			}
		}
	}
	w.senders.put(from, s)
	return s, w.s.wrap(it.Error(), "cids of %q", from)
}

func (w *writer) findCid(it *pdb.Iterator, bucket uint64, l cidLookup, ts, window int64) error {
	w.key = keyCid(w.key[:0], bucket, l.from, l.cid)
	if !it.SeekPrefixGE(w.key) {
		return w.s.wrap(it.Error(), "look up a cid of %q", l.from)
	}
	v, err := it.ValueAndErr()
	if err != nil {
		return w.s.wrap(err, "look up a cid of %q", l.from)
	}
	r, ok := decodeCid(v, l.from)
	if !ok {
		return w.s.corrupt("record of a cid of %q", l.from)
	}
	if window == 0 || ts-r.ts < window {
		w.found[l.send] = cidFound{r, true}
	}
	return nil
}

type cidFound struct {
	cidRecord
	ok bool
}

// Sent finds what a cid stands for, as a Commit of now would, but what is not durable yet is not known.
func (s *Store) Sent(ctx context.Context, from, cid string) (m store.Message, hash uint64, ok bool, err error) {
	if err := s.enter(ctx); err != nil {
		return m, 0, false, err
	}
	defer s.life.RUnlock()
	if cid == "" {
		return m, 0, false, nil
	}
	durable := s.lastID.Load()
	buckets, err := s.loadBuckets()
	if err != nil {
		return m, 0, false, err
	}
	window := s.opts.Retention.Dedupe.Milliseconds()
	for _, b := range slices.Backward(buckets) {
		v, err := s.get(keyCid(nil, b, from, cid))
		if err != nil {
			return m, 0, false, err
		}
		if v == nil {
			continue
		}
		r, ok := decodeCid(v, from)
		if !ok {
			return m, 0, false, s.corrupt("record of a cid of %q", from)
		}
		if r.id <= durable && (window == 0 || time.Now().UnixMilli()-r.ts < window) {
			return store.Message{Conv: r.conv, Cseq: r.cseq, ID: r.id, TS: r.ts}, r.hash, true, nil
		}
	}
	return m, 0, false, nil
}

// resolve looks whether the cid of m, the i-th Send, stands for a message already; then m is filled in and nothing
// is to be stored.
func (w *writer) resolve(i int, m *store.Send) (known bool) {
	r := w.found[i].cidRecord
	if !w.found[i].ok {
		var ok bool
		if r, ok = w.inBatch[cidKey{m.From, m.Cid}]; !ok {
			return false
		}
	}
	w.repeats = true
	if r.hash != m.Hash {
		m.Err = store.ErrConflict
		return true
	}
	m.Dup = true
	m.Conv, m.Cseq, m.ID, m.TS = r.conv, r.cseq, r.id, r.ts
	return true
}

// remember stores what m's cid stands for.
func (w *writer) remember(m *store.Send) error {
	s, err := w.sender(m.From)
	if err != nil {
		return err
	}
	if s.comesAfter(m.Cid) {
		s.max = append(s.max[:0], m.Cid...)
	}
	r := cidRecord{m.Hash, m.Conv, m.Cseq, m.ID, m.TS}
	w.inBatch[cidKey{m.From, m.Cid}] = r
	bucket := w.bucket(m.TS)
	w.key = keyCid(w.key[:0], bucket, m.From, m.Cid)
	w.val = r.append(w.val[:0], m.From)
	return w.pb.Set(w.key, w.val, nil)
}

// bucket is the start of the stretch of time that ts lies in; buckets start at multiples of the window, or at 0
// when cids are remembered for ever. They are named by their start, not counted, so that a changed window leaves
// the old ones readable.
func (w *writer) bucket(ts int64) uint64 {
	var start uint64
	if window := w.s.opts.Retention.Dedupe.Milliseconds(); window > 0 && ts > 0 {
		start = uint64(ts - ts%window)
	}
	if n := len(w.buckets); n > 0 && w.buckets[n-1] == start {
		return start
	}
	if i, found := slices.BinarySearch(w.buckets, start); !found {
		w.buckets = slices.Insert(w.buckets, i, start)
	}
	return start
}

// bucketEnd is a time that every message of the i-th bucket was accepted before. A bucket made with a longer window
// than today's ends where the next one begins.
func (w *writer) bucketEnd(i int) int64 {
	window := w.s.opts.Retention.Dedupe.Milliseconds()
	if i+1 == len(w.buckets) {
		return math.MaxInt64
	}
	return max(int64(w.buckets[i])+window, int64(w.buckets[i+1]))
}

// loadBuckets hops from bucket to bucket; there are about three.
func (s *Store) loadBuckets() ([]uint64, error) {
	it, err := s.db.NewIter(&pdb.IterOptions{LowerBound: []byte{tabCid}, UpperBound: []byte{tabCid + 1}})
	if err != nil {
		return nil, s.wrap(err, "look for cids")
	}
	defer it.Close()
	var out []uint64
	for ok := it.First(); ok; {
		if len(it.Key()) < 9 {
			return nil, s.corrupt("key %q", it.Key())
		}
		b := tail(it.Key()[:9])
		out = append(out, b)
		if b == ^uint64(0) {
			break
		}
		ok = it.SeekGE(keyBucket(nil, b+1))
	}
	return out, s.wrap(it.Error(), "look for cids")
}
