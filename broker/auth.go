package broker

import (
	"crypto/x509"
	"log/slog"

	mqtt "github.com/mochi-mqtt/server/v2"

	"github.com/mqim/mqim/broker/config"
	"github.com/mqim/mqim/hooks/auth"
	"github.com/mqim/mqim/transport"
)

// certified is the user that a client's certificate names, where its listener says that it does.
func (s *Server) certified(cl *mqtt.Client) (user string, ok bool, err error) {
	from := s.clientUser[cl.Net.Listener]
	if from == "" {
		return "", false, nil
	}
	t, _ := cl.Net.Conn.(*transport.Conn)
	if t == nil || t.TLS() == nil || len(t.TLS().VerifiedChains) == 0 {
		return "", true, &auth.Refusal{Reason: "no verified certificate"}
	}
	user = certificateUser(t.TLS().VerifiedChains[0][0], from)
	if user == "" {
		return "", true, &auth.Refusal{Reason: "the certificate names no user"}
	}
	return user, true, nil
}

// certificateUser is the subject's common name or, with "san", the first e-mail address or DNS name; "" is none.
func certificateUser(c *x509.Certificate, from string) string {
	switch {
	case from == "cn":
		return c.Subject.CommonName
	case len(c.EmailAddresses) > 0:
		return c.EmailAddresses[0]
	case len(c.DNSNames) > 0:
		return c.DNSNames[0]
	}
	return ""
}

func authenticator(c *config.Auth, log *slog.Logger) (auth.Authenticator, error) {
	switch c.Mode {
	case "file":
		return auth.NewFile(c.File.Path)
	case "jwt":
		keys := make([]auth.JWTKey, len(c.JWT.Keys))
		for i, k := range c.JWT.Keys {
			keys[i] = auth.JWTKey{
				KeyID: k.KeyID, Algorithm: k.Algorithm, Secret: string(k.Secret), SecretFile: k.SecretFile,
				PublicKey: k.PublicKey, PublicKeyFile: k.PublicKeyFile,
			}
		}
		o := auth.JWTOptions{
			Keys: keys, Audience: c.JWT.Audience, Issuer: c.JWT.Issuer, UserClaim: c.JWT.UserClaim, Leeway: c.JWT.Leeway.D(),
		}
		if c.JWT.JWKSURL != "" {
			o.JWKS = &auth.JWKSOptions{
				URL: c.JWT.JWKSURL, Refresh: c.JWT.JWKSRefresh.D(), Cooldown: c.JWT.JWKSCooldown.D(), Log: log,
			}
		}
		return auth.NewJWT(o)
	case "mysql":
		m := &c.MySQL
		return auth.NewMySQL(auth.MySQLOptions{
			DSN: string(m.DSN), Query: m.Query, Timeout: m.Timeout.D(), Connections: m.Connections,
			CacheTTL: m.CacheTTL.D(), NegativeTTL: m.NegativeTTL.D(), CacheSize: m.CacheSize,
		})
	case "http":
		h := &c.HTTP
		return auth.NewHTTP(auth.HTTPOptions{
			URL: h.URL, Token: string(h.Token), Timeout: h.Timeout.D(), Concurrency: h.Concurrency,
			CacheTTL: h.CacheTTL.D(), NegativeTTL: h.NegativeTTL.D(), CacheSize: h.CacheSize,
		})
	}
	return auth.Trust{}, nil
}
