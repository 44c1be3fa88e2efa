package tests

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/tests/mqtest"
)

// refusal connects and returns the CONNACK, which must come.
func refusal(t *testing.T, s *mqtest.Server, v byte, user, device string) packets.Packet {
	t.Helper()
	return mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: v, User: user, ID: user + "/" + device}).Connack
}

// Each limit of connections has its code, in 3.1.1 "server unavailable"; those there stay.
func TestLimitConnectionCodes(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		for limit, want := range map[string]byte{"connections": 0x89, "connections_per_address": 0x97, "connections_per_user": 0x97} {
			s := mqtest.Start(t, mqtest.Config{"limits": "{" + limit + ": 2}"})
			alice := name("alice")
			one, two := chat(t, s, v, alice, "1"), chat(t, s, v, alice, "2")
			ack := refusal(t, s, v, alice, "3")
			equal(t, limit+": CONNACK", ack.ReasonCode, code(v, 3, want))
			if v == 5 && ack.Properties.ReasonString == "" {
				t.Errorf("%s: no reason string", limit)
			}
			one.Alive()
			if limit == "connections_per_user" {
				equal(t, "counted", s.Metric(`mqim_limited_total{limit="connections_per_user"}`), 1)
				chat(t, s, v, name("bob"), "1")
				two = chat(t, s, v, alice, "2") // takes the older one over
			}
			two.Disconnect()
			mqtest.Eventually(t, "room for another connection", func() bool { return refusal(t, s, v, alice, "3").ReasonCode == 0 })
			one.Alive()
		}
	})
}

// node.server_reference tells MQTT 5 clients where to go.
func TestServerReference(t *testing.T) {
	t.Parallel()
	s := mqtest.Start(t, mqtest.Config{"limits": "{connections: 1}", "node": "{server_reference: other.example:1883}"})
	chat(t, s, 5, name("alice"), "1")
	ack := refusal(t, s, 5, name("bob"), "1")
	equal(t, "CONNACK", ack.ReasonCode, byte(0x9c))
	equal(t, "Server Reference", ack.Properties.ServerReference, "other.example:1883")
	equal(t, "CONNACK of 3.1.1", refusal(t, s, 4, name("bob"), "1").ReasonCode, byte(3))
}

// Topics and filters beyond the limits are refused one by one; the connection goes on.
func TestLimitTopics(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		s := mqtest.Start(t, mqtest.Config{"limits": "{topic_levels: 3, topic_bytes: 20, subscriptions: 3}"})
		user := name("alice")
		c := chat(t, s, v, user, "1") // what is under im/ has limits of its own
		bad, full := code(v, 0x80, 0x8f), code(v, 0x80, 0x97)
		long := strings.Repeat("x", 21)
		got := c.Subscribe("a/b/c/d", "a/b/c", "a/+/#", long, "im/u/"+user, "x", "y", "z/#")
		want := []byte{bad, 1, 1, bad, 1, 1, full, full}
		equal(t, "SUBACK", fmt.Sprintf("%x", got), fmt.Sprintf("%x", want))
		for _, topic := range []string{"a/b/c/d", "a///", long} {
			equal(t, "PUBACK for "+topic, c.PublishAck(topic, "too long").ReasonCode, code(v, 0, 0x90))
		}
		equal(t, "PUBACK for a/b/c", c.PublishAck("a/b/c", "fine").ReasonCode, 0)
		equal(t, "payload", string(c.Next("a/b/c").Payload), "fine")
		c.Unsubscribe("x")
		equal(t, "SUBACK after an UNSUBSCRIBE", fmt.Sprintf("%x", c.Subscribe("y")), "01")
		equal(t, "counted: subscriptions", s.Metric(`mqim_limited_total{limit="subscriptions"}`), 2)
		equal(t, "counted: topic_levels", s.Metric(`mqim_limited_total{limit="topic_levels"}`), 3)
		equal(t, "counted: topic_bytes", s.Metric(`mqim_limited_total{limit="topic_bytes"}`), 2)
		will := &packets.Packet{TopicName: "a/b/c/d", Payload: []byte("x")}
		ack := mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: v, User: user, ID: user + "/w", Will: will}).Connack
		equal(t, "CONNACK with such a will", ack.ReasonCode, code(v, 3, 0x90))
	})
}

// A connection that sends too much is read more slowly; nothing is lost and nobody else is slowed.
func TestLimitReading(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		s := mqtest.Start(t, mqtest.Config{"limits": "{messages_per_second: 20}"})
		a, b := dial(t, s, v, name("alice"), "1"), dial(t, s, v, name("bob"), "1")
		subscribed(t, b, "t")
		start := time.Now()
		var last uint16
		for i := range 60 {
			last = a.Publish("t", fmt.Sprint(i))
		}
		b.Alive()
		a.Acked(last)
		if d := time.Since(start); d < 1900*time.Millisecond {
			t.Errorf("60 messages at 20 a second took %v", d)
		}
		for i := range 60 {
			equal(t, "payload", string(b.Next("t").Payload), fmt.Sprint(i))
		}
		if s.Metric("mqim_reading_paused_messages_total") == 0 {
			t.Error("not counted")
		}
	})
}

// The levels of overload, called for by commits that take longer than a nanosecond, as all do: connections are refused,
// then messages, and with them out of the way the levels fall.
func TestOverload(t *testing.T) {
	t.Parallel()
	s := mqtest.Start(t, mqtest.Config{"limits": "{sends_per_second: 0, commit_delay: 1ns}"})
	a, b, old := chat(t, s, 5, name("alice"), "1"), chat(t, s, 5, name("bob"), "1"), chat(t, s, 4, name("old"), "1")
	subscribed(t, b, "t")
	var r mqtest.Reply
	var ack packets.Packet
	sent := 0
	mqtest.Eventually(t, "messages to be refused", func() bool {
		if r, ack = a.Command("send", mqtest.Map{"to": "u/" + b.User, "body": fmt.Sprint(sent)}); r.OK {
			sent++
		}
		return !r.OK
	})
	a.CheckRefusal("send", r, ack, "unavailable")
	equal(t, "level", s.Metric(`mqim_overload_level{cause="commit"}`), 3)
	s.WaitLog(`msg="overload level changed" cause=commit level=3`)
	equal(t, "PUBACK for an ordinary topic", a.PublishAck("t", "x").ReasonCode, 0x97)
	id := old.Publish("t", "x") // 3.1.1 cannot be told: it is to send again
	old.Closed()
	for _, pk := range old.Got() {
		if pk.FixedHeader.Type == packets.Puback && pk.PacketID == id {
			t.Error("a message that was refused is acknowledged to 3.1.1")
		}
	}
	equal(t, "CONNACK", refusal(t, s, 5, name("carol"), "1").ReasonCode, byte(0x89))
	equal(t, "CONNACK of 3.1.1", refusal(t, s, 4, name("carol"), "1").ReasonCode, byte(3))
	a.OK("time", mqtest.Map{"t0": 1}, nil) // what costs no commit goes on
	for i := range sent {
		equal(t, "text", text(b.Msg()), fmt.Sprint(i))
	}
	mqtest.Eventually(t, "messages to be taken again", func() bool { return a.PublishAck("t", "again").ReasonCode == 0 })
	equal(t, "payload", string(b.Next("t").Payload), "again")
	mqtest.Eventually(t, "connections to be let in again", func() bool { return refusal(t, s, 5, name("carol"), "1").ReasonCode == 0 })
	if s.Metric(`mqim_limited_total{limit="overload"}`) < 2 || s.Metric(`mqim_limited_total{limit="overload_connect"}`) < 2 {
		t.Error("refusals are not counted")
	}
}

// The address that a proxy tells is the client's, everywhere; without a header there is no connection.
func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	s := mqtest.Start(t, mqtest.Config{
		"listeners": `[{name: mqtt, type: tcp, address: "127.0.0.1:0", proxy_protocol: true}]`, "limits": "{connections_per_address: 1}",
	})
	from := func(ip, user string) byte {
		conn, err := net.Dial("tcp", s.Addr("mqtt"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprintf(conn, "PROXY TCP4 %s 127.0.0.1 4711 1883\r\n", ip)
		return mqtest.Attach(t, conn, mqtest.Options{Version: 5, User: user, ID: user}).Connack.ReasonCode
	}
	equal(t, "CONNACK", from("10.1.2.3", name("a")), 0)
	equal(t, "CONNACK, another address", from("10.1.2.4", name("b")), 0)
	equal(t, "CONNACK, the same address", from("10.1.2.3", name("c")), 0x97)
	equal(t, "CONNACK, no user", from("10.1.2.5", "?"), 0x86)
	s.WaitLog("remote=10.1.2.5:4711")
	if c := mqtest.TryDial(t, s.Addr("mqtt"), mqtest.Options{User: name("d"), ID: name("d")}); c != nil {
		t.Error("let in without a header")
	}
	equal(t, "counted", s.Metric("mqim_connections_refused_proxy_total"), 1)
}

// personal makes a certificate that signs itself, for a client.
func personal(t *testing.T, cn string, mail ...string) (tls.Certificate, string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: cn}, EmailAddresses: mail,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// client_user: the certificate says who it is. No password is needed, and no other user name helps.
func TestClientUser(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		cert, key, pool := certificate(t)
		mine, minePEM := personal(t, "alice", "bob@example.org")
		none, nonePEM := personal(t, "no user name")
		tlsListener := func(name, from string) string {
			return fmt.Sprintf(`{name: %s, type: tls, address: "127.0.0.1:0", cert: DIR/cert.pem, key: DIR/key.pem, client_ca: DIR/ca.pem, client_user: %s}`, name, from)
		}
		s := mqtest.New(t, mqtest.Config{
			"auth": "{mode: file, file: {path: DIR/users.yaml}}", "listeners": "[" + tlsListener("cn", "cn") + ", " + tlsListener("san", "san") + "]",
		})
		s.Write("users.yaml", "{}")
		s.Write("cert.pem", cert)
		s.Write("key.pem", key)
		s.Write("ca.pem", minePEM+nonePEM)
		s.Run()
		open := func(listener, user string, c tls.Certificate) (*mqtest.Client, byte) {
			config := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12, ServerName: "127.0.0.1", Certificates: []tls.Certificate{c}}
			x := mqtest.Dial(t, s.Addr(listener), mqtest.Options{Version: v, User: user, ID: listener + "-device", TLS: config})
			return x, x.Connack.ReasonCode
		}
		for _, c := range []struct {
			listener, user string
			cert           tls.Certificate
			ok             bool
			is             string
		}{
			{"cn", "", mine, true, "alice"}, {"cn", "alice", mine, true, "alice"}, {"cn", "bob@example.org", mine, false, ""}, {"cn", "mallory", mine, false, ""},
			{"cn", "", none, false, ""}, {"san", "", mine, true, "bob@example.org"}, {"san", "alice", mine, false, ""}, {"san", "", none, false, ""},
		} {
			x, got := open(c.listener, c.user, c.cert)
			if want := code(v, 4, 0x86); !c.ok {
				equal(t, fmt.Sprint("CONNACK for ", c.listener, " ", c.user), got, want)
				continue
			}
			connected(t, x)
			subscribed(t, x, "im/u/"+c.is)
		}
	})
}

// Failed logins make the next ones of the user wait; the right password is let in all the same.
func TestAuthThrottle(t *testing.T) {
	t.Parallel()
	s := mqtest.New(t, mqtest.Config{"auth": "{mode: file, throttle: 300ms, file: {path: DIR/users.yaml}}"})
	s.Write("users.yaml", "")
	cmd := s.Command("user", "add", "alice", "--file", "users.yaml", "--password-stdin")
	cmd.Stdin = strings.NewReader(mqtest.Secret + "right")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mqim user add: %v: %s", err, out)
	}
	s.Run()
	open := func(password string) byte {
		return mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: 5, User: "alice", ID: "d", Password: mqtest.Secret + password}).Connack.ReasonCode
	}
	mqtest.Eventually(t, "failed logins to wait", func() bool {
		equal(t, "CONNACK", open("wrong"), 0x86)
		return s.Metric(`mqim_logins_throttled_total{what="delayed"}`) > 0
	})
	equal(t, "CONNACK", open("right"), 0)
}
