package pebble

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	pdb "github.com/cockroachdb/pebble/v2"
	walrecord "github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/wal"
	"golang.org/x/time/rate"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// schema is the version of the layout in doc.go. A store of a later one is refused.
const schema = 1

// Sync modes.
const (
	SyncCommit   = "commit"   // Commit returns after the write-ahead log is on disk
	SyncInterval = "interval" // the log is synced every 100 ms: a power loss takes what was acknowledged since
)

const syncEvery = 100 * time.Millisecond

// Options says where the store lies and what it keeps. Only Path is needed.
type Options struct {
	Path      string // the folder; made if absent
	Sync      string // SyncCommit ("" too) or SyncInterval
	Retention store.Retention
	// IDs makes message ids; nil: milliseconds of the clock, shifted. Next is called with the greatest id that
	// the store holds, under the store's mutex, so it need not be safe for concurrent use.
	IDs    store.IDs
	Logger *slog.Logger // nil: slog.Default
	// MinFree is how much room, in bytes, the file system must have for a Commit to be accepted; service is
	// resumed at MinFree × 1.25. 0: 10 % of the file system, at most 64 MiB.
	MinFree uint64
	FS      vfs.FS // nil: the operating system's
	// ReadOnly opens a store that is there, writes nothing, and lets nothing be written. Nobody else may have it open.
	ReadOnly bool

	// FreeSpace tells the bytes left; nil: asks the file system.
	FreeSpace func() (uint64, error)
	// fatal ends the process; tests replace it. It must not return.
	fatal func(msg string)
}

// Store is the embedded driver. See the package comment for what mu and life guard.
type Store struct {
	opts     Options
	log      *slog.Logger
	db       *pdb.DB
	dirLock  *pdb.Lock
	space    *space
	counters counters
	loud     [2]rate.Sometimes // of damage met, and of what failed in the background
	epoch    string
	boot     uint64        // counts openings
	opened   int64         // when, Unix milliseconds
	inboxTTL time.Duration // the shorter of InboxTTL and HistoryTTL: an entry without its message is of no use

	durable atomic.Uint64 // last lsn that readers may see
	lastID  atomic.Int64  // greatest durable id
	writes  atomic.Uint64 // batches with messages or publications

	mu       sync.Mutex // guards w and what follows
	w        writer
	deleted  deletions // since the tables were compacted
	tidying  bool
	tidyRest time.Time // until then they are not

	life   sync.RWMutex // shared by calls, exclusive for Close; guards closed
	closed bool

	latest latest // messages of groups

	maintMu sync.Mutex // guards maint
	maint   maintainer

	stop chan struct{} // closed by Close: ends syncLoop
	done sync.WaitGroup
}

var _ store.Store = (*Store)(nil)

// Open opens the store in o.Path, making it if there is none. It does not read what is stored: the time it takes
// depends on the write-ahead log (some tens of MiB at most), not on the number of messages. Errors: ErrLocked when
// another process has it open, ErrCorrupt when a file is damaged or missing; both name the folder or the file.
func Open(o Options) (*Store, error) {
	if o.Path == "" {
		return nil, errors.New("store.pebble: no path")
	}
	if o.Sync == "" {
		o.Sync = SyncCommit
	}
	if o.Sync != SyncCommit && o.Sync != SyncInterval {
		return nil, fmt.Errorf("store.pebble: sync is %q, want %q or %q", o.Sync, SyncCommit, SyncInterval)
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.IDs == nil {
		o.IDs = clockIDs{}
	}
	s := &Store{opts: o, log: o.Logger, stop: make(chan struct{}), inboxTTL: o.Retention.InboxTTL}
	for i := range s.loud {
		s.loud[i].Interval = 10 * time.Second
	}
	if h := o.Retention.HistoryTTL; h > 0 && (s.inboxTTL == 0 || h < s.inboxTTL) {
		s.inboxTTL = h
	}
	if s.opts.fatal == nil {
		s.opts.fatal = func(string) { os.Exit(1) }
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	return s, nil
}

// clockIDs is for stores that stand alone and were given no generator.
type clockIDs struct{}

func (clockIDs) Next(after int64) int64 { return max(after+1, time.Now().UnixMilli()<<20) }

func (s *Store) open() (err error) {
	if s.opts.ReadOnly {
		_, err := s.opts.FS.Stat(s.opts.Path)
		if desc, e := pdb.Peek(s.opts.Path, s.opts.FS); err != nil || e == nil && !desc.Exists {
			return fmt.Errorf("store.pebble: no store in %s", s.opts.Path)
		}
	} else if err := s.opts.FS.MkdirAll(s.opts.Path, 0o750); err != nil {
		return fmt.Errorf("store.pebble: make %s: %w", s.opts.Path, err)
	}
	s.dirLock, err = pdb.LockDirectory(s.opts.Path, s.opts.FS)
	if err != nil {
		return lockError(s.opts.Path, err)
	}
	defer func() {
		if err != nil {
			if s.db != nil {
				err = errors.Join(err, s.db.Close())
			}
			err = errors.Join(err, s.dirLock.Close())
		}
	}()
	if err := checkFolder(s.opts.FS, s.opts.Path); err != nil {
		return err
	}
	s.space = newSpace(s.opts)
	s.db, err = openDB(s)
	if err != nil {
		return s.openError(err)
	}
	if err := s.loadMeta(); err != nil {
		return fmt.Errorf("store in %s: %w", s.opts.Path, err)
	}
	if err := s.w.load(s); err != nil {
		return fmt.Errorf("store in %s: %w", s.opts.Path, err)
	}
	if s.opts.Sync == SyncInterval && !s.opts.ReadOnly {
		s.log.Warn("store.pebble.sync is interval: a power loss takes up to 100 ms of acknowledged messages")
		s.done.Add(1)
		go s.syncLoop()
	}
	return nil
}

// openDB turns a panic while opening into an error: Pebble panics on some damaged manifests.
func openDB(s *Store) (db *pdb.DB, err error) {
	defer func() {
		if r := recover(); r != nil {
			db, err = nil, fmt.Errorf("%w: opening panicked: %v", store.ErrCorrupt, r)
		}
	}()
	return pdb.Open(s.opts.Path, s.pebbleOptions())
}

// openError tells damage from what the operating system refuses.
func (s *Store) openError(err error) error {
	var no syscall.Errno
	newer := strings.Contains(err.Error(), "format major version")
	if newer || errors.As(err, &no) && no != syscall.ENOENT {
		return fmt.Errorf("store.pebble: open %s: %w", s.opts.Path, err)
	}
	return fmt.Errorf("%w: store in %s: %s%s", store.ErrCorrupt, s.opts.Path, firstLine(err), s.damagedLog())
}

// firstLine leaves out the stack traces and details that Pebble's errors carry.
func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// damagedLog names the log that cannot be replayed, and where; "" if it is not a log that is damaged.
func (s *Store) damagedLog() string {
	logs, err := wal.Scan(wal.Dir{FS: s.opts.FS, Dirname: s.opts.Path})
	if err != nil {
		return ""
	}
	for i, l := range logs {
		r := l.OpenForRead()
		for {
			rec, at, err := r.NextRecord()
			if err == nil {
				_, err = io.Copy(io.Discard, rec)
			}
			if err == nil {
				continue
			}
			// The last log may end in a torn record; only what Pebble is sure of is damage there.
			sure := errors.Is(err, walrecord.ErrInvalidChunk) || errors.Is(err, walrecord.ErrZeroedChunk)
			if !errors.Is(err, io.EOF) && (sure || i+1 < len(logs)) {
				r.Close()
				return fmt.Sprintf(" (%s, near byte %d)", at.PhysicalFile, at.Physical)
			}
			break
		}
		r.Close()
	}
	return ""
}

// checkFolder refuses a folder that holds tables or logs but no manifest that says so: Pebble would start an empty
// store over them and then remove them.
func checkFolder(fs vfs.FS, path string) error {
	desc, err := pdb.Peek(path, fs)
	if err != nil {
		return fmt.Errorf("%w: store in %s: %v", store.ErrCorrupt, path, err)
	}
	if desc.Exists {
		return nil
	}
	names, err := fs.List(path)
	if err != nil {
		return fmt.Errorf("store.pebble: list %s: %w", path, err)
	}
	for _, n := range names {
		if strings.HasSuffix(n, ".sst") || strings.HasSuffix(n, ".blob") {
			return fmt.Errorf("%w: store in %s: %s is there but no manifest names it", store.ErrCorrupt, path, n)
		}
	}
	return nil
}

// loadMeta reads, or makes, the records that say what the store is.
func (s *Store) loadMeta() error {
	v, err := s.get(keyMeta("schema"))
	if err != nil {
		return err
	}
	if v == nil {
		if s.opts.ReadOnly {
			return errors.New("it is empty")
		}
		return s.makeMeta()
	}
	n, err := strconv.Atoi(string(v))
	if err != nil {
		return fmt.Errorf("%w: schema version %q", store.ErrCorrupt, v)
	}
	if n > schema {
		return fmt.Errorf("it has schema version %d, this program knows up to %d: use a newer one", n, schema)
	}
	v, err = s.get(keyMeta("epoch"))
	if err != nil {
		return err
	}
	if len(v) == 0 {
		return fmt.Errorf("%w: no epoch", store.ErrCorrupt)
	}
	s.epoch = string(v)
	return s.countBoot()
}

// countBoot tells this opening of the store from all others.
func (s *Store) countBoot() error {
	v, err := s.get(keyMeta("boot"))
	if err != nil {
		return err
	}
	d := wire.Decoder{B: v}
	if v != nil {
		s.boot = d.Uvarint()
	}
	if d.Bad {
		return fmt.Errorf("%w: number of openings", store.ErrCorrupt)
	}
	s.boot++
	s.opened = time.Now().UnixMilli()
	if s.opts.ReadOnly {
		return nil
	}
	return s.wrap(s.db.Set(keyMeta("boot"), wire.AppendUvarint(nil, s.boot), pdb.Sync), "count this opening")
}

func (s *Store) makeMeta() error {
	it, err := s.db.NewIter(nil)
	if err != nil {
		return s.wrap(err, "look for keys")
	}
	found := it.First()
	if err := it.Close(); err != nil {
		return s.wrap(err, "look for keys")
	}
	if found {
		return fmt.Errorf("%w: there are keys but no schema version", store.ErrCorrupt)
	}
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	s.epoch = hex.EncodeToString(id[:])
	b := s.db.NewBatch()
	defer b.Close()
	for k, v := range map[string]string{
		"schema": strconv.Itoa(schema), "epoch": s.epoch, "created": time.Now().UTC().Format(time.RFC3339),
	} {
		if err := b.Set(keyMeta(k), []byte(v), nil); err != nil {
			return err
		}
	}
	if err := b.Commit(pdb.Sync); err != nil {
		return err
	}
	return s.countBoot()
}

// syncLoop is the background sync of SyncInterval; Close waits for it.
func (s *Store) syncLoop() {
	defer s.done.Done()
	t := time.NewTicker(syncEvery)
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
		}
		if err := s.db.LogData(nil, pdb.Sync); err != nil {
			s.fatalf("sync failed: %v", err)
		}
	}
}

// fatalf ends the process. It is for a write or sync of the write-ahead log that failed: what is on disk is then
// unknown, and trying again may report success for pages that the kernel has dropped.
func (s *Store) fatalf(format string, args ...any) {
	msg := "store.pebble: " + fmt.Sprintf(format, args...)
	s.log.Error(msg + "; ending the process, what was acknowledged is recovered at the next start")
	s.opts.fatal(msg)
}

// enter is the start of every call; the caller defers s.life.RUnlock if it returns nil.
func (s *Store) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.life.RLock()
	if s.closed {
		s.life.RUnlock()
		return store.ErrClosed
	}
	return nil
}

// Close waits for the calls under way, syncs and closes. A second Close does nothing. When the disk is full it
// waits a few seconds for room and then ends the process: what was not acknowledged is not stored.
func (s *Store) Close() error {
	s.space.closing()
	s.life.Lock()
	defer s.life.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	close(s.stop)
	s.done.Wait()
	err := s.db.Close()
	return errors.Join(err, s.dirLock.Close())
}

// Epoch is made when the store is created.
func (s *Store) Epoch() string { return s.epoch }

// wrap names the place of an error and marks damage as ErrCorrupt.
func (s *Store) wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	what := fmt.Sprintf(format, args...)
	if pdb.IsCorruptionError(err) || errors.Is(err, wire.ErrChunk) {
		s.counters.corrupt.Add(1)
		return fmt.Errorf("%s: %w: %s", what, store.ErrCorrupt, firstLine(err))
	}
	return fmt.Errorf("%s: %w", what, err)
}

// corrupt is the error for a value that does not decode.
func (s *Store) corrupt(format string, args ...any) error {
	s.counters.corrupt.Add(1)
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), store.ErrCorrupt)
}

// get copies a value; nil when there is none.
func (s *Store) get(key []byte) ([]byte, error) {
	v, c, err := s.db.Get(key)
	if errors.Is(err, pdb.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, s.wrap(err, "get %q", key)
	}
	v = append([]byte{}, v...)
	return v, s.wrap(c.Close(), "get %q", key)
}
