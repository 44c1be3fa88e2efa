// Package im is the mochi hook that makes a broker an instant-messaging server: it takes everything under im/ out of
// mochi's hands and gives it to the engine, and sends what the engine delivers.
//
//	st, _ := pebble.Open(pebble.Options{Path: "data", IDs: ids})
//	e := engine.New(st, engine.Config{})
//	err := server.AddHook(im.New(e, im.Options{}), nil)
//
// It works in any mochi server. With the listeners of package transport it sees the packets before mochi decodes them,
// which is faster and bounds what a client may make the server allocate. Authentication is another hook's business;
// the user is the MQTT user name that it leaves in the client, or the client id.
package im

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/hooks/link"
	engine "github.com/mqim/mqim/im"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/transport"
)

// Options are the hook's settings.
type Options struct {
	Registry *link.Registry // nil: one of its own; hooks of one server share it
	Log      *slog.Logger   // nil: slog.Default
	// KeepAlive is the longest Keep Alive, in seconds. MQTT 5 clients that ask for a longer one, or none, are told
	// [MQTT-3.1.2-21]; others are refused. 0: no limit.
	KeepAlive uint16
	Limited   func(limit string) // told of each client that KeepAlive or the engine's limit on devices refuses; nil: nobody is
}

// Hook is the hook.
type Hook struct {
	mqtt.HookBase
	engine *engine.Engine
	reg    *link.Registry
	log    *slog.Logger

	keepAlive uint16 // seconds; 0: no limit
	limited   func(string)
}

// New returns a hook over an engine, which stays the caller's to close, after the server.
func New(e *engine.Engine, o Options) *Hook {
	if o.Registry == nil {
		o.Registry = link.NewRegistry(transport.Options{})
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Limited == nil {
		o.Limited = func(string) {}
	}
	h := &Hook{engine: e, reg: o.Registry, log: o.Log, keepAlive: o.KeepAlive, limited: o.Limited}
	h.reg.Handle(h)
	h.reg.HandleOversized(h.oversized)
	h.reg.OnYield(func(ctx context.Context, client string, _ bool) {
		if err := h.engine.Flush(ctx); err != nil { // the price is a duplicate
			h.log.Warn("the cursors of a device that has gone to another node may lag", "device", client, "error", err)
		}
	})
	return h
}

// ID implements mqtt.Hook.
func (h *Hook) ID() string { return "im" }

// Provides implements mqtt.Hook.
func (h *Hook) Provides(b byte) bool {
	switch b {
	case mqtt.OnConnect, mqtt.OnSessionEstablish, mqtt.OnSessionEstablished, mqtt.OnDisconnect, mqtt.OnClientExpired,
		mqtt.OnPacketRead, mqtt.OnPacketEncode, mqtt.OnPacketProcessed, mqtt.OnSubscribe, mqtt.OnUnsubscribe, mqtt.OnPublish:
		return true
	}
	return false
}

// SetOpts implements mqtt.Hook.
func (h *Hook) SetOpts(_ *slog.Logger, o *mqtt.HookOptions) { h.reg.Capabilities(o.Capabilities) }

// maxKeepAlive in seconds is the longest that mochi can wait one and a half times for without an overflow.
const maxKeepAlive = 43690

// What MQTT 5 properties may hold that are kept with a message, or until it is answered.
const (
	maxContentType = 256
	maxResponse    = 4096
)

var errRefused = errors.New("connection refused")

// OnConnect checks the names and claims the client id. It refuses with a CONNACK of its own, since mochi sends none.
func (h *Hook) OnConnect(cl *mqtt.Client, pk packets.Packet) error {
	user := string(cl.Properties.Username)
	if user == "" {
		user = cl.ID
	}
	switch {
	case !engine.ValidName(user):
		return h.refuse(cl, packets.ErrBadUsernameOrPassword, 0x04, "the user name must match [A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
	case !engine.ValidDevice(cl.ID):
		return h.refuse(cl, packets.ErrClientIdentifierNotValid, 0x02, "the client id must be 1 to 128 bytes without control characters")
	}
	if ka := cl.State.Keepalive; h.keepAlive > 0 && (ka == 0 || ka > h.keepAlive) {
		if cl.Properties.ProtocolVersion < 5 {
			h.limited("keep_alive")
			return h.refuse(cl, packets.ErrClientIdentifierNotValid, 0x02, "Keep Alive is longer than limits.keep_alive")
		}
		cl.State.Keepalive, cl.State.ServerKeepalive = h.keepAlive, true
	} else if ka > maxKeepAlive {
		cl.State.Keepalive, cl.State.ServerKeepalive = maxKeepAlive, true
	}
	will := cl.Properties.Will
	if will.Flag != 0 && strings.HasPrefix(will.TopicName, prefix) && !sendable(will.TopicName) {
		return h.refuse(cl, packets.ErrNotAuthorized, 0x05, "a will under im/ must go to im/u/{user} or im/g/{group}")
	}
	c, err := h.reg.Claim(cl, user)
	if err != nil {
		return h.refuseSession(cl, err)
	}
	d := newDevice(h, c)
	c.State = d
	if will.Flag != 0 && strings.HasPrefix(will.TopicName, prefix) {
		d.takeWill(&pk)
	}
	return nil
}

// refuse answers CONNECT with an error.
func (h *Hook) refuse(cl *mqtt.Client, code packets.Code, v3 byte, why string) error {
	h.log.Info("connection refused", "client", cl.ID, "remote", cl.Net.Remote, "reason", why)
	Refuse(cl, code, v3, why)
	return fmt.Errorf("%w: %s", errRefused, why)
}

// refuseSession refuses a connection whose session cannot be had.
func (h *Hook) refuseSession(cl *mqtt.Client, err error) error {
	if errors.Is(err, link.ErrForeign) {
		return h.refuse(cl, packets.ErrClientIdentifierNotValid, 0x02, err.Error())
	}
	if errors.Is(err, link.ErrBeaten) || errors.Is(err, engine.ErrTaken) {
		return h.refuse(cl, packets.ErrServerBusy, 0x03, err.Error()) // 0x8E is for DISCONNECT alone: MQTT 5, 3.2.2.2
	}
	var limit *engine.Error
	if errors.As(err, &limit) {
		h.limited("devices_per_user") // the one error that the engine has for who connects
		return h.refuse(cl, packets.ErrQuotaExceeded, 0x03, limit.Message)
	}
	h.log.Warn("device cannot be connected", "user", string(cl.Properties.Username), "device", cl.ID, "error", err)
	return h.refuse(cl, packets.ErrServerUnavailable, 0x03, "the store cannot be used now")
}

// Refuse writes a CONNACK with an error: code and why to MQTT 5, v3 to 3.1.1.
func Refuse(cl *mqtt.Client, code packets.Code, v3 byte, why string) {
	ack := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connack}, ReasonCode: code.Code}
	if cl.Properties.ProtocolVersion < 5 {
		ack.ReasonCode = v3
	} else {
		ack.Properties.ReasonString = why
	}
	_ = cl.WritePacket(ack)
}

// takeWill takes a will to a user or a group out of mochi's hands, which would publish it unchecked. The engine sends
// it like any message of the user.
func (d *device) takeWill(pk *packets.Packet) {
	topic, payload := pk.Connect.WillTopic, pk.Connect.WillPayload
	delay := time.Duration(d.c.Client.Properties.Will.WillDelayInterval) * time.Second
	in := link.Inbound{Topic: topic, Payload: payload, Props: &pk.Connect.WillProperties}
	d.c.Client.Properties.Will = mqtt.Will{}
	d.will = func() {
		publish := func() {
			if o, err := outgoing(&in); err == nil {
				d.dev.Publish(topic[len(prefix):], o, 0)
			}
		}
		if s := session(d.c.Client, false); s.Expiry > 0 || !s.Persistent {
			delay = min(delay, s.Expiry) // [MQTT-3.1.3.2.2]
		}
		if delay == 0 {
			publish()
		} else {
			d.c.DelayWill(delay, publish)
		}
	}
}

// sendable reports whether messages may be published to a topic under im/.
func sendable(topic string) bool {
	rest, ok := strings.CutPrefix(topic, userDir)
	if !ok {
		rest, ok = strings.CutPrefix(topic, "im/g/")
	}
	return ok && !strings.Contains(rest, "/")
}

// refusedID is what a client is called that is refused when mochi is about to let it in: mochi goes on with that, and would
// end the connection of the client whose id it is. None has a control character.
const refusedID = "\x00"

// OnSessionEstablish ends an older connection of the device and connects it to the engine.
func (h *Hook) OnSessionEstablish(cl *mqtt.Client, pk packets.Packet) {
	c := link.Of(cl)
	if c == nil {
		return
	}
	d := c.State.(*device)
	s := session(cl, pk.Connect.Clean)
	present, err := h.reg.Establish(c, pk.Connect.Clean, s.Persistent)
	var dev *engine.Device
	if err == nil {
		s.Epoch = c.Epoch()
		dev, err = h.engine.Connect(context.Background(), c.User, cl.ID, s, d)
	}
	if err == nil {
		d.dev = dev                    // from now on end lets go of it
		if present && !dev.Resumed() { // it was removed while the device was away, or has expired
			err = h.reg.Reset(c)
			present = false
		}
		d.present = present
	}
	if err != nil {
		_ = h.refuseSession(cl, err)
		h.reg.Release(c, false)
		cl.Stop(errRefused)
		cl.ID = refusedID
	}
}

// session reads the kind of session from CONNECT.
func session(cl *mqtt.Client, clean bool) engine.Session {
	p := &cl.Properties
	if p.ProtocolVersion < 5 {
		return engine.Session{Clean: clean, Persistent: !clean}
	}
	s := engine.Session{Clean: clean, Persistent: p.Props.SessionExpiryInterval > 0}
	if p.Props.SessionExpiryInterval < math.MaxUint32 { // [MQTT-3.1.2.11.2]: 0xFFFFFFFF does not expire
		s.Expiry = time.Duration(p.Props.SessionExpiryInterval) * time.Second
	}
	return s
}

// OnSessionEstablished lets a resumed session go on where it was.
func (h *Hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	if d := deviceOf(cl); d != nil && d.dev != nil {
		d.look()
	}
}

// OnDisconnect tells the engine that the connection has ended.
func (h *Hook) OnDisconnect(cl *mqtt.Client, err error, expire bool) {
	if d := deviceOf(cl); d != nil {
		d.end(err, expire)
	}
}

// end is what happens once when a connection ends: err nil is by the client's DISCONNECT.
func (d *device) end(err error, expire bool) {
	if d.ended.Swap(true) {
		return
	}
	if d.dev != nil {
		if err != nil && d.will != nil && !d.c.Lost() {
			d.will()
		}
		d.dev.SetExpiry(session(d.c.Client, false).Expiry) // DISCONNECT may have changed it [MQTT-3.14.2.2.2]
		d.dev.Disconnect(expire)
	}
	d.h.reg.Release(d.c, expire)
	d.c.Finish()
}

// OnClientExpired forgets a session that mochi has forgotten.
func (h *Hook) OnClientExpired(cl *mqtt.Client) { h.reg.Expire(cl.ID) }

func deviceOf(cl *mqtt.Client) *device {
	if c := link.Of(cl); c != nil {
		d, _ := c.State.(*device)
		return d
	}
	return nil
}

// OnPacketRead handles publishes and acknowledgements where the frames did not pass through our listener.
func (h *Hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if c := link.Of(cl); c != nil {
		return c.PacketRead(pk)
	}
	return pk, nil
}

// OnPublish keeps topics under im/ out of mochi's fan-out, whoever publishes there.
func (h *Hook) OnPublish(_ *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if strings.HasPrefix(pk.TopicName, prefix) {
		return pk, packets.ErrRejectPacket
	}
	return pk, nil
}

// Receive implements link.Receiver for topics under im/.
func (h *Hook) Receive(c *link.Conn, p *link.Inbound) (bool, error) {
	if !strings.HasPrefix(p.Topic, prefix) {
		return false, nil
	}
	if err := c.Admit(p); err != nil {
		return false, err
	}
	d := c.State.(*device)
	t := engine.Ticket(p.Ticket)
	if p.Props != nil && len(p.Props.CorrelationData)+len(p.Props.ResponseTopic) > maxResponse {
		d.dev.Refuse(t, "", &engine.Error{Code: engine.BadRequest, Message: "correlation data and response topic: want at most 4096 bytes"})
		return true, nil
	}
	name, isCommand := strings.CutPrefix(p.Topic, cmdDir)
	switch {
	case isCommand:
		if name != "send" || bytes.Contains(p.Payload, []byte(`"cid"`)) || !c.Repeated(p) {
			return true, d.command(name, p)
		}
	case sendable(p.Topic):
		o, err := outgoing(p)
		if err == nil && len(o.ContentType) > maxContentType {
			err = &engine.Error{Code: engine.BadRequest, Message: "content type: want at most 256 bytes"}
		}
		switch {
		case err != nil:
			d.dev.Refuse(t, o.Cid, err)
		case o.Cid != "" || !c.Repeated(p):
			o.Inbound = c.Records(p)
			d.dev.Publish(p.Topic[len(prefix):], o, t)
		}
	default:
		d.dev.Refuse(t, "", &engine.Error{Code: engine.Forbidden, Message: "nothing may be published to " + strconv.QuoteToASCII(clip(p.Topic))})
	}
	return true, nil
}

// command runs a command. One whose answer may be large waits until what was answered before has been read.
func (d *device) command(name string, p *link.Inbound) error {
	if name != "send" && name != "ack" && !d.c.WaitRoom() {
		return packets.CodeDisconnect
	}
	d.handling.Store(p.Ticket)
	var in *store.Inbound
	if name == "send" { // the others may be repeated
		in = d.c.Records(p)
	}
	d.dev.Command(name, p.Payload, engine.Ticket(p.Ticket), in)
	d.handling.Store(0)
	return nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80]
	}
	return s
}

// oversized answers a publish that is larger than anything may be.
func (h *Hook) oversized(c *link.Conn, p *link.Inbound) {
	if d, _ := c.State.(*device); d != nil && d.dev != nil {
		d.dev.Refuse(engine.Ticket(p.Ticket), "", &engine.Error{Code: engine.TooLarge, Message: "the packet is larger than any message or command may be"})
	}
}

// outgoing reads a message published in the plain profile, MQTT 5 properties included.
func outgoing(p *link.Inbound) (engine.Outgoing, *engine.Error) {
	o := engine.Outgoing{Body: p.Payload}
	if p.Props == nil {
		return o, nil
	}
	o.ContentType = p.Props.ContentType
	o.TTL = int64(p.Props.MessageExpiryInterval)
	for _, u := range p.Props.User {
		switch u.Key {
		case "cid":
			o.Cid = u.Val
		case "type":
			o.Type = u.Val
		case "cts":
			n, err := strconv.ParseInt(u.Val, 10, 64)
			if err != nil {
				return o, &engine.Error{Code: engine.BadRequest, Message: "cts: want Unix milliseconds"}
			}
			o.CTS = n
		}
	}
	return o, nil
}

// Done lets go of a connection whose handshake was not completed, when whoever listens is through with it. Where
// OnDisconnect has been called there is nothing left to do.
func Done(c *link.Conn) {
	if d, ok := c.State.(*device); ok {
		d.end(mqtt.ErrConnectionClosed, !c.Session.Persistent())
	}
}
