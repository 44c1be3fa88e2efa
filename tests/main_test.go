// Package tests runs the real server, built with the race detector, and holds it to the wire protocol, docs/protocol.md,
// with packets of its own making and with other people's clients. It imports nothing of the server.
package tests

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/tests/mqtest"
)

// shared is the server of all tests that need no settings of their own. Each test uses names of its own.
var shared *mqtest.Server

func TestMain(m *testing.M) {
	os.Exit(mqtest.Main(m, func(t mqtest.TB) {
		shared = mqtest.Start(t, mqtest.Config{"delivery": "{ack_timeout: 60s}"})
	}))
}

// TestInputs has go test run the tests again when the server has changed.
func TestInputs(t *testing.T) { mqtest.Inputs(t, "..") }

// both runs a test with MQTT 3.1.1 and with 5.
func both(t *testing.T, f func(t *testing.T, v byte)) {
	t.Parallel()
	for _, v := range []byte{4, 5} {
		t.Run(map[byte]string{4: "3.1.1", 5: "5"}[v], func(t *testing.T) {
			t.Parallel()
			f(t, v)
		})
	}
}

var names atomic.Int64

// name makes a user name that no other test uses.
func name(base string) string { return fmt.Sprintf("%s-%d", base, names.Add(1)) }

// people makes names for a test: one a field of bases.
func people(bases string) (list []string) {
	for _, b := range strings.Fields(bases) {
		list = append(list, name(b))
	}
	return list
}

// dial connects a device of a user, whose client id is user/device, to a server, without a session, subscribed to nothing.
func dial(t *testing.T, s *mqtest.Server, v byte, user, device string) *mqtest.Client {
	t.Helper()
	c := mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: v, User: user, ID: user + "/" + device})
	connected(t, c)
	return c
}

// connected fails the test unless the CONNACK says so.
func connected(t *testing.T, c *mqtest.Client) {
	t.Helper()
	if c.Connack.ReasonCode != 0 {
		t.Fatalf("%s (%s): CONNACK %#x, want 0", c.User, c.ID, c.Connack.ReasonCode)
	}
}

// chat connects a device of a user that reads in the IM profile.
func chat(t *testing.T, s *mqtest.Server, v byte, user, device string) *mqtest.Client {
	t.Helper()
	c := dial(t, s, v, user, device)
	subscribed(t, c, "im/u/"+user+"/+")
	return c
}

// plain connects a device of a user that reads in the plain profile.
func plain(t *testing.T, s *mqtest.Server, v byte, user, device string) *mqtest.Client {
	t.Helper()
	c := dial(t, s, v, user, device)
	subscribed(t, c, "im/u/"+user)
	return c
}

// session connects a device with a persistent session.
func session(t *testing.T, s *mqtest.Server, v byte, user, device string) *mqtest.Client {
	t.Helper()
	c := mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: v, User: user, ID: user + "/" + device, Persistent: true})
	connected(t, c)
	return c
}

// subscribed subscribes at QoS 1 and fails the test unless each filter is granted.
func subscribed(t *testing.T, c *mqtest.Client, filters ...string) {
	t.Helper()
	for i, code := range c.Subscribe(filters...) {
		if code != 1 {
			t.Fatalf("%s: filter %s: got %#x, want it granted", c.User, filters[i], code)
		}
	}
}

// equal compares, where a name for what is compared says enough.
func equal[V comparable](t *testing.T, what string, got, want V) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// settle waits until everything that sender has published so far has been handed to the devices: a further message is
// answered after that, since batches are delivered in order, and a ping after what was written before it.
func settle(sender *mqtest.Client, devices ...*mqtest.Client) {
	sender.PublishAck("im/u/"+sender.User, "settle")
	for _, d := range devices {
		d.Alive()
	}
}

type packet = packets.Packet

// expiring makes the session of an MQTT 5 client end so many seconds after its connection.
func expiring(o mqtest.Options, seconds uint32) mqtest.Options {
	o.NoCleanStart = true
	o.Properties.SessionExpiryInterval, o.Properties.SessionExpiryIntervalFlag = seconds, true
	return o
}

func header(typ byte) packets.FixedHeader { return packets.FixedHeader{Type: typ} }

// connect are the parameters of a CONNECT with a password.
func connect(password string) packets.ConnectParams {
	return packets.ConnectParams{
		ProtocolName: []byte("MQTT"), ClientIdentifier: "c", Clean: true, Keepalive: 60,
		Username: []byte("user"), UsernameFlag: true, Password: []byte(password), PasswordFlag: true,
	}
}
