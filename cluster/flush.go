package cluster

import (
	"context"
	"errors"
	"fmt"

	"github.com/mqim/mqim/bus"
	"github.com/redis/go-redis/v9"
)

const (
	batchBytes    = 1 << 20 // of one SPUBLISH, at most, unless one message has more
	pipelineBytes = 4 << 20 // of one pipeline: subscribers have room for a few of these in Redis
	pipelineMost  = 10_000  // commands in one
	subscribeMost = 5_000   // channels in one SSUBSCRIBE
	pendingMost   = 20_000  // channels that Redis has yet to confirm: the answers must not fill the connection's buffer
	countMost     = 1_000   // channels in one PUBSUB SHARDNUMSUB
	recycleBytes  = 4 << 20 // of empty outboxes that are kept for later
)

// outbox is what has gathered for a channel.
type outbox struct {
	c      bus.Channel
	batch  []byte
	frames int
	size   int // that counts against the bound
	dones  []func(int)

	// While it is in a pipeline.
	self bool // this node hears it too
	cmd  *redis.IntCmd
}

// counting is a Count under way in one lane.
type counting struct {
	list   []bus.Channel
	counts []int // minus this node
	done   chan error
	cmds   []*redis.MapStringIntCmd
}

// enqueue has a frame published. done is told how many other nodes it has gone to.
func (l *lane) enqueue(c bus.Channel, f *frame, done func(int)) {
	size := len(f.payload) + frameExtra
	b := l.b
	switch {
	case b.queuedMessages.Add(1) > int64(b.opts.QueueMessages):
		b.queuedMessages.Add(-1)
		b.drop(dropMessages, done)
		return
	case b.queuedBytes.Add(int64(size)) > int64(b.opts.QueueBytes):
		b.queuedMessages.Add(-1)
		b.queuedBytes.Add(-int64(size))
		b.drop(dropBytes, done)
		return
	}
	l.mu.Lock()
	if l.state == laneOff || l.state != laneUp && f.kind != kindAnswer { // who asks waits for the answer of a node that joins
		l.mu.Unlock()
		b.queuedMessages.Add(-1)
		b.queuedBytes.Add(-int64(size))
		b.drop(dropDown, done)
		return
	}
	l.append(c, f, size, done)
	l.mu.Unlock()
	l.poke()
}

// put publishes for the lane itself, and before it is up too, without a bound; mu is held.
func (l *lane) put(c bus.Channel, f *frame, done func(int)) {
	l.b.queuedMessages.Add(1)
	l.append(c, f, 0, done) // size 0: it does not count
	l.poke()
}

func (l *lane) append(c bus.Channel, f *frame, size int, done func(int)) {
	o := l.out[c]
	if o == nil || len(o.batch)+len(f.payload) > batchBytes {
		o = l.box(c, size)
		l.out[c] = o
		l.queue = append(l.queue, o)
	}
	o.batch = appendFrame(o.batch, f)
	o.frames++
	o.size += size
	if done != nil {
		o.dones = append(o.dones, done)
	}
}

// box is an empty outbox, with room for a frame of size; mu is held.
func (l *lane) box(c bus.Channel, size int) *outbox {
	var o *outbox
	if n := len(l.free); n > 0 {
		o, l.free = l.free[n-1], l.free[:n-1]
		l.freeBytes -= cap(o.batch)
	} else {
		o = &outbox{batch: make([]byte, 0, headerLen+size)}
	}
	o.c = c
	o.batch = appendHeader(o.batch[:0], l.b.id, l.connection)
	return o
}

// finish tells those whose messages are in an outbox. nodes -1: it was not sent, or that is not known.
func (l *lane) finish(o *outbox, nodes int) {
	b := l.b
	b.queuedMessages.Add(-int64(o.frames))
	b.queuedBytes.Add(-int64(o.size))
	if nodes < 0 {
		b.dropped[dropLost].Add(int64(o.frames))
	} else {
		b.published.Add(int64(o.frames))
		b.sent.Add(1)
	}
	for i, done := range o.dones {
		done(nodes)
		o.dones[i] = nil
	}
}

// round is what flush does next.
type round struct {
	connection  uint32
	ps          *redis.PubSub
	client      *redis.Client
	subscribe   []string
	unsubscribe []string
	boxes       []*outbox
	counts      []*counting
	bytes       int
	cmds        int
}

func (r *round) empty() bool {
	return len(r.subscribe)+len(r.unsubscribe)+len(r.boxes)+len(r.counts) == 0
}

// flush tells Redis what gathers.
func (l *lane) flush() {
	defer l.b.wg.Done()
	var r round
	for {
		select {
		case <-l.wake:
		case <-l.b.ctx.Done():
			return
		}
		for l.gather(&r) {
			err := l.send(&r)
			for _, o := range r.boxes {
				nodes := -1
				if err == nil {
					nodes = int(o.cmd.Val())
					if o.self {
						nodes = max(nodes-1, 0)
					}
				}
				l.finish(o, nodes)
			}
			for _, c := range r.counts {
				c.done <- c.result(err)
			}
			if err != nil {
				l.fail(r.connection, err)
			}
			l.recycle(&r)
		}
	}
}

// gather takes what can be sent now; false: nothing.
//
// How many have heard a message is known from Redis' count only where it is known whether this node is one of them. So what is
// published to a channel waits while Redis has yet to confirm a change of this node's subscription to it, and a change is not
// sent between a pipeline and its answers: one goroutine does both.
func (l *lane) gather(r *round) bool {
	*r = round{subscribe: r.subscribe[:0], unsubscribe: r.unsubscribe[:0], boxes: r.boxes[:0], counts: r.counts[:0]}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == laneOff {
		return false
	}
	r.connection, r.ps, r.client = l.connection, l.ps, l.client
	l.gatherSubs(r)
	keep := l.queue[:0]
	for i, o := range l.queue {
		if r.bytes > pipelineBytes || r.cmds >= pipelineMost {
			keep = append(keep, l.queue[i:]...)
			break
		}
		s := l.subs[o.c]
		if s != nil && s.pending > 0 {
			s.held = true
			keep = append(keep, o)
			continue
		}
		if o.self = s != nil && s.told; s != nil && s.held {
			s.held = false
			if s.told != (s.wanted > 0) {
				l.touch(s)
			}
		}
		if l.out[o.c] == o {
			delete(l.out, o.c)
		}
		r.boxes = append(r.boxes, o)
		r.bytes += len(o.batch)
		r.cmds++
	}
	clear(l.queue[len(keep):])
	l.queue = keep
	l.gatherCounts(r)
	return !r.empty()
}

// gatherSubs takes the changes of subscriptions; mu is held.
func (l *lane) gatherSubs(r *round) {
	n := 0
	for ; n < len(l.dirty) && len(r.subscribe)+len(r.unsubscribe) < subscribeMost && l.pending < pendingMost; n++ {
		s := l.dirty[n]
		s.dirty = false
		want := s.wanted > 0
		switch {
		case want != s.told && s.held && s.pending == 0:
			continue // once what waits is sent it is looked at again
		case want == s.told:
			if !want && s.pending == 0 {
				l.forget(s)
				l.found(s)
			}
			continue
		}
		s.told = want
		s.pending++
		l.pending++
		if want {
			r.subscribe = append(r.subscribe, s.name)
		} else {
			r.unsubscribe = append(r.unsubscribe, s.name)
		}
	}
	clear(l.dirty[:n])
	l.dirty = l.dirty[n:]
}

// found: the lane need not wait for this subscription any more to come up; mu is held.
func (l *lane) found(s *sub) {
	if !s.missing {
		return
	}
	s.missing = false
	if l.missing--; l.missing == 0 {
		l.state = laneProbing
		l.put(l.self, l.probe(), nil)
	}
}

// gatherCounts takes the Counts for whose channels no change is under way; mu is held.
func (l *lane) gatherCounts(r *round) {
	keep := l.counts[:0]
next:
	for _, c := range l.counts {
		for _, ch := range c.list {
			if s := l.subs[ch]; s != nil && s.pending > 0 {
				keep = append(keep, c)
				continue next
			}
		}
		for i, ch := range c.list {
			c.counts[i] = 0
			if s := l.subs[ch]; s != nil && s.told {
				c.counts[i] = -1
			}
		}
		r.counts = append(r.counts, c)
	}
	clear(l.counts[len(keep):])
	l.counts = keep
}

// send writes, and waits for the answers to what is published and counted; subscriptions are confirmed to receive.
func (l *lane) send(r *round) error {
	if len(r.unsubscribe) > 0 {
		if err := r.ps.SUnsubscribe(fallen, r.unsubscribe...); err != nil {
			return err
		}
	}
	if len(r.subscribe) > 0 {
		if err := r.ps.SSubscribe(fallen, r.subscribe...); err != nil {
			return err
		}
	}
	if len(r.boxes)+len(r.counts) == 0 {
		return nil
	}
	ctx := l.b.ctx
	pipe := r.client.Pipeline()
	for _, o := range r.boxes {
		o.cmd = pipe.SPublish(ctx, l.name(o.c), o.batch)
	}
	for _, c := range r.counts {
		for list := c.list; len(list) > 0; {
			n := min(len(list), countMost)
			names := make([]string, n)
			for i, ch := range list[:n] {
				names[i] = l.name(ch)
			}
			c.cmds = append(c.cmds, pipe.PubSubShardNumSub(ctx, names...))
			list = list[n:]
		}
	}
	if _, err := pipe.Exec(ctx); err != nil {
		if errors.Is(err, context.Canceled) {
			return err
		}
		return fmt.Errorf("publishing: %w", err)
	}
	l.b.pipelines.Add(1)
	return nil
}

// result fills in the counts.
func (c *counting) result(err error) error {
	if err != nil {
		return bus.ErrDown
	}
	i := 0
	for _, cmd := range c.cmds {
		byName := cmd.Val()
		args := cmd.Args()[2:] // PUBSUB SHARDNUMSUB name...
		for _, name := range args {
			c.counts[i] = max(c.counts[i]+int(byName[name.(string)]), 0)
			i++
		}
	}
	return nil
}

// recycle keeps the outboxes of a round for later, as far as there is room.
func (l *lane) recycle(r *round) {
	l.mu.Lock()
	for _, o := range r.boxes {
		if l.freeBytes+cap(o.batch) <= recycleBytes {
			l.freeBytes += cap(o.batch)
			*o = outbox{batch: o.batch[:0], dones: o.dones[:0]}
			l.free = append(l.free, o)
		}
	}
	l.mu.Unlock()
	clear(r.boxes)
	clear(r.counts)
}
