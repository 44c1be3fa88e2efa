package topics

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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

// The index, against link.Matches, with subscriptions that come and go at random.
func TestIndex(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	path := func(levels []string) string {
		p := levels[rng.IntN(len(levels))]
		for p == "" || rng.IntN(3) > 0 {
			p += "/" + levels[rng.IntN(len(levels))]
		}
		return p
	}
	filter := func() (f string) {
		if f = path([]string{"a", "b", "", "+", "$x"}); rng.IntN(3) == 0 {
			f += "/#"
		} else if rng.IntN(30) == 0 {
			f = "#"
		}
		if rng.IntN(3) == 0 {
			f = "$share/" + path([]string{"g", "h"})[:1] + "/" + f
		}
		return f
	}
	type subscriber struct {
		s      *session
		filter string
	}
	var x index
	sessions := []*session{{client: "1"}, {client: "2"}, {client: "3"}}
	want := map[subscriber]bool{}
	for range 20_000 {
		i := rng.IntN(len(sessions))
		s := sessions[i]
		switch rng.IntN(20) {
		case 0:
			x.leave(s)
			x.add(s, &packets.Subscription{Filter: "a"}) // too late
			sessions[i] = &session{client: s.client}
			maps.DeleteFunc(want, func(k subscriber, _ bool) bool { return k.s == s })
		case 1, 2, 3, 4, 5, 6, 7, 8:
			f := filter()
			x.add(s, &packets.Subscription{Filter: f})
			want[subscriber{s, f}] = true
		case 9, 10, 11, 12:
			f := filter()
			x.remove(s, f)
			delete(want, subscriber{s, f})
		default:
			topic := path([]string{"a", "b", "", "c", "$x"})
			got := map[subscriber]bool{}
			x.match(topic, func(filter string, t target) { got[subscriber{t.s, filter}] = true })
			match := maps.Clone(want)
			maps.DeleteFunc(match, func(k subscriber, _ bool) bool {
				_, f := store.SplitShared(k.filter)
				return !link.Matches(f, topic)
			})
			if !maps.Equal(got, match) {
				t.Fatalf("%q: got %v, want %v", topic, got, match)
			}
		}
	}
	for _, s := range sessions {
		x.leave(s)
	}
	if n := len(x.top.below); n > 0 {
		t.Errorf("%d levels left, want none", n)
	}
}
