package broker

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	imhook "github.com/mqim/mqim/hooks/im"
	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/transport"
)

// serveConnection does for a connection what mochi's EstablishConnection does, with mochi's own parts: CONNECT, the
// hooks, the session's subscriptions, then one packet after the other. Two things are different. It waits for packets
// with next to nothing on its stack, and mochi's writing goroutine, which has nothing to write here, is not started:
// together they are most of what an idle connection costs in mochi. And what mochi answers wrongly to 3.1.1 is
// answered right.
//
// It returns when the connection is over: nil after the client's DISCONNECT.
func (s *Server) serveConnection(listener string, conn net.Conn) error {
	t, ok := conn.(*transport.Conn)
	if !ok {
		return fmt.Errorf("not a connection of ours: %T", conn)
	}
	cl, err := s.handshake(listener, t)
	if cl != nil {
		defer cl.Stop(nil)
	}
	if err != nil {
		if cl != nil {
			s.auth.OnDisconnect(cl, err, true) // of a client that it let in and another hook did not
		}
		return err
	}
	s.most(atomic.AddInt64(&s.mqtt.Info.ClientsConnected, 1))
	defer atomic.AddInt64(&s.mqtt.Info.ClientsConnected, -1)
	for err == nil && !cl.Closed() {
		if err = t.Await(); err == nil {
			err = s.handlePacket(cl)
		}
	}
	if code, ok := breach(err); ok {
		link.Of(cl).Disconnect(code) // [MQTT-4.13.1-1]
	}
	switch cause := cl.StopCause(); {
	case errors.Is(cause, packets.CodeDisconnect):
		err = nil // the client's farewell
	case err == nil && cause != nil:
		err = cause // closed from here while a packet was being handled
	case err == nil:
		err = mqtt.ErrConnectionClosed
	}
	s.endConnection(cl, err)
	return err
}

// handshake handles CONNECT. cl is nil where there was none.
//
//go:noinline
func (s *Server) handshake(listener string, t *transport.Conn) (cl *mqtt.Client, err error) {
	cl, pk, err := s.readConnect(listener, t)
	if err != nil {
		return cl, err
	}
	if err := s.busy(cl, pk.Connect.Clean); err != nil {
		return cl, err
	}
	for _, h := range s.hooks {
		if h.Provides(mqtt.OnConnect) {
			if err := h.OnConnect(cl, pk); err != nil {
				return cl, err // the hook has answered
			}
		}
	}
	var deadline time.Time
	if ka := time.Duration(cl.State.Keepalive) * time.Second; ka > 0 {
		deadline = time.Now().Add(ka + ka/2) // [MQTT-3.1.2-22]
	}
	_ = t.SetDeadline(deadline)
	for _, h := range s.hooks {
		if h.Provides(mqtt.OnSessionEstablish) {
			h.OnSessionEstablish(cl, pk)
		}
	}
	if cl.Closed() {
		return cl, cl.StopCause() // a hook has refused after all, and answered
	}
	present := s.inherit(cl, pk.Connect.Clean)
	s.mqtt.Clients.Add(cl)
	if err := s.mqtt.SendConnack(cl, packets.CodeSuccess, present, nil); err != nil {
		return cl, fmt.Errorf("ack connection packet: %w", err)
	}
	for _, h := range s.hooks {
		if h.Provides(mqtt.OnSessionEstablished) {
			h.OnSessionEstablished(cl, pk)
		}
	}
	return cl, nil
}

// readConnect reads and checks CONNECT. cl is nil where there was none.
func (s *Server) readConnect(listener string, t *transport.Conn) (cl *mqtt.Client, pk packets.Packet, err error) {
	if err := t.Await(); err != nil {
		return nil, pk, fmt.Errorf("read connection: %w", err)
	}
	cl = s.mqtt.NewClient(t, listener, "", false)
	if version, code := link.CheckConnect(t.Packet()); code != packets.CodeSuccess { // [MQTT-3.1.4-1]
		refuse(cl, version, code)
		return cl, pk, code
	}
	fh := new(packets.FixedHeader)
	if err := cl.ReadFixedHeader(fh); err != nil {
		return cl, pk, err
	}
	if pk, err = cl.ReadPacket(fh); err != nil {
		return cl, pk, err
	}
	cl.ParseConnect(listener, pk)
	return cl, pk, nil
}

// refuse answers a CONNECT that breaks MQTT. 3.1.1 has codes for two kinds of that; else the connection just ends.
func refuse(cl *mqtt.Client, version byte, code packets.Code) {
	cl.Properties.ProtocolVersion = version
	v3, ok := packets.V5CodesToV3[code]
	if version == 5 || version != 0 && ok {
		imhook.Refuse(cl, code, v3.Code, code.Reason)
	}
}

// breach is the reason code for what package transport ends a connection for.
func breach(err error) (code packets.Code, ok bool) {
	switch {
	case errors.Is(err, transport.ErrMalformed):
		return packets.ErrMalformedPacket, true
	case errors.Is(err, transport.ErrTooLarge):
		return packets.ErrPacketTooLarge, true
	case transport.IsTimeout(err):
		return packets.ErrKeepAliveTimeout, true // [MQTT-3.1.2-22]
	}
	return code, false
}

// inherit moves the subscriptions of the client's session to its new connection. The old connection has ended: the hooks
// have waited for that.
func (s *Server) inherit(cl *mqtt.Client, clean bool) (present bool) {
	old, ok := s.mqtt.Clients.Get(cl.ID)
	if !ok {
		return false
	}
	if clean || old.Properties.Clean && old.Properties.ProtocolVersion < 5 { // [MQTT-3.1.2-4]
		s.mqtt.UnsubscribeClient(old)
		return false
	}
	for filter, sub := range old.State.Subscriptions.GetAll() {
		cl.State.Subscriptions.Add(filter, sub)
		old.State.Subscriptions.Delete(filter)
	}
	return true
}

// handlePacket gives mochi the packet that has come in.
//
//go:noinline
func (s *Server) handlePacket(cl *mqtt.Client) error {
	fh := new(packets.FixedHeader)
	err := cl.ReadFixedHeader(fh)
	var pk packets.Packet
	if err == nil {
		pk, err = cl.ReadPacket(fh)
	}
	if err == nil {
		if c := link.Of(cl); c != nil && pk.FixedHeader.Type == packets.Disconnect && c.Farewell() != 0 {
			// The will goes out after every code but 0 [MQTT-3.14.4-3]; mochi knows of one such code, and does not see
			// it where no properties follow.
			pk.ReasonCode = packets.CodeDisconnectWillMessage.Code
		}
		err = s.mqtt.InjectPacket(cl, pk)
	}
	if err == nil {
		return nil
	}
	var code packets.Code
	if c := link.Of(cl); c != nil && errors.As(err, &code) && code.Code >= packets.ErrUnspecifiedError.Code {
		c.Disconnect(code) // [MQTT-4.13.1-1]
	}
	return err
}

// endConnection is what mochi does when a connection has ended.
//
//go:noinline
func (s *Server) endConnection(cl *mqtt.Client, err error) {
	cl.Stop(err)
	p := &cl.Properties
	ended := p.ProtocolVersion == 5 && p.Props.SessionExpiryInterval == 0 || p.ProtocolVersion < 5 && p.Clean
	for _, h := range s.hooks {
		if h.Provides(mqtt.OnDisconnect) {
			h.OnDisconnect(cl, err, ended)
		}
	}
	if now, ok := s.mqtt.Clients.Get(cl.ID); ended && ok && now == cl {
		s.mqtt.UnsubscribeClient(cl)
		s.mqtt.Clients.Delete(cl.ID)
	}
}
