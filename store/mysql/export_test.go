package mysql

import (
	"context"
	"database/sql"
	"time"
)

// Statement is one of those that the driver sends, with arguments for it.
type Statement struct {
	Text string
	Args []any
}

// Statements are all of them, with three rows where rows are repeated.
func Statements() (list []Statement) {
	for _, st := range statements {
		x := Statement{Text: st.text(3)}
		for i := range argCount(st, 3) {
			x.Args = append(x.Args, sample(st, i))
		}
		list = append(list, x)
	}
	return list
}

func placeholders(s string) (n int) {
	for i := range s {
		if s[i] == '?' {
			n++
		}
	}
	return n
}

func argCount(st *statement, rows int) int {
	if st.row == "" {
		return placeholders(st.head)
	}
	return placeholders(st.head) + rows*st.perRow + placeholders(st.tail)
}

func sample(st *statement, i int) any {
	head := placeholders(st.head)
	k := i
	row := 0
	if st.row != "" && i >= head {
		if j := i - head; j < 3*st.perRow {
			k, row = head+j%st.perRow, j/st.perRow
		} else {
			k = i - 2*st.perRow
		}
	}
	if st.kinds[k] == 'n' {
		return 1000 + row
	}
	return []string{"n11", "n17", "n23"}[row]
}

// Counts are what the store has met: attempts that had to be repeated, and answers to COMMIT that were lost.
func (s *Store) Counts() (roundTrips, retries, unknown int64) {
	for i := range s.counters.retries {
		retries += s.counters.retries[i].Load()
	}
	return s.counters.roundTrips.Load(), retries, s.counters.unknown.Load()
}

// LockName is the lock of an Exclusive store.
func (s *Store) LockName() string { return s.lockName("owner") }

// SetBeats has a store show that it is alive so often, and count others, and itself, as gone that have been silent so long.
func (o *Options) SetBeats(every, ttl time.Duration) { o.beatEvery, o.nodeTTL = every, ttl }

// Node is how the store is named in the database.
func (s *Store) Node() string { return s.node }

// ReplicaPools are the connections to the replicas.
func (s *Store) ReplicaPools() (list []*sql.DB) {
	for _, r := range s.replicas.list {
		list = append(list, r.db)
	}
	return list
}

// CheckOrder is checkOrder.
func CheckOrder(vars map[string]string) error { return checkOrder(vars) }

// Touched is touched.
type Touched struct{ t touched }

// TouchedGeneration is touchedGeneration.
const TouchedGeneration = touchedGeneration

// Put is touched.put.
func (x *Touched) Put(name string, n uint64) { x.t.put(name, n) }

// Need is touched.need.
func (x *Touched) Need(names ...string) uint64 { return x.t.need(names...) }

// Len is how many are known.
func (x *Touched) Len() int { return len(x.t.young) + len(x.t.old) }

// SetReplicaLag changes replicaLag, while no store is open, and returns what it was.
func SetReplicaLag(d time.Duration) (old time.Duration) {
	old, replicaLag = replicaLag, d
	return old
}

// Signed is the last number that replicas may have.
func (s *Store) Signed() uint64 { return s.replicas.signed.Load() }

// MaintainAlone is a piece of Maintain, begun at once and without the lock that keeps other processes from it.
func (s *Store) MaintainAlone(ctx context.Context, now time.Time) error {
	s.maintMu.Lock()
	defer s.maintMu.Unlock()
	s.maint = maintainer{}
	_, err := s.maintain(ctx, now)
	return err
}

// ForgetMaintenance has no job rest.
func (s *Store) ForgetMaintenance() {
	s.maintMu.Lock()
	defer s.maintMu.Unlock()
	s.maint = maintainer{}
}

// Heard is heard.
func (s *Store) Heard(err error) { s.heard(err) }

// Looks begins a look at the lock, and returns what ends it.
func (s *Store) Looks() (found func(error)) {
	doubts := s.owner.doubted()
	return func(err error) { s.owner.looked(err, doubts) }
}

// NewExclusive is a store that has not been opened, and counts as one that has its database to itself.
func NewExclusive() *Store { return newStore(Options{Exclusive: true}) }
