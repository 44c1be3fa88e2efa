package im

import (
	"crypto/rand"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mqim/mqim/store"
)

const (
	maxGroupName   = 256  // bytes
	maxGroupNotice = 4096 // bytes
)

// groupArg reads the command's group.
func (c *command) groupArg() *Error {
	if err := c.need(c.Group != "", "group"); err != nil {
		return err
	}
	return c.checkName("group", c.Group)
}

func (c *command) checkName(field, name string) *Error {
	if !ValidName(name) {
		return errorf(BadRequest, "%s: %q is not a name: want [A-Za-z0-9][A-Za-z0-9._@-]{0,63}", field, clip(name))
	}
	return nil
}

// parts checks a list of users, takes out who occurs twice, and splits it into what one message holds at most.
func (c *command) parts(field string, list []string) ([][]string, *Error) {
	for _, name := range list {
		if err := c.checkName(field, name); err != nil {
			return nil, err
		}
	}
	seen := make(map[string]bool, len(list))
	list = slices.DeleteFunc(list, func(name string) bool {
		defer func() { seen[name] = true }()
		return seen[name]
	})
	return slices.Collect(slices.Chunk(list, groupPart)), nil
}

// settings reads what may be set of a group into g, and into body what differs from what g was.
func (c *command) settings(g *store.Group, body *groupBody) (differs bool, err *Error) {
	text := func(field string, val *string, max int, to *string, said **string) {
		switch {
		case val == nil || err != nil:
		case len(*val) > max:
			err = errorf(BadRequest, "%s: want at most %d bytes, found %d", field, max, len(*val))
		case *val != *to:
			*to, *said, differs = *val, val, true
		}
	}
	if c.Name != nil && *c.Name == "" {
		return false, errorf(BadRequest, "name: want 1 to %d bytes", maxGroupName)
	}
	text("name", c.Name, maxGroupName, &g.Name, &body.Name)
	text("notice", c.Notice, maxGroupNotice, &g.Notice, &body.Notice)
	choice := func(field string, val *string, said *string, is int, set func(int), names []string) {
		if val == nil || err != nil {
			return
		}
		switch i := slices.Index(names, *val); {
		case i < 0:
			err = errorf(BadRequest, "%s: want %s, found %q", field, strings.Join(names, " or "), clip(*val))
		case i != is:
			set(i)
			*said, differs = *val, true
		}
	}
	choice("join", c.Join, &body.Join, asInt(g.Open), func(i int) { g.Open = i == 1 }, joinNames)
	choice("history", c.History, &body.History, asInt(g.HistoryAll), func(i int) { g.HistoryAll = i == 1 }, historyNames)
	choice("receipts", c.Receipts, &body.Receipts, int(g.Receipts)-1, func(i int) { g.Receipts = store.ReceiptMode(i + 1) },
		receiptNames[1:])
	return differs, err
}

func asInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

var (
	roleNames    = []string{"", "member", "admin", "owner"} // by store.Role
	receiptNames = []string{"", "all", "counts", "none"}    // by store.ReceiptMode
	joinNames    = []string{"invite", "open"}               // by store.Group.Open
	historyNames = []string{"since_join", "all"}            // by store.Group.HistoryAll
)

// cmdGroupCreate makes a group, whose owner is who asks.
func (d *Device) cmdGroupCreate(c *command, _ Ticket) ([]byte, *Error) {
	if err := c.need(c.Name != nil, "name"); err != nil {
		return nil, err
	}
	var g store.Group
	ed := groupEdit{body: groupBody{Change: "create"}}
	if _, err := c.settings(&g, &ed.body); err != nil {
		return nil, err
	}
	if c.Kind != nil && *c.Kind != "small" && *c.Kind != "large" {
		return nil, errorf(BadRequest, "kind: want small or large, found %q", clip(*c.Kind))
	}
	if g.ID = c.Group; g.ID == "" && !c.has("group") {
		g.ID = strings.ToLower(rand.Text())
	}
	if err := c.checkName("group", g.ID); err != nil {
		return nil, err
	}
	parts, err := c.parts("members", append([]string{d.u.name}, c.Members...))
	if err != nil {
		return nil, err
	}
	total := (len(parts)-1)*groupPart + len(parts[len(parts)-1])
	cfg := d.e.cfg.Load()
	ed.large = c.Kind != nil && *c.Kind == "large" || total > cfg.GroupSmallMax

	cid := d.onceCid(c)
	known, serr := d.e.groups.get(d.e.ctx, g.ID) // before the cid: when this command has made it, that is found
	conv, done, err := d.doneOnce(cid)
	if err != nil {
		return nil, err
	}
	if !done {
		if serr == nil && known.lives { // it costs less to know at once
			return nil, errorf(Exists, "there is a group %q", g.ID)
		}
		if err := d.mayCreate(total, parts); err != nil {
			return nil, err
		}
		create := &groupChange{group: g.ID, cid: cid}
		create.decide = func(v *groupView) (*groupEdit, *Error) {
			if v.g.Version != 0 {
				return nil, errorf(Exists, "there is, or was, a group %q", g.ID)
			}
			ed := ed
			ed.group = g
			ed.group.Owner, ed.group.Created = d.u.name, v.now
			ed.body.Users = parts[0]
			for _, user := range parts[0] {
				ed.members = append(ed.members, store.Member{User: user, Role: store.Ordinary, Joined: v.now})
			}
			ed.members[0].Role = store.Owner
			return &ed, nil
		}
		if conv, err = d.changeOne(create); err != nil {
			return nil, err
		}
	}
	id, _ := conv.Group()
	if err := d.fill(id, cid, parts[1:]); err != nil {
		return nil, err
	}
	return d.groupData(id)
}

// fill adds to a new group the members for whom one message was too short. Of a command that was cut off before, those
// come in that are not in yet.
func (d *Device) fill(id, cid string, parts [][]string) *Error {
	for i, users := range parts {
		more := d.adding(id, users)
		if cid != "" {
			more.cid = cid + "\x00" + strconv.Itoa(i)
		}
		_, done, err := d.doneOnce(more.cid)
		if err == nil && !done {
			err = d.change(more)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mayCreate says why the group cannot be, before a part of it is made.
func (d *Device) mayCreate(total int, parts [][]string) *Error {
	if err := d.e.mayGrow(0, uint64(total)); err != nil {
		return err
	}
	for _, part := range parts {
		for _, user := range part {
			if err := d.e.mayJoin(user); err != nil {
				return err
			}
		}
	}
	return nil
}

// groupData is a group as its user sees it.
func (d *Device) groupData(id string) ([]byte, *Error) {
	g, err := d.e.store.Group(d.e.ctx, id)
	if err != nil {
		return nil, d.e.failed("group", err)
	}
	m, rerr := d.e.member(d.e.ctx, id, d.u.name)
	if rerr != nil {
		return nil, rerr
	}
	return appendGroup(nil, &g, &m), nil
}

// appendGroup appends the JSON of a group as the member m sees it, or somebody who is none.
func appendGroup(b []byte, g *store.Group, m *store.Member) []byte {
	kind := "small"
	if g.LargeFrom != 0 {
		kind = "large"
	}
	b = append(b, `{"group":`...)
	b = appendString(b, g.ID)
	b = appendConv(b, "", store.GroupConv(g.ID))
	b = appendField(b, "name", g.Name)
	b = appendField(b, "notice", g.Notice)
	b = appendField(b, "kind", kind)
	b = appendField(b, "join", joinNames[asInt(g.Open)])
	b = appendField(b, "history", historyNames[asInt(g.HistoryAll)])
	b = appendField(b, "receipts", receiptNames[g.ReceiptMode()])
	b = appendField(b, "owner", g.Owner)
	b = appendUint(b, "members", g.MemberCount)
	b = appendInt(b, "created", g.Created)
	if m.Role != store.NoRole {
		b = appendField(b, "role", roleNames[m.Role])
		b = appendMuted(b, m)
	}
	return append(b, '}')
}

func appendMuted(b []byte, m *store.Member) []byte {
	if m.MutedUntil > time.Now().UnixMilli() {
		b = appendInt(b, "muted_until", m.MutedUntil)
	}
	return b
}

// visible reads a group and who the user is in it: NotMember for strangers, unless it is open and they may see it.
func (d *Device) visible(id string, openToAll bool) (g store.Group, m store.Member, err *Error) {
	if g, err = d.e.group(d.e.ctx, id); err != nil {
		return g, m, err
	}
	m, err = d.e.member(d.e.ctx, id, d.u.name)
	if err == nil && m.Role == store.NoRole && !(g.Open && openToAll) {
		err = errNotMember(id)
	}
	return g, m, err
}

// cmdGroupGet tells about a group.
func (d *Device) cmdGroupGet(c *command, _ Ticket) ([]byte, *Error) {
	if err := c.groupArg(); err != nil {
		return nil, err
	}
	g, m, err := d.visible(c.Group, true)
	if err != nil {
		return nil, err
	}
	return appendGroup(nil, &g, &m), nil
}

// cursorArg is the name after which a page begins.
func (c *command) cursorArg() *Error {
	if c.Cursor != "" && !ValidName(c.Cursor) {
		return storeError(store.ErrCursor)
	}
	return nil
}

// cmdGroupList lists the groups that the user is in, by id. Of a user who has left many a page may be short.
func (d *Device) cmdGroupList(c *command, t Ticket) ([]byte, *Error) {
	limit, err := c.limit(50, 200)
	if err == nil {
		err = c.cursorArg()
	}
	if err != nil {
		return nil, err
	}
	const most = 2000 // groups looked at for a page
	b, n, next := []byte{'['}, 0, c.Cursor
	for looked := 0; ; {
		var list []store.Membership
		var serr error
		list, next, serr = d.e.store.Memberships(store.Relaxed(d.e.ctx, d.u.name), d.u.name, next, limit-n)
		if serr != nil {
			return nil, d.e.failed("groups of a user", serr)
		}
		for _, ms := range list {
			if !ms.Current {
				continue
			}
			g, m, err := d.visible(ms.Group, false)
			if err != nil && (err.Code == NotFound || err.Code == NotMember) {
				continue // it has ended, or the user has left just now
			}
			if err != nil {
				return nil, err
			}
			if n++; n > 1 {
				b = append(b, ',')
			}
			b = appendGroup(b, &g, &m)
		}
		if looked += len(list); next == "" || n == limit || looked >= most {
			return d.acceptPage(c, t, append(b, ']'), next)
		}
	}
}

// cmdGroupMembers lists the members of a group by name.
func (d *Device) cmdGroupMembers(c *command, t Ticket) ([]byte, *Error) {
	limit, err := c.limit(100, 500)
	if err == nil {
		err = c.groupArg()
	}
	if err == nil {
		err = c.cursorArg()
	}
	if err == nil {
		_, _, err = d.visible(c.Group, false)
	}
	if err != nil {
		return nil, err
	}
	list, next, serr := d.e.store.Members(store.Relaxed(d.e.ctx, d.u.name), c.Group, c.Cursor, limit)
	if serr != nil {
		return nil, d.e.failed("members", serr)
	}
	b := []byte{'['}
	for i := range list {
		m := &list[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"user":`...)
		b = appendString(b, m.User)
		b = appendField(b, "role", roleNames[m.Role])
		b = appendInt(b, "joined", m.Joined)
		b = append(appendMuted(b, m), '}')
	}
	return d.acceptPage(c, t, append(b, ']'), next)
}
