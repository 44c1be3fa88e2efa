// Command compare reads the reports that run.sh gathered, and prints medians, ratios and targets.
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/mqim/mqim/bench"
)

func main() {
	raw := flag.String("raw", "bin/bench/raw", "folder of the reports, SCENARIO.BROKER.ROUND.json")
	out := flag.String("json", "", "also write the comparison to this file")
	flag.Parse()
	if err := run(*raw, *out); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// result is one report; those of a restart have nothing but ReadySeconds.
type result struct {
	bench.Report
	ReadySeconds float64 `json:"ready_seconds"`
}

// results are all rounds, by scenario and broker.
type results map[[2]string][]result

// row is a line of the table: medians, 0 where a broker was not measured.
type row struct {
	Scenario    string  `json:"scenario"`
	Unit        string  `json:"unit"`
	Mqim        float64 `json:"mqim"`
	Mochi       float64 `json:"mochi,omitempty"`
	Mosquitto   float64 `json:"mosquitto,omitempty"`
	ToMochi     float64 `json:"to_mochi,omitempty"` // mqim / mochi
	ToMosquitto float64 `json:"to_mosquitto,omitempty"`
	Target      string  `json:"target,omitempty"`
	Verdict     string  `json:"verdict,omitempty"` // met, MISSED, or nothing where a part is missing
}

func run(raw, out string) error {
	all, err := load(raw)
	if err != nil {
		return err
	}
	rows := compare(all)
	remarks, failed := faults(all)
	t := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tmqim\tmochi\tmosquitto\tmqim/mochi\tmqim/mosquitto\ttarget\t\t")
	for _, r := range rows {
		fmt.Fprintf(t, "%s, %s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", r.Scenario, r.Unit, number(r.Mqim), number(r.Mochi),
			number(r.Mosquitto), times(r.ToMochi), times(r.ToMosquitto), r.Target, r.Verdict)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range remarks {
		fmt.Println(r)
	}
	if out != "" {
		b, err := json.MarshalIndent(map[string]any{"rows": rows, "remarks": remarks, "machine": machine()}, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(out, append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	if failed {
		return errors.New("mqim failed the check of what it delivered")
	}
	return nil
}

func load(dir string) (results, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no reports in %s", dir)
	}
	all := results{}
	for _, f := range files {
		name := strings.Split(filepath.Base(f), ".")
		if len(name) != 4 {
			return nil, fmt.Errorf("%s: want a name like SCENARIO.BROKER.ROUND.json", f)
		}
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		var r result
		if err := json.Unmarshal(b, &r); err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		key := [2]string{name[0], name[1]}
		all[key] = append(all[key], r)
	}
	return all, nil
}

// median of a value over the rounds, 0 where there are none.
func (all results) median(scenario, broker string, of func(*result) float64) float64 {
	var v []float64
	for _, r := range all[[2]string{scenario, broker}] {
		v = append(v, of(&r))
	}
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// three is the median of each broker.
func (all results) three(scenario string, of func(*result) float64) (mqim, mochi, mosquitto float64) {
	return all.median(scenario, "mqim", of), all.median(scenario, "mochi", of), all.median(scenario, "mosquitto", of)
}

// table gathers rows, of which those that were not measured are left out.
type table []row

func (t *table) add(r row, met bool) {
	if r.Mqim == 0 {
		return
	}
	if r.Mochi > 0 {
		r.ToMochi = r.Mqim / r.Mochi
	}
	if r.Mosquitto > 0 {
		r.ToMosquitto = r.Mqim / r.Mosquitto
	}
	if r.Target != "" {
		r.Verdict = "MISSED"
		if met {
			r.Verdict = "met"
		}
	}
	*t = append(*t, r)
}

func delivered(r *result) float64 { return r.DeliveredRate }

func compare(all results) []row {
	var t table
	add, three := t.add, all.three
	p := func(q func(bench.Quantiles) int64) func(*result) float64 {
		return func(r *result) float64 { return float64(q(r.Latency)) / 1000 }
	}

	a, b, c := three("pairs", delivered)
	online := a
	add(row{Scenario: "20 pairs, plain", Unit: "delivered/s", Mqim: a, Mochi: b, Mosquitto: c,
		Target: target(b > 0, "≥ 1.8× mochi, ≥ 2.5× mosquitto")}, a >= 1.8*b && a >= 2.5*c)
	im := all.median("im", "mqim", delivered)
	add(row{Scenario: "20 pairs, IM (mochi: plain)", Unit: "delivered/s", Mqim: im, Mochi: b,
		Target: target(b > 0, "≥ 1.0× mochi")}, im >= b)
	add(row{Scenario: "20 pairs on MariaDB, plain", Unit: "delivered/s", Mqim: all.median("mysqlplain", "mqim", delivered)}, true)
	add(row{Scenario: "20 pairs on MariaDB, IM", Unit: "delivered/s", Mqim: all.median("mysqlim", "mqim", delivered)}, true)
	t.cluster(all)
	a, b, c = three("rate", p(func(q bench.Quantiles) int64 { return q.P50 }))
	add(row{Scenario: "5,000/s", Unit: "p50 ms", Mqim: a, Mochi: b, Mosquitto: c}, true)
	a, b, c = three("rate", p(func(q bench.Quantiles) int64 { return q.P99 }))
	add(row{Scenario: "5,000/s", Unit: "p99 ms", Mqim: a, Mochi: b, Mosquitto: c, Target: "≤ 4 ms"}, a <= 4)
	a, b, c = three("topics", delivered)
	add(row{Scenario: "20 pairs, topics", Unit: "delivered/s", Mqim: a, Mochi: b, Mosquitto: c, Target: target(b > 0, "≥ 1.4× mochi")}, a >= 1.4*b)
	durable := all.median("durable", "mqim", delivered)
	add(row{Scenario: "20 pairs, topics, sessions on disk (others: in memory)", Unit: "delivered/s", Mqim: durable, Mochi: b, Mosquitto: c,
		Target: target(b > 0, "≥ 1.0× mochi")}, durable >= b)
	a, b, c = three("fanout", delivered)
	add(row{Scenario: "topic to 1,000", Unit: "delivered/s", Mqim: a, Mochi: b, Mosquitto: c, Target: target(b > 0, "≥ 1.2× mochi")}, a >= 1.2*b)
	a, b, c = three("fanrate", p(func(q bench.Quantiles) int64 { return q.P99 }))
	add(row{Scenario: "topic to 1,000, 100/s", Unit: "p99 ms", Mqim: a, Mochi: b, Mosquitto: c, Target: "< 50 ms"}, a < 50)
	t.groups(all)
	a, b, c = three("idle", func(r *result) float64 {
		if r.Idle == nil {
			return 0
		}
		return float64(r.Idle.PerConnection) / 1024
	})
	add(row{Scenario: "idle connection", Unit: "KiB", Mqim: a, Mochi: b, Mosquitto: c,
		Target: target(b > 0, "≤ 0.6× mochi")}, a <= 0.6*b)

	fill := func(r *result) float64 {
		if r.Fill == nil {
			return 0
		}
		return r.Fill.Rate
	}
	add(row{Scenario: "backlog, filling", Unit: "accepted/s", Mqim: all.median("fill", "mqim", fill)}, true)
	add(row{Scenario: "backlog, memory at 20 %", Unit: "MiB", Mqim: all.median("fill", "mqim", memoryAt(1)) / (1 << 20)}, true)
	add(row{Scenario: "backlog, memory when full", Unit: "MiB", Mqim: all.median("fill", "mqim", memoryAt(9)) / (1 << 20)}, true)
	growth := all.median("fill", "mqim", func(r *result) float64 {
		from := memoryAt(1)(r)
		if from == 0 {
			return 0
		}
		return memoryAt(9)(r) / from
	})
	add(row{Scenario: "backlog, memory full / 20 %", Unit: "×", Mqim: growth, Target: "≤ 1.3"}, growth <= 1.3)
	restart := all.median("restart", "mqim", func(r *result) float64 { return r.ReadySeconds })
	add(row{Scenario: "backlog, kill -9 to ready", Unit: "s", Mqim: restart, Target: "< 2 s"}, restart < 2)
	drain := all.median("drain", "mqim", func(r *result) float64 {
		if r.Drain == nil {
			return 0
		}
		return r.Drain.Rate
	})
	add(row{Scenario: "backlog, draining", Unit: "delivered/s", Mqim: drain,
		Target: target(online > 0, "≥ 0.5× the 20 pairs")}, drain >= 0.5*online)
	add(row{Scenario: "leaving sessions and retained messages", Unit: "sessions/s", Mqim: all.median("sessions", "mqim", func(r *result) float64 {
		if r.Sessions == nil {
			return 0
		}
		return r.Sessions.Rate
	})}, true)
	restart = all.median("again", "mqim", func(r *result) float64 { return r.ReadySeconds })
	add(row{Scenario: "with these, kill -9 to ready", Unit: "s", Mqim: restart, Target: "< 2 s"}, restart < 2)
	return t
}

// cluster adds what nodes on MariaDB and Redis do.
func (t *table) cluster(all results) {
	for _, x := range [][2]string{{"plain", "plain"}, {"im", "IM"}} {
		profile, name := x[0], x[1]
		one, two := all.median("one"+profile, "mqim", delivered), all.median("two"+profile, "mqim", delivered)
		t.add(row{Scenario: "20 pairs on a node of a cluster, " + name, Unit: "delivered/s", Mqim: one, Target: "≥ 20,000"}, one >= 20_000)
		t.add(row{Scenario: "20 pairs across two nodes, " + name, Unit: "delivered/s", Mqim: two, Target: "≥ 0.7× one"}, two >= 0.7*one)
		p99 := all.median("tworate"+profile, "mqim", func(r *result) float64 { return float64(r.Latency.P99) / 1000 })
		t.add(row{Scenario: "1,000/s across two nodes, " + name, Unit: "p99 ms", Mqim: p99, Target: "< 15 ms"}, p99 < 15)
	}
}

// target is text, if there is what it compares with.
func target(known bool, text string) string {
	if known {
		return text
	}
	return ""
}

// memoryAt is the broker's memory at a tenth of a fill, counting from 0.
func memoryAt(tenth int) func(*result) float64 {
	return func(r *result) float64 {
		if r.Memory == nil || len(r.Memory.Parts) <= tenth {
			return 0
		}
		return float64(r.Memory.Parts[tenth].RSS)
	}
}

// faults says which runs failed their check; failed, whether one of mqim did.
func faults(all results) (remarks []string, failed bool) {
	for key, rounds := range all {
		for i, r := range rounds {
			if err := r.Err(); err != nil {
				remarks = append(remarks, fmt.Sprintf("%s failed the check (%s, run %d): %s", key[1], key[0], i+1,
					strings.ReplaceAll(err.Error(), "\n", ", ")))
				failed = failed || key[1] == "mqim"
			}
		}
	}
	slices.SortFunc(remarks, cmp.Compare)
	return remarks, failed
}

func number(v float64) string {
	switch {
	case v == 0:
		return "–"
	case v < 100:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

func times(v float64) string {
	if v == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f×", v)
}
