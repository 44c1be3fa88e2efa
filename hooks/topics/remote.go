package topics

import (
	"slices"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/store"
)

// What is published here and wanted elsewhere: it is sent once to each node whose clients want it, after it has been stored
// where that is to be, and that node hands it to its own. What a stored session is to have waits in its queue whatever
// becomes of what is sent; the message then tells where, so that a session that is caught up need not read it.

const maxRefs = 1000 // in a message

// Flags of a message.
const (
	sentRetain = 1 << 0 // as published
	sentQoS    = 3 << 1
	sentMore   = 1 << 3 // places in queues for which there was no room in the message before
)

// elsewhere is a node that wants a topic.
type elsewhere struct {
	id    string
	wants uint64 // bits
}

// toNode is a group whose turn it is on another node.
type toNode struct{ id, filter string }

// forward sends a message to the nodes that want it. It is called once, and not before the message is stored where it has to
// be.
func (c *cluster) forward(d *delivery) {
	o := &d.o
	nodes := d.r.remote
	if d.r.version != c.h.routes.version.Load() {
		// While the message was being stored a client may have gone to a node that did not want the topic before, and has
		// read where its queue ends too early to find the message there.
		nodes = c.wanting(o.Topic)
	}
	var groups []toNode
	refs := d.queuedElsewhere()
	want := func(id string, wants uint64) {
		for i := range nodes {
			if nodes[i].id == id {
				if nodes[i].wants|wants != nodes[i].wants {
					nodes = slices.Clone(nodes) // they are the route's
					nodes[i].wants |= wants
				}
				return
			}
		}
		nodes = append(nodes[:len(nodes):len(nodes)], elsewhere{id, wants})
	}
	for _, t := range d.chosen {
		switch {
		case t.node == "":
		case t.client == "":
			groups = append(groups, toNode{t.node, t.group.filter})
			want(t.node, wantClean)
		default:
			if min(t.qos, o.QoS) == 0 && !c.h.here(t.client) {
				refs = append(refs, store.QueueRef{Client: t.client, Options: queueOptions(o.retain && t.retain, t.ids)})
			}
			want(t.node, wantDurable)
		}
	}
	if len(nodes) == 0 {
		return
	}
	now := refs[:min(len(refs), maxRefs)]
	refs = refs[len(now):]
	payload := encodeMessage(o, 0, groups, now)
	for _, n := range nodes {
		if n.wants&wantClean == 0 && len(now) == 0 && o.QoS > 0 && !d.r.atMostOnce {
			continue // of sessions that are stored, all that get it are here
		}
		c.send(n, payload, o.From)
	}
	for ; len(refs) > 0; refs = refs[min(len(refs), maxRefs):] {
		payload := encodeMessage(o, sentMore, nil, refs[:min(len(refs), maxRefs)])
		for _, n := range nodes {
			if n.wants&wantDurable != 0 {
				c.send(elsewhere{n.id, wantDurable}, payload, o.From)
			}
		}
	}
}

// wanting lists the nodes that want a topic now.
func (c *cluster) wanting(topic string) (list []elsewhere) {
	if system(topic) {
		return nil
	}
	c.match(topic, func(x *remote) {
		if x.kind == keyPlain {
			list = x.want(list)
		}
	})
	return list
}

// want notes in list what a node wants.
func (x *remote) want(list []elsewhere) []elsewhere {
	i := slices.IndexFunc(list, func(n elsewhere) bool { return n.id == x.peer.id })
	if i < 0 {
		i = len(list)
		list = append(list, elsewhere{id: x.peer.id})
	}
	list[i].wants |= x.value
	return list
}

// send sends to a node; what it does not get for sessions that are not stored is lost.
func (c *cluster) send(n elsewhere, payload []byte, from string) {
	var done func(int)
	if n.wants&wantClean != 0 {
		done = func(nodes int) {
			if nodes < 1 {
				c.h.drop(dropUnreachable, from)
			}
		}
	}
	c.bus.Publish(bus.Channel{Kind: bus.Node, Name: n.id}, busTopic, payload, done)
}

// queuedElsewhere lists where the message lies in queues of sessions that are not connected here.
func (d *delivery) queuedElsewhere() (list []store.QueueRef) {
	for i := range d.rec.Queues {
		if q := &d.rec.Queues[i]; q.Seq > 0 && !d.h.here(q.Client) {
			list = append(list, *q)
		}
	}
	return list
}

// here reports whether a client is connected to this node, and not about to be gone: it may be connected to another one
// already.
func (h *Hook) here(client string) bool {
	s := h.live(client)
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.dead && (s.conn == nil || !s.conn.Closed())
}

func encodeMessage(o *outgoing, flags byte, groups []toNode, refs []store.QueueRef) []byte {
	n := 64 + len(o.Topic) + len(o.From) + len(o.Props) + len(o.Payload)
	for i := range refs {
		n += 16 + len(refs[i].Client) + len(refs[i].Options)
	}
	b := make([]byte, 0, n)
	flags |= o.QoS << 1 & sentQoS
	if o.retain {
		flags |= sentRetain
	}
	b = append(b, sayMessage, flags)
	b = appendUint(b, uint64(o.Expires))
	b = appendBytes(b, o.Topic)
	b = appendBytes(b, o.From)
	b = appendBytes(b, o.Props)
	b = appendBytes(b, o.Payload)
	b = appendUint(b, uint64(len(groups)))
	for _, g := range groups {
		b = appendBytes(appendBytes(b, g.id), g.filter)
	}
	for i := range refs {
		q := &refs[i]
		b = appendUint(appendBytes(b, q.Client), q.Seq)
		b = appendBytes(append(b, q.QoS), q.Options)
	}
	return b
}

// receive hands what was published on another node to the clients of this one.
func (c *cluster) receive(_ string, r *reader) {
	h := c.h
	flags := r.byte()
	m := &message{Expires: int64(r.uint())}
	m.Topic, m.From = string(r.bytes()), string(r.bytes())
	m.Props, m.Payload = r.bytes(), r.bytes()
	m.QoS = flags & sentQoS >> 1
	o := outgoing{message: *m, retain: flags&sentRetain != 0, kept: m}
	in := arrival{h: h, o: o, k: kicks{stamp: h.stamps.Add(1)}}
	if m.Expires != 0 {
		in.now = milliseconds()
	}
	groups := int(min(r.uint(), uint64(len(r.b)))) // each takes more than a byte
	var mine []string
	for range groups {
		if id, filter := r.bytes(), r.bytes(); string(id) == c.bus.ID() {
			mine = append(mine, string(filter))
		}
	}
	if r.bad {
		return
	}
	if flags&sentMore == 0 {
		in.deliver(mine)
	}
	for len(r.b) > 0 && !r.bad {
		q := store.QueueRef{Client: string(r.bytes()), Seq: r.uint(), QoS: r.byte(), Options: r.bytes()}
		if s := h.live(q.Client); s != nil && !r.bad {
			in.queued(s, &q)
		}
	}
	if in.sent > 0 {
		h.metrics.TopicDelivered(in.sent)
	}
	in.k.flush(h)
}

// arrival is a message of another node.
type arrival struct {
	h    *Hook
	o    outgoing
	k    kicks
	now  int64
	sent int
}

// deliver offers the message to those who are connected, but for what waits in queues. groups are those whose turn it is
// here.
func (in *arrival) deliver(groups []string) {
	r := in.h.localRoute(in.o.Topic)
	offer := func(t *target) outcome {
		out := t.s.offer(&in.o, t, &in.k, in.now)
		if out == delivered {
			in.sent++
		}
		return out
	}
	for i := range r.targets {
		if t := &r.targets[i]; !t.noLocal || t.client != in.o.From {
			offer(t)
		}
	}
	for i := range r.durable {
		if t := &r.durable[i]; min(t.qos, in.o.QoS) == 0 && (!t.noLocal || t.client != in.o.From) {
			offer(t)
		}
	}
	for _, filter := range groups {
		i := slices.IndexFunc(r.groups, func(g *group) bool { return g.filter == filter })
		if i < 0 {
			in.h.drop(dropEnded, in.o.From)
			continue
		}
		g := r.groups[i]
		if t := g.pick(in.h); t != nil && offer(t) != gone {
			continue
		}
		if g.instead(in.h, &in.o, &in.k, in.now) == delivered {
			in.sent++
		}
	}
}

// queued tells a session of a place in its queue; 0: the message is not stored.
func (in *arrival) queued(s *session, q *store.QueueRef) {
	out := gone
	if q.Seq > 0 {
		out = s.committed(q, in.o.keep(), &in.k)
	} else {
		flags, ids := fromQueueOptions(q.Options)
		out = s.offer(&in.o, &target{s: s, client: s.client, ids: ids, retain: flags&retainFlag != 0}, &in.k, in.now)
	}
	if out == delivered {
		in.sent++
	}
}
