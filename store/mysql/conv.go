package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// pageBytes is when a page ends early.
const pageBytes = store.PageBytes

// Message returns one message.
func (s *Store) Message(ctx context.Context, conv store.Conv, cseq uint64) (*store.Message, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	var m *store.Message
	p := s.packet()
	s.askMessage(p, conv, cseq, &m)
	if err := s.read(ctx, p, "message %d of %s", cseq, conv); err != nil {
		return nil, err
	}
	if m == nil {
		return nil, fmt.Errorf("message %d of %s: %w", cseq, conv, store.ErrNotFound)
	}
	return m, nil
}

// askMessage asks for one message; m stays nil if there is none.
func (s *Store) askMessage(p *packet, conv store.Conv, cseq uint64, m **store.Message) {
	p.get(chunkAt, func(r *sql.Rows) error {
		k, c, err := s.scanChunk(r)
		if err != nil || cseq < k.first || cseq >= k.first+uint64(c.Count) {
			return err
		}
		i := int(cseq - k.first)
		ms, err := c.Messages(conv, i, i+1)
		if err != nil {
			return s.damaged(err, k)
		}
		*m = &ms[0]
		return nil
	}, string(conv), cseq)
}

// lastFew is how far back Conversation.Last is looked for.
const lastFew = 16

// Conversation returns the state of one conversation.
func (s *Store) Conversation(ctx context.Context, user string, conv store.Conv) (store.Conversation, error) {
	if err := s.enter(ctx); err != nil {
		return store.Conversation{}, err
	}
	defer s.life.RUnlock()
	list, err := s.conversations(ctx, &source{s: s}, user, []store.Conv{conv})
	if err != nil {
		return store.Conversation{Conv: conv}, err
	}
	return list[0], nil
}

// reader finds out the state of one conversation. What it asks for is sent in three packets, together with what the
// others of a page ask for; each later look is bounded by the head of the first, so that they agree.
type reader struct {
	s     *Store
	user  string
	c     store.Conversation
	head  convHead
	view  view
	m     store.Member
	ended uint64 // cseq with which the group has ended
	first uint64 // first cseq that there still is, where retention removes some; else 0

	spans, unread []store.Span // what the user was there for, and of that what is not read; closed
	total, own    uint64       // messages of unread, and those of them that the user sent
	gone          uint64       // of others, recalled or deleted
	recalled      []uint64
	at            chunkRef // direct conversations: the chunk that the read watermark lies in
	hidden        []uint64 // deleted among the last few
	low           uint64   // the first of them
}

// conversations returns the states of several conversations, in order.
func (s *Store) conversations(ctx context.Context, src *source, user string, convs []store.Conv) ([]store.Conversation, error) {
	readers := make([]*reader, len(convs))
	out := make([]store.Conversation, len(convs))
	steps := []func(*reader, *packet){(*reader).askState, (*reader).askUnread, (*reader).askLast}
	for i, conv := range convs {
		readers[i] = &reader{s: s, user: user, c: store.Conversation{Conv: conv}}
	}
	for _, step := range steps {
		p := s.packet()
		for _, r := range readers {
			step(r, p)
		}
		if err := src.read(ctx, p, "conversations of %q", user); err != nil {
			return nil, err
		}
	}
	for i, r := range readers {
		out[i] = r.result()
	}
	return out, nil
}

func one(args ...any) func(int, []any) []any {
	return func(_ int, dst []any) []any { return append(dst, args...) }
}

func (x *reader) askState(p *packet) {
	conv := string(x.c.Conv)
	// The head comes first: what is looked at later knows all up to it.
	p.names(getConvs, func(r *sql.Rows) error { return x.head.scan(r) }, []string{conv})
	p.many(getViews, x.scanOwnView, 1, one(conv, x.user))
	if peer := x.c.Conv.Peer(x.user); peer != "" {
		p.many(getViews, func(r *sql.Rows) error {
			_, v, err := scanView(r)
			x.c.PeerRead, x.c.PeerDeliv = v.read, v.delivered
			return err
		}, 1, one(conv, peer))
	}
	if id, inGroup := x.c.Conv.Group(); inGroup {
		p.many(getMembers, func(r *sql.Rows) (err error) {
			x.m, err = x.s.scanMember(r)
			return err
		}, 1, one(id, x.user))
		p.names(getGroups, func(r *sql.Rows) error {
			g, err := scanGroup(r)
			x.ended = g.Ended
			return err
		}, []string{id})
	}
	if x.s.opts.Retention.HistoryTTL > 0 {
		p.get(firstRef, func(r *sql.Rows) error {
			ref, err := scanRef(r)
			x.first = ref.first
			return err
		}, conv)
	}
}

func (x *reader) scanOwnView(r *sql.Rows) (err error) {
	_, x.view, err = scanView(r)
	return err
}

func (x *reader) askUnread(p *packet) {
	spans := []store.Span{{From: 1}}
	conv := x.c.Conv
	if isGroup(conv) {
		spans = ended(x.m, x.ended).Spans
	}
	if x.spans = store.Clip(spans, 1, x.head.cseq); len(x.spans) == 0 {
		return
	}
	x.c.Head = x.spans[len(x.spans)-1].To
	x.c.Read, x.c.Delivered = x.view.read, x.view.delivered
	if x.view.deleted {
		x.low = x.c.Head - min(x.c.Head, lastFew) + 1
		p.get(getDeletions, func(r *sql.Rows) error {
			var n uint64
			var own bool
			err := r.Scan(&n, &own)
			x.hidden = append(x.hidden, n)
			return err
		}, x.user, string(conv), x.low, x.c.Head)
	}
	read := x.c.Read
	if x.first > 0 {
		read = max(read, x.first-1) // what retention has removed cannot be read any more
	}
	if x.unread = store.Clip(x.spans, read+1, x.c.Head); len(x.unread) == 0 {
		return
	}
	for _, sp := range x.unread {
		x.total += sp.To - sp.From + 1
		x.askGone(p, sp)
		if isGroup(conv) {
			x.askOwn(p, sp)
		}
	}
	if !isGroup(conv) && read > 0 {
		p.get(refAt, func(r *sql.Rows) (err error) {
			x.at, err = scanRef(r)
			return err
		}, string(conv), read)
	}
}

// askGone counts what is recalled or deleted in a span.
func (x *reader) askGone(p *packet, sp store.Span) {
	p.get(getRecalls, func(r *sql.Rows) error {
		var n uint64
		var sender string
		if err := r.Scan(&n, &sender); err != nil {
			return err
		}
		x.recalled = append(x.recalled, n)
		if sender != x.user {
			x.gone++
		}
		return nil
	}, string(x.c.Conv), sp.From, sp.To)
	if !x.view.deleted {
		return
	}
	p.get(getDeletions, func(r *sql.Rows) error {
		var n uint64
		var own bool
		if err := r.Scan(&n, &own); err != nil {
			return err
		}
		if _, twice := slices.BinarySearch(x.recalled, n); !twice && !own {
			x.gone++
		}
		return nil
	}, x.user, string(x.c.Conv), sp.From, sp.To)
}

// askOwn counts what the user has sent to a group in a span: up to its end, less what was before it.
func (x *reader) askOwn(p *packet, sp store.Span) {
	count := func(upTo uint64, add func(n uint64)) {
		there := false
		scan := func(r *sql.Rows) error {
			n, err := x.s.scanOwn(r, x.user, x.c.Conv, upTo)
			if err == nil && !there {
				there = true
				add(n)
			}
			return err
		}
		p.get(ownAt, scan, string(x.c.Conv), x.user, upTo)
		// Where retention has removed it, the first that is left tells how many were before it.
		p.get(firstOwn, scan, string(x.c.Conv), x.user)
	}
	var end uint64
	count(sp.To, func(n uint64) { end = n })
	count(sp.From-1, func(n uint64) { x.own += end - min(end, n) })
}

// scanOwn counts the user's messages to a group up to cseq, with those that retention has removed, by a row of what
// flushOwns has written.
func (s *Store) scanOwn(r *sql.Rows, user string, conv store.Conv, upTo uint64) (uint64, error) {
	var at, n uint64
	var rest sql.RawBytes
	if err := r.Scan(&at, &n, &rest); err != nil {
		return 0, err
	}
	if at > upTo {
		return n, nil
	}
	first := at
	n++
	d := wire.Decoder{B: rest}
	for ; d.Off < len(d.B); n++ {
		if at += d.Uvarint(); at > upTo {
			break
		}
	}
	if d.Bad {
		return 0, s.corrupt("messages of %q in %s from cseq %d", user, conv, first)
	}
	return n, nil
}

func (x *reader) askLast(p *packet) {
	if x.c.Head == 0 {
		return
	}
	if !isGroup(x.c.Conv) && len(x.unread) > 0 {
		x.askDirect(p)
	}
	newest := x.c.Head
	if len(x.hidden) > 0 {
		m := store.Member{Spans: x.spans}
		for newest >= x.low {
			if _, hidden := slices.BinarySearch(x.hidden, newest); !hidden && m.Has(newest) {
				break
			}
			newest--
		}
		if newest < x.low {
			return
		}
	}
	x.s.askMessage(p, x.c.Conv, newest, &x.c.Last)
}

// askDirect counts what the user has sent to a direct conversation and not read: the head's count less that at the
// watermark.
func (x *reader) askDirect(p *packet) {
	count := func(a, b uint64) uint64 {
		switch x.user {
		case x.head.a:
			return a
		case x.head.b:
			return b
		}
		return 0
	}
	x.head.a, x.head.b, _ = x.c.Conv.Users()
	total := count(x.head.fromA, x.head.fromB)
	read := x.unread[0].From - 1
	before, within := count(x.at.cumA, x.at.cumB), count(x.at.inA, x.at.inB)
	switch {
	case read == 0:
		before = 0
	case x.at.count == 0: // retention has removed it since
		before = total
	case within == 0:
	case read == x.at.last():
		before += within
	default:
		p.get(chunkAt, func(r *sql.Rows) error {
			k, c, err := x.s.scanChunk(r)
			if err != nil {
				return err
			}
			m := c.Walk()
			for n := k.first; n <= read; n++ {
				if !m.Next() {
					return x.s.damaged(wire.ErrChunk, k)
				}
				if string(m.Sender()) == x.user {
					x.own--
				}
			}
			return nil
		}, string(x.c.Conv), read)
	}
	x.own = total - before
}

func (x *reader) result() store.Conversation {
	if x.c.Head == 0 {
		return store.Conversation{Conv: x.c.Conv}
	}
	x.c.Unread = x.total - min(x.total, x.own+x.gone)
	return x.c
}

// ended is a member's record as the end of the group has left it: the span that was open is closed.
func ended(m store.Member, end uint64) store.Member {
	m.Spans = store.CloseSpan(m.Spans, end)
	return m
}
