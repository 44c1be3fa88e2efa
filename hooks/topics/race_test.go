package topics

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mqim/mqim/store"
)

// meddler is a store in which something happens between a session's being read and what follows.
type meddler struct {
	store.Store
	session func() // called after Session
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
