// Package config is the configuration of the server: what can be set, its defaults, and how it is read.
//
// A value comes from its default, from a YAML file, or from an environment variable named MQIM_ and the path of the
// key (MQIM_STORE_DRIVER), each over the one before. Reading is strict and reports every mistake at once, with file,
// line and column. The package opens no socket and knows nothing of what the settings do; it asks hooks/acl and
// hooks/auth what they can work with. A Config is not changed after Load, so any number of goroutines may read it.
//
// Everywhere under limits 0 means no limit.
package config

import (
	"os"
	"time"
)

// Config is the whole configuration.
type Config struct {
	Node      Node       `yaml:"node"`
	Listeners []Listener `yaml:"listeners"`
	HTTP      HTTP       `yaml:"http"`
	Auth      Auth       `yaml:"auth"`
	ACL       []Rule     `yaml:"acl"`
	Store     Store      `yaml:"store"`
	Cluster   Cluster    `yaml:"cluster"`
	Delivery  Delivery   `yaml:"delivery"`
	Inbox     Inbox      `yaml:"inbox"`
	Sessions  Sessions   `yaml:"sessions"`
	History   History    `yaml:"history"`
	Dedupe    Dedupe     `yaml:"dedupe"`
	Group     Group      `yaml:"group"`
	Recall    Recall     `yaml:"recall"`
	Limits    Limits     `yaml:"limits"`
	Log       Log        `yaml:"log"`

	at positions // where each value was read, for Validate; nil for one made in code
}

// Default is the configuration without a file and without variables.
func Default() *Config {
	return &Config{
		Node: Node{ShutdownTimeout: Duration(10 * time.Second), SysInterval: Duration(10 * time.Second)},
		Listeners: []Listener{
			{Name: "mqtt", Type: "tcp", Address: "127.0.0.1:1883"},
			{Name: "ws", Type: "ws", Address: "127.0.0.1:8083", Path: "/mqtt"},
		},
		HTTP: HTTP{Address: "127.0.0.1:8080"},
		Auth: Auth{
			Mode: "trust", Throttle: Duration(4 * time.Second), File: AuthFile{Path: "users.yaml"},
			JWT: AuthJWT{JWKSRefresh: Duration(time.Hour), JWKSCooldown: Duration(10 * time.Second), UserClaim: "sub"},
			MySQL: AuthMySQL{
				Query: "SELECT password_hash, name FROM users WHERE name = ?", Timeout: Duration(5 * time.Second), Connections: 8,
				CacheTTL: Duration(time.Minute), NegativeTTL: Duration(10 * time.Second), CacheSize: 10000,
			},
			HTTP: AuthHTTP{
				Timeout: Duration(5 * time.Second), Concurrency: 32,
				CacheTTL: Duration(30 * time.Second), NegativeTTL: Duration(5 * time.Second), CacheSize: 10000,
			},
		},
		Store: Store{Driver: "pebble", Pebble: Pebble{Path: "data", Sync: "commit"}, MySQL: MySQL{Connections: 16}},
		Cluster: Cluster{
			Redis: Redis{Prefix: "mqim"}, Look: Duration(30 * time.Second), Drain: Duration(5 * time.Second),
		},
		Delivery: Delivery{Window: 256, AckTimeout: Duration(10 * time.Second), MaxAttempts: 5},
		Inbox:    Inbox{MaxMessages: 10000, TTL: Duration(168 * time.Hour)},
		Sessions: Sessions{MaxQueued: 10000, Overflow: OverflowDropOldest},
		Dedupe:   Dedupe{Window: Duration(168 * time.Hour)},
		Group:    Group{SmallMax: 500, LargeMax: 100000},
		Recall:   Recall{Window: Duration(2 * time.Minute)},
		Limits: Limits{
			MessageBytes: 256 << 10, CommandBytes: 512 << 10, SendsPerSecond: 200, SendBurst: 400, DevicesPerUser: 100, GroupsPerUser: 1000,
			RetainedMessages: 1000000,
			ConnectTimeout:   Duration(5 * time.Second), WriteTimeout: Duration(10 * time.Second), WriteBuffer: 1 << 20,
			ConnectBacklog: 10000, Subscriptions: 10000, TopicLevels: 200, CommitDelay: Duration(time.Second),
		},
		Log: Log{Level: "info", Format: "text"},
	}
}

// Node is about this process.
type Node struct {
	Name            string   `yaml:"name"`             // "": see NodeName
	ServerReference string   `yaml:"server_reference"` // where MQTT 5 clients are sent that there is no room for; "": nowhere
	ShutdownTimeout Duration `yaml:"shutdown_timeout"` // how long stopping may take before connections are cut
	SysInterval     Duration `yaml:"sys_interval"`     // between two rounds of $SYS; 0: none
}

// NodeName is node.name or, if that is empty, the name of the host.
func (c *Config) NodeName() string {
	if c.Node.Name != "" {
		return c.Node.Name
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		return "mqim"
	}
	return host
}

// Listener is a place where MQTT clients connect.
type Listener struct {
	Name     string `yaml:"name"`      // unique; in the file it may be left out and becomes the type and its number
	Type     string `yaml:"type"`      // tcp, ws, tls or wss; tcp if left out
	Address  string `yaml:"address"`   // host:port; an empty host is every address, port 0 any free one
	Path     string `yaml:"path"`      // ws and wss: of the URL; /mqtt if left out
	Cert     string `yaml:"cert"`      // tls and wss: PEM file
	Key      string `yaml:"key"`       // tls and wss: PEM file
	ClientCA string `yaml:"client_ca"` // tls and wss: PEM file; set, clients must show a certificate signed by it

	Advertise     string `yaml:"advertise"`      // host:port that clients reach it by; "": see AdvertisedAddress
	ClientUser    string `yaml:"client_user"`    // with client_ca: cn or san, what names the user; "": the certificate does not
	ProxyProtocol bool   `yaml:"proxy_protocol"` // each connection begins with a PROXY header, version 1 or 2
}

// HTTP is the address of /healthz, /readyz, /metrics and /v1/endpoints; "" turns them off.
type HTTP struct {
	Address string `yaml:"address"`
}

// Auth is how users prove who they are.
type Auth struct {
	Mode     string    `yaml:"mode"`     // trust, file, jwt, mysql or http
	Throttle Duration  `yaml:"throttle"` // the longest that a login waits after failed ones; 0: it does not
	File     AuthFile  `yaml:"file"`
	JWT      AuthJWT   `yaml:"jwt"`
	MySQL    AuthMySQL `yaml:"mysql"`
	HTTP     AuthHTTP  `yaml:"http"`
}

// AuthFile is the users file of mode file.
type AuthFile struct {
	Path string `yaml:"path"`
}

// AuthJWT is mode jwt: the token is the MQTT password.
type AuthJWT struct {
	Keys         []JWTKey `yaml:"keys"`
	JWKSURL      string   `yaml:"jwks_url"`      // of further keys; "": none
	JWKSRefresh  Duration `yaml:"jwks_refresh"`  // how often they are fetched
	JWKSCooldown Duration `yaml:"jwks_cooldown"` // least time between two fetches
	Audience     string   `yaml:"audience"`      // "": not checked
	Issuer       string   `yaml:"issuer"`        // "": not checked
	UserClaim    string   `yaml:"user_claim"`
	Leeway       Duration `yaml:"leeway"` // for clocks that differ
}

// AuthMySQL is mode mysql: password hashes in a database.
type AuthMySQL struct {
	DSN         Secret   `yaml:"dsn"`          // user:password@tcp(host:3306)/database
	Query       string   `yaml:"query"`        // of the hash and, optionally, the name; ? is the user name
	Timeout     Duration `yaml:"timeout"`      // of a query
	Connections int      `yaml:"connections"`  // at most, to the database
	CacheTTL    Duration `yaml:"cache_ttl"`    // how long a hash is remembered; 0: not at all
	NegativeTTL Duration `yaml:"negative_ttl"` // the same for unknown users
	CacheSize   int      `yaml:"cache_size"`   // users, and again as many unknown ones
}

// AuthHTTP is mode http: another service decides.
type AuthHTTP struct {
	URL         string   `yaml:"url"`
	Token       Secret   `yaml:"token"`        // the server's own, for the service; "": none is sent
	Timeout     Duration `yaml:"timeout"`      // of a request
	Concurrency int      `yaml:"concurrency"`  // requests at a time
	CacheTTL    Duration `yaml:"cache_ttl"`    // how long a yes is remembered; 0: not at all
	NegativeTTL Duration `yaml:"negative_ttl"` // the same for a no
	CacheSize   int      `yaml:"cache_size"`   // yeses, and again as many noes
}

// JWTKey is a key that tokens may be signed with.
type JWTKey struct {
	KeyID         string `yaml:"kid"`
	Algorithm     string `yaml:"alg"`
	Secret        Secret `yaml:"secret"`
	SecretFile    string `yaml:"secret_file"`
	PublicKey     string `yaml:"public_key"` // PEM
	PublicKeyFile string `yaml:"public_key_file"`
}

// Rule allows or denies pub, sub or pubsub on a topic outside im/; one of Allow and Deny is set.
type Rule struct {
	Allow string `yaml:"allow"`
	Deny  string `yaml:"deny"`
	Topic string `yaml:"topic"` // a filter; %u is the user, %c the client id
}

// Store is where messages are kept.
type Store struct {
	Driver string `yaml:"driver"` // pebble or mysql
	Pebble Pebble `yaml:"pebble"`
	MySQL  MySQL  `yaml:"mysql"`
}

// Pebble is the embedded store.
type Pebble struct {
	Path    string `yaml:"path"`     // folder, made if missing
	Sync    string `yaml:"sync"`     // commit: durable before acknowledged; interval: faster, may lose the last moment
	MinFree Size   `yaml:"min_free"` // below this much free disk sends are refused; 0: a tenth of the disk, at most 64 MiB
}

// MySQL is a store in MySQL, MariaDB or what speaks their protocol.
type MySQL struct {
	DSN         Secret   `yaml:"dsn"`          // user:password@tcp(host:3306)/database
	Connections int      `yaml:"connections"`  // at most; one more holds the lock on the database
	AllowUnsafe bool     `yaml:"allow_unsafe"` // serve on a server that may forget what it has committed
	Replicas    []Secret `yaml:"replicas"`     // copies of the database that history and lists are read from, as DSN
}

// Cluster is about several nodes on one database.
type Cluster struct {
	Redis Redis    `yaml:"redis"`
	Look  Duration `yaml:"look"`  // how often a node looks in the database for what no other node has told it of
	Drain Duration `yaml:"drain"` // how long handing many clients over takes when a node stops, at most
}

// On reports whether the server is a node of a cluster.
func (c Cluster) On() bool { return len(c.Redis.Addresses) > 0 }

// Redis connects the nodes; no addresses: a single node.
type Redis struct {
	Addresses []string `yaml:"addresses"` // one: a server; several: nodes of a Redis Cluster or, with Master, Sentinels
	Master    string   `yaml:"master"`    // what the Sentinels call the master; "": there are none
	Username  string   `yaml:"username"`
	Password  Secret   `yaml:"password"`
	DB        int      `yaml:"db"`
	TLS       bool     `yaml:"tls"`
	// The Sentinels have users of their own.
	SentinelUsername string `yaml:"sentinel_username"`
	SentinelPassword Secret `yaml:"sentinel_password"`

	Prefix string `yaml:"prefix"` // of all names in Redis: clusters that share a server need different ones
}

// Delivery is how messages go out to a device.
type Delivery struct {
	Window      int      `yaml:"window"`       // messages without acknowledgement per device
	AckTimeout  Duration `yaml:"ack_timeout"`  // then a message is sent again, at doubling intervals
	MaxAttempts int      `yaml:"max_attempts"` // then the device is left alone until it shows life
}

// Inbox bounds what waits for a user.
type Inbox struct {
	MaxMessages int      `yaml:"max_messages"` // 0: no limit
	TTL         Duration `yaml:"ttl"`          // 0: kept
}

// What becomes of a message for a queue that is full.
const (
	OverflowDropOldest = "drop_oldest"
	OverflowRefuse     = "refuse"
)

// Sessions bounds what waits on ordinary topics for a session.
type Sessions struct {
	MaxQueued int    `yaml:"max_queued"` // messages; 0: no limit
	Overflow  string `yaml:"overflow"`
}

// History is how long conversations stay readable; 0: for ever.
type History struct {
	TTL Duration `yaml:"ttl"`
}

// Dedupe is how long a message sent again is recognized.
type Dedupe struct {
	Window Duration `yaml:"window"`
}

// Group bounds groups, in members.
type Group struct {
	SmallMax int `yaml:"small_max"`
	LargeMax int `yaml:"large_max"`
}

// Recall is how long a sender may take a message back; 0: for ever.
type Recall struct {
	Window Duration `yaml:"window"`
}

// Limits protect the server; 0 means no limit.
type Limits struct {
	MessageBytes      Size     `yaml:"message_bytes"`
	CommandBytes      Size     `yaml:"command_bytes"`
	SendsPerSecond    int      `yaml:"sends_per_second"` // per user
	SendBurst         int      `yaml:"send_burst"`
	Connections       int      `yaml:"connections"`
	ConnectsPerSecond int      `yaml:"connects_per_second"`
	DevicesPerUser    int      `yaml:"devices_per_user"`
	GroupsPerUser     int      `yaml:"groups_per_user"` // that a user is in
	RetainedMessages  int      `yaml:"retained_messages"`
	ConnectTimeout    Duration `yaml:"connect_timeout"` // from the connection to its CONNECT packet
	KeepAlive         Duration `yaml:"keep_alive"`      // the longest, in whole seconds; 0: any
	WriteTimeout      Duration `yaml:"write_timeout"`   // of a socket that takes nothing
	WriteBuffer       Size     `yaml:"write_buffer"`    // per connection

	ConnectionsPerAddress int      `yaml:"connections_per_address"` // an IPv4 address or an IPv6 network of 64 bits
	ConnectionsPerUser    int      `yaml:"connections_per_user"`
	ConnectBacklog        int      `yaml:"connect_backlog"`     // connections that wait for connects_per_second
	BytesPerSecond        Size     `yaml:"bytes_per_second"`    // that a connection is read
	MessagesPerSecond     int      `yaml:"messages_per_second"` // PUBLISH packets that a connection is read
	Subscriptions         int      `yaml:"subscriptions"`       // of a client, outside im/
	TopicLevels           int      `yaml:"topic_levels"`        // of a topic or a filter outside im/
	TopicBytes            Size     `yaml:"topic_bytes"`         // of a topic or a filter outside im/
	Memory                Size     `yaml:"memory"`              // of the process; 0: GOMEMLIMIT or nine tenths of the container's, if there is one
	CommitDelay           Duration `yaml:"commit_delay"`        // a commit that takes longer is overload
}

// Log is what is logged and how.
type Log struct {
	Level  string `yaml:"level"`  // debug, info, warn or error
	Format string `yaml:"format"` // text or json
}
