package link

import (
	"testing"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// persistent is a connection with a session that outlives it, as far as answers go.
func persistent(s *Session) *Conn {
	c := &Conn{Session: s, reg: &Registry{}, Client: &mqtt.Client{}}
	c.in.init(c)
	return c
}

// TestFailedIsNotRepeated: a publish that was not kept is not taken for one that was when it is sent again.
func TestFailedIsNotRepeated(t *testing.T) {
	s := &Session{persistent: true}
	first := persistent(s)
	p := &Inbound{Topic: "im/u/bob", Payload: []byte("hi"), QoS: 1, ID: 1}
	if err := first.Admit(p); err != nil {
		t.Fatal(err)
	}
	if first.Repeated(p) {
		t.Fatal("the first publish is taken for a repeated one")
	}
	first.Fail(p.Ticket)

	again := persistent(s)
	q := &Inbound{Topic: "im/u/bob", Payload: []byte("hi"), QoS: 1, ID: 1, Dup: true}
	if err := again.Admit(q); err != nil {
		t.Fatal(err)
	}
	if again.Repeated(q) {
		t.Error("a publish that was refused for the moment is never stored: it counts as repeated")
	}
}

// TestReceiveMaximum: publishes at QoS 0 do not count [MQTT-3.3.4-9].
func TestReceiveMaximum(t *testing.T) {
	c := persistent(&Session{})
	c.V5 = true
	c.in.max = 2
	admit := func(qos byte) error { return c.Admit(&Inbound{QoS: qos, ID: 1}) }
	for i, qos := range []byte{0, 1, 0, 1} {
		if err := admit(qos); err != nil {
			t.Fatalf("publish %d at QoS %d: %v", i, qos, err)
		}
	}
	if err := admit(1); err != packets.ErrReceiveMaximum {
		t.Errorf("a third at QoS 1: got %v, want %v", err, packets.ErrReceiveMaximum)
	}
}
