package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
)

// JWKSOptions say where keys are fetched from. Durations that are 0 take the default in parentheses.
type JWKSOptions struct {
	URL      string            // of a JSON Web Key Set (RFC 7517); see CheckURL
	network  http.RoundTripper // nil but in tests
	Refresh  time.Duration     // keys are fetched again after so long (1 h): a withdrawn key is in use no longer than that
	Cooldown time.Duration     // least time between two fetches (10 s), whatever asks for them
	Log      *slog.Logger      // nil: the default one
}

const (
	maxKeySet    = 1 << 20 // bytes
	maxKeys      = 100     // a token without kid is tried with all of them
	fetchTimeout = 5 * time.Second
)

// publicAlgorithms are those of keys that may be published.
var publicAlgorithms = slices.DeleteFunc(slices.Clone(Algorithms), func(alg string) bool { return alg[:2] == "HS" })

// errNoKeys says that nobody can tell whether a token is right.
var errNoKeys = errors.New("the keys of auth.jwt.jwks_url cannot be fetched")

// remoteKeys are the keys of a set that somebody else keeps.
//
// One goroutine, owned by close, does all the fetching: at once, after Refresh, and when a token names a key that is
// not there, which is how a new key announces itself. Two fetches are at least Cooldown apart, so that tokens with
// made-up key ids cost nothing but an early answer. After a failed fetch the old keys stay, and it tries again after
// every Cooldown. The ready-made key sets bound neither the wait of a login nor the rate of failing fetches.
type remoteKeys struct {
	opts   JWKSOptions
	client *http.Client
	log    *slog.Logger
	asked  chan struct{} // has room for one: a fetch is wanted
	cancel context.CancelFunc
	done   chan struct{} // closed when run has returned

	mu    sync.Mutex
	keys  []verifyKey   // by mu, never changed in place
	err   error         // by mu; of the last fetch, errNoKeys before the first
	round chan struct{} // by mu; closed at the end of the fetch that runs or can run now; nil while fetches must wait
}

func newRemoteKeys(o JWKSOptions) (*remoteKeys, error) {
	if err := CheckURL(o.URL); err != nil {
		return nil, err
	}
	o.Refresh = orDefault(o.Refresh, time.Hour)
	o.Cooldown = orDefault(o.Cooldown, 10*time.Second)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &remoteKeys{
		opts: o, client: newClient(1, fetchTimeout), log: o.Log, asked: make(chan struct{}, 1), cancel: cancel,
		done: make(chan struct{}), err: errNoKeys, round: make(chan struct{}),
	}
	if o.network != nil {
		r.client.Transport = o.network
	}
	r.ask()
	go r.run(ctx)
	return r, nil
}

func (r *remoteKeys) close() {
	r.cancel()
	<-r.done
	r.client.CloseIdleConnections()
}

// ask has the keys fetched as soon as they may be, or is content with the fetch under way.
func (r *remoteKeys) ask() {
	select {
	case r.asked <- struct{}{}:
	default:
	}
}

// find returns the keys for a token. With wait it fetches for want of one, or waits for the fetch under way, if it may.
// The error is errNoKeys: there is no such key as far as is known, but the last fetch failed, or ctx ended before one did.
func (r *remoteKeys) find(ctx context.Context, kid, alg string, wait bool) ([]jwt.VerificationKey, error) {
	for {
		r.mu.Lock()
		keys, err, round := r.keys, r.err, r.round
		found := matching(keys, kid, alg)
		wait = wait && len(found) == 0 && round != nil
		if wait {
			r.ask() // under the lock: the end of a round forgets what was asked during it, and nothing later
		}
		r.mu.Unlock()
		switch {
		case wait:
		case len(found) == 0 && err != nil:
			return nil, errNoKeys
		default:
			return found, nil
		}
		select {
		case <-round:
			wait = false
		case <-ctx.Done():
			return nil, errNoKeys
		case <-r.done:
			return nil, errNoKeys
		}
	}
}

func (r *remoteKeys) run(ctx context.Context) {
	defer close(r.done)
	refresh := time.NewTimer(r.opts.Refresh)
	defer refresh.Stop()
	cooldown := time.NewTimer(0)
	defer cooldown.Stop()
	for {
		select {
		case <-r.asked:
		case <-refresh.C:
		case <-ctx.Done():
			return
		}
		keys, err := r.fetch(ctx)
		if ctx.Err() != nil {
			return
		}
		r.mu.Lock()
		r.logFetched(keys, err)
		if r.err = err; err == nil {
			r.keys = keys
		}
		round := r.round
		r.round = nil
		select {
		case <-r.asked: // while it ran: answered with it
		default:
		}
		r.mu.Unlock()
		close(round)

		cooldown.Reset(r.opts.Cooldown)
		select {
		case <-cooldown.C:
		case <-ctx.Done():
			return
		}
		r.mu.Lock()
		r.round = make(chan struct{})
		r.mu.Unlock()
		refresh.Reset(r.opts.Refresh)
		if err != nil {
			r.ask()
		}
	}
}

// logFetched tells what a fetch has changed. r.mu is held.
func (r *remoteKeys) logFetched(keys []verifyKey, err error) {
	same := func(a, b verifyKey) bool { return a.kid == b.kid && a.alg == b.alg }
	switch {
	case err != nil:
		r.log.Warn("token keys could not be fetched", "known", len(r.keys), "error", err)
	case r.err != nil || !slices.EqualFunc(keys, r.keys, same):
		r.log.Info("token keys fetched", "keys", len(keys))
	}
}

// fetch gets the key set. What it cannot use (secrets, keys for encryption, kinds it does not know) it leaves out.
func (r *remoteKeys) fetch(ctx context.Context) ([]verifyKey, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.opts.URL, nil)
	if err != nil {
		return nil, errors.New("not a URL")
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	status, body, err := do(r.client, req, maxKeySet)
	switch {
	case err != nil:
		return nil, err
	case status != http.StatusOK:
		return nil, fmt.Errorf("found status %d, expected 200", status)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if json.Unmarshal(body, &set) != nil || set.Keys == nil {
		return nil, errors.New(`found no JSON Web Key Set, expected {"keys": […]}`)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("found %d keys, expected at most %d", len(set.Keys), maxKeys)
	}
	var keys []verifyKey
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if k.UnmarshalJSON(raw) != nil || k.Use != "" && k.Use != "sig" {
			continue
		}
		for _, alg := range keyAlgorithms(k.Key) {
			if k.Algorithm == "" || k.Algorithm == alg {
				keys = append(keys, verifyKey{k.KeyID, alg, k.Key})
			}
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("found no public key for signatures in the set, expected at least one")
	}
	return keys, nil
}

// keyAlgorithms are the algorithms that a public key can verify; of a secret or a private key none.
func keyAlgorithms(key any) []string {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
	case *ecdsa.PublicKey:
		for _, alg := range []string{"ES256", "ES384", "ES512"} {
			if checkCurve(alg, k) == nil {
				return []string{alg}
			}
		}
	case ed25519.PublicKey:
		return []string{"EdDSA"}
	}
	return nil
}
