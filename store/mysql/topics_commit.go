package mysql

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// Lengths of what ordinary topics are known by, as the schema has them.
const (
	clientBytes = 255
	filterBytes = 2600
	pathBytes   = 2300 // of a topic or a filter as a key, where control characters take two bytes
	shareBytes  = 500
)

// The states of a session's row. An online one is so for as long as its node is alive.
const (
	sessionOffline = iota
	sessionOnline
	sessionCut
)

// sessionRow is a session as it is stored.
type sessionRow struct {
	store.Session
	state        int
	node         string
	queue        string // names the session's queue: another one for each session, so that none begins where one has ended
	head, passed uint64
}

func scanSession(r *sql.Rows) (x sessionRow, err error) {
	err = r.Scan(&x.Client, &x.User, &x.Expiry, &x.Since, &x.state, &x.node, &x.queue, &x.head, &x.passed)
	return x, err
}

// nodes are the processes that have the database open, by when they were last heard of on the database's clock; negative:
// they have closed it then.
type nodes struct {
	seen map[string]int64
	now  int64
}

func (s *Store) askNodes(p *packet, n *nodes) {
	n.seen = map[string]int64{}
	p.get(listNodes, func(r *sql.Rows) error {
		var id string
		var seen int64
		err := r.Scan(&id, &seen, &n.now)
		n.seen[id] = seen
		return err
	}, "", maxRows)
}

// lives reports whether a process has been heard of lately. Where the database was away for all, who is back first finds
// everybody silent: it gives them time, as much as if they had been silent since it was cut off itself.
func (s *Store) lives(n *nodes, node string) bool {
	ttl := s.opts.nodeTTL
	s.owner.mu.Lock()
	switch away := time.Since(s.owner.beaten); {
	case s.owner.beaten.IsZero():
	case away > ttl/2: // its own next beat is to come
		ttl += away
	case !s.owner.back.IsZero() && time.Since(s.owner.back) < ttl:
		ttl += time.Since(s.owner.cutOff)
	}
	s.owner.mu.Unlock()
	seen, known := n.seen[node]
	return known && seen > 0 && seen > n.now-ttl.Milliseconds()
}

// settle fills in what a row says of the session now; cut reports that its node is gone and nobody has noted it. A node
// that was silent for so long that others have noted it, and is back, has kept its clients: what has become of them
// meanwhile it says first.
func (s *Store) settle(x *sessionRow, n *nodes) (cut bool) {
	if x.state == sessionOffline {
		return false
	}
	if x.node != "" && (x.node == s.node || s.lives(n, x.node)) {
		x.Online = true
		return false
	}
	noted := x.Since
	seen, known := n.seen[x.node]
	if !known {
		seen = x.Since // it was connected then
	}
	since := max(seen, -seen)
	if x.state == sessionOnline {
		since = max(since, s.opened)
	} else {
		since = max(since, noted)
	}
	x.Cut, x.Since = true, since
	return x.state == sessionOnline || since > noted
}

// queueHead is a session and its queue as this batch has made them so far; locked.
type queueHead struct {
	sessionRow
	stored bool // there is a row
	exists bool // there is a session
	dirty  bool

	first uint64 // seq of the batch's first entry; 0: it has none
	runs  []byte
	run   pubRun
	pub   string // of the last closed run
	refs  map[string]bool
}

// pubRun is a stretch of a queue: publications that follow each other, for this queue with the same options.
type pubRun struct {
	count   uint64
	pub     string
	index   uint64
	qos     byte
	options []byte
}

func (h *queueHead) closeRun() {
	r := &h.run
	if r.count == 0 {
		return
	}
	h.runs = wire.AppendPubRun(h.runs, &wire.PubRun{Count: r.count, Pub: r.pub, Index: r.index, QoS: r.qos, Options: r.options}, h.pub)
	h.pub = r.pub
	h.run = pubRun{}
}

// readRuns calls take for each run of a record.
func readRuns(value []byte, take func(pubRun)) bool {
	d := wire.Decoder{B: value}
	pub := ""
	for d.Off < len(d.B) {
		r := pubRun{count: d.Uvarint()}
		if name := d.Str(); name != "" {
			pub = name
		}
		r.pub, r.index, r.qos = pub, d.Uvarint(), d.Byte()
		if r.options = d.Bytes(); d.Bad || r.count == 0 || pub == "" {
			return false
		}
		take(r)
	}
	return true
}

func (h *queueHead) over(now int64) bool {
	ends := h.Ends()
	return !h.exists || ends != 0 && ends <= now
}

// topicWriter is the part of a writer that concerns ordinary topics.
type topicWriter struct {
	w       *writer
	nodes   nodes
	queues  map[string]*queueHead
	fed     []*queueHead
	pubs    []*store.Publication // of the publications being gathered
	pub     string               // their name
	named   int                  // names given
	bytes   int
	keys    []string // of publications, with bodies
	bodies  [][]byte
	stored  map[string]bool               // paths that have a retained message
	retain  map[string]*store.Publication // by path; nil: none is to be there
	count   int64                         // retained messages; known where they are limited
	counted int64                         // how many more there are
}

// topicsIn reports whether a batch has anything to do with ordinary topics.
func topicsIn(b *store.Batch) bool {
	t := &b.TopicBatch
	if len(t.Sessions)+len(t.Subscribes)+len(t.Unsubscribes)+len(t.Passed)+len(t.Outbound)+len(t.Inbound)+len(t.Wills)+len(t.Publishes) > 0 {
		return true
	}
	return slices.ContainsFunc(b.Sends, func(m *store.Send) bool { return m.Inbound != nil })
}

// checkTopics refuses what cannot be stored.
func checkTopics(b *store.TopicBatch, note func(error)) {
	for i := range b.Sessions {
		note(checkName("client", b.Sessions[i].Client, clientBytes))
		if u := b.Sessions[i].User; len(u) > nameBytes {
			note(fmt.Errorf("store.mysql: user %q is not a name", u[:nameBytes]))
		}
	}
	for i := range b.Subscribes {
		x := &b.Subscribes[i]
		note(checkName("client", x.Client, clientBytes))
		share, rest := store.SplitShared(x.Filter)
		if len(x.Filter) > filterBytes || len(share) > shareBytes || len(wire.KeyPath(nil, 0, rest))-1 > pathBytes {
			note(fmt.Errorf("store.mysql: a filter of %d bytes", len(x.Filter)))
		}
	}
	for i := range b.Wills {
		note(checkName("client", b.Wills[i].Client, clientBytes))
	}
}

func path(topic string) string { return string(wire.KeyPath(nil, 0, topic)[1:]) }

// lockTopics asks for the sessions that the batch concerns, and for the retained messages.
func (w *writer) lockTopics(b *store.Batch) {
	t := &w.topics
	*t = topicWriter{w: w, queues: map[string]*queueHead{}, stored: map[string]bool{}, retain: map[string]*store.Publication{}}
	if !topicsIn(b) {
		return
	}
	want := func(client string) {
		if client != "" && len(client) <= clientBytes {
			t.queues[client] = &queueHead{sessionRow: sessionRow{Session: store.Session{Client: client}}}
		}
	}
	inbound := func(i *store.Inbound) {
		if i != nil {
			want(i.Client)
		}
	}
	for i := range b.Sessions {
		want(b.Sessions[i].Client)
	}
	for _, list := range [][]store.Subscription{b.Subscribes, b.Unsubscribes} {
		for i := range list {
			want(list[i].Client)
		}
	}
	for i := range b.Passed {
		want(b.Passed[i].Client)
	}
	for i := range b.Outbound {
		want(b.Outbound[i].Client)
	}
	for i := range b.TopicBatch.Inbound {
		inbound(&b.TopicBatch.Inbound[i])
	}
	for _, m := range b.Sends {
		inbound(m.Inbound)
	}
	retained := map[string]bool{}
	for _, p := range b.Publishes {
		inbound(p.Inbound)
		for i := range p.Queues {
			want(p.Queues[i].Client)
		}
		if p.Retain {
			retained[path(p.Topic)] = true
		}
	}
	w.askQueues()
	if len(retained) == 0 {
		return
	}
	w.q.names(lockRetained, func(r *sql.Rows) error {
		var key string
		err := r.Scan(&key)
		t.stored[key] = true
		return err
	}, sorted(retained))
	if w.s.opts.Retention.Topics.Retained > 0 {
		w.q.get(lockCount, func(r *sql.Rows) error { return r.Scan(&t.count) }, countRetained)
	}
}

const countRetained = "retained"

// askQueues locks the sessions of w.topics.queues.
func (w *writer) askQueues() {
	t := &w.topics
	w.s.askNodes(w.q, &t.nodes)
	w.q.names(lockSessions, func(r *sql.Rows) error {
		x, err := scanSession(r)
		if err != nil {
			return err
		}
		h := t.queues[x.Client]
		h.sessionRow, h.stored, h.exists = x, true, true
		return nil
	}, sorted(t.queues))
}

// settleTopics looks at what was locked, and reads what of sessions that end must be known.
func (w *writer) settleTopics(ctx context.Context, b *store.TopicBatch) error {
	t := &w.topics
	for _, h := range t.queues {
		w.s.settle(&h.sessionRow, &t.nodes)
	}
	for i := range b.Sessions {
		x := &b.Sessions[i]
		if x.Over {
			if err := t.end(ctx, t.queues[x.Client]); err != nil {
				return err
			}
			continue
		}
		t.session(x)
	}
	return nil
}

// session takes a session's record over.
func (t *topicWriter) session(x *store.Session) {
	h := t.queues[x.Client]
	if !h.exists {
		var id [16]byte
		_, _ = rand.Read(id[:])
		h.queue, h.head, h.passed = string(id[:]), 0, 0
	}
	h.Session, h.exists, h.dirty = *x, true, true
	h.state, h.node = sessionOffline, ""
	switch {
	case x.Online:
		h.state, h.node = sessionOnline, t.w.s.node
	case x.Cut:
		h.state = sessionCut
	}
}

// end removes a session and its subscriptions. What its queue holds is nobody's then, and Maintain removes it.
func (t *topicWriter) end(ctx context.Context, h *queueHead) error {
	if !h.exists {
		return nil
	}
	list, err := t.w.s.subscriptions(ctx, t.w.c, h.Client)
	if err != nil {
		return err
	}
	t.drop(list)
	t.w.later.do(dropInbounds, h.queue)
	t.w.s.counters.lost.Add(int64(h.head - h.passed))
	*h = queueHead{sessionRow: sessionRow{Session: store.Session{Client: h.Client}}, stored: h.stored, dirty: true}
	return nil
}

// drop removes subscriptions.
func (t *topicWriter) drop(list []store.Subscription) {
	q := t.w.later
	list = slices.Clone(list)
	slices.SortFunc(list, compareSubscriptions)
	q.many(dropSubscriptions, nil, len(list), func(i int, args []any) []any { return append(args, list[i].Client, list[i].Filter) })
	seen := slices.DeleteFunc(list, func(x store.Subscription) bool { return x.Hidden() })
	q.many(dropFilters, nil, len(seen), func(i int, args []any) []any {
		share, rest := store.SplitShared(seen[i].Filter)
		return append(args, path(rest), share, seen[i].Client)
	})
}

func compareSubscriptions(a, b store.Subscription) int {
	return cmp.Or(strings.Compare(a.Client, b.Client), strings.Compare(a.Filter, b.Filter))
}

// subscribe adds subscriptions of sessions that exist.
func (t *topicWriter) subscribe(given []store.Subscription) {
	var list []store.Subscription
	for _, x := range given {
		if t.queues[x.Client].exists {
			list = append(list, x)
		}
	}
	slices.SortStableFunc(list, compareSubscriptions)
	q := t.w.later
	options := func(x *store.Subscription) []byte { return append([]byte{}, x.Options...) }
	q.many(setSubscriptions, nil, len(list), func(i int, args []any) []any {
		return append(args, list[i].Client, list[i].Filter, options(&list[i]))
	})
	seen := slices.DeleteFunc(list, func(x store.Subscription) bool { return x.Hidden() })
	q.many(setFilters, nil, len(seen), func(i int, args []any) []any {
		share, rest := store.SplitShared(seen[i].Filter)
		return append(args, path(rest), share, seen[i].Client, options(&seen[i]))
	})
}

// apply does all of the batch but its sessions.
func (t *topicWriter) apply(b *store.TopicBatch) {
	t.subscribe(b.Subscribes)
	t.drop(slices.DeleteFunc(slices.Clone(b.Unsubscribes), func(x store.Subscription) bool {
		return x.Client == "" || len(x.Client) > clientBytes || len(x.Filter) > filterBytes
	}))
	for i := range b.Passed {
		if h := t.queues[b.Passed[i].Client]; h != nil && h.exists {
			h.moveTo(b.Passed[i].Seq)
		}
	}
	t.outbound(b.Outbound)
	for i := range b.Inbound {
		t.inbound(&b.Inbound[i])
	}
	wills := map[string]*store.Will{}
	for i := range b.Wills {
		wills[b.Wills[i].Client] = &b.Wills[i]
	}
	var kept []*store.Will
	for _, client := range sorted(wills) {
		if x := wills[client]; x.Remove {
			t.w.later.do(dropWill, client)
		} else {
			kept = append(kept, x)
		}
	}
	t.w.later.many(setWills, nil, len(kept), func(i int, args []any) []any {
		return append(args, kept[i].Client, wire.AppendWill(nil, kept[i], t.w.s.node))
	})
	now := time.Now().UnixMilli()
	for _, p := range b.Publishes {
		t.publish(p, now)
	}
}

func (t *topicWriter) outbound(list []store.Outbound) {
	var kept []store.Outbound
	for _, o := range list {
		if h := t.queues[o.Client]; h != nil && h.exists && o.Seq > h.passed {
			kept = append(kept, o)
		}
	}
	slices.SortStableFunc(kept, func(a, b store.Outbound) int {
		return cmp.Or(strings.Compare(a.Client, b.Client), cmp.Compare(a.Seq, b.Seq))
	})
	t.w.later.many(setOutbound, nil, len(kept), func(i int, args []any) []any {
		o := &kept[i]
		return append(args, t.queues[o.Client].queue, o.Seq, uint64(o.ID), o.Received, o.Done)
	})
}

// inbound notes a packet id, or forgets it. nil is none.
func (t *topicWriter) inbound(i *store.Inbound) {
	if i == nil || t.w.fenced[i.Client] {
		return
	}
	h := t.queues[i.Client]
	switch {
	case h == nil || !h.exists:
	case i.Released:
		t.w.later.do(dropInbound, h.queue, uint64(i.ID))
	default:
		t.w.later.do(addInbound, h.queue, uint64(i.ID))
	}
}
