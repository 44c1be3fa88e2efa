package store

import "slices"

// What membership means is the same for every driver, so it stands here.

// Span is a stretch of a log: From ≤ cseq ≤ To. To 0 is open: there is no end yet.
type Span struct{ From, To uint64 }

// Has reports whether cseq lies within.
func (s Span) Has(cseq uint64) bool { return cseq >= s.From && (s.To == 0 || cseq <= s.To) }

// MaxSpans is how many of a member's spans are kept; the oldest are forgotten.
const MaxSpans = 64

// Clip is what of spans lies within from … to; none of the result is open.
func Clip(spans []Span, from, to uint64) []Span {
	var out []Span
	for _, x := range spans {
		if x.To == 0 {
			x.To = to
		}
		x.From, x.To = max(x.From, from), min(x.To, to)
		if x.From <= x.To {
			out = append(out, x)
		}
	}
	return out
}

// CloseSpan returns spans with the open one, if there is any, ended at cseq; 0 leaves it open. spans itself is not changed.
func CloseSpan(spans []Span, cseq uint64) []Span {
	n := len(spans) - 1
	if n < 0 || spans[n].To != 0 || cseq == 0 {
		return spans
	}
	spans = slices.Clone(spans)
	spans[n].To = cseq
	return spans
}

// Has reports whether cseq was sent while the user was a member.
func (m *Member) Has(cseq uint64) bool {
	for i := len(m.Spans) - 1; i >= 0; i-- {
		if cseq >= m.Spans[i].From {
			return m.Spans[i].Has(cseq)
		}
	}
	return false
}

// Become makes m what given says, with the message cseq: who had no role joins, who has none any more leaves. given is
// completed with the result, which shares nothing with m. It returns how many members more there are: 1, 0 or -1.
func (m *Member) Become(given *Member, cseq uint64) (more int) {
	was, is := m.Role != NoRole, given.Role != NoRole
	m.Role, m.MutedUntil = given.Role, given.MutedUntil
	switch {
	case is && !was:
		m.Joined, more = given.Joined, 1
		m.Spans = append(m.Spans, Span{From: cseq})
		m.Spans = slices.Delete(m.Spans, 0, max(0, len(m.Spans)-MaxSpans))
	case was && !is:
		m.Spans, more = CloseSpan(m.Spans, cseq), -1
	}
	*given = *m
	given.Spans = slices.Clone(m.Spans)
	return more
}

// Become makes the record of the change, with the message cseq, that of the group as it is after it, but for MemberCount.
// g is what it is before; it is not changed. grown says that the group becomes large.
func (c *Change) Become(g *Group, cseq uint64) (grown bool) {
	to := &c.Group
	to.ID, to.Version, to.MemberCount, to.LargeFrom, to.Ended = g.ID, g.Version+1, g.MemberCount, g.LargeFrom, 0
	if c.End {
		to.Ended = cseq
	}
	if grown = c.Large && g.LargeFrom == 0; grown {
		to.LargeFrom = cseq
	}
	return grown
}

// Count counts a member, of whom the watermarks are given, if it has the message cseq; names says that it is noted by name.
func (r *Receipts) Count(m *Member, delivered, read, cseq uint64, names bool) {
	if max(delivered, read) < cseq || !m.Has(cseq) {
		return
	}
	r.Delivered++
	if names {
		r.DeliveredBy = append(r.DeliveredBy, m.User)
	}
	if read < cseq {
		return
	}
	r.Read++
	if names {
		r.ReadBy = append(r.ReadBy, m.User)
	}
}
