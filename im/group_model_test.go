package im

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mqim/mqim/store"
)

// The model of groups is the model of model_test.go with groups: they are made, change, grow and end, while messages flow
// and devices come and go. In the end the messages that say so (sys.group) tell, and they alone, who was to see what.

// groupModel is a run with groups.
type groupModel struct {
	*model
	cmds    []*groupCommand
	running int // of this life; guarded by mu
}

// groupCommand is a command that changes a group.
type groupCommand struct {
	device     *modelDevice
	group, rid string
	name       string
	payload    string
	body       groupBody // what is wanted: all users, be they members or not
	at         int64     // when it was asked for, Unix milliseconds
	start, end uint64    // where the group's log ended when it was asked for, and when it was answered
	endAt      int64     // then, Unix milliseconds
	answered   bool
	code       Code // "": ok
}

func TestGroupModel(t *testing.T) {
	runSeeds(t, seeds{short: 25, steps: 250, longSteps: 500, sure: 100}, func(t *testing.T, seed uint64, steps int) map[string]int {
		m := &groupModel{model: newModel(t, seed)}
		m.run(steps)
		return m.tally
	}, "create", "add", "remove", "join", "leave", "role", "transfer", "mute", "muted", "update", "dissolve", "growth", "come back",
		"crash between", "refused room", "retransmit", "dup", "conflict", "not_member", "not_found", "repeated",
		"group receipt", "recall", "delete", "large sync", "history of all", "gap")
}

func (m *groupModel) run(steps int) {
	for i := range 5 + m.r.IntN(3) {
		user := fmt.Sprint("u", i)
		m.users = append(m.users, user)
		for k := range 2 {
			m.devs = append(m.devs, &modelDevice{user: user, id: fmt.Sprint("d", k), always: k == 0})
		}
	}
	m.between = func(l *modelLink) {
		if m.r.IntN(2) == 0 {
			m.send(l)
		} else {
			m.changeGroup(l)
		}
	}
	m.open()
	for _, d := range m.devs {
		m.connect(d, false)
	}
	for range steps {
		m.stepGroups()
		if m.r.IntN(3) > 0 {
			synctest.Wait()
			m.checkCalm()
		}
	}
	m.healGroups()
	tr := m.check()
	m.mu.Lock()
	m.checkGroups(tr)
	m.mu.Unlock()
	m.checkAnswers(tr)
	m.close()
	m.report()
	if m.t.Failed() {
		for _, c := range m.cmds {
			m.t.Logf("%s/%s %s %s: answered %v %q, cseq %d to %d", c.device.user, c.device.id, c.name, c.payload, c.answered, c.code, c.start, c.end)
		}
		for conv := range tr.group {
			for _, msg := range tr.log[conv] {
				m.t.Logf("%s %d from %s/%s: %s", conv, msg.Cseq, msg.From, msg.Device, msg.Body)
			}
		}
	}
}

func (m *groupModel) stepGroups() {
	n := m.r.IntN(100)
	l := m.connected()
	switch {
	case l == nil || n < 71:
		m.mu.Lock()
		life, between := m.life, m.running
		m.mu.Unlock()
		if m.step(); m.life != life {
			if between > 0 {
				m.tally["crash between"]++
			}
			m.mu.Lock()
			m.running = 0
			m.mu.Unlock()
		}
	case n < 94:
		m.changeGroup(l)
	case n < 97:
		m.withdraw(l)
	default:
		m.syncGroup(l)
	}
}

// holder is the link of somebody who has a role in a group, or more; l where nobody such is connected.
func (m *groupModel) holder(l *modelLink, group string, role store.Role) *modelLink {
	for _, i := range m.r.Perm(len(m.devs)) {
		d := m.devs[i]
		x, err := m.peb.Member(context.Background(), group, d.user)
		if err == nil && d.link != nil && x.Role >= role {
			return d.link
		}
	}
	return l
}

// some is up to n users.
func (m *groupModel) some(n int) (list []string) {
	for _, i := range m.r.Perm(len(m.users))[:1+m.r.IntN(n)] {
		list = append(list, m.users[i])
	}
	return list
}

// member is one of a group's members, or sometimes any user.
func (m *groupModel) member(group string) []string {
	list, _, err := m.peb.Members(context.Background(), group, "", 100)
	if err != nil || len(list) == 0 || m.r.IntN(5) == 0 {
		return m.some(1)
	}
	return []string{list[m.r.IntN(len(list))].User}
}

// changeGroup has somebody, mostly one who may, change a group.
func (m *groupModel) changeGroup(l *modelLink) {
	if len(m.groups) == 0 || len(m.groups) < 6 && m.r.IntN(12) == 0 {
		m.createGroup(l)
		return
	}
	if m.r.IntN(10) == 0 && m.repeat(nil) {
		return
	}
	c := &groupCommand{group: m.groups[m.r.IntN(len(m.groups))]}
	role, args := store.Admin, map[string]any{}
	switch n := m.r.IntN(40); {
	case n < 9:
		c.body = groupBody{Change: "add", Users: m.some(2)}
		args["users"] = c.body.Users
	case n < 16:
		c.body = groupBody{Change: "remove", Users: m.some(2)}
		args["users"] = c.body.Users
	case n < 20:
		c.body.Change, role = "join", store.NoRole
	case n < 24:
		c.body.Change, role = "leave", store.Ordinary
	case n < 28:
		c.body = groupBody{Change: "role", Users: m.member(c.group), Role: []string{"admin", "admin", "member"}[m.r.IntN(3)]}
		args["user"], args["role"], role = c.body.Users[0], c.body.Role, store.Owner
	case n < 32:
		until := time.Now().Add(time.Duration(m.r.IntN(4)) * 5 * time.Minute).UnixMilli()
		if m.r.IntN(4) == 0 {
			until = 0
		}
		c.body = groupBody{Change: "mute", Users: m.member(c.group), Until: &until}
		args["user"], args["until"] = c.body.Users[0], until
	case n < 34:
		c.body = groupBody{Change: "transfer", Users: m.member(c.group)}
		args["user"], role = c.body.Users[0], store.Owner
	case n < 38:
		c.body.Change = "update"
		switch m.r.IntN(3) {
		case 0:
			c.body.Join = []string{"open", "open", "invite"}[m.r.IntN(3)]
			args["join"] = c.body.Join
		case 1:
			c.body.History = []string{"since_join", "all"}[m.r.IntN(2)]
			args["history"] = c.body.History
		default:
			c.body.Receipts = receiptNames[1+m.r.IntN(3)]
			args["receipts"] = c.body.Receipts
		}
	default:
		c.body.Change, role = "dissolve", store.Owner
	}
	if m.r.IntN(6) > 0 {
		l = m.holder(l, c.group, role)
	}
	c.device, c.name = l.d, "group."+c.body.Change
	m.ask(l, c, args)
	if c.body.Change == "mute" {
		synctest.Wait()
		for _, d := range m.devs {
			if d.link != nil && d.user == c.body.Users[0] {
				m.send(d.link)
			}
		}
	}
}

func (m *groupModel) createGroup(l *modelLink) {
	c := &groupCommand{group: fmt.Sprint("g", len(m.groups)), device: l.d, name: "group.create"}
	c.body = groupBody{Change: "create", Users: m.some(3)}
	if m.r.IntN(8) > 0 { // else one that is there
		m.groups = append(m.groups, c.group)
	} else if len(m.groups) > 0 {
		c.group = m.groups[0]
	}
	args := map[string]any{"name": "n", "members": c.body.Users}
	if m.r.IntN(4) == 0 {
		args["kind"] = "large"
	}
	if m.r.IntN(3) == 0 {
		args["join"] = "open"
	}
	m.ask(l, c, args)
}

// ask has a command run beside what else happens.
func (m *groupModel) ask(l *modelLink, c *groupCommand, args map[string]any) {
	c.rid = fmt.Sprint("r", len(m.cmds))
	args["rid"], args["group"] = c.rid, c.group
	payload, _ := json.Marshal(args)
	c.payload, c.at = string(payload), time.Now().UnixMilli()
	if c.body.By = l.d.user; c.body.Change == "join" || c.body.Change == "leave" {
		c.body.Users = []string{l.d.user}
	}
	c.start = m.logHead(store.GroupConv(c.group))
	m.cmds = append(m.cmds, c)
	m.transmitCommand(l, c)
}

func (m *groupModel) transmitCommand(l *modelLink, c *groupCommand) {
	m.mu.Lock()
	m.running++
	m.mu.Unlock()
	go func() { // it returns when it is answered
		l.command(c.name, c.payload, func(_ []byte, err *Error) {
			c.end, c.endAt = m.logHead(store.GroupConv(c.group)), time.Now().UnixMilli()
			if c.answered = true; err != nil {
				c.code = err.Code
				m.tally["refused "+string(err.Code)]++
				return
			}
			c.code = ""
		})
		m.mu.Lock()
		defer m.mu.Unlock()
		if l.life == m.life {
			m.running--
		}
	}()
}

// repeat has one of the commands that the server recognizes, and that were not answered, asked once more: c, or any
// where it is nil.
func (m *groupModel) repeat(c *groupCommand) bool {
	m.mu.Lock()
	var list []*groupCommand
	for _, x := range m.cmds {
		once := x.body.Change == "create" || x.body.Change == "transfer"
		if once && x.device.always && x.device.link != nil && (!x.answered || x.code == Unavailable) && (c == nil || c == x) {
			list = append(list, x)
		}
	}
	m.mu.Unlock()
	if len(list) == 0 {
		return false
	}
	m.tally["repeated"]++
	x := list[m.r.IntN(len(list))]
	m.transmitCommand(x.device.link, x)
	return true
}

// syncGroup reads a page of a large group's log, and sometimes acknowledges it.
func (m *groupModel) syncGroup(l *modelLink) {
	if len(m.groups) == 0 {
		return
	}
	conv := store.GroupConv(m.groups[m.r.IntN(len(m.groups))])
	ack, from := m.r.IntN(2) == 0, ""
	if !ack {
		from = fmt.Sprintf(`,"after":%d`, m.r.IntN(10))
	}
	var last uint64
	l.command("sync", fmt.Sprintf(`{"rid":"r","conv":%q,"limit":%d%s}`, conv, 1+m.r.IntN(6), from), func(b []byte, err *Error) {
		var r struct {
			Data struct{ Messages []struct{ Seq, Cseq uint64 } }
		}
		switch {
		case err != nil && (err.Code == NotFound || err.Code == NotMember || err.Code == BadRequest):
			return
		case err != nil || json.Unmarshal(b, &r) != nil:
			m.failf("sync of %s: %v %s", conv, err, b)
			return
		}
		m.tally["large sync"]++
		for _, x := range r.Data.Messages {
			if x.Seq != 0 { // the group is small: this is the inbox
				last = 0
				return
			}
			if x.Cseq <= last {
				m.failf("sync of %s by %s: %s", conv, l.d.user, b)
			}
			last = x.Cseq
			m.shown = append(m.shown, sight{l.d.user, conv, last})
		}
		if !ack || last == 0 {
			return
		}
		m.covers(l.d.user, delivery{conv: conv, cseq: last})
		m.events = append(m.events, event{kind: "ackSeq", dev: l.d, conv: conv, seq: last})
		for _, list := range [][]delivery{l.unacked, l.untaken} {
			for _, x := range list {
				if x.conv == conv && x.cseq <= last { // what came through the inbox, before it was large, too
					m.noteAck(l, x)
				}
			}
		}
		l.unacked = slices.DeleteFunc(l.unacked, func(x delivery) bool { return l.isAcked[x.place] })
	})
	if !ack || last == 0 {
		return
	}
	l.command("ack", fmt.Sprintf(`{"conv":%q,"cseq":%d}`, conv, last), func(_ []byte, err *Error) {
		if err != nil {
			m.failf("ack after sync of %s refused: %v", conv, err)
		}
		l.upTo[conv] = max(l.upTo[conv], last)
	})
	m.settle(l)
}

// healGroups is heal with the commands that are to be repeated.
func (m *groupModel) healGroups() {
	m.st.set(func() { m.st.onCommit = nil })
	synctest.Wait()
	m.heal()
	for _, c := range m.cmds {
		m.repeat(c)
		synctest.Wait()
		if once := c.body.Change == "create" || c.body.Change == "transfer"; once && c.device.always && !c.answered {
			m.t.Errorf("%s %s was not answered", c.name, c.payload)
		}
	}
	m.heal()
}
