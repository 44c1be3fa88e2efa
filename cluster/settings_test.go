package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/mqim/mqim/bus"
	"github.com/mqim/mqim/bus/bustest"
	"github.com/mqim/mqim/tests/redis"
)

const secret = "hush-hush-redis"

// Settings with which it will never work are an error that says what to change, and shows no password.
func TestSettings(t *testing.T) {
	alone, locked := redis.Start(t), redis.Start(t, "--requirepass", secret)
	locked.Do("ACL", "SETUSER", "reader", "on", ">"+secret, "~*", "&*", "+@all", "-spublish")
	several := redis.StartCluster(t)
	watched := redis.StartWatched(t, 1)
	one := func(s *redis.Server) []string { return []string{s.Addr()} }
	for _, c := range []struct {
		name string
		opts Options
		want string
	}{
		{"wrong password", Options{Addresses: one(locked), Password: secret + "er"}, "cluster.redis.password"},
		{"no password", Options{Addresses: one(locked)}, "cluster.redis.password"},
		{"wrong user", Options{Addresses: one(locked), Username: "nobody", Password: secret}, "cluster.redis.username"},
		{"user without rights", Options{Addresses: one(locked), Username: "reader", Password: secret}, "SPUBLISH"},
		{"database", Options{Addresses: one(alone), DB: 99}, "cluster.redis.db"},
		{"one of a cluster", Options{Addresses: several.Addrs()[:1]}, "name several"},
		{"not of a cluster", Options{Addresses: []string{alone.Addr(), watched.Master.Addr()}}, "cluster.redis.master"},
		{"sentinel without master", Options{Addresses: watched.Addrs()}, "set cluster.redis.master"},
		{"unknown master", Options{Addresses: watched.Addrs(), Master: "other"}, "cluster.redis.master"},
		{"no sentinel", Options{Addresses: one(alone), Master: "mqim"}, "not that of a Sentinel"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := open(t, c.opts, nil)
			err := b.Start(context.Background())
			if !errors.Is(err, ErrSettings) || errors.Is(err, bus.ErrDown) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if strings.Contains(err.Error(), secret) {
				t.Fatalf("the password is in %q", err)
			}
			t.Log(err)
		})
	}
	for _, c := range []struct {
		name string
		opts Options
		want string
	}{
		{"no address", Options{}, "cluster.redis.addresses"},
		{"database of a cluster", Options{Addresses: several.Addrs(), DB: 1}, "cluster.redis.db"},
		{"prefix", Options{Addresses: one(alone), Prefix: "a{b"}, "cluster.redis.prefix"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Open(context.Background(), c.opts); !errors.Is(err, ErrSettings) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
		})
	}
	t.Run("with password", func(t *testing.T) {
		start(t, Options{Addresses: one(locked), Password: secret}, nil).Close()
	})
}

func TestVersion(t *testing.T) {
	for _, c := range []struct {
		info              string
		cluster, sentinel bool
		want              string // "": it can be used
	}{
		{"# Server\r\nredis_version:6.2.14\r\nredis_mode:standalone\r\n", false, false, "Redis 6.2.14; sharded pub/sub needs Redis 7"},
		{"# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n", false, false, ""},
		{"# Server\r\nredis_version:10.0.0\r\nredis_mode:standalone\r\n", false, false, ""},
		{"redis_version:255.255.255\r\nserver_name:valkey\r\nredis_mode:cluster\r\n", true, false, ""},
		{"redis_version:7.2.4\r\nredis_mode:cluster\r\n", false, false, "several"},
		{"redis_version:7.2.4\r\nredis_mode:sentinel\r\n", true, false, "cluster.redis.master"},
		{"some other text", false, false, ""},
	} {
		err := checkInfo(c.info, c.cluster, c.sentinel)
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrSettings) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: got %v, want %q", c.info, err, c.want)
		}
	}
	if err := classify(errors.New("ERR unknown command 'ssubscribe', with args beginning with: ")); !errors.Is(err, ErrSettings) || !strings.Contains(err.Error(), "Redis 7") {
		t.Error(err)
	}
}

// What a server that speaks TLS, or does not, makes of a client that does otherwise may also be one that is being restarted:
// it is tried again, and the setting is named.
func TestOtherTLS(t *testing.T) {
	for _, cause := range []error{context.DeadlineExceeded, syscall.ECONNRESET} {
		if err := classify(fmt.Errorf("read: %w", cause)); !errors.Is(err, bus.ErrDown) || !strings.Contains(err.Error(), "cluster.redis.tls") {
			t.Errorf("%v: got %v, want ErrDown and the setting", cause, err)
		}
	}
}

// Where Redis is not there it may come.
func TestStartAway(t *testing.T) {
	s := redis.Start(t)
	s.Stop()
	var ch changes
	b := open(t, Options{Addresses: []string{s.Addr()}}, watch(&ch))
	if err := b.Start(context.Background()); !errors.Is(err, bus.ErrDown) {
		t.Fatal(err)
	}
	isDown(t, b)
	s.Run()
	bustest.Await(t, "up", b.Up)
	c := bus.Channel{Kind: bus.User, Name: "later"} // that isDown has subscribed to
	a := start(t, Options{Addresses: []string{s.Addr()}}, nil)
	if n := publish(t, a, c); n != 1 {
		t.Errorf("%d nodes hear what was subscribed to while down", n)
	}
}
