package mysql

import (
	"context"
	"database/sql"
	"math"
	"slices"

	"github.com/mqim/mqim/store"
)

// History reads a page of a conversation's log.
func (s *Store) History(
	ctx context.Context, user string, conv store.Conv, r store.Range,
) (list []*store.Message, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	err = s.near(ctx, func(ctx context.Context, src *source) (err error) {
		list, err = s.history(ctx, src, user, conv, r)
		return err
	}, string(conv))
	return list, err
}

func (s *Store) history(
	ctx context.Context, src *source, user string, conv store.Conv, r store.Range,
) ([]*store.Message, error) {
	h := history{s: s, src: src, user: user, conv: conv, limit: r.Limit, after: r.After, before: r.Before, forward: r.Forward}
	if h.before == 0 {
		h.before = math.MaxUint64
	}
	if h.after >= h.before-1 {
		return nil, nil
	}
	p := s.packet()
	p.many(getViews, func(r *sql.Rows) error {
		_, v, err := scanView(r)
		h.hidden = v.deleted
		return err
	}, 1, func(_ int, args []any) []any { return append(args, string(conv), user) })
	if err := src.read(ctx, p, "history of %s", conv); err != nil {
		return nil, err
	}
	// Nobody knows how many messages a chunk has: rounds grow.
	for n := chunkRound; !h.full() && !h.ended; n = min(2*n, 8*chunkRound) {
		if err := h.round(ctx, min(n, h.limit-len(h.out))); err != nil {
			return nil, err
		}
	}
	if !h.forward {
		slices.Reverse(h.out)
	}
	return h.out, nil
}

// history is a page of a conversation's log being filled, backward from its end.
type history struct {
	s       *Store
	src     *source
	user    string
	conv    store.Conv
	after   uint64 // after < cseq < before, of which there are some
	before  uint64
	forward bool
	limit   int
	hidden  bool // the user has deleted some
	ended   bool // there is no more
	out     []*store.Message
	bytes   int
}

func (h *history) full() bool { return len(h.out) >= h.limit || h.bytes >= pageBytes }

// round reads up to n chunks.
func (h *history) round(ctx context.Context, n int) error {
	var list []store.Message
	size, got := h.bytes, 0
	take := func(r *sql.Rows) error {
		got++
		if size >= pageBytes || !h.hidden && len(list) >= h.limit-len(h.out) {
			return nil // read in vain: there was more in the others than had to be expected
		}
		k, c, err := h.s.scanChunk(r)
		if err != nil {
			return err
		}
		last := k.first + uint64(c.Count) - 1
		from, to := max(k.first, h.after+1), min(last, h.before-1)
		if from > to {
			h.ended = !h.forward // below what is wanted; ahead of it is the chunk that only begins before
			return nil
		}
		missing := uint64(h.limit - len(h.out) - len(list))
		if !h.hidden && to-from+1 > missing {
			if h.forward {
				to = from + missing - 1
			} else {
				from = to - missing + 1
			}
		}
		ms, err := c.Messages(h.conv, int(from-k.first), int(to-k.first)+1)
		if err != nil {
			return h.s.damaged(err, k)
		}
		for i := range ms {
			size += len(ms[i].Body)
		}
		if !h.forward {
			slices.Reverse(ms)
		}
		list = append(list, ms...)
		return nil
	}
	p := h.s.packet()
	if h.forward {
		p.get(chunksUp, take, string(h.conv), string(h.conv), h.after+1, h.before, n+1)
	} else {
		p.get(chunksDown, take, string(h.conv), h.before, n)
	}
	if err := h.src.read(ctx, p, "history of %s", h.conv); err != nil {
		return err
	}
	if got == 0 || h.forward && got <= n || !h.forward && got < n {
		h.ended = size < pageBytes // else not all was looked at
	}
	if len(list) == 0 {
		h.ended = true
		return nil
	}
	end := list[len(list)-1].Cseq
	if err := h.take(ctx, list); err != nil {
		return err
	}
	if h.forward {
		h.after = end
	} else {
		h.before = end
	}
	h.ended = h.ended || h.after >= h.before-1
	return nil
}

// take adds messages to the page, without those that the user has deleted.
func (h *history) take(ctx context.Context, list []store.Message) error {
	var gone []uint64
	if h.hidden {
		low, high := list[0].Cseq, list[len(list)-1].Cseq
		var err error
		if gone, err = h.s.deletions(ctx, h.src, h.user, h.conv, min(low, high), max(low, high)); err != nil {
			return err
		}
	}
	for i := range list {
		if h.full() {
			break
		}
		if _, deleted := slices.BinarySearch(gone, list[i].Cseq); deleted {
			continue
		}
		h.out = append(h.out, &list[i])
		h.bytes += len(list[i].Body)
	}
	return nil
}

// deletions are the cseqs with a deletion mark of the user in from … to, ascending.
func (s *Store) deletions(
	ctx context.Context, src *source, user string, conv store.Conv, from, to uint64,
) (out []uint64, err error) {
	p := s.packet()
	p.get(getDeletions, func(r *sql.Rows) error {
		var n uint64
		var own bool
		err := r.Scan(&n, &own)
		out = append(out, n)
		return err
	}, user, string(conv), from, to)
	err = src.read(ctx, p, "deletions of %q", user)
	return out, err
}
