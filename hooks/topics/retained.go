package topics

import (
	"strings"
	"sync"
)

// retained holds the retained messages. mochi's own store of them is not used but for $SYS: it reads its tree without a
// lock while wildcard subscriptions are answered, copies all of it every second to look for expired messages, and
// misses that a/# matches a.
type retained struct {
	maxMessages, maxBytes int

	mu    sync.RWMutex
	root  node
	n     int
	bytes int
	due   int64 // when the first of them expires, or did; 0: none does
}

// node is one level of the topic tree.
type node struct {
	below map[string]*node
	m     *message
}

// cut splits off the first level.
func cut(topic string) (level, rest string, more bool) { return strings.Cut(topic, "/") }

// delete removes what is retained for a topic.
func (r *retained) delete(topic string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remove(&r.root, topic)
}

// set retains m, whose payload is not empty. It returns false when there is no room.
func (r *retained) set(m *message, now int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full(m) && r.due != 0 && r.due <= now {
		r.due = 0
		r.sweep(&r.root, now)
	}
	if r.full(m) {
		return false
	}
	n := &r.root
	for topic, more := m.topic, true; more; {
		var level string
		level, topic, more = cut(topic)
		next := n.below[level]
		if next == nil {
			if n.below == nil {
				n.below = map[string]*node{}
			}
			next = &node{}
			n.below[strings.Clone(level)] = next
		}
		n = next
	}
	r.forget(n)
	n.m = m
	r.note(m)
	r.n++
	r.bytes += m.size()
	return true
}

// note keeps due.
func (r *retained) note(m *message) {
	if m.expires != 0 && (r.due == 0 || m.expires < r.due) {
		r.due = m.expires
	}
}

// full reports whether m does not fit, be it in the place of an older one.
func (r *retained) full(m *message) bool {
	n, bytes := r.n, r.bytes
	if old := r.get(m.topic); old != nil {
		n--
		bytes -= old.size()
	}
	return n >= r.maxMessages || bytes+m.size() > r.maxBytes
}

func (r *retained) get(topic string) *message {
	n := &r.root
	for more := true; more; {
		var level string
		level, topic, more = cut(topic)
		if n = n.below[level]; n == nil {
			return nil
		}
	}
	return n.m
}

// forget takes the message out of n.
func (r *retained) forget(n *node) {
	if n.m != nil {
		r.n--
		r.bytes -= n.m.size()
		n.m = nil
	}
}

func (n *node) empty() bool { return n.m == nil && len(n.below) == 0 }

// remove forgets the message of a topic, and the levels that only it needed.
func (r *retained) remove(n *node, topic string) {
	level, rest, more := cut(topic)
	next := n.below[level]
	if next == nil {
		return
	}
	if more {
		r.remove(next, rest)
	} else {
		r.forget(next)
	}
	if next.empty() {
		delete(n.below, level)
	}
}

// sweep forgets what has expired.
func (r *retained) sweep(n *node, now int64) {
	for level, next := range n.below {
		r.sweep(next, now)
		if next.m != nil {
			if next.m.expired(now) {
				r.forget(next)
			} else {
				r.note(next.m)
			}
		}
		if next.empty() {
			delete(n.below, level)
		}
	}
}

// matching returns the retained messages that a filter matches, in no order but that of a topic's levels.
func (r *retained) matching(filter string, now int64) []*message {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var list []*message
	r.root.collect(filter, true, now, &list)
	return list
}

func (n *node) collect(filter string, top bool, now int64, list *[]*message) {
	level, rest, more := cut(filter)
	switch level {
	case "#":
		n.all(top, now, list)
	case "+":
		for name, next := range n.below {
			if !top || !strings.HasPrefix(name, "$") { // [MQTT-4.7.2-1]
				next.enter(rest, more, now, list)
			}
		}
	default:
		if next := n.below[level]; next != nil {
			next.enter(rest, more, now, list)
		}
	}
}

// enter goes on with what is left of a filter below the level of n.
func (n *node) enter(rest string, more bool, now int64, list *[]*message) {
	if more {
		n.collect(rest, false, now, list)
	} else {
		n.add(now, list)
	}
}

func (n *node) add(now int64, list *[]*message) {
	if n.m != nil && !n.m.expired(now) {
		*list = append(*list, n.m)
	}
}

// all collects n itself, since a/# matches a, and everything below.
func (n *node) all(top bool, now int64, list *[]*message) {
	n.add(now, list)
	for name, next := range n.below {
		if !top || !strings.HasPrefix(name, "$") {
			next.all(false, now, list)
		}
	}
}

func (r *retained) len() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.n
}
