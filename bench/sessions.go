package bench

import (
	"context"
	"fmt"
	"time"
)

// SessionsResult is what came of leaving sessions behind.
type SessionsResult struct {
	Sessions int     `json:"sessions"` // and as many retained messages
	Time     float64 `json:"seconds"`
	Rate     float64 `json:"per_second"`
}

func (s *SessionsResult) write(row func(name, format string, args ...any)) {
	row("left behind", "%d sessions, each with a retained message", s.Sessions)
	row("made", "in %.2f s\t%s/s", s.Time, count(s.Rate))
}

// leaver is a link that subscribes and publishes one retained message.
type leaver struct {
	*waiter
	acked chan struct{} // closed by the PUBACK
}

func (l *leaver) packet(pk packet) error {
	if pk.kind != typePuback {
		return l.waiter.packet(pk)
	}
	_, reason, err := parseAck(pk)
	if err == nil && reason >= 0x80 {
		err = fmt.Errorf("publish refused with code 0x%02x", reason)
	}
	if err == nil {
		close(l.acked)
	}
	return err
}

// Sessions connects o.Connections clients, o.Concurrency at a time. Each begins a session that outlives its connection,
// subscribes to a topic of its own, has a message of o.Size retained there, and says goodbye.
func Sessions(ctx context.Context, o Options) (*Report, error) {
	o = o.Defaults()
	o.Persist, o.QoS = true, 1
	if err := o.check(); err != nil {
		return nil, err
	}
	o.Count = 0
	f := &flow{o: &o, shape: shape{name: "sessions"}}
	r := newReport(&o, f.shape)
	memory := startMemory(o.PID, &f.errs)
	start := clock()
	err := each(ctx, o.Connections, o.Concurrency, func(ctx context.Context, i int) error { return f.leave(ctx, i) })
	f.wg.Wait()
	r.Memory = memory.stop()
	if err != nil {
		return nil, err
	}
	r.Seconds = float64(clock()-start) / 1e9
	r.Sessions = &SessionsResult{Sessions: o.Connections, Time: r.Seconds, Rate: float64(o.Connections) / r.Seconds}
	r.Errors, r.ErrorSamples = f.errs.list()
	return r, nil
}

func (f *flow) leave(ctx context.Context, i int) error {
	l, err := dial(ctx, f.o, f.o.receiver(i), "", false, idleBuffer)
	if err != nil {
		return err
	}
	defer l.close()
	x := &leaver{waiter: &waiter{l}, acked: make(chan struct{})}
	if err := f.start(ctx, l, x, f.o.filter(i, i)); err != nil {
		return err
	}
	t := f.o.template(i, "")
	b := t.appendMessage(nil, 1, header{stream: uint32(i), number: 1})
	b[0] |= 1 // RETAIN
	l.mu.Lock()
	l.out = append(l.out, b...)
	err = l.flush()
	l.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case <-x.acked:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(handshakeTime):
		return fmt.Errorf("%s: no PUBACK came", l.name)
	}
}
