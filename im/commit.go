package im

import (
	"errors"
	"strconv"
	"time"

	"github.com/mqim/mqim/store"
)

// committed is a batch that is stored.
type committed struct {
	items []*pending
	await func() // for what other nodes are asked meanwhile; nil: nothing
}

// commitLoop is the committer. It takes whatever has queued up and has it stored as one batch with one sync; while
// that syncs the next batch gathers. There is no lingering: an idle server commits at once, a busy one in big batches.
func (e *Engine) commitLoop() {
	defer close(e.commits)
	var batch store.Batch
	for {
		var spare []*pending
		select {
		case spare = <-e.spares:
		default:
		}
		items, bytes := e.queue.take(spare)
		if items == nil {
			return
		}
		e.m.Queue(len(items), bytes)
		var await func()
		if e.peers != nil {
			await = e.peers.count(items)
		}
		e.commit(items, &batch)
		e.commits <- committed{items, await}
	}
}

// commit stores a batch. What became of it stands in the items afterwards.
func (e *Engine) commit(items []*pending, b *store.Batch) {
	*b = store.Batch{Sends: b.Sends[:0]}
	for _, p := range items {
		if p.op != nil {
			p.op(b)
		} else {
			b.Sends = append(b.Sends, &p.Send)
		}
	}
	start := time.Now()
	err := e.store.Commit(e.ctx, b)
	if err != nil {
		if !errors.Is(err, store.ErrUnavailable) {
			e.log.Error("commit failed", "messages", len(b.Sends), "error", err)
		}
		for _, p := range items {
			p.Err = err
		}
	} else {
		dups := 0
		for _, s := range b.Sends {
			if s.Dup {
				dups++
			}
		}
		e.m.Committed(len(b.Sends), dups, time.Since(start))
	}
	clear(b.Sends)
}

// deliverLoop is the deliverer: for each committed batch first the answers to the senders, then the messages to the
// devices. Nothing it does waits for a peer.
func (e *Engine) deliverLoop() {
	var touched links
	var scratch []byte
	for batch := range e.commits {
		items := batch.items
		for _, p := range items {
			if p.Change != nil {
				e.forgetGroup(p.Change)
			}
		}
		if batch.await != nil {
			batch.await()
		}
		for _, p := range items {
			if p.after != nil {
				p.after(p.Err)
			} else if p.dev != nil {
				scratch = e.answer(p, scratch[:0])
				touched.add(p.dev)
			}
		}
		for _, p := range items {
			if p.op == nil && p.Err == nil && !p.Dup {
				e.offer(p, &touched)
			}
		}
		if e.peers != nil {
			e.peers.out.flush()
		}
		touched.kick()
		clear(items)
		select {
		case e.spares <- items[:0]:
		default:
		}
	}
}

// answer tells the sender what became of its message. It returns the scratch buffer.
func (e *Engine) answer(p *pending, scratch []byte) []byte {
	d := p.dev
	switch {
	case errors.Is(p.Err, store.ErrUnknownOutcome):
		d.link.Close(CloseStore) // no answer rather than a wrong one
	case p.Err != nil:
		d.refuse(p.ticket, p.rid, p.Cid, storeError(p.Err))
	case d.wants(Replies):
		scratch = p.appendReply(scratch, e.state(p))
		d.link.Answer(p.ticket, scratch, nil)
	default:
		d.link.Answer(p.ticket, nil, nil)
	}
	return scratch
}

// state is what the sender learns of its message: queued, sent or delivered; in a group it is sent.
func (e *Engine) state(p *pending) string {
	if p.peer == "" {
		return e.groupState(p)
	}
	if p.peer == p.From || p.Dup && e.deliveredMark(p.peer, p.Conv) >= p.Cseq {
		return "delivered"
	}
	if u := e.user(p.peer); p.elsewhere || u != nil && u.readers.Load() > 0 {
		return "sent"
	}
	return "queued"
}

func (p *pending) appendReply(b []byte, state string) []byte {
	b = appendReply(b, p.rid, true)
	if p.Cid != "" {
		b = appendField(b, "cid", p.Cid)
	}
	b = append(b, `,"data":{"id":"`...)
	b = strconv.AppendInt(b, p.ID, 10)
	b = append(b, '"')
	if p.Cid != "" {
		b = appendField(b, "cid", p.Cid)
	}
	b = appendConv(b, p.From, p.Conv)
	b = appendUint(b, "cseq", p.Cseq)
	b = appendInt(b, "ts", p.TS)
	b = append(b, `,"state":"`...)
	b = append(b, state...)
	b = append(b, '"')
	if p.Dup {
		b = append(b, `,"dup":true`...)
	}
	return append(b, "}}"...)
}

// offer hands a committed message to the devices of its recipients that are connected.
func (e *Engine) offer(p *pending, touched *links) {
	if _, ok := p.Conv.Group(); ok && len(p.Inboxes) == 0 {
		e.offerLarge(p, touched)
		if e.peers != nil {
			e.peers.out.addLarge(p)
		}
		return
	}
	queued := false
	var event []byte
	if p.Change != nil {
		event = changeEvent(&p.Message)
	}
	for _, ref := range p.Inboxes {
		u := e.user(ref.User)
		waits := p.peer != "" && ref.User != p.From && (u == nil || u.readers.Load() == 0)
		if e.peers == nil || !e.peers.out.add(p, ref, u, waits) {
			queued = queued || waits
		}
		if u == nil {
			continue
		}
		u.mu.Lock()
		u.head = max(u.head, ref.Seq)
		for _, d := range u.devices {
			if d.offer(&d.inbox, store.Entry{Seq: ref.Seq, Message: &p.Message}) {
				touched.add(d)
			}
			if event != nil && d.notify(Events, event) {
				touched.add(d)
			}
		}
		u.mu.Unlock()
	}
	if queued {
		e.receipts.add(e, p.From, queuedReceipt(p))
	}
}

// links collects the devices that a batch wrote to, so that each is sent its packets in one go. It belongs to the
// deliverer, or, shared, to whoever else hands messages over: then a device may be in it more than once.
type links struct {
	shared  bool
	list    []*Device
	streams []*groupStream // scratch
}

func (l *links) add(d *Device) {
	if l.shared {
		if n := len(l.list); n == 0 || l.list[n-1] != d {
			l.list = append(l.list, d)
		}
	} else if !d.touched {
		d.touched = true
		l.list = append(l.list, d)
	}
}

func (l *links) kick() {
	for i, d := range l.list {
		if !l.shared {
			d.touched = false
		}
		d.link.Kick()
		l.list[i] = nil
	}
	l.list = l.list[:0]
}
