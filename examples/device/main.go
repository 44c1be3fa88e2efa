// Command device is a field device that only subscribes: it prints what is sent to its user, and acknowledges by PUBACK.
// A message that comes while it is off waits for it.
//
//	go run ./examples/device -user pump-7
//	mosquitto_pub -u alice -t im/u/pump-7 -m 'open the valve' -q 1
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

func main() {
	address := flag.String("address", "tcp://127.0.0.1:1883", "the server")
	user := flag.String("user", "device", "whose inbox to read")
	flag.Parse()

	opts := mqtt.NewClientOptions().AddBroker(*address).SetUsername(*user).SetClientID(*user + "-1")
	opts.SetCleanSession(false) // the device's own place in the inbox, kept while it is off
	opts.SetAutoReconnect(true).SetConnectRetry(true)
	opts.SetOnConnectHandler(func(c mqtt.Client) {
		c.Subscribe("im/u/"+*user, 1, func(_ mqtt.Client, m mqtt.Message) {
			fmt.Printf("%s\n", m.Payload()) // returning from here sends the PUBACK
		})
	})
	client := mqtt.NewClient(opts)
	if t := client.Connect(); t.Wait() && t.Error() != nil {
		log.Fatal(t.Error())
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt)
	<-stop
	client.Disconnect(250)
}
