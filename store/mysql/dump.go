package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"github.com/mqim/mqim/store/dump"
	"github.com/mqim/mqim/store/wire"
)

var _ dump.Source = (*Store)(nil)

// dumpRows is how many records are read at once, and dumpBig how many of those that may be large.
const (
	dumpRows = 2000
	dumpBig  = 32
)

// walkKinds and addKinds read and write the records of package dump, which are rows as they are stored.
var walkKinds, addKinds = dumpStatements()

func dumpStatements() (walk, add []*statement) {
	for _, c := range dump.Kinds {
		columns := strings.Join(c.Names, ", ")
		walk = append(walk, define("SELECT "+columns+" FROM mqim_"+c.Name+" FORCE INDEX (PRIMARY) WHERE "+
			beyond(&c)+" ORDER BY "+strings.Join(c.Names[:c.Keys], ", ")+" LIMIT ?n"))
		row := make([]string, len(c.Types))
		for i := range row {
			row[i] = placeholder(c.Types[i])
		}
		add = append(add, define("INSERT INTO mqim_"+c.Name+" ("+columns+") VALUES [("+strings.Join(row, ", ")+")]"))
	}
	return walk, add
}

func placeholder(kind byte) string {
	if kind == 's' {
		return "?s"
	}
	return "?n"
}

// beyond is true of the keys after a given one: a > ? OR (a = ? AND b > ?) OR …
func beyond(c *dump.Columns) string {
	var any []string
	equal := ""
	for i, name := range c.Names[:c.Keys] {
		p := placeholder(c.Types[i])
		any = append(any, "("+equal+name+" > "+p+")")
		equal += name + " = " + p + " AND "
	}
	return strings.Join(any, " OR ")
}

// State is the epoch: who serves the database changes it, and leaves no other trace that is looked for.
func (s *Store) State() string { return s.epoch }

// Dump calls row for all that is stored, by kind and key.
func (s *Store) Dump(ctx context.Context, _ func(error) error, row func(dump.Row) error) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.life.RUnlock()
	for k := range dump.Kinds {
		if err := s.dumpKind(ctx, dump.Kind(k), row); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) dumpKind(ctx context.Context, k dump.Kind, row func(dump.Row) error) error {
	c := &dump.Kinds[k]
	limit := dumpRows
	if c.Big {
		limit = dumpBig
	}
	last := before(c)
	for {
		var page []dump.Row
		p := s.packet()
		p.get(walkKinds[k], func(r *sql.Rows) error {
			values, err := scanKind(r, c.Types)
			page = append(page, dump.Row{Kind: k, Values: values})
			return err
		}, append(beyondArgs(last), limit)...)
		if err := s.read(ctx, p, "%s", c.Name); err != nil {
			return err
		}
		for _, r := range page {
			if err := row(r); err != nil {
				return err
			}
		}
		if len(page) < limit {
			return nil
		}
		copy(last, page[len(page)-1].Values)
	}
}

// before is a key before all others: they begin with names.
func before(c *dump.Columns) []any {
	key := make([]any, c.Keys)
	for i := range key {
		key[i] = map[byte]any{'s': "", 'u': uint64(0), 'i': int64(0)}[c.Types[i]]
	}
	return key
}

// beyondArgs are the arguments of beyond.
func beyondArgs(key []any) (args []any) {
	for i := range key {
		args = append(args, key[:i+1]...)
	}
	return args
}

func scanKind(r *sql.Rows, types string) ([]any, error) {
	places, texts, unsigned, signed := make([]any, len(types)), make([]sql.RawBytes, len(types)), make([]uint64, len(types)), make([]int64, len(types))
	for i := range types {
		switch types[i] {
		case 's':
			places[i] = &texts[i]
		case 'u':
			places[i] = &unsigned[i]
		default:
			places[i] = &signed[i]
		}
	}
	if err := r.Scan(places...); err != nil {
		return nil, err
	}
	for i := range types {
		switch types[i] {
		case 's':
			places[i] = string(texts[i])
		case 'u':
			places[i] = unsigned[i]
		default:
			places[i] = signed[i]
		}
	}
	return places, nil
}

// copyingRow of mqim_meta says that the database is a copy that is not complete: how many records it has, and of what.
const copyingRow = "copying"

// Copy is a database that is being filled from another store. It is an Exclusive store that no other will open before
// Finish.
type Copy struct {
	*Store
	stored uint64
	source string
}

var _ dump.Target = (*Copy)(nil)

// OpenCopy opens a database that is empty, or has an unfinished copy of the same source, which dump.Source.State names. It is
// looked at as Open does it, and o.Exclusive is taken to be set. Errors: ErrLocked where another process has it.
func OpenCopy(ctx context.Context, o Options, source string) (*Copy, error) {
	o.Exclusive = true
	c := &Copy{Store: newStore(o), source: source}
	c.copying = true
	if err := c.connect(); err != nil {
		return nil, err
	}
	err := c.start(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w%s", err, closed(c.closeOwner(), c.db.Close()))
	}
	if err := c.adoptMark(ctx); err != nil {
		return nil, fmt.Errorf("%w%s", err, closed(c.Close()))
	}
	return c, nil
}

// closed is what of errors is worth a word.
func closed(errs ...error) string {
	for _, err := range errs {
		if err != nil {
			return fmt.Sprint("; ", err)
		}
	}
	return ""
}

// adoptMark reads how far the copy has come, or begins it.
func (c *Copy) adoptMark(ctx context.Context) error {
	mark, err := c.mark(ctx)
	if err != nil {
		return err
	}
	if mark != "" {
		var source string
		if _, err := fmt.Sscanf(mark, "%d records of %s", &c.stored, &source); err != nil || source != c.source {
			return fmt.Errorf("store.mysql: database %s has an unfinished copy of another store, or of this one before a server used it again: "+
				"drop the database, make an empty one, and copy anew", c.name)
		}
		return nil
	}
	if err := c.vacant(ctx); err != nil {
		return err
	}
	p := c.packet()
	p.do(setMeta, copyingRow, c.progress())
	if err := c.read(ctx, p, "begin the copy"); err != nil {
		return err
	}
	// Who has begun meanwhile has seen no mark; who comes later does.
	if err := c.vacant(ctx); err != nil {
		p.do(dropMeta, copyingRow)
		return fmt.Errorf("%w%s", err, closed(c.read(ctx, p, "take back the mark of a copy")))
	}
	return nil
}

func (c *Copy) progress() string { return fmt.Sprintf("%d records of %s", c.stored, c.source) }

// mark is "" where the database is no unfinished copy.
func (s *Store) mark(ctx context.Context) (mark string, err error) {
	p := s.packet()
	p.get(getMeta, func(r *sql.Rows) error { return r.Scan(&mark) }, copyingRow)
	return mark, s.read(ctx, p, "unfinished copy")
}

// refuseCopy is an error where the database is an unfinished copy. It comes after the first beat: so a copy that begins now
// either is seen, or sees this process.
func (s *Store) refuseCopy(ctx context.Context) error {
	mark, err := s.mark(ctx)
	if err == nil && mark != "" {
		err = fmt.Errorf("store.mysql: database %s is an unfinished copy (%s): run mqim copy again, or drop the database and make an empty one",
			s.name, mark)
	}
	if err != nil {
		s.leave()
	}
	return err
}

// vacant is an error unless the database has no records, and nobody else uses it.
func (c *Copy) vacant(ctx context.Context) error {
	if err := c.alone(ctx); err != nil {
		return err
	}
	for k := range dump.Kinds {
		kind := &dump.Kinds[k]
		found := false
		p := c.packet()
		p.get(walkKinds[k], func(r *sql.Rows) error {
			found = true
			return nil
		}, append(beyondArgs(before(kind)), 1)...)
		if err := c.read(ctx, p, "%s", kind.Name); err != nil {
			return err
		}
		if found {
			return fmt.Errorf("store.mysql: database %s is not empty: there are %s", c.name, kind.Name)
		}
	}
	return nil
}

// alone is an error while another process shows that it uses the database.
func (s *Store) alone(ctx context.Context) error {
	var n nodes
	p := s.packet()
	s.askNodes(p, &n)
	if err := s.read(ctx, p, "nodes"); err != nil {
		return err
	}
	for id, seen := range n.seen {
		if id != s.node && seen > n.now-nodeTTL.Milliseconds() {
			return fmt.Errorf("store.mysql: database %s: a server uses it, or did so %d s ago; one that was killed counts for %.0f s",
				s.name, (n.now-seen)/1000, nodeTTL.Seconds())
		}
	}
	return nil
}

// Stored is how many records there are.
func (c *Copy) Stored() uint64 { return c.stored }

// Add stores records in one transaction.
func (c *Copy) Add(ctx context.Context, rows []dump.Row) error {
	if err := c.enter(ctx); err != nil {
		return err
	}
	defer c.life.RUnlock()
	p := c.packet()
	c.begin(p, nil)
	before := c.stored
	c.stored += uint64(len(rows))
	for len(rows) > 0 {
		k := rows[0].Kind
		n := slices.IndexFunc(rows, func(r dump.Row) bool { return r.Kind != k })
		if n < 0 {
			n = len(rows)
		}
		part := rows[:n]
		for i := range part {
			if err := fits(&part[i]); err != nil {
				return err
			}
		}
		p.many(addKinds[k], nil, n, func(i int, args []any) []any { return append(args, part[i].Values...) })
		rows = rows[n:]
	}
	p.do(setMeta, copyingRow, c.progress())
	p.do(commit)
	conn, err := c.db.Conn(ctx)
	if err == nil {
		defer conn.Close()
		if err = p.run(ctx, conn); err != nil {
			discard(conn)
		}
	}
	if err != nil {
		c.stored = before
	}
	return c.wrap(err, "store records")
}

// widths are how long the schema lets names be that other stores have no limit for.
var widths = map[string]int{
	"conv": convBytes, "user": nameBytes, "peer": nameBytes, "owner": nameBytes, "grp": nameBytes, "sender": nameBytes, "device": deviceBytes, "name": convBytes,
	"client": clientBytes, "filter": filterBytes, "path": pathBytes, "share": shareBytes, "k": nameBytes + 1 + cidBytes,
}

// fits names a record that the schema has no room for.
func fits(r *dump.Row) error {
	c := &dump.Kinds[r.Kind]
	if len(r.Values) != len(c.Names) {
		return fmt.Errorf("store.mysql: a record of %s with %d columns", c.Name, len(r.Values))
	}
	for i, name := range c.Names {
		v, ok := r.Values[i].(string)
		if most, limited := widths[name]; ok && limited && len(v) > most && !(r.Kind == dump.Groups && name == "name") {
			if topic, _, ok := wire.PathOf([]byte("e" + v)); ok && name == "path" {
				v = topic
			}
			return fmt.Errorf("store.mysql: %s: %s %.100q has %d bytes, and the database takes %d", c.Name, name, v, len(v), most)
		}
	}
	return nil
}

// Adopt makes the database what the source is, beside its records.
func (c *Copy) Adopt(ctx context.Context, epoch string, lastID int64, retained uint64) error {
	p := c.packet()
	p.do(setMeta, "epoch", epoch)
	p.do(signWriter, copyingRow, 0, lastID, 0)
	p.do(setCount, countRetained, retained)
	if err := c.read(ctx, p, "epoch"); err != nil {
		return err
	}
	c.epoch = epoch
	return nil
}

// Finish lets servers open the database.
func (c *Copy) Finish(ctx context.Context) error {
	p := c.packet()
	p.do(dropMeta, copyingRow)
	return c.read(ctx, p, "finish the copy")
}
