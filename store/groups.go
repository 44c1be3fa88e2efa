package store

import (
	"context"
	"errors"
)

var (
	// ErrNotMember: the sender of a message to a group is not a member of it at this moment.
	ErrNotMember = errors.New("not a member of the group")
	// ErrChanged: the group is not in the state that a Change was built on; look again.
	ErrChanged = errors.New("the group has changed meanwhile")
)

// Role is what a member may do; the rules are not the store's.
type Role uint8

const (
	NoRole Role = iota // not a member
	Ordinary
	Admin
	Owner
)

// ReceiptMode says who learns who has a group's messages.
type ReceiptMode uint8

const (
	ReceiptsByKind ReceiptMode = iota // all in a small group, counts in a large one
	ReceiptsAll                       // the sender is told of each member
	ReceiptsCounts                    // nothing is pushed; counts are answered
	ReceiptsNone                      // nothing is answered either
)

// Group is a group's record.
//
// A small group's messages are written to the log once, and a reference to the inbox of each member. From LargeFrom
// on they are written to the log alone, and every member's devices keep a place in that log.
type Group struct {
	ID          string
	Version     uint64 // counts its changes; 0: there is no such group. Set by Commit
	Name        string
	Notice      string
	Open        bool // anybody may join
	HistoryAll  bool // members may read what was sent before they joined
	Receipts    ReceiptMode
	Owner       string
	Created     int64  // Unix milliseconds
	MemberCount uint64 // members at present; set by Commit
	LargeFrom   uint64 // first cseq that is in nobody's inbox; 0: the group is small. Set by Commit
	Ended       uint64 // cseq of the message that dissolved it; 0: it lives. Set by Commit
}

// ReceiptMode is who learns of receipts, as the kind of the group has it where nothing was set.
func (g *Group) ReceiptMode() ReceiptMode {
	switch {
	case g.Receipts != ReceiptsByKind:
		return g.Receipts
	case g.LargeFrom > 0:
		return ReceiptsCounts
	}
	return ReceiptsAll
}

// Member is a user's part in a group, present or past. Whoever has never been a member has neither role nor spans.
type Member struct {
	Group      string
	User       string
	Role       Role  // NoRole: not a member any more
	Joined     int64 // the last time, Unix milliseconds
	MutedUntil int64 // Unix milliseconds; 0: not muted
	// Spans are what the user was there for, ascending: each begins with the cseq of the message that says it joined and
	// ends with the one that says it left. In a group that has ended the last one ends with it. Only the last may be open.
	Spans []Span
}

// Change is what a message does to its group, in one step with it. It is built on a known state of the group; should
// that not be the present one any more the Send's Err is ErrChanged and nothing of it is stored.
type Change struct {
	// Group is the whole record as it is to be, with the Version that the change is built on: 0 creates the group. Commit
	// fills in what it sets.
	Group Group
	// Members are those who join (they had no role), leave (NoRole) or change, each at most once. Of each record User,
	// Role, MutedUntil and, for those who join, Joined are given; Commit fills in the rest.
	Members []Member
	// Large makes the group large, from this message on. A large group stays large.
	Large bool
	// End dissolves the group with this message. Members stay as they are, but all spans end.
	End bool
}

// Cursor is a device's place in the log of a large group: everything it is to see up to Cseq is acknowledged.
type Cursor struct {
	DeviceKey
	Conv Conv
	Cseq uint64
}

// Stream is a large group's log as a device reads it.
type Stream struct {
	Conv      Conv
	LargeFrom uint64      // what is before it lies in the inbox
	Head      uint64      // highest durable cseq
	Spans     []Span      // what the user is to see; never empty, and no older than Head
	Delivered uint64      // the user's delivered watermark
	Cursor    uint64      // the device's Cursor; 0: none is stored
	Mode      ReceiptMode // of the group; not ReceiptsByKind
}

// Membership is an entry of a user's list of groups.
type Membership struct {
	Group   string
	Current bool // the user is a member, or was when the group ended
	Large   bool
}

// Receipts are the members who have a message. The sender and who was not there for it are not counted.
type Receipts struct {
	Delivered, Read     uint64
	DeliveredBy, ReadBy []string // ordered; nil unless asked for
}

// Notice tells those who were away of a change to what they have seen already.
type Notice struct {
	To      string // a user, or the Conv of a large group
	TS      int64  // Unix milliseconds
	Payload []byte // what the event says
}

// Groups reads groups and who is in them. What it returns is the caller's.
type Groups interface {
	// Group returns ErrNotFound when there never was such a group; one that was dissolved is returned, with Ended set.
	Group(ctx context.Context, id string) (Group, error)
	// Member returns a record without role and spans for who has never been a member, and where there is no group.
	Member(ctx context.Context, group, user string) (Member, error)
	// Members lists present members by name, those after the given one. next is "" on the last page, else what to
	// give as after for the next.
	Members(ctx context.Context, group, after string, limit int) (list []Member, next string, err error)
	// Memberships lists the groups that user is or has been in by id, paged like Members.
	Memberships(ctx context.Context, user, after string, limit int) (list []Membership, next string, err error)
	// Streams lists the large groups that a device's user is or has been in, as the device reads them.
	Streams(ctx context.Context, k DeviceKey) ([]Stream, error)
	// Receipts counts the present members who have the message cseq of a group, with their names if asked. Its cost
	// grows with the number of members.
	Receipts(ctx context.Context, group string, cseq uint64, from string, names bool) (Receipts, error)
	// Notices lists the notices to a name at or after since (Unix milliseconds), oldest first, paged like Members: after is
	// "" for the first page, and what the one before returned as next for the others.
	Notices(ctx context.Context, to string, since int64, after string, limit int) (list []Notice, next string, err error)
	// Sent finds what a sender's cid stands for; ok is false where it is not known (any more). Of the message Conv,
	// Cseq, ID and TS are set.
	Sent(ctx context.Context, from, cid string) (m Message, hash uint64, ok bool, err error)
}
