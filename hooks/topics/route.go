package topics

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/store"
)

// route is who gets what is published to a topic. It is made from the index and the store, and used again as long as no
// subscription has changed. It never changes but for the turns of its groups.
type route struct {
	topic   string
	version uint64
	term    uint64   // of Options.Trusted
	targets []target // sessions that end with their connection
	durable []target // sessions in the store, connected or not
	groups  []*group
	inline  map[int]mqtt.InlineSubscription

	remote     []elsewhere // nodes that want it
	atMostOnce bool        // some of durable subscribe at QoS 0
}

// target is one subscriber's merged subscription.
type target struct {
	client  string   // "": whoever node chooses, of a shared subscription
	node    string   // of a shared subscription: another node, that it is connected to
	group   *group   // of a shared subscription; nil: it is none
	s       *session // nil: the session is in the store, and live tells whether it is connected
	ids     string   // encoded subscription identifiers
	qos     byte
	noLocal bool
	retain  bool // Retain As Published
}

// group is a shared subscription: each message goes to one of its members.
type group struct {
	filter  string
	members []target // in the order of their client ids
	turn    *atomic.Uint32
}

// routes remembers routes. What it holds is bounded by maxRouted; beyond that, it starts over.
type routes struct {
	version atomic.Uint64 // rises when subscriptions or sessions change

	mu      sync.RWMutex
	m       map[string]*route
	routed  int    // targets of all routes, and one for each
	current uint64 // the version that all of m is of
	// turns has those of shared subscriptions, which outlast the routes, so that every member gets its share though
	// there be many topics, and who subscribes come and go. Beyond maxTurns it starts over.
	turns map[string]*atomic.Uint32
}

const (
	maxRouted = 1 << 16
	maxTurns  = 1 << 12
	// maxMembers is for how many a node counts in a shared subscription, at most.
	maxMembers = 1 << 10
)

// turn returns the turn of a shared subscription, by its filter with the group's name.
func (r *routes) turn(filter string) *atomic.Uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.turns[filter]
	if t == nil {
		if r.turns == nil || len(r.turns) >= maxTurns {
			r.turns = map[string]*atomic.Uint32{}
		}
		t = new(atomic.Uint32)
		r.turns[filter] = t
	}
	return t
}

// changed makes all routes stale. It is called after the change.
func (r *routes) changed() { r.version.Add(1) }

// route returns the route of a topic. last is one that the caller had before, which is often the same. An error means
// that the store cannot tell.
func (h *Hook) route(topic string, last *route) (*route, error) {
	version := h.routes.version.Load()
	rs := &h.routes
	term := h.term()
	if term != 0 {
		if last != nil && last.version == version && last.term == term && last.topic == topic {
			return last, nil
		}
		rs.mu.RLock()
		r := rs.m[topic]
		rs.mu.RUnlock()
		if r != nil && r.version == version && r.term == term {
			return r, nil
		}
	}
	r, err := h.resolve(topic)
	if err != nil {
		return nil, err
	}
	r.term = term
	r.version = version // what changed since may be in it or not; the next publish looks again
	rs.keep(r)
	return r, nil
}

// keep remembers a route.
func (rs *routes) keep(r *route) {
	version := r.version
	rs.mu.Lock()
	defer rs.mu.Unlock()
	weight := 1 + len(r.targets) + len(r.durable)
	for _, g := range r.groups {
		weight += len(g.members)
	}
	if rs.m == nil || rs.current != version || rs.routed+weight > maxRouted {
		rs.m, rs.routed, rs.current = map[string]*route{}, 0, version
	}
	rs.m[r.topic] = r
	rs.routed += weight
}

// localRoute is the route of what was published on another node: those who are connected here, but for stored sessions'
// shared subscriptions, since whoever publishes chooses among those.
func (h *Hook) localRoute(topic string) *route {
	version := h.routes.version.Load()
	rs := &h.arriving
	rs.mu.RLock()
	r := rs.m[topic]
	rs.mu.RUnlock()
	if r != nil && r.version == version {
		return r
	}
	w := newResolver(h, topic)
	h.index.match(topic, func(filter string, t target) { w.add(&w.r.targets, filter, t) })
	clear(w.at)
	h.durables.match(topic, func(filter string, t target) {
		if group, _ := store.SplitShared(filter); group == "" {
			w.add(&w.r.durable, filter, t)
		}
	})
	w.sort()
	w.r.version = version
	rs.keep(w.r)
	return w.r
}

// durableElsewhere reports whether stored sessions that are connected to other nodes want the topic.
func (r *route) durableElsewhere() bool {
	for i := range r.remote {
		if r.remote[i].wants&wantDurable != 0 {
			return true
		}
	}
	return false
}

// resolver makes a route.
type resolver struct {
	h      *Hook
	r      *route
	groups map[string]*group // by filter, the group's name included
	at     map[string]int    // where a client is in its list
}

func newResolver(h *Hook, topic string) *resolver {
	return &resolver{h: h, r: &route{topic: topic}, groups: map[string]*group{}, at: map[string]int{}}
}

func (w *resolver) add(list *[]target, filter string, t target) {
	if shared, _ := store.SplitShared(filter); shared != "" {
		w.member(filter, t, 1)
	} else if i, seen := w.at[t.client]; seen {
		(*list)[i].merge(&t)
	} else {
		w.at[t.client] = len(*list)
		*list = append(*list, t)
	}
}

// member adds somebody to a group, for so many.
func (w *resolver) member(filter string, t target, n uint64) {
	g := w.groups[filter]
	if g == nil {
		g = &group{filter: filter, turn: w.h.routes.turn(filter)}
		w.groups[filter] = g
		w.r.groups = append(w.r.groups, g)
	}
	t.group = g
	for range n {
		g.members = append(g.members, t)
	}
}

func (w *resolver) sort() {
	for _, g := range w.r.groups {
		slices.SortFunc(g.members, func(a, b target) int {
			return cmp.Or(strings.Compare(a.client, b.client), strings.Compare(a.node, b.node))
		})
	}
}

// remote adds what other nodes want. It returns where the members of groups are connected whose sessions are stored.
func (w *resolver) remote(c *cluster, topic string) (where map[string]string) {
	if c == nil || system(topic) {
		return nil
	}
	c.match(topic, func(x *remote) {
		switch x.kind {
		case keyPlain:
			w.r.remote = x.want(w.r.remote)
		case keyShared:
			w.member(x.filter, target{node: x.peer.id, qos: 2}, min(x.value, maxMembers))
		case keyMember:
			if where == nil {
				where = map[string]string{}
			}
			where[x.filter+"\x00"+x.client] = x.peer.id
		}
	})
	return where
}

// resolve asks who has subscribed: the index, the store and, for the program that embeds the server, mochi.
func (h *Hook) resolve(topic string) (*route, error) {
	stored, err := h.stored(topic)
	if err != nil {
		return nil, fmt.Errorf("who has subscribed to the topic: %w", err)
	}
	w := newResolver(h, topic)
	r := w.r
	h.index.match(topic, func(filter string, t target) { w.add(&r.targets, filter, t) })
	clear(w.at)
	where := w.remote(h.cluster, topic)
	for i := range stored {
		if sub, ok := decodeSubscription(&stored[i]); ok {
			t := makeTarget(nil, &sub)
			t.client = stored[i].Client
			if where != nil {
				t.node = where[sub.Filter+"\x00"+t.client]
			}
			w.add(&r.durable, sub.Filter, t)
		}
	}
	for i := range r.durable {
		r.atMostOnce = r.atMostOnce || r.durable[i].qos == 0
	}
	w.sort()
	if h.server.Options.InlineClient {
		r.inline = h.inlineSubscriptions(topic)
	}
	return r, nil
}

// merge makes one of two subscriptions of a client that match: it gets one copy [MQTT-3.3.4-2] [MQTT-3.3.4-4].
func (t *target) merge(o *target) {
	t.qos, t.ids = max(t.qos, o.qos), t.ids+o.ids
	t.noLocal, t.retain = t.noLocal && o.noLocal, t.retain || o.retain
}

// inlineSubscriptions are mochi's. Those that end with /# it finds for what is below a topic, not for the topic itself.
func (h *Hook) inlineSubscriptions(topic string) map[int]mqtt.InlineSubscription {
	list := map[int]mqtt.InlineSubscription{}
	for _, t := range []string{topic, topic + "/"} {
		for id, sub := range h.server.Topics.Subscribers(t).InlineSubscriptions {
			if link.Matches(sub.Filter, topic) {
				list[id] = sub
			}
		}
	}
	return list
}

// makeTarget is a subscription of a session that is not in the store, or of one that is, where s is nil.
func makeTarget(s *session, sub *packets.Subscription) target {
	t := target{s: s, ids: appendIDs(sub), qos: sub.Qos, noLocal: sub.NoLocal, retain: sub.RetainAsPublished}
	if s != nil {
		t.client = s.client
	}
	return t
}

// live is the session of a client that is connected, or about to be; nil: it is not.
func (h *Hook) live(client string) *session {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.sessions[client]
}

// pick chooses the member that gets the next message, in turn: one that is connected if there is one, one that has room
// rather than one that has not [MQTT-4.8.2-4].
func (g *group) pick(h *Hook) *target {
	first := g.turn.Add(1) - 1
	n := uint32(len(g.members))
	for _, want := range []fitness{ready, connected, offline} {
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
		if t.client != "" {
			s = h.live(t.client)
		}
		switch {
		case s != nil:
		case t.node != "" && h.cluster.bus.Up():
			return ready // as far as is known here
		case t.client == "":
			return none
		default:
			return offline
		}
	}
	return s.fit()
}
