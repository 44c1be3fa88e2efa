package transport

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mochi-mqtt/server/v2/listeners"
	"golang.org/x/time/rate"
)

// The types of listener.
const (
	TypeTCP = "tcp"
	TypeTLS = "tls"
	TypeWS  = "ws"
	TypeWSS = "wss"
)

const (
	closeGrace = 5 * time.Second // how long Close waits for clients to take their DISCONNECT
	minBackoff = 5 * time.Millisecond
	maxBackoff = time.Second
)

// ListenerConfig describes one listening address. ID, Type and Address are required.
type ListenerConfig struct {
	ID      string
	Type    string      // tcp, tls, ws or wss
	Address string      // host:port; port 0 takes a free one
	Path    string      // of ws and wss; default /mqtt
	TLS     *tls.Config // of tls and wss, see Certificates.Config

	Options Options
	Limits  *Limits // shared by listeners that have a limit in common; nil: none
	// ProxyProtocol: every connection begins with a PROXY header (version 1 or 2), and comes from the address in it. Only
	// the proxy may be able to reach such a listener: anybody can write a header.
	ProxyProtocol bool
	Logger        *slog.Logger // default: the one that the broker gives Init

	// Establish serves a connection instead of the broker's own function, if set; it returns when the connection is over.
	Establish listeners.EstablishFn
	// Refuse is told of a connection that a limit turns away, instead of Establish, and gets to answer its CONNECT: some
	// of them, so that a flood costs little; the others are closed at once, as all are where Refuse is nil.
	Refuse func(c *Conn, why Refusal) error
	// Done is called on the connection's goroutine when the broker is through with it: the establish function
	// has returned, or panicked (err is then a *PanicError). Nothing more is read, and Close has been or is about to
	// be called. err is why: ErrSlow, when the connection was closed for that. The connection counts as open until
	// Done has returned.
	Done func(c *Conn, err error)
}

// Counters of a listener. All but Open only rise.
type Counters struct {
	Accepted        atomic.Int64 // connections let in at the door
	Open            atomic.Int64 // of these, now open
	RefusedMax      atomic.Int64 // RefusedFull
	RefusedAddress  atomic.Int64 // RefusedAddress
	RefusedRate     atomic.Int64 // RefusedBacklog
	GaveUp          atomic.Int64 // closed by the peer while it waited for its turn
	RefusedProxy    atomic.Int64 // no PROXY header, or a bad one, or too slow
	RefusedTLS      atomic.Int64 // the TLS handshake failed or took too long
	RefusedHTTP     atomic.Int64 // no WebSocket upgrade came of it: wrong path, not an upgrade, too slow
	ConnectTimeouts atomic.Int64 // no CONNECT in time
	SlowReaders     atomic.Int64 // closed with ErrSlow
	PausedBytes     atomic.Int64 // pauses in reading: BytesPerSecond
	PausedMessages  atomic.Int64 // pauses in reading: MessagesPerSecond
	PausedSlow      atomic.Int64 // pauses in reading: Slow
	Panics          atomic.Int64 // connections that ended in a recovered panic
	AcceptErrors    atomic.Int64 // accept(2) failed, mostly for want of file descriptors

	In, Out Traffic // one way each
}

// Traffic counts MQTT's packets and their bytes, what TLS and WebSocket add not included.
type Traffic struct {
	Bytes, Packets, Publishes atomic.Int64
}

// tally is what a connection has yet to add to Traffic's packets: it does so when it waits, and not for each.
type tally struct{ packets, publishes int32 }

func (n *tally) add(first byte) {
	n.packets++
	if first>>4 == 3 {
		n.publishes++
	}
}

func (n *tally) flush(t *Traffic) {
	if n.packets > 0 {
		t.Packets.Add(int64(n.packets))
		t.Publishes.Add(int64(n.publishes))
	}
	*n = tally{}
}

// PanicError is what Done is told when the broker panicked over a connection.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Listener is a listening socket for the broker. Each connection has one goroutine, which does its handshakes, runs
// the broker's establish function and with it all reading, and leaves when the connection is closed and what was to
// be written is written. Close waits for them.
type Listener struct {
	Counters Counters

	cfg     ListenerConfig
	log     *slog.Logger
	listen  func(network, address string) (net.Listener, error) // net.Listen, but in tests
	loudest rate.Sometimes                                      // refusals come in floods; one a second is logged

	stop chan struct{}  // closed with closing
	wg   sync.WaitGroup // Serve and the connections; added to under mu while closing is false

	mu      sync.Mutex // guards what follows
	ln      net.Listener
	closing bool
	conns   map[net.Conn]*Conn // accepted; nil while in a handshake
}

var _ listeners.Listener = (*Listener)(nil)

// NewListener returns a listener that does nothing before Init.
func NewListener(cfg ListenerConfig) *Listener {
	if cfg.Path == "" {
		cfg.Path = "/mqtt"
	}
	if cfg.Limits == nil {
		cfg.Limits = NewLimits(LimitsConfig{})
	}
	cfg.Options = cfg.Options.withDefaults()
	// MQTT has its own keep-alive, and a probe wakes a phone's radio: the default of one every 15 s is only
	// good against peers that chose keep-alive 0 and are gone, for whom minutes do.
	lc := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 5 * time.Minute, Interval: time.Minute, Count: 5,
	}}
	return &Listener{
		cfg:     cfg,
		log:     slog.New(slog.DiscardHandler),
		listen:  func(n, a string) (net.Listener, error) { return lc.Listen(noContext, n, a) },
		loudest: rate.Sometimes{Interval: time.Second},
		conns:   make(map[net.Conn]*Conn),
		stop:    make(chan struct{}),
	}
}

// ID returns the listener's name.
func (l *Listener) ID() string { return l.cfg.ID }

// Protocol returns the listener's type.
func (l *Listener) Protocol() string { return l.cfg.Type }

// Address returns the address that is listened on; before Init, the configured one.
func (l *Listener) Address() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ln == nil {
		return l.cfg.Address
	}
	return l.ln.Addr().String()
}

// Init opens the socket. Connections queue in the kernel until Serve.
func (l *Listener) Init(log *slog.Logger) error {
	if l.cfg.Logger != nil {
		log = l.cfg.Logger.With("listener", l.cfg.ID)
	}
	if log != nil {
		l.log = log
	}
	fail := func(err error) error {
		return fmt.Errorf("listener %s: %s on %s: %w", l.cfg.ID, l.cfg.Type, l.cfg.Address, err)
	}
	switch secure := l.cfg.TLS != nil; l.cfg.Type {
	case TypeTCP, TypeWS:
		if secure {
			return fail(errors.New("this type takes no certificate"))
		}
	case TypeTLS, TypeWSS:
		if !secure {
			return fail(errors.New("this type needs a certificate and a key"))
		}
	default:
		return fail(errors.New("unknown type, want tcp, tls, ws or wss"))
	}
	if l.cfg.Path[0] != '/' {
		return fail(fmt.Errorf("path %q does not begin with a slash", l.cfg.Path))
	}
	ln, err := l.listen("tcp", l.cfg.Address)
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) {
			err = op.Err // the rest of the text is already there
		}
		return fail(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		_ = ln.Close()
		return fail(net.ErrClosed)
	}
	l.ln = ln
	return nil
}

// Serve accepts connections until Close.
func (l *Listener) Serve(establish listeners.EstablishFn) {
	if l.cfg.Establish != nil {
		establish = l.cfg.Establish
	}
	l.mu.Lock()
	ln := l.ln
	if ln == nil || l.closing {
		l.mu.Unlock()
		return
	}
	l.wg.Add(1)
	l.mu.Unlock()
	defer l.wg.Done()

	for backoff := time.Duration(0); ; {
		raw, err := ln.Accept()
		switch {
		case err == nil:
			if backoff > 0 {
				l.log.Info("accepting connections again")
				backoff = 0
			}
			l.admit(raw, establish)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			// EMFILE and the like: the connection stays in the kernel's queue and accept(2) would return at once.
			l.Counters.AcceptErrors.Add(1)
			if backoff == 0 {
				l.log.Error("cannot accept connections, trying on", "error", err)
			}
			backoff = min(max(2*backoff, minBackoff), maxBackoff)
			select {
			case <-time.After(backoff):
			case <-l.stop:
			}
		}
	}
}

// admit lets a connection in, has it wait for its turn, or turns it away.
func (l *Listener) admit(raw net.Conn, establish listeners.EstablishFn) {
	v := &visit{l: l, raw: raw}
	v.serve = func(c *Conn) error { return establish(l.cfg.ID, c) }
	if !l.cfg.ProxyProtocol {
		v.address = counted(raw.RemoteAddr())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		_ = raw.Close()
		return
	}
	l.wg.Add(1)
	l.Counters.Open.Add(1)
	l.conns[raw] = nil
	why := l.cfg.Limits.enter(v)
	switch {
	case why == "":
		l.Counters.Accepted.Add(1)
	case l.refuse(v, why):
		go l.run(v)
	default:
		_ = raw.Close()
		delete(l.conns, raw)
		l.Counters.Open.Add(-1)
		l.wg.Done()
	}
}

// refuse counts a refusal. It reports whether the peer is to be told.
func (l *Listener) refuse(v *visit, why Refusal) bool {
	v.refused = why
	switch why {
	case RefusedFull:
		l.Counters.RefusedMax.Add(1)
	case RefusedAddress:
		l.Counters.RefusedAddress.Add(1)
	case RefusedBacklog:
		l.Counters.RefusedRate.Add(1)
	}
	l.loudest.Do(func() {
		l.log.Info("connection refused: limit reached (one line a second)", "remote", v.raw.RemoteAddr().String(), "limit", string(why),
			"over_connections", l.Counters.RefusedMax.Load(), "over_address", l.Counters.RefusedAddress.Load(),
			"over_rate", l.Counters.RefusedRate.Load())
	})
	return l.cfg.Refuse != nil && l.cfg.Limits.answers.Allow()
}

// end gives back what a connection had.
func (l *Listener) end(v *visit) {
	_ = v.raw.Close()
	l.mu.Lock()
	delete(l.conns, v.raw)
	l.mu.Unlock()
	l.Counters.Open.Add(-1)
	if v.counted {
		l.cfg.Limits.leave(v)
	}
	l.wg.Done()
}

// run is a connection's goroutine.
func (l *Listener) run(v *visit) {
	defer l.end(v)
	log := l.log.With("remote", v.raw.RemoteAddr().String())

	var c *Conn
	err := l.guard(log, func() (err error) { c, err = l.wrap(v); return })
	if err != nil {
		log.Debug("connection ended in its handshake", "error", err)
		return
	}
	if l.cfg.ProxyProtocol {
		log = l.log.With("remote", c.RemoteAddr().String())
	}
	log.Debug("connection accepted")
	err = l.guard(log, func() error {
		if v.refused != "" {
			return l.cfg.Refuse(c, v.refused)
		}
		return v.serve(c)
	})
	switch {
	case errors.Is(c.Err(), ErrSlow):
		err = ErrSlow // rather than what its reader made of the closed socket
		l.Counters.SlowReaders.Add(1)
		log.Info("connection closed: peer does not read")
	case !c.begun && IsTimeout(err):
		l.Counters.ConnectTimeouts.Add(1)
	}
	if l.cfg.Done != nil {
		l.cfg.Done(c, err)
	}
	c.end()
	_ = c.Close()
	c.wait()
	c.seen.flush(&l.Counters.In)
	c.release() // sessions and timers may hold on to c for longer
	c.r, c.w, c.pass = 0, 0, 0
	log.Debug("connection ended", "error", err)
}

// guard turns a panic into an error. The decoder of mochi v2.7.9 panics on packets that are cut short; that is to
// cost the connection that sent one, and not all of them.
func (l *Listener) guard(log *slog.Logger, f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			p := &PanicError{Value: v, Stack: debug.Stack()}
			err = p
			l.Counters.Panics.Add(1)
			log.Error("panic, connection closed", "panic", fmt.Sprint(v), "stack", string(p.Stack))
		}
	}()
	return f()
}

// wrap does the handshakes that come before MQTT.
func (l *Listener) wrap(v *visit) (*Conn, error) {
	raw := v.raw
	_ = raw.SetDeadline(time.Now().Add(l.cfg.Options.ConnectTimeout))
	conn := raw
	if l.cfg.ProxyProtocol {
		p, err := readProxy(raw)
		if err != nil {
			l.Counters.RefusedProxy.Add(1)
			return nil, err
		}
		conn = p
		if v.refused == "" {
			if why := l.cfg.Limits.arrived(v, counted(p.remote)); why != "" && !l.refuse(v, why) {
				return nil, fmt.Errorf("limit reached: %s", why)
			}
		}
	}
	if l.cfg.TLS != nil {
		t := tls.Server(conn, l.cfg.TLS)
		if err := t.Handshake(); err != nil {
			l.Counters.RefusedTLS.Add(1)
			return nil, fmt.Errorf("TLS handshake: %w", err)
		}
		conn = &tlsConn{Conn: t, raw: raw}
	}
	if l.cfg.Type == TypeWS || l.cfg.Type == TypeWSS {
		ws, err := l.upgrade(conn)
		if err != nil {
			l.Counters.RefusedHTTP.Add(1)
			return nil, fmt.Errorf("WebSocket handshake: %w", err)
		}
		conn = ws
	}
	_ = raw.SetDeadline(time.Time{})
	c := Wrap(conn, l.cfg.Options)
	c.listened, c.counters, c.raw = true, &l.Counters, raw

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		c.Abort()
		return nil, net.ErrClosed
	}
	l.conns[raw] = c
	return c, nil
}

// Close stops accepting, has the broker disconnect its clients, closes whoever is then left, such as connections that
// never sent CONNECT, and returns when all have ended. What has been written to a client has a second to leave; after
// closeGrace connections are cut. A second Close is a no-op. mochi's own closeClients (v2.7.9) deadlocks with a client
// that leaves at the same moment, which takes a lock that it read-locks twice: a server that has to stop calls Close
// with a function of its own first.
func (l *Listener) Close(closeClients listeners.CloseFn) {
	l.mu.Lock()
	if l.closing {
		l.mu.Unlock()
		return
	}
	l.closing = true
	close(l.stop)
	if l.ln != nil {
		_ = l.ln.Close()
	}
	for raw, c := range l.conns {
		if c == nil {
			_ = raw.Close()
		}
	}
	l.mu.Unlock()
	for _, v := range l.cfg.Limits.drop(l) {
		l.end(v)
	}

	// The broker disconnects one client after the other and a client with a full buffer would hold it up.
	cut := time.AfterFunc(closeGrace, func() {
		for _, c := range l.open() {
			c.Abort()
		}
	})
	defer cut.Stop()
	closeClients(l.cfg.ID)
	for _, c := range l.open() {
		_ = c.Close()
	}

	ended := make(chan struct{})
	go func() { l.wg.Wait(); close(ended) }()
	late := time.NewTimer(closeGrace + closeLinger)
	defer late.Stop()
	select {
	case <-ended:
	case <-late.C: // the socket is closed; only a hook can hold the goroutine now
		l.log.Error("connections do not end", "number", len(l.open()))
	}
}

// open returns the connections that the broker has been given.
func (l *Listener) open() []*Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	cs := make([]*Conn, 0, len(l.conns))
	for _, c := range l.conns {
		if c != nil {
			cs = append(cs, c)
		}
	}
	return cs
}
