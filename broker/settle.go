package broker

import (
	"runtime"
	"runtime/debug"
	"time"
)

// settle gives memory back after many clients have connected. A handshake needs a stack ten times as large as waiting
// does, and the collector halves a stack that is too large once a cycle, which on an idle server come minutes apart.
// A client may wait for days.
func (s *Server) settle() {
	const (
		every = 2 * time.Second
		worth = 1000 // connections that have come since
		calm  = 100  // and at most so many a tick still come
	)
	t := time.NewTicker(every)
	defer t.Stop()
	var settled, last int64
	for {
		select {
		case <-s.settling:
			return
		case <-t.C:
		}
		var accepted int64
		for _, l := range s.listeners {
			accepted += l.Counters.Accepted.Load()
		}
		if accepted-settled >= worth && accepted-last <= calm {
			runtime.GC()
			runtime.GC()
			debug.FreeOSMemory()
			settled = accepted
		}
		last = accepted
	}
}
