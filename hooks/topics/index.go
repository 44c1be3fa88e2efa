package topics

import (
	"strings"
	"sync"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/store"
)

// index finds who subscribes to a topic, among the sessions that end with their connection; the others the store finds.
// mochi has a trie of its own for that, which overlooks that a/+/# matches a/b, lets wildcards of shared subscriptions
// match $SYS, copies every map that it passes, and merges what a client subscribes to before No Local is looked at.
type index struct {
	mu  sync.RWMutex
	top level
}

// level is what begins with the same levels of a filter.
type level struct {
	below map[string]*level
	subs  map[*subscription]struct{}
}

type subscription struct {
	filter string // as in SUBSCRIBE
	target target
}

// add notes a subscription, in the place of one with the same filter.
func (x *index) add(s *session, sub *packets.Subscription) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if s.left {
		return
	}
	if s.filters == nil {
		s.filters = map[string]*subscription{}
	}
	if old := s.filters[sub.Filter]; old != nil {
		old.target = makeTarget(s, sub)
		return
	}
	own := &subscription{filter: sub.Filter, target: makeTarget(s, sub)}
	s.filters[sub.Filter] = own
	_, rest := store.SplitShared(sub.Filter)
	at := &x.top
	for more := true; more; {
		var name string
		name, rest, more = strings.Cut(rest, "/")
		next := at.below[name]
		if next == nil {
			if next = new(level); at.below == nil {
				at.below = map[string]*level{}
			}
			at.below[strings.Clone(name)] = next // what else is in the packet is not to be kept
		}
		at = next
	}
	if at.subs == nil {
		at.subs = map[*subscription]struct{}{}
	}
	at.subs[own] = struct{}{}
}

// remove forgets a subscription.
func (x *index) remove(s *session, filter string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if own := s.filters[filter]; own != nil {
		delete(s.filters, filter)
		_, rest := store.SplitShared(filter)
		x.top.remove(own, rest)
	}
}

// leave forgets all subscriptions of a session, for good.
func (x *index) leave(s *session) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for filter, own := range s.filters {
		_, rest := store.SplitShared(filter)
		x.top.remove(own, rest)
	}
	s.filters, s.left = nil, true
}

// remove removes what is at a path below l, and levels that nothing is left of.
func (l *level) remove(who *subscription, path string) {
	name, rest, more := strings.Cut(path, "/")
	next := l.below[name]
	if next == nil {
		return
	}
	if more {
		next.remove(who, rest)
	} else {
		delete(next.subs, who)
	}
	if len(next.subs)+len(next.below) == 0 {
		delete(l.below, name)
	}
}

// match calls f with the subscriptions that match a topic name.
func (x *index) match(topic string, f func(filter string, t target)) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	x.top.match(topic, strings.HasPrefix(topic, "$"), f)
}

// match goes on with what is left of the topic. plain says that wildcards do not match its next level.
func (l *level) match(topic string, plain bool, f func(filter string, t target)) {
	name, rest, more := strings.Cut(topic, "/")
	names := []string{name, "+"}
	if plain { // [MQTT-4.7.2-1]
		names = names[:1]
	} else {
		l.below["#"].each(f)
	}
	for _, name := range names {
		next := l.below[name]
		switch {
		case next == nil:
		case more:
			next.match(rest, false, f)
		default:
			next.each(f)
			next.below["#"].each(f) // a/# matches a [MQTT-4.7.1-2]
		}
	}
}

func (l *level) each(f func(filter string, t target)) {
	if l != nil {
		for sub := range l.subs {
			f(sub.filter, sub.target)
		}
	}
}
