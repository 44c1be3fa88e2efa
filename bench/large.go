package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// LargeResult is what is measured of a large group beside its fan-out. Times are in seconds, latencies in microseconds.
type LargeResult struct {
	Members  int     `json:"members"`
	Created  float64 `json:"created_seconds"` // until the last of the commands that made it was answered
	Listed   float64 `json:"listed_seconds"`  // until group.members had named everyone
	Pages    int     `json:"pages"`           // of that
	LongPage int64   `json:"page_max_us"`

	// The 1:1 chat of two others, at 200 messages a second: before the group was made, and while it was made and listed.
	Before Quantiles `json:"chat_before_us"`
	During Quantiles `json:"chat_during_us"`

	// Members who come back one after the other, when nobody else is connected.
	Missed []MissedResult `json:"missed,omitempty"`
}

// MissedResult is what it took a member to come back: from dialling to the last of the messages that he had missed.
type MissedResult struct {
	Messages int       `json:"messages"`
	Time     Quantiles `json:"time_us"`
}

func (l *LargeResult) write(row func(name, format string, args ...any)) {
	row("large group", "%s members, created in %.2f s", count(float64(l.Members)), l.Created)
	row("listed", "in %.2f s, %d pages, the longest took %.2f ms", l.Listed, l.Pages, float64(l.LongPage)/1000)
	l.Before.write(row, "1:1 before that")
	l.During.write(row, "1:1 during that")
	for _, m := range l.Missed {
		m.Time.write(row, fmt.Sprintf("back after %d messages", m.Messages))
	}
}

const (
	membersAway = 20
	chatRate    = 200
	chatBefore  = 3 * time.Second
)

// missed are the numbers of messages that members are made to miss in turn. The first, which also brings them what is
// said of their joining, is not reported.
var missed = []int{1, 10, 1000}

// runLarge measures a group of o.Members members, of which o.Receivers are connected: making and listing it, the
// fan-out, and members who come back.
func runLarge(ctx context.Context, o *Options, s shape) (*Report, error) {
	if o.Profile == Plain {
		o.QoS = max(o.QoS, 1) // nothing waits for who subscribed at QoS 0
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	away := min(membersAway, o.Members-1-o.Receivers)
	large := &LargeResult{Members: o.Members}
	if err := large.make(ctx, o, away); err != nil {
		return nil, err
	}
	r, err := measureFlow(ctx, o, s)
	if err != nil {
		return nil, err
	}
	if r.Large = large; r.Interrupted || away == 0 {
		return r, nil
	}
	var errs failures
	cpu := cpuTime()
	if err := large.comeBack(ctx, o, r, away, &errs); err != nil {
		return nil, err
	}
	r.GeneratorCPU += (cpuTime() - cpu).Seconds()
	n, samples := errs.list()
	r.Errors += n
	r.ErrorSamples = append(r.ErrorSamples, samples...)
	return r, nil
}

// make creates the group and lists it, and measures a chat before and meanwhile. Those who will be connected join last:
// else they would be told of everyone who joins after them.
func (l *LargeResult) make(ctx context.Context, o *Options, away int) error {
	var members []string
	for i := range o.Members - 1 - o.Receivers - away {
		members = append(members, o.member(i))
	}
	for i := range away {
		members = append(members, o.away(i))
	}
	for i := range o.Receivers {
		members = append(members, o.receiver(i))
	}
	before, err := chat(ctx, o, "-c", min(chatBefore, cmp.Or(o.Duration, chatBefore)), nil)
	if err != nil {
		return err
	}
	during, err := chat(ctx, o, "-d", time.Hour, func(ctx context.Context) error {
		c, err := dialCaller(ctx, o, o.sender(0))
		if err != nil {
			return err
		}
		defer c.end()
		start := clock()
		if err := c.createGroup(ctx, o.group(0), "large", members); err != nil {
			return fmt.Errorf("create a large group: %w", err)
		}
		created := clock()
		l.Created = float64(created-start) / 1e9
		if err := l.list(ctx, o, c, append(members, o.sender(0))); err != nil {
			return fmt.Errorf("list a large group: %w", err)
		}
		l.Listed = float64(clock()-created) / 1e9
		return nil
	})
	if err != nil {
		return err
	}
	l.Before, l.During = before.Latency, during.Latency
	return nil
}

// list pages through the group's members, who must be those given.
func (l *LargeResult) list(ctx context.Context, o *Options, c *caller, want []string) error {
	var got []string
	var broken error
	last := clock()
	err := c.pages(ctx, "group.members", map[string]any{"group": o.group(0), "limit": 500}, func(data []json.RawMessage) {
		l.Pages++
		now := clock()
		l.LongPage = max(l.LongPage, micros(now-last))
		for _, d := range data {
			var m struct{ User string }
			if err := json.Unmarshal(d, &m); err != nil {
				broken = fmt.Errorf("a member is %.100s: %w", d, err)
			}
			got = append(got, m.User)
		}
		last = clock()
	})
	if err != nil || broken != nil {
		return fmt.Errorf("after %d members: %w", len(got), cmp.Or(err, broken))
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		return fmt.Errorf("got %d members, want %d, each once and in the order of their names", len(got), len(want))
	}
	return nil
}

// chat measures two users who talk at chatRate for d, or while do runs. What is wrong with what they get is an error.
// The suffix is of their names: the same two would give their messages the client message ids of another chat.
func chat(ctx context.Context, o *Options, suffix string, d time.Duration, do func(ctx context.Context) error) (*Report, error) {
	p := *o
	p.Prefix, p.Pairs, p.Rate, p.Size, p.Count = o.Prefix+suffix, 1, chatRate, headerSize, 0
	p.Duration, p.Warmup, p.Persist, p.PID, p.AckEvery, p.Progress = d, time.Second, false, 0, 1, nil
	began := make(chan struct{})
	if do != nil {
		once := sync.OnceFunc(func() { close(began) })
		p.Progress = func(now Progress) {
			if now.Delivered >= chatRate { // it has warmed up
				once()
			}
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var failed error
	var wg sync.WaitGroup
	if do != nil {
		wg.Go(func() {
			defer cancel(nil)
			select {
			case <-began:
				failed = do(ctx)
			case <-ctx.Done():
				failed = context.Cause(ctx)
			}
		})
	}
	r, err := runFlow(ctx, &p, shape{name: "pairs", senders: 1, receivers: 1})
	cancel(err)
	wg.Wait()
	if err = cmp.Or(failed, err); err == nil {
		err = r.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("a chat beside the group: %w", err)
	}
	return r, nil
}

// comeBack has members miss messages, and connect again one after the other.
func (l *LargeResult) comeBack(ctx context.Context, o *Options, r *Report, away int, errs *failures) error {
	next := uint64(0) // number of the next message; those of the fan-out are of another stream
	for _, k := range missed {
		if err := say(ctx, o, next, uint64(k)); err != nil {
			return fmt.Errorf("messages to be missed: %w", err)
		}
		took := newHistogram(1)
		for i := range away {
			c, at, err := catchUp(ctx, o, o.away(i), next, uint64(k))
			if err != nil {
				errs.add(o.away(i), err)
				r.Lost += int64(k)
				continue
			}
			took.RecordValue(micros(at)) //nolint:errcheck // micros keeps it in range
			r.Duplicates += c.duplicates
			r.Reordered += c.reordered
			r.Damaged += c.damaged
			r.Lost += int64(c.checks[0].lost(next + uint64(k)))
		}
		next += uint64(k)
		if k > missed[0] {
			l.Missed = append(l.Missed, MissedResult{Messages: k, Time: quantiles(took)})
		}
	}
	return nil
}

// say sends n messages from the number on to the group, as its owner.
func say(ctx context.Context, o *Options, from, n uint64) error {
	p := *o
	p.QoS = max(o.QoS, 1)
	f := &flow{o: &p, shape: shape{name: "away", senders: 1}}
	defer f.wg.Wait()
	defer f.close()
	l, err := dial(ctx, &p, p.sender(0), "", true, readBuffer)
	if err != nil {
		return err
	}
	s := newSender(l, &p, []template{p.template(1, "g/"+p.group(0))})
	s.written.Store(from)
	f.senders = []*sender{s}
	if err := f.start(ctx, l, s, senderFilters(&p, 0)...); err != nil {
		return err
	}
	if err := s.raise(from + n); err != nil {
		return err
	}
	f.until(ctx, func() bool { return s.outstanding() == 0 && s.written.Load() >= from+n })
	if got := uint64(s.acked.Load()); got != n || s.refusals() > 0 {
		return fmt.Errorf("%d of %d were acknowledged, %d refused", got, n, s.refusals())
	}
	return context.Cause(ctx)
}

// catchUp connects a member whose session is kept, reads k messages from the number on, and says when it had the last,
// in nanoseconds since it began to dial.
func catchUp(ctx context.Context, o *Options, user string, from, k uint64) (*receiver, int64, error) {
	start := clock()
	l, err := dial(ctx, o, user, "", false, readBuffer)
	if err != nil {
		return nil, 0, err
	}
	defer l.drop()
	defer l.close()
	l.stall = o.Settle
	c := newReceiver(l, o, 1, 1, new(atomic.Int64))
	c.checks[0].next, c.expect = from, k
	halt := context.AfterFunc(ctx, l.close)
	defer halt()
	filter := "im/u/" + user
	if o.Profile == IM {
		filter += "/+"
	}
	if err := l.subscribe(o.subscribeQoS(), filter); err != nil {
		return nil, 0, err
	}
	if err := l.read(c); err != nil {
		return nil, 0, fmt.Errorf("%d of %d missed messages came: %w", c.delivered.Load(), k, err)
	}
	return c, c.lastAt.Load() - start, nil
}
