package im

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/mqim/mqim/store"
)

// TestGroupStoreFails: what the store cannot do is not claimed, and what another node has changed meanwhile is looked
// at again.
func TestGroupStoreFails(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a := w.connect("ann", "a", persistent, IM)
		w.ok(a, nil, "group.create", `{"group":"g","name":"n"}`)
		tries := 0
		fail := func(n int, err, each error) {
			tries = 0
			w.st.set(func() {
				w.st.onCommit = func(b *store.Batch, commit func() error) error {
					if len(b.Sends) == 0 {
						return commit()
					}
					if tries++; tries > n {
						return commit()
					}
					b.Sends[0].Err = each
					return err
				}
			})
		}
		fail(3, nil, store.ErrChanged)
		w.ok(a, nil, "group.update", `{"group":"g","notice":"1"}`)
		if tries != 4 {
			t.Errorf("%d tries, want 4", tries)
		}
		fail(1000, nil, store.ErrChanged)
		w.refused(Unavailable, a, "group.update", `{"group":"g","notice":"2"}`)
		if tries < 8 || tries == 1000 {
			t.Errorf("gave up after %d tries", tries)
		}
		fail(1000, store.ErrUnavailable, nil)
		w.refused(Unavailable, a, "group.update", `{"group":"g","notice":"3"}`)
		w.st.set(func() { w.st.healthy = store.ErrUnavailable })
		w.refused(Unavailable, a, "group.update", `{"group":"g","notice":"4"}`)
		if tries != 1 {
			t.Errorf("%d tries, want none while the store is not healthy", tries-1)
		}
		w.st.set(func() { w.st.healthy = nil })
		fail(1000, store.ErrUnknownOutcome, nil)
		tk := a.start("group.update", `{"group":"g","notice":"5"}`)
		synctest.Wait()
		if got := a.answersTo(tk); len(got) != 0 {
			t.Errorf("got answers %+v, want none", got)
		}
		if got := a.closes(); !slices.Equal(got, []CloseReason{CloseStore}) {
			t.Errorf("closed %v", got)
		}
		fail(0, nil, nil)
		w.ok(a, nil, "group.update", `{"group":"g","notice":"6"}`) // nothing is held
	})
}

// TestGroupRepeatedWhileUnderWay: a command that is repeated on a new connection, while the one of the connection that
// was cut is still being stored, is answered as done.
func TestGroupRepeatedWhileUnderWay(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a := w.connect("ann", "a", persistent, IM)
		for _, cmd := range [][2]string{
			{"group.create", `{"rid":"1","group":"g","name":"n","members":["bob"]}`},
			{"group.transfer", `{"rid":"2","group":"g","user":"bob"}`},
		} {
			hold := make(chan struct{})
			w.st.set(func() {
				w.st.onCommit = func(b *store.Batch, commit func() error) error {
					if len(b.Sends) > 0 {
						<-hold
					}
					return commit()
				}
			})
			cut := a
			go cut.start(cmd[0], "%s", cmd[1])
			synctest.Wait()
			cut.bye()
			a = w.connect("ann", "a", persistent, IM)
			go a.start(cmd[0], "%s", cmd[1])
			synctest.Wait()
			close(hold)
			if r := w.answer(a, a.next); !r.OK {
				t.Errorf("%s: %v", cmd[0], r.err)
			}
		}
		if g, err := w.st.Group(t.Context(), "g"); err != nil || g.Version != 2 {
			t.Errorf("%+v, %v", g, err)
		}
	})
}

// TestGroupCidHidden: what makes a command happen once is nobody's business.
func TestGroupCidHidden(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a := w.connect("ann", "a", persistent, IM)
		w.ok(a, nil, "group.create", `{"rid":"secret","group":"g","name":"n"}`)
		m := w.log("g")[0]
		if !strings.Contains(m.Cid, "secret") || ClientCid(m.Cid) != "" {
			t.Errorf("the message is known by %q, and shown by %q", m.Cid, ClientCid(m.Cid))
		}
		if b := AppendMessage(nil, "ann", 1, m, 0); strings.Contains(string(b), "secret") || strings.Contains(string(b), "cid") {
			t.Errorf("shown as %s", b)
		}
	})
}
