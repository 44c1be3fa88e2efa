package auth

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Algorithms are the signature algorithms that a JWTKey may name.
var Algorithms = []string{
	"HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
}

// JWTKey is a key that tokens may be signed with. HS algorithms take a secret, the others a public key in PEM.
type JWTKey struct {
	KeyID         string // "kid"; a token that names one is checked with the keys of that id and those without
	Algorithm     string // one of Algorithms; the key is used with no other
	Secret        string // for HS…
	SecretFile    string // the same from a file; one line end after it is taken off
	PublicKey     string // PEM, for the others
	PublicKeyFile string
}

// JWTOptions configure a JWT authenticator.
type JWTOptions struct {
	Keys      []JWTKey      // at least one, or JWKS
	JWKS      *JWKSOptions  // nil: only Keys
	Audience  string        // "": not checked
	Issuer    string        // "": not checked
	UserClaim string        // "": sub
	Leeway    time.Duration // for clocks that differ, at both ends of a token's life
}

// JWT authenticates by a JSON Web Token in the password. The token must carry exp; where the client sends a user
// name too, it must be the token's user. The connection ends with the token.
type JWT struct {
	opts   JWTOptions
	parser *jwt.Parser
	keys   atomic.Pointer[[]verifyKey] // of Options.Keys
	remote *remoteKeys                 // nil without Options.JWKS
}

type verifyKey struct {
	kid, alg string
	key      jwt.VerificationKey
}

// NewJWT reads the keys and begins to fetch those of JWKS, which needs a Close in the end. Its errors name the key by its place in the list and quote nothing of it.
func NewJWT(opts JWTOptions) (*JWT, error) {
	if opts.UserClaim == "" {
		opts.UserClaim = "sub"
	}
	var methods []string
	for _, k := range opts.Keys {
		if !slices.Contains(methods, k.Algorithm) {
			methods = append(methods, k.Algorithm)
		}
	}
	if opts.JWKS != nil {
		methods = slices.Concat(methods, publicAlgorithms)
	}
	with := []jwt.ParserOption{jwt.WithValidMethods(methods), jwt.WithExpirationRequired(), jwt.WithLeeway(opts.Leeway)}
	if opts.Audience != "" {
		with = append(with, jwt.WithAudience(opts.Audience))
	}
	if opts.Issuer != "" {
		with = append(with, jwt.WithIssuer(opts.Issuer))
	}
	j := &JWT{opts: opts, parser: jwt.NewParser(with...)}
	if err := j.Reload(); err != nil {
		return nil, err
	}
	if opts.JWKS != nil {
		var err error
		if j.remote, err = newRemoteKeys(*opts.JWKS); err != nil {
			return nil, fmt.Errorf("auth.jwt.jwks_url: %w", err)
		}
	}
	return j, nil
}

// Close stops fetching. A second call does nothing.
func (j *JWT) Close() error {
	if j.remote != nil {
		j.remote.close()
	}
	return nil
}

// Reload reads the key files again and has the keys of JWKS fetched. On an error the old keys stay. Connections that
// are up stay up.
func (j *JWT) Reload() error {
	if len(j.opts.Keys) == 0 && j.opts.JWKS == nil {
		return errors.New("auth.jwt.keys: at least one key is required")
	}
	var keys []verifyKey
	for i, k := range j.opts.Keys {
		key, err := k.load()
		if err != nil {
			return fmt.Errorf("auth.jwt.keys[%d]: %w", i, err)
		}
		keys = append(keys, verifyKey{k.KeyID, k.Algorithm, key})
	}
	j.keys.Store(&keys)
	if j.remote != nil {
		j.remote.ask()
	}
	return nil
}

func (k JWTKey) load() (jwt.VerificationKey, error) {
	if !slices.Contains(Algorithms, k.Algorithm) {
		return nil, fmt.Errorf("alg: found %q, expected one of %s", k.Algorithm, strings.Join(Algorithms, " "))
	}
	if strings.HasPrefix(k.Algorithm, "HS") {
		secret, err := textOrFile(k.Secret, k.SecretFile)
		if err != nil {
			return nil, fmt.Errorf("secret_file: %w", err)
		}
		if secret == "" {
			return nil, fmt.Errorf("%s needs secret or secret_file", k.Algorithm)
		}
		return []byte(secret), nil
	}
	pem, err := textOrFile(k.PublicKey, k.PublicKeyFile)
	if err != nil {
		return nil, fmt.Errorf("public_key_file: %w", err)
	}
	if pem == "" {
		return nil, fmt.Errorf("%s needs public_key or public_key_file", k.Algorithm)
	}
	key, err := parsePublic(k.Algorithm, []byte(pem))
	if err != nil {
		// The library's text is not passed on: a private key in the wrong place must not show up in a log.
		return nil, fmt.Errorf("public_key: expected a PEM public key for %s", k.Algorithm)
	}
	return key, nil
}

func parsePublic(alg string, pem []byte) (jwt.VerificationKey, error) {
	switch alg[:2] {
	case "RS", "PS":
		return jwt.ParseRSAPublicKeyFromPEM(pem)
	case "ES":
		key, err := jwt.ParseECPublicKeyFromPEM(pem)
		if err != nil {
			return nil, err
		}
		return key, checkCurve(alg, key)
	}
	return jwt.ParseEdPublicKeyFromPEM(pem)
}

// checkCurve: each ES algorithm has its own curve (RFC 7518, 3.4), which the library does not check.
func checkCurve(alg string, key *ecdsa.PublicKey) error {
	want := map[string]string{"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[alg]
	if got := key.Curve.Params().Name; got != want {
		return fmt.Errorf("found curve %s, expected %s", got, want)
	}
	return nil
}

func textOrFile(text, file string) (string, error) {
	if text != "" || file == "" {
		return text, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r"), nil
}

// Authenticate checks the token.
func (j *JWT) Authenticate(ctx context.Context, cred Credentials) (string, time.Time, error) {
	if len(cred.Password) == 0 {
		return "", time.Time{}, &Refusal{"token missing: it goes into the password"}
	}
	token, err := j.parser.Parse(string(cred.Password), func(token *jwt.Token) (any, error) { return j.candidates(ctx, token) })
	switch {
	case errors.Is(err, errNoKeys):
		return "", time.Time{}, errNoKeys
	case err != nil:
		return "", time.Time{}, &Refusal{tokenFault(err)}
	}
	claims, _ := token.Claims.(jwt.MapClaims)
	user, _ := claims[j.opts.UserClaim].(string)
	switch {
	case user == "":
		return "", time.Time{}, &Refusal{"token has no text in claim " + j.opts.UserClaim}
	case cred.Username != "" && cred.Username != user:
		return "", time.Time{}, &Refusal{"user name is not the token's"}
	}
	exp, err := claims.GetExpirationTime()
	if err != nil || exp == nil {
		return "", time.Time{}, &Refusal{"token without exp"}
	}
	return user, exp.Add(j.opts.Leeway), nil
}

// candidates are the keys for a token: of its algorithm, so that a public key never serves as a secret, and of its
// key id where both have one. The configuration's own come first; only for want of one is the key set waited for.
func (j *JWT) candidates(ctx context.Context, token *jwt.Token) (any, error) {
	kid, _ := token.Header["kid"].(string)
	alg := token.Method.Alg()
	found := matching(*j.keys.Load(), kid, alg)
	if j.remote != nil {
		switch remote, err := j.remote.find(ctx, kid, alg, len(found) == 0); {
		case err == nil:
			found = append(found, remote...)
		case len(found) == 0:
			return nil, err
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no such key")
	}
	return jwt.VerificationKeySet{Keys: found}, nil
}

func matching(keys []verifyKey, kid, alg string) (found []jwt.VerificationKey) {
	for _, k := range keys {
		if k.alg == alg && (k.kid == kid || k.kid == "" || kid == "") {
			found = append(found, k.key)
		}
	}
	return found
}

// tokenFault is what is wrong with a token in words of our own, since the library's may quote it.
func tokenFault(err error) string {
	for _, fault := range []struct {
		err  error
		text string
	}{
		{jwt.ErrTokenMalformed, "token is malformed"},
		{jwt.ErrTokenUnverifiable, "token is signed with an unknown key"},
		{jwt.ErrTokenRequiredClaimMissing, "token lacks exp, aud or iss"},
		{jwt.ErrTokenExpired, "token has expired"},
		{jwt.ErrTokenNotValidYet, "token is not valid yet"},
		{jwt.ErrTokenUsedBeforeIssued, "token is not valid yet"},
		{jwt.ErrTokenInvalidAudience, "token is for another audience"},
		{jwt.ErrTokenInvalidIssuer, "token is of another issuer"},
		{jwt.ErrTokenSignatureInvalid, "token's signature or algorithm is wrong"},
	} {
		if errors.Is(err, fault.err) {
			return fault.text
		}
	}
	return "token is invalid"
}
