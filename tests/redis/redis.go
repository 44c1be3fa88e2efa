// Package redis starts private redis-servers for a test, on free ports of loopback, each with a folder of its own: one alone,
// with Sentinel, or a Redis Cluster. A machine without one skips the test by name; in CI (CI=true) it fails.
package redis

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long a server may take to start, or a cluster to form.
const patience = 60 * time.Second

// ErrNotInstalled: the machine has no Redis.
var ErrNotInstalled = errors.New("not installed: make test-deps")

// Server is a redis-server. It belongs to the goroutine of its test.
type Server struct {
	fatal  func(args ...any)
	binary string
	dir    string
	port   int
	args   []string
	kind   string // of its settings file: "redis" or "sentinel"
	proc   *os.Process
	output bytes.Buffer
	done   chan struct{} // closed when the process has ended
}

// Start starts a server, with args beside what it needs, as on the command line of redis-server: "--requirepass", "secret".
// It is stopped, and its folder removed, with the test.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	s, err := Launch(args...)
	skip(t, err)
	s.fatal = t.Fatal
	t.Cleanup(s.Close)
	return s
}

func skip(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, ErrNotInstalled) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Launch is Start for a server that several tests share: Close is the caller's business, and what goes wrong in the
// methods is a panic. Errors: ErrNotInstalled.
func Launch(args ...string) (*Server, error) { return launch("redis", "", args...) }

// launch starts a server with a settings file, which Sentinel rewrites.
func launch(kind, settings string, args ...string) (*Server, error) {
	binary, err := find()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "redis")
	if err != nil {
		return nil, err
	}
	s := &Server{binary: binary, dir: dir, kind: kind, args: args, fatal: func(args ...any) { panic(fmt.Sprint(args...)) }}
	if s.port, err = freePort(); err == nil {
		err = os.WriteFile(s.path(kind+".conf"), []byte(settings), 0o600)
	}
	if err == nil {
		err = s.run()
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// find is the path of redis-server.
func find() (string, error) {
	for _, candidate := range []string{"redis-server", "/usr/bin/redis-server", "/usr/sbin/redis-server", "/usr/local/bin/redis-server"} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("redis-server is %w", ErrNotInstalled)
}

// freePort finds a port below those that the system gives to outgoing connections: one of these could have it when the
// server is started again. The port 10,000 above it, on which the servers of a Redis Cluster speak to each other, is free too.
func freePort() (port int, err error) {
	for range 100 {
		port = 10000 + rand.IntN(10000)
		if err = free(port); err == nil {
			err = free(port + 10000)
		}
		if err == nil {
			return port, nil
		}
	}
	return 0, err
}

func free(port int) error {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	return l.Close()
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

// Addr is where the server listens.
func (s *Server) Addr() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

// Close stops the server and removes its folder.
func (s *Server) Close() {
	s.Stop()
	_ = os.RemoveAll(s.dir)
}

// Run starts the process again after Stop, on the same port, and waits until it answers.
func (s *Server) Run() {
	if err := s.run(); err != nil {
		s.fatal(err)
	}
}

func (s *Server) run() error {
	args := []string{s.path(s.kind + ".conf")}
	if s.kind == "sentinel" {
		args = append(args, "--sentinel")
	} else {
		args = append(args, "--save", "", "--appendonly", "no")
	}
	args = append(args, "--port", fmt.Sprint(s.port), "--bind", "127.0.0.1", "--dir", s.dir, "--daemonize", "no")
	cmd := exec.Command(s.binary, append(args, s.args...)...)
	s.output.Reset()
	cmd.Stdout, cmd.Stderr = &s.output, &s.output
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in its output
		close(done)
	}()
	s.proc, s.done = cmd.Process, done
	return wait(func() error {
		select {
		case <-done:
			return fmt.Errorf("redis-server ended: %w\n%s", errFatal, s.output.String())
		default:
		}
		_, err := s.do("PING")
		var refused Refused
		if errors.As(err, &refused) && !strings.HasPrefix(string(refused), "LOADING") { // it answers: NOAUTH
			return nil
		}
		return err
	})
}

var errFatal = errors.New("it will not come")

// wait looks until f returns nil, or patience ends.
func wait(f func() error) error {
	for end := time.Now().Add(patience); ; {
		err := f()
		if err == nil || errors.Is(err, errFatal) {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("not within %v: %w", patience, err)
		}
		<-time.After(20 * time.Millisecond) // between looks, not instead of them
	}
}

// Hang makes the process accept connections and answer nothing, until Resume.
func (s *Server) Hang() {
	if err := s.proc.Signal(syscall.SIGSTOP); err != nil {
		s.fatal(err)
	}
	// The signal is on its way; threads go on until the last of them has stopped, which the parent is told.
	var status syscall.WaitStatus
	for !status.Stopped() {
		if _, err := syscall.Wait4(s.proc.Pid, &status, syscall.WUNTRACED, nil); err != nil && err != syscall.EINTR {
			s.fatal(err)
		}
	}
}

// Resume ends Hang.
func (s *Server) Resume() {
	if err := s.proc.Signal(syscall.SIGCONT); err != nil {
		s.fatal(err)
	}
}

// Stop ends the process, as a crash does.
func (s *Server) Stop() {
	if s.done == nil {
		return
	}
	_ = s.proc.Kill()
	<-s.done
	s.done = nil
}

// Refused is an error that the server has answered with.
type Refused string

func (r Refused) Error() string { return string(r) }

// Do runs a command, as the default user, and returns the answer as text; lists with a line for each entry.
func (s *Server) Do(args ...string) string {
	answer, err := s.do(args...)
	if err != nil {
		s.fatal(fmt.Sprintf("%s: %v", strings.Join(args, " "), err))
	}
	return answer
}

// do speaks just enough of the protocol: a client's library is not needed to test one.
func (s *Server) do(args ...string) (string, error) {
	c, err := net.DialTimeout("tcp", s.Addr(), time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	var request bytes.Buffer
	for i, a := range s.args { // a password that the server was started with
		if a == "--requirepass" && i+1 < len(s.args) {
			command(&request, "AUTH", s.args[i+1])
		}
	}
	auth := request.Len() > 0
	command(&request, args...)
	if _, err := c.Write(request.Bytes()); err != nil {
		return "", err
	}
	r := bufio.NewReader(c)
	if auth {
		if _, err := answer(r); err != nil {
			return "", err
		}
	}
	return answer(r)
}

func command(w *bytes.Buffer, args ...string) {
	fmt.Fprintf(w, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(w, "$%d\r\n%s\r\n", len(a), a)
	}
}

func answer(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	kind, rest := line[0], strings.TrimRight(line[1:], "\r\n")
	switch kind {
	case '+', ':':
		return rest, nil
	case '-':
		return "", Refused(rest)
	}
	n, err := strconv.Atoi(rest)
	if err != nil || n < 0 {
		return "", err
	}
	if kind == '$' {
		b := make([]byte, n+2)
		_, err := io.ReadFull(r, b)
		return string(b[:n]), err
	}
	list := make([]string, n)
	for i := range list {
		if list[i], err = answer(r); err != nil {
			return "", err
		}
	}
	return strings.Join(list, "\n"), nil
}

// Flush removes everything from the server.
func (s *Server) Flush() { s.Do("FLUSHALL") }
