package bench

import (
	"cmp"
	"slices"
)

// ranges is a set of numbers as sorted, disjoint, half-open intervals. A run that loses nothing keeps it empty; one
// that loses a stretch keeps one interval.
type ranges []span

type span struct{ from, to uint64 }

// find returns the index of the first interval that ends after n, and whether that one holds n.
func (r ranges) find(n uint64) (int, bool) {
	i, _ := slices.BinarySearchFunc(r, n, func(s span, n uint64) int { return cmp.Compare(s.to, n+1) })
	return i, i < len(r) && r[i].from <= n
}

func (r ranges) has(n uint64) bool {
	_, ok := r.find(n)
	return ok
}

// add puts [from, to) in the set; none of it may be there yet.
func (r *ranges) add(from, to uint64) {
	if from >= to {
		return
	}
	i, _ := r.find(from)
	if i > 0 && (*r)[i-1].to == from {
		(*r)[i-1].to = to
		return
	}
	*r = slices.Insert(*r, i, span{from, to})
}

// remove takes n out and tells whether it was there.
func (r *ranges) remove(n uint64) bool {
	i, ok := r.find(n)
	if !ok {
		return false
	}
	s := &(*r)[i]
	switch {
	case s.from == n && s.to == n+1:
		*r = slices.Delete(*r, i, i+1)
	case s.from == n:
		s.from++
	case s.to == n+1:
		s.to--
	default:
		tail := span{n + 1, s.to}
		s.to = n
		*r = slices.Insert(*r, i+1, tail)
	}
	return true
}

func (r ranges) count() (n uint64) {
	for _, s := range r {
		n += s.to - s.from
	}
	return n
}

// checker follows one stream at one receiver. A number above the next expected leaves a gap, one from a gap came out of
// order, one that was there before is a duplicate; the gaps that remain at the end are lost.
type checker struct {
	next    uint64
	missing ranges
}

type verdict int

const (
	inOrder verdict = iota
	reordered
	duplicate
)

func (c *checker) see(n uint64) verdict {
	if n == c.next {
		c.next++
		return inOrder
	}
	if n > c.next {
		c.missing.add(c.next, n)
		c.next = n + 1
		return inOrder // what it overtook is counted when it comes
	}
	if c.missing.remove(n) {
		return reordered
	}
	return duplicate
}

// lost counts what of the first sent messages never came, leaving out those in either of the excused sets (refused by
// the broker, or never acknowledged), which the broker never promised to deliver.
func (c *checker) lost(sent uint64, excused ...ranges) (n uint64) {
	missing := slices.Clone(c.missing)
	missing.add(c.next, sent)
	n = missing.count()
	for _, set := range excused {
		for _, s := range set {
			for i := s.from; i < s.to; i++ {
				if missing.remove(i) {
					n--
				}
			}
		}
	}
	return n
}
