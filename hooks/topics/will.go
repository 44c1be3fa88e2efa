package topics

import (
	"context"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	imhook "github.com/mqim/mqim/hooks/im"
	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/store"
)

// A will is in the store from CONNECT on, until the client says goodbye or it is published: a crash of the server is an
// end without goodbye, too.

var errWill = errors.New("connection refused: the will may not be published")

// takeWill checks the will: mochi would publish it past OnACLCheck and OnPublish. Those under im/ hooks/im has taken.
func (x *client) takeWill(pk *packets.Packet) error {
	cl := x.c.Client
	w := &cl.Properties.Will
	if w.Flag == 0 {
		return nil
	}
	no := x.h.judge(cl, w.TopicName)
	if strings.ContainsAny(w.TopicName, "+#") {
		no = refusal{packets.ErrTopicNameInvalid, dropInvalid}
	}
	if no.reason != "" {
		x.h.log.Info("connection refused", "client", cl.ID, "remote", cl.Net.Remote, "reason", "the will may not be published to this topic")
		x.h.metrics.Dropped(no.reason)
		imhook.Refuse(cl, no.code, packets.Err3NotAuthorized.Code, "the will may not be published to this topic")
		return errWill
	}
	x.will = &store.Will{Client: cl.ID, User: x.c.User, Retain: w.Retain, Publication: message{
		Topic: w.TopicName, Payload: w.Payload, From: cl.ID, QoS: w.Qos,
	}}
	if x.c.V5 {
		p := &pk.Connect.WillProperties
		x.will.Delay, x.will.Expiry = p.WillDelayInterval, p.MessageExpiryInterval
		describe(&x.will.Publication, p, 0)
		x.will.Expires = 0
	}
	*w = mqtt.Will{}
	return nil
}

// keepWill has the will stored before CONNACK, and what an earlier connection has left given up [MQTT-3.1.3-9]: or, where
// its time has come or the session that it was of is over, published.
func (x *client) keepWill(present bool) error {
	h, client := x.h, x.c.Client.ID
	h.findWills()
	<-h.found
	if !h.settleWill(client, present, x.will == nil) {
		if err := x.settleStored(present); err != nil {
			return err
		}
	}
	if x.will == nil {
		return nil
	}
	return h.journal.Do(context.Background(), func(b *store.Batch) {
		link.AddFence(b, client, x.c.Epoch())
		b.Wills = append(b.Wills, *x.will)
	})
}

// settleWill says what becomes of a will that waits here: the client is back, with its session present or not. It reports
// whether there was one. remove says that nothing else is about to take its place in the store.
func (h *Hook) settleWill(client string, present, remove bool) bool {
	h.mu.Lock()
	old := h.wills[client]
	h.mu.Unlock()
	switch {
	case old == nil:
		return false
	case present && old.w.Due > milliseconds():
		if old.take(false) && remove {
			h.removeWill(client, old.epoch)
		}
	default:
		old.fire()
	}
	return true
}

// yield gives up what waits here of a client that is about to connect to another node.
func (h *Hook) yield(_ context.Context, client string, clean bool) {
	h.settleWill(client, !clean, true)
}

// settleStored says what becomes of a will that another node has stored and did not see to before it let the client go:
// it has died, or is cut off. Only where a claim keeps that node from publishing it, or it has died, it is this one's.
func (x *client) settleStored(present bool) error {
	h, c := x.h, x.c
	if h.cluster == nil || x.will == nil && c.Epoch() == 0 {
		return nil // whoever looks for the wills of the dead finds it
	}
	w, err := h.storedWill(c.Client.ID)
	if w == nil || w.Held && c.Epoch() == 0 {
		return err
	}
	if present && (w.Due == 0 && w.Delay > 0 || w.Due > milliseconds()) {
		if x.will == nil {
			h.removeWill(w.Client, c.Epoch())
		}
		return nil
	}
	h.publishWill(w, c.Epoch(), false)
	return nil
}

// storedWill is what is stored of a client's will; nil: nothing.
func (h *Hook) storedWill(client string) (*store.Will, error) {
	list, err := h.store.Wills(context.Background(), before(client), 1)
	if err != nil || len(list) == 0 || list[0].Client != client {
		return nil, err
	}
	return &list[0], nil
}

// before is a string that comes before a client id, such that no other client id is between them.
func before(client string) string {
	last, n := utf8.DecodeLastRuneInString(client)
	if last--; !utf8.ValidRune(last) { // a surrogate
		last = 0xd7ff
	}
	const most = 128 // bytes of a client id
	b := utf8.AppendRune([]byte(client[:len(client)-n]), last)
	for len(b)+utf8.UTFMax <= most {
		b = utf8.AppendRune(b, utf8.MaxRune)
	}
	return string(b)
}

// removeWill forgets what is stored, unless a connection with a later epoch has stored it.
func (h *Hook) removeWill(client string, epoch uint64) {
	h.journal.Later(func(b *store.Batch) {
		link.AddFence(b, client, epoch)
		b.Wills = append(b.Wills, store.Will{Client: client, Remove: true})
	})
}

// leaveWill is what becomes of the will when the connection has ended without goodbye.
func (h *Hook) leaveWill(w *store.Will, epoch uint64, delay time.Duration) {
	if h.superseded(w.Client, epoch) {
		return
	}
	if delay <= 0 {
		h.publishWill(w, epoch, false)
		return
	}
	w.Due = time.Now().Add(delay).UnixMilli()
	h.await(&delayed{h: h, w: w, epoch: epoch})
}

// superseded reports whether another node has made a later claim on a client: it has its will, too.
func (h *Hook) superseded(client string, epoch uint64) bool {
	if h.cluster == nil || epoch == 0 {
		return false
	}
	last, err := h.store.Epochs(context.Background(), []string{client}, nil)
	return err == nil && len(last) == 1 && last[0] > epoch
}

// publishWill publishes a will, and forgets it with that. late says that the client may have another one by now.
func (h *Hook) publishWill(w *store.Will, epoch uint64, late bool) {
	cl := h.server.NewClient(nil, "", w.Client, false) // for the rules, which are asked again
	cl.Properties.Username = []byte(w.User)
	if no := h.judge(cl, w.Topic); no.reason != "" {
		h.drop(dropWill, w.Client)
		h.removeWill(w.Client, epoch)
		return
	}
	m := w.Publication
	o := outgoing{message: m, retain: w.Retain}
	if w.Expiry != 0 {
		o.Expires = milliseconds() + int64(w.Expiry)*1000
		m.Expires = o.Expires
	}
	o.kept = &m // nothing reuses its payload
	h.send(&delivery{h: h, o: o, will: w, epoch: epoch, late: late})
}

// delayed is a will that waits for its delay. Whoever takes it out of Hook.wills publishes it, or gives it up.
type delayed struct {
	h       *Hook
	w       *store.Will
	epoch   uint64 // of the connection
	adopted bool   // from a process that has died: it is not known whether the client is back
	timer   *time.Timer
}

// await publishes a will when it is due, after having that stored.
func (h *Hook) await(d *delayed) {
	w := d.w
	h.opt.Registry.Hold(w.Client)
	h.mu.Lock()
	defer h.mu.Unlock()
	// Under the lock, so that what the client's next connection stores comes after it.
	h.journal.Later(func(b *store.Batch) {
		link.AddFence(b, w.Client, d.epoch)
		b.Wills = append(b.Wills, *w)
	})
	if h.stopped {
		return // it is found at the next start
	}
	if old := h.wills[w.Client]; old != nil {
		old.timer.Stop()
		h.opt.Registry.Unhold(w.Client)
	}
	h.wills[w.Client] = d
	d.timer = time.AfterFunc(time.Until(time.UnixMilli(w.Due)), d.fire)
}

// take reports whether the will is still to be decided on, and decides.
func (d *delayed) take(publish bool) bool {
	h := d.h
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.wills[d.w.Client] != d {
		return false
	}
	delete(h.wills, d.w.Client)
	d.timer.Stop()
	h.opt.Registry.Unhold(d.w.Client)
	if publish {
		h.running.Add(1)
	}
	return true
}

// fire publishes the will.
func (d *delayed) fire() {
	if !d.take(true) {
		return
	}
	h := d.h
	defer h.running.Done()
	if h.superseded(d.w.Client, d.epoch) {
		return
	}
	if d.adopted {
		if w, err := h.storedWill(d.w.Client); err == nil && (w == nil || w.Held || w.Due != d.w.Due) {
			return // another node has seen to it
		}
	}
	h.publishWill(d.w, d.epoch, true)
}

const willsPage = 256

// findWills begins to look for the wills that an earlier run of the server has left: of clients that were connected when
// it ended, and those that wait. It runs beside everything else, but connections: what becomes of a will is not known
// before it is found.
func (h *Hook) findWills() {
	h.finding.Do(func() {
		if !h.spawn(h.restoreWills) {
			close(h.found)
		}
	})
}

func (h *Hook) restoreWills() {
	defer close(h.found)
	h.adoptWills()
}

// adoptWills awaits the wills that nobody sees to.
func (h *Hook) adoptWills() {
	after := ""
	for {
		list, err := h.store.Wills(context.Background(), after, willsPage)
		if err != nil {
			h.log.Error("wills cannot be read", "error", err)
			return
		}
		if len(list) == 0 {
			return
		}
		for i := range list {
			after = list[i].Client
			h.mu.RLock()
			mine, stopped := h.wills[after] != nil, h.stopped
			h.mu.RUnlock()
			if stopped {
				return
			}
			if !mine && !list[i].Held && !h.opt.Registry.Taken(after) {
				h.restoreWill(&list[i])
			}
		}
	}
}

func (h *Hook) restoreWill(w *store.Will) {
	d := &delayed{h: h, w: w, adopted: h.cluster != nil}
	if h.cluster != nil { // before the will is looked at again, so that a later claim is one
		if last, err := h.store.Epochs(context.Background(), []string{w.Client}, nil); err == nil && len(last) == 1 {
			d.epoch = last[0]
		}
		// What a connection of this node has left is being published, or waits, before the connection counts as gone.
		_ = h.journal.Flush(context.Background())
		now, err := h.storedWill(w.Client)
		if err != nil || now == nil || now.Held || h.opt.Registry.Taken(w.Client) {
			return
		}
		d.w, w = now, now
	}
	if w.Due == 0 {
		delay := time.Duration(w.Delay) * time.Second
		rec, err := h.store.Session(context.Background(), w.Client)
		switch {
		case err != nil:
			delay = 0 // it ended with the connection
		case rec.Ends() != 0:
			delay = min(delay, time.Until(time.UnixMilli(rec.Ends())))
		}
		w.Due = time.Now().Add(delay).UnixMilli()
	}
	h.await(d)
}
