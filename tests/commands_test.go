package tests

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mqim/mqim/tests/mqtest"
)

// fields lists the members of a JSON object, sorted.
func fields(t *testing.T, raw json.RawMessage) string {
	t.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatalf("%v in %s", err, raw)
	}
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return strings.Join(keys, " ")
}

// pair connects two users who have exchanged n messages from the first to the second.
func pair(t *testing.T, v byte, n int) (a, b *mqtest.Client) {
	t.Helper()
	a, b = chat(t, shared, v, name("alice"), "1"), chat(t, shared, v, name("bob"), "1")
	for i := range n {
		a.Send(b.User, fmt.Sprint(i+1))
	}
	seqs(t, b, 1, uint64(n))
	return a, b
}

func TestCommandSend(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		a, b := pair(t, v, 0)
		r, _ := a.Command("send", mqtest.Map{"to": "u/" + b.User, "cid": "c1", "body": "x"})
		equal(t, "fields", fields(t, r.Data), "cid conv cseq id state ts")
		equal(t, "cid beside rid", r.Cid, "c1")
		r, _ = a.Command("send", mqtest.Map{"to": "u/" + b.User, "body": "x"})
		equal(t, "fields without cid", fields(t, r.Data), "conv cseq id state ts")
		r, _ = a.Command("send", mqtest.Map{"to": "u/" + b.User, "cid": "c1", "body": "x"})
		equal(t, "fields of a repetition", fields(t, r.Data), "cid conv cseq dup id state ts")
		// Without rid there is a reply all the same, and the default type.
		a.PublishAck("im/cmd/send", fmt.Sprintf(`{"to":"u/%s","body":null,"unknown":{"a":1}}`, b.User))
		equal(t, "ok", a.Reply("send's reply", func(r *mqtest.Reply) bool { return r.Rid == "" }).OK, true)
		b.Msg()
		b.Msg()
		m := b.Msg()
		equal(t, "body", string(m.Body), "null")
		equal(t, "type", m.Type, "text")
	})
}

func TestCommandAck(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		a, b := pair(t, v, 0)
		var sent []mqtest.Sent
		for range 8 {
			sent = append(sent, a.Send(b.User, "x"))
		}
		seqs(t, b, 1, 8)
		cursor := func() uint64 {
			var rows []struct{ Cursor uint64 }
			b.OK("device.list", nil, &rows)
			return rows[0].Cursor
		}
		b.OK("ack", mqtest.Map{"seq": 2}, nil)
		equal(t, "cursor after seq 2", cursor(), 2)
		b.OK("ack", mqtest.Map{"ids": []string{sent[3].ID, sent[4].ID}}, nil)
		equal(t, "cursor with a hole before what was acknowledged", cursor(), 2)
		equal(t, "cseq of the receipt", a.Receipt("delivered").Cseq, 2)
		b.OK("ack", mqtest.Map{"ids": []string{sent[2].ID}}, nil)
		equal(t, "cursor when the hole is filled", cursor(), 5)
		b.OK("ack", mqtest.Map{"conv": "u/" + a.User, "cseq": 7}, nil)
		equal(t, "cursor after conv and cseq", cursor(), 7)
		b.OK("ack", mqtest.Map{"seq": 3}, nil) // an old one does nothing
		b.OK("ack", mqtest.Map{"ids": []string{sent[0].ID}}, nil)
		equal(t, "cursor after old acks", cursor(), 7)
		r, _ := b.Command("ack", mqtest.Map{"seq": 8})
		equal(t, "data", string(r.Data), "")
		for r := a.Receipt("delivered"); r.Cseq < 8; r = a.Receipt("delivered") {
		}
	})
}

func TestCommandSync(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		a, b := pair(t, v, 5)
		type page struct {
			Messages []mqtest.Message
			Head     uint64
			More     bool
			Epoch    string
			Trimmed  *struct{ From, To uint64 }
		}
		sync := func(args mqtest.Map) (p page) { b.OK("sync", args, &p); return p }
		b.Ack(2)
		p := sync(nil) // from the device's cursor
		equal(t, "messages", len(p.Messages), 3)
		equal(t, "first", p.Messages[0].Seq, 3)
		equal(t, "head", p.Head, 5)
		equal(t, "more", p.More, false)
		if p.Epoch == "" || p.Trimmed != nil {
			t.Errorf("got epoch %q, trimmed %v, want an epoch and nothing trimmed", p.Epoch, p.Trimmed)
		}
		p = sync(mqtest.Map{"after": 0, "limit": 2})
		equal(t, "messages of a page", len(p.Messages), 2)
		equal(t, "first", p.Messages[0].Seq, 1)
		equal(t, "more", p.More, true)
		equal(t, "text", p.Messages[1].Text(), "2")
		equal(t, "from", p.Messages[1].From, a.User)
		equal(t, "conv", p.Messages[1].Conv, "u/"+a.User)
		p = sync(mqtest.Map{"after": 99})
		equal(t, "messages after the end", len(p.Messages), 0)
		equal(t, "more after the end", p.More, false)
		p = sync(mqtest.Map{"after": 0, "limit": 100000}) // at most 500
		equal(t, "messages", len(p.Messages), 5)
		r, _ := b.Command("sync", nil)
		if f := fields(t, r.Data); !strings.Contains(f, "epoch head messages more") {
			t.Errorf("fields: got %s", f)
		}
		// Nothing moves by it: what was not acknowledged comes on the next connection.
		b = chat(t, shared, v, b.User, "1")
		seqs(t, b, 3, 3)
	})
}

func TestCommandReadAndReceipts(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		a, b := pair(t, v, 3)
		b2 := chat(t, shared, v, b.User, "2")
		receipts := func(cseq int) string {
			r, _ := a.Command("receipts", mqtest.Map{"conv": "u/" + b.User, "cseq": cseq})
			var d struct{ Delivered, Read int }
			a.Parse(r.Data, &d)
			return fmt.Sprint(d.Delivered, d.Read)
		}
		equal(t, "delivered and read at first", receipts(1), "0 0")
		b.Ack(2)
		a.Receipt("delivered")
		equal(t, "delivered and read after the ack", receipts(2), "1 0")
		equal(t, "the message after", receipts(3), "0 0")
		b.OK("read", mqtest.Map{"conv": "u/" + a.User, "cseq": 2}, nil)
		r := a.Receipt("read")
		equal(t, "cseq", r.Cseq, 2)
		equal(t, "conv", r.Conv, "u/"+b.User)
		equal(t, "by", r.By, b.User)
		ev := b2.Event("read")
		equal(t, "event conv", ev["conv"], any("u/"+a.User))
		equal(t, "event cseq", ev["cseq"], any(2.0))
		equal(t, "delivered and read after reading", receipts(2), "1 1")
		b.OK("read", mqtest.Map{"conv": "u/" + a.User, "cseq": 1}, nil) // forward only
		b.Refused("read", mqtest.Map{"conv": "u/" + a.User, "cseq": 4}, "bad_request")
		settle(b, a, b, b2)
		equal(t, "events at the reading device", b.Count(b.Topic("event")), 0)
		equal(t, "further events", b2.Count(b2.Topic("event")), 0)
		a.Refused("receipts", mqtest.Map{"conv": "u/" + b.User, "cseq": 4}, "not_found")
	})
}

func TestCommandHistory(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		a, b := pair(t, v, 7)
		b.Ack(7) // trimmed from the inbox, not from the history
		history := func(c *mqtest.Client, peer string, args mqtest.Map) string {
			args["conv"] = "u/" + peer
			var p struct {
				Messages []mqtest.Message
				More     bool
			}
			c.OK("history", args, &p)
			var out []string
			for _, m := range p.Messages {
				out = append(out, fmt.Sprint(m.Cseq))
				equal(t, "text", m.Text(), fmt.Sprint(m.Cseq))
				equal(t, "from", m.From, a.User)
				equal(t, "conv", m.Conv, "u/"+peer)
			}
			return fmt.Sprint(strings.Join(out, " "), " more=", p.More)
		}
		equal(t, "all", history(b, a.User, mqtest.Map{}), "1 2 3 4 5 6 7 more=false")
		equal(t, "the last 3", history(b, a.User, mqtest.Map{"limit": 3}), "5 6 7 more=true")
		equal(t, "before", history(b, a.User, mqtest.Map{"before": 5, "limit": 3}), "2 3 4 more=true")
		equal(t, "before, to the beginning", history(b, a.User, mqtest.Map{"before": 4, "limit": 3}), "1 2 3 more=false")
		equal(t, "after", history(a, b.User, mqtest.Map{"after": 2, "limit": 3}), "3 4 5 more=true")
		equal(t, "after the end", history(a, b.User, mqtest.Map{"after": 7}), " more=false")
		equal(t, "of strangers", history(a, name("nobody"), mqtest.Map{}), " more=false")
	})
}

func TestCommandConversations(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		a, b := pair(t, v, 3)
		carol := name("carol")
		c := chat(t, shared, v, carol, "1")
		c.Send(b.User, "from carol")
		seqs(t, b, 4, 1)
		b.OK("read", mqtest.Map{"conv": "u/" + a.User, "cseq": 1}, nil)
		type conv struct {
			Conv               string
			Head, Read, Unread uint64
			PeerDelivered      uint64 `json:"peer_delivered"`
			PeerRead           uint64 `json:"peer_read"`
			Last               *mqtest.Message
		}
		var list []conv
		b.OK("conversations", nil, &list)
		if len(list) != 2 || list[0].Conv != "u/"+carol || list[1].Conv != "u/"+a.User {
			t.Fatalf("got %+v, want carol's, the newest, and alice's", list)
		}
		one := list[1]
		last := one.Last
		one.Last = nil
		equal(t, "alice's", one, conv{Conv: "u/" + a.User, Head: 3, Read: 1, Unread: 2})
		equal(t, "text of the last message", last.Text(), "3")
		b.Ack(4)
		for r := a.Receipt("delivered"); r.Cseq < 3; r = a.Receipt("delivered") {
		}
		a.OK("conversations", nil, &list)
		equal(t, "alice sees", fmt.Sprint(list[0].Conv, list[0].Head, list[0].Unread, list[0].PeerDelivered, list[0].PeerRead),
			fmt.Sprint("u/"+b.User, 3, 0, 3, 1))
		// Paging.
		r, _ := b.Command("conversations", mqtest.Map{"limit": 1})
		b.Parse(r.Data, &list)
		equal(t, "first page", fmt.Sprint(len(list), list[0].Conv), fmt.Sprint(1, "u/"+carol))
		r, _ = b.Command("conversations", mqtest.Map{"limit": 1, "cursor": r.Cursor})
		b.Parse(r.Data, &list)
		equal(t, "second page", fmt.Sprint(len(list), list[0].Conv), fmt.Sprint(1, "u/"+a.User))
		equal(t, "cursor at the end", r.Cursor, "")
	})
}

func TestCommandTime(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		a, _ := pair(t, v, 0)
		before := time.Now().UnixMilli()
		var d struct{ T0, T1, T2 int64 }
		a.OK("time", mqtest.Map{"t0": 12345}, &d)
		equal(t, "t0", d.T0, 12345)
		if after := time.Now().UnixMilli(); d.T1 < before || d.T2 < d.T1 || d.T2 > after {
			t.Errorf("got t1=%d, t2=%d, want them in order from %d to %d", d.T1, d.T2, before, after)
		}
	})
}
