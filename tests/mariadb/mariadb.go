// Package mariadb starts a private MariaDB server for a test, on a free port of loopback, with a folder of its own.
// A machine without one skips the test by name; in CI (CI=true) it fails.
package mariadb

import (
	"bytes"
	"database/sql"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

// patience is how long a server may take to start or to stop.
const patience = 60 * time.Second

// Password is that of the user mqim, for tests that look for it where it must not be.
const Password = "hush-hush-database"

// Server is a running server with a database named mqim. It belongs to the goroutine of its test.
type Server struct {
	DB *sql.DB // the administrator's

	t      *testing.T
	dir    string
	port   int
	cmd    *exec.Cmd
	output bytes.Buffer
	done   chan struct{} // closed when the process has ended
}

// Start starts a server. It is stopped, and its folder removed, with the test.
func Start(t *testing.T) *Server {
	t.Helper()
	install, daemon := find(t, "mariadb-install-db"), find(t, "mariadbd")
	dir, err := os.MkdirTemp("", "mdb") // t.TempDir is too long for the path of a socket
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, dir: dir}
	t.Cleanup(func() {
		if s.DB != nil {
			_ = s.DB.Close()
		}
		s.Stop()
		_ = os.RemoveAll(dir)
	})
	me := "--user=" + os.Getenv("USER")
	if os.Getuid() == 0 {
		me = "--user=root"
	}
	out, err := exec.Command(install, "--no-defaults", "--datadir="+s.path("data"), "--auth-root-authentication-method=normal", "--skip-test-db", me).CombinedOutput()
	if err != nil {
		t.Fatalf("mariadb-install-db: %v\n%s", err, out)
	}
	s.cmd = exec.Command(daemon, "--no-defaults", "--datadir="+s.path("data"), "--socket="+s.path("sock"), "--pid-file="+s.path("pid"),
		"--bind-address=127.0.0.1", "--skip-name-resolve", "--innodb-buffer-pool-size=16M", "--skip-log-bin", me)
	s.port = freePort(t)
	admin := mysql.NewConfig()
	admin.User, admin.Net, admin.Addr, admin.Logger = "root", "unix", s.path("sock"), &mysql.NopLogger{}
	connector, err := mysql.NewConnector(admin)
	if err != nil {
		t.Fatal(err)
	}
	s.DB = sql.OpenDB(connector)
	s.Run()
	s.Exec("CREATE DATABASE mqim", "CREATE USER mqim@'%' IDENTIFIED BY '"+Password+"'", "GRANT SELECT ON mqim.* TO mqim@'%'")
	return s
}

// find is the path of a program.
func find(t *testing.T, name string) string {
	t.Helper()
	for _, candidate := range []string{name, "/usr/sbin/" + name} { // Debian's place for servers is not in everybody's PATH
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed: make test-deps", name)
	}
	t.Skipf("%s is not installed: make test-deps", name)
	return ""
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

// DSN is how the user mqim connects.
func (s *Server) DSN() string { return fmt.Sprintf("mqim:%s@tcp(127.0.0.1:%d)/mqim", Password, s.port) }

// Exec runs statements as the administrator.
func (s *Server) Exec(statements ...string) {
	s.t.Helper()
	for _, statement := range statements {
		if _, err := s.DB.ExecContext(s.t.Context(), statement); err != nil {
			s.t.Fatalf("%s: %v", statement, err)
		}
	}
}

// Run starts the process again after Stop, on the same port, and waits until it answers.
func (s *Server) Run() {
	s.t.Helper()
	cmd := exec.Command(s.cmd.Path, append(s.cmd.Args[1:len(s.cmd.Args):len(s.cmd.Args)], fmt.Sprint("--port=", s.port))...)
	s.output.Reset()
	cmd.Stdout, cmd.Stderr = &s.output, &s.output
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in its output
		close(done)
	}()
	s.cmd.Process, s.done = cmd.Process, done
	for end := time.Now().Add(patience); s.DB.PingContext(s.t.Context()) != nil; {
		select {
		case <-done:
			s.t.Fatalf("mariadbd ended:\n%s", s.output.String())
		case <-time.After(20 * time.Millisecond): // between looks, not instead of them
		}
		if time.Now().After(end) {
			s.t.Fatal("mariadbd does not answer")
		}
	}
}

// Hang makes the process accept connections and answer nothing, until Resume.
func (s *Server) Hang() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		s.t.Fatal(err)
	}
	// The signal is on its way; threads go on until the last of them has stopped, which the parent is told.
	var status syscall.WaitStatus
	for !status.Stopped() {
		if _, err := syscall.Wait4(s.cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil && err != syscall.EINTR {
			s.t.Fatal(err)
		}
	}
}

// Resume ends Hang.
func (s *Server) Resume() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		s.t.Fatal(err)
	}
}

// Stop ends the process, as a crash does.
func (s *Server) Stop() {
	if s.done == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	<-s.done
	s.done = nil
}
