package mysql_test

import (
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// cut is what a proxy does with a command on its way to the server.
type cut int

const (
	pass   cut = iota
	before     // the connection ends; the server never sees the command
	during     // the server gets the command, and the connection ends at once
	after      // the server has answered, and the connection ends without the answer
	late       // the connection ends, and the server gets the command when somebody has asked for its outcome
)

// proxy stands between a store and its server and cuts connections.
type proxy struct {
	t      *testing.T
	l      net.Listener
	target string
	rule   func(command string) cut // called by one goroutine at a time
	asked  chan struct{}            // somebody wants to know an outcome
	wg     sync.WaitGroup

	mu    sync.Mutex // guards what follows, and calls of rule
	conns map[net.Conn]bool
	away  bool // refuses everybody
}

func newProxy(t *testing.T, target string, rule func(string) cut) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, l: l, target: target, rule: rule, asked: make(chan struct{}, 1), conns: map[net.Conn]bool{}}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.setAway(true)
		p.wg.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.l.Addr().String() }

// setAway cuts everybody off, or lets them in again.
func (p *proxy) setAway(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away = on
	if on {
		p.leave()
	}
}

// leave is setAway for the holder of mu.
func (p *proxy) leave() {
	p.away = true
	for c := range p.conns {
		c.Close()
	}
}

func (p *proxy) accept() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(c) })
	}
}

func (p *proxy) track(c net.Conn, on bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !on {
		delete(p.conns, c)
		return true
	}
	p.conns[c] = true
	return !p.away
}

func (p *proxy) decide(command string) cut {
	if strings.Contains(command, "SELECT batch FROM mqim_writers") {
		select {
		case p.asked <- struct{}{}:
		default:
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rule(command)
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	if !p.track(client, true) {
		p.track(client, false)
		return
	}
	defer p.track(client, false)
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer server.Close()
	var mute sync.Mutex // held while answers are kept back
	answered := make(chan struct{}, 1)
	muted := false
	p.wg.Go(func() { // from the server to the client
		defer client.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Read(buf)
			if err != nil {
				return
			}
			mute.Lock()
			silent := muted
			mute.Unlock()
			if silent {
				select {
				case answered <- struct{}{}:
				default:
				}
				continue
			}
			if _, err := client.Write(buf[:n]); err != nil {
				select {
				case answered <- struct{}{}:
				default:
				}
				return
			}
		}
	})
	for {
		var head [4]byte
		if _, err := io.ReadFull(client, head[:]); err != nil {
			return
		}
		head0 := head
		head0[3] = 0
		body := make([]byte, 4+binary.LittleEndian.Uint32(head0[:]))
		copy(body, head[:])
		if _, err := io.ReadFull(client, body[4:]); err != nil {
			return
		}
		what := pass
		if len(body) > 5 && body[4] == 3 { // COM_QUERY
			what = p.decide(string(body[5:min(len(body), 200)]))
		}
		switch what {
		case before:
			return
		case late:
			select {
			case <-p.asked: // of one before
			default:
			}
			client.Close()
			select {
			case <-p.asked:
				<-time.After(200 * time.Millisecond) // until the question is at the server
			case <-time.After(5 * time.Second):
			}
		case after:
			mute.Lock()
			muted = true
			mute.Unlock()
		}
		if _, err := server.Write(body); err != nil {
			return
		}
		switch what {
		case during:
			return
		case late:
			<-answered
			return
		case after:
			<-answered
			return
		}
	}
}

func isCommit(command string) bool { return strings.HasPrefix(command, "COMMIT") }
