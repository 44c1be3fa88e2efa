package im

import "github.com/mqim/mqim/store"

// Ticket is what a Link knows a request by; the engine hands it back with the answer.
type Ticket uint64

// Channel is a kind of thing that goes down to a device beside messages. A set of them is a sum.
type Channel uint32

const (
	Replies Channel = 1 << iota
	Receipts
	Events
)

// Profile is how a device reads its inbox.
type Profile uint8

const (
	None  Profile = iota // it does not
	Plain                // bodies; the link's own acknowledgement counts as the application's
	IM                   // JSON; the application acknowledges with the ack command
)

func (p Profile) String() string {
	return [...]string{"", "plain", "im"}[p]
}

// CloseReason says why the engine ends a connection.
type CloseReason uint8

const (
	CloseNoAck   CloseReason = iota // the peer does not acknowledge what it was sent
	CloseStore                      // the store cannot commit: the peer is to send again
	CloseRemoved                    // the device was removed
	CloseTaken                      // another node has the device
)

// Link is a connected device as the engine sees it. Deliver, Answer and Notify write into a buffer and never wait for
// the peer; what they wrote goes out with the next Kick at the latest. All methods may be called concurrently and
// after the connection has ended, when they do nothing.
type Link interface {
	// Deliver sends a message in the profile p. It returns false, having sent nothing, when the connection has no
	// room for it now; the link calls Device.Ready when it has. attempt is 0 for a first delivery. e.Seq is 0 where
	// the message comes from the log of a large group.
	//
	// When the peer has taken the message (MQTT: PUBACK, or at QoS 0 the bytes have left) the link calls
	// Device.Taken with the place that it got here.
	Deliver(e store.Entry, place uint64, p Profile, attempt int) bool
	// Answer completes a request: err nil is success. reply, which may be nil, is valid until Answer returns.
	Answer(t Ticket, reply []byte, err *Error)
	// Notify sends payload on a channel, or drops it and returns false when there is no room.
	Notify(c Channel, payload []byte) bool
	// Kick sends what has been written.
	Kick()
	// Close ends the connection.
	Close(r CloseReason)
}
