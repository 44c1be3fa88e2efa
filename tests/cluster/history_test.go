package cluster

import (
	"sync"
	"time"
)

// history is everything that the clients of a scenario did and saw, and what the store holds at its end. Times are since its
// beginning, on one clock. A conversation is named "alice|bob" (sorted), "g/team", or for an ordinary topic "t/plant/1".
type history struct {
	Devices    []party
	Groups     map[string]group
	Sends      []send
	Deliveries []delivery // those of one device in the order in which it got them
	Reads      []read
	Links      []link
	Logs       map[string][]entry // whole conversations, by cseq
	Inboxes    map[string][]entry // whole inboxes, by seq
	TakeOver   time.Duration      // how long two connections of one device may seem to live at once

	mu    sync.Mutex // guards the above while devices run
	start time.Time
}

// party is a device of a user.
type party struct {
	ID, User string
	Twins    bool     // two clients claim to be it, at the same time
	Topics   []string // the ordinary topics that it is subscribed to, for as long as the history lasts
}

type group struct {
	Members []string
	Large   bool
}

type outcome int

const (
	unknown outcome = iota // no answer came
	ok
	refused
)

// send is one attempt to send a message, which is known by its cid; for an ordinary topic the cid is its payload.
type send struct {
	Cid, Device, Conv string
	Node              string // that it was sent to
	Begin, End        time.Duration
	Outcome           outcome
	Code              string // of a refusal
	ID                string // what the answer said, if it did
	Cseq              uint64
	Dup               bool
}

// delivery is a message that a device got. What its profile does not tell is empty.
type delivery struct {
	Device, Cid, Conv, ID string
	Seq, Cseq             uint64
	At                    time.Duration
	Conn                  int
}

// entry is a message in a log or an inbox.
type entry struct {
	ID, Cid, Conv, From string
	Seq, Cseq           uint64
	Sys                 bool // the server's own, of a group; nobody sent it
}

// read is the newest page of a conversation that a user asked for.
type read struct {
	User, Conv string
	Begin, End time.Duration
	Entries    []entry
}

// link is a connection: from when its CONNACK came until its device knew that it had ended.
type link struct {
	Device   string
	Conn     int
	From, To time.Duration
}

func newHistory() *history {
	return &history{Groups: map[string]group{}, Logs: map[string][]entry{}, Inboxes: map[string][]entry{}, start: time.Now()}
}

func (h *history) now() time.Duration { return time.Since(h.start) }

// add records something, at any time, from any goroutine.
func (h *history) add(what any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch x := what.(type) {
	case send:
		h.Sends = append(h.Sends, x)
	case delivery:
		h.Deliveries = append(h.Deliveries, x)
	case read:
		h.Reads = append(h.Reads, x)
	case link:
		h.Links = append(h.Links, x)
	}
}
