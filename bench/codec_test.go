package bench

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// readerOf cuts b, with a buffer that has to grow for all but the smallest packets.
func readerOf(src io.Reader) *packetReader {
	return &packetReader{src: src, buf: make([]byte, 8), max: 1 << 20}
}

func TestEncode(t *testing.T) {
	pub := func(version, qos byte, topic string, id uint16, body string) []byte {
		b, _ := appendPublish(nil, version, qos, topic, id, len(body))
		return append(b, body...)
	}
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"connect 3.1.1": {appendConnect(nil, connectOptions{version: v311, clientID: "c", clean: true, keepAlive: 60}),
			"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c"},
		"connect 3.1.1 with a password": {appendConnect(nil, connectOptions{version: v311, clientID: "c", user: "u", password: "pw"}),
			"\x10\x14\x00\x04MQTT\x04\xc0\x00\x00\x00\x01c\x00\x01u\x00\x02pw"},
		"connect 5": {appendConnect(nil, connectOptions{version: v5, clientID: "c", clean: true}),
			"\x10\x0e\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x01c"},
		"connect 5 with a session": {appendConnect(nil, connectOptions{version: v5, clientID: "c"}),
			"\x10\x13\x00\x04MQTT\x05\x00\x00\x00\x05\x11\x00\x00\x0e\x10\x00\x01c"},
		"subscribe 3.1.1": {appendSubscribe(nil, v311, 7, 1, "a/b"), "\x82\x08\x00\x07\x00\x03a/b\x01"},
		"subscribe 5":     {appendSubscribe(nil, v5, 7, 1, "a/b", "c"), "\x82\x0d\x00\x07\x00\x00\x03a/b\x01\x00\x01c\x01"},
		"publish QoS 0":   {pub(v311, 0, "t", 0, "hi"), "\x30\x05\x00\x01thi"},
		"publish QoS 1":   {pub(v311, 1, "t", 0x102, "hi"), "\x32\x07\x00\x01t\x01\x02hi"},
		"publish 5 QoS 2": {pub(v5, 2, "t", 0x102, "hi"), "\x34\x08\x00\x01t\x01\x02\x00hi"},
		"puback":          {appendAck(nil, typePuback, 0x102), "\x40\x02\x01\x02"},
		"pubrel":          {appendAck(nil, typePubrel, 0x102), "\x62\x02\x01\x02"},
		"ping":            {appendPing(nil), "\xc0\x00"},
		"disconnect":      {appendDisconnect(nil), "\xe0\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			if string(c.got) != c.want {
				t.Errorf("got  %q\nwant %q", c.got, c.want)
			}
		})
	}
}

func TestReadLength(t *testing.T) {
	for _, n := range []int{0, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 268_435_455} {
		b := appendLength(nil, n)
		if got, size := readLength(b); got != n || size != len(b) {
			t.Errorf("%d: got %d in %d bytes, want %d", n, got, size, len(b))
		}
		if _, size := readLength(b[:len(b)-1]); size != 0 {
			t.Errorf("%d cut short: got size %d, want 0", n, size)
		}
	}
	if _, size := readLength([]byte{0x80, 0x80, 0x80, 0x80, 1}); size != -1 {
		t.Errorf("five bytes: got size %d, want -1", size)
	}
}

func TestReader(t *testing.T) {
	big := strings.Repeat("x", 70_000)
	var stream []byte
	stream = appendAck(stream, typePuback, 1)
	stream, _ = appendPublish(stream, v5, 1, "a", 9, len(big))
	stream = append(stream, big...)
	stream = appendPing(stream)
	for name, src := range map[string]io.Reader{
		"at once": bytes.NewReader(stream), "byte by byte": iotest.OneByteReader(bytes.NewReader(stream)),
		"in halves": iotest.HalfReader(bytes.NewReader(stream)), "end with data": iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		t.Run(name, func(t *testing.T) {
			rd := readerOf(src)
			pk, err := rd.wait()
			if id, reason, ackErr := parseAck(pk); err != nil || ackErr != nil || id != 1 || reason != 0 {
				t.Fatalf("PUBACK: got id %d, reason %d, %v, %v", id, reason, err, ackErr)
			}
			pk, err = rd.wait()
			if err != nil {
				t.Fatal(err)
			}
			m, err := parsePublish(v5, pk)
			if err != nil || string(m.topic) != "a" || m.id != 9 || m.qos != 1 || string(m.payload) != big {
				t.Fatalf("PUBLISH: got topic %q, id %d, QoS %d, %d bytes, %v", m.topic, m.id, m.qos, len(m.payload), err)
			}
			if pk, err = rd.wait(); err != nil || pk.kind != typePingreq || len(pk.body) != 0 {
				t.Fatalf("PINGREQ: got %+v, %v", pk, err)
			}
			if _, err = rd.wait(); err != io.EOF {
				t.Fatalf("end: got %v, want EOF", err)
			}
		})
	}
}

func TestReaderRefusesHugePackets(t *testing.T) {
	rd := readerOf(bytes.NewReader([]byte{0x30, 0xff, 0xff, 0xff, 0x7f, 0}))
	if _, err := rd.wait(); err == nil || len(rd.buf) > 1024 {
		t.Errorf("got %v and a buffer of %d bytes, want an error and no room made for it", err, len(rd.buf))
	}
}

func TestParseConnack(t *testing.T) {
	for name, c := range map[string]struct {
		version byte
		body    string
		want    connack
		err     error
	}{
		"3.1.1":       {v311, "\x01\x00", connack{session: true, receiveMax: 65535, keepAlive: -1}, nil},
		"refused":     {v311, "\x00\x05", connack{reason: 5, receiveMax: 65535, keepAlive: -1}, nil},
		"5":           {v5, "\x00\x00\x00", connack{receiveMax: 65535, keepAlive: -1}, nil},
		"5 with both": {v5, "\x00\x00\x0f\x21\x00\x14\x26\x00\x01a\x00\x01b\x13\x00\x1e\x25\x01", connack{receiveMax: 20, keepAlive: 30}, nil},
		"unknown":     {v5, "\x00\x00\x02\x7f\x00", connack{receiveMax: 65535, keepAlive: -1}, errMalformed},
		"cut short":   {v5, "\x00\x00\x09\x21", connack{receiveMax: 65535, keepAlive: -1}, errMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseConnack(c.version, packet{kind: typeConnack, body: []byte(c.body)})
			if !errors.Is(err, c.err) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(connack{})); diff != "" {
				t.Errorf("want, got:\n%s", diff)
			}
		})
	}
}

// FuzzReader feeds the reader anything: it must neither panic nor make room beyond its limit, and what it cuts must not
// depend on how the bytes arrive.
func FuzzReader(f *testing.F) {
	f.Add(appendAck(nil, typePuback, 1))
	f.Add(appendConnect(nil, connectOptions{version: v5, clientID: "c"}))
	pub, _ := appendPublish(nil, v5, 1, "t", 3, 2)
	f.Add(append(pub, "hi"...))
	f.Add([]byte("\x20\x12\x00\x00\x0f\x21\x00\x14\x26\x00\x01a\x00\x01b\x13\x00\x1e\x25\x01"))
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0x7f})
	f.Add([]byte{0x82, 0x01, 0x00})
	f.Fuzz(func(t *testing.T, stream []byte) {
		cut := func(src io.Reader) (all []byte, end string) {
			rd := &packetReader{src: src, buf: make([]byte, 4), max: 1 << 12}
			for {
				pk, err := rd.wait()
				if len(rd.buf) > rd.max {
					t.Fatalf("a buffer of %d bytes, more than %d", len(rd.buf), rd.max)
				}
				if err != nil {
					return all, err.Error()
				}
				for _, version := range []byte{v311, v5} {
					if m, err := parsePublish(version, pk); err == nil {
						getHeader(m.payload)
						jsonString(m.payload, keyBody)
						jsonNumber(m.payload, keySeq)
					}
					parseConnack(version, packet{kind: typeConnack, body: pk.body}) //nolint:errcheck
					subackReason(version, pk)                                       //nolint:errcheck
				}
				parseAck(pk) //nolint:errcheck
				all = append(all, pk.kind<<4|pk.flags)
				all = binary.BigEndian.AppendUint32(all, uint32(len(pk.body)))
				all = append(all, pk.body...)
			}
		}
		once, end := cut(bytes.NewReader(stream))
		slow, slowEnd := cut(iotest.OneByteReader(bytes.NewReader(stream)))
		if !bytes.Equal(once, slow) || end != slowEnd {
			t.Errorf("at once %x, %s\nbyte by byte %x, %s", once, end, slow, slowEnd)
		}
	})
}

func benchTemplate(profile Profile) template {
	o := Options{Profile: profile, QoS: 1, Run: "abc"}.Defaults()
	return o.template(7, "u/bench-abc-r-7")
}

func BenchmarkEncode(b *testing.B) {
	for _, p := range []Profile{Topic, IM} {
		b.Run(string(p), func(b *testing.B) {
			t := benchTemplate(p)
			buf := t.appendMessage(nil, 1, header{})
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for n := uint64(0); b.Loop(); n++ {
				buf = t.appendMessage(buf[:0], uint16(n), header{run: 0xabc, stream: 7, number: n, due: 1 << 40, sent: 1 << 40})
			}
		})
	}
}

// endless repeats b for ever, from its beginning at each end.
type endless struct {
	b  []byte
	at int
}

func (e *endless) Read(p []byte) (n int, err error) {
	for n < len(p) {
		k := copy(p[n:], e.b[e.at:])
		n += k
		e.at = (e.at + k) % len(e.b)
	}
	return n, nil
}

// receiveLoop is a receiver that reads message over and over, without a socket.
func receiveLoop(profile Profile, message []byte) (step func() error) {
	o := Options{Profile: profile, QoS: 1, Run: "abc"}.Defaults()
	l := &link{version: v311, rd: packetReader{src: &endless{b: message}, buf: make([]byte, readBuffer), max: maxPacket}}
	r := newReceiver(l, &o, 7, 1, &zero)
	r.latency = newHistogram(1)
	return func() error {
		pk, err := l.rd.wait()
		if err != nil {
			return err
		}
		r.checks[0].next = 0
		l.out, r.waiting = l.out[:0], 0
		return r.packet(pk)
	}
}

func received(profile Profile) []byte {
	t := benchTemplate(Plain)
	h := header{run: 0xabc, stream: 7}
	if profile != IM {
		return t.appendMessage(nil, 1, h)
	}
	body := string(t.appendMessage(nil, 1, h)[len(t.before):])
	js := `{"id":"1234567890123456789","seq":12,"conv":"u/alice","cseq":57,"from":"alice","cid":"abc","ts":1700000000000,"type":"text","body":"` + body + `"}`
	b, _ := appendPublish(nil, v311, 1, "im/u/bench-abc-r-7/msg", 1, len(js))
	return append(b, js...)
}

func BenchmarkReceive(b *testing.B) {
	for _, p := range []Profile{Topic, IM} {
		b.Run(string(p), func(b *testing.B) {
			message := received(p)
			step := receiveLoop(p, message)
			b.SetBytes(int64(len(message)))
			b.ReportAllocs()
			for b.Loop() {
				if err := step(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestNoAllocations(t *testing.T) {
	for _, p := range []Profile{Topic, IM} {
		tmpl := benchTemplate(p)
		buf := tmpl.appendMessage(nil, 1, header{})
		if n := testing.AllocsPerRun(1000, func() { buf = tmpl.appendMessage(buf[:0], 1, header{number: 5}) }); n != 0 {
			t.Errorf("%s: encoding takes %v allocations, want 0", p, n)
		}
		step := receiveLoop(p, received(p))
		if n := testing.AllocsPerRun(1000, func() {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: receiving takes %v allocations, want 0", p, n)
		}
	}
}
