package topics

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/bus/bustest"
	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/store"
)

// ledger is what several processes share of who has stored which will. It stands for what a database does.
type ledger struct {
	mu    sync.Mutex
	wills map[string]*process
}

// process is one process's connection to the store.
type process struct {
	store.Store
	l    *ledger
	dead bool // guarded by l.mu

	before atomic.Pointer[func(*store.Batch)] // called with what is about to be committed
}

func (p *process) Commit(ctx context.Context, b *store.Batch) error {
	if f := p.before.Load(); f != nil {
		(*f)(b)
	}
	p.l.mu.Lock()
	defer p.l.mu.Unlock()
	if p.dead {
		return store.ErrUnavailable
	}
	err := p.Store.Commit(ctx, b)
	if err != nil {
		return err
	}
	lost := map[string]bool{}
	for _, f := range b.Fences {
		lost[f.Client] = f.Lost
	}
	for _, w := range b.Wills {
		if !lost[w.Client] {
			p.l.wills[w.Client] = p
		}
	}
	return nil
}

func (p *process) Wills(ctx context.Context, after string, limit int) ([]store.Will, error) {
	list, err := p.Store.Wills(ctx, after, limit)
	p.l.mu.Lock()
	defer p.l.mu.Unlock()
	for i := range list {
		q := p.l.wills[list[i].Client]
		list[i].Held = q != nil && q != p && !q.dead
	}
	return list, err
}

// swarm is a cluster.
type swarm struct {
	testing.TB
	hub   *bustest.Hub
	l     *ledger
	nodes []*rig
	buses []*bustest.Node
	procs []*process
}

func newSwarm(tb testing.TB, n int, o setup) *swarm {
	tb.Helper()
	s := &swarm{TB: tb, hub: bustest.NewHub(), l: &ledger{wills: map[string]*process{}}}
	o.shared = openStore(tb, o)
	for i := range n {
		o := o
		o.bus = s.hub.Join(fmt.Sprint("n", i+1))
		tb.Cleanup(o.bus.Leave)
		if o.trusted != nil {
			o.Trusted = o.trusted(i)
		}
		p := &process{l: s.l}
		inner := o.wrap
		o.wrap = func(st store.Store) store.Store {
			p.Store = st
			if inner != nil {
				p.Store = inner(st)
			}
			return p
		}
		s.nodes, s.buses, s.procs = append(s.nodes, newRig(tb, o)), append(s.buses, o.bus), append(s.procs, p)
	}
	s.ready()
	return s
}

// ready waits until the nodes know each other.
func (s *swarm) ready() {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, r := range s.nodes {
		if err := r.hook.Ready(ctx); err != nil {
			s.Fatal(err)
		}
	}
}

// kill ends a node as kill -9 does: the others see it go, its clients too, and nothing of it is stored any more.
func (s *swarm) kill(i int) {
	s.l.mu.Lock()
	s.procs[i].dead = true
	s.l.mu.Unlock()
	s.buses[i].Leave()
}

// What is published on one node right after SUBACK on another is delivered, whatever the kind of session.
func TestSubscribeThenPublishElsewhere(t *testing.T) {
	s := newSwarm(t, 2, setup{})
	sub, stored, pub := s.nodes[1].connect("sub"), s.nodes[1].connect("stored", persistent), s.nodes[0].connect("pub")
	for i := range 1000 {
		topic, text := fmt.Sprint("t/", i%97, "/", i), fmt.Sprint(i)
		filter := topic
		if i%3 == 1 {
			filter = fmt.Sprint("t/+/", i)
		}
		qos := byte(i % 3)
		pub.publish(topic, "before", 1) // remembers that nobody is there
		sub.subscribe(filter, 2)
		stored.subscribe(filter, 2)
		pub.publish(topic, text, qos)
		sub.message(text)
		stored.message(text)
		sub.unsubscribe(filter)
		stored.unsubscribe(filter)
		pub.publish(topic, "after", qos)
	}
	sub.ping()
	stored.ping()
}

// Options of a subscription hold across nodes as they do within one.
func TestPropertiesAcrossNodes(t *testing.T) {
	s := newSwarm(t, 2, setup{})
	for _, how := range [][]connect{{v5}, {expiry(100)}} {
		sub, pub := s.nodes[1].connect("sub", how...), s.nodes[0].connect("pub", v5)
		sub.subscribe("a/#", 1, func(x *packets.Subscription) { x.Identifier, x.RetainAsPublished, x.RetainHandling = 7, true, 2 })
		sub.subscribe("a/b", 0, func(x *packets.Subscription) { x.Identifier, x.NoLocal, x.RetainHandling = 9, true, 2 })
		for qos := range byte(3) {
			pub.publish("a/b", "m", qos, func(pk *packets.Packet) {
				pk.FixedHeader.Retain = true
				pk.Properties.MessageExpiryInterval, pk.Properties.ContentType = 100, "text/x"
				pk.Properties.User = []packets.UserProperty{{Key: "k", Val: "v"}}
			})
			got := sub.message("m")
			ids := slices.Sorted(slices.Values(got.Properties.SubscriptionIdentifier))
			if !got.FixedHeader.Retain || got.FixedHeader.Qos != min(qos, 1) || !slices.Equal(ids, []int{7, 9}) || got.Properties.ContentType != "text/x" ||
				len(got.Properties.User) != 1 || got.Properties.MessageExpiryInterval == 0 || got.Properties.MessageExpiryInterval > 100 {
				t.Errorf("at QoS %d: got %+v %+v", qos, got.FixedHeader, got.Properties)
			}
		}
		pub.subscribe("a/b", 1, func(x *packets.Subscription) { x.NoLocal = true; x.RetainHandling = 2 })
		pub.publish("a/b", "own", 1)
		pub.ping()
		sub.message("own")
		pub.disconnect(0)
		sub.disconnect(0)
		s.nodes[0].gone("pub")
	}
}

// A retained message is there for who subscribes on another node after PUBACK.
func TestRetainedAcrossNodes(t *testing.T) {
	s := newSwarm(t, 2, setup{})
	pub, sub := s.nodes[0].connect("pub"), s.nodes[1].connect("sub")
	for i := range 50 {
		topic := fmt.Sprint("r/", i)
		pub.publish(topic, "kept", 1, retain)
		sub.subscribe(topic, 1)
		if got := sub.message("kept"); !got.FixedHeader.Retain {
			t.Fatal("got a message that is not retained")
		}
	}
}

// $SYS is of one node.
func TestSystemStaysHere(t *testing.T) {
	system := []SystemTopic{{Topic: "$SYS/x", Value: func() string { return "1" }}}
	s := newSwarm(t, 2, setup{Options: Options{System: system}})
	here, there := s.nodes[0].connect("here"), s.nodes[1].connect("there")
	here.subscribe("$SYS/#", 0)
	there.subscribe("$SYS/#", 0)
	here.message("1")
	there.message("1")
	s.nodes[0].hook.PublishSystem()
	here.message("1")
	there.ping()
}

// What the bus does not take is counted, where somebody wanted it.
func TestUnreachableIsCounted(t *testing.T) {
	s := newSwarm(t, 2, setup{})
	pub, sub := s.nodes[0].connect("pub"), s.nodes[1].connect("sub")
	sub.subscribe("t", 1)
	s.buses[0].Cut(true)
	pub.publish("t", "lost", 1)
	pub.publish("u", "of no interest", 1)
	s.nodes[0].until("the loss is counted", func() bool { return s.nodes[0].counts.drops(dropUnreachable) == 1 })
	s.buses[0].Cut(false)
	s.ready()
	pub.publish("t", "m", 1)
	sub.message("m")
	if n := s.nodes[0].counts.drops(dropUnreachable); n != 1 {
		t.Errorf("got %d losses, want 1", n)
	}
}

// Changes that are lost are told again within seconds.
func TestLostChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, 2, setup{pipes: true})
		sub, pub := s.nodes[1].connect("sub"), s.nodes[0].connect("pub")
		s.hub.Drop(func(_ string, m *bus.Message) bool {
			return m.Topic == busTopic && len(m.Payload) > 0 && m.Payload[0] == sayChanges
		})
		began := time.Now()
		sub.subscribe("t", 1)
		if d := time.Since(began); d > 1100*time.Millisecond {
			t.Errorf("SUBACK came after %v, want a second at most", d)
		}
		time.Sleep(2 * versionEvery)
		pub.publish("t", "m", 1)
		sub.message("m")
		s.hub.Drop(nil)
		sub.subscribe("u", 1)
		pub.publish("u", "n", 1)
		sub.message("n")
	})
}

// A hint that is lost costs a stored session time, and nothing else.
func TestLostHints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, 2, setup{pipes: true})
		sub, pub := s.nodes[1].connect("sub", persistent), s.nodes[0].connect("pub")
		sub.subscribe("t", 1)
		s.hub.Drop(func(string, *bus.Message) bool { return true })
		pub.publish("t", "1", 1)
		pub.publish("t", "2", 2)
		time.Sleep(31 * time.Second)
		sub.message("1")
		sub.message("2")
	})
}

// What a node remembers of stored subscriptions it does not go by while it cannot be told of new ones: a message published
// after SUBACK on another node is in the queue, and no queue gets what its session has not asked for.
func TestSubscribeWhileDown(t *testing.T) {
	s := newSwarm(t, 2, setup{Options: Options{Look: 20 * time.Millisecond}})
	stored, pub := s.nodes[1].connect("stored", persistent), s.nodes[0].connect("pub")
	pub.publish("t/1", "before", 1) // remembers that nobody is there
	for _, b := range s.buses {
		b.Cut(true)
	}
	pub.publish("t/1", "before, too", 1)
	for i := range 20 {
		filter := "t/1"
		if i%2 == 1 {
			filter = "t/+"
		}
		stored.subscribe(filter, 1)
		pub.publish("t/1", "one", 1)
		stored.message("one") // it is looked for
		stored.unsubscribe(filter)
		pub.publish("t/1", "none", 1)
	}
	stored.subscribe("end", 1)
	pub.publish("end", "end", 1)
	stored.message("end") // and nothing before it
}

// A message that is on its way into the store while a client goes from one node to another reaches it there, though it was not
// there when the message came.
func TestTakeOverWhilePublishing(t *testing.T) {
	s := newSwarm(t, 3, setup{})
	waiting := make(chan chan bool)
	hold := func(b *store.Batch) {
		if len(b.Publishes) > 0 {
			release := make(chan bool)
			waiting <- release
			<-release
		}
	}
	pub := s.nodes[0].connect("pub")
	for i, how := range []connect{persistent, expiry(100)} {
		id := fmt.Sprint("c", i)
		old := s.nodes[1].connect(id, how)
		old.subscribe("t/"+id, 1)
		s.procs[0].before.Store(&hold)
		published := make(chan bool)
		go func() {
			defer close(published)
			pub.publish("t/"+id, "m", 1)
		}()
		release := <-waiting
		now := s.nodes[2].connect(id, how)
		s.procs[0].before.Store(nil)
		close(release)
		now.message("m")
		<-published
	}
}

// While the bus is down what waits in queues is found within seconds, and at once when it is back.
func TestLookWhileDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, 2, setup{pipes: true})
		sub, pub := s.nodes[1].connect("sub", persistent), s.nodes[0].connect("pub")
		sub.subscribe("t", 1)
		within := func(text string, most time.Duration) {
			t.Helper()
			began := time.Now()
			pub.publish("t", text, 1)
			if sub.message(text); time.Since(began) > most {
				t.Errorf("%s came after %v, want %v at most", text, time.Since(began), most)
			}
		}
		time.Sleep(10 * time.Second)
		s.buses[1].Cut(true)
		within("1", lookDown)
		within("2", lookDown)
		pub.publish("t", "3", 1)
		s.buses[1].Cut(false)
		began := time.Now()
		if sub.message("3"); time.Since(began) > time.Second {
			t.Errorf("what was missed came %v after the bus was back", time.Since(began))
		}
	})
}

// A client that has gone to another node while neither could tell is found by the look, and loses nothing.
func TestLookFindsLaterClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, 2, setup{pipes: true})
		old := s.nodes[0].connect("c", expiry(100), testament("will", "wrong", 1, false, 0))
		old.subscribe("t", 1)
		watch := s.nodes[0].connect("watch", persistent)
		watch.subscribe("will", 1)
		time.Sleep(10 * time.Second) // what is written behind is written, and finds no later claim
		s.buses[0].Cut(true)
		now := s.nodes[1].connect("c", expiry(100), testament("will", "right", 1, false, 0))
		if !now.present {
			t.Error("the session was not resumed")
		}
		if pk := old.expect(packets.Disconnect); pk.ReasonCode != packets.ErrSessionTakenOver.Code {
			t.Errorf("DISCONNECT: got %#x, want 0x8e", pk.ReasonCode)
		}
		s.buses[0].Cut(false)
		s.ready()
		s.nodes[0].connect("pub").publish("t", "m", 1)
		now.message("m")
		watch.message("wrong") // of the connection that was taken over, published by who took it
		_ = now.conn.Close()
		watch.message("right")
		watch.ping()
	})
}

// A client that connects to another node has its session there, and its old connection is told.
func TestTakeOverAcrossNodes(t *testing.T) {
	s := newSwarm(t, 2, setup{})
	pub := s.nodes[0].connect("pub")
	old := s.nodes[0].connect("c", expiry(100))
	old.subscribe("t", 2)
	for i := range 5 {
		pub.publish("t", fmt.Sprint(i), 1)
	}
	old.message("0")
	second := old.expect(packets.Publish)
	now := s.nodes[1].connect("c", expiry(100))
	if !now.present {
		t.Error("the session was not resumed")
	}
	for {
		if pk := old.next(); pk.FixedHeader.Type == packets.Disconnect {
			if pk.ReasonCode != packets.ErrSessionTakenOver.Code {
				t.Errorf("DISCONNECT: got %#x, want 0x8e", pk.ReasonCode)
			}
			break
		}
	}
	if again := now.message("1"); again.PacketID != second.PacketID || !again.FixedHeader.Dup {
		t.Errorf("what was not acknowledged came with id %d, DUP %v; want %d, true", again.PacketID, again.FixedHeader.Dup, second.PacketID)
	}
	for i := 2; i < 5; i++ {
		now.message(fmt.Sprint(i))
	}
	if n := s.buses[0].Subscribed(bus.Channel{Kind: bus.Client, Name: "c"}); n != 0 {
		t.Errorf("the node that has let go is subscribed to the client %d times, want 0", n)
	}
	if n := s.buses[1].Subscribed(bus.Channel{Kind: bus.Client, Name: "c"}); n != 1 {
		t.Errorf("the node that has it is subscribed to the client %d times, want 1", n)
	}
	if n := s.nodes[0].counts.drops(dropEnded); n != 0 {
		t.Errorf("%d messages dropped", n)
	}
}

// A client id is one user's in the whole cluster.
func TestForeignAcrossNodes(t *testing.T) {
	s := newSwarm(t, 2, setup{})
	as := func(user string) connect {
		return func(pk *packets.Packet) { pk.Connect.UsernameFlag, pk.Connect.Username = true, []byte(user) }
	}
	mine := s.nodes[0].connect("c", as("alice"), v5)
	if _, ack := s.nodes[1].open("c", as("bob"), v5); ack.ReasonCode != packets.ErrClientIdentifierNotValid.Code {
		t.Errorf("CONNACK on 5: got %#x, want 0x85", ack.ReasonCode)
	}
	if _, ack := s.nodes[1].open("c", as("bob")); ack.ReasonCode != 2 {
		t.Errorf("CONNACK on 3.1.1: got %#x, want 0x02", ack.ReasonCode)
	}
	mine.ping()
	s.nodes[1].connect("c", as("alice"))
	if pk := mine.expect(packets.Disconnect); pk.ReasonCode != packets.ErrSessionTakenOver.Code {
		t.Errorf("DISCONNECT: got %#x, want 0x8e", pk.ReasonCode)
	}
}

// Of connections that are made at the same time on two nodes exactly one stays.
func TestConnectAtOnce(t *testing.T) {
	s := newSwarm(t, 2, setup{})
	for round := range 200 {
		how := []connect{v5}
		if round%2 == 1 {
			how = []connect{expiry(100)}
		}
		alive := make(chan *peer, 4)
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				if p, ok := s.nodes[i%2].attempt("c", how...); ok {
					alive <- p
				}
			})
		}
		wg.Wait()
		close(alive)
		stays := make(chan *peer, 4)
		for p := range alive {
			wg.Go(func() {
				p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
				for {
					switch pk, err := p.read(); {
					case err != nil:
						return
					case pk.FixedHeader.Type == packets.Pingresp:
						// It may be about to be told.
						s.nodes[0].until("one lets go", func() bool {
							taken := 0
							for _, r := range s.nodes {
								if r.hook.opt.Registry.Taken("c") {
									taken++
								}
							}
							return taken == 1
						})
						p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
						if pk, err := p.read(); err == nil && pk.FixedHeader.Type == packets.Pingresp {
							stays <- p
						}
						return
					}
				}
			})
		}
		wg.Wait()
		if n := len(stays); n != 1 {
			t.Fatalf("round %d: %d connections stay, want 1", round, n)
		}
		(<-stays).disconnect(0)
		s.nodes[0].gone("c")
		s.nodes[1].gone("c")
	}
}

// A shared subscription has one member for each message in the whole cluster; those who are connected come first, and each
// gets its share.
func TestSharedAcrossNodes(t *testing.T) {
	s := newSwarm(t, 3, setup{})
	const each = 40
	counts := map[string]int{}
	var peers []*peer
	member := func(node int, name string, how ...connect) {
		p := s.nodes[node].connect(name, how...)
		p.subscribe("$share/g/t/+", 1)
		peers = append(peers, p)
	}
	member(0, "clean0")
	member(1, "clean1")
	member(1, "clean1b")
	member(2, "stored2", persistent)
	member(0, "stored0", persistent)
	away := s.nodes[2].connect("away", persistent)
	away.subscribe("$share/g/t/+", 1)
	away.disconnect(0)
	s.nodes[2].gone("away")
	for i := range s.nodes { // every node hears everything, and not for its members
		s.nodes[i].connect(fmt.Sprint("all", i)).subscribe("t/+", 0)
	}
	for i := range s.nodes {
		pub := s.nodes[i].connect(fmt.Sprint("pub", i))
		for j := range each * len(peers) {
			pub.publish(fmt.Sprint("t/", j%3), fmt.Sprint(i, ".", j), byte(j%2)) // QoS 0 too
		}
		pub.ping()
	}
	var mu sync.Mutex
	seen := map[string]string{}
	total := len(s.nodes) * each * len(peers)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for _, p := range peers {
		wg.Go(func() {
			for {
				pk, err := p.read()
				if err != nil {
					return
				}
				p.ack(pk)
				mu.Lock()
				if by := seen[string(pk.Payload)]; by != "" {
					t.Errorf("%s came to %s and to %s", pk.Payload, by, p.name)
				}
				seen[string(pk.Payload)] = p.name
				if counts[p.name]++; len(seen) == total {
					close(done)
				}
				mu.Unlock()
			}
		})
	}
	select {
	case <-done:
	case <-time.After(patience):
		mu.Lock()
		t.Errorf("%d of %d messages came", len(seen), total)
		mu.Unlock()
	}
	for _, p := range peers {
		_ = p.conn.Close()
	}
	wg.Wait()
	for _, p := range peers {
		if n := counts[p.name]; n < total/len(peers)/2 {
			t.Errorf("%s got %d of %d messages, want about %d", p.name, n, total, total/len(peers))
		}
	}
}

// When the members of a node are gone before it hears of its turn, the message is counted as lost.
func TestSharedMemberGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, 2, setup{pipes: true})
		sub, pub := s.nodes[1].connect("sub"), s.nodes[0].connect("pub")
		sub.subscribe("$share/g/t", 1)
		s.hub.Drop(func(_ string, m *bus.Message) bool { return len(m.Payload) > 0 && m.Payload[0] == sayChanges })
		sub.disconnect(0)
		s.nodes[1].gone("sub")
		pub.publish("t", "m", 1)
		s.nodes[1].until("the loss is counted", func() bool { return s.nodes[1].counts.drops(dropEnded) == 1 })
	})
}

// A will waits for its delay wherever its client comes back, and is published where its node has died.
func TestWillsAcrossNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, 3, setup{pipes: true})
		watch := s.nodes[1].connect("watch")
		watch.subscribe("will/#", 1)
		mortal := func(node int, name string, delay uint32) *peer {
			return s.nodes[node].connect(name, expiry(300), testament("will/"+name, "will of "+name, 1, false, delay))
		}
		// Back on another node in time.
		p := mortal(0, "back", 20)
		_ = p.conn.Close()
		s.nodes[0].gone("back")
		p = s.nodes[1].connect("back", expiry(300))
		time.Sleep(time.Minute)
		watch.ping()
		// Not back.
		_ = mortal(0, "late", 20).conn.Close()
		time.Sleep(19 * time.Second)
		watch.ping()
		watch.message("will of late")
		// Back with a new session.
		q := mortal(0, "anew", 20)
		_ = q.conn.Close()
		s.nodes[0].gone("anew")
		s.nodes[1].connect("anew", v5)
		watch.message("will of anew")
		// Its node dies; one of the two clients comes back to another.
		mortal(0, "orphan", 5)
		mortal(0, "saved", 40)
		mortal(0, "rescued", 40)
		s.kill(0)
		r := s.nodes[2].connect("rescued", expiry(300)) // before the others have looked
		watch.message("will of orphan")
		time.Sleep(20 * time.Second)
		q = s.nodes[2].connect("saved", expiry(300))
		time.Sleep(time.Minute)
		watch.ping()
		p.ping()
		q.ping()
		r.ping()
	})
}

// A will to a user waits on the node that the client has left, and is given up when it comes back, to whichever node.
func TestUserWillsAcrossNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, 2, setup{pipes: true})
		bob := s.nodes[0].connect("bob")
		bob.subscribe("im/u/bob", 1)
		for node := range s.nodes {
			will := testament("im/u/bob", fmt.Sprint("will ", node), 1, false, 20)
			p := s.nodes[0].connect("alice", expiry(300), will)
			_ = p.conn.Close()
			s.nodes[0].gone("alice")
			p = s.nodes[node].connect("alice", expiry(300), will)
			time.Sleep(30 * time.Second)
			bob.ping()
			_ = p.conn.Close()
			if node == 0 {
				time.Sleep(19 * time.Second)
				bob.ping()
				bob.message("will 0")
			}
		}
	})
}

// A client that is sent to another server is told which, where its version of MQTT has a word for it.
func TestRedirect(t *testing.T) {
	r := newRig(t, setup{})
	small := func(pk *packets.Packet) { pk.ProtocolVersion, pk.Properties.MaximumPacketSize = 5, 20 }
	for _, c := range []struct {
		name      string
		how       connect
		reference string
	}{
		{"new", v5, "node2.example.org:1883"},
		{"small", small, ""},
	} {
		p := r.connect(c.name, c.how)
		cl, _ := r.server.Clients.Get(c.name)
		link.Of(cl).Redirect("node2.example.org:1883")
		if pk := p.expect(packets.Disconnect); pk.ReasonCode != packets.ErrUseAnotherServer.Code || pk.Properties.ServerReference != c.reference {
			t.Errorf("%s: got reason %#x and %q, want 0x9c and %q", c.name, pk.ReasonCode, pk.Properties.ServerReference, c.reference)
		}
	}
	p := r.connect("old")
	cl, _ := r.server.Clients.Get("old")
	link.Of(cl).Redirect("node2.example.org:1883")
	if pk, err := p.read(); err == nil {
		t.Errorf("got %+v, want the end", pk.FixedHeader)
	}
}

// What is remembered of the store's answers is forgotten with the first change, on the goroutine that makes it, though the
// store be at it; and it is bounded.
func TestMatches(t *testing.T) {
	st := openStore(t, setup{})
	put := func(b *store.Batch) {
		t.Helper()
		if err := st.Commit(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	asked := 0
	var during func()
	h := &Hook{store: &matching{Store: st, f: func() {
		if asked++; during != nil {
			during()
		}
	}}}
	want := func(topic string, subs, reads int) {
		t.Helper()
		asked = 0
		list, err := h.stored(topic)
		if err != nil || len(list) != subs || asked != reads {
			t.Errorf("%s: got %d subscriptions, %d questions, error %v; want %d and %d", topic, len(list), asked, err, subs, reads)
		}
	}
	want("a/b", 0, 1)
	want("a/b", 0, 0)
	sub := func(client, filter string) {
		b := &store.Batch{}
		b.Sessions = []store.Session{{Client: client, User: "u", Expiry: store.NoExpiry, Online: true}}
		b.Subscribes = []store.Subscription{{Client: client, Filter: filter, Options: []byte{1}}}
		put(b)
	}
	sub("c", "a/+")
	want("a/b", 0, 0) // nobody has said so
	h.matches.changed("a/+")
	want("a/b", 1, 1)
	want("x", 0, 1)
	sub("d", "$share/g/a/b")
	h.matches.changed("$share/g/a/b")
	want("a/b", 2, 1)
	want("x", 0, 0) // of no concern to it
	h.matches.ended("e")
	want("a/b", 2, 0)
	h.matches.ended("d")
	want("a/b", 2, 1)
	// While the store is asked.
	h.matches.changed("a/b")
	during = func() {
		during = nil
		sub("f", "a/b")
		h.matches.changed("a/b")
	}
	asked = 0
	if _, err := h.stored("a/b"); err != nil || asked != 1 {
		t.Fatal(asked, err)
	}
	want("a/b", 3, 1)
	for i := range maxMatched + 10 {
		if _, err := h.stored(fmt.Sprint("many/", i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(h.matches.m); n > maxMatched {
		t.Errorf("%d topics are remembered, want %d at most", n, maxMatched)
	}
	if h.matches.forget(); len(h.matches.clients) != 0 || h.matches.weight != 0 {
		t.Error("something is left")
	}
}

// matching is a store that tells when it is asked who has subscribed.
type matching struct {
	store.Store
	f func()
}

func (m *matching) Match(ctx context.Context, topic string) ([]store.Subscription, error) {
	if strings.HasPrefix(topic, "many/") {
		return nil, nil
	}
	list, err := m.Store.Match(ctx, topic)
	m.f()
	return list, err
}

// Nothing of what a client id may be lies between it and what comes before it.
func TestBefore(t *testing.T) {
	for _, c := range []string{"a", "abc", "b\u00e9", "\ue000", "!", "z\U0010ffff"} {
		b := before(c)
		if b >= c {
			t.Errorf("before(%q) is %q, which does not come before", c, b)
		}
		for _, d := range []string{c[:len(c)-1], c + "!", c + "a"} {
			if utf8.ValidString(d) && d > b && d < c {
				t.Errorf("%q lies between %q and %q", d, b, c)
			}
		}
	}
}

// Who is cut off from the bus, and not from the store, does not know of it yet, or cannot say so; the others have not missed
// it yet. What is published on any node after SUBACK is in the queue all the same, at each moment of it, and when all is well
// again the store is not asked for each message.
func TestSubscribeWhileCutOff(t *testing.T) {
	for _, mind := range []struct {
		name    string
		notices time.Duration // when the node that is cut off does
		takes   time.Duration // how long SUBACK takes at most, right after the cut
	}{
		{"at once", 0, unheard},
		{"in 4 s", 4 * time.Second, unheard + changesWait},
		{"never", time.Hour, unheard + changesWait},
	} {
		t.Run(mind.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { subscribeWhileCutOff(t, mind.notices, mind.takes) })
		})
	}
}

func subscribeWhileCutOff(t *testing.T, notices, takes time.Duration) {
	const missed = 6 * time.Second // when the others notice
	var asked atomic.Int64
	var terms [3]atomic.Uint64
	o := setup{pipes: true, Options: Options{Look: time.Hour}, trusted: func(node int) func() uint64 {
		terms[node].Store(1)
		return terms[node].Load
	}}
	o.wrap = func(st store.Store) store.Store { return &matching{Store: st, f: func() { asked.Add(1) }} }
	s := newSwarm(t, 3, o)
	stored, pub := s.nodes[1].connect("stored", persistent), s.nodes[0].connect("pub")
	stored.subscribe("old", 1)
	n := 0
	// subscribe subscribes to a topic that the others have just asked for, and publishes there.
	subscribe := func(most time.Duration) {
		t.Helper()
		n++
		topic := fmt.Sprint("t/", n)
		pub.publish(topic, "before", 1)
		time.Sleep(time.Millisecond) // what is asked later is later
		began := time.Now()
		stored.subscribe(topic, 1)
		if took := time.Since(began); took > most {
			t.Errorf("%d: SUBACK came after %v, want %v at most", n, took, most)
		}
		pub.publish(topic, fmt.Sprint(n), 1)
	}
	warm := func(questions int64) {
		t.Helper()
		pub.publish("x", "m", 1)
		before := asked.Load()
		for range 10 {
			time.Sleep(time.Millisecond)
			pub.publish("x", "m", 1)
		}
		if got := asked.Load() - before; got != questions {
			t.Errorf("the store was asked %d times for 10 messages, want %d", got, questions)
		}
	}
	subscribe(0)
	stored.message("1")
	warm(0)

	b := s.buses[1].ID()
	s.hub.Drop(func(to string, m *bus.Message) bool { return to == b || m.From == b }) // it believes that it is up
	fell := time.AfterFunc(notices, func() { s.buses[1].Cut(true) })
	lost := time.AfterFunc(missed, func() { terms[0].Store(0); terms[2].Store(0) })
	defer fell.Stop()
	defer lost.Stop()
	began := time.Now()
	stored.subscribe("old", 1) // it has that
	if took := time.Since(began); took > changesWait {
		t.Errorf("what is not new is acknowledged after %v", took)
	}
	subscribe(takes)
	if took := time.Since(began); took < missed {
		t.Errorf("SUBACK came after %v, when others do not know", took)
	}
	warm(10)
	time.Sleep(unheard)
	if notices < time.Hour { // and looks
		stored.message("2")
		subscribe(0)
	}

	s.hub.Drop(nil)
	s.buses[1].Cut(true)
	synctest.Wait()
	s.buses[1].Cut(false)
	s.ready()
	terms[0].Store(2)
	terms[2].Store(2)
	stored.message(fmt.Sprint(n))
	warm(0)
	subscribe(0)
	stored.message(fmt.Sprint(n))
}

// What was remembered before other nodes may have changed something unheard is not gone by afterwards.
func TestTrustedAgain(t *testing.T) {
	var term atomic.Uint64
	var asked atomic.Int64
	h := newSwarm(t, 1, setup{
		trusted: func(int) func() uint64 { return term.Load },
		wrap:    func(st store.Store) store.Store { return &matching{Store: st, f: func() { asked.Add(1) }} },
	}).nodes[0].hook
	for i, x := range []struct {
		term  uint64
		asked int64
	}{{1, 1}, {1, 1}, {0, 2}, {0, 3}, {2, 4}, {2, 4}, {3, 5}} {
		term.Store(x.term)
		if _, err := h.route("t", nil); err != nil || asked.Load() != x.asked {
			t.Errorf("%d: asked %d times, %v, want %d", i, asked.Load(), err, x.asked)
		}
	}
}
