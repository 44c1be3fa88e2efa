package tests

import (
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/tests/mqtest"
)

// load is a sender that keeps many publishes outstanding and knows which were acknowledged.
type load struct {
	c     *mqtest.Client
	to    string
	acked []int // numbers of the messages whose PUBACK came
	sent  int
}

// run sends numbered messages, up to depth without PUBACK, until stop is closed or the connection ends.
func (l *load) run(t *testing.T, depth int, stop <-chan struct{}) {
	var raw []byte
	next := 0
	waiting := map[uint16]int{}
	for {
		raw = raw[:0]
		for len(waiting) < depth {
			pk := l.c.Packet("im/cmd/send", fmt.Sprintf(`{"to":"u/%s","cid":"%s-%d","body":%d}`, l.to, l.c.User, next, next))
			b, err := mqtest.Encode(pk, l.c.Version)
			if err != nil {
				t.Errorf("encode: %v", err)
				return
			}
			raw = append(raw, b...)
			waiting[pk.PacketID] = next
			next++
		}
		l.sent = next
		if len(raw) > 0 && l.c.TryWrite(raw) != nil {
			break
		}
		ack, ok := l.c.TryTake(isPuback, mqtest.Patience)
		if !ok {
			break
		}
		if ack.ReasonCode != 0 {
			t.Errorf("%s: PUBACK %#x", l.c.User, ack.ReasonCode)
		}
		l.acked = append(l.acked, waiting[ack.PacketID])
		delete(waiting, ack.PacketID)
		select {
		case <-stop:
			return
		default:
		}
	}
	// The connection has ended; what came before that counts.
	for {
		ack, ok := l.c.TryTake(isPuback, 0)
		if !ok {
			return
		}
		l.acked = append(l.acked, waiting[ack.PacketID])
	}
}

func isPuback(p *packet) bool { return p.FixedHeader.Type == packets.Puback }

// loads starts senders, each to a recipient of its own and all to one that they share.
func loads(t *testing.T, s *mqtest.Server, n, depth int) (list []*load, wait func()) {
	t.Helper()
	var wg sync.WaitGroup
	all := name("all")
	for i := range n {
		to := all
		if i%2 == 0 {
			to = name("to")
		}
		l := &load{c: dial(t, s, []byte{4, 5}[i%2], name("from"), "1"), to: to}
		list = append(list, l)
		wg.Go(func() { l.run(t, depth, nil) })
	}
	return list, wg.Wait
}

// progress waits until the senders have had so many PUBACKs, as the server counts them.
func progress(t *testing.T, s *mqtest.Server, committed int) {
	t.Helper()
	mqtest.Eventually(t, fmt.Sprint(committed, " messages to be stored"), func() bool {
		return s.Metric("mqim_messages_committed_total") >= float64(committed)
	})
}

// check reads what the recipients have after the server came back: everything acknowledged, numbered without a hole and
// a repeat, ids rising, each sender's messages in order.
func check(t *testing.T, s *mqtest.Server, list []*load) {
	t.Helper()
	byTo := map[string][]*load{}
	for _, l := range list {
		byTo[l.to] = append(byTo[l.to], l)
	}
	for to, senders := range byTo {
		got := map[string]map[int]bool{}
		lastOf, cseqOf := map[string]int{}, map[string]uint64{}
		lastID := map[string]int64{}
		c := chat(t, s, 5, to, "reader")
		var after uint64
		for {
			var p struct {
				Messages []mqtest.Message
				More     bool
				Next     uint64
			}
			c.OK("sync", mqtest.Map{"after": after, "limit": 500}, &p)
			for _, m := range p.Messages {
				if after++; m.Seq != after {
					t.Fatalf("%s: got seq %d, want %d", to, m.Seq, after)
				}
				if cseqOf[m.From]++; m.Cseq != cseqOf[m.From] {
					t.Fatalf("%s: got cseq %d from %s, want %d", to, m.Cseq, m.From, cseqOf[m.From])
				}
				var id int64
				var n int
				_, _ = fmt.Sscan(m.ID, &id)
				_, _ = fmt.Sscan(string(m.Body), &n)
				if id <= lastID[m.From] {
					t.Fatalf("%s: id %d of cseq %d is not above %d", to, id, m.Cseq, lastID[m.From])
				}
				lastID[m.From] = id
				if got[m.From] == nil {
					got[m.From], lastOf[m.From] = map[int]bool{}, -1
				}
				if n <= lastOf[m.From] {
					t.Fatalf("%s: message %d of %s comes after %d", to, n, m.From, lastOf[m.From])
				}
				lastOf[m.From], got[m.From][n] = n, true
			}
			if !p.More {
				break
			}
		}
		for _, l := range senders {
			if len(l.acked) == 0 {
				t.Errorf("%s had no PUBACK", l.c.User)
			}
			for _, n := range l.acked {
				if !got[l.c.User][n] {
					t.Fatalf("message %d of %s was acknowledged and is not there", n, l.c.User)
				}
			}
		}
	}
}

// SIGTERM under load: what was acknowledged is there after a restart, MQTT 5 clients are told 0x8B, and the process ends
// with 0 in time.
func TestStopUnderLoad(t *testing.T) {
	t.Parallel()
	s := mqtest.Start(t, mqtest.Config{"limits": "{sends_per_second: 0}", "inbox": "{max_messages: 0}"})
	idle3, idle5 := chat(t, s, 4, name("idle"), "1"), chat(t, s, 5, name("idle"), "1")
	list, wait := loads(t, s, 4, 100)
	progress(t, s, 1000)
	start := time.Now()
	s.Stop()
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("stopping took %v, want less than 10 s", took)
	}
	wait()
	equal(t, "DISCONNECT of an MQTT 5 client", idle5.Closed(), 0x8B)
	equal(t, "DISCONNECT of a 3.1.1 client", idle3.Closed(), 0)
	for _, l := range list {
		if l.c.Version == 5 {
			equal(t, "DISCONNECT of a sender", l.c.Closed(), 0x8B)
		}
	}
	s.Run()
	check(t, s, list)
}

// kill -9 under pipelined load, several times: nothing acknowledged is lost, nothing is numbered twice or left out.
func TestKillUnderLoad(t *testing.T) {
	t.Parallel()
	s := mqtest.Start(t, mqtest.Config{"limits": "{sends_per_second: 0}", "inbox": "{max_messages: 0}"})
	var all []*load
	for range 3 {
		list, wait := loads(t, s, 4, 200)
		progress(t, s, 800)
		s.Kill()
		wait()
		all = append(all, list...)
		s.Run()
	}
	check(t, s, all)
	// A sender who heard nothing sends the same cid again: it is stored once.
	l := all[0]
	c := chat(t, s, 5, l.c.User, "again")
	for n := range min(l.sent, 300) {
		c.OK("send", mqtest.Map{"to": "u/" + l.to, "cid": fmt.Sprintf("%s-%d", l.c.User, n), "body": n}, nil)
	}
	var p struct{ Messages []mqtest.Message }
	c.OK("history", mqtest.Map{"conv": "u/" + l.to, "after": 0, "limit": 500}, &p)
	seen := map[string]bool{}
	for _, m := range p.Messages {
		if seen[m.Cid] {
			t.Fatalf("cid %s was stored twice", m.Cid)
		}
		seen[m.Cid] = true
	}
}

// A second process on the same folder is refused with a clear message; the first goes on.
func TestSecondProcessRefused(t *testing.T) {
	t.Parallel()
	s := mqtest.Start(t, nil)
	cmd := s.Command("serve", "--config", "config.yaml")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatal("a second process started on the same data")
	}
	last := lastLine(string(out))
	if !strings.HasPrefix(last, "mqim: ") || !strings.Contains(last, "in use") && !strings.Contains(last, "another process") || !strings.Contains(last, "data") {
		t.Errorf("got %q, want it to say that another process uses the data folder", last)
	}
	c := chat(t, s, 4, name("alice"), "1")
	c.Send(name("bob"), "still here")
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// SIGTERM while clients do not read and others connect ends in time, too.
func TestStopWithStalledReader(t *testing.T) {
	t.Parallel()
	s := mqtest.Start(t, mqtest.Config{"limits": "{sends_per_second: 0}"})
	alice, bob := name("alice"), name("bob")
	b := mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: 5, User: bob, ID: bob, Hold: true})
	subscribed(t, b, "im/u/"+bob)
	b.Stall()
	a := dial(t, s, 5, alice, "1")
	for range 100 {
		a.PublishAck("im/u/"+bob, strings.Repeat("x", 100<<10))
	}
	start := time.Now()
	s.Signal(syscall.SIGTERM)
	if err := s.Wait(); err != nil {
		t.Errorf("exit: %v", err)
	}
	if took := time.Since(start); took > 12*time.Second {
		t.Errorf("stopping took %v, want it within node.shutdown_timeout", took)
	}
}
