package im

import (
	"bytes"
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// notice is what the events recall and delete say. Those of whom no device is connected are told when one comes back:
// it is also kept as a [store.Notice], in the same durable step as what it tells of.
type notice struct {
	kind string // recall or delete
	conv store.Conv
	cseq uint64 // of what is recalled
	rest []byte // members of the event's JSON, each led by a comma
}

// event is the event as user sees it.
func (n *notice) event(user string) []byte {
	b := append([]byte(nil), `{"type":`...)
	b = appendString(b, n.kind)
	b = appendConv(b, user, n.conv)
	return append(append(b, n.rest...), '}')
}

// payload is the notice as it is stored: one for all readers, each of whom has an address of its own for the
// conversation.
func (n *notice) payload() []byte {
	b := append([]byte(n.kind), '\n')
	b = append(append(b, n.conv...), '\n')
	return append(b, n.rest...)
}

func parseNotice(payload []byte) (n notice, ok bool) {
	kind, rest, ok := bytes.Cut(payload, []byte{'\n'})
	conv, rest, ok2 := bytes.Cut(rest, []byte{'\n'})
	return notice{kind: string(kind), conv: store.Conv(conv), rest: rest}, ok && ok2
}

func recallOf(m *store.Message, by string) notice {
	b := appendUint(nil, "cseq", m.Cseq)
	b = append(b, `,"id":"`...)
	b = strconv.AppendInt(b, m.ID, 10)
	b = appendField(append(b, '"'), "by", by)
	return notice{kind: "recall", conv: m.Conv, cseq: m.Cseq, rest: appendInt(b, "ts", time.Now().UnixMilli())}
}

func deletionOf(conv store.Conv, cseqs []uint64) notice {
	b := []byte(`,"cseqs":[`)
	for i, n := range cseqs {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, n, 10)
	}
	return notice{kind: "delete", conv: conv, rest: append(b, ']')}
}

// keep adds a notice to a batch, for each of those it is to, dated by its commit: what is committed before a device has
// gone is older than the device's last_seen, by no more than the commit takes.
func (n *notice) keep(b *store.Batch, to []string) {
	p, now := n.payload(), time.Now().UnixMilli()
	for _, name := range to {
		b.Notices = append(b.Notices, store.Notice{To: name, TS: now, Payload: p})
	}
}

const (
	// noticeSlack is how long before its last_seen a device may have missed an event: it was on its way to a connection that
	// was dead already, or being committed. To be told twice does no harm.
	noticeSlack = 10 * time.Second
	noticePage  = 32 // notices in memory at a time

	// A notice that finds no room in the connection is tried again this often, so many times; then it is dropped.
	noticeRetry = 100 * time.Millisecond
	noticeTries = 100
)

// catchUp has the device told of the changes since it was last there, the first time it listens to events. A reader of
// bodies would not understand them. u.mu is held.
func (d *Device) catchUp(p Profile, channels Channel) {
	if d.missed == 0 || d.catching || p == Plain || channels&Events == 0 {
		return
	}
	since := d.missed - noticeSlack.Milliseconds()
	d.catching = d.e.spawn(func() {
		if d.sendMissed(since) {
			d.u.mu.Lock()
			d.missed = 0
			d.e.markDirty(d.u)
			d.u.mu.Unlock()
		}
	})
}

// sendMissed sends the notices to the user and to the large groups that it is in: of each the oldest first. It returns
// false where the connection ended before all were sent.
func (d *Device) sendMissed(since int64) bool {
	if !d.sendNotices(d.u.name, since) {
		return false
	}
	for after := ""; ; {
		list, next, err := d.e.store.Memberships(d.e.ctx, d.u.name, after, membershipPage)
		if err != nil {
			d.e.failed("memberships", err)
			return false
		}
		for _, m := range list {
			if m.Current && m.Large && !d.sendNotices(string(store.GroupConv(m.Group)), since) {
				return false
			}
		}
		if next == "" {
			return true
		}
		after = next
	}
}

// sendNotices sends the notices to a name at or after since.
func (d *Device) sendNotices(to string, since int64) bool {
	for after := ""; ; {
		list, next, err := d.readNotices(to, since, after)
		if err != nil {
			d.e.failed("notices", err)
			return false
		}
		for i := range list {
			if n, ok := parseNotice(list[i].Payload); ok && !d.sendNotice(n.event(d.u.name)) {
				return false
			}
		}
		d.link.Kick()
		if next == "" {
			return true
		}
		after = next
	}
}

// readNotices reads a page, sharing with the pumps what they may hold in memory.
func (d *Device) readNotices(to string, since int64, after string) ([]store.Notice, string, error) {
	select {
	case d.e.pumps <- struct{}{}:
		defer func() { <-d.e.pumps }()
	case <-d.e.ctx.Done():
	}
	return d.e.store.Notices(d.e.ctx, to, since, after, noticePage)
}

// sendNotice sends an event, waiting a while for room. It returns false when the connection has ended.
func (d *Device) sendNotice(event []byte) bool {
	for range noticeTries {
		d.u.mu.Lock()
		closed := d.closed
		d.u.mu.Unlock()
		if closed || d.e.ctx.Err() != nil {
			return false
		}
		if !d.wants(Events) || d.link.Notify(Events, event) {
			return true
		}
		d.link.Kick()
		t := time.NewTimer(noticeRetry)
		select {
		case <-t.C:
		case <-d.e.ctx.Done():
			t.Stop()
			return false
		}
	}
	d.e.m.Dropped("notification")
	return true
}

// audience is who is told of something in a conversation: the names, or, where the group is large, all of its members
// who are connected.
type audience struct {
	conv  store.Conv
	names []string
	large bool
}

// audienceOf returns the present audience of a conversation.
func (e *Engine) audienceOf(ctx context.Context, conv store.Conv) (audience, *Error) {
	a := audience{conv: conv}
	if x, y, ok := conv.Users(); ok {
		a.names = slices.Compact([]string{x, y})
		return a, nil
	}
	id, _ := conv.Group()
	g, err := e.store.Group(ctx, id)
	if err != nil {
		return a, e.failed("group", err)
	}
	if a.large = g.LargeFrom != 0; a.large {
		return a, nil
	}
	rerr := e.eachMember(ctx, id, func(m *store.Member) { a.names = append(a.names, m.User) })
	return a, rerr
}

// notices are whom a notice for the audience is kept for.
func (a *audience) notices() []string {
	if a.large {
		return []string{string(a.conv)}
	}
	return a.names
}

// tell sends the event of a notice to the connected devices of its audience.
func (e *Engine) tell(a *audience, n *notice) {
	if a.large {
		event := n.event("")
		e.tellFeed(a.conv, n.cseq, event)
		if p := e.peers; p != nil && p.some.Load() {
			id, _ := a.conv.Group()
			p.publish(bus.Group, id, append(wire.AppendUvarint([]byte{sayEvent}, n.cseq), event...), nil)
		}
		return
	}
	for _, name := range a.names {
		if e.wanted(name, Events) {
			e.notify(name, Events, n.event(name), nil)
		}
	}
}

// tellFeed sends an event about a message to the devices here that read a large group. Where there are other nodes those that have
// not come to the message are passed over: what they read of it is as it is then, and it may be that they have left.
func (e *Engine) tellFeed(conv store.Conv, cseq uint64, event []byte) {
	for _, g := range e.feeds.of(conv, nil) {
		u := g.d.u
		u.mu.Lock()
		sent := (e.peers == nil || cseq < g.next) && g.d.notify(Events, event)
		u.mu.Unlock()
		if sent {
			g.d.link.Kick()
		}
	}
}

// eachMember calls f with each present member of a group, by name.
func (e *Engine) eachMember(ctx context.Context, id string, f func(*store.Member)) *Error {
	const page = 500
	for after := ""; ; {
		list, next, err := e.store.Members(ctx, id, after, page)
		if err != nil {
			return e.failed("members", err)
		}
		for i := range list {
			f(&list[i])
		}
		if next == "" {
			return nil
		}
		after = next
	}
}
