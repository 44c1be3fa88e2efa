package im

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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

// TestLargeRandom has a group grow, members come and go, and devices of all kinds; after every step each device has got
// exactly what it is to see.
func TestLargeRandom(t *testing.T) {
	for i := range 30 {
		seed := rand.Uint64()
		bubble(t, quietly, func(t *testing.T, w *world) {
			defer func() {
				if t.Failed() {
					t.Logf("run %d, seed %d", i, seed)
				}
			}()
			newTeamModel(t, w, rand.New(rand.NewPCG(seed, 1))).run(150)
		})
	}
}

type teamDevice struct {
	user, id string
	s        Session
	link     *fakeLink
	known    bool
	acked    uint64 // of the session
	base     uint64 // where the connection began
}

type teamModel struct {
	t       *testing.T
	w       *world
	r       *rand.Rand
	head    uint64
	large   bool
	spans   map[string][]store.Span
	devices []*teamDevice
	reached map[string]uint64 // by user: what a device of it has acknowledged
	log     []string
}

func newTeamModel(t *testing.T, w *world, r *rand.Rand) *teamModel {
	m := &teamModel{t: t, w: w, r: r, spans: map[string][]store.Span{}, reached: map[string]uint64{}}
	m.large = r.IntN(3) == 0
	m.head = w.create(m.large)
	for u := range 3 {
		for d, s := range []Session{persistent, persistent, {}} {
			m.devices = append(m.devices, &teamDevice{user: fmt.Sprint("u", u), id: fmt.Sprint(d), s: s})
		}
	}
	return m
}

func (m *teamModel) in(user string) bool {
	s := m.spans[user]
	return len(s) > 0 && s[len(s)-1].To == 0
}

// step is a change or a message by the owner, or something that a device does.
func (m *teamModel) step() {
	d := m.devices[m.r.IntN(len(m.devices))]
	switch n := m.r.IntN(20); {
	case n < 6:
		m.head = m.w.postTeam("owner", "x")
		m.log = append(m.log, "post")
	case n < 9 && m.in(d.user):
		m.head = m.w.leave(d.user)
		s := m.spans[d.user]
		s[len(s)-1].To = m.head
		m.log = append(m.log, d.user+" leaves")
	case n < 9:
		m.head = m.w.join(d.user)
		m.spans[d.user] = append(m.spans[d.user], store.Span{From: m.head})
		m.log = append(m.log, d.user+" joins")
	case n == 9 && !m.large && m.head > 20:
		names := []string{"owner"}
		for u := range m.spans {
			if m.in(u) {
				names = append(names, u)
			}
		}
		m.large, m.head = true, m.w.grow(names...)
		m.log = append(m.log, "grows")
	case n < 14 && d.link != nil:
		m.ack(d)
	case n < 17 && d.link != nil:
		d.link.bye()
		d.link = nil
		d.known = d.s.Persistent
		m.log = append(m.log, d.user+"/"+d.id+" goes")
	case n < 18:
		time.Sleep(time.Second)
		m.log = append(m.log, "flush")
	case d.link == nil:
		m.connect(d)
	}
}

func (m *teamModel) ack(d *teamDevice) {
	if got := d.link.teamSeqs(); len(got) > 0 {
		n := got[m.r.IntN(len(got))]
		m.w.ackTeam(d.link, n)
		d.acked = max(d.acked, n)
		m.reached[d.user] = max(m.reached[d.user], n)
		m.log = append(m.log, fmt.Sprint(d.user, "/", d.id, " acks ", n))
	}
}

func (m *teamModel) connect(d *teamDevice) {
	if !d.known {
		d.acked = m.reached[d.user]
	}
	d.base = d.acked
	d.link = m.w.connect(d.user, d.id, d.s, IM)
	m.log = append(m.log, fmt.Sprint(d.user, "/", d.id, " comes, after ", d.base))
}

func (m *teamModel) run(steps int) {
	for range steps {
		m.step()
		synctest.Wait()
		for _, d := range m.devices {
			if d.link == nil {
				continue
			}
			var want []uint64
			for _, s := range m.spans[d.user] {
				for n := s.From; n <= m.head && s.Has(n); n++ {
					if n > d.base {
						want = append(want, n)
					}
				}
			}
			if got := d.link.teamSeqs(); !slices.Equal(got, want) {
				m.t.Fatalf("%s/%s: got %v, want %v after\n%s", d.user, d.id, got, want, strings.Join(m.log, "\n"))
			}
		}
	}
}
