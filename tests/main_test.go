// Package tests runs the real server, built with the race detector, and holds it to the wire protocol, docs/protocol.md,
// with packets of its own making and with other people's clients. It imports nothing of the server.
package tests

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/tests/mqtest"
)

// shared is the server of all tests that need no settings of their own. Each test uses names of its own.
var shared *mqtest.Server

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	remove, err := mqtest.Build()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer remove()
	t := &mainTB{}
	defer func() {
		if t.end(); t.failed {
			code = 1
		}
	}()
	shared = mqtest.Start(t, mqtest.Config{"delivery": "{ack_timeout: 60s}"})
	return m.Run()
}

// TestInputs looks at every file that the server and the scripts are made of, so that go test runs the tests again when
// one has changed: it knows of no other way that the result depends on them.
func TestInputs(t *testing.T) {
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch name := d.Name(); {
		case err != nil:
			return err
		case d.IsDir() && (name == ".git" || name == "node_modules" || name == "data" || name == "bin"):
			return filepath.SkipDir
		case strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go"), strings.HasSuffix(name, ".mjs"), name == "go.sum":
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// mainTB stands in for a test where the shared server outlives each of them.
type mainTB struct {
	failed   bool
	cleanups []func()
}

func (*mainTB) Helper()            {}
func (t *mainTB) Cleanup(f func()) { t.cleanups = append(t.cleanups, f) }
func (t *mainTB) Failed() bool     { return t.failed }
func (t *mainTB) TempDir() string {
	dir, err := os.MkdirTemp("", "mqim-shared")
	if err != nil {
		panic(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
func (t *mainTB) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (t *mainTB) Errorf(format string, args ...any) {
	t.failed = true
	t.Logf("shared server: "+format, args...)
}
func (t *mainTB) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	panic("shared server")
}
func (t *mainTB) end() {
	for i := len(t.cleanups) - 1; i >= 0; i-- {
		t.cleanups[i]()
	}
}

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
