// Package wire has the formats that several drivers keep messages in: chunks, which are the consecutive messages of one
// conversation that one Commit appends, the runs by which an inbox refers to them, and the spans of members.
package wire

import (
	"encoding/binary"

	"github.com/mqim/mqim/store"
)

// Decoder takes values apart. After the first short or malformed field Bad is set and every field is zero, so
// callers check once, at the end.
type Decoder struct {
	B   []byte
	Off int
	Bad bool
}

// Uvarint reads what AppendUvarint wrote.
func (d *Decoder) Uvarint() uint64 {
	v, n := binary.Uvarint(d.B[d.Off:])
	if n <= 0 {
		d.Bad = true
		d.Off = len(d.B)
		return 0
	}
	d.Off += n
	return v
}

// Varint reads what AppendVarint wrote.
func (d *Decoder) Varint() int64 {
	u := d.Uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

// Byte reads one byte.
func (d *Decoder) Byte() byte {
	if d.Off >= len(d.B) {
		d.Bad = true
		return 0
	}
	c := d.B[d.Off]
	d.Off++
	return c
}

// Span is a place in a buffer.
type Span struct{ From, To int }

// Span reads a length and skips that many bytes, and tells where they are.
func (d *Decoder) Span() Span {
	n := d.Uvarint()
	if n > uint64(len(d.B)-d.Off) {
		d.Bad = true
		d.Off = len(d.B)
		return Span{d.Off, d.Off}
	}
	s := Span{d.Off, d.Off + int(n)}
	d.Off = s.To
	return s
}

// Bytes reads what AppendString wrote; the result points into B.
func (d *Decoder) Bytes() []byte {
	s := d.Span()
	return d.B[s.From:s.To]
}

// Str is Bytes as a string of its own.
func (d *Decoder) Str() string { return string(d.Bytes()) }

// AppendVarint writes a number that may be negative.
func AppendVarint(dst []byte, v int64) []byte { return binary.AppendVarint(dst, v) }

// AppendUvarint writes a number.
func AppendUvarint(dst []byte, v uint64) []byte { return binary.AppendUvarint(dst, v) }

// AppendString writes a length and the bytes of s.
func AppendString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// AppendSpans writes a member's spans to the end of a value.
func AppendSpans(dst []byte, spans []store.Span) []byte {
	prev := uint64(0)
	for _, s := range spans {
		dst = AppendUvarint(dst, s.From-prev)
		if s.To == 0 {
			return dst
		}
		dst = AppendUvarint(dst, s.To-s.From)
		prev = s.To
	}
	return dst
}

// Spans reads what AppendSpans wrote, to the end of the value.
func (d *Decoder) Spans() (spans []store.Span) {
	prev := uint64(0)
	for !d.Bad && d.Off < len(d.B) {
		s := store.Span{From: prev + d.Uvarint()}
		if d.Off < len(d.B) {
			s.To = s.From + d.Uvarint()
		}
		spans = append(spans, s)
		prev = s.To
	}
	return spans
}
