package im

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/mqim/mqim/store"
)

// groupPart is how many users one message changes at most: a longer list is split, and other commits come in between.
const groupPart = 500

// groupBody is the body of a sys.group message: what has changed.
type groupBody struct {
	Change   string   `json:"change"`
	By       string   `json:"by"`
	Users    []string `json:"users,omitempty"`
	Role     string   `json:"role,omitempty"`
	Until    *int64   `json:"until,omitempty"`
	Name     *string  `json:"name,omitempty"`
	Notice   *string  `json:"notice,omitempty"`
	Join     string   `json:"join,omitempty"`
	History  string   `json:"history,omitempty"`
	Receipts string   `json:"receipts,omitempty"`
	Kind     string   `json:"kind,omitempty"` // large, when the group becomes it
}

// groupView is what a change is decided on.
type groupView struct {
	g     store.Group    // Version 0: there never was such a group
	me    store.Member   // whoever asks
	users []store.Member // the users that the change names
	now   int64          // Unix milliseconds
}

// alive is an error unless the group is there.
func (v *groupView) alive() *Error {
	if v.g.Version == 0 || v.g.Ended != 0 {
		return errNoGroup(v.g.ID)
	}
	return nil
}

// need is an error unless the group is there and whoever asks has the role, or a higher one, in it.
func (v *groupView) need(role store.Role) *Error {
	if err := v.alive(); err != nil {
		return err
	}
	switch {
	case v.me.Role == store.NoRole:
		return errNotMember(v.g.ID)
	case v.me.Role < role && role == store.Owner:
		return errorf(Forbidden, "only the owner may do this")
	case v.me.Role < role:
		return errorf(Forbidden, "only the owner and admins may do this")
	}
	return nil
}

// groupEdit is a change as it is decided.
type groupEdit struct {
	group   store.Group    // as it is to be
	members []store.Member // who joins, leaves or changes
	large   bool           // whatever the number of members
	end     bool
	body    groupBody
}

// groupChange is a change that a command asks for.
type groupChange struct {
	group  string
	users  []string                                // of each the part in the group is read
	cid    string                                  // under which the store knows it; "": repeating it does no harm
	decide func(v *groupView) (*groupEdit, *Error) // nil: there is nothing to do; it may be called any number of times
}

// changeLocks make the changes of a group on this node wait for each other, so that the store refuses none since another
// came first. Groups share them: their number is fixed. Which ones do nobody can know, and have others wait.
type changeLocks struct {
	seed  maphash.Seed
	locks [64]chan struct{}
}

func (l *changeLocks) init() {
	l.seed = maphash.MakeSeed()
	for i := range l.locks {
		l.locks[i] = make(chan struct{}, 1)
	}
}

func (l *changeLocks) lock(group string) (unlock func()) {
	c := l.locks[maphash.String(l.seed, group)%uint64(len(l.locks))]
	c <- struct{}{}
	return func() { <-c }
}

// viewOf reads what a change is decided on.
func (d *Device) viewOf(ch *groupChange) (*groupView, *Error) {
	e := d.e
	v := &groupView{now: time.Now().UnixMilli()}
	var err error
	// The group comes first: when a member is newer than it, the store refuses what is built on both.
	if v.g, err = e.store.Group(e.ctx, ch.group); err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, e.failed("group", err)
	}
	v.g.ID = ch.group
	var merr *Error
	if v.me, merr = e.member(e.ctx, ch.group, d.u.name); merr != nil {
		return nil, merr
	}
	for _, user := range ch.users {
		m, merr := e.member(e.ctx, ch.group, user)
		if merr != nil {
			return nil, merr
		}
		m.User = user
		v.users = append(v.users, m)
	}
	return v, nil
}

// preview says why the changes would be refused. Nothing is changed by it, so that a list that is too long for one
// message is refused as a whole.
func (d *Device) preview(list []*groupChange) *Error {
	var joiners uint64
	for _, ch := range list {
		if err := d.e.unknown(d.e.ctx, ch.group); err != nil {
			return err
		}
		v, err := d.viewOf(ch)
		if err != nil {
			return err
		}
		ed, err := ch.decide(v)
		if err != nil {
			return err
		}
		if ed == nil {
			continue
		}
		for _, m := range v.joining(ed) {
			if err := d.e.mayJoin(m); err != nil {
				return err
			}
			joiners++
		}
		if err := d.e.mayGrow(v.g.MemberCount, joiners); err != nil {
			return err
		}
	}
	return nil
}

// joining lists who would be a member and is none.
func (v *groupView) joining(ed *groupEdit) (list []string) {
	for i := range ed.members {
		if m := &ed.members[i]; m.Joined != 0 {
			list = append(list, m.User)
		}
	}
	return list
}

func (e *Engine) mayGrow(members, joiners uint64) *Error {
	if max := uint64(e.cfg.Load().GroupLargeMax); joiners > 0 && members+joiners > max {
		return errorf(GroupFull, "a group has at most %d members", max)
	}
	return nil
}

// change makes the changes, one after the other, and returns when they are durable. On errAnswered nothing is left to
// be said.
func (d *Device) change(list ...*groupChange) *Error {
	for _, ch := range list {
		if err := d.e.unknown(d.e.ctx, ch.group); err != nil {
			return err
		}
		if _, err := d.changeOne(ch); err != nil {
			return err
		}
	}
	return nil
}

// changeOne makes a change, and returns the conversation of the message that did: of an earlier one, where cid says so.
func (d *Device) changeOne(ch *groupChange) (store.Conv, *Error) {
	const attempts = 32 // they run out only where other nodes change the group all the time
	e := d.e
	defer e.changes.lock(ch.group)()
	for range attempts {
		v, err := d.viewOf(ch)
		if err != nil {
			return "", err
		}
		ed, err := ch.decide(v)
		if err != nil && ch.cid != "" {
			// It may be refused because it is done: by the same command on a connection that was cut, which was still
			// under way when the cid was looked up.
			if conv, done, derr := d.doneOnce(ch.cid); done || derr != nil {
				return conv, derr
			}
		}
		if err != nil || ed == nil {
			return store.GroupConv(ch.group), err
		}
		p, err := d.changing(ch, v, ed)
		if err != nil {
			return "", err
		}
		done := make(chan struct{})
		p.after = func(error) { close(done) }
		if e.store.Healthy() != nil || !e.queue.put(p) {
			return "", errUnavailable
		}
		<-done
		switch {
		case errors.Is(p.Err, store.ErrUnknownOutcome):
			d.link.Close(CloseStore) // no answer rather than a wrong one
			return "", errAnswered
		case errors.Is(p.Err, store.ErrChanged), errors.Is(p.Err, store.ErrNotFound), errors.Is(p.Err, store.ErrNotMember):
			continue
		case p.Err != nil:
			return "", e.failed("change of a group", p.Err)
		}
		if e.peers != nil {
			e.peers.tellChange(p)
		}
		return p.Conv, nil
	}
	return "", errUnavailable
}

// changing is the message that makes a change.
func (d *Device) changing(ch *groupChange, v *groupView, ed *groupEdit) (*pending, *Error) {
	e, cfg := d.e, d.e.cfg.Load()
	joiners := v.joining(ed)
	if err := e.mayGrow(v.g.MemberCount, uint64(len(joiners))); err != nil {
		return nil, err
	}
	p := &pending{}
	large := v.g.LargeFrom == 0 && (ed.large || len(joiners) > 0 && v.g.MemberCount+uint64(len(joiners)) > uint64(cfg.GroupSmallMax))
	if large {
		ed.body.Kind = "large"
		if err := e.eachMember(e.ctx, ch.group, func(m *store.Member) { p.attach = append(p.attach, m.User) }); err != nil {
			return nil, err
		}
		p.attach = append(p.attach, joiners...)
	}
	ed.body.By = d.u.name
	body, jerr := json.Marshal(&ed.body)
	if jerr != nil {
		return nil, errInternal // it has nothing that could fail
	}
	p.Message = store.Message{
		Conv: store.GroupConv(ch.group), From: d.u.name, Cid: ch.cid, Type: "sys.group", Encoding: store.JSON, TS: v.now, Body: body,
	}
	if ch.cid != "" {
		p.Hash = xxhash.Sum64String(ch.cid)
	}
	p.Change = &store.Change{Group: ed.group, Members: ed.members, Large: large, End: ed.end}
	return p, nil
}

// onceCid is the cid under which the store remembers that a command with a rid has been done, for as long as it remembers
// cids and within the device's session; "" without a rid.
func (d *Device) onceCid(c *command) string {
	if c.Rid == "" {
		return ""
	}
	var h xxhash.Digest
	h.Reset()
	_, _ = h.WriteString(c.name + "\x00")
	_, _ = h.Write(c.payload)
	session := ""
	d.u.mu.Lock()
	if !d.session.Persistent { // it is over with the connection, and the next one counts its rids anew
		if d.nonce == "" {
			d.nonce = "\x00" + rand.Text()
		}
		session = d.nonce
	}
	d.u.mu.Unlock()
	return fmt.Sprintf("%s%s%s\x00%s\x00%016x", ownCid, d.id, session, c.Rid, h.Sum64())
}

// doneOnce finds what was done under a cid of onceCid.
func (d *Device) doneOnce(cid string) (conv store.Conv, ok bool, rerr *Error) {
	if cid == "" {
		return "", false, nil
	}
	m, _, ok, err := d.e.store.Sent(d.e.ctx, d.u.name, cid)
	if err != nil {
		return "", false, d.e.failed("cid", err)
	}
	return m.Conv, ok, nil
}
