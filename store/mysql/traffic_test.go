package mysql_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/mysql"
)

// nodeIDs gives every node ids of its own.
type nodeIDs struct{ node, of int64 }

func (n nodeIDs) Next(after int64) int64 {
	return (max(after, time.Now().UnixMilli()<<20)/n.of+1)*n.of + n.node
}

// traffic is what several clients of several stores send, and what became of it. Every message is sent until it is
// acknowledged, as clients do.
type traffic struct {
	t      *testing.T
	stores []*mysql.Store
	users  []string
	groups []string

	mu    sync.Mutex
	acked map[string]*store.Send // by sender and cid
}

func newTraffic(t *testing.T, stores ...*mysql.Store) *traffic {
	return &traffic{
		t: t, stores: stores, users: []string{"ann", "bob", "cyd", "dan", "eve"}, groups: []string{"g1", "g2"},
		acked: map[string]*store.Send{},
	}
}

// patience is for what must end by itself.
const patience = 2 * time.Minute

// commit sends a batch until it is taken. What is refused is left out.
func (x *traffic) commit(s *mysql.Store, make func() *store.Batch) bool {
	for end := time.Now().Add(patience); ; {
		b := make()
		err := s.Commit(ctx, b)
		if err == nil {
			x.note(b)
			return true
		}
		if !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrUnknownOutcome) {
			x.t.Errorf("commit: %v", err)
			return false
		}
		if time.Now().After(end) {
			x.t.Errorf("commit: %v, for %s", err, patience)
			return false
		}
	}
}

func (x *traffic) note(b *store.Batch) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, m := range b.Sends {
		switch {
		case m.Err != nil:
		case x.acked[m.From+"/"+m.Cid] == nil:
			x.acked[m.From+"/"+m.Cid] = m
		default:
			if first := x.acked[m.From+"/"+m.Cid]; !m.Dup && !first.Dup || m.Cseq != first.Cseq || m.ID != first.ID || m.Conv != first.Conv {
				x.t.Errorf("cid %s of %s: acknowledged as %d and as %d", m.Cid, m.From, first.Cseq, m.Cseq)
			}
		}
	}
}

// message makes a message; it is the same for the same cid.
func (x *traffic) message(seed uint64, cid string) *store.Send {
	r := rand.New(rand.NewPCG(seed, 1))
	from := x.users[r.IntN(len(x.users))]
	m := &store.Send{Message: store.Message{From: from, Cid: cid, Type: "text", TS: time.Now().UnixMilli(), Body: []byte(cid)}, Hash: 7}
	if r.IntN(3) == 0 {
		m.Conv = store.GroupConv(x.groups[r.IntN(len(x.groups))])
		return m
	}
	to := x.users[r.IntN(len(x.users))]
	m.Conv = store.Direct(from, to)
	m.Inboxes = []store.InboxRef{{User: from}}
	if to != from {
		m.Inboxes = append(m.Inboxes, store.InboxRef{User: to})
	}
	return m
}

// setUp makes the groups.
func (x *traffic) setUp() {
	for _, id := range x.groups {
		x.change(x.stores[0], id, func(c *store.Change) {
			for _, u := range x.users {
				c.Members = append(c.Members, store.Member{User: u, Role: store.Ordinary})
			}
		})
	}
}

var changes struct {
	sync.Mutex
	n int
}

// change changes a group, however often others come between.
func (x *traffic) change(s *mysql.Store, id string, edit func(*store.Change)) {
	changes.Lock()
	changes.n++
	cid := fmt.Sprint("change", changes.n)
	changes.Unlock()
	for end := time.Now().Add(patience); time.Now().Before(end) && !x.t.Failed(); {
		g, err := s.Group(ctx, id)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			if !errors.Is(err, store.ErrUnavailable) {
				x.t.Errorf("group: %v", err)
			}
			continue
		}
		var m *store.Send
		x.commit(s, func() *store.Batch {
			c := &store.Change{Group: g}
			edit(c)
			m = &store.Send{
				Message: store.Message{Conv: store.GroupConv(id), From: "ann", Cid: cid, Type: "sys.group", TS: time.Now().UnixMilli()},
				Hash:    1, Change: c,
			}
			return &store.Batch{Sends: []*store.Send{m}}
		})
		if m.Err == nil {
			return
		}
		if !errors.Is(m.Err, store.ErrChanged) {
			x.t.Errorf("change: %v", m.Err)
		}
	}
}

// run has every store send batches of messages from two goroutines, with repetitions through other stores, and beside
// that change groups and move watermarks; it returns when all is acknowledged.
func (x *traffic) run(seed uint64, n int) {
	var wg sync.WaitGroup
	for i, s := range x.stores {
		for lane := range 2 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(seed, uint64(10*i+lane)))
				for k := 0; k < n && !x.t.Failed(); k++ {
					first := r.Uint64N(40)
					per := 1 + r.IntN(20)
					x.commit(s, func() *store.Batch {
						b := &store.Batch{}
						for j := range per {
							// Several goroutines and stores send the same messages.
							q := uint64(k)*100 + first + uint64(j)
							b.Sends = append(b.Sends, x.message(seed+q, fmt.Sprint("c", q)))
						}
						return b
					})
				}
			})
		}
		wg.Go(func() {
			for k := 0; k < n/4 && !x.t.Failed(); k++ {
				x.change(s, x.groups[k%2], func(c *store.Change) {
					c.Members = []store.Member{{User: x.users[1+k%4], Role: store.Role(k / 4 % 2)}}
				})
				u, conv := x.users[k%5], store.Direct("ann", x.users[k%5])
				x.commit(s, func() *store.Batch {
					return &store.Batch{
						Lazy: true, Reads: []*store.Mark{{User: u, Conv: conv, Cseq: uint64(k)}, {User: u, Conv: store.GroupConv("g1"), Cseq: uint64(k)}},
						Delivered: []*store.Mark{{User: u, Conv: conv, Cseq: uint64(k + 1)}},
						Users:     []store.User{{Name: u, Cursor: uint64(k)}},
						Devices:   []store.Device{{DeviceKey: store.DeviceKey{User: u, Device: fmt.Sprint("d", i)}, Cursor: uint64(k)}},
					}
				})
			}
		})
	}
	wg.Wait()
}

// check compares all that can be read with what was acknowledged.
func (x *traffic) check(s *mysql.Store) {
	x.t.Helper()
	inboxes := map[string]map[string]bool{} // what is to be in them, as conv and cseq
	stored := map[string]*store.Message{}
	total := 0
	for _, conv := range x.convs() {
		list, err := s.History(ctx, "nobody", conv, store.Range{Forward: true, Limit: 1 << 20})
		if err != nil {
			x.t.Fatal(err)
		}
		total += len(list)
		last := int64(0)
		for i, m := range list {
			if m.Cseq != uint64(i+1) || m.ID <= last {
				x.t.Fatalf("%s: place %d has cseq %d, id %d after %d", conv, i+1, m.Cseq, m.ID, last)
			}
			last = m.ID
			k := m.From + "/" + m.Cid
			if stored[k] != nil {
				x.t.Errorf("%s is stored twice", k)
			}
			stored[k] = m
			if x.acked[k] == nil {
				x.t.Errorf("%s is stored and was never acknowledged", k)
			}
		}
	}
	for k, m := range x.acked {
		got := stored[k]
		if got == nil || got.Cseq != m.Cseq || got.ID != m.ID || got.Conv != m.Conv {
			x.t.Errorf("%s was acknowledged as %d of %s, id %d; stored is %v", k, m.Cseq, m.Conv, m.ID, got)
		}
		if m.Dup {
			continue // who got it was said to somebody who did not hear it
		}
		for _, r := range m.Inboxes {
			if inboxes[r.User] == nil {
				inboxes[r.User] = map[string]bool{}
			}
			inboxes[r.User][fmt.Sprint(m.Conv, " ", m.Cseq, " ", r.Seq)] = true
		}
	}
	for _, u := range x.users {
		x.checkInbox(s, u, inboxes[u])
	}
	x.t.Logf("%d messages, %d acknowledged", total, len(x.acked))
}

func (x *traffic) convs() (list []store.Conv) {
	for i, a := range x.users {
		for _, b := range x.users[i:] {
			list = append(list, store.Direct(a, b))
		}
	}
	for _, g := range x.groups {
		list = append(list, store.GroupConv(g))
	}
	return list
}

// checkInbox: no holes, nothing twice, each conversation in order, and what was acknowledged at its place.
func (x *traffic) checkInbox(s *mysql.Store, user string, want map[string]bool) {
	x.t.Helper()
	last := map[store.Conv]uint64{}
	var members = map[store.Conv]store.Member{}
	for _, g := range x.groups {
		m, err := s.Member(ctx, g, user)
		if err != nil {
			x.t.Fatal(err)
		}
		members[store.GroupConv(g)] = m
	}
	for after := uint64(0); ; {
		page, err := s.ReadInbox(ctx, user, after, 500, nil)
		if err != nil {
			x.t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, e := range page {
			if e.Seq != after+1 || e.Cseq <= last[e.Conv] {
				x.t.Fatalf("inbox of %s: seq %d after %d, %s: cseq %d after %d", user, e.Seq, after, e.Conv, e.Cseq, last[e.Conv])
			}
			if m, group := members[e.Conv]; group {
				for n := last[e.Conv] + 1; n <= e.Cseq; n++ {
					if m.Has(n) != (n == e.Cseq) {
						x.t.Errorf("inbox of %s: %s %d after %d, spans %v", user, e.Conv, e.Cseq, last[e.Conv], m.Spans)
					}
				}
			} else if e.Cseq != last[e.Conv]+1 {
				x.t.Errorf("inbox of %s: %s %d after %d", user, e.Conv, e.Cseq, last[e.Conv])
			}
			last[e.Conv], after = e.Cseq, e.Seq
			delete(want, fmt.Sprint(e.Conv, " ", e.Cseq, " ", e.Seq))
		}
	}
	if len(want) > 0 {
		x.t.Errorf("inbox of %s: %d acknowledged entries are missing", user, len(want))
	}
}
