// Package transport puts a connection's bytes into shape before and after the broker: whole frames in, gathered
// writes out, both bounded.
//
// Reading: the broker is handed one complete packet a Read, so that whatever it allocates has really been sent,
// and packets that a [Handler] takes never reach it. Writing: packets land in a bounded buffer; one goroutine,
// started when the buffer becomes non-empty and gone when it is drained, sends what has gathered. So a reader
// that stalls costs its buffer and nobody's time, and a burst of packets costs one write(2).
//
// The package knows MQTT's framing and nothing else of it.
package transport

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

var (
	// ErrTooLarge: a packet announced more bytes than the limit in force allows.
	ErrTooLarge = errors.New("packet too large")
	// ErrMalformed: a packet's length field goes on after four bytes. Lengths written with more bytes than they
	// need are let in: [MQTT-1.5.5-1] forbids them, 3.1.1 does not, and embedded clients send them.
	ErrMalformed = errors.New("malformed remaining length")
	// ErrSlow: the peer took less than writeChunk bytes in WriteTimeout.
	ErrSlow = errors.New("peer does not read")
)

// Options bound a connection. Zero values mean the defaults below, except MaxPacket, where 0 is MQTT's own limit.
type Options struct {
	ConnectTimeout time.Duration // from accept to CONNECT; default 5 s
	WriteTimeout   time.Duration // each 16 KiB must be taken in this long (or three quarters of it); default 10 s
	WriteBuffer    int           // bytes waiting to be written; one packet may exceed it; default 1 MiB
	MaxConnect     int           // size of CONNECT; default 64 KiB
	MaxPacket      int           // size of any later packet

	// What a peer may send, a second's worth of it at once; 0 is no limit. Beyond it reading is paused, and the peer
	// slowed by TCP; nothing is dropped.
	BytesPerSecond    int
	MessagesPerSecond int // PUBLISH packets
	// Slow, if set, says how long reading pauses now after each time that a peer has published.
	Slow func() time.Duration
}

const (
	maxRemaining = 268_435_455 // the largest length that four bytes of 7 bits hold
	publish      = 3           // the type of PUBLISH
	smallRead    = 512         // an idle connection's read buffer
	bigRead      = 16 << 10    // a busy connection's
	closeLinger  = time.Second // how long Close goes on writing what was accepted
)

func (o Options) withDefaults() Options {
	if o.ConnectTimeout == 0 {
		o.ConnectTimeout = 5 * time.Second
	}
	if o.WriteTimeout == 0 {
		o.WriteTimeout = 10 * time.Second
	}
	if o.WriteBuffer == 0 {
		o.WriteBuffer = 1 << 20
	}
	if o.MaxConnect == 0 {
		o.MaxConnect = 64 << 10
	}
	if o.MaxPacket == 0 {
		o.MaxPacket = maxRemaining + 5
	}
	return o
}

// Handler sees each packet before the broker does. Its methods run on the goroutine that reads the connection.
type Handler interface {
	// Frame handles one packet: its first byte and what follows the length field. body is valid until it returns.
	// A packet that is not consumed goes on to the broker. An error ends the connection.
	Frame(first byte, body []byte) (consumed bool, err error)
	// Oversized is told of a PUBLISH larger than MaxPacket, with the beginning of its body; the rest is read and
	// thrown away. An error ends the connection.
	Oversized(first byte, head []byte) error
	// Drained is called when no complete packet is left to handle and the connection is about to wait for more, and
	// before a pause.
	Drained()
}

// Conn is a net.Conn with framed reads and gathered writes. One goroutine reads; any may write.
type Conn struct {
	net.Conn
	opt Options

	// Owner is whatever the hooks attach to the connection when it is set up; nobody changes it afterwards.
	Owner any
	// OnDrain, if set before the first write, is called by the writing goroutine, holding no lock, each time the
	// kernel has taken bytes. flushed counts all bytes that it has taken so far. It may Begin, but not Write or
	// WaitRoom: the goroutine that it runs on is the one that makes room.
	OnDrain func(flushed uint64)

	counters *Counters // of the listener that runs the connection, or nil

	// Owned by the reading goroutine.
	handler Handler
	buf     []byte // unhandled bytes are buf[r:w]
	r, w    int
	pass    int // buf[r:r+pass] is a packet (or its rest) that the broker is to read
	skip    int // bytes still to come that belong to an oversized packet
	opened  bool
	begun   bool // the broker has been handed a packet
	pace    pace
	seen    tally
	small   [smallRead]byte

	deadline struct {
		sync.Mutex
		keepAlive time.Duration // 0: none
		read      time.Time     // the read deadline in force
	}

	mu       sync.Mutex // guards what follows
	room     sync.Cond  // out shrank, or err was set
	out      []byte     // bytes to write
	box      *[]byte    // what out came in from the pool
	busy     int        // bytes that the writing goroutine has taken and not finished
	put      tally      // into out
	accepted uint64     // all bytes ever put into out
	flushed  uint64     // all bytes the kernel has taken
	writing  bool       // the writing goroutine runs
	err      error      // set once, by Close or fail; nothing is accepted after it
	dead     bool       // the socket is closed
	wdl      time.Time  // the write deadline in force
	onClose  []func()
	listened bool // a Listener runs the connection, and will call onEnd
	onEnd    []func()
	closed   atomic.Bool // Close was called
	waiting  atomic.Bool // the reading goroutine waits for bytes
	raw      net.Conn    // of the Listener: the socket under TLS and WebSocket; nil: there is none
}

// Read and write buffers have pools of their own: a write buffer may have grown, and would then sit under an
// ordinary reader.
var (
	readBufs  = sync.Pool{New: func() any { return new([bigRead]byte) }}
	writeBufs = sync.Pool{New: func() any { b := make([]byte, 0, bigRead); return &b }}
)

// Wrap returns c in the shape that the package comment describes. CONNECT must arrive within
// o.ConnectTimeout from now.
func Wrap(c net.Conn, o Options) *Conn {
	t := &Conn{Conn: c, opt: o.withDefaults()}
	t.room.L = &t.mu
	t.buf = t.small[:]
	t.pace.init(&t.opt)
	t.deadline.read = time.Now().Add(t.opt.ConnectTimeout)
	_ = c.SetReadDeadline(t.deadline.read)
	return t
}

// Open tells that CONNECT has been accepted: packets up to MaxPacket are let in, and h sees them first. It is
// called on the reading goroutine, while the broker handles CONNECT.
func (c *Conn) Open(h Handler) {
	c.handler = h
	c.opened = true
}

// Await handles packets until there is one that the broker is to read; Read does not wait then. A goroutine that waits
// here has little on its stack, which is most of what an idle connection costs. It is called by the goroutine that reads.
func (c *Conn) Await() error {
	for c.pass == 0 {
		if c.closed.Load() {
			return net.ErrClosed // what is buffered is not handled any more
		}
		ok, err := c.next()
		if err != nil {
			return err
		}
		if ok {
			continue
		}
		if c.handler != nil {
			c.handler.Drained()
		}
		if err := c.fill(); err != nil {
			return err
		}
	}
	return nil
}

// Closed reports whether Close or Abort has been called; it does before the peer sees the end that Close brings. It may be
// called concurrently.
func (c *Conn) Closed() bool { return c.closed.Load() }

// Quiet reports whether everything that has come from the peer has been handled, as far as can be told: where no Listener
// runs the connection it cannot. It may be called concurrently.
func (c *Conn) Quiet() bool { return c.raw == nil || c.waiting.Load() && !unread(c.raw) }

// Packet is the packet that Read is about to hand out, after Await, and valid until then: its first byte and what follows
// the length field.
func (c *Conn) Packet() (first byte, body []byte) {
	b := c.buf[c.r : c.r+c.pass]
	first, head, _, _ := frameSize(b)
	return first, b[head:]
}

// Read hands the broker at most one packet. It implements io.Reader for one goroutine.
func (c *Conn) Read(p []byte) (int, error) {
	if err := c.Await(); err != nil {
		return 0, err
	}
	n := copy(p, c.buf[c.r:c.r+c.pass])
	c.r += n
	c.pass -= n
	return n, nil
}

// next handles the packet at the front of the buffer; ok is false when it is not complete.
func (c *Conn) next() (ok bool, err error) {
	if c.skip > 0 {
		n := min(c.skip, c.w-c.r)
		c.r += n
		c.skip -= n
		return c.skip == 0, nil
	}
	first, head, size, err := frameSize(c.buf[c.r:c.w])
	if err != nil || size == 0 {
		return false, err
	}
	limit := c.opt.MaxConnect
	if c.opened {
		limit = c.opt.MaxPacket
	}
	if size > limit {
		return c.oversized(first, head, size)
	}
	if c.w-c.r < size {
		c.reserve(size)
		return false, nil
	}
	c.seen.add(first)
	if first>>4 == publish {
		if err := c.paceMessage(); err != nil {
			return false, err
		}
	}
	if c.handler != nil {
		consumed, err := c.handler.Frame(first, c.buf[c.r+head:c.r+size:c.r+size])
		if err != nil {
			return false, err
		}
		if consumed {
			c.r += size
			return true, nil
		}
	}
	c.begun = true
	c.pass = size
	return true, nil
}

// oversized refuses a packet without storing it. A PUBLISH of an open connection is skipped, so that its sender
// can be answered; for anything else there is no answer in MQTT but the end.
func (c *Conn) oversized(first byte, head, size int) (bool, error) {
	const enough = 2 + 65535 + 2 // topic and packet id
	if !c.opened || c.handler == nil || first>>4 != publish {
		return false, ErrTooLarge
	}
	if c.w-c.r < min(size, head+enough) {
		c.reserve(min(size, head+enough))
		return false, nil
	}
	if err := c.handler.Oversized(first, c.buf[c.r+head:min(c.w, c.r+size)]); err != nil {
		return false, err
	}
	c.seen.add(first)
	c.skip = size
	return c.next()
}

// frameSize reads a fixed header: its first byte, its length and the whole packet's. size is 0 while it is incomplete.
func frameSize(b []byte) (first byte, head, size int, err error) {
	length, shift := 0, 0
	for i := 1; i < len(b); i++ {
		length |= int(b[i]&0x7f) << shift
		if b[i]&0x80 == 0 {
			return b[0], i + 1, i + 1 + length, nil
		}
		if shift += 7; shift > 21 {
			return b[0], 0, 0, ErrMalformed
		}
	}
	return 0, 0, 0, nil
}

// reserve makes room for a packet of size bytes that begins at the front of the buffer. The buffer grows with
// what has come, not with what was announced.
func (c *Conn) reserve(size int) {
	if c.r > 0 {
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r = 0
	}
	if c.w < len(c.buf) {
		return
	}
	var nb []byte
	if want := min(size, 2*len(c.buf)); want <= bigRead {
		nb = readBufs.Get().(*[bigRead]byte)[:]
	} else {
		nb = make([]byte, want)
	}
	copy(nb, c.buf[:c.w])
	c.release()
	c.buf = nb
}

// release lets go of the read buffer, and gives it back if it is a pooled one. Nothing is read before there is another.
func (c *Conn) release() {
	if len(c.buf) == bigRead {
		readBufs.Put((*[bigRead]byte)(c.buf))
	}
	c.buf = nil
}

// fill waits for bytes.
func (c *Conn) fill() error {
	if err := c.paceRead(); err != nil {
		return err
	}
	if c.r == c.w {
		c.r, c.w = 0, 0
		if len(c.buf) > bigRead {
			c.release()
			c.buf = c.small[:]
		}
	} else if c.w == len(c.buf) {
		c.reserve(2 * len(c.buf))
	}
	if err := c.arm(); err != nil {
		return err
	}
	if c.counters != nil {
		c.seen.flush(&c.counters.In)
	}
	c.waiting.Store(true)
	n, err := c.Conn.Read(c.pace.cut(c.buf[c.w:]))
	c.waiting.Store(false)
	c.w += n
	c.pace.read(n)
	if c.counters != nil {
		c.counters.In.Bytes.Add(int64(n))
	}
	switch {
	case n == 0 && err != nil:
		if cause := c.Err(); cause != nil {
			return cause
		}
		if c.closed.Load() {
			return net.ErrClosed // Close ends reading by a deadline that has passed, which is not the peer's silence
		}
		return err
	case c.w == len(c.buf) && len(c.buf) == smallRead:
		c.reserve(bigRead) // busy: read more at a time
	case c.r == 0 && c.w == n && n < smallRead && len(c.buf) == bigRead:
		copy(c.small[:], c.buf[:n]) // idle again
		c.release()
		c.buf = c.small[:]
	}
	return nil
}

// SetDeadline is how the broker refreshes keep-alive before each packet it reads. It moves the read deadline, but
// only when that makes a difference worth a system timer; writes have a deadline of their own.
func (c *Conn) SetDeadline(t time.Time) error {
	c.deadline.Lock()
	if t.IsZero() {
		c.deadline.keepAlive = 0
	} else {
		c.deadline.keepAlive = time.Until(t)
	}
	c.deadline.Unlock()
	return c.arm()
}

func (c *Conn) arm() error {
	c.deadline.Lock()
	defer c.deadline.Unlock()
	if c.closed.Load() {
		return net.ErrClosed
	}
	ka := c.deadline.keepAlive
	if ka == 0 {
		if c.deadline.read.IsZero() || !c.opened {
			return nil
		}
		c.deadline.read = time.Time{}
		return c.Conn.SetReadDeadline(time.Time{})
	}
	t := time.Now().Add(ka)
	if d := t.Sub(c.deadline.read); d >= 0 && d < min(ka/20, 500*time.Millisecond) {
		return nil
	}
	c.deadline.read = t
	return c.Conn.SetReadDeadline(t)
}

// TLS returns the state of the TLS connection underneath, nil without one. It is the place to find a client's
// certificate.
func (c *Conn) TLS() *tls.ConnectionState {
	if t, ok := c.Conn.(interface{ ConnectionState() *tls.ConnectionState }); ok {
		return t.ConnectionState()
	}
	return nil
}

// IsTimeout reports whether err is a deadline that passed: the peer went quiet for longer than keep-alive allows.
func IsTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
