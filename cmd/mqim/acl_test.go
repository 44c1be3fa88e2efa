package main

import (
	"os"
	"strings"
	"testing"
)

func TestACLTest(t *testing.T) {
	t.Chdir(t.TempDir())
	rules := `acl:
  - {deny: pub, topic: "devices/%u/config"}
  - {allow: pubsub, topic: "devices/%u/#"}
  - {allow: sub, topic: "log/%c"}
`
	for name, text := range map[string]string{"c.yaml": rules, "none.yaml": "", "bad.yaml": "acl: {}"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const denied = "denied: "
	for _, tt := range []struct{ args, out, fail string }{
		{"alice pub devices/alice/config", denied + `alice pub "devices/alice/config": by rule 1 of 3 at c.yaml:2:5: {deny: pub, topic: "devices/%u/config"}`, ""},
		{"alice pub devices/alice/t", `allowed: alice pub "devices/alice/t": by rule 2 of 3 at c.yaml:3:5: {allow: pubsub, topic: "devices/%u/#"}`, ""},
		{"alice sub devices/alice/config", "allowed: ", ""},
		{"alice sub devices/#", denied + `alice sub "devices/#": none of the 3 rules matches`, ""},
		{"--client-id d7 alice sub log/d7", "allowed: ", ""},
		{"alice sub log/d7", denied, ""},
		{"alice sub $share/g/devices/alice/#", "allowed: ", ""},
		{"alice pub $SYS/x", denied, ""},
		{"alice pub a/+", denied + `alice pub "a/+": not a topic`, ""},
		{"alice pub im/cmd/send", "allowed: ", ""},
		{"alice pub im/u/bob", "allowed: ", ""},
		{"alice pub im/g/team", "allowed: ", ""},
		{"alice pub im/u/", denied, ""},
		{"alice pub im/u/bob/msg", denied, ""},
		{"alice pub im", denied, ""},
		{"alice sub im/u/alice/+", "allowed: ", ""},
		{"alice sub im/u/bob", denied, ""},
		{"alice sub im/#", denied, ""},
		{"alice sub $share/g/im/u/alice", denied, ""},
		{"--config none.yaml alice pub anything", "allowed: alice pub \"anything\": there are no rules", ""},
		{"--config bad.yaml alice pub anything", "", "bad.yaml:1:6: acl: found a section, expected a list"},
		{"alice publish x", "", "expected a user, pub or sub, and a topic"},
		{"a/b pub x", "", `"a/b" is not a user name`},
	} {
		args := strings.Fields(tt.args)
		if !strings.Contains(tt.args, "--config") {
			args = append([]string{"--config", "c.yaml"}, args...)
		}
		out, fail, code := runCode(t, "", append([]string{"acl", "test"}, args...)...)
		want := 0
		switch {
		case tt.fail != "":
			want = 2
		case strings.HasPrefix(tt.out, denied):
			want = 1
		}
		if !strings.HasPrefix(out, tt.out) || tt.out == "" && out != "" || !strings.Contains(fail, tt.fail) || code != want {
			t.Errorf("acl test %s:\ngot  %q, error %q, exit code %d\nwant %q, error %q, exit code %d", tt.args, out, fail, code, tt.out, tt.fail, want)
		}
	}
}
