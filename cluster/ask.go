package cluster

import (
	"context"
	"sync/atomic"

	"github.com/mqim/mqim/bus"
)

// ask is a question under way. Guarded by Bus.mu.
type ask struct {
	nodes   int // that were asked; askSending: not known yet
	answers []bus.Answer
	lost    bool // it was not sent
	ended   bool
	done    chan struct{} // closed when it has ended
}

const askSending = -2

// end looks whether nothing more is to come; Bus.mu is held.
func (a *ask) end() {
	if !a.ended && (a.lost || a.nodes != askSending && len(a.answers) >= a.nodes) {
		a.ended = true
		close(a.done)
	}
}

// Ask implements bus.Bus. How many answers there will be is the count that Redis gives of those that the question went to.
func (b *Bus) Ask(ctx context.Context, c bus.Channel, topic byte, payload []byte) ([]bus.Answer, error) {
	s := b.session.Load()
	if s == nil {
		return nil, bus.ErrDown
	}
	return b.ask(ctx, s.down, c, topic, payload)
}

// ask asks, until down is closed.
func (b *Bus) ask(ctx context.Context, down <-chan struct{}, c bus.Channel, topic byte, payload []byte) ([]bus.Answer, error) {
	a := &ask{nodes: askSending, done: make(chan struct{})}
	b.mu.Lock()
	b.asked++
	question := b.asked
	b.asks[question] = a
	b.mu.Unlock()
	b.lane(c).enqueue(c, &frame{kind: kindQuestion, topic: topic, question: question, payload: payload}, func(nodes int) {
		b.mu.Lock()
		defer b.mu.Unlock()
		a.nodes, a.lost = nodes, nodes < 0
		a.end()
	})
	var err error
	select {
	case <-a.done:
	case <-down:
		err = bus.ErrDown
	case <-ctx.Done():
		err = bus.ErrIncomplete
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.asks, question)
	switch {
	case a.lost:
		return nil, bus.ErrDown
	case a.ended: // it has won the race
		return a.answers, nil
	}
	a.ended = true
	return a.answers, err
}

// answered takes an answer. One that is late is of no use to anybody.
func (b *Bus) answered(question uint64, answer bus.Answer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.asks[question]
	if a == nil || a.ended {
		b.late.Add(1)
		return
	}
	for _, earlier := range a.answers {
		if earlier.From == answer.From {
			return
		}
	}
	a.answers = append(a.answers, answer)
	a.end()
}

// answerer makes Message.Answer.
func (b *Bus) answerer(to string, topic byte, question uint64) func([]byte) {
	var answered atomic.Bool
	return func(payload []byte) {
		if answered.Swap(true) {
			return
		}
		c := bus.Channel{Kind: bus.Node, Name: to}
		b.lane(c).enqueue(c, &frame{kind: kindAnswer, topic: topic, question: question, payload: payload}, nil)
	}
}

// Count implements bus.Bus. Errors: bus.ErrDown, that of ctx.
func (b *Bus) Count(ctx context.Context, list []bus.Channel) ([]int, error) {
	s := b.session.Load()
	if s == nil {
		return nil, bus.ErrDown
	}
	type part struct {
		*counting
		at []int // in list
	}
	parts := make([]part, len(b.lanes))
	for i, c := range list {
		p := &parts[b.lane(c).n]
		if p.counting == nil {
			p.counting = &counting{done: make(chan error, 1)}
		}
		p.list = append(p.list, c)
		p.at = append(p.at, i)
	}
	for n, p := range parts {
		if p.counting == nil {
			continue
		}
		p.counts = make([]int, len(p.list))
		l := b.lanes[n]
		l.mu.Lock()
		if l.state != laneUp {
			l.mu.Unlock()
			return nil, bus.ErrDown
		}
		l.counts = append(l.counts, p.counting)
		l.mu.Unlock()
		l.poke()
	}
	counts := make([]int, len(list))
	for _, p := range parts {
		if p.counting == nil {
			continue
		}
		select {
		case err := <-p.done:
			if err != nil {
				return nil, err
			}
			for i, n := range p.counts {
				counts[p.at[i]] = n
			}
		case <-s.down:
			return nil, bus.ErrDown
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return counts, nil
}
