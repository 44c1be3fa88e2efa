package tests

import (
	"fmt"
	"os"
	"testing"

	"github.com/mqim/mqim/tests/mqtest"
)

// Two users with three devices in the IM profile, end to end, with MQTT.js over tcp and ws.
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
	})
	for _, version := range []int{4, 5} {
		for _, url := range []string{"mqtt://" + s.Addr("mqtt"), "ws://" + s.Addr("ws") + "/mqtt"} {
			p := start(t, "node", "mqttjs/chat.mjs", url, fmt.Sprint(version), name("js"))
			p.line("chat.mjs: all is as it should be")
			p.wait()
		}
	}
}
