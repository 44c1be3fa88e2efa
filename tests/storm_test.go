package tests

import (
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/tests/mqtest"
)

// What the steady pair may suffer. The worst of it is from the moment when the test's own clients all dial at once, on the
// same machine; the median is from the seconds in which they wait for their turn, and a hundred times what it takes then.
const (
	steadyMedian = 100 * time.Millisecond
	steadyP99    = 3 * time.Second
)

// Many clients come at once: all are let in at the pace of limits.connects_per_second, and two that have been there
// before lose nothing and notice little. Not in parallel: it is about time.
func TestStormOfConnections(t *testing.T) {
	clients, rate := 2000, 500
	if os.Getenv("MQIM_TORTURE") != "" {
		clients, rate = 10000, 1000
	}
	s := mqtest.Start(t, mqtest.Config{"limits": fmt.Sprintf("{connects_per_second: %d}", rate)})
	a, b := dial(t, s, 5, name("alice"), "1"), dial(t, s, 5, name("bob"), "1")
	subscribed(t, b, "steady")

	stop := make(chan struct{})
	var sent int
	var steady sync.WaitGroup
	steady.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			pk := a.Packet("steady", fmt.Sprint(time.Now().UnixNano()))
			raw, err := mqtest.Encode(pk, 5)
			if err != nil || a.TryWrite(raw) != nil {
				t.Error("the steady sender cannot send")
				return
			}
			sent++
		}
	})

	var delays []time.Duration // of the messages in order
	received := make(chan struct{})
	go func() {
		defer close(received)
		for {
			pk, ok := b.TryTake(func(p *packet) bool { return p.FixedHeader.Type == packets.Publish }, mqtest.Patience)
			at, err := strconv.ParseInt(string(pk.Payload), 10, 64)
			if !ok || err != nil { // the last
				return
			}
			delays = append(delays, time.Since(time.Unix(0, at)))
		}
	}()

	addr := s.Addr("mqtt")
	var mu sync.Mutex
	var served []time.Time
	var failed []error
	var storm sync.WaitGroup
	begin := make(chan struct{})
	for i := range clients {
		storm.Go(func() {
			<-begin
			err := func() error {
				c, err := net.DialTimeout("tcp", addr, 4*mqtest.Patience)
				if err != nil {
					return err
				}
				t.Cleanup(func() { _ = c.Close() })
				id := fmt.Sprintf("storm%05d", i)
				_ = c.SetDeadline(time.Now().Add(4 * mqtest.Patience))
				if _, err := io.WriteString(c, "\x10\x16\x00\x04MQTT\x04\x02\x00\x00\x00\x0a"+id); err != nil {
					return err
				}
				ack := make([]byte, 4)
				if _, err := io.ReadFull(c, ack); err != nil {
					return err
				}
				if string(ack) != "\x20\x02\x00\x00" {
					return fmt.Errorf("CONNACK %x", ack)
				}
				return nil
			}()
			mu.Lock()
			defer mu.Unlock()
			if served = append(served, time.Now()); err != nil {
				failed = append(failed, err)
			}
		})
	}
	start := time.Now()
	close(begin)
	storm.Wait()
	took := served[len(served)-1].Sub(start)
	close(stop)
	steady.Wait()

	if len(failed) > 0 {
		t.Errorf("%d of %d clients were not let in, the first for: %v", len(failed), clients, failed[0])
	}
	// A tenth of a second's worth may come at once, and none but the first waits for nothing.
	if least := time.Duration(clients-rate/10-1) * time.Second / time.Duration(rate); took < least {
		t.Errorf("%d clients were let in within %v, which is faster than %d a second: at least %v", clients, took, rate, least)
	}
	a.PublishAck("steady", "the last")
	<-received
	equal(t, "steady messages that arrived", len(delays), sent)
	slices.Sort(delays)
	median, p99 := delays[len(delays)/2], delays[len(delays)*99/100]
	if median > steadyMedian || p99 > steadyP99 {
		t.Errorf("the steady pair's median is %v and its p99 %v, want at most %v and %v", median, p99, steadyMedian, steadyP99)
	}
	equal(t, "refused", s.Metric("mqim_connections_refused_rate_total"), 0)
	equal(t, "waiting", s.Metric("mqim_connections_waiting"), 0)
	t.Logf("%d clients in %v; %d steady messages, delays: median %v, p99 %v", clients, took, sent, median, p99)
}
