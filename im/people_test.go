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

// countDrops counts what is dropped, by reason.
type countDrops struct {
	noMetrics
	mu sync.Mutex
	n  map[string]int
}

func (c *countDrops) Dropped(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[reason]++
}

func (c *countDrops) of(reason string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[reason]
}

// TestGroupTyping: the other devices of a small group's members are told, those who have blocked the sender are not; a
// large group is not told. It counts like a send.
func TestGroupTyping(t *testing.T) {
	drops := &countDrops{}
	bubble(t, Config{AckTimeout: time.Hour, SendsPerSecond: 1, SendBurst: 3, Metrics: drops}, func(t *testing.T, w *world) {
		a, a2 := w.connect("alice", "a", persistent, IM), w.connect("alice", "a2", persistent, IM)
		b, c, gone := w.connect("bob", "b", persistent, IM), w.connect("carol", "c", persistent, IM), w.connect("dave", "d", persistent, IM)
		w.newGroup("g", "alice", "bob", "carol", "dave")
		w.setRole("g", "dave", "dave", store.NoRole)
		w.ok(c, nil, "block.add", `{"user":"alice"}`)
		w.ok(a, nil, "typing", `{"to":"g/g","state":"on"}`)
		for l, want := range map[*fakeLink]int{a: 0, a2: 1, b: 1, c: 0, gone: 0} {
			ev := l.notesOf(Events, "typing")
			if len(ev) != want || want > 0 && (ev[0].Conv != "g/g" || ev[0].From != "alice" || ev[0].State != "on") {
				t.Errorf("%s/%s: typing events %+v, want %d", l.dev.User(), l.dev.ID(), ev, want)
			}
		}
		w.large("g", "alice")
		w.ok(a, nil, "typing", `{"to":"g/g","state":"on"}`)
		w.ok(a, nil, "typing", `{"to":"u/bob","state":"on"}`)
		w.refused(RateLimited, a, "typing", `{"to":"u/bob","state":"on"}`)
		w.refused(RateLimited, a, "typing", `{"to":"g/g","state":"on"}`)
		w.refused(RateLimited, a, "send", `{"to":"u/bob","body":"hi"}`)
		if got := drops.of("typing_large"); got != 1 {
			t.Errorf("typing_large counted %d times, want 1", got)
		}
		if ev := b.notesOf(Events, "typing"); len(ev) != 2 || ev[1].Conv != "u/alice" {
			t.Errorf("bob's typing events %+v", ev)
		}
	})
}

type presenceOf struct {
	User     string
	Online   bool
	LastSeen int64 `json:"last_seen"`
	Devices  int
}

// TestPresenceAmong: users see each other who have exchanged a message or are in a group together, unless one has
// blocked the other.
func TestPresenceAmong(t *testing.T) {
	bubble(t, Config{AckTimeout: time.Hour, PresenceGrace: time.Second}, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		b := w.connect("bob", "b", persistent, IM)
		sees := func(want bool) {
			t.Helper()
			for l, other := range map[*fakeLink]string{a: "bob", b: "alice"} {
				var list []presenceOf
				w.ok(l, &list, "presence.get", `{"rid":"1","users":[%q]}`, other)
				if len(list) != 1 || list[0].User != other || list[0].Online != want || (list[0].Devices > 0) != want || (list[0].LastSeen > 0) != want {
					t.Fatalf("%s sees %+v, want online %v", l.dev.User(), list, want)
				}
			}
		}
		sees(false)
		var self []presenceOf
		w.ok(a, &self, "presence.get", `{"rid":"1","users":["alice"]}`)
		if !self[0].Online {
			t.Errorf("alice sees herself as %+v", self)
		}
		w.newGroup("g", "alice", "carol")
		w.newGroup("other", "bob")
		sees(false)
		w.setRole("g", "alice", "bob", store.Ordinary)
		sees(true)
		w.setRole("g", "alice", "bob", store.NoRole)
		time.Sleep(acquaintedFor)
		sees(false)
		w.setRole("g", "alice", "bob", store.Ordinary)
		w.large("g", "alice")
		sees(true)
		w.changeGroup("g", "alice", func(c *store.Change) { c.End = true })
		time.Sleep(acquaintedFor)
		sees(false)
		w.send(a, "bob", "hi")
		sees(true)
		w.ok(b, nil, "block.add", `{"user":"alice"}`)
		sees(false)
		w.ok(b, nil, "block.remove", `{"user":"alice"}`)
		sees(true)
	})
}

// TestPresenceTold: a watcher is told of those who may be seen at the moment of telling, and not of a connection that
// flaps within the grace.
func TestPresenceTold(t *testing.T) {
	bubble(t, Config{AckTimeout: time.Hour, PresenceGrace: 2 * time.Second}, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.ok(a, nil, "presence.watch", `{"users":["bob"]}`)
		told := func(want ...bool) {
			t.Helper()
			synctest.Wait()
			got := []bool{}
			for _, ev := range a.notesOf(Events, "presence") {
				if got = append(got, ev.Online); ev.User != "bob" {
					t.Errorf("told of %s", ev.User)
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("alice was told %v, want %v", got, want)
			}
		}
		offline := func() {
			b.dev.Disconnect(false)
			time.Sleep(3 * time.Second)
		}
		offline()
		b = w.connect("bob", "b", persistent, IM)
		told() // a stranger
		w.send(a, "bob", "hi")
		offline()
		told(false)
		b = w.connect("bob", "b", persistent, IM)
		told(false, true)
		for range 10 {
			b.dev.Disconnect(false)
			time.Sleep(1900 * time.Millisecond)
			b = w.connect("bob", "b", persistent, IM)
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(time.Minute)
		told(false, true)
		w.ok(a, nil, "block.add", `{"user":"bob"}`)
		offline()
		told(false, true)
		w.ok(a, nil, "block.remove", `{"user":"bob"}`)
		b = w.connect("bob", "b", persistent, IM)
		told(false, true, true)
		w.ok(b, nil, "block.add", `{"user":"alice"}`)
		offline()
		told(false, true, true)
	})
}

// TestWatchBound: a device watches so many users and no more; what it stops watching makes room.
func TestWatchBound(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		names := func(from, n int) string {
			s := ""
			for i := range n {
				s += fmt.Sprintf(`,"user%d"`, from+i)
			}
			return s[1:]
		}
		w.ok(a, nil, "presence.watch", `{"users":[%s]}`, names(0, 500))
		w.ok(a, nil, "presence.watch", `{"users":[%s]}`, names(500, 500))
		w.ok(a, nil, "presence.watch", `{"users":[%s]}`, names(400, 500))
		w.refused(RateLimited, a, "presence.watch", `{"users":["one"]}`)
		w.ok(a, nil, "presence.unwatch", `{"users":["user3"]}`)
		w.ok(a, nil, "presence.watch", `{"users":["one"]}`)
		w.refused(RateLimited, a, "presence.watch", `{"users":["user3"]}`)
		p := &w.e.presence
		p.mu.Lock()
		n := len(p.watched)
		p.mu.Unlock()
		if n != maxWatched {
			t.Errorf("%d users are watched, want %d", n, maxWatched)
		}
		a.dev.Disconnect(false)
		if p.mu.Lock(); len(p.watched) != 0 {
			t.Errorf("%d users are watched by nobody", len(p.watched))
		}
		p.mu.Unlock()
	})
}

// TestTellingHoldsNobodyUp: a watcher that cannot be written to does not keep the user from connecting, nor others.
func TestTellingHoldsNobodyUp(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := newLink(), w.connect("bob", "b", persistent, IM)
		stuck, release := make(chan struct{}), make(chan struct{})
		w.attach(a, "alice", "a", persistent)
		a.dev.SetProfile(IM, everything)
		w.send(a, "bob", "hi")
		w.ok(a, nil, "presence.watch", `{"users":["bob"]}`)
		b.dev.Disconnect(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		once := sync.OnceFunc(func() { close(stuck); <-release })
		a.onNotify = once
		b = w.connect("bob", "b", persistent, IM)
		<-stuck
		c := w.connect("carol", "c", persistent, IM)
		w.send(c, "bob", "hi")
		if got := b.bodies(); !slices.Contains(got, "hi") {
			t.Errorf("bob got %q", got)
		}
		close(release)
		synctest.Wait()
		if ev := a.notesOf(Events, "presence"); len(ev) != 2 || !ev[1].Online {
			t.Errorf("alice was told %+v", ev)
		}
	})
}

// TestBlockedInGroup: nothing of a blocked user arrives but what he writes to a group and what he takes back.
func TestBlockedInGroup(t *testing.T) {
	bubble(t, Config{AckTimeout: time.Hour, PresenceGrace: time.Second}, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.newGroup("g", "alice", "bob")
		direct := w.send(a, "bob", "direct")
		w.ok(b, nil, "presence.watch", `{"users":["alice"]}`)
		w.ok(b, nil, "block.add", `{"user":"alice"}`)
		w.refused(Blocked, a, "send", `{"to":"u/bob","body":"no"}`)
		w.ok(a, nil, "typing", `{"to":"u/bob"}`)
		w.ok(a, nil, "typing", `{"to":"g/g"}`)
		cseq := w.post("g", "alice", "a", "group")
		w.ok(a, nil, "recall", `{"conv":"u/bob","cseq":%d}`, direct.Cseq)
		w.ok(a, nil, "recall", `{"conv":"g/g","cseq":%d}`, cseq)
		a.dev.Disconnect(false)
		time.Sleep(time.Minute)
		w.connect("alice", "a", persistent, IM)
		wantChanges(t, b, "recall u/alice 1 by alice", fmt.Sprintf("recall g/g %d by alice", cseq))
		for _, kind := range []string{"typing", "presence"} {
			if ev := b.notesOf(Events, kind); len(ev) != 0 {
				t.Errorf("bob got %+v", ev)
			}
		}
		var got []string
		for _, d := range b.deliveries() {
			if !strings.HasPrefix(d.body, "{") {
				got = append(got, d.body)
			}
		}
		if want := []string{"direct", "group"}; !slices.Equal(got, want) {
			t.Errorf("bob got %q, want %q", got, want)
		}
	})
}
