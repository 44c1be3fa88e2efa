package topics

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/transport"
)

// deaf is a connection that says what it was given, and whose peer takes everything at once.
type deaf struct {
	net.Conn
	in     bytes.Reader
	closed chan struct{}
}

func (d *deaf) Read(p []byte) (int, error) {
	if d.in.Len() > 0 {
		return d.in.Read(p)
	}
	<-d.closed
	return 0, io.EOF
}
func (d *deaf) Write(p []byte) (int, error)      { return len(p), nil }
func (d *deaf) SetDeadline(time.Time) error      { return nil }
func (d *deaf) SetReadDeadline(time.Time) error  { return nil }
func (d *deaf) SetWriteDeadline(time.Time) error { return nil }
func (d *deaf) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (d *deaf) Close() error {
	select {
	case <-d.closed:
	default:
		close(d.closed)
	}
	return nil
}

// attachDeaf connects a client that subscribes to a filter, or to nothing, and returns its connection.
func (r *rig) attachDeaf(name, filter string, qos byte) *link.Conn {
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 5}
	pk.Connect = packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, ClientIdentifier: name}
	b := encode(pk)
	if filter != "" {
		b = append(b, encode(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, ProtocolVersion: 5, PacketID: 1,
			Filters: packets.Subscriptions{{Filter: filter, Qos: qos}},
		})...)
	}
	d := &deaf{closed: make(chan struct{})}
	d.in.Reset(b)
	t := transport.Wrap(d, r.opt)
	r.wg.Go(func() { _ = r.server.EstablishConnection("deaf", t) })
	r.until(name+" is there", func() bool {
		cl, ok := r.server.Clients.Get(name)
		r.hook.mu.RLock()
		s := r.hook.sessions[name]
		r.hook.mu.RUnlock()
		if !ok || s == nil || filter != "" && cl.State.Subscriptions.Len() == 0 {
			return false
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.conn != nil
	})
	return t.Owner.(*link.Conn)
}

// One publish to n subscribers, from the decoded frame to their write buffers and back with their PUBACKs.
func BenchmarkFanOut(b *testing.B) {
	for _, n := range []int{1, 1000} {
		for qos := range byte(2) {
			b.Run(fmt.Sprintf("subscribers=%d/qos=%d", n, qos), func(b *testing.B) {
				r := newRig(b, setup{pipes: true})
				subs := make([]*link.Conn, n)
				for i := range subs {
					subs[i] = r.attachDeaf(fmt.Sprintf("sub%d", i), "a/b/c", qos)
				}
				pub := r.attachDeaf("pub", "", 0)
				p := link.Inbound{Topic: "a/b/c", Payload: make([]byte, 256), QoS: qos, ID: 1}
				puback := []byte{0, 0}
				b.ReportAllocs()
				b.SetBytes(int64(n * 256))
				i := 0
				for b.Loop() {
					if _, err := r.hook.Receive(pub, &p); err != nil {
						b.Fatal(err)
					}
					pub.Drained()
					if qos == 0 {
						continue
					}
					id := uint16(i%65535) + 1
					puback[0], puback[1] = byte(id>>8), byte(id)
					for _, c := range subs {
						_, _ = c.Frame(packets.Puback<<4, puback)
					}
					i++
				}
				b.StopTimer()
				if d := r.counts.drops(dropNoRoom) + r.counts.drops(dropMessages); d > 0 {
					b.Logf("dropped: %s", r.counts.all())
				}
			})
		}
	}
}

// Pairs of clients over TCP at QoS 1, 100 unacknowledged each way, through this hook and through mochi alone.
func BenchmarkPairs(b *testing.B) {
	b.Run("hook", func(b *testing.B) {
		r := newRig(b, setup{})
		benchmarkPairs(b, r.listener.Address())
	})
	b.Run("mochi", func(b *testing.B) {
		s := mqtt.New(&mqtt.Options{Logger: slog.New(slog.DiscardHandler)})
		_ = s.AddHook(&rules{denied: map[string]bool{}}, nil)
		l := listeners.NewTCP(listeners.Config{ID: "t", Address: "127.0.0.1:0"})
		if err := s.AddListener(l); err != nil {
			b.Fatal(err)
		}
		if err := s.Serve(); err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		benchmarkPairs(b, l.Address())
	})
}

func benchmarkPairs(b *testing.B, address string) {
	const pairs, window = 20, 100
	payload := strings.Repeat("x", 256)
	var left atomic.Int64
	done := make(chan error, 2*pairs)
	connect := func(name string) *peer {
		c, err := net.Dial("tcp", address)
		if err != nil {
			b.Fatal(err)
		}
		p := &peer{TB: b, name: name, v: 4, conn: c, r: bufio.NewReaderSize(c, 16<<10)}
		pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}}
		pk.Connect = packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, ClientIdentifier: name}
		p.send(pk)
		p.expect(packets.Connack)
		return p
	}
	each := max(1, b.N/pairs)
	left.Store(int64(pairs * each))
	b.SetBytes(256)
	var all []*peer
	for i := range pairs {
		topic := fmt.Sprintf("t/%d", i)
		sub, pub := connect(fmt.Sprintf("sub%d", i)), connect(fmt.Sprintf("pub%d", i))
		sub.subscribe(topic, 1)
		all = append(all, sub, pub)
	}
	b.ResetTimer()
	for i := range pairs {
		sub, pub := all[2*i], all[2*i+1]
		pk := publication(fmt.Sprintf("t/%d", i), payload, 1)
		pk.ProtocolVersion, pk.PacketID = 4, 1
		frame := encode(pk)
		at := len(frame) - len(payload) - 2
		go func() { done <- sub.acknowledge(each) }()
		go func() { done <- pub.pump(frame, at, each, window) }()
	}
	for range 2 * pairs {
		select {
		case err := <-done:
			if err != nil {
				b.Fatal(err)
			}
		case <-time.After(time.Minute):
			b.Fatal("messages are missing")
		}
	}
	b.StopTimer()
	for _, p := range all {
		_ = p.conn.Close()
	}
}

// acknowledge reads n messages, answering what came in one go at once.
func (p *peer) acknowledge(n int) error {
	var out []byte
	for n > 0 {
		first, err := p.r.ReadByte()
		if err != nil {
			return err
		}
		size, _, err := packets.DecodeLength(p.r)
		if err != nil {
			return err
		}
		body, err := p.r.Peek(size)
		if err != nil {
			return err
		}
		if first>>4 == packets.Publish {
			topic := int(body[0])<<8 | int(body[1])
			out = append(out, packets.Puback<<4, 2, body[2+topic], body[3+topic])
			n--
		}
		_, _ = p.r.Discard(size)
		if p.r.Buffered() == 0 || n == 0 {
			if _, err := p.conn.Write(out); err != nil {
				return err
			}
			out = out[:0]
		}
	}
	return nil
}

// pump publishes a frame n times, with its packet id at an offset, window of them unacknowledged.
func (p *peer) pump(frame []byte, at, n, window int) error {
	sent, acked := 0, 0
	var out []byte
	for acked < n {
		out = out[:0]
		for sent < n && sent-acked < window {
			id := sent%60000 + 1
			frame[at], frame[at+1] = byte(id>>8), byte(id)
			out = append(out, frame...)
			sent++
		}
		if len(out) > 0 {
			if _, err := p.conn.Write(out); err != nil {
				return err
			}
		}
		var ack [4]byte
		for {
			if _, err := io.ReadFull(p.r, ack[:]); err != nil {
				return err
			}
			acked++
			if p.r.Buffered() < 4 {
				break
			}
		}
	}
	return nil
}
