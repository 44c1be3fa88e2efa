// Package bustest connects nodes within a process, for tests that want several of them, and to lose what they say.
package bustest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/mqim/mqim/bus"
)

// Hub is what the nodes are connected by. Its methods may be called concurrently.
type Hub struct {
	mu    sync.Mutex
	nodes map[string]*Node
	made  int
	drop  func(to string, m *bus.Message) bool
}

// Node is a node's connection.
type Node struct {
	hub      *Hub
	id, name string

	// Guarded by hub.mu.
	handlers map[byte]func(*bus.Message)
	changed  []func()
	subs     map[bus.Channel]int
	info     []byte
	up       bool
	left     bool
	inbox    []func()
	down     chan struct{} // closed when the node goes down

	wake chan struct{}
	done chan struct{}
}

var _ bus.Bus = (*Node)(nil)

// NewHub returns a hub without nodes.
func NewHub() *Hub { return &Hub{nodes: map[string]*Node{}} }

// Drop has f decide which messages and answers are lost; nil: none are. f is called with the hub locked.
func (h *Hub) Drop(f func(to string, m *bus.Message) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop = f
}

// Join adds a node. Others see it at once.
func (h *Hub) Join(name string) *Node {
	h.mu.Lock()
	h.made++
	n := &Node{
		hub: h, id: fmt.Sprintf("%s-%d", name, h.made), name: name, up: true, down: make(chan struct{}),
		handlers: map[byte]func(*bus.Message){}, subs: map[bus.Channel]int{},
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	n.subs[bus.Channel{Kind: bus.All}] = 1
	n.subs[bus.Channel{Kind: bus.Node, Name: n.id}] = 1
	h.nodes[n.id] = n
	h.change()
	h.mu.Unlock()
	go n.run()
	return n
}

// Leave takes the node off the hub, as if its process had died.
func (n *Node) Leave() {
	h := n.hub
	h.mu.Lock()
	if n.left {
		h.mu.Unlock()
		return
	}
	n.left = true
	n.setUp(false)
	delete(h.nodes, n.id)
	h.change()
	h.mu.Unlock()
	n.poke()
	<-n.done
}

// Cut takes the node off the bus, or puts it back. Meanwhile it hears nothing, is not heard, and knows that: OnChange's
// functions have seen it when Cut returns, which they must not call.
func (n *Node) Cut(cut bool) {
	n.hub.mu.Lock()
	if n.up != cut {
		n.hub.mu.Unlock()
		return
	}
	n.setUp(!cut)
	n.hub.change()
	seen := make(chan struct{})
	n.put(func() { close(seen) })
	n.hub.mu.Unlock()
	select {
	case <-seen:
	case <-n.done:
	}
}

// setUp has the node come up or go down; mu is held.
func (n *Node) setUp(up bool) {
	switch {
	case n.up && !up:
		close(n.down)
	case !n.up && up:
		n.down = make(chan struct{})
	}
	n.up = up
}

// change tells every node that something has changed; mu is held.
func (h *Hub) change() {
	for _, n := range h.nodes {
		for _, f := range n.changed {
			n.put(f)
		}
	}
}

// put has f called on the node's goroutine; mu is held.
func (n *Node) put(f func()) {
	n.inbox = append(n.inbox, f)
	n.poke()
}

func (n *Node) poke() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *Node) run() {
	defer close(n.done)
	for range n.wake {
		n.hub.mu.Lock()
		list, left := n.inbox, n.left
		n.inbox = nil
		n.hub.mu.Unlock()
		if left {
			return
		}
		for _, f := range list {
			f()
		}
	}
}

// ID implements bus.Bus.
func (n *Node) ID() string { return n.id }

// Handle implements bus.Bus.
func (n *Node) Handle(topic byte, f func(*bus.Message)) {
	n.hub.mu.Lock()
	defer n.hub.mu.Unlock()
	n.handlers[topic] = f
}

// Subscribe implements bus.Bus.
func (n *Node) Subscribe(_ context.Context, c bus.Channel) error {
	n.hub.mu.Lock()
	defer n.hub.mu.Unlock()
	n.subs[c]++
	if !n.up {
		return bus.ErrDown
	}
	return nil
}

// Unsubscribe implements bus.Bus.
func (n *Node) Unsubscribe(c bus.Channel) {
	n.hub.mu.Lock()
	defer n.hub.mu.Unlock()
	if n.subs[c]--; n.subs[c] <= 0 {
		delete(n.subs, c)
	}
}

// Subscribed tells how often the node is subscribed to a channel.
func (n *Node) Subscribed(c bus.Channel) int {
	n.hub.mu.Lock()
	defer n.hub.mu.Unlock()
	return n.subs[c]
}

// others are the nodes that hear a channel, but n, in the order of their ids; mu is held.
func (n *Node) others(c bus.Channel) (list []*Node) {
	for _, id := range slices.Sorted(maps.Keys(n.hub.nodes)) {
		if o := n.hub.nodes[id]; o != n && o.up && o.subs[c] > 0 {
			list = append(list, o)
		}
	}
	return list
}

// hand gives a message to a node, unless it is lost; mu is held.
func (n *Node) hand(to *Node, m *bus.Message) {
	if n.hub.drop != nil && n.hub.drop(to.id, m) {
		return
	}
	if f := to.handlers[m.Topic]; f != nil {
		to.put(func() { f(m) })
	}
}

// Publish implements bus.Bus.
func (n *Node) Publish(c bus.Channel, topic byte, payload []byte, done func(int)) {
	n.hub.mu.Lock()
	defer n.hub.mu.Unlock()
	count := -1
	if n.up {
		others := n.others(c)
		for _, o := range others {
			n.hand(o, &bus.Message{From: n.id, Channel: c, Topic: topic, Payload: payload})
		}
		count = len(others)
	}
	if done != nil {
		n.put(func() { done(count) })
	}
}

// Ask implements bus.Bus.
func (n *Node) Ask(ctx context.Context, c bus.Channel, topic byte, payload []byte) ([]bus.Answer, error) {
	n.hub.mu.Lock()
	if !n.up {
		n.hub.mu.Unlock()
		return nil, bus.ErrDown
	}
	others, down := n.others(c), n.down
	got := make(chan bus.Answer, len(others))
	for _, o := range others {
		m := &bus.Message{From: n.id, Channel: c, Topic: topic, Payload: payload}
		m.Answer = func(b []byte) {
			n.hub.mu.Lock()
			defer n.hub.mu.Unlock()
			back := &bus.Message{From: o.id, Channel: bus.Channel{Kind: bus.Node, Name: n.id}, Topic: topic, Payload: b}
			if o.up && n.up && (n.hub.drop == nil || !n.hub.drop(n.id, back)) {
				got <- bus.Answer{From: o.id, Payload: b}
			}
		}
		n.hand(o, m)
	}
	n.hub.mu.Unlock()
	var list []bus.Answer
	for range others {
		select {
		case a := <-got:
			list = append(list, a)
		case <-down:
			return list, bus.ErrDown
		case <-ctx.Done():
			return list, bus.ErrIncomplete
		}
	}
	return list, nil
}

// Count implements bus.Bus.
func (n *Node) Count(_ context.Context, list []bus.Channel) ([]int, error) {
	n.hub.mu.Lock()
	defer n.hub.mu.Unlock()
	if !n.up {
		return nil, bus.ErrDown
	}
	counts := make([]int, len(list))
	for i, c := range list {
		counts[i] = len(n.others(c))
	}
	return counts, nil
}

// Announce implements bus.Bus.
func (n *Node) Announce(info []byte) {
	n.hub.mu.Lock()
	defer n.hub.mu.Unlock()
	n.info = info
}

// Peers implements bus.Bus.
func (n *Node) Peers() (list []bus.Peer) {
	n.hub.mu.Lock()
	defer n.hub.mu.Unlock()
	if !n.up {
		return nil
	}
	for _, o := range n.hub.nodes {
		if o != n && o.up {
			list = append(list, bus.Peer{ID: o.id, Name: o.name, Info: o.info})
		}
	}
	slices.SortFunc(list, func(a, b bus.Peer) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// Up implements bus.Bus.
func (n *Node) Up() bool {
	n.hub.mu.Lock()
	defer n.hub.mu.Unlock()
	return n.up
}

// OnChange implements bus.Bus.
func (n *Node) OnChange(f func()) {
	n.hub.mu.Lock()
	defer n.hub.mu.Unlock()
	n.changed = append(n.changed, f)
}
