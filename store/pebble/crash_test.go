package pebble_test

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/pebble"
)

// traffic makes messages in a few direct conversations and a group of its own, which q enters and leaves, each with a
// cid.
type traffic struct {
	name    string
	n       int
	changes uint64 // of the group
	direct  bool   // to users alone
}

// group makes every seventh message.
func (w *traffic) group(m *store.Send) {
	id := "g" + w.name
	m.Conv = store.GroupConv(id)
	var members []store.Member
	switch q := w.n / 7 % 10; {
	case w.n == 7:
		members = []store.Member{{User: m.From, Role: store.Owner}, {User: "p0", Role: store.Ordinary}}
	case q == 3:
		members = []store.Member{{User: "q", Role: store.Ordinary}}
	case q == 8:
		members = []store.Member{{User: "q"}}
	default:
		return
	}
	m.Change = &store.Change{Group: store.Group{Version: w.changes}, Members: members}
	w.changes++
}

func (w *traffic) batch(size int) []*store.Send {
	var out []*store.Send
	for range size {
		w.n++
		m := &store.Send{Message: store.Message{
			From: "u" + w.name, Type: "text", TS: time.Now().UnixMilli(), Cid: fmt.Sprint(w.n),
			Body: fmt.Appendf(nil, "%s %d %s", w.name, w.n, strings.Repeat("x", w.n%300)),
		}, Hash: uint64(w.n)}
		peer := fmt.Sprint("p", w.n%5)
		m.Conv = store.Direct(m.From, peer)
		m.Inboxes = []store.InboxRef{{User: m.From}, {User: peer}}
		if w.n%7 == 0 && !w.direct {
			w.group(m)
		}
		out = append(out, m)
	}
	return out
}

// history is what a test knows to be acknowledged, and what a reader was shown.
type history struct {
	mu      sync.Mutex
	acked   []store.Send
	notices []store.Notice
	shown   map[string]uint64 // highest seq read from an inbox
}

func (h *history) ack(b *store.Batch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range b.Sends {
		h.acked = append(h.acked, *m)
	}
	h.notices = append(h.notices, b.Notices...)
}

func (h *history) snapshot() (acked []store.Send, notices []store.Notice, shown map[string]uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.acked), slices.Clone(h.notices), maps.Clone(h.shown)
}

// verify checks what must hold of a recovered store: every acknowledged message is there under its numbers (I1),
// what was shown is there (I9), no numbers are missing or given twice (I3), and a repeated message is a duplicate.
func verify(t *testing.T, s *pebble.Store, acked []store.Send, shown map[string]uint64) {
	t.Helper()
	convs, users := map[store.Conv]bool{}, map[string]bool{}
	for i := range acked {
		m := &acked[i]
		convs[m.Conv] = true
		for _, r := range m.Inboxes {
			users[r.User] = true
		}
		got, err := s.Message(ctx, m.Conv, m.Cseq)
		if err != nil || got.ID != m.ID || string(got.Body) != string(m.Body) {
			t.Fatalf("acknowledged message %d of %s: got %+v, %v", m.Cseq, m.Conv, got, err)
		}
		sent, hash, ok, err := s.Sent(ctx, m.From, m.Cid)
		if !ok || err != nil || sent.ID != m.ID || hash != m.Hash {
			t.Fatalf("cid %q of %s: got %t, id %d, %v, want id %d", m.Cid, m.From, ok, sent.ID, err, m.ID)
		}
	}
	for c := range convs {
		list, err := s.History(ctx, "", c, store.Range{Forward: true, Limit: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := c.Group(); ok {
			verifyGroup(t, s, c, list)
		}
		for i, m := range list {
			if m.Cseq != uint64(i+1) || i > 0 && m.ID <= list[i-1].ID {
				t.Fatalf("%s: cseq %d, id %d at place %d", c, m.Cseq, m.ID, i+1)
			}
		}
	}
	entries := map[string][]store.Entry{}
	for u := range users {
		var list []store.Entry
		for {
			n := len(list)
			var err error
			if list, err = s.ReadInbox(ctx, u, uint64(n), 1000, list); err != nil {
				t.Fatal(err)
			}
			if len(list) == n {
				break
			}
		}
		for i, x := range list {
			if x.Seq != uint64(i+1) {
				t.Fatalf("inbox of %s: seq %d at place %d", u, x.Seq, i+1)
			}
		}
		if uint64(len(list)) < shown[u] {
			t.Fatalf("inbox of %s: seq %d was shown and is gone, head is %d", u, shown[u], len(list))
		}
		entries[u] = list
	}
	for i := range acked {
		for _, r := range acked[i].Inboxes {
			if r.Seq > uint64(len(entries[r.User])) || entries[r.User][r.Seq-1].ID != acked[i].ID {
				t.Fatalf("inbox of %s: seq %d is not message %d", r.User, r.Seq, acked[i].ID)
			}
		}
	}
	var again []*store.Send
	for i := range acked {
		m := acked[i]
		m.ID, m.Cseq = 0, 0
		m.Inboxes = append([]store.InboxRef(nil), m.Inboxes...)
		again = append(again, &m)
	}
	if err := s.Commit(ctx, &store.Batch{Sends: again}); err != nil {
		t.Fatal(err)
	}
	for i, m := range again {
		if !m.Dup || m.ID != acked[i].ID || m.Cseq != acked[i].Cseq {
			t.Fatalf("repeated message %d: got dup %t, id %d, want %d", i, m.Dup, m.ID, acked[i].ID)
		}
	}
}

// verifyGroup checks that what is counted and listed of a group agrees with its log and its members: neither is of
// another moment.
func verifyGroup(t *testing.T, s *pebble.Store, conv store.Conv, log []*store.Message) {
	t.Helper()
	id, _ := conv.Group()
	for _, u := range []string{"u" + id[1:], "p0", "q", "p1"} {
		m, err := s.Member(ctx, id, u)
		if err != nil {
			t.Fatal(err)
		}
		var head, unread uint64
		for _, x := range log {
			if m.Has(x.Cseq) {
				head = x.Cseq
				if x.From != u {
					unread++
				}
			}
		}
		for _, x := range m.Spans {
			if x.From > uint64(len(log)) || x.To > uint64(len(log)) {
				t.Fatalf("%s in %s: span %v, and the log ends at %d", u, conv, x, len(log))
			}
		}
		c, err := s.Conversation(ctx, u, conv)
		if err != nil || c.Head != head || c.Unread != unread {
			t.Fatalf("%s in %s: got head %d, unread %d, %v, want %d, %d", u, conv, c.Head, c.Unread, err, head, unread)
		}
		all, _, err := s.ListConversations(ctx, u, "", 1000)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(all, func(c store.Conversation) bool { return c.Conv == conv }) != (head > 0) {
			t.Fatalf("%s in %s: head %d, and the list has %d conversations", u, conv, head, len(all))
		}
	}
}

// verifyNotices checks that acknowledged notices are there.
func verifyNotices(t *testing.T, s *pebble.Store, acked []store.Notice) {
	t.Helper()
	have := map[string]bool{}
	for _, n := range acked {
		if _, ok := have[n.To]; !ok {
			have[n.To] = true
			list, _, err := s.Notices(ctx, n.To, 0, "", 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range list {
				have[fmt.Sprint(x.To, x.TS, string(x.Payload))] = true
			}
		}
		if !have[fmt.Sprint(n.To, n.TS, string(n.Payload))] {
			t.Fatalf("acknowledged notice to %s of time %d is gone", n.To, n.TS)
		}
	}
}

// drive commits from several goroutines and reads along, until stop is closed.
func drive(t *testing.T, s *pebble.Store, h *history, stop chan struct{}) *sync.WaitGroup {
	wg := &sync.WaitGroup{}
	for i := range 3 {
		wg.Go(func() {
			w := &traffic{name: fmt.Sprint(i)}
			for {
				select {
				case <-stop:
					return
				default:
				}
				b := &store.Batch{Sends: w.batch(1 + w.n%17)}
				b.Notices = []store.Notice{{To: fmt.Sprint("u", i), TS: int64(w.n), Payload: fmt.Append(nil, w.n)}}
				if err := s.Commit(ctx, b); err != nil {
					t.Error(err)
					return
				}
				h.ack(b)
				if w.n%3 > 0 {
					continue
				}
				b = &store.Batch{Notices: []store.Notice{{To: "alone", TS: int64(w.n), Payload: fmt.Append(nil, i)}}}
				if err := s.Commit(ctx, b); err != nil {
					t.Error(err)
					return
				}
				h.ack(b)
			}
		})
	}
	wg.Go(func() {
		var dst []store.Entry
		var after uint64
		for {
			select {
			case <-stop:
				return
			default:
			}
			var err error
			if dst, err = s.ReadInbox(ctx, "p1", after, 100, dst[:0]); err != nil {
				t.Error(err)
				return
			}
			if len(dst) > 0 {
				after = dst[len(dst)-1].Seq
				h.mu.Lock()
				h.shown["p1"] = after
				h.mu.Unlock()
			}
		}
	})
	return wg
}

// TestPowerLoss takes what a disk may hold after a power loss in the middle of commits: all that was synced and a
// part of the rest.
func TestPowerLoss(t *testing.T) {
	for _, percent := range []int{0, 50, 100} {
		for round := range 4 {
			seed := rand.Uint64()
			t.Run(fmt.Sprintf("%d%%/%d", percent, round), func(t *testing.T) {
				t.Logf("seed %d", seed)
				rng := rand.New(rand.NewPCG(seed, 0))
				fs := vfs.NewCrashableMem()
				s := open(t, pebble.Options{Path: "db", FS: fs})
				h := &history{shown: map[string]uint64{}}
				stop := make(chan struct{})
				wg := drive(t, s, h, stop)
				target := 300 + rng.IntN(2000)
				for {
					if acked, _, _ := h.snapshot(); len(acked) > target {
						break
					}
					time.Sleep(time.Millisecond)
				}
				acked, notices, shown := h.snapshot()
				crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
				close(stop)
				wg.Wait()
				// What the first recovery shows must survive a second crash right after it.
				r := open(t, pebble.Options{Path: "db", FS: crashed})
				last, err := r.LastID(ctx)
				if err != nil {
					t.Fatal(err)
				}
				twice := crashed.CrashClone(vfs.CrashCloneCfg{})
				verify(t, r, acked, shown)
				verifyNotices(t, r, notices)
				r2 := open(t, pebble.Options{Path: "db", FS: twice})
				if got, err := r2.LastID(ctx); err != nil || got != last {
					t.Fatalf("after a crash right after the recovery: got last id %d, %v, want %d", got, err, last)
				}
				verify(t, r2, acked, shown)
				verifyNotices(t, r2, notices)
			})
		}
	}
}

// childEnv, when set, makes the test binary a child that does what it says and never returns to the tests.
const childEnv = "MQIM_PEBBLE_CHILD"

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		child(what, os.Getenv("MQIM_PEBBLE_DIR"))
	}
	os.Exit(m.Run())
}

func startChild(t *testing.T, what, dir string) *exec.Cmd {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), childEnv+"="+what, "MQIM_PEBBLE_DIR="+dir)
	t.Cleanup(func() {
		if c.Process != nil {
			c.Process.Kill()
		}
	})
	return c
}

func child(what, dir string) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	o := pebble.Options{Path: dir, MinFree: 1, Retention: topicLimits}
	if what == "eio" {
		o.FS = &faultFS{FS: vfs.Default, syncs: 20}
	}
	s, err := pebble.Open(o)
	if err != nil {
		fail(err)
	}
	if what == "hold" {
		fmt.Println("open")
		select {}
	}
	if what == "topics" {
		seed, err1 := strconv.ParseUint(os.Getenv("MQIM_PEBBLE_SEED"), 10, 64)
		from, err2 := strconv.Atoi(os.Getenv("MQIM_PEBBLE_FROM"))
		fail(errors.Join(err1, err2, writeTopics(s, seed, from)))
	}
	w := &traffic{name: "c"}
	out := bufio.NewWriter(os.Stdout)
	for {
		b := &store.Batch{Sends: w.batch(1 + w.n%40)}
		if err := s.Commit(ctx, b); err != nil {
			fail(err)
		}
		for _, m := range b.Sends {
			var refs []string
			for _, r := range m.Inboxes {
				refs = append(refs, fmt.Sprint(r.User, ":", r.Seq))
			}
			fmt.Fprintln(out, m.Conv, m.Cseq, m.ID, strings.Join(refs, ","), m.Cid, m.Hash, m.TS, string(m.Body))
		}
		out.Flush()
	}
}

// TestKill kills a process in the middle of writing, several times over one store.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	for round := range 3 {
		c := startChild(t, "write", dir)
		pipe, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		var acked []store.Send
		lines := bufio.NewScanner(pipe)
		for lines.Scan() {
			var m store.Send
			m.From, m.Type = "uc", "text"
			f := strings.SplitN(lines.Text(), " ", 8)
			if len(f) < 8 {
				break // the kill cut it
			}
			m.Conv, m.Cid, m.Body = store.Conv(f[0]), f[4], []byte(f[7])
			for ref := range strings.SplitSeq(f[3], ",") {
				user, seq, _ := strings.Cut(ref, ":")
				n, err := strconv.ParseUint(seq, 10, 64)
				if err != nil {
					t.Fatal(err, lines.Text())
				}
				m.Inboxes = append(m.Inboxes, store.InboxRef{User: user, Seq: n})
			}
			if _, err := fmt.Sscan(strings.Join([]string{f[1], f[2], f[5], f[6]}, " "),
				&m.Cseq, &m.ID, &m.Hash, &m.TS); err != nil {
				t.Fatal(err, lines.Text())
			}
			acked = append(acked, m)
			if len(acked) == 1500*(round+1) {
				if err := c.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := c.Wait(); err == nil {
			t.Fatal("the child ended by itself")
		}
		// The last line may be cut in the middle of its body.
		acked = acked[:len(acked)-1]
		// A later round repeats the cids of the first one: those are duplicates and keep their numbers.
		s := open(t, pebble.Options{Path: dir, MinFree: 1})
		verifyKilled(t, s, acked, round)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// verifyKilled is verify for children that repeat the cids of the child before: the inbox numbers that they print
// for those are zero.
func verifyKilled(t *testing.T, s *pebble.Store, acked []store.Send, round int) {
	if round == 0 {
		verify(t, s, acked, nil)
		return
	}
	var fresh []store.Send
	for _, m := range acked {
		if m.Inboxes[0].Seq != 0 {
			fresh = append(fresh, m)
		}
	}
	if len(fresh) == len(acked) {
		t.Fatal("no duplicates in the second round")
	}
	verify(t, s, fresh, nil)
}
