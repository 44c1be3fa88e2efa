package broker

import (
	"context"
	"fmt"
	runtimemetrics "runtime/metrics"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/hooks/topics"
	"github.com/mqim/mqim/transport"
)

// Version is what $SYS/broker/version says. The program sets it before New.
var Version = "dev"

// systemTopics is the tree under $SYS/broker, under the names that Mosquitto gave it. Only what is asked for is looked
// up, and that from counters.
func (s *Server) systemTopics() []topics.SystemTopic {
	number := func(f func() int64) func() string {
		return func() string { return strconv.FormatInt(max(0, f()), 10) }
	}
	traffic := func(f func(c *transport.Counters) *atomic.Int64) func() string {
		return number(func() (sum int64) {
			for _, l := range s.listeners {
				sum += f(&l.Counters).Load()
			}
			return sum
		})
	}
	connected := func() int64 { return atomic.LoadInt64(&s.mqtt.Info.ClientsConnected) }
	list := []topics.SystemTopic{
		{Topic: "version", Value: func() string { return "mqim version " + Version }},
		{Topic: "uptime", Value: func() string { return fmt.Sprintf("%d seconds", int(time.Since(s.started).Seconds())) }},
		{Topic: "clients/connected", Value: number(connected)},
		{Topic: "clients/maximum", Value: number(s.mostEver.Load)},
		{Topic: "bytes/received", Value: traffic(func(c *transport.Counters) *atomic.Int64 { return &c.In.Bytes })},
		{Topic: "bytes/sent", Value: traffic(func(c *transport.Counters) *atomic.Int64 { return &c.Out.Bytes })},
		{Topic: "messages/received", Value: traffic(func(c *transport.Counters) *atomic.Int64 { return &c.In.Packets })},
		{Topic: "messages/sent", Value: traffic(func(c *transport.Counters) *atomic.Int64 { return &c.Out.Packets })},
		{Topic: "publish/messages/received", Value: traffic(func(c *transport.Counters) *atomic.Int64 { return &c.In.Publishes })},
		{Topic: "publish/messages/sent", Value: traffic(func(c *transport.Counters) *atomic.Int64 { return &c.Out.Publishes })},
		{Topic: "publish/messages/dropped", Value: number(s.metrics.drops.Load)},
		{Topic: "retained messages/count", Value: number(s.retained)},
		{Topic: "subscriptions/count", Value: number(s.subscriptions)},
		{Topic: "heap/current size", Value: number(heap)},
	}
	for i := range list {
		list[i].Topic = "$SYS/broker/" + list[i].Topic
	}
	return list
}

// heap is the size of the objects on the heap. Unlike runtime.ReadMemStats this does not stop the world.
func heap() int64 {
	sample := []runtimemetrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	runtimemetrics.Read(sample)
	return int64(sample[0].Value.Uint64())
}

// retained counts the retained messages; 0 if the store cannot tell.
func (s *Server) retained() int64 {
	n, _ := s.topicCommits.RetainedCount(context.Background())
	return int64(n)
}

// subscriptions counts those of connected clients. mochi's own count goes astray: an UNSUBSCRIBE from a filter that only
// others have counts, too.
func (s *Server) subscriptions() (n int64) {
	for _, cl := range s.mqtt.Clients.GetAll() {
		n += int64(len(cl.State.Subscriptions.GetAll()))
		if c := link.Of(cl); c != nil {
			c.Session.Lock()
			n += int64(len(c.Session.Subs))
			c.Session.Unlock()
		}
	}
	return n
}

// most keeps the largest number of clients.
func (s *Server) most(now int64) {
	for {
		old := s.mostEver.Load()
		if now <= old || s.mostEver.CompareAndSwap(old, now) {
			return
		}
	}
}

// publishSystem publishes $SYS until Close.
func (s *Server) publishSystem(every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-s.settling:
			return
		case <-t.C:
			s.topics.PublishSystem()
		}
	}
}
