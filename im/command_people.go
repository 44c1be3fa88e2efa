package im

import (
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"github.com/mqim/mqim/store"
)

// cmdTyping tells the peer or the other members of a small group; nothing is stored, and nothing answered. A large
// group is not told: who types there is no news to thousands.
func (d *Device) cmdTyping(c *command, _ Ticket) ([]byte, *Error) {
	const maxState = 64
	if err := c.need(c.To != "", "to"); err != nil {
		return nil, err
	}
	if len(c.State) > maxState {
		return nil, errorf(BadRequest, "state: want at most %d bytes", maxState)
	}
	conv, err := ParseAddress(d.u.name, c.To)
	if err != nil {
		return nil, err
	}
	if err := d.allowSend(); err != nil {
		return nil, err
	}
	if peer := conv.Peer(d.u.name); peer != "" {
		if peer != d.u.name {
			d.tellTyping(peer, conv, c.State)
		}
		return nil, nil
	}
	id, _ := conv.Group()
	g, err := d.e.group(d.e.ctx, id)
	if err == nil {
		_, err = d.e.maySend(id, d.u.name) // the state is any text: who is muted says nothing by it either
	}
	switch {
	case err != nil:
		return nil, err
	case g.LargeFrom != 0:
		d.e.m.Dropped("typing_large")
		return nil, nil
	}
	return nil, d.e.eachMember(d.e.ctx, id, func(x *store.Member) { d.tellTyping(x.User, conv, c.State) })
}

// allowSend counts a send, or what costs as much, against what the user may do.
func (d *Device) allowSend() *Error {
	if l := d.u.limiter.Load(); l != nil && !l.Allow() {
		return errorf(RateLimited, "more than %g sends a second", d.e.cfg.Load().SendsPerSecond)
	}
	return nil
}

// tellTyping tells the user's other devices, or those of another user. A blocked user does not learn of it by typing.
func (d *Device) tellTyping(to string, conv store.Conv, state []byte) {
	if !d.e.wanted(to, Events) {
		return
	}
	if blocked, err := d.e.blocked(d.e.ctx, to, d.u.name); blocked || err != nil {
		return
	}
	b := append([]byte(nil), `{"type":"typing"`...)
	b = appendConv(b, to, conv)
	b = appendField(b, "from", d.u.name)
	if len(state) > 0 {
		b = append(append(b, `,"state":`...), state...)
	}
	d.e.notify(to, Events, append(b, '}'), d)
}

// usersArg reads the command's users.
func (c *command) usersArg() *Error {
	if n := len(c.Users); n == 0 || n > maxIDs {
		return errorf(BadRequest, "users: want 1 to %d, found %d", maxIDs, n)
	}
	for _, u := range c.Users {
		if !ValidName(u) {
			return errorf(BadRequest, "users: %q is not a user name", clip(u))
		}
	}
	return nil
}

// cmdPresenceGet tells who is there. Whoever is not to be seen by the asker seems never to have been.
func (d *Device) cmdPresenceGet(c *command, _ Ticket) ([]byte, *Error) {
	if err := c.usersArg(); err != nil {
		return nil, err
	}
	names, err := d.visibleOf(c.Users)
	if err != nil {
		return nil, err
	}
	seen := make(map[string]presenceState, len(names))
	states := d.e.presenceOf(d.e.ctx, names)
	d.e.presence.believe(states)
	for _, st := range states {
		seen[st.user] = st
	}
	b := []byte{'['}
	for i, name := range c.Users {
		st := presenceState{user: name}
		if x, ok := seen[name]; ok {
			st = x
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = append(st.append(append(b, '{')), '}')
	}
	return append(b, ']'), nil
}

// visibleOf are those of the users whom the device's user may see come and go.
func (d *Device) visibleOf(users []string) (names []string, _ *Error) {
	defer d.e.walk()()
	mine := d.e.acquaintances(d.u.name)
	for _, name := range users {
		visible, err := mine.see(d.e.ctx, name)
		if err != nil {
			return nil, d.e.failed("presence", err)
		}
		if visible {
			names = append(names, name)
		}
	}
	return names, nil
}

// cmdPresenceWatch asks for events when the users come and go, and tells who is there now.
func (d *Device) cmdPresenceWatch(c *command, t Ticket) ([]byte, *Error) {
	if err := c.usersArg(); err != nil {
		return nil, err
	}
	subs, ok := d.e.presence.watch(d, c.Users)
	if !ok {
		return nil, errorf(RateLimited, "a device may watch at most %d users", maxWatched)
	}
	if d.e.peers != nil {
		d.e.peers.beginAll(d.e.ctx, subs)
	}
	return d.cmdPresenceGet(c, t)
}

func (d *Device) cmdPresenceUnwatch(c *command, _ Ticket) ([]byte, *Error) {
	if err := c.usersArg(); err != nil {
		return nil, err
	}
	d.e.presence.forget(d, c.Users)
	return nil, nil
}

func (d *Device) cmdBlockAdd(c *command, t Ticket) ([]byte, *Error) { return d.block(c, t, false) }

func (d *Device) cmdBlockRemove(c *command, t Ticket) ([]byte, *Error) { return d.block(c, t, true) }

func (d *Device) block(c *command, t Ticket, remove bool) ([]byte, *Error) {
	if err := c.need(c.User != "", "user"); err != nil {
		return nil, err
	}
	if !ValidName(c.User) || c.User == d.u.name {
		return nil, errorf(BadRequest, "user: %q cannot be blocked", clip(c.User))
	}
	change := store.Block{User: d.u.name, Peer: c.User, Remove: remove}
	op := func(b *store.Batch) { b.Blocks = append(b.Blocks, change) }
	if d.e.peers == nil {
		return nil, d.commit(c, t, op, func() *Error {
			d.e.blocks.forget(d.u.name)
			return nil
		})
	}
	// The other nodes are waited for, on this goroutine: the deliverer must not.
	done := make(chan error, 1)
	p := &pending{op: op, after: func(err error) {
		d.e.blocks.forget(d.u.name)
		done <- err
	}}
	if d.e.store.Healthy() != nil || !d.e.queue.put(p) {
		return nil, errUnavailable
	}
	switch err := <-done; {
	case errors.Is(err, store.ErrUnknownOutcome):
		d.link.Close(CloseStore) // no answer rather than a wrong one
		return nil, errAnswered
	case err != nil:
		return nil, d.e.failed(c.name, err)
	}
	d.e.peers.tellBlocks(d.u.name)
	return nil, nil
}

func (d *Device) cmdBlockList(*command, Ticket) ([]byte, *Error) {
	list, err := d.e.store.Blocks(d.e.ctx, d.u.name)
	if err != nil {
		return nil, d.e.failed("block list", err)
	}
	if list == nil {
		list = []string{}
	}
	b, _ := json.Marshal(list)
	return b, nil
}

// cmdTime lets a client compute its offset: it knows when it sent and received, we tell when we did.
func (d *Device) cmdTime(c *command, _ Ticket) ([]byte, *Error) {
	if err := c.need(len(c.T0) > 0, "t0"); err != nil {
		return nil, err
	}
	if _, err := strconv.ParseFloat(string(c.T0), 64); err != nil {
		return nil, errorf(BadRequest, "t0: want a number")
	}
	b := append([]byte(nil), `{"t0":`...)
	b = append(b, c.T0...)
	b = appendInt(b, "t1", c.received.UnixMilli())
	return append(appendInt(b, "t2", time.Now().UnixMilli()), '}'), nil
}
