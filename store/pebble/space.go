package pebble

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/mqim/mqim/store"
)

const (
	spaceEvery = 100 * time.Millisecond // how old a look at the free space may be
	spaceBytes = 1 << 20                // and how much may have been written since
	closeWait  = 5 * time.Second        // how long Close waits for room
)

// space watches the room on the disk. It refuses Commits while there is little, and makes writes wait that met a
// full disk all the same. All methods may be called concurrently.
type space struct {
	look    func() (uint64, error)
	minFree uint64

	free    atomic.Uint64 // as last looked
	looked  atomic.Int64  // when, in Unix nanoseconds
	written atomic.Int64  // bytes since
	low     atomic.Bool   // between minFree and minFree × 1.25, on the way up
	waiting atomic.Int64  // writes that wait for room
	unknown atomic.Bool   // the file system does not tell

	stop atomic.Int64 // Unix nanoseconds from which waiting writes fail; 0: never
}

func newSpace(o Options) *space {
	p := &space{look: o.FreeSpace, minFree: o.MinFree}
	if p.look == nil {
		p.look = func() (uint64, error) {
			u, err := o.FS.GetDiskUsage(o.Path)
			return u.AvailBytes, err
		}
	}
	if p.minFree == 0 {
		p.minFree = 64 << 20
		if u, err := o.FS.GetDiskUsage(o.Path); err == nil {
			p.minFree = min(p.minFree, u.TotalBytes/10)
		}
	}
	p.refresh()
	return p
}

// refresh looks now.
func (p *space) refresh() {
	p.written.Store(0)
	n, err := p.look()
	if err != nil {
		// Not being told is no reason to refuse: a full disk shows itself by ENOSPC.
		p.unknown.Store(true)
		p.low.Store(false)
		return
	}
	p.unknown.Store(false)
	p.free.Store(n)
	switch {
	case n < p.minFree:
		p.low.Store(true)
	case n >= p.minFree+p.minFree/4:
		p.low.Store(false)
	}
}

// check is nil when there is room for a Commit. It looks at most every spaceEvery or spaceBytes.
func (p *space) check() error {
	now := time.Now().UnixNano()
	if last := p.looked.Load(); now-last >= int64(spaceEvery) || now < last || p.written.Load() >= spaceBytes {
		if p.looked.CompareAndSwap(last, now) {
			p.refresh()
		}
	}
	return p.refuse()
}

// refuse is check without looking.
func (p *space) refuse() error {
	switch {
	case p.waiting.Load() > 0:
		return fmt.Errorf("%w: no space left on the disk", store.ErrUnavailable)
	case p.low.Load():
		return fmt.Errorf("%w: %d MiB free on the disk, %d are kept in reserve", store.ErrUnavailable,
			p.free.Load()>>20, p.minFree>>20)
	}
	return nil
}

func (p *space) closing() { p.stop.CompareAndSwap(0, time.Now().Add(closeWait).UnixNano()) }

// retry calls write until it fails with something else than a full disk, waiting for room in between. It ends
// with the error of the full disk when the store is being closed for closeWait.
func (p *space) retry(write func() error) error {
	err := write()
	if !diskFull(err) {
		return err
	}
	p.waiting.Add(1)
	defer p.waiting.Add(-1)
	for diskFull(err) {
		if stop := p.stop.Load(); stop != 0 && time.Now().UnixNano() > stop {
			return err
		}
		time.Sleep(spaceEvery) // polling: no file system tells when there is room again
		err = write()
	}
	return err
}

func diskFull(err error) bool {
	return err != nil && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT))
}

// wrap makes the writes of a file system wait for room. Not so Sync: after a sync that failed, for whatever
// reason, the kernel may have dropped the pages, and a second one would report success for data that is lost
// (vfs.OnDiskFull does repeat it).
func (p *space) wrap(fs vfs.FS) vfs.FS { return &waitFS{FS: fs, p: p} }

type waitFS struct {
	vfs.FS
	p *space
}

func (f *waitFS) Unwrap() vfs.FS { return f.FS }

func (f *waitFS) file(open func() (vfs.File, error)) (vfs.File, error) {
	var file vfs.File
	err := f.p.retry(func() (err error) { file, err = open(); return err })
	if err != nil {
		return nil, err
	}
	return &waitFile{File: file, p: f.p}, nil
}

func (f *waitFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.file(func() (vfs.File, error) { return f.FS.Create(name, c) })
}

func (f *waitFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return f.file(func() (vfs.File, error) { return f.FS.OpenReadWrite(name, c, opts...) })
}

func (f *waitFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.file(func() (vfs.File, error) { return f.FS.ReuseForWrite(oldname, newname, c) })
}

func (f *waitFS) Link(oldname, newname string) error {
	return f.p.retry(func() error { return f.FS.Link(oldname, newname) })
}

func (f *waitFS) Rename(oldname, newname string) error {
	return f.p.retry(func() error { return f.FS.Rename(oldname, newname) })
}

func (f *waitFS) MkdirAll(dir string, perm os.FileMode) error {
	return f.p.retry(func() error { return f.FS.MkdirAll(dir, perm) })
}

type waitFile struct {
	vfs.File
	p *space
}

// Write goes on behind what a partial write has stored.
func (f *waitFile) Write(b []byte) (n int, err error) {
	err = f.p.retry(func() error {
		k, err := f.File.Write(b[n:])
		n += k
		return err
	})
	return n, err
}

func (f *waitFile) WriteAt(b []byte, off int64) (n int, err error) {
	err = f.p.retry(func() error {
		k, err := f.File.WriteAt(b[n:], off+int64(n))
		n += k
		return err
	})
	return n, err
}

// Preallocate only saves the file system work; a full disk shows itself at the write.
func (f *waitFile) Preallocate(off, length int64) error {
	if err := f.File.Preallocate(off, length); !diskFull(err) {
		return err
	}
	return nil
}
