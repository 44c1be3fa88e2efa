package auth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
	"unicode/utf8"

	"golang.org/x/sync/singleflight"
)

// maxAnswer bounds in bytes what the backend may say of one login.
const maxAnswer = 16 << 10

// HTTPOptions configure an HTTP authenticator. Bounds that are 0 take the default in parentheses.
type HTTPOptions struct {
	URL         string        // see CheckURL
	Token       string        // sent as "Authorization: Bearer …" so that the backend knows who asks; a secret; "": not sent
	Timeout     time.Duration // of one request, waiting for its turn included (5 s)
	Concurrency int           // at most so many requests at a time (32)
	CacheTTL    time.Duration // how long a yes holds for the same credentials; 0: always ask
	NegativeTTL time.Duration // the same for a no
	CacheSize   int           // yeses remembered, and again as many noes (10,000)
}

// HTTP has another service decide. It posts a JSON object
//
//	{"user": "alice", "password": "…", "client_id": "…", "remote": "192.0.2.7"}
//
// and takes 200 with {"user": "alice", "expires": 1767225600000} for yes: user is the one that the connection belongs
// to, and expires, if it is there, when it ends, in Unix milliseconds. 401 and 403 are a no. Anything else, 200 without
// a user too, says that the backend cannot tell: the client is told that the server is unavailable, and nothing is
// remembered.
//
// Answers are remembered under a keyed hash of all that was asked, never under the password itself.
type HTTP struct {
	opts     HTTPOptions
	client   *http.Client
	turns    chan struct{}
	key      tagger
	yes, no  *cache[tag, answer]
	flight   singleflight.Group
	ctx      context.Context // ends in Close
	shutdown context.CancelFunc
}

// answer is what the backend said.
type answer struct {
	refused bool
	user    string
	expires time.Time // zero: no end
}

// NewHTTP prepares the client. It does not connect: the server starts with the backend down.
func NewHTTP(o HTTPOptions) (*HTTP, error) {
	if err := CheckURL(o.URL); err != nil {
		return nil, fmt.Errorf("auth.http.url: %w", err)
	}
	o.Timeout = orDefault(o.Timeout, 5*time.Second)
	o.Concurrency = orDefault(o.Concurrency, 32)
	o.CacheSize = orDefault(o.CacheSize, 10_000)
	h := &HTTP{
		opts: o, client: newClient(o.Concurrency, o.Timeout), turns: make(chan struct{}, o.Concurrency), key: newTagger(),
		yes: newCache[tag, answer](o.CacheSize), no: newCache[tag, answer](o.CacheSize),
	}
	h.ctx, h.shutdown = context.WithCancel(context.Background())
	return h, nil
}

// Reload forgets what was remembered, so that the backend is asked again from now on.
func (h *HTTP) Reload() error {
	h.yes.clear()
	h.no.clear()
	return nil
}

// Close ends running requests.
func (h *HTTP) Close() error {
	h.shutdown()
	h.client.CloseIdleConnections()
	return nil
}

// question is the request's body.
type question struct {
	User     string `json:"user"`
	Password string `json:"password"`
	ClientID string `json:"client_id"`
	Remote   string `json:"remote"` // address without the port
}

// Authenticate asks the backend, or remembers. It takes as long as Options' Timeout, whatever ctx says.
func (h *HTTP) Authenticate(_ context.Context, cred Credentials) (string, time.Time, error) {
	// JSON would make one and the same text of passwords that differ.
	if !utf8.Valid(cred.Password) || !utf8.ValidString(cred.Username) || !utf8.ValidString(cred.ClientID) {
		return "", time.Time{}, &Refusal{"user name, password or client id is not UTF-8"}
	}
	host, _, err := net.SplitHostPort(cred.Remote)
	if err != nil {
		host = cred.Remote
	}
	q := question{cred.Username, string(cred.Password), cred.ClientID, host}
	a, err := h.answer(h.key.tag([]byte(q.User), cred.Password, []byte(q.ClientID), []byte(q.Remote)), q)
	switch {
	case err != nil:
		return "", time.Time{}, fmt.Errorf("auth.http: %w", err)
	case a.refused:
		return "", time.Time{}, &Refusal{"the backend says no"}
	case !a.expires.IsZero() && !time.Now().Before(a.expires):
		return "", time.Time{}, &Refusal{"the backend's answer has expired; expected Unix milliseconds in the future"}
	}
	return a.user, a.expires, nil
}

// answer is the remembered answer, or the one that the same question under way gets, or a new one.
func (h *HTTP) answer(t tag, q question) (answer, error) {
	if a, ok := h.remembered(t); ok {
		return a, nil
	}
	v, err, _ := h.flight.Do(string(t[:]), func() (any, error) {
		if a, ok := h.remembered(t); ok {
			return a, nil // an older flight landed in between
		}
		a, err := h.ask(q)
		switch {
		case err != nil:
		case a.refused:
			h.no.add(t, a, h.opts.NegativeTTL)
		default:
			ttl := h.opts.CacheTTL
			if !a.expires.IsZero() {
				ttl = min(ttl, time.Until(a.expires))
			}
			h.yes.add(t, a, ttl)
		}
		return a, err
	})
	return v.(answer), err
}

func (h *HTTP) remembered(t tag) (a answer, ok bool) {
	if a, ok = h.yes.get(t); !ok {
		a, ok = h.no.get(t)
	}
	return a, ok
}

// ask posts the question when it is its turn.
func (h *HTTP) ask(q question) (answer, error) {
	// Not the ctx of the login that happens to be the first: others may wait for this answer too.
	ctx, cancel := context.WithTimeout(h.ctx, h.opts.Timeout)
	defer cancel()
	select {
	case h.turns <- struct{}{}:
		defer func() { <-h.turns }()
	case <-ctx.Done():
		return answer{}, errors.New("busy: no request came to its turn in time")
	}
	body, err := json.Marshal(q)
	if err != nil {
		return answer{}, errors.New("the question is no JSON")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.opts.URL, bytes.NewReader(body))
	if err != nil {
		return answer{}, errors.New("not a URL")
	}
	req.Header.Set("Content-Type", "application/json")
	if h.opts.Token != "" {
		req.Header.Set("Authorization", "Bearer "+h.opts.Token)
	}
	status, body, err := do(h.client, req, maxAnswer)
	if err != nil {
		return answer{}, err
	}
	switch status {
	case http.StatusOK:
	case http.StatusUnauthorized, http.StatusForbidden:
		return answer{refused: true}, nil
	default:
		return answer{}, fmt.Errorf("the backend answers %d; expected 200, 401 or 403", status)
	}
	var said struct {
		User    string `json:"user"`
		Expires int64  `json:"expires"`
	}
	if json.Unmarshal(body, &said) != nil || said.User == "" { // the error's own text may quote the body
		return answer{}, errors.New(`the backend's answer is not what was expected: {"user": "alice", "expires": 1767225600000}`)
	}
	a := answer{user: said.User}
	if said.Expires != 0 {
		a.expires = time.UnixMilli(said.Expires)
	}
	return a, nil
}
