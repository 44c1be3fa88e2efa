package mysql

import (
	"sync"

	"github.com/mqim/mqim/store"
)

// touchedGeneration is the most users and conversations that a generation of touched has; there are two. An entry is some
// hundred bytes.
const touchedGeneration = 32768

// touched remembers what this process has done lately for which users and to which conversations: for each the number
// that a copy of the database must have come to before it may be asked about it (Store.batches). The names of users and
// of conversations differ, since the latter have a slash.
//
// Of what is forgotten the greatest number counts for all that are not known.
type touched struct {
	mu         sync.Mutex
	young, old map[string]uint64
	inYoung    uint64 // greatest number in young
	inOld      uint64
	forgotten  uint64 // greatest number of what is in neither
}

// put is called with mu held, with numbers that do not fall.
func (t *touched) put(name string, n uint64) {
	if _, ok := t.young[name]; !ok && (t.young == nil || len(t.young) >= touchedGeneration) {
		t.forgotten = max(t.forgotten, t.inOld)
		t.old, t.inOld = t.young, t.inYoung
		t.young = make(map[string]uint64)
	}
	t.young[name], t.inYoung = n, n
}

// need is the number that a copy must have come to, to answer about all of the names.
func (t *touched) need(names ...string) (n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range names {
		x, ok := t.young[name]
		if !ok {
			if x, ok = t.old[name]; !ok {
				x = t.forgotten
			}
		}
		n = max(n, x)
	}
	return n
}

// touch is called when a user has seen what the database holds now: it may be somebody who comes from another node, and
// what it has written there must be in what it reads here.
func (s *Store) touch(user string) {
	if len(s.replicas.list) == 0 {
		return
	}
	t := &s.replicas.touched
	t.mu.Lock()
	defer t.mu.Unlock()
	t.put(user, s.batches.Load()+1)
}

// touchAll notes what a batch that is, or may be, committed has done. It is called before the caller of Commit is
// answered: every number that is given out afterwards stands for more than the batch.
func (s *Store) touchAll(b *store.Batch) {
	if len(s.replicas.list) == 0 {
		return
	}
	t := &s.replicas.touched
	t.mu.Lock()
	defer t.mu.Unlock()
	n := s.batches.Load() + 1
	for _, m := range b.Sends {
		t.put(string(m.Conv), n)
		t.put(m.From, n)
		// Of a group its conversation is enough, but for those to whom the group itself is new.
		if x, y, ok := m.Conv.Users(); ok {
			t.put(x, n)
			t.put(y, n)
		}
		if m.Change != nil {
			for i := range m.Change.Members {
				t.put(m.Change.Members[i].User, n)
			}
		}
	}
	for _, list := range [][]*store.Mark{b.Reads, b.Delivered} {
		for _, m := range list {
			t.put(m.User, n)
			if !isGroup(m.Conv) {
				t.put(string(m.Conv), n) // the peer is shown it
			}
		}
	}
	for _, r := range b.Recalls {
		t.put(string(r.Conv), n)
	}
	for i := range b.Deletes {
		t.put(b.Deletes[i].User, n)
	}
}
