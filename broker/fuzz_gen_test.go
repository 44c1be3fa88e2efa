package broker

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/mochi-mqtt/server/v2/packets"
)

// script is what one client sends: a valid session, or what mutate made of one.
type script struct {
	v       byte
	frames  [][]byte // CONNECT first
	mutated int      // frames that differ from the valid session's
}

// generator makes sessions, each from a seed of its own, so that one that hurt can be made again.
type generator struct {
	*rand.Rand
	password func(user string) string
	v        byte
	user, id string
	next     uint16
}

// Few users and client ids, so that sessions resume, take over, and write to each other.
const fuzzUsers, fuzzDevices = 12, 3

func newGenerator(seed uint64, password func(user string) string) *generator {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 0)), password: password}
	g.v = []byte{4, 5}[g.IntN(2)]
	g.user = g.someone()
	g.id = fmt.Sprintf("%s/%d", g.user, g.IntN(fuzzDevices))
	return g
}

func pick[T any](g *generator, list ...T) T { return list[g.IntN(len(list))] }

func (g *generator) someone() string { return fmt.Sprintf("fuzz-%d", g.IntN(fuzzUsers)) }

func (g *generator) one(n int) bool { return g.IntN(n) == 0 }

// session makes a valid session of about n packets.
func (g *generator) session(n int) *script {
	s := &script{v: g.v, frames: [][]byte{g.connect()}}
	if !g.one(8) {
		s.frames = append(s.frames, g.subscribe())
	}
	for len(s.frames) < n {
		s.frames = append(s.frames, g.packet()...)
	}
	if !g.one(3) {
		s.frames = append(s.frames, g.disconnect())
	}
	return s
}

func (g *generator) packet() [][]byte {
	switch g.IntN(20) {
	default:
		return g.publish()
	case 0, 1:
		return [][]byte{g.subscribe()}
	case 2:
		return [][]byte{g.unsubscribe()}
	case 3:
		return [][]byte{{packets.Pingreq << 4, 0}}
	case 4:
		return [][]byte{g.auth()}
	case 5, 6, 7, 8: // of what the server has sent, whose packet ids begin at 1
		typ := pick(g, packets.Puback, packets.Pubrec, packets.Pubcomp)
		return [][]byte{g.ack(typ, uint16(1+g.IntN(12)))}
	}
}

// frame puts a fixed header before a body.
func frame(first byte, body []byte) []byte {
	b := []byte{first}
	for n := len(body); ; {
		if n < 128 {
			return append(append(b, byte(n)), body...)
		}
		b, n = append(b, byte(n)|0x80), n>>7
	}
}

func str(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// props appends encoded properties to a body of MQTT 5.
func (g *generator) props(b []byte, typ byte, p packets.Properties) []byte {
	if g.v < 5 {
		return b
	}
	var out bytes.Buffer
	p.Encode(typ, packets.Mods{AllowResponseInfo: true}, &out, 0)
	return append(b, out.Bytes()...)
}

func (g *generator) userProps() (list []packets.UserProperty) {
	for range g.IntN(3) {
		list = append(list, packets.UserProperty{Key: pick(g, "cid", "type", "cts", "k"), Val: pick(g, "1", "text", "c-7", "")})
	}
	return list
}

func (g *generator) connect() []byte {
	b := append(str(nil, "MQTT"), g.v)
	flags := byte(0xc0)
	clean := !g.one(5)
	if clean {
		flags |= 2
	}
	will := g.one(4)
	if will {
		flags |= 4 | byte(g.IntN(3))<<3 | byte(g.IntN(2))<<5
	}
	b = binary.BigEndian.AppendUint16(append(b, flags), pick(g, uint16(60), 60, 0, 65535))
	p := packets.Properties{User: g.userProps()}
	if !clean && !g.one(4) {
		p.SessionExpiryInterval, p.SessionExpiryIntervalFlag = pick(g, uint32(1), 60, 0xffffffff), true
	}
	p.ReceiveMaximum = pick(g, uint16(0), 1, 2, 20)
	p.TopicAliasMaximum = pick(g, uint16(0), 0, 1, 8, 65535)
	if g.one(6) {
		p.MaximumPacketSize = pick(g, uint32(1), 64, 1000)
	}
	if g.one(6) {
		p.RequestProblemInfo, p.RequestProblemInfoFlag = byte(g.IntN(2)), true
	}
	if g.one(30) {
		p.AuthenticationMethod, p.AuthenticationData = "SCRAM", []byte("x")
	}
	b = str(g.props(b, packets.Connect, p), pick(g, g.id, g.id, g.id, g.id, g.id, ""))
	if will {
		b = g.props(b, packets.WillProperties, packets.Properties{
			WillDelayInterval: pick(g, uint32(0), 1), MessageExpiryInterval: pick(g, uint32(0), 5), User: g.userProps(),
		})
		b = str(str(b, g.topic()), "gone")
	}
	b = str(b, g.user)
	return frame(packets.Connect<<4, str(b, g.password(g.user)))
}

func (g *generator) topic() string {
	return pick(g, "f/a", "f/b/c", "f/d", "f/"+g.user, "f/r", "im/u/"+g.someone(), "im/u/"+g.user, "im/g/none", "im/cmd/send", "$SYS/broker/uptime", "/")
}

func (g *generator) filter() string {
	return pick(g, "f/#", "f/+", "f/+/c", "#", "+/a", "f/a", "f/r", "$SYS/#", "$SYS/broker/+/#", "$share/g/f/#", "$share/g/f/a", "$share/h/#",
		"im/u/"+g.user+"/+", "im/u/"+g.user+"/msg", "im/u/"+g.user, "im/u/"+g.user+"/#", "im/u/"+g.someone(), "$share/g/im/u/"+g.user, "im/#")
}

func (g *generator) subscribe() []byte {
	b := g.props(binary.BigEndian.AppendUint16(nil, g.packetID()), packets.Subscribe, packets.Properties{
		SubscriptionIdentifier: pick(g, nil, nil, []int{1}, []int{268435455}), User: g.userProps(),
	})
	for range 1 + g.IntN(4) {
		filter := g.filter()
		options := byte(g.IntN(3))
		if g.v == 5 {
			options |= byte(g.IntN(2))<<3 | byte(g.IntN(3))<<4
			if filter[0] != '$' {
				options |= byte(g.IntN(2)) << 2
			}
		}
		b = append(str(b, filter), options)
	}
	return frame(packets.Subscribe<<4|2, b)
}

func (g *generator) unsubscribe() []byte {
	b := g.props(binary.BigEndian.AppendUint16(nil, g.packetID()), packets.Unsubscribe, packets.Properties{User: g.userProps()})
	for range 1 + g.IntN(3) {
		b = str(b, g.filter())
	}
	return frame(packets.Unsubscribe<<4|2, b)
}

func (g *generator) packetID() uint16 {
	g.next++
	return pick(g, g.next, g.next, g.next, 1, 65535)
}

// publish makes a PUBLISH and, at QoS 2, mostly its PUBREL.
func (g *generator) publish() (list [][]byte) {
	topic, payload := g.topic(), pick(g, "", "hello", string(make([]byte, g.IntN(2000))), `{"body":1}`)
	if g.one(3) {
		topic, payload = g.command()
		topic = "im/cmd/" + topic
	}
	var p packets.Properties
	if g.one(3) {
		p.TopicAlias, p.TopicAliasFlag = uint16(1+g.IntN(3)), true
		if g.one(2) { // set, and used in the next
			list = append(list, frame(packets.Publish<<4, append(g.props(str(nil, topic), packets.Publish, p), "set"...)))
			if g.v == 5 {
				topic = ""
			}
		}
	}
	if g.one(3) {
		p.MessageExpiryInterval = pick(g, uint32(1), 60)
	}
	if g.one(4) {
		p.ResponseTopic, p.CorrelationData = pick(g, "im/u/"+g.user+"/reply", "im/u/"+g.user+"/x", "f/reply"), []byte("correlate")
	}
	if g.one(4) {
		p.PayloadFormat, p.PayloadFormatFlag, p.ContentType = 1, true, "text/plain"
	}
	p.User = g.userProps()
	qos := byte(g.IntN(3))
	first := packets.Publish<<4 | qos<<1
	if g.one(5) {
		first |= 1
	}
	b, id := str(nil, topic), uint16(0)
	if qos > 0 {
		if id = g.packetID(); g.one(10) {
			first |= 8
		}
		b = binary.BigEndian.AppendUint16(b, id)
	}
	list = append(list, frame(first, append(g.props(b, packets.Publish, p), payload...)))
	if qos == 2 && !g.one(6) {
		list = append(list, g.ack(packets.Pubrel, id))
	}
	return list
}

// command makes the name and the payload of a command.
func (g *generator) command() (name, payload string) {
	u := g.someone()
	n := g.IntN(20)
	switch name = pick(g, "send", "send", "send", "ack", "ack", "sync", "read", "history", "conversations", "receipts", "recall", "delete", "typing",
		"presence.get", "presence.watch", "presence.unwatch", "block.add", "block.remove", "block.list", "device.list", "time", "none"); name {
	case "send":
		payload = fmt.Sprintf(`{"rid":"1","to":"u/%s","cid":"c%d","body":{"n":[%d,"x"]},"ttl":%d}`, u, n*n, n, 1+n)
	case "ack":
		payload = pick(g, fmt.Sprintf(`{"seq":%d}`, n), `{"ids":["1","2"]}`, fmt.Sprintf(`{"conv":"u/%s","cseq":%d}`, u, n))
	case "sync":
		payload = fmt.Sprintf(`{"rid":"s","after":%d,"limit":%d}`, n, 1+n)
	case "history":
		payload = fmt.Sprintf(`{"rid":"h","conv":"u/%s","before":%d,"limit":5}`, u, 1+n)
	case "delete":
		payload = fmt.Sprintf(`{"rid":"d","conv":"u/%s","cseqs":[%d,%d]}`, u, n, n+1)
	case "presence.get", "presence.watch", "presence.unwatch":
		payload = fmt.Sprintf(`{"rid":"p","users":["%s","%s"]}`, u, g.user)
	case "block.add", "block.remove":
		payload = fmt.Sprintf(`{"rid":"b","user":"fuzz-%d"}`, fuzzUsers-1)
	case "typing":
		payload = fmt.Sprintf(`{"to":"u/%s","state":"on"}`, u)
	default:
		payload = fmt.Sprintf(`{"rid":"o","conv":"u/%s","cseq":%d,"t0":%d}`, u, n, n)
	}
	return name, payload
}

func (g *generator) ack(typ byte, id uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, id)
	if g.v == 5 && g.one(4) {
		b = g.props(append(b, pick(g, byte(0), 0x10, 0x87, 0x92)), typ, packets.Properties{ReasonString: "so"})
	}
	first := typ << 4
	if typ == packets.Pubrel {
		first |= 2
	}
	return frame(first, b)
}

func (g *generator) auth() []byte {
	if g.v < 5 || !g.one(8) {
		return []byte{packets.Pingreq << 4, 0}
	}
	return frame(packets.Auth<<4, g.props([]byte{pick(g, byte(0x18), 0x19)}, packets.Auth, packets.Properties{AuthenticationMethod: "SCRAM"}))
}

func (g *generator) disconnect() []byte {
	if g.v < 5 || g.one(2) {
		return []byte{packets.Disconnect << 4, 0}
	}
	p := packets.Properties{ReasonString: "bye"}
	if g.one(3) {
		p.SessionExpiryInterval, p.SessionExpiryIntervalFlag = pick(g, uint32(0), 1, 60), true
	}
	return frame(packets.Disconnect<<4, g.props([]byte{pick(g, byte(0), 4)}, packets.Disconnect, p))
}

// mutate spoils about one frame in rate, but leaves CONNECT alone in most sessions, so that the rest is looked at.
func (g *generator) mutate(s *script, rate int) {
	for i := 0; i < len(s.frames); i++ {
		if i == 0 && !g.one(8) || !g.one(rate) {
			continue
		}
		s.mutated++
		switch g.IntN(12) {
		case 0: // duplicate
			s.frames = slices.Insert(s.frames, i, s.frames[i])
			i++
		case 1: // reorder
			j := g.IntN(len(s.frames))
			s.frames[i], s.frames[j] = s.frames[j], s.frames[i]
		case 2: // splice: the beginning of one, the end of another
			other := s.frames[g.IntN(len(s.frames))]
			f := s.frames[i]
			s.frames[i] = g.lie(append(slices.Clone(f[:g.IntN(len(f)+1)]), other[g.IntN(len(other)+1):]...))
		default:
			s.frames[i] = g.spoil(slices.Clone(s.frames[i]))
		}
	}
}

// spoil changes one frame's bytes.
func (g *generator) spoil(f []byte) []byte {
	at := func() int { return g.IntN(len(f)) }
	switch g.IntN(9) {
	case 0: // another type, other flags
		f[0] ^= 1 << g.IntN(8)
		return f
	case 1: // cut
		f = f[:1+g.IntN(len(f))]
	case 2: // insert
		junk := make([]byte, 1+g.IntN(8))
		for i := range junk {
			junk[i] = byte(g.Uint32())
		}
		i := at()
		f = slices.Insert(f, i, junk...)
	case 3: // remove
		i := at()
		f = slices.Delete(f, i, min(len(f), i+1+g.IntN(8)))
	case 4: // a number that is at an end of its range
		for i, x := range pick(g, []byte{0, 0}, []byte{255, 255}, []byte{0, 1}, []byte{0x80}, []byte{0xff}, []byte{0}, []byte{0xff, 0xff, 0xff, 0x7f}) {
			if j := 2 + i; j < len(f) {
				f[min(len(f)-1, j+g.IntN(8))] = x
			}
		}
	case 5: // a byte that means something
		f[at()] = pick(g, byte('#'), '+', '/', '$', 0, '"', '{', 0xc0, 0xed, 0x26, 0x0b, 0x23, 0x1f)
	default: // bits
		for range 1 + g.IntN(4) {
			f[at()] ^= 1 << g.IntN(8)
		}
	}
	return g.lie(f)
}

// lie mostly makes the length field tell the truth about a changed body, so that what is behind it is looked at; else
// it is a lie of some kind.
func (g *generator) lie(f []byte) []byte {
	if len(f) == 0 {
		return []byte{0}
	}
	i := 1
	for i < len(f) && i < 5 && f[i] >= 0x80 {
		i++
	}
	body := f[min(len(f), i+1):]
	switch g.IntN(12) {
	case 0:
		return f // whatever it says now
	case 1: // more than there is
		return append([]byte{f[0], byte(min(127, len(body)+1+g.IntN(20)))}, body...)
	case 2: // less
		return append([]byte{f[0], byte(g.IntN(min(127, len(body)+1)))}, body...)
	case 3: // longer than it need be, or too long
		return append([]byte{f[0], byte(len(body)&0x7f) | 0x80, byte(len(body)>>7&0x7f) | 0x80, 0x80, pick(g, byte(0), 0x80)}, body...)
	case 4:
		if g.one(4) {
			return append([]byte{f[0], 0xff, 0xff, pick(g, byte(3), 0xff), 0x7f}, body...)
		}
	}
	return frame(f[0], body)
}

// writes splits what is to be sent at random places.
func (g *generator) writes(s *script) (list [][]byte) {
	all := bytes.Join(s.frames, nil)
	for len(all) > 0 {
		n := len(all)
		if !g.one(3) {
			n = 1 + g.IntN(min(n, pick(g, 3, 100, 5000)))
		}
		list = append(list, all[:n])
		all = all[n:]
	}
	return list
}
