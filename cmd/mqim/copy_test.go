package main

import (
	"os"
	"strings"
	"testing"
)

// TestCopy: what cannot be copied is said, without the password, and nothing is made. The rest is in tests/copy_test.go.
func TestCopy(t *testing.T) {
	t.Chdir(t.TempDir())
	const secret = "hush-hush"
	both := "store: {pebble: {path: data}, mysql: {dsn: \"u:" + secret + "@tcp(127.0.0.1:1)/db\"}}\n"
	for name, text := range map[string]string{"none.yaml": "", "both.yaml": both} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ args, fail string }{
		{"--from pebble", `"to" not set`},
		{"--from mysql --to pebble", "expected --from pebble --to mysql"},
		{"--from pebble --to mysql --config none.yaml", "store.mysql.dsn is not set"},
		{"--from pebble --to mysql --config both.yaml", "no store in data"},
		{"--from pebble --to mysql --config both.yaml --path elsewhere", "no store in elsewhere"},
		{"--from pebble --to mysql both.yaml", `unexpected "both.yaml"`},
	} {
		_, fail, code := runCode(t, "", append([]string{"copy"}, strings.Fields(tt.args)...)...)
		if code != 1 || !strings.Contains(fail, tt.fail) || strings.Contains(fail, secret) {
			t.Errorf("copy %s: error %q, exit code %d, want %q and 1", tt.args, fail, code, tt.fail)
		}
	}
	for _, folder := range []string{"data", "elsewhere"} {
		if _, err := os.Stat(folder); err == nil {
			t.Errorf("%s was made", folder)
		}
	}
}
