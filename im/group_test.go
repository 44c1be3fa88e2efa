package im

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
)

// jsonGroup is a group as a client sees it.
type jsonGroup struct {
	Group, Conv, Name, Notice, Kind, Join, History, Receipts, Owner, Role string

	Members    int
	Created    int64
	MutedUntil int64 `json:"muted_until"`
}

// names makes JSON of a list of users, from to to.
func names(prefix string, from, to int) string {
	var list []string
	for i := from; i <= to; i++ {
		list = append(list, fmt.Sprintf("%s%05d", prefix, i))
	}
	b, _ := json.Marshal(list)
	return string(b)
}

// changesOf reads the sys.group messages of a group.
func (w *world) changesOf(id string) (list []groupBody) {
	w.t.Helper()
	for _, m := range w.log(id) {
		if m.Type == "sys.group" {
			var b groupBody
			unmarshal(w.t, m.Body, &b)
			if b.By != m.From || m.Device != "" || m.Encoding != store.JSON {
				w.t.Errorf("message %+v of %s", m, m.Body)
			}
			list = append(list, b)
		}
	}
	return list
}

// log reads a group's log.
func (w *world) log(id string) (list []*store.Message) {
	w.t.Helper()
	g, err := w.st.Group(w.t.Context(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	for after := uint64(0); ; {
		page, err := w.st.History(w.t.Context(), g.Owner, store.GroupConv(id), store.Range{After: after, Forward: true, Limit: 500})
		if err != nil {
			w.t.Fatal(err)
		}
		if len(page) == 0 {
			return list
		}
		list = append(list, page...)
		after = page[len(page)-1].Cseq
	}
}

// TestGroupCreate: the group is as its creator said, and tells so to those who may know.
func TestGroupCreate(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b, x := w.connect("ann", "a", persistent, IM), w.connect("bob", "b", persistent, IM), w.connect("xen", "x", persistent, IM)
		var g jsonGroup
		w.ok(a, &g, "group.create", `{"rid":"1","group":"team","name":"Team \u2713","members":["bob","cyd","bob","ann"]}`)
		want := jsonGroup{
			Group: "team", Conv: "g/team", Name: "Team ✓", Kind: "small", Join: "invite", History: "since_join", Receipts: "all",
			Owner: "ann", Role: "owner", Members: 3, Created: time.Now().UnixMilli(),
		}
		if g != want {
			t.Errorf("got  %+v\nwant %+v", g, want)
		}
		w.ok(a, &g, "group.update", `{"rid":"1","group":"team","notice":"hi","join":"open","history":"all","receipts":"none","name":"Crew"}`)
		want.Notice, want.Join, want.History, want.Receipts, want.Name = "hi", "open", "all", "none", "Crew"
		if g != want {
			t.Errorf("got  %+v\nwant %+v", g, want)
		}
		until := time.Now().Add(time.Hour).UnixMilli()
		w.ok(a, nil, "group.mute", `{"group":"team","user":"bob","until":%d}`, until)
		w.ok(b, &g, "group.get", `{"rid":"2","group":"team"}`)
		want.Role, want.MutedUntil = "member", until
		if g != want {
			t.Errorf("bob got %+v\nwant    %+v", g, want)
		}
		r := w.run(x, "group.get", `{"rid":"3","group":"team"}`)
		if s := string(r.Data); !r.OK || strings.Contains(s, "role") || strings.Contains(s, "muted_until") || !strings.Contains(s, `"members":3`) {
			t.Errorf("a stranger got %s %v", s, r.err)
		}
		g = jsonGroup{}
		w.ok(a, &g, "group.create", `{"rid":"4","name":"L","kind":"large","join":"open","history":"all"}`)
		if g.Kind != "large" || g.Receipts != "counts" || g.Join != "open" || g.History != "all" || !ValidName(g.Group) || g.Members != 1 {
			t.Errorf("got %+v", g)
		}
		w.ok(a, &g, "group.update", `{"rid":"4","group":%q,"receipts":"all"}`, g.Group)
		if g.Receipts != "all" {
			t.Errorf("got %+v", g)
		}
		changes := w.changesOf("team")
		got, _ := json.Marshal(changes)
		exp := fmt.Sprintf(`[{"change":"create","by":"ann","users":["ann","bob","cyd"],"name":"Team ✓"},`+
			`{"change":"update","by":"ann","name":"Crew","notice":"hi","join":"open","history":"all","receipts":"none"},`+
			`{"change":"mute","by":"ann","users":["bob"],"until":%d}]`, until)
		if string(got) != exp {
			t.Errorf("got  %s\nwant %s", got, exp)
		}
		for _, l := range []*fakeLink{a, b} { // by message, and by event
			var types []string
			for _, n := range l.notesOf(Events, "group") {
				if n.Conv == "g/team" {
					var e struct{ Change, By string }
					unmarshal(t, []byte(n.raw), &e)
					types = append(types, fmt.Sprint(n.Cseq, " ", e.Change, " ", e.By))
				}
			}
			if want := []string{"1 create ann", "2 update ann", "3 mute ann"}; !slices.Equal(types, want) {
				t.Errorf("%s got events %q, want %q", l.dev.User(), types, want)
			}
			if got := l.seqs(); !slices.Equal(got[:3], []uint64{1, 2, 3}) {
				t.Errorf("%s got messages %v", l.dev.User(), got)
			}
		}
		if n := x.notesOf(Events, "group"); len(n) != 0 {
			t.Errorf("a stranger got events %+v", n)
		}
	})
}

// TestGroupBadRequests: what is wrong by itself is told before anything is read.
func TestGroupBadRequests(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a := w.connect("ann", "a", persistent, IM)
		long := func(n int) string { return strings.Repeat("x", n) }
		for _, c := range []struct{ cmd, payload string }{
			{"create", `{}`}, {"create", `{"name":""}`}, {"create", `{"name":7}`}, {"create", `{"name":"` + long(257) + `"}`},
			{"create", `{"name":"n","group":""}`}, {"create", `{"name":"n","group":"a b"}`}, {"create", `{"name":"n","group":"` + long(65) + `"}`},
			{"create", `{"name":"n","members":["-"]}`}, {"create", `{"name":"n","members":"bob"}`}, {"create", `{"name":"n","kind":"huge"}`},
			{"create", `{"name":"n","join":"never"}`}, {"create", `{"name":"n","notice":"` + long(4097) + `"}`},
			{"get", `{}`}, {"get", `{"group":"g/team"}`}, {"members", `{}`}, {"members", `{"group":"g","limit":0}`},
			{"members", `{"group":"g","cursor":"/"}`}, {"list", `{"cursor":"/"}`}, {"list", `{"limit":-1}`},
			{"update", `{"name":"x"}`}, {"update", `{"group":"g","receipts":"some"}`}, {"update", `{"group":"g","history":"none"}`},
			{"update", `{"group":"g","name":""}`}, {"add", `{"group":"g"}`}, {"add", `{"group":"g","users":[]}`},
			{"add", `{"group":"g","users":["a/b"]}`}, {"remove", `{"group":"g","users":[""]}`}, {"remove", `{"group":"g"}`},
			{"join", `{}`}, {"leave", `{}`}, {"role", `{"group":"g","user":"b"}`}, {"role", `{"group":"g","role":"admin"}`},
			{"role", `{"group":"g","user":"b","role":"king"}`}, {"transfer", `{"group":"g"}`}, {"transfer", `{"group":"g","user":"%"}`},
			{"mute", `{"group":"g","user":"b"}`}, {"mute", `{"group":"g","user":"b","until":-1}`}, {"dissolve", `{}`},
		} {
			w.refused(BadRequest, a, "group."+c.cmd, "%s", c.payload)
		}
		w.ok(a, nil, "group.create", `{"group":%q,"name":%q,"notice":%q}`, long(64), long(256), long(4096))
	})
}

// TestGroupPages: lists come in pages; the cursor stands beside data.
func TestGroupPages(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("ann", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		var want []string
		for i := range 30 {
			id := fmt.Sprintf("g%02d", i)
			w.ok(a, nil, "group.create", `{"group":%q,"name":"n","members":["bob"]}`, id)
			switch i % 5 {
			case 1:
				w.ok(a, nil, "group.dissolve", `{"group":%q}`, id)
			case 3:
				w.ok(b, nil, "group.leave", `{"group":%q}`, id)
			default:
				want = append(want, id)
			}
		}
		pages := func(l *fakeLink, cmd, fields string, limit int) (ids []string) {
			t.Helper()
			cursor := ""
			for range 100 {
				r := w.run(l, cmd, `{"rid":"p",%s"limit":%d,"cursor":%q}`, fields, limit, cursor)
				var list []struct{ Group, User, Role string }
				if r.err != nil {
					t.Fatal(r.err)
				}
				unmarshal(t, r.Data, &list)
				if len(list) > limit {
					t.Errorf("%d entries on a page of %d", len(list), limit)
				}
				for _, g := range list {
					if g.Role == "" {
						t.Errorf("%+v has no role", g)
					}
					ids = append(ids, g.Group+g.User)
				}
				if cursor = r.Cursor; cursor == "" {
					return ids
				}
			}
			t.Fatal("the pages do not end")
			return nil
		}
		for _, limit := range []int{1, 7, 18, 200} {
			if got := pages(b, "group.list", "", limit); !slices.Equal(got, want) {
				t.Errorf("pages of %d: got %v, want %v", limit, got, want)
			}
		}
		w.ok(a, nil, "group.add", `{"group":"g00","users":%s}`, names("u", 1, 40))
		w.ok(a, nil, "group.remove", `{"group":"g00","users":%s}`, names("u", 11, 30))
		want = []string{"ann", "bob"}
		for _, s := range []string{names("u", 1, 10), names("u", 31, 40)} {
			var more []string
			unmarshal(t, []byte(s), &more)
			want = append(want, more...)
		}
		for _, limit := range []int{1, 5, 500} {
			if got := pages(b, "group.members", `"group":"g00",`, limit); !slices.Equal(got, want) {
				t.Errorf("pages of %d: got %v, want %v", limit, got, want)
			}
		}
	})
}

// TestGroupSend: a message to a group, in either profile, reaches its members; state, dup, conflict and ttl are as for a user.
func TestGroupSend(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("ann", "a", persistent, IM), w.connect("bob", "b", persistent, Plain)
		w.ok(a, nil, "group.create", `{"group":"g","name":"n","members":["bob"]}`)
		var s sent
		const msg = `{"rid":"1","to":"g/g","cid":"c1","body":"hi"}`
		w.ok(a, &s, "send", msg)
		if s.State != "sent" || s.Conv != "g/g" || s.Cseq != 2 || s.Cid != "c1" || s.Dup {
			t.Errorf("got %+v", s)
		}
		first := s
		w.ok(a, &s, "send", msg)
		if !s.Dup || s.ID != first.ID || s.Cseq != 2 {
			t.Errorf("got %+v, want a dup of %+v", s, first)
		}
		w.refused(Conflict, a, "send", `{"to":"g/g","cid":"c1","body":"other"}`)
		w.refused(Expired, a, "send", `{"to":"g/g","body":"late","ttl":1,"cts":1}`)
		w.refused(Forbidden, a, "send", `{"to":"g/g","type":"sys.group","body":{"change":"dissolve"}}`)
		tk := b.ticket()
		b.dev.Publish("g/g", Outgoing{Body: []byte("yo"), Cid: "b1"}, tk)
		if s := parseSent(t, w.answer(b, tk)); s.Cseq != 3 || s.State != "sent" {
			t.Errorf("got %+v", s)
		}
		if got := b.bodies(); len(got) != 2 || got[1] != "hi" { // and the first is of sys.group
			t.Errorf("bob got %q", got)
		}
		if got := a.bodies(); len(got) != 2 || got[1] != "yo" {
			t.Errorf("ann got %q", got)
		}
		b.dev.Disconnect(false)
		w.ok(a, &s, "send", `{"rid":"1","to":"g/g","body":"gone?"}`)
		if s.State != "queued" {
			t.Errorf("got %+v", s)
		}

		// The repetition of what was sent before is answered even when it could not be sent now.
		w.ok(a, nil, "group.add", `{"group":"g","users":["cyd"]}`)
		c := w.connect("cyd", "c", persistent, IM)
		w.ok(c, &first, "send", `{"rid":"1","to":"g/g","cid":"c","body":"x"}`)
		w.ok(a, nil, "group.remove", `{"group":"g","users":["cyd"]}`)
		w.refused(NotMember, c, "send", `{"rid":"1","to":"g/g","cid":"other","body":"x"}`)
		w.ok(c, &s, "send", `{"rid":"1","to":"g/g","cid":"c","body":"x"}`)
		if !s.Dup || s.ID != first.ID {
			t.Errorf("got %+v, want a dup of %+v", s, first)
		}
		w.refused(Conflict, c, "send", `{"to":"g/g","cid":"c","body":"y"}`)
	})
}

// TestGroupMute: a mute ends by itself, and not by leaving.
func TestGroupMute(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("ann", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.ok(a, nil, "group.create", `{"group":"g","name":"n","join":"open","members":["bob"]}`)
		until := time.Now().Add(time.Minute).UnixMilli()
		w.ok(a, nil, "group.mute", `{"group":"g","user":"bob","until":%d}`, until)
		if r := w.refused(Muted, b, "send", `{"to":"g/g","body":1}`); !strings.Contains(r.err.Message, fmt.Sprint(until)) {
			t.Errorf("%q does not say until when", r.err.Message)
		}
		w.ok(b, nil, "group.leave", `{"group":"g"}`)
		w.ok(b, nil, "group.join", `{"group":"g"}`)
		w.refused(Muted, b, "send", `{"to":"g/g","body":1}`)
		time.Sleep(time.Minute - time.Millisecond)
		w.refused(Muted, b, "send", `{"to":"g/g","body":1}`)
		time.Sleep(time.Millisecond)
		w.ok(b, nil, "send", `{"to":"g/g","body":1}`)
		// A time that is over is no time, the owner is never mute, and a new owner is unmuted.
		n := len(w.changesOf("g"))
		w.ok(a, nil, "group.mute", `{"group":"g","user":"bob","until":%d}`, until-5)
		w.ok(a, nil, "group.mute", `{"group":"g","user":"bob","until":0}`)
		if got := len(w.changesOf("g")); got != n {
			t.Errorf("%d messages for nothing", got-n)
		}
		w.ok(a, nil, "group.mute", `{"group":"g","user":"bob","until":%d}`, int64(math.MaxInt64))
		w.refused(Muted, b, "send", `{"to":"g/g","body":1}`)
		w.ok(a, nil, "group.transfer", `{"group":"g","user":"bob"}`)
		w.ok(b, nil, "send", `{"to":"g/g","body":1}`)
	})
}

// TestGroupLimits: members of a group, groups of a user, and what makes a group large.
func TestGroupLimits(t *testing.T) {
	cfg := quietly
	cfg.GroupSmallMax, cfg.GroupLargeMax, cfg.GroupsPerUser = 3, 6, 4
	bubble(t, cfg, func(t *testing.T, w *world) {
		a := w.connect("ann", "a", persistent, IM)
		var links []*fakeLink
		for i := 1; i <= 7; i++ {
			links = append(links, w.connect(fmt.Sprintf("u%05d", i), "d", persistent, IM))
		}
		large := func(id string) bool {
			g, err := w.st.Group(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			return g.LargeFrom != 0
		}
		w.refused(GroupFull, a, "group.create", `{"group":"g1","name":"n","members":%s}`, names("u", 1, 6))
		w.ok(a, nil, "group.create", `{"group":"g1","name":"n","join":"open","members":%s}`, names("u", 1, 2))
		if large("g1") {
			t.Error("three are a small group")
		}
		w.ok(a, nil, "group.add", `{"group":"g1","users":%s}`, names("u", 1, 3))
		if g, _ := w.st.Group(t.Context(), "g1"); g.LargeFrom != 2 || g.MemberCount != 4 {
			t.Errorf("got %+v, want a large group from 2 on", g)
		}
		for i, l := range links { // all of them are told
			want := map[bool]int{true: 1}[i < 3]
			n := 0
			for _, e := range l.notesOf(Events, "group") {
				if strings.Contains(e.raw, `"kind":"large"`) {
					n++
				}
			}
			if n != want {
				t.Errorf("u%d got %d events that the group has grown, want %d", i+1, n, want)
			}
		}
		state := w.groupState("g1")
		w.refused(GroupFull, a, "group.add", `{"group":"g1","users":%s}`, names("u", 1, 6))
		if w.groupState("g1") != state {
			t.Error("a list that is too long was added in part")
		}
		w.ok(a, nil, "group.add", `{"group":"g1","users":%s}`, names("u", 1, 5))
		w.refused(GroupFull, links[5], "group.join", `{"group":"g1"}`)
		w.ok(links[4], nil, "group.leave", `{"group":"g1"}`)
		w.ok(links[5], nil, "group.join", `{"group":"g1"}`)
		w.ok(a, nil, "group.remove", `{"group":"g1","users":%s}`, names("u", 1, 6))
		if !large("g1") {
			t.Error("a large group stays large")
		}
		if n := links[1].notesOf(Events, "group"); !strings.Contains(n[len(n)-1].raw, `"remove"`) {
			t.Errorf("who was removed was last told %s", n[len(n)-1].raw)
		}
		grown := 0
		for _, c := range w.changesOf("g1") {
			if c.Kind != "" {
				grown++
			}
		}
		if grown != 1 {
			t.Errorf("%d messages say that the group has become large", grown)
		}

		for i := 2; i <= 4; i++ {
			w.ok(a, nil, "group.create", `{"group":"g%d","name":"n"}`, i)
		}
		w.refused(RateLimited, a, "group.create", `{"group":"g5","name":"n"}`)
		b := links[0]
		w.ok(b, nil, "group.create", `{"group":"g5","name":"n","join":"open"}`)
		w.refused(RateLimited, a, "group.join", `{"group":"g5"}`)
		if r := w.refused(RateLimited, b, "group.add", `{"group":"g5","users":["u00002","ann","u00003"]}`); !strings.Contains(r.err.Message, "ann") {
			t.Errorf("%q does not name the user", r.err.Message)
		}
		w.refused(RateLimited, b, "group.create", `{"group":"g6","name":"n","members":["ann"]}`)
		if g, _ := w.st.Group(t.Context(), "g5"); g.MemberCount != 1 {
			t.Errorf("got %d members, want none of the list", g.MemberCount)
		}
		w.ok(a, nil, "group.dissolve", `{"group":"g4"}`) // an ended one does not count
		w.ok(a, nil, "group.join", `{"group":"g5"}`)
		w.refused(RateLimited, a, "group.create", `{"group":"g6","name":"n"}`)
		w.ok(a, nil, "group.leave", `{"group":"g5"}`) // nor does one that was left
		w.ok(a, nil, "group.create", `{"group":"g7","name":"n"}`)
		cfg.GroupsPerUser, cfg.GroupLargeMax = 0, 2
		w.e.Reconfigure(cfg)
		w.ok(a, nil, "group.create", `{"group":"g6","name":"n"}`)
		w.refused(GroupFull, a, "group.add", `{"group":"g6","users":%s}`, names("u", 1, 2))
	})
}

// TestGroupLongList: a long list is many messages of 500 users at most, between which others are committed; the same
// command again does what is missing, and nothing else.
func TestGroupLongList(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("ann", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		batches, cut := 0, 3
		w.st.set(func() {
			w.st.onCommit = func(batch *store.Batch, commit func() error) error {
				for _, s := range batch.Sends {
					if s.Change == nil {
						continue
					}
					if n := len(s.Change.Members); n > groupPart {
						t.Errorf("%d members in one change", n)
					}
					if len(batch.Sends) > 1 {
						t.Error("two changes of a group in one commit")
					}
					if batches++; batches == cut {
						return store.ErrUnavailable
					}
				}
				return commit()
			}
		})
		create := fmt.Sprintf(`{"rid":"1","group":"g","name":"n","members":%s}`, names("u", 1, 1500))
		w.refused(Unavailable, a, "group.create", "%s", create)
		w.ok(a, nil, "group.remove", `{"group":"g","users":["u00001"]}`)
		var g jsonGroup
		w.ok(a, &g, "group.create", "%s", create)
		if g.Members != 1500 || g.Kind != "large" || batches != 6 {
			t.Errorf("got %+v in %d commits", g, batches)
		}
		if rec, _ := w.st.Group(t.Context(), "g"); rec.LargeFrom != 1 {
			t.Errorf("large from %d, want 1", rec.LargeFrom)
		}
		w.ok(a, nil, "group.add", `{"group":"g","users":["u00001"]}`)
		w.ok(a, nil, "group.remove", `{"group":"g","users":["u00002","u00700","u01400"]}`)
		w.ok(a, &g, "group.create", "%s", create)
		if g.Members != 1498 {
			t.Errorf("created again it has %d members, want 1498", g.Members)
		}
		w.ok(a, nil, "group.add", `{"group":"g","users":%s}`, names("v", 1, 501))
		w.ok(a, nil, "group.role", `{"group":"g","user":"v00500","role":"admin"}`)
		w.ok(a, nil, "group.add", `{"group":"g","users":["bob"]}`)
		w.ok(a, nil, "group.role", `{"group":"g","user":"bob","role":"admin"}`)
		state := w.groupState("g")
		w.refused(Forbidden, b, "group.remove", `{"group":"g","users":%s}`, names("v", 1, 501))
		if w.groupState("g") != state {
			t.Error("a list that is refused was removed in part")
		}
		w.ok(a, nil, "group.remove", `{"group":"g","users":%s}`, names("v", 1, 501))
		w.ok(a, &g, "group.get", `{"rid":"2","group":"g"}`)
		if g.Members != 1499 {
			t.Errorf("got %+v", g)
		}
	})
}
