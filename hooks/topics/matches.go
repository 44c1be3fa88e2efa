package topics

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/store"
)

const (
	maxMatched  = 1 << 16          // topics, and subscriptions that match them
	maxScanned  = 1 << 13          // topics that are looked through for a filter with wildcards; where there are more, all are forgotten
	matchedFor  = 30 * time.Second // sessions end by themselves, and another node's message may be lost
	wildcardsOf = "+#"
	everyFilter = "" // as an invalidated filter
)

// matches remembers what store.Match has said, that there is nothing too, apart from routes: it changes with what is stored
// only, not with every client that comes and goes. Many who ask for one topic at a time ask the store once.
type matches struct {
	mu      sync.Mutex
	m       map[string]*matched // by topic
	weight  int
	clients map[string]int // in how many of m a client is
	loading map[string]*matched
}

type matched struct {
	done chan struct{} // closed when the store has answered; what follows does not change then
	list []store.Subscription
	err  error
	born time.Time
	term uint64 // of Options.Trusted
}

// stored lists the subscriptions of stored sessions that match a topic.
func (h *Hook) stored(topic string) ([]store.Subscription, error) {
	x := &h.matches
	since, term := h.believed(time.Now())
	for {
		x.mu.Lock()
		e := x.m[topic]
		if e != nil && (e.born.Before(since) || e.term != term) {
			select {
			case <-e.done:
				x.drop(topic, e)
				e = nil
			default: // who waits with us asks the store once
				x.mu.Unlock()
				<-e.done
				continue
			}
		}
		if e == nil {
			break
		}
		x.mu.Unlock()
		<-e.done
		return e.list, e.err
	}
	if x.m == nil || x.weight >= maxMatched {
		x.forget()
	}
	e := &matched{done: make(chan struct{}), born: time.Now(), term: term}
	x.m[topic] = e
	x.loading[topic] = e
	x.weight++
	x.mu.Unlock()

	list, err := h.store.Match(context.Background(), topic)

	x.mu.Lock()
	defer x.mu.Unlock()
	if x.m[topic] == e { // else it has changed meanwhile: who asks from now on asks the store
		e.list = list
		x.weight += len(list)
		for i := range list {
			x.clients[list[i].Client]++
		}
		if err != nil {
			x.drop(topic, e)
		}
	}
	if x.loading[topic] == e {
		delete(x.loading, topic)
	}
	e.list, e.err = list, err
	close(e.done)
	return list, err
}

// believed is since when, and in which term, the store must have been asked for what it said to count. Where another node may
// not be heard nothing tells of subscriptions there: a session that has begun would miss what is published after SUBACK, and
// one that has ended would leave what its topics bring to whoever has the client id next.
func (h *Hook) believed(now time.Time) (since time.Time, term uint64) {
	if term = h.term(); term == 0 {
		return now, 0
	}
	return now.Add(-matchedFor), term
}

// term is 0 where other nodes may not be heard; see Options.Trusted.
func (h *Hook) term() uint64 {
	switch {
	case h.cluster == nil:
		return 1
	case h.opt.Trusted != nil:
		return h.opt.Trusted()
	case h.cluster.bus.Up():
		return 1
	}
	return 0
}

// drop forgets a topic; mu is held.
func (x *matches) drop(topic string, e *matched) {
	delete(x.m, topic)
	x.weight -= 1 + len(e.list)
	for i := range e.list {
		c := e.list[i].Client
		if x.clients[c]--; x.clients[c] <= 0 {
			delete(x.clients, c)
		}
	}
}

func (x *matches) forget() {
	x.m, x.clients, x.loading, x.weight = map[string]*matched{}, map[string]int{}, map[string]*matched{}, 0
}

// changed forgets what a filter, as in SUBSCRIBE, matches: somebody's subscription has been stored or removed.
func (x *matches) changed(filter string) {
	_, filter = store.SplitShared(filter)
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case filter == everyFilter || strings.ContainsAny(filter, wildcardsOf) && len(x.m) > maxScanned:
		x.forget()
	case strings.ContainsAny(filter, wildcardsOf):
		for topic, e := range x.m {
			if link.Matches(filter, topic) {
				x.drop(topic, e)
			}
		}
	default:
		if e := x.m[filter]; e != nil {
			x.drop(filter, e)
		}
	}
}

// ended forgets what lists a client, whose session is over.
func (x *matches) ended(client string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for topic, e := range x.loading { // what the store is about to say may be from before
		if delete(x.loading, topic); x.m[topic] == e {
			x.drop(topic, e)
		}
	}
	if x.clients[client] == 0 {
		return
	}
	for topic, e := range x.m {
		for i := range e.list {
			if e.list[i].Client == client {
				x.drop(topic, e)
				break
			}
		}
	}
}
