package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
)

// ConversationsResult is what the list of one user's conversations took. Latencies are in microseconds.
type ConversationsResult struct {
	Conversations int       `json:"conversations"` // half with one other user, half groups of two
	Setup         float64   `json:"setup_seconds"` // 0 where they were there before
	First         int64     `json:"first_us"`      // the first page ever asked for: after a restart, a cold one
	Page          Quantiles `json:"first_page_us"` // the first page, asked for again and again
	Whole         int64     `json:"whole_us"`      // all pages, once
	Unread        uint64    `json:"unread"`        // of all conversations together
}

func (c *ConversationsResult) write(row func(name, format string, args ...any)) {
	if c.Setup > 0 {
		row("made", "%d conversations in %.1f s", c.Conversations, c.Setup)
	}
	if c.Page.Count > 0 {
		row("first page, asked for first", "%.2f ms", float64(c.First)/1000)
		c.Page.write(row, "first page, then")
		row("all pages", "%d conversations, %d unread, in %.2f ms", c.Conversations, c.Unread, float64(c.Whole)/1000)
	}
}

const (
	talkMessages = 3   // in each conversation
	talkAsks     = 300 // for the first page
	talkPage     = 50
)

// Conversations gives one user o.Talks conversations, half of them groups, with a few unread messages each, and asks for
// the first page of their list. In separate phases (fill, ask), which need o.Run, the server may be restarted between.
func Conversations(ctx context.Context, o Options) (*Report, error) {
	if o.Phase != "" && o.Phase != "both" && o.Run == "" {
		return nil, fmt.Errorf("separate phases need the id of the run, the same for both")
	}
	o = o.Defaults()
	o.Profile, o.QoS = IM, 1
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Phase == "drain" {
		return nil, fmt.Errorf("phase drain: want fill, ask or both")
	}
	r := newReport(&o, shape{name: "conversations"})
	c := &ConversationsResult{Conversations: o.Talks}
	r.Conversations = c
	var errs failures
	cpu, start := cpuTime(), clock()
	memory := startMemory(o.PID, &errs)
	var err error
	if o.Phase != "ask" {
		if err = fillTalks(ctx, &o); err == nil {
			c.Setup = float64(clock()-start) / 1e9
		}
	}
	if o.Phase != "fill" && err == nil {
		err = c.ask(ctx, &o)
	}
	r.Memory = memory.stop()
	if err != nil {
		return nil, err
	}
	r.Seconds = float64(clock()-start) / 1e9
	r.GeneratorCPU = (cpuTime() - cpu).Seconds()
	r.Errors, r.ErrorSamples = errs.list()
	return r, nil
}

// fillTalks has each of o.Talks others say something: the even ones to the user, the odd ones to a group of the two.
func fillTalks(ctx context.Context, o *Options) error {
	return each(ctx, o.Talks, o.Concurrency, func(ctx context.Context, i int) error {
		c, err := dialCaller(ctx, o, o.member(i))
		if err != nil {
			return err
		}
		defer c.end()
		to := "u/" + o.receiver(0)
		if i%2 == 1 {
			if err := c.createGroup(ctx, o.group(i), "", []string{o.receiver(0)}); err != nil {
				return err
			}
			to = "g/" + o.group(i)
		}
		for n := range talkMessages {
			body := filler(noise(), uint32(i), uint64(n), o.Size)
			if _, err := c.call(ctx, "send", map[string]any{"to": to, "body": string(body)}); err != nil {
				return err
			}
		}
		return nil
	})
}

// ask measures the list, and checks that it is whole.
func (c *ConversationsResult) ask(ctx context.Context, o *Options) error {
	l, err := dialCaller(ctx, o, o.receiver(0))
	if err != nil {
		return err
	}
	defer l.end()
	took := newHistogram(1)
	for i := range 1 + talkAsks {
		start := clock()
		if _, err := l.call(ctx, "conversations", map[string]any{"limit": talkPage}); err != nil {
			return err
		}
		if us := micros(clock() - start); i == 0 {
			c.First = us
		} else {
			took.RecordValue(us) //nolint:errcheck // micros keeps it in range
		}
	}
	c.Page = quantiles(took)
	var broken error
	seen := map[string]bool{}
	start := clock()
	err = l.pages(ctx, "conversations", map[string]any{"limit": talkPage}, func(data []json.RawMessage) {
		for _, d := range data {
			var t struct {
				Conv   string
				Unread uint64
			}
			if err := json.Unmarshal(d, &t); err != nil {
				broken = fmt.Errorf("a conversation is %.100s: %w", d, err)
			}
			seen[t.Conv] = true
			c.Unread += t.Unread
		}
	})
	c.Whole = micros(clock() - start)
	if err = cmp.Or(err, broken); err != nil {
		return err
	}
	// Whether the message that made a group counts as unread is the server's business.
	if least := uint64(o.Talks * talkMessages); len(seen) != o.Talks || c.Unread < least {
		return fmt.Errorf("got %d conversations with %d unread messages, want %d with at least %d", len(seen), c.Unread, o.Talks, least)
	}
	return nil
}
