package tests

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mqim/mqim/tests/mqtest"
)

// SIGHUP takes over what can be, says what changed and what needs a restart, and after an error nothing has changed.
func TestReload(t *testing.T) {
	t.Parallel()
	s := mqtest.Start(t, mqtest.Config{"limits": "{sends_per_second: 1, send_burst: 1}"})
	alice := name("alice")
	a := chat(t, s, 5, alice, "1")
	refused := func() bool {
		for range 5 {
			if r, _ := a.Command("send", mqtest.Map{"to": "u/" + alice, "body": "x"}); !r.OK {
				return true
			}
		}
		return false
	}
	equal(t, "sends refused at first", refused(), true)
	s.Configure(mqtest.Config{"limits": "{sends_per_second: 0, send_burst: 1, message_bytes: 10}", "delivery": "{window: 3}"})
	s.Signal(syscall.SIGHUP)
	s.WaitLog("needs a restart")
	log := s.Log()
	for _, want := range []string{
		`msg=reloaded changed="delivery.window limits.sends_per_second"`, `msg="changed, but needs a restart" settings=limits.message_bytes`,
	} {
		if !strings.Contains(log, want) {
			t.Errorf("%s is not in the log:\n%s", want, log)
		}
	}
	equal(t, "sends refused after the reload", refused(), false)
	a.Send(alice, "longer than ten bytes: that needs a restart")

	s.Write("config.yaml", "limits: {sends_per_second: many}\n")
	s.Signal(syscall.SIGHUP)
	s.WaitLog("not reloaded, everything stays as it is")
	if !strings.Contains(s.Log(), `config.yaml:1:28: limits.sends_per_second: found`) {
		t.Errorf("the mistake is not in the log:\n%s", s.Log())
	}
	equal(t, "sends refused after the failed reload", refused(), false)
}

// A reload of acl holds for what comes after it.
func TestReloadACL(t *testing.T) {
	t.Parallel()
	s := mqtest.Start(t, nil)
	user := name("alice")
	a := dial(t, s, 5, user, "1")
	equal(t, "PUBACK without rules", a.PublishAck("devices/x", "1").ReasonCode&0x80, 0)
	s.Configure(mqtest.Config{"acl": `[{allow: pubsub, topic: "own/%u/#"}]`})
	s.Signal(syscall.SIGHUP)
	s.WaitLog("msg=reloaded changed=acl")
	equal(t, "PUBACK against the rules", a.PublishAck("devices/x", "1").ReasonCode, 0x87)
	equal(t, "PUBACK by the rules", a.PublishAck("own/"+user+"/x", "1").ReasonCode&0x80, 0)
	equal(t, "SUBACK against the rules", a.Subscribe("devices/#")[0], 0x87)
	subscribed(t, a, "own/"+user+"/#", "im/u/"+user) // im/ is not the rules' business
}

// A mistake in the settings stops the start with file:line:column and what was expected; all mistakes at once.
func TestConfigErrors(t *testing.T) {
	t.Parallel()
	for what, tt := range map[string]struct {
		file, env string
		want      []string
	}{
		"unknown key": {file: "log: {level: info}\nstore:\n  pebble:\n    pth: x\n", want: []string{
			`mqim: FILE:4:5: store.pebble.pth: unknown key (did you mean "path"?)`}},
		"wrong type":       {file: "delivery: {window: many}\n", want: []string{`mqim: FILE:1:20: delivery.window: found "many", expected a whole number`}},
		"impossible value": {file: "delivery: {window: 0}\n", want: []string{`mqim: FILE:1:20: delivery.window: found 0, expected 1 to 65535`}},
		"several": {file: "log: {levl: x}\ndelivery: {ack_timeout: soon}\n", want: []string{
			`mqim: FILE:1:7: log.levl: unknown key (did you mean "level"?)`, `FILE:2:25: delivery.ack_timeout: found "soon", expected a duration such as 10s`}},
		"trust beyond loopback": {file: "listeners: [{type: tcp, address: \"0.0.0.0:0\"}]\n", want: []string{"mqim: FILE:1:34: listeners[0].address: ", "auth.mode trust"}},
		"not YAML":              {file: "log: [\n", want: []string{"mqim: FILE:", "not valid YAML"}},
		"variable":              {file: "log: {level: info}\n", env: "MQIM_DELIVERY_WINDOW=many", want: []string{`mqim: MQIM_DELIVERY_WINDOW: delivery.window: found "many", expected a whole number`}},
		"unknown variable":      {file: "log: {level: info}\n", env: "MQIM_DELIVRY_WINDOW=1", want: []string{"mqim: MQIM_DELIVRY_WINDOW: "}},
		"no such file":          {want: []string{"mqim: ", "FILE"}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := mqtest.New(t, nil)
			file := filepath.Join(s.Dir, "other.yaml")
			if tt.file != "" {
				s.Write("other.yaml", tt.file)
			}
			cmd := s.Command("serve", "--config", file)
			cmd.Env = append(cmd.Environ(), tt.env)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatal("the server started")
			}
			for _, want := range tt.want {
				if want = strings.ReplaceAll(want, "FILE", file); !strings.Contains(string(out), want) {
					t.Errorf("got %q, want %q in it", out, want)
				}
			}
		})
	}
}

// A value of the file is overridden by the environment.
func TestConfigEnvironment(t *testing.T) {
	t.Parallel()
	s := mqtest.New(t, nil)
	cmd := s.Command("check", "--config", "config.yaml", "--print")
	cmd.Env = append(cmd.Environ(), "MQIM_DELIVERY_WINDOW=77", "MQIM_LOG_FORMAT=json")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "window: 77") || !strings.Contains(string(out), "format: json") {
		t.Errorf("got %v, %s, want window 77 and format json", err, out)
	}
}

// /healthz, /readyz and /metrics.
func TestHTTP(t *testing.T) {
	t.Parallel()
	equal(t, "/healthz", shared.Get("/healthz"), 200)
	equal(t, "/readyz", shared.Get("/readyz"), 200)
	equal(t, "/metrics", shared.Get("/metrics"), 200)
	equal(t, "/other", shared.Get("/other"), 404)
}
