package tests

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/tests/mqtest"
)

// A body published in the plain profile is a JSON string in the IM profile if it is UTF-8, else base64.
func TestBodiesPlainToIM(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		p := people("alice bob")
		a, b := dial(t, shared, v, p[0], "1"), chat(t, shared, v, p[1], "1")
		for _, body := range []string{
			"", "text", `{"json":true}`, "\"quoted\" \\ / \n\r\t\b\x00\x1f\x7f", "ünïcödé 漢字 😀 \u2028", "<script>&amp;", strings.Repeat("x", 100_000),
		} {
			a.PublishAck("im/u/"+p[1], body)
			m := b.Msg()
			equal(t, "text", m.Text(), body)
			equal(t, "type", m.Type, "text")
			equal(t, "enc", m.Enc, "")
		}
		for _, body := range []string{"\xff\xfe\x00", "half \xe6\xbc", strings.Repeat("\x80", 10_000)} {
			a.PublishAck("im/u/"+p[1], body)
			m := b.Msg()
			equal(t, "enc", m.Enc, "base64")
			equal(t, "type", m.Type, "bytes")
			raw, err := base64.StdEncoding.DecodeString(m.Text())
			if err != nil || string(raw) != body {
				t.Errorf("body: got %q, %v, want %q", raw, err, body)
			}
			b.Ack(m.Seq)
		}
	})
}

// A JSON string body reaches the plain profile as its bytes, any other JSON body as its text; the IM profile gets JSON.
func TestBodiesIMToPlain(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		p := people("alice bob")
		a, im, b := chat(t, shared, v, p[0], "1"), chat(t, shared, v, p[1], "im"), plain(t, shared, v, p[1], "plain")
		for _, tt := range []struct{ body, plain string }{
			{`"text"`, "text"}, {`""`, ""}, {`"\u0041\n\"\\ 漢 \ud83d\ude00"`, "A\n\"\\ 漢 😀"},
			{`{"a":[1,2,{"b":null}],"c":"<&>"}`, `{"a":[1,2,{"b":null}],"c":"<&>"}`},
			{`[]`, `[]`}, {`12.50`, `12.50`}, {`12345678901234567890`, `12345678901234567890`}, {`true`, `true`}, {`null`, `null`},
		} {
			a.PublishAck("im/cmd/send", fmt.Sprintf(`{"to":"u/%s","body":%s}`, p[1], tt.body))
			equal(t, "plain body of "+tt.body, string(b.Plain().Payload), tt.plain)
			m := im.Msg()
			if tt.body[0] == '"' {
				equal(t, "text of "+tt.body, m.Text(), tt.plain)
			} else {
				equal(t, "JSON of "+tt.body, string(m.Body), tt.body)
			}
			equal(t, "type", m.Type, "text")
		}
	})
}

// ttl and Message Expiry Interval: what is not delivered in time is not delivered, nor synced; it leaves no hole in seq.
func TestExpiry(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		p := people("alice bob")
		a := chat(t, shared, v, p[0], "1")
		a.Send(p[1], "stays")
		if v == 5 {
			a.PublishAck("im/u/"+p[1], "goes", mqtest.Prop(func(p *packets.Properties) { p.MessageExpiryInterval = 1 }))
		} else {
			a.OK("send", mqtest.Map{"to": "u/" + p[1], "body": "goes", "ttl": 1}, nil)
		}
		a.OK("send", mqtest.Map{"to": "u/" + p[1], "body": "stays, too", "ttl": 3600}, nil)
		now := chat(t, shared, v, p[1], "now")
		seqs(t, now, 1, 3) // in time
		time.Sleep(1100 * time.Millisecond)
		late := chat(t, shared, v, p[1], "late")
		equal(t, "first", text(late.Msg()), "stays")
		m := late.Msg()
		equal(t, "second", m.Text(), "stays, too")
		equal(t, "seq", m.Seq, 3)
		var page struct{ Messages []mqtest.Message }
		late.OK("sync", mqtest.Map{"after": 0}, &page)
		equal(t, "messages in sync", len(page.Messages), 2)
		late.Ack(3)
		equal(t, "cseq of the receipt", a.Receipt("delivered").Cseq, 3)
		for _, ttl := range []any{0, -1} {
			a.Refused("send", mqtest.Map{"to": "u/" + p[1], "body": "x", "ttl": ttl}, "bad_request")
		}
	})
}

// What inbox.max_messages trims before a device saw it is announced, and stays readable by history.
func TestInboxTrimmed(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		s := mqtest.Start(t, mqtest.Config{"inbox": "{max_messages: 20}"})
		p := people("alice bob")
		a := chat(t, s, v, p[0], "1")
		for i := range 50 {
			a.Send(p[1], fmt.Sprint(i+1))
		}
		b := chat(t, s, v, p[1], "1")
		ev := b.Event("inbox.trimmed")
		equal(t, "from", ev["from"], any(1.0))
		equal(t, "to", ev["to"], any(30.0))
		seqs(t, b, 31, 20)
		type page struct {
			Messages []mqtest.Message
			Head     uint64
			Trimmed  *struct{ From, To uint64 }
		}
		var got page
		b.OK("sync", mqtest.Map{"after": 10}, &got)
		equal(t, "first of sync", got.Messages[0].Seq, 31)
		if got.Trimmed == nil || got.Trimmed.From != 11 || got.Trimmed.To != 30 {
			t.Errorf("trimmed of sync: got %+v, want 11 to 30", got.Trimmed)
		}
		b.OK("history", mqtest.Map{"conv": "u/" + p[0], "after": 0, "limit": 100}, &got)
		equal(t, "messages in history", len(got.Messages), 50)
		equal(t, "first of history", got.Messages[0].Text(), "1")
		b.Ack(50)
		b.Send(p[0], "seq goes on")
		equal(t, "seq", a.Msg().Seq, 51) // alice's inbox holds what she sent, too
	})
}
