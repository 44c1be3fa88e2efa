package auth

import (
	"net/http"
	"time"
)

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

// roundTrip is a network made of a function.
type roundTrip func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// SetTransport replaces the network.
func (h *HTTP) SetTransport(f func(*http.Request) (*http.Response, error)) {
	h.client.Transport = roundTrip(f)
}

// Cached is the number of entries in the caches.
func (h *HTTP) Cached() (yes, no int) { return len(h.yes.entries), len(h.no.entries) }

// NewJWTOver is NewJWT over another network.
func NewJWTOver(o JWTOptions, network http.RoundTripper) (*JWT, error) {
	o.JWKS.network = network
	return NewJWT(o)
}

// Cached is the number of entries in the caches.
func (m *MySQL) Cached() (known, unknown int) { return len(m.known.entries), len(m.unknown.entries) }
