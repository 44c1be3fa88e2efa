package auth_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"

	"github.com/mqim/mqim/hooks/auth"
)

// idp is an identity provider: a key set that changes, and may be down. Its network is a function, so that it works in
// virtual time; TestAuthJWKS of the whole server has a real one.
type idp struct {
	mu      sync.Mutex
	keys    []jose.JSONWebKey
	status  int
	raw     string // in place of the key set
	hang    bool
	fetched int
}

func (p *idp) RoundTrip(r *http.Request) (*http.Response, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fetched++
	if p.hang {
		p.mu.Unlock()
		<-r.Context().Done()
		p.mu.Lock()
		return nil, r.Context().Err()
	}
	w := httptest.NewRecorder()
	if p.status != 0 {
		w.WriteHeader(p.status)
	}
	if p.raw != "" {
		io.WriteString(w, p.raw)
	} else if err := json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: p.keys}); err != nil {
		return nil, err
	}
	return w.Result(), nil
}

// set changes the provider.
func (p *idp) set(change func(p *idp)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p)
}

// count is the number of fetches since the last count.
func (p *idp) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.fetched
	p.fetched = 0
	return n
}

func (p *idp) jwt(t *testing.T, o auth.JWTOptions) *auth.JWT {
	t.Helper()
	if o.JWKS == nil {
		o.JWKS = &auth.JWKSOptions{}
	}
	o.JWKS.URL = "https://idp.example/keys?secret=hush"
	j, err := auth.NewJWTOver(o, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func newECDSA(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func public(kid string, key crypto.Signer) jose.JSONWebKey {
	return jose.JSONWebKey{Key: key.Public(), KeyID: kid}
}

func tokenOf(t *testing.T, alg, kid string, key any) auth.Credentials {
	t.Helper()
	return credentials("", sign(t, alg, kid, key, jwt.MapClaims{"sub": "alice", "exp": time.Now().Add(24 * time.Hour).Unix()}))
}

const (
	unknownKey = "refused: token is signed with an unknown key"
	cannotTell = "unavailable: the keys of auth.jwt.jwks_url cannot be fetched"
)

// A new key is found when a token names it, a withdrawn one is gone with the next fetch, and made-up key ids cause no
// more than a fetch per cooldown.
func TestJWKSRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second, made := newECDSA(t, elliptic.P256()), newECDSA(t, elliptic.P256()), newECDSA(t, elliptic.P256())
		p := &idp{keys: []jose.JSONWebKey{public("1", first)}}
		j := p.jwt(t, auth.JWTOptions{JWKS: &auth.JWKSOptions{Refresh: time.Hour, Cooldown: 10 * time.Second}})
		step := func(what string, cred auth.Credentials, want string, fetches int) {
			t.Helper()
			begin := time.Now()
			if got, n := outcome(j, cred), p.count(); got != want || n != fetches || time.Since(begin) != 0 {
				t.Errorf("%s: got %q with %d fetches in %s, want %q with %d at once", what, got, n, time.Since(begin), want, fetches)
			}
		}
		old, new := tokenOf(t, "ES256", "1", first), tokenOf(t, "ES256", "2", second)
		step("the first login waits for the first fetch", old, "alice", 1)
		step("a made-up key id", tokenOf(t, "ES256", "x", made), unknownKey, 0)
		p.set(func(p *idp) { p.keys = []jose.JSONWebKey{public("1", first), public("2", second)} })
		step("a new key within the cooldown", new, unknownKey, 0)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		step("a known key asks nobody", old, "alice", 0)
		step("a new key", new, "alice", 1)
		for range 1000 {
			step("a flood", tokenOf(t, "ES256", "x", made), unknownKey, 0)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		step("a made-up key id after the cooldown", tokenOf(t, "ES256", "x", made), unknownKey, 1)
		step("a known id, another key", tokenOf(t, "ES256", "2", made), "refused: token's signature or algorithm is wrong", 0)
		p.set(func(p *idp) { p.keys = []jose.JSONWebKey{public("2", second)} })
		step("a withdrawn key until the next fetch", old, "alice", 0)
		time.Sleep(time.Hour + 10*time.Second)
		synctest.Wait()
		if n := p.count(); n != 1 {
			t.Errorf("got %d fetches in an hour, want 1", n)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		step("a withdrawn key", old, unknownKey, 1)
		step("the new one", new, "alice", 0)
		if err := j.Reload(); err != nil {
			t.Error(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := p.count(); n != 1 {
			t.Errorf("got %d fetches by a reload, want 1", n)
		}
	})
}

// While the provider is down, known keys are used; without any, or for a key that is not among them, nobody can tell.
func TestJWKSDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, second := newECDSA(t, elliptic.P256()), newECDSA(t, elliptic.P256())
		log := &syncBuffer{}
		p := &idp{hang: true, keys: []jose.JSONWebKey{public("1", key)}}
		j := p.jwt(t, auth.JWTOptions{JWKS: &auth.JWKSOptions{Refresh: time.Hour, Cooldown: 10 * time.Second, Log: slog.New(slog.NewTextHandler(log, nil))}})
		token := tokenOf(t, "ES256", "1", key)
		step := func(what string, cred auth.Credentials, want string, took time.Duration) {
			t.Helper()
			begin := time.Now()
			if got := outcome(j, cred); got != want || time.Since(begin) != took {
				t.Errorf("%s: got %q in %s, want %q in %s", what, got, time.Since(begin), want, took)
			}
		}
		step("hanging, nothing known", token, cannotTell, 5*time.Second)
		step("at once while the cooldown lasts", token, cannotTell, 0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if _, _, err := j.Authenticate(ctx, token); err == nil || errors.As(err, new(*auth.Refusal)) {
			t.Errorf("with a context that has ended: got %v, want an error that is no refusal", err)
		}
		p.set(func(p *idp) { p.hang = false })
		time.Sleep(20 * time.Second) // the hanging fetch, and the cooldown
		synctest.Wait()
		step("it recovers by itself", token, "alice", 0)
		for _, fault := range []func(*idp){
			func(p *idp) { p.status = 503 },
			func(p *idp) { p.status, p.raw = 0, `{"keys":[]}` },
			func(p *idp) { p.raw = `{"hush":1}` },
			func(p *idp) { p.raw = `{"keys":[` + strings.Repeat(`{},`, 100) + `{}]}` },
			func(p *idp) { p.raw = `{"keys":["` + strings.Repeat("x", 1<<20) + `"]}` },
			func(p *idp) { p.raw, p.hang = "", true },
		} {
			p.set(fault)
			if err := j.Reload(); err != nil {
				t.Error(err)
			}
			p.count()
			time.Sleep(time.Minute)
			synctest.Wait()
			if n := p.count(); n < 4 || n > 7 {
				t.Errorf("got %d fetches in a minute of failure, want one per cooldown", n)
			}
			step("down, a known key", token, "alice", 0)
		}
		time.Sleep(10 * time.Second)
		if got := outcome(j, tokenOf(t, "ES256", "2", second)); got != cannotTell {
			t.Errorf("down, a key not known: got %q, want %q", got, cannotTell)
		}
		if got := log.String(); strings.Contains(got, "hush") || strings.Count(got, "could not be fetched") < 20 || strings.Count(got, "keys fetched") != 1 {
			t.Errorf("got a log with a secret or without the failures:\n%s", got)
		}
	})
}

// Each key serves the algorithms of its kind, and what must not be public serves none.
func TestJWKSKinds(t *testing.T) {
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, p384, p521, enc := newECDSA(t, elliptic.P256()), newECDSA(t, elliptic.P384()), newECDSA(t, elliptic.P521()), newECDSA(t, elliptic.P256())
	secretKey := []byte(secret)
	only := public("only", r)
	only.Algorithm = "RS512"
	use := public("enc", enc)
	use.Use = "enc"
	synctest.Test(t, func(t *testing.T) {
		p := &idp{keys: []jose.JSONWebKey{
			public("r", r), public("ed", ed), public("256", p256), public("384", p384), public("521", p521), only, use,
			{KeyID: "oct", Key: secretKey}, {KeyID: "private", Key: enc},
		}}
		var set map[string][]any
		text, err := json.Marshal(jose.JSONWebKeySet{Keys: p.keys})
		if err != nil || json.Unmarshal(text, &set) != nil {
			t.Fatal(err)
		}
		set["keys"] = append(set["keys"], map[string]string{"kty": "new", "kid": "new"}, 7)
		text, _ = json.Marshal(set)
		p.raw = string(text)
		j := p.jwt(t, auth.JWTOptions{Keys: []auth.JWTKey{hs("local", secret)}})
		rsaPEM := bytes.TrimSpace([]byte(publicPEM(t, r)))
		for _, tt := range []struct {
			alg, kid string
			key      any
			want     string
		}{
			{"RS256", "r", r, "alice"}, {"RS512", "r", r, "alice"}, {"PS384", "r", r, "alice"}, {"RS256", "", r, "alice"},
			{"EdDSA", "ed", ed, "alice"}, {"ES256", "256", p256, "alice"}, {"ES384", "384", p384, "alice"}, {"ES512", "521", p521, "alice"},
			{"HS256", "local", secretKey, "alice"},
			{"RS512", "only", r, "alice"}, {"RS256", "only", r, unknownKey},
			{"ES256", "enc", enc, unknownKey}, {"ES256", "private", enc, unknownKey}, {"HS256", "oct", secretKey, unknownKey},
			{"HS256", "r", rsaPEM, unknownKey}, {"EdDSA", "256", ed, unknownKey},
		} {
			if got := outcome(j, tokenOf(t, tt.alg, tt.kid, tt.key)); got != tt.want {
				t.Errorf("%s with key %q: got %q, want %q", tt.alg, tt.kid, got, tt.want)
			}
		}
	})
}

func TestJWKSNeedsAGoodURL(t *testing.T) {
	_, err := auth.NewJWT(auth.JWTOptions{JWKS: &auth.JWKSOptions{URL: "http://idp.example/hush"}})
	if err == nil || !strings.HasPrefix(err.Error(), "auth.jwt.jwks_url: expected https") || strings.Contains(err.Error(), "hush") {
		t.Errorf("got %v, want an error that says https", err)
	}
}
