package transport

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/gorilla/websocket"
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// opener lets everyone in and opens each connection that the broker accepts.
type opener struct{ mqtt.HookBase }

func (*opener) ID() string { return "opener" }
func (*opener) Provides(b byte) bool {
	return b == mqtt.OnSessionEstablish || b == mqtt.OnConnectAuthenticate || b == mqtt.OnACLCheck
}
func (*opener) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }
func (*opener) OnACLCheck(*mqtt.Client, string, bool) bool              { return true }
func (*opener) OnSessionEstablish(cl *mqtt.Client, _ packets.Packet)    { cl.Net.Conn.(*Conn).Open(nil) }

// serve runs a broker with these listeners until the test ends.
func serve(t *testing.T, ls ...*Listener) *mqtt.Server {
	t.Helper()
	s := mqtt.New(&mqtt.Options{Logger: slog.New(slog.DiscardHandler)})
	for _, h := range []mqtt.Hook{new(opener)} {
		if err := s.AddHook(h, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range ls {
		if err := s.AddListener(l); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Serve(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	t.Cleanup(func() {
		once.Do(func() {
			for _, l := range ls {
				l.Close(closer(s)) // before mochi calls it with a function that may deadlock
			}
			_ = s.Close()
		})
	})
	return s
}

// closer disconnects all clients of a server.
func closer(s *mqtt.Server) func(string) {
	return func(string) {
		for _, cl := range s.Clients.GetAll() {
			_ = s.DisconnectClient(cl, packets.ErrServerShuttingDown)
		}
	}
}

func local(typ string, tune ...func(*ListenerConfig)) *Listener {
	cfg := ListenerConfig{ID: typ, Type: typ, Address: "127.0.0.1:0"}
	for _, f := range tune {
		f(&cfg)
	}
	return NewListener(cfg)
}

// eventually waits for what happens on other goroutines, on real sockets.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// authority signs certificates into files.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.file, _ = a.sign("ca", nil)
	return a
}

var serial int64

func (a *authority) sign(name string, parent *authority) (cert, key string) {
	a.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	serial++
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: parent == nil,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	signer, by := k, tmpl
	if parent != nil {
		signer, by = parent.key, parent.cert
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by, &k.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	if parent == nil {
		a.key = k
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			a.t.Fatal(err)
		}
	}
	cert, key = filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return cert, key
}

func (a *authority) clientConfig(certAndKey ...string) *tls.Config {
	cfg := &tls.Config{RootCAs: x509.NewCertPool()}
	cfg.RootCAs.AddCert(a.cert)
	if len(certAndKey) == 2 {
		pair, err := tls.LoadX509KeyPair(certAndKey[0], certAndKey[1])
		if err != nil {
			a.t.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg
}

func TestRealClients(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.sign("server", ca)
	certs, err := OpenCertificates(cert, key, ca.file)
	if err != nil {
		t.Fatal(err)
	}
	withTLS := func(c *ListenerConfig) { c.TLS = certs.Config() }
	ls := map[string]*Listener{
		"tcp": local("tcp"), "ssl": local("tls", withTLS), "ws": local("ws"), "wss": local("wss", withTLS),
	}
	srv := serve(t, ls["tcp"], ls["ssl"], ls["ws"], ls["wss"])
	clientCert, clientKey := ca.sign("client", ca)
	for scheme, l := range ls {
		t.Run(scheme, func(t *testing.T) {
			url := scheme + "://" + l.Address()
			if strings.HasPrefix(scheme, "ws") {
				url += "/mqtt"
			}
			lost := make(chan error, 1)
			cl := paho.NewClient(paho.NewClientOptions().AddBroker(url).SetClientID(scheme).SetAutoReconnect(false).
				SetTLSConfig(ca.clientConfig(clientCert, clientKey)).SetProtocolVersion(4).
				SetConnectionLostHandler(func(_ paho.Client, err error) { lost <- err }))
			wait := func(tok paho.Token) {
				t.Helper()
				if !tok.WaitTimeout(10*time.Second) || tok.Error() != nil {
					t.Fatalf("%T: %v", tok, tok.Error())
				}
			}
			wait(cl.Connect())
			const n = 50
			got := make(chan []byte, n)
			wait(cl.Subscribe(scheme, 1, func(_ paho.Client, m paho.Message) { got <- m.Payload() }))
			for i := range n {
				wait(cl.Publish(scheme, 1, false, packet(0, i*i*20, byte(i)))) // up to 48 KB
			}
			for i := range n {
				if p := <-got; !bytes.Equal(p, packet(0, i*i*20, byte(i))) {
					t.Fatalf("message %d differs", i)
				}
			}
			if c, _ := srv.Clients.Get(scheme); (c.Net.Conn.(*Conn).TLS() != nil) != (l.cfg.TLS != nil) {
				t.Error("TLS() does not tell whether there is TLS")
			} else if s := c.Net.Conn.(*Conn).TLS(); s != nil && s.PeerCertificates[0].Subject.CommonName != "client" {
				t.Errorf("got %v, want the client's certificate", s.PeerCertificates[0].Subject)
			}
			if scheme == "ws" { // one leaves, the others are disconnected by Close
				cl.Disconnect(100)
				eventually(t, "the connection is forgotten", func() bool { return l.Counters.Open.Load() == 0 })
				return
			}
			t.Cleanup(func() {
				l.Close(func(string) {})
				<-lost
			})
		})
	}
}

const connectV4 = "\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01x"
const connectV5 = "\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01x"

func dial(t *testing.T, l *Listener) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func send(t *testing.T, c io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, c io.Reader, prefix string) {
	t.Helper()
	p := make([]byte, len(prefix))
	if _, err := io.ReadFull(c, p); err != nil || string(p) != prefix {
		t.Fatalf("got %q and %v, want %q", p, err, prefix)
	}
}

// A SUBSCRIBE without its last byte panics in mochi's decoder. It costs its sender the connection, and nobody else.
func TestPanicInTheBroker(t *testing.T) {
	var out bytes.Buffer
	done := make(chan error, 1)
	l := local("tcp", func(c *ListenerConfig) {
		c.Logger = slog.New(slog.NewTextHandler(&out, nil))
		c.Done = func(_ *Conn, err error) { done <- err }
	})
	serve(t, l)
	bystander := dial(t, l)
	send(t, bystander, strings.Replace(connectV4, "x", "y", 1))
	expect(t, bystander, "\x20\x02\x00\x00")

	c := dial(t, l)
	send(t, c, connectV5+"\x82\x06\x00\x01\x00\x00\x01a")
	if b, err := io.ReadAll(c); err != nil && !errors.Is(err, syscall.ECONNRESET) || len(b) == 0 {
		t.Fatalf("got %q and %v, want CONNACK and the end", b, err)
	}
	err := <-done
	if p := (*PanicError)(nil); !errors.As(err, &p) || !bytes.Contains(p.Stack, []byte("SubscribeDecode")) {
		t.Errorf("Done got %v, want a PanicError with the stack", err)
	}
	eventually(t, "counted", func() bool { return l.Counters.Panics.Load() == 1 && l.Counters.Open.Load() == 1 })
	if s := out.String(); !strings.Contains(s, "SubscribeDecode") || !strings.Contains(s, "remote=127.0.0.1") {
		t.Errorf("logged: %s", s)
	}
	send(t, bystander, "\xc0\x00")
	expect(t, bystander, "\xd0\x00")
}

func TestCloseTellsAndEndsAll(t *testing.T) {
	l := local("tcp")
	s := serve(t, l)
	silent, half, v5 := dial(t, l), dial(t, l), dial(t, l)
	send(t, half, connectV4[:5])
	send(t, v5, connectV5)
	expect(t, v5, "\x20")
	eventually(t, "all are in", func() bool { return l.Counters.Open.Load() == 3 })
	start := time.Now()
	s.Listeners.CloseAll(func(id string) {
		if _, err := net.Dial("tcp", l.Address()); err == nil {
			t.Error("still accepting while clients are disconnected")
		}
		closer(s)(id)
	})
	if d := time.Since(start); d > 4*time.Second {
		t.Errorf("Close took %v", d)
	}
	if n := l.Counters.Open.Load(); n != 0 {
		t.Errorf("%d connections are left", n)
	}
	if b, err := io.ReadAll(v5); err != nil || !bytes.Contains(b, []byte{0xe0}) || !bytes.Contains(b, []byte{packets.ErrServerShuttingDown.Code}) {
		t.Errorf("a client got %x and %v, want DISCONNECT 0x8b", b, err)
	}
	for _, c := range []net.Conn{silent, half} {
		if _, err := io.ReadAll(c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("got %v, want the end", err)
		}
	}
	l.Close(func(string) { t.Error("a second Close did something") })
}

// A client that takes nothing cannot hold Close up.
func TestCloseCutsStalledClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		l := local("tcp", func(c *ListenerConfig) { c.Options = Options{WriteBuffer: 10, WriteTimeout: time.Hour} })
		l.listen = f.listen
		if err := l.Init(nil); err != nil {
			t.Fatal(err)
		}
		conns := make(chan *Conn, 1)
		go l.Serve(func(_ string, nc net.Conn) error {
			c := nc.(*Conn)
			_, _ = c.Write(make([]byte, 100))
			conns <- c
			_, err := c.Read(make([]byte, 1))
			return err
		})
		b := f.dial()
		defer b.Close()
		c := <-conns
		start := time.Now()
		l.Close(func(string) { _, _ = c.Write([]byte("DISCONNECT")) }) // blocks
		if d := time.Since(start); d != closeGrace {
			t.Errorf("Close took %v, want %v", d, closeGrace)
		}
	})
}

// fake is a net.Listener of pipes, or of errors.
type fake struct {
	conns chan net.Conn
	errs  chan error
	done  chan struct{}
	mu    sync.Mutex
	tries []time.Time // when Accept was called
}

func newFake() *fake {
	return &fake{conns: make(chan net.Conn), errs: make(chan error, 100), done: make(chan struct{})}
}
func (f *fake) listen(string, string) (net.Listener, error) { return f, nil }
func (f *fake) dial() net.Conn                              { a, b := net.Pipe(); f.conns <- a; return b }
func (f *fake) Close() error                                { close(f.done); return nil }
func (f *fake) Addr() net.Addr                              { return &net.TCPAddr{} }
func (f *fake) Accept() (net.Conn, error) {
	f.mu.Lock()
	f.tries = append(f.tries, time.Now())
	f.mu.Unlock()
	select {
	case err := <-f.errs:
		return nil, err
	default:
	}
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

func TestAcceptErrorsBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		f := newFake()
		l := local("tcp", func(c *ListenerConfig) { c.Logger = slog.New(slog.NewTextHandler(&out, nil)) })
		l.listen = f.listen
		if err := l.Init(nil); err != nil {
			t.Fatal(err)
		}
		for range 12 {
			f.errs <- &net.OpError{Op: "accept", Err: syscall.EMFILE}
		}
		go l.Serve(func(_ string, c net.Conn) error { return nil })
		b := f.dial()
		defer b.Close()
		if _, err := b.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("got %v, want an accepted and closed connection", err)
		}
		l.Close(func(string) {})
		var waits []time.Duration
		for i := 1; i < 13; i++ {
			waits = append(waits, f.tries[i].Sub(f.tries[i-1]))
		}
		want := "[5ms 10ms 20ms 40ms 80ms 160ms 320ms 640ms 1s 1s 1s 1s]"
		if got := fmt.Sprint(waits); got != want {
			t.Errorf("got waits of %s, want %s", got, want)
		}
		if n := strings.Count(out.String(), "\n"); n != 2 || !strings.Contains(out.String(), "too many open files") {
			t.Errorf("got %d lines of log, want trouble and relief:\n%s", n, out.String())
		}
		if n := l.Counters.AcceptErrors.Load(); n != 12 {
			t.Errorf("counted %d", n)
		}
	})
}

func TestCountsOfEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		ends := make(chan error, 3)
		l := local("tcp", func(c *ListenerConfig) { c.Done = func(_ *Conn, err error) { ends <- err } })
		l.listen = f.listen
		if err := l.Init(nil); err != nil {
			t.Fatal(err)
		}
		go l.Serve(func(_ string, nc net.Conn) error {
			p := make([]byte, 100)
			if _, err := nc.Read(p); err != nil {
				return fmt.Errorf("read connection: %w", err)
			}
			nc.(*Conn).Open(nil)
			_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
			if p[14] == 's' { // the client id
				_, _ = nc.Write(p)
			}
			_, err := nc.Read(p)
			return err
		})
		silent, slow, quiet := f.dial(), f.dial(), f.dial()
		defer silent.Close()
		defer slow.Close()
		defer quiet.Close()
		send(t, slow, strings.Replace(connectV4, "x", "s", 1))
		send(t, quiet, connectV4)
		time.Sleep(time.Minute)
		if l.Counters.ConnectTimeouts.Load() != 1 || l.Counters.SlowReaders.Load() != 1 || l.Counters.Accepted.Load() != 3 || l.Counters.Open.Load() != 0 {
			t.Errorf("counted %d timeouts, %d slow of %d, %d open; want 1, 1, 3, 0", l.Counters.ConnectTimeouts.Load(),
				l.Counters.SlowReaders.Load(), l.Counters.Accepted.Load(), l.Counters.Open.Load())
		}
		l.Close(func(string) {})
		close(ends)
		if a, b, c := <-ends, <-ends, <-ends; !IsTimeout(a) || b != ErrSlow || !IsTimeout(c) {
			t.Errorf("Done got %v, %v, %v; want no CONNECT, slow, no keep-alive", a, b, c)
		}
	})
}

func TestInitNamesWhatIsWrong(t *testing.T) {
	taken := local("tcp")
	if err := taken.Init(nil); err != nil {
		t.Fatal(err)
	}
	defer taken.Close(func(string) {})
	if strings.HasSuffix(taken.Address(), ":0") {
		t.Errorf("got address %s, want the real port", taken.Address())
	}
	for _, tt := range []struct {
		cfg  ListenerConfig
		want string
	}{
		{ListenerConfig{ID: "a", Type: "tcp", Address: taken.Address()}, "listener a: tcp on " + taken.Address() + ": bind: address already in use"},
		{ListenerConfig{ID: "a", Type: "udp", Address: ":1"}, "listener a: udp on :1: unknown type, want tcp, tls, ws or wss"},
		{ListenerConfig{ID: "a", Type: "tls", Address: ":1"}, "listener a: tls on :1: this type needs a certificate and a key"},
		{ListenerConfig{ID: "a", Type: "ws", Address: ":1", TLS: new(tls.Config)}, "listener a: ws on :1: this type takes no certificate"},
		{ListenerConfig{ID: "a", Type: "ws", Address: ":1", Path: "mqtt"}, `listener a: ws on :1: path "mqtt" does not begin with a slash`},
	} {
		if err := NewListener(tt.cfg).Init(nil); err == nil || err.Error() != tt.want {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
}

func TestTLS(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	cert, key := ca.sign("server", ca)
	certs, err := OpenCertificates(cert, key, ca.file)
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Until(certs.NotAfter()); d < 59*time.Minute || d > time.Hour {
		t.Errorf("NotAfter: in %v, want 1h", d)
	}
	l := local("tls", func(c *ListenerConfig) { c.TLS = certs.Config(); c.Options.ConnectTimeout = 500 * time.Millisecond })
	serve(t, l)
	connect := func(cfg *tls.Config) (*tls.Conn, error) {
		c := tls.Client(dial(t, l), cfg)
		cfg.ServerName = "127.0.0.1"
		_, _ = io.WriteString(c, connectV4)
		_, err := io.ReadFull(c, make([]byte, 4)) // in TLS 1.3 a refusal comes after the handshake
		return c, err
	}
	cc, ck := ca.sign("client", ca)
	sc, sk := stranger.sign("client", stranger)
	if _, err := connect(ca.clientConfig(cc, ck)); err != nil {
		t.Errorf("a good client: %v", err)
	}
	if _, err := connect(ca.clientConfig()); err == nil {
		t.Error("let in without a certificate")
	}
	if _, err := connect(ca.clientConfig(sc, sk)); err == nil {
		t.Error("let in with a stranger's certificate")
	}
	old := ca.clientConfig(cc, ck)
	old.MaxVersion = tls.VersionTLS11
	if _, err := connect(old); err == nil {
		t.Error("let in with TLS 1.1")
	}
	idle := dial(t, l)
	if _, err := io.ReadAll(idle); err != nil {
		t.Errorf("no handshake in time: got %v, want the end", err)
	}
	eventually(t, "refusals are counted", func() bool { return l.Counters.RefusedTLS.Load() == 4 })

	// Certificate and authority change while the server runs; a broken file changes nothing.
	cfg := ca.clientConfig(cc, ck)
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	first, err := connect(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ca.sign("server", ca)
	if err := os.WriteFile(key, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := certs.Reload(); err == nil || !strings.Contains(err.Error(), key) {
		t.Errorf("Reload of nonsense: %v, want an error that names %s", err, key)
	}
	same, err := connect(cfg)
	if err != nil || !same.ConnectionState().PeerCertificates[0].Equal(first.ConnectionState().PeerCertificates[0]) {
		t.Errorf("after a failed Reload: %v or another certificate", err)
	}
	ca.sign("server", ca)
	strangerPEM, _ := os.ReadFile(stranger.file)
	if err := os.WriteFile(ca.file, strangerPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := certs.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := connect(cfg); err == nil {
		t.Error("an old session outlived its authority")
	}
	now, err := connect(ca.clientConfig(sc, sk))
	if err != nil || now.ConnectionState().PeerCertificates[0].Equal(first.ConnectionState().PeerCertificates[0]) {
		t.Errorf("after Reload: %v, or the old certificate", err)
	}
}

func TestCertificateErrors(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.sign("server", ca)
	_, otherKey := ca.sign("other", ca)
	for _, tt := range []struct{ cert, key, ca, want string }{
		{"", key, "", "TLS certificate: no file is named"},
		{"/no/such", key, "", "TLS certificate /no/such: no such file or directory"},
		{cert, "/no/such", "", "TLS key /no/such: no such file or directory"},
		{cert, otherKey, "", "private key does not match public key"},
		{cert, key, "/no/such", "TLS client_ca /no/such: no such file"},
		{cert, key, key, "TLS client_ca " + key + ": no certificate in it"},
	} {
		if _, err := OpenCertificates(tt.cert, tt.key, tt.ca); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
}

// A TLS peer that stops reading is let go as fast as any other: no lock is held while close_notify waits.
func TestStalledTLS(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.sign("server", ca)
	certs, err := OpenCertificates(cert, key, "")
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		ended := make(chan time.Time, 1)
		l := local("tls", func(c *ListenerConfig) {
			c.TLS = certs.current.Load().Clone() // its caches are to be of this bubble
			c.Done = func(*Conn, error) { ended <- time.Now() }
		})
		l.listen = f.listen
		if err := l.Init(nil); err != nil {
			t.Fatal(err)
		}
		conns := make(chan *Conn, 1)
		go l.Serve(func(_ string, nc net.Conn) error {
			_ = nc.SetDeadline(time.Time{})
			nc.(*Conn).Open(nil)
			conns <- nc.(*Conn)
			_, err := nc.Read(make([]byte, 1))
			return err
		})
		peer := f.dial()
		defer peer.Close()
		tc := tls.Client(peer, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		c := <-conns
		start := time.Now()
		_, _ = c.Write(make([]byte, 100))
		end := <-ended
		if c.Err() != ErrSlow {
			t.Errorf("got %v, want ErrSlow", c.Err())
		}
		l.Close(func(string) {})
		if d := end.Sub(start); d != 10*time.Second || l.Counters.SlowReaders.Load() != 1 {
			t.Errorf("gone after %v with %d slow readers counted, want 10s and 1", d, l.Counters.SlowReaders.Load())
		}
	})
}

func TestWebSocket(t *testing.T) {
	l := local("ws", func(c *ListenerConfig) { c.Path = "/here"; c.Options.ConnectTimeout = time.Second })
	serve(t, l)
	get := func(path, headers string) *http.Response {
		t.Helper()
		c := dial(t, l)
		send(t, c, "GET "+path+" HTTP/1.1\r\nHost: chat.example:80\r\n"+headers+"\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	body := func(r *http.Response) string { b, _ := io.ReadAll(r.Body); return string(b) }
	if r := get("/mqtt", ""); r.StatusCode != 404 || !strings.Contains(body(r), "ws://chat.example:80/here") {
		t.Errorf("wrong path: got %s", r.Status)
	}
	if r := get("/here", ""); r.StatusCode != 400 || !strings.Contains(body(r), "upgrade") || !strings.HasPrefix(r.Header.Get("Content-Type"), "text/plain") {
		t.Errorf("no upgrade: got %s", r.Status)
	}
	if r := get("/here", "X: "+strings.Repeat("x", 20000)+"\r\n"); r.StatusCode != 431 {
		t.Errorf("large request: got %s", r.Status)
	}
	c := dial(t, l)
	send(t, c, connectV4+"\r\n\r\n")
	if b, _ := io.ReadAll(c); !bytes.HasPrefix(b, []byte("HTTP/1.1 400")) {
		t.Errorf("MQTT without WebSocket: got %q", b)
	}
	c = dial(t, l)
	send(t, c, "GET /here HTTP/1.1\r\n")
	if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
		t.Errorf("half a request: got %q and %v, want the end", b, err)
	}
	eventually(t, "refusals are counted", func() bool { return l.Counters.RefusedHTTP.Load() == 5 && l.Counters.Open.Load() == 0 })

	join := func(protocols ...string) *websocket.Conn {
		t.Helper()
		d := websocket.Dialer{Subprotocols: protocols}
		ws, res, err := d.Dial("ws://"+l.Address()+"/here", http.Header{"Origin": {"https://elsewhere.example"}})
		if err != nil {
			t.Fatalf("%v %v", err, res)
		}
		t.Cleanup(func() { ws.Close() })
		_ = ws.SetReadDeadline(time.Now().Add(10 * time.Second))
		return ws
	}
	for _, offer := range [][]string{{"mqtt"}, {"mqttv3.1"}, {"x", "mqtt"}, nil} {
		ws := join(offer...)
		if want := append(offer, "")[max(0, len(offer)-1)]; ws.Subprotocol() != want {
			t.Errorf("offered %q, got %q, want %q", offer, ws.Subprotocol(), want)
		}
		ws.Close()
	}

	// A packet in two messages, and two packets in one, the second message in fragments.
	ws := join("mqtt")
	pongs := make(chan string, 1)
	ws.SetPongHandler(func(s string) error { pongs <- s; return nil })
	if err := ws.WriteMessage(websocket.BinaryMessage, []byte(connectV4[:6])); err != nil {
		t.Fatal(err)
	}
	if err := ws.WriteMessage(websocket.BinaryMessage, nil); err != nil {
		t.Fatal(err)
	}
	w, _ := ws.NextWriter(websocket.BinaryMessage)
	_, _ = io.WriteString(w, connectV4[6:])
	_, _ = io.WriteString(w, "\xc0\x00\xc0\x00"+string(packet(0x30, 3000, 0)[:1])+"\x06\x00\x01aabc")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	_ = ws.WriteControl(websocket.PingMessage, []byte("hello"), time.Now().Add(time.Second))
	var got []byte
	for len(got) < 8 {
		typ, p, err := ws.ReadMessage()
		if err != nil || typ != websocket.BinaryMessage {
			t.Fatalf("got type %d and %v", typ, err)
		}
		got = append(got, p...)
	}
	if string(got) != "\x20\x02\x00\x00\xd0\x00\xd0\x00" {
		t.Errorf("got %x", got)
	}
	if err := ws.WriteMessage(websocket.BinaryMessage, []byte("\xc0\x00\xe0\x00")); err != nil { // PINGREQ, DISCONNECT
		t.Fatal(err)
	}
	for {
		if _, _, err := ws.ReadMessage(); err != nil {
			if !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
				t.Errorf("after DISCONNECT: got %v, want a normal close", err)
			}
			break
		}
	}
	if p := <-pongs; p != "hello" {
		t.Errorf("got pong %q", p)
	}

	ws = join("mqtt")
	if err := ws.WriteMessage(websocket.TextMessage, []byte(connectV4)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ws.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseUnsupportedData) {
		t.Errorf("a text message: got %v, want close 1003", err)
	}

	// A ping is no CONNECT.
	ws = join("mqtt")
	stop := make(chan struct{})
	var pinger sync.WaitGroup
	pinger.Go(func() {
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			select {
			case <-tick.C:
				_ = ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(time.Second))
			case <-stop:
				return
			}
		}
	})
	if _, _, err := ws.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
		t.Errorf("no CONNECT: got %v, want a close", err)
	}
	close(stop)
	pinger.Wait()
	eventually(t, "the timeout is counted", func() bool { return l.Counters.ConnectTimeouts.Load() == 1 })
}

// A pong's deadline must not become the data's, nor a WebSocket's timeout be hidden.
func TestStalledWebSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		ended := make(chan time.Time, 1)
		l := local("ws", func(c *ListenerConfig) { c.Done = func(*Conn, error) { ended <- time.Now() } })
		l.listen = f.listen
		if err := l.Init(nil); err != nil {
			t.Fatal(err)
		}
		conns := make(chan *Conn, 1)
		go l.Serve(func(_ string, nc net.Conn) error {
			nc.(*Conn).Open(nil)
			_ = nc.SetDeadline(time.Time{})
			conns <- nc.(*Conn)
			_, err := nc.Read(make([]byte, 1))
			return err
		})
		peer := f.dial()
		defer peer.Close()
		d := websocket.Dialer{NetDial: func(string, string) (net.Conn, error) { return peer, nil }}
		ws, _, err := d.Dial("ws://h/mqtt", nil)
		if err != nil {
			t.Fatal(err)
		}
		c := <-conns
		go func() {
			_, _ = c.Write([]byte("one"))
			time.Sleep(time.Second)
			_ = ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(time.Second))
		}()
		_, _, _ = ws.ReadMessage()
		pong := make(chan struct{})
		ws.SetPongHandler(func(string) error { close(pong); return nil })
		go func() { <-pong; _, _ = c.Write([]byte("two")) }()
		if _, p, err := ws.ReadMessage(); err != nil || string(p) != "two" {
			t.Fatalf("got %q and %v", p, err)
		}
		time.Sleep(3 * time.Second)
		_, _ = c.Write([]byte("three")) // never read
		start := time.Now()
		if d := (<-ended).Sub(start); c.Err() != ErrSlow || d < 7*time.Second || d > 10*time.Second {
			t.Errorf("got %v after %v, want ErrSlow after 7.5 to 10s", c.Err(), d)
		}
		ws.Close()
		l.Close(func(string) {})
	})
}
