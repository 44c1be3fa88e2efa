package topics

import (
	"context"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/store"
)

// retainedPage is how many retained messages are read at a time.
const retainedPage = 64

// scan is a subscription's retained messages on their way to a session that ends with its connection.
type scan struct {
	filter string
	after  string // the topic of the last one read
	qos    byte
	ids    string
}

// sendRetained sends the retained messages for a new subscription [MQTT-3.8.4-4]: the first at once, the others as the
// client takes them. It is called on the reading goroutine.
func (x *client) sendRetained(sub *packets.Subscription) {
	h, s := x.h, x.s
	sc := scan{filter: sub.Filter, qos: sub.Qos, ids: appendIDs(sub)}
	if list := h.sysMessages(sub.Filter); list != nil {
		s.pushRetained(list, &sc)
		return
	}
	ctx := context.Background()
	if h.retaining.Load() > 0 {
		if err := h.journal.Flush(ctx); err != nil { // what this client has retained before it subscribed is among them
			h.log.Warn("retained messages may be missing", "client", s.client, "filter", sub.Filter, "error", err)
		}
	}
	if !s.durable {
		s.mu.Lock()
		idle := len(s.scans) == 0
		s.mu.Unlock()
		if !idle || h.readRetained(s, &sc) {
			s.mu.Lock()
			s.scans = append(s.scans, sc)
			s.load()
			s.mu.Unlock()
		}
		return
	}
	// A durable session gets them by its queue, so that it has them, whatever happens to the connection.
	for {
		list, err := h.store.Retained(ctx, sc.filter, sc.after, retainedPage, milliseconds())
		if err != nil {
			h.log.Error("retained messages cannot be read", "client", s.client, "filter", sub.Filter, "error", err)
			return
		}
		if len(list) == 0 || !h.journal.Put(newRetainedCopies(h, s.client, list, &sc)) {
			return
		}
		sc.after = list[len(list)-1].Topic
	}
}

// readRetained sends a page to a session, and reports whether there may be more.
func (h *Hook) readRetained(s *session, sc *scan) (more bool) {
	list, err := h.store.Retained(context.Background(), sc.filter, sc.after, retainedPage, milliseconds())
	if err != nil {
		h.log.Error("retained messages cannot be read", "client", s.client, "filter", sc.filter, "error", err)
		return false
	}
	if len(list) == 0 {
		return false
	}
	sc.after = list[len(list)-1].Topic
	s.pushRetained(list, sc)
	return len(list) == retainedPage
}

// loadRetained goes on with the session's first scan.
func (s *session) loadRetained(c *link.Conn, sc scan) {
	more := s.h.readRetained(s, &sc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != c || len(s.scans) == 0 {
		return
	}
	if s.scans[0] = sc; !more {
		s.scans = s.scans[1:]
	}
}

// pushRetained queues retained messages, beyond the limits: there is a page of them at most, or all of $SYS.
func (s *session) pushRetained(list []*message, sc *scan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead || s.conn == nil {
		return
	}
	for _, m := range list {
		it := item{m: m, ids: sc.ids, qos: min(m.QoS, sc.qos), flags: retainFlag | extraFlag} // [MQTT-3.3.1-8]
		if s.durable {                                                                        // only $SYS, which nothing is kept of
			_, s.scratch = s.send(&item{ids: it.ids, flags: retainFlag}, m, 0, s.scratch, milliseconds())
			continue
		}
		s.push(it)
	}
	if s.durable {
		s.conn.Kick()
		return
	}
	s.resume()
}

// retainedCopies puts retained messages into a durable session's queue.
type retainedCopies struct {
	h    *Hook
	size int
	list []*store.Publish
}

func newRetainedCopies(h *Hook, client string, list []*message, sc *scan) *retainedCopies {
	c := &retainedCopies{h: h}
	for _, m := range list {
		c.size += size(m)
		c.list = append(c.list, &store.Publish{Publication: m, Unlimited: true, Queues: []store.QueueRef{
			{Client: client, QoS: sc.qos, Options: queueOptions(true, sc.ids)},
		}})
	}
	return c
}

func (c *retainedCopies) Add(b *store.Batch) { b.Publishes = append(b.Publishes, c.list...) }
func (c *retainedCopies) Size() int          { return c.size }
func (c *retainedCopies) Must() bool         { return true }
func (c *retainedCopies) Lazy() bool         { return false }
func (c *retainedCopies) Done(err error) {
	if err != nil {
		c.h.log.Error("retained messages could not be queued", "client", c.list[0].Queues[0].Client, "error", err)
		return
	}
	sent := 0
	for _, p := range c.list {
		ref := &p.Queues[0]
		if s := c.h.live(ref.Client); s != nil && ref.Seq > 0 && s.committed(ref, p.Publication, &c.h.doneKicks) == delivered {
			sent++
		}
	}
	if sent > 0 {
		c.h.metrics.TopicDelivered(sent)
	}
}
