package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/urfave/cli/v3"

	"github.com/mqim/mqim/broker"
	"github.com/mqim/mqim/broker/config"
	"github.com/mqim/mqim/store/dump"
	"github.com/mqim/mqim/store/mysql"
	"github.com/mqim/mqim/store/pebble"
)

// copyCommand moves what is stored from one driver to another.
func copyCommand() *cli.Command {
	return &cli.Command{
		Name:      "copy",
		Usage:     "copy everything of the embedded store into an empty MySQL database, and compare the two",
		UsageText: "mqim copy --from pebble --to mysql [--config FILE] [--path FOLDER] [--verify-only] [--skip-damaged]",
		Description: `The folder is store.pebble.path and the database store.mysql.dsn, whatever store.driver is; --path or the environment variables
override them. No server may be running on either. The folder is only read. A server that is started on the database then goes on
where the old one stopped: clients notice nothing.

   mqim copy --from pebble --to mysql --config /etc/mqim/config.yaml
   MQIM_STORE_MYSQL_DSN='mqim:secret@tcp(db:3306)/mqim' mqim copy --from pebble --to mysql --path /var/lib/mqim

When it is interrupted, run it again: it goes on. Until it has copied and compared everything no server starts on the database.
It exits with 1 if anything differs, and says what. --verify-only compares what an earlier run has copied, before any server has used it.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "from", Usage: "`DRIVER` to copy from: pebble", Required: true},
			&cli.StringFlag{Name: "to", Usage: "`DRIVER` to copy to: mysql", Required: true},
			configFlag(),
			&cli.StringFlag{Name: "path", Usage: "the `FOLDER` of the embedded store, instead of store.pebble.path"},
			&cli.BoolFlag{Name: "verify-only", Usage: "copy nothing, compare only"},
			&cli.BoolFlag{Name: "skip-damaged", Usage: "leave out messages that are damaged on disk, and list them, instead of stopping"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := noArguments(cmd); err != nil {
				return err
			}
			if from, to := cmd.String("from"), cmd.String("to"); from != "pebble" || to != "mysql" {
				return fmt.Errorf("copy: from %q to %q; expected --from pebble --to mysql", from, to)
			}
			c, err := config.Load(cmd.String("config"), os.Environ())
			if err != nil {
				return err
			}
			if path := cmd.String("path"); path != "" {
				c.Store.Pebble.Path = path
			}
			if c.Store.MySQL.DSN == "" {
				return errors.New("copy: store.mysql.dsn is not set")
			}
			ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			job := &copyJob{c: c, verify: cmd.Bool("verify-only"), skip: cmd.Bool("skip-damaged"), out: cmd.Root().ErrWriter}
			return job.run(ctx)
		},
	}
}

// copyJob is one run of copy.
type copyJob struct {
	c            *config.Config
	verify, skip bool
	mu           sync.Mutex // guards out
	out          io.Writer
}

func (j *copyJob) tell(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	_, _ = fmt.Fprintf(j.out, format+"\n", args...) // what cannot be told must not stop the work
}

func (j *copyJob) run(ctx context.Context) (err error) {
	level := j.c.Log
	level.Level = "error"
	log, _ := broker.NewLogger(j.out, level)
	from, err := pebble.Open(pebble.Options{Path: j.c.Store.Pebble.Path, ReadOnly: true, Logger: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	m := &j.c.Store.MySQL
	options := mysql.Options{
		DSN: string(m.DSN), Connections: m.Connections, AllowUnsafe: m.AllowUnsafe, Logger: log, Exclusive: true,
		Name:         fmt.Sprintf("mqim copy, process %d", os.Getpid()),
		MessageBytes: int(max(j.c.Limits.MessageBytes, j.c.Limits.CommandBytes)),
	}
	o := dump.Options{SkipDamaged: j.skip, Tell: j.tell}
	if j.verify {
		to, err := mysql.Open(ctx, options)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, to.Close()) }()
		j.tell("comparing %s with %s", j.c.Store.Pebble.Path, to.Place())
		return j.result(dump.Verify(ctx, from, to, o), "the same")
	}
	to, err := mysql.OpenCopy(ctx, options, from.State())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	j.tell("copying %s to %s", j.c.Store.Pebble.Path, to.Place())
	return j.result(dump.Copy(ctx, from, to, o), "done: start the server with store.driver: mysql, and keep the folder until it has proved itself")
}

func (j *copyJob) result(err error, done string) error {
	if err == nil {
		j.tell("%s", done)
		return nil
	}
	if errors.Is(err, context.Canceled) {
		return errors.New("copy: interrupted; run it again to go on")
	}
	return fmt.Errorf("copy: %w", err)
}
