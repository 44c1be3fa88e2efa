package auth

import (
	"context"
	"math"
	"net/netip"
	"sync"
	"time"

	"github.com/mqim/mqim/transport"
	"github.com/mqim/mqim/users"
)

const (
	// Failures that nobody has to wait for: people mistype, and a device with an old password behind the same router as
	// others must not slow them down.
	freeOfUser    = 3
	freeOfAddress = 20
	// forgiven is how long it takes for a failure to be forgotten.
	forgivenUser    = 10 * time.Second
	forgivenAddress = time.Second

	firstDelay  = 100 * time.Millisecond // doubles with every further failure
	maxFailures = 64                     // more are not worth counting
	maxKnown    = 20_000                 // users and addresses each; then one of them, any, is forgotten
	maxWaiting  = 16                     // logins of one address that wait; more are refused, or a guesser would wait in parallel
)

// throttle makes logins wait after failed ones, by address and by user. Logins that wait hold their goroutine for at
// most max.
type throttle struct {
	max time.Duration

	mu        sync.Mutex // guards what follows
	addresses failures
	users     failures
}

// failures are the failed logins of whom there were any of late.
type failures struct {
	free     float64
	forgiven time.Duration
	of       map[string]*record
}

type record struct {
	count   float64 // as of at; one less every forgiven
	at      time.Time
	waiting int
}

func newThrottle(longest time.Duration) *throttle {
	return &throttle{
		max:       longest,
		addresses: failures{free: freeOfAddress, forgiven: forgivenAddress, of: map[string]*record{}},
		users:     failures{free: freeOfUser, forgiven: forgivenUser, of: map[string]*record{}},
	}
}

// source is what a remote address is known by.
func source(remote string) string {
	a, err := netip.ParseAddrPort(remote)
	if err != nil {
		return ""
	}
	return transport.Network(a.Addr()).String()
}

// wait waits as long as the failures of address and user ask for. ok is false when too many wait already, or ctx has
// ended. waited tells whether there was a wait.
func (t *throttle) wait(ctx context.Context, address, user string) (waited, ok bool) {
	t.mu.Lock()
	now := time.Now()
	d := t.addresses.delay(address, now, t.max)
	r := t.addresses.of[address]
	if d > 0 && r.waiting >= maxWaiting {
		t.mu.Unlock()
		return false, false
	}
	d = max(d, t.users.delay(user, now, t.max))
	if d == 0 {
		t.mu.Unlock()
		return false, true
	}
	if r != nil {
		r.waiting++
	}
	t.mu.Unlock()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		ok = true
	case <-ctx.Done():
	}
	if r != nil {
		t.mu.Lock()
		r.waiting--
		t.mu.Unlock()
	}
	return true, ok
}

// failed notes a failed login.
func (t *throttle) failed(address, user string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	t.addresses.add(address, now)
	if users.ValidName(user) {
		t.users.add(user, now)
	}
}

// succeeded forgives the user; not the address, or one good account would let it try others.
func (t *throttle) succeeded(user string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.users.of, user)
}

func (f *failures) delay(key string, now time.Time, longest time.Duration) time.Duration {
	r := f.of[key]
	if r == nil {
		return 0
	}
	if r.settle(now, f.forgiven); r.count == 0 && r.waiting == 0 {
		delete(f.of, key)
	}
	if r.count <= f.free {
		return 0
	}
	return time.Duration(min(float64(firstDelay)*math.Exp2(math.Floor(r.count-f.free)), float64(longest)))
}

func (r *record) settle(now time.Time, forgiven time.Duration) {
	r.count = max(0, r.count-float64(now.Sub(r.at))/float64(forgiven))
	r.at = now
}

func (f *failures) add(key string, now time.Time) {
	if key == "" {
		return
	}
	r := f.of[key]
	if r == nil {
		if len(f.of) >= maxKnown {
			for other := range f.of {
				delete(f.of, other)
				break
			}
		}
		r = &record{at: now}
		f.of[key] = r
	}
	r.settle(now, f.forgiven)
	r.count = min(r.count+1, maxFailures)
}
