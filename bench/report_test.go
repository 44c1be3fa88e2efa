package bench

import (
	"strings"
	"testing"
)

// What MQTT 3.1.1 acknowledges may have been refused, of which only the IM profile's replies tell.
func TestLossMayBeRefusal(t *testing.T) {
	for _, tt := range []struct {
		r    Report
		says bool
	}{
		{Report{Profile: Plain, Version: 3, Lost: 1}, true},
		{Report{Profile: Plain, Version: 5, Lost: 1}, false},
		{Report{Profile: IM, Version: 3, Lost: 1}, false},
		{Report{Profile: Topic, Version: 3, Lost: 1}, false},
	} {
		if err := tt.r.Err(); err == nil || strings.Contains(err.Error(), "sends_per_second") != tt.says {
			t.Errorf("%s, MQTT %d: got %v, want the question %v", tt.r.Profile, tt.r.Version, err, tt.says)
		}
	}
}
