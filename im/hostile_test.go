package im

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mqim/mqim/store"
)

// TestLargeSyncPage: a page of a large group's log ends at about store.PageBytes, whatever the limit, and what follows
// is in the pages after it.
func TestLargeSyncPage(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		b := w.connect("bob", "b", persistent, None)
		w.create(true, "bob")
		body := strings.Repeat("x", store.PageBytes/4)
		for range 20 {
			w.postTeam("owner", body)
		}
		var cseqs []uint64
		for after := uint64(0); ; {
			r := w.run(b, "sync", `{"rid":"s","conv":"g/team","limit":500,"after":%d}`, after)
			if r.err != nil {
				t.Fatal(r.err)
			}
			if n := len(r.Data); n > 2*store.PageBytes {
				t.Fatalf("a page of %d bytes", n)
			}
			var page struct {
				Messages []struct{ Cseq uint64 }
				Next     uint64
				More     bool
			}
			unmarshal(t, r.Data, &page)
			for _, m := range page.Messages {
				cseqs = append(cseqs, m.Cseq)
			}
			if after = page.Next; !page.More {
				break
			}
		}
		if want := span(1, 21); !slices.Equal(cseqs, want) {
			t.Errorf("got %v, want %v", cseqs, want)
		}
	})
}

// TestTypingMuted: the state of typing is the client's to choose: whoever is muted says nothing by it either.
func TestTypingMuted(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.newGroup("g", "alice", "bob")
		until := time.Now().Add(time.Minute).UnixMilli()
		w.ok(a, nil, "group.mute", `{"group":"g","user":"bob","until":%d}`, until)
		w.refused(Muted, b, "typing", `{"to":"g/g","state":"a message by other means"}`)
		if got := a.notesOf(Events, "typing"); len(got) != 0 {
			t.Errorf("alice is told %+v", got)
		}
		time.Sleep(2 * time.Minute)
		w.ok(b, nil, "typing", `{"to":"g/g","state":"on"}`)
		if got := a.notesOf(Events, "typing"); len(got) != 1 {
			t.Errorf("alice is told %+v", got)
		}
	})
}

// TestFormerMemberHearsNothing: who has left a large group and reads on what it was there for is not told of what is
// recalled since.
func TestFormerMemberHearsNothing(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		owner := w.connect("owner", "o", persistent, IM)
		b := w.connect("bob", "b", persistent, None)
		w.create(true, "bob")
		w.post("team", "owner", "x", "2")
		b.dev.Disconnect(false)
		w.leave("bob")
		later := w.post("team", "owner", "x", "not for bob")
		b = w.connect("bob", "b", persistent, None) // it has something to read yet
		w.ok(owner, nil, "recall", `{"conv":"g/team","cseq":%d}`, later)
		if got := b.notesOf(Events, ""); len(got) != 0 {
			t.Errorf("bob is told %+v", got)
		}
		b.dev.SetProfile(IM, everything)
		synctest.Wait()
		if got := b.deliveries(); len(got) != 3 {
			t.Errorf("bob gets %+v", got)
		}
		w.join("bob")
		w.ok(owner, nil, "recall", `{"conv":"g/team","cseq":2}`)
		if got := b.notesOf(Events, "recall"); len(got) != 1 || got[0].Cseq != 2 {
			t.Errorf("bob, who is back, is told %+v", got)
		}
	})
}

// TestReceiptsStay: no receipts go to whom the reader has blocked, nor to who has left the group.
func TestReceiptsStay(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		c := w.connect("carol", "c", persistent, None)
		w.newGroup("g", "alice", "bob", "carol") // 1
		post := func(body string) (s sent) {
			w.ok(b, &s, "send", `{"rid":"s","to":"g/g","body":%q}`, body)
			return s
		}
		want := func(state string, n int) {
			t.Helper()
			synctest.Wait()
			if got := b.notesOf(Receipts, state); len(got) != n {
				t.Errorf("bob has %d receipts %s, want %d: %+v", len(got), state, n, got)
			}
		}
		first := post("1")
		w.ok(a, nil, "read", `{"conv":"g/g","cseq":%d}`, first.Cseq)
		want("read", 1)
		second := post("2")
		w.setRole("g", "bob", "bob", store.NoRole)
		w.ok(a, nil, "read", `{"conv":"g/g","cseq":%d}`, second.Cseq)
		c.dev.SetProfile(IM, everything)
		synctest.Wait()
		w.ok(c, nil, "ack", `{"conv":"g/g","cseq":%d}`, second.Cseq)
		want("read", 1)
		want("delivered", 0)

		s := w.send(b, "alice", "hi")
		w.send(b, "carol", "hi")
		w.ok(a, nil, "block.add", `{"user":"bob"}`)
		w.ok(a, nil, "ack", `{"conv":"u/bob","cseq":%d}`, s.Cseq)
		w.ok(a, nil, "read", `{"conv":"u/bob","cseq":%d}`, s.Cseq)
		w.ok(c, nil, "read", `{"conv":"u/bob","cseq":1}`)
		want("read", 2)
		want("delivered", 0)
	})
}

// TestCleanStartForgetsGroups: who starts clean begins, in a group that it has left, too, after what the user's devices
// have acknowledged, for good.
func TestCleanStartForgetsGroups(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		b, other := w.connect("bob", "b", persistent, None), w.connect("bob", "other", persistent, IM)
		w.create(true, "bob")
		w.postMany("owner", 3)
		w.leave("bob") // 5
		synctest.Wait()
		w.ok(other, nil, "ack", `{"conv":"g/team","cseq":5}`)
		time.Sleep(time.Second)
		b.dev.Disconnect(false)
		time.Sleep(time.Second)
		b = w.connect("bob", "b", Session{Clean: true, Persistent: true}, IM)
		synctest.Wait()
		if got := b.deliveries(); len(got) != 0 {
			t.Errorf("after a clean start: %+v", got)
		}
		time.Sleep(time.Second)
		b.dev.Disconnect(false)
		time.Sleep(time.Second)
		b = w.connect("bob", "b", persistent, IM)
		synctest.Wait()
		if got := b.deliveries(); len(got) != 0 {
			t.Errorf("after a clean start and another connection: %+v", got)
		}
	})
}

// TestGroupChangeRate: what changes a group or its messages counts like a send, since others are told of it; what only
// asks does not.
func TestGroupChangeRate(t *testing.T) {
	bubble(t, Config{AckTimeout: time.Hour, SendsPerSecond: 1, SendBurst: 1}, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		w.newGroup("g", "alice", "bob")
		for _, c := range []struct{ name, args string }{
			{"group.create", `"name":"x"`}, {"group.update", `"name":"y"`}, {"group.add", `"users":["carol"]`},
			{"group.remove", `"users":["bob"]`}, {"group.join", ``}, {"group.leave", ``}, {"group.role", `"user":"carol","role":"admin"`},
			{"group.mute", `"user":"carol","until":9999999999999`}, {"group.transfer", `"user":"carol"`}, {"group.dissolve", ``},
			{"recall", `"conv":"g/g","cseq":1`}, {"delete", `"conv":"g/g","cseqs":[1]`},
		} {
			time.Sleep(2 * time.Second)
			payload := `{"group":"g"`
			if c.name == "group.create" {
				payload = `{"rid":"1"`
			}
			if c.args != "" {
				payload += "," + c.args
			}
			payload += "}"
			if r := w.run(a, c.name, "%s", payload); r.err != nil && r.err.Code == RateLimited {
				t.Errorf("%s: the first is refused: %v", c.name, r.err)
			}
			w.refused(RateLimited, a, c.name, "%s", payload)
			w.refused(RateLimited, a, "send", `{"to":"u/bob","body":"x"}`)
			w.ok(a, nil, "group.list", `{"rid":"2"}`)
		}
	})
}

// TestQueueCountsInboxes: what a message to a group costs grows with its members, and so does the place that it takes in
// the queue.
func TestQueueCountsInboxes(t *testing.T) {
	cfg := quietly
	cfg.QueueBytes = 1 << 20
	bubble(t, cfg, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, None)
		var members []string
		for i := range 400 {
			members = append(members, fmt.Sprint("u", i))
		}
		w.newGroup("g", "alice", members...)
		release := make(chan struct{})
		w.st.set(func() {
			w.st.onCommit = func(_ *store.Batch, commit func() error) error { <-release; return commit() }
		})
		var wg sync.WaitGroup
		tickets := make(chan Ticket, 100)
		for range 100 {
			wg.Go(func() { tickets <- a.start("send", `{"rid":"s","to":"g/g","body":"x"}`) })
		}
		synctest.Wait()
		w.e.queue.mu.Lock()
		n := len(w.e.queue.items)
		w.e.queue.mu.Unlock()
		if n == 0 || n > 1<<20/(400*inboxBytes) {
			t.Errorf("%d messages to a group of 400 are in a queue of 1 MiB", n)
		}
		close(release)
		wg.Wait()
		for range 100 {
			if r := w.answer(a, <-tickets); r.err != nil {
				t.Error(r.err)
			}
		}
	})
}

// TestConnectWhileFlapping: an admin who adds and removes a user all the time does not keep its devices from connecting,
// and they get what they are to see.
func TestConnectWhileFlapping(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		w.create(true)
		rounds, in, last := 0, false, uint64(0)
		w.st.set(func() {
			w.st.onStream = func(store.DeviceKey) {
				if rounds++; rounds > 20 {
					return
				}
				if in = !in; in {
					last = w.join("bob")
				} else {
					last = w.leave("bob")
				}
			}
		})
		b := w.connect("bob", "b", Session{}, IM)
		if rounds > 5 {
			t.Errorf("the groups of a device that connects were read %d times", rounds)
		}
		w.st.set(func() { w.st.onStream = nil })
		if !in {
			last = w.join("bob")
		}
		synctest.Wait()
		var got []uint64
		for _, d := range b.deliveries() {
			got = append(got, d.cseq)
		}
		if want := span(2, last); !slices.Equal(got, want) {
			t.Errorf("bob gets %v, want %v", got, want)
		}
	})
}

// TestConnectWhileComingBack: what is said while a device connects whose user has left a group and comes back to it.
func TestConnectWhileComingBack(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		w.create(true, "bob") // 1
		w.leave("bob")        // 2
		round := 0
		w.st.set(func() {
			w.st.onStream = func(store.DeviceKey) {
				switch round++; round {
				case 1:
					w.join("bob") // 3
				case 2:
					w.postTeam("owner", "4")
				}
			}
		})
		b := w.connect("bob", "b", Session{}, IM)
		synctest.Wait()
		var got []uint64
		for _, d := range b.deliveries() {
			got = append(got, d.cseq)
		}
		if want := span(1, 4); !slices.Equal(got, want) {
			t.Errorf("bob gets %v, want %v", got, want)
		}
	})
}

// TestSyncFromTheEnd: whatever a client has sync begin with, it is answered, and nothing comes from behind the end.
func TestSyncFromTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, quietly, store.Retention{HistoryTTL: time.Hour})
		b := w.connect("bob", "b", persistent, None)
		w.sendMany(b, "bob", 1, 3)
		w.create(true, "bob")
		w.postTeam("owner", "gone")
		time.Sleep(2 * time.Hour)
		w.postTeam("owner", "there")
		if _, err := w.st.Maintain(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		for _, after := range []uint64{1, 4, 5, 1 << 63, 1<<64 - 2, 1<<64 - 1} {
			for _, conv := range []string{`"conv":"g/team",`, ``} {
				var page struct {
					Messages []struct{ Cseq uint64 }
					Next     uint64
					Trimmed  *struct{ From, To uint64 }
				}
				w.ok(b, &page, "sync", `{"rid":"s",%s"after":%d}`, conv, after)
				if after < 4 {
					continue
				}
				if len(page.Messages) != 0 || page.Next != after || page.Trimmed != nil {
					t.Errorf("sync %s after %d: %+v", conv, after, page)
				}
			}
		}
	})
}
