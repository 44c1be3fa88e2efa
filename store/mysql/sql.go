package mysql

import "strings"

// statement is one of the statements below: a text with placeholders, ?s for bytes and ?n for a number, and at most one
// part in brackets, which is repeated with commas, once for each row or key. All that the driver ever sends is defined
// here, so that a test can look at the plan of each.
type statement struct {
	head, row, tail string // with ? alone
	kinds           string // of the placeholders, one letter each, the row's once
	perRow          int    // placeholders in row
}

// statements are all that define has made.
var statements []*statement

func define(text string) *statement {
	st := &statement{}
	text = strings.Join(strings.Fields(text), " ")
	st.head = text
	if i := strings.IndexByte(text, '['); i >= 0 {
		j := strings.LastIndexByte(text, ']')
		st.head, st.row, st.tail = text[:i], text[i+1:j], text[j+1:]
	}
	for _, part := range []*string{&st.head, &st.row, &st.tail} {
		for i := 0; i < len(*part)-1; i++ {
			if (*part)[i] == '?' {
				st.kinds += (*part)[i+1 : i+2]
			}
		}
		*part = strings.NewReplacer("?s", "?", "?n", "?").Replace(*part)
	}
	st.perRow = strings.Count(st.row, "?")
	statements = append(statements, st)
	return st
}

// text is the statement with n rows.
func (st *statement) text(n int) string {
	if st.row == "" {
		return st.head
	}
	return st.head + st.row + strings.Repeat(", "+st.row, n-1) + st.tail
}

// The store itself.
var (
	begin    = define(`START TRANSACTION`)
	rollback = define(`ROLLBACK`)
	commit   = define(`COMMIT`)

	getMeta   = define(`SELECT value FROM mqim_meta WHERE name = ?s`)
	setMeta   = define(`INSERT INTO mqim_meta (name, value) VALUES (?s, ?s) ON DUPLICATE KEY UPDATE value = VALUES(value)`)
	shareMeta = define(`SELECT value FROM mqim_meta WHERE name = ?s LOCK IN SHARE MODE`)
	addMeta   = define(`INSERT INTO mqim_meta (name, value) VALUES (?s, ?s) ON DUPLICATE KEY UPDATE name = name`)
	dropMeta  = define(`DELETE FROM mqim_meta WHERE name = ?s`)

	signWriter = define(`INSERT INTO mqim_writers (id, batch, last_id, seen) VALUES (?s, ?n, ?n, ?n)
		ON DUPLICATE KEY UPDATE batch = VALUES(batch), last_id = VALUES(last_id), seen = VALUES(seen)`)
	lockWriter  = define(`SELECT batch FROM mqim_writers WHERE id = ?s FOR UPDATE`)
	getWriters  = define(`SELECT id, batch, seen FROM mqim_writers FORCE INDEX (PRIMARY) WHERE id IN ([?s])`)
	lastID      = define(`SELECT MAX(last_id) FROM mqim_writers`)
	listWriters = define(`SELECT id, last_id, seen FROM mqim_writers FORCE INDEX (PRIMARY) WHERE id > ?s ORDER BY id LIMIT ?n`)
	listFeeds   = define(`SELECT id, batch FROM mqim_writers FORCE INDEX (PRIMARY) WHERE id > ?s AND id < ?s ORDER BY id LIMIT ?n`)
	dropWriters = define(`DELETE FROM mqim_writers WHERE id IN ([?s]) AND seen < ?n`)
)

// Conversations.
var (
	lockConvs = define(`SELECT conv, cseq, last_id, from_a, from_b FROM mqim_convs FORCE INDEX (PRIMARY)
		WHERE conv IN ([?s]) ORDER BY conv FOR UPDATE`)
	getConvs     = define(`SELECT conv, cseq, last_id, from_a, from_b FROM mqim_convs FORCE INDEX (PRIMARY) WHERE conv IN ([?s])`)
	getConvHeads = define(`SELECT conv, cseq FROM mqim_convs FORCE INDEX (PRIMARY) WHERE conv IN ([?s])`)
	addConvs     = define(`INSERT INTO mqim_convs (conv, cseq, last_id, from_a, from_b) VALUES [(?s, ?n, ?n, ?n, ?n)]`)
	setConvs     = define(`INSERT INTO mqim_convs (conv, cseq, last_id, from_a, from_b) VALUES [(?s, ?n, ?n, ?n, ?n)]
		ON DUPLICATE KEY UPDATE cseq = VALUES(cseq), last_id = VALUES(last_id), from_a = VALUES(from_a), from_b = VALUES(from_b)`)
	listConvs = define(`SELECT conv FROM mqim_convs FORCE INDEX (PRIMARY) WHERE conv > ?s ORDER BY conv LIMIT ?n`)

	addChunks = define(`INSERT INTO mqim_chunks (conv, first, n, max_ts, cum_a, cum_b, in_a, in_b, body)
		VALUES [(?s, ?n, ?n, ?n, ?n, ?n, ?n, ?n, ?s)]`)
	setChunk  = define(`UPDATE mqim_chunks SET body = ?s WHERE conv = ?s AND first = ?n`)
	getChunks = define(`SELECT conv, first, n, body FROM mqim_chunks FORCE INDEX (PRIMARY) WHERE (conv, first) IN ([(?s, ?n)])`)
	chunkAt   = define(`SELECT conv, first, n, body FROM mqim_chunks WHERE conv = ?s AND first <= ?n ORDER BY first DESC LIMIT 1`)
	refAt     = define(`SELECT first, n, cum_a, cum_b, in_a, in_b FROM mqim_chunks
		WHERE conv = ?s AND first <= ?n ORDER BY first DESC LIMIT 1`)
	firstRef = define(`SELECT first, n, cum_a, cum_b, in_a, in_b FROM mqim_chunks WHERE conv = ?s ORDER BY first LIMIT 1`)
	chunksUp = define(`SELECT conv, first, n, body FROM mqim_chunks
		WHERE conv = ?s AND first >= COALESCE((SELECT MAX(x.first) FROM mqim_chunks x WHERE x.conv = ?s AND x.first <= ?n), 0)
		AND first < ?n ORDER BY first LIMIT ?n`)
	chunksDown = define(`SELECT conv, first, n, body FROM mqim_chunks WHERE conv = ?s AND first < ?n ORDER BY first DESC LIMIT ?n`)
	oldChunks  = define(`SELECT first, n, max_ts FROM mqim_chunks WHERE conv = ?s ORDER BY first LIMIT ?n`)
	dropChunks = define(`DELETE FROM mqim_chunks WHERE conv = ?s AND first < ?n`)

	addRecalls  = define(`INSERT INTO mqim_recalls (conv, cseq, sender) VALUES [(?s, ?n, ?s)] ON DUPLICATE KEY UPDATE sender = sender`)
	getRecalls  = define(`SELECT cseq, sender FROM mqim_recalls WHERE conv = ?s AND cseq BETWEEN ?n AND ?n ORDER BY cseq`)
	dropRecalls = define(`DELETE FROM mqim_recalls WHERE conv = ?s AND cseq < ?n`)

	lockViews = define(`SELECT conv, user, read_to, delivered, deleted, own FROM mqim_views FORCE INDEX (PRIMARY)
		WHERE (conv, user) IN ([(?s, ?s)]) ORDER BY conv, user FOR UPDATE`)
	getViews = define(`SELECT conv, user, read_to, delivered, deleted, own FROM mqim_views FORCE INDEX (PRIMARY)
		WHERE (conv, user) IN ([(?s, ?s)])`)
	addViews = define(`INSERT INTO mqim_views (conv, user, read_to, delivered, deleted, own) VALUES [(?s, ?s, ?n, ?n, ?n, ?n)]`)
	setMarks = define(`INSERT INTO mqim_views (conv, user, read_to, delivered, deleted, own) VALUES [(?s, ?s, ?n, ?n, ?n, ?n)]
		ON DUPLICATE KEY UPDATE read_to = VALUES(read_to), delivered = VALUES(delivered), deleted = VALUES(deleted)`)
	setOwn = define(`INSERT INTO mqim_views (conv, user, read_to, delivered, deleted, own) VALUES [(?s, ?s, 0, 0, 0, ?n)]
		ON DUPLICATE KEY UPDATE own = VALUES(own)`)

	addOwns  = define(`INSERT INTO mqim_owns (conv, user, first, total, rest) VALUES [(?s, ?s, ?n, ?n, ?s)]`)
	ownAt    = define(`SELECT first, total, rest FROM mqim_owns WHERE conv = ?s AND user = ?s AND first <= ?n ORDER BY first DESC LIMIT 1`)
	firstOwn = define(`SELECT first, total, rest FROM mqim_owns WHERE conv = ?s AND user = ?s ORDER BY first LIMIT 1`)
	listOwns = define(`SELECT conv, user, first FROM mqim_owns FORCE INDEX (PRIMARY)
		WHERE conv > ?s OR (conv = ?s AND user > ?s) OR (conv = ?s AND user = ?s AND first > ?n) ORDER BY conv, user, first LIMIT ?n`)
	dropOwns = define(`DELETE FROM mqim_owns WHERE (conv, user, first) IN ([(?s, ?s, ?n)])`)

	addDeletions = define(`INSERT INTO mqim_deletions (user, conv, cseq, own) VALUES [(?s, ?s, ?n, ?n)] ON DUPLICATE KEY UPDATE own = own`)
	anyDeletion  = define(`SELECT 1 FROM mqim_deletions WHERE user = ?s LIMIT 1`)
	getDeletions = define(`SELECT cseq, own FROM mqim_deletions WHERE user = ?s AND conv = ?s AND cseq BETWEEN ?n AND ?n ORDER BY cseq`)
	listDeleted  = define(`SELECT user, conv, cseq FROM mqim_deletions FORCE INDEX (PRIMARY)
		WHERE user > ?s OR (user = ?s AND conv > ?s) OR (user = ?s AND conv = ?s AND cseq > ?n) ORDER BY user, conv, cseq LIMIT ?n`)
	dropDeletions = define(`DELETE FROM mqim_deletions WHERE (user, conv, cseq) IN ([(?s, ?s, ?n)])`)

	setDirects = define(`INSERT INTO mqim_directs (user, conv, last_id) VALUES [(?s, ?s, ?n)]
		ON DUPLICATE KEY UPDATE last_id = VALUES(last_id)`)
	listDirects = define(`SELECT conv, last_id FROM mqim_directs FORCE INDEX (by_last_id)
		WHERE user = ?s AND last_id < ?n ORDER BY last_id DESC LIMIT ?n`)
)

// Client message ids.
var (
	getCids = define(`SELECT k, hash, conv, cseq, id, ts FROM mqim_cids FORCE INDEX (PRIMARY) WHERE k IN ([?s])`)
	addCids = define(`INSERT INTO mqim_cids (k, hash, conv, cseq, id, ts) VALUES [(?s, ?n, ?s, ?n, ?n, ?n)]`)
	setCids = define(`INSERT INTO mqim_cids (k, hash, conv, cseq, id, ts) VALUES [(?s, ?n, ?s, ?n, ?n, ?n)]
		ON DUPLICATE KEY UPDATE hash = VALUES(hash), conv = VALUES(conv), cseq = VALUES(cseq), id = VALUES(id), ts = VALUES(ts)`)
	listCids = define(`SELECT k, ts FROM mqim_cids FORCE INDEX (PRIMARY) WHERE k > ?s ORDER BY k LIMIT ?n`)
	dropCids = define(`DELETE FROM mqim_cids WHERE k IN ([?s]) AND ts <= ?n`)
)

// Inboxes.
var (
	lockInboxes = define(`SELECT user, seq, max_ts, trimmed FROM mqim_inboxes FORCE INDEX (PRIMARY)
		WHERE user IN ([?s]) ORDER BY user FOR UPDATE`)
	getInbox   = define(`SELECT seq, trimmed FROM mqim_inboxes WHERE user = ?s`)
	addInboxes = define(`INSERT INTO mqim_inboxes (user, seq, max_ts, trimmed) VALUES [(?s, ?n, ?n, 0)]`)
	setInboxes = define(`INSERT INTO mqim_inboxes (user, seq, max_ts, trimmed) VALUES [(?s, ?n, ?n, 0)]
		ON DUPLICATE KEY UPDATE seq = VALUES(seq), max_ts = VALUES(max_ts)`)
	getInboxHeads = define(`SELECT user, seq FROM mqim_inboxes FORCE INDEX (PRIMARY) WHERE user IN ([?s])`)
	listInboxes   = define(`SELECT user, seq, trimmed FROM mqim_inboxes FORCE INDEX (PRIMARY) WHERE user > ?s ORDER BY user LIMIT ?n`)
	trimInbox     = define(`UPDATE mqim_inboxes SET trimmed = GREATEST(trimmed, ?n) WHERE user = ?s`)

	addEntries = define(`INSERT INTO mqim_entries (user, first, n, max_ts, min_ts, runs) VALUES [(?s, ?n, ?n, ?n, ?n, ?s)]`)
	getEntries = define(`SELECT first, n, max_ts, min_ts, runs FROM mqim_entries
		WHERE user = ?s AND first >= COALESCE((SELECT MAX(x.first) FROM mqim_entries x WHERE x.user = ?s AND x.first <= ?n), 0)
		ORDER BY first LIMIT ?n`)
	entryAt     = define(`SELECT first, n, max_ts, min_ts, runs FROM mqim_entries WHERE user = ?s AND first <= ?n ORDER BY first DESC LIMIT 2`)
	firstEntry  = define(`SELECT first, n, max_ts, min_ts, runs FROM mqim_entries WHERE user = ?s ORDER BY first LIMIT 1`)
	dropEntries = define(`DELETE FROM mqim_entries WHERE user = ?s AND first <= ?n AND first + n - 1 <= ?n ORDER BY first LIMIT ?n`)
)

// Groups.
var (
	getGroups = define(`SELECT id, version, name, notice, is_open, history_all, receipts, owner, created, members, large_from, ended
		FROM mqim_groups FORCE INDEX (PRIMARY) WHERE id IN ([?s])`)
	setGroups = define(`INSERT INTO mqim_groups
		(id, version, name, notice, is_open, history_all, receipts, owner, created, members, large_from, ended)
		VALUES [(?s, ?n, ?s, ?s, ?n, ?n, ?n, ?s, ?n, ?n, ?n, ?n)]
		ON DUPLICATE KEY UPDATE version = VALUES(version), name = VALUES(name), notice = VALUES(notice), is_open = VALUES(is_open),
		history_all = VALUES(history_all), receipts = VALUES(receipts), owner = VALUES(owner), created = VALUES(created),
		members = VALUES(members), large_from = VALUES(large_from), ended = VALUES(ended)`)

	getMembers = define(`SELECT grp, user, role, joined, muted_until, spans FROM mqim_members FORCE INDEX (PRIMARY)
		WHERE (grp, user) IN ([(?s, ?s)])`)
	setMembers = define(`INSERT INTO mqim_members (grp, user, present, role, joined, muted_until, spans)
		VALUES [(?s, ?s, ?n, ?n, ?n, ?n, ?s)]
		ON DUPLICATE KEY UPDATE present = VALUES(present), role = VALUES(role), joined = VALUES(joined),
		muted_until = VALUES(muted_until), spans = VALUES(spans)`)
	presentNames = define(`SELECT user FROM mqim_members FORCE INDEX (by_presence)
		WHERE grp = ?s AND present = 1 AND user > ?s ORDER BY user LIMIT ?n`)
	presentMembers = define(`SELECT grp, user, role, joined, muted_until, spans FROM mqim_members FORCE INDEX (by_presence)
		WHERE grp = ?s AND present = 1 AND user > ?s ORDER BY user LIMIT ?n`)
	memberViews = define(`SELECT m.user, m.spans, v.read_to, v.delivered FROM mqim_members m FORCE INDEX (by_presence)
		LEFT JOIN mqim_views v ON v.conv = ?s AND v.user = m.user
		WHERE m.grp = ?s AND m.present = 1 AND m.user > ?s ORDER BY m.user LIMIT ?n`)

	setMemberships = define(`INSERT INTO mqim_memberships (user, conv, present, large, left_id) VALUES [(?s, ?s, ?n, ?n, ?n)]
		ON DUPLICATE KEY UPDATE present = VALUES(present), large = VALUES(large), left_id = VALUES(left_id)`)
	listMemberships = define(`SELECT m.conv, m.present, m.large, m.left_id, COALESCE(c.last_id, 0) FROM mqim_memberships m
		LEFT JOIN mqim_convs c ON c.conv = m.conv WHERE m.user = ?s AND m.conv > ?s ORDER BY m.conv LIMIT ?n`)

	setCursors = define(`INSERT INTO mqim_cursors (user, device, conv, cseq) VALUES [(?s, ?s, ?s, ?n)]
		ON DUPLICATE KEY UPDATE cseq = GREATEST(cseq, VALUES(cseq))`)
	getCursors  = define(`SELECT cseq FROM mqim_cursors WHERE user = ?s AND device = ?s AND conv = ?s`)
	dropCursors = define(`DELETE FROM mqim_cursors WHERE user = ?s AND device = ?s`)

	addNotices = define(`INSERT INTO mqim_notices (name, ts, hash, payload) VALUES [(?s, ?n, ?n, ?s)] ON DUPLICATE KEY UPDATE hash = hash`)
	getNotices = define(`SELECT ts, hash, payload FROM mqim_notices WHERE name = ?s AND (ts > ?n OR (ts = ?n AND hash > ?n)) ORDER BY ts, hash LIMIT ?n`)
	// The time is after the name in the key: what is old is found by a walk.
	listNotices = define(`SELECT name, ts, hash FROM mqim_notices FORCE INDEX (PRIMARY)
		WHERE name > ?s OR (name = ?s AND ts > ?n) OR (name = ?s AND ts = ?n AND hash > ?n) ORDER BY name, ts, hash LIMIT ?n`)
	dropNotices = define(`DELETE FROM mqim_notices WHERE (name, ts, hash) IN ([(?s, ?n, ?n)])`)
)

// Users.
var (
	setUsers = define(`INSERT INTO mqim_users (user, cursor_seq, last_seen) VALUES [(?s, ?n, ?n)]
		ON DUPLICATE KEY UPDATE cursor_seq = GREATEST(cursor_seq, VALUES(cursor_seq)), last_seen = GREATEST(last_seen, VALUES(last_seen))`)
	getUser    = define(`SELECT cursor_seq, last_seen FROM mqim_users WHERE user = ?s`)
	setDevices = define(`INSERT INTO mqim_devices (user, device, cursor_seq, last_seen, expires, profile) VALUES [(?s, ?s, ?n, ?n, ?n, ?s)]
		ON DUPLICATE KEY UPDATE cursor_seq = VALUES(cursor_seq), last_seen = VALUES(last_seen), expires = VALUES(expires),
		profile = VALUES(profile)`)
	getDevice   = define(`SELECT device, cursor_seq, last_seen, expires, profile FROM mqim_devices WHERE user = ?s AND device = ?s`)
	listDevices = define(`SELECT device, cursor_seq, last_seen, expires, profile FROM mqim_devices
		WHERE user = ?s AND device > ?s ORDER BY device LIMIT ?n`)
	dropDevice  = define(`DELETE FROM mqim_devices WHERE user = ?s AND device = ?s`)
	walkDevices = define(`SELECT user, device, expires FROM mqim_devices FORCE INDEX (PRIMARY)
		WHERE user > ?s OR (user = ?s AND device > ?s) ORDER BY user, device LIMIT ?n`)
	lockDevice = define(`SELECT expires FROM mqim_devices WHERE user = ?s AND device = ?s FOR UPDATE`)
	addBlock   = define(`INSERT INTO mqim_blocks (user, peer) VALUES (?s, ?s) ON DUPLICATE KEY UPDATE peer = peer`)
	dropBlock  = define(`DELETE FROM mqim_blocks WHERE user = ?s AND peer = ?s`)
	listBlocks = define(`SELECT peer FROM mqim_blocks WHERE user = ?s AND peer > ?s ORDER BY peer LIMIT ?n`)
)

// Locks by name, for work that one process at a time should do. They need no table.
var (
	getLock     = define(`SELECT GET_LOCK(?s, ?n)`)
	releaseLock = define(`SELECT RELEASE_LOCK(?s)`)
)

// Numbers of nodes.
var (
	listNumbers = define(`SELECT number, node, name FROM mqim_numbers FORCE INDEX (PRIMARY) WHERE number > ?n ORDER BY number LIMIT ?n`)
	setNumber   = define(`INSERT INTO mqim_numbers (number, node, name) VALUES (?n, ?s, ?s)
		ON DUPLICATE KEY UPDATE node = VALUES(node), name = VALUES(name)`)
	shareNumber = define(`SELECT COALESCE(MAX(node), '') FROM mqim_numbers WHERE number = ?n LOCK IN SHARE MODE`)
)

// Claims of clients. A first one has the time as its epoch, so that it is greater than those that Maintain may have removed.
var (
	lockClaims = define(`SELECT client FROM mqim_claims FORCE INDEX (PRIMARY) WHERE client IN ([?s]) ORDER BY client FOR UPDATE`)
	setClaims  = define(`INSERT INTO mqim_claims (client, epoch, claimed)
		VALUES [(?s, CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS UNSIGNED), CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED))]
		ON DUPLICATE KEY UPDATE epoch = epoch + 1, claimed = VALUES(claimed)`)
	shareClaims = define(`SELECT client, epoch FROM mqim_claims FORCE INDEX (PRIMARY) WHERE client IN ([?s]) ORDER BY client LOCK IN SHARE MODE`)
	getClaims   = define(`SELECT client, epoch FROM mqim_claims FORCE INDEX (PRIMARY) WHERE client IN ([?s])`)
	walkClaims  = define(`SELECT c.client, c.claimed, s.client IS NOT NULL OR w.client IS NOT NULL FROM mqim_claims c FORCE INDEX (PRIMARY)
		LEFT JOIN mqim_sessions s ON s.client = c.client LEFT JOIN mqim_wills w ON w.client = c.client
		WHERE c.client > ?s ORDER BY c.client LIMIT ?n`)
	dropClaims = define(`DELETE FROM mqim_claims WHERE client IN ([?s]) AND claimed <= ?n`)
)

// Sessions and queues of ordinary topics.
var (
	beat = define(`INSERT INTO mqim_nodes (id, seen) VALUES (?s, CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED))
		ON DUPLICATE KEY UPDATE seen = VALUES(seen)`)
	listNodes = define(`SELECT id, seen, CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED) FROM mqim_nodes FORCE INDEX (PRIMARY)
		WHERE id > ?s ORDER BY id LIMIT ?n`)
	leaveNode = define(`UPDATE mqim_nodes SET seen = -CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED) WHERE id = ?s`)
	dropNode  = define(`DELETE FROM mqim_nodes WHERE id = ?s`)
	dropNodes = define(`DELETE FROM mqim_nodes WHERE id IN ([?s]) AND seen < ?n`)

	lockSessions = define(`SELECT client, user, expiry, since, state, node, queue, head, passed FROM mqim_sessions FORCE INDEX (PRIMARY)
		WHERE client IN ([?s]) ORDER BY client FOR UPDATE`)
	getSessions = define(`SELECT client, user, expiry, since, state, node, queue, head, passed FROM mqim_sessions FORCE INDEX (PRIMARY)
		WHERE client IN ([?s])`)
	getQueueHeads = define(`SELECT client, head FROM mqim_sessions FORCE INDEX (PRIMARY) WHERE client IN ([?s])`)
	listSessions  = define(`SELECT client, user, expiry, since, state, node, queue, head, passed FROM mqim_sessions FORCE INDEX (PRIMARY)
		WHERE client > ?s ORDER BY client LIMIT ?n`)
	addSessions = define(`INSERT INTO mqim_sessions (client, user, expiry, since, state, node, queue, head, passed)
		VALUES [(?s, ?s, ?n, ?n, ?n, ?s, ?s, ?n, ?n)]`)
	setSessions = define(`INSERT INTO mqim_sessions (client, user, expiry, since, state, node, queue, head, passed)
		VALUES [(?s, ?s, ?n, ?n, ?n, ?s, ?s, ?n, ?n)]
		ON DUPLICATE KEY UPDATE user = VALUES(user), expiry = VALUES(expiry), since = VALUES(since), state = VALUES(state),
		node = VALUES(node), queue = VALUES(queue), head = VALUES(head), passed = VALUES(passed)`)
	dropSessions = define(`DELETE FROM mqim_sessions WHERE client IN ([?s])`)

	setSubscriptions = define(`INSERT INTO mqim_subscriptions (client, filter, options) VALUES [(?s, ?s, ?s)]
		ON DUPLICATE KEY UPDATE options = VALUES(options)`)
	dropSubscriptions = define(`DELETE FROM mqim_subscriptions WHERE (client, filter) IN ([(?s, ?s)])`)
	listSubscriptions = define(`SELECT filter, options FROM mqim_subscriptions WHERE client = ?s AND filter > ?s ORDER BY filter LIMIT ?n`)
	setFilters        = define(`INSERT INTO mqim_filters (path, share, client, options) VALUES [(?s, ?s, ?s, ?s)]
		ON DUPLICATE KEY UPDATE options = VALUES(options)`)
	dropFilters = define(`DELETE FROM mqim_filters WHERE (path, share, client) IN ([(?s, ?s, ?s)])`)
	anyFilter   = define(`SELECT 1 FROM mqim_filters WHERE path >= ?s AND path < ?s ORDER BY path LIMIT 1`)
	getFilters  = define(`SELECT share, client, options FROM mqim_filters
		WHERE path = ?s AND (share > ?s OR (share = ?s AND client > ?s)) ORDER BY share, client LIMIT ?n`)

	addPubs  = define(`INSERT INTO mqim_pubs (pub, body) VALUES [(?s, ?s)]`)
	getPubs  = define(`SELECT pub, body FROM mqim_pubs FORCE INDEX (PRIMARY) WHERE pub IN ([?s])`)
	addRefs  = define(`INSERT INTO mqim_pub_refs (pub, queue) VALUES [(?s, ?s)]`)
	dropRefs = define(`DELETE FROM mqim_pub_refs WHERE (pub, queue) IN ([(?s, ?s)])`)
	walkPubs = define(`SELECT p.pub, EXISTS (SELECT 1 FROM mqim_pub_refs r WHERE r.pub = p.pub) FROM mqim_pubs p FORCE INDEX (PRIMARY)
		WHERE p.pub > ?s ORDER BY p.pub LIMIT ?n`)
	dropPubs  = define(`DELETE FROM mqim_pubs WHERE pub IN ([?s])`)
	addQueued = define(`INSERT INTO mqim_queues (queue, first, n, runs) VALUES [(?s, ?n, ?n, ?s)]`)
	getQueued = define(`SELECT first, n, runs FROM mqim_queues
		WHERE queue = ?s AND first >= COALESCE((SELECT MAX(x.first) FROM mqim_queues x WHERE x.queue = ?s AND x.first <= ?n), 0)
		ORDER BY first LIMIT ?n`)
	walkQueues = define(`SELECT q.queue, q.first, q.n, q.runs, s.passed FROM mqim_queues q FORCE INDEX (PRIMARY)
		LEFT JOIN mqim_sessions s ON s.queue = q.queue
		WHERE q.queue > ?s OR (q.queue = ?s AND q.first > ?n) ORDER BY q.queue, q.first LIMIT ?n`)
	dropQueued = define(`DELETE FROM mqim_queues WHERE (queue, first) IN ([(?s, ?n)])`)

	setOutbound = define(`INSERT INTO mqim_outbound (queue, seq, packet_id, received, done) VALUES [(?s, ?n, ?n, ?n, ?n)]
		ON DUPLICATE KEY UPDATE packet_id = VALUES(packet_id), received = VALUES(received), done = VALUES(done)`)
	getOutbound  = define(`SELECT seq, packet_id, received, done FROM mqim_outbound WHERE queue = ?s AND seq > ?n ORDER BY seq LIMIT ?n`)
	walkOutbound = define(`SELECT o.queue, o.seq, s.passed FROM mqim_outbound o FORCE INDEX (PRIMARY)
		LEFT JOIN mqim_sessions s ON s.queue = o.queue
		WHERE o.queue > ?s OR (o.queue = ?s AND o.seq > ?n) ORDER BY o.queue, o.seq LIMIT ?n`)
	dropOutbound = define(`DELETE FROM mqim_outbound WHERE (queue, seq) IN ([(?s, ?n)])`)
	addInbound   = define(`INSERT INTO mqim_inbound (queue, packet_id) VALUES (?s, ?n) ON DUPLICATE KEY UPDATE packet_id = packet_id`)
	getInbound   = define(`SELECT packet_id FROM mqim_inbound WHERE queue = ?s ORDER BY packet_id`)
	dropInbound  = define(`DELETE FROM mqim_inbound WHERE queue = ?s AND packet_id = ?n`)
	dropInbounds = define(`DELETE FROM mqim_inbound WHERE queue = ?s`)

	lockRetained = define(`SELECT path FROM mqim_retained FORCE INDEX (PRIMARY) WHERE path IN ([?s]) ORDER BY path FOR UPDATE`)
	addRetained  = define(`INSERT INTO mqim_retained (path, expires, body) VALUES [(?s, ?n, ?s)]`)
	setRetained  = define(`INSERT INTO mqim_retained (path, expires, body) VALUES [(?s, ?n, ?s)]
		ON DUPLICATE KEY UPDATE expires = VALUES(expires), body = VALUES(body)`)
	dropRetained = define(`DELETE FROM mqim_retained WHERE path IN ([?s])`)
	listRetained = define(`SELECT path, body FROM mqim_retained FORCE INDEX (PRIMARY) WHERE path >= ?s ORDER BY path LIMIT ?n`)
	walkRetained = define(`SELECT path, expires FROM mqim_retained FORCE INDEX (PRIMARY) WHERE path > ?s ORDER BY path LIMIT ?n`)
	lockExpired  = define(`SELECT path FROM mqim_retained FORCE INDEX (PRIMARY) WHERE path IN ([?s]) AND expires <> 0 AND expires <= ?n ORDER BY path FOR UPDATE`)
	addCount     = define(`INSERT INTO mqim_counts (name, value) VALUES (?s, 0) ON DUPLICATE KEY UPDATE name = name`)
	lockCount    = define(`SELECT value FROM mqim_counts WHERE name = ?s FOR UPDATE`)
	getCount     = define(`SELECT value FROM mqim_counts WHERE name = ?s`)
	setCount     = define(`INSERT INTO mqim_counts (name, value) VALUES (?s, ?n) ON DUPLICATE KEY UPDATE value = VALUES(value)`)
	moveCount    = define(`UPDATE mqim_counts SET value = value + ?n WHERE name = ?s`)

	setWills  = define(`INSERT INTO mqim_wills (client, body) VALUES [(?s, ?s)] ON DUPLICATE KEY UPDATE body = VALUES(body)`)
	dropWill  = define(`DELETE FROM mqim_wills WHERE client = ?s`)
	listWills = define(`SELECT client, body FROM mqim_wills FORCE INDEX (PRIMARY) WHERE client > ?s ORDER BY client LIMIT ?n`)
)
