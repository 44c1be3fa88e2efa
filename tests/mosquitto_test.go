package tests

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/mqim/mqim/tests/mqtest"
)

// need skips the test where a tool is not installed; in CI it fails it.
func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is not installed: make test-deps", tool)
			}
			t.Skipf("%s is not installed: make test-deps", tool)
		}
	}
}

// program is a running client program.
type program struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
	done  chan error
}

// start runs a program whose output is read line by line. It is ended with the test.
func start(t *testing.T, name string, args ...string) *program {
	t.Helper()
	p := &program{t: t, cmd: exec.Command(name, args...), lines: make(chan string, 1000), done: make(chan error, 1)}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = p.cmd.Stdout
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	go func() {
		for sc := bufio.NewScanner(out); sc.Scan(); {
			p.lines <- sc.Text()
		}
		close(p.lines)
		p.done <- p.cmd.Wait()
	}()
	return p
}

// line waits for a line that holds text, past others.
func (p *program) line(text string) string {
	p.t.Helper()
	var seen []string
	timeout := time.After(mqtest.Patience)
	for {
		select {
		case l, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("%v ended without %q; it said %q", p.cmd.Args, text, seen)
			}
			if strings.Contains(l, text) {
				return l
			}
			seen = append(seen, l)
		case <-timeout:
			p.t.Fatalf("%v does not say %q; it said %q", p.cmd.Args, text, seen)
		}
	}
}

// wait waits for the program's end, which must be by itself and without error.
func (p *program) wait() {
	p.t.Helper()
	select {
	case err := <-p.done:
		if err != nil {
			p.t.Fatalf("%v: %v", p.cmd.Args, err)
		}
	case <-time.After(mqtest.Patience):
		p.t.Fatalf("%v does not end", p.cmd.Args)
	}
}

// mosquitto are mosquitto's clients with the options that all share.
type mosquitto struct {
	t    *testing.T
	args []string
}

func newMosquitto(t *testing.T, version string) *mosquitto {
	t.Helper()
	host, port, err := net.SplitHostPort(shared.Addr("mqtt"))
	if err != nil {
		t.Fatal(err)
	}
	return &mosquitto{t, []string{"-V", version, "-h", host, "-p", port}}
}

func (m *mosquitto) pub(args ...string) {
	m.t.Helper()
	cmd := exec.Command("timeout", append(append([]string{"30", "mosquitto_pub"}, m.args...), args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("mosquitto_pub %v: %v: %s", args, err, out)
	}
}

// sub subscribes. Nobody needs to wait until it has: what is sent before waits for it.
func (m *mosquitto) sub(args ...string) *program {
	m.t.Helper()
	return start(m.t, "mosquitto_sub", append(m.args[:len(m.args):len(m.args)], args...)...)
}

// The tour of the README: bob reads, goes, is written to, comes back, and has it.
func TestMosquittoTour(t *testing.T) {
	need(t, "mosquitto_pub", "mosquitto_sub", "timeout")
	t.Parallel()
	for _, version := range []string{"mqttv311", "mqttv5"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			m, alice, bob := newMosquitto(t, version), name("alice"), name("bob")
			topic := "im/u/" + bob
			p := m.sub("-u", bob, "-t", topic, "-q", "1", "-C", "1")
			m.pub("-u", alice, "-t", topic, "-q", "1", "-m", "hello")
			p.line("hello")
			p.wait()
			for i := range 3 {
				m.pub("-u", alice, "-t", topic, "-q", fmt.Sprint(i), "-m", fmt.Sprintf("while you were out, QoS %d", i))
			}
			p = m.sub("-u", bob, "-t", topic, "-q", "1", "-C", "3")
			for i := range 3 {
				p.line(fmt.Sprintf("while you were out, QoS %d", i))
			}
			p.wait()
			// All of it is acknowledged.
			m.pub("-u", alice, "-t", topic, "-q", "2", "-m", "last")
			p = m.sub("-u", bob, "-t", topic, "-q", "1", "-C", "1")
			equal(t, "first line", p.line(""), "last")
			p.wait()
		})
	}
}

// -c with -i keeps a session: what was not yet read waits for that device, whatever another has read.
func TestMosquittoPersistentSession(t *testing.T) {
	need(t, "mosquitto_pub", "mosquitto_sub", "timeout")
	t.Parallel()
	for _, version := range []string{"mqttv311", "mqttv5"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			m, alice, bob := newMosquitto(t, version), name("alice"), name("bob")
			topic := "im/u/" + bob
			keep := []string{"-u", bob, "-i", bob + "-phone", "-t", topic, "-q", "1", "-C", "1", "-c"}
			if version == "mqttv5" {
				keep = append(keep, "-x", "3600")
			}
			p := m.sub(keep...)
			m.pub("-u", alice, "-t", topic, "-q", "1", "-m", "one")
			p.line("one")
			p.wait()
			m.pub("-u", alice, "-t", topic, "-q", "1", "-m", "two")
			p = m.sub("-u", bob, "-i", bob+"-desk", "-t", topic, "-q", "1", "-C", "1")
			p.line("two")
			p.wait()
			p = m.sub(keep...)
			equal(t, "the phone's line", p.line(""), "two")
			p.wait()
		})
	}
}

// MQTT 5 user properties, in the plain profile and the IM profile, with mosquitto's clients.
func TestMosquittoProperties(t *testing.T) {
	need(t, "mosquitto_pub", "mosquitto_sub", "timeout")
	t.Parallel()
	m, alice, bob := newMosquitto(t, "mqttv5"), name("alice"), name("bob")
	topic := "im/u/" + bob
	send := []string{"-u", alice, "-t", topic, "-q", "1", "-m", "hi", "-D", "publish", "user-property", "cid", "m-1",
		"-D", "publish", "user-property", "type", "note", "-D", "publish", "content-type", "text/x", "-D", "publish", "message-expiry-interval", "600"}
	m.pub(send...)
	m.pub(send...) // the same message
	m.pub("-u", alice, "-t", "im/cmd/send", "-q", "1", "-m", `{"to":"u/`+bob+`","body":{"n":2}}`)
	p := m.sub("-u", bob, "-t", topic, "-q", "1", "-C", "2", "-F", "%P|%C|%p")
	l := p.line("hi")
	for _, want := range []string{"cid:m-1", "type:note", "from:" + alice, "conv:u/" + alice, "cseq:1", "seq:1", "id:", "ts:", "|text/x|"} {
		if !strings.Contains(l, want) {
			t.Errorf("got %q, want %q in it", l, want)
		}
	}
	if l = p.line(`{"n":2}`); !strings.Contains(l, "cseq:2") {
		t.Errorf("got %q, want cseq:2", l)
	}
	p.wait()
}

// The IM profile by hand: msg, then ack from the same device.
func TestMosquittoIMProfile(t *testing.T) {
	need(t, "mosquitto_pub", "mosquitto_sub", "timeout")
	t.Parallel()
	m, alice, bob := newMosquitto(t, "mqttv311"), name("alice"), name("bob")
	m.pub("-u", alice, "-t", "im/cmd/send", "-q", "1", "-m", `{"to":"u/`+bob+`","cid":"a1","body":{"text":"lunch?"}}`)
	for range 2 { // not acknowledged: it comes again
		p := m.sub("-u", bob, "-i", bob+"-1", "-t", "im/u/"+bob+"/+", "-q", "1", "-C", "1")
		if l := p.line(`"conv":"u/` + alice + `"`); !strings.Contains(l, `"body":{"text":"lunch?"}`) || !strings.Contains(l, `"seq":1`) {
			t.Errorf("got %q, want the message", l)
		}
		p.wait()
	}
	m.pub("-u", bob, "-i", bob+"-1", "-t", "im/cmd/ack", "-q", "1", "-m", `{"seq":1}`)
	m.pub("-u", alice, "-t", "im/u/"+bob, "-q", "1", "-m", "next")
	p := m.sub("-u", bob, "-i", bob+"-1", "-t", "im/u/"+bob+"/+", "-q", "1", "-C", "1")
	if l := p.line(""); !strings.Contains(l, `"body":"next"`) {
		t.Errorf("got %q, want the message after the acknowledged one", l)
	}
	p.wait()
}
