package tests

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mqim/mqim/tests/mariadb"
	"github.com/mqim/mqim/tests/mqtest"
)

// TestCopy: what a server on the embedded store has, one on MySQL goes on with, whether the first was stopped or killed:
// unacknowledged messages, sessions, queues, QoS 2, retained messages, groups, cids and the epoch; ids and cseq go on rising.
func TestCopy(t *testing.T) {
	t.Parallel()
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprint("killed=", killed), func(t *testing.T) {
			t.Parallel()
			copied(t, killed)
		})
	}
}

func copied(t *testing.T, killed bool) {
	db := mariadb.Start(t)
	db.Exec("GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX, DROP ON mqim.* TO mqim@'%'")
	config := func(driver string) mqtest.Config {
		return mqtest.Config{
			"store":  fmt.Sprintf(`{driver: %s, pebble: {path: "DIR/data"}, mysql: {dsn: %q}}`, driver, db.DSN()),
			"limits": "{sends_per_second: 0, topic_bytes: 2000}",
		}
	}
	s := mqtest.Start(t, config("pebble"))
	x := &mover{s: s, alice: name("alice"), bob: name("bob"), group: name("team"), topic: name("log")}
	x.before(t)
	if out, err := run(s, "copy", "--from", "pebble", "--to", "mysql"); err == nil || !strings.Contains(out, "in use by another process") {
		t.Errorf("copy beside the server: got %q, %v, want it refused", out, err)
	}
	if killed {
		s.Kill()
	} else {
		s.Stop()
	}
	for i, want := range []string{"done: start the server", "is not empty"} {
		out, err := run(s, "copy", "--from", "pebble", "--to", "mysql")
		if (err == nil) != (i == 0) || !strings.Contains(out, want) || strings.Contains(out, mqtest.Secret) {
			t.Fatalf("copy, run %d: got %q, %v, want %q", i+1, out, err, want)
		}
	}
	if out, err := run(s, "copy", "--from", "pebble", "--to", "mysql", "--verify-only"); err != nil || !strings.Contains(out, "the same") {
		t.Errorf("verify: got %q, %v", out, err)
	}
	db.Exec("UPDATE mqim.mqim_views SET read_to = read_to + 1 LIMIT 1")
	if out, err := run(s, "copy", "--from", "pebble", "--to", "mysql", "--verify-only"); err == nil || !strings.Contains(out, "difference: views conv=") {
		t.Errorf("verify, something being changed: got %q, %v, want it named", out, err)
	}
	db.Exec("UPDATE mqim.mqim_views SET read_to = read_to - 1 WHERE read_to > 0 LIMIT 1")
	s.Configure(config("mysql"))
	s.Run()
	x.after(t)
}

// mover is who talks before and after.
type mover struct {
	s                        *mqtest.Server
	alice, bob, group, topic string
	epoch                    string
	first                    mqtest.Sent
	last                     string // id
}

type welcome struct {
	Epoch string `json:"epoch"`
}

func (x *mover) syncEpoch(c *mqtest.Client) string {
	var w welcome
	c.OK("sync", nil, &w)
	return w.Epoch
}

func (x *mover) before(t *testing.T) {
	a, b := chat(t, x.s, 5, x.alice, "1"), session(t, x.s, 4, x.bob, "1")
	subscribed(t, b, "im/u/"+x.bob+"/+")
	x.epoch = x.syncEpoch(a)
	x.first = repeat(a, x.bob, "c1", "one")
	m := b.Msg()
	equal(t, "message", m.Text(), "one")
	b.Ack(m.Seq)
	a.OK("group.create", mqtest.Map{"group": x.group, "name": "Team", "members": []string{x.bob}}, nil)
	m = b.Msg()
	b.Ack(m.Seq)
	a.OK("read", mqtest.Map{"conv": "u/" + x.bob, "cseq": 1}, nil)
	unacked := a.Send(x.bob, "two")
	equal(t, "message", text(b.Msg()), "two") // is not acknowledged
	b.Disconnect()
	x.last = unacked.ID

	sub := mqtest.Dial(t, x.s.Addr("mqtt"), mqtest.Options{Version: 5, User: "sub", ID: "sub", Persistent: true})
	connected(t, sub)
	subscribed(t, sub, x.topic+"/+")
	sub.Disconnect()
	equal(t, "to the group", a.PublishAck("im/g/"+x.group, "three").ReasonCode, 0)
	for i := range 3 {
		equal(t, "to the topic", a.PublishAck(x.topic+"/t", fmt.Sprint("queued ", i)).ReasonCode, 0)
	}
	equal(t, "retained", a.PublishAck(x.topic+"/kept", "kept", retain).ReasonCode, 0)
}

func (x *mover) after(t *testing.T) {
	a, b := chat(t, x.s, 5, x.alice, "1"), session(t, x.s, 4, x.bob, "1")
	equal(t, "epoch", x.syncEpoch(a), x.epoch)
	if !b.Connack.SessionPresent {
		t.Error("bob: no session")
	}
	subscribed(t, b, "im/u/"+x.bob+"/+")
	for _, want := range []string{"two", "three"} {
		m := b.Msg()
		for m.Seq <= 2 { // a server that is killed may have how far a device has read only in memory
			m = b.Msg()
		}
		equal(t, "message", m.Text(), want)
		x.last = max(x.last, m.ID) // ids of one time are of one length
		b.Ack(m.Seq)
	}
	again := repeat(a, x.bob, "c1", "one")
	equal(t, "dup of what was sent before", again.Dup, true)
	equal(t, "id, cseq, ts, conv, cid", first(again), first(x.first))
	next := a.Send(x.bob, "four")
	equal(t, "cseq goes on", next.Cseq, 3)
	if next.ID <= x.last {
		t.Errorf("id %s after %s", next.ID, x.last)
	}
	equal(t, "message", text(b.Msg()), "four")
	equal(t, "to the group", a.PublishAck("im/g/"+x.group, "five").ReasonCode, 0)
	equal(t, "message", text(b.Msg()), "five")

	sub := mqtest.Dial(t, x.s.Addr("mqtt"), mqtest.Options{Version: 5, User: "sub", ID: "sub", Persistent: true})
	connected(t, sub)
	if !sub.Connack.SessionPresent {
		t.Error("sub: no session")
	}
	for i := range 3 {
		equal(t, "queued", string(sub.Next(x.topic+"/t").Payload), fmt.Sprint("queued ", i))
	}
	equal(t, "queued, and retained", string(sub.Next(x.topic+"/kept").Payload), "kept")
	equal(t, "to the topic", a.PublishAck(x.topic+"/t", "more").ReasonCode, 0)
	equal(t, "by the subscription of before", string(sub.Next(x.topic+"/t").Payload), "more")
	late := dial(t, x.s, 5, name("late"), "1")
	subscribed(t, late, x.topic+"/kept")
	equal(t, "retained", string(late.Next(x.topic+"/kept").Payload), "kept")
}

func retain(pk *packet) { pk.FixedHeader.Retain = true }
