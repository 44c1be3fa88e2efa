package limit

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestLevels drives two signals in virtual time: how fast levels rise and fall, and what is logged of it.
func TestLevels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var disk, commit, unknown atomic.Int64
		var log bytes.Buffer
		signal := func(cause string, v *atomic.Int64) Signal {
			return Signal{Cause: cause, At: [3]float64{100, 200, 400}, Read: func() (float64, bool) { return float64(v.Load()), unknown.Load() == 0 }}
		}
		o := Watch(slog.New(slog.NewTextHandler(&log, nil)), signal("disk", &disk), signal("commit", &commit))
		defer o.Close()
		after := func(reads int) int {
			t.Helper()
			time.Sleep(time.Duration(reads) * Interval)
			synctest.Wait()
			return o.Level()
		}
		want := func(what string, got, want int) {
			t.Helper()
			if got != want {
				t.Errorf("%s: level %d, want %d", what, got, want)
			}
		}
		disk.Store(99)
		want("below all", after(50), Normal)
		disk.Store(400)
		want("over the highest, once", after(1), Normal)
		disk.Store(50)
		want("over the highest, once", after(1), Normal)
		disk.Store(400)
		want("over the highest, twice", after(2), RefusePublishes)
		disk.Store(350) // below 400, not below 320
		want("not easier enough", after(100), RefusePublishes)
		disk.Store(319)
		want("easier for nine reads", after(9), RefusePublishes)
		disk.Store(350)
		after(1)
		disk.Store(319)
		want("easier for nine more", after(9), RefusePublishes)
		want("easier for ten", after(1), RefuseSessions)
		commit.Store(100)
		disk.Store(0)
		want("a step at a time", after(10), Slow)
		want("the other holds it", after(100), Slow)
		if p := o.Pause(); p != maxPause {
			t.Errorf("pause: got %v, want %v", p, maxPause)
		}
		levels := map[string]int{}
		o.Levels(func(cause string, level func() int) { levels[cause] = level() })
		if got := fmt.Sprint(levels); got != "map[commit:1 disk:0]" {
			t.Errorf("by cause: got %s", got)
		}
		unknown.Store(1)
		want("unknown", after(10), Normal)
		if after(20); o.Pause() != 0 {
			t.Errorf("pause: got %v, want none", o.Pause())
		}
		var got []string
		for line := range strings.Lines(log.String()) {
			_, line, _ = strings.Cut(line, "level=")
			got = append(got, strings.TrimSpace(line))
		}
		for _, w := range []string{
			`WARN msg="overload level changed" cause=disk level=3 was=0 value=400`,
			`INFO msg="overload level changed" cause=disk level=2 was=3 value=319`,
			`INFO msg="overload level changed" cause=disk level=1 was=2 value=0`,
		} {
			if !slices.Contains(got, w) {
				t.Errorf("not in the log: %s", w)
			}
		}
		if len(got) != 6 { // and disk 1→0, commit 0→1, commit 1→0
			t.Errorf("%d log lines, want one a change, 6:\n%s", len(got), log.String())
		}
	})
}

// The pause grows for as long as there is overload.
func TestPauseGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Watch(slog.New(slog.DiscardHandler), Signal{Cause: "x", At: [3]float64{1, 2, 3}, Read: func() (float64, bool) { return 1, true }})
		defer o.Close()
		var last time.Duration
		for range 15 {
			time.Sleep(Interval)
			synctest.Wait()
			p := o.Pause()
			if p < last || p > 2*max(last, minPause) || p > maxPause {
				t.Errorf("from %v to %v", last, p)
			}
			last = p
		}
		if last != maxPause {
			t.Errorf("got %v, want %v", last, maxPause)
		}
	})
}
