package pebble

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/mqim/mqim/store"
)

// A chunk's value: format version, xxhash64 of the rest, conversation, first cseq, count, the greatest id that its
// batch assigned less its own last one, the length of the meta part, the meta part, the bodies. Meta and bodies are
// apart so that a reader makes one string and one byte slice for a whole run of messages.
const (
	chunkVersion  = 1
	chunkPrefix   = 9
	chunkMessages = 256       // messages in a chunk at most
	chunkBytes    = 256 << 10 // a chunk is closed when its bodies reach this
)

const (
	metaEncoding = 0x03
	metaRecalled = 1 << 2
	metaCTS      = 1 << 3
	metaExpires  = 1 << 4
	metaCT       = 1 << 5
	metaSame     = 1 << 6 // From and Device are those of the message before
	metaText     = 1 << 7 // Type is "text"
)

var errChunk = errors.New("chunk does not decode")

// appendChunk encodes msgs, which are consecutive from cseq first on. maxID is the greatest id that the store has
// assigned so far; meta is scratch, returned for the next call.
func appendChunk(dst, meta []byte, conv store.Conv, msgs []*store.Message, maxID int64) (value, scratch []byte) {
	meta = meta[:0]
	var prev *store.Message
	for _, m := range msgs {
		meta = appendMeta(meta, m, prev)
		prev = m
	}
	start := len(dst)
	dst = append(dst, chunkVersion, 0, 0, 0, 0, 0, 0, 0, 0)
	dst = appendString(dst, string(conv))
	dst = appendUvarint(dst, msgs[0].Cseq)
	dst = appendUvarint(dst, uint64(len(msgs)))
	dst = appendVarint(dst, maxID-prev.ID)
	dst = appendUvarint(dst, uint64(len(meta)))
	dst = append(dst, meta...)
	for _, m := range msgs {
		dst = append(dst, m.Body...)
	}
	binary.LittleEndian.PutUint64(dst[start+1:], xxhash.Sum64(dst[start+chunkPrefix:]))
	return dst, meta
}

func appendMeta(dst []byte, m, prev *store.Message) []byte {
	flags := byte(m.Encoding) & metaEncoding
	same := prev != nil && prev.From == m.From && prev.Device == m.Device
	set := func(bit byte, on bool) {
		if on {
			flags |= bit
		}
	}
	set(metaRecalled, m.Recalled)
	set(metaCTS, m.CTS != 0)
	set(metaExpires, m.Expires != 0)
	set(metaCT, m.ContentType != "")
	set(metaSame, same)
	set(metaText, m.Type == "text")
	dst = append(dst, flags)
	if !same {
		dst = appendString(appendString(dst, m.From), m.Device)
	}
	dst = appendString(dst, m.Cid)
	if flags&metaText == 0 {
		dst = appendString(dst, m.Type)
	}
	if flags&metaCT != 0 {
		dst = appendString(dst, m.ContentType)
	}
	var id, ts int64
	if prev != nil {
		id, ts = prev.ID, prev.TS
	}
	dst = appendVarint(dst, m.ID-id)
	dst = appendVarint(dst, m.TS-ts)
	if flags&metaCTS != 0 {
		dst = appendVarint(dst, m.CTS-m.TS)
	}
	if flags&metaExpires != 0 {
		dst = appendVarint(dst, m.Expires-m.TS)
	}
	return appendUvarint(dst, uint64(len(m.Body)))
}

// chunk is a chunk's value taken apart; its slices point into the value.
type chunk struct {
	conv   []byte
	first  uint64
	count  int
	above  int64 // greatest id of the store at that time, less the id of the chunk's last message
	meta   []byte
	bodies []byte
}

// parseChunk checks the checksum and takes the value apart.
func parseChunk(value []byte) (c chunk, err error) {
	if len(value) < chunkPrefix {
		return c, fmt.Errorf("%w: %d bytes", errChunk, len(value))
	}
	if value[0] != chunkVersion {
		return c, fmt.Errorf("%w: format %d, known is %d", errChunk, value[0], chunkVersion)
	}
	if binary.LittleEndian.Uint64(value[1:]) != xxhash.Sum64(value[chunkPrefix:]) {
		return c, fmt.Errorf("%w: checksum differs", errChunk)
	}
	d := decoder{b: value, off: chunkPrefix}
	c.conv = d.bytes()
	c.first = d.uvarint()
	c.count = int(d.uvarint())
	c.above = d.varint()
	c.meta = d.bytes()
	c.bodies = value[d.off:]
	if d.bad || c.count <= 0 || c.count > len(c.meta) {
		return c, errChunk
	}
	return c, nil
}

// metaReader walks over the messages of a chunk without allocating.
type metaReader struct {
	d                       decoder
	flags                   byte
	from, dev, cid, typ, ct span // in chunk.meta
	id, ts, cts, expires    int64
	body                    span // in chunk.bodies
}

func (c *chunk) walk() metaReader { return metaReader{d: decoder{b: c.meta}} }

// next moves to the next message; false when the meta part does not decode or has ended.
func (r *metaReader) next() bool {
	d := &r.d
	if d.off >= len(d.b) {
		return false
	}
	r.flags = d.byte()
	if r.flags&metaSame == 0 {
		r.from, r.dev = d.span(), d.span()
	}
	r.cid = d.span()
	r.typ, r.ct = span{}, span{}
	if r.flags&metaText == 0 {
		r.typ = d.span()
	}
	if r.flags&metaCT != 0 {
		r.ct = d.span()
	}
	r.id += d.varint()
	r.ts += d.varint()
	r.cts, r.expires = 0, 0
	if r.flags&metaCTS != 0 {
		r.cts = r.ts + d.varint()
	}
	if r.flags&metaExpires != 0 {
		r.expires = r.ts + d.varint()
	}
	r.body = span{r.body.to, r.body.to + int(d.uvarint())}
	return !d.bad
}

// sender is the From of the message that next moved to, valid until the chunk's value is released.
func (r *metaReader) sender() []byte { return r.d.b[r.from.from:r.from.to] }

// messages decodes the messages [i, j) of the chunk, as copies that do not refer to the chunk's value. The
// messages share one string and one byte slice: a page costs a few allocations, not a few per message.
func (c *chunk) messages(conv store.Conv, i, j int) ([]store.Message, error) {
	r := c.walk()
	for n := 0; n < i; n++ {
		if !r.next() {
			return nil, errChunk
		}
	}
	// The first message may name its sender by reference to one before the range.
	from, dev := string(c.meta[r.from.from:r.from.to]), string(c.meta[r.dev.from:r.dev.to])
	metaBase, bodyBase := r.d.off, r.body.to
	end := r
	for n := i; n < j; n++ {
		if !end.next() {
			return nil, errChunk
		}
	}
	if end.body.to > len(c.bodies) {
		return nil, errChunk
	}
	text := string(c.meta[metaBase:end.d.off])
	body := append([]byte(nil), c.bodies[bodyBase:end.body.to]...)
	sub := func(s span) string {
		if s.to == s.from {
			return ""
		}
		return text[s.from-metaBase : s.to-metaBase]
	}
	out := make([]store.Message, j-i)
	for n := range out {
		r.next()
		if r.flags&metaSame == 0 {
			from, dev = sub(r.from), sub(r.dev)
		}
		m := &out[n]
		*m = store.Message{
			Conv: conv, Cseq: c.first + uint64(i+n), ID: r.id, From: from, Device: dev, Cid: sub(r.cid), Type: "text",
			ContentType: sub(r.ct), Encoding: store.Encoding(r.flags & metaEncoding), Recalled: r.flags&metaRecalled != 0,
			TS: r.ts, CTS: r.cts, Expires: r.expires,
		}
		if r.flags&metaText == 0 {
			m.Type = sub(r.typ)
		}
		if a, b := r.body.from-bodyBase, r.body.to-bodyBase; b > a {
			m.Body = body[a:b:b]
		}
	}
	return out, nil
}
