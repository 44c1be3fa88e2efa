package tests

import (
	"fmt"
	"testing"

	"github.com/mqim/mqim/tests/mqtest"
)

// A client that says goodbye and is back at once is taken at its word: the new connection takes the old one over, perhaps
// before DISCONNECT has been read, and the will is not published all the same [MQTT-3.14.4-3].
func TestBackAtOnceAfterGoodbye(t *testing.T) {
	both(t, func(t *testing.T, v byte) {
		topic := name("wills/t")
		watch := dial(t, shared, v, name("watch"), "1")
		subscribed(t, watch, topic)
		for i := range 40 {
			o := mqtest.Options{Version: v, User: name("quick"), Will: &packet{TopicName: topic, Payload: []byte("will")}, Persistent: i%2 == 0}
			o.ID = o.User
			c := mqtest.Dial(t, shared.Addr("mqtt"), o)
			c.Publish(topic, fmt.Sprint(i), mqtest.QoS(0))
			c.WriteRaw([]byte{0xe0, 0})
			o.Will = nil
			mqtest.Dial(t, shared.Addr("mqtt"), o).PublishAck(topic, "back")
			equal(t, "what the first connection published", string(watch.Next(topic).Payload), fmt.Sprint(i))
			equal(t, "what came next", string(watch.Next(topic).Payload), "back")
		}
	})
}
