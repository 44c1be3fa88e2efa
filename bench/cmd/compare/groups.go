package main

import "github.com/mqim/mqim/bench"

// groups adds what is measured of groups and conversations.
func (t *table) groups(all results) {
	ms := func(us int64) float64 { return float64(us) / 1000 }
	complete := func(of func(bench.Quantiles) int64) func(*result) float64 {
		return func(r *result) float64 {
			if r.Complete == nil {
				return 0
			}
			return ms(of(*r.Complete))
		}
	}
	p99 := func(q bench.Quantiles) int64 { return q.P99 }
	most := func(q bench.Quantiles) int64 { return q.Max }

	a, b, c := all.three("group", complete(p99))
	t.add(row{Scenario: "group of 500, 20/s, until all have it", Unit: "p99 ms", Mqim: a, Mochi: b, Mosquitto: c, Target: "≤ 20 ms"}, a <= 20)
	a, b, c = all.three("groups", delivered)
	t.add(row{Scenario: "10 groups of 500", Unit: "delivered/s", Mqim: a, Mochi: b, Mosquitto: c, Target: "≥ 150,000"}, a >= 150_000)

	for _, q := range []struct {
		unit string
		of   func(bench.Quantiles) int64
	}{{"p99 ms", p99}, {"max ms", most}} {
		a, b, c = all.three("large", complete(q.of))
		t.add(row{Scenario: "group of 100,000, until all of 2,000 have it", Unit: q.unit, Mqim: a, Mochi: b, Mosquitto: c,
			Target: "≤ 200 ms"}, a <= 200)
	}
	of := func(scenario string, of func(*bench.LargeResult) float64) float64 {
		return all.median(scenario, "mqim", func(r *result) float64 {
			if r.Large == nil {
				return 0
			}
			return of(r.Large)
		})
	}
	t.add(row{Scenario: "making it", Unit: "s", Mqim: of("large", func(l *bench.LargeResult) float64 { return l.Created })}, true)
	t.add(row{Scenario: "listing it", Unit: "s", Mqim: of("large", func(l *bench.LargeResult) float64 { return l.Listed })}, true)
	before := of("large", func(l *bench.LargeResult) float64 { return ms(l.Before.P99) })
	t.add(row{Scenario: "1:1 before that", Unit: "p99 ms", Mqim: before}, true)
	during := of("large", func(l *bench.LargeResult) float64 { return ms(l.During.P99) })
	t.add(row{Scenario: "1:1 during that", Unit: "p99 ms", Mqim: during, Target: "≤ before + 20 ms"}, during <= before+20)
	for i, missed := range []string{"10", "1,000"} {
		back := func(l *bench.LargeResult) float64 {
			if len(l.Missed) <= i {
				return 0
			}
			return ms(l.Missed[i].Time.P50)
		}
		large, lesser := of("large", back), of("lesser", back)
		t.add(row{Scenario: "back after " + missed + " messages, group of 100,000", Unit: "p50 ms", Mqim: large}, true)
		t.add(row{Scenario: "back after " + missed + " messages, group of 1,000", Unit: "p50 ms", Mqim: lesser}, true)
		if lesser > 0 {
			t.add(row{Scenario: "back after " + missed + " messages, 100,000 members / 1,000", Unit: "×", Mqim: large / lesser, Target: "≤ 1.5"}, large/lesser <= 1.5)
		}
	}

	asked := func(of func(*bench.ConversationsResult) int64) float64 {
		return all.median("conversations", "mqim", func(r *result) float64 {
			if r.Conversations == nil {
				return 0
			}
			return ms(of(r.Conversations))
		})
	}
	first := asked(func(c *bench.ConversationsResult) int64 { return c.First })
	t.add(row{Scenario: "2,000 conversations, first page, after a restart", Unit: "ms", Mqim: first, Target: "< 5 ms"}, first < 5)
	t.add(row{Scenario: "the same, then", Unit: "p50 ms", Mqim: asked(func(c *bench.ConversationsResult) int64 { return c.Page.P50 })}, true)
	then := asked(func(c *bench.ConversationsResult) int64 { return c.Page.P99 })
	t.add(row{Scenario: "the same, then", Unit: "p99 ms", Mqim: then, Target: "< 5 ms"}, then < 5)
}
