// Package store defines the log that everything else is a cursor over.
//
// A driver keeps conversations (one ordered log of messages each), inboxes (one ordered list of references
// per user), groups and who was in them when, and the small state around them: devices, watermarks, block lists. It
// assigns the numbers — message ids, cseq, seq — and decides who is a member, because in a cluster only the store sees
// every node's writes.
//
// The package knows no MQTT and no wire format. Two rules hold for every driver:
//
//   - Commit is one durable step. When it returns nil everything in the batch survives power loss;
//     when it returns an error nothing in the batch is visible to any reader, now or after a restart,
//     unless the error is ErrUnknownOutcome.
//   - Reads show only what is durable. A message that is written but not yet synced is not returned.
//
// All methods may be called concurrently. After Close every method returns ErrClosed.
package store

import (
	"context"
	"errors"
	"strings"
	"time"
)

var (
	// ErrUnavailable: the store cannot commit now (disk full, database away); the caller may try again later.
	// Nothing of the batch was stored.
	ErrUnavailable = errors.New("store unavailable")
	// ErrUnknownOutcome: the batch may or may not have been stored. The caller must answer nobody.
	ErrUnknownOutcome = errors.New("outcome of commit unknown")
	// ErrCursor: a cursor is none that ListConversations has returned.
	ErrCursor = errors.New("not a cursor")
	// ErrConflict: the same (sender, cid) was stored with another hash; the first message stands.
	ErrConflict = errors.New("cid was used for another message")
	// ErrNotFound: there is no such message, conversation, group, device or user.
	ErrNotFound = errors.New("not found")
	// ErrCorrupt: stored data failed its checksum or does not decode; the error text names the place.
	ErrCorrupt = errors.New("stored data is corrupt")
	// ErrClosed: the store has been closed.
	ErrClosed = errors.New("store closed")
	// ErrLocked: another process has the store open.
	ErrLocked = errors.New("store is in use by another process")
)

// Conv names a conversation: "u/a/b" with a <= b for two users (a == b: notes to oneself), "g/group" for a
// group. User and group ids contain no slash.
type Conv string

// Direct is the conversation of two users.
func Direct(a, b string) Conv {
	if b < a {
		a, b = b, a
	}
	return Conv("u/" + a + "/" + b)
}

// GroupConv is the conversation of a group.
func GroupConv(id string) Conv { return Conv("g/" + id) }

// Users are the two participants of a direct conversation in order; ok is false for a group.
func (c Conv) Users() (a, b string, ok bool) {
	rest, ok := strings.CutPrefix(string(c), "u/")
	if !ok {
		return "", "", false
	}
	return strings.Cut(rest, "/")
}

// Peer is the other side of a direct conversation as user sees it. It is "" for a group and for a user who
// takes no part.
func (c Conv) Peer(user string) string {
	a, b, ok := c.Users()
	switch {
	case ok && a == user:
		return b
	case ok && b == user:
		return a
	}
	return ""
}

// Group is the id of the conversation's group; ok is false for a direct conversation.
func (c Conv) Group() (id string, ok bool) { return strings.CutPrefix(string(c), "g/") }

// Address is the conversation as user addresses it: "u/{peer}" or "g/{group}".
func (c Conv) Address(user string) string {
	if p := c.Peer(user); p != "" {
		return "u/" + p
	}
	return string(c)
}

// Encoding tells what a message's body is.
type Encoding uint8

const (
	Text  Encoding = iota // UTF-8 text, as its bytes
	Bytes                 // any bytes
	JSON                  // a compact JSON value that is not a string
)

// Message is one entry of a conversation's log.
type Message struct {
	Conv        Conv
	Cseq        uint64 // 1, 2, 3 … within Conv, without holes; assigned by Commit
	ID          int64  // snowflake, rising with Cseq; assigned by Commit
	From        string // the sender
	Device      string // the sending device; it is not sent its own messages
	Cid         string // client message id, "" if none
	Type        string // "text", "bytes", …
	ContentType string // MQTT 5 Content Type, "" if none
	Encoding    Encoding
	Recalled    bool   // a tombstone: Body is empty
	TS          int64  // when the server accepted it, Unix milliseconds
	CTS         int64  // when the client says it was written, 0 if it does not say
	Expires     int64  // not to be delivered from this moment on, Unix milliseconds; 0: never
	Body        []byte // never modified once handed over, by either side
}

// Expired reports whether m's expiry has passed at now (Unix milliseconds).
func (m *Message) Expired(now int64) bool { return m.Expires != 0 && m.Expires <= now }

// Send is a message on its way into the log and what became of it.
type Send struct {
	Message
	// Hash identifies body and addressee for the conflict check on Cid.
	Hash uint64
	// Inboxes are the users whose inboxes get an entry, each at most once; Commit sets Seq. For a message to a group
	// Commit sets them too: the members at that moment, From included, and who leaves with it; none where the group is
	// large.
	Inboxes []InboxRef
	// Change is what the message does to its group; nil: nothing. The group of a message without one must exist and
	// From be a member.
	Change *Change
	// Inbound is noted with it, and with a duplicate, unless it is refused; nil: nothing is.
	Inbound *Inbound

	// Dup is set by Commit when (From, Cid) is stored already with the same Hash: Conv, Cseq, ID and TS are then
	// the first message's and nothing was stored. Two Sends in one batch may be duplicates of each other.
	Dup bool
	// Err is set by Commit to ErrConflict when (From, Cid) is stored with another Hash, to ErrNotFound when the group does
	// not exist or has ended, to ErrNotMember and to ErrChanged. It concerns this Send alone; the rest of the batch is
	// committed.
	Err error
}

// InboxRef is a place in a user's inbox.
type InboxRef struct {
	User string
	Seq  uint64 // 1, 2, 3 … within the inbox, without holes
}

// Batch is what Commit stores in one durable step, in any combination. Within one batch each (user, conv),
// device and so on should occur once; where it occurs twice the later one stands.
type Batch struct {
	Claims    []*Claim // applied first
	Fences    []*Fence
	Sends     []*Send
	Reads     []*Mark // read watermarks: forward only
	Delivered []*Mark // delivered watermarks: forward only
	Recalls   []*Recall
	Deletes   []Delete
	Blocks    []Block
	Users     []User      // whole records
	Devices   []Device    // whole records
	Removed   []DeviceKey // with their Cursors
	Cursors   []Cursor    // forward only
	Notices   []Notice
	TopicBatch

	// Lazy says that losing this batch in a crash costs repeated work, not messages (cursors, watermarks): the
	// driver need not sync. A Lazy batch has no Claims, Sends, Recalls, Deletes, Blocks, Notices or Publishes into queues.
	Lazy bool
}

// Mark is a watermark of one user in one conversation.
type Mark struct {
	User  string
	Conv  Conv
	Cseq  uint64
	Moved bool // set by Commit: the watermark was lower before
}

// Recall puts a tombstone in a message's place.
type Recall struct {
	Conv Conv
	Cseq uint64
	Err  error // set by Commit: ErrNotFound when there is no such message; recalling twice is no error
}

// Delete hides messages from one user. Numbers that do not exist, and those of a group's messages that the user was not
// there for, are ignored.
type Delete struct {
	User  string
	Conv  Conv
	Cseqs []uint64
}

// Block adds Peer to User's block list, or removes it.
type Block struct {
	User, Peer string
	Remove     bool
}

// User is what is kept about a user beside the inbox itself. Commit moves both numbers forward only.
type User struct {
	Name     string
	Cursor   uint64 // highest seq that any device has acknowledged
	LastSeen int64  // Unix milliseconds; 0: never connected
}

// DeviceKey names a device.
type DeviceKey struct{ User, Device string }

// Device is a device with a session, connected or not.
type Device struct {
	DeviceKey
	Cursor   uint64 // every seq up to it is acknowledged
	LastSeen int64  // Unix milliseconds
	Expires  int64  // when the session ends, Unix milliseconds; 0: it does not end by itself
	Profile  string // "im", "plain" or "": how it last read
}

// Inbox is the state of a user's inbox. An inbox that never got a message is all zero.
type Inbox struct {
	Head    uint64 // highest durable seq
	Trimmed uint64 // entries up to here are gone (Retention), or not to be served any more
}

// Entry is a message as it lies in an inbox.
type Entry struct {
	Seq uint64
	*Message
}

// Range selects from the messages of a conversation's log with After < cseq < Before (0: no bound) the last Limit or,
// Forward, the first. They are returned ascending either way.
type Range struct {
	After, Before uint64
	Forward       bool
	Limit         int // > 0
}

// Conversation is a conversation as one user sees it.
type Conversation struct {
	Conv      Conv
	Head      uint64 // highest durable cseq; of a group, the highest that the user was there for
	Read      uint64 // this user's read watermark
	Delivered uint64 // this user's delivered watermark
	Unread    uint64 // messages after Read that others sent, that the user was there for, and that are neither recalled nor deleted by the user
	PeerRead  uint64 // direct conversations: the peer's watermarks
	PeerDeliv uint64
	Last      *Message // newest message that the user has not deleted among the last few; nil if none
}

// Retention bounds what a driver keeps; 0 means no bound.
type Retention struct {
	InboxMessages uint64        // entries per inbox
	InboxTTL      time.Duration // age of an inbox entry
	HistoryTTL    time.Duration // age of a message in its conversation's log
	Dedupe        time.Duration // how long a cid is remembered at least
	Topics        QueueLimits
}

// IDs makes message ids. Next returns an id greater than after and than every id it returned before.
type IDs interface {
	Next(after int64) int64
}

// PageBytes is how many bytes of bodies make a page, about; see ReadInbox and History.
const PageBytes = 1 << 20

// Log appends.
type Log interface {
	// Commit stores the batch as one durable step and fills in the results. Messages of one conversation get
	// their numbers in the order of Batch.Sends, and batches in the order of the calls. Callers batch: a call
	// with a thousand Sends costs one sync.
	Commit(ctx context.Context, b *Batch) error
	// LastID is the greatest message id ever committed by this store, 0 if none.
	LastID(ctx context.Context) (int64, error)
	// Healthy is nil when a Commit would be accepted now. It is cheap: callers ask before every message.
	Healthy() error
}

// Inboxes reads what waits for users.
type Inboxes interface {
	Inbox(ctx context.Context, user string) (Inbox, error)
	// ReadInbox appends to dst at most limit entries with seq > after, ascending, without holes except at the
	// front, where trimmed entries are left out. A page also ends early when its bodies reach PageBytes, but never
	// empty while there are entries. Messages that the user has deleted are returned as Recalled.
	ReadInbox(ctx context.Context, user string, after uint64, limit int, dst []Entry) ([]Entry, error)
}

// Conversations reads logs and the state around them.
type Conversations interface {
	// Message returns one message; ErrNotFound if it does not exist or retention removed it.
	Message(ctx context.Context, conv Conv, cseq uint64) (*Message, error)
	// History reads a conversation's log, leaving out what user has deleted. A page also ends early when its bodies
	// reach PageBytes, but never empty while there are messages.
	History(ctx context.Context, user string, conv Conv, r Range) ([]*Message, error)
	// Conversation returns the state of conv for user; a conversation without messages is all zero but Conv.
	Conversation(ctx context.Context, user string, conv Conv) (Conversation, error)
	// ListConversations lists a user's conversations, newest message first. A page also ends early when the bodies
	// of Last reach PageBytes. cursor is "" for the first page and what the call before returned as next for the
	// others; next is "" on the last page. Errors: ErrCursor.
	ListConversations(ctx context.Context, user, cursor string, limit int) (list []Conversation, next string, err error)
}

// Users reads users, devices and block lists.
type Users interface {
	// User returns a zero record with the Name when nothing is stored.
	User(ctx context.Context, name string) (User, error)
	// Device returns ErrNotFound when there is no such session.
	Device(ctx context.Context, k DeviceKey) (Device, error)
	// Devices lists a user's sessions, ordered by device id.
	Devices(ctx context.Context, user string) ([]Device, error)
	// Blocks lists whom user has blocked, ordered.
	Blocks(ctx context.Context, user string) ([]string, error)
}

// Store is a driver.
type Store interface {
	Log
	Inboxes
	Conversations
	Groups
	Users
	Topics
	Shared

	// Epoch is made when the store is created or restored from a backup; a client that sees another epoch than
	// the one it knows starts over.
	Epoch() string
	// Maintain does a bounded piece of the work that retention asks for, and returns whether more is waiting. One
	// caller at a time.
	Maintain(ctx context.Context, now time.Time) (more bool, err error)
	Close() error
}
