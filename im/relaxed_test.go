package im

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/mqim/mqim/store"
)

func (s *faultStore) page(ctx context.Context, call string) {
	s.mu.Lock()
	f := s.onPage
	s.mu.Unlock()
	if f != nil {
		f(ctx, call)
	}
}

func (s *faultStore) History(ctx context.Context, user string, conv store.Conv, r store.Range) ([]*store.Message, error) {
	s.page(ctx, "history")
	return s.Store.History(ctx, user, conv, r)
}

func (s *faultStore) ListConversations(ctx context.Context, user, cursor string, limit int) ([]store.Conversation, string, error) {
	s.page(ctx, "conversations")
	return s.Store.ListConversations(ctx, user, cursor, limit)
}

func (s *faultStore) Members(ctx context.Context, group, after string, limit int) ([]store.Member, string, error) {
	s.page(ctx, "members")
	return s.Store.Members(ctx, group, after, limit)
}

func (s *faultStore) Memberships(ctx context.Context, user, after string, limit int) ([]store.Membership, string, error) {
	s.page(ctx, "memberships")
	return s.Store.Memberships(ctx, user, after, limit)
}

// TestRelaxed: what people page through may be a moment old; what is delivered, and what anything is decided by, may not.
func TestRelaxed(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, w *world) {
		w.create(true, "ann", "bob")
		w.postMany("owner", 20)
		var mu sync.Mutex
		seen := map[string]int{}
		w.st.set(func() {
			w.st.onPage = func(ctx context.Context, call string) {
				user, relaxed := store.RelaxedFor(ctx)
				if relaxed && user != "ann" {
					t.Errorf("%s on behalf of %q", call, user)
				}
				mu.Lock()
				defer mu.Unlock()
				seen[fmt.Sprint(call, " ", relaxed)]++
			}
		})
		a := w.connect("ann", "1", persistent, IM)
		synctest.Wait()
		check := func(what string, want map[string]int) {
			t.Helper()
			mu.Lock()
			defer mu.Unlock()
			if !maps.Equal(seen, want) {
				t.Errorf("%s: got %v, want %v", what, seen, want)
			}
			clear(seen)
		}
		mu.Lock()
		if seen["history false"] == 0 || seen["history true"] != 0 || seen["memberships true"] != 0 {
			t.Errorf("delivered from a large group: %v", seen)
		}
		clear(seen)
		mu.Unlock()
		w.ok(a, nil, "history", `{"conv":"g/team"}`)
		check("history", map[string]int{"history true": 1})
		w.ok(a, nil, "history", `{"conv":"g/team","before":9}`)
		check("history before", map[string]int{"history true": 1})
		w.ok(a, nil, "history", `{"conv":"g/team","after":9}`)
		check("history after", map[string]int{"history false": 1})
		w.ok(a, nil, "conversations", `{}`)
		check("conversations", map[string]int{"conversations true": 1})
		w.ok(a, nil, "group.list", `{}`)
		check("group.list", map[string]int{"memberships true": 1})
		w.ok(a, nil, "group.members", `{"group":"team"}`)
		check("group.members", map[string]int{"members true": 1})
	})
}
