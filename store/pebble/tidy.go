package pebble

import (
	"context"
	"time"
)

// Readers of subscriptions and of retained messages pass over what has been deleted for as long as it lies in the memory
// table or in an upper level, which on a small store is for days. After so many deletions these tables are compacted.
const tidyAfter = 20_000

// tidy compacts the tables that are searched by topic, in the background, one such compaction at a time; between two of
// them it rests like Maintain's jobs. It is called while a call is under way, which Close waits for.
func (s *Store) tidy() {
	if s.tidying.Swap(true) {
		return
	}
	s.deleted.Store(0)
	s.done.Go(func() {
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		s.done.Go(func() {
			select {
			case <-s.stop:
			case <-ended:
			}
			cancel()
		})
		start := time.Now()
		for _, table := range []byte{tabFilter, tabRetained} {
			if err := s.db.Compact(ctx, []byte{table}, []byte{table + 1}, false); err != nil {
				s.log.Debug("store.pebble: not tidied", "error", err)
			}
		}
		close(ended)
		select {
		case <-s.stop:
		case <-time.After(passRest * time.Since(start)):
		}
		s.tidying.Store(false)
	})
}
