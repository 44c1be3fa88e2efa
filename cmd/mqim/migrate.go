package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v3"

	"github.com/mqim/mqim/broker/config"
	"github.com/mqim/mqim/store/mysql"
)

// migrateCommand brings the schema of store.mysql up to date.
func migrateCommand() *cli.Command {
	return &cli.Command{
		Name:  "migrate",
		Usage: "make or update the tables of store.driver mysql, as serve does by itself",
		Description: `Applies what is missing of the schema, and says what it has applied. Several may run at once: one does it, the others
wait. It is for databases whose server may not make tables itself: run it with the rights of somebody who may.

   mqim migrate --config /etc/mqim/config.yaml
   MQIM_STORE_MYSQL_DSN='admin:secret@tcp(db:3306)/mqim' mqim migrate`,
		Flags: []cli.Flag{configFlag()},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := noArguments(cmd); err != nil {
				return err
			}
			c, err := config.Load(cmd.String("config"), os.Environ())
			if err != nil {
				return err
			}
			return migrate(ctx, cmd.Root().Writer, c)
		},
	}
}

func migrate(ctx context.Context, out io.Writer, c *config.Config) error {
	if c.Store.Driver != "mysql" {
		return fmt.Errorf("migrate: store.driver is %s, which has no schema; expected mysql", c.Store.Driver)
	}
	applied, err := mysql.Migrate(ctx, mysql.Options{DSN: string(c.Store.MySQL.DSN)})
	for _, name := range applied {
		_, e := fmt.Fprintf(out, "applied %s\n", name)
		err = errors.Join(err, e)
	}
	if err == nil && len(applied) == 0 {
		_, err = fmt.Fprintln(out, "nothing to do: the schema is up to date")
	}
	return err
}
