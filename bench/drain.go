package bench

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// FillResult is the first half of a drain: messages for users who are away.
type FillResult struct {
	Messages int64   `json:"messages"`
	Users    int     `json:"users"`
	Seconds  float64 `json:"seconds"` // until the last was acknowledged
	Rate     float64 `json:"per_second"`
}

// DrainResult is the second half: the users come back and read.
type DrainResult struct {
	Messages int64   `json:"messages"`
	Users    int     `json:"users"`
	Seconds  float64 `json:"seconds"` // from the first connection to the last message
	Rate     float64 `json:"per_second"`
}

// Drain leaves o.Count messages (a hundred a user where it is 0) for o.Users users who are not connected, then connects
// them, o.Concurrency at a time, and has each receive and acknowledge what waits for it. Phases may run in processes of
// their own, with the broker restarted between them, if both name the same Run, Count and Users: user i gets
// Count/Users messages, and the first Count%Users users one more.
//
// In the profile topic the users first make sessions, which outlive their connections, since a broker of topics keeps
// nothing for whom it has never seen. In the others they never were there.
func Drain(ctx context.Context, o Options) (*Report, error) {
	if o.Phase != "" && o.Phase != "both" && o.Run == "" {
		return nil, fmt.Errorf("a drain in separate phases needs the id of the run, the same for both")
	}
	o = o.Defaults()
	if o.Count == 0 {
		o.Count = 100 * int64(o.Users)
	}
	if o.QoS == 0 {
		return nil, fmt.Errorf("qos 0: nothing waits for a user who is away")
	}
	if o.Phase == "ask" {
		return nil, fmt.Errorf("phase ask: want fill, drain or both")
	}
	if o.Profile == Topic {
		o.Persist = true
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	o.Senders = min(o.Senders, o.Users)
	r := newReport(&o, shape{name: "drain", senders: o.Senders, receivers: o.Users})
	var errs failures
	cpu := cpuTime()
	memory := startMemory(o.PID, &errs)
	err := drainPhases(ctx, &o, r, &errs, memory)
	r.Memory = memory.stop()
	if err != nil {
		return nil, err
	}
	r.GeneratorCPU = (cpuTime() - cpu).Seconds()
	r.Errors, r.ErrorSamples = errs.list()
	return r, nil
}

func drainPhases(ctx context.Context, o *Options, r *Report, errs *failures, memory *memoryWatch) error {
	if o.Phase != "drain" {
		if o.Profile == Topic {
			if err := makeSessions(ctx, o, errs); err != nil {
				return fmt.Errorf("make sessions: %w", err)
			}
		}
		if err := fill(ctx, o, r, memory); err != nil {
			return fmt.Errorf("fill: %w", err)
		}
	}
	if o.Phase != "fill" && !r.Interrupted {
		drain(ctx, o, r, errs)
	}
	return nil
}

// makeSessions has every user connect, subscribe and go away again.
func makeSessions(ctx context.Context, o *Options, errs *failures) error {
	return each(ctx, o.Users, o.Concurrency, func(ctx context.Context, i int) error {
		l, err := dial(ctx, o, o.receiver(i), "", false, idleBuffer)
		if err != nil {
			return err
		}
		w := &waiter{l}
		ended := make(chan error, 1)
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			ended <- l.run(w)
		}()
		err = awaitSubscription(ctx, l, o.subscribeQoS(), ended, o.filter(i, i))
		l.close()
		<-stopped
		return err
	})
}

// fill publishes the backlog: sender s of S serves the users s, s+S, s+2S … in turn, so that what is for one user comes
// over one connection, in order.
func fill(ctx context.Context, o *Options, r *Report, memory *memoryWatch) error {
	f := &flow{o: o, shape: shape{name: "fill", senders: o.Senders}}
	defer f.wg.Wait()
	defer f.close()
	f.senders = make([]*sender, o.Senders)
	quota := make([]uint64, o.Senders)
	err := each(ctx, o.Senders, o.Concurrency, func(ctx context.Context, i int) error {
		var streams []template
		for user := i; user < o.Users; user += o.Senders {
			streams = append(streams, o.template(user, "u/"+o.receiver(user)))
			quota[i] += share(o.Count, o.Users, user)
		}
		l, err := dial(ctx, o, o.sender(i), "", true, readBuffer)
		if err != nil {
			return err
		}
		f.senders[i] = newSender(l, o, streams)
		return f.start(ctx, l, f.senders[i], senderFilters(o, i)...)
	})
	if err != nil {
		return err
	}
	stop := f.background()
	defer stop()
	start := clock()
	for i, s := range f.senders {
		s.raise(quota[i]) //nolint:errcheck // its reader reports it
	}
	tenth := int64(1)
	acked := func() (n int64) {
		for _, s := range f.senders {
			n += s.acked.Load()
		}
		return n
	}
	r.Interrupted = !f.until(ctx, func() bool {
		n := acked()
		for ; tenth <= 10 && n >= o.Count*tenth/10; tenth++ {
			memory.part(n)
		}
		done := true
		for _, s := range f.senders {
			done = done && s.outstanding() == 0 && s.written.Load() >= s.limit.Load()
		}
		return done
	})
	seconds := float64(clock()-start) / 1e9
	stop()
	f.close()
	f.wg.Wait()
	r.Fill = &FillResult{Messages: acked(), Users: o.Users, Seconds: seconds, Rate: float64(acked()) / seconds}
	for _, s := range f.senders {
		r.Refused += int64(s.refused.count())
		unacked := s.unacked()
		r.Unacked += int64(unacked.count() + s.limit.Load() - s.written.Load())
		r.Replies += s.replies.Load()
		r.Receipts += s.receipts.Load()
		r.Sent += int64(s.written.Load())
	}
	n, samples := f.errs.list()
	if n > 0 {
		return fmt.Errorf("%d connections failed, one of them with %s", n, samples[0])
	}
	return nil
}

// drain connects the users and reads what waits for them. What it cannot read it counts as lost.
func drain(ctx context.Context, o *Options, r *Report, errs *failures) {
	var delivered, duplicates, reordered, damaged, foreign, lost, last atomic.Int64
	start := clock()
	last.Store(start + 1)
	note := func(r *receiver) {
		delivered.Add(r.delivered.Load())
		duplicates.Add(r.duplicates)
		reordered.Add(r.reordered)
		damaged.Add(r.damaged)
		foreign.Add(r.foreign)
		lost.Add(int64(r.checks[0].lost(r.expect)))
		for at := r.lastAt.Load(); ; {
			was := last.Load()
			if at <= was || last.CompareAndSwap(was, at) {
				return
			}
		}
	}
	stop := progressTicker(o, func() mark { return mark{at: clock(), delivered: delivered.Load()} })
	err := each(ctx, o.Users, o.Concurrency, func(ctx context.Context, i int) error {
		want := share(o.Count, o.Users, i)
		if want == 0 {
			return nil
		}
		l, err := dial(ctx, o, o.receiver(i), "", !o.Persist, readBuffer)
		if err != nil {
			errs.add(o.receiver(i), err)
			lost.Add(int64(want))
			return nil
		}
		l.stall = o.Settle
		c := newReceiver(l, o, i, 1, new(atomic.Int64))
		c.expect = want
		halt := context.AfterFunc(ctx, l.close)
		err = l.subscribe(o.subscribeQoS(), o.filter(i, i))
		if err == nil {
			err = c.read(c)
		}
		halt()
		l.close()
		l.drop()
		if ctx.Err() == nil {
			errs.add(l.name, err)
		}
		note(c)
		return nil
	})
	stop()
	if err != nil {
		r.Interrupted = true
	}
	seconds := float64(last.Load()-start) / 1e9
	r.Drain = &DrainResult{Messages: delivered.Load(), Users: o.Users, Seconds: seconds, Rate: float64(delivered.Load()) / seconds}
	r.Delivered = delivered.Load()
	r.Duplicates, r.Reordered = duplicates.Load(), reordered.Load()
	r.Damaged, r.Foreign = damaged.Load(), foreign.Load()
	if !r.Interrupted {
		r.Lost = lost.Load()
	}
}

// progressTicker reports mark once a second until the function that it returns is called.
func progressTicker(o *Options, now func() mark) (stop func()) {
	if o.Progress == nil {
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(time.Second)
		defer t.Stop()
		first := now()
		for last := first; ; {
			select {
			case <-t.C:
				m := now()
				o.Progress(progressBetween("drain", first, last, m))
				last = m
			case <-done:
				return
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}
