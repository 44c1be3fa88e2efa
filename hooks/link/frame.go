package link

import (
	"bytes"
	"encoding/binary"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/transport"
)

var _ transport.Handler = (*Conn)(nil)

// Frame handles what is ours of the packets that come in; the rest goes on to mochi.
func (c *Conn) Frame(first byte, body []byte) (consumed bool, err error) {
	if !c.established() {
		return false, nil
	}
	typ := first >> 4
	if typ == packets.Pubrel && c.Client.Properties.ProtocolVersion == 3 {
		first &^= 8 // DUP, which MQTT 3.1 has there
	}
	if typ != packets.Publish {
		if err := checkFrame(first, body, c.V5); err != nil {
			c.fail(err)
			return false, err
		}
	}
	if answered := typ == packets.Publish || typ == packets.Pubrec || typ == packets.Pubrel; answered && !c.WaitUncrowded() {
		return false, packets.CodeDisconnect
	}
	switch typ {
	case packets.Publish:
		consumed, err = c.publishFrame(first, body)
	case packets.Puback, packets.Pubrec, packets.Pubcomp:
		var reason byte
		if len(body) > 2 {
			reason = body[2]
		}
		consumed, err = c.acked(typ, binary.BigEndian.Uint16(body), reason)
		consumed = consumed || c.reg.exclusive
	case packets.Pubrel:
		consumed = c.released(binary.BigEndian.Uint16(body))
	case packets.Disconnect:
		if len(body) > 0 {
			c.farewell = body[0]
		}
	}
	if err != nil {
		c.fail(err)
	}
	return consumed, err
}

// fail ends the connection for a breach of MQTT, and says which [MQTT-4.13.1-1].
func (c *Conn) fail(err error) {
	if code, ok := err.(packets.Code); ok && code.Code >= packets.ErrUnspecifiedError.Code && c.V5 {
		if b, ok := c.BeginUrgent(); ok {
			c.End(c.appendDisconnect(b, code, ""))
			c.Kick()
		}
	}
}

// Drained is called when what came in one go has been handled.
func (c *Conn) Drained() {
	for _, d := range c.reg.drainers {
		d.Drained(c)
	}
	c.Kick()
}

// publishFrame decodes PUBLISH (MQTT 5, 3.3).
func (c *Conn) publishFrame(first byte, body []byte) (consumed bool, err error) {
	p := Inbound{QoS: first >> 1 & 3, Retain: first&1 != 0, Dup: first&8 != 0}
	topic, rest, ok := cutString(body)
	if !ok {
		return false, packets.ErrMalformedTopic
	}
	if p.QoS == 3 {
		return false, packets.ErrMalformedQos // [MQTT-3.3.1-4]
	}
	if p.QoS == 0 && p.Dup {
		return false, packets.ErrProtocolViolationDupNoQos // [MQTT-3.3.1-2]
	}
	if p.QoS > 0 {
		if len(rest) < 2 {
			return false, packets.ErrMalformedPacketID
		}
		if p.ID, rest = binary.BigEndian.Uint16(rest), rest[2:]; p.ID == 0 {
			return false, packets.ErrProtocolViolationNoPacketID // [MQTT-2.2.1-3]
		}
	}
	if c.V5 {
		if rest, err = p.properties(rest); err != nil {
			return false, err
		}
	}
	p.Payload = rest
	if p.Topic, err = c.topic(topic, p.Props); err != nil {
		return false, err
	}
	return c.receive(&p)
}

// properties decodes the properties in front of the payload.
func (p *Inbound) properties(b []byte) (rest []byte, err error) {
	if len(b) > 0 && b[0] == 0 {
		return b[1:], nil
	}
	check := scanner{b: b}
	check.properties(packets.Publish)
	if check.err != nil {
		return nil, check.err
	}
	size := len(b) - len(check.b)
	p.Props = new(packets.Properties)
	// mochi's strings point into the bytes they were decoded from, so it is given a copy.
	if _, err := p.Props.Decode(packets.Publish, bytes.NewBuffer(bytes.Clone(b[:size]))); err != nil {
		return nil, packets.ErrMalformedProperties
	}
	if len(p.Props.SubscriptionIdentifier) > 0 {
		return nil, packets.ErrProtocolViolationSurplusSubID // [MQTT-3.3.4-6]
	}
	return check.b, nil
}

// topic checks a topic name and resolves an alias.
func (c *Conn) topic(raw []byte, props *packets.Properties) (string, error) {
	var alias uint16
	if props != nil && props.TopicAliasFlag {
		alias = props.TopicAlias
		if alias == 0 || alias > c.reg.TopicAliasMaximum() {
			return "", packets.ErrTopicAliasInvalid // [MQTT-3.3.2-8] [MQTT-3.3.2-9]
		}
	}
	if len(raw) == 0 {
		if alias == 0 {
			return "", packets.ErrProtocolViolationNoTopic // [MQTT-3.3.2-8]
		}
		t, ok := c.aliases[alias]
		if !ok {
			return "", packets.ErrProtocolViolationNoTopic // MQTT 5, 3.3.4
		}
		return t, nil
	}
	t := c.lastTopic
	if string(raw) != t {
		t = string(raw)
		if err := checkTopic(t); err != nil {
			return "", err
		}
		c.lastTopic = t
	}
	if alias != 0 {
		if c.aliases == nil {
			c.aliases = map[uint16]string{}
		}
		c.aliases[alias] = t
	}
	return t, nil
}

// checkTopic refuses what is no topic name.
func checkTopic(t string) error {
	switch {
	case !utf8.ValidString(t) || strings.ContainsFunc(t, unicode.IsControl):
		return packets.ErrMalformedTopic // [MQTT-1.5.4-1] [MQTT-1.5.4-2], and what may be refused by MQTT 5, 1.5.4
	case strings.ContainsAny(t, "+#"):
		return packets.ErrProtocolViolationSurplusWildcard // [MQTT-3.3.2-2]
	}
	return nil
}

// receive gives a publish to whom it concerns.
func (c *Conn) receive(p *Inbound) (bool, error) {
	if p.QoS == 2 && c.Session.awaitsRelease(p.ID) {
		c.control(packets.Pubrec, p.ID, packets.CodeSuccess) // [MQTT-4.3.3-10]
		return true, nil
	}
	if c.reg.guard != nil {
		if no := c.reg.guard(c, p); no.Code.Code != 0 {
			return true, c.refuse(p, no)
		}
	}
	for _, r := range c.reg.receivers {
		handled, err := r.Receive(c, p)
		if handled || err != nil {
			return handled, err
		}
	}
	return false, nil
}

// refuse answers a publish that the guard does not let in. One at QoS 0 is dropped.
func (c *Conn) refuse(p *Inbound, no Refused) error {
	if no.Passing && p.QoS > 0 && !c.V5 {
		return no.Code
	}
	if err := c.Admit(p); err != nil {
		return err
	}
	c.Answer(p.Ticket, no.Code.Code, no.Code.Reason)
	return nil
}

// Admit takes a place in the order of answers for p and sets its Ticket. A receiver calls it first.
func (c *Conn) Admit(p *Inbound) error {
	var r *Response
	if p.Props != nil && (len(p.Props.CorrelationData) > 0 || p.Props.ResponseTopic != "") {
		r = &Response{Topic: strings.Clone(p.Props.ResponseTopic), Correlation: bytes.Clone(p.Props.CorrelationData)}
	}
	return c.in.admit(p, r)
}

// released handles PUBREL.
func (c *Conn) released(id uint16) (own bool) {
	if c.Session.release(id) {
		c.in.released()
		c.keep(id, true, func() { c.control(packets.Pubcomp, id, packets.CodeSuccess) })
		return true
	}
	if c.reg.exclusive {
		// [MQTT-4.3.3-11]. Not with 0x92: the PUBCOMP before may have been lost, and clients take that for a failure.
		c.control(packets.Pubcomp, id, packets.CodeSuccess)
		return true
	}
	return false
}

// Oversized refuses a PUBLISH that is larger than any command or message may be.
func (c *Conn) Oversized(first byte, head []byte) error {
	topic, rest, ok := cutString(head)
	qos := first >> 1 & 3
	if !ok || !c.established() {
		return packets.ErrPacketTooLarge
	}
	p := Inbound{QoS: qos}
	if qos > 0 {
		if len(rest) < 2 {
			return packets.ErrPacketTooLarge
		}
		p.ID, rest = binary.BigEndian.Uint16(rest), rest[2:]
	}
	var err error
	if c.V5 {
		_, err = p.properties(rest)
	}
	if err == nil {
		p.Topic, err = c.topic(topic, p.Props) // what is refused sets an alias, too
	}
	if err == nil {
		err = c.Admit(&p)
	}
	if err != nil {
		c.fail(err)
		return err
	}
	c.reg.oversized(c, &p)
	return nil
}

// cutString reads a string with its length in front.
func cutString(b []byte) (s, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if len(b) < 2+n {
		return nil, nil, false
	}
	return b[2 : 2+n], b[2+n:], true
}

// PacketRead is OnPacketRead for connections whose frames do not pass through Frame: it handles what mochi decoded and
// returns what mochi is to see, a PUBACK with id 0, which it looks up, does not find and ignores.
func (c *Conn) PacketRead(pk packets.Packet) (packets.Packet, error) {
	if c.framed || !c.established() {
		return pk, nil
	}
	var consumed bool
	var err error
	switch pk.FixedHeader.Type {
	case packets.Publish:
		consumed, err = c.publishPacket(&pk)
	case packets.Puback, packets.Pubrec, packets.Pubcomp:
		if c.owns(pk.PacketID) {
			consumed, err = c.acked(pk.FixedHeader.Type, pk.PacketID, pk.ReasonCode)
		}
	case packets.Pubrel:
		consumed = c.released(pk.PacketID)
	}
	if err != nil {
		c.fail(err)
		c.Client.Stop(err)
	}
	c.Drained()
	if consumed || err != nil {
		return packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, ProtocolVersion: pk.ProtocolVersion}, nil
	}
	return pk, nil
}

func (c *Conn) publishPacket(pk *packets.Packet) (bool, error) {
	if code := pk.PublishValidate(c.reg.TopicAliasMaximum()); code != packets.CodeSuccess {
		return false, nil // mochi says so
	}
	p := Inbound{
		Payload: pk.Payload, QoS: pk.FixedHeader.Qos, Retain: pk.FixedHeader.Retain, Dup: pk.FixedHeader.Dup,
		ID: pk.PacketID,
	}
	if c.V5 {
		p.Props = &pk.Properties
	}
	var err error
	if p.Topic, err = c.topic([]byte(pk.TopicName), p.Props); err != nil {
		return false, err
	}
	return c.receive(&p)
}

// owns reports whether a packet id is in flight from here.
func (c *Conn) owns(id uint16) bool {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	_, ok := c.out.flights[id]
	return ok
}
