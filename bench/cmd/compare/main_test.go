package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCompare(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for round, rate := range []int{300, 900, 200} { // median 300
		write(fmt.Sprintf("pairs.mqim.%d.json", round), fmt.Sprintf(`{"delivered_per_second":%d}`, rate))
		write(fmt.Sprintf("pairs.mochi.%d.json", round), `{"delivered_per_second":100,"lost":7}`)
	}
	write("rate.mqim.1.json", `{"latency_us":{"p50":100,"p99":5000}}`)
	write("restart.mqim.1.json", `{"ready_seconds":0.4}`)
	all, err := load(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, r := range compare(all) {
		got[r.Scenario+", "+r.Unit] = fmt.Sprintf("%.1f %.1f %s", r.Mqim, r.ToMochi, r.Verdict)
	}
	for name, want := range map[string]string{
		"20 pairs, plain, delivered/s": "300.0 3.0 met", "5,000/s, p50 ms": "0.1 0.0 ", "5,000/s, p99 ms": "5.0 0.0 MISSED",
		"backlog, kill -9 to ready, s": "0.4 0.0 met",
	} {
		if got[name] != want {
			t.Errorf("%s: got %q, want %q", name, got[name], want)
		}
	}
	if len(got) != 4 {
		t.Errorf("got rows for what was not measured: %v", got)
	}
	remarks, failed := faults(all)
	if len(remarks) != 3 || failed || !strings.Contains(remarks[0], "mochi failed the check (pairs, run 1): 7 messages LOST") {
		t.Errorf("got %q, failed %v: want three remarks on mochi and no failure of mqim", remarks, failed)
	}
	write("im.mqim.1.json", `{"lost":1}`)
	if err := run(dir, filepath.Join(dir, "out")); err == nil {
		t.Error("mqim lost a message: got no error")
	}
}
