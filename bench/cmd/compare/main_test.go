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
	write("group.mqim.1.json", `{"complete_us":{"p99":21000}}`)
	write("group.mosquitto.1.json", `{"complete_us":{"p99":42000}}`)
	write("groups.mqim.1.json", `{"delivered_per_second":150000}`)
	write("large.mqim.1.json", `{"complete_us":{"p99":190000,"max":210000},"large":{"created_seconds":3,"chat_before_us":{"p99":5000},"chat_during_us":{"p99":26000},
		"missed":[{"messages":10,"time_us":{"p50":3000}},{"messages":1000,"time_us":{"p50":40000}}]}}`)
	write("lesser.mqim.1.json", `{"large":{"missed":[{"messages":10,"time_us":{"p50":2000}},{"messages":1000,"time_us":{"p50":20000}}]}}`)
	write("conversations.mqim.1.json", `{"conversations":{"first_us":6000,"first_page_us":{"p50":400,"p99":4999}}}`)
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
		"backlog, kill -9 to ready, s":                         "0.4 0.0 met",
		"group of 500, 20/s, until all have it, p99 ms":        "21.0 0.0 MISSED",
		"10 groups of 500, delivered/s":                        "150000.0 0.0 met",
		"group of 100,000, until all of 2,000 have it, p99 ms": "190.0 0.0 met",
		"group of 100,000, until all of 2,000 have it, max ms": "210.0 0.0 MISSED",
		"making it, s":                                          "3.0 0.0 ",
		"1:1 before that, p99 ms":                               "5.0 0.0 ",
		"1:1 during that, p99 ms":                               "26.0 0.0 MISSED",
		"back after 10 messages, group of 100,000, p50 ms":      "3.0 0.0 ",
		"back after 1,000 messages, group of 100,000, p50 ms":   "40.0 0.0 ",
		"2,000 conversations, first page, after a restart, ms":  "6.0 0.0 MISSED",
		"the same, then, p50 ms":                                "0.4 0.0 ",
		"the same, then, p99 ms":                                "5.0 0.0 met",
		"back after 10 messages, 100,000 members / 1,000, ×":    "1.5 0.0 met",
		"back after 1,000 messages, 100,000 members / 1,000, ×": "2.0 0.0 MISSED",
		"back after 10 messages, group of 1,000, p50 ms":        "2.0 0.0 ",
		"back after 1,000 messages, group of 1,000, p50 ms":     "20.0 0.0 ",
	} {
		if got[name] != want {
			t.Errorf("%s: got %q, want %q", name, got[name], want)
		}
	}
	if len(got) != 20 {
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
