package im

import (
	"time"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// tellBlocks has the other nodes read a block list anew.
func (p *peers) tellBlocks(user string) {
	p.ask(p.e.ctx, bus.All, "", append([]byte{sayBlocks}, user...))
}

// tellChange has the other nodes read anew what the change of a group was about and, where the group is large, which groups
// those read who have joined or left. A node that does not answer is asked again, some times: it may be that nobody else tells
// the joiners' devices there. A node that the bus is down for loads everything again when it is back.
func (p *peers) tellChange(x *pending) {
	payload := appendChanged([]byte{sayChanged}, x)
	if _, complete := p.ask(p.e.ctx, bus.All, "", payload); complete || x.Change.Group.LargeFrom == 0 {
		return
	}
	p.e.spawn(func() {
		for _, pause := range []time.Duration{time.Second, 3 * time.Second, 9 * time.Second} {
			if !p.e.sleep(pause) {
				return
			}
			if _, complete := p.ask(p.e.ctx, bus.All, "", payload); complete {
				return
			}
		}
	})
}

func appendChanged(b []byte, x *pending) []byte {
	ch := x.Change
	b = wire.AppendString(b, ch.Group.ID)
	b = append(wire.AppendUvarint(b, x.Cseq), byte(ch.Group.ReceiptMode()), byte(asInt(ch.Group.LargeFrom != 0)))
	for i := range ch.Members {
		b = wire.AppendString(b, ch.Members[i].User)
	}
	if ch.Group.LargeFrom == x.Cseq {
		for _, name := range x.attach {
			b = wire.AppendString(b, name)
		}
	}
	return b
}

// changed is told what appendChanged wrote.
func (e *Engine) changed(b []byte) {
	d := wire.Decoder{B: b}
	id, cseq, mode, large := d.Str(), d.Uvarint(), store.ReceiptMode(d.Byte()), d.Byte() != 0
	var keys []memberKey
	for !d.Bad && d.Off < len(d.B) {
		keys = append(keys, memberKey{id, d.Str()})
	}
	if d.Bad {
		return
	}
	e.groups.forget(id)
	e.members.forget(keys...)
	e.feeds.setMode(store.GroupConv(id), mode, cseq)
	for _, k := range keys {
		if u := e.user(k.user); large && u != nil {
			e.reload(u)
		}
	}
}
