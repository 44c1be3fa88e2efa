package im

import (
	"sync"

	"github.com/bwmarrin/snowflake"
)

// Snowflakes makes message ids that never step back: 41 bits of milliseconds, 10 of node number, 12 of step.
// It may be used concurrently.
type Snowflakes struct {
	mu   sync.Mutex
	node *snowflake.Node
	last int64
}

// NewSnowflakes returns the ids of a node, 0 to 1023. Of two processes that write to one store no two may have the
// same number at the same time.
func NewSnowflakes(node int64) (*Snowflakes, error) {
	n, err := snowflake.NewNode(node)
	if err != nil {
		return nil, err
	}
	return &Snowflakes{node: n}, nil
}

// Next returns an id greater than after and than all before it. Where the clock has stepped back behind them (over
// a restart: within a process it is monotonic) the ids run ahead of the clock, from the later one's millisecond on.
func (s *Snowflakes) Next(after int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	after = max(after, s.last)
	id := int64(s.node.Generate())
	if id <= after {
		const (
			low  = int64(1)<<22 - 1 // node and step
			step = int64(1)<<12 - 1
		)
		node := id & low &^ step
		id = after&^low | node | (after+1)&step
		if id <= after { // the steps are used up, or a greater node has been there
			id = (after&^low + low + 1) | node // the next millisecond, step 0
		}
	}
	s.last = id
	return id
}
