package tests

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	paho5 "github.com/eclipse/paho.golang/paho"
	paho3 "github.com/eclipse/paho.mqtt.golang"

	"github.com/mqim/mqim/tests/mqtest"
)

// wait waits for a value from a channel.
func wait[T any](t *testing.T, what string, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(mqtest.Patience):
		t.Fatalf("waited in vain for %s", what)
	}
	return v
}

// paho.mqtt.golang, 3.1.1: a persistent session, sends at each QoS, reconnection, the IM profile.
func TestPaho311(t *testing.T) {
	t.Parallel()
	alice, bob := name("alice"), name("bob")
	done := func(tok paho3.Token) {
		t.Helper()
		if !tok.WaitTimeout(mqtest.Patience) || tok.Error() != nil {
			t.Fatalf("paho: %v", tok.Error())
		}
	}
	open := func(user string, got chan paho3.Message) paho3.Client {
		t.Helper()
		o := paho3.NewClientOptions().AddBroker("tcp://" + shared.Addr("mqtt")).SetUsername(user).SetClientID(user + "/1")
		o.SetCleanSession(false).SetOrderMatters(true).SetDefaultPublishHandler(func(_ paho3.Client, m paho3.Message) { got <- m })
		c := paho3.NewClient(o)
		done(c.Connect())
		t.Cleanup(func() { c.Disconnect(100) })
		return c
	}
	fromA, toB := make(chan paho3.Message, 100), make(chan paho3.Message, 100)
	a, b := open(alice, fromA), open(bob, toB)
	done(a.Subscribe("im/u/"+alice+"/+", 1, nil))
	done(b.Subscribe("im/u/"+bob, 1, nil))
	for i := range 3 {
		done(a.Publish("im/u/"+bob, byte(i), false, fmt.Sprint(i)))
		equal(t, "payload", string(wait(t, "the message", toB).Payload()), fmt.Sprint(i))
	}
	b.Disconnect(100)
	for i := range 20 {
		done(a.Publish("im/u/"+bob, 1, false, fmt.Sprintf("offline %d", i)))
	}
	b = open(bob, toB) // the session has its filter still
	for i := range 20 {
		equal(t, "payload", string(wait(t, "the message", toB).Payload()), fmt.Sprintf("offline %d", i))
	}
	done(a.Publish("im/cmd/time", 1, false, `{"rid":"t","t0":5}`))
	for {
		m := wait(t, "the reply", fromA)
		var r mqtest.Reply
		if json.Unmarshal(m.Payload(), &r) == nil && r.Rid == "t" {
			equal(t, "ok", r.OK, true)
			break
		}
	}
	// A filter that is refused is a failure in SUBACK.
	tok := a.Subscribe("im/u/"+bob, 1, nil)
	if !tok.WaitTimeout(mqtest.Patience) || tok.(*paho3.SubscribeToken).Result()["im/u/"+bob] != 0x80 {
		t.Errorf("foreign filter: got %v, want 0x80", tok.(*paho3.SubscribeToken).Result())
	}
	_ = b
}

// autopaho is an MQTT 5 client that connects again by itself.
type auto struct {
	*autopaho.ConnectionManager
	up  chan *paho5.Connack
	got chan *paho5.Publish
}

func newAuto(t *testing.T, addr, user string) *auto {
	t.Helper()
	u, err := url.Parse("mqtt://" + addr)
	if err != nil {
		t.Fatal(err)
	}
	c := &auto{up: make(chan *paho5.Connack, 10), got: make(chan *paho5.Publish, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	c.ConnectionManager, err = autopaho.NewConnection(ctx, autopaho.ClientConfig{
		ServerUrls: []*url.URL{u}, KeepAlive: 30, SessionExpiryInterval: 3600, ConnectUsername: user,
		ReconnectBackoff: func(int) time.Duration { return 20 * time.Millisecond },
		OnConnectionUp:   func(_ *autopaho.ConnectionManager, ack *paho5.Connack) { c.up <- ack },
		ClientConfig: paho5.ClientConfig{
			ClientID: user + "/1",
			OnPublishReceived: []func(paho5.PublishReceived) (bool, error){func(p paho5.PublishReceived) (bool, error) {
				c.got <- p.Packet
				return true, nil
			}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		<-c.Done()
	})
	return c
}

// autopaho, MQTT 5: the session goes on after the connection broke; request and response.
func TestAutopaho(t *testing.T) {
	t.Parallel()
	alice, bob := name("alice"), name("bob")
	proxy := newProxy(t, shared.Addr("mqtt"))
	b := newAuto(t, proxy.addr(), bob)
	ctx, cancel := context.WithTimeout(context.Background(), 2*mqtest.Patience)
	defer cancel()
	equal(t, "session present at first", wait(t, "the connection", b.up).SessionPresent, false)
	if _, err := b.Subscribe(ctx, &paho5.Subscribe{Subscriptions: []paho5.SubscribeOptions{{Topic: "im/u/" + bob, QoS: 1}}}); err != nil {
		t.Fatal(err)
	}
	a := newAuto(t, shared.Addr("mqtt"), alice)
	wait(t, "the connection", a.up)
	send := func(i int) {
		t.Helper()
		props := &paho5.PublishProperties{}
		props.User.Add("cid", fmt.Sprintf("c%d", i))
		if _, err := a.Publish(ctx, &paho5.Publish{Topic: "im/u/" + bob, QoS: 1, Payload: fmt.Append(nil, i), Properties: props}); err != nil {
			t.Fatal(err)
		}
	}
	// The connection is cut again and again; each message arrives, in order, repeated at most.
	last := -1
	ids := map[string]bool{}
	for i := range 60 {
		send(i)
		if i%20 == 10 {
			proxy.cut()
			equal(t, "session present", wait(t, "the new connection", b.up).SessionPresent, true)
		}
	}
	for last < 59 {
		p := wait(t, fmt.Sprintf("message %d", last+1), b.got)
		if id := p.Properties.User.Get("id"); ids[id] {
			continue // at least once
		} else if ids[id] = true; string(p.Payload) != fmt.Sprint(last+1) {
			t.Fatalf("got %s after %d", p.Payload, last)
		}
		last++
		equal(t, "cid", p.Properties.User.Get("cid"), fmt.Sprintf("c%d", last))
	}

	// Request and response [MQTT-4.10].
	if _, err := a.Subscribe(ctx, &paho5.Subscribe{Subscriptions: []paho5.SubscribeOptions{{Topic: "im/u/" + alice + "/+", QoS: 1}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Publish(ctx, &paho5.Publish{
		Topic: "im/cmd/presence.get", QoS: 1, Payload: []byte(`{"rid":"1","users":["` + bob + `"]}`),
		Properties: &paho5.PublishProperties{ResponseTopic: "im/u/" + alice + "/answers", CorrelationData: []byte("corr-1")},
	}); err != nil {
		t.Fatal(err)
	}
	for {
		p := wait(t, "the response", a.got)
		if p.Topic != "im/u/"+alice+"/answers" {
			continue // its own messages to other devices do not come; receipts may
		}
		equal(t, "correlation data", string(p.Properties.CorrelationData), "corr-1")
		var r struct{ Data []struct{ Online bool } }
		if err := json.Unmarshal(p.Payload, &r); err != nil || len(r.Data) != 1 || !r.Data[0].Online {
			t.Errorf("got %s, %v, want bob online", p.Payload, err)
		}
		break
	}
	// A refusal is an error with its reason.
	resp, err := a.Publish(ctx, &paho5.Publish{Topic: "im/u/" + bob + "/msg", QoS: 1, Payload: []byte("forged")})
	if err == nil || resp == nil || resp.ReasonCode != 0x87 {
		t.Errorf("forged publish: got %v, %v, want 0x87", resp, err)
	}
}
