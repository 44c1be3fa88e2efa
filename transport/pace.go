package transport

import (
	"time"

	"golang.org/x/time/rate"
)

// pace is how fast a connection is read. It belongs to the reading goroutine.
type pace struct {
	bytes, messages *rate.Limiter // nil: no limit
	owed            time.Duration // to wait before the next read: what was read was more than BytesPerSecond allows
	published       bool          // since the last read
}

func (p *pace) init(o *Options) {
	if n := o.BytesPerSecond; n > 0 {
		p.bytes = rate.NewLimiter(rate.Limit(n), n)
	}
	if n := o.MessagesPerSecond; n > 0 {
		p.messages = rate.NewLimiter(rate.Limit(n), n)
	}
}

// cut shortens a read to what a limiter can count at once.
func (p *pace) cut(b []byte) []byte {
	if p.bytes != nil {
		b = b[:min(len(b), p.bytes.Burst())]
	}
	return b
}

// read counts n bytes.
func (p *pace) read(n int) {
	if p.bytes != nil {
		p.owed = p.bytes.ReserveN(time.Now(), n).Delay()
	}
}

// paceRead waits until more may be read.
func (c *Conn) paceRead() error {
	p := &c.pace
	if p.owed > 0 {
		if c.counters != nil {
			c.counters.PausedBytes.Add(1)
		}
		if err := c.pause(p.owed); err != nil {
			return err
		}
		p.owed = 0
	}
	if !p.published {
		return nil
	}
	p.published = false
	if c.opt.Slow == nil {
		return nil
	}
	d := c.opt.Slow()
	if d <= 0 {
		return nil
	}
	if c.counters != nil {
		c.counters.PausedSlow.Add(1)
	}
	return c.pause(d)
}

// paceMessage waits until one more PUBLISH may be handled.
func (c *Conn) paceMessage() error {
	p := &c.pace
	p.published = true
	if p.messages == nil {
		return nil
	}
	d := p.messages.Reserve().Delay()
	if d <= 0 {
		return nil
	}
	if c.counters != nil {
		c.counters.PausedMessages.Add(1)
	}
	if c.handler != nil {
		c.handler.Drained()
	}
	return c.pause(d)
}

// pause waits, at most until the connection is closed; then it returns why.
func (c *Conn) pause(d time.Duration) error {
	end := time.Now().Add(d)
	timer := time.AfterFunc(d, func() {
		c.mu.Lock()
		c.room.Broadcast()
		c.mu.Unlock()
	})
	defer timer.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && time.Now().Before(end) {
		c.room.Wait()
	}
	return c.err
}
