package mysql

import (
	"context"
	"database/sql"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mqim/mqim/store"
)

// claimTTL is how long the claim of a client is kept of whom nothing is stored any more: who spoke for it before has
// noticed by then.
const claimTTL = 7 * 24 * time.Hour

// askClaims raises the claims of the batch and reads those that its fences speak of. Their rows are the first that a
// transaction locks, by client: where the batch claims, all of them at once, so that the shared locks of the fences do
// not come behind the others in another order. Until the end of the transaction nobody else claims what it speaks for.
func (w *writer) askClaims(b *store.Batch) {
	if len(b.Claims)+len(b.Fences) == 0 {
		return
	}
	w.claims = make(map[string]uint64, len(b.Claims)+len(b.Fences))
	for _, c := range b.Claims {
		w.claims[c.Client] = 0
	}
	for _, f := range b.Fences {
		w.claims[f.Client] = 0
	}
	clients := slices.Sorted(maps.Keys(w.claims))
	if len(b.Claims) > 0 {
		w.claimed = slices.Clone(b.Claims)
		slices.SortStableFunc(w.claimed, func(x, y *store.Claim) int { return strings.Compare(x.Client, y.Client) })
		w.q.names(lockClaims, func(*sql.Rows) error { return nil }, clients)
		w.q.many(setClaims, nil, len(w.claimed), func(i int, args []any) []any { return append(args, w.claimed[i].Client) })
	}
	w.q.names(shareClaims, func(r *sql.Rows) error { return scanNumber(r, w.claims) }, clients)
}

// scanNumber takes a row of a name and its number.
func scanNumber(r *sql.Rows, into map[string]uint64) error {
	var name string
	var n uint64
	err := r.Scan(&name, &n)
	into[name] = n
	return err
}

// fence is the batch without what later claims forbid.
func (w *writer) fence(b *store.Batch) *store.Batch {
	if len(b.Fences) == 0 {
		return b
	}
	w.fenced = b.FencedOff(w.claims)
	return b.Without(w.fenced)
}

// tellClaims sets the epochs of the claims that are committed: of several of one client the last has the one that stands.
func (w *writer) tellClaims() {
	for _, c := range slices.Backward(w.claimed) {
		c.Epoch = w.claims[c.Client]
		w.claims[c.Client]--
	}
}

// dropClaims removes old claims of clients of whom there is no session and no will.
func (s *Store) dropClaims(ctx context.Context, pos string, now int64) (next string, more bool, err error) {
	var gone []string
	n := 0
	cutoff := now - claimTTL.Milliseconds()
	p := s.packet()
	p.get(walkClaims, func(r *sql.Rows) error {
		var when int64
		var kept bool
		if err := r.Scan(&next, &when, &kept); err != nil {
			return err
		}
		if n++; !kept && when <= cutoff {
			gone = append(gone, next)
		}
		return nil
	}, pos, maintainRows)
	if err := s.read(ctx, p, "claims"); err != nil {
		return "", false, err
	}
	p.names(dropClaims, nil, gone, cutoff)
	return next, n == maintainRows, s.read(ctx, p, "old claims")
}
