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
	// counted, which may be nil, is told of each subscription that has come (+1) or gone (-1), with mu held. It reports
	// whether it is the first with its filter.
	counted func(s *session, filter string, n int) (first bool)

	mu  sync.RWMutex
	top level[subscription]
}

// level is what begins with the same levels of a filter.
type level[T any] struct {
	below map[string]*level[T]
	subs  map[*T]struct{}
}

type subscription struct {
	filter string // as in SUBSCRIBE
	target target
}

// add notes a subscription, in the place of one with the same filter. It reports what counted does.
func (x *index) add(s *session, sub *packets.Subscription) (first bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if s.left {
		return false
	}
	if s.filters == nil {
		s.filters = map[string]*subscription{}
	}
	if old := s.filters[sub.Filter]; old != nil {
		old.target = makeTarget(s, sub)
		return false
	}
	own := &subscription{filter: sub.Filter, target: makeTarget(s, sub)}
	s.filters[sub.Filter] = own
	_, rest := store.SplitShared(sub.Filter)
	x.top.insert(own, rest)
	return x.counted != nil && x.counted(s, sub.Filter, 1)
}

// insert puts something at a path below l.
func (l *level[T]) insert(what *T, path string) {
	at := l
	for more := true; more; {
		var name string
		name, path, more = strings.Cut(path, "/")
		next := at.below[name]
		if next == nil {
			if next = new(level[T]); at.below == nil {
				at.below = map[string]*level[T]{}
			}
			at.below[strings.Clone(name)] = next // what else is in the packet is not to be kept
		}
		at = next
	}
	if at.subs == nil {
		at.subs = map[*T]struct{}{}
	}
	at.subs[what] = struct{}{}
}

// remove forgets a subscription.
func (x *index) remove(s *session, filter string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if own := s.filters[filter]; own != nil {
		delete(s.filters, filter)
		x.forget(s, own)
	}
}

// leave forgets all subscriptions of a session, for good.
func (x *index) leave(s *session) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, own := range s.filters {
		x.forget(s, own)
	}
	s.filters, s.left = nil, true
}

func (x *index) forget(s *session, own *subscription) {
	_, rest := store.SplitShared(own.filter)
	x.top.remove(own, rest)
	if x.counted != nil {
		x.counted(s, own.filter, -1)
	}
}

// remove removes what is at a path below l, and levels that nothing is left of.
func (l *level[T]) remove(what *T, path string) {
	name, rest, more := strings.Cut(path, "/")
	next := l.below[name]
	if next == nil {
		return
	}
	if more {
		next.remove(what, rest)
	} else {
		delete(next.subs, what)
	}
	if len(next.subs)+len(next.below) == 0 {
		delete(l.below, name)
	}
}

// match calls f with the subscriptions that match a topic name.
func (x *index) match(topic string, f func(filter string, t target)) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	x.top.match(topic, strings.HasPrefix(topic, "$"), func(s *subscription) { f(s.filter, s.target) })
}

// match goes on with what is left of the topic. plain says that wildcards do not match its next level.
func (l *level[T]) match(topic string, plain bool, f func(*T)) {
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

func (l *level[T]) each(f func(*T)) {
	if l != nil {
		for what := range l.subs {
			f(what)
		}
	}
}
