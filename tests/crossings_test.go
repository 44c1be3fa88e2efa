package tests

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/tests/mqtest"
)

var crossings = []crossing{
	{"subscriptions", "45", func(x *traveller) []func(*testing.T) {
		a, b, gone := x.topic("a"), x.topic("b/#"), x.topic("gone")
		return []func(*testing.T){func(t *testing.T) {
			c := x.session("sub", false)
			x.subscribe(c, 1, a, gone)
			c.Unsubscribe(gone)
			x.subscribe(c, 0, b) // the server dies right after SUBACK
		}, func(t *testing.T) {
			c, p := x.session("sub", true), x.clean("pub")
			x.publish(p, gone, []string{"no"})
			x.publish(p, a, []string{"1"})
			equal(t, "QoS", x.receive(c, a, "1")[0].FixedHeader.Qos, 1)
			x.publish(p, x.topic("b/c"), []string{"2"})
			equal(t, "QoS", x.receive(c, x.topic("b/c"), "2")[0].FixedHeader.Qos, 0)
			c.Unsubscribe(a) // and right after UNSUBACK
		}, func(t *testing.T) {
			c, p := x.session("sub", true), x.clean("pub")
			x.publish(p, a, []string{"no"})
			x.nothing(c)
		}}
	}},

	{"queue in order and once", "45", func(x *traveller) []func(*testing.T) {
		q := x.topic("q")
		return []func(*testing.T){func(t *testing.T) {
			x.away("sub", q)
			x.away("late", q)
			p := x.clean("pub")
			for i, m := range numbered(60) {
				x.publish(p, q, []string{m}, mqtest.QoS(byte(1+i%2)))
			}
		}, func(t *testing.T) {
			c := x.session("sub", true)
			for i, pk := range x.receive(c, q, numbered(60)...) {
				equal(t, "QoS", pk.FixedHeader.Qos, byte(1+i%2))
				equal(t, "DUP of what was never sent", pk.FixedHeader.Dup, false)
			}
			x.nothing(c)
			c.Disconnect()
			x.publish(x.clean("pub"), q, []string{"more"})
		}, func(t *testing.T) {
			c := x.session("sub", true)
			x.receive(c, q, "more") // what it had acknowledged before it said goodbye does not come again
			x.nothing(c)
			c = x.session("late", true)
			x.receive(c, q, append(numbered(60), "more")...)
			x.nothing(c)
		}}
	}},

	{"connected when the server dies", "45", func(x *traveller) []func(*testing.T) {
		q := x.topic("q")
		const n = 600 // more than what is read ahead for a session
		return []func(*testing.T){func(t *testing.T) {
			c := x.session("sub", false, hold)
			x.subscribe(c, 1, q)
			p := x.clean("pub")
			for _, m := range numbered(n) {
				p.Publish(q, m)
			}
			x.receive(c, q, numbered(n)...)
		}, func(t *testing.T) {
			c := x.session("sub", true)
			for _, pk := range x.receive(c, q, numbered(n)...) {
				if !pk.FixedHeader.Dup { // [MQTT-3.3.1-1]
					t.Fatalf("%s comes again without DUP", pk.Payload)
				}
			}
			x.publish(x.clean("pub"), q, []string{"fresh"})
			equal(t, "DUP of what is new", x.receive(c, q, "fresh")[0].FixedHeader.Dup, false)
		}}
	}},

	{"connection lost before the server dies", "45", func(x *traveller) []func(*testing.T) {
		q := x.topic("q")
		ids := map[string]uint16{}
		return []func(*testing.T){func(t *testing.T) {
			p, c := x.clean("pub"), x.session("sub", false, silent)
			x.subscribe(c, 2, q)
			for i, m := range numbered(6) {
				x.publish(p, q, []string{m}, mqtest.QoS(byte(1+i%2)))
				ids[m] = x.receive(c, q, m)[0].PacketID
			}
			c.Puback(packet{PacketID: ids["message 2"]}) // out of order
			c.Alive()
			c.Kill()
			// It is over when the server knows: the next connection waits for it, and ends the same way.
			c = x.session("sub", true, silent)
			x.receive(c, q, "message 0")
		}, func(t *testing.T) {
			c := x.session("sub", true)
			for _, m := range []string{"message 0", "message 1", "message 3", "message 4", "message 5"} {
				pk := x.receive(c, q, m)[0] // [MQTT-4.4.0-1]
				equal(t, "packet id of "+m, pk.PacketID, ids[m])
				equal(t, "DUP of "+m, pk.FixedHeader.Dup, true)
			}
			x.nothing(c)
		}}
	}},

	{"QoS 2 from a publisher", "45", func(x *traveller) []func(*testing.T) {
		q := x.topic("q")
		send := func(c *mqtest.Client, id uint16, payload string, opts ...mqtest.Option) {
			c.Publish(q, payload, append(opts, mqtest.QoS(2), mqtest.PacketID(id))...)
			c.Take("PUBREC", is(packets.Pubrec, id))
		}
		return []func(*testing.T){func(t *testing.T) {
			x.away("sub", q)
			c := x.session("pub", false, noAuto)
			send(c, 7, "seven")
			send(c, 8, "eight")
			send(c, 9, "nine")
			equal(t, "PUBCOMP", pubrel(c, 9).ReasonCode, 0)
		}, func(t *testing.T) {
			c := x.session("pub", true, noAuto)
			send(c, 7, "seven", mqtest.Dup)
			equal(t, "PUBCOMP", pubrel(c, 7).ReasonCode, 0)
			equal(t, "PUBCOMP", pubrel(c, 8).ReasonCode, 0)
		}, func(t *testing.T) {
			c := x.session("pub", true, noAuto)
			for _, id := range []uint16{7, 8, 9} { // all is forgotten, so the same id is a new message
				equal(t, "PUBCOMP", pubrel(c, id).ReasonCode, 0)
				send(c, id, fmt.Sprint("new ", id))
			}
			sub := x.session("sub", true)
			x.receive(sub, q, "seven", "eight", "nine", "new 7", "new 8", "new 9")
			x.nothing(sub)
		}}
	}},

	{"QoS 2 to a subscriber", "45", func(x *traveller) []func(*testing.T) {
		q := x.topic("q")
		var list []packet
		return []func(*testing.T){func(t *testing.T) {
			c, p := x.session("sub", false, silent), x.clean("pub")
			x.subscribe(c, 2, q)
			x.publish(p, q, numbered(4), mqtest.QoS(2))
			list = x.receive(c, q, numbered(4)...)
			for _, i := range []int{0, 2, 3} {
				pubrec(c, list[i].PacketID)
				c.Take("PUBREL", is(packets.Pubrel, list[i].PacketID))
			}
			pubcomp(c, list[3].PacketID)
			c.Alive()
		}, func(t *testing.T) {
			c := x.session("sub", true, silent)
			for _, i := range []int{0, 2} {
				c.Take("PUBREL", is(packets.Pubrel, list[i].PacketID))
			}
			pk := x.receive(c, q, "message 1")[0]
			equal(t, "packet id", pk.PacketID, list[1].PacketID)
			equal(t, "DUP", pk.FixedHeader.Dup, true)
			for _, i := range []int{0, 2} {
				pubcomp(c, list[i].PacketID)
			}
			pubrec(c, pk.PacketID)
			c.Take("PUBREL", is(packets.Pubrel, pk.PacketID))
			pubcomp(c, pk.PacketID)
			c.Alive()
			c.Disconnect()
		}, func(t *testing.T) {
			c := x.session("sub", true)
			x.nothing(c)
			for _, got := range c.Got() {
				// The server may not have had time to write down that the last one is through, and may ask again.
				if got.FixedHeader.Type == packets.Pubrel && got.PacketID != list[3].PacketID {
					t.Errorf("PUBREL %d again", got.PacketID)
				}
			}
		}}
	}},

	{"QoS 2, a packet id used again", "45", func(x *traveller) []func(*testing.T) {
		q := x.topic("q")
		var first, second packet
		return []func(*testing.T){func(t *testing.T) {
			c, p := x.session("sub", false, silent), x.clean("pub")
			x.subscribe(c, 2, q)
			x.publish(p, q, numbered(2), mqtest.QoS(2))
			list := x.receive(c, q, numbered(2)...)
			first, second = list[0], list[1]
			pubrec(c, second.PacketID)
			c.Take("PUBREL", is(packets.Pubrel, second.PacketID))
			c.Kill()
			c = x.session("sub", true, silent) // which counts packet ids from the start again
			x.receive(c, q, "message 0")
			c.Take("PUBREL", is(packets.Pubrel, second.PacketID))
			pubcomp(c, second.PacketID)
			c.Alive()
			x.publish(p, q, []string{"third"}, mqtest.QoS(2))
			equal(t, "packet id of the third message", x.receive(c, q, "third")[0].PacketID, second.PacketID)
		}, func(t *testing.T) {
			c := x.session("sub", true, silent)
			equal(t, "packet id", x.receive(c, q, "message 0")[0].PacketID, first.PacketID)
			equal(t, "packet id", x.receive(c, q, "third")[0].PacketID, second.PacketID)
			for _, pk := range c.Got() {
				if pk.FixedHeader.Type == packets.Pubrel {
					t.Errorf("PUBREL %d, with which the client forgets that it has the third message", pk.PacketID)
				}
			}
		}}
	}},

	{"retained messages", "45", func(x *traveller) []func(*testing.T) {
		set := func(topic, payload string, opts ...mqtest.Option) {
			retain := func(pk *packet) { pk.FixedHeader.Retain = true }
			x.publish(x.clean("pub"), x.topic(topic), []string{payload}, append(opts, retain)...)
		}
		return []func(*testing.T){func(t *testing.T) {
			set("r/kept", "old")
			set("r/replaced", "old")
			set("r/cleared", "old")
			set("r/two", "qos 2", mqtest.QoS(2))
			set("r/replaced", "new")
			set("r/cleared", "")
		}, func(t *testing.T) {
			want := map[string]string{"r/kept": "old", "r/replaced": "new", "r/two": "qos 2"}
			for range 2 {
				c := x.clean("sub")
				x.subscribe(c, 1, x.topic("r/#"))
				got := map[string]string{}
				for range want {
					pk := c.Take("a retained message", isPublish)
					equal(t, "RETAIN", pk.FixedHeader.Retain, true)
					got[strings.TrimPrefix(pk.TopicName, x.topic(""))] = string(pk.Payload)
				}
				equal(t, "retained", fmt.Sprint(got), fmt.Sprint(want))
				x.nothing(c)
				c.Disconnect()
				set("r/kept", "")
				set("r/cleared", "again")
				delete(want, "r/kept")
				want["r/cleared"] = "again"
			}
		}, func(t *testing.T) {
			c := x.clean("sub")
			x.subscribe(c, 1, x.topic("r/kept"), x.topic("r/cleared"))
			x.receive(c, x.topic("r/cleared"), "again")
			x.nothing(c)
		}}
	}},

	{"wills", "45", func(x *traveller) []func(*testing.T) {
		connect := func(id string, retain bool) *mqtest.Client {
			o := x.options(id)
			o.Will = will(x.topic("w/"+id), "gone", 0)
			o.Will.FixedHeader.Retain = retain
			return x.dial(o)
		}
		return []func(*testing.T){func(t *testing.T) {
			x.away("watch", x.topic("w/+"))
			connect("a", true)
			connect("b", false).Disconnect()
			connect("d", false)
			connect("e", false)
			c := connect("c", false)
			x.clean("c").Disconnect() // taken over by one without a will
			c.Closed()
		}, func(t *testing.T) {
			connect("d", false).Disconnect() // back before anybody else
			e := x.clean("e")
			c := x.session("watch", true)
			x.receive(c, x.topic("w/c"), "gone") // of the connection that was taken over
			got := map[string]int{}
			for range 3 {
				got[strings.TrimPrefix(c.Take("a will", isPublish).TopicName, x.topic("w/"))]++
			}
			equal(t, "wills", fmt.Sprint(got), fmt.Sprint(map[string]int{"a": 1, "d": 1, "e": 1}))
			c.Disconnect()
			e.Alive()
		}, func(t *testing.T) {
			x.nothing(x.session("watch", true)) // once
			c := x.clean("new")
			x.subscribe(c, 0, x.topic("w/+"))
			x.receive(c, x.topic("w/a"), "gone")
			x.nothing(c)
		}}
	}},

	{"delayed wills", "5", func(x *traveller) []func(*testing.T) {
		var at time.Time
		connect := func(id string, delay, expiry uint32) *mqtest.Client {
			o := expiring(x.options(id), expiry)
			o.Will = will(x.topic("w/"+id), "gone", delay)
			return x.dial(o)
		}
		return []func(*testing.T){func(t *testing.T) {
			x.away("watch", x.topic("w/+"))
			connect("delayed", 1, 3600)
			connect("bounded", 3600, 1) // by the end of its session [MQTT-3.1.3-9]
			connect("waiting", 1, 3600).Kill()
			connect("back", 3600, 3600)
			connect("away", 3600, 3600).Kill()
			connect("replaced", 1, 3600).Kill()
			x.dial(x.options("replaced")) // a new session, without a will
			at = time.Now()
		}, func(t *testing.T) {
			connect("back", 3600, 3600).Disconnect()
			c := x.session("watch", true)
			got := map[string]int{}
			for range 4 {
				got[strings.TrimPrefix(c.Take("a will", isPublish).TopicName, x.topic("w/"))]++
			}
			equal(t, "wills", fmt.Sprint(got), fmt.Sprint(map[string]int{"bounded": 1, "delayed": 1, "waiting": 1, "replaced": 1}))
			x.nothing(c)
		}, func(t *testing.T) {
			c := connect("away", 3600, 3600)
			equal(t, "session present", c.Connack.SessionPresent, true)
			c.Disconnect()
			connect("waiting", 0, 0).Disconnect()
			passed(t, "the delay of a will that was published before it", at, 1100*time.Millisecond)
			x.nothing(x.session("watch", true))
		}}
	}},

	{"session expiry", "5", func(x *traveller) []func(*testing.T) {
		q := x.topic("q")
		var killed time.Time
		connect := func(id string, expiry uint32) *mqtest.Client { return x.dial(expiring(x.options(id), expiry)) }
		return []func(*testing.T){func(t *testing.T) {
			for _, id := range []string{"connected", "away", "foreign"} {
				c := connect(id, 1)
				x.subscribe(c, 1, q)
				if id != "connected" {
					c.Disconnect()
				}
			}
			c := connect("stays", 3600)
			c.Hold(true)
			x.subscribe(c, 1, q)
			x.publish(x.clean("pub"), q, []string{"old"})
		}, func(t *testing.T) {
			killed = time.Now()
			passed(t, "sessions of a second to end", killed, 1100*time.Millisecond)
			p := x.clean("pub")
			for _, id := range []string{"connected", "away", "foreign"} {
				o := expiring(x.options(id), 3600)
				if id == "foreign" {
					o.User = "another" // whoever takes up a free client id has none of what was under it
				}
				c := x.dial(o)
				equal(t, id+": session present", c.Connack.SessionPresent, false)
				x.publish(p, q, []string{"new"})
				x.nothing(c)
			}
			c := connect("stays", 3600)
			equal(t, "session present", c.Connack.SessionPresent, true)
			x.receive(c, q, "old", "new", "new", "new")
		}, func(t *testing.T) {
			c := connect("away", 0)
			equal(t, "session present", c.Connack.SessionPresent, true)
			x.nothing(c)
		}}
	}},

	{"message expiry", "5", func(x *traveller) []func(*testing.T) {
		q := x.topic("q")
		var at time.Time
		return []func(*testing.T){func(t *testing.T) {
			x.away("sub", q)
			p := x.clean("pub")
			expire := func(seconds uint32) mqtest.Option {
				return mqtest.Prop(func(p *packets.Properties) { p.MessageExpiryInterval = seconds })
			}
			retain := func(pk *packet) { pk.FixedHeader.Retain = true }
			x.publish(p, q, []string{"short"}, expire(1))
			x.publish(p, q, []string{"long"}, expire(1000))
			x.publish(p, x.topic("r/short"), []string{"short"}, expire(1), retain)
			x.publish(p, x.topic("r/long"), []string{"long"}, expire(1000), retain)
			at = time.Now()
		}, func(t *testing.T) {
			passed(t, "messages of a second to expire", at, 1100*time.Millisecond)
			c := x.session("sub", true)
			x.subscribe(c, 1, x.topic("r/+"))
			for _, pk := range append(x.receive(c, q, "long"), x.receive(c, x.topic("r/long"), "long")...) {
				if left := pk.Properties.MessageExpiryInterval; left == 0 || left > 999 {
					t.Errorf("%s: expiry: got %d, want what is left of 1000", pk.TopicName, left)
				}
			}
			x.nothing(c)
		}}
	}},

	{"session taken over", "45", func(x *traveller) []func(*testing.T) {
		q := x.topic("q")
		return []func(*testing.T){func(t *testing.T) {
			p := x.clean("pub")
			old := x.session("sub", false, hold)
			x.subscribe(old, 1, q)
			x.publish(p, q, numbered(3))
			first := x.receive(old, q, numbered(3)...)
			c := x.session("sub", true)
			old.Closed()
			for i, pk := range x.receive(c, q, numbered(3)...) {
				equal(t, "packet id", pk.PacketID, first[i].PacketID)
			}
			c.Alive()
			c.Disconnect()
			x.publish(p, q, []string{"while away"})
		}, func(t *testing.T) {
			c := x.session("sub", true)
			x.receive(c, q, "while away")
			x.nothing(c)
		}}
	}},

	{"clean start", "45", func(x *traveller) []func(*testing.T) {
		q := x.topic("q")
		fresh := func(o *mqtest.Options) { o.Clean = true }
		return []func(*testing.T){func(t *testing.T) {
			x.away("sub", q)
			c := x.session("pub", false, noAuto)
			c.Publish(q, "old", mqtest.QoS(2), mqtest.PacketID(5))
			c.Take("PUBREC", is(packets.Pubrec, 5))
		}, func(t *testing.T) {
			for _, id := range []string{"sub", "pub"} {
				if x.v == 4 { // which has no persistent session that starts clean
					x.clean(id).Disconnect()
					x.session(id, false)
				} else {
					x.session(id, false, fresh)
				}
			}
		}, func(t *testing.T) {
			sub, c := x.session("sub", true), x.session("pub", true, noAuto)
			x.publish(x.clean("other"), q, []string{"nobody has subscribed"})
			x.nothing(sub)
			x.subscribe(sub, 2, q)
			c.Publish(q, "new", mqtest.QoS(2), mqtest.PacketID(5)) // the id is free
			c.Take("PUBREC", is(packets.Pubrec, 5))
			x.receive(sub, q, "new")
		}}
	}},

	{"subscription options", "5", func(x *traveller) []func(*testing.T) {
		var c *mqtest.Client
		request := func(id int, sub packets.Subscription) {
			pk := packet{FixedHeader: header(packets.Subscribe), PacketID: 99, Filters: packets.Subscriptions{sub}}
			if id > 0 {
				pk.Properties.SubscriptionIdentifier = []int{id}
			}
			c.Write(pk)
			c.Take("SUBACK", is(packets.Suback, 99))
		}
		retain := func(pk *packet) { pk.FixedHeader.Retain = true }
		return []func(*testing.T){func(t *testing.T) {
			c = x.session("sub", false)
			request(7, packets.Subscription{Filter: x.topic("id"), Qos: 1})
			request(300, packets.Subscription{Filter: x.topic("id/#"), Qos: 2})
			request(0, packets.Subscription{Filter: x.topic("rap"), Qos: 1, RetainAsPublished: true})
			request(0, packets.Subscription{Filter: x.topic("local"), Qos: 1, NoLocal: true})
		}, func(t *testing.T) {
			c = x.session("sub", true)
			p := x.clean("pub")
			x.publish(c, x.topic("local"), []string{"mine"})
			x.publish(p, x.topic("local"), []string{"another's"})
			x.receive(c, x.topic("local"), "another's")
			x.publish(p, x.topic("rap"), []string{"1"}, retain)
			equal(t, "RETAIN as published", x.receive(c, x.topic("rap"), "1")[0].FixedHeader.Retain, true)
			c.Disconnect()
			x.publish(p, x.topic("id"), []string{"2"}, retain)
		}, func(t *testing.T) {
			c = x.session("sub", true)
			pk := x.receive(c, x.topic("id"), "2")[0]
			equal(t, "RETAIN", pk.FixedHeader.Retain, false)
			ids := map[int]bool{}
			for _, id := range pk.Properties.SubscriptionIdentifier {
				ids[id] = true
			}
			equal(t, "identifiers", fmt.Sprint(ids), fmt.Sprint(map[int]bool{7: true, 300: true}))
			x.nothing(c)
		}}
	}},

	{"shared subscriptions", "45", func(x *traveller) []func(*testing.T) {
		filter := "$share/g/" + x.topic("s")
		got := map[string]int{}
		return []func(*testing.T){func(t *testing.T) {
			x.away("one", filter)
			x.away("two", filter)
			x.publish(x.clean("pub"), x.topic("s"), numbered(10)) // into the queue of one or the other
		}, func(t *testing.T) {
			one := x.session("one", true)
			x.publish(x.clean("pub"), x.topic("s"), []string{"to who is there"})
			x.nothingBut(one, got)
			equal(t, "deliveries to the member that is connected", got["to who is there"], 1)
		}, func(t *testing.T) {
			x.nothingBut(x.session("two", true), got)
			for _, m := range append(numbered(10), "to who is there") {
				equal(t, "deliveries of "+m, got[m], 1)
			}
		}}
	}},
}
