// Package pebble keeps the log in an embedded Pebble store: the default driver, for one node.
//
// # Layout
//
// Messages are not stored one by one. What one Commit appends to one conversation is a chunk, one value, so that
// the cost of a key is paid once for dozens of messages:
//
//	l lsn                → chunk of messages, checksummed      (lsn: one counter for the whole store)
//	c conv 0 firstCseq   → where the chunk lies, its last id and time, senders counted (direct conversations)
//	w conv 0 cseq        → sender: the message is recalled
//	i user 0 firstSeq    → runs of references into chunks, one value per user and Commit
//	h user               → what trimming has removed, so that seq never starts again
//	k bucket sender 0 n cid → what became of a cid of n bytes; a bucket is a stretch of time, dropped whole
//	r user 0 ^id         → direct conversations by their newest id
//	G group              → a group's record
//	M group 0 user       → a member's record, with the spans it was there for
//	F group 0 user       → the same of who has left
//	g user 0 conv        → the groups a user is or was in; of those left, the id of the message that says so
//	O conv 0 user 0 cseq → groups: what the user has in the chunk where cseq is the first of it, and how many before
//	v user 0 conv        → watermarks; of a group v conv 0 user
//	x user 0 conv 0 cseq → deleted by the user
//	z user 0 device 0 conv → how far a device has read a large group
//	N to 0 ts hash       → notices; the hash is of what they say
//	b, d, u, m           → block lists, devices, users, the store itself
//	E client             → the epoch of the last claim of a client, and when
//
// Ordinary topics:
//
//	p lsn                → publications of one batch that went into queues, checksummed
//	f lsn client         → that queue still refers to some of them
//	q client 0 firstSeq  → runs of references into publications, one value per session and Commit
//	a client             → how far the queue is acknowledged or dropped, and where its first record may be
//	s client             → the session; n client 0 filter → its subscriptions
//	t path group 0 client → the same by filter, level by level (path.go)
//	o client 0 seq, j client 0 id → what is on its way, out and in
//	e path               → retained messages; y client → wills
//
// Heads are not stored: the last key of a range tells them. lsn rises with every chunk, so the large values are
// written in key order and compactions move them without rewriting them.
//
// # What is durable
//
// A batch that was applied but not yet synced can be read back from Pebble and be gone after a crash. So readers
// compare the lsn of everything they find with durable, the last lsn known to be synced, and pass over what is
// beyond. lsn is assigned and applied under one mutex and the write-ahead log is synced in its order, so "lsn <=
// durable" is exact. Watermarks, deletions, the removal of a body and notices are not clipped: they may show a moment
// early, and a crash may bring the older state back. Nor are claims, nor groups and their members, but what is read of a
// group's log is.
//
// Damage is noticed by checksums, of Pebble's blocks and of chunks, and refused. One case is not: a flipped bit near
// the end of the last write-ahead log, met while recovering from a crash, looks like a torn write, and what comes
// after it is dropped. Pebble's own look-ahead finds out only where later records promise that more had been synced,
// and that promise lags by some percent of the log.
//
// # Concurrency
//
// Commit builds and applies under Store.mu and waits for the sync outside it: the next batch is prepared while the
// last one syncs. The cached heads belong to the holder of mu and say what is assigned; readers never use them.
// Store.life is held shared by every call and exclusively by Close.
package pebble
