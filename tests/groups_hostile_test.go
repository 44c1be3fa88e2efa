package tests

import (
	"fmt"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/tests/mqtest"
)

// Whatever a PUBLISH to a group is made up with, it is a message like any other: stored once, in order, retained for
// nobody, and only from members.
func TestGroupPublishes(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob, eve := name("alice"), name("bob"), name("eve")
		g := name("team")
		a, b, e := chat(t, shared, v, alice, "1"), chat(t, shared, v, bob, "1"), chat(t, shared, v, eve, "1")
		a.OK("group.create", mqtest.Map{"group": g, "name": "Team", "members": []string{bob}}, nil)
		a.Msg()
		b.Msg()

		retain := func(pk *packets.Packet) { pk.FixedHeader.Retain = true }
		b.Publish("im/g/"+g, "qos 0", mqtest.QoS(0), mqtest.PacketID(0))
		b.PublishAck("im/g/"+g, "retained", retain)
		id := b.Publish("im/g/"+g, "qos 2", mqtest.QoS(2))
		b.Acked(id)
		b.Publish("im/g/"+g, "qos 2", mqtest.QoS(2), mqtest.PacketID(id)) // perhaps complete by now: another message
		b.Acked(id)
		b.PublishAck("im/g/"+g, "", retain)
		for i, want := range []string{"qos 0", "retained", "qos 2", "qos 2", ""} {
			m := a.Msg()
			equal(t, "message", fmt.Sprint(m.Cseq, m.From, m.Text()), fmt.Sprint(i+2, bob, want))
		}
		b.Ack(6)
		late := chat(t, shared, v, bob, "late")
		nothing(t, a, late)

		for _, q := range []byte{0, 1, 2} {
			if q == 0 {
				e.Publish("im/g/"+g, "stranger", mqtest.QoS(0), mqtest.PacketID(0))
			} else {
				e.CheckReason("publish of a stranger", e.PublishAck("im/g/"+g, "stranger", mqtest.QoS(q)), "not_member")
			}
		}
		for _, odd := range []string{"im/g/", "im/g/" + g + "/", "im/g/" + g + "/msg", "im/g", "im/g/.", "im/G/" + g, "im/g/ " + g} {
			if ack := e.PublishAck(odd, "x"); v == 5 && ack.ReasonCode < 0x80 {
				t.Errorf("publish to %q: reason %#x", odd, ack.ReasonCode)
			}
		}
		if v == 5 {
			b.CheckReason("sys.", b.PublishAck("im/g/"+g, `{"change":"dissolve"}`, mqtest.UserProp("type", "sys.group")), "forbidden")
			alias := mqtest.Prop(func(p *packets.Properties) { p.TopicAlias, p.TopicAliasFlag = 1, true })
			equal(t, "alias", b.PublishAck("im/g/"+g, "named", alias).ReasonCode, 0)
			equal(t, "alias", b.PublishAck("", "by alias", alias).ReasonCode, 0)
			for _, want := range []string{"named", "by alias"} {
				m := a.Msg()
				equal(t, "text", m.Text(), want)
			}
			a.OK("group.remove", mqtest.Map{"group": g, "users": []string{bob}}, nil)
			b.CheckReason("publish by alias of a former member", b.PublishAck("", "by alias", alias), "not_member")
			a.Msg() // the removal
		}
		nothing(t, a, a)
	})
}

// A session in a large group outlives kill -9 and the end of the group: what it missed comes once, in order, with the
// last message of all, and then nothing more.
func TestGroupEndsWhileAway(t *testing.T) {
	t.Parallel()
	s := mqtest.Start(t, mqtest.Config{"group": "{small_max: 2}"})
	for _, v := range []byte{4, 5} {
		alice, bob, g := name("alice"), name("bob"), name("team")
		session := mqtest.Options{Version: v, User: bob, ID: bob + "/1", Persistent: true}
		b := mqtest.Dial(t, s.Addr("mqtt"), session)
		b.Subscribe("im/u/" + bob + "/+")
		a := chat(t, s, v, alice, "1")
		a.OK("group.create", mqtest.Map{"group": g, "name": "Team", "kind": "large", "members": []string{bob}}, nil)
		equal(t, "cseq", b.Msg().Cseq, 1)
		b.OK("ack", mqtest.Map{"conv": "g/" + g, "cseq": 1}, nil)
		b.Kill()
		for i := range 3 {
			a.OK("send", mqtest.Map{"to": "g/" + g, "body": fmt.Sprint(i)}, nil)
		}
		s.Kill()
		s.Run()
		a = chat(t, s, v, alice, "1")
		a.OK("group.dissolve", mqtest.Map{"group": g}, nil)
		s.Kill()
		s.Run()
		a = chat(t, s, v, alice, "1")
		a.Refused("send", mqtest.Map{"to": "g/" + g, "body": "x"}, "not_found")
		a.Refused("group.create", mqtest.Map{"group": g, "name": "again"}, "exists")

		b = mqtest.Dial(t, s.Addr("mqtt"), session)
		m := b.Msg()
		if m.Cseq == 1 { // the acknowledgement may be lost with the server
			m = b.Msg()
		}
		for want := uint64(2); ; want++ {
			equal(t, "cseq", uint64(m.Cseq), want)
			if want == 5 {
				break
			}
			m = b.Msg()
		}
		equal(t, "type", m.Type, "sys.group")
		b.OK("ack", mqtest.Map{"conv": "g/" + g, "cseq": 5}, nil)
		b.Refused("send", mqtest.Map{"to": "g/" + g, "body": "x"}, "not_found")
		nothing(t, a, b)
		b.Disconnect()
		b = mqtest.Dial(t, s.Addr("mqtt"), session)
		nothing(t, a, b)
	}
}
