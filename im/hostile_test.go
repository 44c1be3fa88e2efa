package im

import (
	"slices"
	"strings"
	"testing"

	"github.com/mqim/mqim/store"
)

// TestLargeSyncPage: a page of a large group's log ends at about store.PageBytes, whatever the limit, and what follows
// is in the pages after it.
func TestLargeSyncPage(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		b := w.connect("bob", "b", persistent, None)
		w.create(true, "bob")
		body := strings.Repeat("x", store.PageBytes/4)
		for range 20 {
			w.postTeam("owner", body)
		}
		var cseqs []uint64
		for after := uint64(0); ; {
			r := w.run(b, "sync", `{"rid":"s","conv":"g/team","limit":500,"after":%d}`, after)
			if r.err != nil {
				t.Fatal(r.err)
			}
			if n := len(r.Data); n > 2*store.PageBytes {
				t.Fatalf("a page of %d bytes", n)
			}
			var page struct {
				Messages []struct{ Cseq uint64 }
				Next     uint64
				More     bool
			}
			unmarshal(t, r.Data, &page)
			for _, m := range page.Messages {
				cseqs = append(cseqs, m.Cseq)
			}
			if after = page.Next; !page.More {
				break
			}
		}
		if want := span(1, 21); !slices.Equal(cseqs, want) {
			t.Errorf("got %v, want %v", cseqs, want)
		}
	})
}
