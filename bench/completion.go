package bench

import (
	"sync"
	"sync/atomic"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// completion measures how long it takes until all receivers have a message of one stream. It holds a counter for every
// message of the schedule, so it is only for runs that have one. A message that any receiver does not get is not in it.
type completion struct {
	receivers uint32
	seen      []atomic.Uint32 // by number of the message

	mu      sync.Mutex
	latency *hdrhistogram.Histogram // from due to the last receiver, µs
}

func newCompletion(o *Options, messages uint64) *completion {
	// The measured time ends a little after the schedule does; what is due meanwhile is sent, too.
	return &completion{receivers: uint32(o.Receivers), seen: make([]atomic.Uint32, messages+messages/8+64), latency: newHistogram(1)}
}

// see counts a message that one receiver has for the first time. What was due before from is not measured.
func (c *completion) see(h header, from int64) {
	if h.number >= uint64(len(c.seen)) || c.seen[h.number].Add(1) < c.receivers || h.due < from {
		return
	}
	took := micros(clock() - h.due)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.latency.RecordValue(took) //nolint:errcheck // micros keeps it in range
}
