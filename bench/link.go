package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	readBuffer    = 64 << 10
	idleBuffer    = 256     // of a connection that only waits, of which there may be ten thousand
	maxPacket     = 4 << 20 // no broker is asked to send more in one packet
	writeAtOnce   = 64 << 10
	handshakeTime = 15 * time.Second
	writeTime     = 15 * time.Second // a broker that reads nothing for so long is broken, and must not hang the run
)

var epoch = time.Now()

// clock is the time that payloads carry: nanoseconds on the monotonic clock since the process started.
func clock() int64 { return int64(time.Since(epoch)) }

// buffers holds read buffers of finished links: a drain opens thousands of links, some hundred at a time.
var buffers = sync.Pool{New: func() any { return new([readBuffer]byte) }}

// link is one connection. Its reader belongs to the goroutine in run; out, and whatever the owner of the link says,
// is guarded by mu.
type link struct {
	name    string
	version byte
	nc      net.Conn
	rd      packetReader
	pooled  *[readBuffer]byte
	hello   connack
	ready   chan struct{} // closed by the SUBACK that answers subscribe
	now     int64         // when the last read returned; of the reading goroutine
	stall   time.Duration // a read that waits longer ends the link; 0 is for ever
	closing atomic.Bool   // we are closing it: what fails from here on is no error

	mu  sync.Mutex
	out []byte // written by flush
}

// handler gets what a link receives. Both are called from the link's reading goroutine, without mu held.
type handler interface {
	// packet handles one packet; pk.body is valid until it returns.
	packet(pk packet) error
	// idle is called when every packet at hand has been handled, before the link waits for more. It appends what is
	// to be written; done ends the link once that is out.
	idle() (done bool)
}

var errStalled = errors.New("nothing came for too long")

// dial connects and shakes hands. A device other than the user itself is named by device; clean and the rest as in
// [Options].
func dial(ctx context.Context, o *Options, user, device string, clean bool, buffer int) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", o.Address)
	if err != nil {
		return nil, err
	}
	l := &link{name: user, version: o.level(), nc: nc, ready: make(chan struct{})}
	if buffer == readBuffer {
		l.pooled = buffers.Get().(*[readBuffer]byte)
		l.rd.buf = l.pooled[:]
	} else {
		l.rd.buf = make([]byte, buffer)
	}
	l.rd.src, l.rd.max = nc, maxPacket
	c := connectOptions{version: l.version, clientID: user, clean: clean, keepAlive: uint16(o.KeepAlive / time.Second)}
	if device != "" {
		c.clientID, c.user = device, user
	}
	if o.Password != "" {
		c.user, c.password = user, o.Password
	}
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	err = l.handshake(c)
	if !stop() && err == nil {
		err = ctx.Err() // the deadline is set, or about to be: this connection is of no use any more
	}
	if err != nil {
		l.drop()
		return nil, fmt.Errorf("connect %s: %w", user, err)
	}
	return l, nil
}

func (l *link) handshake(c connectOptions) error {
	if _, err := l.nc.Write(appendConnect(nil, c)); err != nil {
		return err
	}
	pk, err := l.rd.wait()
	if err != nil {
		return err
	}
	if l.hello, err = parseConnack(l.version, pk); err != nil {
		return err
	}
	if l.hello.reason != 0 {
		return fmt.Errorf("refused with code 0x%02x", l.hello.reason)
	}
	return nil
}

// subscribe asks for filters, once; ready is closed when they are granted.
func (l *link) subscribe(qos byte, filters ...string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out = appendSubscribe(l.out, l.version, 65535, qos, filters...) // an id above any window of ours
	return l.flush()
}

// run reads and handles packets until the link ends, and gives its buffers back. It returns nil if close ended it, or
// the handler.
func (l *link) run(h handler) error {
	err := l.read(h)
	l.drop()
	if l.closing.Load() {
		return nil
	}
	return err
}

func (l *link) read(h handler) error {
	l.now = clock()
	for {
		pk, ok, err := l.rd.next()
		if err != nil {
			return err
		}
		if ok {
			if err := l.common(h, pk); err != nil {
				return err
			}
			continue
		}
		done := h.idle()
		l.mu.Lock()
		err = l.flush()
		l.mu.Unlock()
		if done || err != nil {
			return err
		}
		if l.stall > 0 {
			l.nc.SetReadDeadline(time.Now().Add(l.stall))
		}
		if err := l.rd.fill(); err != nil {
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
				return errStalled
			}
			return err
		}
		l.now = clock()
	}
}

// common handles what every link handles alike, and passes on the rest.
func (l *link) common(h handler, pk packet) error {
	switch pk.kind {
	case typePingresp:
		return nil
	case typeSuback:
		_, reason, err := subackReason(l.version, pk)
		if err != nil {
			return err
		}
		if reason >= 0x80 {
			return fmt.Errorf("subscription refused with code 0x%02x", reason)
		}
		select {
		case <-l.ready:
			return fmt.Errorf("a second SUBACK: %w", errMalformed)
		default:
			close(l.ready)
		}
		return nil
	case typeDisconnect:
		reason := byte(0)
		if len(pk.body) > 0 {
			reason = pk.body[0]
		}
		return fmt.Errorf("the broker disconnected us with code 0x%02x", reason)
	case typePublish, typePuback, typePubrec, typePubcomp:
		return h.packet(pk)
	}
	return fmt.Errorf("packet type %d is not for clients: %w", pk.kind, errMalformed)
}

// flush writes all of out. The caller holds mu.
func (l *link) flush() error {
	if len(l.out) == 0 {
		return nil
	}
	l.nc.SetWriteDeadline(time.Now().Add(writeTime))
	_, err := l.nc.Write(l.out)
	l.out = l.out[:0]
	return err
}

// ping keeps the session alive while nothing else is sent.
func (l *link) ping() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out = appendPing(l.out)
	l.flush() //nolint:errcheck // a dead link shows in its reader
}

// close says goodbye and ends the link; run returns soon after. Calling it again does nothing.
func (l *link) close() {
	if l.closing.Swap(true) {
		return
	}
	// A broker that stopped reading must not hold us here, nor whoever holds mu in a write.
	l.nc.SetWriteDeadline(time.Now().Add(time.Second))
	l.mu.Lock()
	l.out = appendDisconnect(l.out)
	l.nc.Write(l.out) //nolint:errcheck // nobody is left to care
	l.out = l.out[:0]
	l.mu.Unlock()
	l.nc.Close()
}

// drop closes the socket and gives the buffer back. Only for whoever owns the reader.
func (l *link) drop() {
	l.nc.Close()
	if l.pooled != nil {
		buffers.Put(l.pooled)
		l.pooled, l.rd.buf = nil, nil
	}
}
