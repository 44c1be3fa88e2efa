package auth

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// took is how long a login waits.
func took(th *throttle, address, user string) (time.Duration, bool) {
	start := time.Now()
	_, ok := th.wait(context.Background(), address, user)
	return time.Since(start), ok
}

func TestThrottleUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := newThrottle(time.Second)
		for i, want := range []time.Duration{0, 0, 0, 0, 2 * firstDelay, 4 * firstDelay, 8 * firstDelay, time.Second, time.Second} {
			// From one address each, so that only the user has failed so often; what is forgiven meanwhile is less than one.
			th.users.of["alice"] = &record{count: float64(i), at: time.Now()}
			if d, ok := took(th, fmt.Sprint("10.0.0.", i), "alice"); d != want || !ok {
				t.Errorf("after %d failures: waited %v (%v), want %v", i, d, ok, want)
			}
		}
		if d, _ := took(th, "10.0.0.1", "bob"); d != 0 {
			t.Errorf("another user waited %v", d)
		}
		th.succeeded("alice")
		if d, _ := took(th, "10.0.0.1", "alice"); d != 0 {
			t.Errorf("after a good login: waited %v", d)
		}
		for range 10 {
			th.failed("", "alice")
		}
		time.Sleep(10 * forgivenUser)
		if d, _ := took(th, "10.0.0.1", "alice"); d != 0 || len(th.users.of) != 0 {
			t.Errorf("a while later: waited %v, %d are remembered", d, len(th.users.of))
		}
	})
}

func TestThrottleAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := newThrottle(4 * time.Second)
		for i := range 2 * freeOfAddress {
			if d, _ := took(th, "10.0.0.1", ""); i <= freeOfAddress && d != 0 {
				t.Errorf("attempt %d waited %v", i, d)
			}
			th.failed("10.0.0.1", fmt.Sprint("user", i))
		}
		for range freeOfAddress {
			th.failed("10.0.0.1", "")
		}
		start := time.Now()
		results := make(chan bool)
		for range maxWaiting + 5 {
			go func() { _, ok := th.wait(context.Background(), "10.0.0.1", "nobody"); results <- ok }()
		}
		n := map[bool]int{}
		for range maxWaiting + 5 {
			n[<-results]++
		}
		if n[true] != maxWaiting || time.Since(start) != 4*time.Second {
			t.Errorf("%d waited, %d were refused, in %v; want %d, 5 and 4s", n[true], n[false], time.Since(start), maxWaiting)
		}
		if d, _ := took(th, "10.0.0.2", ""); d != 0 {
			t.Errorf("another address waited %v", d)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		for range freeOfAddress {
			th.failed("10.0.0.1", "")
		}
		if _, ok := th.wait(ctx, "10.0.0.1", ""); ok || th.addresses.of["10.0.0.1"].waiting != 0 {
			t.Error("a wait that was broken off let the login pass, or still counts")
		}
	})
}

func TestThrottleIsBounded(t *testing.T) {
	th := newThrottle(time.Second)
	for i := range maxKnown + 100 {
		th.failed(fmt.Sprint("address", i), fmt.Sprint("user", i))
	}
	th.failed("10.0.0.1", "not a name")
	if a, u := len(th.addresses.of), len(th.users.of); a != maxKnown || u != maxKnown {
		t.Errorf("%d addresses and %d users are remembered, want %d each", a, u, maxKnown)
	}
}

func TestSource(t *testing.T) {
	for remote, want := range map[string]string{
		"10.0.0.1:99": "10.0.0.1", "[::ffff:10.0.0.1]:99": "10.0.0.1", "[2001:db8::7%eth0]:1": "2001:db8::", "pipe": "", "": "",
	} {
		if got := source(remote); got != want {
			t.Errorf("%s: got %q, want %q", remote, got, want)
		}
	}
}
