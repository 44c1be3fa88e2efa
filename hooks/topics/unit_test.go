package topics

import (
	"slices"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a/b", "a", false}, {"a", "a/b", false},
		{"#", "a/b", true}, {"a/#", "a", true}, {"a/#", "a/b/c", true}, {"a/#", "ab", false},
		{"+", "a", true}, {"+", "a/b", false}, {"+/+", "/a", true}, {"a/+", "a/", true}, {"a/+", "a", false}, {"+/b/#", "a/b", true},
		{"#", "$x", false}, {"+/a", "$x/a", false}, {"$x/#", "$x/a", true}, {"#", "/", true},
	} {
		if got := covers(c.filter, c.topic); got != c.want {
			t.Errorf("covers(%q, %q): got %v, want %v", c.filter, c.topic, got, c.want)
		}
	}
}

// The ring against a list.
func TestRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type entry struct {
			token uint64
			m     *message
		}
		r := ring{base: 1, next: 1}
		var sent, waiting []entry
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				m := &message{}
				waiting = append(waiting, entry{r.push(item{m: m}), m})
			},
			"send": func(t *rapid.T) {
				if len(waiting) > 0 {
					r.next++
					sent, waiting = append(sent, waiting[0]), waiting[1:]
				}
			},
			"finish": func(t *rapid.T) {
				if len(sent) > 0 {
					i := rapid.IntRange(0, len(sent)-1).Draw(t, "which")
					r.finish(sent[i].token)
					sent = slices.Delete(sent, i, i+1)
				}
			},
			"": func(t *rapid.T) {
				if r.waiting() != len(waiting) {
					t.Fatalf("waiting: got %d, want %d", r.waiting(), len(waiting))
				}
				for _, e := range append(slices.Clone(sent), waiting...) {
					if r.at(e.token).m != e.m {
						t.Fatalf("token %d is another item", e.token)
					}
				}
				if r.n > 0 && r.base < r.next && r.at(r.base).m == nil {
					t.Fatal("the first is finished and still there")
				}
			},
		})
	})
}
