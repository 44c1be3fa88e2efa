package dump_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/dump"
	"github.com/mqim/mqim/store/pebble"
)

// BenchmarkCopy copies b.N messages of 100 bytes with cids, in 200 conversations, which came 100 at once:
//
//	go test -run - -bench Copy -benchtime 1000000x ./store/dump
func BenchmarkCopy(b *testing.B) {
	dir := b.TempDir()
	s := openPebble(b, pebble.Options{Path: dir})
	now := time.Now().UnixMilli()
	for n := 0; n < b.N; {
		var batch store.Batch
		for ; len(batch.Sends) < 100 && n < b.N; n++ {
			x, y := fmt.Sprint("a", n%200), fmt.Sprint("b", n%200)
			batch.Sends = append(batch.Sends, &store.Send{
				Message: store.Message{Conv: store.Direct(x, y), From: x, Device: "d", Cid: fmt.Sprint("c", n), Type: "text", TS: now + int64(n), Body: make([]byte, 100)},
				Inboxes: []store.InboxRef{{User: x}, {User: y}},
			})
		}
		if err := s.Commit(ctx, &batch); err != nil {
			b.Fatal(err)
		}
	}
	closeNow(b, s)
	_, dsn := database(b)
	from := openPebble(b, pebble.Options{Path: dir, ReadOnly: true})
	to := openCopy(b, dsn, from)
	o := dump.Options{Tell: b.Logf}
	b.ResetTimer()
	begun := time.Now()
	if err := dump.Fill(ctx, from, to, o); err != nil {
		b.Fatal(err)
	}
	filled := time.Now()
	b.ReportMetric(float64(b.N)/filled.Sub(begun).Seconds(), "copied/s")
	if err := dump.Verify(ctx, from, to, o); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/time.Since(filled).Seconds(), "compared/s")
}
