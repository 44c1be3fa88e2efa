package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// Session returns a session that has not ended.
func (s *Store) Session(ctx context.Context, client string) (store.Session, error) {
	if err := s.enter(ctx); err != nil {
		return store.Session{}, err
	}
	defer s.life.RUnlock()
	x, err := s.session(ctx, client)
	if err != nil {
		return store.Session{}, err
	}
	if ends := x.Ends(); x.Client == "" || ends != 0 && ends <= time.Now().UnixMilli() {
		return store.Session{}, fmt.Errorf("session %q: %w", client, store.ErrNotFound)
	}
	return x.Session, nil
}

// session is a session as it is stored, ended or not; without a Client where there is none.
func (s *Store) session(ctx context.Context, client string) (x sessionRow, err error) {
	var n nodes
	p := s.packet()
	s.askNodes(p, &n)
	s.askSession(p, client, &x)
	if err := s.read(ctx, p, "session %q", client); err != nil {
		return x, err
	}
	s.settle(&x, &n)
	return x, nil
}

func (s *Store) askSession(p *packet, client string, x *sessionRow) {
	p.names(getSessions, func(r *sql.Rows) (err error) {
		*x, err = scanSession(r)
		return err
	}, []string{client})
}

// Sessions lists sessions.
func (s *Store) Sessions(ctx context.Context, after string, limit int) (list []store.Session, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	rows, _, err := s.sessions(ctx, after, limit)
	for i := range rows {
		list = append(list, rows[i].Session)
	}
	return list, err
}

// sessions lists rows, and which of them are cut off without anybody having noted it.
func (s *Store) sessions(ctx context.Context, after string, limit int) (list []sessionRow, cut []bool, err error) {
	var n nodes
	p := s.packet()
	s.askNodes(p, &n)
	p.get(listSessions, func(r *sql.Rows) error {
		x, err := scanSession(r)
		list = append(list, x)
		return err
	}, after, max(limit, 0))
	if err := s.read(ctx, p, "sessions"); err != nil {
		return nil, nil, err
	}
	for i := range list {
		cut = append(cut, s.settle(&list[i], &n))
	}
	return list, cut, nil
}

// Subscriptions lists what a session has subscribed to.
func (s *Store) Subscriptions(ctx context.Context, client string) ([]store.Subscription, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	list, err := s.subscriptions(ctx, s.db, client)
	return list, s.wrap(err, "subscriptions of %q", client)
}

func (s *Store) subscriptions(ctx context.Context, q querier, client string) (list []store.Subscription, err error) {
	for after := ""; ; {
		n := 0
		p := s.packet()
		p.get(listSubscriptions, func(r *sql.Rows) error {
			x := store.Subscription{Client: client}
			err := r.Scan(&x.Filter, &x.Options)
			list, after = append(list, x), x.Filter
			n++
			return err
		}, client, after, maxRows)
		if err := p.run(ctx, q); err != nil || n < maxRows {
			return list, err
		}
	}
}

// Queue tells where a session's queue stands.
func (s *Store) Queue(ctx context.Context, client string) (store.QueueState, error) {
	if err := s.enter(ctx); err != nil {
		return store.QueueState{}, err
	}
	defer s.life.RUnlock()
	var x sessionRow
	p := s.packet()
	s.askSession(p, client, &x)
	err := s.read(ctx, p, "queue of %q", client)
	return store.QueueState{Head: x.head, Passed: x.passed}, err
}

// queueRecord is what one batch has put into one queue.
type queueRecord struct {
	first, count uint64
	runs         []byte
}

func (r *queueRecord) last() uint64 { return r.first + r.count - 1 }

// ReadQueue reads a page of a queue.
func (s *Store) ReadQueue(
	ctx context.Context, client string, after uint64, limit int, dst []store.Queued,
) ([]store.Queued, error) {
	if err := s.enter(ctx); err != nil {
		return dst, err
	}
	defer s.life.RUnlock()
	var x sessionRow
	p := s.packet()
	s.askSession(p, client, &x)
	if err := s.read(ctx, p, "queue of %q", client); err != nil {
		return dst, err
	}
	q := queuePage{s: s, client: client, next: max(after, x.passed) + 1, head: x.head, limit: limit, dst: dst}
	for !q.full() && q.next <= q.head {
		var list []queueRecord
		p.get(getQueued, func(rows *sql.Rows) error {
			var r queueRecord
			err := rows.Scan(&r.first, &r.count, &r.runs)
			list = append(list, r)
			return err
		}, x.queue, x.queue, q.next, recordRound)
		if err := s.read(ctx, p, "queue of %q", client); err != nil {
			return dst, err
		}
		before := q.next
		if err := q.add(ctx, list); err != nil {
			return dst, err
		}
		if q.next == before {
			// What it waits for was passed, and removed, while this was looked for: unless the cursor says so it is lost.
			var now sessionRow
			s.askSession(p, client, &now)
			if err := s.read(ctx, p, "queue of %q", client); err != nil {
				return dst, err
			}
			if now.queue == x.queue && now.passed < q.next {
				return dst, s.corrupt("queue of %q: seq %d is missing", client, q.next)
			}
			return q.dst, nil
		}
	}
	return q.dst, nil
}

// queuePage is a page of a queue being filled.
type queuePage struct {
	s      *Store
	client string
	next   uint64 // seq wanted
	head   uint64
	limit  int
	n      int
	bytes  int
	dst    []store.Queued
}

func (q *queuePage) full() bool { return q.n >= q.limit || q.bytes >= pageBytes }

// queuePart is what is wanted of a run.
type queuePart struct {
	pubRun
	first, skip, n uint64
	list           []store.Publication
}

// add takes what is wanted from records.
func (q *queuePage) add(ctx context.Context, list []queueRecord) error {
	var parts []queuePart
	next, left := q.next, uint64(q.limit-q.n)
	for _, r := range list {
		seq := r.first
		ok := readRuns(r.runs, func(x pubRun) {
			first := seq
			if seq += x.count; seq <= next || next > q.head || left == 0 || next < first {
				return
			}
			skip := next - first
			n := min(x.count-skip, left, q.head-next+1)
			x.options = slices.Clone(x.options)
			parts = append(parts, queuePart{pubRun: x, first: next, skip: skip, n: n})
			next += n
			left -= n
		})
		if !ok {
			return q.s.corrupt("queue of %q, seq %d", q.client, r.first)
		}
	}
	for round := range slices.Chunk(parts, chunkRound) {
		if q.full() {
			break
		}
		if done, err := q.load(ctx, round); err != nil || done {
			return err
		}
	}
	return nil
}

// load reads the publications of parts; done says that some are not there any more.
func (q *queuePage) load(ctx context.Context, parts []queuePart) (done bool, err error) {
	at := map[string][]*queuePart{}
	for i := range parts {
		at[parts[i].pub] = append(at[parts[i].pub], &parts[i])
	}
	p := q.s.packet()
	p.names(getPubs, func(r *sql.Rows) error {
		var pub string
		var body sql.RawBytes
		if err := r.Scan(&pub, &body); err != nil {
			return err
		}
		for _, x := range at[pub] {
			i := int(x.index + x.skip)
			var err error
			if x.list, err = wire.ParsePubs(body, i, i+int(x.n)); err != nil {
				return q.s.corrupt("publications %x: %v", pub, err)
			}
		}
		return nil
	}, sorted(at))
	if err := q.s.read(ctx, p, "queue of %q", q.client); err != nil {
		return false, err
	}
	for i := range parts {
		x := &parts[i]
		if x.list == nil {
			return true, nil
		}
		for j := range x.list {
			if q.full() {
				return true, nil
			}
			m := &x.list[j]
			q.dst = append(q.dst, store.Queued{Seq: q.next, QoS: min(x.qos, m.QoS), Options: x.options, Publication: m})
			q.next++
			q.n++
			q.bytes += len(m.Payload)
		}
	}
	return false, nil
}

// Outbound lists what is known of what was sent.
func (s *Store) Outbound(ctx context.Context, client string) (list []store.Outbound, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	var x sessionRow
	p := s.packet()
	s.askSession(p, client, &x)
	if err := s.read(ctx, p, "what was sent to %q", client); err != nil || x.Client == "" {
		return nil, err
	}
	for after := x.passed; ; {
		n := 0
		p.get(getOutbound, func(r *sql.Rows) error {
			o := store.Outbound{Client: client}
			err := r.Scan(&o.Seq, &o.ID, &o.Received, &o.Done)
			list, after = append(list, o), o.Seq
			n++
			return err
		}, x.queue, after, maxRows)
		if err := s.read(ctx, p, "what was sent to %q", client); err != nil || n < maxRows {
			return list, err
		}
	}
}

// Inbound lists the packet ids that wait for PUBREL.
func (s *Store) Inbound(ctx context.Context, client string) (ids []uint16, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	var x sessionRow
	p := s.packet()
	s.askSession(p, client, &x)
	if err := s.read(ctx, p, "what %q has sent", client); err != nil || x.Client == "" {
		return nil, err
	}
	p.get(getInbound, func(r *sql.Rows) error {
		var id uint16
		err := r.Scan(&id)
		ids = append(ids, id)
		return err
	}, x.queue)
	err = s.read(ctx, p, "what %q has sent", client)
	return ids, err
}

// retainedRound is how many retained messages are read at once.
const retainedRound = 32

// Retained lists the retained messages that a filter matches, in the order of their levels. What does not match is
// passed over from level to level, not one by one.
func (s *Store) Retained(ctx context.Context, filter, after string, limit int, now int64) (list []*store.Publication, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	m := wire.NewPathMatcher(filter)
	from := ""
	if after != "" {
		from = path(after) + "\x00"
	}
	bytes := 0
	for ended := false; !ended && len(list) < limit && bytes < pageBytes; {
		n := 0
		p := s.packet()
		p.get(listRetained, func(r *sql.Rows) error {
			var key string
			var body sql.RawBytes
			if err := r.Scan(&key, &body); err != nil {
				return err
			}
			if n++; ended || key < from || len(list) >= limit || bytes >= pageBytes {
				return nil
			}
			match, seek := m.Look([]byte("e" + key)) // keys have their table in front there
			switch {
			case !match && seek == nil:
				ended = true
				return nil
			case !match:
				from = string(seek[1:])
				return nil
			}
			from = key + "\x00"
			d := wire.Decoder{B: body}
			x, good := wire.ReadWhole(&d)
			if !good {
				return s.corrupt("retained message %q", key)
			}
			if x.Expires == 0 || x.Expires > now {
				list = append(list, x)
				bytes += len(x.Payload)
			}
			return nil
		}, from, retainedRound)
		if err := s.read(ctx, p, "retained messages"); err != nil {
			return nil, err
		}
		ended = ended || n < retainedRound
	}
	return list, nil
}

// RetainedCount is the number of retained messages.
func (s *Store) RetainedCount(ctx context.Context) (n uint64, err error) {
	if err := s.enter(ctx); err != nil {
		return 0, err
	}
	defer s.life.RUnlock()
	p := s.packet()
	p.get(getCount, func(r *sql.Rows) error { return r.Scan(&n) }, countRetained)
	err = s.read(ctx, p, "number of retained messages")
	return n, err
}

// Wills lists wills by client id.
func (s *Store) Wills(ctx context.Context, after string, limit int) (list []store.Will, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	var n nodes
	p := s.packet()
	s.askNodes(p, &n)
	p.get(listWills, func(r *sql.Rows) error {
		var client string
		var body sql.RawBytes
		if err := r.Scan(&client, &body); err != nil {
			return err
		}
		x, holder, good := wire.DecodeWill(client, body)
		if !good {
			return s.corrupt("will of %q", client)
		}
		x.Held = holder != s.node && s.lives(&n, holder)
		list = append(list, x)
		return nil
	}, after, max(limit, 0))
	err = s.read(ctx, p, "wills")
	return list, err
}
