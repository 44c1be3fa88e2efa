// Package mysql keeps the log in MySQL, MariaDB or what speaks their protocol, for any number of nodes on one database.
//
// # Layout
//
// It is that of package pebble, in tables (migrations/), and keeps what makes it fast: the messages of one batch and
// one conversation are one row, a chunk, and what a batch puts into one inbox is one row of references. The formats of
// both are package wire's.
//
//	convs (conv)                  head of a conversation: cseq, last id, messages by sender
//	chunks (conv, first cseq)     messages
//	recalls, deletions, views     tombstones, what users have deleted, watermarks
//	owns (conv, user, first)      who has sent what to a group, so that counts need no messages
//	inboxes (user)                head of an inbox, and how far it is trimmed
//	entries (user, first seq)     runs of references into chunks
//	cids (sender and cid)         what became of a cid
//	directs, memberships (user)   lists of conversations
//	groups, members, cursors, blocks, users, devices, notices
//	sessions, subscriptions, filters, queues, pubs, pub_refs, outbound, inbound, retained, wills
//	claims (client)               who speaks for a client
//	writers, nodes, numbers, meta, counts  the processes and the store itself
//
// Nothing is used that only one product has: no stored code, no foreign keys, no generated columns, no partitions.
// Names are VARBINARY and sessions are of character set binary, so that no collation makes one name of two. All
// statements are in sql.go; a test looks at the plan of each.
//
// # A Commit
//
// It is one transaction at READ COMMITTED, in three round trips for direct messages, whatever its size: lock and read,
// write, COMMIT; groups take one or two more. Statements that do not depend on each other's results are one packet.
//
// Whoever writes locks first: claims of clients, heads of conversations, of inboxes, views, sessions, in this order and
// each by key, so that two batches wait for each other in one direction. A group has no lock of its own: it is changed by messages
// alone, and so the head of its conversation is its lock. Members of small groups are remembered by the group's version,
// which is read under that lock. What is new (a first message, a cid) is inserted as such: where two nodes do so at
// once the keys let one of them through, and the other begins again and finds it. So it does after a deadlock and a
// lock wait, and where a connection is lost before COMMIT was sent.
//
// # COMMIT without an answer
//
// The last statement before COMMIT writes the number of the batch to the row of the lane it goes through (writers). When
// the connection is lost from then on, that row is locked and read: the old transaction holds it until the server has
// ended it, one way or the other, so that what it says is final. The outcome is unknown (ErrUnknownOutcome) only where
// the database stays away.
//
// # What is durable
//
// Open refuses a server that does not sync its log at every commit. A server without a binary log shows others what it
// commits some tenths of a millisecond before that is synced (with one, after): a reader may see a message, and hand
// it over, that a power loss of the database's machine in that moment takes back. Its sender has no acknowledgement
// then, and sends it again. Whoever needs more runs the server with log_bin and sync_binlog=1.
//
// # One process alone
//
// Options.Exclusive keeps other processes out, where nothing connects the nodes; see owner. Options.Shared is for those of a
// cluster, each of which has a node number for its message ids; see lease.
//
// # Replicas
//
// What people page through (store.Relaxed) may come from copies of the database; see replicas.
//
// # Sessions of ordinary topics
//
// A session that is connected belongs to a process, which shows every few seconds that it is alive (nodes). One whose
// process has been silent for nodeTTL, or has closed the store, counts as cut off; Maintain writes that down. A will is held by the process that has stored it, as long. What
// queues have passed stays until Maintain removes it, with its publications when the last queue has.
//
// Topics and filters are keys: those of more than about 2,300 bytes do not fit. A filter that long fails its batch, a
// retained message is refused.
//
// # Concurrency
//
// Batches with messages of one process go one after the other (lane), and so do those with publications; others go
// beside them. Store.life is held shared by every call and exclusively by Close. Close waits for what is under way,
// which ends within Options.Timeout, but for a Commit that waits to hear of an outcome: three times that.
package mysql
