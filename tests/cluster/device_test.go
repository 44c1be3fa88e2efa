package cluster

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/tests/mqtest"
)

const (
	deaf    = 5 * time.Second        // without a packet, after which a device takes its connection for dead
	waiting = 4 * time.Second        // without an answer, after which it asks again
	nap     = 100 * time.Millisecond // between attempts
	depth   = 4                      // messages that a device has on their way
)

// device is a simulated device of a user: a client that does what a careful application does. It repeats what was not
// acknowledged, acknowledges what it has got, and connects to another node when its connection breaks. It belongs to the
// goroutine that runs it; what the world asks of it is in world.
type device struct {
	party
	w      *world
	rng    *rand.Rand
	v      byte   // version of MQTT
	plain  bool   // reads in the plain profile
	filter string // what it is subscribed to, besides replies
	topic  string // where it publishes; "": messages to users and groups
	mute   bool   // publishes nothing
	tag    string // begins its cids
	twin   bool   // another client claims to be the same device; the
	second bool   // of the two gives up in the end

	c          *mqtest.Client
	at         *node  // that it is, or was last, connected to
	next       string // address of the node that it was sent to
	conn       int
	n          int // messages made
	subscribed bool
	stalled    bool
	out        []*letter // not acknowledged, in order
	later      time.Time // no new message before
	acks       map[string]*mark
	asks       map[string]func(mqtest.Reply) // by rid
	rid        int
	heard      time.Time
	pinged     time.Time
	synced     time.Time
	die        time.Time // when it leaves, to come back
}

// letter is a message on its way.
type letter struct {
	cid, to, conv string
	packet        uint16 // of the last attempt; 0: none on this connection
	begin         time.Duration
	due           time.Time // when to try again
	open          bool      // the last attempt has no outcome yet
}

// mark is how far a stream was got and acknowledged.
type mark struct {
	got, acked uint64
	asked      time.Time // when an ack was sent that has no answer yet
}

// ordinary reports whether the device knows ordinary topics only.
func (d *device) ordinary() bool { return d.topic != "" || len(d.Topics) > 0 }

func (d *device) options() mqtest.Options {
	return mqtest.Options{Version: d.v, User: d.User, ID: d.ID, Persistent: true, Patience: deaf}
}

// run lives until the world ends.
func (d *device) run() {
	for !d.w.over() && !(d.second && d.w.finishing() && len(d.out) == 0) {
		if !d.connect() {
			d.w.sleep(nap/2 + time.Duration(d.rng.Int64N(int64(nap))))
			continue
		}
		from := d.w.h.now()
		d.live()
		d.c.Kill()
		d.rest()
		d.w.h.add(link{Device: d.ID, Conn: d.conn, From: from, To: d.w.h.now()})
		for _, l := range d.out {
			d.close(l, unknown, "", mqtest.Sent{})
			l.packet, l.due = 0, time.Time{}
		}
		d.w.online(d, false)
	}
}

// connect tries a node: the one that it was sent to, or another than the last.
func (d *device) connect() bool {
	d.at = d.w.pick(d.rng, d.at, d.next)
	d.next = ""
	c := mqtest.TryDial(d.w.t, d.at.address, d.options())
	if c == nil {
		return false
	}
	if code := c.Connack.ReasonCode; code != 0 {
		d.w.refused(d, code)
		d.next = c.Connack.Properties.ServerReference
		c.Kill()
		return false
	}
	d.conn = d.w.connection()
	d.c, d.heard, d.asks = c, time.Now(), map[string]func(mqtest.Reply){}
	d.die = d.heard.Add(d.w.life/2 + time.Duration(d.rng.Int64N(int64(d.w.life))))
	for _, m := range d.acks {
		m.asked = time.Time{}
	}
	if d.subscribed && !c.Connack.SessionPresent {
		d.w.fault("session lost", "%s on %s, connection %d", d.ID, d.at.name, d.conn)
	}
	if !d.subscribed {
		pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe}, PacketID: 65535}
		for _, f := range []string{d.filter, "im/u/" + d.User + "/reply"} {
			if f != "" && !slices.ContainsFunc(pk.Filters, func(s packets.Subscription) bool { return s.Filter == f }) {
				pk.Filters = append(pk.Filters, packets.Subscription{Filter: f, Qos: 1})
			}
		}
		if !d.write(pk) {
			c.Kill()
			d.rest()
			return false
		}
	} else {
		d.w.online(d, true)
	}
	return true
}

func (d *device) write(pk packets.Packet) bool {
	raw, err := mqtest.Encode(pk, d.v)
	if err != nil {
		d.w.fault("encode", "%v", err)
	}
	return d.c.TryWrite(raw) == nil
}

// live does what there is to do, until the connection ends.
func (d *device) live() {
	for !d.w.over() {
		pk, came := d.c.TryTake(func(*packets.Packet) bool { return true }, 5*time.Millisecond)
		if came {
			d.heard = time.Now()
			d.take(&pk)
		} else if d.c.Err() != nil {
			return
		}
		if !d.work() {
			return
		}
	}
}

// rest takes what came before the end of the connection.
func (d *device) rest() {
	if !d.stalled { // else the client has stopped reading, and acknowledging, before
		d.c.TryTake(func(*packets.Packet) bool { return false }, mqtest.Patience)
	}
	d.stalled = false
	for _, pk := range d.c.Got() {
		d.take(&pk)
	}
}

// work sends what is due. It reports false when the device gives the connection up.
func (d *device) work() bool {
	now := time.Now()
	if now.Sub(d.heard) > deaf {
		return false
	}
	if now.Sub(d.pinged) > time.Second {
		d.pinged = now
		if d.c.TryWrite([]byte{packets.Pingreq << 4, 0}) != nil {
			return false
		}
	}
	if !d.subscribed {
		return true
	}
	if now.After(d.die) && d.w.sending() {
		switch d.rng.IntN(3) {
		case 0:
			_ = d.c.TryWrite([]byte{packets.Disconnect << 4, 0})
		case 1:
			d.w.note("stalled") // what comes meanwhile is lost on its way
			d.c.Stall()
			d.stalled = true
			d.w.sleep(time.Duration(d.rng.Int64N(int64(3 * nap))))
		}
		return false
	}
	if d.w.sending() && len(d.out) < depth && now.After(d.later) && (d.topic == "" || len(d.out) == 0) && !d.mute {
		d.later = now.Add(time.Duration(d.rng.Int64N(int64(2 * d.w.interval))))
		d.out = append(d.out, d.letter())
	}
	d.w.pending(d, len(d.out))
	if d.second && d.w.finishing() && len(d.out) == 0 {
		return false
	}
	for _, l := range d.out {
		if now.After(l.due) && !d.post(l) {
			return false
		}
	}
	if d.ordinary() {
		return true
	}
	return d.acknowledge(now) && d.look(now)
}

// letter makes a new message.
func (d *device) letter() *letter {
	d.n++
	l := &letter{cid: fmt.Sprintf("%s-%d", d.tag, d.n)}
	if d.topic != "" {
		l.to, l.conv = d.topic, "t/"+d.topic
	} else {
		l.to = d.w.target(d)
		l.conv = d.conv(l.to)
	}
	return l
}

// conv is the name in the history of what the device calls u/… or g/….
func (d *device) conv(address string) string {
	peer, direct := strings.CutPrefix(address, "u/")
	switch {
	case !direct:
		return address
	case peer < d.User:
		return peer + "|" + d.User
	}
	return d.User + "|" + peer
}

// post tries to send a message, once more.
func (d *device) post(l *letter) bool {
	d.close(l, unknown, "", mqtest.Sent{})
	l.begin, l.open, l.due = d.w.h.now(), true, time.Now().Add(waiting)
	var pk packets.Packet
	switch {
	case d.topic != "":
		pk = d.c.Packet(d.topic, l.cid)
	case d.plain && d.v == 5:
		pk = d.c.Packet("im/"+l.to, l.cid, mqtest.UserProp("cid", l.cid))
	default:
		body, _ := json.Marshal(mqtest.Map{"to": l.to, "cid": l.cid, "body": l.cid})
		pk = d.c.Packet("im/cmd/send", string(body))
	}
	l.packet = pk.PacketID
	return d.write(pk)
}

// close notes what became of an attempt, if that was open.
func (d *device) close(l *letter, o outcome, code string, s mqtest.Sent) {
	if !l.open {
		return
	}
	l.open = false
	d.w.h.add(send{Cid: l.cid, Device: d.ID, Conv: l.conv, Node: d.at.name, Begin: l.begin, End: d.w.h.now(), Outcome: o, Code: code, ID: s.ID, Cseq: s.Cseq, Dup: s.Dup})
	d.w.outcome(d, l, o, code, d.w.h.now()-l.begin)
	if o == refused {
		l.due = time.Now().Add(nap)
	}
}

// settle ends an attempt with its answer: the message is stored, or will be tried again.
func (d *device) settle(i int, o outcome, code string, s mqtest.Sent) {
	d.close(d.out[i], o, code, s)
	if o == ok {
		d.out = slices.Delete(d.out, i, i+1)
	}
}

// acknowledge tells the server how far each stream was got.
func (d *device) acknowledge(now time.Time) bool {
	for _, stream := range sortedKeys(d.acks) {
		m := d.acks[stream]
		if m.got <= m.acked || now.Sub(m.asked) < waiting {
			continue
		}
		upto, args := m.got, mqtest.Map{"seq": m.got}
		if stream != "" {
			args = mqtest.Map{"conv": stream, "cseq": m.got}
		}
		m.asked = now
		if !d.ask("ack", args, func(r mqtest.Reply) {
			if r.OK {
				m.acked, m.asked = max(m.acked, upto), time.Time{}
			} else {
				m.asked = time.Now().Add(nap - waiting)
				d.w.complained(d, "ack", r.Error.Code)
			}
		}) {
			return false
		}
	}
	return true
}

// look reads a conversation now and then, and at the end asks whether the device's cursors have reached their heads.
func (d *device) look(now time.Time) bool {
	if d.w.sending() && d.rng.IntN(150) == 0 {
		to := d.w.target(d)
		begin := d.w.h.now()
		return d.ask("history", mqtest.Map{"conv": to, "limit": 20}, func(r mqtest.Reply) {
			if !r.OK {
				if r.Error.Code != "not_found" {
					d.w.complained(d, "history", r.Error.Code)
				}
				return
			}
			var page struct{ Messages []mqtest.Message }
			_ = json.Unmarshal(r.Data, &page)
			x := read{User: d.User, Conv: d.conv(to), Begin: begin, End: d.w.h.now()}
			for _, m := range page.Messages {
				x.Entries = append(x.Entries, d.entry(&m))
			}
			d.w.h.add(x)
		})
	}
	if d.w.finishing() && now.Sub(d.synced) > 3*nap && len(d.out) == 0 {
		d.synced = now
		return d.ask("sync", mqtest.Map{"limit": 100}, func(r mqtest.Reply) {
			var page struct {
				Messages []mqtest.Message
				Head     uint64
				Groups   []mqtest.Map
			}
			_ = json.Unmarshal(r.Data, &page)
			own := !slices.ContainsFunc(page.Messages, func(m mqtest.Message) bool { return !strings.HasPrefix(m.Cid, d.ID+"-") })
			d.w.caught(d, r.OK && own && len(page.Groups) == 0, fmt.Sprintf("%d messages before the head %d, groups %v", len(page.Messages), page.Head, page.Groups))
		})
	}
	return true
}

func (d *device) entry(m *mqtest.Message) entry {
	return entry{ID: m.ID, Cid: m.Cid, Conv: d.conv(m.Conv), From: m.From, Seq: m.Seq, Cseq: m.Cseq, Sys: m.Type == "sys.group"}
}

// ask sends a command; then is called with its answer, if that comes on this connection.
func (d *device) ask(command string, args mqtest.Map, then func(mqtest.Reply)) bool {
	d.rid++
	rid := fmt.Sprint("r", d.rid)
	args["rid"] = rid
	d.asks[rid] = then
	body, _ := json.Marshal(args)
	return d.write(d.c.Packet("im/cmd/"+command, string(body)))
}

// take handles what came.
func (d *device) take(pk *packets.Packet) {
	switch pk.FixedHeader.Type {
	case packets.Suback:
		d.subscribed = !slices.ContainsFunc(pk.ReasonCodes, func(c byte) bool { return c >= 0x80 })
		d.w.online(d, d.subscribed)
		if !d.subscribed {
			d.w.complained(d, "subscribe", fmt.Sprintf("%#x", pk.ReasonCodes))
			d.c.Kill()
		}
	case packets.Disconnect:
		d.next = pk.Properties.ServerReference
		d.w.sentAway(pk.ReasonCode)
	case packets.Puback:
		i := slices.IndexFunc(d.out, func(l *letter) bool { return l.packet == pk.PacketID && l.packet != 0 })
		if i < 0 || d.topic == "" && !(d.plain && d.v == 5) {
			return // the reply tells
		}
		if pk.ReasonCode < 0x80 {
			d.settle(i, ok, "", mqtest.Sent{})
		} else {
			d.settle(i, refused, pk.Properties.ReasonString, mqtest.Sent{})
		}
	case packets.Publish:
		d.publish(pk)
	}
}

func (d *device) publish(pk *packets.Packet) {
	tail, mine := strings.CutPrefix(pk.TopicName, "im/u/"+d.User)
	switch {
	case !mine:
		d.w.h.add(delivery{Device: d.ID, Cid: string(pk.Payload), Conv: "t/" + pk.TopicName, At: d.w.h.now(), Conn: d.conn})
	case tail == "/msg":
		var m mqtest.Message
		if err := json.Unmarshal(pk.Payload, &m); err != nil {
			d.w.fault("msg", "%v in %s", err, pk.Payload)
		}
		d.message(&m, m.Text())
	case tail == "":
		m := mqtest.Message{}
		if d.v == 5 {
			p := mqtest.UserProps(*pk)
			m = mqtest.Message{ID: p["id"], Conv: p["conv"], From: p["from"], Type: p["type"], Cid: p["cid"]}
			_, _ = fmt.Sscan(p["seq"], &m.Seq)
			_, _ = fmt.Sscan(p["cseq"], &m.Cseq)
		}
		m.Attempt = -1 // nothing is acknowledged but by PUBACK
		d.message(&m, string(pk.Payload))
	case tail == "/reply":
		var r mqtest.Reply
		if err := json.Unmarshal(pk.Payload, &r); err != nil {
			d.w.fault("reply", "%v in %s", err, pk.Payload)
		}
		d.reply(r)
	case tail == "/event":
		if strings.Contains(string(pk.Payload), "inbox.trimmed") {
			d.w.fault("trimmed", "%s: %s", d.ID, pk.Payload)
		}
	}
}

func (d *device) message(m *mqtest.Message, text string) {
	if m.Attempt >= 0 {
		stream, n := "", m.Seq
		if m.Seq == 0 {
			stream, n = m.Conv, m.Cseq
		}
		k := d.acks[stream]
		if k == nil {
			k = &mark{}
			d.acks[stream] = k
		}
		if n <= k.acked {
			k.acked = n - 1 // it comes again: the server does not know
		}
		k.got = max(k.got, n)
	}
	if m.Type == "sys.group" || strings.HasPrefix(text, `{"change":`) {
		return
	}
	x := delivery{Device: d.ID, Cid: text, ID: m.ID, Seq: m.Seq, Cseq: m.Cseq, At: d.w.h.now(), Conn: d.conn}
	if m.Conv != "" {
		x.Conv = d.conv(m.Conv)
	}
	d.w.h.add(x)
}

func (d *device) reply(r mqtest.Reply) {
	if then := d.asks[r.Rid]; then != nil {
		delete(d.asks, r.Rid)
		then(r)
		return
	}
	i := slices.IndexFunc(d.out, func(l *letter) bool { return l.cid == r.Cid })
	if i < 0 {
		return
	}
	if !r.OK {
		d.settle(i, refused, r.Error.Code, mqtest.Sent{})
		return
	}
	var s mqtest.Sent
	if err := json.Unmarshal(r.Data, &s); err != nil || s.ID == "" {
		d.w.fault("reply", "%s: %s %v", d.ID, r.Data, err)
	}
	d.settle(i, ok, "", s)
}
