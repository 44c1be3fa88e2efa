package im

import (
	"time"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

const (
	// hintBytes is when what has gathered for a user is sent.
	hintBytes = 64 << 10
	// A body of more than headBytes goes to at most fewReaders; to more the seq alone is told, and the log is read there.
	headBytes  = 4 << 10
	fewReaders = 4
)

// hints gathers what a batch has for other nodes: one payload a user or large group. It belongs to the deliverer.
type hints struct {
	p      *peers
	users  map[string]*hint
	groups map[string][]byte
	of     *pending // what enc is the encoding of
	enc    []byte
}

type hint struct {
	u       *user
	payload []byte
	waiting []waiting // direct messages whose sender is told that they wait, where no node has the user
}

type waiting struct {
	to string
	receipt
}

func (h *hints) init(p *peers) { h.p, h.users, h.groups = p, map[string]*hint{}, map[string][]byte{} }

// add says that a message has a place in the inbox of a user, whose object is u. wait has the sender told that it waits,
// should no node hold the user. It returns false where there is nobody to say it to.
func (h *hints) add(x *pending, ref store.InboxRef, u *user, wait bool) bool {
	if !h.p.reaches(u) {
		return false
	}
	to := h.users[ref.User]
	if to == nil {
		to = &hint{u: u, payload: []byte{sayMessages}}
		h.users[ref.User] = to
	}
	to.payload = wire.AppendUvarint(to.payload, ref.Seq)
	if len(x.Body) > headBytes && len(x.Inboxes) > fewReaders && x.Change == nil {
		to.payload = append(to.payload, 0)
	} else {
		if h.of != x {
			h.of, h.enc = x, appendHint(h.enc[:0], &x.Message)
		}
		to.payload = append(to.payload, h.enc...)
	}
	if wait {
		to.waiting = append(to.waiting, waiting{x.From, queuedReceipt(x)})
	}
	if len(to.payload) >= hintBytes {
		delete(h.users, ref.User)
		h.send(ref.User, to)
	}
	return true
}

// addLarge says that a message was committed to the log of a large group.
func (h *hints) addLarge(x *pending) {
	if !h.p.some.Load() {
		return
	}
	id, _ := x.Conv.Group()
	b := h.groups[id]
	if b == nil {
		b = []byte{sayGroup}
	}
	if b = appendGroupHint(b, x); len(b) >= hintBytes {
		h.p.publish(bus.Group, id, b, nil)
		b = nil
	}
	h.groups[id] = b
}

// flush sends what has gathered.
func (h *hints) flush() {
	for name, to := range h.users {
		h.send(name, to)
	}
	for id, b := range h.groups {
		if b != nil {
			h.p.publish(bus.Group, id, b, nil)
		}
	}
	clear(h.users)
	clear(h.groups)
	h.of = nil
}

func (h *hints) send(name string, to *hint) {
	var done func(int)
	if e, list := h.p.e, to.waiting; list != nil {
		done = func(nodes int) {
			if nodes > 0 {
				return // where the user is connected and does not read, that node tells
			}
			for i := range list {
				e.receipts.add(e, list[i].to, list[i].receipt)
			}
		}
	}
	h.p.say(name, to.u, to.payload, done)
}

func queuedReceipt(x *pending) receipt {
	return receipt{conv: x.Conv, cseq: x.Cseq, id: x.ID, cid: x.Cid, state: "queued", by: x.Conv.Peer(x.From), ts: x.TS}
}

// appendHint writes a message: the length of all but the body and that, the length of the body and the body.
func appendHint(dst []byte, m *store.Message) []byte {
	flags := byte(m.Encoding)
	if m.Recalled {
		flags |= 1 << 7
	}
	meta := append(make([]byte, 0, 128), flags)
	for _, s := range []string{string(m.Conv), m.From, m.Device, m.Cid, m.Type, m.ContentType} {
		meta = wire.AppendString(meta, s)
	}
	meta = wire.AppendUvarint(meta, m.Cseq)
	for _, n := range []int64{m.ID, m.TS, m.CTS, m.Expires} {
		meta = wire.AppendVarint(meta, n)
	}
	dst = append(wire.AppendUvarint(dst, uint64(len(meta))), meta...)
	return append(wire.AppendUvarint(dst, uint64(len(m.Body))), m.Body...)
}

// readHint reads what appendHint wrote; nil where there is the head alone, or what does not decode: d.Bad says so. The body
// points into the payload.
func readHint(d *wire.Decoder) *store.Message {
	meta := d.Bytes()
	if len(meta) == 0 {
		return nil
	}
	body := d.Bytes()
	text, md := string(meta), wire.Decoder{B: meta} // one string for all
	str := func() string {
		s := md.Span()
		return text[s.From:s.To]
	}
	flags := md.Byte()
	m := &store.Message{Encoding: store.Encoding(flags &^ (1 << 7)), Recalled: flags>>7 != 0}
	m.Conv = store.Conv(str())
	m.From, m.Device, m.Cid, m.Type, m.ContentType = str(), str(), str(), str(), str()
	m.Cseq = md.Uvarint()
	m.ID, m.TS, m.CTS, m.Expires = md.Varint(), md.Varint(), md.Varint(), md.Varint()
	if len(body) > 0 {
		m.Body = body[:len(body):len(body)]
	}
	if md.Bad || md.Off != len(meta) || !validConv(m.Conv) || m.Cseq == 0 || m.Cseq>>placeBits != 0 || m.Encoding > store.JSON {
		d.Bad = true
		return nil
	}
	return m
}

func validConv(c store.Conv) bool {
	if id, ok := c.Group(); ok {
		return ValidName(id)
	}
	a, b, ok := c.Users()
	return ok && ValidName(a) && ValidName(b)
}

// appendGroupHint writes a message of a large group with what it does to it: whom it concerns, with what they are to see.
func appendGroupHint(b []byte, x *pending) []byte {
	b = appendHint(b, &x.Message)
	ch := x.Change
	if ch == nil {
		return append(b, 0)
	}
	b = append(b, 1, byte(ch.Group.ReceiptMode()), byte(asInt(ch.End)))
	b = wire.AppendUvarint(b, ch.Group.LargeFrom)
	b = wire.AppendUvarint(b, uint64(len(ch.Members)))
	var spans []byte
	for i := range ch.Members {
		m := &ch.Members[i]
		spans = wire.AppendSpans(spans[:0], m.Spans)
		b = wire.AppendString(wire.AppendString(b, m.User), string(spans))
	}
	return b
}

func readGroupHint(d *wire.Decoder, conv store.Conv) *pending {
	m := readHint(d)
	if m == nil || m.Conv != conv {
		d.Bad = true
		return nil
	}
	x := &pending{Send: store.Send{Message: *m}}
	if d.Byte() == 0 {
		return x
	}
	id, _ := conv.Group()
	ch := &store.Change{Group: store.Group{ID: id, Receipts: store.ReceiptMode(d.Byte())}}
	ch.End = d.Byte() != 0
	ch.Group.LargeFrom = d.Uvarint()
	for n := d.Uvarint(); n > 0 && !d.Bad; n-- {
		mem := store.Member{User: d.Str()}
		spans := wire.Decoder{B: d.Bytes()}
		mem.Spans = spans.Spans()
		d.Bad = d.Bad || spans.Bad || !rising(mem.Spans)
		ch.Members = append(ch.Members, mem)
	}
	if ch.Group.Receipts == store.ReceiptsByKind || len(x.Body) == 0 {
		d.Bad = true
	}
	x.Change = ch
	return x
}

// rising reports whether spans are as those of a member are.
func rising(spans []store.Span) bool {
	last := uint64(0)
	for i, s := range spans {
		if s.From <= last || s.To != 0 && s.To < s.From || s.To == 0 && i < len(spans)-1 {
			return false
		}
		last = s.To
	}
	return len(spans) > 0
}

// receive takes what comes from other nodes. What does not decode is counted and dropped: it costs what a lost message does.
func (p *peers) receive(m *bus.Message) {
	if p.e.closed.Load() || len(m.Payload) == 0 {
		return
	}
	e, name, b := p.e, m.Channel.Name, m.Payload[1:]
	ok := true
	var answer []byte
	switch m.Payload[0] {
	case sayHere:
		if u := e.user(name); u != nil {
			raise(&u.elsewhere.yes, time.Now().UnixNano())
			answer = u.appendReached(nil)
		}
	case sayMessages:
		ok = e.takeMessages(name, b)
	case sayGroup:
		ok = e.takeGroup(store.GroupConv(name), b)
	case sayNotify:
		if ok = len(b) > 1; ok {
			if u := e.user(name); u != nil {
				u.notify(Channel(b[0]), b[1:], nil)
			}
		}
	case sayEvent:
		d := wire.Decoder{B: b}
		if cseq := d.Uvarint(); !d.Bad {
			e.tellFeed(store.GroupConv(name), cseq, b[d.Off:])
		}
		ok = !d.Bad
	case sayWho:
		answer = e.present(name)
	case sayRemove:
		answer = e.removeHere(name, string(b))
	case sayBlocks:
		e.blocks.forget(string(b))
	case sayChanged:
		e.changed(b)
	case sayPresence:
		e.presence.heard(name)
	default:
		ok = false
	}
	if !ok {
		e.m.Dropped("hint")
	}
	if m.Answer != nil {
		m.Answer(answer)
	}
}

// takeMessages hands over what another node has committed to a user's inbox.
func (e *Engine) takeMessages(name string, b []byte) bool {
	u := e.user(name)
	if u == nil {
		return true
	}
	d := wire.Decoder{B: b}
	touched := links{shared: true}
	defer touched.kick()
	for d.Off < len(b) {
		seq := d.Uvarint()
		m := readHint(&d)
		if d.Bad || seq == 0 {
			return false
		}
		e.take(u, seq, m, &touched)
	}
	return true
}

// take hands over the message at seq of a user's inbox; m nil: it is to be read from the log.
func (e *Engine) take(u *user, seq uint64, m *store.Message, touched *links) {
	var event []byte
	if m != nil && m.Type == "sys.group" && len(m.Body) > 0 {
		event = changeEvent(m)
	}
	u.mu.Lock()
	u.head = max(u.head, seq)
	for _, d := range u.devices {
		if m == nil {
			d.pump()
		} else if d.offer(&d.inbox, store.Entry{Seq: seq, Message: m}) {
			touched.add(d)
		}
		if event != nil && d.notify(Events, event) {
			touched.add(d)
		}
	}
	u.mu.Unlock()
	if m != nil && u.readers.Load() == 0 && m.From != u.name && m.Conv.Peer(m.From) == u.name {
		e.receipts.add(e, m.From, queuedReceipt(&pending{Send: store.Send{Message: *m}}))
	}
}

// takeGroup hands over what another node has committed to a large group.
func (e *Engine) takeGroup(conv store.Conv, b []byte) bool {
	d := wire.Decoder{B: b}
	touched := links{shared: true}
	defer touched.kick()
	for d.Off < len(b) {
		x := readGroupHint(&d, conv)
		if d.Bad {
			return false
		}
		e.offerLarge(x, &touched)
	}
	return true
}
