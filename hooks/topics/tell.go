package topics

import (
	"context"
	"slices"
	"time"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/store"
)

// What this node tells the others of its clients; peers.go has what they tell.

// counted notes that a subscription of a connected session has come or gone; see index.counted.
func (c *cluster) counted(s *session, filter string, n int) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	group, _ := store.SplitShared(filter)
	switch {
	case group == "":
		i := c.plain[filter]
		if i == nil {
			i = new(interest)
			c.plain[filter] = i
		}
		was := i.bits()
		if s.durable {
			i.durable += n
		} else {
			i.clean += n
		}
		is := i.bits()
		if is == 0 {
			delete(c.plain, filter)
		}
		if is == was {
			return false
		}
		c.set(string(keyPlain)+filter, is)
		return n > 0
	case s.durable:
		c.set(memberKey(filter, s.client), uint64(max(0, n)))
		return n > 0
	}
	key := string(keyShared) + filter
	c.set(key, uint64(int64(c.own[key])+int64(n)))
	return n > 0
}

func memberKey(filter, client string) string { return string(keyMember) + filter + "\x00" + client }

// set notes what the others are to know; mu is held.
func (c *cluster) set(key string, value uint64) {
	if value == 0 {
		delete(c.own, key)
	} else {
		c.own[key] = value
	}
	c.pending[key] = value
	c.wake()
}

// happened notes what the others are to be told once, and returns when with.
func (c *cluster) happened(kind byte, names ...string) *told {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		c.events[string(kind)+name] = struct{}{}
	}
	c.wake()
	return c.batch
}

// stored tells that stored subscriptions have changed.
func (c *cluster) stored(subs []store.Subscription) *told {
	names := make([]string, len(subs))
	for i := range subs {
		names[i] = subs[i].Filter
	}
	return c.happened(keyStored, names...)
}

// wait waits until the others know of everything so far. It gives up after changesWait.
func (c *cluster) wait() {
	if !c.bus.Up() || len(c.bus.Peers()) == 0 {
		return
	}
	c.mu.Lock()
	b := c.flying
	if len(c.pending)+len(c.events) > 0 {
		b = c.batch
	}
	c.mu.Unlock()
	if b == nil {
		return
	}
	c.await(b)
}

// await waits until the others know, and reports whether they do. It gives up after changesWait.
func (c *cluster) await(b *told) bool {
	t := time.NewTimer(changesWait)
	defer t.Stop()
	select {
	case <-b.done:
		return b.heard
	case <-t.C:
	case <-c.quit:
	}
	return false
}

// reveal waits until no node goes by what the store said before subscriptions were stored: they have been told, or do not
// trust what they remember any more (bus.Trust), which is so when this node has been cut off for unheard. It may not know of
// that yet: then it was cut off when they were first told in vain, at the latest. Clients wait so for subscriptions that
// are new, on a node that has just been cut off, or while another one is dying.
func (c *cluster) reveal(subs []store.Subscription, b *told) {
	until := time.Now().Add(unheard)
	for {
		up := c.bus.Up()
		if up && (len(c.bus.Peers()) == 0 || c.await(b)) {
			return
		}
		c.pmu.RLock()
		if early := c.fell.Add(unheard); !up && c.down && early.Before(until) {
			until = early
		}
		alone := len(c.peers) == 0
		c.pmu.RUnlock()
		if alone || !time.Now().Before(until) {
			return
		}
		select {
		case <-time.After(revealRetry):
		case <-c.quit:
			return
		}
		b = c.stored(subs)
	}
}

// run is the goroutine that tells the others, until quit.
func (c *cluster) run() {
	t := time.NewTicker(versionEvery)
	defer t.Stop()
	c.reconcile()
	for {
		select {
		case <-c.quit:
			return
		case <-c.poke:
			c.reconcile()
			c.tell()
		case <-t.C:
			c.reconcile()
			if c.bus.Up() && len(c.bus.Peers()) > 0 {
				c.mu.Lock()
				v := c.version
				c.mu.Unlock()
				c.bus.Publish(bus.Channel{Kind: bus.All}, busTopic, appendUint([]byte{sayVersion}, v), nil)
			}
		}
	}
}

// tell tells the others what has changed.
func (c *cluster) tell() {
	c.mu.Lock()
	list := make([]change, 0, len(c.pending)+len(c.events))
	for key, value := range c.pending {
		list = append(list, change{key, value})
	}
	for key := range c.events {
		list = append(list, change{key, 0})
	}
	if len(list) == 0 {
		c.mu.Unlock()
		return
	}
	clear(c.pending)
	clear(c.events)
	b := c.batch
	c.flying, c.batch = b, newTold()
	first, heard := c.version+1, true
	c.version += uint64((len(list) + changesPage - 1) / changesPage)
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), changesWait)
	defer cancel()
	for part := range slices.Chunk(list, changesPage) {
		switch up := c.bus.Up(); {
		case !up: // the number tells that something was missed
			heard = false
		case len(c.bus.Peers()) > 0:
			_, err := c.bus.Ask(ctx, bus.Channel{Kind: bus.All}, busTopic, encodeChanges(first, part))
			heard = heard && err == nil
		}
		first++
	}
	c.mu.Lock()
	c.flying, b.heard = nil, heard
	c.mu.Unlock()
	close(b.done)
}
