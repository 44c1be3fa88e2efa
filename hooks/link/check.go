package link

import (
	"bytes"
	"encoding/binary"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"
)

// What a client sends is checked here, byte by byte, before mochi decodes it: mochi panics over some packets, takes
// many that the specifications forbid, and refuses a few that they allow. Codes are those of MQTT 5, 4.13: 0x81 for
// what cannot be parsed, 0x82 for what can and must not be.

// willProperties stands for a will among the packets that have properties; no client sends a packet of type 0.
const willProperties = 0

// The types of a property, MQTT 5, 2.2.2.2. The last four are narrower than the type alone.
const (
	isUint16 = iota + 1
	isUint32
	isString
	isBinary
	isPair
	isBool        // 0 or 1
	isPositive16  // not 0
	isPositive32  // not 0
	isPositiveVar // not 0
)

// property says what a property is, and in which packets of a client it may be.
type property struct {
	kind byte
	in   uint16 // a bit for each packet type
}

func packetTypes(types ...byte) (set uint16) {
	for _, t := range types {
		set |= 1 << t
	}
	return set
}

var (
	inMessage = packetTypes(packets.Publish, willProperties)
	inConnect = packetTypes(packets.Connect)
	inAuth    = packetTypes(packets.Connect, packets.Auth)

	properties = [...]property{
		packets.PropPayloadFormat:          {isBool, inMessage},
		packets.PropMessageExpiryInterval:  {isUint32, inMessage},
		packets.PropContentType:            {isString, inMessage},
		packets.PropResponseTopic:          {isString, inMessage},
		packets.PropCorrelationData:        {isBinary, inMessage},
		packets.PropSubscriptionIdentifier: {isPositiveVar, packetTypes(packets.Publish, packets.Subscribe)},
		packets.PropSessionExpiryInterval:  {isUint32, packetTypes(packets.Connect, packets.Disconnect)},
		packets.PropAuthenticationMethod:   {isString, inAuth},
		packets.PropAuthenticationData:     {isBinary, inAuth},
		packets.PropRequestProblemInfo:     {isBool, inConnect},
		packets.PropWillDelayInterval:      {isUint32, packetTypes(willProperties)},
		packets.PropRequestResponseInfo:    {isBool, inConnect},
		packets.PropReasonString: {isString, packetTypes(packets.Puback, packets.Pubrec, packets.Pubrel, packets.Pubcomp,
			packets.Disconnect, packets.Auth)},
		packets.PropReceiveMaximum:    {isPositive16, inConnect},
		packets.PropTopicAliasMaximum: {isUint16, inConnect},
		packets.PropTopicAlias:        {isUint16, packetTypes(packets.Publish)},
		packets.PropUser:              {isPair, 0xffff},
		packets.PropMaximumPacketSize: {isPositive32, inConnect},
	}

	// The reason codes that a client may send, MQTT 5, 2.4.
	reasons = map[byte][]byte{
		packets.Puback:     {0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99},
		packets.Pubrec:     {0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99},
		packets.Pubrel:     {0x00, 0x92},
		packets.Pubcomp:    {0x00, 0x92},
		packets.Disconnect: {0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99},
	}
)

// scanner takes a packet apart. What is taken after an error is empty; the first error stays.
type scanner struct {
	b   []byte
	err error
}

func (s *scanner) fail(err error) {
	if s.err == nil {
		s.err = err
	}
	s.b = nil
}

func (s *scanner) take(n int) []byte {
	if len(s.b) < n {
		s.fail(packets.ErrMalformedPacket)
		return nil
	}
	b := s.b[:n]
	s.b = s.b[n:]
	return b
}

func (s *scanner) byte() byte {
	if b := s.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (s *scanner) uint16() uint16 {
	if b := s.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

// varint takes a variable byte integer. Like the lengths in fixed headers it may have more bytes than it needs, up to
// four.
func (s *scanner) varint() (n int) {
	for shift := 0; shift <= 21; shift += 7 {
		x := s.byte()
		n |= int(x&0x7f) << shift
		if x < 0x80 {
			return n
		}
	}
	s.fail(packets.ErrMalformedVariableByteInteger) // [MQTT-1.5.5-1]
	return 0
}

func (s *scanner) binary() []byte { return s.take(int(s.uint16())) }

func (s *scanner) string() []byte {
	b := s.binary()
	if !utf8.Valid(b) || bytes.IndexByte(b, 0) >= 0 {
		s.fail(packets.ErrMalformedInvalidUTF8) // [MQTT-1.5.4-1] [MQTT-1.5.4-2]
	}
	return b
}

// topic takes a topic name or filter. Like one in PUBLISH it has no control characters, which MQTT 5, 1.5.4, lets a server
// refuse.
func (s *scanner) topic() []byte {
	b := s.string()
	if bytes.ContainsFunc(b, unicode.IsControl) {
		s.fail(packets.ErrMalformedTopic)
	}
	return b
}

// end fails if anything is left.
func (s *scanner) end() {
	if len(s.b) > 0 {
		s.fail(packets.ErrMalformedPacket)
	}
}

// id takes a packet id.
func (s *scanner) id() uint16 {
	id := s.uint16()
	if id == 0 {
		s.fail(packets.ErrProtocolViolationNoPacketID) // [MQTT-2.2.1-3]
	}
	return id
}

// properties takes the properties of a packet of a type. has has a bit for each that is there.
func (s *scanner) properties(typ byte) (has uint64) {
	list := scanner{b: s.take(s.varint())}
	for len(list.b) > 0 && list.err == nil {
		k := list.byte()
		if int(k) >= len(properties) || properties[k].in&(1<<typ) == 0 {
			list.fail(packets.ErrMalformedProperties) // MQTT 5, 2.2.2.2
			break
		}
		if has&(1<<k) != 0 && k != packets.PropUser {
			list.fail(packets.ErrProtocolViolation)
		}
		has |= 1 << k
		if !list.value(properties[k].kind) {
			list.fail(packets.ErrProtocolViolation)
		}
	}
	if list.err != nil {
		s.fail(list.err)
	}
	return has
}

// value takes a property's value and reports whether it is one that the property may have.
func (s *scanner) value(kind byte) bool {
	switch kind {
	case isBool:
		return s.byte() <= 1
	case isUint16:
		s.uint16()
	case isPositive16:
		return s.uint16() > 0 || s.err != nil
	case isUint32:
		s.take(4)
	case isPositive32:
		b := s.take(4)
		return b == nil || binary.BigEndian.Uint32(b) > 0
	case isPositiveVar:
		return s.varint() > 0 || s.err != nil
	case isString:
		s.string()
	case isBinary:
		s.binary()
	case isPair:
		s.string()
		s.string()
	}
	return true
}

// checkFrame says what is wrong with a packet that follows CONNECT. PUBLISH has publishFrame.
func checkFrame(first byte, body []byte, v5 bool) error {
	typ, flags := first>>4, first&15
	s := &scanner{b: body}
	switch typ {
	case 0:
		return packets.ErrMalformedPacket
	case packets.Pubrel, packets.Subscribe, packets.Unsubscribe:
		if flags != 2 {
			return packets.ErrMalformedFlags // [MQTT-3.6.1-1] [MQTT-3.8.1-1] [MQTT-3.10.1-1]
		}
	default:
		if flags != 0 {
			return packets.ErrMalformedFlags // [MQTT-2.1.3-1]
		}
	}
	switch typ {
	case packets.Puback, packets.Pubrec, packets.Pubrel, packets.Pubcomp:
		s.id()
		s.reason(typ, v5)
	case packets.Subscribe:
		s.subscribe(v5)
	case packets.Unsubscribe:
		s.id()
		if v5 {
			s.properties(typ)
		}
		s.filters(nil)
	case packets.Pingreq:
	case packets.Disconnect:
		s.reason(typ, v5)
	case packets.Connect:
		return packets.ErrProtocolViolationSecondConnect // [MQTT-3.1.0-2]
	default: // what only servers send, and AUTH, which is not for a client that was let in without [MQTT-4.12.0-7]
		return packets.ErrProtocolViolation
	}
	s.end()
	return s.err
}

// reason takes a reason code and properties, both of which may be missing.
func (s *scanner) reason(typ byte, v5 bool) {
	if !v5 || len(s.b) == 0 {
		return
	}
	if code := s.byte(); bytes.IndexByte(reasons[typ], code) < 0 {
		s.fail(packets.ErrProtocolViolationInvalidReason) // [MQTT-3.4.2-1] and the like
	}
	if len(s.b) > 0 {
		s.properties(typ)
	}
}

// filters takes topic filters to the end of the packet, and has options take what follows each. What is wrong with a
// filter's wildcards is not said here but in SUBACK, see ValidFilter.
func (s *scanner) filters(options func(filter []byte)) {
	if len(s.b) == 0 {
		s.fail(packets.ErrProtocolViolationNoFilters) // [MQTT-3.8.3-2] [MQTT-3.10.3-2]
	}
	for len(s.b) > 0 {
		filter := s.topic()
		if s.err == nil && len(filter) == 0 {
			s.fail(packets.ErrMalformedTopic) // [MQTT-4.7.3-1]
		}
		if options != nil {
			options(filter)
		}
	}
}

// subscribe takes what follows the fixed header of SUBSCRIBE.
func (s *scanner) subscribe(v5 bool) {
	s.id()
	if v5 {
		s.properties(packets.Subscribe)
	}
	s.filters(func(filter []byte) {
		switch options := s.byte(); {
		case !v5 && options > 2, options&0xc0 != 0:
			s.fail(packets.ErrMalformedQos) // [MQTT-3.8.3-5]
		case options&3 == 3:
			s.fail(packets.ErrProtocolViolationQosOutOfRange)
		case options&0x30 == 0x30:
			s.fail(packets.ErrProtocolViolation) // Retain Handling
		case options&4 != 0 && bytes.HasPrefix(filter, []byte("$share/")):
			s.fail(packets.ErrProtocolViolationInvalidSharedNoLocal) // [MQTT-3.8.3-4]
		}
	})
}

// CheckConnect says what is wrong with the first packet of a connection, CodeSuccess if nothing is. version is the version
// of MQTT that its answer is to have, 0 where there can be none.
func CheckConnect(first byte, body []byte) (version byte, code packets.Code) {
	if first>>4 != packets.Connect {
		return 0, packets.ErrProtocolViolationRequireFirstConnect // [MQTT-3.1.0-1]
	}
	s := &scanner{b: body}
	name := string(s.binary())
	version = s.byte()
	switch {
	case s.err != nil:
		return 0, packets.ErrMalformedPacket
	case name == "MQIsdp" && version == 3:
	case name == "MQTT" && (version == 4 || version == 5):
	case name == "MQTT" || name == "MQIsdp":
		return 4, packets.ErrUnsupportedProtocolVersion // [MQTT-3.1.2-2]
	case version == 5:
		return 5, packets.ErrUnsupportedProtocolVersion // [MQTT-3.1.2-1]
	default:
		return 0, packets.ErrProtocolViolationProtocolName
	}
	if first&15 != 0 {
		s.fail(packets.ErrMalformedFlags) // [MQTT-2.1.3-1]
	}
	s.connect(version)
	if s.err != nil {
		return version, s.err.(packets.Code)
	}
	return version, packets.CodeSuccess
}

// connect takes what follows the version in CONNECT.
func (s *scanner) connect(version byte) {
	flags := s.byte()
	clean, will, name, password := flags&2 != 0, flags&4 != 0, flags&0x80 != 0, flags&0x40 != 0
	switch {
	case flags&1 != 0 && version > 3: // [MQTT-3.1.2-3]; MQTT 3.1 does not use it
		s.fail(packets.ErrMalformedFlags)
	case !will && flags&0x38 != 0, flags&0x18 == 0x18: // [MQTT-3.1.2-11] [MQTT-3.1.2-13] [MQTT-3.1.2-12]
		s.fail(packets.ErrMalformedFlags)
	case version < 5 && password && !name: // [MQTT-3.1.2-22] of 3.1.1
		s.fail(packets.ErrMalformedUsername)
	}
	s.uint16() // Keep Alive
	if version == 5 {
		const method, data = uint64(1) << packets.PropAuthenticationMethod, uint64(1) << packets.PropAuthenticationData
		if s.properties(packets.Connect)&(method|data) == data {
			s.fail(packets.ErrProtocolViolation) // MQTT 5, 3.1.2.11.10
		}
	}
	id := s.string()
	if will {
		if version == 5 {
			s.properties(willProperties)
		}
		s.topic() // hooks/topics and hooks/im say whether it is one to publish to
		s.binary()
	}
	if name {
		s.string()
	}
	if password {
		s.binary()
	}
	s.end()
	if s.err == nil && len(id) == 0 && (version == 3 || version == 4 && !clean) {
		s.fail(packets.ErrClientIdentifierNotValid) // [MQTT-3.1.3-8] of 3.1.1
	}
}

// TooMany takes the place of a filter that a hook before hooks/im refuses for its number. It is no valid filter.
const TooMany = "#/\x00"

// ValidFilter reports whether a topic filter is one by the rules for wildcards and shared subscriptions
// [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.3-1] [MQTT-4.8.2-1] [MQTT-4.8.2-2]. mochi lets "a#", "a+" and "$share//a" pass.
func ValidFilter(filter string) bool {
	if rest, shared := strings.CutPrefix(filter, "$share/"); shared || filter == "$share" {
		group, topic, ok := strings.Cut(rest, "/")
		if !shared || !ok || group == "" || strings.ContainsAny(group, "+#") {
			return false
		}
		filter = topic
	}
	if filter == "" {
		return false
	}
	for rest, more := filter, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		if level == "#" && more || len(level) > 1 && strings.ContainsAny(level, "+#") {
			return false
		}
	}
	return true
}

// Matches reports whether a valid filter without $share matches a topic name.
func Matches(filter, topic string) bool {
	if topic == "" || topic[0] == '$' && filter != "" && (filter[0] == '+' || filter[0] == '#') {
		return false // [MQTT-4.7.2-1]
	}
	for {
		f, frest, fmore := strings.Cut(filter, "/")
		t, trest, tmore := strings.Cut(topic, "/")
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
