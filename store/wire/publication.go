package wire

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/mqim/mqim/store"
)

// AppendPublication writes everything but the payload, and the payload's length.
func AppendPublication(dst []byte, m *store.Publication) []byte {
	dst = append(dst, m.QoS)
	dst = AppendString(dst, m.Topic)
	dst = AppendString(dst, m.From)
	dst = AppendString(dst, string(m.Props))
	dst = AppendVarint(AppendVarint(dst, m.TS), m.Expires)
	return AppendUvarint(dst, uint64(len(m.Payload)))
}

// ReadPublication reads what AppendPublication wrote; the caller adds the payload. Its slices point into the value.
func ReadPublication(d *Decoder) (m store.Publication, payload int) {
	m.QoS = d.Byte()
	m.Topic, m.From = d.Str(), d.Str()
	if p := d.Bytes(); len(p) > 0 {
		m.Props = p
	}
	m.TS, m.Expires = d.Varint(), d.Varint()
	return m, int(d.Uvarint())
}

// ReadWhole is ReadPublication and its payload, in one piece at the end of a value; the result is a copy.
func ReadWhole(d *Decoder) (*store.Publication, bool) {
	m, n := ReadPublication(d)
	if d.Bad || n < 0 || len(d.B)-d.Off != n {
		return nil, false
	}
	m.Props = slices.Clone(m.Props)
	m.Payload = append([]byte(nil), d.B[d.Off:]...)
	return &m, true
}

// AppendWhole writes a publication with its payload, to the end of a value.
func AppendWhole(dst []byte, m *store.Publication) []byte {
	return append(AppendPublication(dst, m), m.Payload...)
}

const (
	pubsVersion = 1
	pubPrefix   = 9 // version and checksum
)

// AppendPubs writes publications that one Commit has put into queues: version, xxhash64 of the rest, count, the length of the
// meta part, the meta part, the payloads.
func AppendPubs(dst, meta []byte, list []*store.Publication) (value, scratch []byte) {
	meta = meta[:0]
	for _, m := range list {
		meta = AppendPublication(meta, m)
	}
	start := len(dst)
	dst = append(dst, pubsVersion, 0, 0, 0, 0, 0, 0, 0, 0)
	dst = AppendUvarint(dst, uint64(len(list)))
	dst = AppendUvarint(dst, uint64(len(meta)))
	dst = append(dst, meta...)
	for _, m := range list {
		dst = append(dst, m.Payload...)
	}
	binary.LittleEndian.PutUint64(dst[start+1:], xxhash.Sum64(dst[start+pubPrefix:]))
	return dst, meta
}

// ParsePubs decodes the publications [i, j), as copies.
func ParsePubs(value []byte, i, j int) ([]store.Publication, error) {
	if len(value) < pubPrefix || value[0] != pubsVersion {
		return nil, fmt.Errorf("%w: format", ErrChunk)
	}
	if binary.LittleEndian.Uint64(value[1:]) != xxhash.Sum64(value[pubPrefix:]) {
		return nil, fmt.Errorf("%w: checksum differs", ErrChunk)
	}
	head := Decoder{B: value, Off: pubPrefix}
	count := int(head.Uvarint())
	meta := head.Bytes()
	payloads := value[head.Off:]
	if head.Bad || j > count {
		return nil, ErrChunk
	}
	d := Decoder{B: meta}
	at := 0
	out := make([]store.Publication, 0, j-i)
	for n := range j {
		m, size := ReadPublication(&d)
		if d.Bad || size < 0 || at+size > len(payloads) {
			return nil, ErrChunk
		}
		if n >= i {
			m.Props = slices.Clone(m.Props)
			m.Payload = slices.Clone(payloads[at : at+size])
			out = append(out, m)
		}
		at += size
	}
	return out, nil
}

const (
	willRetain = 1 << iota
	willHolder // the holder follows
)

// AppendWill writes all of a will but its client, and who holds it, which may be "".
func AppendWill(dst []byte, w *store.Will, holder string) []byte {
	dst = AppendString(dst, w.User)
	dst = AppendVarint(dst, w.Due)
	dst = AppendUvarint(AppendUvarint(dst, uint64(w.Delay)), uint64(w.Expiry))
	flags := byte(0)
	if w.Retain {
		flags |= willRetain
	}
	if holder != "" {
		flags |= willHolder
	}
	if dst = append(dst, flags); holder != "" {
		dst = AppendString(dst, holder)
	}
	return AppendWhole(dst, &w.Publication)
}

// DecodeWill reads what AppendWill wrote.
func DecodeWill(client string, v []byte) (w store.Will, holder string, ok bool) {
	d := Decoder{B: v}
	w = store.Will{Client: client, User: d.Str(), Due: d.Varint(), Delay: uint32(d.Uvarint()), Expiry: uint32(d.Uvarint())}
	flags := d.Byte()
	w.Retain = flags&willRetain != 0
	if flags&willHolder != 0 {
		holder = d.Str()
	}
	m, ok := ReadWhole(&d)
	if ok {
		w.Publication = *m
	}
	return w, holder, ok && !d.Bad
}
