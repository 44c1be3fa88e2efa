package dump

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mqim/mqim/store"
)

// Options say what is done about damage, and who hears of it.
type Options struct {
	SkipDamaged bool // what cannot be read is left out, and told
	// Tell is called with lines for the operator: progress every few seconds, what was left out, differences. It may be called by
	// several goroutines.
	Tell func(format string, args ...any)
}

const (
	stepBytes = 4 << 20 // of records in one step
	stepRows  = 20_000
	tellEvery = 5 * time.Second
)

// Copy copies all of a store into another, compares them, and lets the copy serve. After an error it goes on where it was
// when it is called again; the copy serves nobody until then.
func Copy(ctx context.Context, from Source, to Target, o Options) error {
	if err := Fill(ctx, from, to, o); err != nil {
		return err
	}
	if err := Verify(ctx, from, to, o); err != nil {
		return err
	}
	return to.Finish(ctx)
}

// Fill is Copy without what comes after the copying.
func Fill(ctx context.Context, from Source, to Target, o Options) error {
	f := &filler{to: to, o: o, skip: to.Stored(), rate: newRate(o)}
	if f.skip > 0 {
		o.Tell("going on after %d records that an earlier run has copied", f.skip)
	}
	if err := f.run(ctx, from); err != nil {
		return err
	}
	if f.rate.rows < f.skip {
		return fmt.Errorf("the copy has %d records already, and the source only %d", f.skip, f.rate.rows)
	}
	f.rate.tell("copied")
	lastID, err := from.LastID(ctx)
	if err != nil {
		return err
	}
	retained, err := from.RetainedCount(ctx)
	if err != nil {
		return err
	}
	return to.Adopt(ctx, from.Epoch(), lastID, retained)
}

// filler gathers records while those before are being stored.
type filler struct {
	to    Target
	o     Options
	skip  uint64 // so many are there already
	rate  *rate
	rows  []Row
	bytes int
	steps chan []Row
}

func (f *filler) run(ctx context.Context, from Source) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.steps = make(chan []Row)
	stored := make(chan error, 1)
	go func() {
		var err error
		for rows := range f.steps {
			if err == nil {
				err = f.to.Add(ctx, rows)
			}
			if err != nil {
				cancel()
			}
		}
		stored <- err
	}()
	err := from.Dump(ctx, f.o.damaged, func(r Row) error { return f.take(ctx, r) })
	if err == nil {
		err = f.flush(ctx)
	}
	close(f.steps)
	if e := <-stored; e != nil {
		return e // and what the dump says is a consequence
	}
	return err
}

func (f *filler) take(ctx context.Context, r Row) error {
	f.rate.count(&r, "copied")
	if f.rate.rows <= f.skip {
		return nil
	}
	f.rows = append(f.rows, r)
	if f.bytes += r.Size(); f.bytes < stepBytes && len(f.rows) < stepRows {
		return nil
	}
	return f.flush(ctx)
}

func (f *filler) flush(ctx context.Context) error {
	if len(f.rows) == 0 {
		return nil
	}
	select {
	case f.steps <- f.rows:
		f.rows, f.bytes = nil, 0
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// damaged is what is done about a record that cannot be read.
func (o *Options) damaged(err error) error {
	if !o.SkipDamaged {
		return err
	}
	o.Tell("left out: %v", err)
	return nil
}

// rate tells how fast records go by.
type rate struct {
	o               Options
	rows, bytes     uint64
	begun, told     time.Time
	rowsAt, bytesAt uint64 // when it was told last
}

func newRate(o Options) *rate { return &rate{o: o, begun: time.Now(), told: time.Now()} }

func (r *rate) count(x *Row, what string) {
	r.rows++
	r.bytes += uint64(x.Size())
	if r.rows%256 != 0 {
		return
	}
	if now := time.Now(); now.Sub(r.told) >= tellEvery {
		s := now.Sub(r.told).Seconds()
		r.o.Tell("%s %d records, %.1f MB (%.0f records/s, %.1f MB/s), at %s", what, r.rows, mb(r.bytes),
			float64(r.rows-r.rowsAt)/s, mb(r.bytes-r.bytesAt)/s, Kinds[x.Kind].Name)
		r.told, r.rowsAt, r.bytesAt = now, r.rows, r.bytes
	}
}

// tell tells the whole.
func (r *rate) tell(what string) {
	s := time.Since(r.begun).Seconds()
	r.o.Tell("%s %d records, %.1f MB in %.1f s (%.0f records/s, %.1f MB/s)", what, r.rows, mb(r.bytes), s, float64(r.rows)/s, mb(r.bytes)/s)
}

func mb(n uint64) float64 { return float64(n) / 1e6 }

// damage reports whether an error is one of stored data.
func damage(err error) bool { return errors.Is(err, store.ErrCorrupt) }
