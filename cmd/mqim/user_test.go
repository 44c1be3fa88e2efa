package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v3"

	"github.com/mqim/mqim/users"
)

// run calls a command as main would, and returns what it printed and its error, "" for none.
func run(t *testing.T, stdin string, args ...string) (out, fail string) {
	t.Helper()
	out, fail, _ = runCode(t, stdin, args...)
	return out, fail
}

// runCode is run with the exit code.
func runCode(t *testing.T, stdin string, args ...string) (out, fail string, code int) {
	t.Helper()
	var b bytes.Buffer
	root := &cli.Command{
		Name: "mqim", Commands: []*cli.Command{serveCommand(), userCommand(), checkCommand(), migrateCommand(), copyCommand(), aclCommand()},
		Reader: strings.NewReader(stdin), Writer: &b, ErrWriter: &b,
		ExitErrHandler: func(context.Context, *cli.Command, error) {}, // the default ends the process
	}
	if err := root.Run(t.Context(), append([]string{"mqim"}, args...)); err != nil {
		fail, code = err.Error(), 1
		var coder cli.ExitCoder
		if errors.As(err, &coder) {
			code = coder.ExitCode()
		}
	}
	return b.String(), fail, code
}

func TestUserCommands(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.WriteFile("c.yaml", []byte("auth: {mode: file, file: {path: named.yaml}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		name, stdin string
		args        string
		out, fail   string // parts; "" for nothing
	}{
		{"no file yet", "", "user list --file u.yaml", "", "no such file"},
		{"add", "pw1\n", "user add alice --password-stdin --file u.yaml", "u.yaml: add of alice done", ""},
		{"flags first", "pw2", "user add --password-stdin --file u.yaml bob", "add of bob", ""},
		{"add again", "x", "user add alice --password-stdin --file u.yaml", "", "alice: user exists; to change the password: mqim user passwd"},
		{"passwd", "pw3\r\n", "user passwd alice --password-stdin --file u.yaml", "passwd of alice", ""},
		{"passwd of nobody", "x", "user passwd nobody --password-stdin --file u.yaml", "", "nobody: no such user in u.yaml"},
		{"bad name", "x", "user add a/b --password-stdin --file u.yaml", "", `"a/b" is not a user name`},
		{"no name", "x", "user add --password-stdin --file u.yaml", "", "expected one user name"},
		{"two names", "x", "user add a b --password-stdin --file u.yaml", "", "expected one user name"},
		{"no password", "\n", "user add eve --password-stdin --file u.yaml", "", "a password has 1 to 1024 bytes"},
		{"long password", strings.Repeat("x", 1025), "user add eve --password-stdin --file u.yaml", "", "a password has 1 to 1024 bytes"},
		{"list", "", "user list --file u.yaml", "alice\nbob\n", ""},
		{"remove", "", "user remove bob --file u.yaml", "remove of bob", ""},
		{"by configuration", "x", "user add carol --password-stdin --config c.yaml", "named.yaml: add of carol", ""},
		{"by default", "x", "user add dave --password-stdin", "users.yaml: add of dave", ""},
		{"faulty configuration", "x", "user list --config u.yaml", "", "u.yaml:1:1: alice: unknown key"},
	}
	for _, step := range steps {
		out, fail := run(t, step.stdin, strings.Fields(step.args)...)
		if !strings.Contains(out, step.out) || (step.out == "") != (out == "") {
			t.Errorf("%s: printed %q, want %q", step.name, out, step.out)
		}
		if !strings.Contains(fail, step.fail) || (step.fail == "") != (fail == "") {
			t.Errorf("%s: failed with %q, want %q", step.name, fail, step.fail)
		}
	}
	set, err := users.Load(filepath.Join(dir, "u.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if hash, ok := set.Hash("alice"); set.Len() != 1 || !ok || !users.Verify(hash, []byte("pw3")) {
		t.Errorf("u.yaml: got users %v, want alice alone with the new password", set.Names())
	}
}

func TestCheckCommand(t *testing.T) {
	t.Chdir(t.TempDir())
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, fail := run(t, "", "check"); out != "defaults (no config.yaml here): ok\n" || fail != "" {
		t.Errorf("without a file: got %q, %q", out, fail)
	}
	write("config.yaml", "cluster: {redis: {password: TOPSECRET}}\ndelivery: {window: 7}\n")
	if out, fail := run(t, "", "check"); out != "config.yaml: ok\n" || fail != "" {
		t.Errorf("good file: got %q, %q, want ok", out, fail)
	}
	out, fail := run(t, "", "check", "--print")
	if fail != "" || !strings.Contains(out, "window: 7\n") || !strings.Contains(out, "***") || strings.Contains(out, "TOPSECRET") {
		t.Errorf("--print: got %q, %q, want all settings without the secret", out, fail)
	}
	write("bad.yaml", "log: {levl: x}\ndelivery: {window: 0}\n")
	want := "bad.yaml:1:7: log.levl: unknown key (did you mean \"level\"?)\nbad.yaml:2:20: delivery.window: found 0, expected 1 to 65535"
	if out, fail := run(t, "", "check", "--config", "bad.yaml"); out != "" || fail != want {
		t.Errorf("bad file: got %q, %q, want %q", out, fail, want)
	}
	t.Setenv("MQIM_LOG_LEVEL", "loud")
	if _, fail := run(t, "", "check"); !strings.HasPrefix(fail, "MQIM_LOG_LEVEL: log.level: found") {
		t.Errorf("bad variable: got %q", fail)
	}
}

// A file that is named without --config is not passed over in favour of ./config.yaml.
func TestFileWithoutFlag(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("config.yaml", []byte("log: {level: loud}\n"), 0o600); err != nil { // serve must not come to start
		t.Fatal(err)
	}
	for _, command := range []string{"serve", "check"} {
		want := "mqim " + command + ": unexpected \"other.yaml\"; name the file as in: mqim " + command + " --config other.yaml"
		if _, fail := run(t, "", command, "other.yaml"); fail != want {
			t.Errorf("got %q, want %q", fail, want)
		}
	}
}

func TestHelpTeaches(t *testing.T) {
	for _, args := range []string{"user", "user add", "user passwd", "user remove", "user list", "check"} {
		out, fail := run(t, "", append(strings.Fields(args), "--help")...)
		if fail != "" || !strings.Contains(out, "mqim "+args) {
			t.Errorf("mqim %s --help: got %q, %q, want an example", args, out, fail)
		}
	}
}
