package link

import (
	"encoding/binary"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Sub is what a client asked for with a filter.
type Sub struct {
	QoS byte
	ID  int // MQTT 5 subscription identifier, 0: none
}

// The functions below append one property to encoded MQTT 5 properties.

// AppendUserProperty appends a user property.
func AppendUserProperty(b []byte, key, val string) []byte {
	return appendStr(appendStr(append(b, packets.PropUser), key), val)
}

// AppendSubscriptionID appends a subscription identifier, 1 to 268,435,455.
func AppendSubscriptionID(b []byte, id int) []byte {
	return appendVarint(append(b, packets.PropSubscriptionIdentifier), id)
}

// AppendContentType appends a content type.
func AppendContentType(b []byte, s string) []byte {
	return appendStr(append(b, packets.PropContentType), s)
}

// AppendPayloadFormat appends a payload format indicator.
func AppendPayloadFormat(b []byte, format byte) []byte {
	return append(b, packets.PropPayloadFormat, format)
}

// AppendResponseTopic appends a response topic.
func AppendResponseTopic(b []byte, topic string) []byte {
	return appendStr(append(b, packets.PropResponseTopic), topic)
}

// AppendExpiry appends a message expiry interval in seconds.
func AppendExpiry(b []byte, seconds uint32) []byte {
	return binary.BigEndian.AppendUint32(append(b, packets.PropMessageExpiryInterval), seconds)
}

// AppendCorrelation appends correlation data.
func AppendCorrelation(b, data []byte) []byte {
	b = binary.BigEndian.AppendUint16(append(b, packets.PropCorrelationData), uint16(len(data)))
	return append(b, data...)
}

// SubscriptionID reads what AppendSubscriptionID wrote, at the start of b.
func SubscriptionID(b []byte) (id int, ok bool) {
	if len(b) == 0 || b[0] != packets.PropSubscriptionIdentifier {
		return 0, false
	}
	s := scanner{b: b[1:]}
	id = s.varint()
	return id, s.err == nil
}
