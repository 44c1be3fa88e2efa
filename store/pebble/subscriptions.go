package pebble

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

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
			p = append(p, wire.PathDeeper)
		}
		return wire.AppendLevel(p, level)
	}
	next := []string{level, "+"}
	if top && strings.HasPrefix(topic, "$") { // [MQTT-4.7.2-1]
		next = next[:1]
	} else {
		m.take(append(join("#"), wire.PathEnd))
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
		m.take(append(bytes.Clone(p), wire.PathDeeper, '#', wire.PathEnd)) // a/# matches a [MQTT-4.7.1-2]
		m.take(append(p, wire.PathEnd))
	}
}

// exists reports whether there is a filter at a prefix or below.
func (m *filterWalk) exists(prefix []byte) bool {
	if m.it.SeekGEWithLimit(append(bytes.Clone(prefix), wire.PathDeeper), append(bytes.Clone(prefix), wire.PathBeyond)) != pdb.IterValid {
		return false
	}
	k := m.it.Key()
	return len(k) > len(prefix) && bytes.HasPrefix(k, prefix) && k[len(prefix)] <= wire.PathEnd
}

// take lists the subscriptions with exactly one filter.
func (m *filterWalk) take(prefix []byte) {
	limit := append(bytes.Clone(prefix[:len(prefix)-1]), wire.PathBeyond) // prefix ends with wire.PathEnd
	for st := m.it.SeekGEWithLimit(prefix, limit); st == pdb.IterValid && bytes.HasPrefix(m.it.Key(), prefix); st = m.it.NextWithLimit(limit) {
		filter, rest, ok := wire.PathOf(m.it.Key())
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

// keyFilter is where a subscription is found by topic.
func keyFilter(dst []byte, filter, client string) []byte {
	group, rest := store.SplitShared(filter)
	dst = append(append(wire.KeyPath(dst, tabFilter, rest), group...), 0)
	return append(dst, client...)
}
