package tests

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/crypto/bcrypt"

	"github.com/mqim/mqim/tests/mariadb"
	"github.com/mqim/mqim/tests/mqtest"
)

// The CONNACKs of a login.
const (
	letIn       = "let in"
	refused     = "refused"     // 0x86, 0x04
	unavailable = "unavailable" // 0x88, 0x03
)

// logsIn checks what a client hears at the login, in both versions of MQTT, and that the server lives.
func logsIn(t *testing.T, s *mqtest.Server, what, user, password, want string) {
	t.Helper()
	for _, v := range []byte{4, 5} {
		c := mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: v, User: user, ID: "device-of-" + user, Password: password})
		codes := map[string]byte{letIn: 0, refused: code(v, 0x04, 0x86), unavailable: code(v, 0x03, 0x88)}
		equal(t, fmt.Sprintf("CONNACK of version %d: %s", v, what), c.Connack.ReasonCode, codes[want])
		if want == letIn {
			c.Alive()
		}
		c.Kill()
	}
}

// pahoLogsIn has a client that others wrote log in and send itself a message.
func pahoLogsIn(t *testing.T, s *mqtest.Server, user, password string) {
	t.Helper()
	o := paho.NewClientOptions().AddBroker("tcp://" + s.Addr("mqtt")).SetUsername(user).SetPassword(password).SetClientID("paho-of-" + user)
	c := paho.NewClient(o)
	got := make(chan string, 1)
	wait := func(what string, tok paho.Token) {
		t.Helper()
		if !tok.WaitTimeout(mqtest.Patience) || tok.Error() != nil {
			t.Fatalf("%s of %s: %v", what, user, tok.Error())
		}
	}
	wait("CONNECT", c.Connect())
	defer c.Disconnect(100)
	topic := "devices/" + user
	wait("SUBSCRIBE", c.Subscribe(topic, 1, func(_ paho.Client, m paho.Message) { got <- string(m.Payload()) }))
	wait("PUBLISH", c.Publish(topic, 1, false, "hello"))
	select {
	case m := <-got:
		equal(t, "message", m, "hello")
	case <-time.After(mqtest.Patience):
		t.Fatal("the message did not come")
	}
}

// auth.mode mysql against a real database: right and wrong passwords, the database gone and back.
func TestAuthMySQL(t *testing.T) {
	t.Parallel()
	db := mariadb.Start(t)
	right := mqtest.Secret + "right"
	hash, err := bcrypt.GenerateFromPassword([]byte(right), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	db.Exec("CREATE TABLE mqim.users (name VARCHAR(64) PRIMARY KEY, password_hash VARCHAR(255))",
		"INSERT INTO mqim.users VALUES ('alice', '"+string(hash)+"'), ('bob', '"+string(hash)+"'), ('carol', '"+string(hash)+"')")
	s := mqtest.New(t, mqtest.Config{"auth": fmt.Sprintf("{mode: mysql, mysql: {dsn: %q, timeout: 5s, cache_ttl: 1h, negative_ttl: 1h}}", db.DSN())})
	out, err := s.Command("check", "--config", "config.yaml", "--print").CombinedOutput()
	if text := string(out); err != nil || strings.Contains(text, mariadb.Password) || !strings.Contains(text, "dsn: '***'") {
		t.Errorf("mqim check --print: %v\n%s\nwant the DSN as ***", err, out)
	}
	s.Run()
	pahoLogsIn(t, s, "alice", right)
	logsIn(t, s, "right password", "alice", right, letIn)
	logsIn(t, s, "wrong password", "alice", right+"x", refused)
	logsIn(t, s, "unknown user", "dave", right, refused)
	logsIn(t, s, "a user that the database takes for alice", "ALICE", right, refused)
	db.Stop()
	logsIn(t, s, "down, a remembered user", "alice", right, letIn)
	logsIn(t, s, "down, a remembered unknown one", "dave", right, refused)
	logsIn(t, s, "down, another user", "bob", right, unavailable)
	s.WaitLog(`level=WARN msg="login could not be checked"`)
	s.WaitLog(`level=INFO msg="login failed" user=dave`)
	if got := s.Metric(`mqim_logins_refused_total`); got < 8 {
		t.Errorf("mqim_logins_refused_total: got %v, want at least 8", got)
	}
	db.Run()
	logsIn(t, s, "up again", "bob", right, letIn)
	db.Exec("DELETE FROM mqim.users WHERE name = 'alice'")
	logsIn(t, s, "a removed user within cache_ttl", "alice", right, letIn)
	s.Signal(syscall.SIGHUP)
	s.WaitLog("msg=reloaded")
	logsIn(t, s, "a removed user after a reload", "alice", right, refused)
	if strings.Contains(s.Log(), mariadb.Password) {
		t.Error("the log holds the password of the database")
	}
}

// auth.mode http against a real HTTP server.
func TestAuthHTTP(t *testing.T) {
	t.Parallel()
	right := mqtest.Secret + "right"
	var asked, expires atomic.Int64
	var down atomic.Bool
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		var q struct{ User, Password, Client_ID, Remote string }
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil || q.Remote != "127.0.0.1" || q.Client_ID == "" || r.Header.Get("Authorization") != "Bearer "+mqtest.Secret {
			t.Errorf("got %+v, %v, %v; want remote, client_id and the token", q, err, r.Header)
		}
		switch {
		case down.Load():
			http.Error(w, mqtest.Secret, http.StatusBadGateway)
		case q.Password != right:
			http.Error(w, mqtest.Secret, http.StatusUnauthorized)
		case q.User == "short":
			fmt.Fprintf(w, `{"user":"short","expires":%d}`, expires.Load())
		default:
			fmt.Fprintf(w, `{"user":%q}`, q.User)
		}
	}))
	defer backend.Close()
	s := mqtest.Start(t, mqtest.Config{"auth": fmt.Sprintf("{mode: http, http: {url: %q, token: %q, cache_ttl: 1h, negative_ttl: 1h}}", backend.URL, mqtest.Secret)})
	pahoLogsIn(t, s, "alice", right)
	logsIn(t, s, "right password", "alice", right, letIn)
	logsIn(t, s, "wrong password", "alice", right+"x", refused)
	if got := asked.Load(); got != 3 {
		t.Errorf("paho's login and those of another client with two passwords: asked %d times, want 3", got)
	}
	down.Store(true)
	logsIn(t, s, "down, a remembered yes", "alice", right, letIn)
	logsIn(t, s, "down, a remembered no", "alice", right+"x", refused)
	logsIn(t, s, "down", "bob", right, unavailable)
	down.Store(false)
	logsIn(t, s, "up again", "bob", right, letIn)
	expires.Store(time.Now().Add(3 * time.Second).UnixMilli())
	c := mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: 5, User: "short", ID: "short", Password: right})
	connected(t, c)
	equal(t, "DISCONNECT when the answer expires", c.Closed(), 0xA0)
	backend.Close()
	logsIn(t, s, "gone", "carol", right, unavailable)
}

// auth.jwt.jwks_url against a real HTTP server whose keys change, and which is down.
func TestAuthJWKS(t *testing.T) {
	t.Parallel()
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	var mu sync.Mutex
	set := jose.JSONWebKeySet{}
	up := false
	idp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if !up {
			http.Error(w, mqtest.Secret, http.StatusServiceUnavailable)
		} else if err := json.NewEncoder(w).Encode(set); err != nil {
			t.Error(err)
		}
	}))
	defer idp.Close()
	publish := func(isUp bool, keys map[string]*ecdsa.PrivateKey) {
		mu.Lock()
		defer mu.Unlock()
		up, set.Keys = isUp, nil
		for kid, k := range keys {
			set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.Public(), KeyID: kid, Algorithm: "ES256", Use: "sig"})
		}
	}
	token := func(kid string, key *ecdsa.PrivateKey) string {
		tok := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"sub": "alice", "exp": time.Now().Add(time.Hour).Unix(), "secret": mqtest.Secret})
		tok.Header["kid"] = kid
		text, err := tok.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	first, second := newKey(), newKey()
	s := mqtest.Start(t, mqtest.Config{"auth": fmt.Sprintf("{mode: jwt, jwt: {jwks_url: %q, jwks_cooldown: 100ms}}", idp.URL)})
	logsIn(t, s, "down, and no keys yet", "alice", token("1", first), unavailable)
	publish(true, map[string]*ecdsa.PrivateKey{"1": first})
	s.WaitLog(`msg="token keys fetched"`) // without being asked
	pahoLogsIn(t, s, "alice", token("1", first))
	logsIn(t, s, "a good token", "alice", token("1", first), letIn)
	logsIn(t, s, "another's name", "bob", token("1", first), refused)
	logsIn(t, s, "a key of nobody's", "alice", token("1", second), refused)
	publish(true, map[string]*ecdsa.PrivateKey{"1": first, "2": second})
	mqtest.Eventually(t, "the new key to be found", func() bool {
		c := mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: 5, User: "alice", ID: "rotated", Password: token("2", second)})
		defer c.Kill()
		return c.Connack.ReasonCode == 0
	})
	logsIn(t, s, "the old key beside the new one", "alice", token("1", first), letIn)
	publish(false, nil)
	s.Signal(syscall.SIGHUP)
	s.WaitLog(`msg="token keys could not be fetched" known=2`)
	logsIn(t, s, "down, a known key", "alice", token("2", second), letIn)
	logsIn(t, s, "down, a key that is not known", "alice", token("3", second), unavailable)
	publish(true, map[string]*ecdsa.PrivateKey{"2": second})
	mqtest.Eventually(t, "the withdrawn key to be gone", func() bool {
		c := mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: 5, User: "alice", ID: "withdrawn", Password: token("1", first)})
		defer c.Kill()
		return c.Connack.ReasonCode == 0x86
	})
}

// What mqim acl test says is what the server does, rule by rule, under im/ and outside.
func TestACLCommandAgrees(t *testing.T) {
	t.Parallel()
	s := mqtest.Start(t, mqtest.Config{"acl": `[{deny: pub, topic: "devices/%u/config"}, {allow: pubsub, topic: "devices/%u/#"}, {allow: sub, topic: "log/%c"},
		{deny: sub, topic: "secret/x"}, {allow: sub, topic: "secret/+"}, {allow: pub, topic: "100%%"}]`})
	const user, id = "alice", "d7"
	c := mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: 5, User: user, ID: id})
	connected(t, c)
	topics := []string{
		"devices/alice/config", "devices/alice/t", "devices/alice", "devices/bob/t", "log/d7", "log/d8", "secret/x", "secret/y", "100%", "other", "$SYS/x",
		"im/u/alice", "im/u/bob", "im/u/alice/msg", "im/u/bob/msg", "im/cmd/time", "im/x", "im/", "im/g/x/y",
	}
	filters := []string{
		"devices/#", "devices/+/t", "#", "+/#", "secret/+", "$share/g/devices/alice/#", "$share/g/devices/#", "$SYS/#",
		"im/#", "im/u/alice/+", "im/u/alice/#", "im/u/+", "im/u/bob/#", "$share/g/im/u/alice", "+/u/alice", "imx/#",
	}
	check := func(action, topic string, allowed bool) {
		t.Helper()
		out, err := s.Command("acl", "test", "--config", "config.yaml", "--client-id", id, user, action, topic).CombinedOutput()
		said := strings.HasPrefix(string(out), "allowed: ")
		if said != (err == nil) || said != allowed {
			t.Errorf("%s %s: the command says %q (%v), the server allows it: %v", action, topic, out, err, allowed)
		}
	}
	for _, topic := range append(topics[4:10:10], filters...) { // a process each, so no more than needed
		codes := c.Subscribe(topic)
		check("sub", topic, codes[0] < 0x80)
	}
	for _, topic := range topics {
		ack := c.PublishAck(topic, `{"t0":1}`)
		check("pub", topic, ack.ReasonCode < 0x80)
	}
}
