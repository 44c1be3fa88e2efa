package im

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/mqim/mqim/store"
)

// feed is a large group as far as devices are connected that read it.
type feed struct {
	conv    store.Conv
	mode    atomic.Uint32  // store.ReceiptMode
	modeAt  uint64         // the cseq as of which mode is known; guarded by feeds.mu
	streams []*groupStream // guarded by feeds.mu
	sub     *subscription  // nil: there is no bus
}

// receipts reports whether senders are told of each member.
func (f *feed) receipts() bool { return store.ReceiptMode(f.mode.Load()) == store.ReceiptsAll }

// feeds are the large groups that connected devices read: what they cost grows with what is connected, not with the
// members of a group. feeds.mu is taken inside user.mu.
type feeds struct {
	e  *Engine
	mu sync.Mutex
	m  map[store.Conv]*feed
}

func (f *feeds) init(e *Engine) { f.e, f.m = e, map[store.Conv]*feed{} }

// add has messages offered to g from now on. mode is what is known of the group's, as of the message at. It returns
// false where they are already. u.mu is held.
func (f *feeds) add(g *groupStream, mode store.ReceiptMode, at uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	x := f.m[g.conv]
	if x == nil {
		x = &feed{conv: g.conv}
		f.m[g.conv] = x
		if f.e.peers != nil {
			f.e.peers.feedSubscription(x)
		}
	}
	x.learn(mode, at)
	if g.at >= 0 {
		return false
	}
	g.feed, g.at = x, len(x.streams)
	x.streams = append(x.streams, g)
	return true
}

// remove ends what add began.
func (f *feeds) remove(g *groupStream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if g.at < 0 {
		return
	}
	x, last := g.feed, len(g.feed.streams)-1
	x.streams[g.at] = x.streams[last]
	x.streams[g.at].at = g.at
	x.streams[last] = nil
	x.streams = x.streams[:last]
	g.at = -1
	if last == 0 {
		delete(f.m, x.conv)
		if x.sub != nil {
			f.e.peers.end(x.sub)
		}
	}
}

// learn notes the mode as of a message. News may come out of order. feeds.mu is held.
func (x *feed) learn(mode store.ReceiptMode, at uint64) {
	if at >= x.modeAt {
		x.modeAt = at
		x.mode.Store(uint32(mode))
	}
}

// convs lists the groups.
func (f *feeds) convs() []store.Conv {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.m))
}

// setMode notes what a group's receipts are, as of a message.
func (f *feeds) setMode(conv store.Conv, mode store.ReceiptMode, at uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if x := f.m[conv]; x != nil {
		x.learn(mode, at)
	}
}

// of appends the streams of a group to dst.
func (f *feeds) of(conv store.Conv, dst []*groupStream) []*groupStream {
	f.mu.Lock()
	defer f.mu.Unlock()
	if x := f.m[conv]; x != nil {
		dst = append(dst, x.streams...)
	}
	return dst
}

// read reports whether a device of another user reads a group.
func (f *feeds) read(conv store.Conv, but string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	x := f.m[conv]
	return x != nil && slices.ContainsFunc(x.streams, func(g *groupStream) bool {
		return g.d.u.name != but && g.d.u.readers.Load() > 0
	})
}

// offerLarge hands a committed message of a large group to the devices that read it.
func (e *Engine) offerLarge(p *pending, touched *links) {
	if p.Change != nil {
		e.follow(p)
	}
	var event []byte
	if p.Change != nil {
		event = changeEvent(&p.Message)
	}
	touched.streams = e.feeds.of(p.Conv, touched.streams[:0])
	for _, g := range touched.streams {
		u := g.d.u
		u.mu.Lock()
		if p.Change != nil && p.Change.End {
			g.end(p.Cseq)
		}
		to := g.spans[len(g.spans)-1].To
		if to == 0 || p.Cseq <= to {
			g.head = max(g.head, p.Cseq)
			handed := g.d.offer(&g.stream, store.Entry{Message: &p.Message})
			if handed {
				touched.add(g.d)
			}
			// Where there are other nodes, whoever has not been handed it may have left before, and not know.
			if event != nil && (handed || e.peers == nil) && g.d.notify(Events, event) {
				touched.add(g.d)
			}
		}
		if to != 0 && p.Cseq >= to {
			e.feeds.remove(g) // what it has not been handed yet it reads from the log
		}
		u.mu.Unlock()
	}
	clear(touched.streams)
}

// follow has connected devices read, or read no more, what the change of a large group says. It comes before the
// message that says so is offered: who joins begins with it, and who leaves ends with it.
func (e *Engine) follow(p *pending) {
	ch := p.Change
	mode := ch.Group.ReceiptMode()
	e.feeds.setMode(p.Conv, mode, p.Cseq)
	for i := range ch.Members {
		m := &ch.Members[i]
		if len(m.Spans) == 0 {
			continue
		}
		if last := m.Spans[len(m.Spans)-1]; last.From == p.Cseq || last.To == p.Cseq {
			e.followUser(m.User, p, m.Spans, mode)
		}
	}
	if ch.Group.LargeFrom == p.Cseq { // last: who leaves with this message is not to stay
		for _, name := range p.attach {
			e.followUser(name, p, []store.Span{{From: p.Cseq}}, mode)
		}
	}
}

func (e *Engine) followUser(name string, p *pending, spans []store.Span, mode store.ReceiptMode) {
	u := e.user(name)
	if u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, d := range u.devices {
		if g := d.group(p.Conv); g != nil {
			g.learn(spans, p.Cseq-1)
			e.feeds.add(g, mode, p.Cseq)
			continue
		}
		if d.loading {
			d.reload = true // where it begins stands in the store; once a group, so that loading comes to an end
			continue
		}
		if e.peers != nil { // it may be that a time when the user was there, and left again, has not been heard of
			d.loading = e.spawn(d.reloadGroups)
			continue
		}
		// What the user was there for before, this device has seen: else it had the stream.
		first := max(spans[len(spans)-1].From, p.Change.Group.LargeFrom)
		d.attach(p.Conv, spans, p.Cseq-1, first-1, mode, p.Cseq)
	}
}

// attach has the device read a large group's log after the cseq given. u.mu is held.
func (d *Device) attach(
	conv store.Conv, spans []store.Span, head, after uint64, mode store.ReceiptMode, at uint64,
) *groupStream {
	if len(d.groups) >= maxStreams {
		d.e.m.Dropped("streams")
		d.e.log.Warn("device reads no further group: it has too many", "user", d.u.name, "device", d.id, "conv", conv)
		return nil
	}
	g := &groupStream{d: d, conv: conv, base: uint64(len(d.groups)+1) << placeBits, spans: spans, at: -1}
	g.group = g
	g.cursor, g.next = after, after+1
	g.learn(spans, head)
	d.groups = append(d.groups, g)
	if d.u.large == nil {
		d.u.large = map[store.Conv]uint64{}
	}
	d.follow(g, mode, at)
	return g
}

// follow has the device offered what is said in a group and told what becomes of it. Whoever has left is not, once the
// message that says so is durable: what is left to read is read from the log. It reports whether the device was not
// offered it before. u.mu is held.
func (d *Device) follow(g *groupStream, mode store.ReceiptMode, at uint64) (news bool) {
	news = d.e.feeds.add(g, mode, at)
	if to := g.spans[len(g.spans)-1].To; to != 0 && g.head >= to {
		d.e.feeds.remove(g)
		return false
	}
	return news
}

// streamsOf are the large groups of a device, with what is not flushed of the user's watermarks.
func (e *Engine) streamsOf(ctx context.Context, u *user, key store.DeviceKey) ([]store.Stream, error) {
	marks := map[store.Conv]uint64{}
	u.mu.Lock() // before the store is read: what is flushed meanwhile stands there
	for _, m := range []map[store.Conv]uint64{u.flushing.delivered, u.delivered, u.large} {
		for conv, cseq := range m {
			marks[conv] = max(marks[conv], cseq)
		}
	}
	u.mu.Unlock()
	list, err := e.store.Streams(ctx, key)
	for i := range list {
		list[i].Delivered = max(list[i].Delivered, marks[list[i].Conv])
	}
	return list, err
}

// firstOf is the first cseq of a stream that a new device of its user may see.
func firstOf(st *store.Stream) uint64 { return max(st.LargeFrom, st.Spans[0].From) }

// load has a device read the large groups of its user. places are its cursors as far as they are not flushed; again says that
// it is connected since, and has read them before.
//
// Whatever is committed after a stream is in its feed is offered to it, and what was before is in the head that the store
// reports afterwards: so the store is read again until it names no stream that is new.
func (d *Device) load(ctx context.Context, places []store.Cursor, again bool) error {
	e, u := d.e, d.u
	key := store.DeviceKey{User: u.name, Device: d.id}
	for {
		u.mu.Lock()
		d.reload = false
		u.mu.Unlock()
		list, err := e.streamsOf(ctx, u, key)
		if err != nil {
			return err
		}
		var box store.Inbox
		if len(list) > 0 { // a group is not to overtake what lies in the inbox since before it was large
			if box, err = e.store.Inbox(ctx, u.name); err != nil {
				return err
			}
		}
		u.mu.Lock()
		u.head = max(u.head, box.Head)
		if d.closed || !d.meet(list, places, again) && !d.reload {
			d.loading = false
			d.pump()
			u.mu.Unlock()
			return nil
		}
		u.mu.Unlock()
	}
}

// meet attaches the device to the streams in list that it has something to read of, and reports whether any is new.
// u.mu is held.
func (d *Device) meet(list []store.Stream, places []store.Cursor, again bool) (news bool) {
	known := make(map[store.Conv]*groupStream, len(d.groups))
	for _, g := range d.groups {
		known[g.conv] = g
	}
	for i := range list {
		st := &list[i]
		if g := known[st.Conv]; g != nil {
			g.learn(st.Spans, st.Head)
			if d.follow(g, st.Mode, st.Head) {
				news = true
			}
			continue
		}
		after := st.Delivered
		if again { // joined since, or large since
			after = d.past[st.Conv]
		} else if d.resumed {
			after = st.Cursor
			for _, c := range places {
				if c.Conv == st.Conv {
					after = max(after, c.Cseq)
				}
			}
		}
		after = max(after, firstOf(st)-1)
		if last := st.Spans[len(st.Spans)-1]; last.To != 0 && after >= last.To {
			if d.e.peers != nil {
				if d.past == nil {
					d.past = map[store.Conv]uint64{}
				}
				d.past[st.Conv] = last.To
			}
			continue // left, and seen to the end
		}
		if g := d.attach(st.Conv, st.Spans, st.Head, after, st.Mode, st.Head); g != nil {
			news = true
			if d.resumed && !again {
				g.flushed = st.Cursor
			}
			d.u.large[st.Conv] = max(d.u.large[st.Conv], st.Delivered)
		}
	}
	return news
}

// cursors appends the device's places in large groups to dst, those alone that the flusher has not taken, or all. u.mu is
// held.
func (d *Device) cursors(dst []store.Cursor, all bool) []store.Cursor {
	for _, g := range d.groups {
		if all || g.cursor != g.flushed {
			dst = append(dst, store.Cursor{DeviceKey: store.DeviceKey{User: d.u.name, Device: d.id}, Conv: g.conv, Cseq: g.cursor})
			g.flushed = g.cursor
		}
	}
	return dst
}
