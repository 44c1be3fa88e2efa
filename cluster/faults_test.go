package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/bus/bustest"
	"github.com/mqim/mqim/tests/redis"
)

// prompt is how soon what is to happen at once must happen, on a loaded machine.
const prompt = 2 * time.Second

// die ends a node as its process' death does: without goodbye.
func die(b *Bus) {
	b.session.Store(nil)
	b.Close()
}

// changes are what a node's OnChange has seen of Up.
type changes struct {
	b     *Bus
	mu    sync.Mutex
	downs int
}

func (c *changes) note() {
	if !c.b.Up() {
		c.mu.Lock()
		c.downs++
		c.mu.Unlock()
	}
}

func (c *changes) seen() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.downs
}

func watch(c *changes) func(bus.Bus) {
	return func(b bus.Bus) {
		c.b = b.(*Bus)
		b.OnChange(c.note)
	}
}

// publish publishes and returns how many nodes heard it.
func publish(t testing.TB, b *Bus, c bus.Channel) int {
	t.Helper()
	nodes := make(chan int, 1)
	b.Publish(c, 'x', nil, func(n int) { nodes <- n })
	select {
	case n := <-nodes:
		return n
	case <-time.After(30 * time.Second):
		t.Fatal("done was not called")
		return 0
	}
}

// load has a node publish and ask, until it is stopped: nothing may hang, and done is always called.
type load struct {
	stop                       chan struct{}
	wg                         sync.WaitGroup
	published, told, asked, ok atomic.Int64
}

func startLoad(t *testing.T, a *Bus, channels int) *load {
	l := &load{stop: make(chan struct{})}
	running := func() bool {
		select {
		case <-l.stop:
			return false
		default:
			return true
		}
	}
	l.wg.Go(func() {
		payload := make([]byte, 256)
		for i := 0; running(); i++ {
			l.published.Add(1)
			a.Publish(bus.Channel{Kind: bus.User, Name: fmt.Sprint(i % channels)}, 'x', payload, func(int) { l.told.Add(1) })
			if i%100 == 0 {
				<-time.After(time.Millisecond) // the rate
			}
		}
	})
	l.wg.Go(func() {
		for running() {
			begun := time.Now()
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			list, err := a.Ask(ctx, bus.Channel{Kind: bus.All}, 'q', []byte("?"))
			cancel()
			if took := time.Since(begun); took > time.Second+prompt {
				t.Errorf("Ask took %v", took)
			}
			l.asked.Add(1)
			if err == nil && len(list) == 1 {
				l.ok.Add(1)
			} else if err != nil && !errors.Is(err, bus.ErrDown) && !errors.Is(err, bus.ErrIncomplete) {
				t.Errorf("Ask: %v", err)
			}
			<-time.After(time.Millisecond) // the rate
		}
	})
	return l
}

// end stops the load and checks that everybody has been told.
func (l *load) end(t *testing.T) {
	close(l.stop)
	l.wg.Wait()
	bustest.Await(t, "done is called for each message", func() bool { return l.told.Load() == l.published.Load() })
	if l.ok.Load() == 0 {
		t.Error("no question was answered")
	}
}

func answering(received *atomic.Int64) func(bus.Bus) {
	return func(b bus.Bus) {
		b.Handle('q', func(m *bus.Message) { m.Answer(nil) })
		b.Handle('x', func(*bus.Message) { received.Add(1) })
	}
}

// heal checks that two nodes hear each other again, after what happened.
func heal(t *testing.T, a, b *Bus, channels int) {
	t.Helper()
	bustest.Await(t, "both are up and see each other", func() bool { return len(a.Peers()) == 1 && len(b.Peers()) == 1 })
	for i := range channels {
		if n := publish(t, a, bus.Channel{Kind: bus.User, Name: fmt.Sprint(i)}); n != 1 {
			t.Fatalf("%d nodes hear channel %d", n, i)
		}
	}
}

// interrupted puts two nodes under load, lets something happen, and sees that everything comes back.
func interrupted(t *testing.T, opts Options, happen func(a, b *Bus)) {
	const channels = 200
	var received atomic.Int64
	var ca, cb changes
	a := start(t, opts, watch(&ca))
	b := start(t, opts, func(b bus.Bus) {
		watch(&cb)(b)
		answering(&received)(b)
	})
	for i := range channels {
		if err := b.Subscribe(context.Background(), bus.Channel{Kind: bus.User, Name: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	l := startLoad(t, a, channels)
	bustest.Await(t, "messages come", func() bool { return received.Load() > 1000 })
	happen(a, b)
	heal(t, a, b, channels)
	before, ok := received.Load(), l.ok.Load()
	bustest.Await(t, "messages come again", func() bool { return received.Load() > before+1000 && l.ok.Load() > ok })
	l.end(t)
	if ca.seen() == 0 || cb.seen() == 0 {
		t.Errorf("OnChange has seen Up false %d and %d times", ca.seen(), cb.seen())
	}
	if q := a.Metrics(); q.Queued > 2 || q.QueuedBytes != 0 { // signs of life may be under way
		t.Errorf("%d messages of %d bytes are left in the queue", q.Queued, q.QueuedBytes)
	}
}

func awaitDown(t *testing.T, list ...*Bus) {
	t.Helper()
	bustest.Await(t, "down", func() bool {
		for _, b := range list {
			if b.Up() {
				return false
			}
		}
		return true
	})
}

func TestRestart(t *testing.T) {
	s := redis.Start(t)
	interrupted(t, Options{Addresses: []string{s.Addr()}}, func(a, b *Bus) {
		s.Stop()
		awaitDown(t, a, b)
		isDown(t, a)
		s.Run()
	})
}

// isDown checks what a bus does that is down.
func isDown(t *testing.T, a *Bus) {
	t.Helper()
	begun := time.Now()
	ctx := context.Background()
	c := bus.Channel{Kind: bus.User, Name: "later"}
	if n := publish(t, a, c); n != -1 {
		t.Errorf("Publish: %d", n)
	}
	if _, err := a.Ask(ctx, c, 'q', nil); !errors.Is(err, bus.ErrDown) {
		t.Errorf("Ask: %v", err)
	}
	if _, err := a.Count(ctx, []bus.Channel{c}); !errors.Is(err, bus.ErrDown) {
		t.Errorf("Count: %v", err)
	}
	if err := a.Subscribe(ctx, c); !errors.Is(err, bus.ErrDown) {
		t.Errorf("Subscribe: %v", err)
	}
	if p := a.Peers(); len(p) != 0 {
		t.Errorf("Peers: %v", p)
	}
	if took := time.Since(begun); took > prompt {
		t.Errorf("it took %v to say that the bus is down", took)
	}
}

func TestHang(t *testing.T) {
	s := redis.Start(t)
	interrupted(t, Options{Addresses: []string{s.Addr()}}, func(a, b *Bus) {
		begun := time.Now()
		s.Hang()
		awaitDown(t, a, b)
		if took := time.Since(begun); took > deafTimeout+beatEvery+prompt {
			t.Errorf("it was noticed after %v", took)
		}
		isDown(t, a)
		<-time.After(5*time.Second - time.Since(begun)) // how long it hangs
		s.Resume()
	})
}

func TestFailover(t *testing.T) {
	w := redis.StartWatched(t, 3)
	interrupted(t, Options{Addresses: w.Addrs(), Master: w.Name}, func(a, b *Bus) {
		w.Master.Stop()
		awaitDown(t, a, b)
	})
	if role := w.Replica.Do("ROLE"); !strings.HasPrefix(role, "master") {
		t.Errorf("the replica is still %s", role)
	}
}

func TestClusterRestart(t *testing.T) {
	c := redis.StartCluster(t)
	interrupted(t, Options{Addresses: c.Addrs()}, func(a, b *Bus) {
		c.Servers[1].Stop()
		awaitDown(t, a, b)
		c.Servers[1].Run()
	})
}

// A slot gets another server while the bus uses it.
func TestClusterReshard(t *testing.T) {
	c := redis.StartCluster(t)
	interrupted(t, Options{Addresses: c.Addrs()}, func(a, b *Bus) {
		l := a.lane(bus.Channel{Kind: bus.All})
		slot := c.Servers[0].Do("CLUSTER", "KEYSLOT", l.prefix)
		var from int
		for i, s := range c.Servers {
			if l.client.Options().Addr == s.Addr() {
				from = i
			}
		}
		downs := b.Metrics().Downs
		to := c.Servers[(from+1)%3].Do("CLUSTER", "MYID")
		for i := range c.Servers {
			c.Servers[(from+1+i)%3].Do("CLUSTER", "SETSLOT", slot, "NODE", to) // the new owner first
		}
		bustest.Await(t, "the move is noticed", func() bool { return b.Metrics().Downs > downs })
	})
}

func TestFlush(t *testing.T) {
	s := redis.Start(t)
	opts := Options{Addresses: []string{s.Addr()}}
	a, b := start(t, opts, nil), start(t, opts, nil)
	s.Flush()
	heal(t, a, b, 0)
	if n := publish(t, a, bus.Channel{Kind: bus.All}); n != 1 {
		t.Errorf("%d nodes hear it", n)
	}
	if m := a.Metrics(); m.Downs != 0 {
		t.Errorf("it went down %d times", m.Downs)
	}
}

func TestJoinAtOnce(t *testing.T) {
	const nodes = 8
	s := redis.Start(t)
	var wg sync.WaitGroup
	var list []*Bus
	for i := range nodes {
		b := open(t, Options{Addresses: []string{s.Addr()}, Name: fmt.Sprint(i)}, nil)
		list = append(list, b)
		wg.Go(func() {
			if err := b.Start(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	begun := time.Now()
	list = append(list, start(t, Options{Addresses: []string{s.Addr()}}, nil))
	if took := time.Since(begun); took >= greetTimeout {
		t.Errorf("a node that joins was greeted after %v", took)
	}
	for i, b := range list {
		if n := len(b.Peers()); n != nodes {
			t.Errorf("%d sees %d others", i, n)
		}
	}
}

func TestGone(t *testing.T) {
	s := redis.Start(t)
	opts := Options{Addresses: []string{s.Addr()}}
	a, polite, killed := start(t, opts, nil), start(t, opts, nil), start(t, opts, nil)
	begun := time.Now()
	polite.Close()
	bustest.Await(t, "who says goodbye is forgotten", func() bool { return len(a.Peers()) == 1 })
	if took := time.Since(begun); took > prompt {
		t.Errorf("a goodbye took %v", took)
	}
	die(killed)
	begun = time.Now()
	bustest.Await(t, "who dies is forgotten", func() bool { return len(a.Peers()) == 0 })
	if took := time.Since(begun); took < goneAfter-2*beatEvery || took > goneAfter+2*beatEvery+prompt {
		t.Errorf("a death was seen after %v", took)
	}
}

// While a node leaves, nobody waits for an answer that it does not give.
func TestLeave(t *testing.T) {
	t.Run("one Redis", func(t *testing.T) { testLeave(t, Options{Addresses: []string{redis.Start(t).Addr()}}) })
	t.Run("a Redis Cluster", func(t *testing.T) { testLeave(t, Options{Addresses: redis.StartCluster(t).Addrs()}) })
}

func testLeave(t *testing.T, opts Options) {
	var received atomic.Int64
	a, b := start(t, opts, nil), start(t, opts, answering(&received))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				if list, err := a.Ask(ctx, bus.Channel{Kind: bus.All}, 'q', nil); err != nil {
					t.Errorf("%d answers: %v", len(list), err)
					cancel()
					return
				}
				cancel()
			}
		})
	}
	for range 20 {
		start(t, opts, answering(&received)).Close()
	}
	close(stop)
	wg.Wait()
	if m := b.Metrics(); m.Peers != 1 || m.Downs != 0 {
		t.Errorf("%+v", m)
	}
}

// A subscriber that does not keep up is dropped by Redis, and comes back.
func TestOverflow(t *testing.T) {
	s := redis.Start(t, "--client-output-buffer-limit", "pubsub 1mb 0 0")
	opts := Options{Addresses: []string{s.Addr()}}
	var ch changes
	slow := make(chan struct{})
	b := start(t, opts, func(b bus.Bus) {
		watch(&ch)(b)
		b.Handle('x', func(*bus.Message) { <-slow })
	})
	a := start(t, opts, nil)
	all := bus.Channel{Kind: bus.All}
	for a.Up() {
		told := make(chan int, 1)
		a.Publish(all, 'x', make([]byte, 64<<10), func(n int) { told <- n })
		if <-told == 0 {
			break // Redis has dropped it
		}
	}
	close(slow)
	bustest.Await(t, "it has been down, and is up", func() bool { return ch.seen() > 0 && b.Up() })
	bustest.Await(t, "it is heard again", func() bool { return publish(t, a, all) == 1 })
}

// tap is between a node and Redis.
type tap struct {
	net.Listener
	to   string
	deaf atomic.Bool // what Redis says is not passed on, on connections that are subscribed
	mute atomic.Bool // nothing is passed on
	wg   sync.WaitGroup

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
}

// setCut ends all connections and accepts none, or accepts them again.
func (p *tap) setCut(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
	for c := range p.conns {
		c.Close()
	}
}

func startTap(t *testing.T, to string) *tap {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{Listener: l, to: to, conns: map[net.Conn]bool{}}
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.pass(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.wg.Wait()
	})
	return p
}

func (p *tap) pass(c net.Conn) {
	defer c.Close()
	p.mu.Lock()
	if p.cut {
		p.mu.Unlock()
		return
	}
	p.conns[c] = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, c)
	}()
	up, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer up.Close()
	var subscribed atomic.Bool
	p.wg.Go(func() {
		defer c.Close()
		b := make([]byte, 64<<10)
		for {
			n, err := up.Read(b)
			if err != nil {
				return
			}
			if strings.Contains(string(b[:n]), "ssubscribe") {
				subscribed.Store(true)
			}
			if p.mute.Load() || p.deaf.Load() && subscribed.Load() {
				continue
			}
			if _, err := c.Write(b[:n]); err != nil {
				return
			}
		}
	})
	_, _ = io.Copy(up, c)
}

// A connection is silently dead: there is no error, and nothing comes.
func TestSilence(t *testing.T) {
	s := redis.Start(t)
	for _, what := range []string{"subscribed connection", "all connections"} {
		t.Run(what, func(t *testing.T) {
			p := startTap(t, s.Addr())
			var ch changes
			b := start(t, Options{Addresses: []string{p.Addr().String()}}, watch(&ch))
			flag := &p.mute
			if what == "subscribed connection" {
				flag = &p.deaf
			}
			flag.Store(true)
			begun := time.Now()
			awaitDown(t, b)
			if took := time.Since(begun); took > deafTimeout+beatEvery+prompt {
				t.Errorf("it was noticed after %v", took)
			}
			flag.Store(false)
			bustest.Await(t, "up again", b.Up)
			if ch.seen() == 0 {
				t.Error("OnChange has not seen it")
			}
			b.Close()
		})
	}
}

// What waits is bounded, and refused beyond.
func TestBounds(t *testing.T) {
	s := redis.Start(t)
	const messages, bytes = 1000, 1 << 20
	for _, c := range []struct {
		reason  string
		payload int
	}{{"queue_messages", 1}, {"queue_bytes", 100 << 10}} {
		t.Run(c.reason, func(t *testing.T) {
			b := start(t, Options{Addresses: []string{s.Addr()}, QueueMessages: messages, QueueBytes: bytes}, nil)
			s.Hang()
			var told, refused atomic.Int64
			for range 2 * messages {
				b.Publish(bus.Channel{Kind: bus.All}, 'x', make([]byte, c.payload), func(n int) {
					told.Add(1)
					if n < 0 {
						refused.Add(1)
					}
				})
			}
			if m := b.Metrics(); m.Up && (m.Queued > messages+2 || m.QueuedBytes > bytes || m.Dropped[c.reason] < messages-2) {
				t.Errorf("%+v", m)
			}
			bustest.Await(t, "what did not fit is refused at once", func() bool { return refused.Load() >= messages-2 })
			s.Resume()
			bustest.Await(t, "all are told", func() bool { return told.Load() == 2*messages })
			b.Close()
		})
	}
}

// What somebody else publishes on a channel is counted, and harms nobody.
func TestJunk(t *testing.T) {
	s := redis.Start(t)
	opts := Options{Addresses: []string{s.Addr()}}
	var received atomic.Int64
	b := start(t, opts, func(b bus.Bus) { b.Handle('x', func(*bus.Message) { received.Add(1) }) })
	a := start(t, opts, nil)
	l := b.lanes[0]
	all := l.name(bus.Channel{Kind: bus.All})
	good := appendFrame(appendHeader(nil, newID(), 1), &frame{kind: kindMessage, topic: 'x'})
	for _, payload := range []string{
		"", "hello", string(good[:headerLen-1]), "\x02" + string(good[1:]), string(good[:len(good)-1]), string(good) + "\xff",
		string(good[:headerLen]) + "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
		string(appendFrame(appendHeader(nil, newID(), 1), &frame{kind: kindMessage})), // a sign of life without anything in it
		string(appendFrame(appendHeader(nil, newID(), 1), &frame{kind: kindMessage, payload: []byte("a\xff")})),
	} {
		s.Do("SPUBLISH", all, payload)
	}
	s.Do("SPUBLISH", l.name(l.self), "hello")
	bustest.Await(t, "it is counted", func() bool { return b.Metrics().Junk == 10 })
	// Sent by a node, late, over a connection that it had given up.
	late := func(connection uint32) []byte {
		return appendFrame(appendHeader(nil, "0123456789abcdef", connection), &frame{kind: kindMessage, topic: 'x'})
	}
	before := received.Load()
	s.Do("SPUBLISH", all, string(late(2)))
	s.Do("SPUBLISH", all, string(late(1)))
	bustest.Await(t, "it is left out", func() bool { return b.Metrics().Stale == 1 })
	if n := received.Load() - before; n != 1 {
		t.Errorf("%d messages of two connections", n)
	}
	if m := b.Metrics(); m.Downs != 0 {
		t.Errorf("%+v", m)
	}
	if n := publish(t, a, bus.Channel{Kind: bus.All}); n != 1 {
		t.Errorf("%d nodes hear it", n)
	}
}

func TestManySubscriptions(t *testing.T) {
	const many = 100_000
	s := redis.Start(t)
	opts := Options{Addresses: []string{s.Addr()}}
	a, b := start(t, opts, nil), start(t, opts, nil)
	begun := time.Now()
	var wg sync.WaitGroup
	for worker := range 100 {
		wg.Go(func() {
			for i := worker; i < many; i += 100 {
				if err := b.Subscribe(context.Background(), bus.Channel{Kind: bus.User, Name: fmt.Sprint(i)}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d subscriptions, 100 at a time: %v", many, time.Since(begun).Round(time.Millisecond))
	begun = time.Now()
	s.Stop()
	awaitDown(t, a, b)
	s.Run()
	bustest.Await(t, "both are up", func() bool { return len(a.Peers()) == 1 && len(b.Peers()) == 1 })
	t.Logf("back after %v", time.Since(begun).Round(time.Millisecond))
	list := make([]bus.Channel, many)
	for i := range list {
		list[i] = bus.Channel{Kind: bus.User, Name: fmt.Sprint(i)}
	}
	counts, err := a.Count(context.Background(), list)
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range counts {
		if n != 1 {
			t.Fatalf("%d nodes are subscribed to %d", n, i)
		}
	}
	if m := b.Metrics(); m.Subscriptions != many+2 {
		t.Errorf("%d subscriptions", m.Subscriptions)
	}
	for _, c := range list {
		b.Unsubscribe(c)
	}
	bustest.Await(t, "they are forgotten", func() bool { return b.Metrics().Subscriptions == 2 })
	if left := strings.Split(s.Do("PUBSUB", "SHARDCHANNELS"), "\n"); len(left) != 5 { // All, and each node's own and probe
		t.Errorf("Redis has %d channels", len(left))
	}
}
