package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/urfave/cli/v3"
	"golang.org/x/term"

	"github.com/mqim/mqim/bench"
)

// benchCommand measures a broker: this one or any other that speaks MQTT over TCP.
func benchCommand() *cli.Command {
	return &cli.Command{
		Name:  "bench",
		Usage: "load a broker and measure what it delivers",
		Description: `Publishes and receives over real connections, and checks every message: what was lost or came out of order
is said loudly, and makes the command fail. Any broker will do (--profile topic); mqim also has the profiles
plain and im, for which the server needs limits.sends_per_second: 0. Latencies are from publish to delivery, on one clock, so the machine running this measures itself
too: on a busy machine give the generator cores of its own, or compare brokers under the same conditions.

Examples:
  mqim bench pairs --pairs 20 --inflight 100 --duration 10s
        twenty 1:1 chats as fast as the broker acknowledges
  mqim bench pairs --profile im --rate 5000 --warmup 2s
        latency at 5,000 messages a second, commands, replies and receipts included
  mqim bench idle --connections 10000 --duration 30s --pid $(pidof mosquitto)
        what ten thousand connections cost in memory`,
		Commands: []*cli.Command{
			{
				Name:  "pairs",
				Usage: "senders, each with a receiver of its own",
				Description: `Examples:
  mqim bench pairs                                         against 127.0.0.1:1883, ordinary topics
  mqim bench pairs --profile plain --pairs 100 --size 1024
  mqim bench pairs --profile im --ack-every 50 --json > result.json`,
				Flags:  benchFlags(loadFlags(), pairsFlag()),
				Action: benchAction(bench.Pairs),
			},
			{
				Name:  "fanin",
				Usage: "many senders, one receiver",
				Description: `In the profiles plain and im a receiver that falls behind by more than the server's inbox.max_messages loses
the oldest of what waits, which is then reported as lost; choose a rate that it can follow, or a higher limit.

Examples:
  mqim bench fanin --senders 100 --rate 2000
  mqim bench fanin --profile im --senders 50 --count 100000`,
				Flags:  benchFlags(loadFlags(), sendersFlag("connections that publish")),
				Action: benchAction(bench.FanIn),
			},
			{
				Name:  "fanout",
				Usage: "one sender, many receivers (a topic, or in the profiles plain and im a group)",
				Description: `At a --rate the time until the last receiver has a message is measured, too. With --members the group is made
large, by commands of which each names 5,000 users, and also measured are: making and listing it; the latency of a 1:1
chat before and meanwhile; and how long members who were away take to get what they missed.

Examples:
  mqim bench fanout --receivers 1000 --rate 50
  mqim bench fanout --profile im --groups 10 --receivers 499 --inflight 10 --ack-every 50
  mqim bench fanout --profile im --members 100000 --receivers 2000 --rate 1 --warmup 5s`,
				Flags:  benchFlags(loadFlags(), receiversFlag()),
				Action: benchAction(bench.FanOut),
			},
			{
				Name:  "conversations",
				Usage: "the first page of the list of a user's conversations",
				Description: `Examples:
  mqim bench conversations --conversations 2000
  mqim bench conversations --run 7 --phase fill
  mqim bench conversations --run 7 --phase ask             after a restart: the first answer is a cold one`,
				Flags:  benchFlags(conversationsFlags()),
				Action: benchAction(bench.Conversations),
			},
			{
				Name:  "idle",
				Usage: "connections that only wait: connect rate and memory",
				Description: `Both this command and the broker need a file descriptor per connection: ulimit -n.

Examples:
  mqim bench idle --connections 10000 --duration 30s --pid 4711
  mqim bench idle --profile im --connections 2000 --concurrency 500`,
				Flags:  benchFlags(idleFlags()),
				Action: benchAction(bench.Idle),
			},
			{
				Name:  "sessions",
				Usage: "clients that leave a durable session and a retained message behind, for the restart to find",
				Description: `Examples:
  mqim bench sessions --connections 100000
  mqim bench sessions --connections 10000 --run 7 --version 5`,
				Flags:  benchFlags(sessionsFlags()),
				Action: benchAction(bench.Sessions),
			},
			{
				Name:  "drain",
				Usage: "messages for users who are away, then the users come for them",
				Description: `User i of U gets COUNT/U messages, the first COUNT%U users one more: nothing but --run, --users and --count
has to be the same for a fill and for the drain that checks it.

Examples:
  mqim bench drain --profile plain --users 1000 --count 100000
  mqim bench drain --profile im --run 7 --phase fill  --users 10000 --count 1000000 --pid 4711
  mqim bench drain --profile im --run 7 --phase drain --users 10000 --count 1000000`,
				Flags:  benchFlags(drainFlags(), sendersFlag("connections that fill")),
				Action: benchAction(bench.Drain),
			},
		},
	}
}

// benchFlags puts what every scenario has before its own.
func benchFlags(own ...[]cli.Flag) []cli.Flag {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "address", Value: "127.0.0.1:1883", Usage: "the broker, `HOST:PORT`"},
		&cli.StringFlag{Name: "profile", Value: "topic", Usage: "`NAME`: topic (any broker), plain or im (mqim)"},
		&cli.IntFlag{Name: "version", Value: 3, Usage: "MQTT 3 (3.1.1) or 5"},
		&cli.StringFlag{Name: "user-prefix", Value: "bench", Usage: "user names are `PREFIX`-RUN-s-0 …, PREFIX-RUN-r-0 …"},
		&cli.StringFlag{Name: "run", Usage: "`ID` of the run, up to 6 hexadecimal digits (default: random)"},
		&cli.StringFlag{Name: "password", Usage: "sent with the user name", Sources: cli.EnvVars("MQIM_BENCH_PASSWORD")},
		&cli.BoolFlag{Name: "clean", Value: true, Usage: "sessions end with their connections; --clean=false keeps them"},
		&cli.DurationFlag{Name: "keep-alive", Value: time.Minute, Usage: "MQTT keep-alive"},
		&cli.IntFlag{Name: "concurrency", Value: 100, Usage: "connections being set up, or drained, at a time"},
		&cli.IntFlag{Name: "pid", Usage: "the broker's process on this machine, to report its resident memory"},
		&cli.DurationFlag{Name: "settle", Value: 10 * time.Second, Usage: "give up on what is missing when nothing came for so long"},
		&cli.BoolFlag{Name: "json", Usage: "print the report as JSON"},
		&cli.BoolFlag{Name: "quiet", Usage: "no progress, no remarks"},
		&cli.BoolFlag{Name: "progress", Usage: "a progress line a second though standard error is no terminal"},
	}
	for _, f := range own {
		flags = append(flags, f...)
	}
	return flags
}

// messageFlags describe what is published.
func messageFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "size", Value: 256, Usage: "`BYTES` of a body, at least 52"},
		&cli.IntFlag{Name: "qos", Value: 1, Usage: "0, 1 or 2 (receivers subscribe with at most 1)"},
		&cli.IntFlag{Name: "inflight", Value: 100, Usage: "unacknowledged publishes a sender may have out"},
		&cli.IntFlag{Name: "ack-every", Value: 1, Usage: "profile im: acknowledge every `K` messages, the rest after 20 ms; 1: each read burst"},
	}
}

func loadFlags() []cli.Flag {
	return append(messageFlags(),
		&cli.FloatFlag{Name: "rate", Usage: "messages a second of all senders together, on a schedule that does not wait for the broker;\n\tlatency is then from the scheduled time, with and without the wait for the window; 0: as fast as acks come"},
		&cli.DurationFlag{Name: "duration", Value: 10 * time.Second, Usage: "how long to measure"},
		&cli.Int64Flag{Name: "count", Usage: "measure so many messages instead"},
		&cli.DurationFlag{Name: "warmup", Value: time.Second, Usage: "published before measuring starts"},
		&cli.StringFlag{Name: "receivers-at", Usage: "`HOST:PORT` that receivers connect to, another node of a cluster (default: --address)"},
	)
}

func pairsFlag() []cli.Flag {
	return []cli.Flag{&cli.IntFlag{Name: "pairs", Value: 20, Usage: "senders, and receivers"}}
}

func sendersFlag(usage string) []cli.Flag {
	return []cli.Flag{&cli.IntFlag{Name: "senders", Value: 20, Usage: usage}}
}

func receiversFlag() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "receivers", Value: 20, Usage: "connections that subscribe"},
		&cli.IntFlag{Name: "groups", Value: 1, Usage: "groups, or topics, each with a sender of its own and all receivers"},
		&cli.IntFlag{Name: "members", Usage: "of one large group, of which the receivers are a part (profiles plain and im)"},
	}
}

func conversationsFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "conversations", Value: 2000, Usage: "half of them 1:1, half groups"},
		&cli.IntFlag{Name: "size", Value: 256, Usage: "`BYTES` of a body, at least 52"},
		&cli.StringFlag{Name: "phase", Value: "both", Usage: "fill, ask or both; the separate ones need --run"},
	}
}

func idleFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "connections", Value: 1000, Usage: "how many"},
		&cli.DurationFlag{Name: "duration", Value: 10 * time.Second, Usage: "how long to hold them"},
		&cli.IntFlag{Name: "qos", Value: 1, Usage: "of the subscriptions"},
	}
}

func sessionsFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "connections", Value: 1000, Usage: "how many, --concurrency at a time"},
		&cli.IntFlag{Name: "size", Value: 256, Usage: "`BYTES` of the retained message, at least 52"},
	}
}

func drainFlags() []cli.Flag {
	return append(messageFlags(),
		&cli.IntFlag{Name: "users", Value: 100, Usage: "who the messages are for"},
		&cli.Int64Flag{Name: "count", Usage: "messages (default: a hundred a user)"},
		&cli.StringFlag{Name: "phase", Value: "both", Usage: "fill, drain or both; the separate ones need --run"},
	)
}

// benchAction runs one scenario with the flags of its command. Those that it does not have read as their zero.
func benchAction(scenario func(context.Context, bench.Options) (*bench.Report, error)) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) error {
		if cmd.Args().Present() {
			return fmt.Errorf("bench %s: unexpected argument %q", cmd.Name, cmd.Args().First())
		}
		o := bench.Options{
			Address:     cmd.String("address"),
			There:       cmd.String("receivers-at"),
			Profile:     bench.Profile(cmd.String("profile")),
			Version:     cmd.Int("version"),
			Password:    cmd.String("password"),
			Pairs:       cmd.Int("pairs"),
			Senders:     cmd.Int("senders"),
			Receivers:   cmd.Int("receivers"),
			Groups:      cmd.Int("groups"),
			Members:     cmd.Int("members"),
			Talks:       cmd.Int("conversations"),
			Connections: cmd.Int("connections"),
			Users:       cmd.Int("users"),
			Concurrency: cmd.Int("concurrency"),
			Size:        cmd.Int("size"),
			QoS:         cmd.Int("qos"),
			InFlight:    cmd.Int("inflight"),
			Rate:        cmd.Float("rate"),
			AckEvery:    cmd.Int("ack-every"),
			Duration:    cmd.Duration("duration"),
			Count:       cmd.Int64("count"),
			Warmup:      cmd.Duration("warmup"),
			Settle:      cmd.Duration("settle"),
			KeepAlive:   cmd.Duration("keep-alive"),
			Prefix:      cmd.String("user-prefix"),
			Run:         cmd.String("run"),
			Persist:     !cmd.Bool("clean"),
			Phase:       cmd.String("phase"),
			PID:         cmd.Int("pid"),
		}
		stderr := cmd.Root().ErrWriter
		if !cmd.Bool("quiet") {
			o.Notes = stderr
			if cmd.Bool("progress") || term.IsTerminal(int(os.Stderr.Fd())) {
				o.Progress = printProgress(stderr, o.Duration)
			}
		}
		// The first Ctrl-C ends the measuring, and what was measured is printed; a second one ends the process.
		ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
		defer stop()
		context.AfterFunc(ctx, stop)

		report, err := scenario(ctx, o)
		if err != nil {
			return fmt.Errorf("bench %s: %w", cmd.Name, err)
		}
		stdout := cmd.Root().Writer
		if cmd.Bool("json") {
			enc := json.NewEncoder(stdout)
			enc.SetIndent("", "  ")
			err = enc.Encode(report)
		} else {
			err = report.Write(stdout)
		}
		if err != nil {
			return err
		}
		if report.Err() != nil {
			return cli.Exit(fmt.Sprintf("bench %s: the broker failed the check", cmd.Name), 1)
		}
		return nil
	}
}

// printProgress writes a line a second, unless the run is over as soon as that would begin to be of use.
func printProgress(w io.Writer, duration time.Duration) func(bench.Progress) {
	if duration > 0 && duration <= 2*time.Second {
		return nil
	}
	return func(p bench.Progress) {
		fmt.Fprintf(w, "%-6s %4.0fs  sent %9d (%7.0f/s)  delivered %9d (%7.0f/s)\n", p.Phase, p.Elapsed.Seconds(),
			p.Sent, p.SentRate, p.Delivered, p.DeliveredRate)
	}
}
