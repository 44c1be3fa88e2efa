package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
)

// What follows is MQTT's own state, for ordinary topics: sessions that outlive their connection, their subscriptions
// and queues, retained messages and wills. A client id is the name of a session; it is at most 128 bytes of UTF-8
// without control characters. Topics and filters are UTF-8 without U+0000.

// ErrFull: a queue or the retained messages have reached their limit. ErrRetainedFull is an ErrFull of the latter.
var (
	ErrFull         = errors.New("limit reached")
	ErrRetainedFull = fmt.Errorf("retained messages: %w", ErrFull)
)

// NoExpiry is the Session.Expiry of a session that does not end by itself.
const NoExpiry = math.MaxUint32

// Session is an MQTT session that outlives its connection.
type Session struct {
	Client string
	User   string // whose it is
	Expiry uint32 // seconds that it outlives its connection; NoExpiry: for ever
	Since  int64  // when it was last connected or disconnected, Unix milliseconds
	Online bool   // it is connected
	Cut    bool   // the store was closed while it was connected: it counts as disconnected since the store was opened again
	Over   bool   // in a Batch: it has ended; all that belongs to it is removed
}

// Ends is when the session ends, Unix milliseconds; 0: not by itself, or not before it is disconnected.
func (s *Session) Ends() int64 {
	if s.Online || s.Expiry == NoExpiry {
		return 0
	}
	return s.Since + int64(s.Expiry)*1000
}

// Subscription is what a session asks for with a filter. Options means something to the caller alone.
type Subscription struct {
	Client  string
	Filter  string // as in SUBSCRIBE: "$share/{group}/{filter}" is a shared one
	Options []byte
}

// SplitShared takes "$share/{group}/" off a filter; group is "" where it is not shared.
func SplitShared(filter string) (group, rest string) {
	if s, ok := strings.CutPrefix(filter, "$share/"); ok {
		if group, rest, ok := strings.Cut(s, "/"); ok {
			return group, rest
		}
	}
	return "", filter
}

// Hidden reports whether a filter is kept for its session alone: Match does not find it.
func (s *Subscription) Hidden() bool { return strings.HasPrefix(s.Filter, "im/") }

// Publication is an application message on an ordinary topic.
type Publication struct {
	Topic   string
	Payload []byte
	Props   []byte // MQTT 5 properties that are handed on as they are, encoded
	From    string // the publisher's client id
	QoS     byte
	TS      int64 // Unix milliseconds
	Expires int64 // not to be delivered from this moment on, Unix milliseconds; 0: never
}

// Publish is a publication on its way into queues, or to be retained, and what became of it.
type Publish struct {
	*Publication
	// Retain keeps it as its topic's retained message; one without a payload removes that.
	Retain bool
	// Queues are the sessions that get it, each at most once.
	Queues []QueueRef
	// Unlimited says that QueueLimits do not hold for it.
	Unlimited bool
	// Inbound is noted with it, unless it is refused; nil: nothing is.
	Inbound *Inbound
	// Err is set by Commit to an ErrFull when limits refuse it. It concerns this Publish alone, of which nothing was
	// stored then; the rest of the batch is committed.
	Err error
}

// QueueRef is a place in a session's queue.
type QueueRef struct {
	Client  string
	QoS     byte   // at most this
	Options []byte // means something to the caller alone

	// Acked is how far the session has acknowledged, where the caller knows more than it has stored; 0: it does not.
	Acked uint64

	Seq     uint64 // set by Commit: 1, 2, 3 … within the queue, without holes; 0: there is no such session
	Dropped uint64 // set by Commit: how many of the oldest the limit has made it forget
}

// Queued is a publication as it lies in a queue.
type Queued struct {
	Seq     uint64
	QoS     byte
	Options []byte
	*Publication
}

// QueueState is where a queue stands. Passed <= Head.
type QueueState struct {
	Head   uint64 // highest durable seq
	Passed uint64 // every seq up to it is acknowledged, or dropped
}

// QueueLimits bound what a driver keeps for ordinary topics; 0 means no bound.
type QueueLimits struct {
	Messages uint64 // a queue
	Refuse   bool   // a message for a full queue is refused; otherwise the oldest are dropped
	Retained uint64 // retained messages
}

// Passed moves a queue's cursor forward.
type Passed struct {
	Client string
	Seq    uint64
}

// Outbound is what is known of a message that was sent to a session's client: it is to be sent again under the same
// packet id [MQTT-4.4.0-1]. It is forgotten when the queue's cursor passes it.
type Outbound struct {
	Client   string
	Seq      uint64
	ID       uint16
	Received bool // QoS 2: PUBREC came, and PUBREL is what is to be sent
	Done     bool // it is acknowledged, though the cursor has not come to it
}

// Inbound is a packet id of a session's client between PUBREC and PUBREL: what comes under it again was stored before.
type Inbound struct {
	Client   string
	ID       uint16
	Released bool // PUBREL came: it is to be forgotten
}

// Will is a message that is to be published when a client is gone.
type Will struct {
	Client string
	User   string
	Due    int64  // Unix milliseconds; 0: when the connection has ended, and Delay after that
	Delay  uint32 // seconds
	Expiry uint32 // Message Expiry Interval in seconds, 0: none
	Retain bool
	Remove bool // in a Batch: forget the client's will
	Held   bool // by another process that lives, which stored it last: it is that one's to publish
	Publication
}

// TopicBatch is the part of a Batch that concerns ordinary topics. It is applied in the order of its fields.
type TopicBatch struct {
	Sessions     []Session
	Subscribes   []Subscription // of sessions that exist
	Unsubscribes []Subscription
	Passed       []Passed
	Outbound     []Outbound
	Inbound      []Inbound
	Wills        []Will
	Publishes    []*Publish
}

// Topics reads MQTT's own state.
type Topics interface {
	// Session returns ErrNotFound when there is none, or when it has ended.
	Session(ctx context.Context, client string) (Session, error)
	// Sessions lists sessions by client id, from after the given one on, perhaps some that have just ended.
	Sessions(ctx context.Context, after string, limit int) ([]Session, error)
	// Subscriptions lists what a session has subscribed to, ordered by filter.
	Subscriptions(ctx context.Context, client string) ([]Subscription, error)
	// Match lists the subscriptions of stored sessions that match a topic name, shared ones included, Hidden ones not.
	// Some of them may be of sessions that have ended, which Commit passes over. It costs time by what matches.
	Match(ctx context.Context, topic string) ([]Subscription, error)
	// Queue tells where a session's queue stands.
	Queue(ctx context.Context, client string) (QueueState, error)
	// ReadQueue appends to dst at most limit entries with seq > after, ascending and without holes but at the front,
	// where passed ones are left out. A page also ends early when its payloads reach PageBytes, but never empty while
	// there are entries.
	ReadQueue(ctx context.Context, client string, after uint64, limit int, dst []Queued) ([]Queued, error)
	// Outbound lists what is known of what was sent, by seq.
	Outbound(ctx context.Context, client string) ([]Outbound, error)
	// Inbound lists the packet ids that wait for PUBREL.
	Inbound(ctx context.Context, client string) ([]uint16, error)
	// Retained lists the retained messages that a filter without $share matches and that have not expired at now (Unix
	// milliseconds), in an order of its own. after is "" for the first page, then the topic of the last one of the
	// page before. A page ends at limit or at about PageBytes; an empty one is the end.
	Retained(ctx context.Context, filter, after string, limit int, now int64) ([]*Publication, error)
	// RetainedCount is the number of retained messages, expired ones that are not yet removed included.
	RetainedCount(ctx context.Context) (uint64, error)
	// Wills lists wills by client id, from after the given one on.
	Wills(ctx context.Context, after string, limit int) ([]Will, error)
}
