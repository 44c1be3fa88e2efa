package topics

import (
	"context"

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
	ended  bool // there are no more
}

// readFirst reads the first page of retained messages for a new subscription. It is called on the reading goroutine.
func (x *client) readFirst(r *request) {
	h := x.h
	r.scan = scan{filter: r.sub.Filter, qos: r.sub.Qos, ids: appendIDs(&r.sub)}
	r.read = true
	if r.first = h.systemRetained(r.sub.Filter); r.first != nil {
		return
	}
	if h.retaining.Load() > 0 {
		// What this client has retained before it subscribed is among what is being stored.
		if err := h.journal.Flush(context.Background()); err != nil {
			h.log.Warn("retained messages may be missing", "client", x.s.client, "filter", r.sub.Filter, "error", err)
		}
	}
	r.first = h.nextRetained(&r.scan)
}

// nextRetained reads a page; it is empty at the end.
func (h *Hook) nextRetained(sc *scan) []*message {
	if sc.ended {
		return nil
	}
	list, err := h.store.Retained(context.Background(), sc.filter, sc.after, retainedPage, milliseconds())
	if err != nil {
		h.log.Error("retained messages cannot be read", "filter", sc.filter, "error", err)
		sc.ended = true
		return nil
	}
	bytes := 0
	for _, m := range list {
		bytes += len(m.Payload)
	}
	if sc.ended = len(list) < retainedPage && bytes < store.PageBytes; len(list) > 0 {
		sc.after = list[len(list)-1].Topic
	}
	return list
}

// sendRetained sends the retained messages for a new subscription [MQTT-3.8.4-4]: the first at once, the others as the
// client takes them. It is called on the reading goroutine.
func (x *client) sendRetained(r *request) {
	if !r.read {
		x.readFirst(r)
	}
	h, s := x.h, x.s
	if len(r.first) == 0 {
		return
	}
	if r.scan.after == "" { // $SYS
		s.pushRetained(r.first, &r.scan)
		return
	}
	if s.durable {
		// By its queue, so that it has them, whatever happens to the connection.
		for list := r.first; len(list) > 0; list = h.nextRetained(&r.scan) {
			if !h.journal.Put(newRetainedCopies(h, s.client, list, &r.scan)) {
				return
			}
		}
		return
	}
	s.pushRetained(r.first, &r.scan)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dead && !r.scan.ended {
		s.scans = append(s.scans, r.scan)
		s.load()
	}
}

// loadRetained goes on with the session's first scan.
func (s *session) loadRetained(c *link.Conn, sc scan) {
	list := s.h.nextRetained(&sc)
	s.pushRetained(list, &sc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != c || len(s.scans) == 0 {
		return
	}
	if s.scans[0] = sc; sc.ended {
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
