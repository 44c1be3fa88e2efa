package tests

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/tests/mqtest"
)

// TestChaos: a durable subscriber is dropped, taken over and sent away every 20–150 ms while publishers number their
// messages, lose their connections, too, and send again what was not acknowledged; the server is killed and started
// again. Nothing that was acknowledged is lost, first deliveries are in each publisher's order, and at QoS 2 there is
// exactly one.
func TestChaos(t *testing.T) {
	t.Parallel()
	kills, messages := 4, 5000
	if os.Getenv("MQIM_TORTURE") != "" {
		kills, messages = 60, 60000
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := func(n uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, n)) }

	s := mqtest.Start(t, mqtest.Config{"sessions": "{max_queued: 0}"})
	var addr atomic.Pointer[string] // of the present process
	run := func() { a := s.Addr("mqtt"); addr.Store(&a) }
	run()
	sub := &chaosSubscriber{t: t, rng: random(0), last: map[string]int{}, pending: map[uint16]bool{}, trail: map[uint16][]string{}}
	first := mqtest.Dial(t, *addr.Load(), sub.options())
	first.SubscribeQoS(2, "chaos/+")
	first.Disconnect()

	var acked atomic.Int64
	var publishing, subscribing sync.WaitGroup
	var pubs []*chaosPublisher
	for i := range 4 {
		p := &chaosPublisher{
			t: t, rng: random(uint64(1 + i)), name: fmt.Sprint("p", i), v: []byte{4, 5}[i%2], qos: byte(1 + i/2), total: messages, acked: &acked,
		}
		pubs = append(pubs, p)
		publishing.Go(func() { p.run(&addr) })
	}
	stop := make(chan struct{})
	subscribing.Go(func() { sub.run(&addr, stop) })
	for i := range kills {
		target := int64(len(pubs) * messages * (i + 1) / (kills + 1))
		mqtest.Eventually(t, fmt.Sprint(target, " acknowledgements"), func() bool { return acked.Load() >= target })
		s.Kill()
		s.Run()
		run()
	}
	publishing.Wait()
	close(stop)
	subscribing.Wait()

	c := mqtest.Dial(t, *addr.Load(), sub.options())
	n := 0
	for _, p := range pubs {
		mqtest.Eventually(t, "the last message of "+p.name, func() bool {
			n = sub.consume(c, n)
			return sub.last[p.name] == messages
		})
	}
	t.Logf("%d connections of the subscriber, %d messages, %d of them again", sub.connections, sub.taken, sub.again)
}

// chaosSubscriber remembers, over all its connections, what an MQTT client with a session has to.
type chaosSubscriber struct {
	t           *testing.T
	rng         *rand.Rand
	last        map[string]int      // number of the last first delivery, by publisher
	pending     map[uint16]bool     // QoS 2: PUBLISH came, and PUBREL did not
	trail       map[uint16][]string // what came last under each packet id
	connections int
	taken       int
	again       int
}

func (x *chaosSubscriber) options() mqtest.Options {
	x.connections++
	o := mqtest.Options{Version: []byte{4, 5}[x.rng.IntN(2)], User: "u", ID: "sub", Persistent: true}
	if o.Version == 5 && x.rng.IntN(2) == 0 {
		o.Properties.ReceiveMaximum = uint16(1 + x.rng.IntN(100))
	}
	return o
}

func (x *chaosSubscriber) run(addr *atomic.Pointer[string], stop <-chan struct{}) {
	var old *mqtest.Client // still connected, to be taken over
	for {
		c := mqtest.TryDial(x.t, *addr.Load(), x.options())
		if old != nil { // it had all that it got before c gets anything
			old.Kill()
			ended(old)
			x.consume(old, 0)
			old = nil
		}
		select {
		case <-stop:
			if c != nil {
				c.Kill()
				ended(c)
				x.consume(c, 0)
			}
			return
		case <-time.After(time.Duration(20+x.rng.IntN(130)) * time.Millisecond):
		}
		if c == nil {
			continue
		}
		switch x.rng.IntN(3) {
		case 0:
			old = c
			continue
		case 1:
			_ = c.TryWrite([]byte{packets.Disconnect << 4, 0})
		default:
			c.Kill()
		}
		ended(c)
		x.consume(c, 0)
	}
}

// ended waits for the end of a connection.
func ended(c *mqtest.Client) { c.TryTake(func(*packet) bool { return false }, mqtest.Patience) }

// consume looks at what has come since the first from packets, and returns their number.
func (x *chaosSubscriber) consume(c *mqtest.Client, from int) int {
	got := c.Got()
	for _, pk := range got[from:] {
		x.note(c, &pk)
		switch pk.FixedHeader.Type {
		case packets.Pubrel:
			delete(x.pending, pk.PacketID)
		case packets.Publish:
			if pk.FixedHeader.Qos == 2 && x.pending[pk.PacketID] {
				x.again++
				continue // the client knows it by its packet id [MQTT-4.3.3-10]
			}
			if pk.FixedHeader.Qos == 2 {
				x.pending[pk.PacketID] = true
			}
			x.deliver(strings.TrimPrefix(pk.TopicName, "chaos/"), &pk)
		}
	}
	return len(got)
}

func (x *chaosSubscriber) note(c *mqtest.Client, pk *packet) {
	list := append(x.trail[pk.PacketID], fmt.Sprintf("%s %s %s dup=%t code=%#x on %p",
		packets.PacketNames[pk.FixedHeader.Type], pk.TopicName, pk.Payload, pk.FixedHeader.Dup, pk.ReasonCode, c))
	x.trail[pk.PacketID] = list[max(0, len(list)-8):]
}

func (x *chaosSubscriber) deliver(from string, pk *packet) {
	var n int
	_, _ = fmt.Sscan(string(pk.Payload), &n)
	switch last := x.last[from]; {
	case n == last+1:
		x.last[from] = n
		x.taken++
	case n <= last && pk.FixedHeader.Qos == 1:
		x.again++
	case n <= last:
		x.t.Errorf("message %d of %s comes again at QoS 2, after %d; under packet id %d there came\n%s",
			n, from, last, pk.PacketID, strings.Join(x.trail[pk.PacketID], "\n"))
	default:
		x.t.Errorf("message %d of %s comes after %d", n, from, last)
		x.last[from] = n
	}
}

// chaosPublisher sends messages 1 … total, a few at a time, until each is acknowledged.
type chaosPublisher struct {
	t     *testing.T
	rng   *rand.Rand
	name  string
	v     byte
	qos   byte
	total int
	acked *atomic.Int64
	out   []*unacked // in the order in which they were sent first
}

type unacked struct {
	n        int
	released bool // QoS 2: PUBREC came
}

func (u *unacked) id() uint16 { return uint16(1 + u.n%50000) }

const chaosDepth = 16

func (p *chaosPublisher) run(addr *atomic.Pointer[string]) {
	for next := 1; next <= p.total || len(p.out) > 0; {
		c := mqtest.TryDial(p.t, *addr.Load(), mqtest.Options{Version: p.v, User: "u", ID: p.name, Persistent: true})
		if c == nil {
			<-time.After(5 * time.Millisecond) // the server is about to come back
			continue
		}
		ok := true
		for _, u := range p.out {
			ok = ok && p.send(c, u, true)
		}
		life := time.After(time.Duration(50+p.rng.IntN(1000)) * time.Millisecond)
		for ok && (next <= p.total || len(p.out) > 0) {
			for ok && len(p.out) < chaosDepth && next <= p.total {
				u := &unacked{n: next}
				p.out = append(p.out, u)
				ok = p.send(c, u, false)
				next++
			}
			ack, got := c.TryTake(isAck, 10*time.Millisecond)
			if got {
				p.acknowledged(&ack)
			}
			select {
			case <-life:
				ok = false
			default:
				ok = ok && c.Err() == nil
			}
		}
		c.Kill()
		ended(c)
		for ack, got := c.TryTake(isAck, 0); got; ack, got = c.TryTake(isAck, 0) {
			p.acknowledged(&ack)
		}
	}
}

func isAck(p *packet) bool {
	t := p.FixedHeader.Type
	return t == packets.Puback || t == packets.Pubrec || t == packets.Pubcomp
}

func (p *chaosPublisher) send(c *mqtest.Client, u *unacked, again bool) bool {
	id := u.id()
	if u.released {
		return c.TryWrite([]byte{packets.Pubrel<<4 | 2, 2, byte(id >> 8), byte(id)}) == nil
	}
	pk := packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: p.qos, Dup: again},
		TopicName:   "chaos/" + p.name, Payload: fmt.Append(nil, u.n), PacketID: id,
	}
	raw, err := mqtest.Encode(pk, p.v)
	if err != nil {
		p.t.Errorf("encode: %v", err)
	}
	return c.TryWrite(raw) == nil
}

func (p *chaosPublisher) acknowledged(pk *packet) {
	i := slices.IndexFunc(p.out, func(u *unacked) bool { return u.id() == pk.PacketID })
	switch typ := pk.FixedHeader.Type; {
	case i < 0:
		p.t.Errorf("%s: packet %d with id %d is for nothing that was sent", p.name, typ, pk.PacketID)
	case typ == packets.Pubrec && pk.ReasonCode < 0x80:
		p.out[i].released = true
	case typ == packets.Pubcomp, pk.ReasonCode == 0:
		p.out = slices.Delete(p.out, i, i+1)
		p.acked.Add(1)
	default:
		p.t.Errorf("%s: message %d was refused with %#x", p.name, p.out[i].n, pk.ReasonCode)
	}
}
