// Command mqim is an instant-messaging server for anything that speaks MQTT.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/urfave/cli/v3"
)

func main() {
	if err := app().Run(context.Background(), os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "mqim:", err)
		os.Exit(1)
	}
}

func app() *cli.Command {
	return &cli.Command{
		Name:  "mqim",
		Usage: "instant messaging for anything that speaks MQTT",
		Description: `Start the server with the settings of config.yaml, or their defaults:

   mqim serve

then talk to it with any MQTT client:

   mosquitto_sub -u bob -t im/u/bob
   mosquitto_pub -u alice -t im/u/bob -m 'hello' -q 1`,
		Commands: []*cli.Command{serveCommand(), checkCommand(), migrateCommand(), copyCommand(), benchCommand(), userCommand(), aclCommand(), versionCommand()},
	}
}
