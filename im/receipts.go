package im

import (
	"strconv"
	"sync"
	"time"

	"github.com/mqim/mqim/store"
)

// receipt tells a sender how far its messages in a conversation have come: a watermark.
type receipt struct {
	conv  store.Conv
	cseq  uint64
	id    int64
	cid   string
	state string // queued, delivered or read
	by    string
	ts    int64
}

type receiptKey struct {
	to, state, by string
	conv          store.Conv
}

// receipts gathers receipts and sends them from a goroutine of its own. While it sends, those that come in for the
// same watermark merge, so that under load one receipt speaks for many messages. It is bounded: a receipt that finds
// no place is dropped, since the watermark itself is stored.
type receipts struct {
	mu    sync.Mutex
	next  map[receiptKey]receipt
	order []receiptKey
	wake  chan struct{}
}

const maxReceipts = 65536 // watermarks waiting to be sent

func (r *receipts) init() {
	r.next = map[receiptKey]receipt{}
	r.wake = make(chan struct{}, 1)
}

// add sends rc to the devices of user to that want receipts, if any is connected, here or elsewhere.
func (r *receipts) add(e *Engine, to string, rc receipt) {
	if !e.wanted(to, Receipts) {
		return
	}
	k := receiptKey{to: to, state: rc.state, by: rc.by, conv: rc.conv}
	r.mu.Lock()
	defer r.mu.Unlock()
	old, ok := r.next[k]
	switch {
	case ok && old.cseq >= rc.cseq:
		return
	case !ok && len(r.next) >= maxReceipts:
		e.m.Dropped("receipt")
		return
	case !ok:
		r.order = append(r.order, k)
	}
	r.next[k] = rc
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *receipts) take(spare map[receiptKey]receipt) (map[receiptKey]receipt, []receiptKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, order := r.next, r.order
	r.next, r.order = spare, nil
	return m, order
}

func (e *Engine) receiptLoop() {
	spare := map[receiptKey]receipt{}
	var b []byte
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-e.receipts.wake:
		}
		m, order := e.receipts.take(spare)
		for _, k := range order {
			if k.state == "queued" && m[receiptKey{to: k.to, state: "delivered", by: k.by, conv: k.conv}].cseq >= m[k].cseq {
				continue // a later word on it has merged into an earlier place
			}
			b = e.sendReceipt(k, m[k], b[:0])
		}
		clear(m)
		spare = m
	}
}

func (e *Engine) sendReceipt(k receiptKey, rc receipt, b []byte) []byte {
	if !e.wanted(k.to, Receipts) {
		return b
	}
	switch told, err := e.mayLearn(k); {
	case err != nil:
		e.m.Dropped("receipt") // it stands in the store all the same
		return b
	case !told:
		return b
	}
	if rc.ts == 0 {
		rc.ts = time.Now().UnixMilli()
	}
	b = rc.append(b, k.to)
	e.notify(k.to, Receipts, b, nil)
	e.m.Receipt()
	return b
}

// mayLearn reports whether the sender of a message is told now who has it: in a group that names them, as long as it is a
// member; of another user, unless that one has blocked it.
func (e *Engine) mayLearn(k receiptKey) (bool, error) {
	id, ok := k.conv.Group()
	if !ok {
		blocked, err := e.blocked(e.ctx, k.by, k.to)
		return !blocked, err
	}
	g, err := e.groups.get(e.ctx, id)
	if err != nil || g.receipts != store.ReceiptsAll {
		return false, err
	}
	m, err := e.members.get(e.ctx, memberKey{id, k.to})
	return m.role != store.NoRole, err
}

func (rc *receipt) append(b []byte, user string) []byte {
	b = append(b, `{"state":"`...)
	b = append(b, rc.state...)
	b = append(b, '"')
	b = appendConv(b, user, rc.conv)
	b = appendUint(b, "cseq", rc.cseq)
	if rc.id != 0 {
		b = append(b, `,"id":"`...)
		b = strconv.AppendInt(b, rc.id, 10)
		b = append(b, '"')
	}
	if cid := ClientCid(rc.cid); cid != "" {
		b = appendField(b, "cid", cid)
	}
	b = appendField(b, "by", rc.by)
	b = appendInt(b, "ts", rc.ts)
	return append(b, '}')
}

// notify sends payload on a channel, if the device listens, and reports whether it did. What finds no room is dropped and
// counted.
func (d *Device) notify(c Channel, payload []byte) bool {
	if !d.wants(c) {
		return false
	}
	sent := d.link.Notify(c, payload)
	if !sent {
		d.e.m.Dropped("notification")
	}
	return sent
}

// notify sends payload on a channel to the user's connected devices that listen, but for one.
func (u *user) notify(c Channel, payload []byte, but *Device) {
	u.mu.Lock()
	var kick [8]*Device
	list := kick[:0]
	for _, d := range u.devices {
		if d != but && d.notify(c, payload) {
			list = append(list, d)
		}
	}
	u.mu.Unlock()
	for _, d := range list {
		d.link.Kick()
	}
}
