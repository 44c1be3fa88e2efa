package auth_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/hooks/auth"
)

const secret = "0123456789abcdef0123456789abcdef"

func publicPEM(t *testing.T, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func sign(t *testing.T, alg, kid string, key any, claims jwt.MapClaims) string {
	t.Helper()
	token := jwt.NewWithClaims(jwt.GetSigningMethod(alg), claims)
	if kid != "" {
		token.Header["kid"] = kid
	}
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func newJWT(t *testing.T, opts auth.JWTOptions) *auth.JWT {
	t.Helper()
	j, err := auth.NewJWT(opts)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func hs(kid, secret string) auth.JWTKey {
	return auth.JWTKey{KeyID: kid, Algorithm: "HS256", Secret: secret}
}

func TestJWTClaims(t *testing.T) {
	j := newJWT(t, auth.JWTOptions{Keys: []auth.JWTKey{hs("", secret)}, Audience: "mqim", Issuer: "idp", Leeway: 10 * time.Second})
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	good := func(change func(c jwt.MapClaims)) string {
		claims := jwt.MapClaims{"sub": "alice", "aud": "mqim", "iss": "idp", "exp": in(time.Hour)}
		if change != nil {
			change(claims)
		}
		return sign(t, "HS256", "", []byte(secret), claims)
	}
	set := func(name string, value any) string { return good(func(c jwt.MapClaims) { c[name] = value }) }
	without := func(name string) string { return good(func(c jwt.MapClaims) { delete(c, name) }) }
	tests := []struct{ name, user, token, want string }{
		{"good", "", good(nil), ""},
		{"good, user name given", "alice", good(nil), ""},
		{"list of audiences", "", set("aud", []string{"x", "mqim"}), ""},
		{"expired within the leeway", "", set("exp", in(-5*time.Second)), ""},
		{"other's user name", "bob", good(nil), "user name is not the token's"},
		{"expired", "", set("exp", in(-time.Minute)), "token has expired"},
		{"no exp", "", without("exp"), "token lacks exp, aud or iss"},
		{"exp is a text", "", set("exp", "soon"), "token is invalid"},
		{"not yet", "", set("nbf", in(time.Minute)), "token is not valid yet"},
		{"other audience", "", set("aud", "x"), "token is for another audience"},
		{"no audience", "", without("aud"), "token lacks exp, aud or iss"},
		{"other issuer", "", set("iss", "x"), "token is of another issuer"},
		{"no issuer", "", without("iss"), "token lacks exp, aud or iss"},
		{"no user", "", without("sub"), "token has no text in claim sub"},
		{"user is a number", "", set("sub", 7), "token has no text in claim sub"},
		{"no token", "alice", "", "token missing: it goes into the password"},
		{"no token at all", "", "TOPSECRET", "token is malformed"},
		{"cut off", "", good(nil)[:40], "token is malformed"},
		{"other key", "", sign(t, "HS256", "", []byte("another"), jwt.MapClaims{"sub": "alice", "exp": in(time.Hour)}), "token's signature or algorithm is wrong"},
		{"other algorithm", "", sign(t, "HS512", "", []byte(secret), jwt.MapClaims{"sub": "alice", "exp": in(time.Hour)}), "token's signature or algorithm is wrong"},
		{"no signature", "", sign(t, "none", "", jwt.UnsafeAllowNoneSignatureType, jwt.MapClaims{"sub": "alice", "exp": in(time.Hour)}), "token's signature or algorithm is wrong"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := login(t, j, tt.user, tt.token); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestJWTUserClaimAndExpiry(t *testing.T) {
	j := newJWT(t, auth.JWTOptions{Keys: []auth.JWTKey{hs("", secret)}, UserClaim: "login", Leeway: time.Minute})
	exp := time.Now().Add(time.Hour).Truncate(time.Second)
	token := sign(t, "HS256", "", []byte(secret), jwt.MapClaims{"sub": "x", "login": "alice", "exp": exp.Unix()})
	user, expires, err := j.Authenticate(t.Context(), auth.Credentials{Password: []byte(token)})
	if user != "alice" || !expires.Equal(exp.Add(time.Minute)) || err != nil {
		t.Errorf("got %q, %v, %v, want alice, %v, no error", user, expires, err, exp.Add(time.Minute))
	}
}

func TestJWTAlgorithms(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, _ := ed25519.GenerateKey(rand.Reader)
	ec := func(curve elliptic.Curve) *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	signers := map[string]crypto.Signer{
		"RS256": rsaKey, "RS384": rsaKey, "RS512": rsaKey, "PS256": rsaKey, "PS384": rsaKey, "PS512": rsaKey,
		"ES256": ec(elliptic.P256()), "ES384": ec(elliptic.P384()), "ES512": ec(elliptic.P521()), "EdDSA": edKey,
	}
	claims := jwt.MapClaims{"sub": "alice", "exp": time.Now().Add(time.Hour).Unix()}
	for _, alg := range auth.Algorithms {
		key, signKey := auth.JWTKey{Algorithm: alg}, any([]byte(secret))
		if signer, ok := signers[alg]; ok {
			key.PublicKey, signKey = publicPEM(t, signer), signer
		} else {
			key.Secret = secret
		}
		j := newJWT(t, auth.JWTOptions{Keys: []auth.JWTKey{key}})
		if got := login(t, j, "", sign(t, alg, "", signKey, claims)); got != "" {
			t.Errorf("%s: got %q, want a login", alg, got)
		}
	}

	// The classic: a public key, which everybody knows, used as the secret of an HS256 token.
	public := publicPEM(t, rsaKey)
	j := newJWT(t, auth.JWTOptions{Keys: []auth.JWTKey{{Algorithm: "RS256", PublicKey: public}, hs("", secret)}})
	if got := login(t, j, "", sign(t, "HS256", "", []byte(public), claims)); got == "" {
		t.Error("a token signed with the public key as a secret got in")
	}
	if _, err := auth.NewJWT(auth.JWTOptions{Keys: []auth.JWTKey{{Algorithm: "ES384", PublicKey: publicPEM(t, signers["ES256"])}}}); err == nil {
		t.Error("ES384 with a P-256 key: got no error")
	}
}

func TestJWTKeyIDs(t *testing.T) {
	j := newJWT(t, auth.JWTOptions{Keys: []auth.JWTKey{hs("1", "one"), hs("2", "two"), hs("", "any")}})
	claims := jwt.MapClaims{"sub": "alice", "exp": time.Now().Add(time.Hour).Unix()}
	tests := []struct{ kid, secret, want string }{
		{"1", "one", ""}, {"2", "two", ""}, {"", "two", ""}, {"3", "any", ""},
		{"1", "two", "token's signature or algorithm is wrong"}, {"3", "one", "token's signature or algorithm is wrong"},
	}
	for _, tt := range tests {
		if got := login(t, j, "", sign(t, "HS256", tt.kid, []byte(tt.secret), claims)); got != tt.want {
			t.Errorf("kid %q, secret %q: got %q, want %q", tt.kid, tt.secret, got, tt.want)
		}
	}
	// A key is for its algorithm alone, also where another of the same kind could use it.
	two := newJWT(t, auth.JWTOptions{Keys: []auth.JWTKey{hs("", "one"), {Algorithm: "HS512", Secret: "two"}}})
	if got, want := login(t, two, "", sign(t, "HS512", "", []byte("one"), claims)), "token's signature or algorithm is wrong"; got != want {
		t.Errorf("HS512 with the key of HS256: got %q, want %q", got, want)
	}
	only := newJWT(t, auth.JWTOptions{Keys: []auth.JWTKey{hs("1", "one")}})
	if got, want := login(t, only, "", sign(t, "HS256", "2", []byte("one"), claims)), "token is signed with an unknown key"; got != want {
		t.Errorf("unknown kid: got %q, want %q", got, want)
	}
}

func TestJWTKeyFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one\n")
	j := newJWT(t, auth.JWTOptions{Keys: []auth.JWTKey{{Algorithm: "HS256", SecretFile: path}}})
	token := func(key string) string {
		return sign(t, "HS256", "", []byte(key), jwt.MapClaims{"sub": "alice", "exp": time.Now().Add(time.Hour).Unix()})
	}
	if got := login(t, j, "", token("one")); got != "" {
		t.Errorf("got %q, want a login", got)
	}
	write("two\n")
	if err := j.Reload(); err != nil {
		t.Fatal(err)
	}
	if got := login(t, j, "", token("two")); got != "" {
		t.Errorf("after reload: got %q, want a login", got)
	}
	if got := login(t, j, "", token("one")); got == "" {
		t.Error("after reload: the old key still works")
	}
	write("")
	if err := j.Reload(); err == nil {
		t.Error("reload of an empty secret: got no error")
	}
}

func TestNewJWTRefuses(t *testing.T) {
	private, _ := rsa.GenerateKey(rand.Reader, 2048)
	privatePEM := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)}))
	tests := []struct {
		name string
		keys []auth.JWTKey
		want string
	}{
		{"no keys", nil, "auth.jwt.keys: at least one key"},
		{"no algorithm", []auth.JWTKey{{Secret: "TOPSECRET"}}, `auth.jwt.keys[0]: alg: found ""`},
		{"alg none", []auth.JWTKey{{Algorithm: "none", Secret: "TOPSECRET"}}, `alg: found "none"`},
		{"no secret", []auth.JWTKey{hs("", "x"), {Algorithm: "HS256", PublicKey: "x"}}, "auth.jwt.keys[1]: HS256 needs secret"},
		{"no public key", []auth.JWTKey{{Algorithm: "RS256", Secret: "TOPSECRET"}}, "RS256 needs public_key"},
		{"no PEM", []auth.JWTKey{{Algorithm: "RS256", PublicKey: "TOPSECRET"}}, "expected a PEM public key for RS256"},
		{"no file", []auth.JWTKey{{Algorithm: "HS256", SecretFile: "/nonexistent"}}, "auth.jwt.keys[0]: secret_file: open /nonexistent: no such file"},
		{"no file of a public key", []auth.JWTKey{{Algorithm: "ES256", PublicKeyFile: "/nonexistent"}}, "auth.jwt.keys[0]: public_key_file: open /nonexistent: no such file"},
		{"private key", []auth.JWTKey{{Algorithm: "EdDSA", PublicKey: privatePEM}}, "expected a PEM public key for EdDSA"},
	}
	for _, tt := range tests {
		_, err := auth.NewJWT(auth.JWTOptions{Keys: tt.keys})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		} else if strings.Contains(err.Error(), "TOPSECRET") || strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: the error tells the key: %v", tt.name, err)
		}
	}
}

func TestJWTOverMQTT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := newBroker(t, auth.Options{Authenticator: newJWT(t, auth.JWTOptions{Keys: []auth.JWTKey{hs("", secret)}})})
		token := sign(t, "HS256", "", []byte(secret), jwt.MapClaims{"sub": "alice", "exp": time.Now().Add(90 * time.Second).Unix()})
		start := time.Now()
		c := b.connect(t, connectOptions{version: 5, pass: token, user: "alice", client: "c"})
		if ack := c.read(t); ack.body[1] != 0 {
			t.Fatalf("got code %#x, want 0", ack.body[1])
		}
		if got := <-b.seen; got != "alice" {
			t.Errorf("user: got %q, want alice", got)
		}
		if bye := c.read(t); bye.kind != packets.Disconnect || bye.body[0] != 0xA0 {
			t.Errorf("got packet %d %x, want DISCONNECT 0xA0", bye.kind, bye.body)
		}
		if got := time.Since(start); got != 90*time.Second {
			t.Errorf("ended after %v, want 90s", got)
		}
		c.closed(t)
		c = b.connect(t, connectOptions{version: 4, pass: token, user: "alice", client: "c"})
		if ack := c.read(t); ack.body[1] != 0x04 {
			t.Errorf("expired token: got code %#x, want 0x04", ack.body[1])
		}
		c.closed(t)
		if log := b.log.String(); strings.Contains(log, token) || !strings.Contains(log, "token has expired") || bytes.Contains([]byte(log), []byte(token[:20])) {
			t.Errorf("log tells the token or lacks the reason:\n%s", log)
		}
	})
}
