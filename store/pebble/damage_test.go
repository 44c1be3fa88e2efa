package pebble_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/pebble"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// written makes a store of n messages in a folder, by a process that was killed (so that there is a log to replay)
// or that closed it. It returns what was acknowledged.
func written(t *testing.T, dir string, n int) []store.Send {
	t.Helper()
	s, err := pebble.Open(pebble.Options{Path: dir, MinFree: 1, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	w := &traffic{name: "a"}
	var acked []store.Send
	for w.n < n {
		b := w.batch(50)
		if err := s.Commit(ctx, &store.Batch{Sends: b}); err != nil {
			t.Fatal(err)
		}
		for _, m := range b {
			acked = append(acked, *m)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return acked
}

func files(t *testing.T, dir, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(list) == 0 {
		t.Fatalf("no %s in %s: %v", pattern, dir, err)
	}
	return list
}

// reopenTwice turns what is in the log into tables.
func reopenTwice(t *testing.T, dir string) {
	t.Helper()
	for range 2 {
		s, err := pebble.Open(pebble.Options{Path: dir, MinFree: 1, Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// honest opens a damaged store and reads everything: each message is right, or there is an error that says corrupt,
// or the end of the log is missing; never a wrong one and never a hole. It reports whether damage was noticed and
// how many messages were read.
func honest(t *testing.T, dir string, acked []store.Send) (read int, noticed error) {
	t.Helper()
	s, err := pebble.Open(pebble.Options{Path: dir, MinFree: 1, Logger: quiet})
	if err != nil {
		if !errors.Is(err, store.ErrCorrupt) {
			t.Fatalf("open: got %v, want %v", err, store.ErrCorrupt)
		}
		if !strings.Contains(err.Error(), dir) {
			t.Errorf("the error does not name the folder: %v", err)
		}
		return 0, err
	}
	defer s.Close()
	gone := map[store.Conv]bool{}
	for i := range acked {
		m := &acked[i]
		got, err := s.Message(ctx, m.Conv, m.Cseq)
		switch {
		case errors.Is(err, store.ErrCorrupt):
			noticed = err
		case errors.Is(err, store.ErrNotFound):
			gone[m.Conv] = true
		case err != nil:
			t.Fatal(err)
		case got.ID != m.ID || string(got.Body) != string(m.Body) || got.From != m.From || got.Cid != m.Cid:
			t.Fatalf("wrong data: got %+v, want %+v", got, m)
		case gone[m.Conv]:
			t.Fatalf("%s: a hole before cseq %d", m.Conv, m.Cseq)
		default:
			read++
		}
		if err != nil && !errors.Is(err, store.ErrNotFound) && !strings.Contains(err.Error(), string(m.Conv)) {
			t.Errorf("the error does not name the place: %v", err)
		}
	}
	for _, user := range []string{"ua", "p1"} {
		var after uint64
		for {
			list, err := s.ReadInbox(ctx, user, after, 100, nil)
			if errors.Is(err, store.ErrCorrupt) {
				noticed = err
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(list) == 0 {
				break
			}
			for _, x := range list {
				if x.Seq != after+1 {
					t.Fatalf("inbox of %s: seq %d after %d", user, x.Seq, after)
				}
				after = x.Seq
			}
		}
	}
	return read, noticed
}

func flip(t *testing.T, file string, at int64) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 0x10
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "db")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestFlippedTables damages one byte of a table at a time.
func TestFlippedTables(t *testing.T) {
	dir := t.TempDir()
	acked := written(t, dir, 1500)
	reopenTwice(t, dir)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	noticed := 0
	const rounds = 8
	for range rounds {
		d := copyDir(t, dir)
		list := files(t, d, "*.sst")
		f := list[rng.IntN(len(list))]
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		flip(t, f, rng.Int64N(info.Size()))
		read, err := honest(t, d, acked)
		if err != nil {
			noticed++
		} else if read != len(acked) {
			t.Errorf("%s: %d of %d messages read, and no error", f, read, len(acked))
		}
	}
	if noticed == 0 {
		t.Errorf("none of %d damages was noticed", rounds)
	}
}

// killed makes a store with a log that is not in tables yet.
func killed(t *testing.T) (dir string, n int) {
	t.Helper()
	dir = t.TempDir()
	c := startChild(t, "write", dir)
	pipe, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(pipe)
	for lines.Scan() {
		if n++; n == 9000 {
			c.Process.Kill()
		}
	}
	c.Wait()
	return dir, n
}

// TestDamagedLog flips a bit in the write-ahead log, or cuts it. A cut end of the last log cannot be told from one
// that was never written; what is in front of it is whole. A flipped bit is refused, unless it is so near the end of
// the last log that Pebble cannot tell it from a torn write; its records promise what was synced with some delay.
func TestDamagedLog(t *testing.T) {
	dir, n := killed(t)
	s := open(t, pebble.Options{Path: copyDir(t, dir), MinFree: 1})
	b, err := s.Inbox(ctx, "uc")
	if err != nil || b.Head < uint64(n) {
		t.Fatalf("undamaged: got head %d, %v, want %d at least", b.Head, err, n)
	}
	all, err := s.ReadInbox(ctx, "uc", 0, 1<<30, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, where := range []float64{0, 0.01, 0.3, 0.6, 0.9, 0.999, 0, 0.01, 0.3, 0.6, 0.9, 0.999} {
		for _, cut := range []bool{false, true} {
			t.Run(fmt.Sprintf("last=%t/%g/cut=%t", i >= 6, where, cut), func(t *testing.T) {
				d := copyDir(t, dir)
				logs := files(t, d, "*.log")
				log := logs[0]
				if i >= 6 {
					log = logs[len(logs)-1]
				}
				info, err := os.Stat(log)
				if err != nil {
					t.Fatal(err)
				}
				at := int64(float64(info.Size()) * where)
				if cut {
					err = os.Truncate(log, at)
				} else {
					flip(t, log, at)
				}
				if err != nil {
					t.Fatal(err)
				}
				s, err := pebble.Open(pebble.Options{Path: d, MinFree: 1, Logger: quiet})
				if err != nil {
					named := strings.Contains(err.Error(), filepath.Base(log)) || where == 0
					if !errors.Is(err, store.ErrCorrupt) || !strings.Contains(err.Error(), d) || !named {
						t.Errorf("open: got %v, want %v naming %s", err, store.ErrCorrupt, log)
					}
					t.Logf("refused: %v", err)
					return
				}
				defer s.Close()
				if i < 6 || !cut && where < 0.8 {
					t.Errorf("opened, byte %d of %d of %s being damaged", at, info.Size(), log)
				}
				var list []store.Entry
				for {
					was := len(list)
					if list, err = s.ReadInbox(ctx, "uc", uint64(was), 1000, list); err != nil {
						t.Fatal(err)
					}
					if len(list) == was {
						break
					}
				}
				for i, x := range list {
					if i < len(all) && (x.ID != all[i].ID || string(x.Body) != string(all[i].Body)) {
						t.Fatalf("wrong data at seq %d", x.Seq)
					}
				}
				t.Logf("%d of %d entries", len(list), b.Head)
			})
		}
	}
}

// TestMissingFiles cuts short or removes each kind of file.
func TestMissingFiles(t *testing.T) {
	dir := t.TempDir()
	acked := written(t, dir, 1500)
	reopenTwice(t, dir)
	for _, pattern := range []string{"*.sst", "MANIFEST-*", "marker.manifest*", "marker.format*", "OPTIONS-*"} {
		for _, cut := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/cut=%t", pattern, cut), func(t *testing.T) {
				d := copyDir(t, dir)
				for _, f := range files(t, d, pattern) {
					info, err := os.Stat(f)
					if err != nil {
						t.Fatal(err)
					}
					if cut {
						err = os.Truncate(f, info.Size()/2)
					} else {
						err = os.Remove(f)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				read, err := honest(t, d, acked)
				if err == nil && read != len(acked) {
					t.Errorf("%d of %d messages read, and no error", read, len(acked))
				}
				t.Logf("%d messages, %v", read, err)
			})
		}
	}
}

// TestNewerSchema refuses the store of a later version and names both.
func TestNewerSchema(t *testing.T) {
	dir := t.TempDir()
	written(t, dir, 50)
	db, err := pdb.Open(dir, &pdb.Options{FormatMajorVersion: pdb.FormatNewest})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Set([]byte("mschema"), []byte("7"), pdb.Sync); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = pebble.Open(pebble.Options{Path: dir, MinFree: 1, Logger: quiet})
	if err == nil || !strings.Contains(err.Error(), "version 7") || !strings.Contains(err.Error(), "up to 1") {
		t.Errorf("got %v, want both versions named", err)
	}
}

// TestLocked: neither another process nor another part of this one can open the folder.
func TestLocked(t *testing.T) {
	dir := t.TempDir()
	c := startChild(t, "hold", dir)
	pipe, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if !bufio.NewScanner(pipe).Scan() {
		t.Fatal("the child did not open")
	}
	refuse := func() {
		t.Helper()
		_, err := pebble.Open(pebble.Options{Path: dir, MinFree: 1, Logger: quiet})
		if !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), dir) {
			t.Errorf("got %v, want %v naming %s", err, store.ErrLocked, dir)
		}
	}
	refuse()
	c.Process.Kill()
	c.Wait()
	open(t, pebble.Options{Path: dir, MinFree: 1})
	refuse()
}

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		o    pebble.Options
		want string
	}{
		{pebble.Options{}, "no path"},
		{pebble.Options{Path: "x", Sync: "never"}, `sync is "never"`},
		{pebble.Options{Path: "/proc/nowhere"}, "/proc/nowhere"},
	} {
		if _, err := pebble.Open(c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, want %q", c.o, err, c.want)
		}
	}
}

// Damage that is met again and again, as compactions do, is a line in the log now and then, and a line is one line.
func TestDamageIsNotLoggedEachTime(t *testing.T) {
	dir := t.TempDir()
	acked := written(t, dir, 2000)
	reopenTwice(t, dir)
	for _, name := range files(t, dir, "*.sst") {
		flip(t, name, 100) // in its first block of data
	}
	var log bytes.Buffer // its handler writes to it one line at a time
	begun := time.Now()
	s, err := pebble.Open(pebble.Options{Path: dir, MinFree: 1, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		for _, m := range acked[:10] {
			_, _ = s.Message(ctx, m.Conv, m.Cseq)
		}
	}
	met := s.Metrics().Corruptions
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Count(log.String(), "damaged file")
	if most := 1 + int(time.Since(begun)/(10*time.Second)); met < 20 || lines < 1 || lines > most {
		t.Errorf("%d times met: got %d lines, want 1 to %d", met, lines, most)
	}
	if strings.Contains(log.String(), "stack") {
		t.Errorf("a stack trace in the log: %s", log.String())
	}
}
