package pebble

import (
	"strings"
	"testing"
)

// TestEngineCids: the engine's own cids, which are long and begin with 0xff, do not make those that a client counts up look
// as if they had been there before.
func TestEngineCids(t *testing.T) {
	own := "\xff" + strings.Repeat("x", 200)
	for _, c := range []struct {
		max, cid string
		after    bool
	}{
		{own, "1", true}, {"1", own, false}, {"9", "10", true}, {"10", "9", false}, {own, own + "y", true}, {own + "y", own, false},
	} {
		s := sender{max: []byte(c.max)}
		if got := s.comesAfter(c.cid); got != c.after {
			t.Errorf("%.10q after %.10q: got %t, want %t", c.cid, c.max, got, c.after)
		}
	}
}
