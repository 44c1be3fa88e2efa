package config

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// bad is what each testdata/*.bad.yaml is answered with. Every mistake in a file is reported, and no secret.
var bad = map[string]string{
	"acl.bad.yaml": `
acl.bad.yaml:2:5: acl[0]: expected either allow or deny, as in {allow: pubsub, topic: "devices/%u/#"}
acl.bad.yaml:3:5: acl[1]: expected either allow or deny, as in {allow: pubsub, topic: "devices/%u/#"}
acl.bad.yaml:4:13: acl[2].allow: found "publish", expected pub, sub or pubsub
acl.bad.yaml:5:12: acl[3].deny: found "all", expected pub, sub or pubsub
acl.bad.yaml:5:24: acl[3].topic: found "a/#/b", expected # only at the end
acl.bad.yaml:6:5: acl[4].topic: found "", expected a topic filter such as devices/%u/#
acl.bad.yaml:7:25: acl[5].topic: found "$share/g/x", expected the filter without $share/group/: a rule speaks of shared subscriptions too
acl.bad.yaml:8:24: acl[6].topic: found "im/u/#", expected a topic outside im/, which has rules of its own`,
	"anchor.bad.yaml": `
anchor.bad.yaml:2:16: not valid YAML: unknown anchor … referenced`,
	"auth.bad.yaml": `
auth.bad.yaml:2:19: auth.jwt.jwks_url: expected https, or http to a loopback address such as 127.0.0.1
auth.bad.yaml:2:61: auth.jwt.jwks_cooldown: found 1ms, expected at least 100ms
auth.bad.yaml:2:80: auth.jwt.jwks_refresh: found 1µs, expected at least 1ms
auth.bad.yaml:4:10: auth.mysql.dsn: not a DSN; expected user:password@tcp(host:3306)/database
auth.bad.yaml:5:12: auth.mysql.query: found 0 question marks, expected one, for the user name, as in SELECT password_hash, name FROM users WHERE name = ?
auth.bad.yaml:6:14: auth.mysql.timeout: found 11s, expected 10ms to 10s
auth.bad.yaml:7:18: auth.mysql.connections: found 0, expected 1 to 1000
auth.bad.yaml:9:10: auth.http.url: expected a URL without user and password in it
auth.bad.yaml:10:12: auth.http.token: found a list, expected a text
auth.bad.yaml:11:18: auth.http.concurrency: found 0, expected 1 to 1000
auth.bad.yaml:12:16: auth.http.cache_ttl: found -1s, expected at least 0s
auth.bad.yaml:13:19: auth.http.negative_ttl: found -1s, expected at least 0s
auth.bad.yaml:14:17: auth.http.cache_size: found 0, expected 1 to 10000000`,
	"backend.bad.yaml": `
backend.bad.yaml:1:7: auth.mysql.dsn: not a DSN; expected user:password@tcp(host:3306)/database`,
	"doors.bad.yaml": `
doors.bad.yaml:1:26: node.server_reference: found "a\tb", expected at most 1024 bytes without control characters
doors.bad.yaml:2:30: auth.throttle: found 31s, expected 0s to 30s
doors.bad.yaml:4:51: listeners[0].proxy_protocol: found "yes", expected true or false
doors.bad.yaml:5:65: listeners[1].client_user: found "cn", expected none without client_ca: nobody would vouch for the certificate
doors.bad.yaml:6:79: listeners[2].client_user: found "mail", expected cn or san
doors.bad.yaml:8:28: limits.connections_per_address: found -1, expected at least 0
doors.bad.yaml:9:25: limits.connections_per_user: found -1, expected at least 0
doors.bad.yaml:10:20: limits.connect_backlog: found -1, expected at least 0
doors.bad.yaml:11:21: limits.bytes_per_second: found -1, expected 0 to 1TiB
doors.bad.yaml:12:24: limits.messages_per_second: found -1, expected at least 0
doors.bad.yaml:13:18: limits.subscriptions: found -1, expected at least 0
doors.bad.yaml:14:17: limits.topic_levels: found -1, expected at least 0
doors.bad.yaml:15:16: limits.topic_bytes: found 65537, expected 0 to 65535
doors.bad.yaml:16:11: limits.memory: found -1, expected 0 to 1024TiB
doors.bad.yaml:17:17: limits.commit_delay: found -1s, expected at least 0s`,
	"bracket.bad.yaml": `
bracket.bad.yaml:2:1: not valid YAML: did not find expected ',' or '}'`,
	"documents.bad.yaml": `
documents.bad.yaml:2:1: found 2 YAML documents, expected one`,
	"jwt.bad.yaml": `
jwt.bad.yaml:4:17: auth.jwt.user_claim: found "", expected the claim that holds the user, such as sub
jwt.bad.yaml:5:13: auth.jwt.leeway: found -1s, expected at least 0s
jwt.bad.yaml:7:15: auth.jwt.keys[0].alg: found "none", expected HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512 or EdDSA
jwt.bad.yaml:8:9: auth.jwt.keys[1]: expected either secret or secret_file for HS256
jwt.bad.yaml:9:9: auth.jwt.keys[2]: found public_key, expected only secret for HS256
jwt.bad.yaml:10:9: auth.jwt.keys[3]: expected either public_key or public_key_file for ES256
jwt.bad.yaml:11:9: auth.jwt.keys[4]: found a text, expected a section with kid, alg, secret, secret_file, public_key, public_key_file
jwt.bad.yaml:12:30: auth.jwt.keys[5].secret: found a list, expected a text`,
	"later.bad.yaml": `
later.bad.yaml:2:3: auth.http.url: not a URL; expected one such as https://auth.example/mqtt
later.bad.yaml:4:8: store.driver: found "pebble" with cluster.redis.addresses, expected mysql: the nodes of a cluster share a database
later.bad.yaml:4:44: store.mysql.replicas[1]: not a DSN; expected user:password@tcp(host:3306)/database
later.bad.yaml:7:17: cluster.redis.addresses[0]: found "127.0.0.1", expected host:port such as 127.0.0.1:1883`,
	"list.bad.yaml": `
list.bad.yaml:1:1: found a list, expected a section with node, listeners, http, auth, acl, store, cluster, delivery, inbox, sessions, history, dedupe, group, recall, limits, log`,
	"listeners.bad.yaml": `
listeners.bad.yaml:3:57: listeners[0].path: found "/x", expected none: only types ws and wss have a path
listeners.bad.yaml:3:67: listeners[0].cert: found "c.pem", expected none: only types tls and wss have certificates
listeners.bad.yaml:4:12: listeners[1].name: found "a" twice, expected a name of its own
listeners.bad.yaml:4:21: listeners[1].type: found "udp", expected tcp, ws, tls or wss
listeners.bad.yaml:5:5: listeners[2].cert: found nothing, expected a PEM file: type tls needs cert and key
listeners.bad.yaml:5:35: listeners[2].address: found "0.0.0.0:1883" twice, expected an address of its own
listeners.bad.yaml:7:14: listeners[3].address: found "nowhere", expected host:port such as 127.0.0.1:1883
listeners.bad.yaml:8:11: listeners[3].path: found "mqtt", expected a path such as /mqtt`,
	"nokeys.bad.yaml": `
nokeys.bad.yaml:1:7: auth.jwt.keys: found none and no jwks_url, expected at least one key for auth.mode jwt such as {alg: RS256, public_key_file: idp.pem}`,
	"mysql.bad.yaml": `
mysql.bad.yaml:4:10: store.mysql.dsn: not a DSN; expected user:password@tcp(host:3306)/database
mysql.bad.yaml:5:18: store.mysql.connections: found 7, expected 8 to 10000
mysql.bad.yaml:6:19: store.mysql.allow_unsafe: found "maybe", expected true or false
mysql.bad.yaml:7:50: store.mysql.replicas[1]: not a DSN; expected user:password@tcp(host:3306)/database
mysql.bad.yaml:8:25: limits.message_bytes: found 0, which is no limit; expected one with store.driver mysql, whose statements have a limit
mysql.bad.yaml:8:43: limits.command_bytes: found 0, which is no limit; expected one with store.driver mysql, whose statements have a limit
mysql.bad.yaml:8:59: limits.topic_bytes: found 2001, expected at most 2000 with store.driver mysql, in which topics are keys`,
	"nodsn.bad.yaml": `
nodsn.bad.yaml:1:8: store.mysql.dsn: found "", expected user:password@tcp(host:3306)/database: store.driver is mysql`,
	"none.bad.yaml": `
none.bad.yaml:1:12: listeners: found none, expected at least one such as {type: tcp, address: "127.0.0.1:1883"}`,
	"secrets.bad.yaml": `
secrets.bad.yaml:2:16: store.mysql.dsn: found a list, expected a text
secrets.bad.yaml:2:39: store.mysql.replicas: found a text, expected a list
secrets.bad.yaml:4:10: cluster.redis: found a text, expected a section with addresses, master, username, password, db, tls, sentinel_username, sentinel_password, prefix
secrets.bad.yaml:6:8: auth.jwt: found a text, expected a section with keys, jwks_url, jwks_refresh, jwks_cooldown, audience, issuer, user_claim, leeway`,
	"syntax.bad.yaml": `
syntax.bad.yaml:3:2: not valid YAML: did not find expected key`,
	"trust.bad.yaml": `
trust.bad.yaml:2:26: listeners[0].address: found ":1883" with auth.mode trust, which lets anyone be any user; expected a loopback address such as 127.0.0.1:1883, or another auth.mode
trust.bad.yaml:5:26: listeners[3].address: found "192.168.1.7:1886" with auth.mode trust, which lets anyone be any user; expected a loopback address such as 127.0.0.1:1883, or another auth.mode`,
	"twice.bad.yaml": `
twice.bad.yaml:4:3: delivery.window: given twice
twice.bad.yaml:5:1: log: given twice`,
	"types.bad.yaml": `
types.bad.yaml:2:11: delivery.window: found "many", expected a whole number
types.bad.yaml:3:16: delivery.ack_timeout: found "10", expected a duration such as 10s
types.bad.yaml:4:17: delivery.max_attempts: found "1.5", expected a whole number
types.bad.yaml:5:23: inbox.max_messages: found a list, expected a whole number
types.bad.yaml:5:33: inbox.ttl: found "7d", expected a duration such as 10s
types.bad.yaml:7:18: limits.message_bytes: found "1MB", expected a size such as 256KiB or a number of bytes
types.bad.yaml:8:18: limits.command_bytes: found "99999999TiB", expected a size such as 256KiB or a number of bytes
types.bad.yaml:9:15: limits.connections: found nothing, expected a whole number
types.bad.yaml:10:6: log: found "debug", expected a section with level, format
types.bad.yaml:11:6: acl: found a section, expected a list
types.bad.yaml:12:7: node: found a list, expected a section with name, server_reference, shutdown_timeout, sys_interval
types.bad.yaml:14:12: http.address: found a section, expected a text`,
	"unknown.bad.yaml": `
unknown.bad.yaml:4:5: store.pebble.pth: unknown key (did you mean "path"?)
unknown.bad.yaml:5:5: store.pebble.completely_other: unknown key
unknown.bad.yaml:6:1: limit: unknown key (did you mean "limits"?)
unknown.bad.yaml:8:5: listeners[0].address: found "", expected host:port such as 127.0.0.1:1883
unknown.bad.yaml:8:6: listeners[0].adress: unknown key (did you mean "address"?)
unknown.bad.yaml:9:1: <<: unknown key`,
	"values.bad.yaml": `
values.bad.yaml:1:14: node.name: found "a b", expected at most 64 bytes without spaces
values.bad.yaml:1:39: node.shutdown_timeout: found -1s, expected at least 0s
values.bad.yaml:1:58: node.sys_interval: found 10ms, expected at least 1s
values.bad.yaml:2:17: http.address: found "localhost", expected host:port such as 127.0.0.1:1883
values.bad.yaml:4:9: auth.mode: found "tust", expected trust, file, jwt, mysql or http
values.bad.yaml:6:11: store.driver: found "postgres", expected pebble or mysql
values.bad.yaml:7:18: store.pebble.path: found "", expected a folder such as data
values.bad.yaml:7:28: store.pebble.sync: found "never", expected commit or interval
values.bad.yaml:7:45: store.pebble.min_free: found -1, expected 0 to 1024TiB
values.bad.yaml:8:20: delivery.window: found 0, expected 1 to 65535
values.bad.yaml:8:36: delivery.ack_timeout: found 0s, expected at least 1ms
values.bad.yaml:8:54: delivery.max_attempts: found 0, expected 1 to 1000
values.bad.yaml:9:23: inbox.max_messages: found -1, expected at least 0
values.bad.yaml:9:32: inbox.ttl: found -1h, expected at least 0s
values.bad.yaml:10:16: history.ttl: found -1s, expected at least 0s
values.bad.yaml:11:18: dedupe.window: found 0s, expected at least 1ms
values.bad.yaml:12:20: group.small_max: found 10001, expected 1 to 10000
values.bad.yaml:12:38: group.large_max: found 10, expected at least group.small_max, which is 10001
values.bad.yaml:13:18: recall.window: found -1m, expected at least 0s
values.bad.yaml:15:18: limits.message_bytes: found 1GiB, expected 0 to 268435455
values.bad.yaml:16:21: limits.sends_per_second: found -1, expected at least 0
values.bad.yaml:17:20: limits.connect_timeout: found -5s, expected at least 0s
values.bad.yaml:18:15: limits.keep_alive: found 1.5s, expected 0s or whole seconds, 1s to 12h
values.bad.yaml:19:20: limits.groups_per_user: found -1, expected at least 0
values.bad.yaml:20:14: log.level: found "loud", expected debug, info, warn or error
values.bad.yaml:20:28: log.format: found "xml", expected text or json`,
}

func TestBadFiles(t *testing.T) {
	t.Chdir("testdata")
	files, err := filepath.Glob("*.bad.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(bad) {
		t.Errorf("files: got %d, want the %d of the table", len(files), len(bad))
	}
	for _, file := range files {
		t.Run(file, func(t *testing.T) {
			_, err := Load(file, nil)
			if err == nil {
				t.Fatal("got no error")
			}
			if diff := cmp.Diff(strings.Split(strings.TrimSpace(bad[file]), "\n"), strings.Split(err.Error(), "\n")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if strings.Contains(err.Error(), hidden) {
				t.Errorf("a secret is printed: %v", err)
			}
		})
	}
}
