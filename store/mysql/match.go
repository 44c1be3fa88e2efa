package mysql

import (
	"context"
	"database/sql"
	"slices"
	"strings"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// Match walks down the levels of the filters that there are: one look at the database for each level of the topic.
func (s *Store) Match(ctx context.Context, topic string) ([]store.Subscription, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	m := filterWalk{s: s}
	prefixes := []string{""}
	for i, level := range strings.Split(topic, "/") {
		var next []string
		wild := i > 0 || !strings.HasPrefix(topic, "$") // [MQTT-4.7.2-1]
		p := s.packet()
		for _, prefix := range prefixes {
			if i > 0 {
				prefix += string(rune(wire.PathDeeper))
			}
			if wild {
				m.take(p, prefix+"#")
			}
			for _, l := range []string{string(wire.AppendLevel(nil, level)), "+"} {
				if l == "+" && !wild {
					continue
				}
				at := prefix + l
				p.get(anyFilter, func(r *sql.Rows) error {
					next = append(next, at)
					var n int
					return r.Scan(&n)
				}, at+string(rune(wire.PathDeeper)), at+string(rune(wire.PathBeyond)))
			}
		}
		if err := s.read(ctx, p, "subscriptions to %q", topic); err != nil {
			return nil, err
		}
		prefixes = slices.Compact(next)
	}
	p := s.packet()
	for _, at := range prefixes {
		m.take(p, at+string(rune(wire.PathDeeper))+"#") // a/# matches a [MQTT-4.7.1-2]
		m.take(p, at)
	}
	for len(p.items) > 0 { // those with more subscriptions than are read at once
		if err := s.read(ctx, p, "subscriptions to %q", topic); err != nil {
			return nil, err
		}
		m.rest(p)
	}
	return m.list, nil
}

// filterWalk collects subscriptions.
type filterWalk struct {
	s    *Store
	list []store.Subscription
	more []*filterPage
}

// filterPage is how far the subscriptions with one filter have been read.
type filterPage struct {
	path, share, client string
	n                   int
}

// take asks for the subscriptions with a filter, which is a path without its end.
func (m *filterWalk) take(p *packet, prefix string) {
	x := &filterPage{path: prefix + string(rune(wire.PathEnd))}
	m.more = append(m.more, x)
	m.ask(p, x)
}

func (m *filterWalk) ask(p *packet, x *filterPage) {
	filter, _, _ := wire.PathOf([]byte("f" + x.path))
	x.n = 0
	p.get(getFilters, func(r *sql.Rows) error {
		sub := store.Subscription{Filter: filter}
		if err := r.Scan(&x.share, &x.client, &sub.Options); err != nil {
			return err
		}
		if sub.Client = x.client; x.share != "" {
			sub.Filter = "$share/" + x.share + "/" + filter
		}
		x.n++
		m.list = append(m.list, sub)
		return nil
	}, x.path, x.share, x.share, x.client, maxRows)
}

// rest asks for what comes after full pages.
func (m *filterWalk) rest(p *packet) {
	full := slices.DeleteFunc(m.more, func(x *filterPage) bool { return x.n < maxRows })
	m.more = full
	for _, x := range full {
		m.ask(p, x)
	}
}
