// Package broker is the server: it assembles store, engine, hooks, listeners and HTTP from a configuration, and owns
// their order of starting and stopping. It is the only package that knows all the others.
package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/broker/config"
	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/cluster"
	"github.com/mqim/mqim/hooks/acl"
	"github.com/mqim/mqim/hooks/auth"
	imhook "github.com/mqim/mqim/hooks/im"
	"github.com/mqim/mqim/hooks/limit"
	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/hooks/topics"
	"github.com/mqim/mqim/im"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/transport"
)

// Server is one node. New opens everything, Start lets clients in, Close stops in the reverse order.
type Server struct {
	log     *slog.Logger
	level   *slog.LevelVar
	metrics *metrics

	bus                   *cluster.Bus // nil: there are no other nodes
	trust                 *bus.Trust   // with bus
	store                 store.Store
	storeFigures          func(emit)
	failed                chan error    // what ends the server from inside
	commits, topicCommits *watchedStore // the engine's, and that of ordinary topics
	overload              *limit.Overload
	engine                *im.Engine
	mqtt                  *mqtt.Server
	hooks                 []mqtt.Hook // in the order in which mochi asks them, and serveConnection
	auth                  *auth.Hook
	acl                   *acl.Hook
	topics                *topics.Hook
	registry              *link.Registry
	limits                *transport.Limits
	listeners             []*transport.Listener
	certs                 []*transport.Certificates
	http                  *httpServer

	clientUser map[string]string // client_user by listener; does not change
	elsewhere  string            // node.server_reference; does not change
	name       string            // of the node; does not change
	served     []endpoint        // where clients reach each of listeners; does not change
	leaving    atomic.Bool       // the server is being stopped

	started  time.Time
	mostEver atomic.Int64 // clients at a time

	settling chan struct{} // closed by Close
	settled  sync.WaitGroup

	mu     sync.Mutex // guards cfg; held over a reload
	cfg    *config.Config
	close  sync.Once
	closed error
}

// Limits that are not worth a setting.
const (
	receiveMaximum    = 1024    // publishes that a client may have unanswered
	topicAliasMaximum = 64      // aliases that a client may set
	mochiWrites       = 0       // mochi's own queue a client: everything goes through the hooks
	mochiSys          = 1 << 33 // seconds between mochi's own rounds of $SYS, which stop the world: never
	packetOverhead    = 70 << 10
)

// New opens the store and the listening sockets, so that what is wrong with them is known before anything is promised.
// level, if not nil, is set by a reload.
func New(cfg *config.Config, log *slog.Logger, level *slog.LevelVar) (*Server, error) {
	s := &Server{
		cfg: cfg, log: log, level: level, metrics: newMetrics(), settling: make(chan struct{}), failed: make(chan error, 1),
		clientUser: map[string]string{}, elsewhere: cfg.Node.ServerReference, name: cfg.NodeName(),
	}
	for _, l := range cfg.Listeners {
		s.clientUser[l.Name] = l.ClientUser
	}
	if err := s.open(); err != nil {
		_ = s.Close(context.Background())
		return nil, err
	}
	return s, nil
}

func (s *Server) open() error {
	ids, err := im.NewSnowflakes(0)
	if err != nil {
		return err
	}
	if err := s.openStore(ids); err != nil {
		return err
	}
	if err := s.openBus(); err != nil {
		return err
	}
	ec := engineConfig(s.cfg)
	ec.Metrics, ec.Log = s.metrics, s.log
	if s.bus != nil {
		ec.Bus, ec.Look, ec.Trusted = s.bus, s.cfg.Cluster.Look.D(), s.trust.Term
	}
	level := func() int { return s.overload.Level() }
	s.commits = &watchedStore{Store: s.store, overload: level}
	s.topicCommits = &watchedStore{Store: s.store, overload: level}
	s.overload = s.watch()
	s.engine = im.New(s.commits, ec)
	if err := s.openBroker(); err != nil {
		return err
	}
	if err := s.openListeners(); err != nil {
		return err
	}
	s.metrics.collect(s)
	if s.cfg.HTTP.Address != "" {
		if s.http, err = newHTTP(s, s.cfg.HTTP.Address); err != nil {
			return err
		}
	}
	return nil
}

// engineConfig is what the configuration says to the engine.
func engineConfig(c *config.Config) im.Config {
	return im.Config{
		Window: c.Delivery.Window, AckTimeout: c.Delivery.AckTimeout.D(), MaxAttempts: c.Delivery.MaxAttempts,
		MessageBytes: int(c.Limits.MessageBytes), CommandBytes: int(c.Limits.CommandBytes),
		SendsPerSecond: float64(c.Limits.SendsPerSecond), SendBurst: c.Limits.SendBurst,
		DevicesPerUser: c.Limits.DevicesPerUser, GroupsPerUser: c.Limits.GroupsPerUser,
		GroupSmallMax: c.Group.SmallMax, GroupLargeMax: c.Group.LargeMax,
		RecallWindow: c.Recall.Window.D(),
	}
}

// openBroker makes the mochi server and its hooks, in the order in which they are asked.
func (s *Server) openBroker() error {
	l := &s.cfg.Limits
	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumMessageExpiryInterval = 0 // what the publisher says, and nothing else
	caps.MaximumClientWritesPending = mochiWrites
	caps.ReceiveMaximum = receiveMaximum
	caps.TopicAliasMaximum = topicAliasMaximum
	s.mqtt = mqtt.New(&mqtt.Options{
		Capabilities: caps, Logger: mochiLogger(s.log), SysTopicResendInterval: mochiSys, ClientNetReadBufferSize: 512,
	})
	rules, err := s.cfg.Rules()
	if err != nil {
		return err
	}
	a, err := authenticator(&s.cfg.Auth, s.log)
	if err != nil {
		return err
	}
	if s.auth, err = auth.New(auth.Options{
		Authenticator: a, Disconnect: s.disconnect, Log: s.log, Refused: s.metrics.LoginRefused,
		Certified: s.certified, Throttle: s.cfg.Auth.Throttle.D(), Throttled: s.metrics.Throttled,
	}); err != nil {
		return err
	}
	s.acl = acl.New(acl.Options{Rules: rules, Denied: s.metrics.Denied})
	reg := link.NewRegistry(s.transportOptions())
	s.registry = reg
	imh := imhook.New(s.engine, imhook.Options{Registry: reg, Log: s.log, Limited: s.metrics.Limited,
		KeepAlive: uint16(s.cfg.Limits.KeepAlive.D() / time.Second)})
	to := topics.Options{
		Registry: reg, Store: s.topicCommits, Allow: s.acl.Allowed, System: s.systemTopics(), Metrics: s.metrics, Log: s.log,
		RefuseWhenFull: s.cfg.Sessions.Overflow == config.OverflowRefuse,
		QueueMessages:  cmp.Or(s.cfg.Sessions.MaxQueued, math.MaxInt),
	}
	if s.bus != nil {
		to.Bus, to.Look, to.Trusted = s.bus, s.cfg.Cluster.Look.D(), s.trust.Term
		reg.Cluster(s.bus)
	}
	s.topics = topics.New(s.mqtt, to)
	reg.Exclusive()
	lim := limit.New(limit.Options{
		ConnectionsPerUser: l.ConnectionsPerUser, Subscriptions: l.Subscriptions, TopicLevels: l.TopicLevels, TopicBytes: s.cfg.TopicBytes(),
		Overload: s.overload, Count: s.metrics.Limited, Log: s.log,
	})
	reg.Guard(lim.Publish)
	s.hooks = []mqtt.Hook{s.auth, lim, imh, s.topics, s.acl}
	for _, h := range s.hooks {
		if err := s.mqtt.AddHook(h, nil); err != nil {
			return err
		}
	}
	return nil
}

// disconnect ends a client's connection for the hooks that do not know how it is written to.
func (s *Server) disconnect(cl *mqtt.Client, code packets.Code) {
	// Until mochi has taken the client in, another goroutine is still setting its connection up.
	if now, ok := s.mqtt.Clients.Get(cl.ID); ok && now == cl {
		if c := link.Of(cl); c != nil {
			c.Disconnect(code)
			return
		}
	}
	cl.Stop(code)
}

func (s *Server) transportOptions() transport.Options {
	l := &s.cfg.Limits
	o := transport.Options{
		ConnectTimeout: unlimited(l.ConnectTimeout.D(), 365*24*time.Hour),
		WriteTimeout:   unlimited(l.WriteTimeout.D(), 365*24*time.Hour),
		WriteBuffer:    unlimited(int(l.WriteBuffer), 1<<30),
		BytesPerSecond: int(l.BytesPerSecond), MessagesPerSecond: l.MessagesPerSecond, Slow: s.overload.Pause,
	}
	if l.MessageBytes > 0 && l.CommandBytes > 0 {
		o.MaxPacket = int(max(l.MessageBytes, l.CommandBytes)) + packetOverhead
	}
	return o
}

// unlimited is v, or none where the settings say 0, which is no limit to them and a default to package transport.
func unlimited[T int | time.Duration](v, none T) T {
	if v == 0 {
		return none
	}
	return v
}

func doorLimits(c *config.Config) transport.LimitsConfig {
	l := &c.Limits
	return transport.LimitsConfig{
		Connections: l.Connections, PerAddress: l.ConnectionsPerAddress,
		ConnectsPerSecond: float64(l.ConnectsPerSecond), Backlog: l.ConnectBacklog,
	}
}

func (s *Server) openListeners() error {
	s.limits = transport.NewLimits(doorLimits(s.cfg))
	for _, c := range s.cfg.Listeners {
		lc := transport.ListenerConfig{
			ID: c.Name, Type: c.Type, Address: c.Address, Path: c.Path,
			Options: s.transportOptions(), Limits: s.limits, Logger: s.log,
			Establish: s.serveConnection, Refuse: s.refuseConnection, Done: s.connectionDone,
			ProxyProtocol: c.ProxyProtocol,
		}
		if c.TLS() {
			certs, err := transport.OpenCertificates(c.Cert, c.Key, c.ClientCA)
			if err != nil {
				return fmt.Errorf("listener %s: %w", c.Name, err)
			}
			s.certs = append(s.certs, certs)
			lc.TLS = certs.Config()
		}
		tl := transport.NewListener(lc)
		if err := s.mqtt.AddListener(tl); err != nil {
			return err
		}
		s.listeners = append(s.listeners, tl)
		s.served = append(s.served, endpoint{c.Type, advertised(c.Advertise, tl.Address()), c.Path})
	}
	return nil
}

// connectionDone cleans up after a connection that mochi left in the middle of the handshake, where it forgets to.
func (s *Server) connectionDone(t *transport.Conn, _ error) {
	c, _ := t.Owner.(*link.Conn)
	if c == nil {
		return
	}
	imhook.Done(c)
	cl := c.Client
	if now, ok := s.mqtt.Clients.Get(cl.ID); ok && now == cl && !c.Session.Persistent() {
		s.mqtt.UnsubscribeClient(cl)
		s.mqtt.Clients.Delete(cl.ID)
	}
}

// Start lets clients in.
func (s *Server) Start() error {
	if err := s.join(); err != nil {
		return err
	}
	if err := s.mqtt.Serve(); err != nil {
		return err
	}
	for _, l := range s.listeners {
		s.log.Info("listening for MQTT", "name", l.ID(), "type", l.Protocol(), "address", l.Address())
	}
	s.started = time.Now()
	s.settled.Go(s.settle)
	if every := s.cfg.Node.SysInterval.D(); every > 0 {
		s.settled.Go(func() { s.publishSystem(every) })
	}
	if s.http != nil {
		s.http.start()
		s.log.Info("listening for HTTP", "address", s.http.address(), "paths", "/healthz /readyz /metrics /v1/endpoints")
	}
	s.logStore()
	if s.cfg.Auth.Mode == "trust" {
		s.log.Warn("auth.mode is trust: everybody is who they say they are; it is for loopback, see auth in config.yaml")
	}
	return nil
}

// Failed tells of what the server cannot go on after, once: the caller closes it and exits.
func (s *Server) Failed() <-chan error { return s.failed }

// Addr is the address of the listener with a name, as it was bound; nil if there is none.
func (s *Server) Addr(name string) net.Addr {
	for _, l := range s.listeners {
		if l.ID() == name {
			if a, err := net.ResolveTCPAddr("tcp", l.Address()); err == nil {
				return a
			}
		}
	}
	return nil
}

// HTTPAddr is the address of the HTTP server, "" if there is none.
func (s *Server) HTTPAddr() string {
	if s.http == nil {
		return ""
	}
	return s.http.address()
}

// Close stops: in a cluster the clients are handed over to other nodes; no new connections; everything accepted is
// committed and answered; clients are told 0x8B; cursors are written; the store is closed. ctx bounds it. A second Close returns what the first did.
func (s *Server) Close(ctx context.Context) error {
	s.close.Do(func() { s.closed = s.shutdown(ctx) })
	return s.closed
}

func (s *Server) shutdown(ctx context.Context) error {
	var errs []error
	s.leave(ctx)
	close(s.settling)
	s.settled.Wait()
	var wg sync.WaitGroup
	var drained sync.Once
	for _, l := range s.listeners {
		wg.Go(func() {
			l.Close(func(string) {
				drained.Do(func() {
					errs = append(errs, s.drain(ctx))
					s.disconnectAll()
				})
			})
		})
	}
	wg.Wait()
	if s.mqtt != nil {
		errs = append(errs, s.mqtt.Close())
	}
	if s.http != nil {
		errs = append(errs, s.http.close(ctx))
	}
	if s.engine != nil {
		errs = append(errs, s.engine.Close(ctx))
	}
	s.overload.Close()
	if s.bus != nil {
		s.bus.Close()
	}
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	return errors.Join(errs...)
}

// drain waits until everything that was accepted before is committed and answered.
func (s *Server) drain(ctx context.Context) error {
	if err := s.engine.Drain(ctx); err != nil {
		return fmt.Errorf("not everything was committed: %w", err)
	}
	if err := s.topics.Drain(ctx); err != nil {
		return fmt.Errorf("not everything on ordinary topics was committed: %w", err)
	}
	return nil
}

func (s *Server) disconnectAll() {
	for _, cl := range s.mqtt.Clients.GetAll() {
		if c := link.Of(cl); c != nil && !cl.Closed() {
			c.Disconnect(packets.ErrServerShuttingDown)
		}
	}
}

// Reload takes over what of a new configuration can change while running, reads the files that it names anew, and
// returns the settings that have changed and those that need a restart. After an error nothing has changed.
func (s *Server) Reload(cfg *config.Config) (live, restart []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rules, err := cfg.Rules()
	if err != nil {
		return nil, nil, err
	}
	if err := s.auth.Reload(); err != nil {
		return nil, nil, err
	}
	for _, c := range s.certs {
		if err := c.Reload(); err != nil {
			return nil, nil, err
		}
	}
	live, restart = config.Diff(s.cfg, cfg)
	s.acl.SetRules(rules)
	s.topics.Recheck()
	s.limits.Set(doorLimits(cfg))
	s.engine.Reconfigure(engineConfig(cfg))
	if s.level != nil {
		_ = s.level.UnmarshalText([]byte(cfg.Log.Level))
	}
	s.cfg = cfg
	return live, restart, nil
}

// current is the configuration as it was last read, which nobody changes.
func (s *Server) current() *config.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg
}

// ShutdownTimeout is how long Close may take, from the configuration.
func (s *Server) ShutdownTimeout() time.Duration { return s.current().Node.ShutdownTimeout.D() }
