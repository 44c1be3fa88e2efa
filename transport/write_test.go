package transport

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// put writes p in place.
func put(t *testing.T, c *Conn, p []byte) uint64 {
	t.Helper()
	buf, ok := c.Begin(len(p))
	if !ok {
		t.Fatal("Begin refused")
	}
	return c.End(append(buf, p...))
}

func TestKickGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSink(true)
		c := Wrap(s, Options{})
		for range 10 {
			put(t, c, make([]byte, 10))
		}
		synctest.Wait()
		if len(s.started) != 0 {
			t.Error("a write without Kick")
		}
		c.Kick()
		c.Kick()
		<-s.started
		for range 20 { // while the first write is under way
			put(t, c, make([]byte, 10))
			c.Kick()
		}
		s.gate <- struct{}{}
		<-s.started
		s.gate <- struct{}{}
		synctest.Wait()
		if got, _ := s.sizes(); !cmp.Equal(got, []int{100, 200}) {
			t.Errorf("got writes of %v, want 100 and 200", got)
		}
		if c.writing || c.out != nil {
			t.Error("an idle connection has a goroutine or a buffer")
		}
		if buf, ok := c.Begin(1); !ok {
			t.Error("Begin refused")
		} else if c.End(buf); c.out != nil {
			t.Error("a buffer is left of nothing")
		}
		c.Abort()
	})
}

func TestBufferIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSink(true)
		c := Wrap(s, Options{WriteBuffer: 1000})
		defer c.Abort()
		put(t, c, make([]byte, 5000)) // one packet larger than all is let into an empty buffer
		if _, ok := c.Begin(1); ok {
			t.Fatal("Begin let a byte in over the limit")
		}
		c.Kick()
		<-s.started
		if _, ok := c.Begin(1); ok {
			t.Fatal("what is being written counts")
		}
		s.gate <- struct{}{}
		synctest.Wait()
		put(t, c, make([]byte, 999))
		if _, ok := c.Begin(2); ok {
			t.Fatal("Begin let a byte in over the limit")
		}
		put(t, c, make([]byte, 1))
	})
}

// Who waits for room gets what fills the buffer on its way, if nobody has.
func TestWaitingKicks(t *testing.T) {
	for name, wait := range map[string]func(*Conn){
		"Write":    func(c *Conn) { _, _ = c.Write([]byte("x")) },
		"WaitRoom": func(c *Conn) { c.WaitRoom() },
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newSink(false)
			c := Wrap(s, Options{WriteBuffer: 1000})
			put(t, c, make([]byte, 1000))
			released := false
			go func() { wait(c); released = true }()
			synctest.Wait()
			if !released {
				t.Errorf("%s waits for ever", name)
			}
			c.Abort()
		})
	}
}

// Room is given as it comes, not only when all is written.
func TestRoomWhileWriting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSink(true)
		c := Wrap(s, Options{WriteBuffer: 4 * writeChunk})
		put(t, c, make([]byte, 4*writeChunk))
		c.Kick()
		var wrote, room bool
		go func() { _, err := c.Write([]byte("x")); wrote = err == nil }()
		go func() { room = c.WaitRoom() }()
		<-s.started
		synctest.Wait()
		if wrote || room {
			t.Fatal("no room, and yet they went on")
		}
		s.gate <- struct{}{}
		<-s.started
		synctest.Wait()
		if !wrote || room {
			t.Errorf("a quarter written: Write released %v, WaitRoom %v; want only Write", wrote, room)
		}
		s.gate <- struct{}{}
		<-s.started
		s.gate <- struct{}{}
		<-s.started
		synctest.Wait()
		if !room {
			t.Error("a quarter left: WaitRoom waits")
		}
		c.Abort()
	})
}

func TestStalledReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		stalled := Wrap(a, Options{WriteTimeout: 10 * time.Second, WriteBuffer: 100})
		a2, b2 := net.Pipe()
		other := Wrap(a2, Options{})
		go func() { _, _ = io.Copy(io.Discard, b2) }()
		defer b2.Close()

		start := time.Now()
		put(t, stalled, make([]byte, 100))
		stalled.Kick()
		blocked := make(chan error)
		go func() { _, err := stalled.Write([]byte("x")); blocked <- err }()
		for range 100 {
			if _, err := other.Write(make([]byte, 1000)); err != nil {
				t.Error(err)
			}
		}
		if time.Since(start) != 0 {
			t.Errorf("a stalled reader took %v of another connection's time", time.Since(start))
		}
		if err := <-blocked; err != ErrSlow || time.Since(start) != 10*time.Second {
			t.Errorf("got %v after %v, want ErrSlow after 10s", err, time.Since(start))
		}
		if _, ok := stalled.Begin(1); ok || stalled.WaitRoom() || stalled.Err() != ErrSlow {
			t.Errorf("a connection that ended takes bytes, or its error is %v", stalled.Err())
		}
		if _, err := stalled.Read(make([]byte, 1)); err != ErrSlow {
			t.Errorf("its reader gets %v, want ErrSlow", err)
		}
		stalled.Close()
		other.Close()
	})
}

// A narrow line is not a stalled reader: 256 KiB at 3 KiB/s take longer than WriteTimeout and arrive.
func TestNarrowLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		c := Wrap(a, Options{})
		const size = 256 << 10
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 3<<10)
		for n := 0; n < size; {
			m, err := b.Read(p)
			if err != nil {
				t.Fatalf("after %d bytes: %v, %v", n, err, c.Err())
			}
			n += m
			time.Sleep(time.Second)
		}
		c.Abort()
		b.Close()
	})
}

func TestCloseFlushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		c := Wrap(a, Options{})
		want := bytes.Repeat([]byte("0123456789"), 10000)
		put(t, c, want[:50000])
		c.Kick()
		put(t, c, want[50000:]) // never kicked
		called := 0
		c.AfterClose(func() { called++ })
		c.Close()
		c.Close()
		c.AfterClose(func() { called++ })
		if called != 2 {
			t.Errorf("AfterClose: %d calls, want 2", called)
		}
		if buf, ok := c.Begin(1); ok {
			c.End(buf)
			t.Error("Begin took bytes after Close")
		}
		if _, err := c.Write([]byte("x")); err != net.ErrClosed {
			t.Errorf("Write after Close: %v, want net.ErrClosed", err)
		}
		if err := c.Err(); err != net.ErrClosed {
			t.Errorf("Err after Close: %v, want net.ErrClosed", err)
		}
		if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, want) {
			t.Errorf("got %d bytes and %v, want %d", len(got), err, len(want))
		}
		c.wait()
	})
}

func TestCloseWaitsASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		c := Wrap(a, Options{WriteBuffer: 10})
		put(t, c, make([]byte, 20))
		blocked := make(chan error, 1)
		go func() { _, err := c.Write([]byte("x")); blocked <- err }()
		synctest.Wait()
		start := time.Now()
		c.Close()
		if err := <-blocked; err != net.ErrClosed || time.Since(start) != 0 {
			t.Errorf("a blocked writer got %v after %v, want net.ErrClosed at once", err, time.Since(start))
		}
		c.wait()
		if d := time.Since(start); d != time.Second {
			t.Errorf("writing went on for %v, want 1s", d)
		}
		if c.Err() != net.ErrClosed {
			t.Errorf("got %v: who was told to go is not slow", c.Err())
		}
	})
}

func TestAbortDoesNotFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSink(true)
		c := Wrap(s, Options{})
		put(t, c, make([]byte, 50000))
		c.Kick()
		<-s.started
		put(t, c, make([]byte, 50000))
		s.gate <- struct{}{}
		<-s.started
		c.Abort()
		c.Abort()
		c.wait()
		if sizes, _ := s.sizes(); !cmp.Equal(sizes, []int{writeChunk}) {
			t.Errorf("got writes of %v, want the one before Abort", sizes)
		}
	})
}

func TestOnDrainCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSink(false)
		c := Wrap(s, Options{})
		var reports []uint64
		c.OnDrain = func(n uint64) { reports = append(reports, n); c.Err() }
		var accepted uint64
		for i := range 100 {
			accepted = put(t, c, make([]byte, i*100))
			if i%3 == 0 {
				c.Kick()
				synctest.Wait()
			}
		}
		c.Kick()
		synctest.Wait()
		sizes, _ := s.sizes()
		var sum uint64
		for i, n := range sizes {
			if sum += uint64(n); reports[i] != sum {
				t.Fatalf("report %d: got %d, want %d", i, reports[i], sum)
			}
		}
		if len(reports) != len(sizes) || sum != accepted || sum != 495000 {
			t.Errorf("got %d reports of %d writes, %d bytes of %d", len(reports), len(sizes), sum, accepted)
		}
		c.Close()
	})
}

func TestConcurrentWriters(t *testing.T) {
	a, b := net.Pipe()
	c := Wrap(a, Options{WriteBuffer: 4000})
	const writers, each = 8, 300
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				p := []byte{byte(w), byte(i), byte(i >> 8), byte(w)}
				if w%2 == 0 {
					if _, err := c.Write(p); err != nil {
						t.Error(err)
					}
					continue
				}
				for {
					if buf, ok := c.Begin(len(p)); ok {
						c.End(append(buf, p...))
						c.Kick()
						break
					}
					if !c.WaitRoom() {
						t.Error(c.Err())
						return
					}
				}
			}
		})
	}
	got := make([]byte, writers*each*4)
	if _, err := io.ReadFull(b, got); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	next := make([]int, writers)
	for ; len(got) > 0; got = got[4:] {
		w, i := int(got[0]), int(got[1])|int(got[2])<<8
		if int(got[3]) != w || next[w] != i {
			t.Fatalf("writer %d: got %v, want number %d", w, got[:4], next[w])
		}
		next[w]++
	}
	c.Close()
	b.Close()
	c.wait()
}

// What a stalled peer has waiting in the kernel goes with it.
func TestStalledPeerIsReset(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	peer, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	raw, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := Wrap(raw, Options{WriteTimeout: 200 * time.Millisecond, WriteBuffer: 64 << 20})
	_, _ = c.Write(make([]byte, 64<<20))
	c.wait()
	if c.Err() != ErrSlow {
		t.Fatalf("got %v, want ErrSlow", c.Err())
	}
	if _, err := io.Copy(io.Discard, peer); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer got %v, want a reset", err)
	}
	c.Close()
}

func TestWriteErrorEnds(t *testing.T) {
	a, b := net.Pipe()
	c := Wrap(a, Options{})
	b.Close()
	put(t, c, []byte("x"))
	c.Kick()
	c.wait()
	if err := c.Err(); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v, want the socket's error", err)
	}
	c.Close()
}

func BenchmarkWrite(b *testing.B) {
	for _, size := range []int{64, 256, 4096} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer ln.Close()
			peer, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			raw, err := ln.Accept()
			if err != nil {
				b.Fatal(err)
			}
			done := make(chan struct{})
			go func() { defer close(done); _, _ = io.Copy(io.Discard, peer) }()
			c := Wrap(raw, Options{})
			p := packet(0x30, size, 0)
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				for {
					if buf, ok := c.Begin(len(p)); ok {
						c.End(append(buf, p...))
						c.Kick()
						break
					}
					c.WaitRoom()
				}
			}
			b.StopTimer()
			c.Close()
			c.wait()
			<-done
			peer.Close()
		})
	}
}
