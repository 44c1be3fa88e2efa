package im

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/mqim/mqim/store"
)

// membershipReplay is who is in a group by what its log says.
type membershipReplay struct {
	owner string
	roles map[string]store.Role
	spans map[string][]store.Span
}

// apply takes a message of the log, and says what is wrong with it.
func (r *membershipReplay) apply(m *store.Message) error {
	if m.Type != "sys.group" {
		if r.roles[m.From] == store.NoRole {
			return fmt.Errorf("%s sent %d without being a member", m.From, m.Cseq)
		}
		return nil
	}
	var b groupBody
	if err := json.Unmarshal(m.Body, &b); err != nil {
		return err
	}
	by := r.roles[b.By]
	for _, u := range b.Users {
		was := r.roles[u]
		switch b.Change {
		case "create", "add", "join":
			if was != store.NoRole || b.Change == "add" && by < store.Admin || b.Change == "join" && u != b.By {
				return fmt.Errorf("cseq %d, %s: %s was %d, by %d", m.Cseq, m.Body, u, was, by)
			}
			r.roles[u] = store.Ordinary
			r.spans[u] = append(r.spans[u], store.Span{From: m.Cseq})
		case "leave", "remove":
			if was == store.NoRole || was == store.Owner || b.Change == "remove" && by <= max(was, store.Ordinary) || b.Change == "leave" && u != b.By {
				return fmt.Errorf("cseq %d, %s: %s was %d, by %d", m.Cseq, m.Body, u, was, by)
			}
			delete(r.roles, u)
			r.spans[u][len(r.spans[u])-1].To = m.Cseq
		case "role":
			if by != store.Owner || was == store.NoRole || was == store.Owner {
				return fmt.Errorf("cseq %d, %s: %s was %d, by %d", m.Cseq, m.Body, u, was, by)
			}
			r.roles[u] = map[string]store.Role{"admin": store.Admin, "member": store.Ordinary}[b.Role]
		case "transfer":
			if by != store.Owner || was == store.NoRole {
				return fmt.Errorf("cseq %d, %s: %s was %d, by %d", m.Cseq, m.Body, u, was, by)
			}
			r.roles[b.By], r.roles[u], r.owner = store.Admin, store.Owner, u
		}
	}
	if b.Change == "create" {
		r.roles[b.By], r.owner = store.Owner, b.By
	}
	return nil
}

// TestGroupConcurrent: twenty users join, leave, add, remove and promote at once, on two nodes of one store, while they
// talk. What the log says happened is what the store says is, and happened by the rules, in this order. MQIM_SEED runs
// one seed.
func TestGroupConcurrent(t *testing.T) {
	seed := rand.Uint64()
	if s := os.Getenv("MQIM_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	defer func() {
		if t.Failed() {
			t.Logf("MQIM_SEED=%d", seed)
		}
	}()
	const users, steps = 20, 60
	cfg := quietly
	cfg.GroupSmallMax = 8 + int(seed%20) // in some runs it becomes large
	w := newWorld(t, cfg, store.Retention{})
	other := New(w.st, func() Config { c := cfg; c.Log = quiet; return c }())
	defer func() {
		if err := other.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	var links []*fakeLink
	for i := range users {
		e := w.e
		if i%2 == 1 {
			e = other
		}
		l := newLink()
		l.ack = true
		d, err := e.Connect(t.Context(), fmt.Sprint("u", i), "d", Session{}, l)
		if err != nil {
			t.Fatal(err)
		}
		l.dev = d
		l.dev.SetProfile(IM, everything)
		links = append(links, l)
	}
	done := func(l *fakeLink, cmd, payload string, args ...any) *Error {
		got := l.answersTo(l.start(cmd, payload, args...))
		if len(got) != 1 {
			t.Errorf("%s: %d answers when it returned", cmd, len(got))
			return nil
		}
		return got[0].err
	}
	if err := done(links[0], "group.create", `{"group":"g","name":"n","join":"open","members":["u1","u2","u3","u4"]}`); err != nil {
		t.Fatal(err)
	}
	for _, u := range []string{"u1", "u2"} {
		if err := done(links[0], "group.role", `{"group":"g","user":%q,"role":"admin"}`, u); err != nil {
			t.Fatal(err)
		}
	}
	var tally sync.Map
	var wg sync.WaitGroup
	for i, l := range links {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			who := func() string { return fmt.Sprint("u", r.IntN(users)) }
			for range steps {
				var err *Error
				cmd := ""
				switch n := r.IntN(100); {
				case n < 20:
					cmd, err = "join", done(l, "group.join", `{"group":"g"}`)
				case n < 35:
					cmd, err = "leave", done(l, "group.leave", `{"group":"g"}`)
				case n < 55:
					cmd, err = "add", done(l, "group.add", `{"group":"g","users":[%q,%q,%q]}`, who(), who(), who())
				case n < 70:
					cmd, err = "remove", done(l, "group.remove", `{"group":"g","users":[%q,%q]}`, who(), who())
				case n < 75:
					cmd, err = "role", done(l, "group.role", `{"group":"g","user":%q,"role":"admin"}`, who())
				case n < 78:
					cmd, err = "transfer", done(l, "group.transfer", `{"group":"g","user":%q}`, who())
				default:
					l.start("send", `{"to":"g/g","body":1}`)
					continue
				}
				key := cmd + " ok"
				if err != nil {
					key = cmd + " " + string(err.Code)
				}
				n, _ := tally.LoadOrStore(key, new(atomic.Int64))
				n.(*atomic.Int64).Add(1)
				if err != nil && !slices.Contains([]Code{Forbidden, NotMember, NotFound}, err.Code) {
					t.Errorf("%s: %v", cmd, err)
				}
			}
		})
	}
	wg.Wait()
	for _, e := range []*Engine{w.e, other} {
		if err := e.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"join ok", "leave ok", "add ok", "remove ok"} {
		if _, ok := tally.Load(key); !ok {
			t.Errorf("nobody ever did: %s", key)
		}
	}

	r := membershipReplay{roles: map[string]store.Role{}, spans: map[string][]store.Span{}}
	changes := uint64(0)
	for i, m := range w.log("g") {
		if m.Cseq != uint64(i+1) {
			t.Fatalf("message %d has cseq %d", i+1, m.Cseq)
		}
		if err := r.apply(m); err != nil {
			t.Error(err)
		}
		if m.Type == "sys.group" {
			changes++
		}
	}
	g, err := w.st.Group(t.Context(), "g")
	if err != nil || g.Version != changes || g.MemberCount != uint64(len(r.roles)) || g.Owner != r.owner {
		t.Errorf("got %+v, %v; want version %d, owner %s and %d members", g, err, changes, r.owner, len(r.roles))
	}
	list, _, err := w.st.Members(t.Context(), "g", "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	roles := map[string]store.Role{}
	for _, m := range list {
		roles[m.User] = m.Role
	}
	if !maps.Equal(roles, r.roles) {
		t.Errorf("members are %v, the log says %v", roles, r.roles)
	}
	for user, spans := range r.spans {
		m, err := w.st.Member(t.Context(), "g", user)
		if n := len(spans); n > store.MaxSpans {
			spans = spans[n-store.MaxSpans:]
		}
		if err != nil || !slices.Equal(m.Spans, spans) {
			t.Errorf("%s: %v, spans are %v, the log says %v", user, err, m.Spans, spans)
		}
	}
}

// TestGroupInTurn: the changes of a group on one node wait for each other, and none is made twice.
func TestGroupInTurn(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, a2 := w.connect("ann", "a", persistent, IM), w.connect("ann", "a2", persistent, IM)
		w.ok(a, nil, "group.create", `{"group":"g","name":"n"}`)
		release := w.hold()
		var wg sync.WaitGroup
		for i, l := range []*fakeLink{a, a2} {
			wg.Go(func() { l.start("group.add", `{"group":"g","users":["u%d"]}`, i) })
		}
		synctest.Wait()
		var changed atomic.Int64
		w.st.set(func() {
			hold := w.st.onCommit
			w.st.onCommit = func(b *store.Batch, commit func() error) error {
				err := hold(b, commit)
				for _, s := range b.Sends {
					if s.Err != nil {
						changed.Add(1)
					}
				}
				return err
			}
		})
		release()
		wg.Wait()
		if n := changed.Load(); n != 0 || len(w.changesOf("g")) != 3 {
			t.Errorf("%d changes were refused, %d made", n, len(w.changesOf("g")))
		}
	})
}
