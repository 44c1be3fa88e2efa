package pebble_test

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/pebble"
)

// traffic makes messages in a few direct conversations and one group, each with a cid.
type traffic struct {
	name string
	n    int
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
		if w.n%7 == 0 {
			m.Conv = store.GroupConv("all")
		}
		out = append(out, m)
	}
	return out
}

// history is what a test knows to be acknowledged, and what a reader was shown.
type history struct {
	mu    sync.Mutex
	acked []store.Send
	shown map[string]uint64 // highest seq read from an inbox
}

func (h *history) ack(list []*store.Send) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range list {
		h.acked = append(h.acked, *m)
	}
}

func (h *history) snapshot() (acked []store.Send, shown map[string]uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	shown = map[string]uint64{}
	for k, v := range h.shown {
		shown[k] = v
	}
	return append([]store.Send(nil), h.acked...), shown
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
	}
	for c := range convs {
		list, err := s.History(ctx, "", c, store.Range{Forward: true, Limit: 1 << 30})
		if err != nil {
			t.Fatal(err)
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
				if err := s.Commit(ctx, b); err != nil {
					t.Error(err)
					return
				}
				h.ack(b.Sends)
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
					if acked, _ := h.snapshot(); len(acked) > target {
						break
					}
					time.Sleep(time.Millisecond)
				}
				acked, shown := h.snapshot()
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
				r2 := open(t, pebble.Options{Path: "db", FS: twice})
				if got, err := r2.LastID(ctx); err != nil || got != last {
					t.Fatalf("after a crash right after the recovery: got last id %d, %v, want %d", got, err, last)
				}
				verify(t, r2, acked, shown)
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
			fmt.Fprintln(out, m.Conv, m.Cseq, m.ID, m.Inboxes[0].Seq, m.Inboxes[1].User, m.Inboxes[1].Seq, m.Cid, m.Hash,
				m.TS, string(m.Body))
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
			m.Inboxes = []store.InboxRef{{User: "uc"}, {}}
			f := strings.SplitN(lines.Text(), " ", 10)
			if len(f) < 10 {
				break // the kill cut it
			}
			m.Conv, m.Cid, m.Body = store.Conv(f[0]), f[6], []byte(f[9])
			m.Inboxes[1].User = f[4]
			if _, err := fmt.Sscan(strings.Join(append(append([]string{}, f[1:4]...), f[5], f[7], f[8]), " "),
				&m.Cseq, &m.ID, &m.Inboxes[0].Seq, &m.Inboxes[1].Seq, &m.Hash, &m.TS); err != nil {
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
