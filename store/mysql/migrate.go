package mysql

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	pathpkg "path"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

// migrateWait is how long one process waits for another that is changing the schema, in seconds.
const migrateWait = 600

// migrateIdle is how long, in seconds, the connection that holds the lock may be idle.
const migrateIdle = 24 * 60 * 60

// migrate brings the schema up to date. Several processes may start at once: one does it, the others wait. Both may take
// longer than any other statement. It returns the names of what it has applied.
func (s *Store) migrate(ctx context.Context) (applied []string, err error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	c, err := mysql.ParseDSN(s.opts.DSN)
	if err != nil {
		return nil, errors.New("store.mysql: not a DSN")
	}
	db, err := s.pool(c, 0, migrateIdle, "")
	if err != nil {
		return nil, err
	}
	defer db.Close()
	p, err := goose.NewProvider(goose.DialectMySQL, db, files, goose.WithTableName("mqim_schema"), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return nil, err
	}
	locked, err := s.locked(ctx, db, "schema", migrateWait, func(*sql.Conn) error {
		pending, err := p.HasPending(ctx)
		if err != nil || !pending {
			return err
		}
		results, err := p.Up(ctx)
		for _, r := range results {
			applied = append(applied, strings.TrimSuffix(pathpkg.Base(r.Source.Path), ".sql"))
		}
		return err
	})
	if err == nil && !locked {
		err = errors.New("another process has been changing it for too long")
	}
	if err != nil {
		return applied, fmt.Errorf("store.mysql: schema: %w", err)
	}
	return applied, nil
}

// Migrate makes or updates the schema and does nothing else; a server may be running. It returns the names of what it has
// applied, none if the schema was up to date, also when it fails after some. Of the options DSN, Timeout and Logger count.
func Migrate(ctx context.Context, o Options) (applied []string, err error) {
	s := newStore(o)
	if err := s.connect(); err != nil {
		return nil, err
	}
	defer s.db.Close()
	return s.migrate(ctx)
}

// lockName is a lock of this database: names of locks are those of the whole server, and short.
func (s *Store) lockName(name string) string {
	return fmt.Sprintf("mqim.%s.%08x", name, crc32.ChecksumIEEE([]byte(s.name)))
}

// locked runs do while this process holds a lock by name, which belongs to the database. It is false when another holds
// it for longer than wait seconds. A lock ends with its connection.
func (s *Store) locked(ctx context.Context, db *sql.DB, name string, wait int, do func(*sql.Conn) error) (bool, error) {
	c, err := db.Conn(ctx)
	if err != nil {
		return false, err
	}
	defer c.Close()
	name = s.lockName(name)
	var got sql.NullInt64
	p := s.packet()
	p.get(getLock, func(r *sql.Rows) error { return r.Scan(&got) }, name, wait)
	if err := p.run(ctx, c); err != nil || got.Int64 != 1 {
		return false, err
	}
	err = do(c)
	p.get(releaseLock, func(r *sql.Rows) error { return r.Scan(&got) }, name)
	if e := p.run(context.WithoutCancel(ctx), c); e != nil {
		discard(c)
	}
	return true, err
}
