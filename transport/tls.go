package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"
)

var noContext = context.Background()

// Certificates are a server's certificate and key, and the authorities of its clients' certificates, that can be
// read again while in use.
type Certificates struct {
	cert, key, clientCA string
	current             atomic.Pointer[tls.Config]
}

// OpenCertificates reads PEM files. With clientCA, clients must present a certificate that one of its authorities
// signed; without ("") they are not asked for one.
func OpenCertificates(cert, key, clientCA string) (*Certificates, error) {
	c := &Certificates{cert: cert, key: key, clientCA: clientCA}
	if err := c.Reload(); err != nil {
		return nil, err
	}
	return c, nil
}

// Reload reads the files again and swaps all of them in at once, for the handshakes from now on. On an error nothing
// has changed.
func (c *Certificates) Reload() error {
	certPEM, err := readPEM("certificate", c.cert)
	if err != nil {
		return err
	}
	keyPEM, err := readPEM("key", c.key)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("TLS certificate %s with key %s: %w", c.cert, c.key, err)
	}
	// A new value each time: session tickets are good with the value that issued them, so that nobody resumes a
	// session past a change of authorities.
	cfg := &tls.Config{
		MinVersion:                  tls.VersionTLS12,
		Certificates:                []tls.Certificate{pair},
		DynamicRecordSizingDisabled: true, // small records are for browsers that render as they read
	}
	if c.clientCA != "" {
		caPEM, err := readPEM("client_ca", c.clientCA)
		if err != nil {
			return err
		}
		cfg.ClientCAs = x509.NewCertPool()
		if !cfg.ClientCAs.AppendCertsFromPEM(caPEM) {
			return fmt.Errorf("TLS client_ca %s: no certificate in it", c.clientCA)
		}
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	}
	c.current.Store(cfg)
	return nil
}

func readPEM(what, path string) ([]byte, error) {
	if path == "" {
		return nil, fmt.Errorf("TLS %s: no file is named", what)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, fmt.Errorf("TLS %s %s: %w", what, path, err)
	}
	return b, nil
}

// Config returns a configuration that follows Reload.
func (c *Certificates) Config() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current.Load(), nil },
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &c.current.Load().Certificates[0], nil
		},
	}
}

// NotAfter is when the certificate in use expires.
func (c *Certificates) NotAfter() time.Time {
	return c.current.Load().Certificates[0].Leaf.NotAfter
}

// tlsConn is a tls.Conn whose Close does not wait: the original sends close_notify and gives a peer that does not
// read five seconds to take it.
type tlsConn struct {
	*tls.Conn
	raw net.Conn
}

func (c *tlsConn) Close() error { return c.raw.Close() }
func (c *tlsConn) goodbye()     { _ = c.CloseWrite() }
func (c *tlsConn) ConnectionState() *tls.ConnectionState {
	s := c.Conn.ConnectionState()
	return &s
}
