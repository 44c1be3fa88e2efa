package topics

import (
	"errors"
	"strings"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	imhook "github.com/mqim/mqim/hooks/im"
)

// will is what a client leaves behind if it goes without saying goodbye.
type will struct {
	cl     *mqtt.Client // who it is for: the rules are asked again when it is due
	m      message
	expiry int64 // milliseconds from its publication; 0: none
	retain bool
	delay  time.Duration
}

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
	x.will = &will{
		cl: cl, retain: w.Retain,
		m: message{topic: w.TopicName, payload: w.Payload, from: cl.ID, qos: w.Qos},
	}
	if x.c.V5 {
		p := &pk.Connect.WillProperties
		x.will.delay = time.Duration(p.WillDelayInterval) * time.Second
		x.will.m.describe(p, 0)
		x.will.expiry, x.will.m.expires = x.will.m.expires, 0
	}
	*w = mqtt.Will{}
	return nil
}

// publish publishes the will.
func (h *Hook) publishWill(w *will) {
	if no := h.judge(w.cl, w.m.topic); no.reason != "" {
		h.drop(dropWill, w.cl.ID)
		return
	}
	o := outgoing{message: w.m, retain: w.retain}
	if w.expiry != 0 {
		o.expires = milliseconds() + w.expiry
	}
	m := o.message
	o.kept = &m // nothing reuses its payload
	h.send(&o)
}

// delayed is a will that waits for its delay. Whoever takes it out of Hook.wills publishes it, or gives it up.
type delayed struct {
	h     *Hook
	w     *will
	timer *time.Timer
}

// leaveWill publishes the will after a delay, unless the session is resumed before.
func (s *session) leaveWill(w *will, delay time.Duration) {
	h := s.h
	if delay <= 0 {
		h.publishWill(w)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil || s.dead {
		return // resumed already
	}
	d := &delayed{h: h, w: w}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return
	}
	s.will = d
	h.wills[d] = true
	d.timer = time.AfterFunc(delay, d.fire)
}

// take reports whether the will is still to be decided on, and decides.
func (d *delayed) take(publish bool) bool {
	h := d.h
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.wills[d] {
		return false
	}
	delete(h.wills, d)
	d.timer.Stop()
	if publish {
		h.firing.Add(1)
	}
	return true
}

// fire publishes the will.
func (d *delayed) fire() {
	if d.take(true) {
		defer d.h.firing.Done()
		d.h.publishWill(d.w)
	}
}

// cancel gives it up.
func (d *delayed) cancel() { d.take(false) }
