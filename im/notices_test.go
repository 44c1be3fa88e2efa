package im

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mqim/mqim/store"
)

// large makes a group large.
func (w *world) large(id, by string) {
	w.t.Helper()
	var members []string
	if err := w.e.eachMember(context.Background(), id, func(m *store.Member) { members = append(members, m.User) }); err != nil {
		w.t.Fatal(err)
	}
	w.changeGroup(id, by, func(c *store.Change) { c.Large = true }, members...)
}

// changes lists the recalls and deletions that a device was told of, in order.
func (l *fakeLink) changes() []string {
	synctest.Wait()
	list := []string{}
	for _, n := range l.notesOf(Events, "") {
		switch n.Type {
		case "recall":
			list = append(list, fmt.Sprintf("recall %s %d by %s", n.Conv, n.Cseq, n.By))
		case "delete":
			list = append(list, fmt.Sprintf("delete %s %v", n.Conv, n.Cseqs))
		}
	}
	return list
}

func wantChanges(t testing.TB, l *fakeLink, want ...string) {
	t.Helper()
	if got := l.changes(); !slices.Equal(got, want) {
		t.Errorf("%s/%s was told\n%q, want\n%q", l.dev.User(), l.dev.ID(), got, want)
	}
}

// back connects a device again that was away.
func (w *world) back(l *fakeLink, away time.Duration, p Profile) *fakeLink {
	w.t.Helper()
	l.dev.Disconnect(false)
	time.Sleep(away)
	return w.connect(l.dev.User(), l.dev.ID(), persistent, p)
}

// TestRecallRights: the sender within the window, the owner and admins of a group at any time; twice does no harm.
func TestRecallRights(t *testing.T) {
	bubble(t, Config{AckTimeout: time.Hour, RecallWindow: 2 * time.Minute}, func(t *testing.T, w *world) {
		owner, admin := w.connect("owner", "o", persistent, IM), w.connect("admin", "d", persistent, IM)
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.newGroup("g", "owner", "admin", "alice", "bob") // 1
		w.setRole("g", "owner", "admin", store.Admin)     // 2
		recall := func(l *fakeLink, cseq uint64) *Error {
			t.Helper()
			return w.run(l, "recall", `{"conv":"g/g","cseq":%d}`, cseq).err
		}
		code := func(err *Error) Code {
			if err == nil {
				return "ok"
			}
			return err.Code
		}
		fresh, old := w.post("g", "alice", "a", "fresh"), w.post("g", "alice", "a", "old")
		old2, owners := w.post("g", "alice", "a", "old"), w.post("g", "owner", "o", "owner's")
		direct := w.send(a, "bob", "direct").Cseq
		for _, c := range []struct {
			by   *fakeLink
			cseq uint64
			want Code
		}{
			{b, fresh, Forbidden}, {a, owners, Forbidden}, {owner, 1, Forbidden}, {a, 99, NotFound}, {a, fresh, "ok"}, {a, fresh, "ok"},
			{b, fresh, Forbidden},
		} {
			if got := code(recall(c.by, c.cseq)); got != c.want {
				t.Errorf("%s recalls %d: %s, want %s", c.by.dev.User(), c.cseq, got, c.want)
			}
		}
		time.Sleep(2*time.Minute + time.Second)
		w.refused(Expired, a, "recall", `{"conv":"u/bob","cseq":%d}`, direct)
		w.refused(Forbidden, b, "recall", `{"conv":"u/alice","cseq":%d}`, direct)
		for _, c := range []struct {
			by   *fakeLink
			cseq uint64
			want Code
		}{
			{a, old, Expired}, {a, fresh, "ok"}, {b, old, Forbidden}, {admin, old, "ok"}, {owner, old2, "ok"}, {admin, owners, "ok"}, {a, old, "ok"},
		} {
			if got := code(recall(c.by, c.cseq)); got != c.want {
				t.Errorf("later %s recalls %d: %s, want %s", c.by.dev.User(), c.cseq, got, c.want)
			}
		}
		cfg := *w.e.cfg.Load()
		cfg.RecallWindow = 0
		w.e.Reconfigure(cfg)
		w.ok(a, nil, "recall", `{"conv":"u/bob","cseq":%d}`, direct)
		last := w.post("g", "alice", "a", "last")
		w.setRole("g", "owner", "alice", store.NoRole)
		if got := code(recall(a, last)); got != NotMember {
			t.Errorf("a former member recalls: %s, want %s", got, NotMember)
		}
		want := []string{"recall g/g 3 by alice", "recall g/g 4 by admin", "recall g/g 5 by owner", "recall g/g 6 by admin"}
		wantChanges(t, owner, want...)
		wantChanges(t, b, append(want, "recall u/alice 1 by alice")...)
	})
}

// TestNotices: a device with a session is told what was recalled and deleted while it was away, once.
func TestNotices(t *testing.T) {
	for _, size := range []string{"small", "large"} {
		t.Run(size, func(t *testing.T) {
			bubble(t, Config{AckTimeout: time.Hour}, func(t *testing.T, w *world) {
				a := w.connect("alice", "a", persistent, IM)
				b, b2 := w.connect("bob", "b", persistent, IM), w.connect("bob", "b2", persistent, IM)
				plain := w.connect("bob", "p", persistent, Plain)
				w.newGroup("g", "alice", "bob", "carol")
				w.newGroup("left", "alice", "bob")
				if size == "large" {
					w.large("g", "alice")
					w.large("left", "alice")
				}
				cseq := w.post("g", "alice", "a", "x")
				gone := w.post("left", "alice", "a", "x")
				w.send(a, "bob", "1")
				w.send(a, "bob", "2")
				w.setRole("left", "alice", "bob", store.NoRole)
				time.Sleep(time.Minute)
				b.dev.Disconnect(false)
				plain.dev.Disconnect(false)
				time.Sleep(time.Minute)
				w.ok(a, nil, "recall", `{"conv":"u/bob","cseq":1}`)
				time.Sleep(time.Second)
				w.ok(b2, nil, "delete", `{"conv":"u/alice","cseqs":[1,2]}`)
				time.Sleep(time.Second)
				w.ok(a, nil, "recall", `{"conv":"g/g","cseq":%d}`, cseq)
				w.ok(a, nil, "recall", `{"conv":"g/left","cseq":%d}`, gone)
				time.Sleep(time.Second)
				w.ok(b2, nil, "delete", `{"conv":"g/g","cseqs":[%d]}`, cseq)
				time.Sleep(time.Hour)
				direct := []string{"recall u/alice 1 by alice", "delete u/alice [1 2]"}
				group := []string{fmt.Sprintf("recall g/g %d by alice", cseq), fmt.Sprintf("delete g/g [%d]", cseq)}
				if size == "large" { // those of a large group come after the user's
					slices.Reverse(group)
				}
				b = w.back(b, 0, IM)
				wantChanges(t, b, append(direct, group...)...)
				b.dev.SetProfile(IM, everything)
				b.dev.SetProfile(IM, Replies)
				b.dev.SetProfile(IM, everything)
				wantChanges(t, b, append(direct, group...)...)
				wantChanges(t, w.connect("bob", "new", persistent, IM))
				wantChanges(t, w.back(plain, 0, Plain))
				wantChanges(t, w.back(b, time.Hour, IM))
				// The other device was there, and is not told of its own deletions; carol never was.
				wantChanges(t, b2, direct[0], fmt.Sprintf("recall g/g %d by alice", cseq))
				wantChanges(t, w.connect("carol", "c", persistent, IM))
				if n := noticesTo(t, w, "bob"); n == 0 {
					t.Error("nothing is kept for bob")
				}
			})
		})
	}
}

func noticesTo(t *testing.T, w *world, to string) int {
	t.Helper()
	list, _, err := w.st.Notices(context.Background(), to, 0, "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestNoticesPaged: more than a page, several in one moment, to a device that has no room for a while; cut off it is
// told again by the next connection.
func TestNoticesPaged(t *testing.T) {
	bubble(t, Config{AckTimeout: time.Hour}, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		const n = 5*noticePage + 3
		w.sendMany(a, "bob", 1, n)
		b.dev.Disconnect(false)
		time.Sleep(time.Minute)
		var moment [n + 1]int // in which it was recalled; the order within one is any
		for i := 1; i <= n; i++ {
			if moment[i] = moment[i-1]; i == noticePage/2 || i == 4*noticePage {
				time.Sleep(time.Millisecond)
				moment[i]++
			}
			w.ok(a, nil, "recall", `{"conv":"u/bob","cseq":%d}`, i)
		}
		time.Sleep(time.Minute)

		deaf := newLink()
		deaf.deaf = true
		w.attach(deaf, "bob", "b", persistent)
		deaf.dev.SetProfile(IM, everything)
		time.Sleep(noticeRetry * noticeTries / 2)
		if err := w.e.flush(context.Background()); err != nil { // writes what it says of last_seen
			t.Fatal(err)
		}
		deaf.dev.Disconnect(false)
		time.Sleep(time.Minute)

		l := newLink()
		l.deaf = true
		w.attach(l, "bob", "b", persistent)
		l.dev.SetProfile(IM, everything)
		time.Sleep(noticeRetry * noticeTries / 2)
		l.dev.SetProfile(IM, Replies)
		l.dev.SetProfile(IM, everything) // it is still being told
		l.mu.Lock()
		l.deaf = false
		l.mu.Unlock()
		time.Sleep(noticeRetry)
		synctest.Wait()
		var got []uint64
		for _, x := range l.notesOf(Events, "recall") {
			got = append(got, x.Cseq)
		}
		if !slices.IsSortedFunc(got, func(a, b uint64) int { return moment[a] - moment[b] }) {
			t.Errorf("newer before older: %v", got)
		}
		if slices.Sort(got); !slices.Equal(got, span(1, n)) {
			t.Errorf("told of %v, want each of 1 to %d once", got, n)
		}
		wantChanges(t, w.back(l, time.Minute, IM))
	})
}

// TestNoticeRendered: one payload, each reader's address.
func TestNoticeRendered(t *testing.T) {
	c := deletionOf(store.Direct("alice", "bob"), []uint64{3, 1})
	got, ok := parseNotice(c.payload())
	if want := `{"type":"delete","conv":"u/bob","cseqs":[3,1]}`; !ok || string(got.event("alice")) != want {
		t.Errorf("alice gets %s, want %s", got.event("alice"), want)
	}
	if want := `{"type":"delete","conv":"u/alice","cseqs":[3,1]}`; string(got.event("bob")) != want {
		t.Errorf("bob gets %s, want %s", got.event("bob"), want)
	}
	for _, bad := range []string{"", "delete", "delete\nu/a/b"} {
		if _, ok := parseNotice([]byte(bad)); ok {
			t.Errorf("%q is taken for a change", bad)
		}
	}
}

// TestDeleteSurvives: what a user has deleted stays away after a restart, for the user alone.
func TestDeleteSurvives(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.newGroup("g", "alice", "bob")
		w.post("g", "alice", "a", "2")
		w.post("g", "alice", "a", "3")
		w.ok(b, nil, "delete", `{"conv":"g/g","cseqs":[2]}`)
		a.dev.Disconnect(false)
		b.dev.Disconnect(false)
		if err := w.e.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		w.e = New(w.st, quietly)
		a, b = w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		if got, _ := w.historyPage(b, `"conv":"g/g"`); !slices.Equal(got, []uint64{1, 3}) {
			t.Errorf("bob reads %v", got)
		}
		if got, _ := w.historyPage(a, `"conv":"g/g"`); !slices.Equal(got, []uint64{1, 2, 3}) {
			t.Errorf("alice reads %v", got)
		}
		wantChanges(t, b, "delete g/g [2]")
		wantChanges(t, a)
	})
}
