// Package link is a client's connection as the hooks share it: one sender and one packet-id space a direction for
// everything that passes, whichever hook it belongs to.
//
// mochi decodes CONNECT, SUBSCRIBE and the like; PUBLISH and its acknowledgements are handled here, on the frames of
// [transport.Conn] where the connection came through our listener, or on what mochi decoded (OnPacketRead) where the
// hooks run in somebody else's server. mochi's own inflight table and fan-out stay out of it: they lose messages
// under pressure and share one table between both directions.
package link

import (
	"sync"
	"sync/atomic"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/transport"
)

// Owner is told what became of a publication that went out at QoS 1 or 2, or at QoS 0 with Notify.
type Owner interface {
	// Acked: the peer has it (PUBACK, PUBCOMP, or at QoS 0 the kernel took the bytes). reason is the peer's.
	Acked(token uint64, reason byte)
	// Room: the connection may take publications again, after Publish returned false.
	Room()
}

// Releaser is an Owner that wants to know of PUBREC before PUBREL goes out.
type Releaser interface {
	// Received: the peer has a publication at QoS 2. release sends PUBREL, and is called now or later.
	Received(token uint64, release func())
}

// Receiver handles publishes to some topics.
type Receiver interface {
	// Receive handles p, or returns false where the topic is not its own. It is called on the reading goroutine, in
	// the order of the packets; p and its payload are valid until it returns. Whoever handles p has it answered with
	// Conn.Answer(p.Ticket, …) exactly once, now or later. An error ends the connection.
	Receive(c *Conn, p *Inbound) (handled bool, err error)
}

// Drainer is a Receiver that wants to know when it has been given everything that came in one go.
type Drainer interface {
	// Drained is called on the reading goroutine, which is about to wait for more.
	Drained(c *Conn)
}

// Inbound is a PUBLISH from the client, its topic alias resolved.
type Inbound struct {
	Topic   string
	Payload []byte
	QoS     byte
	Retain  bool
	Dup     bool
	ID      uint16              // packet id, 0 at QoS 0
	Props   *packets.Properties // nil: none
	Ticket  uint64              // for Answer
}

// Conn is one connection of a client.
type Conn struct {
	*transport.Conn
	Client  *mqtt.Client
	User    string
	Session *Session
	V5      bool
	framed  bool // packets are handled by Frame, not by PacketRead
	quiet   bool // the client asked for no reason strings
	reg     *Registry

	// State is the im hook's.
	State any
	// Topics is the ordinary topics hook's.
	Topics any

	lastTopic string            // reading goroutine: spares an allocation for each publish
	aliases   map[uint16]string // reading goroutine: the client's topic aliases
	farewell  byte              // reading goroutine: the reason code of the client's DISCONNECT

	in  inbound
	out outbound

	claim *claim        // Registry.mu: until the session is taken
	epoch atomic.Uint64 // see Epoch
	holds atomic.Bool   // Registry.Hold was called for it
	lost  atomic.Bool   // see Lose

	lingers bool     // the listener says when the broker is through with it
	over    bool     // the connection's goroutine: the session ends with the connection
	onEnd   []func() // the connection's goroutine
	done    chan struct{}
	endOnce sync.Once
	letGo   sync.Once
}

// Done is closed when the connection has ended and the hooks have let go of it.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Farewell is the reason code of the client's DISCONNECT. It is the reading goroutine's.
func (c *Conn) Farewell() byte { return c.farewell }

// Finish marks the connection as ended; a hook that is told of the disconnect calls it. Where a listener of ours runs
// the connection that is put off until mochi has let go of it too: what mochi does after OnDisconnect to a session that
// ends (it removes subscriptions and client by client id) would else hit the connection that takes over.
func (c *Conn) Finish() {
	if !c.lingers && len(c.reg.releasers) == 0 {
		c.finish()
	}
}

// Settled says that the last hook is through with a connection that no listener of ours runs.
func (c *Conn) Settled() {
	if !c.lingers {
		c.reg.release(c, c.over)
		c.finish()
	}
}

func (c *Conn) finish() { c.endOnce.Do(func() { close(c.done) }) }

// AfterEnd has f called on the connection's goroutine when the connection has ended, even where mochi panicked over it
// or gave it up in the middle of its handshake, and does not call OnDisconnect then. ok is false where no listener of
// ours runs the connection, and f is not called. It is called on that goroutine, too.
func (c *Conn) AfterEnd(f func()) (ok bool) {
	if c.lingers {
		c.onEnd = append(c.onEnd, f)
	}
	return c.lingers
}

// end is what the listener calls last.
func (c *Conn) end() {
	for _, f := range c.onEnd {
		f()
	}
	c.reg.release(c, c.over)
	c.finish()
}

// Of returns the connection of a client, nil before OnConnect.
func Of(cl *mqtt.Client) *Conn {
	if t, ok := cl.Net.Conn.(*transport.Conn); ok {
		c, _ := t.Owner.(*Conn)
		return c
	}
	return nil
}

// Disconnect sends DISCONNECT with a reason to an MQTT 5 client (3.1.1 has none from the server) and ends the
// connection. It does not wait.
func (c *Conn) Disconnect(code packets.Code) { c.disconnect(code, "") }

// Redirect is Disconnect for a client that is to go on with another server: reference says which, as in MQTT 5, 4.11,
// and is left out where the client takes no packet that is so large.
func (c *Conn) Redirect(reference string) { c.disconnect(packets.ErrUseAnotherServer, reference) }

func (c *Conn) disconnect(code packets.Code, reference string) {
	if c.V5 {
		if b, ok := c.Begin(64 + len(code.Reason) + len(reference)); ok {
			c.End(c.appendDisconnect(b, code, reference))
		}
	}
	c.Client.Stop(code)
	_ = c.Close()
}

// abort is Disconnect for a peer that may have stopped reading: what is buffered for it is thrown away.
func (c *Conn) abort(code packets.Code) {
	c.Client.Stop(code)
	c.Conn.Abort()
}

func (c *Conn) established() bool { return c.in.open.Load() }
