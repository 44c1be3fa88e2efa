package auth

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// CheckURL reports whether a backend may be asked at address: https, or http on loopback, since passwords and keys
// must not cross a network in the clear. The error quotes nothing of it.
func CheckURL(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return errors.New("not a URL; expected one such as https://auth.example/mqtt")
	}
	ip := net.ParseIP(u.Hostname())
	loopback := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	switch {
	case u.User != nil:
		return errors.New("expected a URL without user and password in it")
	case u.Scheme != "https" && !(u.Scheme == "http" && loopback):
		return errors.New("expected https, or http to a loopback address such as 127.0.0.1")
	}
	return nil
}

// newClient makes the HTTP client for one backend: at most conns connections, and no redirects, which could take a
// password somewhere else.
func newClient(conns int, timeout time.Duration) *http.Client {
	return &http.Client{
		Timeout:       timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true,
			MaxConnsPerHost: conns, MaxIdleConnsPerHost: conns, IdleConnTimeout: time.Minute,
			MaxResponseHeaderBytes: 64 << 10,
		},
	}
}

// do sends a request and returns status and body, which has at most limit bytes. Its errors hold neither the URL,
// which may have a key in its query, nor anything of the body.
func do(client *http.Client, req *http.Request, limit int64) (status int, body []byte, err error) {
	resp, err := client.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return 0, nil, err
	case int64(len(body)) > limit:
		return 0, nil, fmt.Errorf("the answer has more than %d bytes", limit)
	}
	return resp.StatusCode, body, nil
}
