package im

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/mqim/mqim/store"
)

// cmdTyping tells the peer; nothing is stored, and nothing answered.
func (d *Device) cmdTyping(c *command, _ Ticket) ([]byte, *Error) {
	if err := c.need(c.To != "", "to"); err != nil {
		return nil, err
	}
	conv, err := ParseAddress(d.u.name, c.To)
	if err != nil {
		return nil, err
	}
	peer := conv.Peer(d.u.name)
	if peer == "" {
		return nil, errorf(NotFound, "there is no group %q", clip(c.To[2:]))
	}
	u := d.e.user(peer)
	if u == nil || u.events.Load() == 0 || peer == d.u.name {
		return nil, nil
	}
	if blocked, err := d.e.blocked(d.e.ctx, peer, d.u.name); blocked || err != nil {
		return nil, nil // a blocked user does not learn of it by typing
	}
	const maxState = 64
	if len(c.State) > maxState {
		return nil, errorf(BadRequest, "state: want at most %d bytes", maxState)
	}
	b := append([]byte(nil), `{"type":"typing"`...)
	b = appendConv(b, peer, conv)
	b = appendField(b, "from", d.u.name)
	if len(c.State) > 0 {
		b = append(append(b, `,"state":`...), c.State...)
	}
	u.notify(d.e, Events, append(b, '}'), nil)
	return nil, nil
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

// cmdPresenceGet tells who is there. Whoever has blocked the asker seems never to have been.
func (d *Device) cmdPresenceGet(c *command, _ Ticket) ([]byte, *Error) {
	if err := c.usersArg(); err != nil {
		return nil, err
	}
	b := []byte{'['}
	for i, name := range c.Users {
		hidden, err := d.e.blocked(d.e.ctx, name, d.u.name)
		if err != nil {
			return nil, d.e.failed("block list", err)
		}
		st := presenceState{user: name}
		if !hidden {
			st = d.e.presenceOf(name)
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = append(st.append(append(b, '{')), '}')
	}
	return append(b, ']'), nil
}

// cmdPresenceWatch asks for events when the users come and go, and tells who is there now.
func (d *Device) cmdPresenceWatch(c *command, t Ticket) ([]byte, *Error) {
	if err := c.usersArg(); err != nil {
		return nil, err
	}
	if !d.e.presence.watch(d, c.Users) {
		return nil, errorf(RateLimited, "a device may watch at most %d users", maxWatched)
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
	return nil, d.commit(c, t, func(b *store.Batch) { b.Blocks = append(b.Blocks, change) }, func() *Error {
		d.e.blocks.forget(d.u.name)
		return nil
	})
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
