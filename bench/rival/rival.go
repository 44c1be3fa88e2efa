// Package rival is mochi-mqtt as it comes: default options, everyone allowed, one TCP listener. It is what mqim, which
// is built on mochi, is measured against, and a broker for the generator's own tests.
package rival

import (
	"log/slog"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Broker is a running mochi server.
type Broker struct {
	server   *mqtt.Server
	listener *listeners.TCP
}

// allow lets everyone do everything. mochi has such a hook, in a package that also needs a second YAML library.
type allow struct{ mqtt.HookBase }

func (*allow) ID() string { return "allow" }

func (*allow) Provides(b byte) bool { return b == mqtt.OnConnectAuthenticate || b == mqtt.OnACLCheck }

func (*allow) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

func (*allow) OnACLCheck(*mqtt.Client, string, bool) bool { return true }

// Start listens on address, host:port, and serves until Close.
func Start(address string) (*Broker, error) {
	server := mqtt.New(&mqtt.Options{Logger: slog.New(slog.DiscardHandler)})
	if err := server.AddHook(new(allow), nil); err != nil {
		return nil, err
	}
	listener := listeners.NewTCP(listeners.Config{ID: "tcp", Address: address})
	if err := server.AddListener(listener); err != nil {
		return nil, err
	}
	if err := server.Serve(); err != nil {
		return nil, err
	}
	return &Broker{server, listener}, nil
}

// Address is where the broker listens.
func (b *Broker) Address() string { return b.listener.Address() }

// Close ends every connection and the listener. What mochi does by itself may deadlock with a client that leaves at the
// same moment.
func (b *Broker) Close() error {
	b.listener.Close(func(string) {
		for _, cl := range b.server.Clients.GetAll() {
			cl.Stop(packets.ErrServerShuttingDown)
		}
	})
	return b.server.Close()
}
