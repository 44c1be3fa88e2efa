package bench

import (
	"fmt"
	"io"
)

// packet is one MQTT packet as it lies in a reader's buffer: body is valid until the next call of fill.
type packet struct {
	kind  byte
	flags byte
	body  []byte
}

// packetReader cuts a stream into packets without copying them. It is bufio.Reader with two differences that the
// generator lives by: it can tell whether a whole packet is at hand, so that the owner writes what has gathered
// exactly when it would otherwise wait; and its buffer grows to the largest packet seen, never beyond max.
type packetReader struct {
	src  io.Reader
	buf  []byte
	r, w int // buf[r:w] is unread
	max  int // bytes of a whole packet
}

// next returns the next packet, or ok false if the buffer holds none that is whole: call fill, then try again.
func (p *packetReader) next() (pk packet, ok bool, err error) {
	b := p.buf[p.r:p.w]
	if len(b) < 2 {
		return pk, false, nil
	}
	n, size := readLength(b[1:])
	if size < 0 {
		return pk, false, fmt.Errorf("remaining length: %w", errMalformed)
	}
	if size == 0 {
		return pk, false, nil
	}
	head := 1 + size
	if head+n > p.max {
		return pk, false, fmt.Errorf("a packet of %d bytes: more than %d", head+n, p.max)
	}
	if len(b) < head+n {
		return pk, false, nil
	}
	p.r += head + n
	return packet{kind: b[0] >> 4, flags: b[0] & 0x0f, body: b[head : head+n : head+n]}, true, nil
}

// fill waits for more bytes. What next returned before is no longer valid.
func (p *packetReader) fill() error {
	if p.r > 0 {
		p.w = copy(p.buf, p.buf[p.r:p.w])
		p.r = 0
	}
	if p.w == len(p.buf) {
		bigger := make([]byte, min(max(2*len(p.buf), 512), p.max))
		if len(bigger) == len(p.buf) {
			return fmt.Errorf("a packet of more than %d bytes", p.max)
		}
		copy(bigger, p.buf[:p.w])
		p.buf = bigger
	}
	n, err := p.src.Read(p.buf[p.w:])
	p.w += n
	if n > 0 {
		return nil // an error with it comes again
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// wait returns the next packet, filling as often as that takes.
func (p *packetReader) wait() (packet, error) {
	for {
		pk, ok, err := p.next()
		if ok || err != nil {
			return pk, err
		}
		if err := p.fill(); err != nil {
			return packet{}, err
		}
	}
}
