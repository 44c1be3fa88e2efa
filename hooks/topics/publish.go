package topics

import (
	"strings"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/hooks/link"
)

// reserved is hooks/im's part of the topic tree.
const reserved = "im/"

// refusal says why a message is not taken. The zero value: it is.
type refusal struct {
	code   packets.Code
	reason string // as it is counted
}

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
	if no.reason == "" && !c.Repeated(p) {
		no = x.publish(p)
		if no.reason == "" {
			c.Answer(p.Ticket, packets.CodeSuccess.Code, "")
		}
	}
	if no.reason != "" {
		h.log.Debug("publish refused", "client", c.Client.ID, "topic", p.Topic, "reason", no.reason)
		h.metrics.Dropped(no.reason)
		c.Answer(p.Ticket, no.code.Code, no.code.Reason)
	}
	return true, nil
}

// maxLast bounds what a client that publishes no more still holds of a route.
const maxLast = 16

// publish sends a message on its way.
func (x *client) publish(p *link.Inbound) refusal {
	o := outgoing{retain: p.Retain, message: message{
		topic: p.Topic, payload: p.Payload, from: x.c.Client.ID, qos: min(p.QoS, x.h.server.Options.Capabilities.MaximumQos),
	}}
	if p.Props != nil {
		o.describe(p.Props, milliseconds())
	}
	o.extra = x.scratch
	no := x.h.distribute(&o, &x.last, &x.kicks)
	x.scratch = trim(o.extra)
	if x.last != nil && len(x.last.targets) > maxLast {
		x.last = nil
	}
	if x.kicks.full() {
		x.kicks.flush(x.h)
	}
	return no
}

// distribute retains a message if it is to be, and hands it to its subscribers.
func (h *Hook) distribute(o *outgoing, last **route, k *kicks) refusal {
	if o.retain && h.server.Options.Capabilities.RetainAvailable != 0 {
		if len(o.payload) == 0 {
			h.retained.delete(o.topic) // [MQTT-3.3.1-6]
		} else if !h.retained.set(o.keep(), milliseconds()) { // [MQTT-3.3.1-5]
			return refusal{packets.ErrQuotaExceeded, dropRetained}
		}
	}
	*last = h.publish(o, *last, k)
	return refusal{}
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
	o := fromPacket(&pk, milliseconds())
	h.send(&o)
	return pk, packets.ErrRejectPacket
}

// send distributes a message that no connection's goroutine has brought.
func (h *Hook) send(o *outgoing) {
	k := kicks{stamp: h.stamps.Add(1)}
	var last *route
	if no := h.distribute(o, &last, &k); no.reason != "" {
		h.drop(no.reason, o.from)
	}
	k.flush(h)
}
