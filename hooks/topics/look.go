package topics

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/mqim/mqim/store"
)

// What no other node has told of is found in the store: what waits in queues of sessions that are connected here, clients
// that have gone to a node which could not say so, and the wills of nodes that have died.

const (
	willsEvery = 15 * time.Second
	// lookDown is how often the store is asked while the bus is down: then nothing else tells of what others have stored.
	lookDown = 5 * time.Second
)

// lookLoop is the goroutine that looks, until quit: every Options.Look, lookDown while the bus is down, and soon after it has
// been down.
func (c *cluster) lookLoop() {
	looks, wills := time.NewTimer(c.lookIn()), time.NewTicker(willsEvery)
	defer looks.Stop()
	defer wills.Stop()
	var l looking
	for {
		select {
		case <-c.quit:
			return
		case <-c.turned:
			l.down = true
			if c.bus.Up() {
				looks.Reset(rand.N(min(c.h.opt.Look, time.Second))) // not all nodes at the same moment
			} else {
				looks.Reset(c.lookIn())
			}
		case <-looks.C:
			if err := l.look(c); err != nil && !c.stopped() {
				c.h.log.Warn("what is new in the store cannot be read", "error", err)
			}
			looks.Reset(c.lookIn())
		case <-wills.C:
			if c.first() {
				c.h.adoptWills()
			}
		}
	}
}

// lookIn is the time between two looks.
func (c *cluster) lookIn() time.Duration {
	if c.bus.Up() {
		return c.h.opt.Look
	}
	return min(c.h.opt.Look, lookDown)
}

func (c *cluster) stopped() bool {
	select {
	case <-c.quit:
		return true
	default:
		return false
	}
}

// first reports whether this node is the one that sees to what nobody does: that with the lowest id. Two that do not see
// each other may both be; what they do bears that.
func (c *cluster) first() bool {
	peers := c.bus.Peers()
	return len(peers) == 0 || c.bus.ID() < peers[0].ID
}

// looking is what was seen last.
type looking struct {
	writes uint64
	seen   bool
	down   bool // the bus was
}

// look asks the store, where it has changed, page by page, spread over half the time until the next look.
func (l *looking) look(c *cluster) error {
	h := c.h
	h.routes.changed() // what matches remembers does not last
	down := !c.bus.Up()
	was := l.down || down
	l.down = down
	ctx := context.Background()
	writes, err := h.store.Writes(ctx)
	if err != nil || l.seen && writes == l.writes && !was {
		return err
	}
	list := c.connected()
	pause := c.lookIn() / 2 / time.Duration(1+len(list)/store.MaxLook)
	clients := make([]string, 0, min(len(list), store.MaxLook))
	var numbers []uint64
	for len(list) > 0 {
		page := list[:min(len(list), store.MaxLook)]
		list = list[len(page):]
		clients = clients[:0]
		for _, s := range page {
			clients = append(clients, s.client)
		}
		if numbers, err = h.store.Epochs(ctx, clients, numbers[:0]); err != nil {
			return err
		}
		for i, n := range numbers {
			if s := page[i]; s.epoch > 0 && n > s.epoch {
				h.opt.Registry.Superseded(s.client, s.epoch)
			}
		}
		if numbers, err = h.store.QueueHeads(ctx, clients, numbers[:0]); err != nil {
			return err
		}
		for i, n := range numbers {
			page[i].moved(n)
		}
		if len(list) > 0 {
			select {
			case <-c.quit:
				return nil
			case <-time.After(pause):
			}
		}
	}
	l.writes, l.seen = writes, true
	return nil
}

// connected lists the connected sessions that are stored.
func (c *cluster) connected() (list []*session) {
	h := c.h
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, s := range h.sessions {
		if s.durable {
			list = append(list, s)
		}
	}
	return list
}

// moved has what is to come read, where the store has more than is known.
func (s *session) moved(head uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if head > s.head {
		s.head = head
		s.load()
	}
}
