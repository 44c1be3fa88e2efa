package topics

import (
	"context"
	"errors"
	"strings"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	imhook "github.com/mqim/mqim/hooks/im"
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
	h := x.h
	h.findWills()
	<-h.found
	h.mu.Lock()
	old := h.wills[x.c.Client.ID]
	h.mu.Unlock()
	switch {
	case old == nil:
	case present && old.w.Due > milliseconds():
		if old.take(false) && x.will == nil {
			h.removeWill(x.c.Client.ID)
		}
	default:
		old.fire()
	}
	if x.will == nil {
		return nil
	}
	return h.journal.Do(context.Background(), func(b *store.Batch) { b.Wills = append(b.Wills, *x.will) })
}

func (h *Hook) removeWill(client string) {
	h.journal.Later(func(b *store.Batch) { b.Wills = append(b.Wills, store.Will{Client: client, Remove: true}) })
}

// leaveWill is what becomes of the will when the connection has ended without goodbye.
func (h *Hook) leaveWill(w *store.Will, delay time.Duration) {
	if delay <= 0 {
		h.publishWill(w, false)
		return
	}
	w.Due = time.Now().Add(delay).UnixMilli()
	h.await(w)
}

// publishWill publishes a will, and forgets it with that. late says that the client may have another one by now.
func (h *Hook) publishWill(w *store.Will, late bool) {
	cl := h.server.NewClient(nil, "", w.Client, false) // for the rules, which are asked again
	cl.Properties.Username = []byte(w.User)
	if no := h.judge(cl, w.Topic); no.reason != "" {
		h.drop(dropWill, w.Client)
		h.removeWill(w.Client)
		return
	}
	m := w.Publication
	o := outgoing{message: m, retain: w.Retain}
	if w.Expiry != 0 {
		o.Expires = milliseconds() + int64(w.Expiry)*1000
		m.Expires = o.Expires
	}
	o.kept = &m // nothing reuses its payload
	h.send(&delivery{h: h, o: o, will: w, late: late})
}

// delayed is a will that waits for its delay. Whoever takes it out of Hook.wills publishes it, or gives it up.
type delayed struct {
	h     *Hook
	w     *store.Will
	timer *time.Timer
}

// await publishes a will when it is due, after having that stored.
func (h *Hook) await(w *store.Will) {
	h.mu.Lock()
	defer h.mu.Unlock()
	// Under the lock, so that what the client's next connection stores comes after it.
	h.journal.Later(func(b *store.Batch) { b.Wills = append(b.Wills, *w) })
	if h.stopped {
		return // it is found at the next start
	}
	d := &delayed{h: h, w: w}
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
	if publish {
		h.running.Add(1)
	}
	return true
}

// fire publishes the will.
func (d *delayed) fire() {
	if d.take(true) {
		defer d.h.running.Done()
		d.h.publishWill(d.w, true)
	}
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
			h.restoreWill(&list[i])
		}
	}
}

func (h *Hook) restoreWill(w *store.Will) {
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
	h.await(w)
}
