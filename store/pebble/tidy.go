package pebble

import (
	"bytes"
	"context"
	"time"
)

// Readers pass over what has been deleted for as long as it lies in the memory table or in an upper level, which on a
// small store is for days. These tables are searched by topic or by client, and are compacted after so many deletions.
// What is passed in a queue does not count: readers begin behind it.
const tidyAfter = 20_000

var tidied = []byte{tabFilter, tabRetained, tabSub, tabQueue, tabOutbound, tabInbound, tabMember}

// deletions counts by table, in the order of tidied.
type deletions [7]int

func (d *deletions) note(table byte) {
	if i := bytes.IndexByte(tidied, table); i >= 0 {
		d[i]++
	}
}

// tidy has the tables compacted that a batch has deleted from, when enough has come together: one at a time, with rests
// like those of Maintain's jobs. mu is held.
func (s *Store) tidy(batch *deletions) {
	due := false
	for i, n := range batch {
		s.deleted[i] += n
		due = due || s.deleted[i] >= tidyAfter
	}
	if !due || s.tidying || time.Now().Before(s.tidyRest) {
		return
	}
	s.tidying = true
	var tables []byte
	for i, n := range s.deleted {
		if n >= tidyAfter {
			tables = append(tables, tidied[i])
			s.deleted[i] = 0
		}
	}
	s.done.Go(func() { s.compact(tables) }) // a call is under way, which Close waits for
}

func (s *Store) compact(tables []byte) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.done.Go(func() {
		select {
		case <-s.stop:
			cancel()
		case <-ctx.Done():
		}
	})
	start := time.Now()
	for _, table := range tables {
		if err := s.db.Compact(ctx, []byte{table}, []byte{table + 1}, false); err != nil {
			s.log.Debug("store.pebble: not tidied", "table", string(table), "error", err)
		}
	}
	s.mu.Lock()
	s.tidying, s.tidyRest = false, time.Now().Add(passRest*time.Since(start))
	s.mu.Unlock()
}
