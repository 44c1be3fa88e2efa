package auth

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-sql-driver/mysql"
	"golang.org/x/sync/singleflight"

	"github.com/mqim/mqim/users"
)

// MySQLOptions configure a MySQL authenticator. Bounds that are 0 take the default in parentheses.
type MySQLOptions struct {
	DSN         string        // user:password@tcp(host:3306)/database, as go-sql-driver/mysql has it; a secret
	Query       string        // one ? stands for the user name; see MySQL for what it returns
	Timeout     time.Duration // of one query, waiting for a connection included (5 s)
	Connections int           // at most so many to the database (8)
	CacheTTL    time.Duration // how long a hash is used without asking again; 0: always ask
	NegativeTTL time.Duration // the same for the answer that there is no such user
	CacheSize   int           // users remembered, and again as many unknown ones (10,000)
}

// MySQL authenticates by name and password against hashes in a database that speaks MySQL's protocol.
//
// The query returns the user's bcrypt or argon2id hash and, better, the name as a second column: a name that the
// database takes for the same in spite of its case is then an unknown user. No row, or NULL for the hash, is an unknown user.
//
// A user is asked for by one query at a time, however many wait for the answer, and both answers are remembered, in
// caches of their own, so that made-up names cannot push out the real ones. When the database does not answer, users
// whose hash is remembered are let in, and the others are told that nobody can tell.
type MySQL struct {
	db        *sql.DB
	query     string
	timeout   time.Duration
	ttl, nay  time.Duration
	passwords *passwords
	known     *cache[string, string] // hash by user
	unknown   *cache[string, struct{}]
	flight    singleflight.Group
	decoy     atomic.Pointer[string] // the hash that was met last, to spend time on for unknown users
	ctx       context.Context        // ends in Close
	cancel    context.CancelFunc
}

// NewMySQL prepares the pool. It does not connect: the server starts with its database down.
func NewMySQL(o MySQLOptions) (*MySQL, error) {
	if err := errors.Join(CheckDSN(o.DSN), CheckQuery(o.Query)); err != nil {
		return nil, fmt.Errorf("auth.mysql: %w", err)
	}
	cfg, _ := mysql.ParseDSN(o.DSN)
	o.Timeout = orDefault(o.Timeout, 5*time.Second)
	for _, d := range []*time.Duration{&cfg.Timeout, &cfg.ReadTimeout, &cfg.WriteTimeout} {
		*d = orDefault(*d, o.Timeout)
	}
	cfg.Logger = &mysql.NopLogger{} // what goes wrong comes back as an error
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, fmt.Errorf("auth.mysql: %w", errDSN)
	}
	m := &MySQL{
		db: sql.OpenDB(connector), query: o.Query, timeout: o.Timeout, ttl: o.CacheTTL, nay: o.NegativeTTL,
		passwords: newPasswords(),
		known:     newCache[string, string](orDefault(o.CacheSize, 10_000)),
		unknown:   newCache[string, struct{}](orDefault(o.CacheSize, 10_000)),
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	n := orDefault(o.Connections, 8)
	m.db.SetMaxOpenConns(n)
	m.db.SetMaxIdleConns(n)
	m.db.SetConnMaxIdleTime(time.Minute)
	m.db.SetConnMaxLifetime(5 * time.Minute) // less than what servers and balancers in between put up with
	return m, nil
}

// The library's text is not passed on: it may quote what stands where the password should.
var errDSN = errors.New("not a DSN; expected user:password@tcp(host:3306)/database")

// CheckDSN reports whether NewMySQL can work with dsn. The error quotes nothing of it.
func CheckDSN(dsn string) error {
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil || cfg.DBName == "" {
		return errDSN
	}
	return nil
}

// CheckQuery reports whether NewMySQL can work with query.
func CheckQuery(query string) error {
	if n := strings.Count(query, "?"); n != 1 {
		return fmt.Errorf("found %d question marks, expected one, for the user name, as in SELECT password_hash, name FROM users WHERE name = ?", n)
	}
	return nil
}

// Reload forgets what was remembered, so that every change in the database counts from now on.
func (m *MySQL) Reload() error {
	m.known.clear()
	m.unknown.clear()
	return nil
}

// Close ends running queries and the pool.
func (m *MySQL) Close() error {
	m.cancel()
	return m.db.Close()
}

// Authenticate verifies the password. It may take Options' Timeout longer than ctx, never more.
func (m *MySQL) Authenticate(ctx context.Context, cred Credentials) (string, time.Time, error) {
	switch {
	case cred.Username == "" || len(cred.Password) == 0:
		return "", time.Time{}, errMissing
	case !users.ValidName(cred.Username):
		return "", time.Time{}, errName
	}
	hash, err := m.hash(cred.Username)
	if err != nil {
		return "", time.Time{}, err
	}
	known := hash != ""
	if known {
		m.decoy.Store(&hash)
	} else if decoy := m.decoy.Load(); decoy != nil {
		hash = *decoy
	} else {
		hash = fallbackHash
	}
	if err := m.passwords.verify(ctx, cred.Username, hash, known, cred.Password); err != nil {
		return "", time.Time{}, err
	}
	return cred.Username, time.Time{}, nil
}

// hash is the user's hash, "" for an unknown user.
func (m *MySQL) hash(user string) (string, error) {
	if hash, ok := m.remembered(user); ok {
		return hash, nil
	}
	hash, err, _ := m.flight.Do(user, func() (any, error) {
		if hash, ok := m.remembered(user); ok {
			return hash, nil // an older flight landed in between
		}
		// Not the ctx of the login that happens to be the first: the others wait for this answer too.
		ctx, cancel := context.WithTimeout(m.ctx, m.timeout)
		defer cancel()
		hash, err := m.ask(ctx, user)
		switch {
		case err != nil:
			return "", fmt.Errorf("auth.mysql: %w", err)
		case hash == "":
			m.unknown.add(user, struct{}{}, m.nay)
		default:
			m.known.add(user, hash, m.ttl)
		}
		return hash, nil
	})
	return hash.(string), err
}

func (m *MySQL) remembered(user string) (hash string, ok bool) {
	if hash, ok = m.known.get(user); !ok {
		_, ok = m.unknown.get(user)
	}
	return hash, ok
}

// ask queries the database.
func (m *MySQL) ask(ctx context.Context, user string) (string, error) {
	rows, err := m.db.QueryContext(ctx, m.query, user)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return "", err
	}
	var hash, name sql.NullString
	into := []any{&hash, &name}
	if len(columns) != 1 && len(columns) != 2 {
		return "", fmt.Errorf("the query returns %d columns, expected the hash and, optionally, the name", len(columns))
	}
	found := false
	for rows.Next() {
		if found {
			return "", errors.New("the query returns more than one row for a user")
		}
		if err := rows.Scan(into[:len(columns)]...); err != nil {
			return "", errors.New("the query returns something that is not text")
		}
		found = true
	}
	if err := rows.Err(); err != nil {
		return "", err
	}
	if !found || !hash.Valid || len(columns) == 2 && name.String != user {
		return "", nil
	}
	if err := users.CheckHash(hash.String); err != nil {
		return "", fmt.Errorf("what the query returns for a user is no hash: %w", err)
	}
	return hash.String, nil
}

// orDefault is v, or def for 0.
func orDefault[T int | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}
