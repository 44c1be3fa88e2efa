package topics

import (
	"bytes"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/store"
)

// message is an application message. It never changes once it is kept, so all share it.
type message = store.Publication

// overhead is what a queued message costs beside its bytes, roughly.
const overhead = 96

func size(m *message) int { return len(m.Topic) + len(m.Payload) + len(m.Props) + overhead }

func expired(m *message, now int64) bool { return m.Expires != 0 && m.Expires <= now }

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
		m.Payload = bytes.Clone(m.Payload)
		o.kept = &m
	}
	return o.kept
}

// properties returns what is written to an MQTT 5 subscriber: m's, what is left of the expiry interval, and the
// subscription identifiers. scratch is overwritten.
func properties(m *message, scratch []byte, ids string, now int64) (props, newScratch []byte) {
	if ids == "" && m.Expires == 0 {
		return m.Props, scratch
	}
	b := append(scratch[:0], m.Props...)
	if m.Expires != 0 {
		b = link.AppendExpiry(b, uint32(max(1, (m.Expires-now+999)/1000))) // [MQTT-3.3.2-6]
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
func describe(m *message, p *packets.Properties, now int64) {
	if p.MessageExpiryInterval > 0 {
		m.Expires = now + int64(p.MessageExpiryInterval)*1000
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
	m.Props = b
}

// packet is the message as mochi's inline subscribers get it.
func (o *outgoing) packet() packets.Packet {
	m := o.keep()
	return packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: m.QoS, Retain: o.retain},
		TopicName:   m.Topic, Payload: m.Payload, Origin: m.From, Created: time.Now().Unix(),
	}
}

// fromPacket is the reverse, for what is published in mochi's inline client or its $SYS tree.
func fromPacket(pk *packets.Packet, now int64) outgoing {
	o := outgoing{retain: pk.FixedHeader.Retain, message: message{
		Topic: pk.TopicName, Payload: pk.Payload, From: pk.Origin, QoS: pk.FixedHeader.Qos,
	}}
	describe(&o.message, &pk.Properties, now)
	return o
}

func milliseconds() int64 { return time.Now().UnixMilli() }
