package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// theFile is the project's config.yaml.
const theFile = "../../config.yaml"

var opts = cmp.Options{cmpopts.IgnoreUnexported(Config{}), cmpopts.EquateEmpty()}

func TestProjectFileIsTheDefaults(t *testing.T) {
	got, err := Load(theFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), got, opts); diff != "" {
		t.Errorf("config.yaml (-default +file):\n%s", diff)
	}
	text, err := os.ReadFile(theFile)
	if err != nil {
		t.Fatal(err)
	}
	// Keys of lists' elements stand in comments; every line with a key has one.
	wanted := slices.Concat(Keys(), keys(typeOf[Listener]()), keys(typeOf[JWTKey]()), keys(typeOf[Rule]()))
	for _, key := range wanted {
		name := key[strings.LastIndex(key, ".")+1:]
		if !strings.Contains(string(text), name+":") {
			t.Errorf("config.yaml does not name %s", key)
		}
	}
}

// The shape that is fixed: what others' configuration files look like.
const example = `
node:
  name: ""
listeners:
  - {name: mqtt, type: tcp, address: "127.0.0.1:1883"}
  - {name: ws,   type: ws,  address: "127.0.0.1:8083", path: /mqtt}
http:
  address: "127.0.0.1:8080"
auth:
  mode: trust
  file: {path: users.yaml}
  jwt: {}
acl: []
store:
  driver: pebble
  pebble: {path: data, sync: commit}
  mysql: {dsn: "", replicas: []}
cluster:
  redis: {addresses: [], password: "", db: 0}
delivery: {window: 256, ack_timeout: 10s, max_attempts: 5}
inbox: {max_messages: 10000, ttl: 168h}
history: {ttl: 0s}
dedupe: {window: 168h}
group: {small_max: 500, large_max: 100000}
recall: {window: 2m}
limits: {message_bytes: 262144, command_bytes: 524288, sends_per_second: 200, send_burst: 400, connections: 0, connects_per_second: 0}
log: {level: info, format: text}
`

func TestDefaults(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "comments": "# nothing\n", "null": "~\n", "example": example,
		"empty sections": "node:\nlisteners:\nacl:\nstore:\n  pebble:\nlog: {}\n",
	} {
		got, err := Parse("config.yaml", []byte(text), []string{"PATH=/bin", "MQIM=1"})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(Default(), got, opts); diff != "" {
			t.Errorf("%s (-default +got):\n%s", name, diff)
		}
	}
	if err := Default().Validate(); err != nil {
		t.Errorf("Default().Validate(): %v", err)
	}
}

func TestParse(t *testing.T) {
	const text = `
node: {name: 7}
listeners:
  - {address: "127.0.0.1:1"}
  - {type: wss, address: ":0", cert: c, key: k}
  - &tls {type: tls, name: x, address: ":0", cert: c, key: k, client_ca: a}
auth:
  mode: jwt
  jwt:
    leeway: 1m30s
    keys: [{kid: a, alg: HS256, secret: 123}, {alg: EdDSA, public_key_file: f}]
acl: [{allow: pubsub, topic: "d/%u/#"}, {deny: sub, topic: "#"}]
store: {pebble: {min_free: 2 GiB}}
limits: {message_bytes: 1MiB, write_buffer: 0}
`
	want := Default()
	want.Node.Name = "7"
	want.Listeners = []Listener{
		{Name: "tcp-1", Type: "tcp", Address: "127.0.0.1:1"},
		{Name: "wss-2", Type: "wss", Address: ":0", Path: "/mqtt", Cert: "c", Key: "k"},
		{Name: "x", Type: "tls", Address: ":0", Cert: "c", Key: "k", ClientCA: "a"},
	}
	want.Auth.Mode = "jwt"
	want.Auth.JWT.Leeway = Duration(90 * time.Second)
	want.Auth.JWT.Keys = []JWTKey{{KeyID: "a", Algorithm: "HS256", Secret: "123"}, {Algorithm: "EdDSA", PublicKeyFile: "f"}}
	want.ACL = []Rule{{Allow: "pubsub", Topic: "d/%u/#"}, {Deny: "sub", Topic: "#"}}
	want.Store.Pebble.MinFree = 2 << 30
	want.Limits.MessageBytes, want.Limits.WriteBuffer = 1<<20, 0
	// The first listener would not be allowed with trust elsewhere, but jwt is.
	got, err := Parse("config.yaml", []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, opts); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLoadFindsTheFile(t *testing.T) {
	t.Chdir(t.TempDir())
	if got, err := Load("", nil); err != nil || !cmp.Equal(got, Default(), opts) {
		t.Errorf("without a file: got %v, %v, want the defaults", got, err)
	}
	if err := os.WriteFile("config.yaml", []byte("log: {level: debug}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Load("", nil); err != nil || got.Log.Level != "debug" {
		t.Errorf("with config.yaml: got %v, %v, want log.level debug", got, err)
	}
	if _, err := Load("other.yaml", nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that was named and is not there: got %v, want %v", err, os.ErrNotExist)
	}
}

func TestEnvironment(t *testing.T) {
	env := []string{
		"MQIM_STORE_PEBBLE_PATH=/var/lib/mqim",
		"MQIM_DELIVERY_WINDOW=512",
		"MQIM_DELIVERY_ACK_TIMEOUT=1m",
		"MQIM_CLUSTER_REDIS_PASSWORD=*&: [not yaml",
		`MQIM_LISTENERS=[{address: "127.0.0.1:7"}]`,
		"MQIM_LOG={level: warn, format: json}",
		"MQIM_LOG_LEVEL=debug",
		"MQIM_NODE_NAME=",
		// Kubernetes, beside a service called mqim:
		"MQIM_SERVICE_HOST=10.0.0.1", "MQIM_SERVICE_PORT=1883", "MQIM_SERVICE_PORT_MQTT=1883", "MQIM_PORT=tcp://10.0.0.1:1883",
		"MQIM_PORT_1883_TCP=tcp://10.0.0.1:1883", "MQIM_PORT_1883_TCP_PORT=1883", "MQIM_WEB_PORT=tcp://10.0.0.1:80",
	}
	want := Default()
	want.Store.Pebble.Path = "/var/lib/mqim"
	want.Delivery.Window, want.Delivery.AckTimeout = 512, Duration(time.Minute)
	want.Cluster.Redis.Password = "*&: [not yaml"
	want.Listeners = []Listener{{Name: "tcp-1", Type: "tcp", Address: "127.0.0.1:7"}}
	want.Log = Log{Level: "debug", Format: "json"}
	got, err := Parse("config.yaml", []byte("delivery: {window: 3, max_attempts: 9}\nnode: {name: x}"), env)
	if err != nil {
		t.Fatal(err)
	}
	want.Delivery.MaxAttempts = 9
	if diff := cmp.Diff(want, got, opts); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEnvironmentMistakes(t *testing.T) {
	env := []string{
		"MQIM_STORE_DRIVR=pebble", "MQIM_XYZZY=1", "MQIM_HTTP_PORT=80", "MQIM_DELIVERY_WINDOW=many",
		"MQIM_DELIVERY_MAX_ATTEMPTS=0", "MQIM_ACL=[{alow: pub, topic: a}]", "MQIM_LIMITS=[", "MQIM_AUTH=TOPSECRET",
		"MQIM_CLUSTER_REDIS_DB=TOO",
	}
	_, err := Parse("config.yaml", []byte("log: {level: x}"), env)
	want := []string{
		`config.yaml:1:14: log.level: found "x", expected debug, info, warn or error`,
		`MQIM_ACL: acl[0].alow: unknown key (did you mean "allow"?)`,
		`MQIM_AUTH: auth: found a text, expected a section with mode, throttle, file, jwt, mysql, http`,
		`MQIM_CLUSTER_REDIS_DB: cluster.redis.db: found "TOO", expected a whole number`,
		`MQIM_DELIVERY_MAX_ATTEMPTS: delivery.max_attempts: found 0, expected 1 to 1000`,
		`MQIM_DELIVERY_WINDOW: delivery.window: found "many", expected a whole number`,
		`MQIM_HTTP_PORT: unknown environment variable`,
		`MQIM_LIMITS: limits: not valid YAML: did not find expected node content`,
		`MQIM_STORE_DRIVR: unknown environment variable (did you mean "MQIM_STORE_DRIVER"?)`,
		`MQIM_XYZZY: unknown environment variable`,
	}
	if err == nil {
		t.Fatal("got no error")
	}
	if diff := cmp.Diff(want, strings.Split(err.Error(), "\n")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Two keys must not share a variable, and every variable must reach its key.
func TestEnvNamesAreUnique(t *testing.T) {
	seen := map[string]string{}
	for _, key := range Keys() {
		name := EnvName(key)
		if other, ok := seen[name]; ok {
			t.Errorf("%s stands for %s and %s", name, other, key)
		}
		if link.MatchString(name) {
			t.Errorf("%s looks like a variable of Kubernetes", name)
		}
		seen[name] = key
	}
}

const hidden = "TOPSECRET"

func TestNoSecretPrints(t *testing.T) {
	c := Default()
	c.Store.MySQL = MySQL{DSN: hidden, Replicas: []Secret{hidden}}
	c.Cluster.Redis.Password = hidden
	c.Auth.JWT.Keys = []JWTKey{{Algorithm: "HS256", Secret: hidden}}
	hex := fmt.Sprintf("%x", hidden)
	for name, text := range printed(t, c) {
		if strings.Contains(text, hidden) || strings.Contains(strings.ToLower(text), hex) {
			t.Errorf("%s prints the secret: %.200s", name, text)
		}
		if !strings.Contains(text, "***") {
			t.Errorf("%s does not print ***: %.200s", name, text)
		}
	}
	if got := string(c.Cluster.Redis.Password); got != hidden {
		t.Errorf("string(Secret): got %q, want the text itself", got)
	}
	if got := Secret("").String(); got != "" {
		t.Errorf("no secret: got %q, want nothing", got)
	}
}

func TestDiff(t *testing.T) {
	old, changed := Default(), Default()
	old.ACL = []Rule{}
	if l, r := Diff(old, changed); l != nil || r != nil {
		t.Errorf("equal configurations: got %v and %v, want nothing", l, r)
	}
	changed.Log = Log{Level: "debug", Format: "json"}
	changed.ACL = []Rule{{Allow: "pub", Topic: "x"}}
	changed.Limits.Connections, changed.Limits.WriteTimeout = 5, 1
	changed.Delivery.Window = 1
	changed.Recall.Window = 1
	changed.Listeners[0].Address = "127.0.0.1:1"
	changed.Auth.File.Path = "other.yaml"
	changed.Cluster.Redis.Password = "x"
	changed.Auth.JWT.Keys = []JWTKey{{Algorithm: "HS256", Secret: "x"}}
	gotLive, gotRestart := Diff(old, changed)
	wantLive := []string{"acl", "delivery.window", "recall.window", "limits.connections", "log.level"}
	wantRestart := []string{"listeners", "auth.file.path", "auth.jwt.keys", "cluster.redis.password", "limits.write_timeout", "log.format"}
	if diff := cmp.Diff([][]string{wantLive, wantRestart}, [][]string{gotLive, gotRestart}); diff != "" {
		t.Errorf("live and restart (-want +got):\n%s", diff)
	}
}

// What YAML prints can be read again, but for the secrets.
func TestYAMLRoundTrip(t *testing.T) {
	c := Default()
	c.ACL = []Rule{{Allow: "pub", Topic: "x/%u"}}
	text, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse("printed", text, nil)
	if err != nil {
		t.Fatalf("%v\nin\n%s", err, text)
	}
	if diff := cmp.Diff(c, got, opts); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range append(files, theFile) {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text), "512")
	}
	f.Add(example, "[{a: *b}]")
	f.Fuzz(func(t *testing.T, text, value string) {
		for _, env := range [][]string{nil, {"MQIM_ACL=" + value, "MQIM_DELIVERY_WINDOW=" + value, "MQIM_" + value}} {
			c, err := Parse("config.yaml", []byte(text), env)
			var errs Errors
			switch {
			case err == nil && c.Validate() != nil:
				t.Errorf("Parse let through what Validate refuses: %v", c.Validate())
			case err != nil && (!errors.As(err, &errs) || len(errs) == 0):
				t.Errorf("got %T, want Errors", err)
			}
			for _, e := range errs {
				if e.Source == "" || e.Text == "" {
					t.Errorf("a mistake without place or text: %#v", e)
				}
			}
		}
	})
}
