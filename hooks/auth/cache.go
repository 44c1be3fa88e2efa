package auth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"
)

// cache remembers values by key, each for a time of its own. It holds max entries, and may be used by any number of
// goroutines.
type cache[K comparable, V any] struct {
	max int

	mu      sync.Mutex
	entries map[K]entry[V] // by mu
}

type entry[V any] struct {
	value V
	until time.Time
}

func newCache[K comparable, V any](max int) *cache[K, V] {
	return &cache[K, V]{max: max, entries: map[K]entry[V]{}}
}

func (c *cache[K, V]) get(key K) (value V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	if ok && !time.Now().Before(e.until) {
		delete(c.entries, key)
		return value, false
	}
	return e.value, ok
}

// add remembers a value for ttl; 0 is not at all. In a full cache it takes the place of what has expired or, failing
// that, of any other entry.
func (c *cache[K, V]) add(key K, value V, ttl time.Duration) {
	if ttl <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if len(c.entries) >= c.max {
		looked := 0
		for old, e := range c.entries {
			if looked++; !now.Before(e.until) || len(c.entries) >= c.max {
				delete(c.entries, old)
			}
			if looked == 16 { // a bounded look around, not a walk through it all
				break
			}
		}
	}
	c.entries[key] = entry[V]{value, now.Add(ttl)}
}

func (c *cache[K, V]) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.entries)
}

// tag stands for credentials in a cache. Without the key it was made with it tells nothing about them.
type tag [sha256.Size]byte

// tagger is a random key of this process.
type tagger []byte

func newTagger() tagger {
	key := make(tagger, sha256.Size)
	rand.Read(key) // never fails: the process ends instead
	return key
}

func (k tagger) tag(fields ...[]byte) (t tag) {
	mac := hmac.New(sha256.New, k)
	for _, field := range fields {
		mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(field))))
		mac.Write(field)
	}
	mac.Sum(t[:0])
	return t
}
