package mysql

import (
	"errors"

	"github.com/go-sql-driver/mysql"
)

// Metrics are counters since Open and the state of the connections.
type Metrics struct {
	Commits     int64            // transactions that Commit has stored
	Messages    int64            // in them
	RoundTrips  int64            // to the database
	Retries     map[string]int64 // attempts at a Commit after the first, by reason
	Unknown     int64            // answers to COMMIT that were lost, whose outcome was looked up
	Connections int              // open
	InUse       int              // of them
	Waits       int64            // calls that had to wait for a connection
	Corruptions int64            // damaged values met
	QueuedLost  int64            // messages that were in the queues of sessions that have ended
	Away        bool             // Commits are refused
	Replicas    []ReplicaMetrics
	Passed      map[string]int64 // reads that no replica has served, though one might have, by reason; nil without replicas
}

// Reasons for another attempt.
const (
	reasonDeadlock = iota
	reasonLockWait
	reasonDuplicate
	reasonConflict
	reasonLostCommit
	reasonAway
	reasons
)

var reasonNames = [reasons]string{"deadlock", "lock_wait", "duplicate", "conflict", "lost_commit", "away"}

// reasonOf says why there is another attempt after err.
func reasonOf(err error) int {
	var server *mysql.MySQLError
	switch {
	case errors.Is(err, errNotStored):
		return reasonLostCommit
	case troubleOf(err) == away:
		return reasonAway
	case !errors.As(err, &server):
		return reasonConflict
	}
	switch server.Number {
	case 1213:
		return reasonDeadlock
	case 1205:
		return reasonLockWait
	case 1062:
		return reasonDuplicate
	}
	return reasonConflict
}

// Metrics may be called at any time, after Close too.
func (s *Store) Metrics() Metrics {
	db := s.db.Stats()
	m := Metrics{
		Commits: s.counters.commits.Load(), Messages: s.counters.messages.Load(), RoundTrips: s.counters.roundTrips.Load(),
		Retries: map[string]int64{}, Unknown: s.counters.unknown.Load(),
		Connections: db.OpenConnections, InUse: db.InUse, Waits: db.WaitCount,
		Corruptions: s.counters.corrupt.Load(), QueuedLost: s.counters.lost.Load(), Away: s.Healthy() != nil,
	}
	m.Replicas, m.Passed = s.replicaMetrics()
	for i, name := range reasonNames {
		m.Retries[name] = s.counters.retries[i].Load()
	}
	return m
}
