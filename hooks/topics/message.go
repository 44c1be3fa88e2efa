package topics

import (
	"bytes"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/hooks/link"
)

// message is an application message that is kept: in queues, or retained. It never changes, so all share it.
type message struct {
	topic   string
	payload []byte
	props   []byte // encoded MQTT 5 properties that the publisher gave; expiry and subscription identifiers come on top
	expires int64  // Unix milliseconds; 0: never
	from    string // the publisher's client id
	qos     byte
}

// overhead is what a queued message costs beside its bytes, roughly.
const overhead = 96

func (m *message) size() int { return len(m.topic) + len(m.payload) + len(m.props) + overhead }

func (m *message) expired(now int64) bool { return m.expires != 0 && m.expires <= now }

// outgoing is a message while it is being handed to its subscribers. Its payload is the publisher's buffer: who keeps
// the message calls keep.
type outgoing struct {
	message
	retain bool // as published
	kept   *message
	extra  []byte // scratch: properties of one subscriber's copy
}

// keep returns the message in a form that outlives the publisher's buffer.
func (o *outgoing) keep() *message {
	if o.kept == nil {
		m := o.message
		m.payload = bytes.Clone(m.payload)
		o.kept = &m
	}
	return o.kept
}

// properties returns what is written to an MQTT 5 subscriber: m's, what is left of the expiry interval, and the
// subscription identifiers. scratch is overwritten.
func (m *message) properties(scratch []byte, ids string, now int64) (props, newScratch []byte) {
	if ids == "" && m.expires == 0 {
		return m.props, scratch
	}
	b := append(scratch[:0], m.props...)
	if m.expires != 0 {
		b = link.AppendExpiry(b, uint32(max(1, (m.expires-now+999)/1000))) // [MQTT-3.3.2-6]
	}
	b = append(b, ids...)
	return b, b
}

// trim lets go of a scratch buffer that was needed once.
func trim(b []byte) []byte {
	if cap(b) > 4<<10 {
		return nil
	}
	return b
}

// describe fills in what the publisher's properties say.
func (m *message) describe(p *packets.Properties, now int64) {
	if p.MessageExpiryInterval > 0 {
		m.expires = now + int64(p.MessageExpiryInterval)*1000
	}
	var b []byte
	if p.PayloadFormatFlag {
		b = link.AppendPayloadFormat(b, p.PayloadFormat) // [MQTT-3.3.2-4]
	}
	if p.ContentType != "" {
		b = link.AppendContentType(b, p.ContentType) // [MQTT-3.3.2-20]
	}
	if p.ResponseTopic != "" {
		b = link.AppendResponseTopic(b, p.ResponseTopic) // [MQTT-3.3.2-15]
	}
	if len(p.CorrelationData) > 0 {
		b = link.AppendCorrelation(b, p.CorrelationData) // [MQTT-3.3.2-16]
	}
	for _, u := range p.User {
		b = link.AppendUserProperty(b, u.Key, u.Val) // [MQTT-3.3.2-17] [MQTT-3.3.2-18]
	}
	m.props = b
}

// packet is the message as mochi's inline subscribers get it.
func (o *outgoing) packet() packets.Packet {
	m := o.keep()
	return packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: m.qos, Retain: o.retain},
		TopicName:   m.topic, Payload: m.payload, Origin: m.from, Created: time.Now().Unix(),
	}
}

// fromPacket is the reverse, for what is published in mochi's inline client or its $SYS tree.
func fromPacket(pk *packets.Packet, now int64) outgoing {
	o := outgoing{retain: pk.FixedHeader.Retain, message: message{
		topic: pk.TopicName, payload: pk.Payload, from: pk.Origin, qos: pk.FixedHeader.Qos,
	}}
	o.describe(&pk.Properties, now)
	return o
}

// appendIDs encodes a subscription's identifiers, of which mochi keeps 0 for none.
func appendIDs(sub *packets.Subscription) string {
	var b []byte
	for _, id := range sub.Identifiers {
		if id > 0 {
			b = link.AppendSubscriptionID(b, id) // [MQTT-3.3.4-3] [MQTT-3.3.4-4]
		}
	}
	if sub.Identifiers == nil && sub.Identifier > 0 {
		b = link.AppendSubscriptionID(b, sub.Identifier)
	}
	return string(b)
}

func milliseconds() int64 { return time.Now().UnixMilli() }

// covers reports whether a filter without $share matches a topic name.
func covers(filter, topic string) bool {
	if topic == "" || topic[0] == '$' && filter != "" && (filter[0] == '+' || filter[0] == '#') {
		return false // [MQTT-4.7.2-1]
	}
	for {
		f, frest, fmore := cut(filter)
		t, trest, tmore := cut(topic)
		switch {
		case f == "#":
			return true
		case f != "+" && f != t:
			return false
		case !fmore || !tmore:
			return fmore == tmore || fmore && frest == "#" // a/# matches a [MQTT-4.7.1-2]
		}
		filter, topic = frest, trest
	}
}
