package tests

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/mqim/mqim/tests/mqtest"
)

// Nobody subscribes to another user's topics, in any form.
func TestFiltersForeignRefused(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		me, other := name("alice"), name("bob")
		filters := []string{
			"im/u/" + other, "im/u/" + other + "/msg", "im/u/" + other + "/+", "im/u/" + other + "/#",
			"im/u/+", "im/u/+/msg", "im/u/#", "im/+", "im/+/" + other, "im/+/" + other + "/msg", "im/#", "im/+/+/msg", "im/u", "im/",
			"im/u/" + me + "x", "im/u/" + me + "x/msg", "im/cmd/send", "im/cmd/#", "im/g/x", "im/u/+/#", "im/other",
			"$share/g/im/u/" + other, "$share/g/im/u/" + other + "/msg", "$share/g/im/u/" + me, "$share/g/im/u/" + me + "/msg",
			"$share/g/im/#", "$share/g/im/u/+/msg", "$share/g/im/+/" + other,
		}
		c := dial(t, shared, v, me, "1")
		for _, f := range filters {
			equal(t, "filter "+f, fmt.Sprintf("%#x", c.Subscribe(f)), fmt.Sprintf("%#x", []byte{code(v, 0x80, 0x87)}))
		}
		for _, f := range []string{"im/u/" + me, "im/u/" + me + "/msg", "im/u/" + me + "/+", "im/u/" + me + "/#", "im/u/" + me + "/reply"} {
			subscribed(t, c, f)
		}
		// Answers stand in the order of the filters, whoever answers.
		r := code(v, 0x80, 0x87)
		got := c.Subscribe("a/b", "im/u/"+other, "im/u/"+me, "im/#", "c/+")
		if want := []byte{1, r, 1, r, 1}; !bytes.Equal(got, want) {
			t.Errorf("mixed filters: got %x, want %x", got, want)
		}
	})
}

// Filters that only happen to match topics under im/ are granted, and nothing under im/ comes through them.
func TestFiltersThatHappenToMatch(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob, mallory := name("alice"), name("bob"), name("mallory")
		a, b, m := chat(t, shared, v, alice, "1"), chat(t, shared, v, bob, "1"), dial(t, shared, v, mallory, "1")
		filters := []string{"#", "+/#", "+/u/#", "+/u/" + bob, "+/u/" + bob + "/msg", "+/u/" + mallory, "+/+/+/+", "+/cmd/send"}
		if v == 5 {
			filters = append(filters, "$share/g/#", "$share/g/+/u/"+bob)
		}
		subscribed(t, m, filters...)
		a.Send(bob, "private")
		a.PublishAck("im/u/"+bob, "private, too", mqtest.QoS(2))
		a.PublishAck("im/u/"+mallory, "for mallory, who does not read")
		b.Msg()
		b.Ack(1)
		a.Receipt("delivered")
		settle(a, b)
		// An ordinary message comes after all that, and alone.
		topic := name("ordinary")
		a.PublishAck(topic, "public")
		m.Next(topic)
		for _, pk := range m.Got() {
			if len(pk.TopicName) > 2 && pk.TopicName[:3] == "im/" {
				t.Errorf("%s reached a filter that only happens to match", pk.TopicName)
			}
		}
	})
}

// Everything under im/ that is not for publishing is refused, and the connection lives.
func TestReservedTopicsRefused(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a, b := chat(t, shared, v, alice, "1"), chat(t, shared, v, bob, "1")
		for _, topic := range []string{
			"im/u/" + bob + "/msg", "im/u/" + bob + "/reply", "im/u/" + alice + "/msg", "im/u/" + alice + "/x", "im/u/" + bob + "/",
			"im/x", "im/", "im/u", "im/g/x/y", "im/users/bob",
		} {
			for _, qos := range []byte{1, 2} {
				ack := a.PublishAck(topic, mqtest.Secret+"forged", mqtest.QoS(qos))
				a.CheckReason("publish to "+topic, ack, "forbidden")
				r := a.Reply("the refusal", func(r *mqtest.Reply) bool { return !r.OK })
				equal(t, "error for "+topic, r.Error.Code, "forbidden")
			}
			a.Publish(topic, "forged", mqtest.QoS(0))
			r := a.Reply("the refusal at QoS 0", func(r *mqtest.Reply) bool { return !r.OK })
			equal(t, "error at QoS 0 for "+topic, r.Error.Code, "forbidden")
		}
		settle(a, b)
		equal(t, "what bob got", published(b), 0)
	})
}

// A retained publish under im/ is a message like any other, and is not retained.
func TestReservedNothingIsRetained(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a := dial(t, shared, v, alice, "1")
		pk := a.Packet("im/u/"+bob, "once")
		pk.FixedHeader.Retain = true
		a.Write(pk)
		a.Acked(pk.PacketID)
		b := plain(t, shared, v, bob, "1")
		got := b.Plain()
		equal(t, "payload", string(got.Payload), "once")
		equal(t, "retain", got.FixedHeader.Retain, false)
		subscribed(t, b, "im/u/"+bob)
		settle(a, b)
		equal(t, "messages on a further subscribe", published(b), 0)
	})
}
