package im

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
)

// TestUnreadModel: whatever three users do in a group, conversations tells each what a count of its history by hand
// gives: what others sent after the read watermark, not recalled, not deleted.
func TestUnreadModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("UNREAD_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("UNREAD_SEED=%d", seed)
	bubble(t, Config{AckTimeout: time.Hour, Window: 60000}, func(t *testing.T, w *world) {
		m := &unreadModel{w: w, r: rand.New(rand.NewPCG(seed, 4)), links: map[string]*fakeLink{}, in: map[string]bool{}, read: map[string]uint64{}}
		for _, u := range []string{"alice", "bob", "carol"} {
			m.links[u] = w.connect(u, "d", persistent, IM)
		}
		m.head = w.newGroup("g", "alice", "bob")
		m.in["alice"], m.in["bob"] = true, true
		for i := range 150 {
			if i == 100 {
				w.large("g", "alice")
				m.head++
			}
			m.step()
			for u := range m.links {
				m.check(i, u)
			}
			if t.Failed() {
				t.FailNow()
			}
		}
	})
}

type unreadModel struct {
	w     *world
	r     *rand.Rand
	links map[string]*fakeLink
	in    map[string]bool
	read  map[string]uint64
	head  uint64
}

// step does something at random; what is refused for want of rights changes nothing.
func (m *unreadModel) step() {
	u := [...]string{"alice", "bob", "carol"}[m.r.IntN(3)]
	l := m.links[u]
	cseq := 1 + m.r.Uint64N(m.head)
	switch m.r.IntN(8) {
	case 0, 1, 2:
		if m.in[u] {
			m.head = m.w.post("g", u, "d", "x")
		}
	case 3:
		if m.w.run(l, "read", `{"conv":"g/g","cseq":%d}`, cseq).err == nil {
			m.read[u] = max(m.read[u], cseq)
		}
	case 4:
		m.w.run(l, "delete", `{"conv":"g/g","cseqs":[%d,%d]}`, cseq, 1+m.r.Uint64N(m.head))
	case 5:
		m.w.run(l, "recall", `{"conv":"g/g","cseq":%d}`, cseq)
	case 6, 7:
		if u == "alice" {
			return // who does the adding and removing
		}
		r := store.Ordinary
		if m.in[u] {
			r = store.NoRole
		}
		m.in[u] = !m.in[u]
		m.head = m.w.setRole("g", "alice", u, r)
	}
}

// check compares what u is told with a count by hand.
func (m *unreadModel) check(step int, u string) {
	t := m.w.t
	t.Helper()
	var list []convState
	m.w.ok(m.links[u], &list, "conversations", `{"rid":"1"}`)
	var hist struct {
		Messages []struct {
			Cseq       uint64
			From, Type string
		}
		More bool
	}
	r := m.w.run(m.links[u], "history", `{"rid":"1","conv":"g/g","after":0,"limit":500}`)
	if r.err != nil { // carol may not have been in it yet
		if r.err.Code != NotMember || len(list) != 0 {
			t.Errorf("step %d: history of %s: %v; conversations %+v", step, u, r.err, list)
		}
		return
	}
	unmarshal(t, r.Data, &hist)
	if hist.More {
		t.Fatalf("step %d: more than a page of history", step)
	}
	want := uint64(0)
	for _, x := range hist.Messages {
		if x.Cseq > m.read[u] && x.From != u && x.Type != "recalled" {
			want++
		}
	}
	if len(list) != 1 || list[0].Conv != "g/g" || list[0].Unread != want || list[0].Read != m.read[u] {
		t.Errorf("step %d: %s has %+v, want read %d, unread %d", step, u, list, m.read[u], want)
	}
}
