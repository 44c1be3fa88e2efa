package dump_test

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/dump"
	"github.com/mqim/mqim/store/mysql"
	"github.com/mqim/mqim/store/pebble"
)

// everything fills a store with records of every kind, from now on (Unix milliseconds).
func everything(t *testing.T, s store.Store, seed uint64, now int64) {
	t.Helper()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	commit := func(b *store.Batch) {
		t.Helper()
		if err := s.Commit(ctx, b); err != nil {
			t.Fatal(err)
		}
		for _, m := range b.Sends {
			if m.Err != nil {
				t.Fatal(m.Err)
			}
		}
	}
	send := func(from string, conv store.Conv, change *store.Change) *store.Send {
		now++
		m := &store.Send{Message: store.Message{Conv: conv, From: from, Device: "d", Cid: fmt.Sprint(now), Type: "text", TS: now, Body: make([]byte, rng.IntN(3000))}, Hash: uint64(now), Change: change}
		for i := range m.Body {
			m.Body[i] = byte(rng.IntN(256))
		}
		if a, b, direct := conv.Users(); direct {
			m.Inboxes = []store.InboxRef{{User: a}, {User: b}}
		}
		return m
	}
	group := func(id string, members ...string) *store.Change {
		c := &store.Change{Group: store.Group{ID: id, Name: "Name " + id, Notice: "n", Open: true, Owner: members[0], Created: now, Receipts: store.ReceiptsAll}, Large: id == "large"}
		for i, u := range members {
			c.Members = append(c.Members, store.Member{User: u, Role: map[bool]store.Role{true: store.Owner, false: store.Ordinary}[i == 0], Joined: now, MutedUntil: int64(i)})
		}
		return c
	}
	commit(&store.Batch{Sends: []*store.Send{
		send("a", store.GroupConv("small"), group("small", "a", "b", "c", "ü")), send("a", store.GroupConv("large"), group("large", "a", "b", "q")),
	}})
	leave := &store.Change{Group: store.Group{Version: 1, Name: "New", Owner: "a"}, Members: []store.Member{{User: "c"}}}
	commit(&store.Batch{Sends: []*store.Send{send("c", store.GroupConv("small"), leave)}})
	for range 40 {
		var b store.Batch
		for range 1 + rng.IntN(8) {
			b.Sends = append(b.Sends, send("a", store.Direct("a", "b"), nil), send("b", store.Direct("a", "b"), nil), send("b", store.GroupConv("small"), nil),
				send("a", store.GroupConv("large"), nil), send("ü", store.Direct("b", "ü"), nil))
		}
		commit(&b)
	}
	k := store.DeviceKey{User: "b", Device: "d1"}
	ab := store.Direct("a", "b")
	commit(&store.Batch{
		Reads:     []*store.Mark{{User: "b", Conv: ab, Cseq: 7}, {User: "b", Conv: store.GroupConv("small"), Cseq: 3}, {User: "q", Conv: store.GroupConv("large"), Cseq: 2}},
		Delivered: []*store.Mark{{User: "b", Conv: ab, Cseq: 9}, {User: "b", Conv: store.GroupConv("large"), Cseq: 3}},
		Recalls:   []*store.Recall{{Conv: ab, Cseq: 3}, {Conv: ab, Cseq: 20}, {Conv: store.GroupConv("small"), Cseq: 5}},
		Deletes:   []store.Delete{{User: "a", Conv: ab, Cseqs: []uint64{2, 4, 11}}, {User: "b", Conv: store.GroupConv("small"), Cseqs: []uint64{4}}},
		Blocks:    []store.Block{{User: "a", Peer: "x"}, {User: "lonely", Peer: "a"}},
		Users:     []store.User{{Name: "b", Cursor: 5, LastSeen: now}, {Name: "lonely", LastSeen: 1}},
		Devices:   []store.Device{{DeviceKey: k, Cursor: 4, LastSeen: now, Profile: "im"}, {DeviceKey: store.DeviceKey{User: "lonely", Device: "z"}, Expires: 9, Profile: "plain"}},
		Cursors:   []store.Cursor{{DeviceKey: k, Conv: store.GroupConv("large"), Cseq: 6}},
		Notices:   []store.Notice{{To: "b", TS: now, Payload: []byte("recalled")}, {To: "g/large", TS: now, Payload: []byte("x")}},
	})
	topics(t, commit, now)
}

// topics fills the part for ordinary topics.
func topics(t *testing.T, commit func(*store.Batch), now int64) {
	t.Helper()
	commit(&store.Batch{TopicBatch: store.TopicBatch{
		Sessions: []store.Session{
			{Client: "c1", User: "a", Expiry: store.NoExpiry, Since: now, Online: true}, {Client: "c2", User: "b", Expiry: 3600, Since: now},
			{Client: "c3", User: "b", Expiry: store.NoExpiry, Since: now, Cut: true},
		},
		Subscribes: []store.Subscription{
			{Client: "c1", Filter: "t/+/#", Options: []byte("o1")}, {Client: "c2", Filter: "$share/g/t/1", Options: []byte{}}, {Client: "c3", Filter: "im/u/b", Options: []byte("h")},
		},
		Wills: []store.Will{{Client: "c1", User: "a", Delay: 3, Publication: store.Publication{Topic: "w", Payload: []byte("gone")}}},
	}})
	for i := range 30 {
		p := &store.Publish{Publication: &store.Publication{Topic: fmt.Sprint("t/", i%7), Payload: fmt.Appendf(nil, "p%d", i), Props: []byte("pp"), From: "pub", QoS: 2, TS: now}, Retain: i%2 == 0}
		for _, c := range []string{"c1", "c2", "c3"}[:1+i%3] {
			p.Queues = append(p.Queues, store.QueueRef{Client: c, QoS: byte(1 + i%2), Options: fmt.Appendf(nil, "%d", i%4)})
		}
		commit(&store.Batch{TopicBatch: store.TopicBatch{Publishes: []*store.Publish{p}}})
	}
	commit(&store.Batch{TopicBatch: store.TopicBatch{
		Passed:   []store.Passed{{Client: "c1", Seq: 5}},
		Outbound: []store.Outbound{{Client: "c1", Seq: 6, ID: 60000, Received: true}, {Client: "c1", Seq: 8, ID: 3, Done: true}},
		Inbound:  []store.Inbound{{Client: "c2", ID: 65535}},
	}})
}

// filled is the folder of a store with records of every kind.
func filled(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	s := openPebble(t, pebble.Options{Path: dir})
	everything(t, s, rand.Uint64(), time.Now().UnixMilli())
	closeNow(t, s)
	return dir
}

// files are a folder's, with the hashes of what is in them.
func files(t *testing.T, dir string) map[string]uint64 {
	t.Helper()
	seed := hashSeed
	out := map[string]uint64{}
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[f.Name()] = maphash.Bytes(seed, b)
	}
	return out
}

var hashSeed = maphash.MakeSeed()

// changes are what is done to the copy, by kind: a value of each record that nothing but the copy's comparison looks at, too.
var changes = map[string]string{
	"convs": "last_id = last_id + 1", "chunks": "max_ts = max_ts + 1", "recalls": "sender = 'z'", "owns": "total = total + 1", "views": "read_to = read_to + 1",
	"deletions": "own = 1 - own", "directs": "last_id = last_id + 1", "inboxes": "trimmed = trimmed + 1", "entries": "max_ts = max_ts + 1", "cids": "hash = hash + 1",
	"groups": "notice = 'z'", "members": "muted_until = 99", "memberships": "large = 1 - large", "blocks": "peer = CONCAT(peer, 'z')", "users": "last_seen = last_seen + 1",
	"devices": "expires = 77", "cursors": "cseq = cseq + 1", "notices": "payload = 'z'", "sessions": "since = since + 1", "subscriptions": "options = 'z'",
	"filters": "options = 'z'", "pubs": "pub = CONCAT('z', pub)", "pub_refs": "pub = CONCAT('z', pub)", "queues": "n = n + 1", "outbound": "received = 1 - received",
	"inbound": "packet_id = 7", "retained": "expires = 5", "wills": "client = 'z'",
}

// TestVerify: a copy is the same, the source is not touched, and whatever kind of record is changed, lost or added in the
// copy, the comparison names it.
func TestVerify(t *testing.T) {
	dir := filled(t)
	before := files(t, dir)
	name, dsn := database(t)
	from := openPebble(t, pebble.Options{Path: dir, ReadOnly: true})
	to := openCopy(t, dsn, from)
	var x told
	if err := dump.Copy(ctx, from, to, x.options()); err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(x.lines, "\n"))
	}
	text := strings.Join(x.lines, "\n")
	for _, k := range dump.Kinds {
		if !strings.Contains(text, "\n"+k.Name+": ") {
			t.Errorf("no record of kind %s was copied", k.Name)
		}
	}
	differs := func(what, kind string) {
		t.Helper()
		var x told
		err := dump.Verify(ctx, from, to, x.options())
		named := slices.ContainsFunc(x.lines, func(l string) bool { return strings.HasPrefix(l, "difference: "+kind+" ") })
		if !errors.Is(err, dump.ErrDiffer) || !named {
			t.Errorf("%s: got %v, want %v and a record of %s named:\n%s", what, err, dump.ErrDiffer, kind, strings.Join(x.lines, "\n"))
		}
	}
	if len(changes) != len(dump.Kinds) {
		t.Errorf("%d kinds are changed, of %d", len(changes), len(dump.Kinds))
	}
	for _, k := range dump.Kinds {
		table := name + ".mqim_" + k.Name
		server.Exec("CREATE TABLE "+name+".kept AS SELECT * FROM "+table, "UPDATE "+table+" SET "+changes[k.Name]+" LIMIT 1")
		differs(k.Name+" changed", k.Name)
		back := []string{"DELETE FROM " + table, "INSERT INTO " + table + " SELECT * FROM " + name + ".kept"}
		server.Exec(append(back, "DELETE FROM "+table+" LIMIT 1")...)
		differs(k.Name+" lost", k.Name)
		server.Exec(append(back, "DROP TABLE "+name+".kept")...)
	}
	if err := dump.Verify(ctx, from, to, (&told{}).options()); err != nil {
		t.Errorf("all put back: %v", err)
	}
	for row, change := range map[string]string{
		"greatest message id": "mqim_writers SET last_id = last_id + 1", "number of retained messages": "mqim_counts SET value = value + 1",
	} {
		server.Exec("UPDATE " + name + "." + change)
		var x told
		if err := dump.Verify(ctx, from, to, x.options()); !errors.Is(err, dump.ErrDiffer) || !strings.Contains(strings.Join(x.lines, "\n"), row) {
			t.Errorf("%s: got %v, want it named", row, err)
		}
	}
	closeNow(t, from)
	if d := cmp.Diff(before, files(t, dir)); d != "" {
		t.Errorf("files of the source (-before +after):\n%s", d)
	}
}

// failing is a copy whose connection is lost, or whose process ends, after some steps.
type failing struct {
	dump.Target
	left int
}

var errKilled = errors.New("killed")

func (f *failing) Add(ctx context.Context, rows []dump.Row) error {
	if f.left--; f.left < 0 {
		return errKilled
	}
	return f.Target.Add(ctx, rows)
}

// big adds messages enough for several steps.
func big(t *testing.T, s store.Store) {
	t.Helper()
	for i := range 80 {
		m := &store.Send{Message: store.Message{Conv: store.Direct("big", "z"), From: "big", TS: int64(i), Body: make([]byte, 200<<10)}, Inboxes: []store.InboxRef{{User: "z"}}}
		if err := s.Commit(ctx, &store.Batch{Sends: []*store.Send{m}}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestInterrupted: wherever a copy ends early, no server opens it, and the next run goes on and completes it, unless the
// source has been used meanwhile.
func TestInterrupted(t *testing.T) {
	dir := filled(t)
	s := openPebble(t, pebble.Options{Path: dir})
	big(t, s)
	closeNow(t, s)
	from := openPebble(t, pebble.Options{Path: dir, ReadOnly: true})
	_, dsn := database(t)
	stored := uint64(0)
	for steps := range 3 {
		to := openCopy(t, dsn, from)
		if to.Stored() != stored {
			t.Errorf("run %d: got %d records of those before, want %d", steps, to.Stored(), stored)
		}
		if err := dump.Copy(ctx, from, &failing{to, steps}, (&told{}).options()); !errors.Is(err, errKilled) {
			t.Fatalf("got %v, want %v", err, errKilled)
		}
		stored = to.Stored()
		closeNow(t, to)
		_, err := mysql.Open(ctx, mysql.Options{DSN: dsn, Logger: quiet})
		if err == nil || !strings.Contains(err.Error(), "is an unfinished copy") {
			t.Errorf("a server on an unfinished copy: got %v, want it refused", err)
		}
	}
	if stored == 0 {
		t.Fatal("no step was stored")
	}
	to := openCopy(t, dsn, from)
	// Complete, but not compared.
	if err := dump.Fill(ctx, from, to, (&told{}).options()); err != nil {
		t.Fatal(err)
	}
	closeNow(t, to)
	if _, err := mysql.Open(ctx, mysql.Options{DSN: dsn, Logger: quiet}); err == nil {
		t.Error("a server on a copy that is not compared: no error")
	}
	to = openCopy(t, dsn, from)
	if err := dump.Copy(ctx, from, to, (&told{}).options()); err != nil {
		t.Fatal(err)
	}
	closeNow(t, to)
	openMySQL(t, mysql.Options{DSN: dsn})
}

// TestSourceUsedAgain: an unfinished copy does not go on with a store that has changed since.
func TestSourceUsedAgain(t *testing.T) {
	dir := filled(t)
	from := openPebble(t, pebble.Options{Path: dir, ReadOnly: true})
	_, dsn := database(t)
	closeNow(t, openCopy(t, dsn, from))
	closeNow(t, from)
	closeNow(t, openPebble(t, pebble.Options{Path: dir}))
	from = openPebble(t, pebble.Options{Path: dir, ReadOnly: true})
	if _, err := mysql.OpenCopy(ctx, mysql.Options{DSN: dsn, Logger: quiet}, from.State()); err == nil || !strings.Contains(err.Error(), "drop the database") {
		t.Errorf("got %v, want it refused", err)
	}
}

// TestTargetRefused: a database that has anything, or that a server has open, is left as it is.
func TestTargetRefused(t *testing.T) {
	copying := func(dsn string) error {
		c, err := mysql.OpenCopy(ctx, mysql.Options{DSN: dsn, Logger: quiet}, "x.1")
		if err == nil {
			c.Close()
		}
		return err
	}
	_, dsn := database(t)
	s := openMySQL(t, mysql.Options{DSN: dsn})
	if err := copying(dsn); err == nil || !strings.Contains(err.Error(), "a server uses it") {
		t.Errorf("a node of several: got %v, want it refused", err)
	}
	if err := s.Commit(ctx, &store.Batch{Blocks: []store.Block{{User: "a", Peer: "b"}}}); err != nil {
		t.Fatal(err)
	}
	closeNow(t, s)
	if err := copying(dsn); err == nil || !strings.Contains(err.Error(), "is not empty: there are blocks") {
		t.Errorf("a database in use: got %v, want it refused", err)
	}
	closeNow(t, openMySQL(t, mysql.Options{DSN: dsn})) // it serves still

	_, dsn = database(t)
	s = openMySQL(t, mysql.Options{DSN: dsn, Exclusive: true, Name: "node one"})
	if err := copying(dsn); !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), "node one") {
		t.Errorf("a server alone: got %v, want %v", err, store.ErrLocked)
	}
	closeNow(t, s)
	if err := copying(dsn); err != nil {
		t.Errorf("a database that a server has left as empty as it was: %v", err)
	}
}

// TestNoRoom: what a key of the database has no room for is named before anything of its step is stored.
func TestNoRoom(t *testing.T) {
	dir := t.TempDir()
	s := openPebble(t, pebble.Options{Path: dir})
	long := &store.Publish{Publication: &store.Publication{Topic: "long/" + strings.Repeat("x", 3000), Payload: []byte("p")}, Retain: true}
	if err := s.Commit(ctx, &store.Batch{TopicBatch: store.TopicBatch{Publishes: []*store.Publish{long}}}); err != nil {
		t.Fatal(err)
	}
	closeNow(t, s)
	from := openPebble(t, pebble.Options{Path: dir, ReadOnly: true})
	_, dsn := database(t)
	err := dump.Copy(ctx, from, openCopy(t, dsn, from), (&told{}).options())
	if err == nil || !strings.Contains(err.Error(), "retained") || !strings.Contains(err.Error(), "long/xxx") {
		t.Errorf("got %v, want the topic named", err)
	}
}

// TestDamaged: a flipped bit in a message stops the copy, which names the place; told to, it leaves out what is damaged, lists
// it, and copies the rest.
func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	s := openPebble(t, pebble.Options{Path: dir})
	big(t, s)
	closeNow(t, s)
	closeNow(t, openPebble(t, pebble.Options{Path: dir})) // the log becomes tables
	tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil {
		t.Fatal(err)
	}
	sort := func(a, b string) int { return int(size(t, b) - size(t, a)) }
	slices.SortFunc(tables, sort)
	b, err := os.ReadFile(tables[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/3] ^= 4
	if err := os.WriteFile(tables[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	from := openPebble(t, pebble.Options{Path: dir, ReadOnly: true})
	_, dsn := database(t)
	to := openCopy(t, dsn, from)
	err = dump.Copy(ctx, from, to, (&told{}).options())
	if !errors.Is(err, store.ErrCorrupt) || !strings.Contains(err.Error(), "u/big/z: chunk from cseq") {
		t.Fatalf("got %v, want %v and its place", err, store.ErrCorrupt)
	}
	closeNow(t, to)
	to = openCopy(t, dsn, from)
	var x told
	o := x.options()
	o.SkipDamaged = true
	if err := dump.Copy(ctx, from, to, o); err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(x.lines, "\n"))
	}
	out := 0
	for _, l := range x.lines {
		if strings.HasPrefix(l, "left out: u/big/z: chunk from cseq") {
			out++
		}
	}
	if out < 1 || out > 10 {
		t.Errorf("%d places are listed, want some few:\n%s", out, strings.Join(x.lines, "\n"))
	}
	c, err := to.Conversation(ctx, "z", store.Direct("big", "z"))
	if err != nil || c.Head != 80 || c.Unread != 80 {
		t.Errorf("got %+v, %v, want the head at 80", c, err)
	}
}

func size(t *testing.T, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// counting gives ids one after the other, so that two stores give the same.
type counting struct{ last int64 }

func (c *counting) Next(after int64) int64 {
	c.last = max(c.last, after) + 1
	return c.last
}

// random are columns that have names which each store makes up, or the number of a chunk's bytes that a driver uses as it likes.
var random = []string{"node", "queue", "pub", "runs", "body"}

// TestSameAsWritten: a copy has the records that the same traffic makes on MySQL itself, down to those that are needed only
// later: for retention, or for the next message.
func TestSameAsWritten(t *testing.T) {
	seed, now := rand.Uint64(), time.Now().UnixMilli()
	dir := t.TempDir()
	p := openPebble(t, pebble.Options{Path: dir, IDs: &counting{}})
	everything(t, p, seed, now)
	closeNow(t, p)
	copied := openMySQL(t, mysql.Options{DSN: moved(t, dir)})
	_, dsn := database(t)
	written := openMySQL(t, mysql.Options{DSN: dsn, IDs: &counting{}})
	everything(t, written, seed, now)
	rows := func(s dump.Source) (list []string) {
		err := s.Dump(ctx, func(err error) error { return err }, func(r dump.Row) error {
			c := &dump.Kinds[r.Kind]
			if r.Kind == dump.Pubs || r.Kind == dump.Queues || r.Kind == dump.PubRefs || r.Kind == dump.Outbound && r.Values[1].(uint64) <= 5 {
				return nil // what is passed goes at once in the one, later in the other
			}
			text := c.Name
			for i, v := range r.Values {
				if !slices.Contains(random, c.Names[i]) || r.Kind == dump.Entries {
					text += fmt.Sprintf(" %s=%q", c.Names[i], fmt.Sprint(v))
				}
			}
			list = append(list, text)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(list)
		return list
	}
	if d := cmp.Diff(rows(written), rows(copied)); d != "" {
		t.Errorf("records (-written there +copied):\n%.6000s", d)
	}
	for more, err := true, error(nil); more; { // which removes publications that nothing refers to
		if more, err = copied.Maintain(ctx, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	for _, client := range []string{"c1", "c2", "c3"} {
		q, err := copied.Queue(ctx, client)
		if err != nil {
			t.Fatal(err)
		}
		list, err := copied.ReadQueue(ctx, client, 0, 1000, nil)
		if err != nil || uint64(len(list)) != q.Head-q.Passed || len(list) == 0 {
			t.Errorf("queue of %s after Maintain: got %d, %v, want %d", client, len(list), err, q.Head-q.Passed)
		}
	}
}
