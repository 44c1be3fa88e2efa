package users_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/bcrypt"

	"github.com/mqim/mqim/users"
)

// A hash with the least cost that CheckHash takes, of the password "secret".
const cheap = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$"

func bcryptHash(t *testing.T, password string) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(hash)
}

func TestValidName(t *testing.T) {
	tests := []struct {
		name string
		want bool
	}{
		{"a", true}, {"alice", true}, {"A.b_c@d-9", true}, {"7", true}, {strings.Repeat("x", 64), true},
		{"", false}, {".a", false}, {"_a", false}, {"@a", false}, {"-a", false}, {strings.Repeat("x", 65), false},
		{"a b", false}, {"a/b", false}, {"a+", false}, {"a#", false}, {"$SYS", false}, {"ä", false}, {"a\x00", false}, {"a\n", false},
	}
	for _, tt := range tests {
		if got := users.ValidName(tt.name); got != tt.want {
			t.Errorf("ValidName(%q): got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestVerify(t *testing.T) {
	argon, err := users.HashPassword([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "$argon2id$v=19$m=19456,t=2,p=1$"; !strings.HasPrefix(argon, want) {
		t.Errorf("HashPassword: got a hash that does not begin with %s", want)
	}
	again, _ := users.HashPassword([]byte("secret"))
	if argon == again {
		t.Error("HashPassword: got the same hash twice, want a fresh salt each time")
	}
	tests := []struct {
		name, hash, password string
		want                 bool
	}{
		{"argon2id right", argon, "secret", true},
		{"argon2id wrong", argon, "Secret", false},
		{"argon2id empty", argon, "", false},
		// From the test suite of the reference implementation.
		{"argon2id of others", "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", "password", true},
		{"bcrypt right", bcryptHash(t, "secret"), "secret", true},
		{"bcrypt wrong", bcryptHash(t, "secret"), "secre", false},
		{"plain text", "secret", "secret", false},
		{"empty", "", "", false},
	}
	for _, tt := range tests {
		if got := users.Verify(tt.hash, []byte(tt.password)); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestCheckHash(t *testing.T) {
	key := "MDEyMzQ1Njc4OWFiY2RlZg"
	tests := []struct {
		name, hash, want string // want: part of the error, "" for none
	}{
		{"good", cheap + key, ""},
		{"no key", cheap, "expected a bcrypt"},
		{"other version", "$argon2id$v=16$m=8,t=1,p=1$c2FsdHNhbHQ$" + key, "expected a bcrypt"},
		{"argon2i", "$argon2i$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$" + key, "expected a bcrypt"},
		{"text after p", "$argon2id$v=19$m=8,t=1,p=1x$c2FsdHNhbHQ$" + key, "expected a bcrypt"},
		{"no threads", "$argon2id$v=19$m=8,t=1,p=0$c2FsdHNhbHQ$" + key, "m and p"},
		{"no time", "$argon2id$v=19$m=8,t=0,p=1$c2FsdHNhbHQ$" + key, "argon2id t: found 0"},
		{"all memory", "$argon2id$v=19$m=4000000000,t=1,p=1$c2FsdHNhbHQ$" + key, "m and p"},
		{"short salt", "$argon2id$v=19$m=8,t=1,p=1$c2Fs$" + key, "expected a bcrypt"},
		{"bcrypt of hours", "$2b$31$" + strings.Repeat("a", 53), "bcrypt cost: found 31"},
		{"md5", "$1$abc$def", "expected a bcrypt"},
	}
	for _, tt := range tests {
		got := ""
		if err := users.CheckHash(tt.hash); err != nil {
			got = err.Error()
		}
		if (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestParseReportsEveryFault(t *testing.T) {
	text := "alice: " + cheap + "MDEyMzQ1Njc4OWFiY2RlZg\n" +
		"bad/name: x\n" +
		"bob: PLAINTEXT\n" +
		"carol: [PLAINTEXT]\n" +
		"alice: " + cheap + "MDEyMzQ1Njc4OWFiY2RlZg\n"
	_, err := users.Parse("users.yaml", []byte(text))
	if err == nil {
		t.Fatal("got no error")
	}
	want := strings.Join([]string{
		"users.yaml:2:1: " + users.ErrName.Error(),
		"users.yaml:3:1: bob: " + users.ErrHash.Error(),
		"users.yaml:4:1: carol: expected a password hash",
		"users.yaml:5:1: alice: named twice",
	}, "\n")
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
	if strings.Contains(err.Error(), "PLAINTEXT") {
		t.Errorf("the error tells the password: %v", err)
	}
}

func TestParseRefusesWhatIsNoMapping(t *testing.T) {
	for _, text := range []string{"- a\n", "just text\n", "a: b\n---\nc: d\n", "a: [", "a: *SECRET"} {
		_, err := users.Parse("users.yaml", []byte(text))
		if err == nil || !strings.HasPrefix(err.Error(), "users.yaml:") || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("Parse(%q): got %v, want an error at users.yaml that quotes nothing", text, err)
		}
	}
	for _, text := range []string{"", "# nobody yet\n", "---\n", "~\n", "{}\n"} {
		set, err := users.Parse("users.yaml", []byte(text))
		if err != nil || set.Len() != 0 {
			t.Errorf("Parse(%q): got %v, want no users", text, err)
		}
	}
}

func TestEdit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users.yaml")
	bob := bcryptHash(t, "bob's")
	start := "# Who may log in.\n\n# the boss\nbob: " + bob + " # since 2020\n\n# end\n"
	if err := os.WriteFile(path, []byte(start), 0o644); err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(users.Add(path, "alice", []byte("a1")))
	must(users.Add(path, "123", []byte("n1")))
	must(users.SetPassword(path, "alice", []byte("a2")))
	if err := users.Add(path, "bob", []byte("x")); !errors.Is(err, users.ErrExists) {
		t.Errorf("Add of bob: got %v, want %v", err, users.ErrExists)
	}
	if err := users.SetPassword(path, "nobody", []byte("x")); !errors.Is(err, users.ErrNotFound) {
		t.Errorf("SetPassword of nobody: got %v, want %v", err, users.ErrNotFound)
	}
	if err := users.Remove(path, "nobody"); !errors.Is(err, users.ErrNotFound) {
		t.Errorf("Remove of nobody: got %v, want %v", err, users.ErrNotFound)
	}
	if err := users.Add(path, "a/b", []byte("x")); !errors.Is(err, users.ErrName) {
		t.Errorf("Add of a/b: got %v, want %v", err, users.ErrName)
	}
	if err := users.Add(path, "eve", nil); !errors.Is(err, users.ErrPassword) {
		t.Errorf("Add without password: got %v, want %v", err, users.ErrPassword)
	}

	set, err := users.Load(path)
	must(err)
	if diff := cmp.Diff([]string{"123", "alice", "bob"}, set.Names()); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	if hash, _ := set.Hash("alice"); !users.Verify(hash, []byte("a2")) || users.Verify(hash, []byte("a1")) {
		t.Error("alice's hash is not that of the new password")
	}
	if hash, _ := set.Hash("bob"); hash != bob {
		t.Errorf("bob's hash changed")
	}
	text, err := os.ReadFile(path)
	must(err)
	for _, comment := range []string{"# Who may log in.", "# the boss", "# since 2020", "# end"} {
		if !strings.Contains(string(text), comment) {
			t.Errorf("comment %q is gone from:\n%s", comment, text)
		}
	}
	info, err := os.Stat(path)
	must(err)
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode: got %o, want 600", got)
	}
	must(users.Remove(path, "bob"))
	must(users.Remove(path, "alice"))
	must(users.Remove(path, "123"))
	if set, err = users.Load(path); err != nil || set.Len() != 0 {
		t.Errorf("after removing everybody: got %v users, error %v", set, err)
	}
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*.tmp"))
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestEditLeavesAFaultyFileAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users.yaml")
	const text = "bob: plain\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := users.Add(path, "alice", []byte("x")); err == nil {
		t.Error("got no error")
	}
	if got, _ := os.ReadFile(path); string(got) != text {
		t.Errorf("file: got %q, want it unchanged", got)
	}
}

func TestEditKeepsASymbolicLink(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "real.yaml"), filepath.Join(dir, "users.yaml")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Skip(err)
	}
	if err := users.Add(link, "alice", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("got mode %v, want the link to stay one", info.Mode())
	}
	if set, err := users.Load(target); err != nil || set.Len() != 1 {
		t.Errorf("target: got %v, %v, want one user", set, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("alice: " + cheap + "MDEyMzQ1Njc4OWFiY2RlZg\n")
	f.Add("# c\n\na: [")
	f.Fuzz(func(t *testing.T, text string) {
		set, err := users.Parse("u", []byte(text))
		if err != nil {
			return
		}
		for _, name := range set.Names() {
			hash, ok := set.Hash(name)
			if !ok || !users.ValidName(name) || users.CheckHash(hash) != nil {
				t.Errorf("Parse let through %q", name)
			}
		}
	})
}
