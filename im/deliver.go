package im

import (
	"maps"
	"time"

	"github.com/mqim/mqim/store"
)

// room is how many more messages may be handed to the device; u.mu is held.
func (d *Device) room() int {
	if d.closed || d.profile == None || d.blocked || d.resting {
		return 0
	}
	return d.e.cfg.Load().Window - d.win.len()
}

// offer hands over a message that has just become durable, if the device is waiting for exactly this one; otherwise
// the device's pump reads it from the log in its turn. It reports whether something was written. u.mu is held.
func (d *Device) offer(e store.Entry) bool {
	if d.pumping || d.next != e.Seq {
		d.pump()
		return false
	}
	return d.room() > 0 && d.hand(e, time.Now().UnixMilli())
}

// hand hands over the message at d.next or passes over it, if the device is not to see it. It returns false when the
// link has no room. u.mu is held.
func (d *Device) hand(e store.Entry, now int64) bool {
	s := slot{seq: e.Seq, id: e.ID, cseq: e.Cseq, conv: e.Conv, from: e.From, cid: e.Cid, sent: now}
	switch {
	case d.early[e.Seq]:
		s.acked = true
		delete(d.early, e.Seq)
	case d.passes(e, now):
		s.acked, s.passed = true, true
	case !d.link.Deliver(e, d.profile, 0):
		d.blocked = true
		return false
	default:
		d.e.m.Delivered(1)
		s.profile = d.profile
		d.arm(now + d.e.cfg.Load().AckTimeout.Milliseconds())
	}
	d.next = e.Seq + 1
	d.win.push(s)
	if s.acked && d.win.len() == 1 {
		d.advance()
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
	if d.pumping || d.next > d.u.head || d.room() <= 0 {
		return
	}
	d.pumping = d.e.spawn(d.pumpLoop)
}

// pumpLoop reads pages from the log until the device is caught up or has no room.
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
		room := min(d.room(), page)
		if room <= 0 || d.next > u.head || d.e.ctx.Err() != nil {
			d.pumping = false
			u.mu.Unlock()
			return
		}
		after, head := d.next-1, u.head
		u.mu.Unlock()

		var err error
		entries, err = d.e.store.ReadInbox(d.e.ctx, u.name, after, room, entries[:0])
		if err != nil {
			if d.e.ctx.Err() == nil {
				d.e.log.Error("inbox cannot be read", "user", u.name, "after", after, "error", err)
			}
			d.retryPump()
			return
		}
		u.mu.Lock()
		ok := d.handPage(after, head, entries)
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

// retryPump has the pump tried again in a while.
func (d *Device) retryPump() {
	d.u.mu.Lock()
	defer d.u.mu.Unlock()
	d.pumping = false
	d.arm(time.Now().Add(time.Second).UnixMilli())
}

// handPage hands over a page that was read after the seq given, when the head was known to be at head or further on.
// It returns false when the pump is to stop. u.mu is held.
func (d *Device) handPage(after, head uint64, entries []store.Entry) bool {
	if d.next != after+1 {
		return true // an acknowledgement has moved it meanwhile
	}
	if len(entries) == 0 {
		d.trimmed(head) // not u.head: what was committed since the page was read is there
		return true
	}
	now := time.Now().UnixMilli()
	for _, e := range entries {
		if d.room() <= 0 {
			return false
		}
		d.u.head = max(d.u.head, e.Seq) // the log may be ahead of the deliverer
		if e.Seq != d.next {
			d.trimmed(e.Seq - 1)
		}
		if !d.hand(e, now) {
			return false
		}
	}
	return true
}

// trimmed tells the device that what it has not seen up to seq is gone from the inbox, and goes on after it. u.mu is held.
func (d *Device) trimmed(upto uint64) {
	from := d.next
	d.skipTo(upto + 1)
	if d.win.len() == 0 {
		d.moveCursor(upto)
	}
	d.e.m.Dropped("inbox_trimmed")
	if !d.wants(Events) {
		return
	}
	b := append([]byte(nil), `{"type":"inbox.trimmed"`...)
	b = appendUint(b, "from", from)
	b = appendUint(b, "to", upto)
	if !d.link.Notify(Events, append(b, '}')) {
		d.e.m.Dropped("event")
	}
}

// skipTo goes on at seq; u.mu is held.
func (d *Device) skipTo(seq uint64) {
	d.next = seq
	maps.DeleteFunc(d.early, func(s uint64, _ bool) bool { return s < seq })
}

// Ready tells that the link has room again, after Deliver returned false.
func (d *Device) Ready() {
	d.u.mu.Lock()
	defer d.u.mu.Unlock()
	d.blocked = false
	d.pump()
}

// Taken tells that the peer has the message seq. In the plain profile that is the acknowledgement.
func (d *Device) Taken(seq uint64) {
	u := d.u
	u.mu.Lock()
	defer u.mu.Unlock()
	d.progress = time.Now().UnixMilli()
	i, ok := d.find(seq)
	if !ok {
		return
	}
	s := d.win.at(i)
	if s.profile == IM { // as it was sent: the device may read in another profile by now, or not at all
		s.due = d.progress + d.backoff(s.attempt).Milliseconds()
		return
	}
	d.e.m.Acked(1)
	s.acked = true
	if i == 0 {
		d.advance()
	}
	d.resting = false
	d.pump()
}

// TooLarge tells that a message is larger than the peer can take. It is passed over: the device will not see it, and its
// sender is told nothing.
func (d *Device) TooLarge(seq uint64) {
	d.u.mu.Lock()
	defer d.u.mu.Unlock()
	i, ok := d.find(seq)
	if !ok {
		return
	}
	d.e.m.Dropped("too_large")
	s := d.win.at(i)
	s.acked, s.passed = true, true
	if i == 0 {
		d.advance()
	}
	d.pump()
}

func (d *Device) find(seq uint64) (int, bool) {
	i := d.win.search(seq)
	return i, i < d.win.len() && d.win.at(i).seq == seq
}

// advance moves the cursor over what is acknowledged; u.mu is held.
func (d *Device) advance() {
	n := 0
	var news *slot // a run of one sender's messages makes one receipt
	for n < d.win.len() && d.win.at(n).acked {
		if s := d.win.at(n); d.isNews(s) {
			if news != nil && news.conv != s.conv {
				d.noteAcked(news)
			}
			news = s
		}
		n++
	}
	if n == 0 {
		return
	}
	if news != nil {
		d.noteAcked(news)
	}
	d.win.drop(n)
	if d.win.len() == 0 {
		d.moveCursor(d.next - 1)
	} else {
		d.moveCursor(d.win.at(0).seq - 1) // over a trimmed gap, too
	}
}

// moveCursor moves the device's cursor and the user's with it; u.mu is held.
func (d *Device) moveCursor(to uint64) {
	d.cursor = max(d.cursor, to)
	d.u.cursor = max(d.u.cursor, d.cursor)
	d.e.markDirty(d.u)
}

// isNews reports whether this is the first of the user's devices to acknowledge what another user has sent; u.mu is held.
func (d *Device) isNews(s *slot) bool {
	return !s.passed && s.seq > d.u.cursor && s.from != d.u.name
}

// noteAcked moves the delivered watermark and tells the sender; u.mu is held.
func (d *Device) noteAcked(s *slot) {
	u := d.u
	u.noteDelivered(s.conv, s.cseq)
	d.e.receipts.add(d.e, s.from, receipt{conv: s.conv, cseq: s.cseq, id: s.id, cid: s.cid, state: "delivered", by: u.name})
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
	cfg := e.cfg.Load()
	now := time.Now().UnixMilli()
	var again []uint64
	u.mu.Lock()
	d.armed = false
	if d.closed || e.ctx.Err() != nil {
		u.mu.Unlock()
		return
	}
	next := int64(-1)
	for i := range d.win.len() {
		s := d.win.at(i)
		due := s.due
		switch {
		case s.acked:
			continue
		case due == 0:
			due = max(s.sent, d.progress) + cfg.AckTimeout.Milliseconds()
			if due <= now {
				u.mu.Unlock()
				e.log.Info("device does not acknowledge, closing", "user", u.name, "device", d.id, "seq", s.seq)
				d.link.Close(CloseNoAck)
				return
			}
		case d.resting || d.profile == None:
			continue
		case due > now:
		case int(s.attempt) >= cfg.MaxAttempts:
			d.resting = true
			continue
		default:
			s.attempt++
			s.due = now + d.backoff(s.attempt).Milliseconds()
			again = append(again, s.seq)
			due = now + cfg.AckTimeout.Milliseconds() // for the peer to take it
		}
		if next < 0 || due < next {
			next = due
		}
	}
	if next >= 0 {
		d.arm(next)
	}
	d.pump()
	u.mu.Unlock()
	d.resend(again)
}

// resend sends messages again, as new publishes.
func (d *Device) resend(seqs []uint64) {
	var page []store.Entry
	for _, seq := range seqs {
		var err error
		page, err = d.e.store.ReadInbox(d.e.ctx, d.u.name, seq-1, 1, page[:0])
		d.u.mu.Lock()
		if i, ok := d.find(seq); ok && !d.closed && !d.win.at(i).acked {
			if err != nil {
				d.win.at(i).attempt-- // nothing was sent
			} else if len(page) > 0 && page[0].Seq == seq {
				d.again(i, page[0])
			}
		}
		d.u.mu.Unlock()
	}
	if len(seqs) > 0 {
		d.link.Kick()
	}
}

// again sends the i-th message of the window again, or passes over it when it is not to be seen any more; u.mu is held.
func (d *Device) again(i int, e store.Entry) {
	s, now := d.win.at(i), time.Now().UnixMilli()
	switch {
	case d.passes(e, now):
		s.acked, s.passed = true, true
		if i == 0 {
			d.advance()
		}
		d.pump()
	case d.profile == None || !d.link.Deliver(e, d.profile, int(s.attempt)):
		s.attempt--
	default:
		s.sent, s.due, s.profile = now, 0, d.profile
		d.e.m.Retransmitted()
	}
}
