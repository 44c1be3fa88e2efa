package tests

import (
	"fmt"
	"os"
	"testing"

	"github.com/mqim/mqim/tests/mqtest"
)

// The IM profile end to end, with MQTT.js over tcp and ws: two users with three devices, and a group of three with five.
func TestMQTTJS(t *testing.T) {
	need(t, "node")
	if _, err := os.Stat("mqttjs/node_modules/mqtt"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("MQTT.js is not installed: make test-deps")
		}
		t.Skip("MQTT.js is not installed: make test-deps")
	}
	t.Parallel()
	s := mqtest.Start(t, mqtest.Config{
		"listeners": `[{name: mqtt, type: tcp, address: "127.0.0.1:0"}, {name: ws, type: ws, address: "127.0.0.1:0", path: /mqtt}]`,
		"group":     `{small_max: 3}`,
	})
	for _, version := range []int{4, 5} {
		for _, url := range []string{"mqtt://" + s.Addr("mqtt"), "ws://" + s.Addr("ws") + "/mqtt"} {
			for _, script := range []string{"chat.mjs", "groups.mjs"} {
				p := start(t, "node", "mqttjs/"+script, url, fmt.Sprint(version), name("js"))
				p.line(script + ": all is as it should be")
				p.wait()
			}
		}
	}
}
