package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/cluster"
)

// openBus connects the server to the other nodes, where the settings name what connects them.
func (s *Server) openBus() error {
	c := &s.cfg.Cluster
	if !c.On() {
		return nil
	}
	r := &c.Redis
	o := cluster.Options{
		Addresses: r.Addresses, Username: r.Username, Password: string(r.Password), DB: r.DB, Prefix: r.Prefix,
		Master: r.Master, SentinelUsername: r.SentinelUsername, SentinelPassword: string(r.SentinelPassword),
		Name: s.cfg.NodeName(), Logger: s.log,
	}
	if r.TLS {
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	b, err := cluster.Open(context.Background(), o)
	if err != nil {
		return err
	}
	s.bus, s.trust = b, bus.NewTrust(b, s.store.Living)
	return nil
}

// joinWait is how long a start waits for the other nodes. Where Redis is away the server starts without them.
const joinWait = 10 * time.Second

// join makes the node known to the others, before it lets clients in.
func (s *Server) join() error {
	if s.bus == nil {
		return nil
	}
	s.announceNow()
	run, stop := context.WithCancel(context.Background())
	s.settled.Go(func() {
		<-s.settling
		stop()
	})
	s.settled.Go(func() { s.trust.Run(run) })
	ctx, cancel := context.WithTimeout(context.Background(), joinWait)
	defer cancel()
	switch err := s.bus.Start(ctx); {
	case errors.Is(err, bus.ErrDown):
		s.log.Warn("starting without the other nodes of the cluster", "error", err)
	case err != nil:
		return err
	}
	if err := s.topics.Ready(ctx); err != nil {
		s.log.Warn("starting before it is known what the clients of all other nodes subscribe to", "error", err)
	}
	s.settled.Go(s.announce)
	return nil
}

// leave hands the clients over to the other nodes of the cluster, if there are any.
func (s *Server) leave(ctx context.Context) {
	s.leaving.Store(true)
	if s.bus == nil || s.topics == nil {
		return
	}
	s.announceNow()
	s.handOver(ctx)
}

var (
	errLeaving = errors.New("the server is stopping")
	errNoBus   = errors.New("cluster.redis cannot be used: what happens on other nodes is seen late")
)

// ready is nil when clients are to be sent here; otherwise it says why not.
func (s *Server) ready() error {
	if s.leaving.Load() {
		return errLeaving
	}
	if err := s.engine.Healthy(); err != nil {
		return err
	}
	if s.bus != nil && !s.bus.Up() {
		return errNoBus
	}
	return nil
}

// busCollector asks the bus once for all of its figures. A server without one has none.
type busCollector struct{ s *Server }

// Describe implements prometheus.Collector: the collector is unchecked.
func (c *busCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *busCollector) Collect(ch chan<- prometheus.Metric) {
	if c.s.bus == nil {
		return
	}
	m := c.s.bus.Metrics()
	emit := emitter("mqim_cluster_", ch)
	emit(prometheus.GaugeValue, "up", "1 while the other nodes can be reached.", flag(m.Up))
	emit(prometheus.GaugeValue, "peers", "Other nodes.", float64(m.Peers))
	emit(prometheus.GaugeValue, "subscriptions", "Channels in Redis that the node is subscribed to.", float64(m.Subscriptions))
	emit(prometheus.CounterValue, "published_total", "Messages for other nodes that Redis has taken.", float64(m.Published))
	emit(prometheus.CounterValue, "published_batches_total", "SPUBLISH commands that they were in.", float64(m.Batches))
	emit(prometheus.CounterValue, "pipelines_total", "Round trips to Redis that those were in.", float64(m.Pipelines))
	emit(prometheus.CounterValue, "received_total", "Messages from other nodes.", float64(m.Received))
	emit(prometheus.CounterValue, "received_batches_total", "Batches that they came in.", float64(m.ReceivedIn))
	for reason, n := range m.Dropped {
		emit(prometheus.CounterValue, "dropped_total", "Messages for other nodes that Redis has not taken, by reason; the store has them.", float64(n), "reason", reason)
	}
	emit(prometheus.CounterValue, "junk_total", "What came that no node has sent.", float64(m.Junk))
	emit(prometheus.CounterValue, "late_answers_total", "Answers of other nodes that nobody waited for any more.", float64(m.Late))
	emit(prometheus.CounterValue, "failures_total", "Connections to Redis lost, and attempts that have failed.", float64(m.Failures))
	emit(prometheus.CounterValue, "downs_total", "Times that the other nodes could not be reached any more.", float64(m.Downs))
	emit(prometheus.GaugeValue, "queue_messages", "Messages for other nodes that wait.", float64(m.Queued))
	emit(prometheus.GaugeValue, "queue_bytes", "Their size.", float64(m.QueuedBytes))
	emit(prometheus.GaugeValue, "round_trip_seconds", "How long the last sign of life took through Redis and back.", m.RoundTrip.Seconds())
}
