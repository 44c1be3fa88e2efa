package topics

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mqim/mqim/store"
)

// meddler is a store in which something happens between a session's being read and what follows.
type meddler struct {
	store.Store
	session  func()                 // called after Session
	sessions atomic.Pointer[func()] // called before Sessions
}

func (m *meddler) Sessions(ctx context.Context, after string, limit int) ([]store.Session, error) {
	if f := m.sessions.Load(); f != nil {
		(*f)()
	}
	return m.Store.Sessions(ctx, after, limit)
}

func (m *meddler) Session(ctx context.Context, client string) (store.Session, error) {
	s, err := m.Store.Session(ctx, client)
	if f := m.session; f != nil && err == nil {
		m.session = nil
		f()
	}
	return s, err
}

// A session that ends while it is being resumed is a new one, and never half of each.
func TestSessionEndsWhileItIsResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &meddler{}
		r := newRig(t, setup{pipes: true, wrap: func(s store.Store) store.Store { m.Store = s; return m }})
		sub, pub := r.connect("sub", expiry(10)), r.connect("pub")
		sub.subscribe("t", 1)
		sub.disconnect(0)
		r.gone("sub")
		time.Sleep(9 * time.Second)
		reads := 0
		var between func()
		between = func() {
			if reads++; reads == 1 {
				m.session = between // Claim looks, to tell whose it is
				return
			}
			time.Sleep(2 * time.Second)
			for more := true; more; {
				var err error
				if more, err = r.store.Maintain(t.Context(), time.Now()); err != nil {
					t.Error(err)
				}
			}
		}
		m.session = between
		sub = r.connect("sub", expiry(10))
		if reads != 2 {
			t.Fatalf("the session was read %d times, want 2", reads)
		}
		if !sub.present {
			sub.subscribe("t", 1)
		}
		pub.publish("t", "m", 1)
		sub.message("m")
	})
}

// Recheck does not wait for a store that is slow, looks once for many calls, and is given up when the hook stops.
func TestRecheckHoldsNothingUp(t *testing.T) {
	m := &meddler{}
	r := newRig(t, setup{wrap: func(s store.Store) store.Store { m.Store = s; return m }})
	const n = sessionsPage + 1
	var b store.Batch
	for i := range n {
		c := fmt.Sprintf("away%05d", i)
		b.Sessions = append(b.Sessions, store.Session{Client: c, User: c, Expiry: store.NoExpiry})
		b.Subscribes = append(b.Subscribes, store.Subscription{Client: c, Filter: "secret", Options: []byte{1}})
	}
	if err := r.store.Commit(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	stall, reads := make(chan struct{}), make(chan struct{}, 100)
	m.sessions.Store(ptr(func() { reads <- struct{}{}; <-stall }))
	r.rules.deny("secret")
	r.hook.Recheck() // returns, though the store does not answer
	<-reads
	for range 10 {
		r.hook.Recheck()
	}
	close(stall)
	r.until("both passes end", func() bool {
		r.hook.mu.RLock()
		defer r.hook.mu.RUnlock()
		return !r.hook.rechecking
	})
	if got := 1 + len(reads); got != 6 { // two full pages and an empty one, twice
		t.Errorf("pages read: got %d, want 6", got)
	}
	if subs, err := r.store.Match(t.Context(), "secret"); err != nil || len(subs) > 0 {
		t.Errorf("subscriptions left: got %d, %v, want none", len(subs), err)
	}
	m.sessions.Store(ptr(func() {
		reads <- struct{}{}
		r.hook.mu.RLock()
		for !r.hook.stopped {
			r.hook.mu.RUnlock()
			runtime.Gosched()
			r.hook.mu.RLock()
		}
		r.hook.mu.RUnlock()
	}))
	for len(reads) > 0 {
		<-reads
	}
	r.hook.Recheck()
	<-reads
	if err := r.hook.Stop(); err != nil {
		t.Error(err)
	}
	if n := len(reads); n > 0 {
		t.Errorf("pages read after Stop: got %d, want none", n)
	}
}

func ptr[T any](v T) *T { return &v }
