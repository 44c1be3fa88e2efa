package im

import (
	"sync"

	"github.com/mqim/mqim/store"
)

// pending is what waits for the committer: a message, or a state change that wants the same durable step.
type pending struct {
	store.Send
	dev    *Device
	ticket Ticket
	rid    string
	peer   string // the other side of a direct conversation

	cost int // bytes, about, that it takes until it is stored, beside what size knows

	op    func(*store.Batch) // instead of a message: adds to the batch
	after func(error)        // is told what became of op, or of a message that has no dev

	elsewhere bool // the other side of a direct conversation is connected to another node

	attach []string // of a change that makes its group large: who is in it from then on
}

// pendingBytes is what a pending costs beside its body and those that it is for.
const pendingBytes = 512

// size is what it counts for in the queue.
func (p *pending) size() int {
	n := len(p.Body) + pendingBytes + p.cost
	if p.Change != nil {
		n += memberBytes*len(p.Change.Members) + nameBytes*len(p.attach)
	}
	return n
}

// What a member of a change, a name, and an entry in an inbox cost at most, about, until they are stored.
const (
	memberBytes = 192
	nameBytes   = 80
	inboxBytes  = 128
)

// queue is the bounded queue in front of the committer. The committer takes all of it at once, so a lock is held for
// an append or a swap, never for work.
type queue struct {
	mu       sync.Mutex
	notEmpty sync.Cond
	room     sync.Cond
	items    []*pending
	bytes    int
	maxItems int
	maxBytes int
	closed   bool
}

func (q *queue) init(items, bytes int) {
	q.notEmpty.L, q.room.L = &q.mu, &q.mu
	q.maxItems, q.maxBytes = items, bytes
}

// put appends, waiting while the queue is full: the waiting goroutine is the one that reads the sender's connection,
// so the sender is slowed by TCP. It returns false when the engine is closing.
func (q *queue) put(ps ...*pending) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range ps {
		for !q.closed && (len(q.items) >= q.maxItems || q.bytes > 0 && q.bytes+p.size() > q.maxBytes) {
			q.notEmpty.Signal()
			q.room.Wait()
		}
		if q.closed {
			return false
		}
		q.items = append(q.items, p)
		q.bytes += p.size()
	}
	q.notEmpty.Signal()
	return true
}

// take waits for items and swaps them for spare, an empty slice. It returns nil when the queue is closed and empty.
func (q *queue) take(spare []*pending) (items []*pending, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.items) == 0 && !q.closed {
		q.notEmpty.Wait()
	}
	if len(q.items) == 0 {
		return nil, 0
	}
	items, bytes = q.items, q.bytes
	q.items, q.bytes = spare, 0
	q.room.Broadcast()
	return items, bytes
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.notEmpty.Broadcast()
	q.room.Broadcast()
}
