package pebble

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/sstable/block"
)

const (
	memtableBytes = 64 << 20 // twice the size, half the rewriting; grows to it from 256 KiB
	memtables     = 4
	// Pebble takes the memory of memtables out of the cache's size: what is to be left for blocks comes on top, or
	// under load every look at a filter reads it from disk.
	cacheBytes = 64<<20 + memtables*memtableBytes
	tableBytes = 16 << 20
)

// pebbleOptions are chosen for a store that is mostly appended to and read near its end.
func (s *Store) pebbleOptions() *pdb.Options {
	o := &pdb.Options{
		FS:                          s.space.wrap(s.opts.FS),
		Lock:                        s.dirLock,
		ReadOnly:                    s.opts.ReadOnly,
		FormatMajorVersion:          pdb.FormatNewest,
		CacheSize:                   cacheBytes,
		MemTableSize:                memtableBytes,
		MemTableStopWritesThreshold: memtables,
		// With trivial moves L0 is left quickly; a stall of the committer costs more than a few more sublevels to
		// look into.
		L0CompactionThreshold: 4,
		L0StopWritesThreshold: 24,
		LBaseMaxBytes:         64 << 20,
		MaxOpenFiles:          1000,
		WALBytesPerSync:       0,
		BytesPerSync:          1 << 20,
		CompactionConcurrencyRange: func() (int, int) {
			return 1, max(1, runtime.GOMAXPROCS(0)/2)
		},
		Logger:        logger{s},
		EventListener: s.events(),
	}
	for i := range o.Levels {
		o.Levels[i].BlockSize = 16 << 10
		// Lookups of cids mostly find nothing: the filter answers them without reading a block.
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		o.Levels[i].FilterType = pdb.TableFilter
		o.Levels[i].Compression = func() *sstable.CompressionProfile { return block.FastestCompression }
	}
	// A filter is one block for the whole table. Small tables have filters that the cache can hold one by one.
	// The upper ones are smaller still, so that the tables of a flush mostly hold one kind of key each.
	o.TargetFileSizes = [7]int64{2 << 20, 4 << 20, tableBytes, tableBytes, tableBytes, tableBytes, tableBytes}
	return o
}

// events counts what goes wrong and logs it, damage not each time that Pebble comes by, which may be at once; the rest of Pebble's events are at debug level.
func (s *Store) events() *pdb.EventListener {
	return &pdb.EventListener{
		BackgroundError: func(err error) {
			s.counters.background.Add(1)
			s.loud[1].Do(func() { s.log.Error("store.pebble: background error (one line in 10 s)", "err", firstLine(err)) })
		},
		DataCorruption: func(i pdb.DataCorruptionInfo) {
			s.counters.corrupt.Add(1)
			s.loud[0].Do(func() {
				s.log.Error("store.pebble: damaged file; messages in it are not served (one line in 10 s)", "file", i.Path, "err", firstLine(i.Details))
			})
		},
		DiskSlow: func(i pdb.DiskSlowInfo) {
			s.log.Warn("store.pebble: slow disk", "info", i.String())
		},
		WriteStallBegin: func(i pdb.WriteStallBeginInfo) {
			s.counters.stalls.Add(1)
			s.log.Warn("store.pebble: writes wait for compaction", "reason", i.Reason)
		},
	}
}

// logger hands Pebble's own lines to slog; what Pebble calls fatal ends the process.
type logger struct{ s *Store }

func (l logger) Infof(format string, args ...any) {
	if l.s.log.Enabled(context.Background(), slog.LevelDebug) {
		l.s.log.Debug("pebble: " + fmt.Sprintf(format, args...))
	}
}

func (l logger) Errorf(format string, args ...any) {
	l.s.log.Error("pebble: " + fmt.Sprintf(format, args...))
}

func (l logger) Fatalf(format string, args ...any) { l.s.fatalf(format, args...) }

type counters struct {
	background, corrupt, stalls, lost atomic.Uint64
}

// Metrics is a moment's state of the store, for /metrics. Sizes are in bytes.
type Metrics struct {
	DiskUsage        uint64 // tables, logs and what waits to be removed
	FreeSpace        uint64 // of the file system, as last looked; 0: unknown
	CompactionDebt   uint64 // estimate of what compactions have to rewrite
	MemtableSize     uint64
	WALWritten       uint64 // since start
	ReadAmp          int    // sources a read may have to look into
	CacheSize        uint64
	CacheHits        uint64
	CacheMisses      uint64
	BackgroundErrors uint64 // failed flushes and compactions
	Corruptions      uint64 // damaged blocks and chunks met
	WriteStalls      uint64
	QueuedLost       uint64 // messages that were in the queues of sessions that have ended
	DiskFull         bool   // Commits are refused
}

// Metrics takes some microseconds; it is zero after Close.
func (s *Store) Metrics() Metrics {
	s.life.RLock()
	defer s.life.RUnlock()
	if s.closed {
		return Metrics{}
	}
	m := s.db.Metrics()
	return Metrics{
		DiskUsage: m.DiskSpaceUsage(), FreeSpace: s.space.free.Load(), CompactionDebt: m.Compact.EstimatedDebt,
		MemtableSize: m.MemTable.Size, WALWritten: m.WAL.BytesWritten, ReadAmp: m.ReadAmp(),
		CacheSize: uint64(m.BlockCache.Size), CacheHits: uint64(m.BlockCache.Hits), CacheMisses: uint64(m.BlockCache.Misses),
		BackgroundErrors: s.counters.background.Load(), Corruptions: s.counters.corrupt.Load(),
		WriteStalls: s.counters.stalls.Load(), QueuedLost: s.counters.lost.Load(), DiskFull: s.space.refuse() != nil,
	}
}
