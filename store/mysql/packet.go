package mysql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/go-sql-driver/mysql"
)

const (
	// maxRows is how many rows of one statement are inserted or looked for. From 1,000 keys on MariaDB makes a join of a
	// list, which may take locks in another order than that of the keys.
	maxRows    = 900
	softPacket = 2 << 20 // bytes of statements that are sent as one packet; a single row may be larger
)

// querier is a pool or one connection of it.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// packet is a list of statements that are sent together: a round trip carries as many of them as fit. The server
// stops at the first that fails.
type packet struct {
	s     *Store
	items []item
}

type item struct {
	text string
	args []any
	size int                   // bytes on the wire at most
	scan func(*sql.Rows) error // called for each row; nil: the statement has no result
}

func (s *Store) packet() *packet { return &packet{s: s} }

// do adds a statement without a result.
func (p *packet) do(st *statement, args ...any) { p.get(st, nil, args...) }

// get adds a statement; scan is called for each row of its result.
func (p *packet) get(st *statement, scan func(*sql.Rows) error, args ...any) {
	p.push(st, 1, args, scan)
}

func (p *packet) push(st *statement, rows int, args []any, scan func(*sql.Rows) error) {
	text := st.text(rows)
	size := len(text) + 1
	for _, a := range args {
		size += argSize(a)
	}
	p.items = append(p.items, item{text, args, size, scan})
}

// argSize is how much an argument takes as text at most: each byte may be escaped.
func argSize(a any) int {
	switch v := a.(type) {
	case string:
		return 2*len(v) + 2
	case []byte:
		return 2*len(v) + 10
	}
	return 20
}

// many adds a statement with n rows, in several if need be; row appends the arguments of the i-th. tail are the arguments
// after the rows.
func (p *packet) many(st *statement, scan func(*sql.Rows) error, n int, row func(i int, args []any) []any, tail ...any) {
	var args []any
	rows, size := 0, 0
	for i := range n {
		if args == nil {
			args = make([]any, 0, min(n-i, maxRows)*st.perRow+len(tail))
		}
		before := len(args)
		args = row(i, args)
		rows++
		for _, a := range args[before:] {
			size += argSize(a)
		}
		if rows == maxRows || size >= softPacket || i == n-1 {
			p.push(st, rows, append(args, tail...), scan)
			args, rows, size = nil, 0, 0
		}
	}
}

// names adds a statement with a row for each name.
func (p *packet) names(st *statement, scan func(*sql.Rows) error, names []string, tail ...any) {
	p.many(st, scan, len(names), func(i int, args []any) []any { return append(args, names[i]) }, tail...)
}

// run sends the statements and scans what comes back. The packet is empty afterwards.
func (p *packet) run(ctx context.Context, q querier) error {
	items := p.items
	p.items = nil
	for len(items) > 0 {
		n, size := 0, 0
		for n < len(items) && (n == 0 || size+items[n].size <= min(softPacket, p.s.maxPacket)) {
			size += items[n].size
			n++
		}
		if size > p.s.maxPacket {
			return fmt.Errorf("store.mysql: a statement of %d bytes: max_allowed_packet of the server is %d", size, p.s.maxPacket)
		}
		if err := send(ctx, q, items[:n]); err != nil {
			return err
		}
		p.s.counters.roundTrips.Add(1)
		items = items[n:]
	}
	return nil
}

// send sends items as one packet.
func send(ctx context.Context, q querier, items []item) error {
	var text strings.Builder
	var args []any
	size, n := 0, 0
	for _, x := range items {
		size += len(x.text) + 1
		n += len(x.args)
	}
	text.Grow(size)
	if len(items) > 1 {
		args = make([]any, 0, n)
	}
	for i, x := range items {
		if i > 0 {
			text.WriteByte(';')
		}
		text.WriteString(x.text)
		if len(items) == 1 {
			args = x.args
		} else {
			args = append(args, x.args...)
		}
	}
	rows, err := q.QueryContext(ctx, text.String(), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	first := true
	for _, x := range items {
		if x.scan == nil {
			continue // the driver passes over what has no result
		}
		if !first && !rows.NextResultSet() {
			if err := rows.Err(); err != nil {
				return err
			}
			return fmt.Errorf("%w: fewer results than statements", driver.ErrBadConn)
		}
		first = false
		for rows.Next() {
			if err := x.scan(rows); err != nil {
				return err
			}
		}
		if err := rows.Err(); err != nil {
			return err
		}
	}
	for rows.NextResultSet() { // an error of the last statements shows here
		for rows.Next() {
		}
	}
	return rows.Err()
}

// trouble is what an error of the database means to the caller of Commit.
type trouble int

const (
	none    trouble = iota
	lasting         // the same would happen again
	again           // the transaction was rolled back; the next attempt may succeed
	away            // the connection is lost or the server refuses service: nothing was committed, unless COMMIT was sent
)

func troubleOf(err error) trouble {
	var server *mysql.MySQLError
	var network net.Error
	switch {
	case err == nil:
		return none
	case errors.Is(err, errNotStored):
		return again
	case errors.As(err, &server):
		return troubleOfNumber(server.Number)
	case errors.Is(err, context.Canceled):
		return lasting
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, driver.ErrBadConn), errors.Is(err, sql.ErrConnDone), errors.Is(err, mysql.ErrInvalidConn),
		errors.Is(err, mysql.ErrMalformPkt), errors.Is(err, mysql.ErrPktSync), errors.Is(err, mysql.ErrPktSyncMul):
		return away
	}
	return lasting
}

func troubleOfNumber(n uint16) trouble {
	switch n {
	case 1213, 1205, // deadlock; lock wait timeout
		1062,             // another process has inserted the same row
		8002, 8022, 9007: // TiDB: conflicts that it could not wait for
		return again
	case 1021, 1114, 1030, 1041, 1037, 1038, // disk or memory full
		1040, 1203, 1226, 1129, 1130, // too many connections, host blocked
		1053, 1077, 1079, 1080, 1152, 1158, 1159, 1160, 1161, 1184, 1927, 3024, // going down, cut off
		1290, 1792, 1836, 1874, 3032, 3100, // read-only: another server is the primary now
		1047, 1317, 1969, 4031, // not ready, killed, timed out
		1105, 9001, 9002, 9003, 9005: // Vitess and TiDB: parts of them are away
		return away
	}
	return lasting
}
