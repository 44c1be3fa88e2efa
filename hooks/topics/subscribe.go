package topics

import (
	"bytes"
	"context"
	"sync/atomic"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/store"
)

// request is a filter whose retained messages are to be sent after SUBACK.
type request struct {
	sub     packets.Subscription
	granted bool
	scan    scan
	first   []*message // the first page
	read    bool       // it has been read
}

// readAhead is how many filters of a SUBSCRIBE have their retained messages looked up before SUBACK, so that what is
// published after that does not come twice, once as retained. It bounds what such pages hold in memory.
const readAhead = 4

const dontSend = 2 // Retain Handling: no retained messages

// OnSubscribe notes which retained messages are wanted, and keeps mochi from sending them, which it would do through
// its inflight table.
func (h *Hook) OnSubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	pk.Properties.User = nil // mochi would send them back, in a packet that may be larger than the client takes
	x := clientOf(cl)
	if x == nil || x.s == nil {
		return pk
	}
	x.asked, x.fresh = x.asked[:0], false
	filters := make(packets.Subscriptions, len(pk.Filters))
	for i, sub := range pk.Filters {
		want := sub.RetainHandling != dontSend && !mqtt.IsSharedFilter(sub.Filter) // [MQTT-3.3.1-11]
		had, existed := cl.State.Subscriptions.Get(sub.Filter)
		if want && sub.RetainHandling == 1 {
			want = !existed // [MQTT-3.3.1-10]
		}
		x.fresh = x.fresh || !existed || !bytes.Equal(encodeSubscription(cl.ID, &had).Options, encodeSubscription(cl.ID, &sub).Options)
		if want {
			x.asked = append(x.asked, request{sub: sub})
		}
		filters[i] = sub
		filters[i].RetainHandling = dontSend
	}
	pk.Filters = filters
	return pk
}

// OnSubscribed is called when the trie has changed and SUBACK is about to be written, with codes, which may still be
// changed: what cannot be stored for a durable session is not granted.
func (h *Hook) OnSubscribed(cl *mqtt.Client, pk packets.Packet, codes []byte) {
	x := clientOf(cl)
	if x == nil || x.s == nil {
		h.routes.changed()
		return
	}
	var keep []store.Subscription
	for i := range pk.Filters {
		if i < len(codes) && codes[i] < packets.ErrUnspecifiedError.Code {
			keep = append(keep, encodeSubscription(cl.ID, &pk.Filters[i]))
		}
	}
	if err := x.c.Remember(keep, false); err != nil {
		h.log.Warn("a subscription cannot be stored", "client", cl.ID, "error", err)
		for i := range pk.Filters {
			if i >= len(codes) || codes[i] >= packets.ErrUnspecifiedError.Code {
				continue
			}
			h.unsubscribe(cl, pk.Filters[i].Filter)
			if codes[i] = packets.ErrUnspecifiedError.Code; x.c.V5 {
				codes[i] = packets.ErrImplementationSpecificError.Code
			}
		}
	}
	first := false
	for i := range pk.Filters {
		if i < len(codes) && codes[i] < packets.ErrUnspecifiedError.Code {
			first = h.note(x.s, &pk.Filters[i]) || first
		}
		h.forgo(cl, pk.Filters[i].Filter)
	}
	var told *told
	if x.s.durable {
		told = h.restored(keep)
	}
	h.routes.changed()
	switch { // what is published anywhere after SUBACK is delivered
	case h.cluster == nil:
	case x.s.durable && x.fresh && len(keep) > 0:
		h.cluster.reveal(keep, told)
	case first || x.s.durable && len(keep) > 0:
		h.cluster.wait()
	}
	for i := range x.asked {
		for j, f := range pk.Filters {
			if j < len(codes) && f.Filter == x.asked[i].sub.Filter {
				x.asked[i].granted = codes[j] < packets.ErrUnspecifiedError.Code
			}
		}
		if x.asked[i].granted && i < readAhead {
			x.readFirst(&x.asked[i])
		}
	}
}

// forgo takes a subscription out of mochi's trie, which nobody asks: what it held would be held twice.
func (h *Hook) forgo(cl *mqtt.Client, filter string) {
	if h.server.Topics.Unsubscribe(filter, cl.ID) {
		atomic.AddInt64(&h.server.Info.Subscriptions, -1)
	}
}

// OnUnsubscribe removes what is stored, before UNSUBACK says so. mochi looks into its trie for whether there is anything to
// unsubscribe from, and is to find it there.
func (h *Hook) OnUnsubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	pk.Properties.User = nil // as in OnSubscribe
	x := clientOf(cl)
	if x == nil || x.s == nil {
		return pk
	}
	var gone []store.Subscription
	for _, f := range pk.Filters {
		gone = append(gone, store.Subscription{Client: cl.ID, Filter: f.Filter})
		if sub, ok := cl.State.Subscriptions.Get(f.Filter); ok && h.server.Topics.Subscribe(cl.ID, sub) {
			atomic.AddInt64(&h.server.Info.Subscriptions, 1)
		}
	}
	if err := x.c.Remember(gone, true); err != nil {
		h.log.Warn("a subscription cannot be removed", "client", cl.ID, "error", err)
		x.c.Disconnect(packets.ErrServerUnavailable) // it is the client's to ask again
	}
	if x.s.durable {
		if h.restored(gone); h.cluster != nil {
			h.cluster.wait()
		}
	}
	return pk
}

// restored is called when stored subscriptions have changed. It returns what the other nodes are told of it with.
func (h *Hook) restored(subs []store.Subscription) *told {
	for i := range subs {
		h.matches.changed(subs[i].Filter)
	}
	if h.cluster == nil || len(subs) == 0 {
		return nil
	}
	return h.cluster.stored(subs)
}

// renewed is called when a client's stored session is over.
func (h *Hook) renewed(client string, wait bool) {
	h.matches.ended(client)
	h.routes.changed()
	if h.cluster == nil {
		return
	}
	h.cluster.happened(keyEnded, client)
	if wait {
		h.cluster.wait()
	}
}

// OnUnsubscribed is called when the trie has changed.
func (h *Hook) OnUnsubscribed(cl *mqtt.Client, pk packets.Packet) {
	if x := clientOf(cl); x != nil && x.s != nil {
		for i := range pk.Filters {
			h.noted(x.s).remove(x.s, pk.Filters[i].Filter)
		}
	}
	h.routes.changed()
}

// unsubscribe ends a subscription, but for what is stored of it.
func (h *Hook) unsubscribe(cl *mqtt.Client, filter string) bool {
	if x := clientOf(cl); x != nil && x.s != nil {
		h.noted(x.s).remove(x.s, filter)
	}
	_, ok := cl.State.Subscriptions.Get(filter)
	cl.State.Subscriptions.Delete(filter)
	return ok
}

// Recheck ends the subscriptions that Options.Allow allows no more. It is to be called when the rules have changed:
// deliveries are not checked one by one. It does not wait for the store: what is stored follows, first for clients that
// are connected. Clients are not told; MQTT has no packet for that.
func (h *Hook) Recheck() {
	if h.opt.Allow == nil {
		return
	}
	var gone []store.Subscription
	for _, cl := range h.server.Clients.GetAll() {
		if cl.Net.Inline {
			continue
		}
		for filter := range cl.State.Subscriptions.GetAll() {
			if h.opt.Allow(cl, filter, false) || !h.unsubscribe(cl, filter) {
				continue
			}
			if x := clientOf(cl); x != nil && x.c.Session.Durable() {
				gone = append(gone, store.Subscription{Client: cl.ID, Filter: filter})
			}
		}
	}
	h.routes.changed()
	h.journal.Later(func(b *store.Batch) { b.Unsubscribes = append(b.Unsubscribes, gone...) })
	h.mu.Lock()
	defer h.mu.Unlock()
	h.recheck = true
	if !h.rechecking && !h.stopped {
		h.rechecking = true
		h.running.Go(h.recheckStored)
	}
}

const sessionsPage = 256

// recheckStored ends what is stored and not allowed any more: once for all calls of Recheck that came before it began.
// One goroutine does it, and gives up when the hook stops: who resumes a session is checked then.
func (h *Hook) recheckStored() {
	for {
		h.mu.Lock()
		if !h.recheck || h.stopped {
			h.rechecking = false
			h.mu.Unlock()
			return
		}
		h.recheck = false
		h.mu.Unlock()
		h.recheckPages()
	}
}

func (h *Hook) recheckPages() {
	after := ""
	for {
		_ = h.journal.Flush(context.Background()) // one page at a time
		h.restored([]store.Subscription{{Filter: everyFilter}})
		h.routes.changed()
		list, err := h.store.Sessions(context.Background(), after, sessionsPage)
		if err != nil {
			h.log.Error("sessions cannot be checked against the rules", "error", err)
		}
		h.mu.RLock()
		stopped := h.stopped
		h.mu.RUnlock()
		if len(list) == 0 || stopped {
			return
		}
		var gone []store.Subscription
		for i := range list {
			after = list[i].Client
			if h.live(after) == nil {
				gone = append(gone, h.denied(&list[i])...)
			}
		}
		h.journal.Later(func(b *store.Batch) { b.Unsubscribes = append(b.Unsubscribes, gone...) })
	}
}

// denied lists the subscriptions of a session that are not allowed any more.
func (h *Hook) denied(rec *store.Session) (gone []store.Subscription) {
	subs, err := h.store.Subscriptions(context.Background(), rec.Client)
	if err != nil {
		h.log.Error("a session cannot be checked against the rules", "client", rec.Client, "error", err)
	}
	cl := h.server.NewClient(nil, "", rec.Client, false)
	cl.Properties.Username = []byte(rec.User)
	for i := range subs {
		if !subs[i].Hidden() && !h.opt.Allow(cl, subs[i].Filter, false) {
			gone = append(gone, subs[i])
		}
	}
	return gone
}

// forget removes stored subscriptions.
func (h *Hook) forget(cl *mqtt.Client, gone []store.Subscription) {
	if x := clientOf(cl); x != nil {
		if err := x.c.Remember(gone, true); err != nil {
			h.log.Error("subscriptions that are not allowed any more cannot be removed", "client", cl.ID, "error", err)
		}
		h.restored(gone)
	}
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
	for i := range x.asked {
		if x.asked[i].granted {
			x.sendRetained(&x.asked[i])
		}
	}
	clear(x.asked)
	x.asked = x.asked[:0]
}

// systemRetained are the retained messages for a filter under $SYS: Options.System or, without it, mochi's.
func (h *Hook) systemRetained(filter string) []*message {
	switch {
	case !system(filter):
		return nil
	case h.opt.System != nil:
		return h.systemMatching(filter)
	}
	var list []*message
	now := milliseconds()
	for _, pk := range h.server.Topics.Messages(filter) {
		o := fromPacket(&pk, now)
		list = append(list, o.keep())
	}
	return list
}
