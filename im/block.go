package im

import (
	"context"
	"sync"
)

// blockCache remembers block lists, since each message asks for its recipient's. It is bounded: two generations of
// maps, the older of which is dropped when the younger is full.
type blockCache struct {
	mu      sync.Mutex
	version uint64 // counts changes, so that a list read before one is not kept after it
	young   map[string]map[string]bool
	old     map[string]map[string]bool
}

const blockGeneration = 32768 // users

// blocked reports whether user has blocked peer.
func (e *Engine) blocked(ctx context.Context, user, peer string) (bool, error) {
	c := &e.blocks
	c.mu.Lock()
	set, ok := c.young[user]
	if !ok {
		if set, ok = c.old[user]; ok {
			c.put(user, set)
		}
	}
	version := c.version
	c.mu.Unlock()
	if ok {
		return set[peer], nil
	}
	list, err := e.store.Blocks(ctx, user)
	if err != nil {
		return false, err
	}
	if len(list) > 0 {
		set = make(map[string]bool, len(list))
		for _, p := range list {
			set[p] = true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.version == version {
		c.put(user, set)
	}
	return set[peer], nil
}

func (c *blockCache) put(user string, set map[string]bool) {
	if c.young == nil || len(c.young) >= blockGeneration {
		c.old, c.young = c.young, make(map[string]map[string]bool)
	}
	c.young[user] = set
}

// forget is called when user's list has changed.
func (c *blockCache) forget(user string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	delete(c.young, user)
	delete(c.old, user)
}
