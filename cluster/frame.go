package cluster

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
)

// What is published to a channel of Redis is a batch: a header, and as many frames as had gathered for that channel.
//
//	batch  = version (1 byte) sender's id (16 bytes) connection (4 bytes, big-endian) frame...
//	frame  = length of what follows (uvarint) kind (1 byte) topic (1 byte) [question (8 bytes, big-endian)] payload
//
// The connection is counted up each time the sender has lost Redis: what was under way then may come late, and is ignored
// once something of a later connection has come.
const (
	version    = 1
	idLen      = 16
	headerLen  = 1 + idLen + 4
	frameExtra = binary.MaxVarintLen32 + 2 + 8 // bytes that a frame has beside its payload, at most
)

// Kinds of frames.
const (
	kindMessage  = 'm'
	kindQuestion = 'q'
	kindAnswer   = 'a'
)

// newID makes a node's id. 80 random bits are enough for no two processes to have the same.
func newID() string { return rand.Text()[:idLen] }

// appendHeader appends the header of a batch.
func appendHeader(b []byte, id string, connection uint32) []byte {
	b = append(b, version)
	b = append(b, id...)
	return binary.BigEndian.AppendUint32(b, connection)
}

// frame is one of a batch.
type frame struct {
	kind, topic byte
	question    uint64 // of kindQuestion and kindAnswer
	payload     []byte
}

func (f *frame) asks() bool { return f.kind == kindQuestion || f.kind == kindAnswer }

// appendFrame appends a frame.
func appendFrame(b []byte, f *frame) []byte {
	n := 2 + len(f.payload)
	if f.asks() {
		n += 8
	}
	b = binary.AppendUvarint(b, uint64(n))
	b = append(b, f.kind, f.topic)
	if f.asks() {
		b = binary.BigEndian.AppendUint64(b, f.question)
	}
	return append(b, f.payload...)
}

var errJunk = errors.New("not a batch")

// header reads that of a batch. ok: it is one.
func header(batch string) (id string, connection uint32, ok bool) {
	if len(batch) < headerLen || batch[0] != version {
		return "", 0, false
	}
	c := batch[1+idLen : headerLen]
	return batch[1 : 1+idLen], uint32(c[0])<<24 | uint32(c[1])<<16 | uint32(c[2])<<8 | uint32(c[3]), true
}

// nextFrame reads the first frame into f, whose payload is a part of b, and returns what follows it. Frames of a kind that is
// not known here are frames all the same: a later release may send them.
func nextFrame(b []byte, f *frame) (rest []byte, err error) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n < 2 || n > uint64(len(b)-size) {
		return nil, errJunk
	}
	rest = b[size+int(n):]
	b = b[size : size+int(n) : size+int(n)]
	f.kind, f.topic, f.question, f.payload = b[0], b[1], 0, b[2:]
	if f.asks() {
		if len(f.payload) < 8 {
			return nil, errJunk
		}
		f.question, f.payload = binary.BigEndian.Uint64(f.payload), f.payload[8:]
	}
	return rest, nil
}

// A sign of life is what nodes say about themselves, on topic 0.
//
//	sign = what (1 byte) [name's length (uvarint) name info]
const (
	signAlive = 'a' // with name and info; as a question: who else is there? The answer is a sign of life
	signBye   = 'b' // the node ends
)

func appendAlive(b []byte, name string, info []byte) []byte {
	b = append(b, signAlive)
	b = binary.AppendUvarint(b, uint64(len(name)))
	return append(append(b, name...), info...)
}

// alive reads what follows signAlive.
func alive(b []byte) (name string, info []byte, ok bool) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return "", nil, false
	}
	return string(b[size : size+int(n)]), b[size+int(n):], true
}
