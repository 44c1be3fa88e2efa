package im

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/store"
)

// TestClusterDelivery: a message reaches the devices of both users on all nodes, in order and once, without a read; the
// sender learns how far it has come.
func TestClusterDelivery(t *testing.T) {
	inCluster(t, 3, quietly, func(t *testing.T, c *cluster) {
		a, b := c.nodes[0].connect("alice", "a", persistent, IM), c.nodes[1].connect("bob", "b", persistent, IM)
		a2, b2 := c.nodes[2].connect("alice", "a2", persistent, IM), c.nodes[2].connect("bob", "b2", Session{}, Plain)
		c.nodes[0].send(a, "bob", "0") // what is cached is cached, and who is where is known
		synctest.Wait()
		for _, n := range c.nodes {
			n.reads.taken()
		}
		for i := 1; i <= 20; i++ {
			if s := c.nodes[0].send(a, "bob", fmt.Sprint(i)); s.State != "sent" {
				t.Fatalf("state %q, want sent", s.State)
			}
		}
		synctest.Wait()
		wantSeqs(t, b, span(1, 21)...)
		wantSeqs(t, b2, span(1, 21)...)
		wantSeqs(t, a2, span(1, 21)...)
		wantSeqs(t, a)
		for _, n := range c.nodes[1:] {
			wantCalls(t, n, "handing over", nil)
		}
		c.nodes[1].ok(b, nil, "ack", `{"seq":21}`)
		synctest.Wait()
		for _, l := range []*fakeLink{a, a2} {
			got := l.notesOf(Receipts, "delivered")
			if n := len(got); n == 0 || got[n-1].Cseq != 21 || got[n-1].Conv != "u/bob" {
				t.Errorf("%s: receipts %+v", l.dev.ID(), got)
			}
			if got := l.notesOf(Receipts, "queued"); got != nil {
				t.Errorf("%s: %+v of what was delivered", l.dev.ID(), got)
			}
		}
	})
}

// TestClusterReached: who has acknowledged on one node, and connects without a session to another, is not sent that again, though
// it is not written yet.
func TestClusterReached(t *testing.T) {
	cfg := quietly
	cfg.FlushInterval = time.Hour
	inCluster(t, 2, cfg, func(t *testing.T, c *cluster) {
		x, y := c.nodes[0], c.nodes[1]
		a, b := x.connect("alice", "a", persistent, IM), x.connect("bob", "b", Session{}, IM)
		x.ok(a, nil, "group.create", `{"group":"team","name":"n","kind":"large","members":["bob"]}`)
		x.send(a, "bob", "1")
		x.ok(a, nil, "send", `{"to":"g/team","body":"2"}`)
		synctest.Wait()
		x.ok(b, nil, "ack", `{"seq":1}`)
		x.ok(b, nil, "ack", `{"conv":"g/team","cseq":2}`)
		b.dev.Disconnect(true)
		b = y.connect("bob", "b", Session{}, IM)
		x.send(a, "bob", "3")
		x.ok(a, nil, "send", `{"to":"g/team","body":"4"}`)
		synctest.Wait()
		wantSeqs(t, b, 2, 0) // a large group's have none
		wantTeam(t, b, 3)
	})
}

// TestClusterQuiet: what nobody else hears is not said; what has nobody to read it costs nothing while nothing happens.
func TestClusterQuiet(t *testing.T) {
	inCluster(t, 2, quietly, func(t *testing.T, c *cluster) {
		x := c.nodes[0]
		a, _ := x.connect("alice", "a", persistent, IM), x.connect("bob", "b", persistent, IM)
		time.Sleep(time.Second)
		x.send(a, "bob", "1")
		synctest.Wait()
		x.bus.taken()
		x.send(a, "bob", "2")
		synctest.Wait()
		if got := x.bus.taken(); len(got) != 0 {
			t.Errorf("published %v about users who are known to be here alone", got)
		}
		time.Sleep(aloneFor + time.Second)
		x.send(a, "bob", "3")
		synctest.Wait()
		if got := x.bus.taken(); got[bus.Channel{Kind: bus.User, Name: "bob"}] != 1 {
			t.Errorf("published %v, although it was long ago that bob was nowhere else", got)
		}
		b2 := c.nodes[1].connect("bob", "b2", persistent, IM)
		synctest.Wait()
		x.send(a, "bob", "4")
		synctest.Wait()
		wantSeqs(t, b2, 1, 2, 3, 4)
		time.Sleep(2 * time.Minute) // what has been written since is looked at
		for _, n := range c.nodes {
			n.reads.taken()
		}
		time.Sleep(10 * time.Minute)
		for _, n := range c.nodes {
			wantCalls(t, n, "idle", map[string]int{"Writes": 20})
		}
		c.nodes[1].bus.Leave()
		synctest.Wait()
		x.bus.taken()
		x.send(a, "carol", "5")
		time.Sleep(time.Minute)
		if got := x.bus.taken(); len(got) != 0 {
			t.Errorf("published %v to nobody", got)
		}
	})
}

// TestClusterState: who is connected nowhere has its messages queued, and the sender is told.
func TestClusterState(t *testing.T) {
	inCluster(t, 2, quietly, func(t *testing.T, c *cluster) {
		x := c.nodes[0]
		a := x.connect("alice", "a", persistent, IM)
		state := func(want string, receipts int) {
			t.Helper()
			if s := x.send(a, "bob", "x"); s.State != want {
				t.Errorf("state %q, want %q", s.State, want)
			}
			synctest.Wait()
			if got := a.notesOf(Receipts, "queued"); len(got) != receipts {
				t.Errorf("%d receipts that it waits, want %d", len(got), receipts)
			}
		}
		state("queued", 1)
		b := c.nodes[1].connect("bob", "b", persistent, IM)
		state("sent", 1)
		b.dev.SetProfile(None, 0) // connected, and does not read: the node that has it tells
		state("sent", 2)
		b.bye()
		time.Sleep(time.Second)
		state("queued", 3)
		c.nodes[0].bus.Cut(true)
		synctest.Wait()
		start := time.Now()
		state("queued", 4)
		if took := time.Since(start); took > 0 {
			t.Errorf("the answer took %s, waiting for nodes that cannot be reached", took)
		}
	})
}

// TestClusterLost: what no other node is told of is found by the look, and at once when the bus is back.
func TestClusterLost(t *testing.T) {
	inCluster(t, 2, quietly, func(t *testing.T, c *cluster) {
		a, b := c.nodes[0].connect("alice", "a", persistent, IM), c.nodes[1].connect("bob", "b", persistent, IM)
		c.nodes[0].ok(a, nil, "group.create", `{"group":"team","name":"n","kind":"large","members":["bob"]}`)
		synctest.Wait()
		wantTeam(t, b, 1)
		c.lose(true)
		c.nodes[0].send(a, "bob", "1")
		c.nodes[0].ok(a, nil, "send", `{"to":"g/team","body":"x"}`)
		wantTeam(t, b, 1)
		wantSeqs(t, b, 0)
		time.Sleep(31 * time.Second)
		wantTeam(t, b, 1, 2)
		if got := b.seqs(); !slices.Equal(got, []uint64{0, 1, 0}) && !slices.Equal(got, []uint64{0, 0, 1}) {
			t.Errorf("got seqs %v", got)
		}
		c.lose(false)
		c.nodes[1].bus.Cut(true)
		synctest.Wait()
		c.nodes[0].send(a, "bob", "2")
		time.Sleep(lookDown + time.Second) // degraded
		if got := b.bodies(); got[len(got)-1] != "2" {
			t.Errorf("got %v while the bus is down", got)
		}
		c.nodes[0].send(a, "bob", "3")
		c.nodes[1].bus.Cut(false)
		time.Sleep(askFor)
		synctest.Wait()
		if got := b.bodies(); got[len(got)-1] != "3" {
			t.Errorf("got %v when the bus was back", got)
		}
	})
}

// TestClusterEarly: messages that come in another order than they were committed in, or twice, are handed over in theirs, once.
func TestClusterEarly(t *testing.T) {
	inCluster(t, 2, quietly, func(t *testing.T, c *cluster) {
		a, b := c.nodes[0].connect("alice", "a", persistent, IM), c.nodes[1].connect("bob", "b", persistent, IM)
		var kept []*bus.Message
		c.hub.Drop(func(to string, m *bus.Message) bool {
			if m.Payload[0] == sayMessages {
				kept = append(kept, m)
			}
			return m.Payload[0] == sayMessages
		})
		c.nodes[0].sendMany(a, "bob", 1, 5)
		synctest.Wait()
		c.hub.Drop(nil)
		slices.Reverse(kept)
		for _, m := range append(kept, kept...) {
			c.nodes[1].e.peers.receive(m)
			synctest.Wait()
		}
		wantSeqs(t, b, span(1, 5)...)
	})
}

// TestClusterLarge: who joins on another node reads at once, who leaves reads no more.
func TestClusterLarge(t *testing.T) {
	inCluster(t, 2, quietly, func(t *testing.T, c *cluster) {
		x, y := c.nodes[0], c.nodes[1]
		o, b := x.connect("owner", "o", persistent, IM), y.connect("bob", "b", persistent, IM)
		b2 := y.connect("bob", "2", Session{}, IM)
		x.ok(o, nil, "group.create", `{"group":"team","name":"n","kind":"large"}`)
		post := func() { x.ok(o, nil, "send", `{"to":"g/team","body":"x"}`) }
		post()
		x.ok(o, nil, "group.add", `{"group":"team","users":["bob"]}`) // 3
		post()
		wantTeam(t, b, 3, 4)
		y.reads.taken()
		post()
		wantTeam(t, b, 3, 4, 5)
		wantCalls(t, y, "handing over", nil)
		y.ok(b, nil, "group.leave", `{"group":"team"}`) // 6
		post()
		x.ok(o, nil, "group.add", `{"group":"team","users":["bob"]}`) // 8
		post()
		wantTeam(t, b, 3, 4, 5, 6, 8, 9)
		wantTeam(t, b2, 3, 4, 5, 6, 8, 9)
		x.ok(o, nil, "group.remove", `{"group":"team","users":["bob"]}`) // 10
		post()
		wantTeam(t, b, 3, 4, 5, 6, 8, 9, 10)
		if n := len(y.e.feeds.m); n != 0 || y.bus.Subscribed(bus.Channel{Kind: bus.Group, Name: "team"}) != 0 {
			t.Error("the node still follows the group")
		}
		x.ok(o, nil, "group.create", `{"group":"small","name":"n","members":["bob"]}`)
		for i := range 3 {
			x.ok(o, nil, "group.add", `{"group":"small","users":["u%d"]}`, i) // large with the last
		}
		x.ok(o, nil, "send", `{"to":"g/small","body":"large"}`)
		synctest.Wait()
		for _, l := range []*fakeLink{b, b2} {
			if got := l.bodies(); got[len(got)-1] != "large" || len(got) != 7+5 {
				t.Errorf("%s: got %q of the group that became large", l.dev.ID(), got)
			}
		}
	})
}

// TestClusterLeaver: who has left gets nothing more, though no other node hears that it did: from hints, by the look, by acknowledging
// what it has not been handed.
func TestClusterLeaver(t *testing.T) {
	for _, how := range []string{"hints", "look", "ack", "deleted", "events"} {
		t.Run(how, func(t *testing.T) {
			inCluster(t, 2, quietly, func(t *testing.T, c *cluster) {
				x, y := c.nodes[0], c.nodes[1]
				o, b, phone := x.connect("owner", "o", persistent, IM), y.connect("bob", "b", persistent, IM), x.connect("bob", "x", Session{}, IM)
				x.ok(o, nil, "group.create", `{"group":"team","name":"n","kind":"large","members":["bob"]}`)
				post := func() { x.ok(o, nil, "send", `{"to":"g/team","body":"x"}`) }
				wantTeam(t, b, 1)
				c.lose(true)
				post()                                              // 2
				x.ok(phone, nil, "group.leave", `{"group":"team"}`) // 3
				if how != "ack" {
					post()
				}
				if how == "deleted" {
					x.ok(phone, nil, "delete", `{"conv":"g/team","cseqs":[3]}`)
				}
				want := []uint64{1, 2, 3}
				switch how {
				case "hints":
					c.lose(false)
					post()
				case "deleted":
					c.lose(false)
					post()
					want = want[:2]
				case "ack":
					y.ok(b, nil, "ack", `{"conv":"g/team","cseq":3}`)
					c.lose(false)
					post()
					want = want[:1]
				case "events":
					c.lose(false)
					x.ok(o, nil, "recall", `{"conv":"g/team","cseq":4}`)
					x.ok(o, nil, "group.update", `{"group":"team","notice":"first"}`)
				case "look":
					time.Sleep(time.Minute)
				}
				wantTeam(t, b, want...)
				c.lose(false)
				post()
				x.ok(o, nil, "recall", `{"conv":"g/team","cseq":4}`)
				x.ok(o, nil, "group.update", `{"group":"team","notice":"secret"}`)
				time.Sleep(time.Minute)
				wantTeam(t, b, want...)
				for _, n := range b.notesOf(Events, "") {
					if n.Cseq > 3 {
						t.Errorf("told %s", n.raw)
					}
				}
			})
		})
	}
}

// TestClusterJoinLost: that a user has joined is told again until it is heard, and found by the look at last.
func TestClusterJoinLost(t *testing.T) {
	for _, until := range []time.Duration{2 * time.Second, 20 * time.Second} {
		inCluster(t, 2, quietly, func(t *testing.T, c *cluster) {
			x, y := c.nodes[0], c.nodes[1]
			o, b := x.connect("owner", "o", persistent, IM), y.connect("bob", "b", Session{}, IM)
			x.ok(o, nil, "group.create", `{"group":"team","name":"n","kind":"large"}`)
			c.lose(true)
			tk := o.start("group.add", `{"group":"team","users":["bob"]}`)
			time.Sleep(until)
			x.answer(o, tk)
			c.lose(false)
			x.ok(o, nil, "send", `{"to":"g/team","body":"x"}`)
			time.Sleep(50 * time.Second)
			wantTeam(t, b, 2, 3)
		})
	}
}

// TestClusterFence: of two nodes that have a device the one that claimed it first writes nothing more, and closes it.
func TestClusterFence(t *testing.T) {
	inCluster(t, 2, quietly, func(t *testing.T, c *cluster) {
		x, y := c.nodes[0], c.nodes[1]
		a := x.connect("alice", "a", persistent, IM)
		s := persistent
		s.Epoch = c.st.claim(t, "b")
		old := x.connect("bob", "b", s, IM)
		x.sendMany(a, "bob", 1, 5)
		x.ok(old, nil, "ack", `{"seq":2}`)
		time.Sleep(time.Second)
		s.Epoch = c.st.claim(t, "b")
		now := y.connect("bob", "b", s, IM)
		synctest.Wait()
		wantSeqs(t, now, 3, 4, 5)
		if got := old.closes(); got != nil {
			t.Fatalf("closed %v too early", got)
		}
		x.ok(old, nil, "ack", `{"seq":5}`)
		time.Sleep(time.Second)
		if got := old.closes(); len(got) != 1 || got[0] != CloseTaken {
			t.Fatalf("closes %v, want it taken", got)
		}
		cursor := func() uint64 {
			d, err := c.st.Device(t.Context(), store.DeviceKey{User: "bob", Device: "b"})
			if err != nil {
				t.Fatal(err)
			}
			return d.Cursor
		}
		old.dev.Disconnect(true)
		time.Sleep(time.Second)
		if n := cursor(); n != 2 {
			t.Errorf("cursor %d: the connection that was taken over has written it", n)
		}
		// One that comes too late with its claim is refused.
		late := Session{Persistent: true, Clean: true, Epoch: s.Epoch - 1}
		if _, err := x.e.Connect(t.Context(), "bob", "b", late, newLink()); !errors.Is(err, ErrTaken) {
			t.Errorf("connect with an old claim: %v", err)
		}
		// One that writes nothing learns of it by the look.
		idle := s
		idle.Epoch = c.st.claim(t, "i")
		i := x.connect("bob", "i", idle, IM)
		c.st.claim(t, "i")
		x.send(a, "bob", "6")
		time.Sleep(time.Minute)
		if got := i.closes(); len(got) != 1 || got[0] != CloseTaken {
			t.Errorf("closes %v, want it taken", got)
		}
		y.ok(now, nil, "ack", `{"seq":6}`)
		time.Sleep(time.Second)
		if n := cursor(); n != 6 {
			t.Errorf("cursor %d, want 6", n)
		}
	})
}

// TestClusterDevices: a user's devices on other nodes are listed, counted and removed.
func TestClusterDevices(t *testing.T) {
	cfg := quietly
	cfg.DevicesPerUser = 3
	inCluster(t, 2, cfg, func(t *testing.T, c *cluster) {
		x, y := c.nodes[0], c.nodes[1]
		b := x.connect("bob", "1", persistent, IM)
		two, three := y.connect("bob", "2", persistent, IM), y.connect("bob", "3", Session{}, Plain)
		var list []struct {
			Device, Profile string
			Online          bool
		}
		x.ok(b, &list, "device.list", `{"rid":"1"}`)
		if got := fmt.Sprint(list); got != "[{1 im true} {2 im true} {3 plain true}]" {
			t.Errorf("devices %s", got)
		}
		var refusal *Error
		if _, err := x.e.Connect(t.Context(), "bob", "4", Session{}, newLink()); !errors.As(err, &refusal) || refusal.Code != RateLimited {
			t.Errorf("a fourth device: %v", err)
		}
		x.ok(b, nil, "device.remove", `{"device":"2"}`)
		if got := two.closes(); len(got) != 1 || got[0] != CloseRemoved {
			t.Errorf("closes %v", got)
		}
		if _, err := c.st.Device(t.Context(), store.DeviceKey{User: "bob", Device: "2"}); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the removed session: %v", err)
		}
		two.dev.Disconnect(false)
		time.Sleep(time.Second)
		if _, err := c.st.Device(t.Context(), store.DeviceKey{User: "bob", Device: "2"}); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the removed session is back: %v", err)
		}
		if got := three.notesOf(Events, "device.removed"); len(got) != 1 || got[0].Device != "2" {
			t.Errorf("events %+v", got)
		}
		if again := y.connect("bob", "2", persistent, IM); again.dev.Resumed() {
			t.Error("a removed session was gone on with")
		}
	})
}

// TestClusterEvents: what concerns a user's other devices, or those of others, reaches them on all nodes.
func TestClusterEvents(t *testing.T) {
	inCluster(t, 2, quietly, func(t *testing.T, c *cluster) {
		x, y := c.nodes[0], c.nodes[1]
		a, a2, b := x.connect("alice", "1", persistent, IM), y.connect("alice", "2", persistent, IM), y.connect("bob", "b", persistent, IM)
		x.ok(a, nil, "group.create", `{"group":"team","name":"n","kind":"large","members":["bob"]}`)
		x.ok(a, nil, "group.create", `{"group":"s","name":"n","members":["bob"]}`)
		s := x.send(a, "bob", "1")
		x.send(a, "bob", "2")
		x.ok(a, nil, "send", `{"to":"g/team","body":"x"}`)
		x.ok(a, nil, "typing", `{"to":"u/bob","state":"on"}`)
		x.ok(a, nil, "recall", `{"conv":"u/bob","cseq":%d}`, s.Cseq)
		x.ok(a, nil, "recall", `{"conv":"g/team","cseq":2}`)
		x.ok(a, nil, "delete", `{"conv":"u/bob","cseqs":[2]}`)
		y.ok(b, nil, "read", `{"conv":"u/alice","cseq":2}`)
		y.ok(a2, nil, "read", `{"conv":"g/s","cseq":1}`)
		synctest.Wait()
		for _, want := range []struct {
			l    *fakeLink
			kind string
			n    int
		}{
			{b, "typing", 1}, {b, "recall", 2}, {a2, "recall", 2}, {a2, "delete", 1}, {a, "delete", 0}, {b, "delete", 0},
			{a, "read", 1}, {a2, "read", 0}, {b, "group", 1}, {a2, "group", 1}, // of the large one they have the message alone
		} {
			if got := want.l.notesOf(Events, want.kind); len(got) != want.n {
				t.Errorf("%s/%s: %d events %s, want %d: %+v", want.l.dev.User(), want.l.dev.ID(), len(got), want.kind, want.n, got)
			}
		}
		for _, l := range []*fakeLink{a, a2} {
			if got := l.notesOf(Receipts, "read"); len(got) != 1 || got[0].Cseq != 2 {
				t.Errorf("%s: receipts %+v", l.dev.ID(), got)
			}
		}
	})
}

// TestClusterCaches: what is changed on one node holds on the others when the change is answered; where they could not be
// told, soon. What does not exist is asked for once.
func TestClusterCaches(t *testing.T) {
	inCluster(t, 2, quietly, func(t *testing.T, c *cluster) {
		x, y := c.nodes[0], c.nodes[1]
		a, b := x.connect("alice", "a", persistent, IM), y.connect("bob", "b", persistent, IM)
		x.send(a, "bob", "1")
		y.ok(b, nil, "block.add", `{"user":"alice"}`)
		x.refused(Blocked, a, "send", `{"to":"u/bob","body":1}`)
		y.refused(NotFound, b, "send", `{"to":"g/g","body":1}`)
		y.refused(NotFound, b, "group.get", `{"group":"g"}`)
		x.ok(a, nil, "group.create", `{"group":"g","name":"n"}`)
		y.refused(NotMember, b, "send", `{"to":"g/g","body":1}`)
		x.ok(a, nil, "group.add", `{"group":"g","users":["bob"]}`)
		y.ok(b, nil, "send", `{"to":"g/g","body":1}`)
		x.ok(a, nil, "group.mute", `{"group":"g","user":"bob","until":99999999999999}`)
		y.refused(Muted, b, "send", `{"to":"g/g","body":1}`)

		c.lose(true)
		tk := a.start("group.mute", `{"group":"g","user":"bob","until":0}`)
		time.Sleep(askFor)
		x.answer(a, tk) // it is not waited for longer
		y.refused(Muted, b, "send", `{"to":"g/g","body":1}`)
		time.Sleep(cacheAge)
		y.ok(b, nil, "send", `{"to":"g/g","body":1}`)
		tk = b.start("block.remove", `{"user":"alice"}`)
		time.Sleep(askFor)
		y.answer(b, tk)
		c.lose(false)
		x.bus.Cut(true)
		x.bus.Cut(false)
		synctest.Wait()
		x.send(a, "bob", "2")

		y.reads.taken()
		for range 50 {
			y.refused(NotFound, b, "group.get", `{"group":"none"}`)
			y.refused(NotFound, b, "group.join", `{"group":"none"}`)
			y.refused(NotFound, b, "send", `{"to":"g/none","body":1}`)
			y.refused(NotFound, b, "history", `{"conv":"g/none"}`)
			y.refused(NotFound, b, "typing", `{"to":"g/none"}`)
		}
		wantCalls(t, y, "a group that does not exist", map[string]int{"Group": 1})
	})
}

// TestClusterPresence: watchers learn who comes and goes on any node, and when a node dies.
func TestClusterPresence(t *testing.T) {
	inCluster(t, 3, quietly, func(t *testing.T, c *cluster) {
		x, y, z := c.nodes[0], c.nodes[1], c.nodes[2]
		a := x.connect("alice", "a", persistent, IM)
		x.send(a, "bob", "1")
		x.send(a, "carol", "1")
		x.ok(a, nil, "presence.watch", `{"users":["bob","carol"]}`)
		want := func(list string) {
			t.Helper()
			synctest.Wait()
			var got []string
			for _, n := range a.notesOf(Events, "presence") {
				got = append(got, fmt.Sprint(n.User, n.Online))
			}
			if fmt.Sprint(got) != list {
				t.Errorf("told %v, want %s", got, list)
			}
		}
		b := y.connect("bob", "1", persistent, IM)
		want("[bobtrue]")
		b2 := z.connect("bob", "2", persistent, IM)
		want("[bobtrue bobtrue]")
		var list []struct {
			User    string
			Online  bool
			Devices int
		}
		x.ok(a, &list, "presence.get", `{"rid":"1","users":["bob","carol","dave"]}`)
		if got := fmt.Sprint(list); got != "[{bob true 2} {carol false 0} {dave false 0}]" {
			t.Errorf("presence %s", got)
		}
		b.bye()
		time.Sleep(2 * time.Second)
		want("[bobtrue bobtrue bobtrue]") // one device is left
		b2.bye()
		time.Sleep(2 * time.Second)
		want("[bobtrue bobtrue bobtrue bobfalse]")
		z.connect("bob", "2", persistent, IM)
		synctest.Wait()
		y.connect("carol", "c", persistent, IM)
		want("[bobtrue bobtrue bobtrue bobfalse bobtrue caroltrue]")
		z.bus.Leave()
		want("[bobtrue bobtrue bobtrue bobfalse bobtrue caroltrue bobfalse]")
		y.bus.Cut(true)
		y.bus.Cut(false)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		x.ok(a, nil, "presence.unwatch", `{"users":["bob","carol"]}`)
		if n := x.bus.Subscribed(bus.Channel{Kind: bus.Presence, Name: "bob"}); n != 0 {
			t.Errorf("subscribed %d times to who is not watched", n)
		}
	})
}

// TestClusterHang: a node that answers nothing costs a client no more than a second.
func TestClusterHang(t *testing.T) {
	inCluster(t, 2, quietly, func(t *testing.T, c *cluster) {
		x, y := c.nodes[0], c.nodes[1]
		a := x.connect("alice", "a", persistent, IM)
		users := ""
		for i := range 200 {
			y.connect(fmt.Sprint("u", i), "d", Session{}, IM)
			x.send(a, fmt.Sprint("u", i), "x")
			users += fmt.Sprintf(`,"u%d"`, i)
		}
		c.hub.Drop(func(_ string, m *bus.Message) bool { return m.Answer != nil })
		start := time.Now()
		tk := a.start("presence.get", `{"rid":"1","users":[%s]}`, users[1:])
		if x.answer(a, tk); time.Since(start) > askFor {
			t.Errorf("took %s", time.Since(start))
		}
		start = time.Now()
		x.connect("alice", "b", persistent, IM)
		if took := time.Since(start); took > askFor {
			t.Errorf("connecting took %s", took)
		}
	})
}

// TestClusterKeeper: one node does the housekeeping.
func TestClusterKeeper(t *testing.T) {
	inCluster(t, 3, quietly, func(t *testing.T, c *cluster) {
		keepers := func() (list []int) {
			synctest.Wait()
			for i, n := range c.nodes {
				if n.e.peers.keeper() {
					list = append(list, i)
				}
			}
			return list
		}
		if got := keepers(); !slices.Equal(got, []int{0}) {
			t.Errorf("keepers %v, want the first", got)
		}
		c.nodes[0].bus.Leave()
		if got := keepers(); !slices.Contains(got, 1) || slices.Contains(got, 2) {
			t.Errorf("keepers %v, want the second", got)
		}
	})
}

// TestClusterReap: with a user the subscription goes.
func TestClusterReap(t *testing.T) {
	inCluster(t, 2, quietly, func(t *testing.T, c *cluster) {
		x := c.nodes[0]
		b := x.connect("bob", "b", persistent, IM)
		ch := bus.Channel{Kind: bus.User, Name: "bob"}
		if n := x.bus.Subscribed(ch); n != 1 {
			t.Errorf("subscribed %d times", n)
		}
		b.bye()
		time.Sleep(time.Second)
		if n := x.bus.Subscribed(ch); n != 0 {
			t.Errorf("subscribed %d times to who has gone", n)
		}
	})
}

// TestClusterMissedVisit: who joins again is also shown what it was there for the last time, though its node has never heard of
// that.
func TestClusterMissedVisit(t *testing.T) {
	cfg := quietly
	cfg.Look = 24 * time.Hour
	inCluster(t, 2, cfg, func(t *testing.T, c *cluster) {
		x, y := c.nodes[0], c.nodes[1]
		o, b := x.connect("owner", "o", persistent, IM), y.connect("bob", "b", persistent, IM)
		y.connect("carol", "c", persistent, IM)
		x.ok(o, nil, "group.create", `{"group":"team","name":"n","kind":"large","members":["carol"]}`)
		c.lose(true)
		for _, what := range []string{"add", "remove"} { // 2, 4
			tk := o.start("group."+what, `{"group":"team","users":["bob"]}`)
			time.Sleep(20 * time.Second) // it is said some times
			x.answer(o, tk)
			x.ok(o, nil, "send", `{"to":"g/team","body":"x"}`) // 3, 5
		}
		c.lose(false)
		wantTeam(t, b)
		x.ok(o, nil, "group.add", `{"group":"team","users":["bob"]}`) // 6
		wantTeam(t, b, 2, 3, 4, 6)
	})
}

// TestClusterConnectReads: a device that connects is given what the store has by then, whatever its node has heard.
func TestClusterConnectReads(t *testing.T) {
	cfg := quietly
	cfg.Look = 24 * time.Hour
	inCluster(t, 2, cfg, func(t *testing.T, c *cluster) {
		x, y := c.nodes[0], c.nodes[1]
		a, b := x.connect("alice", "a", persistent, IM), x.connect("bob", "1", persistent, IM)
		y.connect("bob", "2", persistent, None)
		c.lose(true)
		x.sendMany(a, "bob", 1, 5)
		x.ok(b, nil, "ack", `{"seq":3}`)
		time.Sleep(time.Second)
		three := y.connect("bob", "3", Session{}, IM)
		synctest.Wait()
		wantSeqs(t, three, 4, 5)
	})
}

// TestClusterLook: the look finds what is in an inbox.
func TestClusterLook(t *testing.T) {
	inCluster(t, 2, quietly, func(t *testing.T, c *cluster) {
		a, b := c.nodes[0].connect("alice", "a", persistent, IM), c.nodes[1].connect("bob", "b", persistent, IM)
		c.lose(true)
		c.nodes[0].sendMany(a, "bob", 1, 3)
		wantSeqs(t, b)
		time.Sleep(31 * time.Second)
		synctest.Wait()
		wantSeqs(t, b, 1, 2, 3)
	})
}

// TestClusterCutOff: a block that a node sets which is cut off, and cannot say so, holds on the others as soon as they know that
// it may be: within a second, and for what they had remembered, also afterwards.
func TestClusterCutOff(t *testing.T) {
	var term atomic.Uint64
	term.Store(1)
	cfg := quietly
	cfg.Trusted = term.Load
	inCluster(t, 3, cfg, func(t *testing.T, c *cluster) {
		x, y := c.nodes[0], c.nodes[1]
		a, b := x.connect("alice", "a", persistent, IM), y.connect("bob", "b", persistent, IM)
		x.send(a, "bob", "1")
		y.bus.Cut(true)
		synctest.Wait()
		y.ok(b, nil, "block.add", `{"user":"alice"}`)
		x.send(a, "bob", "2") // it goes by what it remembers
		term.Store(0)         // it has missed the other node
		x.refused(Blocked, a, "send", `{"to":"u/bob","body":1}`)
		y.ok(b, nil, "block.remove", `{"user":"alice"}`)
		time.Sleep(time.Second)
		x.send(a, "bob", "3")
		y.ok(b, nil, "block.add", `{"user":"alice"}`)
		time.Sleep(time.Second)
		x.refused(Blocked, a, "send", `{"to":"u/bob","body":1}`)
		y.ok(b, nil, "block.remove", `{"user":"alice"}`)
		term.Store(2) // the node has ended
		x.send(a, "bob", "4")
		x.reads.taken()
		x.send(a, "bob", "5")
		if n := x.reads.taken()["Blocks"]; n != 0 {
			t.Errorf("the store was asked for block lists %d times, want what is remembered", n)
		}
	})
}
