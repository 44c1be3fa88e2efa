package limit

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// The levels of overload. Each includes the ones before.
const (
	Normal          = iota
	Slow            // reading from those who publish is slowed, more the longer it lasts
	RefuseSessions  // new connections are refused
	RefusePublishes // messages are refused
)

// Signal is a cause of overload.
type Signal struct {
	Cause string
	// Read returns how bad it is now, and ok false where that cannot be known, which counts as not at all. It is called
	// from one goroutine, every Interval, and must not block.
	Read func() (v float64, ok bool)
	// At are the values from which Slow, RefuseSessions and RefusePublishes are called for, rising.
	At [3]float64
}

const (
	// Interval is how often the signals are read.
	Interval = 500 * time.Millisecond
	// A level rises when it was called for twice in a row: one slow sync is no overload. It falls a step at a time, after
	// calm reads below easing of what it takes to be there: what is shed at a level brings the load down, and it would
	// be called for again at once.
	insistence = 2
	easing     = 0.8
	calm       = 10

	minPause = time.Millisecond
	maxPause = time.Second
)

// Overload watches signals and keeps the level of overload that they call for. One goroutine reads them; any may ask.
// A nil Overload is always Normal.
type Overload struct {
	log     *slog.Logger
	signals []*watched
	level   atomic.Int32
	pause   atomic.Int64

	stop chan struct{}
	once sync.Once
	done sync.WaitGroup
}

// watched is a signal and what it has come to.
type watched struct {
	Signal
	level        atomic.Int32
	over, easier int // reads in a row that called for a higher level, and for a lower one
}

// Watch starts reading the signals, until Close.
func Watch(log *slog.Logger, signals ...Signal) *Overload {
	o := &Overload{log: log, stop: make(chan struct{})}
	for _, s := range signals {
		o.signals = append(o.signals, &watched{Signal: s})
	}
	o.done.Go(o.run)
	return o
}

// Close ends the reading. A second Close is a no-op.
func (o *Overload) Close() {
	if o == nil {
		return
	}
	o.once.Do(func() { close(o.stop) })
	o.done.Wait()
}

// Level is the present level: the highest that a signal calls for.
func (o *Overload) Level() int {
	if o == nil {
		return Normal
	}
	return int(o.level.Load())
}

// Pause is how long reading pauses now after each time that a client has published; 0 at Normal. It doubles with every
// read of the signals for as long as there is overload, up to a second, and halves after.
func (o *Overload) Pause() time.Duration {
	if o == nil {
		return 0
	}
	return time.Duration(o.pause.Load())
}

// Levels calls f with each cause and what tells its level.
func (o *Overload) Levels(f func(cause string, level func() int)) {
	for _, w := range o.signals {
		f(w.Cause, func() int { return int(w.level.Load()) })
	}
}

func (o *Overload) run() {
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	for {
		select {
		case <-o.stop:
			return
		case <-tick.C:
		}
		level := int32(Normal)
		for _, w := range o.signals {
			w.look(o.log)
			level = max(level, w.level.Load())
		}
		o.level.Store(level)
		p := time.Duration(o.pause.Load())
		switch {
		case level > Normal:
			p = min(max(2*p, minPause), maxPause)
		case p <= minPause:
			p = 0
		default:
			p /= 2
		}
		o.pause.Store(int64(p))
	}
}

// look reads the signal and moves the level.
func (w *watched) look(log *slog.Logger) {
	v, ok := w.Read()
	now := int(w.level.Load())
	called := Normal
	for i, at := range w.At {
		if ok && v >= at {
			called = i + 1
		}
	}
	w.over, w.easier = step(w.over, called > now), step(w.easier, now > Normal && (!ok || v < easing*w.At[now-1]))
	next := now
	switch {
	case w.over >= insistence:
		next = called
	case w.easier >= calm:
		next = now - 1
	default:
		return
	}
	w.over, w.easier = 0, 0
	w.level.Store(int32(next))
	say := log.Warn
	if next < now {
		say = log.Info
	}
	say("overload level changed", "cause", w.Cause, "level", next, "was", now, "value", v)
}

func step(n int, more bool) int {
	if more {
		return n + 1
	}
	return 0
}
