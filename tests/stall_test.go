package tests

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mqim/mqim/tests/mqtest"
)

// A subscriber that has stopped reading delays nobody, and who takes its connection over does not wait for it: neither for
// what is buffered nor for a timeout. A durable session then gets what the old connection has not acknowledged.
func TestStalledConnectionIsTakenOver(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		for _, durable := range []bool{false, true} {
			user, topic := name("stalled"), name("stall/t")
			o := mqtest.Options{Version: v, User: user, ID: user, Persistent: durable}
			old := mqtest.Dial(t, shared.Addr("mqtt"), o)
			subscribed(t, old, topic, "im/u/"+user)
			old.Stall()
			pub := dial(t, shared, v, name("pub"), "1")
			body := strings.Repeat("x", 64<<10)
			const n = 150 // more than buffers hold, less than queues do
			for i := range n {
				pub.PublishAck(topic, fmt.Sprint(i, body))
			}
			pub.PublishAck("im/u/"+user, "hi")
			start := time.Now()
			c := mqtest.Dial(t, shared.Addr("mqtt"), o)
			t.Logf("durable %v: CONNACK after %v", durable, time.Since(start))
			if d := time.Since(start); d > 4*time.Second { // milliseconds, but for what else the machine does; timeouts are longer
				t.Errorf("durable %v: CONNACK after %v", durable, d)
			}
			equal(t, "session present", c.Connack.SessionPresent, durable)
			if durable {
				for i := range n {
					if got := string(c.Next(topic).Payload); got != fmt.Sprint(i, body) {
						t.Fatalf("message %d: got %.20q", i, got)
					}
				}
				equal(t, "message to the user", string(c.Next("im/u/"+user).Payload), "hi")
			}
			c.Disconnect()
		}
	})
}
