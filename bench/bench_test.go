package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mqim/mqim/bench/rival"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func startRival(t *testing.T) string {
	t.Helper()
	b, err := rival.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b.Address()
}

func mustRun(t *testing.T, run func(context.Context, Options) (*Report, error), o Options) *Report {
	t.Helper()
	r, err := run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAgainstMochi(t *testing.T) {
	address := startRival(t)
	for _, c := range []struct {
		name string
		run  func(context.Context, Options) (*Report, error)
		o    Options
		want int64 // deliveries
	}{
		{"pairs QoS 0", Pairs, Options{Pairs: 3, Count: 1001}, 1001},
		{"pairs QoS 1", Pairs, Options{Pairs: 3, QoS: 1, Count: 3001}, 3001},
		{"pairs QoS 2", Pairs, Options{Pairs: 3, QoS: 2, Count: 1001}, 1001},
		{"pairs 5", Pairs, Options{Pairs: 3, QoS: 1, Version: 5, Count: 3001}, 3001},
		{"pairs 5 QoS 2", Pairs, Options{Pairs: 2, QoS: 2, Version: 5, Count: 1001}, 1001},
		{"large bodies", Pairs, Options{Pairs: 2, QoS: 1, Size: 100_000, InFlight: 4, Count: 50}, 50},
		{"smallest bodies", Pairs, Options{Pairs: 2, QoS: 1, Size: headerSize, Count: 500}, 500},
		{"rate", Pairs, Options{Pairs: 3, QoS: 1, Rate: 5000, Count: 500}, 500},
		{"warm-up", Pairs, Options{Pairs: 2, QoS: 1, InFlight: 5, Warmup: 20 * time.Millisecond, Count: 500}, 500},
		{"fan-in", FanIn, Options{Senders: 4, QoS: 1, InFlight: 20, Count: 2001}, 2001},
		{"fan-out", FanOut, Options{Receivers: 5, QoS: 1, InFlight: 20, Count: 500}, 2500},
		{"session", Pairs, Options{Pairs: 1, QoS: 1, Persist: true, Version: 5, Count: 100}, 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Address = address
			r := mustRun(t, c.run, c.o)
			if err := r.Err(); err != nil {
				t.Errorf("the run failed: %v (%v)", err, r.ErrorSamples)
			}
			if r.Duplicates != 0 || r.Foreign != 0 {
				t.Errorf("got %d duplicates and %d foreign messages, want none", r.Duplicates, r.Foreign)
			}
			// Messages of the warm-up may come within the measured time, and what was stamped in it be written after it.
			blur := int64(0)
			if c.o.Warmup > 0 {
				blur = int64(c.o.Pairs * c.o.InFlight)
			}
			if blur == 0 && r.Delivered != c.want || r.Latency.Count < c.want-blur {
				t.Errorf("got %d delivered and %d measured, want %d", r.Delivered, r.Latency.Count, c.want)
			}
			if r.Latency.P50 <= 0 || r.Latency.Max > 60_000_000 || r.DeliveredRate <= 0 {
				t.Errorf("got latencies %+v and %f delivered/s", r.Latency, r.DeliveredRate)
			}
			if (r.Service != nil) != (c.o.Rate > 0) {
				t.Errorf("latency since written: got %v at rate %g", r.Service, c.o.Rate)
			}
		})
	}
}

func TestDurationAndInterrupt(t *testing.T) {
	address := startRival(t)
	r := mustRun(t, Pairs, Options{Address: address, Pairs: 2, QoS: 1, InFlight: 5, Duration: 50 * time.Millisecond})
	if r.Err() != nil || r.Interrupted || r.Delivered == 0 || r.Seconds < 0.05 {
		t.Errorf("got %v, interrupted %v, %d delivered in %f s", r.Err(), r.Interrupted, r.Delivered, r.Seconds)
	}
	for name, o := range map[string]Options{
		"measuring": {Duration: time.Hour}, "warming up": {Duration: time.Hour, Warmup: time.Hour},
		"counting": {Count: 1 << 40}, "at a rate": {Rate: 1000, Duration: time.Hour},
		"at a low rate": {Rate: 0.001, Duration: time.Hour}, "counting at a rate": {Rate: 1000, Count: 1 << 40},
	} {
		t.Run(name, func(t *testing.T) {
			o.Address, o.Pairs, o.QoS, o.InFlight = address, 2, 1, 5
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			r := mustRun(t, func(_ context.Context, o Options) (*Report, error) { return Pairs(ctx, o) }, o)
			if !r.Interrupted || r.Err() != nil {
				t.Errorf("got interrupted %v, %v, want true and no fault", r.Interrupted, r.Err())
			}
		})
	}
}

func TestFaultsAreFound(t *testing.T) {
	for name, c := range map[string]struct {
		broker *fakeBroker
		want   Report
		says   string // "": the run is a good one
	}{
		"none":      {&fakeBroker{}, Report{Delivered: 200}, ""},
		"loss":      {&fakeBroker{deliver: dropNth(50)}, Report{Delivered: 199, Lost: 1}, "1 messages LOST"},
		"last lost": {&fakeBroker{deliver: dropNth(199)}, Report{Delivered: 199, Lost: 1}, "1 messages LOST"},
		"all lost":  {&fakeBroker{deliver: func(int, []byte) [][]byte { return nil }}, Report{Lost: 200}, "200 messages LOST"},
		"duplicate": {&fakeBroker{deliver: repeatNth(50)}, Report{Delivered: 200, Duplicates: 1}, ""},
		"reorder":   {&fakeBroker{deliver: swapNth(50)}, Report{Delivered: 200, Reordered: 1}, "1 messages OUT OF ORDER"},
		"damage":    {&fakeBroker{deliver: damageNth(50)}, Report{Delivered: 200, Damaged: 1}, "1 messages DAMAGED"},
		"refusal":   {&fakeBroker{ack: once(50, 0x87)}, Report{Delivered: 199, Refused: 1}, "1 messages refused"},
		"silence":   {&fakeBroker{ack: once(50, noAck)}, Report{Delivered: 199, Unacked: 1}, "1 messages never acknowledged"},
		"stranger": {&fakeBroker{deliver: func(n int, p []byte) [][]byte {
			if n == 50 {
				return [][]byte{p, []byte("hello")}
			}
			return [][]byte{p}
		}}, Report{Delivered: 200, Foreign: 1}, ""},
	} {
		for _, profile := range []Profile{Topic, IM} {
			t.Run(fmt.Sprintf("%s/%s", name, profile), func(t *testing.T) {
				t.Parallel()
				b := &fakeBroker{deliver: c.broker.deliver, ack: c.broker.ack}
				if name == "reorder" {
					b.deliver = swapNth(50) // it holds state
				}
				o := Options{Address: startFake(t, b), Profile: profile, Version: 5, Pairs: 1, QoS: 1, InFlight: 10,
					Count: 200, Settle: 2 * time.Second}
				r := mustRun(t, Pairs, o)
				got := Report{Delivered: r.Delivered, Lost: r.Lost, Duplicates: r.Duplicates, Reordered: r.Reordered,
					Damaged: r.Damaged, Refused: r.Refused, Unacked: r.Unacked, Foreign: r.Foreign}
				if fmt.Sprint(got) != fmt.Sprint(c.want) {
					t.Errorf("got  %+v\nwant %+v (%v)", got, c.want, r.ErrorSamples)
				}
				var text bytes.Buffer
				if err := r.Write(&text); err != nil {
					t.Fatal(err)
				}
				if (r.Err() != nil) != (c.says != "") || !strings.Contains(text.String(), c.says) ||
					strings.Contains(text.String(), "FAILED") != (c.says != "") {
					t.Errorf("want %q and not anything else said of\n%s", c.says, &text)
				}
			})
		}
	}
}

// once gives the n-th publish a reason code.
func once(at int, reason byte) func(int) byte {
	return func(n int) byte {
		if n == at {
			return reason
		}
		return 0
	}
}

func TestIMProfile(t *testing.T) {
	for _, version := range []int{3, 5} {
		for _, every := range []int{1, 30} {
			t.Run(fmt.Sprintf("%d every %d", version, every), func(t *testing.T) {
				b := &fakeBroker{ack: func(n int) byte {
					if n == 7 {
						return 0x87
					}
					return 0
				}}
				o := Options{Address: startFake(t, b), Profile: IM, Version: version, Pairs: 2, QoS: 1, InFlight: 10,
					AckEvery: every, Count: 400, Run: "5", Settle: 2 * time.Second}
				r := mustRun(t, Pairs, o)
				if r.Refused != 1 || r.Lost != 0 || r.Unacked != 0 || r.Delivered != 399 || r.Replies != 400 || r.Errors != 0 {
					t.Errorf("got %+v, want 399 delivered, 1 refused, 400 replies", r)
				}
				b.gone() // what the receivers wrote last may still have been on its way
				for i := range 2 {
					user := fmt.Sprintf("bench-5-r-%d", i)
					if got, want := b.acked[user], uint64(b.seqs[user]); got != want {
						t.Errorf("%s acknowledged up to %d, want %d", user, got, want)
					}
				}
			})
		}
	}
}

func TestTrimmedInboxIsNamed(t *testing.T) {
	o := Options{Profile: IM, Run: "5"}.Defaults()
	r := newReceiver(&link{version: v311}, &o, 0, 1, &zero)
	event := `{"type":"inbox.trimmed","from":1,"to":6}`
	b, _ := appendPublish(nil, v311, 1, "im/u/bench-5-r-0/event", 1, len(event))
	pk, err := readerOf(strings.NewReader(string(b) + event)).wait()
	if err == nil {
		err = r.packet(pk)
	}
	if err != nil || r.trimmed != 1 || r.foreign != 0 {
		t.Fatalf("got %d trimmed, %d foreign, %v, want 1 trimmed", r.trimmed, r.foreign, err)
	}
	report := Report{Lost: 6, Trimmed: r.trimmed}
	if err := report.Err(); err == nil || !strings.Contains(err.Error(), "inbox.max_messages") {
		t.Errorf("got %v, want it to name inbox.max_messages", err)
	}
}

func TestBrokenConnectionIsAnError(t *testing.T) {
	b := &fakeBroker{}
	b.deliver = func(n int, p []byte) [][]byte {
		if n == 50 {
			b.conns[0].Close() // the receiver, which connects first
		}
		return [][]byte{p}
	}
	r := mustRun(t, Pairs, Options{Address: startFake(t, b), Pairs: 1, QoS: 1, Count: 200, Settle: 200 * time.Millisecond})
	if r.Errors == 0 || r.Lost == 0 || r.Err() == nil || len(r.ErrorSamples) == 0 {
		t.Errorf("got %d errors, %d lost, %v: want all of them", r.Errors, r.Lost, r.Err())
	}
}

func TestDrain(t *testing.T) {
	address := startRival(t)
	// mochi redelivers in random order, so one message a user: order is then no question.
	o := Options{Address: address, QoS: 1, Users: 50, Count: 47, Senders: 4, Concurrency: 8, Run: "d1", Phase: "fill"}
	r := mustRun(t, Drain, o)
	if r.Err() != nil || r.Fill == nil || r.Fill.Messages != 47 || r.Drain != nil {
		t.Fatalf("fill: got %+v, %v", r.Fill, r.Err())
	}
	o.Phase = "drain"
	r = mustRun(t, Drain, o)
	if r.Err() != nil || r.Drain == nil || r.Drain.Messages != 47 || r.Fill != nil {
		t.Fatalf("drain: got %+v, %v", r.Drain, r.Err())
	}
	o.Settle = 100 * time.Millisecond
	if r = mustRun(t, Drain, o); r.Lost != 47 || r.Err() == nil {
		t.Errorf("a second drain: got %d lost, %v, want 47 lost: they were read before", r.Lost, r.Err())
	}
	o.Run = ""
	if _, err := Drain(t.Context(), o); err == nil {
		t.Error("a phase without the id of its run: got no error")
	}
}

func TestIdle(t *testing.T) {
	o := Options{Address: startRival(t), Connections: 50, Concurrency: 10, Duration: 10 * time.Millisecond, KeepAlive: time.Second}
	if _, err := residentMemory(os.Getpid()); err == nil {
		o.PID = os.Getpid()
	}
	r := mustRun(t, Idle, o)
	if r.Err() != nil || r.Idle.Alive != 50 || r.Idle.ConnectRate <= 0 || (o.PID != 0) != (r.Memory != nil) {
		t.Errorf("got %+v, memory %+v, %v", r.Idle, r.Memory, r.Err())
	}
}

func TestSessions(t *testing.T) {
	o := Options{Address: startRival(t), Connections: 50, Concurrency: 10}
	r := mustRun(t, Sessions, o)
	if r.Err() != nil || r.Sessions.Sessions != 50 || r.Sessions.Rate <= 0 {
		t.Errorf("got %+v, %v", r.Sessions, r.Err())
	}
}

func TestProgressAndJSON(t *testing.T) {
	var calls atomic.Int64
	o := Options{Address: startRival(t), Pairs: 1, QoS: 1, Rate: 100, Duration: 1100 * time.Millisecond}
	o.Progress = func(p Progress) {
		calls.Add(1)
		if p.Phase != "pairs" || p.Sent == 0 || p.SentRate <= 0 {
			t.Errorf("got %+v", p)
		}
	}
	r := mustRun(t, Pairs, o)
	if calls.Load() == 0 {
		t.Error("no progress in more than a second")
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{`"delivered_per_second":`, `"p99_9":`, `"latency_us":`, `"service_us":`, `"lost":0`} {
		if !bytes.Contains(b, []byte(key)) {
			t.Errorf("%s is missing from %s", key, b)
		}
	}
}

func TestBadOptions(t *testing.T) {
	_, err := Pairs(t.Context(), Options{Address: "nowhere", Profile: "x", Version: 4, Size: 10, QoS: 3, InFlight: 70000,
		Run: "zz", Prefix: "/", Rate: -1, Phase: "no"})
	if err == nil {
		t.Fatal("got no error")
	}
	for _, want := range []string{"address", "profile", "version", "size", "qos", "inflight", "run", "prefix", "rate", "phase"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not complained about in\n%v", want, err)
		}
	}
	if _, err := Pairs(t.Context(), Options{Address: "127.0.0.1:1", Count: 1}); err == nil {
		t.Error("nobody listens there: got no error")
	}
}
