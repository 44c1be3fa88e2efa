package bench

import (
	"context"
	"fmt"
	"time"
)

// IdleResult is what connections that do nothing cost.
type IdleResult struct {
	Connections   int     `json:"connections"`
	ConnectTime   float64 `json:"connect_seconds"`
	ConnectRate   float64 `json:"connects_per_second"`
	Held          float64 `json:"held_seconds"`
	Alive         int     `json:"alive"`          // at the end
	PerConnection int64   `json:"per_connection"` // resident bytes of the broker, at the end of the hold
}

func (i *IdleResult) write(row func(name, format string, args ...any)) {
	row("connections", "%d, %d alive after %.1f s", i.Connections, i.Alive, i.Held)
	row("connected", "in %.2f s\t%s/s", i.ConnectTime, count(i.ConnectRate))
	if i.PerConnection != 0 {
		row("broker's memory each", "%.1f KiB", float64(i.PerConnection)/1024)
	}
}

// waiter is a link that only subscribes.
type waiter struct{ *link }

func (w *waiter) packet(pk packet) error {
	if pk.kind != typePublish {
		return fmt.Errorf("packet type %d for a connection that published nothing: %w", pk.kind, errMalformed)
	}
	m, err := parsePublish(w.version, pk)
	if err == nil && m.qos > 0 {
		w.mu.Lock()
		w.out = appendAck(w.out, typePuback, m.id)
		w.mu.Unlock()
	}
	return err
}

func (w *waiter) idle() bool { return false }

// Idle opens o.Connections connections with a subscription each, and holds them for o.Duration. With o.PID it
// reports what each costs the broker in resident memory.
func Idle(ctx context.Context, o Options) (*Report, error) {
	o = o.Defaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	o.Count = 0
	f := &flow{o: &o, shape: shape{name: "idle"}}
	waiters := make([]*waiter, o.Connections)
	closeAll := func() {
		// Side by side: ten thousand goodbyes one after the other would be measured in seconds.
		each(context.Background(), len(waiters), o.Concurrency, func(_ context.Context, i int) error { //nolint:errcheck
			if waiters[i] != nil {
				waiters[i].close()
			}
			return nil
		})
	}
	defer f.wg.Wait()
	defer closeAll()

	r := newReport(&o, f.shape)
	cpu := cpuTime()
	memory := startMemory(o.PID, &f.errs)
	start := clock()
	err := each(ctx, o.Connections, o.Concurrency, func(ctx context.Context, i int) error {
		l, err := dial(ctx, &o, o.receiver(i), "", !o.Persist, idleBuffer)
		if err != nil {
			return err
		}
		waiters[i] = &waiter{l}
		return f.start(ctx, l, waiters[i], o.filter(i, i))
	})
	connected := clock()
	if err != nil {
		memory.stop()
		return nil, err
	}
	r.Interrupted = !hold(ctx, &o, waiters)
	r.Memory = memory.stop()
	r.Idle = &IdleResult{Connections: o.Connections, ConnectTime: float64(connected-start) / 1e9,
		Held: float64(clock()-connected) / 1e9, Alive: o.Connections}
	r.Idle.ConnectRate = float64(o.Connections) / r.Idle.ConnectTime
	if r.Memory != nil {
		r.Idle.PerConnection = (r.Memory.After - r.Memory.Before) / int64(o.Connections)
	}
	r.GeneratorCPU = (cpuTime() - cpu).Seconds()
	r.Seconds = float64(clock()-start) / 1e9
	r.Errors, r.ErrorSamples = f.errs.list()
	r.Idle.Alive -= int(r.Errors)
	return r, nil
}

// hold waits for the duration, pinging every waiter twice per keep-alive, a few at a time so that the pings of ten
// thousand connections are not one burst. It tells whether ctx let it.
func hold(ctx context.Context, o *Options, waiters []*waiter) bool {
	const slices = 100
	end := time.NewTimer(o.Duration)
	defer end.Stop()
	t := time.NewTicker(max(o.KeepAlive/2/slices, time.Millisecond))
	defer t.Stop()
	for slice := 0; ; slice = (slice + 1) % slices {
		select {
		case <-end.C:
			return true
		case <-ctx.Done():
			return false
		case <-t.C:
			for i := slice; i < len(waiters); i += slices {
				waiters[i].ping()
			}
		}
	}
}
