package auth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mqim/mqim/users"
)

const (
	cacheSize = 10_000 // entries of about 100 bytes
	cacheTime = 5 * time.Minute
)

// fallbackHash is verified against for unknown users where the file names nobody. Its password is nobody's business.
const fallbackHash = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// File authenticates by name and password against a users file.
//
// Verifying a password is heavy on purpose, so at most GOMAXPROCS run at a time and the rest wait their turn. What
// was right is remembered for a few minutes, so that a thousand devices that come back at once do not wait long.
// An unknown user costs the same time as a wrong password.
type File struct {
	path  string
	set   atomic.Pointer[users.Set]
	turns chan struct{} // one token per running verification
	cache *cache
	check func(hash string, password []byte) bool // users.Verify, but for tests
}

// NewFile reads the users file.
func NewFile(path string) (*File, error) {
	key := make([]byte, sha256.Size)
	rand.Read(key) // never fails: the process ends instead
	f := &File{
		path:  path,
		turns: make(chan struct{}, runtime.GOMAXPROCS(0)),
		cache: &cache{key: key, max: cacheSize, ttl: cacheTime, until: map[tag]time.Time{}},
		check: users.Verify,
	}
	return f, f.Reload()
}

// Reload reads the file again. On an error the old users stay. Connections that are up stay up.
func (f *File) Reload() error {
	set, err := users.Load(f.path)
	if err != nil {
		return err
	}
	f.set.Store(set)
	return nil
}

// Authenticate verifies the password.
func (f *File) Authenticate(ctx context.Context, cred Credentials) (string, time.Time, error) {
	if cred.Username == "" || len(cred.Password) == 0 {
		return "", time.Time{}, &Refusal{"user name or password missing"}
	}
	set := f.set.Load()
	hash, known := set.Hash(cred.Username)
	if !known {
		hash = f.decoy(set, cred.Username)
	}
	// The hash is part of the tag: a changed password or a removed user is not found in the cache any more.
	entry := f.cache.tag(cred.Username, hash, cred.Password)
	if known && f.cache.has(entry) {
		return cred.Username, time.Time{}, nil
	}
	select {
	case f.turns <- struct{}{}:
		defer func() { <-f.turns }()
	case <-ctx.Done():
		return "", time.Time{}, ctx.Err()
	}
	right := f.check(hash, cred.Password)
	switch {
	case !known:
		return "", time.Time{}, &Refusal{"unknown user"}
	case !right:
		return "", time.Time{}, &Refusal{"wrong password"}
	}
	f.cache.add(entry)
	return cred.Username, time.Time{}, nil
}

// decoy is the hash to spend time on for an unknown user: always the same one of the file's for a name, so that
// kinds and costs are spread among unknown names as they are among the known.
func (f *File) decoy(set *users.Set, user string) string {
	names := set.Names()
	if len(names) == 0 {
		return fallbackHash
	}
	t := f.cache.tag(user, "", nil)
	hash, _ := set.Hash(names[binary.BigEndian.Uint64(t[:8])%uint64(len(names))])
	return hash
}

// tag stands for a user, hash and password in the cache. Without the process's key it tells nothing about them.
type tag [sha256.Size]byte

// cache remembers which passwords were right.
type cache struct {
	key []byte // random, of this process
	max int    // entries
	ttl time.Duration

	mu    sync.Mutex
	until map[tag]time.Time // by mu
}

func (c *cache) tag(user, hash string, password []byte) (t tag) {
	mac := hmac.New(sha256.New, c.key)
	for _, field := range [][]byte{[]byte(user), []byte(hash), password} {
		mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(field))))
		mac.Write(field)
	}
	mac.Sum(t[:0])
	return t
}

func (c *cache) has(t tag) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	until, ok := c.until[t]
	if ok && !time.Now().Before(until) {
		delete(c.until, t)
		ok = false
	}
	return ok
}

// add remembers t. In a full cache it takes the place of what has expired or, failing that, of any other entry.
func (c *cache) add(t tag) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if len(c.until) >= c.max {
		looked := 0
		for old, until := range c.until {
			if looked++; !now.Before(until) || len(c.until) >= c.max {
				delete(c.until, old)
			}
			if looked == 16 { // a bounded look around, not a walk through it all
				break
			}
		}
	}
	c.until[t] = now.Add(c.ttl)
}
