package im

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// presence tells watchers who comes and goes. A user who is back within the grace was never away. They are told from a
// goroutine of its own: however many watch, nobody waits for it. Of a user who comes and goes again before his turn, the
// state that he is in then is told.
type presence struct {
	e       *Engine
	mu      sync.Mutex
	watched map[string]map[*Device]bool // user → who watches
	leaving map[string]*time.Timer      // users whose last device has gone a moment ago
	news    map[string]bool             // users of whom there is something to tell; all of them are watched
	order   []string                    // the same in the order of their turns
	wake    chan struct{}
	stopped bool
}

const maxWatched = 1000 // users a device may watch

func (p *presence) init(e *Engine) {
	p.e = e
	p.watched = map[string]map[*Device]bool{}
	p.leaving = map[string]*time.Timer{}
	p.news = map[string]bool{}
	p.wake = make(chan struct{}, 1)
}

// watch adds users to what a device watches; it returns false when that would be too many.
func (p *presence) watch(d *Device, users []string) bool {
	d.u.mu.Lock()
	defer d.u.mu.Unlock()
	if d.closed {
		return true
	}
	fresh := 0
	for _, u := range users {
		if !d.watching[u] {
			fresh++
		}
	}
	if len(d.watching)+fresh > maxWatched {
		return false
	}
	if d.watching == nil {
		d.watching = map[string]bool{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range users {
		d.watching[u] = true
		if p.watched[u] == nil {
			p.watched[u] = map[*Device]bool{}
		}
		p.watched[u][d] = true
	}
	return true
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
		delete(p.watched[u], d)
		if len(p.watched[u]) == 0 {
			delete(p.watched, u)
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
}

// offline is called when a user's last device has gone.
func (p *presence) offline(user string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped || len(p.watched[user]) == 0 || p.leaving[user] != nil {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(p.e.cfg.Load().PresenceGrace, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.leaving[user] == t { // not back, nor gone again, in the meantime
			delete(p.leaving, user)
			p.tell(user)
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
	if len(p.watched[user]) == 0 || p.news[user] {
		return
	}
	p.news[user] = true
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
		for _, user := range order {
			p.send(user)
		}
	}
}

// send sends the user's presence to those who watch and may see it at this moment.
func (p *presence) send(user string) {
	p.mu.Lock()
	delete(p.news, user) // what happens from here on is news again
	list := slices.Collect(maps.Keys(p.watched[user]))
	p.mu.Unlock()
	st := p.e.presenceOf(user)
	his := p.e.acquaintances(user)
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

// presenceOf is a user's presence now.
func (e *Engine) presenceOf(name string) presenceState {
	st := presenceState{user: name}
	if u := e.user(name); u != nil {
		u.mu.Lock()
		st.devices, st.seen = len(u.devices), u.seen
		u.mu.Unlock()
	}
	if st.online = st.devices > 0; !st.online && st.seen == 0 {
		if rec, err := e.store.User(e.ctx, name); err == nil {
			st.seen = rec.LastSeen
		}
	}
	return st
}

// append appends the members of the JSON object, without braces.
func (st presenceState) append(b []byte) []byte {
	b = append(b, `"user":`...)
	b = appendString(b, st.user)
	b = appendBool(b, "online", st.online)
	b = appendInt(b, "last_seen", st.seen)
	return appendUint(b, "devices", uint64(st.devices))
}
