package im

import (
	"testing"

	"pgregory.net/rapid"
)

// TestWindowRing compares the ring with a plain list.
func TestWindowRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w window
		var list []uint64
		seq := uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				seq += rapid.Uint64Range(1, 3).Draw(t, "gap")
				w.push(slot{seq: seq})
				list = append(list, seq)
			},
			"drop": func(t *rapid.T) {
				k := rapid.IntRange(0, len(list)).Draw(t, "k")
				w.drop(k)
				list = list[k:]
			},
			"search": func(t *rapid.T) {
				x := rapid.Uint64Range(0, seq+2).Draw(t, "x")
				want := 0
				for want < len(list) && list[want] < x {
					want++
				}
				if got := w.search(x); got != want {
					t.Fatalf("search %d in %v: got %d, want %d", x, list, got, want)
				}
			},
			"": func(t *rapid.T) {
				if w.len() != len(list) {
					t.Fatalf("length %d, want %d", w.len(), len(list))
				}
				for i, want := range list {
					if got := w.at(i).seq; got != want {
						t.Fatalf("at %d: got %d, want %d", i, got, want)
					}
				}
			},
		})
	})
}
