package auth

import "time"

// Watched is the number of connections with an end.
func (h *Hook) Watched() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.timers)
}

// SetCheck replaces the verification of passwords.
func (f *File) SetCheck(check func(hash string, password []byte) bool) { f.check = check }

// SetCache sets the bounds of the cache.
func (f *File) SetCache(size int, ttl time.Duration) { f.cache.max, f.cache.ttl = size, ttl }

// Cached is the number of entries in the cache.
func (f *File) Cached() int {
	f.cache.mu.Lock()
	defer f.cache.mu.Unlock()
	return len(f.cache.until)
}

// Turns is how many verifications may run at a time.
func (f *File) Turns() int { return cap(f.turns) }
