package link

import (
	"encoding/binary"
	"strings"
	"sync"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Publication is a message on its way to the client.
type Publication struct {
	Topic   string
	Payload []byte // copied
	QoS     byte
	Retain  bool
	Dup     bool
	ID      uint16 // the packet id of an earlier connection, to send it again; 0: a new one
	Props   []byte // MQTT 5 properties, encoded, without their length; not written to 3.1.1

	Owner  Owner // told of acknowledgements, nil at QoS 0 where nobody wants to know
	Token  uint64
	Notify bool // QoS 0: tell Owner when the kernel has it
	Force  bool // QoS 0: the caller has asked WaitRoom, or bounds what it sends by other means
}

// Size is the size of the packet in bytes.
func (p *Publication) Size(v5 bool) int {
	n := p.remaining(v5)
	return 1 + varintLen(n) + n
}

// remaining is the Remaining Length of the packet.
func (p *Publication) remaining(v5 bool) int {
	n := 2 + len(p.Topic) + len(p.Payload)
	if p.QoS > 0 {
		n += 2
	}
	if v5 {
		n += varintLen(len(p.Props)) + len(p.Props)
	}
	return n
}

// flight is a publication that the client has not acknowledged.
type flight struct {
	owner Owner
	token uint64
	qos   byte
	rel   bool // QoS 2: PUBREL was sent
}

// takes reports whether a type of acknowledgement is one that may come now (MQTT 5, 4.3). PUBREC may come twice.
func (f *flight) takes(typ byte) bool {
	switch typ {
	case packets.Puback:
		return f.qos == 1
	case packets.Pubrec:
		return f.qos == 2
	}
	return f.rel
}

// outbound is what goes to the client: packet ids, and the quota that Receive Maximum leaves.
type outbound struct {
	c *Conn

	mu      sync.Mutex
	flights map[uint16]flight
	last    uint16
	max     int             // Receive Maximum
	kept    map[uint16]bool // ids of an earlier connection's flights that are to be sent again
	refused map[Owner]bool
	leaving []leaving // QoS 0 publications whose bytes have not left
	aliases aliases   // that the client may be sent
}

type leaving struct {
	at    uint64
	owner Owner
	token uint64
}

const maxFlights = 16384 // for clients that do not announce a Receive Maximum

func (o *outbound) init(c *Conn) {
	o.c = c
	o.max = int(c.Client.Properties.Props.ReceiveMaximum)
	if o.max == 0 || o.max > maxFlights {
		o.max = maxFlights
	}
	if c.V5 && c.reg.exclusive { // else mochi sends aliases of its own
		o.aliases.max = min(c.Client.Properties.Props.TopicAliasMaximum, maxAliases)
	}
}

// Publish writes a publication; Kick sends it. It returns false, having done nothing, when the client has as much
// outstanding as its Receive Maximum allows, or does not read; the owner is told by Room when that is over.
func (c *Conn) Publish(p *Publication) bool {
	o := &c.out
	n := p.Size(c.V5)
	limit := c.Client.Properties.Props.MaximumPacketSize
	if limit > 0 && n > int(limit) {
		if p.Owner != nil { // as if it had been sent [MQTT-3.1.2-25]
			go p.Owner.Acked(p.Token, packets.ErrPacketTooLarge.Code)
		}
		return true
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if p.QoS > 0 && len(o.flights) >= o.max {
		o.refuse(p.Owner)
		return false
	}
	begin := c.Begin
	if p.Force {
		begin = func(int) ([]byte, bool) { return c.BeginUrgent() }
	}
	b, ok := begin(n)
	if !ok {
		o.refuse(p.Owner)
		return false
	}
	id := p.ID
	if p.QoS > 0 {
		id = o.takeID(id)
	}
	if o.aliases.max > 0 { // not before: what is not written sets none
		b = o.aliases.appendPublish(b, p, id, limit == 0 || n+aliasSize <= int(limit))
	} else {
		b = appendPublish(b, p, id, c.V5)
	}
	at := c.End(b)
	if p.QoS > 0 {
		if o.flights == nil {
			o.flights = make(map[uint16]flight, 8)
		}
		o.flights[id] = flight{owner: p.Owner, token: p.Token, qos: p.QoS}
	} else if p.Notify {
		o.leaving = append(o.leaving, leaving{at: at, owner: p.Owner, token: p.Token})
	}
	return true
}

func (o *outbound) refuse(owner Owner) {
	if owner == nil {
		return
	}
	if o.refused == nil {
		o.refused = map[Owner]bool{}
	}
	o.refused[owner] = true
}

// takeID returns the packet id of an earlier connection if nothing else is in flight under it, else a new one.
func (o *outbound) takeID(id uint16) uint16 {
	delete(o.kept, id)
	if _, used := o.flights[id]; id == 0 || used {
		return o.nextID()
	}
	return id
}

// nextID returns a packet id that is not in flight; there are fewer flights than ids.
func (o *outbound) nextID() uint16 {
	for {
		if !o.c.reg.exclusive { // mochi sends, too, and counts its own
			if id, err := o.c.Client.NextPacketID(); err == nil {
				o.last = uint16(id) - 1
			}
		}
		if o.last++; o.last == 0 {
			o.last = 1
		}
		if _, used := o.flights[o.last]; !used && !o.kept[o.last] {
			return o.last
		}
	}
}

// Flight is a publication that the peer has not acknowledged.
type Flight struct {
	Token    uint64
	ID       uint16
	Received bool // QoS 2: PUBREC came, PUBCOMP did not
}

// Flights returns what the peer has not acknowledged of an owner's, in no order. On an ended connection it is what has to
// be sent again, under the same packet ids [MQTT-4.4.0-1].
func (c *Conn) Flights(owner Owner) []Flight {
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	var list []Flight
	for id, f := range o.flights {
		if f.owner == owner {
			list = append(list, Flight{Token: f.token, ID: id, Received: f.rel})
		}
	}
	return list
}

// Keep keeps new publications from taking a packet id that a Publication with that ID, or Rerelease, is going to use.
// It is called before anything is published.
func (c *Conn) Keep(id uint16) {
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.kept == nil {
		o.kept = map[uint16]bool{}
	}
	o.kept[id] = true
}

// Reserve takes a new packet id and keeps it, for a Publication with that ID.
func (c *Conn) Reserve() uint16 {
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	id := o.nextID()
	if o.kept == nil {
		o.kept = map[uint16]bool{}
	}
	o.kept[id] = true
	return id
}

// Free gives back a packet id that was kept and will not be used.
func (c *Conn) Free(id uint16) {
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.kept, id)
}

// Rerelease sends PUBREL for a QoS 2 publication that the peer had received on an earlier connection [MQTT-4.4.0-1].
// It returns false, having done nothing, when something else is in flight under that id, which Keep prevents.
func (c *Conn) Rerelease(id uint16, owner Owner, token uint64) bool {
	o := &c.out
	o.mu.Lock()
	if _, used := o.flights[id]; used {
		o.mu.Unlock()
		return false
	}
	delete(o.kept, id)
	if o.flights == nil {
		o.flights = make(map[uint16]flight, 8)
	}
	o.flights[id] = flight{owner: owner, token: token, qos: 2, rel: true}
	o.mu.Unlock()
	c.control(packets.Pubrel, id, packets.CodeSuccess)
	return true
}

// acked handles PUBACK, PUBREC and PUBCOMP. own is false when the id is not one of ours. An error is a breach of MQTT.
func (c *Conn) acked(typ byte, id uint16, reason byte) (own bool, err error) {
	o := &c.out
	o.mu.Lock()
	f, own := o.flights[id]
	if !own {
		o.mu.Unlock()
		if typ == packets.Pubrec && reason < packets.ErrUnspecifiedError.Code { // [MQTT-4.3.3-4]; as for PUBCOMP, not with 0x92
			c.control(packets.Pubrel, id, packets.CodeSuccess)
		}
		return false, nil
	}
	if !f.takes(typ) {
		o.mu.Unlock()
		return true, packets.ErrProtocolViolation
	}
	if typ == packets.Pubrec && reason < packets.ErrUnspecifiedError.Code {
		first := !f.rel
		f.rel = true
		o.flights[id] = f
		o.mu.Unlock()
		release := func() { c.control(packets.Pubrel, id, packets.CodeSuccess) }
		if r, ok := f.owner.(Releaser); !ok || !first {
			release()
		} else {
			r.Received(f.token, release)
		}
		return true, nil
	}
	delete(o.flights, id)
	waiting := o.roomFor()
	o.mu.Unlock()
	f.owner.Acked(f.token, reason)
	for owner := range waiting {
		owner.Room()
	}
	return true, nil
}

// roomFor returns the owners that were refused, once there is room; o.mu is held.
func (o *outbound) roomFor() map[Owner]bool {
	if len(o.refused) == 0 || len(o.flights) >= o.max {
		return nil
	}
	waiting := o.refused
	o.refused = nil
	return waiting
}

// drained is called when the kernel has taken bytes.
func (o *outbound) drained(flushed uint64) {
	o.mu.Lock()
	n := 0
	for n < len(o.leaving) && o.leaving[n].at <= flushed {
		n++
	}
	var gone []leaving
	if n > 0 {
		gone = o.leaving[:n:n]
		o.leaving = o.leaving[n:]
		if len(o.leaving) == 0 {
			o.leaving = nil
		}
	}
	waiting := o.roomFor()
	o.mu.Unlock()
	for _, l := range gone {
		l.owner.Acked(l.token, 0)
	}
	for owner := range waiting {
		owner.Room()
	}
}

// control writes PUBREL or PUBCOMP.
func (c *Conn) control(typ byte, id uint16, code packets.Code) {
	if b, ok := c.BeginUrgent(); ok {
		c.End(appendAck(b, typ, id, c.V5, code.Code, ""))
		c.Kick()
	}
}

// appendPublish encodes PUBLISH (MQTT 5, 3.3; 3.1.1, 3.3).
func appendPublish(b []byte, p *Publication, id uint16, v5 bool) []byte {
	first := packets.Publish<<4 | p.QoS<<1
	if p.Retain {
		first |= 1
	}
	if p.Dup {
		first |= 8
	}
	b = append(b, first)
	b = appendVarint(b, p.remaining(v5))
	b = appendStr(b, p.Topic)
	if p.QoS > 0 {
		b = binary.BigEndian.AppendUint16(b, id)
	}
	if v5 {
		b = appendVarint(b, len(p.Props))
		b = append(b, p.Props...)
	}
	return append(b, p.Payload...)
}

// appendAck encodes PUBACK, PUBREC, PUBREL or PUBCOMP. A reason other than success is told to MQTT 5.
func appendAck(b []byte, typ byte, id uint16, v5 bool, code byte, reason string) []byte {
	first := typ << 4
	if typ == packets.Pubrel {
		first |= 2
	}
	if !v5 || code == 0 {
		return binary.BigEndian.AppendUint16(append(b, first, 2), id)
	}
	if reason == "" {
		return append(binary.BigEndian.AppendUint16(append(b, first, 3), id), code)
	}
	props := 3 + len(reason)
	b = append(b, first)
	b = appendVarint(b, 3+varintLen(props)+props)
	b = append(binary.BigEndian.AppendUint16(b, id), code)
	b = appendVarint(b, props)
	return appendStr(append(b, packets.PropReasonString), reason)
}

func (c *Conn) appendDisconnect(b []byte, code packets.Code, reference string) []byte {
	if limit := c.Client.Properties.Props.MaximumPacketSize; limit > 0 && len(reference)+10 > int(limit) {
		reference = ""
	}
	props := 0
	if reference != "" {
		props = 3 + len(reference)
	}
	reason := c.fitting(code.Reason, 4+props) // [MQTT-3.14.2-3]
	if reason != "" {
		props += 3 + len(reason)
	}
	b = append(b, packets.Disconnect<<4)
	b = appendVarint(b, 1+varintLen(props)+props)
	b = append(b, code.Code)
	b = appendVarint(b, props)
	if reference != "" {
		b = appendStr(append(b, packets.PropServerReference), reference)
	}
	if reason != "" {
		b = appendStr(append(b, packets.PropReasonString), reason)
	}
	return b
}

// fitting returns a reason string as it may be sent, cut to 256 bytes, or none where it would make a packet that has so
// many bytes without it larger than the client takes.
func (c *Conn) fitting(reason string, bytes int) string {
	if len(reason) > 256 {
		reason = strings.ToValidUTF8(reason[:256], "")
	}
	const property = 3 + 2 // itself, and what the lengths in front of it may grow by
	if limit := c.Client.Properties.Props.MaximumPacketSize; limit > 0 && uint32(bytes+property+len(reason)) > limit {
		return ""
	}
	return reason
}

func appendStr(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

func appendVarint(b []byte, n int) []byte {
	for n > 127 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}

func varintLen(n int) int {
	l := 1
	for n > 127 {
		n >>= 7
		l++
	}
	return l
}
