// Package bus is how the nodes of a cluster talk to each other. Package cluster does it over Redis; bustest within a process.
//
// Nothing that goes over a bus is promised to arrive: a node is cut off, Redis is restarted, a buffer is full. Whoever
// sends has the truth in the store, and whoever waits for news looks there from time to time. What arrives from one node
// on one channel arrives in order, once.
package bus

import (
	"context"
	"errors"
)

// Kind says what a channel is about, and who handles what comes on it. It is a letter.
type Kind byte

const (
	All      Kind = 'a' // every node hears it; Name is ""
	Node     Kind = 'n' // one node, by its id
	User     Kind = 'u' // nodes that a device of the user is connected to
	Presence Kind = 'p' // nodes that a device is connected to which watches the user
	Group    Kind = 'g' // nodes that a device is connected to which reads the large group; Name is its id
	Client   Kind = 'c' // the node that the client is connected to, or that holds something of it
)

// Channel is what is published to and subscribed to. Every node is subscribed to All and to its own Node channel.
type Channel struct {
	Kind Kind
	Name string
}

// Message is what arrives.
type Message struct {
	From    string // the id of the node
	Channel Channel
	Topic   byte   // which part of the program it is for; see Bus.Handle
	Payload []byte // the handler's to keep
	// Answer answers a question; nil: it is none. It may be called later, from any goroutine, once. An answer is not
	// guaranteed to arrive.
	Answer func([]byte)
}

// Answer is a node's answer.
type Answer struct {
	From    string
	Payload []byte
}

// Peer is another node that has shown itself within the last few seconds.
type Peer struct {
	ID   string // made anew when the node's process starts
	Name string // as its operator has named it
	Info []byte // what it says about itself with each sign of life; see Bus.Announce
}

var (
	// ErrDown: the bus cannot be used now.
	ErrDown = errors.New("the nodes of the cluster cannot be reached")
	// ErrIncomplete: not every node that was asked has answered in time.
	ErrIncomplete = errors.New("a node of the cluster did not answer")
)

// Bus is one node's connection to the others. All methods may be called concurrently; none but Subscribe, Ask and Count
// waits for anything.
type Bus interface {
	// ID is this node's id, which no other process has ever had.
	ID() string
	// Handle sets who is given what arrives with a topic, a letter; it is called before the node is connected. Messages
	// may come before it is known to be. f is called for one message at a time for each sending node, and must not wait:
	// where it does, Redis gives the node up, which shows as the bus going down.
	Handle(topic byte, f func(*Message))

	// Subscribe has what other nodes publish on a channel from now on handed to the handlers: when it returns nil nothing is
	// missed that is published later. After an error (ErrDown, or ctx has ended) the subscription stands all the same, and
	// takes effect when the bus can be used again. Subscriptions are counted: each is undone by one Unsubscribe.
	Subscribe(ctx context.Context, c Channel) error
	Unsubscribe(c Channel)

	// Publish sends to the other nodes that are subscribed. done, which may be nil, is told how many they are, -1 where
	// that is not known: the bus is down, or goes down before Redis has answered (the message may have been heard then), or
	// its queue, which is bounded, is full. done is called on another goroutine, never within Publish, and must not wait.
	// payload must not be changed afterwards.
	Publish(c Channel, topic byte, payload []byte, done func(nodes int))
	// Ask publishes a question and waits until every other node that is subscribed has answered, the bus goes down, or ctx
	// ends. Errors: ErrDown, ErrIncomplete, both with the answers that have come. A node that dies with a question is waited
	// for until ctx ends; one that says goodbye is not.
	Ask(ctx context.Context, c Channel, topic byte, payload []byte) ([]Answer, error)
	// Count tells for each channel how many other nodes are subscribed. Errors: ErrDown, that of ctx.
	Count(ctx context.Context, list []Channel) ([]int, error)

	// Announce sets what other nodes see as Peer.Info: soon, and with each sign of life. It is short.
	Announce(info []byte)
	// Peers are the others, ordered by ID; while the bus is down there are none. Where there are none, nobody is subscribed
	// to anything. When Up begins to say true they are known.
	Peers() []Peer
	// Up reports whether the bus can be used.
	Up() bool
	// OnChange has f called when a node has come or gone, or the bus has come up or gone down, after Peers and Up say so. It
	// is called before the node is connected. f must not wait. Several changes may be one call, but between going down and
	// coming up again f is always called, so that it sees Up say false. After the bus was down messages may be missing.
	OnChange(f func())
}
