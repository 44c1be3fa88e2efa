package pebble

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
)

// topics applies the part of a batch that concerns ordinary topics.
func (w *writer) topics(b *store.TopicBatch) error {
	now := milliseconds()
	for i := range b.Sessions {
		x := &b.Sessions[i]
		err := error(nil)
		if x.Over {
			err = w.endSession(x.Client)
		} else {
			err = w.session(x)
		}
		if err != nil {
			return err
		}
	}
	for i := range b.Subscribes {
		if err := w.subscribe(&b.Subscribes[i], false); err != nil {
			return err
		}
	}
	for i := range b.Unsubscribes {
		if err := w.subscribe(&b.Unsubscribes[i], true); err != nil {
			return err
		}
	}
	for i := range b.Passed {
		h, err := w.queue(b.Passed[i].Client)
		if err != nil {
			return err
		}
		if h.exists {
			w.moveTo(h, b.Passed[i].Seq)
		}
	}
	if err := w.inflight(b); err != nil {
		return err
	}
	for i := range b.Wills {
		x := &b.Wills[i]
		w.key = append(append(w.key[:0], tabWill), x.Client...)
		w.val = w.val[:0]
		if !x.Remove {
			w.val = appendWill(w.val, x)
		}
		if err := w.put(x.Remove, w.val); err != nil {
			return err
		}
	}
	for _, p := range b.Publishes {
		if err := w.publish(p, now); err != nil {
			return err
		}
	}
	return w.flushQueues()
}

const (
	outReceived = 1 << iota
	outDone
)

// inflight keeps what is on its way between a session's client and the server.
func (w *writer) inflight(b *store.TopicBatch) error {
	for _, o := range b.Outbound {
		h, err := w.queue(o.Client)
		if err != nil {
			return err
		}
		if !h.exists || o.Seq <= h.passed {
			continue
		}
		w.val = append(binary.BigEndian.AppendUint16(w.val[:0], o.ID), 0)
		if o.Received {
			w.val[2] = outReceived
		}
		if o.Done {
			w.val[2] |= outDone
		}
		w.key = keyNum(w.key[:0], tabOutbound, o.Client, o.Seq)
		if err := w.put(false, w.val); err != nil {
			return err
		}
	}
	for i := range b.Inbound {
		if err := w.inbound(&b.Inbound[i]); err != nil {
			return err
		}
	}
	return nil
}

// inbound notes a packet id, or forgets it. nil is none.
func (w *writer) inbound(i *store.Inbound) error {
	if i == nil {
		return nil
	}
	h, err := w.queue(i.Client)
	if err != nil || !h.exists {
		return err
	}
	w.key = binary.BigEndian.AppendUint16(keyName(w.key[:0], tabInbound, i.Client), i.ID)
	return w.put(i.Released, nil)
}

// session writes a session's record.
func (w *writer) session(s *store.Session) error {
	if err := checkName("client", s.Client); err != nil {
		return err
	}
	h, err := w.queue(s.Client)
	if err != nil {
		return err
	}
	h.session, h.exists = *s, true
	w.key = append(append(w.key[:0], tabSession), s.Client...)
	w.val = appendSession(w.val[:0], s, w.s.boot)
	return w.put(false, w.val)
}

// subscribe keeps a subscription, or removes it.
func (w *writer) subscribe(x *store.Subscription, remove bool) error {
	h, err := w.queue(x.Client)
	if err != nil {
		return err
	}
	if !h.exists && !remove {
		return nil
	}
	w.key = keyPair(w.key[:0], tabSub, x.Client, x.Filter)
	if err := w.put(remove, x.Options); err != nil || x.Hidden() {
		return err
	}
	w.key = keyFilter(w.key[:0], x.Filter, x.Client)
	return w.put(remove, x.Options)
}

// endSession removes a session and all that belongs to it.
func (w *writer) endSession(client string) error {
	h, err := w.queue(client)
	if err != nil {
		return err
	}
	if !h.exists {
		return nil
	}
	subs, err := w.s.subscriptions(client)
	if err != nil {
		return err
	}
	for i := range subs {
		if err := w.subscribe(&subs[i], true); err != nil {
			return err
		}
	}
	q, err := w.s.viewQueue(w.s.db, client, ^uint64(0))
	if err != nil {
		return err
	}
	defer q.it.Close()
	for ok := q.it.First(); ok; ok = q.it.Next() {
		r, err := w.s.queueRecord(q.it, client)
		if err != nil {
			return err
		}
		w.dropRecord(q.it.Key(), r, client)
	}
	if err := q.it.Error(); err != nil {
		return w.s.wrap(err, "queue of %q", client)
	}
	for _, table := range []byte{tabOutbound, tabInbound} {
		if err := w.deleteNames(table, client); err != nil {
			return err
		}
	}
	for _, table := range []byte{tabSession, tabPassed} {
		w.key = append(append(w.key[:0], table), client...)
		w.note(w.pb.Delete(w.key, nil))
	}
	w.lost += h.seq - h.passed
	*h = queueHead{client: client}
	return nil
}

// deleteNames deletes the keys of one name one by one: there are few, and readers pay for each range deletion.
func (w *writer) deleteNames(table byte, name string) error {
	it, err := w.s.names(table, name)
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		w.note(w.pb.Delete(it.Key(), nil))
	}
	return w.s.wrap(it.Error(), "%c %q", table, name)
}

// retain keeps a publication as its topic's retained message, or removes that.
func (w *writer) retain(p *store.Publish) error {
	w.key = keyPath(w.key[:0], tabRetained, p.Topic)
	had, known := w.retainedNow[p.Topic]
	if !known {
		v, err := w.s.get(w.key)
		if err != nil {
			return err
		}
		had = v != nil
	}
	keep := len(p.Payload) > 0
	if limit := w.s.opts.Retention.Topics.Retained; keep && !had && limit > 0 && w.retained >= limit {
		p.Err = fmt.Errorf("retained messages: %w", store.ErrFull)
		return nil
	}
	w.retainedNow[p.Topic] = keep
	switch {
	case keep && !had:
		w.retained++
	case !keep && had:
		w.retained--
	}
	if !keep && !had {
		return nil
	}
	w.val = w.val[:0]
	if keep {
		w.val = appendWhole(w.val, p.Publication)
	}
	return w.put(!keep, w.val)
}

// Session returns a session that has not ended.
func (s *Store) Session(ctx context.Context, client string) (store.Session, error) {
	if err := s.enter(ctx); err != nil {
		return store.Session{}, err
	}
	defer s.life.RUnlock()
	v, err := s.get(append([]byte{tabSession}, client...))
	if err != nil {
		return store.Session{}, err
	}
	if v != nil {
		x, _, ok := decodeSession(client, v, s.boot, s.opened)
		if !ok {
			return x, s.corrupt("session %q", client)
		}
		if ends := x.Ends(); ends == 0 || ends > milliseconds() {
			return x, nil
		}
	}
	return store.Session{}, fmt.Errorf("session %q: %w", client, store.ErrNotFound)
}

// Sessions lists sessions.
func (s *Store) Sessions(ctx context.Context, after string, limit int) (list []store.Session, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	it, err := s.db.NewIter(&pdb.IterOptions{
		LowerBound: append(append([]byte{tabSession}, after...), 0), UpperBound: []byte{tabSession + 1},
	})
	if err != nil {
		return nil, s.wrap(err, "sessions")
	}
	defer it.Close()
	for ok := it.First(); ok && len(list) < limit; ok = it.Next() {
		x, _, good := decodeSession(string(it.Key()[1:]), it.Value(), s.boot, s.opened)
		if !good {
			return nil, s.corrupt("session %q", it.Key()[1:])
		}
		list = append(list, x)
	}
	return list, s.wrap(it.Error(), "sessions")
}

// Subscriptions lists a session's subscriptions.
func (s *Store) Subscriptions(ctx context.Context, client string) ([]store.Subscription, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	return s.subscriptions(client)
}

func (s *Store) subscriptions(client string) (list []store.Subscription, err error) {
	it, err := s.names(tabSub, client)
	if err != nil {
		return nil, err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		list = append(list, store.Subscription{
			Client: client, Filter: string(it.Key()[len(client)+2:]), Options: bytes.Clone(it.Value()),
		})
	}
	return list, s.wrap(it.Error(), "subscriptions of %q", client)
}

// Match walks down the filters that there are, level by level: those that have the topic's level, + or # next.
func (s *Store) Match(ctx context.Context, topic string) ([]store.Subscription, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	it, err := s.db.NewIter(&pdb.IterOptions{LowerBound: []byte{tabFilter}, UpperBound: []byte{tabFilter + 1}})
	if err != nil {
		return nil, s.wrap(err, "subscriptions")
	}
	defer it.Close()
	if !it.First() {
		return nil, s.wrap(it.Error(), "subscriptions")
	}
	m := filterWalk{it: it}
	m.walk([]byte{tabFilter}, topic, true)
	return m.list, s.wrap(errors.Join(m.err, it.Error()), "subscriptions to %q", topic)
}

type filterWalk struct {
	it   *pdb.Iterator
	list []store.Subscription
	err  error
}

// walk goes on below a prefix with what is left of the topic.
func (m *filterWalk) walk(prefix []byte, topic string, top bool) {
	level, rest, more := strings.Cut(topic, "/")
	join := func(level string) []byte {
		p := bytes.Clone(prefix)
		if !top {
			p = append(p, pathDeeper)
		}
		return appendLevel(p, level)
	}
	next := []string{level, "+"}
	if top && strings.HasPrefix(topic, "$") { // [MQTT-4.7.2-1]
		next = next[:1]
	} else {
		m.take(append(join("#"), pathEnd))
	}
	for _, l := range next {
		p := join(l)
		if !m.exists(p) {
			continue
		}
		if more {
			m.walk(p, rest, false)
			continue
		}
		m.take(append(bytes.Clone(p), pathDeeper, '#', pathEnd)) // a/# matches a [MQTT-4.7.1-2]
		m.take(append(p, pathEnd))
	}
}

// exists reports whether there is a filter at a prefix or below.
func (m *filterWalk) exists(prefix []byte) bool {
	if !m.it.SeekGE(append(prefix, pathDeeper)) {
		return false
	}
	k := m.it.Key()
	return len(k) > len(prefix) && bytes.HasPrefix(k, prefix) && k[len(prefix)] <= pathEnd
}

// take lists the subscriptions with exactly one filter.
func (m *filterWalk) take(prefix []byte) {
	for ok := m.it.SeekGE(prefix); ok && bytes.HasPrefix(m.it.Key(), prefix); ok = m.it.Next() {
		filter, rest, ok := pathOf(m.it.Key())
		group, client, ok2 := bytes.Cut(rest, []byte{0})
		if !ok || !ok2 {
			m.err = fmt.Errorf("%w: key %q", store.ErrCorrupt, m.it.Key())
			return
		}
		if len(group) > 0 {
			filter = "$share/" + string(group) + "/" + filter
		}
		m.list = append(m.list, store.Subscription{Client: string(client), Filter: filter, Options: bytes.Clone(m.it.Value())})
	}
}

// Outbound lists what is known of what was sent.
func (s *Store) Outbound(ctx context.Context, client string) (list []store.Outbound, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	q, err := s.viewQueue(s.db, client, s.durable.Load())
	if err == nil {
		err = q.it.Close()
	}
	if err != nil {
		return nil, s.wrap(err, "what was sent to %q", client)
	}
	it, err := s.db.NewIter(&pdb.IterOptions{
		LowerBound: keyNum(nil, tabOutbound, client, q.Passed+1), UpperBound: after(keyName(nil, tabOutbound, client)),
	})
	if err != nil {
		return nil, s.wrap(err, "what was sent to %q", client)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		v := it.Value()
		if len(v) != 3 {
			return nil, s.corrupt("what was sent to %q", client)
		}
		list = append(list, store.Outbound{
			Client: client, Seq: tail(it.Key()), ID: binary.BigEndian.Uint16(v), Received: v[2]&outReceived != 0, Done: v[2]&outDone != 0,
		})
	}
	return list, s.wrap(it.Error(), "what was sent to %q", client)
}

// Inbound lists the packet ids that wait for PUBREL.
func (s *Store) Inbound(ctx context.Context, client string) (ids []uint16, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	it, err := s.names(tabInbound, client)
	if err != nil {
		return nil, err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		k := it.Key()
		ids = append(ids, binary.BigEndian.Uint16(k[len(k)-2:]))
	}
	return ids, s.wrap(it.Error(), "what %q has sent", client)
}

// Retained lists retained messages in the order of their keys.
func (s *Store) Retained(ctx context.Context, filter, after string, limit int, now int64) (list []*store.Publication, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	it, err := s.db.NewIter(&pdb.IterOptions{LowerBound: []byte{tabRetained}, UpperBound: []byte{tabRetained + 1}})
	if err != nil {
		return nil, s.wrap(err, "retained messages")
	}
	defer it.Close()
	m := newPathMatcher(filter)
	start := []byte{tabRetained}
	if after != "" {
		start = append(keyPath(nil, tabRetained, after), 0)
	}
	bytes := 0
	for ok := it.SeekGE(start); ok && len(list) < limit && bytes < pageBytes; {
		match, seek := m.look(it.Key())
		if !match {
			if seek == nil {
				break
			}
			ok = it.SeekGE(seek)
			continue
		}
		d := decoder{b: it.Value()}
		p, good := d.whole()
		if !good {
			topic, _, _ := pathOf(it.Key())
			return nil, s.corrupt("retained message of %q", topic)
		}
		if p.Expires == 0 || p.Expires > now {
			list = append(list, p)
			bytes += len(p.Payload)
		}
		ok = it.Next()
	}
	return list, s.wrap(it.Error(), "retained messages")
}

// RetainedCount counts them.
func (s *Store) RetainedCount(ctx context.Context) (uint64, error) {
	if err := s.enter(ctx); err != nil {
		return 0, err
	}
	defer s.life.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.retained, nil
}

// Wills lists wills by client id.
func (s *Store) Wills(ctx context.Context, after string, limit int) (list []store.Will, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	it, err := s.db.NewIter(&pdb.IterOptions{
		LowerBound: append(append([]byte{tabWill}, after...), 0), UpperBound: []byte{tabWill + 1},
	})
	if err != nil {
		return nil, s.wrap(err, "wills")
	}
	defer it.Close()
	for ok := it.First(); ok && len(list) < limit; ok = it.Next() {
		x, good := decodeWill(string(it.Key()[1:]), it.Value())
		if !good {
			return nil, s.corrupt("will of %q", it.Key()[1:])
		}
		list = append(list, x)
	}
	return list, s.wrap(it.Error(), "wills")
}
