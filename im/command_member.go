package im

import (
	"github.com/mqim/mqim/store"
)

// What the roles of a group may do. Each command is decided on a state of the group; that it still is the present one
// when the change is stored is the store's to see.

// cmdGroupUpdate changes a group's settings.
func (d *Device) cmdGroupUpdate(c *command, _ Ticket) ([]byte, *Error) {
	if err := c.groupArg(); err != nil {
		return nil, err
	}
	if _, err := c.settings(new(store.Group), new(groupBody)); err != nil {
		return nil, err
	}
	err := d.change(&groupChange{group: c.Group, decide: func(v *groupView) (*groupEdit, *Error) {
		if err := v.need(store.Admin); err != nil {
			return nil, err
		}
		ed := &groupEdit{group: v.g, body: groupBody{Change: "update"}}
		if differs, err := c.settings(&ed.group, &ed.body); err != nil || !differs {
			return nil, err
		}
		return ed, nil
	}})
	if err != nil {
		return nil, err
	}
	return d.groupData(c.Group)
}

// cmdGroupAdd makes users members. Those who are pass.
func (d *Device) cmdGroupAdd(c *command, _ Ticket) ([]byte, *Error) {
	return d.changeUsers(c, d.adding)
}

// cmdGroupRemove ends the membership of users. Those who are no members pass.
func (d *Device) cmdGroupRemove(c *command, _ Ticket) ([]byte, *Error) {
	return d.changeUsers(c, d.removing)
}

// changeUsers runs a command over a list of users, which is refused as a whole or changed in parts.
func (d *Device) changeUsers(c *command, f func(group string, users []string) *groupChange) ([]byte, *Error) {
	err := c.groupArg()
	if err == nil {
		err = c.need(len(c.Users) > 0, "users")
	}
	if err != nil {
		return nil, err
	}
	parts, err := c.parts("users", c.Users)
	if err != nil {
		return nil, err
	}
	var list []*groupChange
	for _, users := range parts {
		list = append(list, f(c.Group, users))
	}
	if err := d.preview(list); err != nil {
		return nil, err
	}
	return nil, d.change(list...)
}

func (d *Device) adding(group string, users []string) *groupChange {
	return &groupChange{group: group, users: users, decide: func(v *groupView) (*groupEdit, *Error) {
		if err := v.need(store.Admin); err != nil {
			return nil, err
		}
		ed := &groupEdit{group: v.g, body: groupBody{Change: "add"}}
		for i := range v.users {
			if m := &v.users[i]; m.Role == store.NoRole {
				ed.join(m, v.now)
			}
		}
		return ed.unlessEmpty(), nil
	}}
}

// join adds a user to those who join. Who leaves and comes back is as mute as before.
func (ed *groupEdit) join(m *store.Member, now int64) {
	ed.members = append(ed.members, store.Member{User: m.User, Role: store.Ordinary, Joined: now, MutedUntil: m.MutedUntil})
	ed.body.Users = append(ed.body.Users, m.User)
}

func (ed *groupEdit) leave(m *store.Member) {
	ed.members = append(ed.members, store.Member{User: m.User, MutedUntil: m.MutedUntil})
	ed.body.Users = append(ed.body.Users, m.User)
}

// unlessEmpty is nil where nobody joins or leaves.
func (ed *groupEdit) unlessEmpty() *groupEdit {
	if len(ed.members) == 0 {
		return nil
	}
	return ed
}

func (d *Device) removing(group string, users []string) *groupChange {
	return &groupChange{group: group, users: users, decide: func(v *groupView) (*groupEdit, *Error) {
		if err := v.need(store.Admin); err != nil {
			return nil, err
		}
		ed := &groupEdit{group: v.g, body: groupBody{Change: "remove"}}
		for i := range v.users {
			switch m := &v.users[i]; {
			case m.Role == store.NoRole:
			case m.Role == store.Owner:
				return nil, errorf(Forbidden, "%s is the owner, who cannot be removed", m.User)
			case m.Role == store.Admin && v.me.Role != store.Owner:
				return nil, errorf(Forbidden, "%s is an admin, whom only the owner may remove", m.User)
			default:
				ed.leave(m)
			}
		}
		return ed.unlessEmpty(), nil
	}}
}

// cmdGroupJoin makes the user a member of an open group.
func (d *Device) cmdGroupJoin(c *command, _ Ticket) ([]byte, *Error) {
	if err := c.groupArg(); err != nil {
		return nil, err
	}
	join := &groupChange{group: c.Group, decide: func(v *groupView) (*groupEdit, *Error) {
		if err := v.alive(); err != nil {
			return nil, err
		}
		if v.me.Role != store.NoRole {
			return nil, nil
		}
		if !v.g.Open {
			return nil, errorf(Forbidden, "members of group %q are added by its admins", c.Group)
		}
		ed := &groupEdit{group: v.g, body: groupBody{Change: "join"}}
		ed.join(&store.Member{User: d.u.name, MutedUntil: v.me.MutedUntil}, v.now)
		return ed, nil
	}}
	if err := d.preview([]*groupChange{join}); err != nil {
		return nil, err
	}
	return nil, d.change(join)
}

// cmdGroupLeave ends the user's membership.
func (d *Device) cmdGroupLeave(c *command, _ Ticket) ([]byte, *Error) {
	if err := c.groupArg(); err != nil {
		return nil, err
	}
	return nil, d.change(&groupChange{group: c.Group, decide: func(v *groupView) (*groupEdit, *Error) {
		if err := v.alive(); err != nil {
			return nil, err
		}
		switch {
		case v.me.Role == store.Owner:
			return nil, errorf(Forbidden, "the owner does not leave: transfer the group, or dissolve it")
		case v.me.Role == store.NoRole && len(v.me.Spans) == 0:
			return nil, errNotMember(c.Group)
		case v.me.Role == store.NoRole:
			return nil, nil
		}
		ed := &groupEdit{group: v.g, body: groupBody{Change: "leave"}}
		ed.leave(&store.Member{User: d.u.name, MutedUntil: v.me.MutedUntil})
		return ed, nil
	}})
}

// changeOther runs a command about one member. decide gets the member and returns it as it is to be, nil when it is so
// already.
func (d *Device) changeOther(c *command, cid string, body groupBody, role store.Role, decide func(v *groupView, m store.Member) (*groupEdit, *Error)) *Error {
	return d.change(&groupChange{group: c.Group, users: []string{c.User}, cid: cid, decide: func(v *groupView) (*groupEdit, *Error) {
		if err := v.need(role); err != nil {
			return nil, err
		}
		m := v.users[0]
		if m.Role == store.NoRole {
			return nil, errorf(NotFound, "%s is not a member of group %q", m.User, c.Group)
		}
		ed, err := decide(v, store.Member{User: m.User, Role: m.Role, MutedUntil: m.MutedUntil})
		if err != nil || ed == nil {
			return nil, err
		}
		ed.body = body
		ed.body.Users = []string{m.User}
		return ed, nil
	}})
}

// memberArg reads the command's group and user.
func (c *command) memberArg() *Error {
	err := c.groupArg()
	if err == nil {
		err = c.need(c.User != "", "user")
	}
	if err == nil {
		err = c.checkName("user", c.User)
	}
	return err
}

// cmdGroupRole makes a member an admin, or an admin a member.
func (d *Device) cmdGroupRole(c *command, _ Ticket) ([]byte, *Error) {
	err := c.memberArg()
	if err == nil {
		err = c.need(c.Role != nil, "role")
	}
	if err != nil {
		return nil, err
	}
	role, ok := map[string]store.Role{"admin": store.Admin, "member": store.Ordinary}[*c.Role]
	if !ok {
		return nil, errorf(BadRequest, "role: want admin or member, found %q", clip(*c.Role))
	}
	body := groupBody{Change: "role", Role: *c.Role}
	return nil, d.changeOther(c, "", body, store.Owner, func(v *groupView, m store.Member) (*groupEdit, *Error) {
		switch m.Role {
		case role:
			return nil, nil
		case store.Owner:
			return nil, errorf(Forbidden, "the owner stays the owner: transfer the group")
		}
		m.Role = role
		return &groupEdit{group: v.g, members: []store.Member{m}}, nil
	})
}

// cmdGroupTransfer makes a member the owner, and the owner an admin.
func (d *Device) cmdGroupTransfer(c *command, _ Ticket) ([]byte, *Error) {
	if err := c.memberArg(); err != nil {
		return nil, err
	}
	cid := d.onceCid(c)
	if _, done, err := d.doneOnce(cid); err != nil || done {
		return nil, err
	}
	body := groupBody{Change: "transfer"}
	return nil, d.changeOther(c, cid, body, store.Owner, func(v *groupView, m store.Member) (*groupEdit, *Error) {
		if m.Role == store.Owner {
			return nil, nil
		}
		ed := &groupEdit{group: v.g}
		ed.group.Owner = m.User
		m.Role, m.MutedUntil = store.Owner, 0 // nobody could ever unmute the owner
		ed.members = []store.Member{m, {User: d.u.name, Role: store.Admin}}
		return ed, nil
	})
}

// cmdGroupMute takes from a member the right to send, for a time.
func (d *Device) cmdGroupMute(c *command, _ Ticket) ([]byte, *Error) {
	err := c.memberArg()
	if err == nil {
		err = c.need(c.Until != nil, "until")
	}
	if err == nil && *c.Until < 0 {
		err = errorf(BadRequest, "until: want Unix milliseconds, or 0 to unmute")
	}
	if err != nil {
		return nil, err
	}
	body := groupBody{Change: "mute", Until: c.Until}
	return nil, d.changeOther(c, "", body, store.Admin, func(v *groupView, m store.Member) (*groupEdit, *Error) {
		switch {
		case m.Role == store.Owner:
			return nil, errorf(Forbidden, "%s is the owner, whom nobody mutes", m.User)
		case m.Role == store.Admin && v.me.Role != store.Owner:
			return nil, errorf(Forbidden, "%s is an admin, whom only the owner mutes", m.User)
		case m.MutedUntil == *c.Until || m.MutedUntil <= v.now && *c.Until <= v.now:
			return nil, nil // a time that is over is none
		}
		m.MutedUntil = *c.Until
		return &groupEdit{group: v.g, members: []store.Member{m}}, nil
	})
}

// cmdGroupDissolve ends a group. What was said in it stays.
func (d *Device) cmdGroupDissolve(c *command, _ Ticket) ([]byte, *Error) {
	if err := c.groupArg(); err != nil {
		return nil, err
	}
	return nil, d.change(&groupChange{group: c.Group, decide: func(v *groupView) (*groupEdit, *Error) {
		if v.g.Ended != 0 && v.g.Owner == d.u.name {
			return nil, nil
		}
		if err := v.need(store.Owner); err != nil {
			return nil, err
		}
		return &groupEdit{group: v.g, end: true, body: groupBody{Change: "dissolve"}}, nil
	}})
}
