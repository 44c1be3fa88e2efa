package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// namesAtOnce is how many users one group.create or group.add names.
const namesAtOnce = 5000

// caller gives commands of the IM profile on a connection of its own, one at a time.
type caller struct {
	*link
	rid int
}

// dialCaller connects a user by a device of its own, and subscribes to what the device is answered.
func dialCaller(ctx context.Context, o *Options, user string) (*caller, error) {
	l, err := dial(ctx, o, user, user+"-calls", true, idleBuffer)
	if err != nil {
		return nil, err
	}
	c := &caller{link: l}
	err = c.subscribe(1, "im/u/"+user+"/reply")
	for err == nil {
		var pk packet
		l.nc.SetReadDeadline(time.Now().Add(handshakeTime))
		if pk, err = l.rd.wait(); err != nil || pk.kind != typeSuback {
			continue
		}
		reason := byte(0)
		if _, reason, err = subackReason(l.version, pk); err == nil && reason < 0x80 {
			return c, nil
		}
		err = fmt.Errorf("subscription refused with code 0x%02x", reason)
	}
	c.end()
	return nil, fmt.Errorf("subscribe %s: %w", user, err)
}

// end hangs up.
func (c *caller) end() {
	c.close()
	c.drop()
}

// call gives a command and waits for its reply, which is valid until the next call. ctx ends the connection with the
// wait. A refusal is an error.
func (c *caller) call(ctx context.Context, name string, fields map[string]any) (reply []byte, err error) {
	stop := context.AfterFunc(ctx, func() { c.nc.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	c.nc.SetReadDeadline(time.Now().Add(handshakeTime))
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.rid++
	rid := fmt.Sprintf("call-%d", c.rid)
	fields["rid"] = rid
	body, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	c.out, _ = appendPublish(c.out, c.version, 1, "im/cmd/"+name, 1, len(body))
	c.out = append(c.out, body...)
	quoted := []byte(`"rid":"` + rid + `"`)
	for acked := false; !acked || reply == nil; {
		if err := c.flush(); err != nil {
			return nil, err
		}
		pk, err := c.rd.wait()
		if err != nil {
			return nil, fmt.Errorf("wait for the reply to %s: %w", name, err)
		}
		switch pk.kind {
		case typePuback:
			acked = true // before it the packet id must not be used again
		case typeDisconnect:
			return nil, fmt.Errorf("%s: the broker disconnected us", name)
		case typePublish:
			m, err := parsePublish(c.version, pk)
			if err != nil {
				return nil, err
			}
			if m.qos > 0 {
				c.out = appendAck(c.out, typePuback, m.id)
			}
			if bytes.Contains(m.payload, quoted) {
				reply = bytes.Clone(m.payload)
			}
		}
	}
	if bytes.Contains(reply, notOK) {
		return nil, fmt.Errorf("%s was refused: %.300s", name, reply)
	}
	return reply, c.flush()
}

// createGroups makes the groups that a fan-out of the plain and the IM profile sends to, each in the name of its sender.
func createGroups(ctx context.Context, o *Options) error {
	members := make([]string, o.Receivers)
	for i := range members {
		members[i] = o.receiver(i)
	}
	return each(ctx, o.Groups, o.Concurrency, func(ctx context.Context, i int) error {
		c, err := dialCaller(ctx, o, o.sender(i))
		if err != nil {
			return err
		}
		defer c.end()
		return c.createGroup(ctx, o.group(i), "", members)
	})
}

// createGroup makes a group of a kind ("": as the broker chooses) of the caller and the members.
func (c *caller) createGroup(ctx context.Context, group, kind string, members []string) error {
	create := map[string]any{"group": group, "name": "bench", "members": members[:min(namesAtOnce, len(members))]}
	if kind != "" {
		create["kind"] = kind
	}
	if _, err := c.call(ctx, "group.create", create); err != nil {
		return err
	}
	for at := namesAtOnce; at < len(members); at += namesAtOnce {
		names := members[at:min(at+namesAtOnce, len(members))]
		if _, err := c.call(ctx, "group.add", map[string]any{"group": group, "users": names}); err != nil {
			return fmt.Errorf("with %d members: %w", at+1, err)
		}
	}
	return nil
}

// pages gives a command that lists, page by page, and passes on the entries of each.
func (c *caller) pages(ctx context.Context, name string, fields map[string]any, page func(data []json.RawMessage)) error {
	for {
		reply, err := c.call(ctx, name, fields)
		if err != nil {
			return err
		}
		var r struct {
			Data   []json.RawMessage `json:"data"`
			Cursor string            `json:"cursor"`
		}
		if err := json.Unmarshal(reply, &r); err != nil {
			return fmt.Errorf("reply to %s: %w", name, err)
		}
		page(r.Data)
		if r.Cursor == "" {
			return nil
		}
		fields["cursor"] = r.Cursor
	}
}
