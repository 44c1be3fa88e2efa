package cluster

import (
	"sync/atomic"
	"time"
)

// Metrics are counters since Open and the state of the bus.
type Metrics struct {
	Published  int64            // messages, questions and answers that Redis has taken
	Batches    int64            // in so many SPUBLISH
	Pipelines  int64            // in so many round trips
	Received   int64            // from other nodes
	ReceivedIn int64            // in so many batches
	Dropped    map[string]int64 // messages not sent, or not known to have been, by reason
	Junk       int64            // what came that no node has sent, or in another version
	Unknown    int64            // frames that nobody here handles
	Stale      int64            // batches of a connection that the sender had given up
	Late       int64            // answers that nobody waited for any more
	Failures   int64            // connections lost, and attempts that have failed
	Ups, Downs int64            // times that the bus came up and went down

	Up            bool
	Peers         int
	Subscriptions int           // channels
	Queued        int64         // messages waiting to be published
	QueuedBytes   int64         // of them
	RoundTrip     time.Duration // of the last probe: publish to receive
}

// Reasons for a message not to be sent.
const (
	dropDown     = iota // the bus is down
	dropMessages        // too many wait
	dropBytes           // those that wait are too large
	dropLost            // the connection failed before Redis had answered
	drops
)

var dropNames = [drops]string{"down", "queue_messages", "queue_bytes", "lost"}

type counters struct {
	published, sent, pipelines, received, batches  atomic.Int64
	junk, unknown, stale, late, failures           atomic.Int64
	ups, downs                                     atomic.Int64
	queuedMessages, queuedBytes, roundTrip, logged atomic.Int64
	dropped                                        [drops]atomic.Int64
}

// Metrics may be called at any time, after Close too.
func (b *Bus) Metrics() Metrics {
	m := Metrics{
		Published: b.published.Load(), Batches: b.sent.Load(), Pipelines: b.pipelines.Load(),
		Received: b.received.Load(), ReceivedIn: b.batches.Load(), Dropped: map[string]int64{},
		Junk: b.junk.Load(), Unknown: b.unknown.Load(), Stale: b.stale.Load(), Late: b.late.Load(),
		Failures: b.failures.Load(), Ups: b.ups.Load(), Downs: b.downs.Load(),
		Up: b.Up(), Peers: len(b.Peers()),
		Queued: b.queuedMessages.Load(), QueuedBytes: b.queuedBytes.Load(), RoundTrip: time.Duration(b.roundTrip.Load()),
	}
	for i, name := range dropNames {
		m.Dropped[name] = b.dropped[i].Load()
	}
	for _, l := range b.lanes {
		l.mu.Lock()
		m.Subscriptions += len(l.subs) - 1 // without the probe's
		l.mu.Unlock()
	}
	return m
}
