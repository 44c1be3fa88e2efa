package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Protocol levels as CONNECT carries them.
const (
	v311 = 4
	v5   = 5
)

// Packet types, the high four bits of a packet's first byte.
const (
	typeConnect     = 1
	typeConnack     = 2
	typePublish     = 3
	typePuback      = 4
	typePubrec      = 5
	typePubrel      = 6
	typePubcomp     = 7
	typeSubscribe   = 8
	typeSuback      = 9
	typePingreq     = 12
	typePingresp    = 13
	typeDisconnect  = 14
	propExpiry      = 0x11 // Session Expiry Interval
	propKeepAlive   = 0x13 // Server Keep Alive
	propReceiveMax  = 0x21 // Receive Maximum
	sessionLifetime = 3600 // seconds a session outlives its connection where Clean is false
)

var errMalformed = errors.New("malformed packet")

// connectOptions is what a CONNECT says. Keep-alive is in seconds, 0 is none.
type connectOptions struct {
	version   byte
	clientID  string
	user      string
	password  string
	clean     bool
	keepAlive uint16
}

func appendConnect(b []byte, c connectOptions) []byte {
	flags := byte(0)
	n := 2 + 4 + 1 + 1 + 2 + 2 + len(c.clientID)
	if c.clean {
		flags |= 0x02
	}
	if c.user != "" {
		flags |= 0x80
		n += 2 + len(c.user)
	}
	if c.password != "" {
		flags |= 0x40
		n += 2 + len(c.password)
	}
	props := 0
	if c.version == v5 {
		if !c.clean {
			props = 5
		}
		n += 1 + props
	}
	b = append(b, typeConnect<<4)
	b = appendLength(b, n)
	b = appendString(b, "MQTT")
	b = append(b, c.version, flags)
	b = binary.BigEndian.AppendUint16(b, c.keepAlive)
	if c.version == v5 {
		b = append(b, byte(props))
		if props > 0 {
			b = append(b, propExpiry)
			b = binary.BigEndian.AppendUint32(b, sessionLifetime)
		}
	}
	b = appendString(b, c.clientID)
	if c.user != "" {
		b = appendString(b, c.user)
	}
	if c.password != "" {
		b = appendString(b, c.password)
	}
	return b
}

func appendSubscribe(b []byte, version byte, id uint16, qos byte, filters ...string) []byte {
	n := 2
	for _, f := range filters {
		n += 2 + len(f) + 1
	}
	if version == v5 {
		n++
	}
	b = append(b, typeSubscribe<<4|0x02)
	b = appendLength(b, n)
	b = binary.BigEndian.AppendUint16(b, id)
	if version == v5 {
		b = append(b, 0)
	}
	for _, f := range filters {
		b = append(appendString(b, f), qos)
	}
	return b
}

// appendPublish appends a PUBLISH up to its payload, of which size bytes must follow, and returns where the packet id
// lies from the start of the packet (0 at QoS 0, which has none).
func appendPublish(b []byte, version, qos byte, topic string, id uint16, size int) (_ []byte, idAt int) {
	start := len(b)
	n := 2 + len(topic) + size
	if qos > 0 {
		n += 2
	}
	if version == v5 {
		n++
	}
	b = append(b, typePublish<<4|qos<<1)
	b = appendLength(b, n)
	b = appendString(b, topic)
	if qos > 0 {
		idAt = len(b) - start
		b = binary.BigEndian.AppendUint16(b, id)
	}
	if version == v5 {
		b = append(b, 0)
	}
	return b, idAt
}

// appendAck appends a PUBACK, PUBREC, PUBREL or PUBCOMP that reports success: the same four bytes in both versions.
func appendAck(b []byte, kind byte, id uint16) []byte {
	first := kind << 4
	if kind == typePubrel {
		first |= 0x02 // [MQTT-3.6.1-1]
	}
	return append(b, first, 2, byte(id>>8), byte(id))
}

func appendPing(b []byte) []byte       { return append(b, typePingreq<<4, 0) }
func appendDisconnect(b []byte) []byte { return append(b, typeDisconnect<<4, 0) }

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

func appendLength(b []byte, n int) []byte {
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}

// readLength decodes a variable byte integer and returns how many bytes it took: 0 if b ends before it does, -1 if it
// is longer than four bytes.
func readLength(b []byte) (value, size int) {
	for i := 0; i < 4; i++ {
		if i >= len(b) {
			return 0, 0
		}
		value |= int(b[i]&0x7f) << (7 * i)
		if b[i] < 0x80 {
			return value, i + 1
		}
	}
	return 0, -1
}

// inPublish is a received PUBLISH; topic and payload lie in the packet's body.
type inPublish struct {
	topic   []byte
	payload []byte
	id      uint16
	qos     byte
}

func parsePublish(version byte, p packet) (m inPublish, err error) {
	b := p.body
	m.qos = p.flags >> 1 & 3
	if len(b) < 2 || m.qos > 2 {
		return m, errMalformed
	}
	n := int(binary.BigEndian.Uint16(b))
	b = b[2:]
	if len(b) < n {
		return m, errMalformed
	}
	m.topic, b = b[:n], b[n:]
	if m.qos > 0 {
		if len(b) < 2 {
			return m, errMalformed
		}
		m.id = binary.BigEndian.Uint16(b)
		b = b[2:]
	}
	if version == v5 {
		props, size := readLength(b)
		if size <= 0 || len(b)-size < props {
			return m, errMalformed
		}
		b = b[size+props:]
	}
	m.payload = b
	return m, nil
}

// parseAck reads a PUBACK, PUBREC or PUBCOMP: the packet id, and the reason (0, success, where it is left out).
func parseAck(p packet) (id uint16, reason byte, err error) {
	if len(p.body) < 2 {
		return 0, 0, errMalformed
	}
	if len(p.body) > 2 {
		reason = p.body[2]
	}
	return binary.BigEndian.Uint16(p.body), reason, nil
}

// connack is what a server's CONNACK tells a client to keep to. A receiveMax of 65535 is no limit; keepAlive is -1
// where the server leaves the client its own.
type connack struct {
	session    bool
	reason     byte
	receiveMax int
	keepAlive  int
}

func parseConnack(version byte, p packet) (c connack, err error) {
	c = connack{receiveMax: 65535, keepAlive: -1}
	if p.kind != typeConnack || len(p.body) < 2 {
		return c, fmt.Errorf("expected CONNACK, got packet type %d: %w", p.kind, errMalformed)
	}
	c.session, c.reason = p.body[0]&1 != 0, p.body[1]
	if version != v5 || len(p.body) == 2 {
		return c, nil
	}
	n, size := readLength(p.body[2:])
	if size <= 0 || len(p.body)-2-size < n {
		return c, errMalformed
	}
	for b := p.body[2+size : 2+size+n]; len(b) > 0; {
		id := b[0]
		n := propertySize(id, b[1:])
		if n < 0 || n > len(b)-1 {
			return c, errMalformed
		}
		value := b[1 : 1+n]
		switch id {
		case propReceiveMax:
			c.receiveMax = int(binary.BigEndian.Uint16(value))
		case propKeepAlive:
			c.keepAlive = int(binary.BigEndian.Uint16(value))
		}
		b = b[1+n:]
	}
	return c, nil
}

// propertySize is the length of the value of property id at the head of b, -1 if unknown or cut short.
func propertySize(id byte, b []byte) int {
	text := func(b []byte) int {
		if len(b) < 2 {
			return -1
		}
		return 2 + int(binary.BigEndian.Uint16(b))
	}
	switch id {
	case 0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2a:
		return 1
	case 0x13, 0x21, 0x22, 0x23:
		return 2
	case 0x02, 0x11, 0x18, 0x27:
		return 4
	case 0x0b:
		if _, size := readLength(b); size > 0 {
			return size
		}
		return -1
	case 0x03, 0x08, 0x09, 0x12, 0x15, 0x16, 0x1a, 0x1c, 0x1f:
		return text(b)
	case 0x26: // a user property: two strings
		n := text(b)
		if n < 0 || n > len(b) {
			return -1
		}
		m := text(b[n:])
		if m < 0 {
			return -1
		}
		return n + m
	}
	return -1
}

// subackReason is the worst of the reason codes of a SUBACK.
func subackReason(version byte, p packet) (id uint16, reason byte, err error) {
	if len(p.body) < 2 {
		return 0, 0, errMalformed
	}
	reasons := p.body[2:]
	if version == v5 {
		n, size := readLength(reasons)
		if size <= 0 || len(reasons)-size < n {
			return 0, 0, errMalformed
		}
		reasons = reasons[size+n:]
	}
	if len(reasons) == 0 {
		return 0, 0, errMalformed
	}
	return binary.BigEndian.Uint16(p.body), slices.Max(reasons), nil
}
