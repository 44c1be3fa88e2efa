package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/mqim/mqim/broker"
	"github.com/mqim/mqim/broker/config"
)

func serveCommand() *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "run the server",
		Description: `Without --config it reads config.yaml in the current folder if there is one. Every setting can be overridden by an
environment variable: MQIM_ and the path of the key, e.g. MQIM_STORE_PEBBLE_PATH=/var/lib/mqim.

SIGTERM and SIGINT stop it: what was accepted is committed and acknowledged first. SIGHUP has it read its settings,
users, keys and certificates again, and say what needs a restart.

   mqim serve
   mqim serve --config /etc/mqim/config.yaml`,
		Flags: []cli.Flag{configFlag()},
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := noArguments(c); err != nil {
				return err
			}
			return serve(ctx, c.String("config"))
		},
	}
}

func configFlag() cli.Flag {
	return &cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "settings `FILE` (default: config.yaml, if there is one)"}
}

// noArguments refuses what stands behind a command that takes options alone: it is mostly a file that is meant to be read.
func noArguments(c *cli.Command) error {
	if !c.Args().Present() {
		return nil
	}
	name := c.FullName()
	return cli.Exit(fmt.Sprintf("%s: unexpected %q; name the file as in: %s --config %s", name, c.Args().First(), name, c.Args().First()), 1)
}

func serve(ctx context.Context, file string) error {
	cfg, err := config.Load(file, os.Environ())
	if err != nil {
		return err
	}
	log, level := broker.NewLogger(os.Stderr, cfg.Log)
	slog.SetDefault(log)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)

	log.Info("starting", "version", version(), "node", cfg.NodeName())
	broker.Version = version()
	s, err := broker.New(cfg, log, level)
	if err != nil {
		return err
	}
	if err := s.Start(); err != nil {
		return errors.Join(err, s.Close(ctx))
	}
	failure := wait(s, log, file, signals)
	ctx, cancel := context.WithTimeout(ctx, s.ShutdownTimeout())
	defer cancel()
	if err := stop(ctx, s); err != nil {
		return fmt.Errorf("stopped, but not cleanly: %w", errors.Join(failure, err))
	}
	if failure != nil {
		return failure
	}
	log.Info("stopped")
	return nil
}

// stopGrace is how long after node.shutdown_timeout, when connections are cut, the rest of stopping may take.
const stopGrace = 3 * time.Second

var errStuck = errors.New("what the server waits for, most likely the store, does not answer")

// stop closes the server. What does not end is left where it is: whoever asks the process to stop would kill it next, and
// nothing that was acknowledged depends on what it has not done yet.
func stop(ctx context.Context, s *broker.Server) error {
	done := make(chan error, 1)
	go func() { done <- s.Close(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(stopGrace):
		return errStuck
	}
}

// wait reloads as often as it is asked to, until a signal ends the server or it cannot go on.
func wait(s *broker.Server, log *slog.Logger, file string, signals <-chan os.Signal) error {
	for {
		select {
		case err := <-s.Failed():
			log.Error("stopping", "error", err)
			return err
		case sig := <-signals:
			if sig != syscall.SIGHUP {
				log.Info("stopping", "signal", sig.String())
				return nil
			}
			reload(s, log, file)
		}
	}
}

// reload takes over what can be; on an error everything stays as it is.
func reload(s *broker.Server, log *slog.Logger, file string) {
	cfg, err := config.Load(file, os.Environ())
	if err != nil {
		log.Error("not reloaded, everything stays as it is", "error", err)
		return
	}
	live, restart, err := s.Reload(cfg)
	if err != nil {
		log.Error("not reloaded, everything stays as it is", "error", err)
		return
	}
	log.Info("reloaded", "changed", strings.Join(live, " "))
	if len(restart) > 0 {
		log.Warn("changed, but needs a restart", "settings", strings.Join(restart, " "))
	}
}
