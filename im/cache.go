package im

import (
	"context"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// generations is a map with a bound: two maps, the older of which is dropped when the younger is full. What is in use
// stays.
type generations[K comparable, V any] struct {
	max        int // entries of a generation
	young, old map[K]V
}

func (g *generations[K, V]) get(k K) (V, bool) {
	v, ok := g.young[k]
	if !ok {
		if v, ok = g.old[k]; ok {
			delete(g.old, k)
			g.put(k, v)
		}
	}
	return v, ok
}

func (g *generations[K, V]) put(k K, v V) {
	if _, ok := g.young[k]; !ok && (g.young == nil || len(g.young) >= g.max) {
		g.old, g.young = g.young, make(map[K]V)
	}
	g.young[k] = v
}

func (g *generations[K, V]) remove(k K) {
	delete(g.young, k)
	delete(g.old, k)
}

func (g *generations[K, V]) len() int { return len(g.young) + len(g.old) }

// cache remembers what was read from the store, that there is nothing, too. What is in it is what was durable when last
// something about it was committed: whoever commits a change has it forgotten before anybody is answered, on other nodes as well;
// since these may not hear of it, entries get old there. What many want at once is read once. It may be used concurrently.
type cache[K comparable, V any] struct {
	read func(context.Context, K) (V, error)
	name func(K) string // one for each key
	term func() uint64  // Config.Trusted: entries get cacheAge old, cacheAgeDown at 0, and none outlives its term; nil: they do not get old

	flight  singleflight.Group
	mu      sync.Mutex
	version uint64 // counts changes, so that what was read before one is not kept after it
	entries generations[K, entry[V]]
}

type entry[V any] struct {
	v     V
	since int64  // when it was read, Unix nanoseconds; 0 where entries do not get old
	term  uint64 // in which
}

func (c *cache[K, V]) init(max int, name func(K) string, read func(context.Context, K) (V, error)) {
	c.entries.max, c.name, c.read = max, name, read
}

// get returns the value of k, which is shared: it must not be modified.
func (c *cache[K, V]) get(ctx context.Context, k K) (V, error) {
	c.mu.Lock()
	x, ok := c.entries.get(k)
	version := c.version
	c.mu.Unlock()
	now, term, age := int64(0), uint64(0), cacheAge
	if c.term != nil {
		if now, term = time.Now().UnixNano(), c.term(); term == 0 {
			age = cacheAgeDown
		}
	}
	if ok && (c.term == nil || x.term == term && now-x.since < age.Nanoseconds()) {
		return x.v, nil
	}
	// What began before a change is not waited for after it.
	v, err, _ := c.flight.Do(strconv.FormatUint(version, 36)+"/"+c.name(k), func() (any, error) {
		v, err := c.read(ctx, k)
		if err != nil {
			return v, err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.version == version {
			c.entries.put(k, entry[V]{v, now, term})
		}
		return v, nil
	})
	return v.(V), err
}

// clear forgets everything.
func (c *cache[K, V]) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	c.entries.young, c.entries.old = nil, nil
}

// forget is called when what is behind the keys has changed.
func (c *cache[K, V]) forget(keys ...K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	for _, k := range keys {
		c.entries.remove(k)
	}
}

func (c *cache[K, V]) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries.len()
}

// The most entries that a generation of a cache has; there are two. An entry is some hundred bytes, and of a block list
// its length.
const (
	blockGeneration      = 32768 // users
	groupGeneration      = 32768 // groups
	memberGeneration     = 65536 // members of groups
	acquaintedGeneration = 32768 // pairs of users
)

// CacheEntries tells how many entries the engine's caches hold, by name: blocks (block lists; at most 65,536), groups (at
// most 65,536), members (of groups; at most 131,072) and acquainted (pairs of users; at most 65,536).
func (e *Engine) CacheEntries() map[string]func() int {
	return map[string]func() int{
		"blocks": e.blocks.len, "groups": e.groups.len, "members": e.members.len, "acquainted": e.acquainted.len,
	}
}

// How old an entry gets where there are other nodes: what they change is told, but that may be lost. While
// Config.Trusted says so it is, and an entry is there for floods alone.
const (
	cacheAge     = 30 * time.Second
	cacheAgeDown = time.Second
)

// ageCaches has entries get old.
func (p *peers) ageCaches(trusted func() uint64) {
	if trusted == nil {
		trusted = func() uint64 { return uint64(asInt(p.heard.Load())) }
	}
	p.e.blocks.term, p.e.groups.term, p.e.members.term = trusted, trusted, trusted
}

// clearCaches forgets everything, after changes may have been missed.
func (e *Engine) clearCaches() {
	e.blocks.clear()
	e.groups.clear()
	e.members.clear()
	e.acquainted.clear()
}

func (e *Engine) initCaches() {
	same := func(s string) string { return s }
	e.blocks.init(blockGeneration, same, e.readBlocks)
	e.groups.init(groupGeneration, same, e.readStanding)
	e.members.init(memberGeneration, func(k memberKey) string { return k.group + "/" + k.user }, e.readPart)
	e.acquainted.pairs.max = acquaintedGeneration
}
