package pebble

import (
	"context"
	"encoding/binary"
	"fmt"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
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
			w.val = wire.AppendWill(w.val, x, "")
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
	if i == nil || w.fenced[i.Client] {
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
		w.deleted.note(tabQueue)
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
		w.deleted.note(table)
		w.note(w.pb.Delete(it.Key(), nil))
	}
	return w.s.wrap(it.Error(), "%c %q", table, name)
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
		x, _, good := wire.DecodeWill(string(it.Key()[1:]), it.Value())
		if !good {
			return nil, s.corrupt("will of %q", it.Key()[1:])
		}
		list = append(list, x)
	}
	return list, s.wrap(it.Error(), "wills")
}
