package cluster

import (
	"bytes"
	"testing"
)

// FuzzBatch: whatever comes is read without a panic, and what was read is written and read as the same.
func FuzzBatch(f *testing.F) {
	b := appendHeader(nil, newID(), 7)
	f.Add(b)
	b = appendFrame(b, &frame{kind: kindMessage, topic: 'x', payload: []byte("hello")})
	f.Add(b)
	b = appendFrame(b, &frame{kind: kindQuestion, topic: 'y', question: 1 << 60})
	b = appendFrame(b, &frame{kind: kindAnswer, question: 3, payload: bytes.Repeat([]byte("long "), 100)})
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Add(append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01))
	f.Add(appendFrame(appendHeader(nil, newID(), 1), &frame{kind: kindMessage, payload: appendAlive(nil, "name", []byte("info"))}))
	f.Fuzz(func(t *testing.T, batch []byte) {
		id, connection, ok := header(string(batch))
		if !ok {
			return
		}
		if got := appendHeader(nil, id, connection); !bytes.Equal(got, batch[:headerLen]) {
			t.Fatalf("header %x became %x", batch[:headerLen], got)
		}
		for rest := batch[headerLen:]; len(rest) > 0; {
			var x, y frame
			next, err := nextFrame(rest, &x)
			if err != nil {
				return
			}
			if len(next) >= len(rest) {
				t.Fatal("no progress")
			}
			again, err := nextFrame(appendFrame(nil, &x), &y)
			if err != nil || len(again) != 0 || x.kind != y.kind || x.topic != y.topic || x.question != y.question || !bytes.Equal(x.payload, y.payload) {
				t.Fatalf("%+v became %+v, %v", x, y, err)
			}
			if cap(x.payload) != len(x.payload) {
				t.Fatal("a payload reaches into the next frame")
			}
			if len(x.payload) > 0 {
				if name, info, ok := alive(x.payload[1:]); ok && len(name)+len(info) > len(x.payload) {
					t.Fatal("longer than it was")
				}
			}
			rest = next
		}
	})
}
