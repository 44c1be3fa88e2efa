package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Pairs measures o.Pairs senders, each with a receiver of its own: the 1:1 chat.
func Pairs(ctx context.Context, o Options) (*Report, error) {
	o = o.Defaults()
	return runFlow(ctx, &o, shape{name: "pairs", senders: o.Pairs, receivers: o.Pairs})
}

// FanIn measures o.Senders senders that share one receiver.
func FanIn(ctx context.Context, o Options) (*Report, error) {
	o = o.Defaults()
	return runFlow(ctx, &o, shape{name: "fanin", senders: o.Senders, receivers: 1})
}

// FanOut measures o.Groups senders whose every message goes to o.Receivers receivers: through a topic each, or in the
// plain and the IM profile through a group each. With o.Members there is one large group, which is measured in more
// ways: see [LargeResult].
func FanOut(ctx context.Context, o Options) (*Report, error) {
	o = o.Defaults()
	s := shape{name: "fanout", senders: o.Groups, receivers: o.Receivers}
	if o.Members > 0 {
		return runLarge(ctx, &o, s)
	}
	return runFlow(ctx, &o, s)
}

// shape is who sends to whom. Equal numbers are pairs, else everyone sends to everyone.
type shape struct {
	name      string // how messages travel hangs on it, too
	senders   int
	receivers int
}

func (s shape) pairs() bool { return s.name == "pairs" }

// copies is how many receivers get each message.
func (s shape) copies() int64 {
	if s.pairs() {
		return 1
	}
	return int64(s.receivers)
}

// flow is one run of senders and receivers.
type flow struct {
	o         *Options
	shape     shape
	senders   []*sender
	receivers []*receiver
	complete  []*completion // by sender; nil: not measured
	from      atomic.Int64  // measuring starts here, on clock
	errs      failures
	wg        sync.WaitGroup // every goroutine of the run
}

// mark is what had happened at one time.
type mark struct {
	at, sent, delivered int64
}

func runFlow(ctx context.Context, o *Options, s shape) (*Report, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if s.name == "fanout" && o.Profile != Topic {
		if err := createGroups(ctx, o); err != nil {
			return nil, err
		}
	}
	return measureFlow(ctx, o, s)
}

// measureFlow is runFlow where the groups are there.
func measureFlow(ctx context.Context, o *Options, s shape) (*Report, error) {
	f := &flow{o: o, shape: s}
	defer f.wg.Wait()
	defer f.close()
	if err := f.connect(ctx); err != nil {
		return nil, err
	}
	stopSide := f.background()
	defer stopSide()
	cpu := cpuTime()
	rss := startMemory(o.PID, &f.errs)
	begin, end, interrupted := f.measure(ctx)
	f.settle(interrupted)
	if o.Count > 0 {
		end = f.lastMark()
	}
	memory := rss.stop()
	cpu = cpuTime() - cpu
	stopSide()
	f.close()
	f.wg.Wait()

	r := newReport(o, s)
	r.Interrupted = interrupted
	r.measured(begin, end)
	r.GeneratorCPU = cpu.Seconds()
	r.Memory = memory
	f.verdict(r)
	return r, nil
}

// connect makes every connection, the receivers first: what is published before they subscribed would be lost on a
// broker of topics.
func (f *flow) connect(ctx context.Context) error {
	f.receivers = make([]*receiver, f.shape.receivers)
	f.senders = make([]*sender, f.shape.senders)
	if f.o.Rate > 0 && f.shape.name == "fanout" {
		for i := range f.senders {
			f.complete = append(f.complete, newCompletion(f.o, share(f.scheduled(), f.shape.senders, i)))
		}
	}
	there := *f.o
	if there.There != "" {
		there.Address = there.There
	}
	err := each(ctx, f.shape.receivers, f.o.Concurrency, func(ctx context.Context, i int) error {
		base, streams := 0, f.shape.senders
		if f.shape.pairs() {
			base, streams = i, 1
		}
		l, err := dial(ctx, &there, f.o.receiver(i), "", !f.o.Persist, readBuffer)
		if err != nil {
			return err
		}
		r := newReceiver(l, f.o, base, streams, &f.from)
		r.latency = newHistogram(f.shape.receivers)
		if f.o.Rate > 0 {
			r.service = newHistogram(f.shape.receivers)
		}
		r.complete = f.complete
		f.receivers[i] = r
		return f.start(ctx, l, r, f.filters(i)...)
	})
	if err != nil {
		return err
	}
	return each(ctx, f.shape.senders, f.o.Concurrency, func(ctx context.Context, i int) error {
		l, err := dial(ctx, f.o, f.o.sender(i), "", !f.o.Persist, readBuffer)
		if err != nil {
			return err
		}
		s := newSender(l, f.o, []template{f.template(i)})
		if f.o.Rate > 0 {
			s.schedule = func(n uint64) int64 { return f.due(n*uint64(f.shape.senders) + uint64(i)) }
		}
		f.senders[i] = s
		return f.start(ctx, l, s, senderFilters(f.o, i)...)
	})
}

// filters are what receiver i subscribes to.
func (f *flow) filters(i int) (all []string) {
	switch {
	case f.o.Profile != Topic || f.shape.pairs():
		return []string{f.o.filter(i, i)}
	case f.shape.name == "fanout":
		for k := range f.shape.senders {
			all = append(all, f.o.topic(k))
		}
		return all
	}
	return []string{f.o.topic(0)}
}

// senderFilters are what sender i subscribes to: in the IM profile what becomes of its messages.
func senderFilters(o *Options, i int) []string {
	if o.Profile != IM {
		return nil
	}
	return []string{"im/u/" + o.sender(i) + "/+"}
}

// template is what sender i sends.
func (f *flow) template(i int) template {
	switch {
	case f.shape.name == "fanout":
		return f.o.template(i, "g/"+f.o.group(i))
	case f.shape.pairs():
		return f.o.template(i, "u/"+f.o.receiver(i))
	}
	t := f.o.template(0, "u/"+f.o.receiver(0))
	t.stream = uint32(i)
	return t
}

// start runs a link and waits until it is subscribed to the filters, if there are any.
func (f *flow) start(ctx context.Context, l *link, h handler, filters ...string) error {
	ended := make(chan error, 1)
	f.wg.Go(func() {
		err := l.run(h)
		f.errs.add(l.name, err)
		ended <- err
	})
	if len(filters) == 0 {
		return nil
	}
	return awaitSubscription(ctx, l, f.o.subscribeQoS(), ended, filters...)
}

func awaitSubscription(ctx context.Context, l *link, qos byte, ended <-chan error, filters ...string) error {
	err := l.subscribe(qos, filters...)
	if err == nil {
		select {
		case <-l.ready:
			return nil
		case err = <-ended:
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(handshakeTime):
			err = errors.New("no SUBACK came")
		}
	}
	l.close()
	return fmt.Errorf("subscribe %s to %s: %w", l.name, filters[0], err)
}

// background starts what runs beside the links: keep-alive, the tail of acks, the progress line. The function that it
// returns ends them; calling it again does nothing.
func (f *flow) background() (stop func()) {
	done := make(chan struct{})
	var group sync.WaitGroup
	every := func(d time.Duration, do func()) {
		group.Go(func() {
			t := time.NewTicker(d)
			defer t.Stop()
			for {
				select {
				case <-t.C:
					do()
				case <-done:
					return
				}
			}
		})
	}
	every(f.o.KeepAlive/2, func() {
		for _, l := range f.links() {
			l.ping()
		}
	})
	if f.o.Profile == IM && f.o.AckEvery > 1 {
		every(20*time.Millisecond, func() {
			for _, r := range f.receivers {
				r.flushAcks()
			}
		})
	}
	if f.o.Progress != nil {
		first, last := f.mark(), f.mark()
		every(time.Second, func() {
			now := f.mark()
			f.o.Progress(progressBetween(f.shape.name, first, last, now))
			last = now
		})
	}
	return sync.OnceFunc(func() {
		close(done)
		group.Wait()
	})
}

func progressBetween(phase string, first, last, now mark) Progress {
	s := max(float64(now.at-last.at)/1e9, 1e-9)
	return Progress{Phase: phase, Elapsed: time.Duration(now.at - first.at), Sent: now.sent, Delivered: now.delivered,
		SentRate: float64(now.sent-last.sent) / s, DeliveredRate: float64(now.delivered-last.delivered) / s}
}

// measure publishes through the warm-up and the measured time, and returns what had happened at either end of the
// latter.
func (f *flow) measure(ctx context.Context) (begin, end mark, interrupted bool) {
	start := clock()
	f.from.Store(start + int64(f.o.Warmup))
	quota := make(chan struct{}) // closed once Count is known to be out
	stop := make(chan struct{})
	var pacer, pumps sync.WaitGroup
	defer pumps.Wait()
	switch {
	case f.o.Rate > 0:
		pacer.Go(func() { f.pace(stop, quota) })
	case f.o.Warmup > 0 || f.o.Count == 0:
		f.open(&pumps, func(int, *sender) uint64 { return noLimit })
	}
	begin = mark{at: start}
	if f.o.Warmup > 0 {
		interrupted = !pause(ctx, f.o.Warmup)
		begin = f.mark()
	}
	if f.o.Count > 0 && f.o.Rate == 0 {
		f.open(&pumps, func(i int, s *sender) uint64 {
			return s.written.Load() + share(f.o.Count, len(f.senders), i)
		})
		close(quota)
	}
	switch {
	case interrupted:
	case f.o.Count > 0:
		select {
		case <-quota:
			interrupted = !f.published(ctx)
		case <-ctx.Done():
			interrupted = true
		}
	default:
		interrupted = !pause(ctx, f.o.Duration)
	}
	close(stop)
	pacer.Wait() // else it would raise a limit again
	for _, s := range f.senders {
		s.halt()
	}
	return begin, f.mark(), interrupted
}

// open sets the senders going up to limit. From then on acks keep them going, or at QoS 0 a goroutine each.
func (f *flow) open(pumps *sync.WaitGroup, limit func(i int, s *sender) uint64) {
	for i, s := range f.senders {
		if err := s.raise(limit(i, s)); err != nil {
			continue // its reader reports it
		}
		if s.qos == 0 {
			pumps.Go(func() { s.flood() }) //nolint:errcheck // its reader reports it
		}
	}
}

// share is the part of count that the i-th of n gets.
func share(count int64, n, i int) uint64 {
	part := uint64(count) / uint64(n)
	if uint64(i) < uint64(count)%uint64(n) {
		part++
	}
	return part
}

// pause waits for d, and tells whether ctx let it.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// published waits until every sender has written up to its limit, or nothing moves any more.
func (f *flow) published(ctx context.Context) bool {
	return f.until(ctx, func() bool {
		for _, s := range f.senders {
			if s.written.Load() < s.limit.Load() {
				return false
			}
		}
		return true
	})
}

// settle waits until all that was sent is acknowledged and delivered.
func (f *flow) settle(interrupted bool) {
	ctx := context.Background()
	if interrupted {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, min(f.o.Settle, 3*time.Second))
		defer cancel()
	}
	f.until(ctx, func() bool {
		expect := int64(0)
		for _, s := range f.senders {
			if s.outstanding() > 0 {
				return false
			}
			expect += int64(s.written.Load() - s.refusals())
		}
		return f.mark().delivered >= expect*f.shape.copies()
	})
	for _, r := range f.receivers {
		r.flushAcks()
	}
}

// until polls done, and gives up once ctx ends or nothing has moved for Settle.
func (f *flow) until(ctx context.Context, done func() bool) bool {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	last := f.mark()
	for !done() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return false
		}
		now := f.mark()
		if now.sent != last.sent || now.delivered != last.delivered {
			last = now
		} else if now.at-last.at > int64(f.o.Settle) {
			return true // what is missing is for the verdict to say
		}
	}
	return true
}

func (f *flow) mark() (m mark) {
	for _, s := range f.senders {
		m.sent += int64(s.written.Load())
	}
	for _, r := range f.receivers {
		m.delivered += r.delivered.Load()
	}
	m.at = clock()
	return m
}

// lastMark is mark at the time of the last delivery.
func (f *flow) lastMark() mark {
	m := f.mark()
	last := f.from.Load() + 1
	for _, r := range f.receivers {
		last = max(last, r.lastAt.Load())
	}
	m.at = last
	return m
}

func (f *flow) links() (all []*link) {
	for _, r := range f.receivers {
		if r != nil {
			all = append(all, r.link)
		}
	}
	for _, s := range f.senders {
		if s != nil {
			all = append(all, s.link)
		}
	}
	return all
}

func (f *flow) close() {
	for _, l := range f.links() {
		l.close()
	}
}

// verdict adds up what the connections saw. Every goroutine of the run has ended.
func (f *flow) verdict(r *Report) {
	latency, service := newHistogram(f.shape.receivers), newHistogram(f.shape.receivers)
	excused := make([][2]ranges, len(f.senders))
	for i, s := range f.senders {
		excused[i] = [2]ranges{s.refused, s.unacked()}
		r.Refused += int64(s.refused.count())
		r.Unacked += int64(excused[i][1].count())
		r.Replies += s.replies.Load()
		r.Receipts += s.receipts.Load()
	}
	for _, c := range f.receivers {
		latency.Merge(c.latency)
		if c.service != nil {
			service.Merge(c.service)
		}
		r.Duplicates += c.duplicates
		r.Reordered += c.reordered
		r.Damaged += c.damaged
		r.Trimmed += c.trimmed
		r.Foreign += c.foreign
		for k := range c.checks {
			s := int(c.base) + k
			r.Lost += int64(c.checks[k].lost(f.senders[s].written.Load(), excused[s][:]...))
		}
	}
	r.Latency = quantiles(latency)
	if f.o.Rate > 0 {
		q := quantiles(service)
		r.Service = &q
	}
	if f.complete != nil {
		all := newHistogram(1)
		for _, c := range f.complete {
			all.Merge(c.latency)
		}
		q := quantiles(all)
		r.Complete = &q
	}
	r.Errors, r.ErrorSamples = f.errs.list()
}
