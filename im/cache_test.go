package im

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"

	"github.com/mqim/mqim/store"
)

// TestCache: what is remembered is bounded, and never older than the last change that was told of.
func TestCache(t *testing.T) {
	var c cache[int, int]
	reads, now := 0, 0
	var during func()
	c.init(4, strconv.Itoa, func(_ context.Context, k int) (int, error) {
		reads++
		if k < 0 {
			return 0, errors.New("no")
		}
		v := 100*k + now
		if during != nil {
			during()
		}
		return v, nil
	})
	get := func(k, want, wantReads int) {
		t.Helper()
		before := reads
		if v, err := c.get(t.Context(), k); err != nil || v != want || reads-before != wantReads {
			t.Errorf("get %d: %d, %v, %d reads; want %d, %d reads", k, v, err, reads-before, want, wantReads)
		}
	}
	for k := range 4 {
		get(k, 100*k, 1)
		get(k, 100*k, 0)
	}
	for k := 4; k < 7; k++ { // the first four are the older generation now
		get(k, 100*k, 1)
	}
	get(1, 100, 0) // and those in use stay
	get(8, 800, 1)
	get(9, 900, 1)
	get(1, 100, 0)
	get(0, 0, 1)
	for k := range 1000 {
		if _, err := c.get(t.Context(), k); err != nil {
			t.Fatal(err)
		}
		if n := c.len(); n > 8 {
			t.Fatalf("got %d entries, want at most 8", n)
		}
	}
	get(999, 99900, 0)
	now = 1
	c.forget(998, 999)
	get(999, 99901, 1)
	get(998, 99801, 1)
	get(997, 99700, 0)
	for k := range 5 { // what was remembered then is the older generation
		get(2000+k, 100*(2000+k)+1, 1)
	}
	c.forget(999)
	get(999, 99901, 1)

	during = func() { now = 2; c.forget(5) } // the change comes after the read, before it is remembered
	get(5, 501, 1)
	during = nil
	get(5, 502, 1)
	get(5, 502, 0)
	for range 2 {
		if _, err := c.get(t.Context(), -1); err == nil {
			t.Error("want an error, which is not remembered")
		}
	}
}

// TestCacheEntries: what /metrics tells of.
func TestCacheEntries(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a := w.connect("ann", "a", persistent, IM)
		w.ok(a, nil, "group.create", `{"group":"g","name":"n"}`)
		for i := range 3 {
			w.send(a, fmt.Sprint("u", i), "x")
		}
		for range 2 {
			w.ok(a, nil, "send", `{"to":"g/g","body":1}`)
		}
		w.ok(a, nil, "presence.get", `{"users":["u0"]}`)
		for name, want := range map[string]int{"blocks": 4, "groups": 1, "members": 1, "acquainted": 1} {
			if got := w.e.CacheEntries()[name](); got != want {
				t.Errorf("%s: got %d entries, want %d", name, got, want)
			}
		}
	})
}

// TestForgetBeforeAnswer: who learns of a change finds it done.
func TestForgetBeforeAnswer(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("ann", "a", persistent, IM), newLink()
		w.attach(b, "bob", "b", persistent)
		seen := 0
		b.onNotify = func() {
			// The change has just been told, and bob's device answers at once.
			seen++
			if _, err := w.e.maySend("g", "bob"); (err == nil) != (seen%2 == 1) {
				t.Errorf("event %d: bob may send: %v", seen, err)
			}
		}
		b.dev.SetProfile(IM, everything)
		w.ok(a, nil, "group.create", `{"group":"g","name":"n"}`)
		w.refused(NotMember, b, "send", `{"to":"g/g","body":1}`)
		for _, step := range []struct{ cmd, fields string }{
			{"group.add", `"users":["bob"]`}, {"group.mute", `"user":"bob","until":9999999999999`},
			{"group.mute", `"user":"bob","until":0`}, {"group.remove", `"users":["bob"]`}, {"group.add", `"users":["bob"]`},
			{"group.dissolve", `"x":1`},
		} {
			_, _ = w.e.maySend("g", "bob") // it is remembered
			w.ok(a, nil, step.cmd, `{"group":"g",%s}`, step.fields)
		}
		if seen != 6 {
			t.Errorf("bob saw %d events, want 6", seen)
		}
	})
}

// TestStaleMember: where the engine remembers wrongly who is a member, the store decides.
func TestStaleMember(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a := w.connect("ann", "a", persistent, IM)
		w.ok(a, nil, "group.create", `{"group":"g","name":"n"}`)
		w.e.members.entries.put(memberKey{"g", "bob"}, entry[part]{v: part{role: store.Ordinary}})
		w.e.groups.entries.put("none", entry[standing]{v: standing{lives: true}})
		w.e.members.entries.put(memberKey{"none", "bob"}, entry[part]{v: part{role: store.Ordinary}})
		b := w.connect("bob", "b", persistent, IM)
		w.refused(NotMember, b, "send", `{"to":"g/g","body":1}`)
		w.refused(NotFound, b, "send", `{"to":"g/none","body":1}`)
	})
}
