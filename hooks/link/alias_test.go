package link

import (
	"fmt"
	"net"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"

	"github.com/mqim/mqim/transport"
)

// sink is a peer that takes everything.
type sink struct{ net.Conn }

func (sink) Write(p []byte) (int, error)      { return len(p), nil }
func (sink) Close() error                     { return nil }
func (sink) SetReadDeadline(time.Time) error  { return nil }
func (sink) SetWriteDeadline(time.Time) error { return nil }

// stalled is one that takes nothing.
type stalled struct {
	sink
	closed chan struct{}
}

func (s stalled) Write([]byte) (int, error) { <-s.closed; return 0, net.ErrClosed }
func (s stalled) Close() error              { close(s.closed); return nil }

// TestAliasOfWhatWasNotWritten: a PUBLISH that found no room has set no alias.
func TestAliasOfWhatWasNotWritten(t *testing.T) {
	c := outgoing(8)
	c.Conn = transport.Wrap(stalled{closed: make(chan struct{})}, transport.Options{WriteBuffer: 1000})
	defer c.Abort()
	if !c.Publish(&Publication{Topic: "first/topic", Payload: make([]byte, 900)}) {
		t.Fatal("the first has no room")
	}
	late := &Publication{Topic: "late/topic", Payload: make([]byte, 900)}
	if c.Publish(late) {
		t.Fatal("a full buffer takes a second")
	}
	if alias, known := c.out.aliases.of(late.Topic, true); alias == 0 || known {
		t.Errorf("got alias %d, known %v; want one that is yet to be set", alias, known)
	}
}

// TestAliasAndMaximumPacketSize: a packet that just fits is not made larger by an alias [MQTT-3.1.2-24].
func TestAliasAndMaximumPacketSize(t *testing.T) {
	p := &Publication{Topic: "some/topic", Payload: make([]byte, 50)}
	for more := range 9 {
		c := outgoing(8)
		c.Client.Properties.Props.MaximumPacketSize = uint32(p.Size(true) + more)
		buf, _ := c.BeginUrgent()
		from := c.End(buf)
		if !c.Publish(p) {
			t.Fatal("no room")
		}
		buf, _ = c.BeginUrgent()
		if n := c.End(buf) - from; n > uint64(p.Size(true)+more) {
			t.Errorf("%d bytes written, want at most %d", n, p.Size(true)+more)
		}
		c.Abort()
	}
}

// outgoing is a connection of MQTT 5 whose peer takes everything.
func outgoing(aliases uint16) *Conn {
	c := &Conn{
		Conn: transport.Wrap(sink{}, transport.Options{}), Client: &mqtt.Client{}, V5: true, Session: &Session{},
		reg: &Registry{exclusive: true},
	}
	c.Client.Properties.Props.TopicAliasMaximum = aliases
	c.out.init(c)
	return c
}

func BenchmarkPublish(b *testing.B) {
	for _, aliases := range []uint16{0, 16} {
		b.Run(fmt.Sprintf("aliases=%d", aliases), func(b *testing.B) {
			c := outgoing(aliases)
			defer c.Abort()
			p := &Publication{Topic: "devices/some-device/telemetry/temperature", Payload: make([]byte, 64), Force: true}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				c.Publish(p)
				if i%64 == 63 {
					c.Kick()
					c.WaitUncrowded()
				}
			}
		})
	}
}
