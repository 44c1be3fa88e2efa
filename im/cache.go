package im

import (
	"context"
	"sync"
)

// cache remembers what was read from the store. It is bounded: two generations of maps, the older of which is dropped
// when the younger is full. What is in it is what was durable when last something about it was committed: whoever
// commits a change has it forgotten before anybody is answered. It may be used concurrently.
type cache[K comparable, V any] struct {
	read func(context.Context, K) (V, error)
	max  int // entries of a generation

	mu         sync.Mutex
	version    uint64 // counts changes, so that what was read before one is not kept after it
	young, old map[K]V
}

func (c *cache[K, V]) init(max int, read func(context.Context, K) (V, error)) {
	c.max, c.read = max, read
}

// get returns the value of k, which is shared: it must not be modified.
func (c *cache[K, V]) get(ctx context.Context, k K) (V, error) {
	c.mu.Lock()
	v, ok := c.young[k]
	if !ok {
		if v, ok = c.old[k]; ok {
			delete(c.old, k)
			c.put(k, v)
		}
	}
	version := c.version
	c.mu.Unlock()
	if ok {
		return v, nil
	}
	v, err := c.read(ctx, k)
	if err != nil {
		return v, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.version == version {
		c.put(k, v)
	}
	return v, nil
}

// put adds an entry; c.mu is held.
func (c *cache[K, V]) put(k K, v V) {
	if _, ok := c.young[k]; !ok && (c.young == nil || len(c.young) >= c.max) {
		c.old, c.young = c.young, make(map[K]V)
	}
	c.young[k] = v
}

// forget is called when what is behind the keys has changed.
func (c *cache[K, V]) forget(keys ...K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	for _, k := range keys {
		delete(c.young, k)
		delete(c.old, k)
	}
}

func (c *cache[K, V]) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.young) + len(c.old)
}

// The most entries that a generation of a cache has; there are two. An entry is some hundred bytes, and of a block list
// its length.
const (
	blockGeneration  = 32768 // users
	groupGeneration  = 32768 // groups
	memberGeneration = 65536 // members of groups
)

// CacheEntries tells how many entries the engine's caches hold, by name: blocks (block lists; at most 65,536), groups (at
// most 65,536) and members (of groups; at most 131,072).
func (e *Engine) CacheEntries() map[string]func() int {
	return map[string]func() int{"blocks": e.blocks.len, "groups": e.groups.len, "members": e.members.len}
}

func (e *Engine) initCaches() {
	e.blocks.init(blockGeneration, e.readBlocks)
	e.groups.init(groupGeneration, e.readStanding)
	e.members.init(memberGeneration, e.readPart)
}
