package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/urfave/cli/v3"

	"github.com/mqim/mqim/broker/config"
)

// checkCommand tells what is wrong with a configuration, without starting anything.
func checkCommand() *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "check the configuration and say everything that is wrong with it",
		UsageText: "mqim check [--config FILE] [--print]",
		Description: `Reads the file and the MQIM_ environment variables as "mqim serve" would, and reports every
mistake with its place; the files that they name are not read. Nothing is started or changed. The exit code is 1 if there is a mistake.

   mqim check                           config.yaml in this folder, or the defaults without one
   mqim check --config /etc/mqim.yaml   another file
   mqim check --print                   also show every setting in force; secrets show as ***
   MQIM_LOG_LEVEL=loud mqim check       variables are checked too`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "the configuration `FILE`; without it ./config.yaml, if there is one"},
			&cli.BoolFlag{Name: "print", Usage: "show every setting in force"},
		},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if err := noArguments(cmd); err != nil {
				return err
			}
			return check(cmd, cmd.String("config"), cmd.Bool("print"))
		},
	}
}

func check(cmd *cli.Command, file string, print bool) error {
	c, err := config.Load(file, os.Environ())
	if err != nil {
		return cli.Exit(err.Error(), 1)
	}
	out := cmd.Root().Writer
	if print {
		text, err := c.YAML()
		if err != nil {
			return cli.Exit(fmt.Sprintf("print configuration: %v", err), 1)
		}
		_, err = out.Write(text)
		return err
	}
	name := file
	if name == "" {
		name = config.DefaultFile
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
			name = "defaults (no " + config.DefaultFile + " here)"
		}
	}
	_, err = fmt.Fprintf(out, "%s: ok\n", name)
	return err
}
