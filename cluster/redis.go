package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/mqim/mqim/bus"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// ErrSettings: Redis is there, and cannot be used as the settings have it.
var ErrSettings = errors.New("cluster.redis")

func wrong(text string) error { return fmt.Errorf("%w: %s", ErrSettings, text) }

// leastMajor is the first release of Redis with sharded pub/sub.
const leastMajor = 7

// quiet keeps the library from writing to stderr: what goes wrong comes back as an error too.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

func init() { redis.SetLogger(quiet{}) }

// newClient makes the client. It connects when it is used.
func newClient(opts Options) redis.UniversalClient {
	return redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs: opts.Addresses, MasterName: opts.Master, DB: opts.DB,
		Username: opts.Username, Password: opts.Password,
		SentinelUsername: opts.SentinelUsername, SentinelPassword: opts.SentinelPassword,
		TLSConfig:   opts.TLS,
		Protocol:    2,  // the third has pushes beside answers, which are of no use here and cost a look each time
		MaxRetries:  -1, // a message that is sent again may come twice
		DialTimeout: dialTimeout, DialerRetries: 1,
		ReadTimeout: replyTimeout, WriteTimeout: replyTimeout, PoolTimeout: replyTimeout,
		ContextTimeoutEnabled: true,
		DisableIdentity:       true,
		// Messages that another connection than that of the pipelines would be opened for are none.
		PipelinePoolSize:         len(opts.Addresses) + clusterLanes,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}

// server is the client of the Redis that has the lane.
func (l *lane) server(ctx context.Context) (*redis.Client, error) {
	switch c := l.b.client.(type) {
	case *redis.ClusterClient:
		return c.MasterForKey(ctx, l.prefix)
	case *redis.Client:
		return c, nil
	default:
		panic(fmt.Sprintf("cluster: %T", c)) // NewUniversalClient makes no other
	}
}

// check looks whether a Redis can be used.
func (b *Bus) check(ctx context.Context, c *redis.Client) error {
	info, err := c.Info(ctx, "server").Result()
	if err != nil {
		return err
	}
	return checkInfo(info, len(b.lanes) > 1, b.opts.Master != "")
}

// checkInfo reads the answer to INFO server.
func checkInfo(info string, cluster, sentinel bool) error {
	var version, mode string
	for line := range strings.Lines(info) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch key {
		case "redis_version":
			version = value
		case "redis_mode":
			mode = value
		}
	}
	switch {
	case mode == "sentinel":
		return wrong("the address is that of a Sentinel: set cluster.redis.master to the name it has for the master")
	case mode == "cluster" && !cluster && !sentinel:
		return wrong("the address is that of one server of a Redis Cluster: name several of its servers in cluster.redis.addresses")
	case mode == "standalone" && cluster:
		return errNoCluster
	}
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err == nil && n < leastMajor {
		return wrong(fmt.Sprintf("the server is Redis %s; sharded pub/sub needs Redis %d or later", version, leastMajor))
	}
	return nil
}

var errNoCluster = wrong("the addresses are not those of a Redis Cluster: name one address alone in cluster.redis.addresses, or, if they are of Sentinels, set cluster.redis.master")

// classify says of an error what it means for the bus: ErrSettings where trying again is in vain, bus.ErrDown otherwise. What
// Redis itself says is in the text; it never repeats a password.
func classify(err error) error {
	text := err.Error()
	has := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(text, p) {
				return true
			}
		}
		return false
	}
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var noTLS tls.RecordHeaderError
	switch {
	case errors.Is(err, ErrSettings):
		return err
	case has("WRONGPASS", "NOAUTH", "AUTH <password> called without any password", "invalid password"):
		return wrong("Redis refuses the password: check cluster.redis.username and cluster.redis.password (" + text + ")")
	case has("NOPERM"):
		return wrong("the user may not do what is needed (INFO, PING, SPUBLISH, SSUBSCRIBE, SUNSUBSCRIBE, PUBSUB, and all channels that begin with cluster.redis.prefix): " + text)
	case has("unknown command") && has("sentinel", "SENTINEL"):
		return wrong("cluster.redis.master is set, and an address is not that of a Sentinel: " + text)
	case has("unknown command"):
		return wrong(fmt.Sprintf("sharded pub/sub needs Redis %d or later: %s", leastMajor, text))
	case has("cluster support disabled"):
		return errNoCluster
	case has("DB index is out of range", "SELECT is not allowed"):
		return wrong("Redis does not have the database of cluster.redis.db: " + text)
	case has("all sentinels specified") && errors.Is(err, redis.Nil):
		return wrong("the Sentinels do not know the master of cluster.redis.master")
	case errors.As(err, &unknown), errors.As(err, &host), errors.As(err, &invalid), errors.As(err, &noTLS):
		return wrong("TLS: " + text)
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.ECONNRESET) {
		// What a server says, or does not say, to a client that speaks TLS where it does not, or the other way round.
		return fmt.Errorf("%w: %w (if it stays so: is cluster.redis.tls as the Redis has it?)", bus.ErrDown, err)
	}
	return fmt.Errorf("%w: %w", bus.ErrDown, err)
}
