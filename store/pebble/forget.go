package pebble

import (
	"cmp"
	"encoding/binary"
	"slices"

	pdb "github.com/cockroachdb/pebble/v2"
)

// forgetPassed removes what a queue no longer needs: records all of which is passed, and the state of what was sent.
func (w *writer) forgetPassed(h *queueHead) error {
	q, err := w.s.viewQueue(w.s.db, h.client, ^uint64(0))
	if err != nil {
		return err
	}
	defer q.it.Close()
	h.kept = h.passed + 1
	if h.batch == w.batch {
		h.kept = min(h.kept, h.first)
	}
	for ok := q.it.First(); ok; ok = q.it.Next() {
		r, err := w.s.queueRecord(q.it, h.client)
		if err != nil {
			return err
		}
		if r.last() > h.passed {
			h.kept = r.first
			break
		}
		w.dropRecord(q.it.Key(), r, h.client)
	}
	if err := q.it.Error(); err != nil {
		return w.s.wrap(err, "queue of %q", h.client)
	}
	return w.forgetOutbound(h)
}

// dropRecord deletes a record and its references.
func (w *writer) dropRecord(key []byte, r queueRecord, client string) {
	w.note(w.pb.Delete(key, nil))
	prev := uint64(0)
	for x, ok := r.next(); ok; x, ok = r.next() {
		if x.lsn != prev {
			w.unref(x.lsn, client)
		}
		prev = x.lsn
	}
}

// forgetOutbound removes what is known of messages that have been passed since the last time.
func (w *writer) forgetOutbound(h *queueHead) error {
	it, err := w.s.db.NewIter(&pdb.IterOptions{
		LowerBound: keyNum(nil, tabOutbound, h.client, h.forgot+1), UpperBound: keyNum(nil, tabOutbound, h.client, h.passed+1),
	})
	if err != nil {
		return w.s.wrap(err, "what was sent to %q", h.client)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		w.note(w.pb.Delete(it.Key(), nil))
	}
	h.forgot = h.passed
	return w.s.wrap(it.Error(), "what was sent to %q", h.client)
}

// unref takes back a queue's reference to publications.
func (w *writer) unref(lsn uint64, client string) {
	w.key = keyPubRef(w.key[:0], lsn, client)
	w.note(w.pb.Delete(w.key, nil))
	w.unrefs = append(w.unrefs, pubRef{lsn, client})
}

type pubRef struct {
	lsn    uint64
	client string
}

// forgetPubs removes publications whose last reference this batch takes back. The numbers of those that this process
// has stored are known; of others the references are looked for.
func (w *writer) forgetPubs() error {
	if len(w.unrefs) == 0 {
		return nil
	}
	slices.SortFunc(w.unrefs, func(a, b pubRef) int { return cmp.Compare(a.lsn, b.lsn) })
	for i := 0; i < len(w.unrefs); {
		lsn, j := w.unrefs[i].lsn, i
		for ; j < len(w.unrefs) && w.unrefs[j].lsn == lsn; j++ {
		}
		gone := w.unrefs[i:j]
		i = j
		if n, known := w.pubRefs[lsn]; known {
			if n -= len(gone); n > 0 {
				w.pubRefs[lsn] = n
				continue
			}
			delete(w.pubRefs, lsn)
		} else if more, err := w.referred(lsn, gone); more || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		w.key = binary.BigEndian.AppendUint64(append(w.key[:0], tabPubs), lsn)
		w.note(w.pb.Delete(w.key, nil))
	}
	return nil
}

// referred reports whether publications have references beside those that are going.
func (w *writer) referred(lsn uint64, gone []pubRef) (bool, error) {
	lower := keyPubRef(nil, lsn, "")
	it, err := w.s.db.NewIter(&pdb.IterOptions{LowerBound: lower, UpperBound: keyPubRef(nil, lsn+1, "")})
	if err != nil {
		return false, w.s.wrap(err, "references to publications")
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		client := it.Key()[len(lower):]
		if !slices.ContainsFunc(gone, func(r pubRef) bool { return r.client == string(client) }) {
			return true, nil
		}
	}
	return false, w.s.wrap(it.Error(), "references to publications")
}
