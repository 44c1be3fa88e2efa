package transport

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
)

const (
	maxRequest = 16 << 10 // an upgrade request, cookies and all
	// maxMessage bounds a WebSocket message. It may hold many packets or a part of one and is read as a stream, so
	// this is not about memory; it is the largest packet that there can be.
	maxMessage = maxRemaining + 5
)

// errNotBinary: MQTT packets must come in binary frames [MQTT-6.0.0-1].
var errNotBinary = errors.New("WebSocket message is not binary")

var wsWriteBufs sync.Pool

// upgrade reads one HTTP request and makes a WebSocket of the connection, or answers why not. There is no
// http.Server behind it: nothing but this one request ever comes, on a goroutine that the listener owns already,
// and under a deadline that is already set.
func (l *Listener) upgrade(conn net.Conn) (net.Conn, error) {
	limited := &io.LimitedReader{R: conn, N: maxRequest}
	br := bufio.NewReaderSize(limited, 1024)
	req, err := http.ReadRequest(br)
	w := &response{conn: conn, br: br, header: make(http.Header)}
	if err != nil {
		switch {
		case limited.N == 0:
			w.reply(nil, http.StatusRequestHeaderFieldsTooLarge, "The request is too large.\n")
		case !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded):
			w.reply(nil, http.StatusBadRequest, "This port speaks MQTT over WebSocket.\n")
		}
		return nil, err
	}
	if req.URL.Path != l.cfg.Path {
		w.reply(req, http.StatusNotFound, fmt.Sprintf("Nothing here. MQTT over WebSocket is at %s://%s%s, subprotocol \"mqtt\".\n",
			l.cfg.Type, host(req), l.cfg.Path))
		return nil, fmt.Errorf("no such path: %.64q", req.URL.Path)
	}
	u := websocket.Upgrader{
		// A server that does not pick one of what a browser offers is refused by it: hence the old name as well.
		// A client that offers none breaks [MQTT-6.0.0-3] and harms nobody: it is let in.
		Subprotocols:    []string{"mqtt", "mqttv3.1"},
		ReadBufferSize:  1024,
		WriteBufferSize: writeChunk,
		WriteBufferPool: &wsWriteBufs, // so that an idle connection has none
		// Any page may connect: MQTT clients authenticate themselves in CONNECT and not by cookies, so that another site's
		// page gains nothing by being in a browser.
		CheckOrigin: func(*http.Request) bool { return true },
		Error: func(_ http.ResponseWriter, r *http.Request, status int, reason error) {
			w.reply(r, status, reason.Error()+"\n")
		},
	}
	w.ws = &wsRaw{Conn: conn, timeout: l.cfg.Options.WriteTimeout}
	c, err := u.Upgrade(w, req, nil)
	if err != nil {
		return nil, err
	}
	w.ws.upgraded = true
	c.SetReadLimit(maxMessage)
	return &wsConn{Conn: conn, ws: c, raw: w.ws}, nil
}

// host is the request's Host, if it is fit to be repeated in a text.
func host(req *http.Request) string {
	if h := req.Host; h != "" && len(h) < 256 && !strings.ContainsFunc(h, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return h
	}
	return "HOST"
}

// response is as much of an http.ResponseWriter as an upgrade takes.
type response struct {
	conn   net.Conn
	ws     *wsRaw
	br     *bufio.Reader
	header http.Header
}

func (w *response) Header() http.Header       { return w.header }
func (w *response) Write([]byte) (int, error) { return 0, http.ErrNotSupported }
func (w *response) WriteHeader(int)           {}
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.ws, bufio.NewReadWriter(w.br, bufio.NewWriterSize(w.ws, 16)), nil
}

// reply answers with a line of text; the connection ends after it.
func (w *response) reply(req *http.Request, status int, text string) {
	w.header.Set("Content-Type", "text/plain; charset=utf-8")
	w.header.Set("X-Content-Type-Options", "nosniff")
	res := http.Response{
		StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, Request: req, Header: w.header, Close: true,
		ContentLength: int64(len(text)), Body: io.NopCloser(strings.NewReader(text)),
	}
	var b bytes.Buffer
	_ = res.Write(&b)
	_, _ = w.conn.Write(b.Bytes())
}

// wsRaw stands between the WebSocket library and the socket, because the library sets a write deadline before each
// write: none for data, which Conn has already set, and one second for a pong, which would stay in force for the
// data after it.
type wsRaw struct {
	net.Conn
	timeout  time.Duration
	upgraded bool
	leaving  atomic.Bool
}

// SetDeadline leaves the handshake's deadline in force, which the library would clear.
func (c *wsRaw) SetDeadline(time.Time) error { return nil }

// SetWriteDeadline gives control frames the same time as anything else, except for the last.
func (c *wsRaw) SetWriteDeadline(t time.Time) error {
	switch {
	case t.IsZero() || !c.upgraded:
		return nil
	case !c.leaving.Load():
		t = time.Now().Add(c.timeout)
	}
	return c.Conn.SetWriteDeadline(t)
}

// wsConn is a WebSocket as a stream of bytes [MQTT-6.0.0-2].
type wsConn struct {
	net.Conn
	ws  *websocket.Conn
	raw *wsRaw
	r   io.Reader // the message that is being read
	err error     // reading has ended
}

func (c *wsConn) Read(p []byte) (int, error) {
	for c.err == nil {
		if c.r == nil {
			typ, r, err := c.ws.NextReader()
			switch {
			case err != nil:
				c.err = wsError(err)
				continue
			case typ != websocket.BinaryMessage:
				c.err = errNotBinary
				c.bye(websocket.CloseUnsupportedData, "MQTT needs binary frames")
				continue
			}
			c.r = r
		}
		n, err := c.r.Read(p)
		switch {
		case err == io.EOF:
			c.r = nil
		case err != nil:
			c.err = wsError(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, c.err
}

// Write sends p as one binary frame [MQTT-6.0.0-1].
func (c *wsConn) Write(p []byte) (int, error) {
	if err := c.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, wsError(err)
	}
	return len(p), nil
}

// wsError gives back what the library hides: that a deadline passed, and that an orderly end is one.
func wsError(err error) error {
	var ne net.Error
	switch {
	case errors.As(err, &ne) && ne.Timeout():
		return fmt.Errorf("WebSocket: %w", os.ErrDeadlineExceeded)
	case websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseGoingAway, websocket.CloseNoStatusReceived):
		return io.EOF
	}
	return err
}

func (c *wsConn) bye(code int, text string) {
	c.raw.leaving.Store(true)
	_ = c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, text), time.Now().Add(closeLinger))
}

func (c *wsConn) goodbye() {
	c.bye(websocket.CloseNormalClosure, "")
	if t, ok := c.Conn.(goodbyer); ok {
		t.goodbye()
	}
}

// NetConn returns the connection underneath.
func (c *wsConn) NetConn() net.Conn { return c.Conn }

// ConnectionState returns the state of the TLS connection underneath, nil without one.
func (c *wsConn) ConnectionState() *tls.ConnectionState {
	if t, ok := c.Conn.(*tlsConn); ok {
		return t.ConnectionState()
	}
	return nil
}
