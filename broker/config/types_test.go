package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"testing"
	"time"
)

func typeOf[T any]() reflect.Type { return reflect.TypeFor[T]() }

// printed is c in every way that somebody may print it.
func printed(t *testing.T, c *Config) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%U"} {
		out["Printf "+verb] = fmt.Sprintf(verb, *c)
		out["Printf "+verb+" of the secret"] = fmt.Sprintf(verb, c.Store.MySQL.DSN)
	}
	yml, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	out["YAML"] = string(yml)
	js, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	out["JSON"] = string(js)
	for name, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"slog text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"slog JSON": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var b bytes.Buffer
		slog.New(handler(&b)).Info("x", "dsn", c.Store.MySQL.DSN, "config", c)
		out[name] = b.String()
	}
	return out
}

func TestDuration(t *testing.T) {
	tests := []struct {
		text string
		want time.Duration
		back string // "": refused
	}{
		{"10s", 10 * time.Second, "10s"}, {"168h", 168 * time.Hour, "168h"}, {"1h30m", 90 * time.Minute, "1h30m"},
		{"90s", 90 * time.Second, "1m30s"}, {"0s", 0, "0s"}, {"250ms", 250 * time.Millisecond, "250ms"}, {"10m", 10 * time.Minute, "10m"},
		{"100h0m10s", 100*time.Hour + 10*time.Second, "100h0m10s"},
		{"10", 0, ""}, {"7d", 0, ""}, {"", 0, ""}, {"s", 0, ""},
	}
	for _, tt := range tests {
		var d Duration
		err := d.UnmarshalText([]byte(tt.text))
		if (err != nil) != (tt.back == "") || d.D() != tt.want || err == nil && d.String() != tt.back {
			t.Errorf("%q: got %v (%s), %v, want %v (%s)", tt.text, d.D(), d, err, tt.want, tt.back)
		}
	}
}

func TestSize(t *testing.T) {
	tests := []struct {
		text string
		want Size
		back string // "": refused
	}{
		{"0", 0, "0"}, {"262144", 256 << 10, "256KiB"}, {"256KiB", 256 << 10, "256KiB"}, {"1 MiB", 1 << 20, "1MiB"},
		{"3GiB", 3 << 30, "3GiB"}, {"2TiB", 2 << 40, "2TiB"}, {"1000", 1000, "1000"}, {"7B", 7, "7"}, {"-1", -1, "-1"},
		{"1MB", 0, ""}, {"64k", 0, ""}, {"", 0, ""}, {"KiB", 0, ""}, {"1.5MiB", 0, ""}, {"99999999TiB", 0, ""}, {"1KiBKiB", 0, ""},
	}
	for _, tt := range tests {
		var s Size
		err := s.UnmarshalText([]byte(tt.text))
		if (err != nil) != (tt.back == "") || s != tt.want || err == nil && s.String() != tt.back {
			t.Errorf("%q: got %d (%s), %v, want %d (%s)", tt.text, int64(s), s, err, int64(tt.want), tt.back)
		}
	}
}

func TestSuggest(t *testing.T) {
	known := []string{"path", "sync", "min_free", "window"}
	for word, want := range map[string]string{
		"pth": "path", "Path": "path", "pahts": "", "windwo": "window", "min-free": "min_free", "xyz": "", "": "",
	} {
		got := suggest(word, known)
		if want != "" {
			want = fmt.Sprintf(" (did you mean %q?)", want)
		}
		if got != want {
			t.Errorf("suggest(%q): got %q, want %q", word, got, want)
		}
	}
}
