package tests

import (
	"bytes"
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
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"

	"github.com/mqim/mqim/tests/mqtest"
)

// certificate makes one for 127.0.0.1 that signs itself, and returns it in PEM, its key, and who trusts it.
func certificate(t *testing.T) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "mqim tests"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(typ string, b []byte) string { return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: b})) }
	cert, key = encode("CERTIFICATE", der), encode("PRIVATE KEY", raw)
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(cert))
	return cert, key, pool
}

// wsConn makes a byte stream of a WebSocket.
type wsConn struct {
	*websocket.Conn
	rest bytes.Reader
}

func (c *wsConn) Read(p []byte) (int, error) {
	for c.rest.Len() == 0 {
		_, b, err := c.ReadMessage()
		if err != nil {
			return 0, err
		}
		c.rest.Reset(b)
	}
	return c.rest.Read(p)
}

func (c *wsConn) Write(p []byte) (int, error) {
	return len(p), c.WriteMessage(websocket.BinaryMessage, p)
}
func (c *wsConn) SetDeadline(t time.Time) error { return c.SetWriteDeadline(t) }

// wsDial opens a WebSocket for MQTT.
func wsDial(t *testing.T, url string, config *tls.Config) net.Conn {
	t.Helper()
	d := websocket.Dialer{Subprotocols: []string{"mqtt"}, TLSClientConfig: config, HandshakeTimeout: mqtest.Patience}
	c, resp, err := d.Dial(url, nil)
	if err != nil {
		t.Fatalf("dial %s: %v", url, err)
	}
	equal(t, "subprotocol", resp.Header.Get("Sec-WebSocket-Protocol"), "mqtt")
	return &wsConn{Conn: c}
}

// A message goes from each kind of listener to each.
func TestListeners(t *testing.T) {
	t.Parallel()
	cert, key, pool := certificate(t)
	s := mqtest.New(t, mqtest.Config{"listeners": `[
		{name: mqtt, type: tcp, address: "127.0.0.1:0"}, {name: ws, type: ws, address: "127.0.0.1:0", path: /mqtt},
		{name: mqtts, type: tls, address: "127.0.0.1:0", cert: "DIR/cert.pem", key: "DIR/key.pem"},
		{name: wss, type: wss, address: "127.0.0.1:0", path: /secure, cert: "DIR/cert.pem", key: "DIR/key.pem"},
		{name: mutual, type: tls, address: "127.0.0.1:0", cert: "DIR/cert.pem", key: "DIR/key.pem", client_ca: "DIR/cert.pem"}]`})
	s.Write("cert.pem", cert)
	s.Write("key.pem", key)
	s.Run()
	config := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12, ServerName: "127.0.0.1"}
	mine, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	withCert := config.Clone()
	withCert.Certificates = []tls.Certificate{mine}
	var clients []*mqtest.Client
	for i, listener := range []string{"mqtt", "ws", "mqtts", "wss", "mutual"} {
		user := name(listener)
		o := mqtest.Options{Version: []byte{4, 5}[i%2], User: user, ID: user}
		var c *mqtest.Client
		switch addr := s.Addr(listener); listener {
		case "ws":
			c = mqtest.Attach(t, wsDial(t, "ws://"+addr+"/mqtt", nil), o)
		case "wss":
			c = mqtest.Attach(t, wsDial(t, "wss://"+addr+"/secure", config), o)
		case "mqtts":
			o.TLS = config
			c = mqtest.Dial(t, addr, o)
		case "mutual":
			o.TLS = withCert
			c = mqtest.Dial(t, addr, o)
		default:
			c = mqtest.Dial(t, addr, o)
		}
		connected(t, c)
		subscribed(t, c, "im/u/"+user+"/+")
		clients = append(clients, c)
	}
	for _, from := range clients {
		for _, to := range clients {
			if from != to {
				from.Send(to.User, "from "+from.User)
				equal(t, "text", text(to.Msg()), "from "+from.User)
			}
		}
	}
	// Without a certificate, where one is asked for, there is no MQTT.
	if c := mqtest.TryDial(t, s.Addr("mutual"), mqtest.Options{User: "x", ID: "x", TLS: config}); c != nil {
		t.Error("mutual: let in without a certificate")
	}
	if c := mqtest.TryDial(t, s.Addr("mqtts"), mqtest.Options{User: "x", ID: "x"}); c != nil {
		t.Error("mqtts: let in without TLS")
	}
	// A new certificate is taken over by SIGHUP.
	cert, key, pool = certificate(t)
	s.Write("cert.pem", cert)
	s.Write("key.pem", key)
	s.Signal(syscall.SIGHUP)
	s.WaitLog("msg=reloaded")
	user := name("renewed")
	renewed := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12, ServerName: "127.0.0.1"}
	connected(t, mqtest.Dial(t, s.Addr("mqtts"), mqtest.Options{User: user, ID: user, TLS: renewed}))
	clients[2].Alive()
}

// auth.mode file: name and password must be right; users and passwords change with mqim user and SIGHUP.
func TestAuthFile(t *testing.T) {
	t.Parallel()
	s := mqtest.New(t, mqtest.Config{"auth": "{mode: file, file: {path: DIR/users.yaml}}"})
	user := func(args ...string) {
		t.Helper()
		password := args[len(args)-1]
		cmd := s.Command(append([]string{"user", "--file", "users.yaml"}, args[:len(args)-1]...)...)
		cmd.Args = append([]string{cmd.Args[0], "user", args[0]}, append(args[1:len(args)-1], "--file", "users.yaml", "--password-stdin")...)
		cmd.Stdin = strings.NewReader(password)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("mqim user %v: %v: %s", args[0], err, out)
		}
	}
	right, wrong := mqtest.Secret+"right", mqtest.Secret+"wrong"
	user("add", "alice", right)
	s.Run()
	open := func(v byte, who, password string) byte {
		return mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: v, User: who, ID: "device-of-" + who, Password: password}).Connack.ReasonCode
	}
	for _, v := range []byte{4, 5} {
		bad := code(v, 0x04, 0x86)
		equal(t, "right password", open(v, "alice", right), 0)
		equal(t, "wrong password", open(v, "alice", wrong), bad)
		equal(t, "no password", open(v, "alice", ""), bad)
		equal(t, "unknown user", open(v, "bob", right), bad)
		equal(t, "no user name", open(v, "", right), bad)
	}
	user("add", "bob", right+"2")
	user("passwd", "alice", right+"3")
	s.Signal(syscall.SIGHUP)
	s.WaitLog("msg=reloaded")
	equal(t, "new user", open(5, "bob", right+"2"), 0)
	equal(t, "new password", open(5, "alice", right+"3"), 0)
	equal(t, "old password", open(5, "alice", right), 0x86)
	a := mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: 5, User: "alice", ID: "1", Password: right + "3"})
	subscribed(t, a, "im/u/alice/+")
	a.Send("bob", mqtest.Secret+"body")
}

// auth.mode jwt: the password is a token; its end is the connection's.
func TestAuthJWT(t *testing.T) {
	t.Parallel()
	secret := mqtest.Secret + "0123456789abcdef0123456789abcdef"
	s := mqtest.Start(t, mqtest.Config{"auth": fmt.Sprintf(
		`{mode: jwt, throttle: 0s, jwt: {audience: mqim, issuer: tests, user_claim: user, keys: [{alg: HS256, secret: %q}]}}`, secret)})
	token := func(key string, change jwt.MapClaims) string {
		claims := jwt.MapClaims{"user": "alice", "aud": "mqim", "iss": "tests", "exp": time.Now().Add(time.Hour).Unix(), "secret": mqtest.Secret}
		for k, v := range change {
			if claims[k] = v; v == nil {
				delete(claims, k)
			}
		}
		tok, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(key))
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	none, err := jwt.NewWithClaims(jwt.SigningMethodNone, jwt.MapClaims{"user": "alice", "aud": "mqim", "iss": "tests",
		"exp": time.Now().Add(time.Hour).Unix()}).SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []byte{4, 5} {
		for what, tt := range map[string]struct {
			user, password string
			ok             bool
		}{
			"a good token":               {"alice", token(secret, nil), true},
			"a good token, no user name": {"", token(secret, nil), v == 5}, // 3.1.1 has no password without a user name
			"another user's token":       {"bob", token(secret, nil), false},
			"another key":                {"alice", token("another key, as long as the first one", nil), false},
			"no signature":               {"alice", none, false},
			"over":                       {"alice", token(secret, jwt.MapClaims{"exp": time.Now().Add(-time.Minute).Unix()}), false},
			"without end":                {"alice", token(secret, jwt.MapClaims{"exp": nil}), false},
			"not yet":                    {"alice", token(secret, jwt.MapClaims{"nbf": time.Now().Add(time.Hour).Unix()}), false},
			"for another audience":       {"alice", token(secret, jwt.MapClaims{"aud": "x"}), false},
			"by another issuer":          {"alice", token(secret, jwt.MapClaims{"iss": "x"}), false},
			"without a user":             {"alice", token(secret, jwt.MapClaims{"user": nil}), false},
			"with an impossible user":    {"", token(secret, jwt.MapClaims{"user": "a/b"}), false},
			"no token":                   {"alice", "", false},
			"not a token":                {"alice", mqtest.Secret, false},
		} {
			if v == 4 && tt.user == "" {
				continue
			}
			c := mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: v, User: tt.user, ID: "alice-1", Password: tt.password})
			want := byte(0)
			if !tt.ok {
				want = code(v, 0x04, 0x86)
			}
			equal(t, "CONNACK: "+what, c.Connack.ReasonCode, want)
			c.Kill()
		}
		c := mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: v, User: "alice", ID: "alice-2",
			Password: token(secret, jwt.MapClaims{"exp": time.Now().Add(4 * time.Second).Unix()})})
		connected(t, c)
		c.Alive()
		equal(t, "DISCONNECT at the token's end", c.Closed(), code(v, 0, 0xA0))
	}
}

// No body, password or token appears in the log at debug level: not of good traffic, not of bad.
func TestLogKeepsSecrets(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		s := mqtest.Start(t, nil) // its cleanup looks for Secret
		p := people("alice bob")
		secret := mqtest.Secret + "x"
		a := mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: v, User: p[0], ID: p[0], Password: secret})
		connected(t, a)
		subscribed(t, a, "im/u/"+p[0]+"/+")
		b := plain(t, s, v, p[1], "1")
		a.Send(p[1], secret)
		a.PublishAck("im/u/"+p[1], secret, mqtest.QoS(2))
		a.PublishAck("im/cmd/send", `{"body":"`+secret+`"`)
		a.PublishAck("im/cmd/send", `{"to":"u/`+p[1]+`","body":"`+secret+`","ttl":"`+secret+`"}`)
		a.PublishAck("im/u/"+p[1]+"/msg", secret)
		a.PublishAck("ordinary/topic", secret)
		b.Plain()
		b.Plain()
		will := &packet{TopicName: "im/u/" + p[1], Payload: []byte(secret)}
		mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: v, User: "will", ID: "will", Password: secret, Will: will}).Kill()
		equal(t, "the will", string(b.Plain().Payload), secret)
		will.TopicName = "im/cmd/send"
		mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: v, User: "will", ID: "will", Password: secret, Will: will})
		mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: v, User: secret + "/", ID: "x", Password: secret})
		// CONNECTs that break MQTT, with a password in them.
		good, err := mqtest.Encode(packet{FixedHeader: header(1), Connect: connect(secret)}, v)
		if err != nil {
			t.Fatal(err)
		}
		for _, change := range []func([]byte){
			func(b []byte) { b[9] |= 1 },     // a reserved flag
			func(b []byte) { b[8] = 9 },      // a version that there is not
			func(b []byte) { b[9] &^= 0x40 }, // a password that is not announced
			func(b []byte) { b[7] = 'X' },
		} {
			raw := bytes.Clone(good)
			change(raw)
			conn, err := net.Dial("tcp", s.Addr("mqtt"))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write(raw)
			_ = conn.SetReadDeadline(time.Now().Add(mqtest.Patience))
			_, _ = conn.Read(make([]byte, 100))
			_ = conn.Close()
		}
		// A second CONNECT, whose packet mochi logs.
		twice := dial(t, s, v, "twice", "1")
		_ = twice.TryWrite(good)
		twice.Closed()
		// A packet that breaks MQTT after CONNECT.
		bad := dial(t, s, v, "bad", "1")
		body := append([]byte{0, 3, 'a', '/', '+', 0, 1}, secret...)
		_ = bad.TryWrite(append([]byte{0x32, byte(len(body))}, body...))
		bad.Closed()
		a.Alive()
	})
}
