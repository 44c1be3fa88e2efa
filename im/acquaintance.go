package im

import (
	"context"
	"sync"
	"time"

	"github.com/mqim/mqim/store"
)

const (
	// acquaintedFor is how long it is remembered that two users share a conversation. That they do not is looked up each
	// time, so that they see each other from their first message on.
	acquaintedFor = 30 * time.Second

	// maxGroups is how many of a user's groups are looked at, by id, for those that are shared.
	maxGroups      = 1000
	membershipPage = 250
)

// acquaintedCache remembers who shares a conversation with whom. It may be used concurrently.
type acquaintedCache struct {
	mu    sync.Mutex
	pairs generations[[2]string, int64] // the lesser first → until when, Unix milliseconds
}

func (c *acquaintedCache) get(pair [2]string, now int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	until, ok := c.pairs.get(pair)
	return ok && until > now
}

func (c *acquaintedCache) put(pair [2]string, until int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pairs.put(pair, until)
}

func (c *acquaintedCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pairs.young, c.pairs.old = nil, nil
}

func (c *acquaintedCache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pairs.len()
}

// acquaintances answers who may see whether a user is there, for many others in a row. It belongs to one goroutine.
type acquaintances struct {
	e      *Engine
	user   string
	groups map[string]bool // that the user is in; nil: not read yet
}

func (e *Engine) acquaintances(user string) *acquaintances { return &acquaintances{e: e, user: user} }

// see reports whether the user and other may see each other come and go: they share a conversation, and neither has
// blocked the other.
func (a *acquaintances) see(ctx context.Context, other string) (bool, error) {
	if other == a.user {
		return true, nil
	}
	for _, pair := range [][2]string{{a.user, other}, {other, a.user}} {
		if blocked, err := a.e.blocked(ctx, pair[0], pair[1]); blocked || err != nil {
			return false, err
		}
	}
	pair := [2]string{min(a.user, other), max(a.user, other)}
	now := time.Now()
	if a.e.acquainted.get(pair, now.UnixMilli()) {
		return true, nil
	}
	yes, err := a.share(ctx, other)
	if yes {
		a.e.acquainted.put(pair, now.Add(acquaintedFor).UnixMilli())
	}
	return yes, err
}

// share reports whether they have exchanged a message or are in a group together.
func (a *acquaintances) share(ctx context.Context, other string) (bool, error) {
	st, err := a.e.store.Conversation(ctx, a.user, store.Direct(a.user, other))
	if err != nil || st.Head > 0 {
		return err == nil, err
	}
	if a.groups == nil {
		a.groups = map[string]bool{}
		if _, err := a.e.eachGroup(ctx, a.user, maxGroups, func(id string) (bool, error) {
			a.groups[id] = true
			return false, nil
		}); err != nil {
			a.groups = nil
			return false, err
		}
	}
	if len(a.groups) == 0 {
		return false, nil
	}
	return a.e.eachGroup(ctx, other, maxGroups, func(id string) (bool, error) {
		if !a.groups[id] {
			return false, nil
		}
		g, err := a.e.groups.get(ctx, id)
		if err != nil || g.lives {
			return err == nil, err
		}
		delete(a.groups, id)
		return false, nil
	})
}

// eachGroup calls f with the groups that user is in, or was when they ended, by id, until it returns true; it reports
// whether f did. Of the groups that the user is or was in about as many as most are looked at.
func (e *Engine) eachGroup(
	ctx context.Context, user string, most int, f func(id string) (stop bool, err error),
) (bool, error) {
	after := ""
	for seen := 0; seen < most; seen += membershipPage {
		list, next, err := e.store.Memberships(ctx, user, after, membershipPage)
		if err != nil {
			return false, err
		}
		for _, m := range list {
			if !m.Current {
				continue
			}
			if stop, err := f(m.Group); stop || err != nil {
				return stop, err
			}
		}
		if after = next; after == "" {
			break
		}
	}
	return false, nil
}
