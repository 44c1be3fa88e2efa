package topics

import (
	"errors"
	"strings"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/store"
)

// reserved is hooks/im's part of the topic tree.
const reserved = "im/"

// refusal says why a message is not taken. The zero value: it is.
type refusal struct {
	code   packets.Code
	reason string // as it is counted
}

var (
	unavailable = refusal{packets.ErrImplementationSpecificError, dropUnavailable}
	queueFull   = refusal{packets.ErrQuotaExceeded, dropRefused}
)

// judge says whether a client may publish to a topic.
func (h *Hook) judge(cl *mqtt.Client, topic string) refusal {
	switch {
	case topic == "" || topic[0] == '$', topic == "im", strings.HasPrefix(topic, reserved):
		return refusal{packets.ErrTopicNameInvalid, dropInvalid} // [MQTT-4.7.2-1]
	case h.opt.Allow != nil && !h.opt.Allow(cl, topic, true):
		return refusal{packets.ErrNotAuthorized, dropDenied}
	}
	return refusal{}
}

// Receive implements link.Receiver for everything outside im/.
func (h *Hook) Receive(c *link.Conn, p *link.Inbound) (bool, error) {
	x, _ := c.Topics.(*client)
	if x == nil || x.s == nil || strings.HasPrefix(p.Topic, reserved) {
		return false, nil
	}
	if err := c.Admit(p); err != nil {
		return false, err
	}
	no := h.judge(c.Client, p.Topic)
	if no.reason == "" && p.Props != nil && strings.ContainsAny(p.Props.ResponseTopic, "+#") {
		no = refusal{packets.ErrTopicNameInvalid, dropInvalid} // [MQTT-3.3.2-14]
	}
	if no.reason != "" || !c.Repeated(p) {
		if no.reason == "" {
			no = x.publish(p)
		}
		if no.reason != "" {
			h.refuse(c, p.Topic, p.QoS, p.Ticket, no)
		}
	}
	return true, nil
}

// refuse answers a publish that is not taken. What may be taken later closes the connection of a 3.1.1 client, which has
// no other way to learn that it is to send it again.
func (h *Hook) refuse(c *link.Conn, topic string, qos byte, ticket uint64, no refusal) {
	h.log.Debug("publish refused", "client", c.Client.ID, "topic", topic, "reason", no.reason)
	h.metrics.Dropped(no.reason)
	if !c.V5 && qos > 0 && (no == unavailable || no == queueFull) {
		c.Fail(ticket)
		c.Disconnect(no.code)
		return
	}
	c.Answer(ticket, no.code.Code, no.code.Reason)
}

// maxLast bounds what a client that publishes no more still holds of a route.
const maxLast = 16

// publish sends a message on its way, and answers it now or when it is stored.
func (x *client) publish(p *link.Inbound) refusal {
	o := outgoing{retain: p.Retain, message: message{
		Topic: p.Topic, Payload: p.Payload, From: x.c.Client.ID, QoS: min(p.QoS, x.h.server.Options.Capabilities.MaximumQos),
	}}
	if p.Props != nil {
		describe(&o.message, p.Props, milliseconds())
	}
	o.extra = x.scratch
	d := delivery{h: x.h, x: x, o: o, ticket: p.Ticket}
	d.inbound = x.c.Records(p)
	no := d.start(&x.last, &x.kicks)
	x.scratch = trim(d.o.extra)
	if x.last != nil && len(x.last.targets) > maxLast {
		x.last = nil
	}
	if x.kicks.full() {
		x.kicks.flush(x.h)
	}
	return no
}

// Drained implements link.Drainer: what was published in one go leaves in one go.
func (h *Hook) Drained(c *link.Conn) {
	if x, _ := c.Topics.(*client); x != nil && len(x.kicks.conns) > 0 {
		x.kicks.flush(h)
	}
}

// OnPublish sees what does not come from a connection: what the program that embeds the server publishes through mochi's
// inline client. Topics under im/ are left to hooks/im, which has been asked before.
func (h *Hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if !cl.Net.Inline {
		h.drop(dropRejected, cl.ID)
		return pk, packets.ErrRejectPacket
	}
	pk.Origin = cl.ID
	h.send(&delivery{h: h, o: fromPacket(&pk, milliseconds())})
	return pk, packets.ErrRejectPacket
}

// send starts a delivery that no connection's goroutine has brought.
func (h *Hook) send(d *delivery) {
	k := kicks{stamp: h.stamps.Add(1)}
	var last *route
	if no := d.start(&last, &k); no.reason != "" {
		h.drop(no.reason, d.o.From)
	}
	k.flush(h)
}

// delivery is a message on its way to its subscribers: straight to them, or by the store, where it has to be kept.
type delivery struct {
	h       *Hook
	x       *client // who published it; nil: a will, or the program
	o       outgoing
	r       *route
	chosen  []*target // of the groups
	ticket  uint64
	inbound *store.Inbound // QoS 2 of a durable session: noted with the message
	will    *store.Will    // that it is, to be forgotten with it
	epoch   uint64         // of the connection that has left the will
	late    bool           // the client may have another will by now
	rec     store.Publish
}

var _ link.Change = (*delivery)(nil)

// start finds the subscribers. What nothing has to be stored for is handed to them at once.
func (d *delivery) start(last **route, k *kicks) (no refusal) {
	h, o := d.h, &d.o
	var err error
	if d.r, err = h.route(o.Topic, *last); err != nil {
		h.log.Error("a message cannot be routed", "topic", o.Topic, "error", err)
		return unavailable
	}
	*last = d.r
	retain := o.retain && h.server.Options.Capabilities.RetainAvailable != 0
	keep := retain || d.inbound != nil || d.will != nil || d.x != nil && d.x.pending.Load() > 0
	for _, g := range d.r.groups {
		if t := g.pick(h); t != nil {
			d.chosen = append(d.chosen, t)
		}
	}
	d.each(func(t *target) {
		if t.s == nil && t.client != "" && min(t.qos, o.QoS) > 0 {
			keep = true
			d.rec.Queues = append(d.rec.Queues, store.QueueRef{
				Client: t.client, QoS: t.qos, Options: queueOptions(o.retain && t.retain, t.ids),
			})
		}
	})
	if h.opt.RefuseWhenFull && o.QoS > 0 {
		full := false
		d.each(func(t *target) { full = full || t.s != nil && t.qos > 0 && t.s.crowded(&o.message) })
		if full {
			return queueFull
		}
	}
	if !keep {
		d.accept()
		d.deliver(k)
		return refusal{}
	}
	if err := h.store.Healthy(); err != nil && o.QoS > 0 {
		return unavailable
	}
	return d.store(retain)
}

// accept answers the publisher, before the message is handed to anyone: who subscribes to what he publishes is told first.
func (d *delivery) accept() {
	if d.x == nil {
		return
	}
	code := packets.CodeSuccess.Code
	if r := d.r; d.o.QoS == 1 && len(r.targets)+len(r.durable)+len(r.groups)+len(r.inline)+len(r.remote) == 0 {
		code = packets.CodeNoMatchingSubscribers.Code // MQTT 5, 3.4.2.1
	}
	d.x.c.Answer(d.ticket, code, "")
}

// store has the message stored; Done goes on. It works on a copy, so that what nothing is stored for costs no allocation.
func (d *delivery) store(retain bool) refusal {
	kept := new(delivery)
	*kept = *d
	kept.o.extra = nil
	kept.o.TS = milliseconds()
	m := kept.o.keep()
	kept.o.message = *m
	kept.rec.Publication, kept.rec.Retain = m, retain
	if d.x != nil {
		d.x.pending.Add(1)
	}
	if retain {
		d.h.retaining.Add(1)
	}
	if !d.h.journal.Put(kept) {
		kept.settled()
		return unavailable
	}
	return refusal{}
}

// settled takes back what store has counted.
func (d *delivery) settled() {
	if d.x != nil {
		d.x.pending.Add(-1)
	}
	if d.rec.Retain {
		d.h.retaining.Add(-1)
	}
}

// each calls f for everyone who is to have the message.
func (d *delivery) each(f func(t *target)) {
	for _, list := range [2][]target{d.r.targets, d.r.durable} {
		for i := range list {
			if t := &list[i]; !t.noLocal || t.client != d.o.From { // [MQTT-3.8.3-3]
				f(t)
			}
		}
	}
	for _, t := range d.chosen {
		f(t)
	}
}

// Add implements link.Change.
func (d *delivery) Add(b *store.Batch) {
	for i := range d.rec.Queues {
		if s := d.h.live(d.rec.Queues[i].Client); s != nil {
			d.rec.Queues[i].Acked = s.acked.Load()
		}
	}
	if d.rec.Retain || len(d.rec.Queues) > 0 || d.inbound != nil {
		if d.rec.Inbound = d.inbound; d.inbound != nil {
			link.AddFence(b, d.inbound.Client, d.x.c.Epoch())
		}
		b.Publishes = append(b.Publishes, &d.rec)
	}
	if d.will != nil {
		if s := d.h.live(d.will.Client); !d.late || s == nil || !s.will {
			link.AddFence(b, d.will.Client, d.epoch)
			b.Wills = append(b.Wills, store.Will{Client: d.will.Client, Remove: true})
		}
	}
}

// Size implements link.Change.
func (d *delivery) Size() int { return size(&d.o.message) + 256 }

// Must implements link.Change: a will has nobody to be told that it has failed.
func (d *delivery) Must() bool { return d.x == nil }

// Lazy implements link.Change.
func (d *delivery) Lazy() bool {
	return d.o.QoS == 0 && d.will == nil || len(d.rec.Queues) == 0 && !d.rec.Retain && d.inbound == nil && d.will == nil
}

// Done implements link.Change: the message is durable, and is shown.
func (d *delivery) Done(err error) {
	defer d.settled()
	h := d.h
	var no refusal
	switch {
	case errors.Is(err, store.ErrUnknownOutcome) && d.x != nil:
		d.x.c.FailAll()
		d.x.c.Disconnect(packets.ErrServerUnavailable) // no answer rather than a wrong one
	case err != nil:
		no = unavailable
	case errors.Is(d.rec.Err, store.ErrRetainedFull):
		no = refusal{packets.ErrQuotaExceeded, dropRetained}
	case d.rec.Err != nil:
		no = queueFull
	default:
		d.accept()
		d.deliver(&h.doneKicks)
	}
	if d.x == nil {
		if no.reason != "" {
			h.drop(no.reason, d.o.From)
		}
		return
	}
	if no.reason != "" {
		h.refuse(d.x.c, d.o.Topic, d.o.QoS, d.ticket, no)
	}
	h.doneKicks.publisher(d.x)
}

// deliver hands the message to those of its subscribers who are connected.
func (d *delivery) deliver(k *kicks) {
	h, o := d.h, &d.o
	now := int64(0)
	if o.Expires != 0 {
		now = milliseconds()
	}
	sent, queued := 0, 0
	d.each(func(t *target) {
		s := t.s
		if s == nil {
			if t.client == "" {
				return // another node chooses
			}
			s = h.live(t.client)
			if min(t.qos, o.QoS) > 0 {
				ref := &d.rec.Queues[queued]
				queued++
				if ref.Dropped > 0 {
					h.dropN(dropMessages, ref.Client, int(ref.Dropped))
				}
				if s != nil && ref.Seq > 0 && s.committed(ref, d.rec.Publication, k) == delivered {
					sent++
				}
				return
			}
			if s == nil {
				if t.node == "" && !d.r.durableElsewhere() {
					h.drop(dropOffline, t.client)
				}
				return
			}
		}
		out := s.offer(o, t, k, now)
		if out == gone && t.group != nil { // since it was chosen
			out = t.group.instead(h, o, k, now)
		}
		if out == delivered {
			sent++
		}
	})
	if sent > 0 {
		h.metrics.TopicDelivered(sent)
	}
	if h.cluster != nil {
		h.cluster.forward(d)
	}
	if len(d.r.inline) > 0 {
		d.inline()
	}
}

// instead offers a message to the connected members, until one takes it: nothing can be stored for the others any more.
func (g *group) instead(h *Hook, o *outgoing, k *kicks, now int64) outcome {
	for i := range g.members {
		t := &g.members[i]
		s := t.s
		if s == nil && min(t.qos, o.QoS) == 0 {
			s = h.live(t.client)
		}
		if s == nil {
			continue
		}
		if out := s.offer(o, t, k, now); out != gone {
			return out
		}
	}
	h.drop(dropEnded, o.From)
	return gone
}

// inline serves the subscriptions of the program that embeds the server.
func (d *delivery) inline() {
	cl, ok := d.h.server.Clients.Get(mqtt.InlineClientId)
	if !ok {
		return
	}
	pk := d.o.packet()
	for _, sub := range d.r.inline {
		sub.Handler(cl, sub.Subscription, pk)
	}
}
