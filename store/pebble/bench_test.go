package pebble_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/pebble"
)

var ctx = context.Background()

// load makes batches of messages over 20 conversations with bodies of 256 bytes.
type load struct {
	n      int
	cid    bool
	body   []byte
	random bool
	pair   [20][2]string
	conv   [20]store.Conv
}

func newLoad(cid bool) *load {
	l := &load{cid: cid, body: make([]byte, 1<<20)}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range l.body { // compresses to 70 % or so
		l.body[i] = "etaoinshrdlucmfwypvbgkqjxz ETAOINSHRDLU,.:0123456789"[min(r.IntN(52), r.IntN(52))]
	}
	for i := range l.conv {
		l.pair[i] = [2]string{fmt.Sprint("user", i, "a"), fmt.Sprint("user", i, "b")}
		l.conv[i] = store.Direct(l.pair[i][0], l.pair[i][1])
	}
	return l
}

// name is the n-th cid: rising as ULIDs are, or, as UUIDs are, in no order.
func (l *load) name(n uint64) string {
	if l.random {
		n *= 0x9e3779b97f4a7c15
	}
	return fmt.Sprintf("%016x", n)
}

func (l *load) batch(size int) *store.Batch {
	b := &store.Batch{Sends: make([]*store.Send, size)}
	now := time.Now().UnixMilli()
	ms := make([]store.Send, size)
	refs := make([]store.InboxRef, 2*size)
	for i := range ms {
		p := l.pair[l.n%20]
		m := &ms[i]
		off := l.n * 97 % (len(l.body) - 256)
		r := refs[2*i : 2*i+2]
		r[0].User, r[1].User = p[0], p[1]
		*m = store.Send{
			Message: store.Message{Conv: l.conv[l.n%20], From: p[l.n/20%2], Device: "d", Type: "text", TS: now, Body: l.body[off : off+256]},
			Hash:    uint64(l.n), Inboxes: r,
		}
		if l.cid {
			m.Cid = l.name(uint64(l.n))
		}
		l.n++
		b.Sends[i] = m
	}
	return b
}

// BenchmarkCommit counts one message as one operation: ns/op and allocs/op are per message, and include making the
// message (about 100 ns with a cid).
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{1, 64, 1024} {
		for _, cid := range []string{"none", "rising", "random"} {
			b.Run(fmt.Sprintf("batch=%d/cid=%s", size, cid), func(b *testing.B) {
				s := open(b, pebble.Options{Path: b.TempDir(), Retention: store.Retention{Dedupe: 24 * time.Hour}})
				l := newLoad(cid != "none")
				l.random = cid == "random"
				b.ReportAllocs()
				for b.Loop() {
					// b.Loop counts batches; the metrics below are per message.
					if err := s.Commit(ctx, l.batch(size)); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(l.n), "ns/msg")
				b.ReportMetric(float64(l.n)/b.Elapsed().Seconds(), "msg/s")
			})
		}
	}
}

// BenchmarkCommitPipelined has two committers, so that one batch is built while the other syncs.
func BenchmarkCommitPipelined(b *testing.B) {
	for _, size := range []int{64, 256, 1024} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			s := open(b, pebble.Options{Path: b.TempDir(), Retention: store.Retention{Dedupe: 24 * time.Hour}})
			b.ReportAllocs()
			next := make(chan *store.Batch)
			done := make(chan error, 2)
			for range 2 {
				go func() {
					for x := range next {
						if err := s.Commit(ctx, x); err != nil {
							done <- err
							return
						}
					}
					done <- nil
				}()
			}
			l := newLoad(true)
			for b.Loop() {
				next <- l.batch(size)
			}
			close(next)
			for range 2 {
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(l.n), "ns/msg")
			b.ReportMetric(float64(l.n)/b.Elapsed().Seconds(), "msg/s")
		})
	}
}

func filled(b *testing.B, n, size int) (*pebble.Store, *load) {
	s := open(b, pebble.Options{Path: b.TempDir(), Retention: store.Retention{Dedupe: 24 * time.Hour}})
	l := newLoad(true)
	for l.n < n {
		if err := s.Commit(ctx, l.batch(size)); err != nil {
			b.Fatal(err)
		}
	}
	return s, l
}

// BenchmarkReadInbox drains an inbox in pages of 100; an operation is an entry.
func BenchmarkReadInbox(b *testing.B) {
	for _, size := range []int{20, 1000} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			s, l := filled(b, 200_000, size)
			var page []store.Entry
			var after uint64
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				var err error
				page, err = s.ReadInbox(ctx, l.pair[3][0], after, 100, page[:0])
				if err != nil {
					b.Fatal(err)
				}
				n += len(page)
				after = 0
				if len(page) > 0 {
					after = page[len(page)-1].Seq
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/msg")
		})
	}
}

// BenchmarkReadTail reads the one newest entry, as a pump does that is just behind.
func BenchmarkReadTail(b *testing.B) {
	s, l := filled(b, 200_000, 500)
	head, err := s.Inbox(ctx, l.pair[3][0])
	if err != nil {
		b.Fatal(err)
	}
	var page []store.Entry
	b.ReportAllocs()
	for b.Loop() {
		if page, err = s.ReadInbox(ctx, l.pair[3][0], head.Head-1, 100, page[:0]); err != nil || len(page) != 1 {
			b.Fatal(err, len(page))
		}
	}
}

func BenchmarkHistoryPage(b *testing.B) {
	s, l := filled(b, 200_000, 500)
	b.ReportAllocs()
	for b.Loop() {
		list, err := s.History(ctx, l.pair[3][0], l.conv[3], store.Range{Before: 5000, Limit: 50})
		if err != nil || len(list) != 50 {
			b.Fatal(err, len(list))
		}
	}
}

func BenchmarkListConversations(b *testing.B) {
	s := open(b, pebble.Options{Path: b.TempDir()})
	for i := range 1000 {
		u := fmt.Sprint("u", i)
		m := &store.Send{
			Message: store.Message{Conv: store.Direct("ann", u), From: u, Type: "text", TS: 1, Body: []byte("x")},
			Inboxes: []store.InboxRef{{User: "ann"}, {User: u}},
		}
		if err := s.Commit(ctx, &store.Batch{Sends: []*store.Send{m}}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if list, _, err := s.ListConversations(ctx, "ann", "", 50); err != nil || len(list) != 50 {
			b.Fatal(err, len(list))
		}
	}
}

// BenchmarkListGroups lists the first page of a user in 2,000 groups, each with 20 unread messages, half large; cold is
// just after opening.
func BenchmarkListGroups(b *testing.B) {
	o := pebble.Options{Path: b.TempDir()}
	s := open(b, o)
	const groups = 2000
	commit := func(make func(i int) *store.Send) {
		x := &store.Batch{}
		for i := range groups {
			m := make(i)
			m.Conv, m.From, m.Type, m.TS = store.GroupConv(fmt.Sprintf("g%04d", i*7919%groups)), "bob", "text", 1
			if x.Sends = append(x.Sends, m); len(x.Sends) == 50 {
				if err := s.Commit(ctx, x); err != nil {
					b.Fatal(err)
				}
				x = &store.Batch{}
			}
		}
	}
	commit(func(i int) *store.Send {
		return &store.Send{Change: &store.Change{Large: i%2 == 0, Members: []store.Member{
			{User: "ann", Role: store.Ordinary}, {User: "bob", Role: store.Owner},
		}}}
	})
	for range 20 {
		commit(func(int) *store.Send { return &store.Send{Message: store.Message{Body: make([]byte, 100)}} })
	}
	list := func(b *testing.B) {
		if list, _, err := s.ListConversations(ctx, "ann", "", 50); err != nil || len(list) != 50 || list[0].Unread != 21 {
			b.Fatal(err, len(list))
		}
	}
	reopen := func() *pebble.Store { return open(b, o) } // until all of the benchmark ends
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
			s = reopen()
			b.StartTimer()
			list(b)
		}
	})
	b.Run("warm", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			list(b)
		}
	})
	b.Run("conversation", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if c, err := s.Conversation(ctx, "ann", "g/g0007"); err != nil || c.Unread != 21 {
				b.Fatal(c, err)
			}
		}
	})
}

// BenchmarkUnreadGroup counts for one who has read nothing of 200,000 messages and has sent every 50th.
func BenchmarkUnreadGroup(b *testing.B) {
	s := open(b, pebble.Options{Path: b.TempDir()})
	const senders, n = 50, 200_000
	var members []store.Member
	for i := range senders {
		members = append(members, store.Member{User: fmt.Sprint("u", i), Role: store.Ordinary})
	}
	x := &store.Batch{}
	for i := range n {
		m := &store.Send{Message: store.Message{Conv: "g/x", From: fmt.Sprint("u", i%senders), Type: "text", TS: 1}}
		if i == 0 {
			m.Change = &store.Change{Large: true, Members: members}
		}
		if x.Sends = append(x.Sends, m); len(x.Sends) == 100 {
			if err := s.Commit(ctx, x); err != nil {
				b.Fatal(err)
			}
			x = &store.Batch{}
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if c, err := s.Conversation(ctx, "u7", "g/x"); err != nil || c.Unread != n-n/senders {
			b.Fatal(c.Unread, err)
		}
	}
}

// BenchmarkCidLookup is what a cid costs that is not known, with 200,000 known ones: the difference between
// committing in two stores, one of which has none, is too noisy to tell, so duplicates are measured.
func BenchmarkCidLookup(b *testing.B) {
	s, _ := filled(b, 1_000_000, 1000)
	again := newLoad(true)
	b.ReportAllocs()
	for b.Loop() {
		if again.n > 900_000 {
			again.n = 0
		}
		x := again.batch(100)
		if err := s.Commit(ctx, x); err != nil || !x.Sends[0].Dup {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*100), "ns/lookup")
}

// BenchmarkGroup sends to a group of 1000: an operation is a batch of 10 messages.
func BenchmarkGroup(b *testing.B) {
	s := open(b, pebble.Options{Path: b.TempDir()})
	users := make([]string, 1000)
	var members []store.Member
	for i := range users {
		users[i] = fmt.Sprint("member", i)
		members = append(members, store.Member{User: users[i], Role: store.Ordinary})
	}
	first := &store.Send{Message: store.Message{Conv: "g/big", From: users[0], TS: 1}, Change: &store.Change{Members: members}}
	if err := s.Commit(ctx, &store.Batch{Sends: []*store.Send{first}}); err != nil || first.Err != nil {
		b.Fatal(err, first.Err)
	}
	b.ReportAllocs()
	for b.Loop() {
		x := &store.Batch{}
		for i := range 10 {
			m := &store.Send{Message: store.Message{Conv: "g/big", From: users[i], Type: "text", TS: 1, Body: []byte("hello")}}
			x.Sends = append(x.Sends, m)
		}
		if err := s.Commit(ctx, x); err != nil {
			b.Fatal(err)
		}
	}
}
