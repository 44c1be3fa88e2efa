package broker

import (
	"context"
	"io"
	"log/slog"

	"github.com/mqim/mqim/broker/config"
)

// NewLogger returns the logger that the configuration asks for, and its level, which a reload changes.
func NewLogger(w io.Writer, c config.Log) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	_ = level.UnmarshalText([]byte(c.Level)) // validated
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o)), level
	}
	return slog.New(slog.NewTextHandler(w, o)), level
}

// mochiLogger is for mochi, which logs whole packets: bodies, and passwords with a bad CONNECT. What it has to say is
// for people who look into mochi, so it is said at debug.
func mochiLogger(log *slog.Logger) *slog.Logger { return slog.New(&scrubber{log.Handler()}) }

type scrubber struct{ next slog.Handler }

func (s *scrubber) Enabled(ctx context.Context, l slog.Level) bool {
	return s.next.Enabled(ctx, quieter(l))
}

func (s *scrubber) Handle(ctx context.Context, r slog.Record) error {
	clean := slog.NewRecord(r.Time, quieter(r.Level), "mochi: "+r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		if !secret(a) {
			clean.AddAttrs(a)
		}
		return true
	})
	return s.next.Handle(ctx, clean)
}

func (s *scrubber) WithAttrs(attrs []slog.Attr) slog.Handler {
	var kept []slog.Attr
	for _, a := range attrs {
		if !secret(a) {
			kept = append(kept, a)
		}
	}
	return &scrubber{s.next.WithAttrs(kept)}
}

func (s *scrubber) WithGroup(name string) slog.Handler { return &scrubber{s.next.WithGroup(name)} }

// secret are the attributes that may hold what a client sent.
func secret(a slog.Attr) bool {
	return a.Key == "pk" || a.Key == "packet" || a.Key == "will"
}

func quieter(l slog.Level) slog.Level {
	if l < slog.LevelError {
		return slog.LevelDebug
	}
	return l
}
