package cluster

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/tests/redis"
)

// pair are two nodes, the second of which is subscribed to the channels.
func pair(b *testing.B, channels int, handle func(*bus.Message)) (*Bus, []bus.Channel) {
	opts := Options{Addresses: []string{redis.Start(b).Addr()}}
	sender := start(b, opts, nil)
	receiver := start(b, opts, func(x bus.Bus) { x.Handle('x', handle) })
	list := make([]bus.Channel, channels)
	for i := range list {
		list[i] = bus.Channel{Kind: bus.User, Name: fmt.Sprintf("user-%06d", i)}
		receiver.lane(list[i]).mu.Lock()
		receiver.lane(list[i]).add(list[i])
		receiver.lane(list[i]).mu.Unlock()
	}
	if err := receiver.Subscribe(context.Background(), bus.Channel{Kind: bus.User, Name: "last"}); err != nil {
		b.Fatal(err)
	}
	counts, err := sender.Count(context.Background(), list)
	if err != nil {
		b.Fatal(err)
	}
	for i, n := range counts {
		if n != 1 {
			b.Fatalf("%d nodes hear %v", n, list[i])
		}
	}
	return sender, list
}

// BenchmarkPublish sends messages of 256 bytes from one node to another, 10,000 of them in flight.
func BenchmarkPublish(b *testing.B) {
	for _, channels := range []int{20, 10_000} {
		b.Run(fmt.Sprintf("channels=%d", channels), func(b *testing.B) {
			window := make(chan struct{}, 10_000)
			var lost atomic.Int64
			all := make(chan struct{})
			left := int64(b.N)
			sender, list := pair(b, channels, func(*bus.Message) {
				<-window
				if left--; left == 0 {
					close(all)
				}
			})
			done := func(n int) {
				if n != 1 {
					lost.Add(1)
				}
			}
			payload := make([]byte, 256)
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				window <- struct{}{}
				sender.Publish(list[i%len(list)], 'x', payload, done)
			}
			<-all
			b.StopTimer()
			if lost.Load() > 0 {
				b.Fatalf("%d messages were lost", lost.Load())
			}
			m := sender.Metrics()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
			b.ReportMetric(float64(m.Published)/float64(m.Batches), "messages/spublish")
			b.ReportMetric(float64(m.Batches)/float64(m.Pipelines), "spublish/pipeline")
		})
	}
}

// BenchmarkLatency sends 1,000 messages a second, from Publish to the handler of the other node.
func BenchmarkLatency(b *testing.B) {
	h := hdrhistogram.New(1, int64(10*time.Second), 3)
	all := make(chan struct{})
	left := int64(b.N)
	begun := time.Now()
	sender, list := pair(b, 1000, func(m *bus.Message) {
		_ = h.RecordValue(int64(time.Since(begun)) - int64(binary.BigEndian.Uint64(m.Payload)))
		if left--; left == 0 {
			close(all)
		}
	})
	b.ResetTimer()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i := range b.N {
		<-tick.C
		payload := make([]byte, 256)
		binary.BigEndian.PutUint64(payload, uint64(time.Since(begun)))
		sender.Publish(list[i%len(list)], 'x', payload, nil)
	}
	<-all
	b.ReportMetric(float64(h.ValueAtQuantile(50))/1e6, "p50-ms")
	b.ReportMetric(float64(h.ValueAtQuantile(99))/1e6, "p99-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkAsk asks one other node, one question at a time.
func BenchmarkAsk(b *testing.B) {
	opts := Options{Addresses: []string{redis.Start(b).Addr()}}
	sender := start(b, opts, nil)
	start(b, opts, func(x bus.Bus) { x.Handle('q', func(m *bus.Message) { m.Answer(nil) }) })
	for b.Loop() {
		if list, err := sender.Ask(context.Background(), bus.Channel{Kind: bus.All}, 'q', nil); err != nil || len(list) != 1 {
			b.Fatal(list, err)
		}
	}
}
