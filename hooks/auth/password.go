package auth

import (
	"context"
	"runtime"
	"time"

	"github.com/mqim/mqim/users"
)

const (
	rightSize = 10_000 // entries of about 100 bytes
	rightTime = 5 * time.Minute
)

// fallbackHash is verified against for unknown users where no other hash is at hand. Its password is nobody's business.
const fallbackHash = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// passwords verifies passwords against hashes, wherever these come from.
//
// Verifying is heavy on purpose, so at most GOMAXPROCS run at a time and the rest wait their turn. What was right is
// remembered for a few minutes, so that a thousand devices that come back at once do not wait long. An unknown user
// costs the same time as a wrong password.
type passwords struct {
	turns chan struct{} // one token per running verification
	key   tagger
	right *cache[tag, struct{}] // which passwords were right
	ttl   time.Duration
	check func(hash string, password []byte) bool // users.Verify, but for tests
}

func newPasswords() *passwords {
	return &passwords{
		turns: make(chan struct{}, runtime.GOMAXPROCS(0)),
		key:   newTagger(),
		right: newCache[tag, struct{}](rightSize),
		ttl:   rightTime,
		check: users.Verify,
	}
}

// verify returns nil for the right password, a *Refusal for a wrong one, and for a user that is not known whatever the
// hash, or the error of a ctx that ended before it was its turn.
func (p *passwords) verify(ctx context.Context, user, hash string, known bool, password []byte) error {
	// The hash is part of the tag: a changed password or a removed user is not found in the cache any more.
	t := p.key.tag([]byte(user), []byte(hash), password)
	if known {
		if _, ok := p.right.get(t); ok {
			return nil
		}
	}
	select {
	case p.turns <- struct{}{}:
		defer func() { <-p.turns }()
	case <-ctx.Done():
		return ctx.Err()
	}
	right := p.check(hash, password)
	switch {
	case !known:
		return &Refusal{"unknown user"}
	case !right:
		return &Refusal{"wrong password"}
	}
	p.right.add(t, struct{}{}, p.ttl)
	return nil
}
