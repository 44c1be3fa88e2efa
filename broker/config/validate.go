package config

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mqim/mqim/hooks/acl"
	"github.com/mqim/mqim/hooks/auth"
)

// maxPacket is what MQTT can carry in one packet, in bytes [MQTT-2.1.4].
const maxPacket = 268435455

// maxTopic is the longest topic of MQTT, in bytes [MQTT-1.5.4].
const maxTopic = 65535

// maxKeepAlive is as long as one and a half times of it fit into what counts them, see hooks/im.
const maxKeepAlive = 12 * time.Hour

// maxReference bounds node.server_reference, in bytes: it goes into CONNACK.
const maxReference = 1024

// maxThrottle bounds auth.throttle: a client is not to give up while it waits.
const maxThrottle = Duration(30 * time.Second)

// Validate reports every impossible value, as Errors. Load has called it already.
func (c *Config) Validate() error { return c.validate().orNil(c.at[""].source) }

// validator gathers mistakes and knows where the values stand.
type validator struct {
	at   positions
	errs Errors
}

func (c *Config) validate() Errors {
	v := &validator{at: c.at}
	c.Node.validate(v)
	c.validateListeners(v)
	if c.HTTP.Address != "" {
		v.address("http.address", c.HTTP.Address)
	}
	c.Auth.validate(v)
	for i, rule := range c.ACL {
		rule.validate(v, fmt.Sprintf("acl[%d]", i))
	}
	c.Store.validate(v)
	c.Cluster.validate(v)
	if c.Cluster.On() && c.Store.Driver != "mysql" {
		v.fail("store.driver", "found %s with cluster.redis.addresses, expected mysql: the nodes of a cluster share a database", quote(c.Store.Driver))
	}
	c.Delivery.validate(v)
	v.number("inbox.max_messages", c.Inbox.MaxMessages, 0, 0)
	v.duration("inbox.ttl", c.Inbox.TTL, 0)
	v.number("sessions.max_queued", c.Sessions.MaxQueued, 0, 0)
	v.oneOf("sessions.overflow", c.Sessions.Overflow, OverflowDropOldest, OverflowRefuse)
	v.duration("history.ttl", c.History.TTL, 0)
	v.duration("dedupe.window", c.Dedupe.Window, time.Millisecond)
	c.Group.validate(v)
	v.duration("recall.window", c.Recall.Window, 0)
	c.Limits.validate(v)
	if c.Store.Driver == "mysql" {
		c.Limits.validateMySQL(v)
	}
	v.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	v.oneOf("log.format", c.Log.Format, "text", "json")
	return v.errs
}

func (v *validator) fail(key, format string, args ...any) {
	at := v.at.of(key)
	v.errs = append(v.errs, &Error{Source: at.source, Line: at.line, Column: at.column, Key: key, Text: fmt.Sprintf(format, args...)})
}

// number checks low <= n and, where high is not 0, n <= high.
func (v *validator) number(key string, n, low, high int) {
	switch {
	case high != 0 && (n < low || n > high):
		v.fail(key, "found %d, expected %d to %d", n, low, high)
	case n < low:
		v.fail(key, "found %d, expected at least %d", n, low)
	}
}

func (v *validator) size(key string, n, low, high Size) {
	if n < low || n > high {
		v.fail(key, "found %s, expected %s to %s", n, low, high)
	}
}

func (v *validator) duration(key string, d Duration, low time.Duration) {
	if d.D() < low {
		v.fail(key, "found %s, expected at least %s", d, Duration(low))
	}
}

func (v *validator) oneOf(key, found string, allowed ...string) bool {
	if slices.Contains(allowed, found) {
		return true
	}
	v.fail(key, "found %s, expected %s", quote(found), or(allowed))
	return false
}

// or is "a, b or c".
func or(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

// address checks host:port and returns the host.
func (v *validator) address(key, address string) (host string, ok bool) {
	host, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil || strings.ContainsAny(host, " /") {
		v.fail(key, "found %s, expected host:port such as 127.0.0.1:1883", quote(address))
		return "", false
	}
	return host, true
}

func (n Node) validate(v *validator) {
	if len(n.Name) > 64 || strings.ContainsFunc(n.Name, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		v.fail("node.name", "found %s, expected at most 64 bytes without spaces", quote(n.Name))
	}
	if len(n.ServerReference) > maxReference || strings.ContainsFunc(n.ServerReference, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		v.fail("node.server_reference", "found %s, expected at most %d bytes without control characters", quote(n.ServerReference), maxReference)
	}
	v.duration("node.shutdown_timeout", n.ShutdownTimeout, 0)
	if n.SysInterval != 0 {
		v.duration("node.sys_interval", n.SysInterval, time.Second)
	}
}

// TopicBytes is the longest topic or filter outside im/, in bytes; 0: no limit.
func (c *Config) TopicBytes() int {
	if c.Store.Driver == "mysql" && c.Limits.TopicBytes == 0 {
		return maxKey
	}
	return int(c.Limits.TopicBytes)
}

func (c *Config) validateListeners(v *validator) {
	if len(c.Listeners) == 0 {
		v.fail("listeners", "found none, expected at least one such as {type: tcp, address: \"127.0.0.1:1883\"}")
	}
	names, addresses := map[string]bool{}, map[string]bool{}
	for i, l := range c.Listeners {
		key := fmt.Sprintf("listeners[%d]", i)
		l.validate(v, key)
		if names[l.Name] {
			v.fail(key+".name", "found %s twice, expected a name of its own", quote(l.Name))
		}
		names[l.Name] = true
		host, ok := v.address(key+".address", l.Address)
		switch {
		case !ok:
			continue
		case addresses[l.Address] && !strings.HasSuffix(l.Address, ":0"):
			v.fail(key+".address", "found %s twice, expected an address of its own", quote(l.Address))
		case c.Auth.Mode == "trust" && !loopback(host):
			v.fail(key+".address", "found %s with auth.mode trust, which lets anyone be any user; "+
				"expected a loopback address such as 127.0.0.1:1883, or another auth.mode", quote(l.Address))
		}
		addresses[l.Address] = true
	}
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (l Listener) validate(v *validator, key string) {
	if !v.oneOf(key+".type", l.Type, "tcp", "ws", "tls", "wss") {
		return
	}
	switch {
	case l.web() && !strings.HasPrefix(l.Path, "/"):
		v.fail(key+".path", "found %s, expected a path such as /mqtt", quote(l.Path))
	case !l.web() && l.Path != "":
		v.fail(key+".path", "found %s, expected none: only types ws and wss have a path", quote(l.Path))
	}
	if l.Advertise != "" {
		v.address(key+".advertise", l.Advertise)
	}
	switch {
	case l.ClientUser == "":
	case l.ClientCA == "":
		v.fail(key+".client_user", "found %s, expected none without client_ca: nobody would vouch for the certificate", quote(l.ClientUser))
	default:
		v.oneOf(key+".client_user", l.ClientUser, "cn", "san")
	}
	for _, file := range []struct {
		name, value string
		required    bool
	}{{"cert", l.Cert, true}, {"key", l.Key, true}, {"client_ca", l.ClientCA, false}} {
		switch {
		case l.TLS() && file.required && file.value == "":
			v.fail(key+"."+file.name, "found nothing, expected a PEM file: type %s needs cert and key", l.Type)
		case !l.TLS() && file.value != "":
			v.fail(key+"."+file.name, "found %s, expected none: only types tls and wss have certificates", quote(file.value))
		}
	}
}

func (a Auth) validate(v *validator) {
	if a.Throttle < 0 || a.Throttle > maxThrottle {
		v.fail("auth.throttle", "found %s, expected 0s to %s", a.Throttle, maxThrottle)
	}
	v.oneOf("auth.mode", a.Mode, "trust", "file", "jwt", "mysql", "http")
	if a.Mode == "file" && a.File.Path == "" {
		v.fail("auth.file.path", `found "", expected the users file of auth.mode file`)
	}
	j := a.JWT
	if j.JWKSURL != "" {
		v.check("auth.jwt.jwks_url", auth.CheckURL(j.JWKSURL))
	}
	v.duration("auth.jwt.jwks_cooldown", j.JWKSCooldown, 100*time.Millisecond)
	v.duration("auth.jwt.jwks_refresh", j.JWKSRefresh, j.JWKSCooldown.D())
	if j.UserClaim == "" {
		v.fail("auth.jwt.user_claim", `found "", expected the claim that holds the user, such as sub`)
	}
	v.duration("auth.jwt.leeway", j.Leeway, 0)
	if a.Mode == "jwt" && len(j.Keys) == 0 && j.JWKSURL == "" {
		v.fail("auth.jwt.keys", "found none and no jwks_url, expected at least one key for auth.mode jwt such as {alg: RS256, public_key_file: idp.pem}")
	}
	for i, k := range j.Keys {
		k.validate(v, fmt.Sprintf("auth.jwt.keys[%d]", i))
	}
	a.MySQL.validate(v, a.Mode == "mysql")
	a.HTTP.validate(v, a.Mode == "http")
}

// check reports an error that says what was expected.
func (v *validator) check(key string, err error) {
	if err != nil {
		v.fail(key, "%v", err)
	}
}

// maxLogin is the longest that a backend may take for one login: the hook gives up then.
const maxLogin = 10 * time.Second

func (v *validator) backend(key string, timeout, ttl, negative Duration, size int) {
	if timeout.D() < 10*time.Millisecond || timeout.D() > maxLogin {
		v.fail(key+".timeout", "found %s, expected 10ms to %s", timeout, Duration(maxLogin))
	}
	v.duration(key+".cache_ttl", ttl, 0)
	v.duration(key+".negative_ttl", negative, 0)
	v.number(key+".cache_size", size, 1, 10_000_000)
}

func (m AuthMySQL) validate(v *validator, used bool) {
	if used || m.DSN != "" {
		v.check("auth.mysql.dsn", auth.CheckDSN(string(m.DSN)))
	}
	v.check("auth.mysql.query", auth.CheckQuery(m.Query))
	v.number("auth.mysql.connections", m.Connections, 1, 1000)
	v.backend("auth.mysql", m.Timeout, m.CacheTTL, m.NegativeTTL, m.CacheSize)
}

func (h AuthHTTP) validate(v *validator, used bool) {
	if used || h.URL != "" {
		v.check("auth.http.url", auth.CheckURL(h.URL))
	}
	v.number("auth.http.concurrency", h.Concurrency, 1, 1000)
	v.backend("auth.http", h.Timeout, h.CacheTTL, h.NegativeTTL, h.CacheSize)
}

func (k JWTKey) validate(v *validator, key string) {
	if !slices.Contains(auth.Algorithms, k.Algorithm) {
		v.fail(key+".alg", "found %s, expected %s", quote(k.Algorithm), or(auth.Algorithms))
		return
	}
	given := map[string]bool{
		"secret": k.Secret != "", "secret_file": k.SecretFile != "",
		"public_key": k.PublicKey != "", "public_key_file": k.PublicKeyFile != "",
	}
	want, other := "public_key", "secret"
	if strings.HasPrefix(k.Algorithm, "HS") {
		want, other = other, want
	}
	switch {
	case given[want] == given[want+"_file"]:
		v.fail(key, "expected either %s or %s_file for %s", want, want, k.Algorithm)
	case given[other] || given[other+"_file"]:
		v.fail(key, "found %s, expected only %s for %s", other, want, k.Algorithm)
	}
}

// Rules are the rules of acl, compiled. The configuration must be valid.
func (c *Config) Rules() (*acl.Rules, error) {
	rules := make([]acl.Rule, len(c.ACL))
	for i, r := range c.ACL {
		action, err := acl.ParseAction(r.Allow + r.Deny) // one of them is empty
		if err != nil {
			return nil, fmt.Errorf("acl[%d]: %w", i, err)
		}
		rules[i] = acl.Rule{Allow: r.Allow != "", Action: action, Topic: r.Topic}
	}
	return acl.Compile(rules)
}

func (r Rule) validate(v *validator, key string) {
	switch {
	case (r.Allow == "") == (r.Deny == ""):
		v.fail(key, "expected either allow or deny, as in {allow: pubsub, topic: \"devices/%%u/#\"}")
	case r.Allow != "":
		v.oneOf(key+".allow", r.Allow, "pub", "sub", "pubsub")
	default:
		v.oneOf(key+".deny", r.Deny, "pub", "sub", "pubsub")
	}
	if err := acl.CheckTopic(r.Topic); err != nil {
		v.fail(key+".topic", "found %s, %v", quote(r.Topic), err)
	} else if r.Topic == "im" || strings.HasPrefix(r.Topic, "im/") {
		v.fail(key+".topic", "found %s, expected a topic outside im/, which has rules of its own", quote(r.Topic))
	}
}

func (s Store) validate(v *validator) {
	v.oneOf("store.driver", s.Driver, "pebble", "mysql")
	if s.Pebble.Path == "" {
		v.fail("store.pebble.path", `found "", expected a folder such as data`)
	}
	v.oneOf("store.pebble.sync", s.Pebble.Sync, "commit", "interval")
	v.size("store.pebble.min_free", s.Pebble.MinFree, 0, 1<<50)
	switch {
	case s.Driver == "mysql" && s.MySQL.DSN == "":
		v.fail("store.mysql.dsn", `found "", expected user:password@tcp(host:3306)/database: store.driver is mysql`)
	case s.MySQL.DSN != "":
		v.check("store.mysql.dsn", auth.CheckDSN(string(s.MySQL.DSN)))
	}
	v.number("store.mysql.connections", s.MySQL.Connections, 8, 10_000)
	for i, dsn := range s.MySQL.Replicas {
		v.check(fmt.Sprintf("store.mysql.replicas[%d]", i), auth.CheckDSN(string(dsn)))
	}
}

// maxKey is the longest topic that store/mysql has as a key, in bytes, with room for what its levels take.
const maxKey = 2000

// validateMySQL checks what the store in MySQL cannot do without: it has topics and filters as keys, which are short there,
// and a message is one statement of bounded size.
func (l Limits) validateMySQL(v *validator) {
	if l.TopicBytes > maxKey {
		v.fail("limits.topic_bytes", "found %s, expected at most %d with store.driver mysql, in which topics are keys", l.TopicBytes, maxKey)
	}
	for _, x := range []struct {
		key  string
		size Size
	}{{"limits.message_bytes", l.MessageBytes}, {"limits.command_bytes", l.CommandBytes}} {
		if x.size == 0 {
			v.fail(x.key, "found 0, which is no limit; expected one with store.driver mysql, whose statements have a limit")
		}
	}
}

// maxPrefix bounds cluster.redis.prefix, in bytes: it is part of every channel's name.
const maxPrefix = 32

func (c Cluster) validate(v *validator) {
	r := c.Redis
	for i, a := range r.Addresses {
		v.address(fmt.Sprintf("cluster.redis.addresses[%d]", i), a)
	}
	v.number("cluster.redis.db", r.DB, 0, 0)
	if len(r.Addresses) > 1 && r.Master == "" && r.DB != 0 {
		v.fail("cluster.redis.db", "found %d, expected 0: a Redis Cluster has only that one", r.DB)
	}
	if r.Prefix == "" || len(r.Prefix) > maxPrefix || strings.ContainsFunc(r.Prefix, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '{' || c == '}' }) {
		v.fail("cluster.redis.prefix", "found %s, expected 1 to %d bytes of ASCII without spaces and braces", quote(r.Prefix), maxPrefix)
	}
	v.duration("cluster.look", c.Look, 100*time.Millisecond)
	v.duration("cluster.drain", c.Drain, 0)
}

func (d Delivery) validate(v *validator) {
	v.number("delivery.window", d.Window, 1, 65535)
	v.duration("delivery.ack_timeout", d.AckTimeout, time.Millisecond)
	v.number("delivery.max_attempts", d.MaxAttempts, 1, 1000)
}

func (g Group) validate(v *validator) {
	v.number("group.small_max", g.SmallMax, 1, 10_000)
	v.number("group.large_max", g.LargeMax, 1, 10_000_000)
	if g.LargeMax < g.SmallMax {
		v.fail("group.large_max", "found %d, expected at least group.small_max, which is %d", g.LargeMax, g.SmallMax)
	}
}

func (l Limits) validate(v *validator) {
	v.size("limits.message_bytes", l.MessageBytes, 0, maxPacket)
	v.size("limits.command_bytes", l.CommandBytes, 0, maxPacket)
	v.size("limits.write_buffer", l.WriteBuffer, 0, 1<<30)
	v.number("limits.sends_per_second", l.SendsPerSecond, 0, 0)
	v.number("limits.send_burst", l.SendBurst, 0, 0)
	v.number("limits.connections", l.Connections, 0, 0)
	v.number("limits.connects_per_second", l.ConnectsPerSecond, 0, 0)
	v.number("limits.devices_per_user", l.DevicesPerUser, 0, 0)
	v.number("limits.groups_per_user", l.GroupsPerUser, 0, 0)
	v.number("limits.retained_messages", l.RetainedMessages, 0, 0)
	v.number("limits.connections_per_address", l.ConnectionsPerAddress, 0, 0)
	v.number("limits.connections_per_user", l.ConnectionsPerUser, 0, 0)
	v.number("limits.connect_backlog", l.ConnectBacklog, 0, 0)
	v.size("limits.bytes_per_second", l.BytesPerSecond, 0, 1<<40)
	v.number("limits.messages_per_second", l.MessagesPerSecond, 0, 0)
	v.number("limits.subscriptions", l.Subscriptions, 0, 0)
	v.number("limits.topic_levels", l.TopicLevels, 0, 0)
	v.size("limits.topic_bytes", l.TopicBytes, 0, maxTopic)
	v.size("limits.memory", l.Memory, 0, 1<<50)
	v.duration("limits.commit_delay", l.CommitDelay, 0)
	v.duration("limits.connect_timeout", l.ConnectTimeout, 0)
	v.duration("limits.write_timeout", l.WriteTimeout, 0)
	if ka := l.KeepAlive.D(); ka != 0 && (ka < time.Second || ka > maxKeepAlive) || ka%time.Second != 0 {
		v.fail("limits.keep_alive", "found %s, expected 0s or whole seconds, 1s to %s", l.KeepAlive, Duration(maxKeepAlive))
	}
}
