package topics

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/store"
)

// route is who gets what is published to a topic. It is made from mochi's trie, which copies every map that it passes,
// and from what the store has, and used again as long as no subscription has changed. It never changes but for the
// turns of its groups.
type route struct {
	topic   string
	version uint64
	targets []target // sessions that end with their connection
	durable []target // sessions in the store, connected or not
	groups  []*group
	inline  map[int]mqtt.InlineSubscription
}

// target is one subscriber's merged subscription.
type target struct {
	client  string
	s       *session // nil: the session is in the store, and live tells whether it is connected
	ids     string   // encoded subscription identifiers
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

// route returns the route of a topic. last is one that the caller had before, which is often the same. An error means
// that the store cannot tell.
func (h *Hook) route(topic string, last *route) (*route, error) {
	version := h.routes.version.Load()
	if last != nil && last.version == version && last.topic == topic {
		return last, nil
	}
	rs := &h.routes
	rs.mu.RLock()
	r := rs.m[topic]
	rs.mu.RUnlock()
	if r != nil && r.version == version {
		return r, nil
	}
	r, err := h.resolve(topic)
	if err != nil {
		return nil, err
	}
	r.version = version // what changed since may be in it or not; the next publish looks again
	rs.mu.Lock()
	defer rs.mu.Unlock()
	weight := 1 + len(r.targets) + len(r.durable)
	for _, g := range r.groups {
		weight += len(g.members)
	}
	if rs.m == nil || rs.current != version || rs.routed+weight > maxRouted {
		rs.m, rs.routed, rs.current = map[string]*route{}, 0, version
	}
	rs.m[topic] = r
	rs.routed += weight
	return r, nil
}

// resolve asks mochi's trie and the store.
func (h *Hook) resolve(topic string) (*route, error) {
	stored, err := h.store.Match(context.Background(), topic)
	if err != nil {
		return nil, fmt.Errorf("who has subscribed to the topic: %w", err)
	}
	subs := h.server.Topics.Subscribers(topic)
	r := &route{topic: topic, inline: subs.InlineSubscriptions}
	groups := map[string]*group{} // by filter, the group's name included
	h.mu.RLock()
	defer h.mu.RUnlock()
	r.targets = make([]target, 0, len(subs.Subscriptions))
	for id, sub := range subs.Subscriptions {
		if s := h.sessions[id]; s != nil && !s.durable {
			t := makeTarget(s, &sub)
			if t.noLocal {
				t.noLocal = h.onlyNoLocal(id, topic)
			}
			r.targets = append(r.targets, t)
		}
	}
	member := func(filter string, t target) {
		g := groups[filter]
		if g == nil {
			g = &group{}
			g.turn.Store(rand.Uint32())
			groups[filter] = g
			r.groups = append(r.groups, g)
		}
		g.members = append(g.members, t)
	}
	for filter, members := range subs.Shared {
		if topic[0] == '$' && wild(unshare(filter)) {
			continue // [MQTT-4.7.2-1], which mochi keeps for ordinary subscriptions only
		}
		for id, sub := range members {
			if s := h.sessions[id]; s != nil && !s.durable {
				member(filter, makeTarget(s, &sub))
			}
		}
	}
	r.addStored(stored, member)
	return r, nil
}

// addStored merges the stored subscriptions of each client into one target.
func (r *route) addStored(list []store.Subscription, member func(filter string, t target)) {
	at := map[string]int{}
	for i := range list {
		sub, ok := decodeSubscription(&list[i])
		if !ok {
			continue
		}
		t := target{client: list[i].Client, ids: appendIDs(&sub), qos: sub.Qos, noLocal: sub.NoLocal, retain: sub.RetainAsPublished}
		if mqtt.IsSharedFilter(sub.Filter) {
			member(sub.Filter, t)
			continue
		}
		k, seen := at[t.client]
		if !seen {
			at[t.client] = len(r.durable)
			r.durable = append(r.durable, t)
			continue
		}
		d := &r.durable[k]
		d.qos, d.ids = max(d.qos, t.qos), d.ids+t.ids // [MQTT-3.3.4-2] [MQTT-3.3.4-4]
		d.noLocal, d.retain = d.noLocal && t.noLocal, d.retain || t.retain
	}
}

func makeTarget(s *session, sub *packets.Subscription) target {
	return target{client: s.client, s: s, ids: appendIDs(sub), qos: sub.Qos, noLocal: sub.NoLocal, retain: sub.RetainAsPublished}
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

// live is the session of a client that is connected, or about to be; nil: it is not.
func (h *Hook) live(client string) *session {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.sessions[client]
}

// pick chooses the member that gets the next message, in turn: one that is connected if there is one, one that has room
// rather than one that has not [MQTT-4.8.2-4].
func (g *group) pick(h *Hook) *target {
	first := g.turn.Add(1)
	n := uint32(len(g.members))
	for _, want := range []fitness{ready, connected, any_} {
		for i := range n {
			t := &g.members[(first+i)%n]
			if h.fit(t) >= want {
				return t
			}
		}
	}
	return nil
}

func (h *Hook) fit(t *target) fitness {
	s := t.s
	if s == nil {
		if s = h.live(t.client); s == nil {
			return any_
		}
	}
	return s.fit()
}
