package im

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/mqim/mqim/bus"
)

// presence tells watchers who comes and goes. A user who is back within the grace was never away. They are told from a
// goroutine of its own: however many watch, nobody waits for it. Of a user who comes and goes again before his turn, the
// state that he is in then is told.
type presence struct {
	e       *Engine
	mu      sync.Mutex
	watched map[string]*watchers
	leaving map[string]*time.Timer // users whose last device has gone a moment ago
	news    map[string]bool        // users of whom there is something to tell; all of them are watched. False: only if it is another than was told
	order   []string               // the same in the order of their turns
	wake    chan struct{}
	stopped bool
}

// watchers are the connected devices that watch a user.
type watchers struct {
	by     map[*Device]bool
	online bool          // what was told last
	sub    *subscription // nil: there is no bus
}

const maxWatched = 1000 // users a device may watch

func (p *presence) init(e *Engine) {
	p.e = e
	p.watched = map[string]*watchers{}
	p.leaving = map[string]*time.Timer{}
	p.news = map[string]bool{}
	p.wake = make(chan struct{}, 1)
}

// watch adds users to what a device watches; it returns false when that would be too many. The caller begins the
// subscriptions that it returns, before it looks who is there.
func (p *presence) watch(d *Device, users []string) (subs []*subscription, ok bool) {
	d.u.mu.Lock()
	defer d.u.mu.Unlock()
	if d.closed {
		return nil, true
	}
	fresh := 0
	for _, u := range users {
		if !d.watching[u] {
			fresh++
		}
	}
	if len(d.watching)+fresh > maxWatched {
		return nil, false
	}
	if d.watching == nil {
		d.watching = map[string]bool{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range users {
		d.watching[u] = true
		w := p.watched[u]
		if w == nil {
			w = &watchers{by: map[*Device]bool{}}
			p.watched[u] = w
			if p.e.peers != nil {
				w.sub = p.e.peers.subscription(bus.Presence, u)
			}
		}
		if w.sub != nil {
			subs = append(subs, w.sub)
		}
		w.by[d] = true
	}
	return subs, true
}

// forget takes users from what a device watches.
func (p *presence) forget(d *Device, users []string) {
	set := map[string]bool{}
	d.u.mu.Lock()
	for _, u := range users {
		delete(d.watching, u)
		set[u] = true
	}
	d.u.mu.Unlock()
	p.unwatch(d, set)
}

func (p *presence) unwatch(d *Device, users map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for u := range users {
		w := p.watched[u]
		if w == nil {
			continue
		}
		delete(w.by, d)
		if len(w.by) == 0 {
			delete(p.watched, u)
			if w.sub != nil {
				p.e.peers.end(w.sub)
			}
		}
	}
}

// online is called when a user's first device has connected.
func (p *presence) online(user string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t, was := p.leaving[user]; was {
		t.Stop()
		delete(p.leaving, user)
		return
	}
	p.tell(user)
	p.spread(user)
}

// offline is called when a user's last device has gone.
func (p *presence) offline(user string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	others := p.e.peers != nil && p.e.peers.some.Load()
	if p.stopped || p.watched[user] == nil && !others || p.leaving[user] != nil {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(p.e.cfg.Load().PresenceGrace, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.leaving[user] == t { // not back, nor gone again, in the meantime
			delete(p.leaving, user)
			p.tell(user)
			p.spread(user)
		}
	})
	p.leaving[user] = t
}

func (p *presence) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	for _, t := range p.leaving {
		t.Stop()
	}
	clear(p.leaving)
}

// tell has the user's presence sent to those who watch; p.mu is held.
func (p *presence) tell(user string) {
	if p.watched[user] == nil {
		return
	}
	p.note(user, true)
}

func (p *presence) note(user string, sure bool) {
	if was, ok := p.news[user]; ok {
		p.news[user] = was || sure
		return
	}
	p.news[user] = sure
	p.order = append(p.order, user)
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *presence) loop() {
	for {
		select {
		case <-p.e.ctx.Done():
			return
		case <-p.wake:
		}
		p.mu.Lock()
		order := p.order
		p.order = nil
		p.mu.Unlock()
		for part := range slices.Chunk(order, presencePart) {
			p.mu.Lock()
			sure := make([]bool, len(part))
			for i, user := range part {
				sure[i] = p.news[user]
				delete(p.news, user) // what happens from here on is news again
			}
			p.mu.Unlock()
			for i, st := range p.e.presenceOf(p.e.ctx, part) {
				p.send(st, sure[i])
			}
		}
	}
}

// presencePart is of how many users the other nodes are asked at once.
const presencePart = 64

// spread has the nodes whose devices watch the user look who is there; p.mu is held.
func (p *presence) spread(user string) {
	if peers := p.e.peers; peers != nil && peers.some.Load() {
		peers.publish(bus.Presence, user, []byte{sayPresence}, nil)
	}
}

// heard is told that a user has come to another node, or gone.
func (p *presence) heard(user string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tell(user)
}

// recheck looks anew at those who were last told to be online, or at all, and tells what has changed: their node may be
// gone.
func (p *presence) recheck(all bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for user, w := range p.watched {
		if all || w.online {
			p.note(user, false)
		}
	}
}

// send sends a user's presence to those who watch and may see it at this moment; not sure: if it is another than was told.
func (p *presence) send(st presenceState, sure bool) {
	var list []*Device
	p.mu.Lock()
	if w := p.watched[st.user]; w != nil && (sure || w.online != st.online) {
		w.online = st.online
		list = slices.Collect(maps.Keys(w.by))
	}
	p.mu.Unlock()
	his := p.e.acquaintances(st.user)
	for _, d := range list {
		if p.e.ctx.Err() != nil {
			return
		}
		if !d.wants(Events) {
			continue
		}
		switch visible, err := his.see(p.e.ctx, d.u.name); {
		case err != nil:
			p.e.failed("presence", err)
			p.e.m.Dropped("notification")
			continue
		case !visible:
			continue
		}
		b := append([]byte(nil), `{"type":"presence"`...)
		b = append(st.append(append(b, ',')), '}')
		if d.notify(Events, b) {
			d.link.Kick()
		}
	}
}

type presenceState struct {
	user    string
	online  bool
	seen    int64
	devices int
}

// presenceOf is the presence of users now, on all nodes that answer in time.
func (e *Engine) presenceOf(ctx context.Context, names []string) []presenceState {
	list := make([]presenceState, len(names))
	var others []presentState
	if e.peers != nil {
		others = e.peers.who(ctx, names)
	}
	for i, name := range names {
		st := &list[i]
		st.user = name
		if u := e.user(name); u != nil {
			u.mu.Lock()
			st.devices, st.seen = len(u.devices), u.seen
			u.mu.Unlock()
		}
		if others != nil {
			st.devices += len(others[i].devices)
			st.seen = max(st.seen, others[i].seen)
		}
		if st.online = st.devices > 0; !st.online && (st.seen == 0 || e.peers != nil) {
			if rec, err := e.store.User(ctx, name); err == nil {
				st.seen = max(st.seen, rec.LastSeen)
			}
		}
	}
	return list
}

// believe notes what is told of users.
func (p *presence) believe(list []presenceState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range list {
		if w := p.watched[list[i].user]; w != nil && list[i].online {
			w.online = true // so that it is looked at when a node is gone
		}
	}
}

// append appends the members of the JSON object, without braces.
func (st presenceState) append(b []byte) []byte {
	b = append(b, `"user":`...)
	b = appendString(b, st.user)
	b = appendBool(b, "online", st.online)
	b = appendInt(b, "last_seen", st.seen)
	return appendUint(b, "devices", uint64(st.devices))
}
