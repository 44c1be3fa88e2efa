package mysql

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mqim/mqim/store"
)

// health is what is known of the database: the last outcome of a Commit or a ping.
type health struct {
	mu  sync.Mutex
	err error
}

// heard notes an outcome. Only what shows that the database is away counts against it. The lock on it is then held no longer, as
// far as anybody knows, until it has been looked at.
func (s *Store) heard(err error) {
	if errors.Is(err, context.Canceled) {
		return // says nothing of it
	}
	away := troubleOf(err) == away
	if away && s.opts.Exclusive {
		s.owner.doubt()
	}
	h := &s.health
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = nil
	if away {
		h.err = fmt.Errorf("%w: %v", store.ErrUnavailable, err)
	}
}

func (h *health) state() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// Healthy is nil unless the database was away when it was last heard of: by the last Commit, or by the beats that
// show that this process is alive.
func (s *Store) Healthy() error {
	s.life.RLock()
	defer s.life.RUnlock()
	if s.closed {
		return store.ErrClosed
	}
	if err := s.owned(); err != nil {
		return err
	}
	return s.health.state()
}

// beat shows others that this process is alive.
func (s *Store) beat(ctx context.Context) error {
	sent := time.Now()
	p := s.packet()
	p.do(beat, s.node)
	if err := p.run(ctx, s.db); err != nil {
		return err
	}
	s.owner.mu.Lock()
	defer s.owner.mu.Unlock()
	if last := s.owner.beaten; !last.IsZero() && sent.Sub(last) > s.opts.nodeTTL/2 {
		s.owner.cutOff, s.owner.back = last, sent
	}
	s.owner.beaten = sent
	return nil
}

// forget has this process not count as one that lives any more.
func (s *Store) forget(ctx context.Context) error {
	p := s.packet()
	p.do(dropNode, s.node)
	return p.run(ctx, s.db)
}

// leave tells the others that this process is going. Should it not be able to, they notice when its beats stay out.
func (s *Store) leave() {
	if s.health.state() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	p := s.packet()
	p.do(leaveNode, s.node)
	if err := p.run(ctx, s.db); err != nil {
		s.log.Warn("store.mysql: sessions stay connected for a while", "err", err)
	}
}

// ping looks after the database where nobody else does, and shows that this process is alive, until ctx ends.
func (s *Store) ping(ctx context.Context) {
	beaten, told := time.Now(), false
	for t := time.NewTicker(pingEvery); ; {
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		err := s.health.state()
		if err != nil && !told {
			told = true
			s.log.Warn("store.mysql: the database is away; nothing is accepted until it is back", "err", err)
		}
		if err == nil && told {
			told = false
			s.log.Info("store.mysql: the database is back")
		}
		if err == nil && time.Since(beaten) < s.opts.beatEvery {
			continue
		}
		one, cancel := context.WithTimeout(ctx, s.opts.Timeout)
		err = s.beat(one)
		cancel()
		if ctx.Err() == nil {
			s.heard(err)
			beaten = time.Now()
		}
	}
}
