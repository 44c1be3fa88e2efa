package im

import (
	"testing"

	"github.com/mqim/mqim/store"
)

// TestLargeConnectRace: what happens in a group while a device reads from the store where it stands is neither missed
// nor delivered twice.
func TestLargeConnectRace(t *testing.T) {
	for what, do := range map[string]func(w *world){
		"message": func(w *world) { w.postTeam("owner", "x") },
		"leave":   func(w *world) { w.leave("bob"); w.postTeam("owner", "x") },
		"back":    func(w *world) { w.leave("bob"); w.postTeam("owner", "x"); w.join("bob") },
		"end":     func(w *world) { w.change(func(c *store.Change) { c.End = true }) },
	} {
		for _, nth := range []int{1, 2, 3} {
			bubble(t, quietly, func(t *testing.T, w *world) {
				w.create(true, "bob", "other")
				w.connect("other", "o", persistent, IM) // there is a feed
				n := 0
				w.st.set(func() {
					w.st.onStream = func(k store.DeviceKey) {
						if n++; k.User == "bob" && n == nth {
							do(w)
						}
					}
				})
				b := w.connect("bob", "b", persistent, IM)
				want := map[string][]uint64{"message": {1, 2}, "leave": {1, 2}, "back": {1, 2, 4}, "end": {1, 2}}[what]
				wantTeam(t, b, want...)
				if what == "message" || what == "back" {
					wantTeam(t, b, append(want, w.postTeam("owner", "y"))...)
				}
			})
		}
	}
	t.Run("join", func(t *testing.T) {
		bubble(t, quietly, func(t *testing.T, w *world) {
			w.create(true)
			once := false
			w.st.set(func() {
				w.st.onStream = func(store.DeviceKey) {
					if !once {
						once = true
						w.join("bob")
					}
				}
			})
			b := w.connect("bob", "b", Session{}, IM)
			w.postTeam("owner", "x")
			wantTeam(t, b, 2, 3)
		})
	})
}
