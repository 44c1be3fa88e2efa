package pebble

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/mqim/mqim/store"
)

// appendPublication writes everything but the payload, and the payload's length.
func appendPublication(dst []byte, m *store.Publication) []byte {
	dst = append(dst, m.QoS)
	dst = appendString(dst, m.Topic)
	dst = appendString(dst, m.From)
	dst = appendString(dst, string(m.Props))
	dst = appendVarint(appendVarint(dst, m.TS), m.Expires)
	return appendUvarint(dst, uint64(len(m.Payload)))
}

// publication reads what appendPublication wrote; the caller adds the payload. Its slices point into the value.
func (d *decoder) publication() (m store.Publication, payload int) {
	m.QoS = d.byte()
	m.Topic, m.From = d.str(), d.str()
	if p := d.bytes(); len(p) > 0 {
		m.Props = p
	}
	m.TS, m.Expires = d.varint(), d.varint()
	return m, int(d.uvarint())
}

// whole is publication and its payload, in one piece at the end of a value; the result is a copy.
func (d *decoder) whole() (*store.Publication, bool) {
	m, n := d.publication()
	if d.bad || n < 0 || len(d.b)-d.off != n {
		return nil, false
	}
	m.Props = slices.Clone(m.Props)
	m.Payload = append([]byte(nil), d.b[d.off:]...)
	return &m, true
}

func appendWhole(dst []byte, m *store.Publication) []byte {
	return append(appendPublication(dst, m), m.Payload...)
}

// A value of tabPubs holds what one Commit put into queues: version, xxhash64 of the rest, count, the length of the
// meta part, the meta part, the payloads.
const pubsVersion = 1

func appendPubs(dst, meta []byte, list []*store.Publication) (value, scratch []byte) {
	meta = meta[:0]
	for _, m := range list {
		meta = appendPublication(meta, m)
	}
	start := len(dst)
	dst = append(dst, pubsVersion, 0, 0, 0, 0, 0, 0, 0, 0)
	dst = appendUvarint(dst, uint64(len(list)))
	dst = appendUvarint(dst, uint64(len(meta)))
	dst = append(dst, meta...)
	for _, m := range list {
		dst = append(dst, m.Payload...)
	}
	binary.LittleEndian.PutUint64(dst[start+1:], xxhash.Sum64(dst[start+chunkPrefix:]))
	return dst, meta
}

// parsePubs decodes the publications [i, j), as copies.
func parsePubs(value []byte, i, j int) ([]store.Publication, error) {
	if len(value) < chunkPrefix || value[0] != pubsVersion {
		return nil, fmt.Errorf("%w: format", errChunk)
	}
	if binary.LittleEndian.Uint64(value[1:]) != xxhash.Sum64(value[chunkPrefix:]) {
		return nil, fmt.Errorf("%w: checksum differs", errChunk)
	}
	head := decoder{b: value, off: chunkPrefix}
	count := int(head.uvarint())
	meta := head.bytes()
	payloads := value[head.off:]
	if head.bad || j > count {
		return nil, errChunk
	}
	d := decoder{b: meta}
	at := 0
	out := make([]store.Publication, 0, j-i)
	for n := range j {
		m, size := d.publication()
		if d.bad || size < 0 || at+size > len(payloads) {
			return nil, errChunk
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

// How a session's record says what becomes of it.
const (
	sessionOffline = iota
	sessionOnline  // in the opening of the store that follows
	sessionCut
)

func appendSession(dst []byte, s *store.Session, boot uint64) []byte {
	dst = appendString(dst, s.User)
	dst = appendUvarint(dst, uint64(s.Expiry))
	dst = appendVarint(dst, s.Since)
	switch {
	case s.Online:
		return appendUvarint(append(dst, sessionOnline), boot)
	case s.Cut:
		return append(dst, sessionCut)
	}
	return append(dst, sessionOffline)
}

// decodeSession takes a session apart: what another opening of the store has left connected is cut. cutNow says that the
// record does not tell yet.
func decodeSession(client string, v []byte, boot uint64, opened int64) (s store.Session, cutNow, ok bool) {
	d := decoder{b: v}
	s = store.Session{Client: client, User: d.str(), Expiry: uint32(d.uvarint()), Since: d.varint()}
	switch d.byte() {
	case sessionOnline:
		if s.Online = d.uvarint() == boot; !s.Online {
			s.Since, s.Cut, cutNow = opened, true, true
		}
	case sessionCut:
		s.Cut = true
	}
	return s, cutNow, !d.bad
}

func appendWill(dst []byte, w *store.Will) []byte {
	dst = appendString(dst, w.User)
	dst = appendVarint(dst, w.Due)
	dst = appendUvarint(appendUvarint(dst, uint64(w.Delay)), uint64(w.Expiry))
	if w.Retain {
		dst = append(dst, 1)
	} else {
		dst = append(dst, 0)
	}
	return appendWhole(dst, &w.Publication)
}

func decodeWill(client string, v []byte) (w store.Will, ok bool) {
	d := decoder{b: v}
	w = store.Will{Client: client, User: d.str(), Due: d.varint(), Delay: uint32(d.uvarint()), Expiry: uint32(d.uvarint())}
	w.Retain = d.byte() == 1
	m, ok := d.whole()
	if ok {
		w.Publication = *m
	}
	return w, ok && !d.bad
}
