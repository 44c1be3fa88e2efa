package mysql

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"time"

	"github.com/mqim/mqim/store"
)

// maintainTopics is where Maintain's jobs for ordinary topics have come to.
type maintainTopics struct {
	sessions, retained, pubs, nodes, claims job[string]
	queues, outbound                        job[queuePlace]
}

type queuePlace struct {
	queue string
	seq   uint64
}

// nodesTTL is how long the row of a process that has gone is kept: its sessions have been noted as cut off by then.
const nodesTTL = 24 * time.Hour

func (s *Store) maintainTopics(ctx context.Context, now time.Time, note func(bool, error)) {
	m := &s.maint.topics
	ms := now.UnixMilli()
	note(m.sessions.step(func(pos string) (string, bool, error) { return s.endTopicSessions(ctx, pos, ms) }))
	note(m.retained.step(func(pos string) (string, bool, error) { return s.dropExpired(ctx, pos, ms) }))
	note(m.queues.step(func(pos queuePlace) (queuePlace, bool, error) { return s.dropPassed(ctx, pos) }))
	note(m.outbound.step(func(pos queuePlace) (queuePlace, bool, error) { return s.dropOutbound(ctx, pos) }))
	note(m.pubs.step(func(pos string) (string, bool, error) { return s.dropPubs(ctx, pos) }))
	note(m.claims.step(func(pos string) (string, bool, error) { return s.dropClaims(ctx, pos, ms) }))
	note(m.nodes.step(func(string) (string, bool, error) { return "", false, s.dropNodes(ctx) }))
}

// endTopicSessions removes sessions that have ended, and writes down since when those have been disconnected whose
// process has gone.
func (s *Store) endTopicSessions(ctx context.Context, pos string, now int64) (next string, more bool, err error) {
	list, cut, err := s.sessions(ctx, pos, maintainRows)
	if err != nil || len(list) == 0 {
		return "", false, err
	}
	over := func(x *sessionRow) bool { ends := x.Ends(); return ends != 0 && ends <= now }
	var clients []string
	for i := range list {
		if cut[i] || over(&list[i]) {
			clients = append(clients, list[i].Client)
		}
	}
	next, more = list[len(list)-1].Client, len(list) == maintainRows
	if len(clients) == 0 {
		return next, more, nil
	}
	return next, more, s.try(ctx, s.lazy, func(ctx context.Context, w *writer) error {
		return w.endSessions(ctx, clients, over)
	}, func() {})
}

// endSessions looks at sessions again, now that they are locked: one that was taken up meanwhile stays.
func (w *writer) endSessions(ctx context.Context, clients []string, over func(*sessionRow) bool) error {
	t := &w.topics
	*t = topicWriter{w: w, queues: map[string]*queueHead{}}
	for _, c := range clients {
		t.queues[c] = &queueHead{sessionRow: sessionRow{Session: store.Session{Client: c}}}
	}
	w.s.begin(w.q, w.lease)
	w.askQueues()
	if err := w.run(ctx); err != nil {
		return err
	}
	for _, c := range clients {
		h := t.queues[c]
		cut := w.s.settle(&h.sessionRow, &t.nodes)
		switch {
		case !h.exists:
		case over(&h.sessionRow):
			if err := t.end(ctx, h); err != nil {
				return err
			}
		case cut:
			h.state, h.dirty = sessionCut, true // its node may come back
		}
	}
	t.flush()
	w.q.items = append(w.q.items, w.later.items...)
	w.sign()
	return w.run(ctx)
}

// dropExpired removes retained messages that have expired.
func (s *Store) dropExpired(ctx context.Context, pos string, now int64) (next string, more bool, err error) {
	var old []string
	n := 0
	p := s.packet()
	p.get(walkRetained, func(r *sql.Rows) error {
		var expires int64
		if err := r.Scan(&next, &expires); err != nil {
			return err
		}
		if n++; expires != 0 && expires <= now {
			old = append(old, next)
		}
		return nil
	}, pos, maintainRows)
	if err := s.read(ctx, p, "retained messages"); err != nil || len(old) == 0 {
		return next, n == maintainRows, err
	}
	return next, n == maintainRows, s.try(ctx, s.lazy, func(ctx context.Context, w *writer) error {
		var still []string
		w.s.begin(w.q, w.lease)
		w.q.names(lockExpired, func(r *sql.Rows) error {
			var key string
			err := r.Scan(&key)
			still = append(still, key)
			return err
		}, old, now)
		if err := w.run(ctx); err != nil {
			return err
		}
		w.q.names(dropRetained, nil, still)
		w.q.do(moveCount, -len(still), countRetained)
		w.sign()
		return w.run(ctx)
	}, func() {})
}

// dropPassed removes records of queues that are passed, or whose session has ended, with their references.
func (s *Store) dropPassed(ctx context.Context, pos queuePlace) (next queuePlace, more bool, err error) {
	type ref struct{ pub, queue string }
	var gone []queuePlace
	var refs []ref
	n := 0
	p := s.packet()
	p.get(walkQueues, func(rows *sql.Rows) error {
		var r queueRecord
		var passed sql.Null[uint64]
		if err := rows.Scan(&next.queue, &next.seq, &r.count, &r.runs, &passed); err != nil {
			return err
		}
		n++
		if r.first = next.seq; passed.Valid && passed.V < r.last() {
			return nil
		}
		gone = append(gone, next)
		if !readRuns(r.runs, func(x pubRun) { refs = append(refs, ref{x.pub, next.queue}) }) {
			return s.corrupt("a queue, seq %d", r.first)
		}
		return nil
	}, pos.queue, pos.queue, pos.seq, maintainRows)
	if err := s.read(ctx, p, "queues"); err != nil {
		return next, false, err
	}
	refs = slices.CompactFunc(refs, func(a, b ref) bool { return a == b })
	slices.SortFunc(refs, func(a, b ref) int { return strings.Compare(a.pub+a.queue, b.pub+b.queue) })
	// The references first: should the rest not be done, they are found again by the records.
	p.many(dropRefs, nil, len(refs), func(i int, args []any) []any { return append(args, refs[i].pub, refs[i].queue) })
	p.many(dropQueued, nil, len(gone), func(i int, args []any) []any { return append(args, gone[i].queue, gone[i].seq) })
	err = s.read(ctx, p, "passed records of queues")
	return next, n == maintainRows, err
}

// dropOutbound removes what is known of messages that are passed.
func (s *Store) dropOutbound(ctx context.Context, pos queuePlace) (next queuePlace, more bool, err error) {
	var gone []queuePlace
	n := 0
	p := s.packet()
	p.get(walkOutbound, func(rows *sql.Rows) error {
		var passed sql.Null[uint64]
		if err := rows.Scan(&next.queue, &next.seq, &passed); err != nil {
			return err
		}
		if n++; !passed.Valid || passed.V >= next.seq {
			gone = append(gone, next)
		}
		return nil
	}, pos.queue, pos.queue, pos.seq, maintainRows)
	if err := s.read(ctx, p, "what was sent"); err != nil {
		return next, false, err
	}
	p.many(dropOutbound, nil, len(gone), func(i int, args []any) []any { return append(args, gone[i].queue, gone[i].seq) })
	err = s.read(ctx, p, "what was sent and is passed")
	return next, n == maintainRows, err
}

// dropPubs removes publications that no queue refers to: they are stored in one step with their references, and none is
// added later.
func (s *Store) dropPubs(ctx context.Context, pos string) (next string, more bool, err error) {
	var gone []string
	n := 0
	p := s.packet()
	p.get(walkPubs, func(r *sql.Rows) error {
		var used bool
		if err := r.Scan(&next, &used); err != nil {
			return err
		}
		if n++; !used {
			gone = append(gone, next)
		}
		return nil
	}, pos, maintainRows)
	if err := s.read(ctx, p, "publications"); err != nil {
		return "", false, err
	}
	p.names(dropPubs, nil, gone)
	err = s.read(ctx, p, "publications without a queue")
	return next, n == maintainRows, err
}

// dropNodes removes processes that have been gone for long.
func (s *Store) dropNodes(ctx context.Context) error {
	var n nodes
	p := s.packet()
	s.askNodes(p, &n)
	if err := s.read(ctx, p, "nodes"); err != nil {
		return err
	}
	var gone []string
	cutoff := n.now - nodesTTL.Milliseconds()
	for _, id := range sorted(n.seen) {
		if max(n.seen[id], -n.seen[id]) < cutoff {
			gone = append(gone, id)
		}
	}
	p.names(dropNodes, nil, gone, cutoff)
	return s.read(ctx, p, "nodes")
}
