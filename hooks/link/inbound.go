package link

import (
	"container/list"
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/store"
)

// inbound are the client's publishes that are not answered yet, in the order in which they came: acknowledgements go
// out in that order [MQTT-4.6.0-2], however the answers come.
type inbound struct {
	c    *Conn
	open atomic.Bool // the session is established

	mu       sync.Mutex
	room     sync.Cond
	ring     []request // length 0 or a power of two
	base     uint64    // ticket of the first
	n        int
	pubs     int                  // of them at QoS 1 or 2
	rels     int                  // PUBRECs sent whose PUBREL has not come: they count, too
	max      int                  // Receive Maximum
	response map[uint64]*Response // of the requests that asked for one
	closed   bool
}

// request is a publish that waits for its answer.
type request struct {
	id       uint16
	qos      byte
	done     bool
	recorded bool // QoS 2: the packet id is stored with the message, if that is
	code     byte
	reason   string
	key      *published
}

// Response says where a client wants the answer to a request [MQTT-4.10].
type Response struct {
	Topic       string
	Correlation []byte
}

func (in *inbound) init(c *Conn) {
	in.c = c
	in.base = 1 // 0 is no ticket
	in.room.L = &in.mu
	in.max = 1024
	if c.reg.caps != nil && c.reg.caps.ReceiveMaximum > 0 {
		in.max = int(c.reg.caps.ReceiveMaximum)
	}
}

// admit takes a place in the order. A client of MQTT 5 that exceeds Receive Maximum breaks MQTT [MQTT-3.3.4-7]; one of
// 3.1.1, which has no such limit, waits.
func (in *inbound) admit(p *Inbound, r *Response) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.c.V5 && p.QoS > 0 && in.pubs+in.rels >= in.max {
		return packets.ErrReceiveMaximum
	}
	for in.n >= 2*in.max && !in.closed || !in.c.V5 && in.n >= in.max && !in.closed {
		in.c.Kick()
		in.room.Wait()
	}
	if in.closed {
		return packets.CodeDisconnect
	}
	if in.n == len(in.ring) {
		nr := make([]request, max(8, 2*len(in.ring)))
		for i := range uint64(in.n) {
			nr[(in.base+i)&uint64(len(nr)-1)] = *in.at(in.base + i)
		}
		in.ring = nr
	}
	p.Ticket = in.base + uint64(in.n)
	in.n++
	if p.QoS > 0 {
		in.pubs++
	}
	*in.at(p.Ticket) = request{id: p.ID, qos: p.QoS}
	if r != nil {
		if in.response == nil {
			in.response = map[uint64]*Response{}
		}
		in.response[p.Ticket] = r
	}
	return nil
}

func (in *inbound) at(ticket uint64) *request { return &in.ring[ticket&uint64(len(in.ring)-1)] }

// Response returns where the answer to a request is wanted; nil: nowhere in particular. It is asked before Answer.
func (c *Conn) Response(ticket uint64) *Response {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	return c.in.response[ticket]
}

// Answer completes a publish: code 0 is success, and one of 0x80 or more a refusal, which a client of MQTT 5 is told with
// the reason. What can go out by it is written; Kick sends it. An answer to what is not waiting does nothing.
func (c *Conn) Answer(ticket uint64, code byte, reason string) {
	in := &c.in
	in.mu.Lock()
	defer in.mu.Unlock()
	if ticket < in.base || ticket >= in.base+uint64(in.n) {
		return
	}
	r := in.at(ticket)
	r.done, r.code, r.reason = true, code, reason
	if r.key != nil {
		r.key.finish(code)
	}
	if ticket != in.base {
		return
	}
	for in.n > 0 && in.at(in.base).done {
		in.acknowledge(in.at(in.base))
		if in.at(in.base).qos > 0 {
			in.pubs--
		}
		*in.at(in.base) = request{}
		delete(in.response, in.base)
		in.base++
		in.n--
	}
	in.room.Signal()
}

// Records returns what whoever stores a publish is to store with it, in one step: the packet id, at QoS 2 in a durable
// session; otherwise nil.
func (c *Conn) Records(p *Inbound) *store.Inbound {
	if p.QoS != 2 || !c.Session.Durable() {
		return nil
	}
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	if p.Ticket < c.in.base || p.Ticket >= c.in.base+uint64(c.in.n) {
		return nil
	}
	c.in.at(p.Ticket).recorded = true
	return &store.Inbound{Client: c.Session.Client, ID: p.ID}
}

// Fail says that a publish was not kept and will not be answered: the connection is about to end, and the client is to
// send it again.
func (c *Conn) Fail(ticket uint64) {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	if ticket >= c.in.base && ticket < c.in.base+uint64(c.in.n) {
		if key := c.in.at(ticket).key; key != nil {
			key.finish(packets.ErrServerUnavailable.Code)
		}
	}
}

// FailAll is Fail for everything that is not answered yet.
func (c *Conn) FailAll() {
	c.in.mu.Lock()
	first, n := c.in.base, uint64(c.in.n)
	c.in.mu.Unlock()
	for t := first; t < first+n; t++ {
		c.Fail(t)
	}
}

// acknowledge writes PUBACK or PUBREC.
func (in *inbound) acknowledge(r *request) {
	c := in.c
	typ := packets.Puback
	if c.quiet {
		r.reason = "" // [MQTT-3.1.2-29]
	}
	id, code, reason := r.id, r.code, r.reason
	switch r.qos {
	case 0:
		return
	case 2:
		typ = packets.Pubrec
		if code < packets.ErrUnspecifiedError.Code || !c.V5 {
			c.Session.receive(id)
			in.rels++
			if !r.recorded {
				c.keep(id, false, func() { c.acknowledge(typ, id, code, reason) })
				return
			}
		}
	}
	c.acknowledge(typ, id, code, reason)
}

func (c *Conn) acknowledge(typ byte, id uint16, code byte, reason string) {
	// Acknowledgements may exceed the write buffer; the reading goroutine waits until there is room again.
	if b, ok := c.BeginUrgent(); ok {
		c.End(appendAck(b, typ, id, c.V5, code, c.fitting(reason, 6))) // [MQTT-3.4.2-2] [MQTT-3.5.2-2]
	}
}

// released is called when a PUBREL has come, though it be for a PUBREC of an earlier connection.
func (in *inbound) released() {
	in.mu.Lock()
	in.rels = max(0, in.rels-1)
	in.mu.Unlock()
}

// close lets a waiting reader go.
func (in *inbound) close() {
	in.mu.Lock()
	in.closed = true
	in.room.Broadcast()
	in.mu.Unlock()
}

// receive notes a QoS 2 publish that was answered with PUBREC; the client's PUBREL is awaited.
func (s *Session) receive(id uint16) {
	s.mu.Lock()
	if s.received == nil {
		s.received = map[uint16]bool{}
	}
	s.received[id] = true
	s.mu.Unlock()
}

// release handles PUBREL; known is false when no PUBREC is outstanding.
func (s *Session) release(id uint16) (known bool) {
	s.mu.Lock()
	known = s.received[id]
	delete(s.received, id)
	s.mu.Unlock()
	return known
}

func (s *Session) awaitsRelease(id uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.received[id]
}

// recent remembers what was published last at QoS 1 and 2 in a persistent session. It outlives the session's connection,
// while the server runs and has room: see parking.
type recent struct {
	mu   sync.Mutex
	byID map[uint16]*published // the latest under each packet id
	ring []*published
	next int
}

const recentMax = 1024

// published is one publish and what became of it. Guarded by recent.mu.
type published struct {
	of      *recent
	id      uint16
	hash    uint64
	state   byte // pending, kept or refused
	waiting []func(kept bool)
}

const (
	pending = iota
	kept
	refused
)

// finish tells what became of a publish.
func (p *published) finish(code byte) {
	p.of.mu.Lock()
	p.state = kept
	if code >= packets.ErrUnspecifiedError.Code {
		p.state = refused
	}
	waiting, ok := p.waiting, p.state == kept
	p.waiting = nil
	p.of.mu.Unlock()
	for _, f := range waiting {
		go f(ok) // it answers on a connection; ours is locked
	}
}

// Repeated reports whether p is a publish that came before: DUP flag, the same packet id, topic and payload, within the
// session. It is answered then like the first one; the receiver has nothing more to do with it. Otherwise p is
// remembered. A receiver asks it for publishes that nothing else identifies.
func (c *Conn) Repeated(p *Inbound) bool {
	if p.QoS == 0 {
		return false
	}
	s := c.Session
	s.mu.Lock()
	if !s.persistent {
		s.mu.Unlock()
		return false
	}
	if s.recent == nil {
		s.recent = &recent{byID: map[uint16]*published{}}
	}
	r := s.recent
	s.mu.Unlock()
	sum := p.hash()
	r.mu.Lock()
	if x := r.byID[p.ID]; p.Dup && x != nil && x.hash == sum && x.state != refused {
		ticket := p.Ticket
		answer := func(kept bool) {
			if kept {
				c.Answer(ticket, packets.CodeSuccess.Code, "")
				c.Kick()
			} else {
				c.Disconnect(packets.ErrServerUnavailable) // it is to be sent once more
			}
		}
		if x.state == pending {
			x.waiting = append(x.waiting, answer)
			r.mu.Unlock()
		} else {
			r.mu.Unlock()
			answer(true)
		}
		return true
	}
	key := &published{of: r, id: p.ID, hash: sum}
	r.add(key)
	r.mu.Unlock()
	c.in.mu.Lock()
	c.in.at(p.Ticket).key = key
	c.in.mu.Unlock()
	return false
}

func (r *recent) add(key *published) {
	r.byID[key.id] = key
	if len(r.ring) < recentMax {
		r.ring = append(r.ring, key)
		return
	}
	if old := r.ring[r.next]; r.byID[old.id] == old {
		delete(r.byID, old.id)
	}
	r.ring[r.next] = key
	r.next = (r.next + 1) % recentMax
}

// parking has the recents of sessions that are away, the longest away first.
type parking struct {
	list     list.List // of parked
	byClient map[string]*list.Element
	n        int // publishes remembered
}

type parked struct {
	client string
	r      *recent
	n      int
	epoch  uint64 // of the connection
}

const parkedMax = 1 << 17 // publishes, of some 150 bytes each

// park remembers what a session that goes away has published, in the place of what went away first.
func (p *parking) park(client string, r *recent, epoch uint64) {
	if r == nil {
		return
	}
	if p.byClient == nil {
		p.byClient = map[string]*list.Element{}
	}
	p.take(client)
	p.byClient[client] = p.list.PushBack(parked{client, r, len(r.ring), epoch})
	for p.n += len(r.ring); p.n > parkedMax; {
		p.take(p.list.Front().Value.(parked).client)
	}
}

func (p *parking) take(client string) parked {
	e := p.byClient[client]
	if e == nil {
		return parked{}
	}
	delete(p.byClient, client)
	x := p.list.Remove(e).(parked)
	p.n -= x.n
	return x
}

func (p *Inbound) hash() uint64 {
	var h xxhash.Digest
	h.Reset()
	_, _ = h.WriteString(p.Topic)
	_, _ = h.Write([]byte{0})
	_, _ = h.Write(p.Payload)
	return h.Sum64()
}
