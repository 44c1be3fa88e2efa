// Package docs tests that what the documentation shows is what the server does.
package docs

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

var bin string // the built server

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "mqim-docs")
	if err != nil {
		panic(err)
	}
	bin = filepath.Join(dir, "mqim")
	if out, err := exec.Command("go", "build", "-race", "-o", bin, "../cmd/mqim").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// start runs the server on free ports and returns its MQTT port.
func start(t *testing.T) (port string) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(bin, "serve", "--config", "../config.yaml")
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "MQIM_TORTURE=") }) // no setting
	cmd.Env = append(env, `MQIM_LISTENERS=[{name: mqtt, type: tcp, address: "127.0.0.1:0"}]`,
		"MQIM_HTTP_ADDRESS=", "MQIM_STORE_PEBBLE_PATH="+filepath.Join(dir, "data"),
		"MQIM_DELIVERY_ACK_TIMEOUT=10m") // nothing comes a second time on a slow machine: the page has no attempt
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	listening := regexp.MustCompile(`msg="listening for MQTT" name=mqtt .*address=(\S+)`)
	found := make(chan string, 1)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for sc := bufio.NewScanner(log); sc.Scan(); {
			if m := listening.FindStringSubmatch(sc.Text()); m != nil {
				_, p, _ := net.SplitHostPort(m[1])
				found <- p
			}
			if strings.Contains(sc.Text(), "DATA RACE") || strings.Contains(sc.Text(), "panic:") {
				t.Error(sc.Text())
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-read
		if err := cmd.Wait(); err != nil {
			t.Errorf("the server stopped with %v", err)
		}
	})
	select {
	case port = <-found:
		return port
	case <-time.After(patience):
		t.Fatal("the server does not listen")
	}
	return ""
}

// TestREADME runs the shell blocks of the README as they stand. mosquitto's clients read the port from a file of options.
func TestREADME(t *testing.T) {
	if _, err := exec.LookPath("mosquitto_pub"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("mosquitto_pub is not installed: make test-deps")
		}
		t.Skip("mosquitto_pub is not installed: make test-deps")
	}
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	want := [][]string{
		{"hello", "while you were out"},
		{"hi carol", "from:alice", "cid:m-1", "conv:u/alice"},
		{`"conv":"u/alice"`, `"body":{"text":"lunch?"}`},
		{`"change":"create"`, "hello, team", "from:frank", "conv:g/team"},
		{"colder, please"},
	}
	if len(blocks) != len(want) {
		t.Fatalf("README.md has %d shell blocks, want %d: say here what they print", len(blocks), len(want))
	}
	port := start(t)
	home := t.TempDir()
	for _, tool := range []string{"mosquitto_pub", "mosquitto_sub"} {
		if err := os.WriteFile(filepath.Join(home, tool), []byte("-p "+port+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i, b := range blocks {
		cmd := exec.Command("timeout", "20", "bash", "-c", b[1])
		cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+home, "HOME="+home)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("block %d: %v\n%s\nprinted:\n%s", i+1, err, b[1], out)
			continue
		}
		rest := string(out)
		for _, w := range want[i] {
			if _, after, ok := strings.Cut(rest, w); ok && i == 0 {
				rest = after // in this order
			} else if !ok {
				t.Errorf("block %d: got %q, want %q in it", i+1, out, w)
			}
		}
	}
}

// TestSettings has the server check the settings that the pages show.
func TestSettings(t *testing.T) {
	for page, least := range map[string]int{"operations.md": 3, "cluster.md": 1} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(text), -1)
		if len(blocks) < least {
			t.Fatalf("%s shows settings %d times, want %d or more", page, len(blocks), least)
		}
		for _, b := range blocks {
			file := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(file, []byte(b[1]), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(bin, "check", "--config", file).CombinedOutput(); err != nil {
				t.Errorf("%s: mqim check: %v\n%s\n%s", page, err, out, b[1])
			}
		}
	}
}

// device is a client of the exchanges in protocol.md.
type device struct {
	client paho.Client
	got    chan paho.Message
	early  []paho.Message // came before the line that wants it
}

// TestProtocol runs the exchanges of protocol.md line by line.
func TestProtocol(t *testing.T) {
	text, err := os.ReadFile("protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```exchange\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(blocks) < 7 {
		t.Fatalf("protocol.md has %d exchanges, want 7 or more", len(blocks))
	}
	port := start(t)
	devices := map[string]*device{}
	ids := map[string]string{} // as written → as made
	for _, name := range []string{"alice", "bob"} {
		devices[name] = connect(t, port, name)
	}
	line := regexp.MustCompile(`^(\w+) (→|←) (\S+) (.*)$`)
	for _, b := range blocks {
		for l := range strings.Lines(b[1]) {
			m := line.FindStringSubmatch(strings.TrimSpace(l))
			if m == nil {
				t.Fatalf("not a line of an exchange: %s", l)
			}
			d := devices[m[1]]
			if m[2] == "→" {
				payload := m[4]
				for written, made := range ids {
					payload = strings.ReplaceAll(payload, written, made)
				}
				if tok := d.client.Publish(m[3], 1, false, payload); !tok.WaitTimeout(patience) || tok.Error() != nil {
					t.Fatalf("%s: %v", l, tok.Error())
				}
				continue
			}
			d.expect(t, m[3], m[4], ids)
		}
	}
}

func connect(t *testing.T, port, name string) *device {
	t.Helper()
	d := &device{got: make(chan paho.Message, 100)}
	o := paho.NewClientOptions().AddBroker("tcp://127.0.0.1:" + port).SetUsername(name).SetClientID(name + "-1")
	d.client = paho.NewClient(o)
	if tok := d.client.Connect(); !tok.WaitTimeout(patience) || tok.Error() != nil {
		t.Fatalf("connect: %v", tok.Error())
	}
	t.Cleanup(func() { d.client.Disconnect(100) })
	tok := d.client.Subscribe("im/u/"+name+"/+", 1, func(_ paho.Client, m paho.Message) { d.got <- m })
	if !tok.WaitTimeout(patience) || tok.Error() != nil {
		t.Fatalf("subscribe: %v", tok.Error())
	}
	return d
}

// expect waits for the message that a line shows.
func (d *device) expect(t *testing.T, topic, want string, ids map[string]string) {
	t.Helper()
	var w any
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatalf("%s: %v", want, err)
	}
	var last string
	for i, m := range d.early {
		if m.Topic() == topic && same(w, decode(t, m), ids) == "" {
			d.early = append(d.early[:i], d.early[i+1:]...)
			return
		}
	}
	timeout := time.After(patience)
	for {
		select {
		case m := <-d.got:
			if m.Topic() == topic {
				if last = same(w, decode(t, m), ids); last == "" {
					return
				}
				last += "\n got " + string(m.Payload())
			}
			d.early = append(d.early, m)
		case <-timeout:
			t.Fatalf("%s did not come:\nwant %s\n%s", topic, want, last)
		}
	}
}

func decode(t *testing.T, m paho.Message) (v any) {
	t.Helper()
	if err := json.Unmarshal(m.Payload(), &v); err != nil {
		t.Fatalf("%s: %v: %s", m.Topic(), err, m.Payload())
	}
	return v
}

// same compares what is written with what came; "" is equal. Times may be any time; an id may be any id, but always
// the same one for the same id in the text; "*" may be anything. What does not match teaches no ids.
func same(want, got any, ids map[string]string) string {
	tried := maps.Clone(ids)
	diff := compare(want, got, tried)
	if diff == "" {
		maps.Copy(ids, tried)
	}
	return diff
}

func compare(want, got any, ids map[string]string) string {
	if want == "*" {
		return ""
	}
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok || len(g) != len(w) {
			return fmt.Sprintf("want %v, got %v", want, got)
		}
		for k := range w {
			if diff := compare(w[k], g[k], ids); diff != "" {
				return k + ": " + diff
			}
		}
		return ""
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return fmt.Sprintf("want %v, got %v", want, got)
		}
		for i := range w {
			if diff := compare(w[i], g[i], ids); diff != "" {
				return diff
			}
		}
		return ""
	case float64:
		if g, ok := got.(float64); ok && (w == g || w > 1e12 && g > 1e12) {
			return ""
		}
	case string:
		g, ok := got.(string)
		if ok && w == g {
			return ""
		}
		if ok && len(w) >= 15 && strings.Trim(w, "0123456789") == "" {
			if _, seen := ids[w]; !seen {
				ids[w] = g
			}
			if ids[w] == g {
				return ""
			}
		}
	default:
		if want == got {
			return ""
		}
	}
	return fmt.Sprintf("want %v, got %v", want, got)
}
