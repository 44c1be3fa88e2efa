package tests

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/tests/mqtest"
)

// The six packets of a message with its acknowledgements: msg:R, msg:A, msg:N, ack:R, ack:A, ack:N.
func TestSixPackets(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a, b1, b2 := chat(t, shared, v, alice, "1"), chat(t, shared, v, bob, "1"), chat(t, shared, v, bob, "2")
		id := a.Publish("im/cmd/send", fmt.Sprintf(`{"to":"u/%s","cid":"c1","body":"hi"}`, bob)) // msg:R
		equal(t, "msg:A", a.Acked(id).ReasonCode, 0)
		r := a.Reply("msg:A", func(r *mqtest.Reply) bool { return r.Cid == "c1" })
		var s mqtest.Sent
		a.Parse(r.Data, &s)
		equal(t, "state", s.State, "sent")
		equal(t, "rid", r.Rid, "")
		for _, b := range []*mqtest.Client{b1, b2} {
			m := b.Msg() // msg:N
			equal(t, "msg:N to "+b.ID, m.ID, s.ID)
		}
		equal(t, "receipts before the ack", a.Count(a.Topic("receipt")), 0)
		b1.Ack(1)                   // ack:R, ack:A
		n := a.Receipt("delivered") // ack:N
		equal(t, "receipt id", n.ID, s.ID)
		equal(t, "receipt cid", n.Cid, "c1")
		equal(t, "receipt cseq", n.Cseq, 1)
		equal(t, "receipt conv", n.Conv, "u/"+bob)
		equal(t, "receipt by", n.By, bob)
		if n.TS < s.TS {
			t.Errorf("receipt ts: got %d, want %d or later", n.TS, s.TS)
		}
		b2.Ack(1)
		settle(b2, b2, a)
		equal(t, "receipts for the second device's ack", a.Count(a.Topic("receipt")), 0)
	})
}

// The plain profile: PUBACK is the acknowledgement, and no sooner than it comes.
func TestSixPacketsPlain(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a, b := chat(t, shared, v, alice, "1"), plain(t, shared, v, bob, "1")
		b.Hold(true)
		a.PublishAck("im/u/"+bob, "hi")
		pk := b.Plain()
		settle(a, b)
		a.Alive()
		equal(t, "receipts before PUBACK", a.Count(a.Topic("receipt")), 0)
		b.Puback(pk)
		equal(t, "cseq of the receipt", a.Receipt("delivered").Cseq, 1)
	})
}

// Where B has no device connected the message waits, and the sender is told so.
func TestSixPacketsQueued(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a1, a2 := chat(t, shared, v, alice, "1"), chat(t, shared, v, alice, "2")
		var s mqtest.Sent
		a1.OK("send", mqtest.Map{"to": "u/" + bob, "body": "hi", "cid": "c1"}, &s)
		equal(t, "state", s.State, "queued")
		for _, a := range []*mqtest.Client{a1, a2} { // to the sender's devices
			n := a.Receipt("queued")
			equal(t, "by", n.By, bob)
			equal(t, "cid", n.Cid, "c1")
			equal(t, "id", n.ID, s.ID)
			equal(t, "conv", n.Conv, "u/"+bob)
		}
		b := chat(t, shared, v, bob, "1")
		b.Msg()
		b.Ack(1)
		for _, a := range []*mqtest.Client{a1, a2} {
			equal(t, "cseq", a.Receipt("delivered").Cseq, 1)
		}
	})
}

// PUBACKs go out in the order of the PUBLISHes, a thousand of them outstanding, refused ones and commands that wait for
// nothing among them.
func TestPubackOrderPipelined(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		const n = 1000
		alice, bob := name("alice"), name("bob")
		a, b := chat(t, shared, v, alice, "1"), chat(t, shared, v, bob, "1")
		var raw []byte
		want := make([]byte, 0, n)
		sends := 0
		for i := range n {
			topic, payload, reason := "im/cmd/send", "", byte(0)
			switch i % 10 {
			case 3:
				topic, payload, reason = "im/cmd/send", fmt.Sprintf(`{"to":"nobody","body":"x","rid":"%d"}`, i), 0x99
			case 5:
				topic, payload = "im/cmd/time", fmt.Sprintf(`{"t0":%d,"rid":"%d"}`, i, i)
			case 6:
				topic, payload, reason = "im/cmd/dance", fmt.Sprintf(`{"rid":"%d"}`, i), 0x83
			case 7:
				topic, payload = "im/u/"+bob, fmt.Sprintf("plain %d", i)
				sends++
			case 8:
				topic, payload, reason = "im/u/"+bob+"/msg", "forged", 0x87
			default:
				payload = fmt.Sprintf(`{"to":"u/%s","cid":"c%d","body":"%d"}`, bob, i, i)
				sends++
			}
			pk := a.Packet(topic, payload)
			pk.PacketID = uint16(i + 1)
			buf, err := mqtest.Encode(pk, v)
			if err != nil {
				t.Fatal(err)
			}
			raw = append(raw, buf...)
			want = append(want, reason)
		}
		a.WriteRaw(raw)
		for i := range n { // the first acknowledgement that comes must be the one for the first publish, and so on
			pk := a.Take("a PUBACK", func(p *packets.Packet) bool { return p.FixedHeader.Type == packets.Puback })
			if pk.PacketID != uint16(i+1) {
				t.Fatalf("PUBACK %d is for packet id %d", i+1, pk.PacketID)
			}
			if v == 5 && pk.ReasonCode != want[i] {
				t.Errorf("PUBACK %d: got %#x, want %#x", i+1, pk.ReasonCode, want[i])
			}
		}
		// Messages of one device to one conversation keep their order.
		last := -1
		for i := range sends {
			m := b.Msg()
			equal(t, "cseq", m.Cseq, uint64(i+1))
			equal(t, "seq", m.Seq, uint64(i+1))
			var k int
			text := m.Text()
			if _, err := fmt.Sscanf(text, "plain %d", &k); err != nil {
				_, _ = fmt.Sscan(text, &k)
			}
			if k <= last {
				t.Fatalf("message %d came after %d", k, last)
			}
			last = k
			if i%100 == 99 {
				b.Ack(m.Seq)
			}
		}
	})
}

// QoS 0 is stored and delivered without PUBACK; QoS 2 completes after the commit.
func TestQoS(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a := chat(t, shared, v, alice, "1")
		a.Publish("im/u/"+bob, "0", mqtest.QoS(0), mqtest.PacketID(0))
		a.Publish("im/cmd/send", fmt.Sprintf(`{"to":"u/%s","body":"0c","rid":"0"}`, bob), mqtest.QoS(0), mqtest.PacketID(0))
		equal(t, "reply at QoS 0", a.Reply("a reply", func(r *mqtest.Reply) bool { return r.Rid == "0" }).OK, true)
		equal(t, "PUBCOMP", a.PublishAck("im/u/"+bob, "2", mqtest.QoS(2)).FixedHeader.Type, packets.Pubcomp)
		a.PublishAck("im/cmd/send", fmt.Sprintf(`{"to":"u/%s","body":"2c"}`, bob), mqtest.QoS(2))
		b := plain(t, shared, v, bob, "1")
		for _, want := range []string{"0", "0c", "2", "2c"} {
			equal(t, "payload", string(b.Plain().Payload), want)
		}
		settle(a, b)
		equal(t, "further messages", published(b), 0)
	})
}

// A QoS 2 publish repeated before PUBREL is one message [MQTT-4.3.3-10], and is two after.
func TestQoS2Repeated(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a := mqtest.Dial(t, shared.Addr("mqtt"), mqtest.Options{Version: v, User: alice, ID: alice, NoAuto: true})
		rec := func(p *packets.Packet) bool { return p.FixedHeader.Type == packets.Pubrec && p.PacketID == 7 }
		for _, opts := range [][]mqtest.Option{{}, {mqtest.Dup}, {mqtest.Dup}} {
			a.Publish("im/u/"+bob, "once", append(opts, mqtest.QoS(2), mqtest.PacketID(7))...)
			equal(t, "PUBREC", a.Take("PUBREC", rec).ReasonCode, 0)
		}
		a.WriteRaw([]byte{0x62, 2, 0, 7})
		a.Acked(7)
		a.Publish("im/u/"+bob, "once", mqtest.QoS(2), mqtest.PacketID(7))
		a.Take("PUBREC", rec)
		b := plain(t, shared, v, bob, "1")
		b.Plain()
		b.Plain()
		settle(b, b)
		equal(t, "further messages", published(b), 0)
	})
}

// Nor is it two when the server has been killed in between: the packet id is stored with the message.
func TestQoS2AcrossCrash(t *testing.T) {
	t.Parallel()
	for _, v := range []byte{4, 5} {
		s := mqtest.Start(t, nil)
		o := mqtest.Options{Version: v, User: "alice", ID: "alice/1", NoAuto: true, Persistent: true}
		a := mqtest.Dial(t, s.Addr("mqtt"), o)
		repeat := func(dup ...mqtest.Option) {
			a.Publish("im/u/bob", "plain", append(dup, mqtest.QoS(2), mqtest.PacketID(7))...)
			a.Publish("im/cmd/send", `{"to":"u/bob","body":"command"}`, append(dup, mqtest.QoS(2), mqtest.PacketID(8))...)
			for _, id := range []uint16{7, 8} {
				rec := a.Take("PUBREC", func(p *packets.Packet) bool { return p.FixedHeader.Type == packets.Pubrec && p.PacketID == id })
				equal(t, "PUBREC", rec.ReasonCode, 0)
			}
		}
		repeat()
		s.Kill()
		s.Run()
		a = mqtest.Dial(t, s.Addr("mqtt"), o)
		equal(t, "session present", a.Connack.SessionPresent, true)
		repeat(mqtest.Dup)
		a.WriteRaw([]byte{0x62, 2, 0, 7, 0x62, 2, 0, 8})
		a.Acked(7)
		a.Acked(8)
		b := plain(t, s, v, "bob", "1")
		equal(t, "first", string(b.Plain().Payload), "plain")
		equal(t, "second", string(b.Plain().Payload), "command")
		settle(b, b)
		equal(t, "further messages", published(b), 0)
	}
}

// A subscriber at QoS 0 gets messages at QoS 0; the message counts as taken when it has been written.
func TestQoS0Subscriber(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a, b := chat(t, shared, v, alice, "1"), dial(t, shared, v, bob, "1")
		b.SubscribeQoS(0, "im/u/"+bob)
		a.PublishAck("im/u/"+bob, "hi")
		equal(t, "QoS", b.Plain().FixedHeader.Qos, 0)
		equal(t, "cseq", a.Receipt("delivered").Cseq, 1)
	})
}

// A refusal reaches the sender as reason code and in the reply, with rid and cid where there were any.
func TestRefusals(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, bob := name("alice"), name("bob")
		a, b := chat(t, shared, v, alice, "1"), chat(t, shared, v, bob, "1")
		b.OK("block.add", mqtest.Map{"user": alice}, nil)
		for _, tt := range []struct {
			command string
			args    mqtest.Map
			code    string
		}{
			{"send", mqtest.Map{"to": "u/" + bob, "body": "hi"}, "blocked"},
			{"send", mqtest.Map{"to": "g/" + bob, "body": "hi"}, "not_found"},
			{"send", mqtest.Map{"to": bob, "body": "hi"}, "bad_request"},
			{"send", mqtest.Map{"to": "u/a/b", "body": "hi"}, "bad_request"},
			{"dance", nil, "unknown_command"},
			{"a/b", nil, "unknown_command"},
			{"recall", mqtest.Map{"conv": "u/" + bob, "cseq": 9}, "not_found"},
			{"device.remove", mqtest.Map{"device": "none"}, "not_found"},
		} {
			a.Refused(tt.command, tt.args, tt.code)
		}
		// The plain profile, too: refused to the sender's face.
		ack := a.PublishAck("im/u/"+bob, "hi")
		a.CheckReason("plain publish to who blocked me", ack, "blocked")
		equal(t, "error", a.Reply("a refusal", func(r *mqtest.Reply) bool { return !r.OK }).Error.Code, "blocked")
		a.CheckReason("plain publish to a group", a.PublishAck("im/g/none", "hi"), "not_found")

		ack = a.PublishAck("im/cmd/send", fmt.Sprintf(`{"to":"u/%s","body":"x","rid":"r","cid":"c"}`, bob))
		r := a.Reply("the refusal", func(r *mqtest.Reply) bool { return r.Rid == "r" })
		a.CheckRefusal("send with rid and cid", r, ack, "blocked")
		equal(t, "cid in the refusal", r.Cid, "c")
		// A device that does not listen to its replies learns of it in MQTT 5 alone.
		deaf := dial(t, shared, v, alice, "2")
		deaf.CheckReason("without replies", deaf.PublishAck("im/u/"+bob, "hi"), "blocked")
		settle(deaf, deaf)
		equal(t, "what the deaf device got", published(deaf), 0)
		// An MQTT 5 refusal at QoS 2 is a PUBREC.
		ack = a.PublishAck("im/u/"+bob, "hi", mqtest.QoS(2))
		if v == 5 {
			equal(t, "type of the refusal at QoS 2", ack.FixedHeader.Type, packets.Pubrec)
		}
		a.CheckReason("at QoS 2", ack, "blocked")
		b.Alive()
		equal(t, "what bob got", b.Count(b.Topic("msg")), 0)
	})
}

// MQTT 5 request and response: Correlation Data is echoed; a Response Topic is honoured under the user's own topics.
func TestRequestResponse(t *testing.T) {
	t.Parallel()
	alice, bob := name("alice"), name("bob")
	a, b := chat(t, shared, 5, alice, "1"), chat(t, shared, 5, bob, "1")
	request := func(topic, correlation string) mqtest.Reply {
		t.Helper()
		a.PublishAck("im/cmd/time", `{"t0":1,"rid":"x"}`, mqtest.Prop(func(p *packets.Properties) {
			p.ResponseTopic, p.CorrelationData = topic, []byte(correlation)
		}))
		return a.Reply("the reply", func(r *mqtest.Reply) bool { return r.Rid == "x" })
	}
	r := request(a.Topic("answers"), "\x00\x01corr")
	equal(t, "topic", r.Topic, a.Topic("answers"))
	equal(t, "correlation data", string(r.Properties.CorrelationData), "\x00\x01corr")
	r = request("", "only")
	equal(t, "topic", r.Topic, a.Topic("reply"))
	equal(t, "correlation data", string(r.Properties.CorrelationData), "only")
	for _, foreign := range []string{b.Topic("reply"), "im/u/" + bob, "elsewhere", "im/u/" + alice} {
		equal(t, "topic instead of "+foreign, request(foreign, "c").Topic, a.Topic("reply"))
	}
	b.Alive()
	equal(t, "what bob got", published(b), 0)
	// A refusal goes there, too, and so does send's answer.
	a.PublishAck("im/cmd/send", `{}`, mqtest.Prop(func(p *packets.Properties) { p.ResponseTopic = a.Topic("answers") }))
	r = a.Reply("the refusal", func(r *mqtest.Reply) bool { return !r.OK })
	equal(t, "topic of the refusal", r.Topic, a.Topic("answers"))
	body, _ := json.Marshal(mqtest.Map{"to": "u/" + bob, "body": "x"})
	a.PublishAck("im/cmd/send", string(body), mqtest.Prop(func(p *packets.Properties) { p.CorrelationData = []byte("s") }))
	r = a.Reply("send's reply", func(r *mqtest.Reply) bool { return r.OK })
	equal(t, "correlation data of send", string(r.Properties.CorrelationData), "s")
}
