package auth_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mqim/mqim/hooks/auth"
)

// backend is an HTTP server that counts what it is asked.
type backend struct {
	*httptest.Server
	asked atomic.Int64
}

func newBackend(t *testing.T, handler http.HandlerFunc) *backend {
	t.Helper()
	b := &backend{}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.asked.Add(1)
		handler(w, r)
	}))
	t.Cleanup(b.Close)
	return b
}

func newHTTP(t *testing.T, o auth.HTTPOptions) *auth.HTTP {
	t.Helper()
	h, err := auth.NewHTTP(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// outcome of a login: the user, "refused: …" or "unavailable: …".
func outcome(a auth.Authenticator, cred auth.Credentials) string {
	user, _, err := a.Authenticate(context.Background(), cred)
	var refusal *auth.Refusal
	switch {
	case errors.As(err, &refusal):
		return err.Error()
	case err != nil:
		return "unavailable: " + err.Error()
	}
	return user
}

func credentials(user, password string) auth.Credentials {
	return auth.Credentials{Username: user, Password: []byte(password), ClientID: "device", Remote: "192.0.2.7:1234"}
}

// What is asked, and what each kind of answer means.
func TestHTTPAnswers(t *testing.T) {
	const password = "hush"
	elsewhere := newBackend(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"user":"mallory"}`) })
	var status int
	var body string
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		got, _ := io.ReadAll(r.Body)
		want := `{"user":"alice","password":"hush","client_id":"device","remote":"192.0.2.7"}`
		if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" ||
			r.Header.Get("Authorization") != "Bearer token-of-the-server" || string(got) != want {
			t.Errorf("got %s %v %s, want %s", r.Method, r.Header, got, want)
		}
		if status/100 == 3 {
			w.Header().Set("Location", elsewhere.URL)
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	})
	h := newHTTP(t, auth.HTTPOptions{URL: b.URL, Token: "token-of-the-server"})
	for _, tt := range []struct {
		status     int
		body, want string
	}{
		{200, `{"user":"alice"}`, "alice"},
		{200, `{"user":"other","expires":99999999999999}`, "other"},
		{200, `{"user":"alice","expires":1}`, "refused: the backend's answer has expired"},
		{401, "", "refused: the backend says no"},
		{403, `{"user":"alice"}`, "refused: the backend says no"},
		{200, `{"result":"deny"}`, "unavailable: "}, // no user: not a yes in our words
		{200, `{"user":7}`, "unavailable: "},
		{200, `null`, "unavailable: "},
		{200, `<html>hush`, "unavailable: "},
		{200, `{"user":"alice"}` + strings.Repeat(" ", 17<<10), "unavailable: auth.http: the answer has more than 16384 bytes"},
		{204, "", "unavailable: auth.http: the backend answers 204"},
		{404, "", "unavailable: "}, {429, "", "unavailable: "}, {500, "", "unavailable: "}, {503, "", "unavailable: "},
		{302, "", "unavailable: auth.http: the backend answers 302"},
		{307, "", "unavailable: auth.http: the backend answers 307"},
	} {
		status, body = tt.status, tt.body
		got := outcome(h, credentials("alice", password))
		if !strings.HasPrefix(got, tt.want) || strings.Contains(got, password) {
			t.Errorf("%d %.40s: got %q, want %q", tt.status, tt.body, got, tt.want)
		}
	}
	if n := elsewhere.asked.Load(); n != 0 {
		t.Errorf("followed a redirect %d times", n)
	}
	before := b.asked.Load()
	if got := outcome(h, credentials("alice", "\xff")); got != "refused: user name, password or client id is not UTF-8" {
		t.Errorf("a password that is not UTF-8: got %q", got)
	}
	b.Close()
	if got := outcome(h, credentials("alice", password)); !strings.HasPrefix(got, "unavailable: ") || strings.Contains(got, b.URL) {
		t.Errorf("a backend that is gone: got %q, want unavailable, without the URL", got)
	}
	if got := b.asked.Load(); got != before {
		t.Errorf("asked %d times more, want none", got-before)
	}
}

// Yes and no are remembered for their times, under everything that was asked; an error is not; a reload forgets.
func TestHTTPRemembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked int
		var down bool
		expires := int64(0)
		h := newHTTP(t, auth.HTTPOptions{URL: "http://127.0.0.1:1/", CacheTTL: time.Minute, NegativeTTL: 5 * time.Second})
		h.SetTransport(func(r *http.Request) (*http.Response, error) {
			asked++
			var q struct{ User, Password string }
			if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
				t.Error(err)
			}
			w := httptest.NewRecorder()
			switch {
			case down:
				w.WriteHeader(500)
			case q.Password != "right":
				w.WriteHeader(401)
			default:
				fmt.Fprintf(w, `{"user":%q,"expires":%d}`, q.User, expires)
			}
			return w.Result(), nil
		})
		step := func(what string, cred auth.Credentials, want string, wantAsked int) {
			t.Helper()
			asked = 0
			if got := outcome(h, cred); !strings.HasPrefix(got, want) || asked != wantAsked {
				t.Errorf("%s: got %q, asked %d times; want %q, %d times", what, got, asked, want, wantAsked)
			}
		}
		right, wrong := credentials("alice", "right"), credentials("alice", "wrong")
		step("first", right, "alice", 1)
		step("again", right, "alice", 0)
		other := right
		other.ClientID = "other"
		step("another device", other, "alice", 1)
		other = right
		other.Remote = "192.0.2.8:1"
		step("another address", other, "alice", 1)
		other.Remote = "192.0.2.7:9"
		step("another port", other, "alice", 0)
		step("wrong", wrong, "refused", 1)
		step("wrong again", wrong, "refused", 0)
		step("another user's wrong", credentials("bob", "wrong"), "refused", 1)
		time.Sleep(5 * time.Second)
		step("wrong after a while", wrong, "refused", 1)
		step("right after a while", right, "alice", 0)
		down = true
		step("down, remembered", right, "alice", 0)
		step("down, not remembered", credentials("carol", "right"), "unavailable", 1)
		step("down, still", credentials("carol", "right"), "unavailable", 1)
		time.Sleep(55 * time.Second)
		step("down, forgotten", right, "unavailable", 1)
		down = false
		step("up", right, "alice", 1)
		if err := h.Reload(); err != nil {
			t.Error(err)
		}
		step("after a reload", right, "alice", 1)
		expires = time.Now().Add(10 * time.Second).UnixMilli()
		step("with an end", credentials("dave", "right"), "dave", 1)
		time.Sleep(9 * time.Second)
		step("before the end", credentials("dave", "right"), "dave", 0)
		time.Sleep(time.Second)
		expires = 0
		step("after the end", credentials("dave", "right"), "dave", 1)
	})
}

// One question is asked once however many ask it, and no more than Concurrency at a time; who waits too long is told.
func TestHTTPBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var running, most, asked int
		h := newHTTP(t, auth.HTTPOptions{URL: "http://127.0.0.1:1/", Concurrency: 2, Timeout: 5 * time.Second, CacheTTL: time.Minute})
		h.SetTransport(func(r *http.Request) (*http.Response, error) {
			mu.Lock()
			asked++
			running++
			most = max(most, running)
			mu.Unlock()
			defer func() { mu.Lock(); running--; mu.Unlock() }()
			select {
			case <-time.After(2 * time.Second):
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
			w := httptest.NewRecorder()
			io.WriteString(w, `{"user":"u"}`)
			return w.Result(), nil
		})
		var wg sync.WaitGroup
		var in, busy atomic.Int64
		begin := time.Now()
		for i := range 300 {
			wg.Go(func() {
				switch got := outcome(h, credentials(fmt.Sprint("u", i%10), "x")); {
				case got == "u":
					in.Add(1)
				case strings.Contains(got, "busy") || strings.Contains(got, "deadline"):
					busy.Add(1)
				default:
					t.Errorf("got %q", got)
				}
			})
		}
		wg.Wait()
		// Ten questions, two at a time for two seconds each, five seconds in all: two rounds end in time.
		if most != 2 || asked < 4 || asked > 10 || in.Load() != 120 || busy.Load() != 180 || time.Since(begin) > 5*time.Second {
			t.Errorf("got %d at a time, %d asked, %d in, %d busy after %s; want 2, 4 to 10, 120, 180, at most 5s",
				most, asked, in.Load(), busy.Load(), time.Since(begin))
		}
	})
}

// A flood of made-up credentials costs bounded memory and does not push out what was right.
func TestHTTPFlood(t *testing.T) {
	h := newHTTP(t, auth.HTTPOptions{URL: "http://127.0.0.1:1/", CacheTTL: time.Hour, NegativeTTL: time.Hour, CacheSize: 50})
	asked := 0
	h.SetTransport(func(r *http.Request) (*http.Response, error) {
		asked++
		w := httptest.NewRecorder()
		if b, _ := io.ReadAll(r.Body); strings.Contains(string(b), "right") {
			io.WriteString(w, `{"user":"alice"}`)
		} else {
			w.WriteHeader(403)
		}
		return w.Result(), nil
	})
	outcome(h, credentials("alice", "right"))
	for i := range 1000 {
		outcome(h, credentials("alice", fmt.Sprint("guess", i)))
	}
	if yes, no := h.Cached(); yes != 1 || no > 50 {
		t.Errorf("got %d and %d entries, want 1 and at most 50", yes, no)
	}
	asked = 0
	if got := outcome(h, credentials("alice", "right")); got != "alice" || asked != 0 {
		t.Errorf("after the flood: got %q, asked %d times; want alice, none", got, asked)
	}
}

func TestCheckURL(t *testing.T) {
	for _, good := range []string{"https://idp.example/keys?x=y", "http://127.0.0.1:8080/a", "http://localhost/", "http://[::1]:1/"} {
		if err := auth.CheckURL(good); err != nil {
			t.Errorf("%s: got %v, want no error", good, err)
		}
	}
	for _, bad := range []string{"", "idp.example", "http://idp.example/", "http://10.0.0.1/", "ftp://127.0.0.1/", "https:///x", "https://u:hush@idp.example/", "http://127.0.0.1.example/", "http://hush:%zz"} {
		if err := auth.CheckURL(bad); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: got %v, want an error that does not quote it", bad, err)
		}
	}
}
