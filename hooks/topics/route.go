package topics

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// route is who gets what is published to a topic. It is made from mochi's trie, which copies every map that it passes,
// and used again as long as no subscription has changed. It never changes but for the turns of its groups.
type route struct {
	topic   string
	version uint64
	targets []target
	groups  []*group
	inline  map[int]mqtt.InlineSubscription
}

// target is one subscriber's merged subscription.
type target struct {
	s       *session
	ids     string // encoded subscription identifiers
	qos     byte
	noLocal bool
	retain  bool // Retain As Published
}

// group is a shared subscription: each message goes to one of its members.
type group struct {
	members []target
	turn    atomic.Uint32
}

// routes remembers routes. What it holds is bounded by maxRouted; beyond that, it starts over.
type routes struct {
	version atomic.Uint64 // rises when subscriptions or sessions change

	mu      sync.RWMutex
	m       map[string]*route
	routed  int    // targets of all routes, and one for each
	current uint64 // the version that all of m is of
}

const maxRouted = 1 << 16

// changed makes all routes stale. It is called after the change.
func (r *routes) changed() { r.version.Add(1) }

// route returns the route of a topic. last is one that the caller had before, which is often the same.
func (h *Hook) route(topic string, last *route) *route {
	version := h.routes.version.Load()
	if last != nil && last.version == version && last.topic == topic {
		return last
	}
	rs := &h.routes
	rs.mu.RLock()
	r := rs.m[topic]
	rs.mu.RUnlock()
	if r != nil && r.version == version {
		return r
	}
	r = h.resolve(topic)
	r.version = version // what changed since may be in it or not; the next publish looks again
	rs.mu.Lock()
	defer rs.mu.Unlock()
	weight := 1 + len(r.targets)
	for _, g := range r.groups {
		weight += len(g.members)
	}
	if rs.m == nil || rs.current != version || rs.routed+weight > maxRouted {
		rs.m, rs.routed, rs.current = map[string]*route{}, 0, version
	}
	rs.m[topic] = r
	rs.routed += weight
	return r
}

// resolve asks mochi's trie.
func (h *Hook) resolve(topic string) *route {
	subs := h.server.Topics.Subscribers(topic)
	r := &route{topic: topic, inline: subs.InlineSubscriptions}
	h.mu.RLock()
	defer h.mu.RUnlock()
	r.targets = make([]target, 0, len(subs.Subscriptions))
	for id, sub := range subs.Subscriptions {
		if s := h.sessions[id]; s != nil {
			t := makeTarget(s, &sub)
			if t.noLocal {
				t.noLocal = h.onlyNoLocal(id, topic)
			}
			r.targets = append(r.targets, t)
		}
	}
	for filter, members := range subs.Shared {
		if topic[0] == '$' && wild(unshare(filter)) {
			continue // [MQTT-4.7.2-1], which mochi keeps for ordinary subscriptions only
		}
		g := &group{members: make([]target, 0, len(members))}
		for id, sub := range members {
			if s := h.sessions[id]; s != nil {
				g.members = append(g.members, makeTarget(s, &sub))
			}
		}
		if len(g.members) > 0 {
			g.turn.Store(rand.Uint32())
			r.groups = append(r.groups, g)
		}
	}
	return r
}

func makeTarget(s *session, sub *packets.Subscription) target {
	return target{s: s, ids: appendIDs(sub), qos: sub.Qos, noLocal: sub.NoLocal, retain: sub.RetainAsPublished}
}

// onlyNoLocal reports whether all of a client's subscriptions that match have No Local; mochi merges them into one that
// has it if any has, and the client would miss what another subscription asks for.
func (h *Hook) onlyNoLocal(client, topic string) bool {
	cl, ok := h.server.Clients.Get(client)
	if !ok {
		return true
	}
	for filter, sub := range cl.State.Subscriptions.GetAll() {
		if !sub.NoLocal && !mqtt.IsSharedFilter(filter) && covers(filter, topic) {
			return false
		}
	}
	return true
}

// unshare returns the filter in $share/group/filter.
func unshare(filter string) string {
	_, rest, _ := cut(filter)
	_, rest, _ = cut(rest)
	return rest
}

func wild(filter string) bool { return filter != "" && (filter[0] == '+' || filter[0] == '#') }

// publish hands a message to its subscribers. k collects the connections that are to be kicked. It returns the route,
// for next time.
func (h *Hook) publish(o *outgoing, last *route, k *kicks) *route {
	r := h.route(o.topic, last)
	now := int64(0)
	if o.expires != 0 {
		now = milliseconds()
	}
	sent := 0
	for i := range r.targets {
		t := &r.targets[i]
		if t.noLocal && t.s.client == o.from {
			continue // [MQTT-3.8.3-3]
		}
		if t.s.offer(o, t, k, now) == delivered {
			sent++
		}
	}
	for _, g := range r.groups {
		if g.offer(o, k, now) == delivered {
			sent++
		}
	}
	if sent > 0 {
		h.metrics.TopicDelivered(sent)
	}
	if len(r.inline) > 0 {
		h.publishInline(o, r)
	}
	return r
}

// offer gives a message to one member of the group, in turn: to one that is connected if there is one, to one that has
// room rather than to one that has not [MQTT-4.8.2-4].
func (g *group) offer(o *outgoing, k *kicks, now int64) outcome {
	first := g.turn.Add(1)
	n := uint32(len(g.members))
	for _, want := range []fitness{ready, connected, any_} {
		for i := range n {
			t := &g.members[(first+i)%n]
			if t.s.fit(min(t.qos, o.qos)) >= want {
				return t.s.offer(o, t, k, now)
			}
		}
	}
	return gone
}

// publishInline serves the subscriptions of the program that embeds the server.
func (h *Hook) publishInline(o *outgoing, r *route) {
	cl, ok := h.server.Clients.Get(mqtt.InlineClientId)
	if !ok {
		return
	}
	pk := o.packet()
	for _, sub := range r.inline {
		sub.Handler(cl, sub.Subscription, pk)
	}
}
