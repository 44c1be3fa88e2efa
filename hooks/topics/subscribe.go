package topics

import (
	"strings"
	"sync/atomic"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// request is a filter whose retained messages are to be sent after SUBACK.
type request struct {
	sub     packets.Subscription
	granted bool
}

const dontSend = 2 // Retain Handling: no retained messages

// OnSubscribe notes which retained messages are wanted, and keeps mochi from sending them, which it would do through
// its inflight table.
func (h *Hook) OnSubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	x := clientOf(cl)
	if x == nil || x.s == nil {
		return pk
	}
	x.asked = x.asked[:0]
	filters := make(packets.Subscriptions, len(pk.Filters))
	for i, sub := range pk.Filters {
		want := sub.RetainHandling != dontSend && !mqtt.IsSharedFilter(sub.Filter) // [MQTT-3.3.1-11]
		if want && sub.RetainHandling == 1 {
			_, existed := cl.State.Subscriptions.Get(sub.Filter)
			want = !existed // [MQTT-3.3.1-10]
		}
		if want {
			x.asked = append(x.asked, request{sub: sub})
		}
		filters[i] = sub
		filters[i].RetainHandling = dontSend
	}
	pk.Filters = filters
	return pk
}

// OnSubscribed is called when the trie has changed and SUBACK is about to be written.
func (h *Hook) OnSubscribed(cl *mqtt.Client, pk packets.Packet, codes []byte) {
	h.routes.changed()
	x := clientOf(cl)
	if x == nil {
		return
	}
	for i := range x.asked {
		for j, f := range pk.Filters {
			if j < len(codes) && f.Filter == x.asked[i].sub.Filter {
				x.asked[i].granted = codes[j] < packets.ErrUnspecifiedError.Code
			}
		}
	}
}

// OnUnsubscribed is called when the trie has changed.
func (h *Hook) OnUnsubscribed(*mqtt.Client, packets.Packet) { h.routes.changed() }

// Recheck ends the subscriptions that Options.Allow allows no more, and returns their number. It is to be called when
// the rules have changed: deliveries are not checked one by one. The client is not told; MQTT has no packet for that.
func (h *Hook) Recheck() (ended int) {
	if h.opt.Allow == nil {
		return 0
	}
	for id, cl := range h.server.Clients.GetAll() {
		if cl.Net.Inline {
			continue
		}
		for filter := range cl.State.Subscriptions.GetAll() {
			if !h.opt.Allow(cl, filter, false) && h.server.Topics.Unsubscribe(filter, id) {
				cl.State.Subscriptions.Delete(filter)
				atomic.AddInt64(&h.server.Info.Subscriptions, -1)
				ended++
			}
		}
	}
	if ended > 0 {
		h.routes.changed()
	}
	return ended
}

// OnPacketProcessed sends retained messages when SUBACK is on its way.
func (h *Hook) OnPacketProcessed(cl *mqtt.Client, pk packets.Packet, err error) {
	if pk.FixedHeader.Type != packets.Subscribe {
		return
	}
	x := clientOf(cl)
	if x == nil || err != nil {
		return
	}
	for _, r := range x.asked {
		if r.granted {
			x.s.sendRetained(h.matching(r.sub.Filter), r.sub.Qos, appendIDs(&r.sub), h.retained.len())
		}
	}
	clear(x.asked)
	x.asked = x.asked[:0]
}

// matching returns the retained messages for a filter. Those under $SYS are mochi's.
func (h *Hook) matching(filter string) []*message {
	now := milliseconds()
	if !strings.HasPrefix(filter, mqtt.SysPrefix+"/") {
		return h.retained.matching(filter, now)
	}
	var list []*message
	for _, pk := range h.server.Topics.Messages(filter) {
		o := fromPacket(&pk, now)
		list = append(list, o.keep())
	}
	return list
}
