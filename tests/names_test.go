package tests

import (
	"strings"
	"testing"

	"github.com/mqim/mqim/tests/mqtest"
)

// code picks the code of a version.
func code(v, v3, v5 byte) byte {
	if v < 5 {
		return v3
	}
	return v5
}

func TestNamesUser(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		for _, user := range []string{"/", "a/b", "_a", ".a", "-", "@a", "a b", "a#", "+", "é", "a\u00e9", strings.Repeat("x", 65)} {
			c := mqtest.Dial(t, shared.Addr("mqtt"), mqtest.Options{Version: v, User: user, ID: name("bad-name")})
			equal(t, "CONNACK for user "+user, c.Connack.ReasonCode, code(v, 0x04, 0x86))
			c.Closed()
		}
		for _, user := range []string{name("a"), name("A.b_c@d-e"), name("0"), strings.Repeat("x", 58) + name("")} {
			c := dial(t, shared, v, user, "1")
			equal(t, "PUBACK to "+user, c.PublishAck("im/u/"+user, "me").ReasonCode, 0)
		}
	})
}

// In mode trust the client id is the user where there is no user name.
func TestNamesUserIsClientID(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		bob, alice := name("bob"), name("alice")
		dial(t, shared, v, alice, "1").PublishAck("im/u/"+bob, "to the device")
		c := mqtest.Dial(t, shared.Addr("mqtt"), mqtest.Options{Version: v, ID: bob})
		connected(t, c)
		c.User = bob // for the helpers; CONNECT is over
		subscribed(t, c, "im/u/"+bob)
		equal(t, "body", string(c.Plain().Payload), "to the device")

		c = mqtest.Dial(t, shared.Addr("mqtt"), mqtest.Options{Version: v, ID: "_" + alice + "/x y"})
		connected(t, c)
		c.User = alice + "-x-y"
		subscribed(t, c, "im/u/"+c.User)
	})
}

func TestNamesDevice(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		user := name("alice")
		good := []string{"1" + user, "a b/c#+" + user, "ü→" + user, strings.Repeat("x", 128-len(user)) + user}
		for _, id := range good {
			connected(t, mqtest.Dial(t, shared.Addr("mqtt"), mqtest.Options{Version: v, User: user, ID: id}))
		}
		for _, id := range []string{"a\tb" + user, "a\x7f" + user, "a\u0085" + user, strings.Repeat("x", 129-len(user)) + user} {
			c := mqtest.Dial(t, shared.Addr("mqtt"), mqtest.Options{Version: v, User: user, ID: id})
			equal(t, "CONNACK for device "+id, c.Connack.ReasonCode, code(v, 0x02, 0x85))
			c.Closed()
		}
	})
}

func TestNamesDeviceAssigned(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		user := name("alice")
		a := mqtest.Dial(t, shared.Addr("mqtt"), mqtest.Options{Version: v, User: user})
		b := mqtest.Dial(t, shared.Addr("mqtt"), mqtest.Options{Version: v, User: user})
		connected(t, a)
		connected(t, b)
		ida, idb := a.Connack.Properties.AssignedClientID, b.Connack.Properties.AssignedClientID
		if v == 5 && (ida == "" || ida == idb) {
			t.Errorf("assigned client ids: got %q and %q, want two", ida, idb)
		}
		subscribed(t, a, "im/u/"+user+"/+")
		subscribed(t, b, "im/u/"+user+"/+")
		a.Send(user, "to my other device")
		m := b.Msg()
		equal(t, "text", m.Text(), "to my other device")
		var list []struct{ Device string }
		a.OK("device.list", nil, &list)
		equal(t, "devices", len(list), 2)
	})
}

// A client id belongs to the user who has a connection or a session under it, and is never taken over by another.
func TestNamesDeviceOfAnotherUser(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice, mallory, id := name("alice"), name("mallory"), name("device")
		open := func(user string, persistent bool) *mqtest.Client {
			return mqtest.Dial(t, shared.Addr("mqtt"), mqtest.Options{Version: v, User: user, ID: id, Persistent: persistent})
		}
		refused := func(what string) {
			t.Helper()
			c := open(mallory, false)
			equal(t, "CONNACK for the client id of "+what, c.Connack.ReasonCode, code(v, 0x02, 0x85))
			c.Closed()
		}
		a := open(alice, false)
		connected(t, a)
		refused("another user's connection")
		a.Alive()
		a.Disconnect()

		a = open(alice, true)
		connected(t, a)
		refused("another user's session, connected")
		a.Alive()
		a.Disconnect()
		refused("another user's session, away")
		a = open(alice, true)
		equal(t, "session present", a.Connack.SessionPresent, true)
		a.Disconnect()
		open(alice, false).Disconnect() // ends the session
		connected(t, open(mallory, false))
	})
}

// The same user's client id is taken over, as MQTT has it.
func TestNamesDeviceTakeOver(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		alice := name("alice")
		old := chat(t, shared, v, alice, "1")
		c := chat(t, shared, v, alice, "1")
		equal(t, "DISCONNECT of the old connection", old.Closed(), code(v, 0, 0x8E))
		c.Send(alice, "still here")
	})
}
