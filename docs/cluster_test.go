package docs

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ports returns the first of n consecutive ports of loopback that are free, and are not given to connections going out.
func ports(t *testing.T, n int) int {
	t.Helper()
	for range 100 {
		first, free := 10_000+rand.IntN(20_000), true
		for port := first; port < first+n && free; port++ {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if free = err == nil; free {
				_ = l.Close()
			}
		}
		if free {
			return first
		}
	}
	t.Fatal("there are no free ports")
	return 0
}

// TestCluster runs make cluster's script, and what cluster.md says against its nodes.
func TestCluster(t *testing.T) {
	for _, tool := range []string{"mosquitto_pub", "mariadbd", "redis-server"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is not installed: make test-deps", tool)
			}
			t.Skipf("%s is not installed: make test-deps", tool)
		}
	}
	text, err := os.ReadFile("cluster.md")
	if err != nil {
		t.Fatal(err)
	}
	first := ports(t, 11)
	at := map[string]int{"MQTT": first, "WS": first + 3, "HTTP": first + 6, "DB": first + 9, "REDIS": first + 10}
	dir := filepath.Join(t.TempDir(), "cluster")
	cmd := exec.Command("bash", "../scripts/cluster.sh", dir)
	cmd.Env = append(os.Environ(), "MQIM="+bin)
	for name, port := range at {
		cmd.Env = append(cmd.Env, name+"="+strconv.Itoa(port))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	running, ended := make(chan struct{}), make(chan string, 1)
	go func() {
		var all strings.Builder
		for sc := bufio.NewScanner(out); sc.Scan(); {
			fmt.Fprintln(&all, sc.Text())
			if strings.Contains(sc.Text(), "running until") {
				close(running)
			}
		}
		ended <- all.String()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		for n := 1; n <= 3; n++ {
			log, _ := os.ReadFile(filepath.Join(dir, fmt.Sprintf("node%d.log", n)))
			for _, bad := range []string{"DATA RACE", "panic:", "level=ERROR"} {
				if strings.Contains(string(log), bad) {
					t.Errorf("node %d: %s:\n%s", n, bad, log)
				}
			}
		}
	})
	select {
	case <-running:
	case all := <-ended:
		t.Fatalf("the script has ended:\n%s", all)
	case <-time.After(3 * patience):
		t.Fatal("the cluster does not start")
	}

	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	want := []string{"hello from the third\nwhile you were out\n", "colder, please\n"}
	if len(blocks) != len(want) {
		t.Fatalf("cluster.md has %d shell blocks, want %d: say here what they print", len(blocks), len(want))
	}
	written := regexp.MustCompile(`-p 188(\d)`)
	for i, b := range blocks {
		script := written.ReplaceAllStringFunc(b[1], func(p string) string {
			n, _ := strconv.Atoi(p[len(p)-1:])
			return fmt.Sprintf("-p %d", at["MQTT"]+n-3)
		})
		got, err := exec.Command("timeout", "30", "bash", "-c", script).CombinedOutput()
		if err != nil || string(got) != want[i] {
			t.Errorf("%v: got %q, want %q\n%s", err, got, want[i], script)
		}
	}
}
