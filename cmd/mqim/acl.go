package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v3"

	"github.com/mqim/mqim/broker/config"
	"github.com/mqim/mqim/hooks/acl"
	imhook "github.com/mqim/mqim/hooks/im"
	"github.com/mqim/mqim/users"
)

// aclCommand explains the rules for topics.
func aclCommand() *cli.Command {
	return &cli.Command{
		Name:  "acl",
		Usage: "explain who may publish and subscribe to what",
		Commands: []*cli.Command{{
			Name:      "test",
			Usage:     "say whether a user may use a topic, and which rule decides",
			UsageText: "mqim acl test USER pub|sub TOPIC [--client-id ID] [--config FILE]",
			Description: `Asks the rules of the configuration as the server would, without a server. For sub, TOPIC is the filter of
the subscription. The exit code is 0 if it is allowed, 1 if it is denied, 2 if it could not be found out.

   mqim acl test alice pub devices/alice/temperature
   mqim acl test alice sub 'devices/#' --config /etc/mqim/config.yaml
   mqim acl test alice sub log/d7 --client-id d7      for rules with %c
   mqim acl test alice sub im/u/bob                   topics under im/ have rules of their own`,
			Flags: []cli.Flag{
				configFlag(),
				&cli.StringFlag{Name: "client-id", Usage: "the MQTT client `ID`, which is %c; without it, rules with %c allow nothing and deny all they could"},
			},
			Action: func(_ context.Context, cmd *cli.Command) error { return aclTest(cmd) },
		}},
	}
}

func aclTest(cmd *cli.Command) error {
	fail := func(format string, args ...any) error {
		return cli.Exit("mqim acl test: "+fmt.Sprintf(format, args...), 2)
	}
	args := cmd.Args()
	user, action, topic := args.Get(0), args.Get(1), args.Get(2)
	switch {
	case args.Len() != 3 || action != "pub" && action != "sub":
		return fail("expected a user, pub or sub, and a topic, as in: mqim acl test alice pub devices/alice/t")
	case !users.ValidName(user):
		return fail("%q is %v", user, users.ErrName)
	}
	c, err := config.Load(cmd.String("config"), os.Environ())
	if err != nil {
		return cli.Exit(err.Error(), 2)
	}
	rules, err := c.Rules()
	if err != nil {
		return fail("%v", err)
	}
	allowed, err := explain(cmd.Root().Writer, c, rules.Decide(user, cmd.String("client-id"), topic, action == "pub"), user, action, topic)
	if err != nil {
		return cli.Exit(err.Error(), 2)
	}
	if !allowed {
		return cli.Exit("", 1)
	}
	return nil
}

// explain prints the decision. What lies under im/ is decided by hooks/im.
func explain(out io.Writer, c *config.Config, d acl.Decision, user, action, topic string) (allowed bool, err error) {
	allowed = d.Allowed
	why := string(d.Why)
	switch d.Why {
	case acl.ByRule:
		r := c.ACL[d.Rule]
		verb, what := "allow", r.Allow
		if what == "" {
			verb, what = "deny", r.Deny
		}
		key := fmt.Sprintf("acl[%d]", d.Rule)
		why = fmt.Sprintf("by rule %d of %d at %s: {%s: %s, topic: %q}", d.Rule+1, len(c.ACL), c.Place(key), verb, what, r.Topic)
	case acl.NoMatch:
		why = fmt.Sprintf("none of the %d rules matches, and what none matches is denied", len(c.ACL))
	case acl.NoRules:
		why = "there are no rules: every user may use every topic"
	case acl.Reserved:
		allowed, why = imhook.Decide(user, topic, action == "pub")
	}
	verdict := "denied"
	if allowed {
		verdict = "allowed"
	}
	_, err = fmt.Fprintf(out, "%s: %s %s %q: %s\n", verdict, user, action, topic, why)
	return allowed, err
}
