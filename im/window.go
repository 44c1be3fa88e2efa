package im

import "sort"

// window is the list of what a device was handed and has not acknowledged, ascending by seq: a ring, since it is
// appended to and popped from for every message.
type window struct {
	buf  []slot // length 0 or a power of two
	head int
	n    int
}

func (w *window) len() int { return w.n }

func (w *window) at(i int) *slot { return &w.buf[(w.head+i)&(len(w.buf)-1)] }

func (w *window) push(s slot) {
	if w.n == len(w.buf) {
		nb := make([]slot, max(8, 2*len(w.buf)))
		for i := range w.n {
			nb[i] = *w.at(i)
		}
		w.buf, w.head = nb, 0
	}
	w.n++
	*w.at(w.n - 1) = s
}

// drop removes the first k.
func (w *window) drop(k int) {
	for i := range k {
		*w.at(i) = slot{}
	}
	w.n -= k
	if w.n == 0 {
		w.head = 0
	} else {
		w.head = (w.head + k) & (len(w.buf) - 1)
	}
}

// search returns the index of the first slot with a seq not below the one given.
func (w *window) search(seq uint64) int {
	if w.n > 0 && w.at(0).seq >= seq {
		return 0
	}
	return sort.Search(w.n, func(i int) bool { return w.at(i).seq >= seq })
}
