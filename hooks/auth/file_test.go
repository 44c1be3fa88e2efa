package auth_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/mqim/mqim/hooks/auth"
	"github.com/mqim/mqim/users"
)

// usersFile writes a users file with cheap hashes; a password "" makes an argon2id hash of "argon".
func usersFile(t *testing.T, passwords map[string]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users.yaml")
	writeUsers(t, path, passwords)
	return path
}

func writeUsers(t *testing.T, path string, passwords map[string]string) {
	t.Helper()
	var text strings.Builder
	for user, password := range passwords {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if password == "" {
			var s string
			s, err = users.HashPassword([]byte("argon"))
			hash = []byte(s)
		}
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&text, "%s: %s\n", user, hash)
	}
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// login is the reason of the refusal, "" for a login that succeeded.
func login(t *testing.T, a auth.Authenticator, user, password string) string {
	t.Helper()
	got, _, err := a.Authenticate(t.Context(), auth.Credentials{Username: user, Password: []byte(password), ClientID: "c"})
	var refusal *auth.Refusal
	switch {
	case errors.As(err, &refusal):
		return refusal.Reason
	case err != nil:
		t.Errorf("login of %s: %v", user, err)
	case user != "" && got != user:
		t.Errorf("login of %s: got user %q", user, got)
	}
	return ""
}

func TestFile(t *testing.T) {
	path := usersFile(t, map[string]string{"alice": "a", "bob": "b", "carol": ""})
	file, err := auth.NewFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ user, password, want string }{
		{"alice", "a", ""}, {"bob", "b", ""}, {"carol", "argon", ""},
		{"alice", "b", "wrong password"}, {"carol", "a", "wrong password"},
		{"alice", "", "user name or password missing"}, {"", "a", "user name or password missing"},
		{"dave", "a", "unknown user"}, {"Alice", "a", "unknown user"},
	}
	for round := range 2 { // the second round meets the cache
		for _, tt := range tests {
			if got := login(t, file, tt.user, tt.password); got != tt.want {
				t.Errorf("round %d, %s with %q: got %q, want %q", round, tt.user, tt.password, got, tt.want)
			}
		}
	}
}

func TestFileReload(t *testing.T) {
	path := usersFile(t, map[string]string{"alice": "old", "bob": "b"})
	file, err := auth.NewFile(path)
	if err != nil {
		t.Fatal(err)
	}
	hook, err := auth.New(auth.Options{Authenticator: file})
	if err != nil {
		t.Fatal(err)
	}
	login(t, file, "alice", "old") // into the cache
	login(t, file, "bob", "b")
	writeUsers(t, path, map[string]string{"alice": "new"})
	if err := hook.Reload(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ user, password, want string }{
		{"alice", "new", ""}, {"alice", "old", "wrong password"}, {"bob", "b", "unknown user"},
	} {
		if got := login(t, file, tt.user, tt.password); got != tt.want {
			t.Errorf("%s with %q after reload: got %q, want %q", tt.user, tt.password, got, tt.want)
		}
	}
	if err := os.WriteFile(path, []byte("alice: plain\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := hook.Reload(); err == nil {
		t.Error("reload of a faulty file: got no error")
	}
	if got := login(t, file, "alice", "new"); got != "" {
		t.Errorf("after a failed reload: got %q, want the old users in force", got)
	}
}

// counted lets a test see each verification.
func counted(file *auth.File) *atomic.Int64 {
	var n atomic.Int64
	file.SetCheck(func(hash string, password []byte) bool {
		n.Add(1)
		return users.Verify(hash, password)
	})
	return &n
}

func TestFileCachesSuccessOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file, err := auth.NewFile(usersFile(t, map[string]string{"alice": "a", "bob": "a", "carol": "a"}))
		if err != nil {
			t.Fatal(err)
		}
		n := counted(file)
		file.SetCache(2, time.Minute)
		expect := func(what string, want int64) {
			t.Helper()
			if got := n.Swap(0); got != want {
				t.Errorf("%s: got %d verifications, want %d", what, got, want)
			}
		}
		login(t, file, "alice", "a")
		login(t, file, "alice", "a")
		expect("the same login twice", 1)
		login(t, file, "alice", "x")
		login(t, file, "alice", "x")
		expect("a wrong password twice", 2)
		login(t, file, "nobody", "a")
		login(t, file, "nobody", "a")
		expect("an unknown user twice, who must cost what a known one does", 2)
		time.Sleep(time.Minute)
		login(t, file, "alice", "a")
		expect("after the entry expired", 1)
		login(t, file, "bob", "a")
		login(t, file, "carol", "a")
		if got := file.Cached(); got != 2 {
			t.Errorf("entries in a cache of 2: got %d", got)
		}
	})
}

func TestFileBoundsVerifications(t *testing.T) {
	file, err := auth.NewFile(usersFile(t, map[string]string{"alice": "a"}))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var running, most int
	release := make(chan struct{})
	started := make(chan struct{}, 100)
	file.SetCheck(func(string, []byte) bool {
		mu.Lock()
		running++
		most = max(most, running)
		mu.Unlock()
		started <- struct{}{}
		<-release
		mu.Lock()
		defer mu.Unlock()
		running--
		return false
	})
	var wg sync.WaitGroup
	for range file.Turns() + 5 {
		wg.Go(func() { login(t, file, "alice", "x") })
	}
	for range file.Turns() {
		<-started
	}
	// All turns are taken: who has no time to wait gives up.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err = file.Authenticate(ctx, auth.Credentials{Username: "alice", Password: []byte("x")})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("waiting without time: got %v, want %v", err, context.Canceled)
	}
	close(release)
	wg.Wait()
	if got, want := most, runtime.GOMAXPROCS(0); got != want {
		t.Errorf("verifications at a time: got %d, want %d", got, want)
	}
}

// The time for an unknown user must not differ in kind: each unknown name is verified against a hash of the file.
func TestFileDecoys(t *testing.T) {
	path := usersFile(t, map[string]string{"alice": "a", "bob": "b"})
	set, err := users.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	file, err := auth.NewFile(path)
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]int{}
	file.SetCheck(func(hash string, _ []byte) bool { used[hash]++; return true })
	for i := range 64 {
		user := fmt.Sprintf("nobody%d", i)
		if got := login(t, file, user, "a"); got != "unknown user" {
			t.Fatalf("%s: got %q, want unknown user whatever the decoy says", user, got)
		}
	}
	for _, name := range set.Names() {
		if hash, _ := set.Hash(name); used[hash] == 0 {
			t.Errorf("the hash of %s never served as a decoy", name)
		}
	}
	empty, err := auth.NewFile(usersFile(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	n := counted(empty)
	if login(t, empty, "nobody", "a"); n.Load() != 1 {
		t.Errorf("verifications with an empty file: got %d, want 1", n.Load())
	}
}

func TestFileMustExist(t *testing.T) {
	if _, err := auth.NewFile(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want %v", err, os.ErrNotExist)
	}
}

func TestFileOverMQTT(t *testing.T) {
	file, err := auth.NewFile(usersFile(t, map[string]string{"alice": "a"}))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := newBroker(t, auth.Options{Authenticator: file})
	for _, tt := range []struct {
		o    connectOptions
		want byte
	}{
		{connectOptions{version: 4, user: "alice", pass: "a", client: "1"}, 0},
		{connectOptions{version: 5, user: "alice", pass: "a", client: "2"}, 0},
		{connectOptions{version: 4, user: "alice", pass: "x", client: "3"}, 0x04},
		{connectOptions{version: 5, user: "alice", pass: "x", client: "4"}, 0x86},
		{connectOptions{version: 5, client: "alice"}, 0x86},
	} {
		c := b.connect(t, tt.o)
		if ack := c.read(t); ack.body[1] != tt.want {
			t.Errorf("%+v: got code %#x, want %#x", tt.o, ack.body[1], tt.want)
		}
		c.Close()
		<-c.done
	}
}
