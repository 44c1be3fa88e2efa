package mysql_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/mysql"
)

// batches makes batches of messages over 20 conversations with bodies of 256 bytes.
type batches struct {
	n    int
	cid  string // none, rising as ULIDs are, or, as UUIDs are, random
	body []byte
}

func newBatches(cid string) *batches {
	l := &batches{cid: cid, body: make([]byte, 1<<20)}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range l.body {
		l.body[i] = "etaoinshrdlucmfwypvbgkqjxz ETAOINSHRDLU,.:0123456789"[min(r.IntN(52), r.IntN(52))]
	}
	return l
}

func (l *batches) next(size int) *store.Batch {
	b := &store.Batch{}
	now := time.Now().UnixMilli()
	for range size {
		p := [2]string{fmt.Sprint("user", l.n%20, "a"), fmt.Sprint("user", l.n%20, "b")}
		off := l.n * 97 % (len(l.body) - 256)
		m := &store.Send{
			Message: store.Message{
				Conv: store.Direct(p[0], p[1]), From: p[l.n/20%2], Device: "d", Type: "text", TS: now, Body: l.body[off : off+256],
			},
			Hash: uint64(l.n), Inboxes: []store.InboxRef{{User: p[0]}, {User: p[1]}},
		}
		switch l.cid {
		case "rising":
			m.Cid = fmt.Sprintf("%016x", l.n)
		case "random":
			m.Cid = fmt.Sprintf("%016x", uint64(l.n)*0x9e3779b97f4a7c15)
		}
		l.n++
		b.Sends = append(b.Sends, m)
	}
	return b
}

// BenchmarkCommit counts one batch as one operation; the metrics are per message.
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{1, 100, 500, 1000} {
		for _, cid := range []string{"none", "rising", "random"} {
			b.Run(fmt.Sprintf("batch=%d/cid=%s", size, cid), func(b *testing.B) {
				s := open(b, mysql.Options{DSN: database(b, server), Retention: store.Retention{Dedupe: 24 * time.Hour}})
				l := newBatches(cid)
				if err := s.Commit(ctx, l.next(40)); err != nil {
					b.Fatal(err)
				}
				l.n = 40
				trips, _, _ := s.Counts()
				b.ReportAllocs()
				for b.Loop() {
					if err := s.Commit(ctx, l.next(size)); err != nil {
						b.Fatal(err)
					}
				}
				now, _, _ := s.Counts()
				b.ReportMetric(float64(l.n-40)/b.Elapsed().Seconds(), "msg/s")
				b.ReportMetric(float64(now-trips)/float64(b.N), "trips/batch")
			})
		}
	}
}

// BenchmarkReadTail reads the newest entry, as a pump does that is just behind.
func BenchmarkReadTail(b *testing.B) {
	s := open(b, mysql.Options{DSN: database(b, server)})
	l := newBatches("none")
	for l.n < 20_000 {
		if err := s.Commit(ctx, l.next(500)); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if page, err := s.ReadInbox(ctx, "user3a", 999, 100, nil); err != nil || len(page) != 1 {
			b.Fatal(err, len(page))
		}
	}
}

// BenchmarkGroup sends to a small group of 500: an operation is a batch of 10 messages.
func BenchmarkGroup(b *testing.B) {
	s := open(b, mysql.Options{DSN: database(b, server)})
	create := &store.Send{
		Message: store.Message{Conv: "g/g", From: "m0", Type: "sys.group", TS: 1}, Change: &store.Change{},
	}
	for i := range 500 {
		create.Change.Members = append(create.Change.Members, store.Member{User: fmt.Sprint("m", i), Role: store.Ordinary})
	}
	if err := s.Commit(ctx, &store.Batch{Sends: []*store.Send{create}}); err != nil || create.Err != nil {
		b.Fatal(err, create.Err)
	}
	n := 0
	for b.Loop() {
		x := &store.Batch{}
		for range 10 {
			n++
			x.Sends = append(x.Sends, &store.Send{Message: store.Message{
				Conv: "g/g", From: fmt.Sprint("m", n%500), Type: "text", TS: 1, Body: []byte("hello"),
			}})
		}
		if err := s.Commit(ctx, x); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n*500)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkLargeGroup makes a group of 100,000 members.
func BenchmarkLargeGroup(b *testing.B) {
	s := open(b, mysql.Options{DSN: database(b, server), Timeout: time.Minute})
	n := 0
	for b.Loop() {
		n++
		m := &store.Send{
			Message: store.Message{Conv: store.GroupConv(fmt.Sprint("g", n)), From: "m0", Type: "sys.group", TS: 1},
			Change:  &store.Change{Large: true},
		}
		for i := range 100_000 {
			m.Change.Members = append(m.Change.Members, store.Member{User: fmt.Sprint("m", i), Role: store.Ordinary})
		}
		if err := s.Commit(ctx, &store.Batch{Sends: []*store.Send{m}}); err != nil || m.Err != nil {
			b.Fatal(err, m.Err)
		}
	}
}
