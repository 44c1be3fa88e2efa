package acl

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// login is the hook before: it makes the client id the user.
type login struct{ mqtt.HookBase }

func (*login) ID() string { return "login" }
func (*login) Provides(event byte) bool {
	return event == mqtt.OnConnect || event == mqtt.OnConnectAuthenticate
}
func (*login) OnConnect(cl *mqtt.Client, _ packets.Packet) error {
	cl.Properties.Username = []byte(cl.ID)
	return nil
}
func (*login) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

func newServer(t *testing.T, hook *Hook) *mqtt.Server {
	t.Helper()
	server := mqtt.New(&mqtt.Options{Logger: slog.New(slog.DiscardHandler), InlineClient: true})
	for _, h := range []mqtt.Hook{&login{}, hook} {
		if err := server.AddHook(h, nil); err != nil {
			t.Fatal(err)
		}
	}
	return server
}

// sink gathers what a client receives.
type sink struct {
	mu sync.Mutex
	b  []byte
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b = append(s.b, p...)
	return len(p), nil
}

// take returns what has come since the last call.
func (s *sink) take() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.b
	s.b = nil
	return b
}

// connect sends a CONNECT and collects every byte that comes back; call it in a synctest bubble.
func connect(t *testing.T, server *mqtt.Server, version byte, id string) (client net.Conn, got *sink) {
	t.Helper()
	client, conn := net.Pipe()
	go server.EstablishConnection("test", conn)
	got = &sink{}
	go io.Copy(got, client)
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: version,
		Connect: packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, ClientIdentifier: id}}
	send(t, client, pk.ConnectEncode)
	return client, got
}

func send(t *testing.T, conn net.Conn, encode func(*bytes.Buffer) error) {
	t.Helper()
	var buf bytes.Buffer
	if err := encode(&buf); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(buf.Bytes()); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

func TestSubscribe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := newServer(t, New(Options{Rules: compile(t, "allow sub own/%u/#", "allow sub #")}))
		defer server.Close()
		client, got := connect(t, server, 5, "alice")
		defer synctest.Wait() // mochi's Close deadlocks with a client that leaves at the same moment
		defer client.Close()
		got.take()
		pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, ProtocolVersion: 5, PacketID: 3,
			Filters: packets.Subscriptions{{Filter: "own/alice/#"}, {Filter: "$SYS/#"}, {Filter: "$share/g/$SYS/#"}, {Filter: "$share/g/#"}}}
		send(t, client, pk.SubscribeEncode)
		if b := got.take(); !bytes.HasSuffix(b, []byte{0, 0x87, 0x87, 0}) {
			t.Errorf("SUBACK: got %x, want codes 00 87 87 00", b)
		}
	})
}

// The rules are asked again for each delivery that mochi makes, so a right that is gone takes effect on granted subscriptions.
func TestRulesReachGrantedSubscriptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hook := New(Options{})
		server := newServer(t, hook)
		defer server.Close()
		client, got := connect(t, server, 5, "alice")
		defer synctest.Wait() // mochi's Close deadlocks with a client that leaves at the same moment
		defer client.Close()
		pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, ProtocolVersion: 5, PacketID: 3,
			Filters: packets.Subscriptions{{Filter: "$share/g/#"}}}
		send(t, client, pk.SubscribeEncode)
		steps := []struct {
			topic string
			rules *Rules
			want  bool
		}{
			{"plain", nil, true},
			{"$SYS/x", nil, false}, // a wildcard matches no topic with $, shared or not
			{"plain", compile(t, "allow sub other"), false},
			{"other", compile(t, "allow sub other"), true},
		}
		for _, step := range steps {
			hook.SetRules(step.rules)
			got.take()
			if err := server.Publish(step.topic, []byte("x"), false, 0); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if b := got.take(); bytes.Contains(b, []byte(step.topic)) != step.want {
				t.Errorf("%s: got %x, want it delivered: %v", step.topic, b, step.want)
			}
		}
	})
}
