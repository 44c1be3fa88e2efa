package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/mqim/mqim/store"
)

// replicas are copies of the database that answer what may be a moment old (store.Relaxed).
//
// How far a copy has come it says itself: each attempt at a transaction takes a number, process-wide and rising, which the
// transaction writes to the row of its lane. What was committed by anybody before a number was taken precedes it in the
// log of the server, so a copy that shows the number has that too, provided that it commits in the order of the server. A
// read asks for the rows of this process first, on the connection that it then reads from: those of the lane of messages and,
// so that numbers rise where nobody sends, one that is written every pingEvery. The rows are named at random, so
// that a copy of another database has none of them.
//
// A read that needs more than the copy has, or fails, begins again on the database. A copy that has failed is left out at
// once and looked at every second, later less often, until it answers again.
type replicas struct {
	list    []*replica
	turn    atomic.Uint64
	touched touched

	signed atomic.Uint64 // greatest number that is in a row which reads look at: none has come further
	floor  atomic.Uint64 // a copy that has not come to it lags too much
	seen   atomic.Int64  // when the last number of keepSigning was taken, Unix milliseconds

	passed [passes]atomic.Int64 // reads that the database had to serve
}

const (
	replicaTimeout = time.Second // what a read may take on a copy, and wait for a connection to it
	startProbe     = 100 * time.Millisecond
	longestProbe   = 5 * time.Second
	replicaCalm    = 30 * time.Second // without failure: then the next pause is short again
)

// replicaLag is how much a copy may lag that is not left out; changed by tests.
var replicaLag = 5 * time.Second

// Reasons why the database serves a read that a copy might have.
const (
	passFresh  = iota // so new that no copy can have it
	passBehind        // newer than what the copy has
	passFailed        // the copy failed
	passNone          // there is no good copy
	passBusy          // all connections to the copy were in use
	passes
)

var passNames = [passes]string{"fresh", "behind", "failed", "none", "busy"}

var (
	errBehind   = errors.New("it lags")
	errStarting = errors.New("nothing of this process has arrived there yet")
)

// replica is one copy.
type replica struct {
	s      *Store
	name   string // address and database
	db     *sql.DB
	slots  chan struct{} // one for each connection
	broken chan struct{} // a read has failed
	good   atomic.Bool
	lag    atomic.Int64 // milliseconds, to the second
	reads  atomic.Int64

	mu      sync.Mutex // guards what follows, and changes of good
	known   bool       // it has been good or bad
	changed time.Time  // when good last changed
}

// openReplicas makes the pools; nothing is connected. The errors quote no DSN.
func (s *Store) openReplicas() error {
	names := map[string]bool{}
	for i, dsn := range s.opts.Replicas {
		c, err := mysql.ParseDSN(dsn)
		if err != nil || c.DBName == "" {
			return fmt.Errorf("store.mysql: replica %d: not a DSN; expected user:password@tcp(host:3306)/database", i)
		}
		r := &replica{
			s: s, name: c.Addr + "/" + c.DBName, slots: make(chan struct{}, s.opts.Connections), broken: make(chan struct{}, 1),
		}
		if names[r.name] {
			return fmt.Errorf("store.mysql: replica %d: %s is in the list already", i, r.name)
		}
		names[r.name] = true
		// The server itself refuses to write, whatever it is that it was told to be a copy of.
		if r.db, err = s.reading(c, replicaTimeout, "; SET SESSION TRANSACTION READ ONLY"); err != nil {
			return fmt.Errorf("store.mysql: replica %d: the DSN cannot be used", i)
		}
		s.replicas.list = append(s.replicas.list, r)
	}
	return nil
}

func (s *Store) closeReplicas() (err error) {
	for _, r := range s.replicas.list {
		err = errors.Join(err, r.db.Close())
	}
	return err
}

// startReplicas looks after the copies until ctx ends.
func (s *Store) startReplicas(ctx context.Context) {
	if len(s.replicas.list) == 0 {
		return
	}
	s.done.Go(func() { s.keepSigning(ctx) })
	for _, r := range s.replicas.list {
		s.done.Go(func() { r.keep(ctx) })
	}
}

// keepSigning writes a number every pingEvery.
func (s *Store) keepSigning(ctx context.Context) {
	type sign struct {
		n  uint64
		at time.Time
	}
	var signs []sign // of the last replicaLag
	for t := time.NewTicker(pingEvery); ; {
		x := sign{s.batches.Add(1), time.Now()}
		p := s.packet()
		p.do(signWriter, s.signRow(), x.n, s.committed.Load(), x.at.UnixMilli())
		one, cancel := context.WithTimeout(ctx, s.opts.Timeout)
		err := p.run(one, s.db) // that the database is away others notice and say
		cancel()
		if err == nil {
			s.replicas.seen.Store(x.at.UnixMilli())
			s.signed(x.n)
			signs = append(signs, x)
		}
		for len(signs) > 0 && time.Since(signs[0].at) > replicaLag {
			s.replicas.floor.Store(signs[0].n)
			signs = signs[1:]
		}
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// signRow is the row that keepSigning writes. It says nothing to Writes.
func (s *Store) signRow() string { return string(laneOther) + s.node }

// signed notes a number that is committed in a row which reads look at.
func (s *Store) signed(n uint64) {
	for x := s.replicas.signed.Load(); n > x && !s.replicas.signed.CompareAndSwap(x, n); {
		x = s.replicas.signed.Load()
	}
}

// askSigned asks a copy how far it has come.
func (s *Store) askSigned(p *packet, take func(id string, n uint64, seen int64)) {
	p.names(getWriters, func(r *sql.Rows) error {
		var id string
		var n uint64
		var seen int64
		err := r.Scan(&id, &n, &seen)
		take(id, n, seen)
		return err
	}, []string{s.signRow(), *s.sender.row.Load()})
}

// keep looks at a copy until ctx ends.
func (r *replica) keep(ctx context.Context) {
	for pause := pingEvery; ; {
		err := r.probe(ctx)
		wait := pingEvery
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errStarting) && r.s.replicas.floor.Load() == 0:
			wait = startProbe
		case err != nil:
			wait, pause = pause, min(2*pause, longestProbe)
			r.set(err)
		default:
			r.set(nil)
			if r.calm() {
				pause = pingEvery
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
			continue
		case <-r.broken:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
			pause = min(2*pause, longestProbe)
		}
	}
}

// set notes whether the copy serves, err being why not.
func (r *replica) set(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	good := err == nil
	if r.known && r.good.Load() == good {
		return
	}
	r.known, r.changed = true, time.Now()
	r.good.Store(good)
	if good {
		r.s.log.Info("store.mysql: reading from a replica", "replica", r.name)
		return
	}
	r.s.log.Warn("store.mysql: a replica is left out", "replica", r.name, "err", err)
}

func (r *replica) calm() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Since(r.changed) > replicaCalm
}

// fail is set for a read.
func (r *replica) fail(err error) {
	r.set(err)
	select {
	case r.broken <- struct{}{}:
	default:
	}
}

// probe is nil when the copy may serve.
func (r *replica) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, replicaTimeout)
	defer cancel()
	s := r.s
	var epoch string
	var n uint64
	var seen int64
	last := s.replicas.seen.Load()
	p := s.packet()
	p.get(getMeta, func(rows *sql.Rows) error { return rows.Scan(&epoch) }, "epoch")
	s.askSigned(p, func(id string, x uint64, at int64) {
		n = max(n, x)
		if id == s.signRow() {
			seen = at
		}
	})
	if err := p.run(ctx, r.db); err != nil {
		return err
	}
	if epoch != s.epoch {
		return errors.New("it holds another store, or none")
	}
	if n == 0 {
		return errStarting
	}
	r.lag.Store(max(last-seen, 0))
	if floor := s.replicas.floor.Load(); n < floor {
		return fmt.Errorf("%w by more than %s", errBehind, replicaLag)
	}
	if r.good.Load() {
		return nil
	}
	return r.ordered(ctx)
}

// ordered refuses a copy that commits in another order than the server: MySQL's before 8.0.27 may.
func (r *replica) ordered(ctx context.Context) error {
	vars, err := variables(ctx, r.db, `'replica_preserve_commit_order', 'slave_preserve_commit_order',
		'replica_parallel_workers', 'slave_parallel_workers'`)
	if err != nil {
		return err
	}
	return checkOrder(vars)
}

// checkOrder looks at the settings of a copy. MariaDB has none for the order, which it always keeps.
func checkOrder(vars map[string]string) error {
	for _, prefix := range []string{"replica", "slave"} {
		if v := vars[prefix+"_preserve_commit_order"]; v == "OFF" || v == "0" {
			if n := vars[prefix+"_parallel_workers"]; n != "0" && n != "1" {
				return errors.New(prefix + "_preserve_commit_order is OFF, want ON")
			}
		}
	}
	return nil
}

// source is where the reads of one call go.
type source struct {
	s    *Store
	conn *sql.Conn // to a copy; nil: the database itself

	need  uint64 // what the copy must have come to
	asked bool   // how far it has come
	shown uint64
}

// read is Store.read; what a copy answers that has not come far enough is errBehind.
func (x *source) read(ctx context.Context, p *packet, format string, args ...any) error {
	if x.conn == nil {
		return x.s.read(ctx, p, format, args...)
	}
	if !x.asked {
		x.asked = true
		first := x.s.packet()
		x.s.askSigned(first, func(_ string, n uint64, _ int64) { x.shown = max(x.shown, n) })
		p.items = append(first.items, p.items...)
	}
	if err := p.run(ctx, x.conn); err != nil {
		return err
	}
	return x.require()
}

// require is errBehind when the copy has not what this process has done for the names.
func (x *source) require(names ...string) error {
	if x.conn == nil {
		return nil
	}
	x.need = max(x.need, x.s.replicas.touched.need(names...))
	if x.shown < x.need {
		return errBehind
	}
	return nil
}

// near has read run on a copy, where ctx says that it may (store.Relaxed), and on the database where that came to
// nothing; so it may be called twice. It is about the names.
func (s *Store) near(ctx context.Context, read func(context.Context, *source) error, names ...string) error {
	if user, ok := store.RelaxedFor(ctx); ok && len(s.replicas.list) > 0 {
		pass, err := s.onReplica(ctx, read, append(names, user))
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return s.wrap(ctx.Err(), "read")
		}
		s.replicas.passed[pass].Add(1)
	}
	return read(ctx, &source{s: s})
}

// onReplica runs read on the copy whose turn it is.
func (s *Store) onReplica(ctx context.Context, read func(context.Context, *source) error, names []string) (pass int, err error) {
	need := max(s.replicas.touched.need(names...), s.replicas.floor.Load(), 1)
	if need > s.replicas.signed.Load() {
		return passFresh, errBehind
	}
	r := s.pick()
	if r == nil {
		return passNone, errBehind
	}
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return passBusy, ctx.Err()
	case <-time.After(replicaTimeout):
		return passBusy, errBehind
	}
	defer func() { <-r.slots }()
	if !r.good.Load() { // since it was picked
		return passNone, errBehind
	}
	one, cancel := context.WithTimeout(ctx, replicaTimeout)
	defer cancel()
	x := &source{s: s, need: need}
	if x.conn, err = r.db.Conn(one); err == nil {
		err = read(one, x)
		_ = x.conn.Close() // gives it back
	}
	switch {
	case err == nil:
		r.reads.Add(1)
		return 0, nil
	case ctx.Err() != nil:
		return passFailed, err
	case errors.Is(err, errBehind) && x.shown >= s.replicas.floor.Load():
		return passBehind, err
	}
	r.fail(err)
	return passFailed, err
}

// pick is a good copy, each in its turn; nil if there is none.
func (s *Store) pick() *replica {
	n := uint64(len(s.replicas.list))
	turn := s.replicas.turn.Add(1)
	for i := range n {
		if r := s.replicas.list[(turn+i)%n]; r.good.Load() {
			return r
		}
	}
	return nil
}

// ReplicaMetrics is the state of one replica.
type ReplicaMetrics struct {
	Name  string // address and database
	Up    bool   // it serves reads
	Lag   time.Duration
	Reads int64 // calls that it has answered
}

func (s *Store) replicaMetrics() (list []ReplicaMetrics, passed map[string]int64) {
	if len(s.replicas.list) == 0 {
		return nil, nil
	}
	for _, r := range s.replicas.list {
		list = append(list, ReplicaMetrics{r.name, r.good.Load(), time.Duration(r.lag.Load()) * time.Millisecond, r.reads.Load()})
	}
	passed = map[string]int64{}
	for i, name := range passNames {
		passed[name] = s.replicas.passed[i].Load()
	}
	return list, passed
}
