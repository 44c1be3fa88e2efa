package topics

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/bus/bustest"
	imhook "github.com/mqim/mqim/hooks/im"
	"github.com/mqim/mqim/hooks/link"
	engine "github.com/mqim/mqim/im"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/pebble"
	"github.com/mqim/mqim/transport"
)

// patience is how long a test waits for what must happen; nothing waits it out when all is well.
const patience = 20 * time.Second

// rules lets everybody in, and says who may publish and subscribe.
type rules struct {
	mqtt.HookBase
	mu     sync.Mutex
	denied map[string]bool // topics
}

func (r *rules) ID() string { return "rules" }
func (r *rules) Provides(b byte) bool {
	return b == mqtt.OnConnectAuthenticate || b == mqtt.OnACLCheck
}
func (r *rules) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }
func (r *rules) OnACLCheck(_ *mqtt.Client, topic string, _ bool) bool    { return r.allowed(topic) }
func (r *rules) allowed(topic string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.denied[topic]
}
func (r *rules) deny(topics ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range topics {
		r.denied[t] = true
	}
}

// tail is the last hook.
type tail struct {
	mqtt.HookBase
	processed, disconnected atomic.Pointer[func(cl *mqtt.Client)]
}

func (t *tail) ID() string           { return "tail" }
func (t *tail) Provides(b byte) bool { return b == mqtt.OnPacketProcessed || b == mqtt.OnDisconnect }
func (t *tail) OnPacketProcessed(cl *mqtt.Client, _ packets.Packet, _ error) {
	if f := t.processed.Load(); f != nil {
		(*f)(cl)
	}
}
func (t *tail) OnDisconnect(cl *mqtt.Client, _ error, _ bool) {
	if f := t.disconnected.Load(); f != nil {
		(*f)(cl)
	}
}

// counts is a Metrics.
type counts struct {
	mu        sync.Mutex
	delivered int
	dropped   map[string]int
}

func (c *counts) TopicDelivered(n int) {
	c.mu.Lock()
	c.delivered += n
	c.mu.Unlock()
}

func (c *counts) Dropped(reason string) {
	c.mu.Lock()
	c.dropped[reason]++
	c.mu.Unlock()
}

func (c *counts) drops(reason string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dropped[reason]
}

func (c *counts) all() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprint(c.dropped)
}

// rig is a server.
type rig struct {
	testing.TB
	server   *mqtt.Server
	store    *pebble.Store
	hook     *Hook
	rules    *rules
	tail     tail
	counts   *counts
	listener *transport.Listener // nil: connections are pipes
	opt      transport.Options
	wg       sync.WaitGroup
}

type setup struct {
	Options
	transport transport.Options
	pipes     bool // for testing/synctest
	inline    bool
	queues    store.QueueLimits
	wrap      func(store.Store) store.Store // nil: the hook has the store itself
	shared    *pebble.Store                 // nil: a new one
	bus       *bustest.Node                 // nil: it is alone
	trusted   func(node int) func() uint64  // for Options.Trusted of a swarm's nodes; nil: theirs is nil
}

func newRig(tb testing.TB, o setup) *rig {
	tb.Helper()
	log := slog.New(slog.DiscardHandler)
	st := o.shared
	if st == nil {
		st = openStore(tb, o)
	}
	if o.wrap == nil {
		o.wrap = func(s store.Store) store.Store { return s }
	}
	wrapped := o.wrap(st)
	e := engine.New(st, engine.Config{Log: log})
	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumMessageExpiryInterval = 0
	caps.MaximumClientWritesPending = 16
	caps.TopicAliasMaximum = 8
	r := &rig{
		TB: tb, store: st, rules: &rules{denied: map[string]bool{}}, counts: &counts{dropped: map[string]int{}}, opt: o.transport,
		server: mqtt.New(&mqtt.Options{Capabilities: caps, Logger: log, SysTopicResendInterval: 3600, InlineClient: o.inline}),
	}
	reg := link.NewRegistry(o.transport)
	im := imhook.New(e, imhook.Options{Registry: reg, Log: log})
	o.Registry, o.Store, o.Log, o.Metrics = reg, wrapped, log, r.counts
	if o.bus != nil {
		reg.Cluster(o.bus)
		o.Bus = o.bus
	}
	o.Allow = func(_ *mqtt.Client, topic string, _ bool) bool { return r.rules.allowed(topic) }
	r.hook = New(r.server, o.Options)
	reg.Exclusive()
	for _, h := range []mqtt.Hook{r.rules, im, r.hook, &r.tail} {
		if err := r.server.AddHook(h, nil); err != nil {
			tb.Fatal(err)
		}
	}
	if !o.pipes {
		r.listener = transport.NewListener(transport.ListenerConfig{
			ID: "t", Type: transport.TypeTCP, Address: "127.0.0.1:0", Options: o.transport,
			Done: func(t *transport.Conn, _ error) {
				if c, _ := t.Owner.(*link.Conn); c != nil {
					imhook.Done(c)
				}
			},
		})
		if err := r.server.AddListener(r.listener); err != nil {
			tb.Fatal(err)
		}
	}
	if err := r.server.Serve(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		end := func(string) {
			for _, cl := range r.server.Clients.GetAll() {
				cl.Stop(packets.ErrServerShuttingDown) // mochi waits for all, and ends those of its listeners only
			}
		}
		if end(""); r.listener != nil {
			// Not by mochi, whose Clients.GetByListener takes a read lock twice and waits for ever where a client ends
			// in between.
			r.listener.Close(end)
		}
		_ = r.server.Close()
		r.wg.Wait()
		if err := e.Close(context.Background()); err != nil {
			tb.Error(err)
		}
	})
	return r
}

// openStore returns a store that is closed with the test.
func openStore(tb testing.TB, o setup) *pebble.Store {
	tb.Helper()
	st, err := pebble.Open(pebble.Options{Path: "data", FS: vfs.NewMem(), Retention: store.Retention{Topics: o.queues}, Logger: slog.New(slog.DiscardHandler), FreeSpace: func() (uint64, error) { return 1 << 40, nil }})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := st.Close(); err != nil {
			tb.Error(err)
		}
	})
	return st
}

// peer is a client. Its methods fail the test if the other side does not do as expected.
type peer struct {
	testing.TB
	name    string
	v       byte
	conn    net.Conn
	r       *bufio.Reader
	id      uint16
	present bool
}

// connect is how a client connects; it edits CONNECT.
type connect func(*packets.Packet)

func v5(pk *packets.Packet)         { pk.ProtocolVersion = 5 }
func persistent(pk *packets.Packet) { pk.Connect.Clean = false }
func expiry(seconds uint32) connect {
	return func(pk *packets.Packet) {
		pk.ProtocolVersion, pk.Connect.Clean = 5, false
		pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = seconds, true
	}
}
func receiveMaximum(n uint16) connect {
	return func(pk *packets.Packet) { pk.ProtocolVersion, pk.Properties.ReceiveMaximum = 5, n }
}
func testament(topic, payload string, qos byte, retain bool, delay uint32) connect {
	return func(pk *packets.Packet) {
		pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload = true, topic, []byte(payload)
		pk.Connect.WillQos, pk.Connect.WillRetain = qos, retain
		pk.Connect.WillProperties.WillDelayInterval = delay
	}
}

func (r *rig) dial() net.Conn {
	if r.listener != nil {
		c, err := net.Dial("tcp", r.listener.Address())
		if err != nil {
			r.Fatal(err)
		}
		return c
	}
	ours, theirs := net.Pipe()
	r.wg.Go(func() {
		_ = r.server.EstablishConnection("pipe", transport.Wrap(theirs, r.opt))
	})
	return ours
}

// open sends CONNECT and returns CONNACK.
func (r *rig) open(name string, how ...connect) (*peer, packets.Packet) {
	r.Helper()
	p := r.begin(name, how...)
	ack := p.expect(packets.Connack)
	p.present = ack.SessionPresent
	return p, ack
}

// attempt is open for a client that may not be let in, or be taken over before it is.
func (r *rig) attempt(name string, how ...connect) (p *peer, ok bool) {
	r.Helper()
	p = r.begin(name, how...)
	ack, err := p.read()
	p.present = ack.SessionPresent
	return p, err == nil && ack.FixedHeader.Type == packets.Connack && ack.ReasonCode == 0
}

// begin sends CONNECT.
func (r *rig) begin(name string, how ...connect) *peer {
	r.Helper()
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 4}
	pk.Connect = packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, ClientIdentifier: name, Keepalive: 0}
	for _, f := range how {
		f(&pk)
	}
	p := &peer{TB: r.TB, name: name, v: pk.ProtocolVersion, conn: r.dial()}
	p.r = bufio.NewReader(p.conn)
	r.Cleanup(func() { _ = p.conn.Close() })
	p.send(pk)
	return p
}

// connect is open for a client that is let in.
func (r *rig) connect(name string, how ...connect) *peer {
	r.Helper()
	p, ack := r.open(name, how...)
	if ack.ReasonCode != 0 {
		r.Fatalf("CONNACK for %s: got reason %#x, want 0", name, ack.ReasonCode)
	}
	return p
}

func encode(pk packets.Packet) []byte {
	var b bytes.Buffer
	pk.Mods.AllowResponseInfo = true
	f := map[byte]func(*bytes.Buffer) error{
		packets.Connect: pk.ConnectEncode, packets.Publish: pk.PublishEncode, packets.Puback: pk.PubackEncode,
		packets.Pubrec: pk.PubrecEncode, packets.Pubrel: pk.PubrelEncode, packets.Pubcomp: pk.PubcompEncode,
		packets.Subscribe: pk.SubscribeEncode, packets.Unsubscribe: pk.UnsubscribeEncode,
		packets.Disconnect: pk.DisconnectEncode, packets.Pingreq: pk.PingreqEncode,
	}[pk.FixedHeader.Type]
	if err := f(&b); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func (p *peer) write(b []byte) {
	p.Helper()
	_ = p.conn.SetWriteDeadline(time.Now().Add(patience))
	if _, err := p.conn.Write(b); err != nil {
		p.Fatalf("%s: write: %v", p.name, err)
	}
}

func (p *peer) send(pk packets.Packet) {
	p.Helper()
	pk.ProtocolVersion = p.v
	p.write(encode(pk))
}

// read returns the next packet.
func (p *peer) read() (pk packets.Packet, err error) { return p.readSoon(patience) }

// readSoon is read with less patience. After an error the connection is of no more use.
func (p *peer) readSoon(within time.Duration) (pk packets.Packet, err error) {
	_ = p.conn.SetReadDeadline(time.Now().Add(within))
	first, err := p.r.ReadByte()
	if err != nil {
		return pk, err
	}
	if err := pk.FixedHeader.Decode(first); err != nil {
		return pk, err
	}
	n, _, err := packets.DecodeLength(p.r)
	if err != nil {
		return pk, err
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(p.r, body); err != nil {
		return pk, err
	}
	pk.ProtocolVersion, pk.FixedHeader.Remaining = p.v, n
	f := map[byte]func([]byte) error{
		packets.Connack: pk.ConnackDecode, packets.Publish: pk.PublishDecode, packets.Puback: pk.PubackDecode,
		packets.Pubrec: pk.PubrecDecode, packets.Pubrel: pk.PubrelDecode, packets.Pubcomp: pk.PubcompDecode,
		packets.Suback: pk.SubackDecode, packets.Unsuback: pk.UnsubackDecode, packets.Disconnect: pk.DisconnectDecode,
		packets.Pingresp: pk.PingrespDecode,
	}[pk.FixedHeader.Type]
	return pk, f(body)
}

func (p *peer) next() packets.Packet {
	p.Helper()
	pk, err := p.read()
	if err != nil {
		p.Fatalf("%s: read: %v", p.name, err)
	}
	return pk
}

// expect reads the next packet, which must be of a type.
func (p *peer) expect(typ byte) packets.Packet {
	p.Helper()
	pk := p.next()
	if pk.FixedHeader.Type != typ {
		p.Fatalf("%s: got %s %q (reason %#x), want %s", p.name, packets.PacketNames[pk.FixedHeader.Type], pk.Payload, pk.ReasonCode, packets.PacketNames[typ])
	}
	return pk
}

// message reads the next PUBLISH, which must have a payload, and acknowledges it.
func (p *peer) message(payload string) packets.Packet {
	p.Helper()
	pk := p.expect(packets.Publish)
	if string(pk.Payload) != payload {
		p.Fatalf("%s: got message %q on %s, want %q", p.name, pk.Payload, pk.TopicName, payload)
	}
	p.ack(pk)
	return pk
}

// ack acknowledges a PUBLISH, to the end of a QoS 2 exchange.
func (p *peer) ack(pk packets.Packet) {
	p.Helper()
	switch pk.FixedHeader.Qos {
	case 1:
		p.reply(packets.Puback, pk.PacketID)
	case 2:
		p.reply(packets.Pubrec, pk.PacketID)
		p.expect(packets.Pubrel)
		p.reply(packets.Pubcomp, pk.PacketID)
	}
}

// reply sends one of the packets that hold an id and nothing else.
func (p *peer) reply(typ byte, id uint16) {
	p.Helper()
	fh := packets.FixedHeader{Type: typ}
	if typ == packets.Pubrel {
		fh.Qos = 1
	}
	p.send(packets.Packet{FixedHeader: fh, PacketID: id})
}

func (p *peer) nextID() uint16 {
	p.id++
	return p.id
}

func publication(topic, payload string, qos byte) packets.Packet {
	return packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, TopicName: topic, Payload: []byte(payload)}
}

// publish publishes and waits for the acknowledgement, whose reason it returns.
func (p *peer) publish(topic, payload string, qos byte, edit ...func(*packets.Packet)) byte {
	p.Helper()
	pk := publication(topic, payload, qos)
	if qos > 0 {
		pk.PacketID = p.nextID()
	}
	for _, f := range edit {
		f(&pk)
	}
	p.send(pk)
	switch qos {
	case 1:
		return p.expect(packets.Puback).ReasonCode
	case 2:
		if ack := p.expect(packets.Pubrec); ack.ReasonCode >= 0x80 {
			return ack.ReasonCode
		}
		p.reply(packets.Pubrel, pk.PacketID)
		return p.expect(packets.Pubcomp).ReasonCode
	}
	return 0
}

func retain(pk *packets.Packet) { pk.FixedHeader.Retain = true }

// subscribe subscribes and returns the code of the answer. Edits apply to the subscription.
func (p *peer) subscribe(filter string, qos byte, edit ...func(*packets.Subscription)) byte {
	p.Helper()
	sub := packets.Subscription{Filter: filter, Qos: qos}
	for _, f := range edit {
		f(&sub)
	}
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: p.nextID(), Filters: packets.Subscriptions{sub}}
	if sub.Identifier > 0 {
		pk.Properties.SubscriptionIdentifier = []int{sub.Identifier}
	}
	p.send(pk)
	return p.expect(packets.Suback).ReasonCodes[0]
}

func (p *peer) unsubscribe(filter string) {
	p.Helper()
	p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: p.nextID(), Filters: packets.Subscriptions{{Filter: filter}}})
	p.expect(packets.Unsuback)
}

func (p *peer) disconnect(reason byte) {
	p.Helper()
	p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ReasonCode: reason})
	_, err := p.read()
	if err == nil {
		p.Fatalf("%s: got a packet after DISCONNECT, want the end", p.name)
	}
	_ = p.conn.Close()
}

// ping returns when everything that was sent before has been handled; nothing else may come meanwhile.
func (p *peer) ping() {
	p.Helper()
	p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	p.expect(packets.Pingresp)
}

// gone waits until a client's connection has been let go of.
func (r *rig) gone(name string) {
	r.Helper()
	r.until("the connection of "+name+" ends", func() bool {
		r.hook.mu.RLock()
		s := r.hook.sessions[name]
		r.hook.mu.RUnlock()
		return s == nil && !r.hook.opt.Registry.Taken(name)
	})
}

// retained is how many messages are retained.
func (r *rig) retained() uint64 {
	r.Helper()
	n, err := r.hook.store.RetainedCount(context.Background())
	if err != nil {
		r.Fatal(err)
	}
	return n
}

// until polls for what no packet tells.
func (r *rig) until(what string, ok func() bool) {
	r.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.Fatalf("it does not come about that %s; dropped: %s", what, r.counts.all())
		}
	}
}

// session returns a client's state.
func (r *rig) session(name string) *session {
	r.Helper()
	r.hook.mu.RLock()
	defer r.hook.mu.RUnlock()
	s := r.hook.sessions[name]
	if s == nil {
		r.Fatalf("no session of %s", name)
	}
	return s
}

// unacknowledged is how much a persistent session holds.
func (r *rig) unacknowledged(name string) int {
	s := r.session(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.q.n
}
