package auth_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/hooks/auth"
)

// broker is a mochi server with the hook under test, a record of what it logged and of who got in.
type broker struct {
	*mqtt.Server
	log  *syncBuffer
	seen chan string // user of each established session
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// witness is a later hook: it sees the user, and refuses client ids that begin with "bad".
type witness struct {
	mqtt.HookBase
	seen chan string
}

func (w *witness) ID() string { return "witness" }
func (w *witness) Provides(event byte) bool {
	return event == mqtt.OnSessionEstablished || event == mqtt.OnConnect
}
func (w *witness) OnConnect(cl *mqtt.Client, _ packets.Packet) error {
	if strings.HasPrefix(cl.ID, "bad") {
		return packets.ErrClientIdentifierNotValid
	}
	return nil
}
func (w *witness) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	w.seen <- string(cl.Properties.Username)
}

func newBroker(t *testing.T, opts auth.Options) (*broker, *auth.Hook) {
	t.Helper()
	log := &syncBuffer{}
	b := &broker{log: log, seen: make(chan string, 100), Server: mqtt.New(&mqtt.Options{
		Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})}
	hook, err := auth.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []mqtt.Hook{hook, &witness{seen: b.seen}} {
		if err := b.AddHook(h, nil); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { b.Close() })
	return b, hook
}

type connectOptions struct {
	version            byte
	user, pass, client string
	method             string // MQTT 5 authentication method
}

// packet is one that the server sent: its type and what follows the length.
type packet struct {
	kind byte
	body []byte
}

// connection is the client's side.
type connection struct {
	net.Conn
	r    *bufio.Reader
	done chan error // what EstablishConnection returned
}

func (b *broker) connect(t *testing.T, o connectOptions) *connection {
	t.Helper()
	client, server := net.Pipe()
	c := &connection{Conn: client, r: bufio.NewReader(client), done: make(chan error, 1)}
	go func() { c.done <- b.EstablishConnection("test", server) }()
	pk := packets.Packet{
		FixedHeader:     packets.FixedHeader{Type: packets.Connect},
		ProtocolVersion: o.version,
		Connect: packets.ConnectParams{
			ProtocolName: []byte("MQTT"), Clean: true, ClientIdentifier: o.client,
			Username: []byte(o.user), UsernameFlag: o.user != "", Password: []byte(o.pass), PasswordFlag: o.pass != "",
		},
	}
	pk.Properties.AuthenticationMethod = o.method
	var buf bytes.Buffer
	if err := pk.ConnectEncode(&buf); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write(buf.Bytes()); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *connection) read(t *testing.T) packet {
	t.Helper()
	first, err := c.r.ReadByte()
	if err != nil {
		t.Fatalf("read packet: %v", err)
	}
	n, shift := 0, 0
	for {
		d, err := c.r.ReadByte()
		if err != nil {
			t.Fatalf("read packet: %v", err)
		}
		n |= int(d&127) << shift
		if shift += 7; d < 128 {
			break
		}
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c.r, body); err != nil {
		t.Fatalf("read packet: %v", err)
	}
	return packet{first >> 4, body}
}

func (c *connection) closed(t *testing.T) {
	t.Helper()
	if rest, err := io.ReadAll(c.r); err != nil || len(rest) > 0 {
		t.Errorf("got %x, %v, want the connection closed without another word", rest, err)
	}
	<-c.done
}

func TestTrust(t *testing.T) {
	long := strings.Repeat("x", 65)
	tests := []struct {
		name string
		o    connectOptions
		code byte
		user string // "*": any
	}{
		{"user name", connectOptions{version: 4, user: "alice", client: "c"}, 0, "alice"},
		{"user name, v5", connectOptions{version: 5, user: "alice", client: "c"}, 0, "alice"},
		{"password is not looked at", connectOptions{version: 4, user: "alice", pass: "x", client: "c"}, 0, "alice"},
		{"client id", connectOptions{version: 4, client: "dev-1"}, 0, "dev-1"},
		{"nothing", connectOptions{version: 4}, 0, "*"},
		{"nothing, v5", connectOptions{version: 5}, 0, "*"},
		{"bad user name", connectOptions{version: 4, user: "a/b", client: "c"}, 0x04, ""},
		{"bad user name, v5", connectOptions{version: 5, user: "a/b", client: "c"}, 0x86, ""},
		{"bad user name is not replaced by the client id", connectOptions{version: 5, user: "+", client: "c"}, 0x86, ""},
		{"long user name", connectOptions{version: 4, user: long, client: "c"}, 0x04, ""},
		{"client id that is no name", connectOptions{version: 4, client: "a b/c"}, 0, "a-b-c"},
		{"client id that is no name, v5", connectOptions{version: 5, client: "a b/c"}, 0, "a-b-c"},
		{"client id that begins as no name may", connectOptions{version: 4, client: "_ü@x@"}, 0, "x@"},
		{"long client id", connectOptions{version: 4, client: long + long}, 0, long[:64]},
		{"client id with nothing for a name", connectOptions{version: 5, client: "#/ü"}, 0, "anonymous"},
		{"enhanced authentication", connectOptions{version: 5, user: "alice", client: "c", method: "SCRAM"}, 0x8C, ""},
	}
	b, _ := newBroker(t, auth.Options{Authenticator: auth.Trust{}})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := b.connect(t, tt.o)
			defer c.Close()
			ack := c.read(t)
			if ack.kind != packets.Connack || ack.body[1] != tt.code {
				t.Fatalf("got packet %d, code %#x, want CONNACK, code %#x", ack.kind, ack.body[1], tt.code)
			}
			if tt.code != 0 {
				hasReason := bytes.Contains(ack.body, []byte("bad "))
				if hasReason != (tt.o.version == 5) {
					t.Errorf("reason string in %q: got %v, want %v", ack.body, hasReason, tt.o.version == 5)
				}
				c.closed(t)
				return
			}
			if got := <-b.seen; got != tt.user && (tt.user != "*" || got == "") {
				t.Errorf("user: got %q, want %q", got, tt.user)
			}
		})
	}
	if len(b.seen) > 0 {
		t.Errorf("%d refused connections got a session", len(b.seen))
	}
}

// stub is an Authenticator of the tests.
type stub func(ctx context.Context, cred auth.Credentials) (string, time.Time, error)

func (s stub) Authenticate(ctx context.Context, cred auth.Credentials) (string, time.Time, error) {
	return s(ctx, cred)
}

func TestAuthenticatorThatCannotTell(t *testing.T) {
	for version, want := range map[byte]byte{4: 0x03, 5: 0x88} {
		b, _ := newBroker(t, auth.Options{Authenticator: stub(func(context.Context, auth.Credentials) (string, time.Time, error) {
			return "", time.Time{}, errors.New("database is away")
		})})
		c := b.connect(t, connectOptions{version: version, user: "alice", client: "c"})
		if ack := c.read(t); ack.body[1] != want {
			t.Errorf("version %d: got code %#x, want %#x", version, ack.body[1], want)
		}
		c.closed(t)
	}
}

func TestAuthenticatorMustNameAValidUser(t *testing.T) {
	b, _ := newBroker(t, auth.Options{Authenticator: stub(func(context.Context, auth.Credentials) (string, time.Time, error) {
		return "a/b", time.Time{}, nil
	})})
	c := b.connect(t, connectOptions{version: 5, user: "alice", client: "c"})
	if ack := c.read(t); ack.body[1] != 0x86 {
		t.Errorf("got code %#x, want 0x86", ack.body[1])
	}
	c.closed(t)
}

func TestAuthenticateTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := newBroker(t, auth.Options{Timeout: 3 * time.Second,
			Authenticator: stub(func(ctx context.Context, _ auth.Credentials) (string, time.Time, error) {
				<-ctx.Done()
				return "", time.Time{}, ctx.Err()
			})})
		start := time.Now()
		c := b.connect(t, connectOptions{version: 5, user: "alice", client: "c"})
		if ack := c.read(t); ack.body[1] != 0x88 {
			t.Errorf("got code %#x, want 0x88", ack.body[1])
		}
		if got := time.Since(start); got != 3*time.Second {
			t.Errorf("refused after %v, want 3s", got)
		}
		c.closed(t)
	})
}

// expiresIn lets everybody in for d.
func expiresIn(d time.Duration) stub {
	return func(_ context.Context, cred auth.Credentials) (string, time.Time, error) {
		return cred.Username, time.Now().Add(d), nil
	}
}

func TestConnectionEndsWithTheToken(t *testing.T) {
	for _, life := range []time.Duration{5 * time.Second, 10 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			b, hook := newBroker(t, auth.Options{Authenticator: expiresIn(life)})
			start := time.Now()
			v5 := b.connect(t, connectOptions{version: 5, user: "alice", client: "five"})
			v5.read(t)
			v4 := b.connect(t, connectOptions{version: 4, user: "alice", client: "four"})
			v4.read(t)

			bye := v5.read(t)
			if bye.kind != packets.Disconnect || bye.body[0] != 0xA0 || !bytes.Contains(bye.body, []byte("maximum connect time")) {
				t.Errorf("v5: got packet %d %q, want DISCONNECT 0xA0 with a reason", bye.kind, bye.body)
			}
			if got := time.Since(start); got != life {
				t.Errorf("ended after %v, want %v", got, life)
			}
			v5.closed(t)
			v4.closed(t)
			if got := hook.Watched(); got != 0 {
				t.Errorf("connections watched: got %d, want 0", got)
			}
		})
	}
}

func TestTimerOfAGoneConnectionStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := 0
		b, hook := newBroker(t, auth.Options{Authenticator: expiresIn(time.Hour),
			Disconnect: func(*mqtt.Client, packets.Code) { ended++ }})
		c := b.connect(t, connectOptions{version: 5, user: "alice", client: "c"})
		c.read(t)
		if got := hook.Watched(); got != 1 {
			t.Errorf("connections watched: got %d, want 1", got)
		}
		c.Close()
		<-c.done
		if got := hook.Watched(); got != 0 {
			t.Errorf("connections watched after the end: got %d, want 0", got)
		}

		// Refused by a later hook: mochi never calls OnDisconnect for it.
		bad := b.connect(t, connectOptions{version: 5, user: "alice", client: "bad"})
		<-bad.done
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := hook.Watched(); got != 0 {
			t.Errorf("connections watched after a later refusal: got %d, want 0", got)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if ended != 0 {
			t.Errorf("Disconnect calls: got %d, want 0", ended)
		}
	})
}

func TestStopStopsTimers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := 0
		b, hook := newBroker(t, auth.Options{Authenticator: expiresIn(time.Minute),
			Disconnect: func(*mqtt.Client, packets.Code) { ended++ }})
		c := b.connect(t, connectOptions{version: 5, user: "alice", client: "c"})
		c.read(t)
		for range 2 {
			if err := hook.Stop(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if ended != 0 {
			t.Errorf("Disconnect calls after Stop: got %d, want 0", ended)
		}
		c.Close()
		<-c.done
	})
}

func TestLogTellsWhoAndWhyButNoSecrets(t *testing.T) {
	b, _ := newBroker(t, auth.Options{Authenticator: stub(func(context.Context, auth.Credentials) (string, time.Time, error) {
		return "", time.Time{}, &auth.Refusal{Reason: "wrong password"}
	})})
	c := b.connect(t, connectOptions{version: 4, user: "alice", pass: "TOPSECRET", client: "dev-1"})
	c.read(t)
	c.closed(t)
	c = b.connect(t, connectOptions{version: 4, user: "TOPSECRET.TOKEN/IN THE WRONG FIELD", pass: "TOPSECRET", client: "dev-2"})
	c.read(t)
	c.closed(t)
	got := b.log.String()
	for _, want := range []string{`level=INFO msg="login failed"`, "user=alice", "client=dev-1", "remote=pipe", `reason="wrong password"`, "34 bytes"} {
		if !strings.Contains(got, want) {
			t.Errorf("log lacks %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "TOPSECRET") {
		t.Errorf("log tells a secret:\n%s", got)
	}
}

func TestNewNeedsAnAuthenticator(t *testing.T) {
	if _, err := auth.New(auth.Options{}); err == nil {
		t.Error("got no error")
	}
}
