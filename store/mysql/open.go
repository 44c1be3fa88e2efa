package mysql

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/mqim/mqim/store"
)

// Options says where the database is and what the store keeps. Only DSN is needed.
type Options struct {
	// DSN is how to connect, as github.com/go-sql-driver/mysql has it: user:password@tcp(host:3306)/database. What this
	// package needs of the session it sets itself.
	DSN       string
	Retention store.Retention
	// IDs makes message ids; nil: milliseconds of the clock, shifted, which serves one process alone. Next is called by
	// one goroutine at a time.
	IDs    store.IDs
	Logger *slog.Logger // nil: slog.Default
	// Connections is how many connections are open at most; 0: 16.
	Connections int
	// Timeout is how long a Commit may try, and a statement may take; 0: 10 s.
	Timeout time.Duration
	// MessageBytes is the longest body that there will be, in bytes, which the server must be able to take; 0: not checked.
	MessageBytes int
	// Exclusive keeps every other process with Exclusive or Shared out of the database, for as long as this one lives.
	Exclusive bool
	// Shared is for the processes of a cluster: it keeps Exclusive ones out, and leases a node number, 0 to 1023, for as long
	// as this one lives. NewIDs makes the message ids of a number, in the place of IDs.
	Shared bool
	NewIDs func(number int) (store.IDs, error)
	// Name is what others are told about this process.
	Name string
	// Taken, if not nil, is called once, when another process has taken over an Exclusive database: nothing will be
	// committed any more. It must not call Close.
	Taken func(error)
	// Replicas are copies of the database, made by the server's own replication, that serve reads which may be a moment old
	// (store.Relaxed); each a DSN. None of them need be there.
	Replicas []string
	// AllowUnsafe lets a server serve that may forget what it has committed.
	AllowUnsafe bool

	beatEvery, nodeTTL time.Duration // set by tests
}

const (
	defaultConnections = 16
	defaultTimeout     = 10 * time.Second
	lazyLanes          = 4                // batches without messages that are committed at once
	lockWait           = 5                // seconds that a statement waits for a lock
	idleTime           = 10               // seconds after which the server ends a session that does nothing; see pool
	leastPacket        = 4 << 20          // max_allowed_packet, bytes
	pingEvery          = time.Second      // while the database is away
	beatEvery          = 5 * time.Second  // each process shows that it is alive
	nodeTTL            = 30 * time.Second // without that it counts as gone
)

// Store is the driver. See the package comment for what is locked when.
type Store struct {
	opts      Options
	log       *slog.Logger
	db        *sql.DB
	name      string // of the database
	maxPacket int    // bytes
	epoch     string
	node      string        // names this opening of the store
	opened    int64         // when, Unix milliseconds
	inboxTTL  time.Duration // the shorter of InboxTTL and HistoryTTL: an entry without its message is of no use
	counters  counters

	sends     chan *lane            // of batches with messages: one
	sender    *lane                 // that one
	pubs      chan *lane            // of batches with what concerns ordinary topics, and no messages: one
	lazy      chan *lane            // of all others
	lease     atomic.Pointer[lease] // what makes ids
	committed atomic.Int64          // greatest id that this process has committed
	batches   atomic.Uint64         // the last number of an attempt at a transaction
	replicas  replicas

	health  health
	owner   owner
	copying bool // it is a Copy

	life   sync.RWMutex // shared by calls, exclusive for Close; guards closed
	closed bool

	maintMu sync.Mutex // guards maint
	maint   maintainer

	stop context.CancelFunc // ends the pinger
	done sync.WaitGroup
}

var _ store.Store = (*Store)(nil)

type counters struct {
	commits, messages, roundTrips, unknown, corrupt, lost atomic.Int64
	retries                                               [reasons]atomic.Int64
}

// ids gives out message ids.
type ids struct {
	mu   sync.Mutex
	from store.IDs
	last int64
}

// greatest is the last id that was made, 0 if none.
func (i *ids) greatest() int64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.last
}

func (i *ids) next(after int64) (int64, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	after = max(after, i.last)
	id := i.from.Next(after)
	if id <= after {
		return 0, fmt.Errorf("id generator gave %d after %d", id, after)
	}
	i.last = id
	return id, nil
}

type clockIDs struct{}

func (clockIDs) Next(after int64) int64 { return max(after+1, time.Now().UnixMilli()<<20) }

// Open connects, looks whether the server is fit, and makes or updates the schema. The error does not quote the DSN,
// which has a password in it.
//
// Where the database does not answer it fails at once. An Exclusive store, and a Shared one, waits ownerWait for an
// Exclusive process to end.
// Errors: ErrLocked.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Shared && (o.Exclusive || o.NewIDs == nil) {
		return nil, errors.New("store.mysql: a shared store is not exclusive, and needs NewIDs")
	}
	s := newStore(o)
	if err := s.connect(); err != nil {
		return nil, err
	}
	err := s.openReplicas()
	if err == nil {
		err = s.start(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.closeOwner(), s.closeReplicas(), s.db.Close())
	}
	return s, nil
}

func newStore(o Options) *Store {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.IDs == nil {
		o.IDs = clockIDs{}
	}
	if o.Connections <= 0 {
		o.Connections = defaultConnections
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.beatEvery == 0 {
		o.beatEvery, o.nodeTTL = beatEvery, nodeTTL
	}
	s := &Store{opts: o, log: o.Logger, inboxTTL: o.Retention.InboxTTL, maxPacket: softPacket}
	s.lease.Store(&lease{number: -1, ids: ids{from: o.IDs}})
	if h := o.Retention.HistoryTTL; h > 0 && (s.inboxTTL == 0 || h < s.inboxTTL) {
		s.inboxTTL = h
	}
	var id [16]byte
	_, _ = rand.Read(id[:])
	s.node, s.opened = string(id[:]), time.Now().UnixMilli()
	return s
}

func (s *Store) connect() error {
	c, err := mysql.ParseDSN(s.opts.DSN)
	if err != nil {
		return errors.New("store.mysql: not a DSN; expected user:password@tcp(host:3306)/database")
	}
	if c.DBName == "" {
		return errors.New("store.mysql: the DSN names no database")
	}
	s.name = c.DBName
	s.db, err = s.reading(c, s.opts.Timeout, "")
	return err
}

// reading is a pool of Options.Connections.
func (s *Store) reading(c *mysql.Config, timeout time.Duration, more string) (*sql.DB, error) {
	db, err := s.pool(c, timeout, idleTime, more)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(s.opts.Connections)
	db.SetMaxIdleConns(s.opts.Connections)
	db.SetConnMaxIdleTime(idleTime / 2 * time.Second)
	db.SetConnMaxLifetime(time.Hour) // lets connections move to a server that has come back
	return db, nil
}

// pool makes connections on which a statement may take as long as timeout (0: for ever), and which the server ends when
// they have been idle for so many seconds: a process that hangs or is cut off in a transaction keeps its locks that long,
// and the other nodes wait for them. more is what else a session begins with.
func (s *Store) pool(c *mysql.Config, timeout time.Duration, idle int, more string) (*sql.DB, error) {
	c = c.Clone()
	c.MultiStatements, c.InterpolateParams, c.ParseTime = true, true, false
	c.Collation = "binary" // names and bodies are bytes: nothing is to be converted
	c.MaxAllowedPacket = 64 << 20
	c.Timeout, c.ReadTimeout, c.WriteTimeout = cmp.Or(timeout, s.opts.Timeout), timeout, timeout
	c.Logger = &mysql.NopLogger{}
	inner, err := mysql.NewConnector(c)
	if err != nil {
		return nil, errors.New("store.mysql: the DSN cannot be used")
	}
	return sql.OpenDB(connector{inner, fmt.Sprintf(session, lockWait, idle) + more}), nil
}

// connector prepares each session.
type connector struct {
	driver.Connector
	session string
}

const session = `SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; SET SESSION autocommit = 1,
	sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', innodb_lock_wait_timeout = %d, wait_timeout = %d`

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := conn.(driver.ExecerContext).ExecContext(ctx, c.session, nil); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// discard closes a connection that may be in the middle of something.
func discard(c *sql.Conn) {
	_ = c.Raw(func(any) error { return driver.ErrBadConn })
}

func (s *Store) start(ctx context.Context) error {
	if err := s.inspect(ctx); err != nil {
		return err
	}
	if s.opts.Exclusive {
		if err := s.lockOwner(ctx); err != nil {
			return err
		}
	}
	applied, err := s.migrate(ctx)
	if err != nil {
		return err
	}
	if len(applied) > 0 {
		s.log.Info("store.mysql: the schema is up to date", "applied", applied)
	}
	if s.copying {
		// Before claim, which forgets other processes. An unfinished copy has none but those that were copying.
		mark, err := s.mark(ctx)
		if err == nil && mark == "" {
			err = s.alone(ctx)
		}
		if err != nil {
			return err
		}
	}
	if s.opts.Exclusive {
		if err := s.refuseShared(ctx); err != nil {
			return err
		}
		if err := s.claim(ctx); err != nil {
			return err
		}
	}
	if err := s.loadEpoch(ctx); err != nil {
		return err
	}
	s.sends, s.pubs, s.lazy = make(chan *lane, 1), make(chan *lane, 1), make(chan *lane, lazyLanes)
	s.sender = newLane(s, laneFeeds)
	s.sends <- s.sender
	s.pubs <- newLane(s, laneFeeds)
	for range lazyLanes {
		s.lazy <- newLane(s, laneOther)
	}
	if err := s.beat(ctx); err != nil {
		return fmt.Errorf("store.mysql: %w", err)
	}
	if !s.copying {
		if err := s.refuseCopy(ctx); err != nil {
			return err
		}
	}
	if s.opts.Shared {
		if err := s.takeNumber(ctx); err != nil {
			return errors.Join(err, s.forget(ctx))
		}
	}
	pinging, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	s.done.Go(func() { s.ping(pinging) })
	s.startReplicas(pinging)
	if s.opts.Exclusive {
		s.done.Go(func() { s.keepOwner(pinging) })
	}
	if s.opts.Shared {
		s.done.Go(func() { s.keepNumber(pinging) })
	}
	return nil
}

// inspect refuses a server that would lose what it says is committed, or takes too little at once.
func (s *Store) inspect(ctx context.Context) error {
	vars, err := variables(ctx, s.db, `'max_allowed_packet', 'innodb_flush_log_at_trx_commit', 'log_bin', 'sync_binlog', 'binlog_format'`)
	if err != nil {
		return fmt.Errorf("store.mysql: connect: %w", err)
	}
	if _, err := fmt.Sscan(vars["max_allowed_packet"], &s.maxPacket); err != nil || s.maxPacket < leastPacket {
		return fmt.Errorf("store.mysql: max_allowed_packet of the server is %s, want at least %d", vars["max_allowed_packet"], leastPacket)
	}
	s.maxPacket = min(s.maxPacket, 64<<20) - 1024
	// Each byte may be escaped, and a message has some fields of its own beside the body.
	if most := (s.maxPacket - 128<<10) / 2; s.opts.MessageBytes > most {
		return fmt.Errorf("store.mysql: a message may have %d bytes, and max_allowed_packet of the server is enough for %d", s.opts.MessageBytes, most)
	}
	var faults []string
	if v, ok := vars["innodb_flush_log_at_trx_commit"]; ok && v != "1" {
		faults = append(faults, "innodb_flush_log_at_trx_commit is "+v+", want 1")
	}
	if v := vars["log_bin"]; v == "ON" || v == "1" {
		if v, ok := vars["sync_binlog"]; ok && v != "1" {
			faults = append(faults, "sync_binlog is "+v+", want 1")
		}
		if vars["binlog_format"] == "STATEMENT" {
			return errors.New("store.mysql: binlog_format of the server is STATEMENT, want ROW or MIXED")
		}
	}
	if len(faults) == 0 {
		return nil
	}
	text := "the server may forget what it has committed: " + strings.Join(faults, "; ")
	if !s.opts.AllowUnsafe {
		return errors.New("store.mysql: " + text)
	}
	s.log.Warn("store.mysql: " + text)
	return nil
}

// variables are settings of a server, in capitals, by name; those that it does not have are missing.
func variables(ctx context.Context, q querier, names string) (map[string]string, error) {
	vars := map[string]string{}
	rows, err := q.QueryContext(ctx, "SHOW VARIABLES WHERE Variable_name IN ("+names+")")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var name, value string
		if err := rows.Scan(&name, &value); err != nil {
			return nil, err
		}
		vars[strings.ToLower(name)] = strings.ToUpper(value)
	}
	return vars, rows.Err()
}

// loadEpoch reads the store's epoch, making it the first time.
func (s *Store) loadEpoch(ctx context.Context) error {
	fresh := make([]byte, 8)
	_, _ = rand.Read(fresh)
	p := s.packet()
	p.do(addMeta, "epoch", hex.EncodeToString(fresh))
	p.do(addCount, countRetained)
	p.get(getMeta, func(r *sql.Rows) error { return r.Scan(&s.epoch) }, "epoch")
	if err := p.run(ctx, s.db); err != nil {
		return fmt.Errorf("store.mysql: epoch: %w", err)
	}
	return nil
}

// enter begins a call; life is held shared when it returns nil.
func (s *Store) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.life.RLock()
	if s.closed {
		s.life.RUnlock()
		return store.ErrClosed
	}
	return nil
}

// Close waits for the calls that are under way and closes the connections.
func (s *Store) Close() error {
	s.life.Lock()
	defer s.life.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.stop()
	s.done.Wait()
	s.leave()
	return errors.Join(s.closeOwner(), s.closeReplicas(), s.db.Close())
}

// Place is the address of the server and the name of the database, without who connects.
func (s *Store) Place() string {
	c, err := mysql.ParseDSN(s.opts.DSN)
	if err != nil {
		return s.name
	}
	return c.Addr + "/" + s.name
}

// Epoch is made when the schema is.
func (s *Store) Epoch() string { return s.epoch }

// LastID is the greatest message id that any process has committed.
func (s *Store) LastID(ctx context.Context) (int64, error) {
	if err := s.enter(ctx); err != nil {
		return 0, err
	}
	defer s.life.RUnlock()
	var id sql.NullInt64
	p := s.packet()
	p.get(lastID, func(r *sql.Rows) error { return r.Scan(&id) })
	err := s.read(ctx, p, "last id")
	return id.Int64, err
}

// read runs a packet of reads outside of a transaction.
func (s *Store) read(ctx context.Context, p *packet, format string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	return s.wrap(p.run(ctx, s.db), format, args...)
}

// wrap names the place of an error, and says ErrUnavailable where the database is away.
func (s *Store) wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	what := fmt.Sprintf(format, args...)
	switch {
	case errors.Is(err, store.ErrCorrupt), errors.Is(err, store.ErrNotFound), errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", what, err)
	case troubleOf(err) == away:
		return fmt.Errorf("%s: %w: %v", what, store.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// corrupt is the error for a value that does not decode.
func (s *Store) corrupt(format string, args ...any) error {
	s.counters.corrupt.Add(1)
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), store.ErrCorrupt)
}
