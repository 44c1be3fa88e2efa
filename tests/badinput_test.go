package tests

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/tests/mqtest"
)

// Every bad input gets its error, and the connection and everybody else's traffic go on.
func TestBadInput(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		a, b := pair(t, v, 3)
		big := strings.Repeat("x", 300<<10)
		tests := []struct{ command, payload, code string }{
			{"send", ``, "bad_request"},
			{"send", `{`, "bad_request"},
			{"send", `{"to":"u/B","body":"x"`, "bad_request"},
			{"send", `{"to":"u/B","body":"x"}}`, "bad_request"},
			{"send", `[1]`, "bad_request"},
			{"send", `"x"`, "bad_request"},
			{"send", `null`, "bad_request"},
			{"send", `12`, "bad_request"},
			{"send", "\x00\x01", "bad_request"},
			{"send", "{\"to\":\"u/B\",\"body\":\"\xff\xfe\"}", "bad_request"},
			{"send", strings.Repeat("[", 100_000), "bad_request"},
			{"send", `{"rid":"R"}`, "bad_request"},
			{"send", `{"rid":"R","to":"u/B"}`, "bad_request"},
			{"send", `{"rid":"R","body":"x"}`, "bad_request"},
			{"send", `{"rid":"R","to":5,"body":"x"}`, "bad_request"},
			{"send", `{"rid":"R","to":["u/B"],"body":"x"}`, "bad_request"},
			{"send", `{"rid":"R","to":"","body":"x"}`, "bad_request"},
			{"send", `{"rid":"R","to":"u/","body":"x"}`, "bad_request"},
			{"send", `{"rid":"R","to":"x/B","body":"x"}`, "bad_request"},
			{"send", `{"rid":"R","to":"u/+","body":"x"}`, "bad_request"},
			{"send", `{"rid":"R","to":"u/B","body":"x","cid":5}`, "bad_request"},
			{"send", `{"rid":"R","to":"u/B","body":"x","cid":""}`, "bad_request"},
			{"send", `{"rid":"R","to":"u/B","body":"x","cid":"` + strings.Repeat("c", 65) + `"}`, "bad_request"},
			{"send", `{"rid":"R","to":"u/B","body":"x","ttl":"soon"}`, "bad_request"},
			{"send", `{"rid":"R","to":"u/B","body":"x","cts":1.5}`, "bad_request"},
			{"send", `{"rid":"R","to":"u/B","body":"x","type":{}}`, "bad_request"},
			{"send", `{"rid":"R","to":"u/B","body":"` + big + `"}`, "too_large"},
			{"send", `{"rid":"` + strings.Repeat("r", 65) + `","to":"u/B","body":"x"}`, "bad_request"},
			{"send", `{"rid":7,"to":"u/B","body":"x"}`, "bad_request"},
			{"ack", `{"rid":"R"}`, "bad_request"},
			{"ack", `{"rid":"R","seq":99}`, "bad_request"},
			{"ack", `{"rid":"R","seq":-1}`, "bad_request"},
			{"ack", `{"rid":"R","seq":1.5}`, "bad_request"},
			{"ack", `{"rid":"R","seq":"1"}`, "bad_request"},
			{"ack", `{"rid":"R","seq":18446744073709551616}`, "bad_request"},
			{"ack", `{"rid":"R","ids":[]}`, "bad_request"},
			{"ack", `{"rid":"R","ids":["x"]}`, "bad_request"},
			{"ack", `{"rid":"R","ids":[7]}`, "bad_request"},
			{"ack", `{"rid":"R","ids":["12345"]}`, "not_found"},
			{"ack", `{"rid":"R","ids":["9223372036854775807"]}`, "not_found"},
			{"ack", `{"rid":"R","conv":"u/B"}`, "bad_request"},
			{"ack", `{"rid":"R","conv":"u/B","cseq":99}`, "bad_request"},
			{"sync", `{"rid":"R","limit":0}`, "bad_request"},
			{"sync", `{"rid":"R","limit":-5}`, "bad_request"},
			{"sync", `{"rid":"R","after":"x"}`, "bad_request"},
			{"read", `{"rid":"R","conv":"u/B"}`, "bad_request"},
			{"read", `{"rid":"R","cseq":1}`, "bad_request"},
			{"read", `{"rid":"R","conv":"u/B","cseq":99}`, "bad_request"},
			{"history", `{"rid":"R"}`, "bad_request"},
			{"history", `{"rid":"R","conv":"nonsense"}`, "bad_request"},
			{"history", `{"rid":"R","conv":"u/B","before":1,"after":1}`, "bad_request"},
			{"history", `{"rid":"R","conv":"u/B","before":0}`, "bad_request"},
			{"history", `{"rid":"R","conv":"g/none"}`, "not_found"},
			{"conversations", `{"rid":"R","limit":"many"}`, "bad_request"},
			{"receipts", `{"rid":"R","conv":"u/B"}`, "bad_request"},
			{"receipts", `{"rid":"R","conv":"u/B","cseq":99}`, "not_found"},
			{"recall", `{"rid":"R","conv":"u/B","cseq":0}`, "not_found"},
			{"delete", `{"rid":"R","conv":"u/B"}`, "bad_request"},
			{"delete", `{"rid":"R","conv":"u/B","cseqs":["1"]}`, "bad_request"},
			{"typing", `{"rid":"R"}`, "bad_request"},
			{"presence.get", `{"rid":"R"}`, "bad_request"},
			{"presence.get", `{"rid":"R","users":["a/b"]}`, "bad_request"},
			{"presence.watch", `{"rid":"R","users":"B"}`, "bad_request"},
			{"block.add", `{"rid":"R"}`, "bad_request"},
			{"block.add", `{"rid":"R","user":"a b"}`, "bad_request"},
			{"device.remove", `{"rid":"R"}`, "bad_request"},
			{"time", `{"rid":"R"}`, "bad_request"},
			{"time", `{"rid":"R","t0":"now"}`, "bad_request"},
			{"nonsense", `{"rid":"R"}`, "unknown_command"},
			{"SEND", `{"rid":"R"}`, "unknown_command"},
			{"", `{"rid":"R"}`, "unknown_command"},
			{"group.create", `{"rid":"R","name":"x","members":["-"]}`, "bad_request"},
		}
		for i, tt := range tests {
			rid := fmt.Sprintf("bad-%d", i)
			payload := strings.ReplaceAll(strings.ReplaceAll(tt.payload, `"R"`, `"`+rid+`"`), "u/B", "u/"+b.User)
			what := fmt.Sprintf("%s %.60q", tt.command, payload)
			ack := a.PublishAck("im/cmd/"+tt.command, payload)
			r := a.Reply("the refusal of "+what, func(r *mqtest.Reply) bool { return !r.OK })
			a.CheckRefusal(what, r, ack, tt.code)
			if strings.Contains(payload, rid) && r.Rid != rid {
				t.Errorf("%s: got rid %q, want %q", what, r.Rid, rid)
			}
			if i%10 == 0 { // other traffic goes on, undisturbed
				a.Send(b.User, fmt.Sprint(i))
				m := b.Msg()
				equal(t, "text", m.Text(), fmt.Sprint(i))
			}
		}
		settle(a, b)
		equal(t, "messages from bad input", b.Count(b.Topic("msg")), 0)
	})
}

// A refused send tells its cid, with a rid or without, whatever was wrong with it: it is what the sender knows it by.
func TestBadInputTellsCid(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		a, b := pair(t, v, 0)
		for i, payload := range []string{
			`{"cid":"C"}`, `{"cid":"C","body":"x"}`, `{"cid":"C","to":5,"body":"x"}`, `{"to":"u/B","body":"x","ttl":"soon","cid":"C"}`,
			`{"cid":"C","to":"u/B","body":"x","ttl":0}`, `{"cid":"C","to":"g/none","body":"x"}`,
			`{"cid":"C","to":"u/B","body":"` + strings.Repeat("x", 300<<10) + `"}`,
			`{"cid":"C","to":"u/B","body":"` + strings.Repeat("x", 530<<10) + `"}`, // over limits.command_bytes
		} {
			cid := fmt.Sprintf("cid-%d", i)
			a.Publish("im/cmd/send", strings.ReplaceAll(strings.ReplaceAll(payload, `"C"`, `"`+cid+`"`), "u/B", "u/"+b.User))
			r := a.Reply("the refusal", func(r *mqtest.Reply) bool { return !r.OK })
			equal(t, fmt.Sprintf("cid in the refusal of %.60s", payload), r.Cid, cid)
		}
	})
}

// Bodies too large are answered with too_large, also beyond any packet limit, and the connection lives.
func TestBadInputOversized(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		a, b := pair(t, v, 0)
		for _, size := range []int{256<<10 + 1, 700 << 10, 3 << 20, 9 << 20} {
			for _, topic := range []string{"im/u/" + b.User, "im/cmd/send", "im/cmd/history"} {
				payload := strings.Repeat("x", size)
				if topic == "im/cmd/history" {
					payload = `{"conv":"u/` + b.User + `","junk":"` + payload + strings.Repeat("x", 256<<10) + `"}`
				} else if topic == "im/cmd/send" {
					payload = fmt.Sprintf(`{"to":"u/%s","body":"%s"}`, b.User, payload)
				}
				what := fmt.Sprintf("%d bytes to %s", size, topic)
				ack := a.PublishAck(topic, payload)
				r := a.Reply("the refusal of "+what, func(r *mqtest.Reply) bool { return !r.OK })
				a.CheckRefusal(what, r, ack, "too_large")
			}
			a.Send(b.User, "between")
			equal(t, "text", text(b.Msg()), "between")
		}
		// Just fitting.
		equal(t, "PUBACK of 256 KiB", a.PublishAck("im/u/"+b.User, strings.Repeat("x", 256<<10)).ReasonCode, 0)
		equal(t, "its length", len(text(b.Msg())), 256<<10)
		// At QoS 0 the reply tells, at QoS 2 PUBREC does.
		a.Publish("im/u/"+b.User, strings.Repeat("x", 2<<20), mqtest.QoS(0))
		r := a.Reply("the refusal at QoS 0", func(r *mqtest.Reply) bool { return !r.OK })
		equal(t, "error at QoS 0", r.Error.Code, "too_large")
		a.CheckReason("QoS 2", a.PublishAck("im/u/"+b.User, strings.Repeat("x", 2<<20), mqtest.QoS(2)), "too_large")
		a.Alive()
	})
}

// The user properties of the plain profile are checked like a command's fields.
func TestBadInputProperties(t *testing.T) {
	t.Parallel()
	a, b := pair(t, 5, 0)
	for _, o := range []mqtest.Option{
		mqtest.UserProp("cid", strings.Repeat("c", 65)), mqtest.UserProp("type", strings.Repeat("t", 65)), mqtest.UserProp("cts", "now"),
	} {
		ack := a.PublishAck("im/u/"+b.User, "x", o)
		r := a.Reply("the refusal", func(r *mqtest.Reply) bool { return !r.OK })
		a.CheckRefusal("bad property", r, ack, "bad_request")
	}
	a.PublishAck("im/u/"+b.User, "x", mqtest.UserProp("unknown", "ignored"), mqtest.UserProp("cid", "c"))
	equal(t, "cid", b.Msg().Cid, "c")
}

// What breaks MQTT itself ends that connection, alone.
func TestBadInputBreaksMQTT(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		a, b := pair(t, v, 0)
		prop := []byte{}
		if v == 5 {
			prop = []byte{0}
		}
		publish := func(first byte, topic string, rest ...byte) []byte {
			body := append([]byte{0, byte(len(topic))}, topic...)
			body = append(append(body, rest...), prop...)
			return append([]byte{first, byte(len(body))}, body...)
		}
		for what, raw := range map[string][]byte{
			"QoS 3":                     publish(0x36, "im/u/x", 0, 1),
			"packet id 0":               publish(0x32, "im/u/x", 0, 0),
			"wildcard in a topic":       publish(0x32, "im/u/+", 0, 1),
			"invalid UTF-8 in a topic":  publish(0x32, "im/u/\xff", 0, 1),
			"NUL in a topic":            publish(0x32, "im/u/\x00", 0, 1),
			"topic beyond the packet":   {0x32, 4, 0, 99, 'i', 'm'},
			"cut off before the id":     {0x32, 4, 0, 2, 'i', 'm'},
			"second CONNECT":            {0x10, 12, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, 0},
			"truncated SUBSCRIBE":       {0x82, 6, 0, 1, 0, 2, 'i', 'm'},
			"SUBSCRIBE without filters": {0x82, 2, 0, 1},
			"length of five bytes":      {0x30, 0xff, 0xff, 0xff, 0xff, 0x01},
			"a packet type of 0":        {0x00, 0},
			"UNSUBSCRIBE cut off":       {0xa2, 4, 0, 1, 0, 9},
		} {
			bad := chat(t, shared, v, name("bad"), "1")
			bad.WriteRaw(raw)
			if reason := bad.Closed(); v == 5 && reason != 0 && reason < 0x80 {
				t.Errorf("%s: got DISCONNECT %#x, want an error", what, reason)
			}
			a.Send(b.User, what)
			equal(t, "other traffic", text(b.Msg()), what)
		}
	})
}

// An acknowledgement of what was never sent is nothing.
func TestBadInputStrayAcks(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		a, b := pair(t, v, 0)
		b.Hold(true)
		a.Send(b.User, "one")
		m, pk := b.MsgPacket()
		for _, id := range []uint16{pk.PacketID + 1, 999, 65535, pk.PacketID + 1} {
			b.Puback(packets.Packet{PacketID: id})
		}
		b.WriteRaw([]byte{0x50, 2, 0, 77}) // PUBREC
		b.WriteRaw([]byte{0x70, 2, 0, 77}) // PUBCOMP
		b.WriteRaw([]byte{0x62, 2, 0, 77}) // PUBREL
		b.Alive()
		b.Puback(pk)
		b.Puback(pk)
		b.Ack(m.Seq)
		equal(t, "cseq", a.Receipt("delivered").Cseq, 1)
		b.Hold(false)
		a.Send(b.User, "two")
		equal(t, "text", text(b.Msg()), "two")
	})
}

// Random bytes and random payloads end at most the connection that sent them.
func TestBadInputGarbage(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		a, b := pair(t, v, 0)
		seed := bytes.Repeat([]byte{7, 0x30, 0xff, 0, 3, 'i', 'm', '/', 0x82, 0x32, 1, 2}, 20)
		for i := range 64 {
			bad := chat(t, shared, v, name("bad"), "1")
			_ = bad.TryWrite(append([]byte{byte(i << 2), byte(i)}, seed[i:]...))
			bad.Kill()
		}
		a.Send(b.User, "still here")
		equal(t, "text", text(b.Msg()), "still here")
	})
}
