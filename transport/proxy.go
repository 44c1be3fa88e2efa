package transport

import (
	"bufio"
	"fmt"
	"net"

	"github.com/pires/go-proxyproto"
)

// maxProxyHeader bounds a PROXY header in bytes. The library takes at most 4 KiB after the fixed part, of which only
// the addresses are of interest here.
const maxProxyHeader = 4 << 10

// proxied is a connection whose remote address is the one that the proxy has told.
type proxied struct {
	net.Conn
	remote net.Addr
	rest   []byte // came in with the header
}

// readProxy reads the PROXY header, version 1 or 2, without which a connection is refused. The raw connection's deadline
// must be set. A connection of the proxy's own (LOCAL, UNKNOWN), such as a health check, keeps its address.
func readProxy(raw net.Conn) (*proxied, error) {
	br := bufio.NewReaderSize(raw, maxProxyHeader)
	h, err := proxyproto.Read(br)
	if err != nil {
		return nil, fmt.Errorf("PROXY header: %w", err)
	}
	p := &proxied{Conn: raw, remote: raw.RemoteAddr()}
	if a, ok := h.SourceAddr.(*net.TCPAddr); ok && h.Command.IsProxy() {
		p.remote = a
	}
	if n := br.Buffered(); n > 0 {
		rest, _ := br.Peek(n) // it is there
		p.rest = append([]byte(nil), rest...)
	}
	return p, nil
}

func (p *proxied) Read(b []byte) (int, error) {
	if len(p.rest) > 0 {
		n := copy(b, p.rest)
		if p.rest = p.rest[n:]; len(p.rest) == 0 {
			p.rest = nil
		}
		return n, nil
	}
	return p.Conn.Read(b)
}

func (p *proxied) RemoteAddr() net.Addr { return p.remote }

// NetConn returns the connection underneath.
func (p *proxied) NetConn() net.Conn { return p.Conn }
