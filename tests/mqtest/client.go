package mqtest

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Options are a client's CONNECT.
type Options struct {
	Version      byte   // 4 (3.1.1) or 5; 0: 4
	User         string // "": no user name
	Password     string // "": none
	ID           string // client id; may be empty
	Persistent   bool   // 3.1.1: Clean Session 0; 5: Session Expiry an hour, and no Clean Start
	Clean        bool   // 5: Clean Start although Persistent
	NoCleanStart bool   // 5: no Clean Start although not Persistent
	Hold         bool   // PUBLISHes are not acknowledged until Release
	NoAuto       bool   // no SUBSCRIBE's and PUBREC's answers are sent by the client itself
	Silent       bool   // nothing at all is sent by the client itself

	Patience time.Duration // how long TryDial waits; 0: Patience

	Properties packets.Properties // of CONNECT, MQTT 5
	Will       *packets.Packet    // topic, payload, QoS, RETAIN, properties
	TLS        *tls.Config
}

// Client is an MQTT client that does what it is told and remembers what it got. By itself it only answers: PUBLISH with
// PUBACK unless told to hold, PUBREC with PUBREL.
type Client struct {
	Options
	Connack packets.Packet

	t    testing.TB
	conn net.Conn
	next uint16 // packet id
	rid  int

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when what follows changes
	got     []packets.Packet
	hold    bool
	stalled bool
	err     error // why reading ended
	wmu     sync.Mutex
}

// Dial connects and waits for CONNACK, whatever it says. The client ends with its test.
func Dial(t testing.TB, addr string, o Options) *Client {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, Patience)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	if o.TLS != nil {
		conn = tls.Client(conn, o.TLS)
	}
	return Attach(t, conn, o)
}

// Open connects and sends nothing, not even CONNECT. What comes is decoded as of o.Version.
func Open(t testing.TB, addr string, o Options) *Client {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, Patience)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	return newClient(t, conn, o)
}

// TryDial is Dial for a connection that may not be let in: it returns nil where no CONNACK comes.
func TryDial(t testing.TB, addr string, o Options) *Client {
	t.Helper()
	if o.Patience == 0 {
		o.Patience = Patience
	}
	conn, err := net.DialTimeout("tcp", addr, o.Patience)
	if err != nil {
		return nil
	}
	c := newClient(t, conn, o)
	b, err := Encode(c.connect(), c.Version)
	if err != nil || c.TryWrite(b) != nil {
		c.Kill()
		return nil
	}
	ack, ok := c.TryTake(isConnack, o.Patience)
	if !ok {
		c.Kill() // or a server that was only slow has it as a client from then on
		return nil
	}
	c.Connack = ack
	return c
}

func isConnack(p *packets.Packet) bool { return p.FixedHeader.Type == packets.Connack }

// Attach is Dial over a connection that is there.
func Attach(t testing.TB, conn net.Conn, o Options) *Client {
	t.Helper()
	c := newClient(t, conn, o)
	c.Write(c.connect())
	c.Connack = c.Take("CONNACK", isConnack)
	return c
}

func newClient(t testing.TB, conn net.Conn, o Options) *Client {
	if o.Version == 0 {
		o.Version = 4
	}
	c := &Client{Options: o, t: t, conn: conn, changed: make(chan struct{}), hold: o.Hold}
	t.Cleanup(func() { _ = conn.Close() })
	go c.read()
	return c
}

func (c *Client) connect() packets.Packet {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connect},
		Connect: packets.ConnectParams{
			ProtocolName: []byte("MQTT"), ClientIdentifier: c.ID, Clean: !c.Persistent && !c.NoCleanStart || c.Clean, Keepalive: 60,
			Username: []byte(c.User), UsernameFlag: c.User != "", Password: []byte(c.Password), PasswordFlag: c.Password != "",
		},
		Properties: c.Options.Properties,
	}
	if c.Version == 5 && c.Persistent {
		pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = 3600, true
	}
	if w := c.Will; w != nil {
		pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload = true, w.TopicName, w.Payload
		pk.Connect.WillQos, pk.Connect.WillProperties = w.FixedHeader.Qos, w.Properties
		pk.Connect.WillRetain = w.FixedHeader.Retain
	}
	return pk
}

// Write encodes and sends a packet.
func (c *Client) Write(pk packets.Packet) {
	c.t.Helper()
	b, err := Encode(pk, c.Version)
	if err != nil {
		c.t.Fatalf("encode: %v", err)
	}
	c.WriteRaw(b)
}

// WriteRaw sends bytes as they are.
func (c *Client) WriteRaw(b []byte) {
	c.t.Helper()
	if err := c.TryWrite(b); err != nil {
		c.t.Fatalf("%s: write: %v; the connection ended with %v", c.User, err, c.ended())
	}
}

// TryWrite is WriteRaw for a connection that may end. It may be called from any goroutine.
func (c *Client) TryWrite(b []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	_ = c.conn.SetWriteDeadline(time.Now().Add(Patience))
	_, err := c.conn.Write(b)
	return err
}

// Err is why reading ended: io.EOF where the server closed the connection, nil while it is open.
func (c *Client) Err() error { return c.ended() }

func (c *Client) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// read collects what comes until the connection ends.
func (c *Client) read() {
	r := bufio.NewReaderSize(c.conn, 64<<10)
	for {
		pk, err := Decode(r, c.Version)
		c.mu.Lock()
		if err != nil {
			c.err = err
		} else {
			c.got = append(c.got, pk)
		}
		hold, stalled := c.hold, c.stalled
		close(c.changed)
		c.changed = make(chan struct{})
		c.mu.Unlock()
		if err != nil || stalled {
			return
		}
		switch {
		case c.Silent:
		case pk.FixedHeader.Type == packets.Publish && pk.FixedHeader.Qos == 1 && !hold:
			c.answer(packets.Puback, pk.PacketID)
		case pk.FixedHeader.Type == packets.Publish && pk.FixedHeader.Qos == 2 && !hold:
			c.answer(packets.Pubrec, pk.PacketID)
		case pk.FixedHeader.Type == packets.Pubrec && pk.ReasonCode < 0x80 && !c.NoAuto:
			c.answer(packets.Pubrel, pk.PacketID)
		case pk.FixedHeader.Type == packets.Pubrel:
			c.answer(packets.Pubcomp, pk.PacketID)
		}
	}
}

func (c *Client) answer(typ byte, id uint16) {
	first := typ << 4
	if typ == packets.Pubrel {
		first |= 2
	}
	_ = c.TryWrite([]byte{first, 2, byte(id >> 8), byte(id)})
}

// Puback acknowledges a PUBLISH that was held.
func (c *Client) Puback(pk packets.Packet) { c.answer(packets.Puback, pk.PacketID) }

// Hold has PUBLISHes from now on left without PUBACK, or not.
func (c *Client) Hold(on bool) {
	c.mu.Lock()
	c.hold = on
	c.mu.Unlock()
}

// Take waits for a packet that matches, and takes the first such out of what was got.
func (c *Client) Take(what string, match func(*packets.Packet) bool) packets.Packet {
	c.t.Helper()
	pk, ok := c.TryTake(match, Patience)
	if !ok {
		c.t.Fatalf("%s (%s): %s did not come; got %s; the connection ended: %v", c.User, c.ID, what, c.describe(), c.ended())
	}
	return pk
}

// TryTake is Take that gives up after a while, or when the connection has ended. It may be called from any goroutine.
func (c *Client) TryTake(match func(*packets.Packet) bool, patience time.Duration) (packets.Packet, bool) {
	end := time.After(patience)
	for seen := 0; ; {
		c.mu.Lock()
		for i := seen; i < len(c.got); i++ {
			if match(&c.got[i]) {
				pk := c.got[i]
				c.got = append(c.got[:i:i], c.got[i+1:]...)
				c.mu.Unlock()
				return pk, true
			}
		}
		seen = len(c.got)
		changed, err := c.changed, c.err
		c.mu.Unlock()
		if err != nil {
			return packets.Packet{}, false
		}
		select {
		case <-changed:
		case <-end:
			return packets.Packet{}, false
		}
	}
}

// Any waits for the next packet, whatever it is. ok is false when the connection has ended, and nothing is left.
func (c *Client) Any() (pk packets.Packet, ok bool) {
	c.t.Helper()
	pk, ok = c.TryTake(func(*packets.Packet) bool { return true }, Patience)
	if !ok && c.ended() == nil {
		c.t.Fatalf("%s: neither a packet came nor the end of the connection", c.ID)
	}
	return pk, ok
}

// Got is what has come and was not taken.
func (c *Client) Got() []packets.Packet {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]packets.Packet(nil), c.got...)
}

func (c *Client) describe() string {
	var b strings.Builder
	for i, pk := range c.Got() {
		if i == 20 {
			b.WriteString(" …")
			break
		}
		fmt.Fprintf(&b, "\n  %s id=%d code=%#x %s %.200s", packets.PacketNames[pk.FixedHeader.Type], pk.PacketID, pk.ReasonCode, pk.TopicName, pk.Payload)
	}
	return b.String()
}

// Closed waits for the server to end the connection and returns the reason of its DISCONNECT, 0 where there was none.
func (c *Client) Closed() (reason byte) {
	c.t.Helper()
	var err error
	Eventually(c.t, c.User+"'s connection to be closed", func() bool { err = c.ended(); return err != nil })
	for _, pk := range c.Got() {
		if pk.FixedHeader.Type == packets.Disconnect {
			reason = pk.ReasonCode
		}
	}
	return reason
}

// Stall stops reading: the server's writes fill the network's buffers and then wait.
func (c *Client) Stall() {
	c.mu.Lock()
	c.stalled = true
	c.mu.Unlock()
}

// Kill ends the connection without a word.
func (c *Client) Kill() { _ = c.conn.Close() }

// Disconnect sends DISCONNECT and waits for the end, so that the server knows of it.
func (c *Client) Disconnect() {
	c.t.Helper()
	c.WriteRaw([]byte{packets.Disconnect << 4, 0})
	c.Closed()
}

// Alive fails the test unless the server still answers on the connection.
func (c *Client) Alive() {
	c.t.Helper()
	c.WriteRaw([]byte{packets.Pingreq << 4, 0})
	c.Take("PINGRESP", func(p *packets.Packet) bool { return p.FixedHeader.Type == packets.Pingresp })
}

// Encode encodes a packet for a version of MQTT.
func Encode(pk packets.Packet, version byte) ([]byte, error) {
	pk.ProtocolVersion = version
	pk.Mods.AllowResponseInfo = true
	var b bytes.Buffer
	var err error
	switch pk.FixedHeader.Type {
	case packets.Connect:
		err = pk.ConnectEncode(&b)
	case packets.Publish:
		err = pk.PublishEncode(&b)
	case packets.Puback:
		err = pk.PubackEncode(&b)
	case packets.Pubrel:
		pk.FixedHeader.Qos = 1
		err = pk.PubrelEncode(&b)
	case packets.Subscribe:
		pk.FixedHeader.Qos = 1
		err = pk.SubscribeEncode(&b)
	case packets.Unsubscribe:
		pk.FixedHeader.Qos = 1
		err = pk.UnsubscribeEncode(&b)
	case packets.Disconnect:
		err = pk.DisconnectEncode(&b)
	default:
		err = fmt.Errorf("packet type %d", pk.FixedHeader.Type)
	}
	return b.Bytes(), err
}

// Decode reads a packet that the server sent.
func Decode(r *bufio.Reader, version byte) (pk packets.Packet, err error) {
	first, err := r.ReadByte()
	if err != nil {
		return pk, err
	}
	n := 0
	for shift := 0; ; shift += 7 {
		x, err := r.ReadByte()
		if err != nil {
			return pk, err
		}
		n |= int(x&0x7f) << shift
		if x < 0x80 {
			break
		}
	}
	pk.ProtocolVersion = version
	if err := pk.FixedHeader.Decode(first); err != nil {
		return pk, fmt.Errorf("first byte %#x: %w", first, err)
	}
	pk.FixedHeader.Remaining = n
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return pk, err
	}
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Puback:
		err = pk.PubackDecode(body)
	case packets.Pubrec:
		err = pk.PubrecDecode(body)
	case packets.Pubrel:
		err = pk.PubrelDecode(body)
	case packets.Pubcomp:
		err = pk.PubcompDecode(body)
	case packets.Suback:
		err = pk.SubackDecode(body)
	case packets.Unsuback:
		err = pk.UnsubackDecode(body)
	case packets.Disconnect:
		if n > 0 {
			err = pk.DisconnectDecode(body)
		}
	case packets.Pingresp:
	default:
		err = fmt.Errorf("packet type %d from the server", pk.FixedHeader.Type)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", packets.PacketNames[pk.FixedHeader.Type], err)
	}
	return pk, err
}
