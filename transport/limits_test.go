package transport

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// peer is a connection from an address.
type peer struct {
	net.Conn
	from net.Addr
}

func (p peer) RemoteAddr() net.Addr { return p.from }

// dialFrom is dial from an IP address.
func (f *fake) dialFrom(ip string) net.Conn {
	a, b := net.Pipe()
	f.conns <- peer{a, net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 1))}
	return b
}

// door is a listener over a fake socket whose connections last until the peer hangs up.
func door(t *testing.T, limits *Limits, tune ...func(*ListenerConfig)) (*Listener, *fake) {
	t.Helper()
	f := newFake()
	l := local("tcp", append(tune, func(c *ListenerConfig) { c.Limits = limits; c.Options.ConnectTimeout = time.Hour })...)
	l.listen = f.listen
	if err := l.Init(nil); err != nil {
		t.Fatal(err)
	}
	if l.cfg.Establish == nil {
		l.cfg.Establish = func(_ string, c net.Conn) error { _, err := c.Read(make([]byte, 1)); return err }
	}
	go l.Serve(nil)
	return l, f
}

// turnedAway reports whether the other side has closed a connection.
func turnedAway(c net.Conn) bool {
	synctest.Wait()
	_ = c.SetReadDeadline(time.Now().Add(time.Nanosecond))
	_, err := c.Read(make([]byte, 1))
	return err == io.EOF
}

func TestLimitOfConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := NewLimits(LimitsConfig{Connections: 2, PerAddress: 1})
		l, f := door(t, limits)
		a, b := f.dialFrom("10.0.0.1"), f.dialFrom("10.0.0.2")
		if turnedAway(a) || turnedAway(b) {
			t.Fatal("turned away with places free")
		}
		if !turnedAway(f.dialFrom("10.0.0.3")) || l.Counters.RefusedMax.Load() != 1 {
			t.Error("a third is let in, or its refusal not counted")
		}
		a.Close()
		synctest.Wait()
		if !turnedAway(f.dialFrom("::ffff:10.0.0.2")) || l.Counters.RefusedAddress.Load() != 1 {
			t.Error("a second from one address is let in, or its refusal not counted")
		}
		c := f.dialFrom("2001:db8::1")
		if turnedAway(c) {
			t.Error("a place is not given back")
		}
		limits.Set(LimitsConfig{Connections: 9, PerAddress: 1})
		if !turnedAway(f.dialFrom("2001:db8::2")) {
			t.Error("a second from one network of 64 bits is let in")
		}
		if turnedAway(f.dialFrom("2001:db8:0:1::1")) {
			t.Error("another network is refused")
		}
		b.Close()
		c.Close()
		l.Close(func(string) {})
		if limits.open != 0 || len(limits.addresses) != 0 || l.Counters.Open.Load() != 0 {
			t.Errorf("lost: %d places, %d addresses, %d open", limits.open, len(limits.addresses), l.Counters.Open.Load())
		}
	})
}

// Connections beyond the rate wait in the order in which they came; beyond the backlog they are refused. A listener that
// closes does not wait for them.
func TestConnectsArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := NewLimits(LimitsConfig{ConnectsPerSecond: 10, Backlog: 20})
		var mu sync.Mutex
		var served []string
		l, f := door(t, limits, func(c *ListenerConfig) {
			c.Establish = func(_ string, conn net.Conn) error {
				mu.Lock()
				served = append(served, fmt.Sprint(conn.RemoteAddr().(*net.TCPAddr).IP.To4()[3]))
				mu.Unlock()
				_, err := conn.Read(make([]byte, 1))
				return err
			}
		})
		other, g := door(t, limits)
		for i := range 24 {
			c := f.dialFrom(fmt.Sprint("10.0.0.", i))
			if refused := turnedAway(c); refused != (i > 20) {
				t.Errorf("connection %d refused: %v", i, refused)
			}
		}
		if n := l.Counters.RefusedRate.Load(); n != 3 {
			t.Errorf("counted %d refusals, want 3", n)
		}
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		mu.Lock()
		got := len(served)
		for i := range served {
			if served[i] != fmt.Sprint(i) {
				t.Errorf("served as number %d: the one that came as number %s", i, served[i])
			}
		}
		mu.Unlock()
		if got < 15 || got > 16 {
			t.Errorf("after 1.5 s: %d served, want 15 or 16", got)
		}
		late := g.dialFrom("10.1.0.1") // another listener, the same queue
		synctest.Wait()
		if n := limits.Waiting(); n != int64(22-got) {
			t.Errorf("%d wait, want %d", n, 22-got)
		}
		before := time.Now()
		l.Close(func(string) {})
		if d := time.Since(before); d > time.Millisecond {
			t.Errorf("Close took %v: it waited for those that wait", d)
		}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if limits.Waiting() != 0 || turnedAway(late) {
			t.Error("the other listener's connection is not served")
		}
		limits.Set(LimitsConfig{})
		for range 50 {
			g.dialFrom("10.2.0.1")
		}
		synctest.Wait()
		if n := limits.Waiting(); n != 0 {
			t.Errorf("without a limit %d wait", n)
		}
		other.Close(func(string) {})
		if limits.open != 0 || len(limits.addresses) != 0 {
			t.Errorf("lost: %d places, %d addresses", limits.open, len(limits.addresses))
		}
	})
}

// Some of those that are refused are told; a flood of them is not.
func TestRefusalsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := NewLimits(LimitsConfig{Connections: 1})
		l, f := door(t, limits, func(c *ListenerConfig) {
			c.Refuse = func(c *Conn, why Refusal) error { _, err := io.WriteString(c, string(why)); return err }
		})
		f.dial()
		synctest.Wait()
		told := 0
		for range 3 * answersPerSecond {
			b, _ := io.ReadAll(f.dial())
			switch string(b) {
			case "full":
				told++
			case "":
			default:
				t.Fatalf("got %q", b)
			}
		}
		if told != answersPerSecond {
			t.Errorf("told %d, want %d", told, answersPerSecond)
		}
		if n := l.Counters.RefusedMax.Load(); n != 3*answersPerSecond {
			t.Errorf("counted %d", n)
		}
		l.Close(func(string) {})
		if n := limits.open; n != 0 {
			t.Errorf("%d places are lost", n)
		}
	})
}

// A peer that has hung up takes nobody's turn.
func TestGivingUp(t *testing.T) {
	limits := NewLimits(LimitsConfig{ConnectsPerSecond: 1e-9})
	l := local("tcp", func(c *ListenerConfig) { c.Limits = limits })
	serve(t, l)
	_ = dial(t, l) // the one
	eventually(t, "the first to be let in", func() bool { return l.Counters.Accepted.Load() == 1 })
	quitter := dial(t, l)
	send(t, quitter, connectV4)
	eventually(t, "the second to wait", func() bool { return limits.Waiting() == 1 })
	if limits.turn(); limits.Waiting() != 1 {
		t.Fatal("a peer that waits was given up")
	}
	_ = quitter.Close()
	eventually(t, "the second to be forgotten", func() bool { limits.turn(); return limits.Waiting() == 0 })
	eventually(t, "it to be counted", func() bool { return l.Counters.GaveUp.Load() == 1 })
}

func TestProxyHeader(t *testing.T) {
	v2 := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x0a\x01\x02\x03\x7f\x00\x00\x01\x30\x39\x07\x5b"
	local := "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
	for name, c := range map[string]struct{ header, remote string }{
		"v1":                    {"PROXY TCP4 10.1.2.3 127.0.0.1 12345 1883\r\n", "10.1.2.3:12345"},
		"v1, IPv6":              {"PROXY TCP6 2001:db8::7 ::1 12345 1883\r\n", "[2001:db8::7]:12345"},
		"v1 of the proxy's own": {"PROXY UNKNOWN\r\n", "192.0.2.1:1"},
		"v2":                    {v2, "10.1.2.3:12345"},
		"v2 of the proxy's own": {local, "192.0.2.1:1"},
		"none":                  {connectV4, ""},
		"nothing":               {"", ""},
		"half a one":            {v2[:20], ""},
		"no end":                {"PROXY TCP4 " + strings.Repeat("1", 200), ""},
		"long":                  {"\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff" + strings.Repeat("x", 5000), ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				seen := make(chan string, 1)
				l, f := door(t, nil, func(c *ListenerConfig) {
					c.ProxyProtocol = true
					c.Establish = func(_ string, conn net.Conn) error {
						b := make([]byte, len(connectV4))
						_, err := io.ReadFull(conn, b)
						seen <- fmt.Sprint(conn.RemoteAddr(), " ", string(b) == connectV4)
						return err
					}
				})
				b := f.dialFrom("192.0.2.1")
				if c.header == "" || c.header == v2[:20] {
					_, _ = io.WriteString(b, c.header)
					b.Close()
				} else {
					go func() { _, _ = io.WriteString(b, c.header+connectV4) }()
					_, _ = io.ReadAll(b)
				}
				synctest.Wait()
				select {
				case got := <-seen:
					if want := c.remote + " true"; got != want {
						t.Errorf("got %q, want %q", got, want)
					}
				default:
					if c.remote != "" || l.Counters.RefusedProxy.Load() != 1 {
						t.Errorf("refused, counted %d", l.Counters.RefusedProxy.Load())
					}
				}
				l.Close(func(string) {})
			})
		})
	}
}

// The limit of connections per address is about the client's address, and not the proxy's.
func TestProxyLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := NewLimits(LimitsConfig{PerAddress: 1})
		l, f := door(t, limits, func(c *ListenerConfig) { c.ProxyProtocol = true })
		come := func(ip string) bool {
			b := f.dialFrom("192.0.2.1")
			_, _ = io.WriteString(b, "PROXY TCP4 "+ip+" 127.0.0.1 12345 1883\r\n")
			return !turnedAway(b)
		}
		if got := fmt.Sprint(come("10.0.0.1"), come("10.0.0.2"), come("10.0.0.1")); got != "true true false" {
			t.Errorf("let in: %s", got)
		}
		l.Close(func(string) {})
		if limits.open != 0 || len(limits.addresses) != 0 {
			t.Errorf("lost: %d places, %d addresses", limits.open, len(limits.addresses))
		}
	})
}

// A header that stalls is cut off when CONNECT would be.
func TestProxyStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, f := door(t, nil)
		l.cfg.ProxyProtocol, l.cfg.Options.ConnectTimeout = true, 5*time.Second
		start := time.Now()
		_, _ = io.ReadAll(f.dial())
		if d := time.Since(start); d != 5*time.Second {
			t.Errorf("cut off after %v, want 5s", d)
		}
		l.Close(func(string) {})
	})
}

// slowed reads packets through a connection and notes when each was handled.
func slowed(t *testing.T, o Options, packets ...[]byte) (at []time.Duration, end error) {
	a, b := net.Pipe()
	defer b.Close()
	o.ConnectTimeout = time.Hour
	c := Wrap(a, o)
	start := time.Now()
	drained := 0
	var held time.Duration // the longest that an answer was kept back
	c.Open(&taker{
		frame: func(byte, []byte) (bool, error) { at = append(at, time.Since(start)); return true, nil },
		drained: func() {
			for ; drained < len(at); drained++ {
				held = max(held, time.Since(start)-at[drained])
			}
		},
	})
	go func() {
		w := bufio.NewWriterSize(b, 1<<20)
		for _, p := range packets {
			_, _ = w.Write(p)
		}
		_ = w.Flush()
		_ = b.Close()
	}()
	end = c.Await()
	if drained != len(at) {
		t.Errorf("%d packets handled, told to send the answers after %d", len(at), drained)
	}
	if held > 0 {
		t.Errorf("an answer was kept back for %v", held)
	}
	_ = c.Close()
	return at, end
}

func TestMessagesPerSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ps [][]byte
		for range 40 {
			ps = append(ps, packet(0x32, 10, 0), packet(0xc0, 0, 0))
		}
		at, err := slowed(t, Options{MessagesPerSecond: 10}, ps...)
		if err != io.EOF || len(at) != 80 {
			t.Fatalf("%d packets, then %v: want all 80, then the end", len(at), err)
		}
		if at[19] != 0 || at[79] != 3*time.Second {
			t.Errorf("ten messages came after %v, forty after %v; want 0s and 3s", at[19], at[79])
		}
	})
}

func TestBytesPerSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at, err := slowed(t, Options{BytesPerSecond: 1000}, packet(0x30, 996, 0), packet(0x30, 3000-4, 0), packet(0x30, 996, 0))
		if err != io.EOF || len(at) != 3 {
			t.Fatalf("%d packets, then %v: want all 3, then the end", len(at), err)
		}
		if at[0] > 100*time.Millisecond || at[2] < 3*time.Second || at[2] > 4*time.Second {
			t.Errorf("handled after %v, want the first at once, the last after 3 to 4 s", at)
		}
	})
}

func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{Slow: func() time.Duration { return 2 * time.Second }}
		at, _ := slowed(t, o, packet(0xc0, 0, 0), packet(0xc0, 0, 0), bytes.Repeat(packet(0x30, 400, 0), 3))
		if len(at) != 5 || at[1] != 0 || at[4] < 2*time.Second || at[4] > 8*time.Second {
			t.Errorf("handled after %v, want what is no PUBLISH at once and the last after 2 s and more", at)
		}
	})
}

// Closing does not wait for the end of a pause.
func TestCloseEndsPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		c := Wrap(a, Options{MessagesPerSecond: 1})
		c.Open(&taker{frame: func(byte, []byte) (bool, error) { return true, nil }})
		go func() { _, _ = b.Write(bytes.Repeat(packet(0x30, 10, 0), 10)) }()
		ended := make(chan error)
		go func() { ended <- c.Await() }()
		time.Sleep(1500 * time.Millisecond)
		start := time.Now()
		_ = c.Close()
		if err := <-ended; err == nil || time.Since(start) > 0 {
			t.Errorf("reading ended with %v after %v, want an error at once", err, time.Since(start))
		}
		b.Close()
	})
}
