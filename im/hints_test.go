package im

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

func someHint(r *rand.Rand) *pending {
	word := func() string { return strings.Repeat(string(rune('a'+r.IntN(26))), r.IntN(20)) }
	x := &pending{}
	x.Message = store.Message{
		Conv: team, Cseq: 1 + r.Uint64N(1<<40), ID: r.Int64(), From: "alice", Device: word(), Cid: word(), Type: word(), ContentType: word(),
		Encoding: store.Encoding(r.IntN(3)), Recalled: r.IntN(2) == 0, TS: r.Int64N(1 << 41), CTS: r.Int64N(1 << 41), Expires: r.Int64N(1 << 41),
		Body: []byte(word() + "x"),
	}
	if r.IntN(2) == 0 {
		x.Change = &store.Change{Group: store.Group{ID: "team", Receipts: store.ReceiptsCounts, LargeFrom: r.Uint64N(9)}, End: r.IntN(2) == 0}
		for i := range r.IntN(4) {
			spans := []store.Span{{From: 1 + r.Uint64N(9), To: 10}, {From: 11 + r.Uint64N(9)}}
			x.Change.Members = append(x.Change.Members, store.Member{User: fmt.Sprint("u", i), Spans: spans[r.IntN(2):]})
		}
	}
	return x
}

// TestHintCodec: what is said is what is heard, and a part of it is not taken for the whole.
func TestHintCodec(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 4))
	for range 500 {
		x := someHint(r)
		b := appendGroupHint(nil, x)
		d := wire.Decoder{B: b}
		got := readGroupHint(&d, team)
		if d.Bad || d.Off != len(b) || !reflect.DeepEqual(got, x) {
			t.Fatalf("said %+v, heard %+v, bad %v", x, got, d.Bad)
		}
		for n := range b {
			d := wire.Decoder{B: b[:n]}
			if readGroupHint(&d, team); !d.Bad {
				t.Fatalf("%d of %d bytes were taken for the whole", n, len(b))
			}
		}
	}
}

// FuzzReceive: whatever comes from the bus, nothing breaks, and questions are answered once.
func FuzzReceive(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 5))
	for range 20 {
		x := someHint(r)
		f.Add(byte('g'), "team", appendGroupHint([]byte{sayGroup}, x))
		f.Add(byte('u'), "bob", appendHint(wire.AppendUvarint([]byte{sayMessages}, 9), &x.Message))
	}
	for _, s := range []string{"h", "w", "rb", "balice", "p", "n\x04{}", "e\x01{}", "c\x04team\x05\x02\x01\x03bob"} {
		f.Add(byte('u'), "bob", []byte(s))
	}
	f.Fuzz(func(t *testing.T, kind byte, name string, payload []byte) {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, 2, quietly)
			x := c.nodes[0]
			a, b := x.connect("alice", "a", persistent, IM), x.connect("bob", "b", Session{}, IM)
			x.ok(a, nil, "group.create", `{"group":"team","name":"n","kind":"large","members":["bob"]}`)
			answered := 0
			x.e.peers.receive(&bus.Message{Channel: bus.Channel{Kind: bus.Kind(kind), Name: name}, Payload: payload, Answer: func([]byte) { answered++ }})
			synctest.Wait()
			if len(payload) > 0 && answered != 1 {
				t.Errorf("answered %d times", answered)
			}
			b.mu.Lock()
			b.bad = nil // what nodes tell each other is shown as it is
			b.mu.Unlock()
		})
	})
}

// TestHintLargeBody: of a large body that goes to many the head alone is told, and the body is read from the log.
func TestHintLargeBody(t *testing.T) {
	inCluster(t, 2, quietly, func(t *testing.T, c *cluster) {
		x, y := c.nodes[0], c.nodes[1]
		a := x.connect("alice", "a", persistent, IM)
		var links []*fakeLink
		users := ""
		for i := range fewReaders + 1 {
			links = append(links, y.connect(fmt.Sprint("u", i), "d", persistent, IM))
			users += fmt.Sprintf(`,"u%d"`, i)
		}
		x.ok(a, nil, "group.create", `{"group":"g","name":"n","members":[%s]}`, users[1:])
		synctest.Wait()
		y.reads.taken()
		body := strings.Repeat("x", headBytes+1)
		var mu sync.Mutex
		size := 0
		c.hub.Drop(func(_ string, m *bus.Message) bool {
			mu.Lock()
			defer mu.Unlock()
			size += len(m.Payload)
			return false
		})
		x.ok(a, nil, "send", `{"to":"g/g","body":%q}`, body)
		synctest.Wait()
		mu.Lock()
		if size > 1000 {
			t.Errorf("%d bytes were said", size)
		}
		mu.Unlock()
		for _, l := range links {
			if got := l.bodies(); len(got) != 2 || got[1] != body {
				t.Errorf("%s got %d messages", l.dev.User(), len(got))
			}
		}
		if n := y.reads.taken()["ReadInbox"]; n != len(links) {
			t.Errorf("%d reads, want %d", n, len(links))
		}
		y.reads.taken()
		x.ok(a, nil, "send", `{"to":"u/u0","body":%q}`, body)
		synctest.Wait()
		if got := links[0].bodies(); len(got) != 3 || got[2] != body {
			t.Errorf("got %d messages", len(got))
		}
		wantCalls(t, y, "a large body for one", nil)
	})
}

// TestCacheFlight: what many want at once is read once, but what began before a change does not serve after it.
func TestCacheFlight(t *testing.T) {
	inCluster(t, 1, quietly, func(t *testing.T, c *cluster) {
		st := &slowBlocks{Store: c.st}
		e := New(st, Config{Log: quiet})
		defer e.Close(t.Context())
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if _, err := e.blocked(t.Context(), "bob", "alice"); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		e.blocks.forget("bob")
		for range 50 {
			wg.Go(func() { _, _ = e.blocked(t.Context(), "bob", "alice") })
		}
		wg.Wait()
		if st.n != 2 {
			t.Errorf("%d reads, want one before the change and one after it", st.n)
		}
	})
}

type slowBlocks struct {
	store.Store
	mu sync.Mutex
	n  int
}

func (s *slowBlocks) Blocks(context.Context, string) ([]string, error) {
	s.mu.Lock()
	s.n++
	s.mu.Unlock()
	time.Sleep(time.Second)
	return nil, nil
}

// TestHintGathered: what a batch has for one user goes in one payload.
func TestHintGathered(t *testing.T) {
	inCluster(t, 2, quietly, func(t *testing.T, c *cluster) {
		x := c.nodes[0]
		a := x.connect("alice", "a", persistent, IM)
		b := c.nodes[1].connect("bob", "b", persistent, IM)
		release := x.hold()
		for i := range 50 {
			a.start("send", `{"to":"u/bob","body":"%d"}`, i)
		}
		synctest.Wait()
		x.bus.taken()
		release()
		synctest.Wait()
		wantSeqs(t, b, span(1, 50)...)
		if n := x.bus.taken()[bus.Channel{Kind: bus.User, Name: "bob"}]; n > 2 {
			t.Errorf("published %d times", n)
		}
	})
}
