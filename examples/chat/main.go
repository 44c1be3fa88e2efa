// Command chat is a chat client in the IM profile: it sends each line "bob hello there" to bob, prints what comes, and
// acknowledges it once it is on the screen. Two ticks tell that the other side has it, three that it was read.
//
//	go run ./examples/chat -user alice
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

type message struct {
	Seq  uint64          `json:"seq"`
	Conv string          `json:"conv"`
	Cseq uint64          `json:"cseq"`
	From string          `json:"from"`
	Body json.RawMessage `json:"body"`
}

func main() {
	address := flag.String("address", "tcp://127.0.0.1:1883", "the server")
	user := flag.String("user", "alice", "who I am")
	device := flag.String("device", "", "this device's name (default: the user's, and -chat)")
	flag.Parse()
	if *device == "" {
		*device = *user + "-chat"
	}
	opts := mqtt.NewClientOptions().AddBroker(*address).SetUsername(*user).SetClientID(*device)
	opts.SetCleanSession(false).SetAutoReconnect(true) // the session holds our place in the inbox
	opts.SetOnConnectHandler(func(c mqtt.Client) { c.Subscribe("im/u/"+*user+"/+", 1, receive) })
	client := mqtt.NewClient(opts)
	if t := client.Connect(); t.Wait() && t.Error() != nil {
		log.Fatal(t.Error())
	}
	defer client.Disconnect(250)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		to, text, ok := strings.Cut(lines.Text(), " ")
		if !ok {
			fmt.Println("  say: USER TEXT")
			continue
		}
		// The cid makes it safe to send again when we hear nothing.
		command(client, "send", map[string]any{"to": "u/" + to, "cid": fmt.Sprint(time.Now().UnixNano()), "body": text})
	}
}

// receive handles everything that comes down, by the last level of its topic.
func receive(c mqtt.Client, m mqtt.Message) {
	switch topic := m.Topic(); topic[strings.LastIndexByte(topic, '/')+1:] {
	case "msg":
		var msg message
		if json.Unmarshal(m.Payload(), &msg) == nil {
			fmt.Printf("%s: %s\n", msg.From, msg.Body)
			command(c, "ack", map[string]any{"seq": msg.Seq})
			command(c, "read", map[string]any{"conv": msg.Conv, "cseq": msg.Cseq})
		}
	case "receipt":
		var r struct{ State, By string }
		if json.Unmarshal(m.Payload(), &r) == nil {
			ticks := map[string]string{"queued": "…", "delivered": "✓✓", "read": "✓✓✓"}
			fmt.Printf("  %s %s\n", ticks[r.State], r.By)
		}
	case "reply":
		var r struct {
			OK    bool
			Error struct{ Code, Message string }
		}
		if json.Unmarshal(m.Payload(), &r) == nil && !r.OK {
			fmt.Printf("  %s: %s\n", r.Error.Code, r.Error.Message)
		}
	}
}

// command publishes a command. It does not wait for the PUBACK: that would stop a handler from returning.
func command(c mqtt.Client, name string, fields map[string]any) {
	payload, err := json.Marshal(fields)
	if err != nil {
		log.Print(err)
		return
	}
	c.Publish("im/cmd/"+name, 1, false, payload)
}
