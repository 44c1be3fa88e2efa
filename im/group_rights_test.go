package im

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/mqim/mqim/store"
)

// TestGroupRights: who may do what. A refusal changes nothing.
func TestGroupRights(t *testing.T) {
	roles := []string{"owner", "admin", "member", "muted", "former", "stranger", "blocked", "ended", "endowner"}
	codes := map[byte]Code{
		'.': "", 'f': Forbidden, 'n': NotMember, '-': NotFound, 'm': Muted, 'e': Exists, 'b': BadRequest,
	}
	bubble(t, quietly, func(t *testing.T, w *world) {
		links := map[string]*fakeLink{}
		for _, name := range roles {
			links[name] = w.connect(name, "d", persistent, IM)
		}
		for _, name := range []string{"owner", "admin", "target"} {
			l := w.connect(name, "blocks", persistent, IM)
			w.ok(l, nil, "block.add", `{"user":"blocked"}`)
		}
		n := 0
		for _, c := range []struct {
			cmd, fields string
			want        string // a code for each of roles
		}{
			{"group.get", ``, "....nn.--"},
			{"group.get", `open`, ".......--"},
			{"group.list", ``, "........."},
			{"group.members", ``, "....nn.--"},
			{"group.members", `open`, "....nn.--"},
			{"group.update", `"name":"other"`, "..ffnnf--"},
			{"group.update", `"join":"open"`, "..ffnnf--"},
			{"group.update", `"name":"team"`, "..ffnnf--"}, // as it is
			{"group.add", `"users":["new"]`, "..ffnnf--"},
			{"group.add", `"users":["target"]`, "..ffnnf--"},
			{"group.remove", `"users":["target"]`, "..ffnnf--"},
			{"group.remove", `"users":["target","admin2"]`, ".fffnnf--"},
			{"group.remove", `"users":["target","owner"]`, "ffffnnf--"},
			{"group.remove", `"users":["nobody"]`, "..ffnnf--"},
			{"group.join", ``, "....ff.--"},
			{"group.join", `open`, ".......--"},
			{"group.leave", ``, "f....n.--"},
			{"group.role", `"user":"target","role":"admin"`, ".fffnnf--"},
			{"group.role", `"user":"target","role":"member"`, ".fffnnf--"},
			{"group.role", `"user":"admin2","role":"member"`, ".fffnnf--"},
			{"group.role", `"user":"owner","role":"admin"`, "ffffnnf--"},
			{"group.role", `"user":"nobody","role":"admin"`, "-fffnnf--"},
			{"group.role", `"user":"gone","role":"admin"`, "-fffnnf--"},
			{"group.role", `"user":"target","role":"owner"`, "bbbbbbbbb"},
			{"group.transfer", `"user":"target"`, ".fffnnf--"},
			{"group.transfer", `"user":"owner"`, ".fffnnf--"},
			{"group.transfer", `"user":"nobody"`, "-fffnnf--"},
			{"group.mute", `"user":"target","until":9999999999999`, "..ffnnf--"},
			{"group.mute", `"user":"target","until":0`, "..ffnnf--"},
			{"group.mute", `"user":"muted","until":0`, "..ffnnf--"},
			{"group.mute", `"user":"admin2","until":9999999999999`, ".fffnnf--"},
			{"group.mute", `"user":"owner","until":9999999999999`, "ffffnnf--"},
			{"group.mute", `"user":"nobody","until":9999999999999`, "--ffnnf--"},
			{"group.dissolve", ``, ".fffnnf-."},
			{"group.create", `"name":"team"`, "eeeeeeeee"},
			{"send", ``, "...mnn.--"},
			{"publish", ``, "...mnn.--"},
		} {
			for i, role := range roles {
				n++
				g := fmt.Sprint("g", n)
				fields, open := strings.CutPrefix(c.fields, "open")
				w.cast(links, g, open, strings.HasPrefix(role, "end"))
				before := w.groupState(g)

				l, tk := links[role], Ticket(0)
				switch c.cmd {
				case "send":
					tk = l.start("send", `{"rid":"r","to":"g/%s","body":"hi"}`, g)
				case "publish":
					tk = l.ticket()
					l.dev.Publish("g/"+g, Outgoing{Body: []byte("hi")}, tk)
				default:
					tk = l.start(c.cmd, `{"rid":"r","group":"%s",%s"x":1}`, g, strings.TrimLeft(fields+",", ","))
				}
				r := w.answer(l, tk)
				got := Code("")
				if r.err != nil {
					got = r.err.Code
				}
				if want := codes[c.want[i]]; got != want {
					t.Errorf("%s %s by %s: got %q (%v), want %q", c.cmd, c.fields, role, got, r.err, want)
				}
				if after := w.groupState(g); r.err != nil && after != before {
					t.Errorf("%s %s by %s: refused, but\n%s\nbecame\n%s", c.cmd, c.fields, role, before, after)
				}
			}
		}
		for _, cmd := range []string{"get", "members", "update", "add", "remove", "join", "leave", "role", "transfer", "mute", "dissolve"} {
			w.refused(NotFound, links["stranger"], "group."+cmd, `{"group":"none","user":"bob","users":["bob"],"role":"admin","until":0}`)
		}
		w.refused(NotFound, links["stranger"], "send", `{"to":"g/none","body":1}`)
	})
}

// cast makes a group with somebody in each role. In one that has ended the owner is endowner.
func (w *world) cast(links map[string]*fakeLink, g string, open, ended bool) {
	w.t.Helper()
	owner := links["owner"]
	if ended {
		owner = links["endowner"]
	}
	join := "invite"
	if open {
		join = "open"
	}
	w.ok(owner, nil, "group.create", `{"group":%q,"name":"team","join":%q,
		"members":["owner","admin","admin2","member","muted","former","gone","blocked","target","ended","target"]}`, g, join)
	w.ok(owner, nil, "group.role", `{"group":%q,"user":"admin","role":"admin"}`, g)
	w.ok(owner, nil, "group.role", `{"group":%q,"user":"admin2","role":"admin"}`, g)
	w.ok(owner, nil, "group.mute", `{"group":%q,"user":"muted","until":9999999999998}`, g)
	w.ok(owner, nil, "group.remove", `{"group":%q,"users":["former","gone"]}`, g)
	if ended {
		w.ok(owner, nil, "group.dissolve", `{"group":%q}`, g)
	}
}

// groupState is a group and all its members as the store tells.
func (w *world) groupState(id string) string {
	w.t.Helper()
	g, err := w.st.Group(w.t.Context(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%+v\n", g)
	for after := ""; ; {
		list, next, err := w.st.Members(w.t.Context(), id, after, 100)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, m := range list {
			fmt.Fprintf(&b, "%+v\n", m)
		}
		if next == "" {
			return b.String()
		}
		after = next
	}
}

// TestGroupTwice: a command that has done its work does nothing the second time, and says so.
func TestGroupTwice(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b, c := w.connect("ann", "a", persistent, IM), w.connect("bob", "b", persistent, IM), w.connect("cyd", "c", persistent, IM)
		var got []string
		twice := func(l *fakeLink, cmd, fields string) {
			t.Helper()
			payload := `{"rid":"` + fmt.Sprint(len(got)) + `","group":"g",` + fields + `"x":1}`
			first := w.run(l, cmd, "%s", payload)
			was := w.groupState("g")
			second := w.run(l, cmd, "%s", payload)
			if now := w.groupState("g"); now != was {
				t.Errorf("%s: the second time\n%s\nbecame\n%s", cmd, was, now)
			}
			if first.err != nil || second.err != nil || string(first.Data) != string(second.Data) {
				t.Errorf("%s: answered %v %s, then %v %s", cmd, first.err, first.Data, second.err, second.Data)
			}
			got = append(got, was)
			for _, state := range got[:len(got)-1] {
				if state == was {
					t.Errorf("%s %s: did nothing", cmd, fields)
				}
			}
		}
		twice(a, "group.create", `"name":"Team","members":["bob"],`)
		twice(a, "group.update", `"name":"Crew","notice":"hi","join":"open","history":"all","receipts":"counts",`)
		twice(c, "group.join", ``)
		twice(a, "group.add", `"users":["dan","eve","dan","ann"],`)
		twice(a, "group.role", `"user":"bob","role":"admin",`)
		twice(b, "group.mute", `"user":"dan","until":9999999999999,`)
		twice(b, "group.mute", `"user":"dan","until":0,`)
		twice(b, "group.remove", `"users":["eve","dan"],`)
		twice(c, "group.leave", ``)
		twice(a, "group.transfer", `"user":"bob",`)
		twice(b, "group.role", `"user":"ann","role":"member",`)
		twice(b, "group.dissolve", ``)
		g, err := w.st.Group(t.Context(), "g")
		if err != nil || g.Version != uint64(len(got)) {
			t.Errorf("got version %d (%v) after %d changes", g.Version, err, len(got))
		}
	})
}

// TestGroupQueueAgain: a client that sends its queue of commands again after a cut ends where it was.
func TestGroupQueueAgain(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, c := w.connect("ann", "a", persistent, IM), w.connect("cyd", "c", persistent, IM)
		mine := []string{
			`group.create {"rid":"1","group":"g","name":"Team","members":["bob"]}`,
			`group.create {"rid":"2","name":"Team"}`,
			`group.add {"rid":"3","group":"g","users":["cyd","dan"]}`,
			`group.role {"rid":"4","group":"g","user":"cyd","role":"admin"}`,
			`group.mute {"rid":"5","group":"g","user":"dan","until":9999999999999}`,
			`group.update {"rid":"6","group":"g","notice":"n","join":"open"}`,
			`send {"rid":"7","to":"g/g","cid":"c1","body":"hello"}`,
			`group.remove {"rid":"8","group":"g","users":["bob"]}`,
			`group.transfer {"rid":"9","group":"g","user":"cyd"}`,
			`group.leave {"rid":"10","group":"g"}`,
			`group.create {"rid":"11","group":"other","name":"Other"}`,
			`group.dissolve {"rid":"12","group":"other"}`,
		}
		run := func(l *fakeLink, queue []string) (data []string) {
			var tickets []Ticket
			for _, line := range queue {
				cmd, payload, _ := strings.Cut(line, " ")
				tickets = append(tickets, l.start(cmd, "%s", payload))
			}
			for i, tk := range tickets {
				r := w.answer(l, tk)
				if r.err != nil && r.err.Code != NotMember {
					t.Errorf("%s: %v", queue[i], r.err)
				}
				data = append(data, string(r.Data))
			}
			return data
		}
		groups := func(user string) (ids []string) {
			list, _, err := w.st.Memberships(t.Context(), user, "", 100)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range list {
				ids = append(ids, fmt.Sprint(m))
			}
			return ids
		}
		head := func() uint64 {
			st, err := w.st.Conversation(t.Context(), "cyd", store.GroupConv("g"))
			if err != nil {
				t.Fatal(err)
			}
			return st.Head
		}
		first := run(a, mine)
		state, ids, n := w.groupState("g")+w.groupState("other"), fmt.Sprint(groups("ann")), head()
		for range 2 {
			a.dev.Disconnect(false)
			a = w.connect("ann", "a", persistent, IM)
			again := run(a, mine)
			if now := w.groupState("g") + w.groupState("other"); now != state {
				t.Errorf("the group was\n%s\nand became\n%s", state, now)
			}
			if now := fmt.Sprint(groups("ann")); now != ids {
				t.Errorf("ann's groups were %s and became %s", ids, now)
			}
			if head() != n {
				t.Errorf("the log had %d messages and has %d", n, head())
			}
			var one, two struct{ Group string }
			unmarshal(t, []byte(first[1]), &one)
			unmarshal(t, []byte(again[1]), &two)
			if one.Group != two.Group || !ValidName(one.Group) {
				t.Errorf("created %q, then %q", one.Group, two.Group)
			}
		}

		// What undoes itself is done and undone again.
		theirs := []string{
			`group.add {"rid":"1","group":"g","users":["eve"]}`,
			`send {"to":"g/g","cid":"c1","body":"hello eve"}`,
			`group.remove {"rid":"2","group":"g","users":["eve"]}`,
		}
		members := func() (s string) {
			list, _, err := w.st.Members(t.Context(), "g", "", 100)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range list {
				s += fmt.Sprintln(m.User, m.Role)
			}
			return s
		}
		run(c, theirs)
		was, said := members(), head()
		run(c, theirs)
		if now := members(); now != was || head() != said+2 {
			t.Errorf("members %q became %q, %d messages %d", was, now, said, head())
		}
	})
}

// TestGroupOnce: a rid counts within the session, and with the same command alone.
func TestGroupOnce(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		create := func(l *fakeLink, payload string) string {
			t.Helper()
			var g struct{ Group string }
			w.ok(l, &g, "group.create", "%s", payload)
			return g.Group
		}
		const payload = `{"rid":"1","name":"Team"}`
		seen := map[string]string{}
		fresh := func(what, id string) {
			t.Helper()
			if other, ok := seen[id]; ok {
				t.Errorf("%s: got the group of %q", what, other)
			}
			seen[id] = what
		}
		a, a2 := w.connect("ann", "a", persistent, IM), w.connect("ann", "a2", Session{}, IM)
		id := create(a, payload)
		fresh("first", id)
		fresh("another device", create(a2, payload))
		fresh("another payload", create(a, `{"rid":"1","name":"Crew"}`))
		fresh("another rid", create(a, `{"rid":"2","name":"Team"}`))
		a2.dev.Disconnect(true)
		synctest.Wait()
		a2 = w.connect("ann", "a2", Session{}, IM)
		fresh("another session", create(a2, payload))
		if got := create(a, payload); got != id {
			t.Errorf("again: got %q, want %q", got, id)
		}
		w.ok(a, nil, "group.dissolve", `{"group":%q}`, id)
		if got := create(a, payload); got != id { // what it was answered then
			t.Errorf("after it has ended: got %q, want %q", got, id)
		}
	})
}
