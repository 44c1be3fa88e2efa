package bustest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mqim/mqim/bus"
)

// patience bounds the waits of tests.
const patience = 30 * time.Second

// Maker makes a node that is connected to all others that it has made for the same test. set is called before the node is
// heard or hears anything.
type Maker func(t *testing.T, name string, set func(bus.Bus)) bus.Bus

// Cut takes a node off the bus, or puts it back; nil: it cannot be.
type Cut func(b bus.Bus, cut bool)

// Promises tests what every bus.Bus promises.
func Promises(t *testing.T, nodes func(t *testing.T) (Maker, Cut)) {
	for _, p := range []struct {
		name string
		test func(t *testing.T, join Maker)
	}{
		{"peers", promisePeers}, {"publish", promisePublish}, {"order", promiseOrder}, {"subscriptions are counted", promiseCounted},
		{"ask", promiseAsk}, {"ask late", promiseLate}, {"ask all", promiseAskAll}, {"count", promiseCount}, {"done under a lock", promiseLock},
		{"one at a time", promiseOneAtATime}, {"payload is the handler's", promisePayload},
	} {
		t.Run(p.name, func(t *testing.T) {
			join, _ := nodes(t)
			p.test(t, join)
		})
	}
	t.Run("down", func(t *testing.T) {
		join, cut := nodes(t)
		if cut != nil {
			promiseDown(t, join, cut)
		}
	})
}

// Await looks until f says true.
func Await(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		<-time.After(2 * time.Millisecond) // between looks, not instead of them
	}
}

func none(bus.Bus) {}

// limit is a context that ends when a test is taken to hang.
func limit(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// publish publishes and returns how many nodes heard it.
func publish(t testing.TB, b bus.Bus, c bus.Channel, topic byte, payload string) int {
	t.Helper()
	nodes := make(chan int, 1)
	b.Publish(c, topic, []byte(payload), func(n int) { nodes <- n })
	select {
	case n := <-nodes:
		return n
	case <-limit(t).Done():
		t.Fatal("done was not called")
		return 0
	}
}

func want[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if g, w := fmt.Sprintf("%v", got), fmt.Sprintf("%v", want); g != w {
		t.Fatalf("%s: got %s, want %s", what, g, w)
	}
}

// wantPeers waits until a node sees exactly these others.
func wantPeers(t testing.TB, b bus.Bus, others ...bus.Bus) {
	t.Helper()
	var ids []string
	for _, o := range others {
		ids = append(ids, o.ID())
	}
	slices.Sort(ids)
	Await(t, fmt.Sprintf("peers %v", ids), func() bool {
		var got []string
		for _, p := range b.Peers() {
			got = append(got, p.ID)
		}
		return slices.Equal(got, ids)
	})
}

func promisePeers(t *testing.T, join Maker) {
	var changes atomic.Int64
	a := join(t, "a", func(b bus.Bus) { b.OnChange(func() { changes.Add(1) }) })
	want(t, "up", a.Up(), true)
	want(t, "peers of one alone", len(a.Peers()), 0)
	Await(t, "OnChange has settled", func() bool { return a.Up() })
	before := changes.Load()
	b := join(t, "b", none)
	if a.ID() == b.ID() {
		t.Fatalf("two nodes have the id %s", a.ID())
	}
	// Who joins sees the others at once, and they it.
	want(t, "peers of b", len(b.Peers()), 1)
	want(t, "peers of a", len(a.Peers()), 1)
	p := b.Peers()[0]
	want(t, "peer", p.ID+" "+p.Name, a.ID()+" a")
	Await(t, "OnChange is called", func() bool { return changes.Load() > before })
	a.Announce([]byte("busy"))
	Await(t, "the announcement is seen", func() bool { return string(b.Peers()[0].Info) == "busy" })
	c := join(t, "c", none)
	wantPeers(t, a, b, c)
	wantPeers(t, b, a, c)
	wantPeers(t, c, a, b)
}

func promisePublish(t *testing.T, join Maker) {
	got := make(chan *bus.Message, 100)
	hear := func(b bus.Bus) { b.Handle('x', func(m *bus.Message) { got <- m }) }
	a, b, c := join(t, "a", hear), join(t, "b", hear), join(t, "c", hear)
	ch := bus.Channel{Kind: bus.User, Name: "alice{1}:ü"}
	want(t, "nobody is subscribed", publish(t, a, ch, 'x', "1"), 0)
	for _, n := range []bus.Bus{a, b} {
		if err := n.Subscribe(limit(t), ch); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "nodes, without oneself", publish(t, a, ch, 'x', "2"), 1)
	m := <-got
	want(t, "message", fmt.Sprint(m.From, m.Channel, m.Topic, string(m.Payload), m.Answer == nil), fmt.Sprint(a.ID(), ch, 'x', "2", true))
	want(t, "nodes", publish(t, c, ch, 'x', "3"), 2)
	<-got
	<-got
	want(t, "a topic that nobody handles", publish(t, c, ch, 'y', "4"), 2)
	// Every node is subscribed to All and to its own channel.
	want(t, "all", publish(t, a, bus.Channel{Kind: bus.All}, 'x', "5"), 2)
	<-got
	<-got
	want(t, "one node", publish(t, a, bus.Channel{Kind: bus.Node, Name: c.ID()}, 'x', ""), 1)
	m = <-got
	want(t, "an empty payload", len(m.Payload), 0)
	want(t, "nothing else has come", len(got), 0)
	b.Unsubscribe(ch)
	Await(t, "b does not hear it", func() bool { return publish(t, c, ch, 'y', "6") == 1 })
}

func promiseOrder(t *testing.T, join Maker) {
	const channels, messages = 20, 500
	var mu sync.Mutex
	last := map[bus.Channel]uint64{}
	var wrong []string
	seen := 0
	b := join(t, "b", func(b bus.Bus) {
		b.Handle('x', func(m *bus.Message) {
			mu.Lock()
			defer mu.Unlock()
			n := binary.BigEndian.Uint64(m.Payload)
			if n != last[m.Channel]+1 {
				wrong = append(wrong, fmt.Sprintf("%v: %d after %d", m.Channel, n, last[m.Channel]))
			}
			last[m.Channel] = n
			seen++
		})
	})
	a := join(t, "a", none)
	var wg sync.WaitGroup
	for i := range channels {
		c := bus.Channel{Kind: bus.User, Name: fmt.Sprint(i)}
		if err := b.Subscribe(limit(t), c); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for n := range messages {
				a.Publish(c, 'x', binary.BigEndian.AppendUint64(nil, uint64(n+1)), nil)
			}
		})
	}
	wg.Wait()
	Await(t, "all messages", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return seen >= channels*messages || len(wrong) > 0
	})
	mu.Lock()
	defer mu.Unlock()
	if len(wrong) > 0 || seen != channels*messages {
		t.Fatalf("%d messages; out of order: %q", seen, wrong[:min(len(wrong), 5)])
	}
}

func promiseCounted(t *testing.T, join Maker) {
	a, b := join(t, "a", none), join(t, "b", none)
	c := bus.Channel{Kind: bus.Client, Name: "phone"}
	for range 2 {
		if err := b.Subscribe(limit(t), c); err != nil {
			t.Fatal(err)
		}
	}
	b.Unsubscribe(c)
	want(t, "one is left", publish(t, a, c, 'x', ""), 1)
	b.Unsubscribe(c)
	Await(t, "none is left", func() bool { return publish(t, a, c, 'x', "") == 0 })
	b.Unsubscribe(c) // too many
	for range 50 {
		if err := b.Subscribe(limit(t), c); err != nil {
			t.Fatal(err)
		}
		want(t, "subscribed again", publish(t, a, c, 'x', ""), 1)
		want(t, "oneself is not counted", publish(t, b, c, 'x', ""), 0)
		b.Unsubscribe(c)
		want(t, "oneself is not counted, unsubscribing", publish(t, b, c, 'x', ""), 0)
	}
}

func promiseAsk(t *testing.T, join Maker) {
	answer := func(b bus.Bus) {
		b.Handle('q', func(m *bus.Message) {
			if m.Answer == nil {
				t.Error("a question without Answer")
				return
			}
			go func() {
				m.Answer(append([]byte("to "), m.Payload...))
			}()
		})
	}
	a, b, c := join(t, "a", answer), join(t, "b", answer), join(t, "c", answer)
	ch := bus.Channel{Kind: bus.Client, Name: "phone"}
	list, err := a.Ask(limit(t), ch, 'q', []byte("nobody"))
	want(t, "answers of nobody", fmt.Sprint(len(list), err), fmt.Sprint(0, nil))
	for _, n := range []bus.Bus{a, b, c} {
		if err := n.Subscribe(limit(t), ch); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			list, err := a.Ask(limit(t), ch, 'q', fmt.Append(nil, i))
			if err != nil {
				t.Error(err)
			}
			var from []string
			for _, x := range list {
				from = append(from, x.From)
				if string(x.Payload) != fmt.Sprint("to ", i) {
					t.Errorf("answer %q to %d", x.Payload, i)
				}
			}
			slices.Sort(from)
			wanted := []string{b.ID(), c.ID()}
			slices.Sort(wanted)
			if !slices.Equal(from, wanted) {
				t.Errorf("answers from %v, want %v", from, wanted)
			}
		})
	}
	wg.Wait()
}

func promiseLate(t *testing.T, join Maker) {
	var mu sync.Mutex
	var kept []func([]byte)
	_ = join(t, "b", func(b bus.Bus) {
		b.Handle('q', func(m *bus.Message) {
			mu.Lock()
			defer mu.Unlock()
			kept = append(kept, m.Answer)
		})
	})
	_ = join(t, "c", func(b bus.Bus) { b.Handle('q', func(m *bus.Message) { m.Answer([]byte("c")) }) })
	a := join(t, "a", none)
	want(t, "peers", len(a.Peers()), 2)
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	list, err := a.Ask(ctx, bus.Channel{Kind: bus.All}, 'q', nil)
	if !errors.Is(err, bus.ErrIncomplete) || len(list) != 1 || string(list[0].Payload) != "c" {
		t.Fatalf("one answer is missing: %v %v", list, err)
	}
	mu.Lock()
	late := kept
	mu.Unlock()
	if len(late) != 1 {
		t.Fatalf("b was asked %d times", len(late))
	}
	late[0]([]byte("late")) // nobody waits for it
	list, err = a.Ask(limit(t), bus.Channel{Kind: bus.Client, Name: "nobody"}, 'q', nil)
	want(t, "the next question", fmt.Sprint(len(list), err), fmt.Sprint(0, nil))
}

func promiseAskAll(t *testing.T, join Maker) {
	answer := func(b bus.Bus) { b.Handle('q', func(m *bus.Message) { m.Answer([]byte(b.ID())) }) }
	a := join(t, "a", answer)
	list, err := a.Ask(limit(t), bus.Channel{Kind: bus.All}, 'q', nil)
	want(t, "alone", fmt.Sprint(len(list), err), fmt.Sprint(0, nil))
	join(t, "b", answer)
	join(t, "c", answer)
	list, err = a.Ask(limit(t), bus.Channel{Kind: bus.All}, 'q', nil)
	want(t, "of three", fmt.Sprint(len(list), err), fmt.Sprint(2, nil))
	for _, x := range list {
		want(t, "answer", string(x.Payload), x.From)
	}
}

func promiseCount(t *testing.T, join Maker) {
	a, b, c := join(t, "a", none), join(t, "b", none), join(t, "c", none)
	list := []bus.Channel{{Kind: bus.User, Name: "none"}, {Kind: bus.All}}
	wanted := []int{0, 2}
	for i := range 2500 {
		ch := bus.Channel{Kind: bus.User, Name: fmt.Sprint(i)}
		n := 0
		for j, node := range []bus.Bus{a, b, c} {
			if i < 100 && i%(j+2) == 0 {
				if err := node.Subscribe(limit(t), ch); err != nil {
					t.Fatal(err)
				}
				if j > 0 {
					n++
				}
			}
		}
		list, wanted = append(list, ch), append(wanted, n)
	}
	list, wanted = append(list, list[2]), append(wanted, wanted[2]) // twice
	got, err := a.Count(limit(t), list)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, wanted) {
		t.Fatalf("got %v\nwant %v", got, wanted)
	}
	got, err = a.Count(limit(t), nil)
	want(t, "of nothing", fmt.Sprint(len(got), err), fmt.Sprint(0, nil))
}

// promiseLock: done may want a lock that is held around Publish.
func promiseLock(t *testing.T, join Maker) {
	a := join(t, "a", none)
	var mu sync.Mutex
	told := make(chan int, 100)
	for range 100 {
		mu.Lock()
		a.Publish(bus.Channel{Kind: bus.All}, 'x', nil, func(n int) {
			mu.Lock()
			defer mu.Unlock()
			told <- n
		})
		mu.Unlock()
	}
	for range 100 {
		want(t, "nodes", <-told, 0)
	}
}

func promiseOneAtATime(t *testing.T, join Maker) {
	var in, seen atomic.Int64
	a := join(t, "a", none)
	b := join(t, "b", func(b bus.Bus) {
		for _, topic := range []byte("xy") {
			b.Handle(topic, func(*bus.Message) {
				if in.Add(1) != 1 {
					t.Error("two messages of a node are handled at a time")
				}
				seen.Add(1)
				in.Add(-1)
			})
		}
	})
	const channels, messages = 40, 50
	for i := range channels {
		if err := b.Subscribe(limit(t), bus.Channel{Kind: bus.User, Name: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	for range messages {
		for i := range channels {
			a.Publish(bus.Channel{Kind: bus.User, Name: fmt.Sprint(i)}, "xy"[i%2], nil, nil)
		}
	}
	Await(t, "all messages", func() bool { return seen.Load() == channels*messages })
}

func promisePayload(t *testing.T, join Maker) {
	got := make(chan []byte, 100)
	a := join(t, "a", none)
	_ = join(t, "b", func(b bus.Bus) {
		b.Handle('x', func(m *bus.Message) {
			_ = append(m.Payload, "what follows is not the next message's"...)
			got <- m.Payload
		})
	})
	const n = 100
	for i := range n {
		a.Publish(bus.Channel{Kind: bus.All}, 'x', fmt.Append(nil, "message ", i), nil)
	}
	for i := range n {
		want(t, "payload", string(<-got), fmt.Sprint("message ", i))
	}
}

func promiseDown(t *testing.T, join Maker, cut Cut) {
	var downs, ups atomic.Int64
	a := join(t, "a", func(b bus.Bus) {
		b.OnChange(func() {
			if b.Up() {
				ups.Add(1)
			} else {
				downs.Add(1)
			}
		})
		b.Handle('x', func(*bus.Message) {})
	})
	asked := make(chan struct{}, 1)
	b := join(t, "b", func(b bus.Bus) { b.Handle('q', func(*bus.Message) { asked <- struct{}{} }) }) // it never answers
	c := join(t, "c", func(b bus.Bus) { b.Handle('q', func(m *bus.Message) { m.Answer(nil) }) })
	before := bus.Channel{Kind: bus.User, Name: "before"}
	if err := a.Subscribe(limit(t), before); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := a.Ask(limit(t), bus.Channel{Kind: bus.All}, 'q', nil)
		ended <- err
	}()
	<-asked
	cut(a, true)
	if err := <-ended; !errors.Is(err, bus.ErrDown) {
		t.Errorf("a question under way: %v", err)
	}
	Await(t, "OnChange has seen that it is down", func() bool { return downs.Load() > 0 })
	want(t, "up", a.Up(), false)
	want(t, "peers", len(a.Peers()), 0)
	meanwhile := bus.Channel{Kind: bus.User, Name: "meanwhile"}
	for _, err := range []error{
		func() error { return a.Subscribe(limit(t), meanwhile) }(),
		func() error { _, err := a.Ask(limit(t), meanwhile, 'q', nil); return err }(),
		func() error { _, err := a.Count(limit(t), []bus.Channel{meanwhile}); return err }(),
	} {
		if !errors.Is(err, bus.ErrDown) {
			t.Errorf("got %v, want %v", err, bus.ErrDown)
		}
	}
	want(t, "Publish", publish(t, a, meanwhile, 'x', ""), -1)
	var mu sync.Mutex // that done wants, and that is held around Publish
	told := make(chan int, 1)
	mu.Lock()
	a.Publish(meanwhile, 'x', nil, func(n int) {
		mu.Lock()
		defer mu.Unlock()
		told <- n
	})
	mu.Unlock()
	want(t, "Publish under a lock", <-told, -1)
	wantPeers(t, b, c)
	want(t, "nobody hears it", publish(t, b, before, 'x', ""), 0)
	ups.Store(0)
	cut(a, false)
	Await(t, "OnChange has seen that it is up", func() bool { return ups.Load() > 0 })
	want(t, "peers", len(a.Peers()), 2) // at once
	wantPeers(t, b, a, c)
	want(t, "what it was subscribed to", publish(t, b, before, 'x', ""), 1)
	want(t, "what it has subscribed to meanwhile", publish(t, b, meanwhile, 'x', ""), 1)
}
