package auth

import "time"

// Watched is the number of connections with an end.
func (h *Hook) Watched() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.timers)
}

// SetCheck replaces the verification of passwords.
func (f *File) SetCheck(check func(hash string, password []byte) bool) { f.passwords.check = check }

// SetCache sets the bounds of the cache.
func (f *File) SetCache(size int, ttl time.Duration) {
	f.passwords.right.max, f.passwords.ttl = size, ttl
}

// Cached is the number of entries in the cache.
func (f *File) Cached() int {
	c := f.passwords.right
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries)
}

// Turns is how many verifications may run at a time.
func (f *File) Turns() int { return cap(f.passwords.turns) }
