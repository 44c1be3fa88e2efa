package im

import (
	"time"

	"github.com/mqim/mqim/store"
)

// room is how many more messages may be handed to the device; u.mu is held.
func (d *Device) room() int {
	if d.closed || d.profile == None || d.blocked || d.resting {
		return 0
	}
	return d.e.cfg.Load().Window - d.held
}

// offer hands over a message that has just become durable, if the device is waiting for exactly this one; otherwise
// the device's pump reads it from the log in its turn. It reports whether something was written. u.mu is held.
func (d *Device) offer(s *stream, e store.Entry) bool {
	if d.pumping || s.next != number(e) || s.group != nil && d.inbox.next <= d.u.head {
		d.pump()
		return false
	}
	return d.room() > 0 && d.hand(s, e, time.Now().UnixMilli())
}

// hand hands over the message at s.next or passes over it, if the device is not to see it. It returns false when the
// link has no room. u.mu is held.
func (d *Device) hand(s *stream, e store.Entry, now int64) bool {
	n := number(e)
	x := slot{seq: n, id: e.ID, cseq: e.Cseq, conv: e.Conv, from: e.From, cid: e.Cid, sent: now}
	switch {
	case s.early[n]:
		x.acked = true
		delete(s.early, n)
	case d.passes(e, now):
		x.acked, x.passed = true, true
	case !d.link.Deliver(e, s.place(n), d.profile, 0):
		d.blocked = true
		return false
	default:
		d.e.m.Delivered(1)
		x.profile = d.profile
		d.arm(now + d.e.cfg.Load().AckTimeout.Milliseconds())
	}
	s.goTo(n + 1)
	s.win.push(x)
	d.held++
	if x.acked && s.win.len() == 1 {
		d.advance(s)
	}
	return true
}

// passes reports whether the message is not for this device: its own, expired, or withdrawn and of no use to a reader
// of bodies.
func (d *Device) passes(e store.Entry, now int64) bool {
	switch {
	case e.From == d.u.name && e.Device == d.id:
		return true
	case e.Expired(now):
		d.e.m.Dropped("expired")
		return true
	}
	return e.Recalled && d.profile == Plain
}

// pump starts the device's pump where it is behind and has room; u.mu is held.
func (d *Device) pump() {
	if d.pumping || d.behind() == nil || d.room() <= 0 {
		return
	}
	d.pumping = d.e.spawn(d.pumpLoop)
}

// pumpLoop reads pages from the logs until the device is caught up or has no room.
func (d *Device) pumpLoop() {
	const page = 128
	select {
	case d.e.pumps <- struct{}{}:
		defer func() { <-d.e.pumps }()
	case <-d.e.ctx.Done():
	}
	u := d.u
	var entries []store.Entry
	for {
		u.mu.Lock()
		room, s := min(d.room(), page), d.behind()
		if room <= 0 || s == nil || d.e.ctx.Err() != nil {
			d.pumping = false
			u.mu.Unlock()
			return
		}
		after, head, src := s.next-1, d.head(s), s.source()
		u.mu.Unlock()

		var bound uint64
		var err error
		entries, bound, err = d.e.read(d.e.ctx, u.name, src, after, head, room, entries[:0])
		if err != nil {
			if d.e.ctx.Err() == nil {
				d.e.log.Error("log cannot be read", "user", u.name, "conv", src.conv, "after", after, "error", err)
			}
			d.retryPump()
			return
		}
		if s.group != nil && d.e.peers != nil {
			switch same, err := d.relearn(s.group, src.spans); {
			case err != nil:
				d.e.failed("member", err)
				d.retryPump()
				return
			case !same:
				clear(entries)
				continue
			}
		}
		gap := len(entries) == 0 || number(entries[0]) != after+1
		lost := gap && d.e.lost(d.e.ctx, src, after)
		u.mu.Lock()
		ok := d.handPage(s, after, bound, lost, entries)
		if !ok {
			d.pumping = false
		}
		u.mu.Unlock()
		d.link.Kick()
		clear(entries)
		if !ok {
			return
		}
	}
}

// relearn asks the store what the user may see of a large group by now, and reports whether that is what it was: a page that
// was read before may hold more. What hints say does not decide, since they may be lost.
func (d *Device) relearn(g *groupStream, was []store.Span) (same bool, err error) {
	spans, err := d.e.spansOf(d.e.ctx, d.u.name, g.conv)
	if err != nil {
		return false, err
	}
	d.u.mu.Lock()
	defer d.u.mu.Unlock()
	if len(spans) > 0 {
		g.learn(spans, g.head)
	}
	if to := g.spans[len(g.spans)-1].To; to != 0 && g.head >= to {
		d.e.feeds.remove(g)
	}
	return changedAt(g.spans) == changedAt(was), nil
}

// retryPump has the pump tried again in a while.
func (d *Device) retryPump() {
	d.u.mu.Lock()
	defer d.u.mu.Unlock()
	d.pumping = false
	d.arm(time.Now().Add(time.Second).UnixMilli())
}

// handPage hands over a page of s that was read after the number given and up to bound. lost says that what is missing
// in front of it is gone. It returns false when the pump is to stop. u.mu is held.
func (d *Device) handPage(s *stream, after, bound uint64, lost bool, entries []store.Entry) bool {
	if s.next != after+1 {
		return true // an acknowledgement has moved it meanwhile
	}
	if s.group != nil {
		d.turn = int(s.group.base>>placeBits) % len(d.groups)
	}
	if len(entries) == 0 {
		d.passOver(s, bound, lost) // not the head: what was committed since the page was read is there
		return true
	}
	now := time.Now().UnixMilli()
	for _, e := range entries {
		if d.room() <= 0 {
			return false
		}
		if s.group == nil {
			d.u.head = max(d.u.head, e.Seq) // the log may be ahead of the deliverer
		}
		if n := number(e); n > s.next {
			d.passOver(s, n-1, lost)
		}
		if !d.hand(s, e, now) {
			return false
		}
		lost = s.group == nil // the gap that may be there further on, too, is what the user has deleted
	}
	return true
}

// passOver goes on after a gap in s. Where messages are lost in it the device is told. u.mu is held.
func (d *Device) passOver(s *stream, upto uint64, lost bool) {
	from := s.next
	s.skipTo(upto + 1)
	if s.win.len() == 0 {
		d.moveCursor(s, upto)
	}
	if !lost {
		return
	}
	d.e.m.Dropped("inbox_trimmed")
	if !d.wants(Events) {
		return
	}
	b := append([]byte(nil), `{"type":"inbox.trimmed"`...)
	if s.group != nil {
		b = appendConv(b, d.u.name, s.group.conv)
	}
	b = appendUint(b, "from", from)
	b = appendUint(b, "to", upto)
	d.notify(Events, append(b, '}'))
}

// Ready tells that the link has room again, after Deliver returned false.
func (d *Device) Ready() {
	d.u.mu.Lock()
	defer d.u.mu.Unlock()
	d.blocked = false
	d.pump()
}

// Taken tells that the peer has the message of that place. In the plain profile that is the acknowledgement.
func (d *Device) Taken(place uint64) {
	u := d.u
	u.mu.Lock()
	defer u.mu.Unlock()
	d.progress = time.Now().UnixMilli()
	s, i, ok := d.find(place)
	if !ok {
		return
	}
	x := s.win.at(i)
	if x.profile == IM { // as it was sent: the device may read in another profile by now, or not at all
		x.due = d.progress + d.backoff(x.attempt).Milliseconds()
		return
	}
	d.e.m.Acked(1)
	x.acked = true
	if i == 0 {
		d.advance(s)
	}
	d.resting = false
	d.pump()
}

// TooLarge tells that a message is larger than the peer can take. It is passed over: the device will not see it, and its
// sender is told nothing.
func (d *Device) TooLarge(place uint64) {
	d.u.mu.Lock()
	defer d.u.mu.Unlock()
	s, i, ok := d.find(place)
	if !ok {
		return
	}
	d.e.m.Dropped("too_large")
	d.pass(s, i)
}

// pass passes over the i-th message of the window of s, which the device will not see; u.mu is held.
func (d *Device) pass(s *stream, i int) {
	x := s.win.at(i)
	x.acked, x.passed = true, true
	if i == 0 {
		d.advance(s)
	}
	d.pump()
}

func (d *Device) backoff(attempt uint8) time.Duration {
	return d.e.cfg.Load().AckTimeout << min(attempt, 16)
}

// arm has check called at the moment at (Unix milliseconds) or before; u.mu is held.
func (d *Device) arm(at int64) {
	if d.closed || d.armed && d.armedAt <= at {
		return
	}
	d.armed, d.armedAt = true, at
	after := time.Until(time.UnixMilli(at))
	if d.timer == nil {
		d.timer = time.AfterFunc(after, d.check)
	} else {
		d.timer.Reset(after)
	}
}

// check looks at what is not acknowledged. A message that the peer has taken and whose application is silent is sent
// again. MQTT forbids to repeat one that the peer has not taken [MQTT-4.4.0-1]: when nothing moves for AckTimeout the
// connection is ended, and the session resumes from its cursor on the next.
func (d *Device) check() {
	u, e := d.u, d.e
	now := time.Now().UnixMilli()
	var again []uint64
	u.mu.Lock()
	d.armed = false
	if d.closed || e.ctx.Err() != nil {
		u.mu.Unlock()
		return
	}
	next := int64(-1)
	for k := range d.streams() {
		s := d.stream(k)
		for i := range s.win.len() {
			due, stuck := d.look(s.win.at(i), now)
			if stuck {
				x := *s.win.at(i)
				u.mu.Unlock()
				e.log.Info("device does not acknowledge, closing", "user", u.name, "device", d.id, "conv", x.conv, "cseq", x.cseq)
				d.link.Close(CloseNoAck)
				return
			}
			if due > 0 && due <= now {
				again = append(again, s.place(s.win.at(i).seq))
				due = now + e.cfg.Load().AckTimeout.Milliseconds() // for the peer to take it
			}
			if due > 0 && (next < 0 || due < next) {
				next = due
			}
		}
	}
	if next >= 0 {
		d.arm(next)
	}
	d.pump()
	u.mu.Unlock()
	d.resend(again)
}

// look says when x is due to be looked at again, 0: not by the clock. What is due now is to be sent again, and stands as
// such in x. stuck says that the peer has not taken it in time. u.mu is held.
func (d *Device) look(x *slot, now int64) (due int64, stuck bool) {
	cfg := d.e.cfg.Load()
	switch {
	case x.acked:
		return 0, false
	case x.due == 0:
		due = max(x.sent, d.progress) + cfg.AckTimeout.Milliseconds()
		return due, due <= now
	case d.resting || d.profile == None:
		return 0, false
	case x.due > now:
		return x.due, false
	case int(x.attempt) >= cfg.MaxAttempts:
		d.resting = true
		return 0, false
	}
	x.attempt++
	x.due = now + d.backoff(x.attempt).Milliseconds()
	return now, false
}

// resend sends messages again, as new publishes.
func (d *Device) resend(places []uint64) {
	var page []store.Entry
	for _, place := range places {
		d.u.mu.Lock()
		s, _, _ := d.find(place)
		src := s.source()
		d.u.mu.Unlock()
		n := place & (1<<placeBits - 1)
		var err error
		page, _, err = d.e.read(d.e.ctx, d.u.name, src, n-1, n, 1, page[:0])
		d.u.mu.Lock()
		if _, i, ok := d.find(place); ok && !d.closed && !s.win.at(i).acked {
			switch {
			case err != nil:
				s.win.at(i).attempt-- // nothing was sent
			case len(page) > 0 && number(page[0]) == n:
				d.again(s, i, page[0])
			default: // gone from the log, or deleted by its reader
				d.pass(s, i)
			}
		}
		d.u.mu.Unlock()
	}
	if len(places) > 0 {
		d.link.Kick()
	}
}

// again sends the i-th message of the window of s again, or passes over it when it is not to be seen any more; u.mu is
// held.
func (d *Device) again(s *stream, i int, e store.Entry) {
	x, now := s.win.at(i), time.Now().UnixMilli()
	switch {
	case d.passes(e, now):
		d.pass(s, i)
	case d.profile == None || !d.link.Deliver(e, s.place(x.seq), d.profile, int(x.attempt)):
		x.attempt--
	default:
		x.sent, x.due, x.profile = now, 0, d.profile
		d.e.m.Retransmitted()
	}
}
