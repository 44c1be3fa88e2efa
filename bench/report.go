package bench

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Report is what a run measured. Rates are per second, latencies in microseconds, memory in bytes.
type Report struct {
	Scenario  string  `json:"scenario"`
	Address   string  `json:"address"`
	Profile   Profile `json:"profile"`
	Version   int     `json:"version"`
	Run       string  `json:"run"`
	Senders   int     `json:"senders,omitempty"`
	Receivers int     `json:"receivers,omitempty"`
	Size      int     `json:"size"`
	QoS       int     `json:"qos"`
	InFlight  int     `json:"inflight,omitempty"`
	Rate      float64 `json:"rate,omitempty"`

	Seconds       float64 `json:"seconds"` // measured, without warm-up and settling
	Sent          int64   `json:"sent"`    // in that time
	Delivered     int64   `json:"delivered"`
	SentRate      float64 `json:"sent_per_second"`
	DeliveredRate float64 `json:"delivered_per_second"`
	MBRate        float64 `json:"mb_per_second"` // 10^6 bytes of bodies delivered

	// Latency is from when the schedule wanted a message out to its delivery; where there is a schedule (Rate),
	// Service is from when it was written. What the window held back shows in the first only.
	Latency Quantiles  `json:"latency_us"`
	Service *Quantiles `json:"service_us,omitempty"`
	// Complete, of a fan-out on a schedule, is until the last of its receivers has a message.
	Complete *Quantiles `json:"complete_us,omitempty"`

	// Over the whole run, warm-up included.
	Lost       int64 `json:"lost"` // acknowledged (or QoS 0) and never delivered
	Duplicates int64 `json:"duplicates"`
	Reordered  int64 `json:"reordered"` // came after a later one of the same sender
	Damaged    int64 `json:"damaged"`   // the body was not what was sent
	Refused    int64 `json:"refused"`   // the broker said no
	Unacked    int64 `json:"unacked"`   // the broker said nothing
	Foreign    int64 `json:"foreign"`   // not of this run; group notices, for instance
	Replies    int64 `json:"replies,omitempty"`
	Receipts   int64 `json:"receipts,omitempty"`
	Trimmed    int64 `json:"trimmed,omitempty"` // IM: events inbox.trimmed, each a stretch of what is lost
	Errors     int64 `json:"errors"`

	ErrorSamples  []string             `json:"error_samples,omitempty"`
	Interrupted   bool                 `json:"interrupted,omitempty"`
	GeneratorCPU  float64              `json:"generator_cpu_seconds"`
	Memory        *Memory              `json:"memory,omitempty"`
	Idle          *IdleResult          `json:"idle,omitempty"`
	Fill          *FillResult          `json:"fill,omitempty"`
	Drain         *DrainResult         `json:"drain,omitempty"`
	Sessions      *SessionsResult      `json:"sessions,omitempty"`
	Large         *LargeResult         `json:"large,omitempty"`
	Conversations *ConversationsResult `json:"conversations,omitempty"`
}

// Quantiles of a latency, in microseconds.
type Quantiles struct {
	Count int64   `json:"count"`
	Mean  float64 `json:"mean"`
	P50   int64   `json:"p50"`
	P90   int64   `json:"p90"`
	P99   int64   `json:"p99"`
	P999  int64   `json:"p99_9"`
	Max   int64   `json:"max"`
}

func quantiles(h *hdrhistogram.Histogram) Quantiles {
	return Quantiles{Count: h.TotalCount(), Mean: h.Mean(), P50: h.ValueAtQuantile(50), P90: h.ValueAtQuantile(90),
		P99: h.ValueAtQuantile(99), P999: h.ValueAtQuantile(99.9), Max: h.Max()}
}

func newReport(o *Options, s shape) *Report {
	return &Report{Scenario: s.name, Address: o.Address, Profile: o.Profile, Version: o.Version, Run: o.Run,
		Senders: s.senders, Receivers: s.receivers, Size: o.Size, QoS: o.QoS, InFlight: o.InFlight, Rate: o.Rate}
}

func (r *Report) measured(begin, end mark) {
	r.Seconds = float64(end.at-begin.at) / 1e9
	r.Sent, r.Delivered = end.sent-begin.sent, end.delivered-begin.delivered
	if r.Seconds > 0 {
		r.SentRate = float64(r.Sent) / r.Seconds
		r.DeliveredRate = float64(r.Delivered) / r.Seconds
		r.MBRate = r.DeliveredRate * float64(r.Size) / 1e6
	}
}

// Err is what is wrong with the broker that was measured: nil if everything it acknowledged came, whole and in order, and no
// connection failed. Duplicates are counted and are no error, since at least once is what QoS 1 promises.
func (r *Report) Err() error {
	var errs []error
	wrong := func(n int64, format string) {
		if n > 0 {
			errs = append(errs, fmt.Errorf(format, n))
		}
	}
	if r.Trimmed > 0 {
		errs = append(errs, fmt.Errorf("%d messages LOST; the server announced inbox.trimmed %d times: "+
			"receivers fell behind by more than inbox.max_messages", r.Lost, r.Trimmed))
	} else if r.Profile == Plain && r.Version == 3 && r.Refused == 0 {
		wrong(r.Lost, "%d messages LOST; MQTT 3.1.1 does not tell what is refused: is the server's limits.sends_per_second 0?")
	} else {
		wrong(r.Lost, "%d messages LOST")
	}
	wrong(r.Reordered, "%d messages OUT OF ORDER")
	wrong(r.Damaged, "%d messages DAMAGED")
	wrong(r.Unacked, "%d messages never acknowledged")
	wrong(r.Refused, "%d messages refused")
	wrong(r.Errors, "%d errors")
	return errors.Join(errs...)
}

// Write prints the report as a table, and what is wrong below it.
func (r *Report) Write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, name+"\t"+format+"\n", args...) }
	row("scenario", "%s, profile %s, MQTT %s, QoS %d, %d bytes, run %s", r.Scenario, r.Profile,
		map[int]string{3: "3.1.1", 5: "5"}[r.Version], r.QoS, r.Size, r.Run)
	switch {
	case r.Idle != nil:
		r.Idle.write(row)
	case r.Sessions != nil:
		r.Sessions.write(row)
	case r.Conversations != nil:
		r.Conversations.write(row)
	case r.Fill != nil || r.Drain != nil:
		if r.Fill != nil {
			row("fill", "%d messages for %d users in %.1f s\t%s/s", r.Fill.Messages, r.Fill.Users, r.Fill.Seconds, count(r.Fill.Rate))
		}
		if r.Drain != nil {
			row("drain", "%d messages to %d users in %.1f s\t%s/s", r.Drain.Messages, r.Drain.Users, r.Drain.Seconds, count(r.Drain.Rate))
		}
	default:
		row("clients", "%d senders, %d receivers, %d in flight, measured %.1f s", r.Senders, r.Receivers, r.InFlight, r.Seconds)
		if r.Rate > 0 {
			row("schedule", "%s/s, open loop", count(r.Rate))
		}
		row("sent", "%s/s", count(r.SentRate))
		row("delivered", "%s/s\t%.1f MB/s", count(r.DeliveredRate), r.MBRate)
		r.Latency.write(row, "latency")
		if r.Service != nil {
			r.Service.write(row, "  of which since written")
		}
		if r.Complete != nil {
			r.Complete.write(row, "to the last receiver")
		}
		if r.Large != nil {
			r.Large.write(row)
		}
		if r.Replies+r.Receipts > 0 {
			row("replies, receipts", "%d, %d", r.Replies, r.Receipts)
		}
	}
	if m := r.Memory; m != nil {
		row("broker's memory", "%s before, %s at most, %s after", megabytes(m.Before), megabytes(m.Peak), megabytes(m.After))
		for _, p := range m.Parts {
			row("", "%s at %s messages", megabytes(p.RSS), count(float64(p.At)))
		}
	}
	row("generator's CPU", "%.1f s", r.GeneratorCPU)
	row("duplicates", "%d", r.Duplicates)
	row("lost, out of order, damaged", "%d, %d, %d", r.Lost, r.Reordered, r.Damaged)
	row("errors", "%d", r.Errors+r.Refused+r.Unacked)
	if err := t.Flush(); err != nil {
		return err
	}
	if r.Interrupted {
		fmt.Fprintln(w, "interrupted: what was measured until then")
	}
	for _, s := range r.ErrorSamples {
		fmt.Fprintln(w, "error:", s)
	}
	if err := r.Err(); err != nil {
		_, err = fmt.Fprintf(w, "\n*** FAILED ***\n%s\n", err)
		return err
	}
	return nil
}

func (q Quantiles) write(row func(name, format string, args ...any), name string) {
	ms := func(us int64) string { return fmt.Sprintf("%.2f ms", float64(us)/1000) }
	row(name, "p50 %s\tp90 %s\tp99 %s\tp99.9 %s\tmax %s", ms(q.P50), ms(q.P90), ms(q.P99), ms(q.P999), ms(q.Max))
}

// count prints a number with thousands apart.
func count(v float64) string {
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func megabytes(b int64) string { return fmt.Sprintf("%.1f MiB", float64(b)/(1<<20)) }

// failures gathers what went wrong on any connection.
type failures struct {
	mu      sync.Mutex
	n       int64
	samples []string
}

func (f *failures) add(who string, err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	if len(f.samples) < 5 {
		f.samples = append(f.samples, fmt.Sprintf("%s: %v", who, err))
	}
}

func (f *failures) list() (int64, []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n, f.samples
}

// Memory is what the broker's process kept resident during a run.
type Memory struct {
	Before int64  `json:"before"`
	Peak   int64  `json:"peak"`
	After  int64  `json:"after"`
	Parts  []Part `json:"parts,omitempty"` // a fill: at each tenth of the messages
}

// Part is the resident memory when so many messages had been taken.
type Part struct {
	At  int64 `json:"at"`
	RSS int64 `json:"rss"`
}

// memoryWatch samples the memory of a process ten times a second.
type memoryWatch struct {
	pid  int
	m    Memory
	done chan struct{}
	wg   sync.WaitGroup
	mu   sync.Mutex // guards m while sampling goes on
	errs *failures
}

// startMemory watches pid; 0 watches nothing.
func startMemory(pid int, errs *failures) *memoryWatch {
	w := &memoryWatch{pid: pid, done: make(chan struct{}), errs: errs}
	if pid == 0 {
		return w
	}
	w.m.Before = w.sample()
	w.wg.Go(func() {
		t := time.NewTicker(100 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				w.sample()
			case <-w.done:
				return
			}
		}
	})
	return w
}

func (w *memoryWatch) sample() int64 {
	rss, err := residentMemory(w.pid)
	if err != nil {
		return 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.m.Peak = max(w.m.Peak, rss)
	return rss
}

// part notes the memory when at messages had been taken.
func (w *memoryWatch) part(at int64) {
	if w.pid == 0 {
		return
	}
	rss := w.sample()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.m.Parts = append(w.m.Parts, Part{At: at, RSS: rss})
}

// stop ends the watch and returns what it saw, nil if there was nothing to watch. It is called once.
func (w *memoryWatch) stop() *Memory {
	close(w.done)
	w.wg.Wait()
	if w.pid == 0 {
		return nil
	}
	rss, err := residentMemory(w.pid)
	w.errs.add("memory of the broker", err)
	w.m.After = rss
	return &w.m
}
