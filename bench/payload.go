package bench

import (
	"bytes"
	"math/rand/v2"
	"sync"
)

// A payload begins with a header of fixed width in text, so that one form serves a raw payload and a JSON string, and
// so that writing it anew touches only digits:
//
//	mq 6×run 6×stream 10×number 14×due 14×sent      (hexadecimal)
//
// due and sent are nanoseconds on the clock of the run; due is when the schedule wanted the message out, sent is when
// it was written. run keeps what an earlier run left behind out of this one's counts. The bytes [cidFrom:cidTo] name
// the message uniquely and serve as its client message id.
const (
	headerSize = 2 + 6 + 6 + 10 + 14 + 14
	cidFrom    = 2
	cidTo      = 2 + 6 + 6 + 10
	maxStream  = 1<<24 - 1
	maxBody    = maxPacket / 2
)

// header is what a payload says of itself.
type header struct {
	run    uint32
	stream uint32 // the sender, or in a drain the user
	number uint64 // 0, 1, 2 … within the stream
	due    int64
	sent   int64
}

const hexDigits = "0123456789abcdef"

// hexValue maps a byte to its hexadecimal value, 0xff for what is no digit.
var hexValue = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i, c := range []byte(hexDigits) {
		t[c] = byte(i)
	}
	return t
}()

func putHex(b []byte, v uint64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = hexDigits[v&15]
		v >>= 4
	}
}

func getHex(b []byte) (v uint64, ok bool) {
	var bad byte
	for _, c := range b {
		d := hexValue[c]
		bad |= d
		v = v<<4 | uint64(d&15)
	}
	return v, bad < 16
}

// putHeader writes h over the first headerSize bytes of b.
func putHeader(b []byte, h header) {
	_ = b[headerSize-1]
	b[0], b[1] = 'm', 'q'
	putHex(b[2:8], uint64(h.run))
	putHex(b[8:14], uint64(h.stream))
	putHex(b[14:24], h.number)
	putHex(b[24:38], uint64(h.due))
	putHex(b[38:52], uint64(h.sent))
}

// getHeader reads a header; ok is false for anything that this generator did not write.
func getHeader(b []byte) (h header, ok bool) {
	if len(b) < headerSize || b[0] != 'm' || b[1] != 'q' {
		return h, false
	}
	run, ok1 := getHex(b[2:8])
	stream, ok2 := getHex(b[8:14])
	number, ok3 := getHex(b[14:24])
	due, ok4 := getHex(b[24:38])
	sent, ok5 := getHex(b[38:52])
	h = header{uint32(run), uint32(stream), number, int64(due), int64(sent)}
	return h, ok1 && ok2 && ok3 && ok4 && ok5
}

// What follows the header is cut from noise, elsewhere for each message: a store that compresses must not get messages
// that are all alike, which would flatter it, and a receiver knows what has to be there. The noise is the same in every
// process, so that a drain can check what an earlier process left. All of it may stand in a JSON string as it is.
const noisePeriod = 512 << 10

var noise = sync.OnceValue(func() []byte {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	b := make([]byte, noisePeriod+maxBody)
	source := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = alphabet[source.Uint32()%uint32(len(alphabet))]
	}
	return b
})

// filler is what follows the header of a message, size bytes.
func filler(noise []byte, stream uint32, number uint64, size int) []byte {
	at := (number*0x9e3779b97f4a7c15 + uint64(stream)*0xc2b2ae3d27d4eb4f) >> 40 % noisePeriod
	return noise[at : at+uint64(size)]
}

var (
	keyBody = []byte(`"body":`)
	keySeq  = []byte(`"seq":`)
	keyCSeq = []byte(`"cseq":`)
	keyConv = []byte(`"conv":`)
	keyCID  = []byte(`"cid":`)
	notOK   = []byte(`"ok":false`)

	inboxTrimmed = []byte(`"inbox.trimmed"`)
)

// jsonString returns the string after the first key in b, by looking for the key and not by parsing: the generator
// knows that no string of its own holds one. Only for strings without escapes, like all that it looks for.
func jsonString(b, key []byte) ([]byte, bool) {
	rest, ok := afterKey(b, key)
	if !ok || len(rest) == 0 || rest[0] != '"' {
		return nil, false
	}
	rest = rest[1:]
	end := bytes.IndexByte(rest, '"')
	if end < 0 {
		return nil, false
	}
	return rest[:end], true
}

// jsonNumber is jsonString for a whole number.
func jsonNumber(b, key []byte) (v uint64, ok bool) {
	rest, found := afterKey(b, key)
	if !found {
		return 0, false
	}
	for _, c := range rest {
		if c < '0' || c > '9' {
			break
		}
		v, ok = v*10+uint64(c-'0'), true
	}
	return v, ok
}

func afterKey(b, key []byte) ([]byte, bool) {
	i := bytes.Index(b, key)
	if i < 0 {
		return nil, false
	}
	b = b[i+len(key):]
	for len(b) > 0 && b[0] == ' ' {
		b = b[1:]
	}
	return b, true
}
