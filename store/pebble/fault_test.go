package pebble_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/pebble"
)

// faultFS fails writes while full, and syncs of the write-ahead log after a number of them.
type faultFS struct {
	vfs.FS
	full  atomic.Bool
	hit   atomic.Int64 // writes refused
	syncs int64        // syncs of the log that succeed; 0: all
	done  atomic.Int64

	mu      sync.RWMutex // held by a test: syncs of the log wait for it
	waiting atomic.Int64
}

func (f *faultFS) Unwrap() vfs.FS { return f.FS }

func (f *faultFS) err() error {
	if f.full.Load() {
		f.hit.Add(1)
		return &os.PathError{Op: "write", Path: "injected", Err: syscall.ENOSPC}
	}
	return nil
}

func (f *faultFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.err(); err != nil {
		return nil, err
	}
	file, err := f.FS.Create(name, c)
	return f.file(name, file, err)
}

func (f *faultFS) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.err(); err != nil {
		return nil, err
	}
	file, err := f.FS.ReuseForWrite(old, name, c)
	return f.file(name, file, err)
}

func (f *faultFS) file(name string, file vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &faultFile{file, f, strings.HasSuffix(name, ".log")}, nil
}

type faultFile struct {
	vfs.File
	fs  *faultFS
	log bool
}

// Write writes half and fails when the disk is full, as a real one may.
func (f *faultFile) Write(b []byte) (int, error) {
	if err := f.fs.err(); err != nil {
		if n := len(b) / 2; f.fs.hit.Load() == 1 && n > 0 {
			n, _ = f.File.Write(b[:n])
			return n, err
		}
		return 0, err
	}
	return f.File.Write(b)
}

func (f *faultFile) sync() error {
	if f.log {
		f.fs.waiting.Add(1)
		f.fs.mu.RLock()
		defer f.fs.mu.RUnlock()
		f.fs.waiting.Add(-1)
	}
	if f.log && f.fs.syncs > 0 && f.fs.done.Add(1) > f.fs.syncs {
		return &os.PathError{Op: "sync", Path: "injected", Err: syscall.EIO}
	}
	return nil
}

func (f *faultFile) Sync() error     { return errors.Join(f.sync(), f.File.Sync()) }
func (f *faultFile) SyncData() error { return errors.Join(f.sync(), f.File.SyncData()) }
func (f *faultFile) SyncTo(n int64) (bool, error) {
	if err := f.sync(); err != nil {
		return false, err
	}
	return f.File.SyncTo(n)
}

// wait polls until ok holds.
func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// TestDiskFull: a write that meets a full disk waits for room; until then nothing new is accepted, and nothing that
// was is lost.
func TestDiskFull(t *testing.T) {
	fs := &faultFS{FS: vfs.NewMem()}
	s := open(t, pebble.Options{Path: "db", FS: fs, MinFree: 1, FreeSpace: func() (uint64, error) { return 1 << 30, nil }})
	w := &traffic{name: "a"}
	var acked []store.Send
	commit := func() error {
		b := w.batch(50)
		err := s.Commit(ctx, &store.Batch{Sends: b})
		if err == nil {
			for _, m := range b {
				acked = append(acked, *m)
			}
		}
		return err
	}
	for range 20 {
		if err := commit(); err != nil {
			t.Fatal(err)
		}
	}
	fs.full.Store(true)
	var wg sync.WaitGroup
	var stuck error
	wg.Go(func() { stuck = commit() })
	wait(t, "the store says that it is full", func() bool { return errors.Is(s.Healthy(), store.ErrUnavailable) })
	if err := s.Commit(ctx, &store.Batch{Sends: (&traffic{name: "b"}).batch(1)}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("commit on a full disk: got %v, want %v", err, store.ErrUnavailable)
	}
	if !s.Metrics().DiskFull {
		t.Error("the metrics do not say that the disk is full")
	}
	// Readers go on, and see nothing of what waits.
	b, err := s.Inbox(ctx, "ua")
	if err != nil || b.Head != 1000 {
		t.Errorf("head while a commit waits: got %d, %v, want 1000", b.Head, err)
	}
	fs.full.Store(false)
	wg.Wait()
	if stuck != nil {
		t.Fatalf("the commit that waited: %v", stuck)
	}
	wait(t, "healthy again", func() bool { return s.Healthy() == nil })
	if err := commit(); err != nil {
		t.Fatal(err)
	}
	verify(t, s, acked, nil)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	verify(t, open(t, pebble.Options{Path: "db", FS: fs.FS, MinFree: 1}), acked, nil)
}

// TestUnsyncedGroup: what is written to groups but not synced is neither listed nor counted, and is as soon as it is.
func TestUnsyncedGroup(t *testing.T) {
	fs := &faultFS{FS: vfs.NewMem()}
	s := open(t, pebble.Options{Path: "db", FS: fs, MinFree: 1})
	message := func(conv store.Conv, ch *store.Change) *store.Send {
		return &store.Send{Message: store.Message{Conv: conv, From: "ann", Type: "text", TS: 1}, Change: ch}
	}
	send := func(list ...*store.Send) {
		if err := s.Commit(ctx, &store.Batch{Sends: list}); err != nil || list[0].Err != nil {
			t.Error(err, list[0].Err)
		}
	}
	create := func() *store.Change {
		return &store.Change{Members: []store.Member{{User: "ann", Role: store.Owner}, {User: "bob", Role: store.Ordinary}}}
	}
	leave := &store.Change{Group: store.Group{Version: 1}, Members: []store.Member{{User: "bob"}}}
	check := func(want ...string) {
		t.Helper()
		list, _, err := s.ListConversations(ctx, "bob", "", 10)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range list {
			got = append(got, fmt.Sprint(c.Conv, " ", c.Head, " ", c.Unread))
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	send(message("g/a", create()))
	send(message("g/b", create()))
	send(message("u/ann/bob", nil))

	// Groups and members show what is written, so they tell when it is.
	var wg sync.WaitGroup
	fs.mu.Lock()
	wg.Go(func() { send(message("g/a", nil), message("g/new", create())) })
	wait(t, "the group is written", func() bool { _, err := s.Group(ctx, "new"); return err == nil })
	check("u/ann/bob 1 1", "g/b 1 1", "g/a 1 1")
	fs.mu.Unlock()
	wg.Wait()
	check("g/new 1 1", "g/a 2 2", "u/ann/bob 1 1", "g/b 1 1")

	fs.mu.Lock()
	wg.Go(func() { send(message("g/b", leave), message("g/b", nil), message("g/a", nil)) })
	wait(t, "that bob left is written", func() bool { m, _ := s.Member(ctx, "b", "bob"); return m.Role == store.NoRole })
	check("g/new 1 1", "g/a 2 2", "u/ann/bob 1 1", "g/b 1 1")
	for c, want := range map[store.Conv]uint64{"g/a": 2, "g/b": 1} {
		if x, err := s.Conversation(ctx, "bob", c); err != nil || x.Head != want || x.Unread != want {
			t.Errorf("%s: got head %d, unread %d, %v, want %d", c, x.Head, x.Unread, err, want)
		}
	}
	fs.mu.Unlock()
	wg.Wait()
	check("g/a 3 3", "g/b 2 2", "g/new 1 1", "u/ann/bob 1 1")
}

// TestUnsynced: between write and sync a message is shown to nobody, and its repetition is not acknowledged.
func TestUnsynced(t *testing.T) {
	fs := &faultFS{FS: vfs.NewMem()}
	s := open(t, pebble.Options{Path: "db", FS: fs, MinFree: 1})
	w := &traffic{name: "a"}
	first := w.batch(1)[0]
	fs.mu.Lock()
	var wg sync.WaitGroup
	commit := func(b *store.Batch) chan struct{} {
		done := make(chan struct{})
		wg.Go(func() {
			defer close(done)
			if err := s.Commit(ctx, b); err != nil {
				t.Error(err)
			}
		})
		return done
	}
	done := commit(&store.Batch{Sends: []*store.Send{first}})
	wait(t, "the first sync", func() bool { return fs.waiting.Load() > 0 })
	again := *first
	again.Cseq, again.ID = 0, 0
	dup := commit(&store.Batch{Sends: []*store.Send{&again}})
	lazy := commit(&store.Batch{Users: []store.User{{Name: "ua", Cursor: 1}}, Lazy: true})
	<-lazy // and so the one before it has been applied, if not synced
	check := func(head uint64) {
		t.Helper()
		conv := store.Direct("ua", "p1")
		b, err := s.Inbox(ctx, "p1")
		list, err2 := s.ReadInbox(ctx, "p1", 0, 10, nil)
		hist, err3 := s.History(ctx, "p1", conv, store.Range{Limit: 10})
		c, err4 := s.Conversation(ctx, "p1", conv)
		_, _, known, err8 := s.Sent(ctx, first.From, first.Cid)
		sent := uint64(0)
		if known {
			sent = 1
		}
		convs, _, err5 := s.ListConversations(ctx, "p1", "", 10)
		_, err6 := s.Message(ctx, conv, 1)
		if head == 0 && errors.Is(err6, store.ErrNotFound) {
			err6 = nil
		}
		id, err7 := s.LastID(ctx)
		if err := errors.Join(err, err2, err3, err4, err5, err6, err7, err8); err != nil {
			t.Fatal(err)
		}
		for what, n := range map[string]uint64{
			"inbox": b.Head, "entries": uint64(len(list)), "history": uint64(len(hist)), "head": c.Head,
			"unread": c.Unread, "conversations": uint64(len(convs)), "last id": min(uint64(id), 1),
			"sent": sent,
		} {
			if n != head {
				t.Errorf("%s: got %d, want %d", what, n, head)
			}
		}
	}
	check(0)
	select {
	case <-done:
		t.Error("acknowledged before the sync")
	case <-dup:
		t.Error("the duplicate is acknowledged before the first one is synced")
	case <-time.After(100 * time.Millisecond):
	}
	fs.mu.Unlock()
	wg.Wait()
	if !again.Dup || again.ID != first.ID {
		t.Errorf("the second one: got dup %t, id %d, want id %d", again.Dup, again.ID, first.ID)
	}
	check(1)
}

// TestLowSpace: service stops below MinFree and resumes at a quarter more.
func TestLowSpace(t *testing.T) {
	var free atomic.Uint64
	free.Store(1000)
	s := open(t, pebble.Options{
		Path: "db", FS: vfs.NewMem(), MinFree: 100, FreeSpace: func() (uint64, error) { return free.Load(), nil },
	})
	w := &traffic{name: "a"}
	ok := func() bool { return s.Healthy() == nil }
	commit := func() error { return s.Commit(ctx, &store.Batch{Sends: w.batch(1)}) }
	if err := commit(); err != nil {
		t.Fatal(err)
	}
	free.Store(99)
	wait(t, "refusing", func() bool { return !ok() })
	if err := commit(); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("below: got %v, want %v", err, store.ErrUnavailable)
	}
	free.Store(124)
	looked := time.Now()
	for time.Since(looked) < 250*time.Millisecond { // it looks every 100
		if ok() {
			t.Fatal("service is resumed below MinFree × 1.25")
		}
	}
	free.Store(125)
	wait(t, "in service again", ok)
	if err := commit(); err != nil {
		t.Fatal(err)
	}
	free.Store(0)
	var size int
	for size < 3<<20 { // more than a look's worth of bytes, however fast
		b := w.batch(100)
		if err := s.Commit(ctx, &store.Batch{Sends: b}); err != nil {
			break
		}
		size += 100 * 150
	}
	if size >= 3<<20 {
		t.Errorf("%d bytes were accepted on a full disk", size)
	}
}

// TestSyncFails: the process ends, loudly, and what it acknowledged is there at the next start.
func TestSyncFails(t *testing.T) {
	dir := t.TempDir()
	c := startChild(t, "eio", dir)
	var stderr, stdout bytes.Buffer
	c.Stderr, c.Stdout = &stderr, &stdout
	err := c.Run()
	if c.ProcessState.ExitCode() <= 0 {
		t.Fatalf("got %v, want an exit code", err)
	}
	if !strings.Contains(stderr.String(), "input/output error") || !strings.Contains(stderr.String(), "store.pebble") {
		t.Errorf("stderr does not say why:\n%.2000s", stderr.String())
	}
	lines := strings.Count(stdout.String(), "\n")
	if lines == 0 {
		t.Fatal("nothing was acknowledged before the fault")
	}
	s := open(t, pebble.Options{Path: dir, MinFree: 1})
	b, err := s.Inbox(ctx, "uc")
	if err != nil || b.Head < uint64(lines) {
		t.Errorf("head: got %d, %v, want at least %d", b.Head, err, lines)
	}
}

// TestTinyDisk fills a real file system.
func TestTinyDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a tmpfs takes root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Skipf("mount a tmpfs: %v", err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, minFree := range []uint64{0, 1} { // refused in time; and run into
		s := open(t, pebble.Options{Path: filepath.Join(dir, "db"), MinFree: minFree})
		w := &traffic{name: "t", direct: true} // a change of a group that is refused would have those after it fail
		var mu sync.Mutex
		var acked []store.Send
		var refused atomic.Bool
		var wg sync.WaitGroup
		stop := make(chan struct{})
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				b := w.batch(20)
				for _, m := range b {
					m.Body = append(m.Body, make([]byte, 4000)...)
				}
				err := s.Commit(ctx, &store.Batch{Sends: b})
				switch {
				case errors.Is(err, store.ErrUnavailable):
					refused.Store(true)
				case err != nil:
					t.Error(err)
					return
				default:
					mu.Lock()
					for _, m := range b {
						acked = append(acked, *m)
					}
					mu.Unlock()
				}
			}
		})
		wait(t, "the disk is full", func() bool { return s.Healthy() != nil || refused.Load() })
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		wait(t, "in service again", func() bool { return s.Healthy() == nil })
		close(stop)
		wg.Wait()
		verify(t, s, acked, nil)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(dir, "db")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(ballast, make([]byte, 8<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
