package tests

import (
	"fmt"
	"testing"

	"github.com/mqim/mqim/tests/mqtest"
)

func TestRecall(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		a, b := pair(t, v, 2)
		a2, b2 := chat(t, shared, v, a.User, "2"), chat(t, shared, v, b.User, "2")
		b.Refused("recall", mqtest.Map{"conv": "u/" + a.User, "cseq": 1}, "forbidden")
		a.OK("recall", mqtest.Map{"conv": "u/" + b.User, "cseq": 1}, nil)
		a.OK("recall", mqtest.Map{"conv": "u/" + b.User, "cseq": 1}, nil) // again: nothing new
		for _, c := range []*mqtest.Client{b, b2, a2} {
			peer := a.User
			if c == a2 {
				peer = b.User
			}
			ev := c.Event("recall")
			equal(t, "event conv at "+c.ID, ev["conv"], any("u/"+peer))
			equal(t, "event cseq at "+c.ID, ev["cseq"], any(1.0))
			equal(t, "event by at "+c.ID, ev["by"], any(a.User))
			// A tombstone takes the body's place, for everyone, wherever the message is read.
			for _, command := range []string{"history", "sync"} {
				var p struct{ Messages []mqtest.Message }
				c.OK(command, mqtest.Map{"conv": "u/" + peer, "after": 0}, &p)
				m := p.Messages[0]
				equal(t, command+": cseq", m.Cseq, 1)
				equal(t, command+": type", m.Type, "recalled")
				equal(t, command+": body", string(m.Body), "null")
				equal(t, command+": the next text", p.Messages[1].Text(), "2")
			}
		}
		// A device that comes later sees the tombstone in the IM profile, and nothing of it in the plain one.
		late := chat(t, shared, v, b.User, "3")
		m := late.Msg()
		equal(t, "type", m.Type, "recalled")
		equal(t, "seq", m.Seq, 1)
		equal(t, "payload", string(plain(t, shared, v, b.User, "4").Plain().Payload), "2")
	})
}

func TestDelete(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		a, b := pair(t, v, 3)
		b2 := chat(t, shared, v, b.User, "2")
		b.OK("delete", mqtest.Map{"conv": "u/" + a.User, "cseqs": []int{1, 3}}, nil)
		ev := b2.Event("delete")
		equal(t, "event", fmt.Sprint(ev["conv"], " ", ev["cseqs"]), "u/"+a.User+" [1 3]")
		list := func(c *mqtest.Client, peer string) (out string) {
			var p struct{ Messages []mqtest.Message }
			c.OK("history", mqtest.Map{"conv": "u/" + peer}, &p)
			for _, m := range p.Messages {
				out += fmt.Sprint(m.Cseq)
			}
			return out
		}
		equal(t, "bob's history", list(b, a.User), "2")
		equal(t, "on his other device", list(b2, a.User), "2")
		equal(t, "alice's history", list(a, b.User), "123")
		settle(a, a, b)
		equal(t, "events at alice's and at the deleting device", a.Count(a.Topic("event"))+b.Count(b.Topic("event")), 0)
	})
}

func TestTyping(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		a, b := pair(t, v, 0)
		a.Publish("im/cmd/typing", fmt.Sprintf(`{"to":"u/%s","state":"start"}`, b.User), mqtest.QoS(0))
		ev := b.Event("typing")
		equal(t, "from", ev["from"], any(a.User))
		equal(t, "conv", ev["conv"], any("u/"+a.User))
		equal(t, "state", ev["state"], any("start"))
		// It is never stored.
		away := name("away")
		a.PublishAck("im/cmd/typing", fmt.Sprintf(`{"to":"u/%s","state":"start"}`, away))
		w := chat(t, shared, v, away, "1")
		settle(a, w)
		equal(t, "what came to who was away", published(w), 0)
	})
}

func TestPresence(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		a, b := pair(t, v, 0)
		carol := name("carol")
		type row struct {
			User     string
			Online   bool
			LastSeen int64 `json:"last_seen"`
			Devices  int
		}
		var rows []row
		b2 := chat(t, shared, v, b.User, "2")
		a.OK("presence.get", mqtest.Map{"users": []string{b.User, carol}}, &rows)
		equal(t, "users", len(rows), 2)
		equal(t, "who never wrote", rows[0], row{User: b.User}) // strangers are not shown
		for _, user := range []string{b.User, carol} {
			a.OK("send", mqtest.Map{"to": "u/" + user, "body": "hi"}, nil)
		}
		a.OK("presence.get", mqtest.Map{"users": []string{b.User, carol}}, &rows)
		equal(t, "users", len(rows), 2)
		if r := rows[0]; r.User != b.User || !r.Online || r.Devices != 2 || r.LastSeen == 0 {
			t.Errorf("got %+v, want %s online with two devices", r, b.User)
		}
		equal(t, "who was never there", rows[1], row{User: carol})

		a.OK("presence.watch", mqtest.Map{"users": []string{b.User, carol}}, &rows)
		equal(t, "users", len(rows), 2)
		c := chat(t, shared, v, carol, "1")
		ev := a.Event("presence")
		equal(t, "who came", fmt.Sprint(ev["user"], ev["online"], ev["devices"]), fmt.Sprint(carol, true, 1))
		b2.Disconnect() // his first device is still there
		c.Disconnect()
		ev = a.Event("presence")
		equal(t, "who left", fmt.Sprint(ev["user"], ev["online"], ev["devices"]), fmt.Sprint(carol, false, 0))
		a.OK("presence.get", mqtest.Map{"users": []string{carol}}, &rows)
		equal(t, "online", rows[0].Online, false)
		if rows[0].LastSeen == 0 {
			t.Error("last_seen of who left: got 0")
		}
		a.OK("presence.unwatch", mqtest.Map{"users": []string{carol}}, nil)
		chat(t, shared, v, carol, "1")
		a.OK("presence.watch", mqtest.Map{"users": []string{a.User}}, nil)
		settle(b, a)
		equal(t, "events after unwatch", a.Count(a.Topic("event")), 0)
	})
}

// Whoever is blocked cannot send, type or see.
func TestBlock(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		a, b := pair(t, v, 0)
		var list []string
		b.OK("block.list", nil, &list)
		equal(t, "at first", len(list), 0)
		a.OK("presence.watch", mqtest.Map{"users": []string{b.User}}, nil)
		b.OK("block.add", mqtest.Map{"user": a.User}, nil)
		b.OK("block.add", mqtest.Map{"user": a.User}, nil)
		b.OK("block.list", nil, &list)
		equal(t, "list", fmt.Sprint(list), fmt.Sprint([]string{a.User}))
		a.Refused("send", mqtest.Map{"to": "u/" + b.User, "body": "hello?"}, "blocked")
		a.Publish("im/cmd/typing", fmt.Sprintf(`{"to":"u/%s","state":"start"}`, b.User))
		var rows []struct {
			Online   bool
			LastSeen int64 `json:"last_seen"`
		}
		a.OK("presence.get", mqtest.Map{"users": []string{b.User}}, &rows)
		equal(t, "online, to who is blocked", fmt.Sprint(rows[0]), "{false 0}")
		b.Send(a.User, "the other way round it goes")
		m := a.Msg()
		equal(t, "conv", m.Conv, "u/"+b.User)
		settle(a, b)
		equal(t, "what bob got", b.Count(b.Topic("msg"))+b.Count(b.Topic("event")), 0)
		b.OK("block.remove", mqtest.Map{"user": a.User}, nil)
		b.OK("block.list", nil, &list)
		equal(t, "in the end", len(list), 0)
		equal(t, "cseq", a.Send(b.User, "again").Cseq, 2)
		b.Msg()
	})
}
