package im

import (
	"sync"
	"testing"
	"time"
)

func snowflakes(t testing.TB, node int64) *Snowflakes {
	t.Helper()
	s, err := NewSnowflakes(node)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSnowflakesNode(t *testing.T) {
	for _, n := range []int64{-1, 1024} {
		if _, err := NewSnowflakes(n); err == nil {
			t.Errorf("node %d was taken", n)
		}
	}
	s := snowflakes(t, 1023)
	for i := range 10000 {
		after := int64(i) << 22 // also where the id is derived from after
		if id := s.Next(after); id>>12&1023 != 1023 {
			t.Fatalf("id %d is of node %d", id, id>>12&1023)
		}
	}
}

// TestSnowflakesRise: ids rise, above what they are told to and whatever lies in its low bits, also when that is in
// the future, as after a clock that stepped back, and when the steps of a millisecond are used up.
func TestSnowflakesRise(t *testing.T) {
	now := time.Now().UnixMilli() - 1288834974657 // the epoch of snowflakes
	for name, after := range map[string]int64{
		"zero":              0,
		"past":              (now - 1000) << 22,
		"future":            (now + 3600_000) << 22,
		"future, steps out": (now+3600_000)<<22 | 0xfff,
		"higher node":       (now+3600_000)<<22 | 900<<12 | 7,
		"all low bits":      (now+3600_000)<<22 | 1<<22 - 1,
		"lower node":        (now+3600_000)<<22 | 1<<12 | 0xffe,
	} {
		t.Run(name, func(t *testing.T) {
			s := snowflakes(t, 512)
			last := after
			for i := range 3 * 4096 {
				given := after
				if i%3 == 0 {
					given = last
				}
				id := s.Next(given)
				if id <= last || id>>12&1023 != 512 {
					t.Fatalf("id %d of node %d after %d", id, id>>12&1023, last)
				}
				last = id
			}
			if limit := max(after>>22, now) + 60_000; last>>22 > limit {
				t.Errorf("12288 ids ran %d ms ahead", last>>22-max(after>>22, now))
			}
		})
	}
}

func TestSnowflakesConcurrently(t *testing.T) {
	s := snowflakes(t, 3)
	var mu sync.Mutex
	seen := map[int64]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			last := int64(0)
			var list []int64
			for range 5000 {
				id := s.Next(last)
				if id <= last {
					t.Errorf("%d after %d", id, last)
				}
				last = id
				list = append(list, id)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, id := range list {
				if seen[id] {
					t.Errorf("%d was given twice", id)
				}
				seen[id] = true
			}
		})
	}
	wg.Wait()
}
