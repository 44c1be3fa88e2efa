package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// createGroup makes the group that a fan-out of the plain and the IM profile sends to, in the name of the sender but
// on a connection of its own.
func createGroup(ctx context.Context, o *Options) error {
	members := make([]string, o.Receivers)
	for i := range members {
		members[i] = o.receiver(i)
	}
	body, err := json.Marshal(map[string]any{"rid": "setup", "group": o.group(), "name": "bench", "members": members})
	if err != nil {
		return err
	}
	return command(ctx, o, o.sender(0), "group.create", body)
}

// command gives one command of the IM profile and waits for the reply to its rid, which must be "setup".
func command(ctx context.Context, o *Options, user, name string, body []byte) error {
	l, err := dial(ctx, o, user, user+"-setup", true, idleBuffer)
	if err != nil {
		return err
	}
	defer l.drop()
	defer l.close()
	stop := context.AfterFunc(ctx, func() { l.nc.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	l.nc.SetReadDeadline(time.Now().Add(handshakeTime))
	if err := l.subscribe("im/u/"+user+"/+", 1); err != nil {
		return err
	}
	for {
		pk, err := l.rd.wait()
		if err != nil {
			return fmt.Errorf("wait for the reply to %s: %w", name, err)
		}
		switch pk.kind {
		case typeSuback:
			if _, reason, err := subackReason(l.version, pk); err != nil || reason >= 0x80 {
				return fmt.Errorf("subscription refused with code 0x%02x: %w", reason, err)
			}
			l.out, _ = appendPublish(l.out, l.version, 1, "im/cmd/"+name, 1, len(body))
			l.out = append(l.out, body...)
		case typePublish:
			m, err := parsePublish(l.version, pk)
			if err != nil {
				return err
			}
			if m.qos > 0 {
				l.out = appendAck(l.out, typePuback, m.id)
			}
			if bytes.HasSuffix(m.topic, []byte("/reply")) && bytes.Contains(m.payload, []byte(`"setup"`)) {
				if bytes.Contains(m.payload, notOK) {
					return fmt.Errorf("%s was refused: %s", name, m.payload)
				}
				return nil
			}
		}
		l.mu.Lock()
		err = l.flush()
		l.mu.Unlock()
		if err != nil {
			return err
		}
	}
}
