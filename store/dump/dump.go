// Package dump copies everything of one store into another, and compares the two. What it knows of a store is a list of
// records, the same for all drivers: rows of the tables that package mysql's schema has, with the chunks, runs and spans
// of package wire. So records are copied as they are, and nothing is numbered or decided anew.
//
// What belongs to one process is no record: claims, writers, nodes. A session that was connected when its store was closed
// is copied as such, with no node: whoever opens the copy counts it as cut off since then.
package dump

import (
	"context"
	"crypto/sha256"
	"strings"

	"github.com/mqim/mqim/store"
)

// Kind is a kind of record, by its place in Kinds.
type Kind int

// The kinds.
const (
	Convs Kind = iota
	Chunks
	Recalls
	Owns
	Views
	Deletions
	Directs
	Inboxes
	Entries
	Cids
	Groups
	Members
	Memberships
	Blocks
	Users
	Devices
	Cursors
	Notices
	Sessions
	Subscriptions
	Filters
	Pubs
	PubRefs
	Queues
	Outbound
	Inbound
	Retained
	Wills
)

// Columns are what records of one kind have.
type Columns struct {
	Name  string // of the kind
	Keys  int    // so many of the first columns are the key
	Names []string
	Types string // a letter each: s bytes (a string), u uint64, i int64
	Big   bool   // records may be as large as a message
}

// Kinds are all kinds. The names are those of package mysql's tables and their columns, whose comments say what they are.
// Truth is 1 or 0.
var Kinds = [...]Columns{
	Convs:         columns("convs", 1, "conv:s cseq:u last_id:i from_a:u from_b:u"),
	Chunks:        columns("chunks", 2, "conv:s first:u n:u max_ts:i cum_a:u cum_b:u in_a:u in_b:u body:s"),
	Recalls:       columns("recalls", 2, "conv:s cseq:u sender:s"),
	Owns:          columns("owns", 3, "conv:s user:s first:u total:u rest:s"),
	Views:         columns("views", 2, "conv:s user:s read_to:u delivered:u deleted:u own:u"),
	Deletions:     columns("deletions", 3, "user:s conv:s cseq:u own:u"),
	Directs:       columns("directs", 2, "user:s conv:s last_id:i"),
	Inboxes:       columns("inboxes", 1, "user:s seq:u max_ts:i trimmed:u"),
	Entries:       columns("entries", 2, "user:s first:u n:u max_ts:i min_ts:i runs:s"),
	Cids:          columns("cids", 1, "k:s hash:u conv:s cseq:u id:i ts:i"),
	Groups:        columns("groups", 1, "id:s version:u name:s notice:s is_open:u history_all:u receipts:u owner:s created:i members:u large_from:u ended:u"),
	Members:       columns("members", 2, "grp:s user:s present:u role:u joined:i muted_until:i spans:s"),
	Memberships:   columns("memberships", 2, "user:s conv:s present:u large:u left_id:i"),
	Blocks:        columns("blocks", 2, "user:s peer:s"),
	Users:         columns("users", 1, "user:s cursor_seq:u last_seen:i"),
	Devices:       columns("devices", 2, "user:s device:s cursor_seq:u last_seen:i expires:i profile:s"),
	Cursors:       columns("cursors", 3, "user:s device:s conv:s cseq:u"),
	Notices:       columns("notices", 3, "name:s ts:i hash:u payload:s"),
	Sessions:      columns("sessions", 1, "client:s user:s expiry:u since:i state:u node:s queue:s head:u passed:u"),
	Subscriptions: columns("subscriptions", 2, "client:s filter:s options:s"),
	Filters:       columns("filters", 3, "path:s share:s client:s options:s"),
	Pubs:          columns("pubs", 1, "pub:s body:s"),
	PubRefs:       columns("pub_refs", 2, "pub:s queue:s"),
	Queues:        columns("queues", 2, "queue:s first:u n:u runs:s"),
	Outbound:      columns("outbound", 2, "queue:s seq:u packet_id:u received:u done:u"),
	Inbound:       columns("inbound", 2, "queue:s packet_id:u"),
	Retained:      columns("retained", 1, "path:s expires:i body:s"),
	Wills:         columns("wills", 1, "client:s body:s"),
}

func columns(name string, keys int, list string) Columns {
	c := Columns{Name: name, Keys: keys}
	for f := range strings.FieldsSeq(list) {
		column, kind, _ := strings.Cut(f, ":")
		c.Names = append(c.Names, column)
		c.Types += kind
		c.Big = c.Big || column == "body" || column == "payload"
	}
	return c
}

// Session states.
const (
	Offline = iota
	Online  // when the store was closed, or its process ended
	Cut
)

// Row is a record.
type Row struct {
	Kind   Kind
	Values []any // as Kinds has them
}

// Size is about how many bytes it has.
func (r *Row) Size() (n int) {
	for _, v := range r.Values {
		n += 8
		if s, ok := v.(string); ok {
			n += len(s)
		}
	}
	return n
}

// Queue names the queue of a client in records.
func Queue(client string) string {
	h := sha256.Sum256([]byte(client))
	return string(h[:16])
}

// Bool is a truth in a row.
func Bool(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// Source is a store that can be read record by record. Nobody writes to it meanwhile.
type Source interface {
	store.Store
	// Dump calls row for every record, always in the same order. damaged is called for a record that cannot be read, which is
	// left out then; what it returns ends the dump, and so does an error of row.
	Dump(ctx context.Context, damaged func(error) error, row func(Row) error) error
	// State names a state of the store: no server has had the store open between two times that it is the same.
	State() string
}

// Target is a store that is being filled. Until Finish it serves nobody.
type Target interface {
	Source
	// Stored is how many of the first records an earlier copy of the same source has left here.
	Stored() uint64
	// Add stores records in one step.
	Add(ctx context.Context, rows []Row) error
	// Adopt stores what of the source is no record: epoch, greatest id and number of retained messages.
	Adopt(ctx context.Context, epoch string, lastID int64, retained uint64) error
	// Finish says that the copy is complete.
	Finish(ctx context.Context) error
}
