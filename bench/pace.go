package bench

import (
	"context"
	"sync"
	"time"
)

// due is when message g of all senders together is due: message n of sender i is g = n×senders + i, so that senders
// take turns at even distances.
func (f *flow) due(g uint64) int64 {
	return f.from.Load() - int64(f.o.Warmup) + int64(float64(g)*1e9/f.o.Rate)
}

// scheduled is how many messages become due in a rate-limited run, warm-up included, rounded up.
func (f *flow) scheduled() int64 {
	warm := f.o.Rate * f.o.Warmup.Seconds()
	if f.o.Count > 0 {
		return int64(warm) + f.o.Count
	}
	return int64(warm+f.o.Rate*f.o.Duration.Seconds()) + 1
}

// pace keeps the schedule of a rate-limited run, open loop: a message becomes due when its time has come, whatever
// became of those before it, and what the window holds back keeps its due time, so that a broker that stalls is charged
// for every message that should have been sent meanwhile (coordinated omission is measuring only the one that was).
// It closes quota when Count messages have become due after the warm-up.
func (f *flow) pace(stop <-chan struct{}, quota chan<- struct{}) {
	senders := uint64(len(f.senders))
	total := uint64(noLimit)
	if f.o.Count > 0 {
		total = uint64(f.scheduled())
	}
	limits := make([]uint64, senders)
	clockwork := newAlarm()
	defer clockwork.close()
	for g := uint64(0); g < total; {
		now := clock()
		first := g
		for g < total && f.due(g) <= now {
			limits[g%senders]++
			g++
		}
		for k := first; k < min(g, first+senders); k++ {
			f.senders[k%senders].raise(limits[k%senders]) //nolint:errcheck // its reader reports it
		}
		if g < total && !clockwork.until(f.due(g), stop) {
			return
		}
	}
	close(quota)
}

// until waits for a time on clock, and tells whether it came before stop.
func (a *alarm) until(at int64, stop <-chan struct{}) bool {
	const coarse = 2 * time.Millisecond // beyond this a timer of the runtime is exact enough, and can be interrupted
	for {
		left := time.Duration(at - clock())
		if left > coarse {
			t := time.NewTimer(left - coarse)
			select {
			case <-t.C:
			case <-stop:
				t.Stop()
				return false
			}
			continue
		}
		select {
		case <-stop:
			return false
		default:
		}
		if left <= 0 {
			return true
		}
		a.sleep(left)
	}
}

// each runs do for 0 … n-1, at most width at a time, and returns the first error; that one ends the context of the
// others.
func each(ctx context.Context, n, width int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	next := make(chan int)
	for range min(n, width) {
		wg.Go(func() {
			for i := range next {
				if err := do(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := range n {
		select {
		case next <- i:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}
