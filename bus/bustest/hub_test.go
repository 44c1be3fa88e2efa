package bustest

import (
	"testing"

	"github.com/mqim/mqim/bus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPromises(t *testing.T) {
	Promises(t, func(*testing.T) (Maker, Cut) {
		h := NewHub()
		return func(t *testing.T, name string, set func(bus.Bus)) bus.Bus {
			n := h.Join(name)
			set(n)
			t.Cleanup(n.Leave)
			return n
		}, func(b bus.Bus, cut bool) { b.(*Node).Cut(cut) }
	})
}
