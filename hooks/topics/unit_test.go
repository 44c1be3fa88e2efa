package topics

import (
	"slices"
	"strings"
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

// The retained tree against a list and covers.
func TestRetainedTree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		level := rapid.SampledFrom([]string{"a", "b", "", "$x"})
		topics := rapid.Custom(func(t *rapid.T) string {
			return strings.Join(rapid.SliceOfN(level, 1, 4).Draw(t, "levels"), "/")
		})
		r := retained{maxMessages: 12, maxBytes: 1500}
		model := map[string]*message{}
		now := int64(0)
		size := func() (n int) {
			for _, m := range model {
				n += m.size()
			}
			return n
		}
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				m := &message{topic: topics.Draw(t, "topic"), payload: make([]byte, rapid.IntRange(0, 60).Draw(t, "size"))}
				if m.topic == "" {
					return
				}
				if rapid.Bool().Draw(t, "expires") {
					m.expires = now + int64(rapid.IntRange(1, 10).Draw(t, "in"))
				}
				if len(m.payload) == 0 {
					r.delete(m.topic)
					delete(model, m.topic)
					return
				}
				ok := r.set(m, now)
				n, bytes := r.n, r.bytes
				if ok {
					model[m.topic] = m
				}
				for topic, m := range model { // what a full tree has swept
					if m.expired(now) && r.get(topic) == nil {
						delete(model, topic)
					}
				}
				if n != len(model) || bytes != size() || n > r.maxMessages || bytes > r.maxBytes {
					t.Fatalf("got %d messages of %d bytes, want %d of %d", n, bytes, len(model), size())
				}
			},
			"time passes": func(t *rapid.T) { now += int64(rapid.IntRange(1, 5).Draw(t, "ms")) },
			"": func(t *rapid.T) {
				filter := rapid.SampledFrom([]string{"#", "+", "a/#", "+/+", "a", "a/b", "+/#", "+/b/+", "/#", "$x/#", "$x/+/a"}).Draw(t, "filter")
				var got, want []string
				for _, m := range r.matching(filter, now) {
					got = append(got, m.topic)
				}
				for topic, m := range model {
					if covers(filter, topic) && !m.expired(now) {
						want = append(want, topic)
					}
				}
				slices.Sort(got)
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Fatalf("%s: got %q, want %q", filter, got, want)
				}
			},
		})
		for topic := range model {
			r.delete(topic)
		}
		if len(r.root.below) > 0 || r.n != 0 || r.bytes != 0 {
			t.Fatalf("empty tree: got %d levels, %d messages, %d bytes", len(r.root.below), r.n, r.bytes)
		}
	})
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
			"rebuild": func(t *rapid.T) {
				end := r.end()
				r.rebuild(func(*item) bool { return true })
				waiting, sent = append(sent, waiting...), nil
				for i := range waiting {
					waiting[i].token = end + uint64(i)
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
