package transport

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// readAll reads packets as the broker would, until the connection ends.
func readAll(c *Conn) (packets [][]byte, err error) {
	p := make([]byte, 1<<20)
	for {
		n, err := c.Read(p)
		if err != nil {
			return packets, err
		}
		packets = append(packets, append([]byte(nil), p[:n]...))
	}
}

func TestOnePacketAReadWhateverTheSplit(t *testing.T) {
	want := [][]byte{
		packet(0x10, 20, 1), {0xc0, 0}, packet(0x30, 127, 2), packet(0x32, 128, 3), packet(0x30, 700, 4), {0xc0, 0},
		packet(0x30, 17000, 5), packet(0x40, 2, 6),
	}
	stream := bytes.Join(want, nil)
	check := func(name string, pieces ...[]byte) {
		t.Helper()
		c := Wrap(feed(pieces...), Options{})
		c.Open(nil)
		got, err := readAll(c)
		if err != io.EOF || !same(got, want) {
			t.Fatalf("%s: got %d packets and %v, want %d and EOF\n%s", name, len(got), err, len(want), cmp.Diff(lens(want), lens(got)))
		}
	}
	p := make([]byte, len(stream)) // to be quick: no packet is copied unless it is wrong
	for i := 0; i <= len(stream); i++ {
		c := Wrap(feed(stream[:i], stream[i:]), Options{})
		c.Open(nil)
		for k, w := range want {
			if n, err := c.Read(p); err != nil || !bytes.Equal(p[:n], w) {
				t.Fatalf("cut at %d: packet %d: got %d bytes and %v, want %d", i, k, n, err, len(w))
			}
		}
	}
	for _, i := range []int{0, 1, 600} {
		check(fmt.Sprint("cut at ", i), stream[:i], stream[i:])
	}
	var single [][]byte
	for i := range stream {
		single = append(single, stream[i:i+1])
	}
	check("byte by byte", single...)
}

func same(a, b [][]byte) bool { return slices.EqualFunc(a, b, bytes.Equal) }

func lens(ps [][]byte) (n []int) {
	for _, p := range ps {
		n = append(n, len(p))
	}
	return n
}

// A broker that reads with a small buffer gets a packet in parts, and never two in one.
func TestSmallReads(t *testing.T) {
	c := Wrap(feed(append(packet(0x10, 10, 0), packet(0x30, 3, 0)...)), Options{})
	var got []int
	p := make([]byte, 5)
	for {
		n, err := c.Read(p)
		if err != nil {
			break
		}
		got = append(got, n)
	}
	if want := []int{5, 5, 2, 5}; !cmp.Equal(got, want) {
		t.Errorf("got reads of %v, want %v", got, want)
	}
}

func TestHandlerTakesPackets(t *testing.T) {
	var stream []byte
	for i := range 50 {
		stream = append(stream, packet(0x30|byte(i%2)<<1, i*20, byte(i))...)
	}
	for _, size := range []int{1, 7, 512, 513, len(stream)} {
		var pieces [][]byte
		for b := stream; len(b) > 0; {
			n := min(size, len(b))
			pieces, b = append(pieces, b[:n]), b[n:]
		}
		c := Wrap(feed(pieces...), Options{})
		var taken, drained int
		c.Open(&taker{
			frame: func(first byte, body []byte) (bool, error) {
				if cap(body) != len(body) {
					t.Fatal("a handler's append would reach the next packet")
				}
				if first == 0x32 {
					taken++
					return true, nil
				}
				return false, nil
			},
			drained: func() { drained++ },
		})
		got, err := readAll(c)
		if err != io.EOF || len(got) != 25 || taken != 25 || drained == 0 {
			t.Errorf("pieces of %d: got %d packets, %d taken, drained %d times, %v", size, len(got), taken, drained, err)
		}
		for i, p := range got {
			if want := packet(0x30, 2*i*20, byte(2*i)); !bytes.Equal(p, want) {
				t.Errorf("pieces of %d: packet %d differs", size, i)
			}
		}
	}
}

func TestHandlerErrorEnds(t *testing.T) {
	c := Wrap(feed(packet(0x30, 5, 0)), Options{})
	stop := errors.New("stop")
	c.Open(&taker{frame: func(byte, []byte) (bool, error) { return false, stop }})
	if _, err := c.Read(make([]byte, 10)); err != stop {
		t.Errorf("got %v, want the handler's error", err)
	}
}

func TestAnnouncedBytesCostNothing(t *testing.T) {
	alloc := func(f func()) uint64 {
		var a, b runtime.MemStats
		runtime.ReadMemStats(&a)
		f()
		runtime.ReadMemStats(&b)
		return b.TotalAlloc - a.TotalAlloc
	}
	huge := []byte{0x30, 0xff, 0xff, 0xff, 0x7f} // 256 MiB follow
	run := func(sent int) uint64 {
		c := Wrap(feed(append(huge[:5:5], make([]byte, sent)...)), Options{})
		c.Open(nil)
		return alloc(func() {
			if _, err := c.Read(make([]byte, 10)); err != io.EOF {
				t.Errorf("got %v, want EOF", err)
			}
		})
	}
	if n := run(0); n > 4<<10 {
		t.Errorf("five bytes sent made us allocate %d", n)
	}
	if n := run(100 << 10); n > 500<<10 { // doubling: 32 + 64 + 128 + 256 KiB at most
		t.Errorf("100 KiB sent made us allocate %d", n)
	}
}

func TestReadBufferShrinks(t *testing.T) {
	c := Wrap(feed(packet(0x30, 60000, 0), packet(0xc0, 0, 0)), Options{})
	c.Open(nil)
	if _, err := readAll(c); err != io.EOF {
		t.Fatal(err)
	}
	if len(c.buf) != smallRead {
		t.Errorf("got a read buffer of %d for an idle connection, want %d", len(c.buf), smallRead)
	}

	c = Wrap(feed(packet(0x30, 600, 0)[:512], packet(0x30, 600, 0)[512:], packet(0xc0, 0, 0)), Options{})
	c.Open(nil)
	p := make([]byte, 1000)
	if _, err := c.Read(p); err != nil || len(c.buf) != bigRead {
		t.Fatalf("got %v and a read buffer of %d for a busy connection, want %d", err, len(c.buf), bigRead)
	}
	if _, err := c.Read(p); err != nil || len(c.buf) != smallRead {
		t.Errorf("got %v and a read buffer of %d after a ping, want %d", err, len(c.buf), smallRead)
	}
}

func TestLimits(t *testing.T) {
	for _, tt := range []struct {
		name   string
		opened bool
		in     []byte
		want   error
	}{
		{"a large CONNECT", false, packet(0x10, 1000, 0), ErrTooLarge},
		{"a large PUBLISH before CONNECT", false, packet(0x30, 1000, 0), ErrTooLarge},
		{"a large SUBSCRIBE", true, packet(0x82, 3000, 0), ErrTooLarge},
		{"a CONNECT that fits", false, packet(0x10, 98, 0), io.EOF},
		{"more is let in when open", true, packet(0x82, 1000, 0), io.EOF},
		{"five length bytes", true, []byte{0x30, 0x80, 0x80, 0x80, 0x80, 0x01}, ErrMalformed},
		{"four length bytes that go on", true, []byte{0x30, 0xff, 0xff, 0xff, 0xff}, ErrMalformed},
		{"a length written too long", true, []byte{0xc0, 0x80, 0x80, 0x80, 0x00}, io.EOF},
		{"half a packet", true, []byte{0x30, 5, 1}, io.EOF},
	} {
		c := Wrap(feed(tt.in), Options{MaxConnect: 100, MaxPacket: 2000})
		if tt.opened {
			c.Open(&taker{})
		}
		if _, err := readAll(c); err != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestOversizedPublishIsSkipped(t *testing.T) {
	for _, size := range []int{1001, 5000, 17000, 70000, 200000} {
		big := packet(0x32, size, 7)
		next := packet(0x30, 900, 9)
		stream := append(append(big[:len(big):len(big)], next...), next...)
		for _, step := range []int{100, 513, 16384, 65600, len(stream)} {
			var pieces [][]byte
			for b := stream; len(b) > 0; {
				n := min(step, len(b))
				pieces, b = append(pieces, b[:n]), b[n:]
			}
			c := Wrap(feed(pieces...), Options{MaxPacket: 1000})
			told := 0
			c.Open(&taker{oversized: func(first byte, head []byte) error {
				told++
				body := big[len(big)-size:]
				if first != 0x32 || len(head) < min(size, 2+65535+2) || len(head) > size || !bytes.Equal(head, body[:len(head)]) {
					t.Errorf("%d in pieces of %d: told of %#x with %d bytes of head", size, step, first, len(head))
				}
				return nil
			}})
			got, err := readAll(c)
			if err != io.EOF || told != 1 || !same(got, [][]byte{next, next}) {
				t.Errorf("%d in pieces of %d: told %d times, got packets of %v, %v", size, step, told, lens(got), err)
			}
		}
	}
}

// Every connection's bytes carry its own mark; a buffer that two of them held at a time would mix them, and show up
// under the race detector.
func TestBuffersAreNotShared(t *testing.T) {
	const conns, rounds = 24, 60
	var wg sync.WaitGroup
	for id := range conns {
		a, b := net.Pipe()
		c := Wrap(a, Options{})
		mark := byte(id)
		check := func(p []byte) {
			for _, x := range p {
				if x != mark {
					t.Errorf("connection %d has a byte of %d", id, x)
					return
				}
			}
		}
		c.Open(&taker{frame: func(_ byte, body []byte) (bool, error) {
			check(body)
			buf, ok := c.Begin(len(body))
			if !ok {
				_, err := c.Write(bytes.Repeat([]byte{mark}, len(body)))
				return true, err
			}
			c.End(append(buf, body...))
			c.Kick()
			return true, nil
		}})
		total := 0
		for r := range rounds {
			total += r * 37 % 5000 * (1 + r%7)
		}
		wg.Go(func() {
			_, err := c.Read(make([]byte, 1))
			if err != io.EOF {
				t.Error(err)
			}
			_ = c.Close()
		})
		wg.Go(func() {
			for r := range rounds {
				p := packet(0x30, r*37%5000*(1+r%7), 0)
				n := r * 37 % 5000 * (1 + r%7)
				for i := len(p) - n; i < len(p); i++ {
					p[i] = mark
				}
				if _, err := b.Write(p); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			p := make([]byte, total)
			if _, err := io.ReadFull(b, p); err != nil {
				t.Error(err)
			}
			check(p)
			_ = b.Close()
		})
	}
	wg.Wait()
}

func TestNoConnectInTime(t *testing.T) {
	for _, trickle := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			var sender sync.WaitGroup
			defer sender.Wait()
			defer b.Close()
			c := Wrap(a, Options{})
			defer c.Close()
			start := time.Now()
			if trickle {
				sender.Go(func() {
					for _, x := range packet(0x10, 100, 0) {
						if _, err := b.Write([]byte{x}); err != nil {
							return
						}
						time.Sleep(time.Second)
					}
				})
			}
			_, err := c.Read(make([]byte, 10))
			if d := time.Since(start); !IsTimeout(err) || d != 5*time.Second {
				t.Errorf("trickle %v: got %v after %v, want a timeout after 5s", trickle, err, d)
			}
		})
	}
}

func TestKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		c := Wrap(a, Options{})
		defer c.Close()
		go func() {
			_, _ = b.Write(packet(0x10, 10, 0))
			for range 20 { // taken by the handler: the broker never comes to set a deadline again
				time.Sleep(20 * time.Second)
				if _, err := b.Write([]byte{0xc0, 0}); err != nil {
					t.Error(err)
				}
			}
		}()
		p := make([]byte, 100)
		if _, err := c.Read(p); err != nil {
			t.Fatal(err)
		}
		taken := 0
		var last time.Time
		c.Open(&taker{frame: func(byte, []byte) (bool, error) { taken++; last = time.Now(); return true, nil }})
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		_, err := c.Read(p)
		if d := time.Since(last); taken != 20 || !IsTimeout(err) || d < 29*time.Second || d > 30*time.Second {
			t.Errorf("got %d pings and %v %v after the last, want 20 and a timeout after 30s", taken, err, d)
		}
	})
}

func TestNoKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		c := Wrap(a, Options{})
		defer c.Close()
		go func() {
			_, _ = b.Write(packet(0x10, 10, 0))
			time.Sleep(100 * time.Hour)
			_ = b.Close()
		}()
		p := make([]byte, 100)
		if _, err := c.Read(p); err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Time{}) // as the broker does before it asks who that is
		c.Open(&taker{})
		_ = c.SetDeadline(time.Time{})
		start := time.Now()
		if _, err := c.Read(p); err != io.EOF || time.Since(start) < 99*time.Hour {
			t.Errorf("got %v after %v, want EOF after 100h", err, time.Since(start))
		}
	})
}

func TestCloseEndsReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		c := Wrap(a, Options{})
		go func() { time.Sleep(time.Second); _ = c.Close() }()
		if _, err := c.Read(make([]byte, 1)); err != net.ErrClosed {
			t.Errorf("got %v, want net.ErrClosed", err)
		}
	})

	c := Wrap(feed(append(packet(0x30, 5, 0), packet(0x30, 5, 0)...)), Options{})
	n := 0
	c.Open(&taker{frame: func(byte, []byte) (bool, error) { n++; return true, c.Close() }})
	if _, err := c.Read(make([]byte, 1)); err != net.ErrClosed || n != 1 {
		t.Errorf("got %v after %d packets, want net.ErrClosed after the one that closed", err, n)
	}
}

// FuzzFrames: however a stream is cut, the same packets come of it, and they are the ones that a plain parser finds.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{0x10, 3, 1, 2, 3, 0xc0, 0, 0x30, 0x80, 0x01}, []byte{1, 2, 3})
	f.Add(append(packet(0x30, 300, 1), packet(0x32, 2000, 1)...), []byte{255, 1})
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0xff, 1}, []byte{})
	f.Fuzz(func(t *testing.T, stream, cuts []byte) {
		const limit = 1000
		run := func(pieces ...[]byte) (events []string, end error) {
			c := Wrap(feed(pieces...), Options{MaxPacket: limit})
			c.Open(&taker{
				frame: func(first byte, body []byte) (bool, error) {
					if first&1 == 0 {
						return false, nil
					}
					events = append(events, fmt.Sprintf("%x %x", first, body))
					return true, nil
				},
				oversized: func(first byte, head []byte) error {
					events = append(events, fmt.Sprintf("%x big %x", first, head[:min(len(head), 50)]))
					return nil
				},
			})
			p := make([]byte, limit)
			for {
				n, err := c.Read(p)
				if err != nil {
					return events, err
				}
				first, head, size, _ := frameSize(p[:n])
				if size != n {
					t.Fatalf("a Read of %d bytes holds a packet of %d", n, size)
				}
				events = append(events, fmt.Sprintf("%x %x", first, p[head:n]))
			}
		}
		plain := func() (events []string, end error) {
			for b := stream; ; {
				first, head, size, err := frameSize(b)
				switch {
				case err != nil:
					return events, err
				case size == 0:
					return events, io.EOF
				case size > limit && first>>4 != 3:
					return events, ErrTooLarge
				case size > limit && len(b) < min(size, head+2+65535+2):
					return events, io.EOF
				case size > limit:
					events = append(events, fmt.Sprintf("%x big %x", first, b[head:head+50]))
				case size > len(b):
					return events, io.EOF
				default:
					events = append(events, fmt.Sprintf("%x %x", first, b[head:size]))
				}
				b = b[min(size, len(b)):]
			}
		}
		want, wantEnd := plain()
		whole, end := run(stream)
		if end != wantEnd || !cmp.Equal(whole, want) {
			t.Fatalf("in one piece: got end %v want %v\n%s", end, wantEnd, cmp.Diff(want, whole))
		}
		var pieces [][]byte
		b := stream
		for i := 0; len(b) > 0; i++ {
			n := 1
			if len(cuts) > 0 {
				n = min(1+int(cuts[i%len(cuts)])*3, len(b))
			}
			pieces, b = append(pieces, b[:n]), b[n:]
		}
		cut, end := run(pieces...)
		if end != wantEnd || !cmp.Equal(cut, want) {
			t.Fatalf("in pieces: got end %v want %v\n%s", end, wantEnd, cmp.Diff(want, cut))
		}
	})
}

// endless is a socket with the same bytes for ever.
type endless struct {
	script
	data []byte
	off  int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.data[e.off:])
	e.off = (e.off + n) % len(e.data)
	return n, nil
}

func BenchmarkReadConsumed(b *testing.B) {
	for _, size := range []int{2, 256, 4096} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			one := packet(0x32, size, 0)
			data := bytes.Repeat(one, max(1, 64<<10/len(one)))
			c := Wrap(&endless{data: data}, Options{})
			left, done := b.N, errors.New("done")
			c.Open(&taker{frame: func(byte, []byte) (bool, error) {
				if left--; left <= 0 {
					return true, done
				}
				return true, nil
			}})
			_ = c.SetDeadline(time.Now().Add(time.Hour))
			b.SetBytes(int64(len(one)))
			b.ReportAllocs()
			b.ResetTimer()
			if _, err := c.Read(make([]byte, 1)); err != done {
				b.Fatal(err)
			}
		})
	}
}
