package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v3"
	"golang.org/x/term"

	"github.com/mqim/mqim/broker/config"
	"github.com/mqim/mqim/users"
)

// userCommand edits the users file of auth.mode file.
func userCommand() *cli.Command {
	return &cli.Command{
		Name:      "user",
		Usage:     "add, change, remove and list the users of auth.mode file",
		UsageText: "mqim user COMMAND [--file FILE | --config FILE] [NAME]",
		Description: `Edits the users file: one "name: hash" a line, with argon2id hashes. It works while the server is
running, which takes the change over on reload (SIGHUP). Comments in the file are kept.

   mqim user add alice                             asks for the password, twice
   printf %s "$PW" | mqim user add bob --password-stdin   for scripts
   mqim user passwd alice                          a new password
   mqim user remove bob
   mqim user list

The file is the one named by --file, else by auth.file.path of the configuration, which is users.yaml by default.`,
		Commands: []*cli.Command{
			userEdit("add", "add a user; makes the file if there is none", `   mqim user add alice
   mqim user add alice --file /etc/mqim/users.yaml
   printf %s "$PW" | mqim user add alice --password-stdin`, users.Add),
			userEdit("passwd", "set a new password for a user", `   mqim user passwd alice
   printf %s "$PW" | mqim user passwd alice --password-stdin`, users.SetPassword),
			userRemove(),
			userList(),
		},
	}
}

// fileFlags are built anew for every command: cli keeps a flag's value in it.
func fileFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "the users `FILE`"},
		&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "the configuration `FILE` that names the users file"},
	}, more...)
}

// userEdit is a command that sets a password.
func userEdit(name, usage, examples string, edit func(path, user string, password []byte) error) *cli.Command {
	return &cli.Command{
		Name: name, Usage: usage, UsageText: "mqim user " + name + " NAME", Description: "Examples:\n\n" + examples,
		Flags: fileFlags(&cli.BoolFlag{Name: "password-stdin", Usage: "read the password from standard input, up to the first line end"}),
		Action: func(_ context.Context, cmd *cli.Command) error {
			path, user, err := target(cmd)
			if err != nil {
				return err
			}
			password, err := readPassword(cmd, user)
			if err != nil {
				return cli.Exit(fmt.Sprintf("mqim user %s: %v", name, err), 1)
			}
			if err := edit(path, user, password); err != nil {
				return editFailed(name, path, err)
			}
			_, err = fmt.Fprintf(cmd.Root().Writer, "%s: %s of %s done; a running server takes it over on reload\n", path, name, user)
			return err
		},
	}
}

func userRemove() *cli.Command {
	return &cli.Command{
		Name: "remove", Usage: "remove a user", UsageText: "mqim user remove NAME",
		Description: "A connection that is up stays up. What is stored for the user stays too.\n\n   mqim user remove bob",
		Flags:       fileFlags(),
		Action: func(_ context.Context, cmd *cli.Command) error {
			path, user, err := target(cmd)
			if err != nil {
				return err
			}
			if err := users.Remove(path, user); err != nil {
				return editFailed("remove", path, err)
			}
			_, err = fmt.Fprintf(cmd.Root().Writer, "%s: remove of %s done; a running server takes it over on reload\n", path, user)
			return err
		},
	}
}

func userList() *cli.Command {
	return &cli.Command{
		Name: "list", Usage: "list the users, one a line", UsageText: "mqim user list",
		Description: "   mqim user list\n   mqim user list --file /etc/mqim/users.yaml | wc -l",
		Flags:       fileFlags(),
		Action: func(_ context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return cli.Exit("mqim user list takes no names", 1)
			}
			path, err := usersPath(cmd)
			if err != nil {
				return err
			}
			set, err := users.Load(path)
			if err != nil {
				return cli.Exit(err.Error(), 1)
			}
			for _, name := range set.Names() {
				if _, err := fmt.Fprintln(cmd.Root().Writer, name); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// target is the users file and the one user a command names.
func target(cmd *cli.Command) (path, user string, err error) {
	if cmd.Args().Len() != 1 {
		return "", "", cli.Exit(fmt.Sprintf("mqim user %s: expected one user name, as in: mqim user %s alice", cmd.Name, cmd.Name), 1)
	}
	user = cmd.Args().First()
	if !users.ValidName(user) {
		return "", "", cli.Exit(fmt.Sprintf("mqim user %s: %q is %v", cmd.Name, user, users.ErrName), 1)
	}
	path, err = usersPath(cmd)
	return path, user, err
}

// usersPath is --file or what the configuration names.
func usersPath(cmd *cli.Command) (string, error) {
	if path := cmd.String("file"); path != "" {
		return path, nil
	}
	c, err := config.Load(cmd.String("config"), os.Environ())
	if err != nil {
		return "", cli.Exit(err.Error(), 1)
	}
	return c.Auth.File.Path, nil
}

func editFailed(command, path string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, users.ErrExists):
		hint = "; to change the password: mqim user passwd"
	case errors.Is(err, users.ErrNotFound):
		hint = " in " + path + "; to see who is: mqim user list"
	}
	return cli.Exit(fmt.Sprintf("mqim user %s: %v%s", command, err, hint), 1)
}

// readPassword asks at the terminal, without showing what is typed, or reads standard input if told to.
func readPassword(cmd *cli.Command, user string) ([]byte, error) {
	if cmd.Bool("password-stdin") {
		line, err := bufio.NewReader(io.LimitReader(cmd.Root().Reader, users.MaxPassword+3)).ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read password: %w", err)
		}
		return checkPassword(bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r")))
	}
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return nil, errors.New("no terminal to ask for the password at; for scripts there is --password-stdin")
	}
	ask := func(prompt string) ([]byte, error) {
		fmt.Fprint(os.Stderr, prompt)
		password, err := term.ReadPassword(fd)
		fmt.Fprintln(os.Stderr)
		return password, err
	}
	first, err := ask("Password for " + user + ": ")
	if err != nil {
		return nil, fmt.Errorf("read password: %w", err)
	}
	if _, err := checkPassword(first); err != nil {
		return nil, err
	}
	again, err := ask("Once more: ")
	if err != nil {
		return nil, fmt.Errorf("read password: %w", err)
	}
	if !bytes.Equal(first, again) {
		return nil, errors.New("the two passwords differ; nothing was changed")
	}
	return first, nil
}

func checkPassword(password []byte) ([]byte, error) {
	if len(password) == 0 || len(password) > users.MaxPassword {
		return nil, users.ErrPassword
	}
	return password, nil
}
