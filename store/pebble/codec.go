package pebble

import (
	"encoding/binary"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

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
		dst = wire.AppendUvarint(dst, v)
	}
	return dst
}

func decodeChunkRef(key, value []byte) (r chunkRef, ok bool) {
	d := wire.Decoder{B: value}
	r = chunkRef{
		first: tail(key), lsn: d.Uvarint(), count: d.Uvarint(), lastID: int64(d.Uvarint()), lastTS: int64(d.Uvarint()),
		cumA: d.Uvarint(), cumB: d.Uvarint(), inA: d.Uvarint(), inB: d.Uvarint(),
	}
	return r, !d.Bad && r.count > 0
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
		dst = wire.AppendString(dst, peer)
	} else {
		dst = append(dst, 'c')
		dst = wire.AppendString(dst, string(r.conv))
	}
	dst = wire.AppendUvarint(dst, r.cseq)
	dst = wire.AppendUvarint(dst, uint64(r.id))
	return wire.AppendUvarint(dst, uint64(r.ts))
}

func decodeCid(value []byte, from string) (r cidRecord, ok bool) {
	if len(value) < 9 {
		return r, false
	}
	r.hash = binary.LittleEndian.Uint64(value)
	d := wire.Decoder{B: value, Off: 9}
	name := d.Str()
	switch value[8] {
	case 'p':
		r.conv = store.Direct(from, name)
	case 'c':
		r.conv = store.Conv(name)
	default:
		return r, false
	}
	r.cseq, r.id, r.ts = d.Uvarint(), int64(d.Uvarint()), int64(d.Uvarint())
	return r, !d.Bad
}

// view is the value of tabView: a user's relation to a conversation.
type view struct {
	read, delivered uint64
	deleted         uint64 // deletion marks ever set; 0 saves readers the look
}

func (v *view) append(dst []byte) []byte {
	for _, n := range [...]uint64{v.read, v.delivered, v.deleted} {
		dst = wire.AppendUvarint(dst, n)
	}
	return dst
}

func decodeView(value []byte) (v view, ok bool) {
	d := wire.Decoder{B: value}
	v = view{read: d.Uvarint(), delivered: d.Uvarint(), deleted: d.Uvarint()}
	return v, !d.Bad
}

// floor is the value of tabFloor: entries up to trimmed are not served any more; head is where the inbox stood
// when its records were removed.
type floor struct{ trimmed, head uint64 }

func (f *floor) append(dst []byte) []byte {
	return wire.AppendUvarint(wire.AppendUvarint(dst, f.trimmed), f.head)
}

func decodeFloor(value []byte) (f floor, ok bool) {
	d := wire.Decoder{B: value}
	f = floor{d.Uvarint(), d.Uvarint()}
	return f, !d.Bad
}

func appendUserRecord(dst []byte, u *store.User) []byte {
	return wire.AppendVarint(wire.AppendUvarint(dst, u.Cursor), u.LastSeen)
}

func decodeUser(name string, value []byte) (u store.User, ok bool) {
	d := wire.Decoder{B: value}
	u = store.User{Name: name, Cursor: d.Uvarint(), LastSeen: d.Varint()}
	return u, !d.Bad
}

func appendDevice(dst []byte, v *store.Device) []byte {
	dst = wire.AppendVarint(wire.AppendUvarint(dst, v.Cursor), v.LastSeen)
	return wire.AppendString(wire.AppendVarint(dst, v.Expires), v.Profile)
}

func decodeDevice(k store.DeviceKey, value []byte) (v store.Device, ok bool) {
	d := wire.Decoder{B: value}
	v = store.Device{DeviceKey: k, Cursor: d.Uvarint(), LastSeen: d.Varint(), Expires: d.Varint(), Profile: d.Str()}
	return v, !d.Bad
}
