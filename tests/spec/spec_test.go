// Package spec holds the server to MQTT 5.0 and 3.1.1 (OASIS standards of March 2019 and October 2014), clause by clause:
// each test is named after the clause that it looks at, and runs with both versions where both have it. The numbers
// are those of 5.0; "3.1.1:" begins the number of a clause that only the older one has.
//
// A clause is a script: packets are put together byte by byte, so that they may be wrong, and what comes back is compared
// as a whole and in order, written as show writes it. "~" in any string stands for the name of the test, so that
// tests may run at the same time on one server. That something is not sent is shown by what is sent after it.
package spec

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/tests/mqtest"
)

var server *mqtest.Server

func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "64") // they wait more than they work
	os.Exit(mqtest.Main(m, func(t mqtest.TB) { server = mqtest.Start(t, nil) }))
}

// TestInputs has go test run the tests again when the server has changed.
func TestInputs(t *testing.T) { mqtest.Inputs(t, "../..") }

// clause is a test. versions is "4" (3.1.1), "5" or "45".
type clause struct {
	name     string
	versions string
	run      func(x *ctx)
}

// check runs clauses.
func check(t *testing.T, list []clause) {
	for _, c := range list {
		for _, v := range c.versions {
			t.Run(c.name+" "+map[rune]string{'4': "3.1.1", '5': "5"}[v], func(t *testing.T) {
				t.Parallel()
				c.run(&ctx{T: t, v: byte(v - '0'), tag: fmt.Sprintf("s%d", tags.Add(1))})
			})
		}
	}
}

var tags atomic.Int64

// ctx is a test that runs.
type ctx struct {
	*testing.T
	v   byte
	tag string // what ~ stands for
}

// The parts of a packet beside int (one byte), string (with its length in front) and raw (as it is).
type (
	raw []byte
	u16 int
	u32 int
	vi  int   // a variable byte integer
	P   []any // properties with their length in front; 3.1.1 has none
)

// packet puts a packet together.
func (x *ctx) packet(first int, parts ...any) []byte {
	body := x.bytes(parts)
	return append(binary.AppendUvarint([]byte{byte(first)}, uint64(len(body))), body...)
}

func (x *ctx) bytes(parts []any) (b []byte) {
	for _, part := range parts {
		switch p := part.(type) {
		case int:
			b = append(b, byte(p))
		case u16:
			b = binary.BigEndian.AppendUint16(b, uint16(p))
		case u32:
			b = binary.BigEndian.AppendUint32(b, uint32(p))
		case vi:
			b = binary.AppendUvarint(b, uint64(p))
		case string:
			s := strings.ReplaceAll(p, "~", x.tag)
			b = append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
		case raw:
			b = append(b, p...)
		case P:
			if x.v == 5 {
				props := x.bytes(p)
				b = append(binary.AppendUvarint(b, uint64(len(props))), props...)
			}
		default:
			x.Fatalf("%T is no part of a packet", part)
		}
	}
	return b
}

// text is a payload.
func text(s string) raw { return raw(s) }

// peer is a client that does what it is told and nothing else.
type peer struct {
	*mqtest.Client
	x    *ctx
	last packets.Packet // what came last
}

// open opens a connection and sends nothing.
func (x *ctx) open() *peer {
	x.Helper()
	return &peer{x: x, Client: mqtest.Open(x.T, server.Addr("mqtt"), mqtest.Options{Version: x.v, Silent: true, ID: x.tag})}
}

// Connect flags.
const (
	clean    = 1 << 1
	willFlag = 1 << 2
	willQoS1 = 1 << 3
	willQoS2 = 2 << 3
	willKeep = 1 << 5
	password = 1 << 6
	username = 1 << 7
)

// connect opens a connection and sends CONNECT with Keep Alive 60; payload follows the client id ~.name.
func (x *ctx) connect(name string, flags int, props P, payload ...any) *peer {
	x.Helper()
	p := x.open()
	p.send(0x10, append([]any{"MQTT", int(x.v), flags, u16(60), props, "~." + name}, payload...)...)
	return p
}

// dial connects with a session that ends with the connection.
func (x *ctx) dial(name string) *peer {
	x.Helper()
	return x.connect(name, clean, P{}).want("CONNACK 0 00")
}

// session connects with a session that stays: present says whether there is to be one already.
func (x *ctx) session(name string, present int) *peer {
	x.Helper()
	return x.connect(name, 0, P{0x11, u32(3600)}).want(fmt.Sprintf("CONNACK %d 00", present))
}

// send sends a packet.
func (p *peer) send(first int, parts ...any) *peer {
	p.x.Helper()
	return p.bytes(p.x.packet(first, parts...))
}

// bytes sends bytes.
func (p *peer) bytes(b []byte) *peer {
	p.x.Helper()
	if err := p.TryWrite(b); err != nil && p.Err() == nil {
		p.x.Fatalf("write: %v", err)
	}
	return p
}

// want takes what comes and compares it with packets as show writes them, "closed" for the end of the connection. In
// {a|b} a is for 3.1.1 and b for 5.
func (p *peer) want(list ...string) *peer {
	p.x.Helper()
	for i, want := range list {
		want = p.x.choose(want)
		got := "closed"
		if pk, ok := p.Any(); ok {
			p.last = pk
			got = p.x.show(&pk)
		} else if err := p.Err(); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			got = "closed by the client: " + err.Error()
		}
		if got != want {
			p.x.Fatalf("packet %d of %d:\n got %s\nwant %s", i+1, len(list), got, want)
		}
	}
	return p
}

func (x *ctx) choose(s string) string {
	for {
		i := strings.IndexByte(s, '{')
		if i < 0 {
			return s
		}
		j := i + strings.IndexByte(s[i:], '}')
		old, now, _ := strings.Cut(s[i+1:j], "|")
		if x.v == 5 {
			old = now
		}
		s = s[:i] + old + s[j+1:]
	}
}

// refused wants the connection to be closed for a breach of MQTT: DISCONNECT with code, which 3.1.1 does not have.
func (p *peer) refused(code byte) {
	p.x.Helper()
	if p.x.v == 5 {
		p.want(fmt.Sprintf("DISCONNECT %02x", code))
	}
	p.want("closed")
}

// ping wants nothing to come before PINGRESP.
func (p *peer) ping() *peer {
	p.x.Helper()
	last := p.last
	p.send(0xc0).want("PINGRESP")
	p.last = last
	return p
}

// sub subscribes to a filter with options and wants it granted.
func (p *peer) sub(filter string, options int) *peer {
	p.x.Helper()
	return p.send(0x82, u16(1), P{}, filter, options).want(fmt.Sprintf("SUBACK 1: %02x", options&3))
}

const retain = 1 // of PUBLISH

// pub publishes at a QoS, with the flag retain or without, and waits until it is done.
func (p *peer) pub(topic, payload string, flags ...int) *peer {
	p.x.Helper()
	first := 0x32
	if len(flags) > 0 {
		first = 0x30
		for _, f := range flags {
			first |= f
		}
	}
	const id = u16(0x7fff)
	switch first >> 1 & 3 {
	case 0:
		p.send(first, topic, P{}, text(payload)).ping()
	case 1:
		p.send(first, topic, id, P{}, text(payload)).want("PUBACK 32767")
	case 2:
		p.send(first, topic, id, P{}, text(payload)).want("PUBREC 32767")
		p.send(0x62, id).want("PUBCOMP 32767")
	}
	return p
}

// ack acknowledges the PUBLISH that came last.
func (p *peer) ack() *peer {
	p.x.Helper()
	switch p.last.FixedHeader.Qos {
	case 1:
		p.send(0x40, u16(p.last.PacketID))
	case 2:
		id := p.last.PacketID
		p.send(0x50, u16(id)).want(fmt.Sprintf("PUBREL %d", id))
		p.send(0x70, u16(id))
	}
	return p
}

// none wants nothing of what from has published to be on its way: a further message of from's comes before anything else.
func (p *peer) none(from *peer) *peer {
	p.x.Helper()
	p.send(0x82, u16(0x7ffe), P{}, "~marker", 1).want("SUBACK 32766: 01")
	from.pub("~marker", "m")
	p.want("PUBLISH ~marker m q1").ack()
	return p.send(0xa2, u16(0x7ffe), P{}, "~marker").want("UNSUBACK 32766{|: 00}")
}

// bye ends the connection as a client does, and waits for the end.
func (p *peer) bye() {
	p.x.Helper()
	p.send(0xe0).want("closed")
}

// show writes a packet as the tests want it: what matters of it, and nothing that the server is free to choose.
func (x *ctx) show(pk *packets.Packet) string {
	var b strings.Builder
	b.WriteString(strings.ToUpper(packets.PacketNames[pk.FixedHeader.Type]))
	add := func(cond bool, format string, args ...any) {
		if cond {
			fmt.Fprintf(&b, format, args...)
		}
	}
	h, p := &pk.FixedHeader, &pk.Properties
	switch h.Type {
	case packets.Connack:
		present := map[bool]int{false: 0, true: 1}[pk.SessionPresent]
		add(true, " %d %02x", present, pk.ReasonCode)
		add(x.v == 4 && h.Remaining != 2, " of %d bytes", h.Remaining)
	case packets.Publish:
		add(true, " %s %s", pk.TopicName, pk.Payload)
		add(h.Qos > 0, " q%d", h.Qos)
		add(h.Retain, " retain")
		add(h.Dup, " dup")
		add(p.PayloadFormatFlag, " format=%d", p.PayloadFormat)
		add(p.ContentType != "", " type=%s", p.ContentType)
		add(p.ResponseTopic != "", " response=%s", p.ResponseTopic)
		add(len(p.CorrelationData) > 0, " correlation=%x", p.CorrelationData)
		add(p.TopicAliasFlag, " alias=%d", p.TopicAlias)
		add(len(p.SubscriptionIdentifier) > 0, " ids=%v", p.SubscriptionIdentifier)
		for _, u := range p.User {
			add(true, " %s=%s", u.Key, u.Val)
		}
	case packets.Suback, packets.Unsuback:
		add(true, " %d", pk.PacketID)
		add(len(pk.ReasonCodes) > 0, ": % x", pk.ReasonCodes)
	case packets.Puback, packets.Pubrec, packets.Pubrel, packets.Pubcomp:
		add(true, " %d", pk.PacketID)
		add(pk.ReasonCode != 0 && pk.ReasonCode != packets.CodeNoMatchingSubscribers.Code, " %02x", pk.ReasonCode)
		add(x.v == 4 && h.Remaining != 2, " of %d bytes", h.Remaining)
	case packets.Disconnect:
		add(x.v == 5, " %02x", pk.ReasonCode)
		add(p.SessionExpiryIntervalFlag, " expiry") // [MQTT-3.14.2-2]
	}
	return strings.ReplaceAll(b.String(), x.tag, "~")
}

// n is a number.
func (x *ctx) n(i int) string { return fmt.Sprint(i) }
