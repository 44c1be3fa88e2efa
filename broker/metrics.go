package broker

import (
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/mqim/mqim/im"
	"github.com/mqim/mqim/store/mysql"
	"github.com/mqim/mqim/store/pebble"
	"github.com/mqim/mqim/transport"
)

// metrics counts what the engine and the hooks tell, and asks the rest when /metrics is read. It implements
// im.Metrics and topics.Metrics.
type metrics struct {
	reg *prometheus.Registry

	accepted, committed, dups, delivered, retransmitted, acked, receipts prometheus.Counter
	topicDelivered                                                       prometheus.Counter
	refused, dropped, logins, denied, limited, throttled                 *prometheus.CounterVec
	batch, latency                                                       prometheus.Histogram
	queueMessages, queueBytes                                            prometheus.Gauge
	drops                                                                atomic.Int64 // of any reason
}

var _ im.Metrics = (*metrics)(nil)

func newMetrics() *metrics {
	m := &metrics{reg: prometheus.NewRegistry()}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "mqim_" + name, Help: help})
		m.reg.MustRegister(c)
		return c
	}
	vec := func(name, label, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mqim_" + name, Help: help}, []string{label})
		m.reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "mqim_" + name, Help: help})
		m.reg.MustRegister(g)
		return g
	}
	m.accepted = counter("messages_accepted_total", "Messages that were queued for commit.")
	m.committed = counter("messages_committed_total", "Messages that are durable.")
	m.dups = counter("messages_duplicate_total", "Messages that were recognized as sent before, by their cid.")
	m.delivered = counter("messages_delivered_total", "First deliveries of messages to devices.")
	m.retransmitted = counter("messages_retransmitted_total", "Deliveries repeated for want of an acknowledgement.")
	m.acked = counter("messages_acked_total", "Deliveries acknowledged by devices.")
	m.receipts = counter("receipts_total", "Receipts sent; one may speak for many messages.")
	m.topicDelivered = counter("topic_delivered_total", "Messages on ordinary topics handed to subscribers.")
	m.refused = vec("refused_total", "code", "Messages and commands refused, by error code.")
	m.dropped = vec("dropped_total", "reason", "What was not sent to a client, by reason. Messages are never dropped for want of an acknowledgement.")
	m.logins = vec("logins_refused_total", "reason", "Logins refused, by reason; unavailable: nobody could check.")
	m.denied = vec("acl_denied_total", "action", "Publishes and subscriptions to ordinary topics, denied by the rules or by MQTT's own.")
	m.limited = vec("limited_total", "limit", "What was refused since a limit was reached, by limit.")
	m.throttled = vec("logins_throttled_total", "what", "Logins that had to wait after failed ones, and those that were refused for it.")
	m.queueMessages = gauge("commit_queue_messages", "Messages that the last batch found waiting.")
	m.queueBytes = gauge("commit_queue_bytes", "The size of their bodies.")
	m.batch = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "mqim_commit_batch_messages", Help: "Messages in one commit, which is one sync.",
		Buckets: prometheus.ExponentialBuckets(1, 4, 8),
	})
	m.latency = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "mqim_commit_seconds", Help: "How long a commit took, sync included.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 2, 15),
	})
	m.reg.MustRegister(m.batch, m.latency, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) Accepted()            { m.accepted.Inc() }
func (m *metrics) Refused(code im.Code) { m.refused.WithLabelValues(string(code)).Inc() }
func (m *metrics) Delivered(n int)      { m.delivered.Add(float64(n)) }
func (m *metrics) Retransmitted()       { m.retransmitted.Inc() }
func (m *metrics) Acked(n int)          { m.acked.Add(float64(n)) }
func (m *metrics) Receipt()             { m.receipts.Inc() }
func (m *metrics) Dropped(reason string) {
	m.drops.Add(1)
	m.dropped.WithLabelValues(reason).Inc()
}

// LoginRefused counts a failed login.
func (m *metrics) LoginRefused(reason string) { m.logins.WithLabelValues(reason).Inc() }

// Denied counts what the rules for ordinary topics deny.
func (m *metrics) Denied(_ *mqtt.Client, _ string, write bool, _ int) {
	action := "sub"
	if write {
		action = "pub"
	}
	m.denied.WithLabelValues(action).Inc()
}

// Limited counts a refusal by the hooks.
func (m *metrics) Limited(limit string) { m.limited.WithLabelValues(limit).Inc() }

// Throttled counts what failed logins did to a login.
func (m *metrics) Throttled(what string) { m.throttled.WithLabelValues(what).Inc() }

func (m *metrics) Committed(messages, dups int, took time.Duration) {
	m.committed.Add(float64(messages - dups))
	m.dups.Add(float64(dups))
	m.batch.Observe(float64(messages))
	m.latency.Observe(took.Seconds())
}

func (m *metrics) Queue(messages, bytes int) {
	m.queueMessages.Set(float64(messages))
	m.queueBytes.Set(float64(bytes))
}

// TopicDelivered counts messages on ordinary topics.
func (m *metrics) TopicDelivered(n int) { m.topicDelivered.Add(float64(n)) }

// collect has listeners and store asked whenever /metrics is read.
func (m *metrics) collect(s *Server) {
	for _, l := range s.listeners {
		labels := prometheus.Labels{"listener": l.ID()}
		c := &l.Counters
		for name, v := range map[string]struct {
			help  string
			value func(*transport.Counters) int64
		}{
			"connections":                       {"Connections open.", func(c *transport.Counters) int64 { return c.Open.Load() }},
			"connections_total":                 {"Connections let in.", func(c *transport.Counters) int64 { return c.Accepted.Load() }},
			"connections_refused_full_total":    {"Connections refused: limits.connections.", func(c *transport.Counters) int64 { return c.RefusedMax.Load() }},
			"connections_refused_address_total": {"Connections refused: limits.connections_per_address.", func(c *transport.Counters) int64 { return c.RefusedAddress.Load() }},
			"connections_refused_rate_total":    {"Connections refused: limits.connect_backlog.", func(c *transport.Counters) int64 { return c.RefusedRate.Load() }},
			"connections_gave_up_total":         {"Connections closed by the peer while they waited for their turn.", func(c *transport.Counters) int64 { return c.GaveUp.Load() }},
			"connections_refused_proxy_total":   {"Connections refused: PROXY header.", func(c *transport.Counters) int64 { return c.RefusedProxy.Load() }},
			"reading_paused_bytes_total":        {"Pauses in reading: limits.bytes_per_second.", func(c *transport.Counters) int64 { return c.PausedBytes.Load() }},
			"reading_paused_messages_total":     {"Pauses in reading: limits.messages_per_second.", func(c *transport.Counters) int64 { return c.PausedMessages.Load() }},
			"reading_paused_overload_total":     {"Pauses in reading: overload.", func(c *transport.Counters) int64 { return c.PausedSlow.Load() }},
			"connections_refused_tls_total":     {"Connections refused: TLS handshake.", func(c *transport.Counters) int64 { return c.RefusedTLS.Load() }},
			"connections_refused_http_total":    {"Connections refused: no WebSocket upgrade.", func(c *transport.Counters) int64 { return c.RefusedHTTP.Load() }},
			"connect_timeouts_total":            {"Connections closed for want of a CONNECT.", func(c *transport.Counters) int64 { return c.ConnectTimeouts.Load() }},
			"slow_readers_total":                {"Connections closed since the peer did not read.", func(c *transport.Counters) int64 { return c.SlowReaders.Load() }},
			"connection_panics_total":           {"Connections ended by a recovered panic.", func(c *transport.Counters) int64 { return c.Panics.Load() }},
			"accept_errors_total":               {"Failed accepts, mostly for want of file descriptors.", func(c *transport.Counters) int64 { return c.AcceptErrors.Load() }},
			"bytes_received_total":              {"Bytes of MQTT that came in.", func(c *transport.Counters) int64 { return c.In.Bytes.Load() }},
			"bytes_sent_total":                  {"Bytes of MQTT that went out.", func(c *transport.Counters) int64 { return c.Out.Bytes.Load() }},
			"packets_received_total":            {"MQTT packets that came in.", func(c *transport.Counters) int64 { return c.In.Packets.Load() }},
			"packets_sent_total":                {"MQTT packets that went out.", func(c *transport.Counters) int64 { return c.Out.Packets.Load() }},
			"publishes_received_total":          {"PUBLISH packets that came in.", func(c *transport.Counters) int64 { return c.In.Publishes.Load() }},
			"publishes_sent_total":              {"PUBLISH packets that went out.", func(c *transport.Counters) int64 { return c.Out.Publishes.Load() }},
		} {
			o := prometheus.Opts{Name: "mqim_" + name, Help: v.help, ConstLabels: labels}
			f := func() float64 { return float64(v.value(c)) }
			if name == "connections" {
				m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts(o), f))
			} else {
				m.reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts(o), f))
			}
		}
	}
	m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mqim_connections_waiting", Help: "Connections that wait for their turn: limits.connects_per_second.",
	}, func() float64 { return float64(s.limits.Waiting()) }))
	s.overload.Levels(func(cause string, level func() int) {
		m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mqim_overload_level", Help: "0 normal, 1 reading is slowed, 2 connections are refused, 3 messages are refused.",
			ConstLabels: prometheus.Labels{"cause": cause},
		}, func() float64 { return float64(level()) }))
	})
	for name, entries := range s.engine.CacheEntries() {
		m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mqim_cache_entries", Help: "What is remembered of what the store holds, by what it is.",
			ConstLabels: prometheus.Labels{"cache": name},
		}, func() float64 { return float64(entries()) }))
	}
	m.reg.MustRegister(&storeCollector{s: s}, &busCollector{s: s})
}

// storeCollector asks the store once for all of its figures.
type storeCollector struct{ s *Server }

// Describe implements prometheus.Collector: the collector is unchecked.
func (c *storeCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *storeCollector) Collect(ch chan<- prometheus.Metric) {
	figure := emitter("mqim_store_", ch)
	c.s.storeFigures(figure)
	figure(prometheus.GaugeValue, "retained_messages", "Retained messages.", float64(c.s.retained()))
}

// emitter emits figures whose names begin with prefix.
func emitter(prefix string, ch chan<- prometheus.Metric) emit {
	return func(kind prometheus.ValueType, name, help string, v float64, label ...string) {
		var names, values []string
		if len(label) > 0 {
			names, values = label[:1], label[1:]
		}
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(prefix+name, help, names, nil), kind, v, values...)
	}
}

func pebbleFigures(st pebble.Metrics, emit emit) {
	emit(prometheus.GaugeValue, "disk_bytes", "Disk space in use.", float64(st.DiskUsage))
	emit(prometheus.GaugeValue, "disk_free_bytes", "Disk space left.", float64(st.FreeSpace))
	emit(prometheus.GaugeValue, "disk_full", "1 while sends are refused for want of disk space.", flag(st.DiskFull))
	emit(prometheus.GaugeValue, "memtable_bytes", "Memory holding what is in the write-ahead log only.", float64(st.MemtableSize))
	emit(prometheus.GaugeValue, "compaction_debt_bytes", "What compactions have yet to rewrite.", float64(st.CompactionDebt))
	emit(prometheus.GaugeValue, "read_amplification", "Places that a read may have to look into.", float64(st.ReadAmp))
	emit(prometheus.CounterValue, "wal_bytes_total", "Bytes written to the write-ahead log.", float64(st.WALWritten))
	emit(prometheus.CounterValue, "cache_hits_total", "Block cache hits.", float64(st.CacheHits))
	emit(prometheus.CounterValue, "cache_misses_total", "Block cache misses.", float64(st.CacheMisses))
	emit(prometheus.CounterValue, "background_errors_total", "Failed flushes and compactions.", float64(st.BackgroundErrors))
	emit(prometheus.CounterValue, "corruptions_total", "Damaged blocks met.", float64(st.Corruptions))
	emit(prometheus.CounterValue, "queued_lost_total", "Messages that were in the queues of sessions that have ended.", float64(st.QueuedLost))
	emit(prometheus.CounterValue, "write_stalls_total", "Times that writing had to wait for the disk.", float64(st.WriteStalls))
}

func mysqlFigures(st mysql.Metrics, emit emit) {
	emit(prometheus.CounterValue, "commits_total", "Transactions that were committed; with messages in them or without.", float64(st.Commits))
	emit(prometheus.CounterValue, "committed_messages_total", "Messages in them, those on ordinary topics included.", float64(st.Messages))
	emit(prometheus.CounterValue, "round_trips_total", "Times that the database was asked.", float64(st.RoundTrips))
	for reason, n := range st.Retries {
		emit(prometheus.CounterValue, "retries_total", "Transactions tried again, by reason.", float64(n), "reason", reason)
	}
	emit(prometheus.CounterValue, "unknown_outcomes_total", "Commits without an answer, whose outcome had to be looked up.", float64(st.Unknown))
	emit(prometheus.GaugeValue, "connections", "Connections to the database.", float64(st.Connections))
	emit(prometheus.GaugeValue, "connections_in_use", "Those of them that are in use.", float64(st.InUse))
	emit(prometheus.CounterValue, "connection_waits_total", "Times that a connection had to be waited for: store.mysql.connections.", float64(st.Waits))
	for _, r := range st.Replicas {
		emit(prometheus.GaugeValue, "replica_up", "1 while a replica serves reads.", flag(r.Up), "replica", r.Name)
		emit(prometheus.GaugeValue, "replica_lag_seconds", "How far a replica lagged when it last answered, to the second.", r.Lag.Seconds(), "replica", r.Name)
		emit(prometheus.CounterValue, "replica_reads_total", "Reads that a replica has served.", float64(r.Reads), "replica", r.Name)
	}
	for reason, n := range st.Passed {
		emit(prometheus.CounterValue, "replica_passed_total", "Reads that the database had to serve, though a replica might have, by reason.", float64(n), "reason", reason)
	}
	emit(prometheus.GaugeValue, "away", "1 while sends are refused since the database is away, or its lock is not held.", flag(st.Away))
	emit(prometheus.CounterValue, "corruptions_total", "Damaged values met.", float64(st.Corruptions))
	emit(prometheus.CounterValue, "queued_lost_total", "Messages that were in the queues of sessions that have ended.", float64(st.QueuedLost))
}
