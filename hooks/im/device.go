package im

import (
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/hooks/link"
	engine "github.com/mqim/mqim/im"
	"github.com/mqim/mqim/store"
)

// device is a connection as the engine sees it: engine.Link over link.Conn.
type device struct {
	h    *Hook
	c    *link.Conn
	user string
	dev  *engine.Device // set before anything is delivered

	topicPlain, topicMsg, topicReply, topicReceipt, topicEvent string

	view  atomic.Pointer[view] // how it reads, from its filters
	will  func()               // what to do when the connection ends without DISCONNECT
	ended atomic.Bool

	present bool // CONNACK's Session Present

	handling atomic.Uint64 // ticket of the request that the reading goroutine is at

	// The reading goroutine's: the SUBSCRIBE or UNSUBSCRIBE that is being handled.
	asked []byte
}

// view is what a device's filters under im/ come to.
type view struct {
	profile  engine.Profile
	channels engine.Channel
	subs     map[string]link.Sub

	message, reply, receipt, event link.Sub // the subscriptions that match these topics, merged
}

var _ engine.Link = (*device)(nil)
var _ link.Owner = (*device)(nil)

func newDevice(h *Hook, c *link.Conn) *device {
	base := userDir + c.User
	d := &device{
		h: h, c: c, user: c.User,
		topicPlain: base, topicMsg: base + "/msg", topicReply: base + "/reply",
		topicReceipt: base + "/receipt", topicEvent: base + "/event",
	}
	d.view.Store(&view{})
	return d
}

// look computes the view anew from the session's filters. It is called by the reading goroutine.
func (d *device) look() {
	s := d.c.Session
	v := &view{subs: map[string]link.Sub{}}
	s.Lock()
	for f, sub := range s.Subs {
		v.subs[f] = sub
	}
	s.Unlock()
	msg, im := v.match(d.topicMsg)
	plain, isPlain := v.match(d.topicPlain)
	switch {
	case im:
		v.profile, v.message = engine.IM, msg
	case isPlain:
		v.profile, v.message = engine.Plain, plain
	}
	var ok bool
	if v.reply, ok = v.match(d.topicReply); ok || len(v.subs) > 0 && !(len(v.subs) == 1 && isPlain) {
		v.channels |= engine.Replies // there may be a response topic
	}
	if v.receipt, ok = v.match(d.topicReceipt); ok {
		v.channels |= engine.Receipts
	}
	if v.event, ok = v.match(d.topicEvent); ok {
		v.channels |= engine.Events
	}
	d.view.Store(v)
	d.dev.SetProfile(v.profile, v.channels)
}

// match merges the subscriptions that match a topic: the highest QoS [MQTT-3.3.4-2], one identifier.
func (v *view) match(topic string) (sub link.Sub, ok bool) {
	for f, s := range v.subs {
		if link.Matches(f, topic) {
			sub.QoS = max(sub.QoS, s.QoS)
			if s.ID != 0 {
				sub.ID = s.ID
			}
			ok = true
		}
	}
	return sub, ok
}

var scratch = sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}

const maxScratch = 64 << 10

func release(p *[]byte, b []byte) {
	if cap(b) <= maxScratch {
		*p = b[:0]
		scratch.Put(p)
	}
}

// Deliver implements engine.Link.
func (d *device) Deliver(e store.Entry, place uint64, p engine.Profile, attempt int) bool {
	v := d.view.Load()
	pub := link.Publication{QoS: v.message.QoS, Owner: d, Token: place, Notify: true}
	buf := scratch.Get().(*[]byte)
	b := (*buf)[:0]
	if p == engine.IM {
		pub.Topic = d.topicMsg
		b = engine.AppendMessage(b, d.user, e.Seq, e.Message, attempt)
		pub.Payload = b
		if d.c.V5 && v.message.ID != 0 {
			n := len(b)
			b = link.AppendSubscriptionID(b, v.message.ID)
			pub.Payload, pub.Props = b[:n], b[n:]
		}
	} else {
		pub.Topic, pub.Payload = d.topicPlain, e.Body
		if d.c.V5 {
			b = d.appendProps(b, e, v.message.ID)
			pub.Props = b
		}
	}
	ok := d.c.Publish(&pub)
	release(buf, b)
	return ok
}

// appendProps appends the MQTT 5 properties of a message in the plain profile.
func (d *device) appendProps(b []byte, e store.Entry, subID int) []byte {
	var num [20]byte
	b = link.AppendUserProperty(b, "id", string(strconv.AppendInt(num[:0], e.ID, 10)))
	if e.Seq != 0 {
		b = link.AppendUserProperty(b, "seq", string(strconv.AppendUint(num[:0], e.Seq, 10)))
	}
	b = link.AppendUserProperty(b, "conv", e.Conv.Address(d.user))
	b = link.AppendUserProperty(b, "cseq", string(strconv.AppendUint(num[:0], e.Cseq, 10)))
	b = link.AppendUserProperty(b, "from", e.From)
	b = link.AppendUserProperty(b, "ts", string(strconv.AppendInt(num[:0], e.TS, 10)))
	b = link.AppendUserProperty(b, "type", e.Type)
	if cid := engine.ClientCid(e.Cid); cid != "" {
		b = link.AppendUserProperty(b, "cid", cid)
	}
	if e.ContentType != "" {
		b = link.AppendContentType(b, e.ContentType)
	}
	if e.Expires != 0 {
		left := max(1, (e.Expires-time.Now().UnixMilli()+999)/1000)
		b = link.AppendExpiry(b, uint32(left)) // [MQTT-3.3.2-6]
	}
	if subID != 0 {
		b = link.AppendSubscriptionID(b, subID)
	}
	return b
}

// Answer implements engine.Link.
func (d *device) Answer(t engine.Ticket, reply []byte, err *engine.Error) {
	if reply != nil {
		d.reply(t, reply)
	}
	switch {
	case err == nil:
		d.c.Answer(uint64(t), packets.CodeSuccess.Code, "")
	case err.Code == engine.Unavailable && !d.c.V5 && t != 0:
		d.c.Fail(uint64(t))
		d.c.Disconnect(closings[engine.CloseStore]) // without PUBACK: 3.1.1 has no other way to say "send again"
	default:
		d.c.Answer(uint64(t), reasonFor(err.Code), err.Error())
	}
}

// reply sends the answer to a command to where the device wants it, if it listens there. The answer to the command that
// is being handled always finds room, since the reading goroutine has waited for some; a late one, to a message, is
// dropped where the device does not read: the PUBACK tells, and the same cid again.
func (d *device) reply(t engine.Ticket, reply []byte) {
	v := d.view.Load()
	pub := link.Publication{Topic: d.topicReply, Payload: reply, Force: uint64(t) == d.handling.Load()}
	if r := d.c.Response(uint64(t)); r != nil {
		if link.Matches(d.topicPlain+"/#", r.Topic) && r.Topic != d.topicPlain {
			pub.Topic = r.Topic
		}
		if len(r.Correlation) > 0 {
			pub.Props = link.AppendCorrelation(nil, r.Correlation)
		}
	}
	sub, ok := v.match(pub.Topic)
	if !ok {
		return
	}
	if d.c.V5 && sub.ID != 0 {
		pub.Props = link.AppendSubscriptionID(pub.Props, sub.ID)
	}
	if !d.c.Publish(&pub) {
		d.dev.Dropped("reply")
	}
}

// Notify implements engine.Link.
func (d *device) Notify(c engine.Channel, payload []byte) bool {
	v := d.view.Load()
	pub := link.Publication{Topic: d.topicEvent, Payload: payload}
	sub := v.event
	if c == engine.Receipts {
		pub.Topic, sub = d.topicReceipt, v.receipt
	}
	if d.c.V5 && sub.ID != 0 {
		pub.Props = link.AppendSubscriptionID(nil, sub.ID)
	}
	return d.c.Publish(&pub)
}

// Kick implements engine.Link.
func (d *device) Kick() { d.c.Kick() }

// Close implements engine.Link.
func (d *device) Close(r engine.CloseReason) {
	switch r {
	case engine.CloseRemoved:
		d.h.reg.Forget(d.c.Session.Client)
	case engine.CloseStore:
		d.c.FailAll()
	case engine.CloseTaken:
		d.c.Lose()
		return
	}
	d.c.Disconnect(closings[r])
}

// Acked implements link.Owner: token is the message's place.
func (d *device) Acked(token uint64, reason byte) {
	if reason == packets.ErrPacketTooLarge.Code {
		d.dev.TooLarge(token) // for the client's Maximum Packet Size
		return
	}
	d.dev.Taken(token)
}

// Room implements link.Owner.
func (d *device) Room() { d.dev.Ready() }
