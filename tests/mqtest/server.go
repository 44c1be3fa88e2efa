// Package mqtest starts the real server and talks to it packet by packet, for tests that see nothing but the wire, the
// log and the exit code. It knows nothing of the server's packages.
//
// A Server and a Client belong to the goroutine of their test. Waiting has a deadline (Patience) and fails the test with
// what was waited for; nothing sleeps and hopes.
package mqtest

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Patience is how long a test waits for what must come: long, since the machine may be busy with other things.
const Patience = 30 * time.Second

// Secret begins every body, password and token that a test wants kept out of the log: a server that logged it fails
// its test.
const Secret = "hush-hush-"

var bin string

// Build builds the server with the race detector into a temporary folder; remove deletes it.
func Build() (remove func(), err error) {
	dir, err := os.MkdirTemp("", "mqim-tests")
	if err != nil {
		return nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) }
	bin = filepath.Join(dir, "mqim")
	if out, err := exec.Command("go", "build", "-race", "-o", bin, "github.com/mqim/mqim/cmd/mqim").CombinedOutput(); err != nil {
		remove()
		return nil, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return remove, nil
}

// TB is what a Server needs of a test. A server that many tests share has one of its own.
type TB interface {
	Helper()
	Cleanup(func())
	TempDir() string
	Failed() bool
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Config are the sections of a configuration file, each with its YAML.
type Config map[string]string

// Server is a server process and its folder, which outlives the process.
type Server struct {
	Dir  string // holds config.yaml and data/
	HTTP string // address of /readyz and /metrics

	t     TB
	cmd   *exec.Cmd
	addrs map[string]string
	done  chan struct{} // closed when the process has ended and its log is read
	exit  error         // read it after done

	mu  sync.Mutex
	log bytes.Buffer
}

// New writes the configuration of a server into a folder: one tcp listener named mqtt on a free port of loopback, no
// limit of sends, the log at debug, and what c says instead. DIR in it stands for the folder.
func New(t TB, c Config) *Server {
	t.Helper()
	s := &Server{t: t, Dir: t.TempDir()}
	s.Configure(c)
	t.Cleanup(s.cleanup)
	return s
}

// Start is New and Run.
func Start(t TB, c Config) *Server {
	t.Helper()
	s := New(t, c)
	s.Run()
	return s
}

// Configure writes the configuration file anew, as New does.
func (s *Server) Configure(c Config) {
	s.t.Helper()
	all := Config{
		"listeners": `[{name: mqtt, type: tcp, address: "127.0.0.1:0"}]`,
		"http":      `{address: "127.0.0.1:0"}`,
		"store":     `{driver: pebble, pebble: {path: "DIR/data"}}`,
		"limits":    `{sends_per_second: 0}`,
		"log":       `{level: debug}`,
	}
	for k, v := range c {
		all[k] = v
	}
	var b strings.Builder
	for k, v := range all {
		fmt.Fprintf(&b, "%s: %s\n", k, strings.ReplaceAll(v, "DIR", s.Dir))
	}
	s.Write("config.yaml", b.String())
}

// Write writes a file into the server's folder and returns its path.
func (s *Server) Write(name, content string) string {
	s.t.Helper()
	path := filepath.Join(s.Dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		s.t.Fatalf("%v", err)
	}
	return path
}

// Command is the server's binary with arguments, to be run in the server's folder.
func (s *Server) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(bin, args...)
	cmd.Dir = s.Dir
	// The server takes every MQIM_ variable for a setting, and MQIM_TORTURE is the tests' own.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "MQIM_TORTURE=") })
	return cmd
}

var listening = regexp.MustCompile(`msg="listening for (MQTT|HTTP)" (?:name=(\S+) .*)?address=(\S+)`)

// Run starts the process and waits until it is ready.
func (s *Server) Run() {
	s.t.Helper()
	s.cmd = s.Command("serve", "--config", filepath.Join(s.Dir, "config.yaml"))
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		s.t.Fatalf("%v", err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatalf("%v", err)
	}
	s.addrs, s.HTTP = map[string]string{}, ""
	started, done := make(chan struct{}), make(chan struct{})
	s.done = done
	go func() {
		defer close(done)
		up := false
		r := bufio.NewReader(stderr)
		for {
			line, err := r.ReadString('\n')
			s.mu.Lock()
			s.log.WriteString(line)
			if m := listening.FindStringSubmatch(line); m != nil {
				if m[1] == "HTTP" {
					s.HTTP = m[3]
				} else {
					s.addrs[m[2]] = m[3]
				}
			}
			s.mu.Unlock()
			if !up && strings.Contains(line, `msg="storing messages"`) { // the line after all addresses
				up = true
				close(started)
			}
			if err != nil {
				break
			}
		}
		s.exit = s.cmd.Wait()
	}()
	select {
	case <-started:
	case <-done:
		s.t.Fatalf("the server ended: %v\n%s", s.exit, s.Log())
	case <-time.After(Patience):
		s.t.Fatalf("the server does not start\n%s", s.Log())
	}
	Eventually(s.t, "/readyz to answer 200", func() bool { return s.Get("/readyz") == http.StatusOK })
}

// Get returns the status of an HTTP path, 0 when there is no answer.
func (s *Server) Get(path string) int {
	resp, err := http.Get("http://" + s.HTTP + path)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// Metric is the sum of a metric's values, over all its labels.
func (s *Server) Metric(name string) (sum float64) {
	resp, err := http.Get("http://" + s.HTTP + "/metrics")
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		rest, ok := strings.CutPrefix(sc.Text(), name)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		var v float64
		if _, err := fmt.Sscan(rest[strings.LastIndexByte(rest, ' ')+1:], &v); err == nil {
			sum += v
		}
	}
	return sum
}

// Addr is the bound address of a listener.
func (s *Server) Addr(name string) string {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.addrs[name]
	if !ok {
		s.t.Fatalf("no listener %q among %v", name, s.addrs)
	}
	return a
}

// Log is what the process has logged, over all its runs.
func (s *Server) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// WaitLog waits until the log holds text.
func (s *Server) WaitLog(text string) {
	s.t.Helper()
	Eventually(s.t, fmt.Sprintf("%q in the log", text), func() bool { return strings.Contains(s.Log(), text) })
}

// Signal sends the process a signal.
func (s *Server) Signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Fatalf("signal %v: %v", sig, err)
	}
}

// Wait waits for the process to end and returns its exit error.
func (s *Server) Wait() error {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(Patience):
		_ = s.cmd.Process.Kill()
		<-s.done
		s.t.Fatalf("the server does not stop\n%s", tail(s.Log()))
	}
	s.cmd = nil
	return s.exit
}

// Stop ends the process with SIGTERM; an exit code other than 0 is an error of the test.
func (s *Server) Stop() {
	s.t.Helper()
	s.Signal(syscall.SIGTERM)
	if err := s.Wait(); err != nil {
		s.t.Errorf("the server stopped with %v\n%s", err, tail(s.Log()))
	}
}

// Kill ends the process with SIGKILL, as a crash does.
func (s *Server) Kill() {
	s.t.Helper()
	s.Signal(syscall.SIGKILL)
	_ = s.Wait()
}

// cleanup stops the process and reads its log for what must never be there.
func (s *Server) cleanup() {
	s.t.Helper()
	if s.cmd != nil && s.cmd.Process != nil {
		s.Stop()
	}
	log := s.Log()
	decimal := strings.Trim(fmt.Sprint([]byte(Secret)), "[]") // as Go prints bytes, and as JSON has them
	for _, bad := range []string{"DATA RACE", "panic:", "fatal error:", Secret, decimal, base64.StdEncoding.EncodeToString([]byte(Secret[:9]))} {
		if i := strings.Index(log, bad); i >= 0 {
			s.t.Errorf("%q in the log:\n%s", bad, log[max(0, i-2000):min(len(log), i+4000)])
		}
	}
	if s.t.Failed() {
		s.t.Logf("the server's log:\n%s", tail(log))
	}
}

func tail(s string) string {
	const most = 6000
	if len(s) > most {
		return "…" + s[len(s)-most:]
	}
	return s
}

// Eventually waits until cond holds.
func Eventually(t TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); !cond(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(5 * time.Millisecond) // between looks, not instead of them
	}
}
