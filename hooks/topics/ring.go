package topics

// item is a message in a session's queue: waiting to be sent, or sent and not acknowledged.
type item struct {
	m     *message // nil: finished
	ids   string   // encoded subscription identifiers
	id    uint16   // the packet id under which it was sent on an earlier connection
	qos   byte
	flags uint8
}

const (
	retainFlag   uint8 = 1 << iota
	extraFlag          // a retained message for a new subscription, not counted against the queue's limits
	dupFlag            // sent on an earlier connection
	receivedFlag       // QoS 2: PUBREC came
	reservedFlag       // QoS 2: its packet id is about to be stored
	storedFlag         // the store has what is known of it
)

func (it *item) is(flag uint8) bool { return it.flags&flag != 0 }

// ring is a queue of items. Each has a token, counting up from 1; those before next have been sent.
type ring struct {
	items []item // length 0 or a power of two
	base  uint64 // token of the first
	n     int
	next  uint64 // token of the first that waits
}

const keepRing = 64 // an empty ring larger than this is given to the garbage collector

func (r *ring) at(token uint64) *item { return &r.items[token&uint64(len(r.items)-1)] }

func (r *ring) end() uint64 { return r.base + uint64(r.n) }

// waiting is the number of items not sent.
func (r *ring) waiting() int { return int(r.end() - r.next) }

func (r *ring) push(it item) (token uint64) {
	if r.n == len(r.items) {
		items := make([]item, max(8, 2*len(r.items)))
		for t := r.base; t < r.end(); t++ {
			items[t&uint64(len(items)-1)] = *r.at(t)
		}
		r.items = items
	}
	token = r.end()
	r.n++
	*r.at(token) = it
	return token
}

// finish marks an item as done with and drops those at the front that are.
func (r *ring) finish(token uint64) {
	*r.at(token) = item{}
	r.advance()
}

// advance drops what is done with at the front.
func (r *ring) advance() {
	for r.n > 0 && r.base < r.next && r.at(r.base).m == nil {
		r.base++
		r.n--
	}
	if r.n == 0 && len(r.items) > keepRing {
		r.items = nil
	}
}
