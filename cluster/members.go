package cluster

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/mqim/mqim/bus"
)

// peer is another node that has given a sign of life. Guarded by Bus.mu.
type peer struct {
	bus.Peer
	seen int64
}

// started is what clock counts from.
var started = time.Now()

// clock is the time in nanoseconds, which never steps.
func (b *Bus) clock() int64 { return int64(time.Since(started)) }

// manage brings the bus up, and has it beat.
func (b *Bus) manage() {
	defer b.wg.Done()
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	var beat time.Time
	var soon <-chan time.Time
	for {
		select {
		case <-b.ctx.Done():
			b.notify()
			return
		case <-tick.C:
			beat = time.Now()
			b.beat()
			b.expire()
		case <-b.announce:
			if soon == nil {
				soon = time.After(time.Until(beat.Add(announceGap)))
			}
		case <-soon:
			soon = nil
			beat = time.Now()
			b.sayAlive()
		case <-b.poke:
		}
		b.notify()
		if !b.Up() && b.lanesUp() && !b.closing.Load() {
			b.rise()
			b.notify()
		}
	}
}

func (b *Bus) nudge() {
	select {
	case b.poke <- struct{}{}:
	default:
	}
}

// notify calls OnChange's functions where something has changed.
func (b *Bus) notify() {
	if b.changed.Swap(false) {
		for _, f := range b.onChange {
			f()
		}
	}
}

func (b *Bus) lanesUp() bool {
	for _, l := range b.lanes {
		l.mu.Lock()
		up := l.state == laneUp
		l.mu.Unlock()
		if !up {
			return false
		}
	}
	return true
}

// rise brings the bus up, all of whose lanes are: the others are greeted first, so that Peers is right when Up says true.
func (b *Bus) rise() {
	ctx, cancel := context.WithTimeout(b.ctx, greetTimeout)
	defer cancel()
	answers, err := b.ask(ctx, nil, bus.Channel{Kind: bus.All}, 0, b.alive())
	if errors.Is(err, bus.ErrDown) {
		return // the lane says why
	}
	for _, a := range answers {
		b.meet(a.From, a.Payload)
	}
	s := &session{down: make(chan struct{})}
	b.session.Store(s)
	if !b.lanesUp() || b.closing.Load() { // a lane that has gone down before Store has found nothing to take down
		b.fall(errors.New("a lane is down"))
		return
	}
	b.log.Info("the nodes of the cluster can be reached", "node", b.id, "others", len(b.Peers()))
	b.ups.Add(1)
	b.changed.Store(true)
}

// fall takes the bus down.
func (b *Bus) fall(err error) {
	s := b.session.Swap(nil)
	if s == nil {
		return
	}
	close(s.down)
	b.downs.Add(1)
	b.changed.Store(true)
	b.nudge()
	if !b.closing.Load() {
		b.log.Warn("the nodes of the cluster cannot be reached", "err", err)
	}
}

// report says why a lane cannot be used.
func (b *Bus) report(l *lane, err error) {
	if b.ctx.Err() != nil {
		return
	}
	err = classify(err)
	b.failures.Add(1)
	if errors.Is(err, ErrSettings) {
		select {
		case b.wrong <- err:
		default:
		}
	} else {
		select {
		case b.first <- err:
		default:
		}
	}
	if now := b.clock(); now >= b.logged.Load()+int64(10*time.Second) || b.logged.Load() == 0 {
		b.logged.Store(now)
		b.log.Warn("Redis cannot be used", "lane", l.n, "err", err)
	}
}

// alive is this node's sign of life.
func (b *Bus) alive() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return appendAlive(nil, b.opts.Name, b.info)
}

func (b *Bus) sayAlive() {
	all := bus.Channel{Kind: bus.All}
	l := b.lane(all)
	f := frame{kind: kindMessage, payload: b.alive()}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == laneUp {
		l.put(all, &f, nil)
	}
}

// beat gives a sign of life, and looks whether each lane hears itself.
func (b *Bus) beat() {
	b.sayAlive()
	for _, l := range b.lanes {
		l.mu.Lock()
		connection, state := l.connection, l.state
		if state == laneUp {
			l.put(l.self, l.probe(), nil)
		}
		l.mu.Unlock()
		if state >= laneJoining && b.clock()-l.heard.Load() > int64(deafTimeout) {
			l.fail(connection, errors.New("what is published does not come back from Redis"))
		}
	}
}

// expire forgets the nodes that have gone without goodbye.
func (b *Bus) expire() {
	now := b.clock()
	b.senders.prune(now)
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, p := range b.peers {
		if now-p.seen > int64(goneAfter) {
			delete(b.peers, id)
			b.changed.Store(true)
			b.log.Warn("a node of the cluster has gone silent", "node", id, "name", p.Name)
		}
	}
}

// sign handles the signs of life of others, and their greetings.
func (b *Bus) sign(m *bus.Message) {
	if len(m.Payload) == 0 {
		b.junk.Add(1)
		return
	}
	switch m.Payload[0] {
	case signAlive:
		if !b.meet(m.From, m.Payload) {
			return
		}
		if m.Answer != nil && !b.closing.Load() {
			m.Answer(b.alive())
		}
	case signBye:
		b.mu.Lock()
		defer b.mu.Unlock()
		if p := b.peers[m.From]; p != nil {
			delete(b.peers, m.From)
			b.log.Info("a node of the cluster has left", "node", m.From, "name", p.Name)
			b.changed.Store(true)
			b.nudge()
		}
	default:
		b.unknown.Add(1)
	}
}

// meet notes a node's sign of life.
func (b *Bus) meet(id string, payload []byte) bool {
	if len(payload) == 0 || payload[0] != signAlive {
		b.junk.Add(1)
		return false
	}
	name, info, ok := alive(payload[1:])
	if !ok {
		b.junk.Add(1)
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.peers[id]
	if p == nil {
		p = &peer{}
		b.peers[id] = p
		b.log.Info("a node of the cluster has come", "node", id, "name", name)
		b.changed.Store(true)
		b.nudge()
	}
	p.Peer, p.seen = bus.Peer{ID: id, Name: name, Info: info}, b.clock()
	return true
}

// Announce implements bus.Bus.
func (b *Bus) Announce(info []byte) {
	b.mu.Lock()
	b.info = slices.Clone(info)
	b.mu.Unlock()
	select {
	case b.announce <- struct{}{}:
	default:
	}
}

// Peers implements bus.Bus. While the bus is down there are none.
func (b *Bus) Peers() []bus.Peer {
	if !b.Up() {
		return nil
	}
	b.mu.Lock()
	list := make([]bus.Peer, 0, len(b.peers))
	for _, p := range b.peers {
		list = append(list, p.Peer)
	}
	b.mu.Unlock()
	slices.SortFunc(list, func(x, y bus.Peer) int { return strings.Compare(x.ID, y.ID) })
	return list
}
