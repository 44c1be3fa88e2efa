package bus_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/bus/bustest"
)

// trusting is a node whose store says how many live.
type trusting struct {
	t      *testing.T
	trust  *bus.Trust
	living atomic.Int64 // negative: the store does not say
	asked  atomic.Int64
	during atomic.Pointer[func()] // called once while the store is asked
	last   uint64
}

// withTrust runs f in virtual time on node a of a, b and c, all of whom live.
func withTrust(t *testing.T, f func(x *trusting, hub *bustest.Hub, a, b, c *bustest.Node)) {
	synctest.Test(t, func(t *testing.T) {
		hub := bustest.NewHub()
		var nodes []*bustest.Node
		for _, name := range []string{"a", "b", "c"} {
			n := hub.Join(name)
			defer n.Leave()
			nodes = append(nodes, n)
		}
		x := &trusting{t: t}
		x.living.Store(3)
		x.trust = bus.NewTrust(nodes[0], func(context.Context) (int, error) {
			x.asked.Add(1)
			n := x.living.Load()
			if g := x.during.Swap(nil); g != nil {
				(*g)()
			}
			if n < 0 {
				return 9, errors.New("away")
			}
			return int(n), nil
		})
		if x.trust.Term() != 0 {
			t.Error("there is trust before anything was asked")
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); x.trust.Run(ctx) }()
		x.want("at first", true)
		f(x, hub, nodes[0], nodes[1], nodes[2])
		stop()
		<-done
	})
}

// want checks whether there is trust, in a later term where there was none before.
func (x *trusting) want(when string, trust bool) {
	x.t.Helper()
	synctest.Wait()
	term := x.trust.Term()
	if (term != 0) != trust {
		x.t.Errorf("%s: term %d, want trust %t", when, term, trust)
	}
	if x.last = max(x.last, term); term != 0 && term < x.last {
		x.t.Errorf("%s: term %d after %d", when, term, x.last)
	}
}

// TestTrustCutOff: there is no trust from when a node is missed until it is back, or does not live any more, and then it is
// another term.
func TestTrustCutOff(t *testing.T) {
	withTrust(t, func(x *trusting, _ *bustest.Hub, _, b, c *bustest.Node) {
		for _, back := range []bool{true, false} {
			before := x.trust.Term()
			b.Cut(true)
			x.want("cut off", false)
			time.Sleep(time.Minute)
			x.want("cut off for long", false)
			if back {
				b.Cut(false)
			} else {
				x.living.Store(2)
				time.Sleep(time.Second)
			}
			x.want("over", true)
			if x.trust.Term() == before {
				t.Error("it is the term from before")
			}
		}
		// One that says goodbye.
		c.Leave()
		x.living.Store(1)
		time.Sleep(time.Second)
		x.want("gone", true)
	})
}

// TestTrustDown: while the bus is down there is no trust, and nothing is asked.
func TestTrustDown(t *testing.T) {
	withTrust(t, func(x *trusting, _ *bustest.Hub, a, _, _ *bustest.Node) {
		before := x.trust.Term()
		a.Cut(true)
		x.want("down", false)
		asked := x.asked.Load()
		time.Sleep(time.Minute)
		if n := x.asked.Load() - asked; n != 0 {
			t.Errorf("%d questions while the bus is down", n)
		}
		a.Cut(false)
		x.want("back", true)
		if x.trust.Term() == before {
			t.Error("it is the term from before")
		}
		asked = x.asked.Load()
		time.Sleep(time.Minute)
		if n := x.asked.Load() - asked; n < 11 || n > 13 {
			t.Errorf("%d questions in a minute of peace, want 12", n)
		}
	})
}

// TestTrustNeverSeen: a node that lives and was never on the bus is found, and an answer that does not come is no trust.
func TestTrustNeverSeen(t *testing.T) {
	withTrust(t, func(x *trusting, hub *bustest.Hub, _, _, _ *bustest.Node) {
		x.living.Store(4)
		time.Sleep(6 * time.Second)
		x.want("another lives", false)
		d := hub.Join("d")
		defer d.Leave()
		x.want("it has come", true)
		x.living.Store(-1)
		time.Sleep(6 * time.Second)
		x.want("the store is away", false)
		x.living.Store(4)
		time.Sleep(time.Second)
		x.want("it is back", true)
	})
}

// TestTrustMeanwhile: what happens while the store is asked counts: that a node is missed, and that another has come does
// not stand for one that is missing.
func TestTrustMeanwhile(t *testing.T) {
	withTrust(t, func(x *trusting, hub *bustest.Hub, _, b, c *bustest.Node) {
		before := x.trust.Term()
		b.Cut(true)
		x.want("cut off", false)
		missed := func() {
			c.Cut(true)
			time.Sleep(time.Millisecond) // a has seen it
		}
		x.living.Store(2) // b is dead
		x.during.Store(&missed)
		time.Sleep(1100 * time.Millisecond)
		x.want("another is cut off", false)
		c.Cut(false)
		x.want("it is back", true)
		if n := x.trust.Term() - before; n != 1 {
			t.Errorf("trust has begun %d times, want once", n)
		}

		before = x.trust.Term()
		c.Cut(true)
		x.want("cut off again", false)
		came := make(chan *bustest.Node, 1)
		comes := func() {
			x.living.Store(3)
			came <- hub.Join("d")
		}
		x.during.Store(&comes)
		time.Sleep(1100 * time.Millisecond)
		defer (<-came).Leave()
		x.want("a new one has come", false)
		c.Cut(false)
		x.want("it is back again", true)
		if n := x.trust.Term() - before; n != 1 {
			t.Errorf("trust has begun %d times, want once", n)
		}
	})
}
