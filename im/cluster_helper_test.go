package im

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/bus/bustest"
	"github.com/mqim/mqim/store"
)

// sharedStore is what several nodes share: an embedded store, with claims and fences, and what is asked of it to find what other
// nodes have done.
type sharedStore struct {
	store.Store
	mu     sync.Mutex
	writes uint64
	epochs map[string]uint64
}

func (s *sharedStore) Commit(ctx context.Context, b *store.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range b.Claims {
		s.epochs[c.Client]++
		c.Epoch = s.epochs[c.Client]
	}
	best := map[string]uint64{}
	for _, f := range b.Fences {
		best[f.Client] = max(best[f.Client], f.Epoch)
	}
	lost := func(client string) bool { return best[client] != 0 && best[client] < s.epochs[client] }
	for _, f := range b.Fences {
		f.Lost = lost(f.Client)
	}
	b.Devices = slices.DeleteFunc(b.Devices, func(d store.Device) bool { return lost(d.Device) })
	b.Removed = slices.DeleteFunc(b.Removed, func(d store.DeviceKey) bool { return lost(d.Device) })
	b.Cursors = slices.DeleteFunc(b.Cursors, func(c store.Cursor) bool { return lost(c.Device) })
	if len(b.Sends) > 0 {
		s.writes++
	}
	for i := range b.Users { // forward only
		old, err := s.Store.User(ctx, b.Users[i].Name)
		if err != nil {
			return err
		}
		b.Users[i].Cursor, b.Users[i].LastSeen = max(b.Users[i].Cursor, old.Cursor), max(b.Users[i].LastSeen, old.LastSeen)
	}
	b.Lazy = false // what one node has committed all see, as in a database
	return s.Store.Commit(ctx, b)
}

// claim makes the session of a device that of a new connection.
func (s *sharedStore) claim(t testing.TB, client string) uint64 {
	t.Helper()
	c := &store.Claim{Client: client}
	if err := s.Commit(context.Background(), &store.Batch{Claims: []*store.Claim{c}}); err != nil {
		t.Fatal(err)
	}
	return c.Epoch
}

func (s *sharedStore) Maintain(ctx context.Context, now time.Time) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Store.Maintain(ctx, now)
}

func (s *sharedStore) Writes(context.Context) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes, nil
}

func (s *sharedStore) InboxHeads(ctx context.Context, users []string, dst []uint64) ([]uint64, error) {
	for _, u := range users {
		b, err := s.Store.Inbox(ctx, u)
		if err != nil {
			return dst, err
		}
		dst = append(dst, b.Head)
	}
	return dst, nil
}

func (s *sharedStore) ConvHeads(ctx context.Context, convs []store.Conv, dst []uint64) ([]uint64, error) {
	for _, c := range convs {
		list, err := s.Store.History(ctx, "", c, store.Range{Limit: 1})
		if err != nil {
			return dst, err
		}
		head := uint64(0)
		for _, m := range list {
			head = m.Cseq
		}
		dst = append(dst, head)
	}
	return dst, nil
}

func (s *sharedStore) Epochs(_ context.Context, clients []string, dst []uint64) ([]uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range clients {
		dst = append(dst, s.epochs[c])
	}
	return dst, nil
}

// counter counts what a node asks of the store.
type counter struct {
	store.Store
	mu    sync.Mutex
	calls map[string]int
}

func (c *counter) count(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls[name]++
}

// taken is what was asked since the last time.
func (c *counter) taken() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.calls
	c.calls = map[string]int{}
	return m
}

func (c *counter) Commit(ctx context.Context, b *store.Batch) error {
	if !b.Lazy { // cursors are written behind, whatever happens
		c.count("Commit")
	}
	return c.Store.Commit(ctx, b)
}

func (c *counter) Inbox(ctx context.Context, user string) (store.Inbox, error) {
	c.count("Inbox")
	return c.Store.Inbox(ctx, user)
}

func (c *counter) ReadInbox(ctx context.Context, user string, after uint64, limit int, dst []store.Entry) ([]store.Entry, error) {
	c.count("ReadInbox")
	return c.Store.ReadInbox(ctx, user, after, limit, dst)
}

func (c *counter) Message(ctx context.Context, conv store.Conv, cseq uint64) (*store.Message, error) {
	c.count("Message")
	return c.Store.Message(ctx, conv, cseq)
}

func (c *counter) History(ctx context.Context, user string, conv store.Conv, r store.Range) ([]*store.Message, error) {
	c.count("History")
	return c.Store.History(ctx, user, conv, r)
}

func (c *counter) Conversation(ctx context.Context, user string, conv store.Conv) (store.Conversation, error) {
	c.count("Conversation")
	return c.Store.Conversation(ctx, user, conv)
}

func (c *counter) User(ctx context.Context, name string) (store.User, error) {
	c.count("User")
	return c.Store.User(ctx, name)
}

func (c *counter) Blocks(ctx context.Context, user string) ([]string, error) {
	c.count("Blocks")
	return c.Store.Blocks(ctx, user)
}

func (c *counter) Group(ctx context.Context, id string) (store.Group, error) {
	c.count("Group")
	return c.Store.Group(ctx, id)
}

func (c *counter) Member(ctx context.Context, group, user string) (store.Member, error) {
	c.count("Member")
	return c.Store.Member(ctx, group, user)
}

func (c *counter) Members(ctx context.Context, group, after string, limit int) ([]store.Member, string, error) {
	c.count("Members")
	return c.Store.Members(ctx, group, after, limit)
}

func (c *counter) Streams(ctx context.Context, k store.DeviceKey) ([]store.Stream, error) {
	c.count("Streams")
	return c.Store.Streams(ctx, k)
}

func (c *counter) Writes(ctx context.Context) (uint64, error) {
	c.count("Writes")
	return c.Store.Writes(ctx)
}

func (c *counter) InboxHeads(ctx context.Context, users []string, dst []uint64) ([]uint64, error) {
	c.count("InboxHeads")
	return c.Store.InboxHeads(ctx, users, dst)
}

func (c *counter) ConvHeads(ctx context.Context, convs []store.Conv, dst []uint64) ([]uint64, error) {
	c.count("ConvHeads")
	return c.Store.ConvHeads(ctx, convs, dst)
}

// spyBus counts what a node publishes.
type spyBus struct {
	*bustest.Node
	mu   sync.Mutex
	said map[bus.Channel]int
}

func (b *spyBus) Publish(c bus.Channel, topic byte, payload []byte, done func(int)) {
	b.mu.Lock()
	b.said[c]++
	b.mu.Unlock()
	b.Node.Publish(c, topic, payload, done)
}

func (b *spyBus) taken() map[bus.Channel]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.said
	b.said = map[bus.Channel]int{}
	return m
}

// cluster is some engines on one store.
type cluster struct {
	t     testing.TB
	st    *sharedStore
	hub   *bustest.Hub
	nodes []*node
}

// node is a world with its place in a cluster.
type node struct {
	*world
	bus   *spyBus
	reads *counter
}

func newCluster(t testing.TB, n int, cfg Config) *cluster {
	t.Helper()
	c := &cluster{t: t, hub: bustest.NewHub()}
	c.st = &sharedStore{Store: openStore(t, vfs.NewMem(), store.Retention{}, nil), epochs: map[string]uint64{}}
	t.Cleanup(func() {
		if err := c.st.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	})
	for range n {
		c.join(cfg)
	}
	return c
}

// join adds a node.
func (c *cluster) join(cfg Config) *node {
	x := &node{reads: &counter{Store: c.st, calls: map[string]int{}}}
	x.bus = &spyBus{Node: c.hub.Join(fmt.Sprint("n", len(c.nodes))), said: map[bus.Channel]int{}}
	if cfg.Log == nil {
		cfg.Log = quiet
	}
	cfg.Bus = x.bus
	x.world = &world{t: c.t, st: &faultStore{Store: x.reads}}
	x.e = New(x.world.st, cfg)
	c.nodes = append(c.nodes, x)
	c.t.Cleanup(func() {
		if err := x.e.Close(context.Background()); err != nil {
			c.t.Errorf("close the engine: %v", err)
		}
		x.bus.Leave()
		for _, l := range x.links {
			for _, s := range l.bad {
				c.t.Errorf("device %s/%s: %s", l.dev.User(), l.dev.ID(), s)
			}
		}
	})
	synctest.Wait() // the others have seen it
	return x
}

// inCluster runs f in virtual time with n nodes.
func inCluster(t *testing.T, n int, cfg Config, f func(t *testing.T, c *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newCluster(t, n, cfg)) })
}

// lose has everything lost that is said between nodes; false: no more.
func (c *cluster) lose(on bool) {
	if on {
		c.hub.Drop(func(string, *bus.Message) bool { return true })
	} else {
		c.hub.Drop(nil)
	}
}

func wantCalls(t testing.TB, x *node, what string, want map[string]int) {
	t.Helper()
	if got := x.reads.taken(); !maps.Equal(got, want) {
		t.Errorf("%s: the store was asked %v, want %v", what, got, want)
	}
}
