package broker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mqim/mqim/broker/config"
	"github.com/mqim/mqim/im"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/mysql"
	"github.com/mqim/mqim/store/pebble"
)

// openStore opens the driver that the configuration names.
func (s *Server) openStore(ids store.IDs) error {
	if s.cfg.Store.Driver == "mysql" {
		return s.openMySQL(ids)
	}
	p := &s.cfg.Store.Pebble
	st, err := pebble.Open(pebble.Options{
		Path: p.Path, Sync: p.Sync, MinFree: uint64(p.MinFree), IDs: ids, Logger: s.log, Retention: retention(s.cfg),
	})
	if err != nil {
		return err
	}
	s.store = st
	s.storeFigures = func(emit emit) { pebbleFigures(st.Metrics(), emit) }
	return nil
}

// openMySQL shares the database with the other nodes of a cluster. Without one it has it to itself: two servers would know
// nothing of each other's clients.
func (s *Server) openMySQL(ids store.IDs) error {
	name := fmt.Sprintf("node %s, process %d", s.cfg.NodeName(), os.Getpid())
	if host, err := os.Hostname(); err == nil {
		name += " on " + host
	}
	m := &s.cfg.Store.MySQL
	var replicas []string
	for _, dsn := range m.Replicas {
		replicas = append(replicas, string(dsn))
	}
	st, err := mysql.Open(context.Background(), mysql.Options{
		DSN: string(m.DSN), Replicas: replicas, Connections: m.Connections, AllowUnsafe: m.AllowUnsafe, IDs: ids, Logger: s.log,
		Retention: retention(s.cfg), MessageBytes: int(max(s.cfg.Limits.MessageBytes, s.cfg.Limits.CommandBytes)),
		Exclusive: !s.cfg.Cluster.On(), Name: name, Taken: func(err error) { s.failed <- err },
		Shared: s.cfg.Cluster.On(), NewIDs: func(n int) (store.IDs, error) { return im.NewSnowflakes(int64(n)) },
	})
	if err != nil {
		return err
	}
	s.store = st
	s.storeFigures = func(emit emit) { mysqlFigures(st.Metrics(), emit) }
	return nil
}

func retention(c *config.Config) store.Retention {
	return store.Retention{
		InboxMessages: uint64(c.Inbox.MaxMessages), InboxTTL: c.Inbox.TTL.D(),
		HistoryTTL: c.History.TTL.D(), Dedupe: c.Dedupe.Window.D(),
		Topics: store.QueueLimits{
			Messages: uint64(c.Sessions.MaxQueued), Refuse: c.Sessions.Overflow == config.OverflowRefuse,
			Retained: uint64(c.Limits.RetainedMessages),
		},
	}
}

// logStore says where messages are kept.
func (s *Server) logStore() {
	c := &s.cfg.Store
	if st, ok := s.store.(*mysql.Store); ok {
		attrs := []any{"driver", c.Driver, "database", st.Place()}
		if number, _ := st.Lease(); number >= 0 {
			attrs = append(attrs, "number", number)
		}
		s.log.Info("storing messages", attrs...)
		return
	}
	path := c.Pebble.Path
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	s.log.Info("storing messages", "driver", c.Driver, "path", path, "sync", c.Pebble.Sync)
	if c.Pebble.Sync != pebble.SyncCommit {
		s.log.Warn("store.pebble.sync is not commit: a power failure may take acknowledged messages of the last moment")
	}
}

// emit hands a figure to /metrics; label is "" or a name and a value.
type emit func(kind prometheus.ValueType, name, help string, v float64, label ...string)

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
