package pebble

import (
	"encoding/binary"

	"github.com/mqim/mqim/store"
)

// decoder takes values apart. After the first short or malformed field bad is set and every field is zero, so
// callers check once, at the end.
type decoder struct {
	b   []byte
	off int
	bad bool
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b[d.off:])
	if n <= 0 {
		d.bad = true
		d.off = len(d.b)
		return 0
	}
	d.off += n
	return v
}

func (d *decoder) varint() int64 {
	u := d.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

func (d *decoder) byte() byte {
	if d.off >= len(d.b) {
		d.bad = true
		return 0
	}
	c := d.b[d.off]
	d.off++
	return c
}

// span is a place in a buffer.
type span struct{ from, to int }

// span reads a length and skips that many bytes, and tells where they are.
func (d *decoder) span() span {
	n := d.uvarint()
	if n > uint64(len(d.b)-d.off) {
		d.bad = true
		d.off = len(d.b)
		return span{d.off, d.off}
	}
	s := span{d.off, d.off + int(n)}
	d.off = s.to
	return s
}

func (d *decoder) bytes() []byte {
	s := d.span()
	return d.b[s.from:s.to]
}

func (d *decoder) str() string { return string(d.bytes()) }

func appendVarint(dst []byte, v int64) []byte { return binary.AppendVarint(dst, v) }

func appendUvarint(dst []byte, v uint64) []byte { return binary.AppendUvarint(dst, v) }

func appendString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// chunkRef is the value of tabChunk: where a chunk of a conversation lies and what can be known without reading it.
type chunkRef struct {
	first    uint64 // cseq of its first message; from the key
	lsn      uint64
	count    uint64
	lastID   int64
	lastTS   int64
	cumA     uint64 // messages of the first and the second user of a direct conversation before this chunk
	cumB     uint64
	inA, inB uint64 // and within it
}

func (r *chunkRef) last() uint64 { return r.first + r.count - 1 }

func (r *chunkRef) append(dst []byte) []byte {
	for _, v := range [...]uint64{
		r.lsn, r.count, uint64(r.lastID), uint64(r.lastTS), r.cumA, r.cumB, r.inA, r.inB,
	} {
		dst = appendUvarint(dst, v)
	}
	return dst
}

func decodeChunkRef(key, value []byte) (r chunkRef, ok bool) {
	d := decoder{b: value}
	r = chunkRef{
		first: tail(key), lsn: d.uvarint(), count: d.uvarint(), lastID: int64(d.uvarint()), lastTS: int64(d.uvarint()),
		cumA: d.uvarint(), cumB: d.uvarint(), inA: d.uvarint(), inB: d.uvarint(),
	}
	return r, !d.bad && r.count > 0
}

// cidRecord is the value of tabCid: the message that a cid stands for.
type cidRecord struct {
	hash   uint64
	conv   store.Conv
	cseq   uint64
	id, ts int64
}

// append writes the conversation as the sender addresses it: his own name is in the key already.
func (r *cidRecord) append(dst []byte, from string) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, r.hash)
	if peer := r.conv.Peer(from); peer != "" {
		dst = append(dst, 'p')
		dst = appendString(dst, peer)
	} else {
		dst = append(dst, 'c')
		dst = appendString(dst, string(r.conv))
	}
	dst = appendUvarint(dst, r.cseq)
	dst = appendUvarint(dst, uint64(r.id))
	return appendUvarint(dst, uint64(r.ts))
}

func decodeCid(value []byte, from string) (r cidRecord, ok bool) {
	if len(value) < 9 {
		return r, false
	}
	r.hash = binary.LittleEndian.Uint64(value)
	d := decoder{b: value, off: 9}
	name := d.str()
	switch value[8] {
	case 'p':
		r.conv = store.Direct(from, name)
	case 'c':
		r.conv = store.Conv(name)
	default:
		return r, false
	}
	r.cseq, r.id, r.ts = d.uvarint(), int64(d.uvarint()), int64(d.uvarint())
	return r, !d.bad
}

// view is the value of tabView: a user's relation to a conversation.
type view struct {
	read, delivered uint64
	deleted         uint64 // deletion marks ever set; 0 saves readers the look
}

func (v *view) append(dst []byte) []byte {
	for _, n := range [...]uint64{v.read, v.delivered, v.deleted} {
		dst = appendUvarint(dst, n)
	}
	return dst
}

func decodeView(value []byte) (v view, ok bool) {
	d := decoder{b: value}
	v = view{read: d.uvarint(), delivered: d.uvarint(), deleted: d.uvarint()}
	return v, !d.bad
}

// floor is the value of tabFloor: entries up to trimmed are not served any more; head is where the inbox stood
// when its records were removed.
type floor struct{ trimmed, head uint64 }

func (f *floor) append(dst []byte) []byte {
	return appendUvarint(appendUvarint(dst, f.trimmed), f.head)
}

func decodeFloor(value []byte) (f floor, ok bool) {
	d := decoder{b: value}
	f = floor{d.uvarint(), d.uvarint()}
	return f, !d.bad
}

func appendUserRecord(dst []byte, u *store.User) []byte {
	return appendVarint(appendUvarint(dst, u.Cursor), u.LastSeen)
}

func decodeUser(name string, value []byte) (u store.User, ok bool) {
	d := decoder{b: value}
	u = store.User{Name: name, Cursor: d.uvarint(), LastSeen: d.varint()}
	return u, !d.bad
}

func appendDevice(dst []byte, v *store.Device) []byte {
	dst = appendVarint(appendUvarint(dst, v.Cursor), v.LastSeen)
	return appendString(appendVarint(dst, v.Expires), v.Profile)
}

func decodeDevice(k store.DeviceKey, value []byte) (v store.Device, ok bool) {
	d := decoder{b: value}
	v = store.Device{DeviceKey: k, Cursor: d.uvarint(), LastSeen: d.varint(), Expires: d.varint(), Profile: d.str()}
	return v, !d.bad
}
