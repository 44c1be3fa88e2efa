package transport

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is a socket that hands out prepared pieces, one a Read, and then end.
type script struct {
	net.Conn // nil: any other method is a mistake
	pieces   [][]byte
	end      error
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.pieces) == 0 {
		return 0, s.end
	}
	n := copy(p, s.pieces[0])
	if s.pieces[0] = s.pieces[0][n:]; len(s.pieces[0]) == 0 {
		s.pieces = s.pieces[1:]
	}
	return n, nil
}
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }
func (s *script) Close() error                     { return nil }

func feed(pieces ...[]byte) *script {
	s := &script{end: io.EOF}
	for _, p := range pieces {
		if len(p) > 0 {
			s.pieces = append(s.pieces, p)
		}
	}
	return s
}

// sink is a socket that records writes, and holds each until gate lets it go, if there is one.
type sink struct {
	net.Conn
	gate    chan struct{} // a value lets one write through
	started chan struct{} // gets a value when a write begins
	mu      sync.Mutex
	writes  [][]byte
	closed  chan struct{}
	once    sync.Once
}

func newSink(gated bool) *sink {
	s := &sink{closed: make(chan struct{})}
	if gated {
		s.gate, s.started = make(chan struct{}), make(chan struct{}, 100)
	}
	return s
}

func (s *sink) Write(p []byte) (int, error) {
	if s.gate != nil {
		s.started <- struct{}{}
		select {
		case <-s.gate:
		case <-s.closed:
			return 0, net.ErrClosed
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes = append(s.writes, append([]byte(nil), p...))
	return len(p), nil
}
func (s *sink) Read([]byte) (int, error)         { <-s.closed; return 0, net.ErrClosed }
func (s *sink) SetReadDeadline(time.Time) error  { return nil }
func (s *sink) SetWriteDeadline(time.Time) error { return nil }
func (s *sink) Close() error                     { s.once.Do(func() { close(s.closed) }); return nil }

func (s *sink) sizes() (sizes []int, all []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.writes {
		sizes = append(sizes, len(w))
		all = append(all, w...)
	}
	return sizes, all
}

// packet builds one with a body of n bytes, each the number of its place plus seed.
func packet(first byte, n int, seed byte) []byte {
	p := []byte{first}
	for l := n; ; {
		b := byte(l & 0x7f)
		if l >>= 7; l > 0 {
			p = append(p, b|0x80)
			continue
		}
		p = append(p, b)
		break
	}
	for i := range n {
		p = append(p, byte(i)+seed)
	}
	return p
}

// taker is a Handler of functions.
type taker struct {
	frame     func(byte, []byte) (bool, error)
	oversized func(byte, []byte) error
	drained   func()
}

func (t *taker) Frame(f byte, b []byte) (bool, error) {
	if t.frame == nil {
		return false, nil
	}
	return t.frame(f, b)
}

func (t *taker) Oversized(f byte, b []byte) error {
	if t.oversized == nil {
		return errors.New("oversized")
	}
	return t.oversized(f, b)
}

func (t *taker) Drained() {
	if t.drained != nil {
		t.drained()
	}
}
