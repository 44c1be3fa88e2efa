package cluster

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// proxy is the network between a node and one server: it passes what comes, until it is told to do harm. All methods may be
// called from any goroutine.
type proxy struct {
	l    net.Listener
	to   string
	resp bool // what the server says is Redis' protocol: single messages of pub/sub can be dropped
	wg   sync.WaitGroup

	mu      sync.Mutex
	rng     *rand.Rand
	pairs   map[*pair]bool
	changed chan struct{} // closed and replaced when what follows changes
	gone    bool          // nobody is let in
	stalled bool          // nothing passes
	delay   time.Duration // of each chunk
	after   int           // bytes after which a connection is cut, 1 to this; 0: not
	commits float64       // of the COMMITs, how many are cut
	loss    float64       // of the messages of pub/sub, how many are dropped,
	kinds   string        // of those on channels of these kinds
	closed  bool
	cuts    int // COMMITs that were cut
	lost    int // messages that were dropped
}

// pair is a connection: to the node, and to the server.
type pair struct {
	in, out net.Conn
	left    int  // bytes until it is cut; 0: it is not
	muted   bool // the server's next answer is dropped, and the connection cut; proxy.mu guards both
}

func (c *pair) close() {
	_ = c.in.Close()
	_ = c.out.Close()
}

// newProxy starts a proxy in front of a server. It ends with the test.
func newProxy(t *testing.T, to string, seed uint64, resp bool) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, to: to, resp: resp, rng: rand.New(rand.NewPCG(seed, 1)), pairs: map[*pair]bool{}, changed: make(chan struct{})}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.set(func() { p.closed = true; p.cut() })
		p.wg.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.l.Addr().String() }

// set changes what the proxy does.
func (p *proxy) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.changed)
	p.changed = make(chan struct{})
}

// cut ends all connections; the caller is in set.
func (p *proxy) cut() {
	for c := range p.pairs {
		c.close()
	}
}

// Cut ends all connections and lets nobody in; Stall passes nothing, neither on connections that are there nor on new ones;
// Slow delays each chunk; CutAfter ends each new connection after 1 to n bytes; CutCommits ends connections in that part of
// the COMMITs that go by, and drops the answers; Lose drops that part of the messages of pub/sub on channels of some kinds,
// whose letters are those of package bus. Heal ends all of it, and the connections that have seen it.
func (p *proxy) Cut()                 { p.set(func() { p.gone = true; p.cut() }) }
func (p *proxy) Stall()               { p.set(func() { p.stalled = true }) }
func (p *proxy) Slow(d time.Duration) { p.set(func() { p.delay = d }) }
func (p *proxy) CutAfter(n int)       { p.set(func() { p.after = n; p.cut() }) }
func (p *proxy) CutCommits(r float64) { p.set(func() { p.commits = r }) }
func (p *proxy) Lose(r float64, kinds string) {
	p.set(func() { p.loss, p.kinds = r, kinds })
}
func (p *proxy) Heal() {
	p.set(func() {
		if p.gone || p.stalled || p.after > 0 {
			p.cut()
		}
		p.gone, p.stalled, p.delay, p.after, p.commits, p.loss = false, false, 0, 0, 0, 0
	})
}

// Counts are the COMMITs that were cut and the messages that were dropped.
func (p *proxy) Counts() (cuts, lost int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cuts, p.lost
}

func (p *proxy) accept() {
	for {
		in, err := p.l.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(in) })
	}
}

func (p *proxy) serve(in net.Conn) {
	out, err := net.Dial("tcp", p.to)
	if err != nil {
		_ = in.Close()
		return
	}
	c := &pair{in: in, out: out}
	defer c.close()
	p.mu.Lock()
	if p.gone || p.closed {
		p.mu.Unlock()
		return
	}
	if p.after > 0 {
		c.left = 1 + p.rng.IntN(p.after)
	}
	p.pairs[c] = true
	p.mu.Unlock()
	p.wg.Go(func() {
		defer c.close()
		next := chunks(out)
		if p.resp {
			next = frames(out)
		}
		p.copy(c, next, in, p.fromServer)
	})
	p.copy(c, chunks(in), out, p.fromNode)
	p.mu.Lock()
	delete(p.pairs, c)
	p.mu.Unlock()
}

// copy passes what next returns, as far as look has it, until either side ends.
func (p *proxy) copy(c *pair, next func() ([]byte, error), to io.Writer, look func(*pair, []byte) (n int, last bool)) {
	for {
		b, err := next()
		if err != nil || !p.wait() {
			return
		}
		p.mu.Lock()
		n, last := look(c, b)
		if c.left > 0 {
			if n >= c.left {
				n, last = c.left, true
			} else {
				c.left -= n
			}
		}
		p.mu.Unlock()
		if _, err := to.Write(b[:n]); err != nil || last {
			return
		}
	}
}

// wait holds a chunk back for as long as nothing passes, or it is delayed. It reports false when the proxy ends.
func (p *proxy) wait() bool {
	waited := false
	for {
		p.mu.Lock()
		changed, stalled, delay, closed := p.changed, p.stalled, p.delay, p.closed
		p.mu.Unlock()
		switch {
		case closed:
			return false
		case stalled:
			<-changed
		case delay > 0 && !waited:
			waited = true
			late := time.NewTimer(delay)
			select {
			case <-late.C:
			case <-changed:
			}
			late.Stop()
		default:
			return true
		}
	}
}

// commit is how a driver asks for it: a query, and nothing else in its packet.
var commit = []byte("\x07\x00\x00\x00\x03COMMIT")

func (p *proxy) fromNode(c *pair, b []byte) (int, bool) {
	if p.commits > 0 && bytes.Contains(b, commit) && p.rng.Float64() < p.commits {
		p.cuts++
		if p.rng.IntN(3) == 0 {
			return 0, true // the server never sees it
		}
		c.muted = true
	}
	return len(b), false
}

func (p *proxy) fromServer(c *pair, b []byte) (int, bool) {
	if c.muted {
		return 0, true
	}
	if p.resp && p.loss > 0 && isMessage(b, p.kinds) && p.rng.Float64() < p.loss {
		p.lost++
		return 0, false
	}
	return len(b), false
}

func chunks(r io.Reader) func() ([]byte, error) {
	buf := make([]byte, 32<<10)
	return func() ([]byte, error) {
		n, err := r.Read(buf)
		if n > 0 {
			err = nil
		}
		return buf[:n], err
	}
}

// frames returns one reply of Redis at a time, whole.
func frames(r io.Reader) func() ([]byte, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	var buf []byte
	return func() (b []byte, err error) {
		buf, err = frame(in, buf[:0])
		return buf, err
	}
}

// frame appends the next reply to b, as it is.
func frame(r *bufio.Reader, b []byte) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if err != nil || len(line) < 3 {
		return b, fmt.Errorf("a reply that begins with %q: %w", line, err)
	}
	b = append(b, line...)
	n, _ := strconv.Atoi(string(line[1 : len(line)-2]))
	switch line[0] {
	case '$', '!', '=':
		if n < 0 {
			return b, nil
		}
		from := len(b)
		b = append(b, make([]byte, n+2)...)
		_, err := io.ReadFull(r, b[from:])
		return b, err
	case '%', '|':
		n *= 2
	case '*', '~', '>':
	default:
		return b, nil
	}
	if line[0] == '|' { // attributes come before what they are about
		n++
	}
	for range n {
		if b, err = frame(r, b); err != nil {
			return b, err
		}
	}
	return b, nil
}

var message = regexp.MustCompile(`^[*>]3\r\n\$8\r\nsmessage\r\n\$[0-9]+\r\n\{[^}]*}:(.):`)

// isMessage reports whether a reply is a message of a subscription to a channel of one of the kinds. Channels have names
// like {mqim:7}:u:alice.
func isMessage(b []byte, kinds string) bool {
	m := message.FindSubmatch(b)
	return m != nil && strings.Contains(kinds, string(m[1]))
}

// echo is a server that says what it is told, to whoever connects, and how much it was told.
func echo(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l.Addr().String()
}

// caller is a connection through a proxy, to an echo.
type caller struct {
	net.Conn
	t *testing.T
}

func call(t *testing.T, p *proxy) caller {
	t.Helper()
	c, err := net.Dial("tcp", p.addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return caller{c, t}
}

// say writes, and returns what comes until want has come, the connection ends, or nothing comes for a while.
func (c caller) say(text, want string, patience time.Duration) string {
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(c, text)
	got := ""
	for buf := make([]byte, 1024); got != want; {
		n, err := c.Read(buf)
		got += string(buf[:n])
		if err != nil {
			break
		}
	}
	return got
}

func TestProxy(t *testing.T) {
	t.Parallel()
	const soon, ever = 300 * time.Millisecond, 30 * time.Second
	equal := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	p := newProxy(t, echo(t), 1, true)
	a := call(t, p)
	equal("whole", a.say("+a\r\n", "+a\r\n", ever), "+a\r\n")

	p.Stall()
	equal("stalled", a.say("+b\r\n", "+", soon), "")
	equal("stalled, a new connection", call(t, p).say("+b\r\n", "+", soon), "")
	p.Heal()
	equal("what was stalled does not come later", a.say("", "+", ever), "")
	a = call(t, p)
	equal("healed", a.say("+a\r\n", "+a\r\n", ever), "+a\r\n")

	p.Cut()
	equal("cut", a.say("+a\r\n", "+", ever), "")
	equal("cut, a new connection", call(t, p).say("+a\r\n", "+", ever), "")
	p.Heal()

	p.Slow(100 * time.Millisecond)
	begin := time.Now()
	a = call(t, p)
	equal("slow", a.say("+a\r\n", "+a\r\n", ever), "+a\r\n")
	if d := time.Since(begin); d < 200*time.Millisecond {
		t.Errorf("slow: %v, want a delay both ways", d)
	}
	p.Heal()

	p.Lose(1, "gu")
	message := "*3\r\n$8\r\nsmessage\r\n$12\r\n{mqim:7}:u:a\r\n$4\r\n\r\n\r\n\r\n"
	other := strings.Replace(message, ":u:", ":n:", 1) +
		"*3\r\n$10\r\nssubscribe\r\n$1\r\nc\r\n:1\r\n%1\r\n+a\r\n*-1\r\n|1\r\n+x\r\n:1\r\n$-1\r\n>3\r\n$3\r\nabc\r\n,1.5\r\n#t\r\n"
	equal("messages are dropped", a.say(message+other+message+"+end\r\n", other+"+end\r\n", ever), other+"+end\r\n")
	if _, lost := p.Counts(); lost != 2 {
		t.Errorf("dropped: %d, want 2", lost)
	}
	p.Heal()
	equal("messages pass", a.say(message, message, ever), message)

	m := newProxy(t, echo(t), 2, false)
	m.CutCommits(1)
	a = call(t, m)
	equal("before COMMIT", a.say("\x09\x00\x00\x00\x03SELECT 1", "\x09\x00\x00\x00\x03SELECT 1", ever), "\x09\x00\x00\x00\x03SELECT 1")
	equal("COMMIT", a.say(string(commit), "x", ever), "")
	if cuts, _ := m.Counts(); cuts != 1 {
		t.Errorf("cut: %d, want 1", cuts)
	}
	m.Heal()
	m.CutAfter(5)
	if got := call(t, m).say("0123456789", "x", ever); len(got) > 5 {
		t.Errorf("cut after 1 to 5 bytes: %q came", got)
	}
}
