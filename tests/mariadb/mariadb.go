// Package mariadb starts a private MariaDB server for a test, on a free port of loopback, with a folder of its own.
// A machine without one skips the test by name; in CI (CI=true) it fails.
package mariadb

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"go.uber.org/goleak"
)

// patience is how long a server may take to start or to stop.
const patience = 60 * time.Second

// Password is that of the user mqim, for tests that look for it where it must not be.
const Password = "hush-hush-database"

// ErrNotInstalled: the machine has no MariaDB.
var ErrNotInstalled = errors.New("not installed: make test-deps")

// Server is a running server with a database named mqim. It belongs to the goroutine of its test.
type Server struct {
	DB *sql.DB // the administrator's

	fatal  func(args ...any)
	dir    string
	port   int
	cmd    *exec.Cmd
	output bytes.Buffer
	done   chan struct{} // closed when the process has ended
}

// Start starts a server, with args beside what it needs. It is stopped, and its folder removed, with the test.
func Start(t *testing.T, args ...string) *Server {
	t.Helper()
	s, err := Launch(args...)
	if errors.Is(err, ErrNotInstalled) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.fatal = t.Fatal
	t.Cleanup(s.Close)
	return s
}

// Main runs the tests of a package that share a server, which use is given before, and returns the exit code. On a bare
// machine use is not called. A goroutine that stays behind fails them.
func Main(m *testing.M, use func(*Server), args ...string) (code int) {
	s, err := Launch(args...)
	switch {
	case err == nil:
		use(s)
	case errors.Is(err, ErrNotInstalled) && os.Getenv("CI") != "true":
	default:
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code = m.Run()
	if s != nil {
		s.Close()
	}
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// Launch is Start for a server that several tests share: Close is the caller's business, and what goes wrong in the
// methods is a panic. Errors: ErrNotInstalled.
func Launch(args ...string) (*Server, error) {
	install, err := find("mariadb-install-db")
	if err != nil {
		return nil, err
	}
	daemon, err := find("mariadbd")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "mdb") // a test's own folder is too long for the path of a socket
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, fatal: func(args ...any) { panic(fmt.Sprint(args...)) }}
	if err := s.launch(install, daemon, args); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Server) launch(install, daemon string, args []string) error {
	me := "--user=" + os.Getenv("USER")
	if os.Getuid() == 0 {
		me = "--user=root"
	}
	// Temporary tables are named after a process, and servers in other containers may share /tmp.
	tmp := "--tmpdir=" + s.dir
	out, err := exec.Command(install, "--no-defaults", "--datadir="+s.path("data"), tmp, "--auth-root-authentication-method=normal", "--skip-test-db", me).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mariadb-install-db: %w\n%s", err, out)
	}
	// Tests kill the server, not its machine: what it has written is there, synced or not, and most of the time would go by syncing.
	s.cmd = exec.Command(daemon, append([]string{"--no-defaults", "--innodb-flush-method=nosync", "--datadir=" + s.path("data"), "--socket=" + s.path("sock"), "--pid-file=" + s.path("pid"),
		"--bind-address=127.0.0.1", "--skip-name-resolve", "--innodb-buffer-pool-size=16M", "--skip-log-bin", tmp, me}, args...)...)
	if s.port, err = freePort(); err != nil {
		return err
	}
	admin := mysql.NewConfig()
	admin.User, admin.Net, admin.Addr, admin.Logger = "root", "unix", s.path("sock"), &mysql.NopLogger{}
	connector, err := mysql.NewConnector(admin)
	if err != nil {
		return err
	}
	s.DB = sql.OpenDB(connector)
	if err := s.run(); err != nil {
		return err
	}
	return s.exec("CREATE DATABASE mqim", "CREATE USER mqim@'%' IDENTIFIED BY '"+Password+"'", "GRANT SELECT ON mqim.* TO mqim@'%'")
}

// StartReplica starts a server that copies what happens on the primary from now on, which runs with "--log-bin" and a
// "--server-id" of 1 and has been given nothing yet. CatchUp waits for it.
func StartReplica(t *testing.T, primary *Server, args ...string) *Server {
	t.Helper()
	s := Start(t, append([]string{fmt.Sprint("--server-id=", 2+rand.IntN(1<<30)), "--relay-log=relay", "--slave-net-timeout=5"}, args...)...)
	file, position := primary.position()
	primary.Exec("CREATE USER IF NOT EXISTS copy@'%' IDENTIFIED BY '"+Password+"'", "GRANT REPLICATION SLAVE ON *.* TO copy@'%'")
	s.Exec(fmt.Sprintf("CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT=%d, MASTER_USER='copy', MASTER_PASSWORD='%s', "+
		"MASTER_LOG_FILE='%s', MASTER_LOG_POS=%d, MASTER_CONNECT_RETRY=1", primary.port, Password, file, position), "START SLAVE")
	return s
}

// position is the end of the binary log.
func (s *Server) position() (file string, position int64) {
	var ignored sql.RawBytes
	rows, err := s.DB.Query("SHOW MASTER STATUS")
	if err != nil {
		s.fatal(err)
	}
	defer rows.Close()
	if !rows.Next() {
		s.fatal("the primary has no binary log")
	}
	if err := rows.Scan(&file, &position, &ignored, &ignored); err != nil {
		s.fatal(err)
	}
	return file, position
}

// CatchUp waits until a replica has all that is on the primary now.
func (s *Server) CatchUp(primary *Server) {
	file, position := primary.position()
	var n sql.NullInt64
	if err := s.DB.QueryRow("SELECT MASTER_POS_WAIT(?, ?, ?)", file, position, int(patience/time.Second)).Scan(&n); err != nil || !n.Valid || n.Int64 < 0 {
		s.fatal("the replica does not catch up: ", n, err)
	}
}

// Close stops the server and removes its folder.
func (s *Server) Close() {
	if s.DB != nil {
		_ = s.DB.Close()
	}
	s.Stop()
	_ = os.RemoveAll(s.dir)
}

// find is the path of a program.
func find(name string) (string, error) {
	for _, candidate := range []string{name, "/usr/sbin/" + name} { // Debian's place for servers is not in everybody's PATH
		if path, err := exec.LookPath(candidate); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is %w", name, ErrNotInstalled)
}

// freePort finds a port below those that the system gives to outgoing connections: one of these could have it when the
// server is started again.
func freePort() (port int, err error) {
	for range 100 {
		port = 10000 + rand.IntN(20000)
		l, e := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if e == nil {
			return port, l.Close()
		}
		err = e
	}
	return 0, err
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

// DSN is how the user mqim connects.
func (s *Server) DSN() string { return fmt.Sprintf("mqim:%s@tcp(127.0.0.1:%d)/mqim", Password, s.port) }

// Addr is where the server listens.
func (s *Server) Addr() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

// Exec runs statements as the administrator.
func (s *Server) Exec(statements ...string) {
	if err := s.exec(statements...); err != nil {
		s.fatal(err)
	}
}

func (s *Server) exec(statements ...string) error {
	for _, statement := range statements {
		if _, err := s.DB.Exec(statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// Run starts the process again after Stop, on the same port, and waits until it answers.
func (s *Server) Run() {
	if err := s.run(); err != nil {
		s.fatal(err)
	}
}

func (s *Server) run() error {
	cmd := exec.Command(s.cmd.Path, append(s.cmd.Args[1:len(s.cmd.Args):len(s.cmd.Args)], fmt.Sprint("--port=", s.port))...)
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
	s.cmd.Process, s.done = cmd.Process, done
	for end := time.Now().Add(patience); s.DB.Ping() != nil; {
		select {
		case <-done:
			return fmt.Errorf("mariadbd ended:\n%s", s.output.String())
		case <-time.After(20 * time.Millisecond): // between looks, not instead of them
		}
		if time.Now().After(end) {
			return errors.New("mariadbd does not answer")
		}
	}
	return nil
}

// Hang makes the process accept connections and answer nothing, until Resume.
func (s *Server) Hang() {
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		s.fatal(err)
	}
	// The signal is on its way; threads go on until the last of them has stopped, which the parent is told.
	var status syscall.WaitStatus
	for !status.Stopped() {
		if _, err := syscall.Wait4(s.cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil && err != syscall.EINTR {
			s.fatal(err)
		}
	}
}

// Resume ends Hang.
func (s *Server) Resume() {
	if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		s.fatal(err)
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
