package pebble

import (
	"errors"
	"fmt"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// record is the value of tabInbox: what one batch put into one inbox. Its messages are durable together.
type record struct {
	first uint64 // from the key
	count uint64
	maxTS int64 // greatest TS of this record and all before it
	minTS int64 // least TS of this record
	runs  []byte
}

func (r *record) last() uint64 { return r.first + r.count - 1 }

func appendRecord(dst []byte, h *inboxHead) []byte {
	dst = wire.AppendUvarint(dst, h.seq-h.first+1)
	dst = wire.AppendVarint(dst, h.maxTS)
	dst = wire.AppendVarint(dst, h.maxTS-h.minTS)
	return append(dst, h.runs...)
}

func decodeRecord(key, value []byte) (r record, ok bool) {
	d := wire.Decoder{B: value}
	r = record{first: tail(key), count: d.Uvarint(), maxTS: d.Varint()}
	r.minTS = r.maxTS - d.Varint()
	r.runs = value[d.Off:]
	return r, !d.Bad && r.count > 0
}

func (r *record) walk() wire.RunReader { return wire.Runs(r.runs) }

// lsn is the one of the record's first chunk: if it is durable, all of the record is.
func (r *record) lsn() uint64 {
	w := r.walk()
	if !w.Next() {
		return ^uint64(0)
	}
	return w.LSN
}

// names is an iterator over the keys of one name in one table, with the error handling of all its uses.
func (s *Store) names(table byte, name string) (*pdb.Iterator, error) {
	lower := keyName(make([]byte, 0, len(name)+2), table, name)
	it, err := s.db.NewIter(&pdb.IterOptions{LowerBound: lower, UpperBound: after(lower)})
	return it, s.wrap(err, "read %c %q", table, name)
}

// iterRecord decodes the record that it stands on; the record is valid until it moves.
func (s *Store) iterRecord(it *pdb.Iterator, user string) (record, error) {
	v, err := it.ValueAndErr()
	if err != nil {
		return record{}, s.wrap(err, "inbox of %q", user)
	}
	r, ok := decodeRecord(it.Key(), v)
	if !ok {
		return r, s.corrupt("inbox of %q, seq %d", user, tail(it.Key()))
	}
	return r, nil
}

// lastRecord is the last record of an inbox whose lsn is at most upTo; its runs are not valid any more.
func (s *Store) lastRecord(user string, upTo uint64) (r record, ok bool, err error) {
	it, err := s.names(tabInbox, user)
	if err != nil {
		return r, false, err
	}
	defer it.Close()
	return s.seekLast(it, user, upTo)
}

func (s *Store) seekLast(it *pdb.Iterator, user string, upTo uint64) (r record, ok bool, err error) {
	for ok := it.Last(); ok; ok = it.Prev() {
		r, err := s.iterRecord(it, user)
		if err != nil {
			return r, false, err
		}
		if r.lsn() <= upTo || upTo == ^uint64(0) {
			return r, true, nil
		}
	}
	return r, false, s.wrap(it.Error(), "inbox of %q", user)
}

func (s *Store) floor(user string) (floor, error) {
	v, err := s.get(keyFloor(nil, user))
	if v == nil || err != nil {
		return floor{}, err
	}
	f, ok := decodeFloor(v)
	if !ok {
		return f, s.corrupt("trimming of the inbox of %q", user)
	}
	return f, nil
}

func (s *Store) view(user string, conv store.Conv) (view, error) {
	v, err := s.get(keyView(nil, user, conv))
	if v == nil || err != nil {
		return view{}, err
	}
	r, ok := decodeView(v)
	if !ok {
		return r, s.corrupt("watermarks of %q in %s", user, conv)
	}
	return r, nil
}

// iterRef decodes the chunkRef that it stands on.
func (s *Store) iterRef(it *pdb.Iterator, conv store.Conv) (chunkRef, error) {
	v, err := it.ValueAndErr()
	if err != nil {
		return chunkRef{}, s.wrap(err, "chunks of %s", conv)
	}
	r, ok := decodeChunkRef(it.Key(), v)
	if !ok {
		return r, s.corrupt("chunk of %s from cseq %d", conv, tail(it.Key()))
	}
	return r, nil
}

// lastRef is the last chunk of a conversation whose lsn is at most upTo.
func (s *Store) lastRef(conv store.Conv, upTo uint64) (r chunkRef, ok bool, err error) {
	it, err := s.names(tabChunk, string(conv))
	if err != nil {
		return r, false, err
	}
	defer it.Close()
	for ok := it.Last(); ok; ok = it.Prev() {
		if r, err = s.iterRef(it, conv); err != nil {
			return r, false, err
		}
		if r.lsn <= upTo {
			return r, true, nil
		}
	}
	return chunkRef{}, false, s.wrap(it.Error(), "chunks of %s", conv)
}

// firstRef is the oldest chunk that a conversation still has.
func (s *Store) firstRef(conv store.Conv) (r chunkRef, ok bool, err error) {
	it, err := s.names(tabChunk, string(conv))
	if err != nil {
		return r, false, err
	}
	defer it.Close()
	if !it.First() {
		return r, false, s.wrap(it.Error(), "chunks of %s", conv)
	}
	r, err = s.iterRef(it, conv)
	return r, err == nil, err
}

// refAt is the chunk that has cseq, durable or not.
func (s *Store) refAt(conv store.Conv, cseq uint64) (r chunkRef, ok bool, err error) {
	it, err := s.names(tabChunk, string(conv))
	if err != nil {
		return r, false, err
	}
	defer it.Close()
	if !it.SeekLT(keyNum(nil, tabChunk, string(conv), cseq+1)) {
		return r, false, s.wrap(it.Error(), "chunks of %s", conv)
	}
	if r, err = s.iterRef(it, conv); err != nil || cseq > r.last() {
		return r, false, err
	}
	return r, true, nil
}

// errGone: retention has removed the chunk.
var errGone = errors.New("chunk is gone")

// loaded is a chunk in Pebble's memory; close gives it back.
type loaded struct {
	wire.Chunk
	close func() error
}

// load finds the chunk of conv at lsn and checks that it is the right one. It is errGone when retention has removed
// it, ErrCorrupt when it is missing without that.
func (s *Store) load(conv store.Conv, lsn, first uint64) (loaded, error) {
	var key [9]byte
	v, closer, err := s.db.Get(keyLog(key[:0], lsn))
	if errors.Is(err, pdb.ErrNotFound) {
		return loaded{}, s.missing(conv, lsn, first)
	}
	if err != nil {
		return loaded{}, s.wrap(err, "%s: chunk from cseq %d, lsn %d", conv, first, lsn)
	}
	c, err := s.takeApart(v, conv, lsn, first)
	if err != nil {
		return loaded{}, errors.Join(err, closer.Close())
	}
	return loaded{c, closer.Close}, nil
}

// seek is load by an iterator over the log, for one who loads many chunks: the chunk is valid until the iterator moves.
func (s *Store) seek(it *pdb.Iterator, conv store.Conv, lsn, first uint64) (wire.Chunk, error) {
	var key [9]byte
	if !it.SeekGE(keyLog(key[:0], lsn)) || tail(it.Key()) != lsn {
		if err := it.Error(); err != nil {
			return wire.Chunk{}, s.wrap(err, "%s: chunk from cseq %d, lsn %d", conv, first, lsn)
		}
		return wire.Chunk{}, s.missing(conv, lsn, first)
	}
	v, err := it.ValueAndErr()
	if err != nil {
		return wire.Chunk{}, s.wrap(err, "%s: chunk from cseq %d, lsn %d", conv, first, lsn)
	}
	return s.takeApart(v, conv, lsn, first)
}

// missing says why there is no chunk at lsn.
func (s *Store) missing(conv store.Conv, lsn, first uint64) error {
	if r, ok, err := s.firstRef(conv); err != nil {
		return err
	} else if ok && r.first > first {
		return errGone
	}
	return s.corrupt("%s: chunk from cseq %d, lsn %d is missing", conv, first, lsn)
}

// takeApart checks that a value is the chunk of conv from cseq first on.
func (s *Store) takeApart(v []byte, conv store.Conv, lsn, first uint64) (wire.Chunk, error) {
	c, err := wire.ParseChunk(v)
	if err == nil && (string(c.Conv) != string(conv) || c.First != first) {
		err = fmt.Errorf("%w: it is the one of %q from cseq %d", wire.ErrChunk, c.Conv, c.First)
	}
	return c, s.wrap(err, "%s: chunk from cseq %d, lsn %d", conv, first, lsn)
}
