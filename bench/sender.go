package bench

import (
	"bytes"
	"fmt"
	"math"
	"sync/atomic"
)

// noLimit lets a sender go on for as long as acks come.
const noLimit = math.MaxUint64

// sender publishes its streams in turn: message n is number n/len(streams) of stream n%len(streams). At QoS 1 and 2 at
// most len(slots) messages are unacknowledged, and each ack makes room for the next.
type sender struct {
	*link
	qos     byte
	run     uint32
	streams []template
	// schedule is when message n was due; nil means the moment it is sent.
	schedule func(n uint64) int64

	// Both are read without link.mu, which a sender at QoS 0 holds for as long as its socket is full.
	written atomic.Uint64 // messages; only pump adds to it
	limit   atomic.Uint64 // written does not pass it

	// Guarded by link.mu.
	free    []uint16 // packet ids that are not in use
	slots   []uint64 // the message that holds packet id i+1
	refused ranges   // messages that the broker said no to

	acked    atomic.Int64
	replies  atomic.Int64
	receipts atomic.Int64
}

func newSender(l *link, o *Options, streams []template) *sender {
	window := min(o.InFlight, l.hello.receiveMax)
	if o.QoS == 0 {
		window = 0
	} else if window < o.InFlight {
		fmt.Fprintf(o.Notes, "%s: the broker takes %d in flight, not %d\n", l.name, window, o.InFlight)
	}
	s := &sender{link: l, qos: byte(o.QoS), run: o.runID(), streams: streams,
		free: make([]uint16, window), slots: make([]uint64, window)}
	for i := range s.free {
		s.free[i] = uint16(window - i) // low ids first
	}
	return s
}

// pump writes what the limit and the window let out. The caller holds mu.
func (s *sender) pump() error {
	n := s.written.Load()
	if n >= s.limit.Load() {
		return s.flush()
	}
	now := clock()
	for ; n < s.limit.Load(); s.written.Store(n) {
		id := uint16(0)
		if s.qos > 0 {
			if len(s.free) == 0 {
				break
			}
			id = s.free[len(s.free)-1]
			s.free = s.free[:len(s.free)-1]
			s.slots[id-1] = n
		}
		k := uint64(len(s.streams))
		t := &s.streams[n%k]
		h := header{run: s.run, stream: t.stream, number: n / k, due: now, sent: now}
		if s.schedule != nil {
			h.due = s.schedule(n)
		}
		s.out = t.appendMessage(s.out, id, h)
		n++
		if len(s.out) >= writeAtOnce {
			if err := s.flush(); err != nil {
				s.written.Store(n)
				return err
			}
			if s.qos == 0 {
				s.written.Store(n)
				return nil // let others have the lock; the caller comes again
			}
			now = clock()
		}
	}
	return s.flush()
}

// raise lets the sender go up to limit, and sends.
func (s *sender) raise(limit uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit.Store(limit)
	return s.pump()
}

// halt stops publishing.
func (s *sender) halt() { s.limit.Store(0) }

// flood publishes at QoS 0, where only the socket holds a sender back, until the limit.
func (s *sender) flood() error {
	for {
		s.mu.Lock()
		err := s.pump()
		done := s.written.Load() >= s.limit.Load()
		s.mu.Unlock()
		if err != nil || done {
			return err
		}
	}
}

// outstanding is how many messages wait for their ack.
func (s *sender) outstanding() int {
	if s.qos == 0 {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.slots) - len(s.free)
}

// refusals is how many messages the broker said no to.
func (s *sender) refusals() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused.count()
}

// unacked returns the messages that are still without an ack.
func (s *sender) unacked() (set ranges) {
	s.mu.Lock()
	defer s.mu.Unlock()
	idle := make([]bool, len(s.slots)+1)
	for _, id := range s.free {
		idle[id] = true
	}
	for i, n := range s.slots {
		if !idle[i+1] {
			set.add(n, n+1)
		}
	}
	return set
}

func (s *sender) packet(pk packet) error {
	if pk.kind == typePublish {
		return s.incoming(pk)
	}
	id, reason, err := parseAck(pk)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == 0 || int(id) > len(s.slots) {
		return fmt.Errorf("an ack for packet id %d, which is not ours: %w", id, errMalformed)
	}
	if pk.kind == typePubrec && reason < 0x80 {
		s.out = appendAck(s.out, typePubrel, id)
		return nil
	}
	if reason >= 0x80 {
		s.refuse(s.slots[id-1])
	} else {
		s.acked.Add(1)
	}
	if len(s.free) == cap(s.free) {
		return fmt.Errorf("an ack for packet id %d, which was not in use: %w", id, errMalformed)
	}
	s.free = append(s.free, id)
	return nil
}

// refuse notes that message n was not taken. The caller holds mu.
func (s *sender) refuse(n uint64) {
	if !s.refused.has(n) {
		s.refused.add(n, n+1)
	}
}

// incoming takes what a sender of the IM profile is told: replies and receipts.
func (s *sender) incoming(pk packet) error {
	m, err := parsePublish(s.version, pk)
	if err != nil {
		return err
	}
	switch {
	case bytes.HasSuffix(m.topic, []byte("/reply")):
		s.replies.Add(1)
		if bytes.Contains(m.payload, notOK) {
			// On 3.1.1 only the reply says that a message was refused.
			if cid, ok := jsonString(m.payload, keyCID); ok && len(cid) == cidTo-cidFrom {
				if n, ok := getHex(cid[12:]); ok {
					s.mu.Lock()
					s.refuse(n)
					s.mu.Unlock()
				}
			}
		}
	case bytes.HasSuffix(m.topic, []byte("/receipt")):
		s.receipts.Add(1)
	}
	if m.qos > 0 {
		s.mu.Lock()
		s.out = appendAck(s.out, typePuback, m.id)
		s.mu.Unlock()
	}
	return nil
}

func (s *sender) idle() bool {
	if s.qos == 0 {
		return false // flood and the pacer write
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pump() //nolint:errcheck // the read that follows reports a dead connection
	return false
}
