package broker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/broker/config"
	"github.com/mqim/mqim/store/pebble"
	"github.com/mqim/mqim/tests/mqtest"
)

// fuzzed is a broker with everything on, and what is needed to look into it.
type fuzzed struct {
	*Server
	log      logged // errors
	password func(user string) string
	origin   [1 << 16]atomic.Uint64 // by the client's port: the seed of its session
}

// logged is a log that is read while it is written.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const fuzzSecret = "0123456789abcdef0123456789abcdef"

func startFuzzed(t testing.TB, mode string) *fuzzed {
	t.Helper()
	c := config.Default()
	c.Listeners = []config.Listener{
		{Name: "mqtt", Type: "tcp", Address: "127.0.0.1:0"}, {Name: "ws", Type: "ws", Address: "127.0.0.1:0", Path: "/mqtt"},
	}
	c.HTTP.Address = ""
	c.Store.Pebble.Path = filepath.Join(t.TempDir(), "data")
	c.ACL = []config.Rule{{Deny: "pub", Topic: "f/d"}, {Allow: "pubsub", Topic: "$SYS/#"}, {Allow: "pubsub", Topic: "#"}}
	c.Limits.MessageBytes, c.Limits.CommandBytes = 64<<10, 64<<10
	f := &fuzzed{password: func(string) string { return "" }}
	if c.Auth.Mode = mode; mode == "jwt" {
		c.Auth.JWT.Keys = []config.JWTKey{{Algorithm: "HS256", Secret: fuzzSecret}}
		f.password = token
	}
	log := slog.New(slog.NewTextHandler(&f.log, &slog.HandlerOptions{Level: slog.LevelError}))
	var err error
	if f.Server, err = New(c, log, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if err := f.Start(); err != nil {
		t.Fatal(err)
	}
	return f
}

// token makes the same password for a user each time.
func token(user string) string {
	text, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": user, "exp": 4102444800}).SignedString([]byte(fuzzSecret))
	if err != nil {
		panic(err)
	}
	return text
}

func (f *fuzzed) panics() (n int64) {
	for _, l := range f.listeners {
		n += l.Counters.Panics.Load()
	}
	return n
}

// stream is a client's connection, by TCP or as a WebSocket, and the socket under it.
type stream struct {
	write func([]byte) error
	read  func() error // until the end
	tcp   *net.TCPConn
}

func (f *fuzzed) dial(ws bool) (*stream, error) {
	if !ws {
		c, err := net.Dial("tcp", f.Addr("mqtt").String())
		if err != nil {
			return nil, err
		}
		return &stream{
			tcp:   c.(*net.TCPConn),
			write: func(b []byte) error { _, err := c.Write(b); return err },
			read:  func() error { _, err := io.Copy(io.Discard, c); return err },
		}, nil
	}
	d := websocket.Dialer{Subprotocols: []string{"mqtt"}, HandshakeTimeout: mqtest.Patience}
	c, _, err := d.Dial("ws://"+f.Addr("ws").String()+"/mqtt", nil)
	if err != nil {
		return nil, err
	}
	return &stream{
		tcp:   c.NetConn().(*net.TCPConn),
		write: func(b []byte) error { return c.WriteMessage(websocket.BinaryMessage, b) },
		read: func() error {
			for {
				if _, _, err := c.NextReader(); err != nil {
					return err
				}
			}
		},
	}, nil
}

// send sends what is given and closes, or resets, and returns when the server has let go of the connection, which it is
// to do soon after.
func (s *stream) send(writes [][]byte, reset bool) error {
	_ = s.tcp.SetDeadline(time.Now().Add(mqtest.Patience))
	ended := make(chan error, 1)
	go func() { ended <- s.read() }()
	for _, b := range writes {
		if s.write(b) != nil {
			break // it has been closed, with good reason
		}
	}
	if reset {
		_ = s.tcp.SetLinger(0)
		_ = s.tcp.Close()
	} else {
		_ = s.tcp.CloseWrite()
	}
	if err := <-ended; err != nil && os.IsTimeout(err) {
		return fmt.Errorf("not closed in %v after the client has closed", mqtest.Patience)
	}
	return nil
}

// play plays the session of a seed and returns how many packets of it were mutated.
func (f *fuzzed) play(seed uint64) (mutated int, err error) {
	g := newGenerator(seed, f.password)
	s := g.session(8 + g.IntN(16))
	if !g.one(10) {
		g.mutate(s, 2)
	}
	c, err := f.dial(g.one(4))
	if err != nil {
		return 0, fmt.Errorf("connecting: %w", err)
	}
	defer c.tcp.Close()
	f.origin[c.tcp.LocalAddr().(*net.TCPAddr).Port].Store(seed)
	if err = c.send(g.writes(s), g.one(10)); err != nil {
		err = fmt.Errorf("session %d: %w", seed, err)
	}
	return s.mutated, err
}

// storm plays sessions until so many packets have been mutated.
func (f *fuzzed) storm(t *testing.T, first uint64, packets int64) (done <-chan struct{}) {
	const players = 12
	var sent atomic.Int64
	var next atomic.Uint64
	next.Store(first)
	end := make(chan struct{})
	var wg sync.WaitGroup
	for range players {
		wg.Go(func() {
			for sent.Load() < packets && !t.Failed() {
				n, err := f.play(next.Add(1))
				if err != nil {
					t.Error(err)
				}
				sent.Add(int64(n))
			}
		})
	}
	go func() {
		wg.Wait()
		t.Logf("%d mutated packets in %d sessions from seed %d on", sent.Load(), next.Load()-first, first)
		close(end)
	}()
	return end
}

// base is what the process holds.
type base struct {
	goroutines, sockets int
	heap                uint64
}

func (f *fuzzed) measure() (b base) {
	runtime.GC()
	runtime.GC() // the pools' second chance
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range fds {
		if to, _ := os.Readlink(fd); strings.HasPrefix(to, "socket:") {
			b.sockets++
		}
	}
	kept := f.store.(*pebble.Store).Metrics() // is on the heap, too, with the race detector on; Pebble keeps a spare memory table
	b.goroutines, b.heap = runtime.NumGoroutine(), m.HeapAlloc-min(m.HeapAlloc, 2*kept.MemtableSize+kept.CacheSize)
	return b
}

// alone waits until there are no connections.
func (f *fuzzed) alone(t *testing.T) {
	t.Helper()
	mqtest.Eventually(t, "the connections to end", func() bool {
		for _, l := range f.listeners {
			if l.Counters.Open.Load() > 0 {
				return false
			}
		}
		return true
	})
}

// sweep ends the sessions and removes the retained messages that the storm has left.
func (f *fuzzed) sweep(t *testing.T) {
	t.Helper()
	f.alone(t)
	ctx := context.Background()
	for after := ""; ; {
		list, err := f.store.Sessions(ctx, after, 100)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			break
		}
		for _, rec := range list {
			after = rec.Client
			o := mqtest.Options{Version: 5, ID: rec.Client, User: rec.User}
			if o.User != "" {
				o.Password = f.password(o.User)
			}
			c := mqtest.Dial(t, f.Addr("mqtt").String(), o)
			if c.Connack.ReasonCode != 0 {
				t.Errorf("client %q: CONNACK %#x when it comes back, want 0", rec.Client, c.Connack.ReasonCode)
			}
			c.Disconnect()
			c.Kill()
		}
	}
	c := mqtest.Dial(t, f.Addr("mqtt").String(), mqtest.Options{Version: 5, ID: "sweep", User: "sweep", Password: f.password("sweep")})
	c.Subscribe("#")
	c.Alive()
	for _, pk := range c.Got() {
		if pk.FixedHeader.Type == packets.Publish && pk.FixedHeader.Retain {
			c.Publish(pk.TopicName, "", mqtest.QoS(1), func(p *packets.Packet) { p.FixedHeader.Retain = true })
		}
	}
	c.Alive()
	c.Disconnect()
	c.Kill()
	f.alone(t)
	if n := f.registry.Sessions(); n > 0 {
		t.Errorf("%d clients in the registry, want none", n)
	}
	if n := f.mqtt.Clients.Len(); n > 1 {
		t.Errorf("mochi has %d clients, want only its own", n)
	}
	for _, topic := range []string{"f/a", "f/b/c", "f/r", "$SYS/broker/uptime"} {
		if s := f.mqtt.Topics.Subscribers(topic); len(s.Subscriptions)+len(s.Shared) > 0 {
			t.Errorf("subscribers of %s: got %v and %v, want none", topic, s.Subscriptions, s.Shared)
		}
	}
}

// TestFuzzConnections: whatever clients send, nobody but themselves is any worse for it, and nothing of it stays.
// MQIM_SEED plays the session of one seed alone; MQIM_TORTURE=1 has a million packets mutated.
func TestFuzzConnections(t *testing.T) {
	for _, mode := range []string{"trust", "jwt"} {
		t.Run(mode, func(t *testing.T) { fuzzConnections(t, mode) })
	}
}

func fuzzConnections(t *testing.T, mode string) {
	f := startFuzzed(t, mode)
	if seed, err := strconv.ParseUint(os.Getenv("MQIM_SEED"), 10, 64); err == nil {
		if _, err := f.play(seed); err != nil {
			t.Error(err)
		}
		f.sweep(t)
		f.quiet(t)
		return
	}
	packets, seed := int64(30_000), rand.Uint64()>>1
	if os.Getenv("MQIM_TORTURE") != "" {
		packets = 900_000
	}
	if mode == "jwt" { // whoever is refused takes longer; a million in all
		packets /= 9
	}
	<-f.storm(t, seed, packets/10) // fills pools and caches
	f.sweep(t)
	before := f.measure()
	innocent := f.meetInnocents(t)
	done := f.storm(t, seed+1<<32, packets)
	for ended := false; !ended; {
		innocent.exchange(t)
		select {
		case <-done:
			ended = true
		default:
		}
	}
	innocent.leave()
	t.Logf("meanwhile the innocent have exchanged %d messages", innocent.n)
	f.sweep(t)
	f.forgotten(t, before)
	f.quiet(t)
}

// forgotten waits until the process holds no more than before.
func (f *fuzzed) forgotten(t *testing.T, before base) {
	t.Helper()
	const (
		soon = 15 * time.Second
		heap = 3 << 20 // caches that grow
	)
	for end := time.Now().Add(soon); ; {
		now := f.measure()
		if now.goroutines <= before.goroutines && now.sockets <= before.sockets && now.heap <= before.heap+heap {
			return
		}
		if time.Now().After(end) {
			t.Errorf("%v later: got %+v, want no more than %+v", soon, now, before)
			return
		}
		time.Sleep(20 * time.Millisecond) // between looks, not instead of them
	}
}

// innocents are two clients that have nothing to do with it.
type innocents struct {
	a, b *mqtest.Client
	n    int
}

func (f *fuzzed) meetInnocents(t *testing.T) *innocents {
	dial := func(v byte, user string) *mqtest.Client {
		return mqtest.Dial(t, f.Addr("mqtt").String(), mqtest.Options{Version: v, ID: user, User: user, Password: f.password(user)})
	}
	in := &innocents{a: dial(5, "innocent-a"), b: dial(4, "innocent-b")}
	in.b.Subscribe("im/u/innocent-b", "innocent/+")
	return in
}

// exchange sends a message on an ordinary topic and one to a user, at QoS 1 and 2 in turn; b gets each once.
func (in *innocents) exchange(t *testing.T) {
	t.Helper()
	for _, topic := range []string{"innocent/x", "im/u/innocent-b"} {
		text := fmt.Sprint(in.n)
		if ack := in.a.PublishAck(topic, text, mqtest.QoS(byte(1+in.n/2%2))); ack.ReasonCode >= 0x80 {
			t.Fatalf("message %s to %s: refused with %#x", text, topic, ack.ReasonCode)
		}
		pk := in.b.Take("message "+text, func(p *packets.Packet) bool { return p.FixedHeader.Type == packets.Publish })
		if string(pk.Payload) != text || pk.TopicName != topic {
			t.Fatalf("got %q on %s, want %q on %s", pk.Payload, pk.TopicName, text, topic)
		}
		in.n++
	}
}

func (in *innocents) leave() {
	for _, c := range []*mqtest.Client{in.a, in.b} {
		c.Disconnect()
		c.Kill()
	}
}

// quiet fails the test if a connection ended in a panic, or an error was logged, and tells the seeds of whoever did it.
func (f *fuzzed) quiet(t testing.TB) {
	t.Helper()
	if n := f.panics(); n > 0 {
		t.Errorf("%d panics recovered", n)
	}
	text := f.log.String()
	if text == "" {
		return
	}
	t.Errorf("in the log: %.8000s", text)
	for _, m := range regexp.MustCompile(`remote=127\.0\.0\.1:(\d+) `).FindAllStringSubmatch(text, -1) {
		port, _ := strconv.Atoi(m[1])
		t.Errorf("port %d: MQIM_SEED=%d", port, f.origin[port].Load())
	}
}

// FuzzConnection is for go test -fuzz: the first byte says by which kind of connection the rest is sent. There is no
// user but those of the seeds, so that what the broker keeps is bounded.
func FuzzConnection(f *testing.F) {
	server := startFuzzed(f, "jwt")
	for seed := range uint64(40) {
		g := newGenerator(seed, token)
		f.Add(append([]byte{byte(seed % 4)}, bytes.Join(g.session(8).frames, nil)...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 2 {
			return
		}
		c, err := server.dial(data[0]%4 == 0)
		if err != nil {
			t.Fatal(err)
		}
		defer c.tcp.Close()
		if err := c.send([][]byte{data[1:]}, false); err != nil {
			t.Error(err)
		}
		server.quiet(t)
	})
}
