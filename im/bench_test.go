package im

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqim/mqim/store"
)

func benchMessage() *store.Message {
	return &store.Message{
		Conv: store.Direct("alice", "bob"), Cseq: 57, ID: 1<<60 + 1, From: "alice", Cid: "0123456789abcdef", Type: "text",
		TS: 1700000000000, CTS: 1700000000000, Body: make([]byte, 256),
	}
}

func BenchmarkAppendMessage(b *testing.B) {
	for _, name := range []string{"ascii", "utf8", "bytes", "json"} {
		m := benchMessage()
		switch name {
		case "ascii":
			for i := range m.Body {
				m.Body[i] = 'a' + byte(i%26)
			}
		case "utf8":
			m.Body = []byte(fmt.Sprintf("%.85s", "永和九年歲在癸丑暮春之初會于會稽山陰之蘭亭修禊事也羣賢畢至少長咸集此地有崇山峻領茂林修竹又有清流激湍映帶左右引以為流觴曲水列坐其次雖無絲竹管弦之盛一觴一詠亦足以暢敘幽情是日也天朗氣清惠風和暢仰觀"))
		case "bytes":
			m.Encoding = store.Bytes
		case "json":
			m.Encoding, m.Body = store.JSON, []byte(`{"text":"hello","list":[1,2,3],"nested":{"a":true}}`)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var buf []byte
			for b.Loop() {
				buf = AppendMessage(buf[:0], "bob", 12, m, 0)
			}
			b.SetBytes(int64(len(buf)))
		})
	}
}

// BenchmarkParse is the decoding of commands.
func BenchmarkParse(b *testing.B) {
	e := &Engine{m: noMetrics{}}
	e.cfg.Store(&Config{})
	d := &Device{e: e}
	for name, payload := range map[string]string{
		"send":  fmt.Sprintf(`{"rid":"17","to":"u/bob","cid":"0123456789abcdef","body":"%0256d"}`, 1),
		"ack":   `{"seq":123456}`,
		"ids10": `{"ids":["1000000000000000000","1000000000000000001","1000000000000000002","1000000000000000003","1000000000000000004","1000000000000000005","1000000000000000006","1000000000000000007","1000000000000000008","1000000000000000009"]}`,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(payload)))
			for b.Loop() {
				c := command{name: name, payload: []byte(payload)}
				if err := d.parse(&c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// nullLink takes everything and acknowledges in the plain profile at the next Kick.
type nullLink struct {
	dev  *Device
	last atomic.Uint64
	done atomic.Int64
}

func (l *nullLink) Deliver(e store.Entry, _ uint64, _ Profile, _ int) bool {
	l.last.Store(e.Seq)
	return true
}
func (l *nullLink) Answer(Ticket, []byte, *Error) { l.done.Add(1) }
func (l *nullLink) Notify(Channel, []byte) bool   { return true }
func (l *nullLink) Close(CloseReason)             {}
func (l *nullLink) Kick() {
	if l.dev != nil {
		_ = l.dev.ackSeq(l.last.Load())
	}
}

// BenchmarkEngine is the way of a message from Publish through a store in memory to a link that does nothing; messages
// gather in batches by themselves.
func BenchmarkEngine(b *testing.B) {
	for _, pairs := range []int{1, 20} {
		b.Run(fmt.Sprintf("pairs%d", pairs), func(b *testing.B) {
			ids, _ := NewSnowflakes(1)
			st := openStore(b, vfs.NewMem(), store.Retention{}, ids)
			defer st.Close()
			e := New(st, Config{Log: quiet, Window: 1 << 14})
			defer e.Close(context.Background())
			var from []*Device
			for i := range pairs {
				for _, who := range []string{"from", "to"} {
					l := &nullLink{}
					d, err := e.Connect(context.Background(), fmt.Sprint(who, i), "d", persistent, l)
					if err != nil {
						b.Fatal(err)
					}
					if who == "from" {
						from = append(from, d)
						d.SetProfile(None, Replies)
					} else {
						l.dev = d
						d.SetProfile(Plain, 0)
					}
				}
			}
			body := make([]byte, 256)
			for i := range body {
				body[i] = 'x'
			}
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				d := from[n%pairs]
				d.Publish("u/to"+d.u.name[4:], Outgoing{Body: body}, Ticket(n))
				n++
			}
			if err := e.Drain(context.Background()); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "msg/s")
		})
	}
}

// teamLink takes everything and acknowledges what comes of the group at the next Kick.
type teamLink struct {
	nullLink
	cseq atomic.Uint64
}

func (l *teamLink) Deliver(e store.Entry, _ uint64, _ Profile, _ int) bool {
	l.cseq.Store(e.Cseq)
	return true
}

func (l *teamLink) Kick() {
	if n := l.cseq.Load(); n > uint64(l.done.Load()) {
		l.done.Store(int64(n))
		if err := l.dev.ackConv(team, n); err != nil {
			panic(err) // it has been handed this very message
		}
	}
}

// BenchmarkLarge is a message to a group of 100,000 of whom 2,000 are connected: from the committer to the last of them.
func BenchmarkLarge(b *testing.B) {
	const members, online = 100_000, 2_000
	ids, _ := NewSnowflakes(1)
	st := openStore(b, vfs.NewMem(), store.Retention{}, ids)
	defer st.Close()
	e := New(st, Config{Log: quiet})
	defer e.Close(context.Background())
	var names []string
	for i := range members {
		names = append(names, fmt.Sprint("u", i))
	}
	w := &world{t: b, st: &faultStore{Store: st}, e: e}
	w.create(true)
	for i := 0; i < members; i += 10_000 {
		w.join(names[i : i+10_000]...)
	}
	links := make([]*teamLink, online)
	for i := range links {
		links[i] = &teamLink{}
		d, err := e.Connect(context.Background(), names[i], "d", persistent, links[i])
		if err != nil {
			b.Fatal(err)
		}
		links[i].dev = d
		d.SetProfile(Plain, 0)
	}
	var took []time.Duration
	body := string(make([]byte, 256))
	b.ReportAllocs()
	for b.Loop() {
		start := time.Now()
		want := w.postTeam("owner", body)
		for _, l := range links {
			for l.cseq.Load() < want { // where it was behind, a pump is at it
				runtime.Gosched()
			}
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// BenchmarkWindow is a push and a pop with 200 in the window, and a search.
func BenchmarkWindow(b *testing.B) {
	var w window
	seq := uint64(0)
	for range 200 {
		seq++
		w.push(slot{seq: seq})
	}
	b.ReportAllocs()
	for b.Loop() {
		seq++
		w.push(slot{seq: seq})
		w.drop(1)
		if i := w.search(seq); i != 199 {
			b.Fatal(i)
		}
	}
}
