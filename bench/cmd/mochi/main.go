// Command mochi serves mochi-mqtt alone, as the rival of the benchmarks, until it is interrupted.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/mqim/mqim/bench/rival"
)

func main() {
	address := flag.String("address", "127.0.0.1:1883", "where to listen, host:port")
	flag.Parse()
	if err := run(*address); err != nil {
		fmt.Fprintln(os.Stderr, "mochi:", err)
		os.Exit(1)
	}
}

func run(address string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	broker, err := rival.Start(address)
	if err != nil {
		return err
	}
	<-ctx.Done()
	return broker.Close()
}
