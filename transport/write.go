package transport

import (
	"net"
	"time"
)

const (
	// maxKeep is the largest write buffer that goes back to the pool. It has to be above the default WriteBuffer, or a
	// busy connection grows a new one from nothing each time: five bytes allocated for each one sent.
	maxKeep    = 2 << 20
	writeChunk = 16 << 10 // the most that one write hands over, hence the least a peer must take in WriteTimeout
)

// Write accepts p, waiting while the buffer is full. An error says that the connection has ended; nil does not say
// that the peer has p.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	for c.err == nil && c.pending() >= c.opt.WriteBuffer {
		c.kick() // what fills the buffer may not have been
		c.room.Wait()
	}
	if c.err != nil {
		defer c.mu.Unlock()
		return 0, c.err
	}
	c.End(append(c.begin(), p...))
	c.Kick()
	return len(p), nil
}

// Begin locks the connection for a writer that encodes in place and returns the buffer to append to. ok is false,
// and nothing locked, when the connection has ended or n more bytes would exceed the buffer (a single packet larger
// than the whole buffer is let in when it is empty). The caller must call End, soon and without blocking.
func (c *Conn) Begin(n int) (buf []byte, ok bool) {
	c.mu.Lock()
	if p := c.pending(); c.err != nil || p > 0 && p+n > c.opt.WriteBuffer {
		c.mu.Unlock()
		return nil, false
	}
	return c.begin(), true
}

// BeginUrgent is Begin without the limit, for packets whose number something else bounds.
func (c *Conn) BeginUrgent() (buf []byte, ok bool) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil, false
	}
	return c.begin(), true
}

func (c *Conn) begin() []byte {
	if c.out == nil {
		c.box = writeBufs.Get().(*[]byte)
		c.out = *c.box
	}
	return c.out
}

func (c *Conn) pending() int { return len(c.out) + c.busy }

// End takes back the buffer from Begin, with what was appended, and returns the number of bytes accepted so far:
// when OnDrain reports as many, the peer's kernel is next. The bytes are sent after the next Kick at the latest.
func (c *Conn) End(buf []byte) (accepted uint64) {
	if n := len(c.out); len(buf) > n {
		c.put.add(buf[n])
		c.accepted += uint64(len(buf) - n)
	}
	c.out = buf
	if len(buf) == 0 {
		keep(c.box, buf)
		c.out, c.box = nil, nil
	}
	accepted = c.accepted
	c.mu.Unlock()
	return accepted
}

// Kick starts sending what has gathered. A caller with several packets for a connection calls it once, after the last.
func (c *Conn) Kick() {
	c.mu.Lock()
	c.kick()
	c.mu.Unlock()
}

func (c *Conn) kick() {
	if !c.writing && len(c.out) > 0 {
		c.writing = true
		go c.drain()
	}
}

// keep gives a write buffer back.
func keep(box *[]byte, buf []byte) {
	if cap(buf) <= maxKeep {
		*box = buf[:0]
		writeBufs.Put(box)
	}
}

// WaitUncrowded waits while the buffer is full. A reading goroutine calls it before it handles what has to be answered
// by all means, so that a peer that asks and does not listen is not answered for ever. It returns false when the
// connection has ended.
func (c *Conn) WaitUncrowded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && c.pending() >= c.opt.WriteBuffer {
		c.kick()
		c.room.Wait()
	}
	return c.err == nil
}

// WaitRoom waits until the buffer is no more than half full. It returns false when the connection has ended.
func (c *Conn) WaitRoom() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && c.pending() > c.opt.WriteBuffer/2 {
		c.kick()
		c.room.Wait()
	}
	return c.err == nil
}

// drain is the writing goroutine. It ends when there is nothing to write or the connection has ended.
func (c *Conn) drain() {
	c.mu.Lock()
	for len(c.out) > 0 {
		buf, box := c.out, c.box
		c.out, c.box = nil, nil
		c.busy = len(buf)
		c.send(buf)
		c.busy = 0
		keep(box, buf)
	}
	if c.err != nil && !c.dead { // Close was called, and all is written
		if g, ok := c.Conn.(goodbyer); ok {
			c.mu.Unlock()
			g.goodbye()
			c.mu.Lock()
		}
		c.fail(net.ErrClosed)
	}
	c.writing = false
	c.room.Broadcast()
	c.mu.Unlock()
}

// send writes buf, with the lock held but not across the writes. In pieces, so that the deadline of each is about
// a peer that stalls and not about one on a narrow line; for TLS and WebSocket, that cannot go on after a write
// that timed out half way, there is no other measure.
func (c *Conn) send(buf []byte) {
	if c.counters != nil {
		c.put.flush(&c.counters.Out)
	}
	for len(buf) > 0 && !c.dead {
		c.armWrite()
		c.mu.Unlock()
		n, err := c.Conn.Write(buf[:min(len(buf), writeChunk)])
		c.mu.Lock()
		buf = buf[n:]
		c.busy -= n
		c.flushed += uint64(n)
		if c.counters != nil {
			c.counters.Out.Bytes.Add(int64(n))
		}
		if err != nil {
			if IsTimeout(err) {
				err = ErrSlow
			}
			c.fail(err)
			return
		}
		c.room.Broadcast()
		if f, flushed := c.OnDrain, c.flushed; f != nil {
			c.mu.Unlock()
			f(flushed)
			c.mu.Lock()
		}
	}
}

// armWrite sets the write deadline, with the lock held, unless the one in force is still good.
func (c *Conn) armWrite() {
	if c.err != nil {
		return // Close has set the last one
	}
	d := c.opt.WriteTimeout
	if now := time.Now(); c.wdl.Sub(now) < d*3/4 {
		c.wdl = now.Add(d)
		_ = c.Conn.SetWriteDeadline(c.wdl)
	}
}

// goodbyer is a connection with something of its own to say before it closes: close_notify, a Close frame. Its
// Close must not block and not write, since it is called with the lock held.
type goodbyer interface{ goodbye() }

// fail ends the connection with the lock held.
func (c *Conn) fail(err error) {
	if c.dead {
		return
	}
	c.dead = true
	if c.err == nil {
		c.err = err
	}
	c.out, c.box = nil, nil
	c.room.Broadcast()
	if err == ErrSlow { // its megabytes in the kernel are not to outlive it
		_ = setLinger(c.Conn, 0)
	}
	_ = c.Conn.Close()
}

func setLinger(c net.Conn, seconds int) error {
	for {
		switch t := c.(type) {
		case interface{ SetLinger(int) error }:
			return t.SetLinger(seconds)
		case interface{ NetConn() net.Conn }:
			c = t.NetConn()
		default:
			return nil
		}
	}
}

// Close stops reading and accepting at once, and goes on writing what was accepted, for a second at most, in the
// background. A second Close is a no-op.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	c.deadline.Lock()
	_ = c.Conn.SetReadDeadline(time.Unix(1, 0))
	c.deadline.Unlock()

	c.mu.Lock()
	if c.err == nil {
		c.err = net.ErrClosed
	}
	_, polite := c.Conn.(goodbyer)
	switch {
	case c.dead:
	case !c.writing && len(c.out) == 0 && !polite:
		c.fail(net.ErrClosed)
	default:
		_ = c.Conn.SetWriteDeadline(time.Now().Add(closeLinger))
		if !c.writing {
			c.writing = true
			go c.drain()
		}
	}
	c.room.Broadcast()
	calls := c.onClose
	c.onClose = nil
	c.mu.Unlock()
	for _, f := range calls {
		f()
	}
	return nil
}

// Abort closes without writing what is buffered.
func (c *Conn) Abort() {
	c.mu.Lock()
	c.fail(net.ErrClosed)
	c.mu.Unlock()
	_ = c.Close()
}

// wait returns when the writing goroutine has ended; after Close that is within closeLinger or a little more.
func (c *Conn) wait() {
	c.mu.Lock()
	for c.writing {
		c.room.Wait()
	}
	c.mu.Unlock()
}

// AfterClose has f called when Close is called, or at once if it was already.
func (c *Conn) AfterClose(f func()) {
	c.mu.Lock()
	if !c.closed.Load() {
		c.onClose = append(c.onClose, f)
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	f()
}

// AfterEnd has f called on the connection's goroutine when the broker and the listener's Done are through with it. ok
// is false, and f not called, where the connection has no listener of this package.
func (c *Conn) AfterEnd(f func()) (ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.listened {
		c.onEnd = append(c.onEnd, f)
	}
	return c.listened
}

// end makes the calls that AfterEnd asked for.
func (c *Conn) end() {
	c.mu.Lock()
	calls := c.onEnd
	c.onEnd = nil
	c.mu.Unlock()
	for _, f := range calls {
		f()
	}
}

// Err is nil while the connection is open for writing, and then says what ended it.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}
