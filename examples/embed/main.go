// Command embed adds instant messaging to a mochi server of one's own: the engine on a folder, and one hook.
package main

import (
	"context"
	"log"
	"os"
	"os/signal"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	imhook "github.com/mqim/mqim/hooks/im"
	"github.com/mqim/mqim/im"
	"github.com/mqim/mqim/store/pebble"
)

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	ids, err := im.NewSnowflakes(0)
	if err != nil {
		return err
	}
	st, err := pebble.Open(pebble.Options{Path: "data", IDs: ids})
	if err != nil {
		return err
	}
	defer st.Close()
	engine := im.New(st, im.Config{})
	defer engine.Close(context.Background())

	server := mqtt.New(nil)
	if err := server.AddHook(new(allowAll), nil); err != nil { // your own authentication here
		return err
	}
	if err := server.AddHook(imhook.New(engine, imhook.Options{}), nil); err != nil {
		return err
	}
	address := "127.0.0.1:1883"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	if err := server.AddListener(listeners.NewTCP(listeners.Config{ID: "tcp", Address: address})); err != nil {
		return err
	}
	if err := server.Serve(); err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt)
	<-stop
	return server.Close()
}

// allowAll lets everybody in, and on every topic.
type allowAll struct{ mqtt.HookBase }

func (*allowAll) ID() string { return "allow-all" }
func (*allowAll) Provides(b byte) bool {
	return b == mqtt.OnConnectAuthenticate || b == mqtt.OnACLCheck
}
func (*allowAll) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }
func (*allowAll) OnACLCheck(*mqtt.Client, string, bool) bool              { return true }
