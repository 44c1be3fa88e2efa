package store

import "context"

// What follows is for several processes that share a store: the nodes of a cluster.

// Claim makes the stored session of a client that of one connection: what earlier ones still have to say of it is not
// taken any more (Fence). The client id is also the id of the device.
type Claim struct {
	Client string
	Epoch  uint64 // set by Commit: greater than that of every claim of this client before
}

// Fence says with which claim a batch speaks for a client. Where a later claim stands, what the batch has of the client's
// session is left out: Devices, Removed and Cursors of the device of that name; Sessions, Subscribes, Unsubscribes,
// Passed, Outbound, Inbound and Wills of the client; and the Inbound of Sends and Publishes. A client without a Fence is
// not looked at; of several for one client that with the highest Epoch counts.
type Fence struct {
	Client string
	Epoch  uint64
	Lost   bool // set by Commit: a later claim stands
}

// Shared is what processes that share a store ask it from time to time, to find what they have not been told. The lists have
// at most MaxLook entries; results are appended to dst in their order.
type Shared interface {
	// Writes is a number that differs from what it was when any process has committed Sends or Publishes since.
	Writes(ctx context.Context) (uint64, error)
	// InboxHeads are the heads of inboxes, 0 where there is nothing.
	InboxHeads(ctx context.Context, users []string, dst []uint64) ([]uint64, error)
	// ConvHeads are the heads of conversations.
	ConvHeads(ctx context.Context, convs []Conv, dst []uint64) ([]uint64, error)
	// QueueHeads are the heads of sessions' queues.
	QueueHeads(ctx context.Context, clients []string, dst []uint64) ([]uint64, error)
	// Epochs are those of the last claims, 0 where there is none.
	Epochs(ctx context.Context, clients []string, dst []uint64) ([]uint64, error)
	// Living is how many processes use the store, this one included. One that has ended without closing it counts for a
	// while.
	Living(ctx context.Context) (int, error)
}

// MaxLook bounds what Shared is asked at once.
const MaxLook = 1000
