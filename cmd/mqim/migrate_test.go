package main

import (
	"os"
	"strings"
	"testing"
)

// TestMigrate: what cannot be migrated is said, without the password. The rest is in tests/mysql_test.go.
func TestMigrate(t *testing.T) {
	t.Chdir(t.TempDir())
	const secret = "hush-hush"
	dead := `store: {driver: mysql, mysql: {dsn: "u:` + secret + `@tcp(127.0.0.1:1)/db"}}`
	for name, text := range map[string]string{"pebble.yaml": "", "dead.yaml": dead} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ args, fail string }{
		{"--config pebble.yaml", "store.driver is pebble, which has no schema"},
		{"--config dead.yaml", "connection refused"},
		{"dead.yaml", `unexpected "dead.yaml"`},
	} {
		out, fail, code := runCode(t, "", append([]string{"migrate"}, strings.Fields(tt.args)...)...)
		if out != "" || code != 1 || !strings.Contains(fail, tt.fail) || strings.Contains(fail, secret) {
			t.Errorf("migrate %s: got %q, error %q, exit code %d, want %q and 1", tt.args, out, fail, code, tt.fail)
		}
	}
}
