package wire

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
	ChunkMessages = 256       // messages in a chunk at most
	ChunkBytes    = 256 << 10 // a chunk is closed when its bodies reach this
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

var ErrChunk = errors.New("chunk does not decode")

// AppendChunk encodes msgs, which are consecutive from cseq first on. maxID is the greatest id that the store has
// assigned so far; meta is scratch, returned for the next call.
func AppendChunk(dst, meta []byte, conv store.Conv, msgs []*store.Message, maxID int64) (value, scratch []byte) {
	meta = meta[:0]
	var prev *store.Message
	for _, m := range msgs {
		meta = appendMeta(meta, m, prev)
		prev = m
	}
	start := len(dst)
	dst = append(dst, chunkVersion, 0, 0, 0, 0, 0, 0, 0, 0)
	dst = AppendString(dst, string(conv))
	dst = AppendUvarint(dst, msgs[0].Cseq)
	dst = AppendUvarint(dst, uint64(len(msgs)))
	dst = AppendVarint(dst, maxID-prev.ID)
	dst = AppendUvarint(dst, uint64(len(meta)))
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
		dst = AppendString(AppendString(dst, m.From), m.Device)
	}
	dst = AppendString(dst, m.Cid)
	if flags&metaText == 0 {
		dst = AppendString(dst, m.Type)
	}
	if flags&metaCT != 0 {
		dst = AppendString(dst, m.ContentType)
	}
	var id, ts int64
	if prev != nil {
		id, ts = prev.ID, prev.TS
	}
	dst = AppendVarint(dst, m.ID-id)
	dst = AppendVarint(dst, m.TS-ts)
	if flags&metaCTS != 0 {
		dst = AppendVarint(dst, m.CTS-m.TS)
	}
	if flags&metaExpires != 0 {
		dst = AppendVarint(dst, m.Expires-m.TS)
	}
	return AppendUvarint(dst, uint64(len(m.Body)))
}

// Chunk is a chunk's value taken apart; its slices point into the value.
type Chunk struct {
	Conv   []byte
	First  uint64
	Count  int
	Above  int64 // greatest id of the store at that time, less the id of the chunk's last message
	meta   []byte
	bodies []byte
}

// ParseChunk checks the checksum and takes the value apart.
func ParseChunk(value []byte) (c Chunk, err error) {
	if len(value) < chunkPrefix {
		return c, fmt.Errorf("%w: %d bytes", ErrChunk, len(value))
	}
	if value[0] != chunkVersion {
		return c, fmt.Errorf("%w: format %d, known is %d", ErrChunk, value[0], chunkVersion)
	}
	if binary.LittleEndian.Uint64(value[1:]) != xxhash.Sum64(value[chunkPrefix:]) {
		return c, fmt.Errorf("%w: checksum differs", ErrChunk)
	}
	d := Decoder{B: value, Off: chunkPrefix}
	c.Conv = d.Bytes()
	c.First = d.Uvarint()
	c.Count = int(d.Uvarint())
	c.Above = d.Varint()
	c.meta = d.Bytes()
	c.bodies = value[d.Off:]
	if d.Bad || c.Count <= 0 || c.Count > len(c.meta) {
		return c, ErrChunk
	}
	return c, nil
}

// MetaReader walks over the messages of a chunk without allocating.
type MetaReader struct {
	d                       Decoder
	flags                   byte
	from, dev, cid, typ, ct Span  // in chunk.meta
	ID, TS                  int64 // of the message
	cts, expires            int64
	body                    Span // in chunk.bodies
}

// Walk starts before the first message.
func (c *Chunk) Walk() MetaReader { return MetaReader{d: Decoder{B: c.meta}} }

// Next moves to the next message; false when the meta part does not decode or has ended.
func (r *MetaReader) Next() bool {
	d := &r.d
	if d.Off >= len(d.B) {
		return false
	}
	r.flags = d.Byte()
	if r.flags&metaSame == 0 {
		r.from, r.dev = d.Span(), d.Span()
	}
	r.cid = d.Span()
	r.typ, r.ct = Span{}, Span{}
	if r.flags&metaText == 0 {
		r.typ = d.Span()
	}
	if r.flags&metaCT != 0 {
		r.ct = d.Span()
	}
	r.ID += d.Varint()
	r.TS += d.Varint()
	r.cts, r.expires = 0, 0
	if r.flags&metaCTS != 0 {
		r.cts = r.TS + d.Varint()
	}
	if r.flags&metaExpires != 0 {
		r.expires = r.TS + d.Varint()
	}
	r.body = Span{r.body.To, r.body.To + int(d.Uvarint())}
	return !d.Bad
}

// Sender is the From of the message that Next moved to, valid until the chunk's value is released.
func (r *MetaReader) Sender() []byte { return r.d.B[r.from.From:r.from.To] }

// Recalled reports whether the message that Next moved to is a tombstone.
func (r *MetaReader) Recalled() bool { return r.flags&metaRecalled != 0 }

// LastID is the id of the chunk's last message.
func (c *Chunk) LastID() (int64, error) {
	r := c.Walk()
	for range c.Count {
		if !r.Next() {
			return 0, ErrChunk
		}
	}
	return r.ID, nil
}

// Messages decodes the messages [i, j) of the chunk, as copies that do not refer to the chunk's value. The
// messages share one string and one byte slice: a page costs a few allocations, not a few per message.
func (c *Chunk) Messages(conv store.Conv, i, j int) ([]store.Message, error) {
	r := c.Walk()
	for n := 0; n < i; n++ {
		if !r.Next() {
			return nil, ErrChunk
		}
	}
	// The first message may name its sender by reference to one before the range.
	from, dev := string(c.meta[r.from.From:r.from.To]), string(c.meta[r.dev.From:r.dev.To])
	metaBase, bodyBase := r.d.Off, r.body.To
	end := r
	for n := i; n < j; n++ {
		if !end.Next() {
			return nil, ErrChunk
		}
	}
	if end.body.To > len(c.bodies) {
		return nil, ErrChunk
	}
	text := string(c.meta[metaBase:end.d.Off])
	body := append([]byte(nil), c.bodies[bodyBase:end.body.To]...)
	sub := func(s Span) string {
		if s.To == s.From {
			return ""
		}
		return text[s.From-metaBase : s.To-metaBase]
	}
	out := make([]store.Message, j-i)
	for n := range out {
		r.Next()
		if r.flags&metaSame == 0 {
			from, dev = sub(r.from), sub(r.dev)
		}
		m := &out[n]
		*m = store.Message{
			Conv: conv, Cseq: c.First + uint64(i+n), ID: r.ID, From: from, Device: dev, Cid: sub(r.cid), Type: "text",
			ContentType: sub(r.ct), Encoding: store.Encoding(r.flags & metaEncoding), Recalled: r.flags&metaRecalled != 0,
			TS: r.TS, CTS: r.cts, Expires: r.expires,
		}
		if r.flags&metaText == 0 {
			m.Type = sub(r.typ)
		}
		if a, b := r.body.From-bodyBase, r.body.To-bodyBase; b > a {
			m.Body = body[a:b:b]
		}
	}
	return out, nil
}
