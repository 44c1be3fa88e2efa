package broker

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"go.uber.org/goleak"

	"github.com/mqim/mqim/broker/config"
)

func testConfig(t *testing.T) *config.Config {
	c := config.Default()
	c.Listeners = []config.Listener{{Name: "mqtt", Type: "tcp", Address: "127.0.0.1:0"}}
	c.HTTP.Address = "127.0.0.1:0"
	c.Store.Pebble.Path = filepath.Join(t.TempDir(), "data")
	return c
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// TestLifecycle starts and stops the server, and looks for goroutines that stay behind.
func TestLifecycle(t *testing.T) {
	// mochi's tickers and Pebble's cache have goroutines of their own; those that were there before are no leak.
	before := goleak.IgnoreCurrent()
	s, err := New(testConfig(t), quiet(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ready", "/metrics": "mqim_messages_committed_total"} {
		resp, err := http.Get("http://" + s.HTTPAddr() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: got %d %.100q, want 200 with %q", path, resp.StatusCode, body, want)
		}
	}
	idle, err := net.Dial("tcp", s.Addr("mqtt").String()) // never says CONNECT: must not keep Close
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	if err := s.Close(context.Background()); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := s.Close(context.Background()); err != nil {
		t.Errorf("second close: %v", err)
	}
	http.DefaultClient.CloseIdleConnections()
	goleak.VerifyNone(t, before)
}

// TestNothingStaysOpen checks that a start that fails gives everything back, so that the next can have it.
func TestNothingStaysOpen(t *testing.T) {
	c := testConfig(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.HTTP.Address = taken.Addr().String()
	if _, err := New(c, quiet(), nil); err == nil || !strings.Contains(err.Error(), "http.address") {
		t.Fatalf("got %v, want an error that names http.address", err)
	}
	_ = taken.Close()
	s, err := New(c, quiet(), nil)
	if err != nil {
		t.Fatalf("the same again: %v", err)
	}
	if err := s.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestReload takes over what can be, and says what cannot.
func TestReload(t *testing.T) {
	c := testConfig(t)
	log, level := NewLogger(io.Discard, config.Log{Level: "info", Format: "text"})
	s, err := New(c, log, level)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close(context.Background()) }()
	next := *c
	next.Log.Level = "debug"
	next.Delivery.Window = 7
	next.Limits.MessageBytes = 5
	next.ACL = []config.Rule{{Allow: "pubsub", Topic: "a/#"}}
	live, restart, err := s.Reload(&next)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(live, " "), "acl delivery.window log.level"; got != want {
		t.Errorf("live: got %q, want %q", got, want)
	}
	if got, want := strings.Join(restart, " "), "limits.message_bytes"; got != want {
		t.Errorf("restart: got %q, want %q", got, want)
	}
	if level.Level() != slog.LevelDebug {
		t.Errorf("log level: got %v, want debug", level.Level())
	}
	if ok := s.acl.Allowed(&mqtt.Client{ID: "c"}, "b", true); ok {
		t.Error("the new rules do not hold")
	}
}

// TestLogKeepsSecrets logs as mochi does over a bad CONNECT: the packet whole.
func TestLogKeepsSecrets(t *testing.T) {
	var out bytes.Buffer
	log := mochiLogger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	pk := packets.Packet{Payload: []byte("the body"), Connect: packets.ConnectParams{Password: []byte("hunter2")}}
	log.Warn("error processing packet", "client", "c1", "pk", pk)
	log.With("packet", pk).Error("publish packet error", "will", pk)
	got := out.String()
	if !strings.Contains(got, "error processing packet") || !strings.Contains(got, "client=c1") {
		t.Errorf("got %q, want the line with its client", got)
	}
	for _, secret := range []string{"hunter2", "the body", "104 117 110 116 101 114"} {
		if strings.Contains(got, secret) {
			t.Errorf("%q is in the log: %s", secret, got)
		}
	}
}
