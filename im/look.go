package im

import (
	"context"
	"math/rand/v2"
	"slices"
	"sort"
	"time"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/store"
)

const (
	// lookDown is how often the store is asked while the bus is down: then nothing else tells of what others have committed.
	lookDown = 5 * time.Second
	// sweepUsers is how many users' groups are loaded again with each look.
	sweepUsers = 100
	// reloadPause is between two users when all of them load their groups again, as after the bus was down.
	reloadPause = time.Millisecond
)

// lookLoop looks at the heads of what connected devices read, every Config.Look (lookDown while the bus is down), if
// anything has been committed since; and at once after the bus was down. So a hint that is lost costs that long at most, and
// while nothing happens one question a node.
//
// What no head tells is that a user has joined a large group. Those who change it tell so until every node has answered
// (tellChange), and after the bus was down all load their groups again; beside, each look has sweepUsers do, by turns.
func (p *peers) lookLoop() {
	last, err := p.e.store.Writes(p.e.ctx)
	known := err == nil
	failing := false
	for {
		wait := p.e.cfg.Load().Look
		if !p.bus.Up() {
			wait = min(wait, lookDown)
		}
		t := time.NewTimer(wait)
		back := false
		select {
		case <-p.e.ctx.Done():
			t.Stop()
			return
		case <-t.C:
		case <-p.again:
			t.Stop()
			if !p.bus.Up() {
				continue
			}
			back = true
			if !p.e.sleep(rand.N(min(wait, askFor))) { // not all nodes at the same moment
				return
			}
		}
		writes, err := p.e.store.Writes(p.e.ctx)
		if err == nil && (back || !known || writes != last) {
			spread := wait / 2
			if back {
				spread = 0
			}
			err = p.look(spread, back)
		}
		if err == nil {
			last, known = writes, true
		} else if known = false; !failing && p.e.ctx.Err() == nil {
			p.e.log.Warn("the heads of logs cannot be read; will be tried again", "error", err)
		}
		failing = err != nil
	}
}

// look asks for the heads of everything that connected devices read, over a time. all has everybody load their groups.
func (p *peers) look(spread time.Duration, all bool) error {
	e := p.e
	var users []string
	var clients []*Device
	e.users.Range(func(k, v any) bool {
		u := v.(*user)
		u.mu.Lock()
		defer u.mu.Unlock()
		if len(u.devices) > 0 {
			users = append(users, u.name)
		}
		for _, d := range u.devices {
			if d.session.Epoch != 0 {
				clients = append(clients, d)
			}
		}
		return true
	})
	sort.Strings(users)
	convs := e.feeds.convs()
	pieces := (len(users)+len(convs)+len(clients))/store.MaxLook + 1
	pause := spread / time.Duration(pieces)
	err := inPieces(e, clients, pause, p.lookEpochs)
	if err == nil {
		err = inPieces(e, users, pause, p.lookInboxes)
	}
	if err == nil {
		err = inPieces(e, convs, pause, p.lookConvs)
	}
	if err != nil {
		return err
	}
	if all {
		for _, name := range users {
			p.reloadInTurn(name)
			if !e.sleep(reloadPause) {
				break
			}
		}
		return nil
	}
	p.sweep(users)
	return nil
}

func inPieces[T any](e *Engine, list []T, pause time.Duration, f func([]T) error) error {
	for piece := range slices.Chunk(list, store.MaxLook) {
		if err := f(piece); err != nil {
			return err
		}
		if len(piece) == store.MaxLook && pause > 0 && !e.sleep(pause) {
			return e.ctx.Err()
		}
	}
	return nil
}

// sweep has the next users in turn load their groups again.
func (p *peers) sweep(users []string) {
	from := sort.SearchStrings(users, p.swept+"\x00")
	for i := range min(sweepUsers, len(users)) {
		name := users[(from+i)%len(users)]
		p.reloadInTurn(name)
		p.swept = name
	}
}

// reloadInTurn is reload, when there is room for one more to read.
func (p *peers) reloadInTurn(name string) {
	select {
	case p.e.pumps <- struct{}{}:
		<-p.e.pumps
	case <-p.e.ctx.Done():
		return
	}
	if u := p.e.user(name); u != nil {
		p.e.reload(u)
	}
}

func (p *peers) lookInboxes(names []string) error {
	heads, err := p.e.store.InboxHeads(p.e.ctx, names, nil)
	for i, head := range heads {
		u := p.e.user(names[i])
		if u == nil {
			continue
		}
		u.mu.Lock()
		if head > u.head {
			u.head = head
		}
		for _, d := range u.devices {
			d.pump()
		}
		u.mu.Unlock()
	}
	return err
}

func (p *peers) lookConvs(convs []store.Conv) error {
	heads, err := p.e.store.ConvHeads(p.e.ctx, convs, nil)
	for i, head := range heads {
		for _, g := range p.e.feeds.of(convs[i], nil) {
			u := g.d.u
			u.mu.Lock()
			g.learn(g.spans, head)
			g.d.pump()
			u.mu.Unlock()
		}
	}
	return err
}

func (p *peers) lookEpochs(list []*Device) error {
	ids := make([]string, len(list))
	for i, d := range list {
		ids[i] = d.id
	}
	epochs, err := p.e.store.Epochs(p.e.ctx, ids, nil)
	for i, epoch := range epochs {
		if d := list[i]; epoch > d.session.Epoch {
			d.e.lose(d.u, d.id, d.session.Epoch)
		}
	}
	return err
}

// joinFeed subscribes to a large group, and reads its head after that: what was committed before the subscription stood is
// found so.
func (p *peers) joinFeed(f *feed) {
	p.begin(p.e.ctx, f.sub)
	for pause := time.Second; ; pause = min(2*pause, 30*time.Second) {
		err := p.lookConvs([]store.Conv{f.conv})
		if err == nil || !p.e.sleep(pause) {
			return
		}
	}
}

// feedSubscription is what a new feed is subscribed by; it is on its way.
func (p *peers) feedSubscription(f *feed) {
	id, _ := f.conv.Group()
	f.sub = p.subscription(bus.Group, id)
	p.e.spawn(func() { p.joinFeed(f) })
}

// spansOf is what the user may see of a large group by now.
func (e *Engine) spansOf(ctx context.Context, name string, conv store.Conv) ([]store.Span, error) {
	id, _ := conv.Group()
	m, err := e.store.Member(ctx, id, name)
	return m.Spans, err
}

// reload has the user's devices read anew which large groups they are in.
func (e *Engine) reload(u *user) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, d := range u.devices {
		if d.loading {
			d.reload = true
			continue
		}
		d.loading = e.spawn(d.reloadGroups)
	}
}

// reloadGroups loads the groups of a device that is connected, which may take some tries.
func (d *Device) reloadGroups() {
	e := d.e
	for pause := time.Second; ; pause = min(2*pause, 30*time.Second) {
		err := d.loadAgain()
		if err == nil {
			d.link.Kick()
			return
		}
		if e.ctx.Err() == nil {
			e.log.Error("groups of a device cannot be read; will be tried again", "user", d.u.name, "device", d.id, "error", err)
		}
		d.u.mu.Lock()
		closed := d.closed
		d.u.mu.Unlock()
		if closed || !e.sleep(pause) {
			return
		}
	}
}

// loadAgain is load, within the bound of what reads pages at a time.
func (d *Device) loadAgain() error {
	select {
	case d.e.pumps <- struct{}{}:
		defer func() { <-d.e.pumps }()
	case <-d.e.ctx.Done():
		return d.e.ctx.Err()
	}
	return d.load(d.e.ctx, nil, true)
}
