package tests

import (
	"fmt"
	"testing"

	"github.com/mqim/mqim/tests/mqtest"
)

// A group over MQTT: a plain publish works for members and is refused with a reason for others, and so is a will.
func TestGroups(t *testing.T) {
	s := mqtest.Start(t, mqtest.Config{"limits": "{sends_per_second: 0, groups_per_user: 2}", "group": "{small_max: 2, large_max: 3}"})
	both(t, func(t *testing.T, v byte) {
		alice, bob, cyd := name("alice"), name("bob"), name("cyd")
		g := name("team")
		a, b, c := chat(t, s, v, alice, "1"), chat(t, s, v, bob, "1"), chat(t, s, v, cyd, "1")
		a.OK("group.create", mqtest.Map{"group": g, "name": "Team", "members": []string{bob}}, nil)
		for _, to := range []*mqtest.Client{a, b} {
			equal(t, "type", to.Msg().Type, "sys.group")
			equal(t, "change", to.Event("group")["change"], any("create"))
		}
		ack := b.PublishAck("im/g/"+g, "hi")
		equal(t, "PUBACK", ack.ReasonCode, 0)
		m := a.Msg()
		equal(t, "message", fmt.Sprint(m.Conv, m.Cseq, m.From, m.Text()), fmt.Sprint("g/"+g, 2, bob, "hi"))

		c.CheckReason("publish of a stranger", c.PublishAck("im/g/"+g, "hi"), "not_member")
		c.CheckReason("publish to no group", c.PublishAck("im/g/none", "hi"), "not_found")
		a.OK("group.mute", mqtest.Map{"group": g, "user": bob, "until": 9999999999999}, nil)
		b.CheckReason("publish while muted", b.PublishAck("im/g/"+g, "hi"), "muted")
		a.OK("group.mute", mqtest.Map{"group": g, "user": bob, "until": 0}, nil)
		b.Refused("group.add", mqtest.Map{"group": g, "users": []string{cyd}}, "forbidden")
		a.Refused("group.create", mqtest.Map{"group": g, "name": "Team"}, "exists")
		a.Refused("group.add", mqtest.Map{"group": g, "users": []string{cyd, name("dan")}}, "group_full")
		a.OK("group.create", mqtest.Map{"name": "Second"}, nil)
		a.Refused("group.create", mqtest.Map{"name": "Third"}, "rate_limited")
		for range 3 {
			a.Msg() // two mutes and the second group
		}

		will := &packet{TopicName: "im/g/" + g, Payload: []byte("gone")}
		for i, user := range []string{cyd, bob} { // a stranger's is refused, and nobody hears of it
			mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: v, User: user, ID: fmt.Sprint(user, "/w", i), Will: will}).Kill()
		}
		m = a.Msg()
		equal(t, "will", fmt.Sprint(m.Conv, m.From, m.Text()), fmt.Sprint("g/"+g, bob, "gone"))

		a.OK("group.dissolve", mqtest.Map{"group": g}, nil)
		equal(t, "type", a.Msg().Type, "sys.group")
		b.CheckReason("publish to a group that has ended", b.PublishAck("im/g/"+g, "hi"), "not_found")
		mqtest.Eventually(t, "the cache to be counted", func() bool { return s.Metric(`mqim_cache_entries{cache="members"}`) > 0 })
		nothing(t, a, a)
	})
}
