// Package auth finds out which user a connection belongs to, in a mochi server.
//
// Hook does the MQTT side: it takes name, password and client id from the CONNECT, asks an Authenticator, and either
// sets cl.Properties.Username to the user id, which every other hook goes by, or refuses with the right CONNACK.
// Authenticators are Trust, File, JWT, MySQL and HTTP, or your own. No password and no token reaches a log or an error.
//
// The work is done in OnConnect: in OnConnectAuthenticate mochi answers a 3.1.1 client with return code 5 whatever
// was wrong. Authenticators are called from the connections' own goroutines, many at a time.
package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"golang.org/x/time/rate"

	"github.com/mqim/mqim/users"
)

// Credentials are what a client shows of itself. An Authenticator must not keep them.
type Credentials struct {
	Username string // "" without one
	Password []byte // nil without one
	ClientID string // the client's own or, where it sent none, the one the server assigned
	Remote   string // address of the other side
}

// Authenticator finds the user that credentials belong to.
type Authenticator interface {
	// Authenticate returns the user id, and the time from which the connection must not go on (zero: no end).
	// A *Refusal says that the credentials are wrong; any other error says that nobody can tell at the moment. It
	// returns soon after ctx ends.
	Authenticate(ctx context.Context, cred Credentials) (user string, expires time.Time, err error)
}

// Refusal is the error for wrong credentials. The client hears only that name or password is bad; Reason goes to
// the log and must hold nothing secret.
type Refusal struct{ Reason string }

func (r *Refusal) Error() string { return "refused: " + r.Reason }

var errName = &Refusal{"not a valid user name"}

// Options configure a Hook.
type Options struct {
	// Authenticator is required.
	Authenticator Authenticator
	// Disconnect ends a connection whose time is up, with a DISCONNECT for MQTT 5. Nil: write it and stop the client.
	Disconnect func(cl *mqtt.Client, code packets.Code)
	// Timeout bounds one Authenticate. Zero: 10 s.
	Timeout time.Duration
	// Log is told of failed logins. Nil: the logger that mochi gives its hooks.
	Log *slog.Logger
	// Refused, if set, hears of every login that failed: a Refusal's Reason, or Unavailable. It is for counting, is
	// called from the connections' goroutines and must not block.
	Refused func(reason string)
	// Throttle is the longest that a login waits, before it is looked at, after failed ones of the same user or address.
	// Zero: it does not.
	Throttle time.Duration
	// Throttled is told of logins that were "delayed" and of those that were "refused", since too many of one address
	// waited. Nil: nobody is.
	Throttled func(what string)
	// Certified returns the user that a client's certificate names; ok is false where certificates do not name users. The
	// Authenticator is not asked then. A *Refusal is as the Authenticator's. Nil: no certificate does.
	Certified func(cl *mqtt.Client) (user string, ok bool, err error)
}

// Unavailable is the reason of a login that nobody could check.
const Unavailable = "unavailable"

const (
	defaultTimeout = 10 * time.Second
	// establishing is how long a connection may take from OnConnect until mochi promises an OnDisconnect. See watch.
	establishing = 30 * time.Second
	// maxLogged bounds in bytes what a log line repeats of a client's words.
	maxLogged = 128
)

// Hook authenticates connections. It must be the only hook that provides OnConnectAuthenticate, since mochi lets
// any hook's yes win, and be added before the hooks that ask for the user.
type Hook struct {
	mqtt.HookBase
	auth       Authenticator
	disconnect func(cl *mqtt.Client, code packets.Code)
	timeout    time.Duration
	logger     *slog.Logger // nil: mochi's
	refused    func(reason string)
	loud       rate.Sometimes // failed logins come in floods; the metrics count them all
	throttle   *throttle      // nil: none
	throttled  func(what string)
	certified  func(cl *mqtt.Client) (user string, ok bool, err error)
	ctx        context.Context // ends in Stop
	cancel     context.CancelFunc

	mu     sync.Mutex
	timers map[*mqtt.Client]*time.Timer // by mu; connections with an end
}

// New makes a hook.
func New(opts Options) (*Hook, error) {
	if opts.Authenticator == nil {
		return nil, errors.New("auth: an Authenticator is required")
	}
	h := &Hook{
		auth: opts.Authenticator, disconnect: opts.Disconnect, timeout: opts.Timeout, logger: opts.Log, refused: opts.Refused,
		loud: rate.Sometimes{First: 100, Interval: 100 * time.Millisecond}, timers: map[*mqtt.Client]*time.Timer{},
	}
	if h.refused == nil {
		h.refused = func(string) {}
	}
	if h.disconnect == nil {
		h.disconnect = disconnect
	}
	if h.timeout <= 0 {
		h.timeout = defaultTimeout
	}
	h.throttled, h.certified = opts.Throttled, opts.Certified
	if h.throttled == nil {
		h.throttled = func(string) {}
	}
	if opts.Throttle > 0 {
		h.throttle = newThrottle(opts.Throttle)
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h, nil
}

// ID names the hook in mochi's log.
func (h *Hook) ID() string { return "auth" }

// Provides tells mochi which events the hook wants.
func (h *Hook) Provides(event byte) bool {
	return event == mqtt.OnConnect || event == mqtt.OnConnectAuthenticate || event == mqtt.OnDisconnect
}

// Reload makes the authenticator read its files again, if it has any. On an error the old content stays in force.
func (h *Hook) Reload() error {
	if r, ok := h.auth.(interface{ Reload() error }); ok {
		return r.Reload()
	}
	return nil
}

// Stop ends running authentications, closes the authenticator if it can be closed, and forgets every connection's end.
// A second call does nothing more.
func (h *Hook) Stop() (err error) {
	h.cancel()
	if c, ok := h.auth.(io.Closer); ok {
		err = c.Close()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for cl, timer := range h.timers {
		timer.Stop()
		delete(h.timers, cl)
	}
	return err
}

// OnConnect authenticates the client or refuses it.
func (h *Hook) OnConnect(cl *mqtt.Client, pk packets.Packet) error {
	if cl.Properties.ProtocolVersion == 5 && pk.Properties.AuthenticationMethod != "" {
		h.logRefused(cl, pk, "authentication method not supported")
		return refuse(cl, packets.ErrBadAuthenticationMethod, packets.Err3NotAuthorized) // [MQTT-4.12.0-1]
	}
	user, expires, err := h.identify(cl, pk)
	if errors.Is(err, errThrottled) {
		h.logRefused(cl, pk, "too many failed logins from this address")
		return refuse(cl, packets.ErrConnectionRateExceeded, packets.Err3ServerUnavailable)
	}
	if err == nil && !users.ValidName(user) {
		err = errName
	}
	var refusal *Refusal
	switch {
	case errors.As(err, &refusal):
		h.logRefused(cl, pk, refusal.Reason)
		return refuse(cl, packets.ErrBadUsernameOrPassword, packets.ErrMalformedUsernameOrPassword)
	case err != nil:
		h.refused(Unavailable)
		h.loud.Do(func() {
			h.log().Warn("login could not be checked", "client", clip(cl.ID), "remote", cl.Net.Remote, "error", err)
		})
		return refuse(cl, packets.ErrServerUnavailable, packets.Err3ServerUnavailable)
	}
	cl.Properties.Username = []byte(user)
	if !expires.IsZero() {
		h.watch(cl, expires)
	}
	return nil
}

var errThrottled = errors.New("too many failed logins")

// identify finds the user by certificate or credentials.
func (h *Hook) identify(cl *mqtt.Client, pk packets.Packet) (user string, expires time.Time, err error) {
	name := string(pk.Connect.Username)
	if h.certified != nil {
		user, ok, err := h.certified(cl)
		if ok && err == nil && name != "" && name != user {
			err = &Refusal{"the user name is not that of the certificate"}
		}
		if ok {
			return user, time.Time{}, err
		}
	}
	address := ""
	if h.throttle != nil {
		address = source(cl.Net.Remote)
		waited, ok := h.throttle.wait(h.ctx, address, name)
		if !ok {
			h.throttled("refused")
			return "", time.Time{}, errThrottled
		}
		if waited {
			h.throttled("delayed")
		}
	}
	ctx, cancel := context.WithTimeout(h.ctx, h.timeout)
	defer cancel()
	user, expires, err = h.auth.Authenticate(ctx, Credentials{Username: name, Password: pk.Connect.Password, ClientID: cl.ID, Remote: cl.Net.Remote})
	if h.throttle != nil {
		if refusal := (*Refusal)(nil); errors.As(err, &refusal) {
			h.throttle.failed(address, name)
		} else if err == nil {
			h.throttle.succeeded(name)
		}
	}
	return user, expires, err
}

// OnConnectAuthenticate agrees: mochi asks only after OnConnect let the client pass.
func (h *Hook) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

// OnDisconnect forgets the end of a connection that is gone.
func (h *Hook) OnDisconnect(cl *mqtt.Client, _ error, _ bool) { h.forget(cl) }

// watch ends the connection at expires. mochi calls OnDisconnect only for connections that it established, and a
// later hook may refuse this one yet: so the first look is taken early, and drops a client that is closed already.
func (h *Hook) watch(cl *mqtt.Client, expires time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctx.Err() != nil {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(min(time.Until(expires), establishing), func() {
		h.mu.Lock()
		left := time.Until(expires)
		_, known := h.timers[cl]
		if known && !cl.Closed() && left > 0 {
			timer.Reset(left)
			h.mu.Unlock()
			return
		}
		delete(h.timers, cl)
		h.mu.Unlock()
		if known && !cl.Closed() {
			h.disconnect(cl, packets.ErrMaxConnectTime)
		}
	})
	h.timers[cl] = timer
}

func (h *Hook) forget(cl *mqtt.Client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if timer, ok := h.timers[cl]; ok {
		timer.Stop()
		delete(h.timers, cl)
	}
}

// refuse writes the CONNACK of a refused connection and returns the error that makes mochi close it. The reason is
// the code's own: it tells a guesser nothing [MQTT-3.1.4-2].
func refuse(cl *mqtt.Client, v5, v3 packets.Code) error {
	ack := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connack}, ReasonCode: v3.Code}
	if cl.Properties.ProtocolVersion == 5 {
		ack.ReasonCode = v5.Code
		ack.Properties.ReasonString = v5.Reason
	}
	if err := cl.WritePacket(ack); err != nil {
		return fmt.Errorf("refuse connection: %w", err)
	}
	return v5
}

// disconnect is the default of Options.Disconnect. A 3.1.1 client is just cut off: its DISCONNECT goes one way only.
func disconnect(cl *mqtt.Client, code packets.Code) {
	if cl.Properties.ProtocolVersion == 5 {
		pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ReasonCode: code.Code}
		pk.Properties.ReasonString = code.Reason
		_ = cl.WritePacket(pk) // the connection ends either way
	}
	cl.Stop(code)
}

// logRefused counts a failed login and, within bounds, logs it.
func (h *Hook) logRefused(cl *mqtt.Client, pk packets.Packet, reason string) {
	h.refused(reason)
	h.loud.Do(func() {
		h.log().Info("login failed", "user", loggedUser(pk.Connect.Username), "client", clip(cl.ID), "remote", cl.Net.Remote, "reason", reason)
	})
}

func (h *Hook) log() *slog.Logger {
	switch {
	case h.logger != nil:
		return h.logger
	case h.Log != nil:
		return h.Log
	}
	return slog.Default()
}

// loggedUser is the user name if it is one. Else it may be anything, such as a token in the wrong field.
func loggedUser(name []byte) string {
	if len(name) == 0 || users.ValidName(string(name)) {
		return string(name)
	}
	return fmt.Sprintf("(not a user name, %d bytes)", len(name))
}

func clip(s string) string {
	if len(s) > maxLogged {
		return s[:maxLogged] + "…"
	}
	return s
}

// Trust is the Authenticator that believes everybody: the user is the MQTT user name or, without one, the client id, see
// named. It is for a loopback address and for behind something that authenticates.
type Trust struct{}

// Authenticate never looks at the password.
func (Trust) Authenticate(_ context.Context, cred Credentials) (string, time.Time, error) {
	user := cred.Username
	if user == "" {
		user = named(cred.ClientID)
	}
	if !users.ValidName(user) {
		return "", time.Time{}, errName
	}
	return user, time.Time{}, nil
}

// named makes a user name of a client id: what a user name may not have becomes "-", or is left out at the front, and what
// is too long is cut. A client id may be any string [MQTT-3.1.3-5], and a client that is no person cares for no name.
func named(id string) string {
	name := []byte(id[:min(len(id), 2*users.MaxName)])
	for i, c := range name {
		if !users.ValidName("a" + string(c)) {
			name[i] = '-'
		}
	}
	name = bytes.TrimLeft(name, "-._@")
	if len(name) == 0 {
		return "anonymous"
	}
	return string(name[:min(len(name), users.MaxName)])
}
