package mqtest

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Message is what comes down on msg.
type Message struct {
	ID, Conv, From, Cid, Type, Enc string
	Seq, Cseq                      uint64
	TS, CTS                        int64
	Body                           json.RawMessage
	Attempt                        int
}

// Text is a body that is a JSON string.
func (m *Message) Text() (s string) {
	_ = json.Unmarshal(m.Body, &s)
	return s
}

// Reply is what comes down on reply.
type Reply struct {
	Rid, Cid, Cursor string
	OK               bool
	Data             json.RawMessage
	Error            struct{ Code, Message string }

	Topic      string             // where it came
	Properties packets.Properties // and with what
}

// Receipt is what comes down on receipt.
type Receipt struct {
	Conv, ID, Cid, State, By string
	Cseq                     uint64
	TS                       int64
}

// Sent is the data of send's reply.
type Sent struct {
	ID, Cid, Conv, State string
	Cseq                 uint64
	TS                   int64
	Dup                  bool
}

// Map is a JSON object.
type Map = map[string]any

// Option changes a packet before it is sent.
type Option func(*packets.Packet)

// QoS sets a PUBLISH's QoS.
func QoS(q byte) Option { return func(pk *packets.Packet) { pk.FixedHeader.Qos = q } }

// Dup sets the DUP flag.
func Dup(pk *packets.Packet) { pk.FixedHeader.Dup = true }

// PacketID sets the packet id.
func PacketID(id uint16) Option { return func(pk *packets.Packet) { pk.PacketID = id } }

// Prop changes the MQTT 5 properties.
func Prop(f func(*packets.Properties)) Option { return func(pk *packets.Packet) { f(&pk.Properties) } }

// UserProp adds a user property.
func UserProp(key, val string) Option {
	return Prop(func(p *packets.Properties) { p.User = append(p.User, packets.UserProperty{Key: key, Val: val}) })
}

// UserProps are the user properties of a packet.
func UserProps(pk packets.Packet) map[string]string {
	m := map[string]string{}
	for _, u := range pk.Properties.User {
		m[u.Key] = u.Val
	}
	return m
}

func (c *Client) id() uint16 {
	if c.next++; c.next == 0 {
		c.next = 1
	}
	return c.next
}

// Subscribe subscribes at QoS 1 and returns the codes.
func (c *Client) Subscribe(filters ...string) []byte {
	c.t.Helper()
	return c.SubscribeQoS(1, filters...)
}

// SubscribeQoS subscribes and returns the codes.
func (c *Client) SubscribeQoS(qos byte, filters ...string) []byte {
	c.t.Helper()
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe}, PacketID: c.id()}
	for _, f := range filters {
		pk.Filters = append(pk.Filters, packets.Subscription{Filter: f, Qos: qos})
	}
	c.Write(pk)
	return c.Take("SUBACK", func(p *packets.Packet) bool {
		return p.FixedHeader.Type == packets.Suback && p.PacketID == pk.PacketID
	}).ReasonCodes
}

// Unsubscribe unsubscribes and returns the codes, which 3.1.1 has none of.
func (c *Client) Unsubscribe(filters ...string) []byte {
	c.t.Helper()
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe}, PacketID: c.id()}
	for _, f := range filters {
		pk.Filters = append(pk.Filters, packets.Subscription{Filter: f})
	}
	c.Write(pk)
	return c.Take("UNSUBACK", func(p *packets.Packet) bool {
		return p.FixedHeader.Type == packets.Unsuback && p.PacketID == pk.PacketID
	}).ReasonCodes
}

// Packet makes a PUBLISH at QoS 1 with the next packet id.
func (c *Client) Packet(topic, payload string, opts ...Option) packets.Packet {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, TopicName: topic, Payload: []byte(payload), PacketID: c.id(),
	}
	for _, o := range opts {
		o(&pk)
	}
	return pk
}

// Publish sends a PUBLISH and does not wait. It returns the packet id.
func (c *Client) Publish(topic, payload string, opts ...Option) uint16 {
	c.t.Helper()
	pk := c.Packet(topic, payload, opts...)
	c.Write(pk)
	return pk.PacketID
}

// Acked waits for the PUBACK (QoS 2: a refusing PUBREC or PUBCOMP) of a packet id.
func (c *Client) Acked(id uint16) packets.Packet {
	c.t.Helper()
	return c.Take(fmt.Sprintf("the acknowledgement of %d", id), func(p *packets.Packet) bool {
		t := p.FixedHeader.Type
		return p.PacketID == id && (t == packets.Puback || t == packets.Pubcomp || t == packets.Pubrec && p.ReasonCode >= 0x80)
	})
}

// PublishAck sends a PUBLISH and waits for its acknowledgement.
func (c *Client) PublishAck(topic, payload string, opts ...Option) packets.Packet {
	c.t.Helper()
	return c.Acked(c.Publish(topic, payload, opts...))
}

// Topic is the client's own topic im/u/{me}/tail.
func (c *Client) Topic(tail string) string { return "im/u/" + c.User + "/" + tail }

// Next waits for the next PUBLISH on a topic.
func (c *Client) Next(topic string) packets.Packet {
	c.t.Helper()
	return c.Take("a message on "+topic, func(p *packets.Packet) bool {
		return p.FixedHeader.Type == packets.Publish && p.TopicName == topic
	})
}

// Plain waits for the next message in the plain profile.
func (c *Client) Plain() packets.Packet { c.t.Helper(); return c.Next("im/u/" + c.User) }

// Msg waits for the next message in the IM profile.
func (c *Client) Msg() Message {
	c.t.Helper()
	m, _ := c.MsgPacket()
	return m
}

// MsgPacket is Msg with the packet that brought it.
func (c *Client) MsgPacket() (m Message, pk packets.Packet) {
	c.t.Helper()
	pk = c.Next(c.Topic("msg"))
	c.Parse(pk.Payload, &m)
	return m, pk
}

// Receipt waits for a receipt with a state, skipping those of other states.
func (c *Client) Receipt(state string) (r Receipt) {
	c.t.Helper()
	for r.State != state {
		r = Receipt{}
		c.Parse(c.Next(c.Topic("receipt")).Payload, &r)
	}
	return r
}

// Event waits for an event of a type, skipping those of other types.
func (c *Client) Event(typ string) Map {
	c.t.Helper()
	for {
		var m Map
		c.Parse(c.Next(c.Topic("event")).Payload, &m)
		if m["type"] == typ {
			return m
		}
	}
}

// Count is how many PUBLISHes on a topic have come and were not taken.
func (c *Client) Count(topic string) (n int) {
	for _, pk := range c.Got() {
		if pk.FixedHeader.Type == packets.Publish && pk.TopicName == topic {
			n++
		}
	}
	return n
}

// Reply waits for the next reply that matches.
func (c *Client) Reply(what string, match func(*Reply) bool) (r Reply) {
	c.t.Helper()
	pk := c.Take(what, func(p *packets.Packet) bool {
		if p.FixedHeader.Type != packets.Publish || !strings.HasPrefix(p.TopicName, c.Topic("")) {
			return false
		}
		var x Reply
		if json.Unmarshal(p.Payload, &x) != nil || !strings.Contains(string(p.Payload), `"ok":`) || !match(&x) {
			return false
		}
		r = x
		return true
	})
	r.Topic, r.Properties = pk.TopicName, pk.Properties
	return r
}

// Command sends a command at QoS 1 with a rid of its own and waits for PUBACK and reply. The device must be subscribed
// to its replies.
func (c *Client) Command(name string, args Map) (Reply, packets.Packet) {
	c.t.Helper()
	c.rid++
	rid := fmt.Sprintf("r%d", c.rid)
	all := Map{"rid": rid}
	for k, v := range args {
		all[k] = v
	}
	b, err := json.Marshal(all)
	if err != nil {
		c.t.Fatal(err)
	}
	ack := c.PublishAck("im/cmd/"+name, string(b))
	return c.Reply("the reply to "+name, func(r *Reply) bool { return r.Rid == rid }), ack
}

// OK is Command that must succeed; data is where the reply's data goes, or nil.
func (c *Client) OK(name string, args Map, data any) {
	c.t.Helper()
	r, ack := c.Command(name, args)
	if !r.OK || ack.ReasonCode != 0 {
		c.t.Fatalf("%s %v: got %s %s, code %#x, want success", name, args, r.Error.Code, r.Error.Message, ack.ReasonCode)
	}
	if data != nil {
		c.Parse(r.Data, data)
	}
}

// Refused is Command that must fail with an error code, and in MQTT 5 with a reason code.
func (c *Client) Refused(name string, args Map, code string) Reply {
	c.t.Helper()
	r, ack := c.Command(name, args)
	c.CheckRefusal(name, r, ack, code)
	return r
}

// Reasons are the MQTT 5 reason codes of the error codes; the others are 0x83.
var Reasons = map[string]byte{
	"bad_request": 0x99, "too_large": 0x95, "forbidden": 0x87, "not_member": 0x87, "blocked": 0x87, "muted": 0x87,
	"rate_limited": 0x97, "group_full": 0x97,
}

// CheckRefusal checks both forms of a refusal.
func (c *Client) CheckRefusal(what string, r Reply, ack packets.Packet, code string) {
	c.t.Helper()
	if r.OK || r.Error.Code != code || r.Error.Message == "" {
		c.t.Errorf("%s: got ok=%v, error %+v, want %s with a message", what, r.OK, r.Error, code)
	}
	c.CheckReason(what, ack, code)
}

// CheckReason checks the PUBACK of a refusal: MQTT 5 has a code and a reason string, 3.1.1 nothing.
func (c *Client) CheckReason(what string, ack packets.Packet, code string) {
	c.t.Helper()
	if c.Version < 5 {
		return
	}
	want, ok := Reasons[code]
	if !ok {
		want = 0x83
	}
	if ack.ReasonCode != want || ack.Properties.ReasonString == "" {
		c.t.Errorf("%s: got reason %#x %q, want %#x with a reason string", what, ack.ReasonCode, ack.Properties.ReasonString, want)
	}
}

// Send sends a text in the IM profile and returns what the reply says.
func (c *Client) Send(to, text string) (s Sent) {
	c.t.Helper()
	c.OK("send", Map{"to": "u/" + to, "body": text}, &s)
	return s
}

// Ack acknowledges everything up to seq.
func (c *Client) Ack(seq uint64) { c.t.Helper(); c.OK("ack", Map{"seq": seq}, nil) }

// Parse reads JSON.
func (c *Client) Parse(b []byte, v any) {
	c.t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		c.t.Fatalf("%v in %s", err, b)
	}
}
