package bench

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"regexp"
	"strings"
	"time"
)

// Profile is how messages are addressed and acknowledged.
type Profile string

const (
	// Topic is ordinary MQTT, for any broker: a sender publishes to PREFIX/RUN/i, its receiver subscribes to that.
	Topic Profile = "topic"
	// Plain is mqim's profile for stock clients: publish im/u/{user}, subscribe im/u/{me}.
	Plain Profile = "plain"
	// IM is mqim's profile for chat clients: JSON commands, cumulative acks, replies and receipts.
	IM Profile = "im"
)

// Options is what to measure. The zero value of a field takes the default that [Options.Defaults] gives it.
type Options struct {
	Address  string  // host:port of the broker
	There    string  // pairs, fanin, fanout: the address that receivers connect to, another node of the cluster; "": Address
	Profile  Profile // Topic
	Version  int     // 3 (3.1.1) or 5; 3
	Password string  // sent with the user name, if set

	Pairs       int // pairs: senders, each with a receiver of its own; 20
	Senders     int // fanin, drain: connections that publish; 20
	Receivers   int // fanout: connections that subscribe; 20
	Groups      int // fanout: groups, or topics, each with a sender of its own and all receivers; 1
	Members     int // fanout: of the one group, which is large; Receivers of them are connected. 0: receivers and sender
	Talks       int // conversations: how many a user has; 2000
	Connections int // idle: connections; 1000
	Users       int // drain: users that messages wait for; 100
	Concurrency int // connections being set up, or drained, at a time; 100

	Size     int     // bytes of a body, at least 52, which the header takes; 256
	QoS      int     // of a publish: 0 (the default here), 1, 2; receivers subscribe with at most 1
	InFlight int     // unacknowledged publishes a sender may have out; 100
	Rate     float64 // messages/s of all senders together on an open-loop schedule; 0: as fast as acks come
	AckEvery int     // IM: acknowledge once so many messages wait for it, the rest every 20 ms; 1: each read burst

	Duration  time.Duration // how long to measure (idle: to hold); 10 s unless Count is set
	Count     int64         // messages to measure instead, of all senders together
	Warmup    time.Duration // published before measuring starts, and not measured
	Settle    time.Duration // after the last publish: give up on what is missing when nothing came for so long; 10 s
	KeepAlive time.Duration // whole seconds; 60 s

	Prefix  string // of user names and client ids; "bench"
	Run     string // id of the run, 1 to 6 hexadecimal digits; random. A drain of an earlier fill names the fill's
	Persist bool   // keep sessions beyond connections (Clean Session 0, or an expiry of an hour)
	Phase   string // drain: fill, drain or both; conversations: fill, ask or both; "both"
	PID     int    // of the broker, on this machine: its resident memory is reported

	Progress func(Progress) // called once a second, if set
	Notes    io.Writer      // remarks, such as a window that the broker made smaller; nil drops them
}

// Progress is where a run stands; rates are those of the last second.
type Progress struct {
	Phase         string
	Elapsed       time.Duration
	Sent          int64
	Delivered     int64
	SentRate      float64
	DeliveredRate float64
}

// Defaults returns o with every unset field at its default.
func (o Options) Defaults() Options {
	def := func(v *int, to int) {
		if *v == 0 {
			*v = to
		}
	}
	if o.Address == "" {
		o.Address = "127.0.0.1:1883"
	}
	if o.Profile == "" {
		o.Profile = Topic
	}
	def(&o.Version, 3)
	def(&o.Pairs, 20)
	def(&o.Senders, 20)
	def(&o.Receivers, 20)
	def(&o.Groups, 1)
	def(&o.Talks, 2000)
	def(&o.Connections, 1000)
	def(&o.Users, 100)
	def(&o.Concurrency, 100)
	def(&o.Size, 256)
	def(&o.InFlight, 100)
	def(&o.AckEvery, 1)
	if o.Duration == 0 && o.Count == 0 {
		o.Duration = 10 * time.Second
	}
	if o.Settle == 0 {
		o.Settle = 10 * time.Second
	}
	if o.KeepAlive == 0 {
		o.KeepAlive = time.Minute
	}
	if o.Prefix == "" {
		o.Prefix = "bench"
	}
	if o.Run == "" {
		o.Run = fmt.Sprintf("%06x", rand.Uint32N(1<<24))
	}
	if o.Phase == "" {
		o.Phase = "both"
	}
	if o.Notes == nil {
		o.Notes = io.Discard
	}
	return o
}

var (
	runPattern    = regexp.MustCompile(`^[0-9a-f]{1,6}$`)
	prefixPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,31}$`)
)

// check reports every option that cannot be, at once.
func (o *Options) check() error {
	var errs []error
	want := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	want(strings.Contains(o.Address, ":"), "address %q: want host:port", o.Address)
	want(o.There == "" || strings.Contains(o.There, ":"), "receivers' address %q: want host:port", o.There)
	want(o.Profile == Topic || o.Profile == Plain || o.Profile == IM, "profile %q: want topic, plain or im", o.Profile)
	want(o.Version == 3 || o.Version == 5, "version %d: want 3 or 5", o.Version)
	for name, n := range map[string]int{"pairs": o.Pairs, "senders": o.Senders, "receivers": o.Receivers,
		"connections": o.Connections, "users": o.Users, "groups": o.Groups, "conversations": o.Talks} {
		want(n >= 1 && n <= maxStream, "%s %d: want 1 to %d", name, n, maxStream)
	}
	want(o.Members == 0 || o.Profile != Topic && o.Groups == 1 && o.Members > o.Receivers && o.Members <= maxStream,
		"members %d: want more than receivers, in one group, in profile plain or im", o.Members)
	want(o.Concurrency >= 1, "concurrency %d: want at least 1", o.Concurrency)
	want(o.Size >= headerSize && o.Size <= maxBody, "size %d: want %d (the header) to %d bytes", o.Size, headerSize, maxBody)
	want(o.QoS >= 0 && o.QoS <= 2, "qos %d: want 0, 1 or 2", o.QoS)
	want(o.InFlight >= 1 && o.InFlight < 65000, "inflight %d: want 1 to 64999", o.InFlight)
	want(o.Rate >= 0, "rate %g: want 0 or more", o.Rate)
	want(o.AckEvery >= 1, "ack-every %d: want at least 1", o.AckEvery)
	want(o.Count >= 0, "count %d: want 0 or more", o.Count)
	want(o.Duration >= 0 && o.Warmup >= 0 && o.Settle > 0, "durations: want none below 0")
	want(o.KeepAlive >= 0 && o.KeepAlive < 65536*time.Second, "keep-alive %s: want up to 18h", o.KeepAlive)
	want(prefixPattern.MatchString(o.Prefix), "user prefix %q: want 1 to 32 of [A-Za-z0-9._@-]", o.Prefix)
	want(runPattern.MatchString(o.Run), "run %q: want 1 to 6 hexadecimal digits", o.Run)
	want(o.Phase == "both" || o.Phase == "fill" || o.Phase == "drain" || o.Phase == "ask",
		"phase %q: want fill, drain, ask or both", o.Phase)
	return errors.Join(errs...)
}

func (o *Options) level() byte {
	if o.Version == 5 {
		return v5
	}
	return v311
}

// subscribeQoS is what receivers ask for: QoS 2 inwards is of no use to a measurement.
func (o *Options) subscribeQoS() byte {
	if o.Profile == IM {
		return 1
	}
	return byte(min(o.QoS, 1))
}

func (o *Options) runID() uint32 {
	v, _ := getHex([]byte(o.Run))
	return uint32(v)
}

func (o *Options) sender(i int) string   { return fmt.Sprintf("%s-%s-s-%d", o.Prefix, o.Run, i) }
func (o *Options) receiver(i int) string { return fmt.Sprintf("%s-%s-r-%d", o.Prefix, o.Run, i) }
func (o *Options) group(i int) string    { return fmt.Sprintf("%s-%s-g-%d", o.Prefix, o.Run, i) }
func (o *Options) away(i int) string     { return fmt.Sprintf("%s-%s-a-%d", o.Prefix, o.Run, i) }
func (o *Options) member(i int) string   { return fmt.Sprintf("%s-%s-m-%d", o.Prefix, o.Run, i) }

// filter is what receiver i subscribes to where stream is what is sent to it.
func (o *Options) filter(i int, stream int) string {
	switch o.Profile {
	case Plain:
		return "im/u/" + o.receiver(i)
	case IM:
		return "im/u/" + o.receiver(i) + "/+"
	}
	return o.topic(stream)
}

func (o *Options) topic(stream int) string { return fmt.Sprintf("%s/%s/%d", o.Prefix, o.Run, stream) }

// template encodes the packet that stream sends, with zeros for what each message writes anew. to is an address as
// the plain and the IM profile write it, "u/…" or "g/…".
func (o *Options) template(stream int, to string) template {
	topic, before, after := o.topic(stream), "", ""
	switch o.Profile {
	case Plain:
		topic = "im/" + to
	case IM:
		topic = "im/cmd/send"
		before = `{"to":"` + to + `","cid":"` + strings.Repeat("0", cidTo-cidFrom) + `","body":"`
		after = `"}`
	}
	t := template{stream: uint32(stream), after: after, fill: o.Size - headerSize, noise: noise()}
	t.before, t.idAt = appendPublish(nil, o.level(), byte(o.QoS), topic, 0, len(before)+o.Size+len(after))
	if before != "" {
		t.cidAt = len(t.before) + strings.Index(before, `"cid":"`) + len(`"cid":"`)
	}
	t.before = append(t.before, before...)
	return t
}

// template is a PUBLISH encoded up to its body, and where in it the parts lie that change; 0 where there is none.
type template struct {
	stream uint32
	before []byte
	after  string
	idAt   int
	cidAt  int
	fill   int    // bytes of the body after its header
	noise  []byte // where they are taken from
}

// appendMessage appends the packet for h with the packet id.
func (t *template) appendMessage(b []byte, id uint16, h header) []byte {
	at := len(b)
	b = append(b, t.before...)
	p := b[at:]
	if t.idAt > 0 {
		p[t.idAt], p[t.idAt+1] = byte(id>>8), byte(id)
	}
	var head [headerSize]byte
	putHeader(head[:], h)
	if t.cidAt > 0 {
		copy(p[t.cidAt:], head[cidFrom:cidTo])
	}
	b = append(b, head[:]...)
	b = append(b, filler(t.noise, h.stream, h.number, t.fill)...)
	return append(b, t.after...)
}
