package bench

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestFanOutOverTopics(t *testing.T) {
	o := Options{Address: startRival(t), Receivers: 4, Groups: 3, QoS: 1, Rate: 3000, Count: 301}
	r := mustRun(t, FanOut, o)
	if r.Err() != nil || r.Delivered != 4*301 || r.Complete == nil || r.Complete.Count != 301 {
		t.Fatalf("got %v, %d delivered, %+v, want each of 301 messages with all of 4", r.Err(), r.Delivered, r.Complete)
	}
	if r.Complete.P50 < r.Latency.P50 || r.Complete.Max < r.Latency.P99 {
		t.Errorf("the last receiver had it before the others: %+v, %+v", r.Complete, r.Latency)
	}
	o.Rate, o.Version = 0, 5
	if r = mustRun(t, FanOut, o); r.Err() != nil || r.Delivered != 4*301 || r.Complete != nil {
		t.Errorf("without a schedule: got %v, %d delivered, %+v", r.Err(), r.Delivered, r.Complete)
	}
}

func TestFanOutOverGroups(t *testing.T) {
	for _, version := range []int{3, 5} {
		b := &fakeBroker{}
		o := Options{Address: startFake(t, b), Profile: IM, Version: version, Receivers: 3, Groups: 2, QoS: 1, AckEvery: 7,
			Rate: 2000, Count: 200, Run: "5", Settle: 5 * time.Second}
		r := mustRun(t, FanOut, o)
		if r.Err() != nil || r.Delivered != 600 || r.Complete.Count != 200 || r.Duplicates != 0 {
			t.Errorf("got %v, %d delivered, %+v", r.Err(), r.Delivered, r.Complete)
		}
		b.gone()
		for i := range 3 {
			if got := b.acked[fmt.Sprintf("bench-5-r-%d", i)]; got != 200 {
				t.Errorf("receiver %d acknowledged up to %d, want 200", i, got)
			}
		}
	}
}

// A message that one receiver lacks is lost, and has no time at which all had it.
func TestIncompleteFanOut(t *testing.T) {
	b := &fakeBroker{fakeIM: fakeIM{skip: func(n int, user string) bool { return n == 50 && strings.HasSuffix(user, "-r-1") }}}
	o := Options{Address: startFake(t, b), Profile: IM, Receivers: 3, QoS: 1, Rate: 2000, Count: 100, Settle: time.Second}
	r := mustRun(t, FanOut, o)
	if r.Lost != 1 || r.Delivered != 299 || r.Complete.Count != 99 {
		t.Errorf("got %d lost, %d delivered, %d complete, want 1, 299, 99", r.Lost, r.Delivered, r.Complete.Count)
	}
}

func TestCompletionIsTheLast(t *testing.T) {
	o := Options{Receivers: 3}
	c := newCompletion(&o, 10)
	now := clock()
	for _, h := range []header{{number: 1, due: now - 5e9}, {number: 0, due: now - 1e9}, {number: 9999, due: now}} {
		for range 3 {
			c.see(h, now-2e9) // the first was due before that
		}
	}
	c.see(header{number: 2, due: now - 1e9}, 0)
	c.see(header{number: 2, due: now - 1e9}, 0)
	if q := quantiles(c.latency); q.Count != 1 || q.Max < 1e6 || q.Max > 60e6 {
		t.Errorf("got %+v, want one message, complete after a second", q)
	}
}

func TestLargeGroup(t *testing.T) {
	for _, version := range []int{3, 5} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			b := &fakeBroker{}
			o := Options{Address: startFake(t, b), Profile: IM, Version: version, Receivers: 3, Members: 5_600, QoS: 1, Rate: 500,
				Duration: 200 * time.Millisecond, Run: "5", Settle: 5 * time.Second}
			r := mustRun(t, FanOut, o)
			if r.Err() != nil || r.Large == nil || r.Delivered == 0 || r.Complete.Count*3 != r.Latency.Count {
				t.Fatalf("got %v (%v), %d delivered, %+v", r.Err(), r.ErrorSamples, r.Delivered, r.Complete)
			}
			l := r.Large
			if l.Created <= 0 || l.Listed <= 0 || l.Pages != 12 || l.LongPage <= 0 || l.Before.Count == 0 || l.During.Count == 0 {
				t.Errorf("got %+v", l)
			}
			if len(l.Missed) != 2 || l.Missed[0].Messages != 10 || l.Missed[1].Messages != 1000 ||
				l.Missed[0].Time.Count != membersAway || l.Missed[1].Time.Count != membersAway {
				t.Errorf("got %+v, want %d members back after 10 and after 1000 messages", l.Missed, membersAway)
			}
			b.gone()
			o = o.Defaults()
			g := b.groups[o.group(0)]
			if !g.large || len(g.members) != 5_600 || b.named != namesAtOnce {
				t.Errorf("got large %v, %d members, %d named at once", g.large, len(g.members), b.named)
			}
			for _, user := range []string{o.receiver(2), o.away(0), o.away(membersAway - 1)} {
				i := slices.Index(g.members, user)
				got, want := b.acked[user+" g/"+o.group(0)], uint64(len(g.log))
				if i < 0 || strings.Contains(user, "-a-") && got != want || got == 0 {
					t.Errorf("%s, member %d, acknowledged up to %d of %d", user, i, got, want)
				}
			}
			var text bytes.Buffer
			if err := r.Write(&text); err != nil || !strings.Contains(text.String(), "back after 1000 messages") ||
				!strings.Contains(text.String(), "5,600 members") {
				t.Errorf("got %v and\n%s", err, &text)
			}
		})
	}
}

func TestLargeGroupFaults(t *testing.T) {
	base := Options{Profile: IM, Receivers: 1, Members: 30, QoS: 1, Rate: 100, Count: 5, Duration: 50 * time.Millisecond,
		Run: "5", Settle: time.Second}
	t.Run("list", func(t *testing.T) {
		t.Parallel()
		o := base
		o.Address = startFake(t, &fakeBroker{fakeIM: fakeIM{forgetful: true}})
		if _, err := FanOut(t.Context(), o); err == nil || !strings.Contains(err.Error(), "got 29 members, want 30") {
			t.Errorf("got %v, want a complaint of the member that was not listed", err)
		}
	})
	t.Run("exists", func(t *testing.T) {
		t.Parallel()
		b := &fakeBroker{}
		o := base
		o.Address = startFake(t, b)
		d := o.Defaults()
		b.mu.Lock()
		b.groups[d.group(0)] = &fakeGroup{}
		b.mu.Unlock()
		if _, err := FanOut(t.Context(), o); err == nil || !strings.Contains(err.Error(), "exists") {
			t.Errorf("got %v, want the refusal", err)
		}
	})
	t.Run("missed", func(t *testing.T) {
		t.Parallel()
		b := &fakeBroker{}
		damage := damageNth(0)
		b.deliver = func(_ int, p []byte) [][]byte {
			// The tenth of the messages that are missed: of stream 1.
			if h, ok := getHeader(p); ok && h.stream == 1 && h.number == 9 && h.run == 5 {
				return damage(0, p)
			}
			return [][]byte{p}
		}
		o := base
		o.Address, o.Members, o.Size = startFake(t, b), 4, 100
		r := mustRun(t, FanOut, o)
		if r.Damaged != 2 || len(r.Large.Missed) != 2 || r.Lost != 0 {
			t.Errorf("got %d damaged, %d lost, %+v, want what two members who came back got", r.Damaged, r.Lost, r.Large.Missed)
		}
	})
}

func TestConversations(t *testing.T) {
	b := &fakeBroker{}
	o := Options{Address: startFake(t, b), Talks: 121, Run: "5", Concurrency: 10, Phase: "fill"}
	r := mustRun(t, Conversations, o)
	if r.Conversations.Setup <= 0 || r.Conversations.Page.Count != 0 {
		t.Errorf("fill: got %+v", r.Conversations)
	}
	o.Phase, o.Version = "ask", 5
	r = mustRun(t, Conversations, o)
	c := r.Conversations
	if r.Err() != nil || c.Setup != 0 || c.First <= 0 || c.Page.Count != talkAsks || c.Whole <= 0 || c.Unread != 121*talkMessages {
		t.Errorf("ask: got %v, %+v", r.Err(), c)
	}
	var text bytes.Buffer
	if err := r.Write(&text); err != nil || !strings.Contains(text.String(), "363 unread") {
		t.Errorf("got %v and\n%s", err, &text)
	}
	b.mu.Lock()
	b.forgetful = true
	b.talks["bench-5-r-0"]["u/bench-5-m-0"] += 100 // the number of unread messages does not tell
	b.mu.Unlock()
	if _, err := Conversations(t.Context(), o); err == nil || !strings.Contains(err.Error(), "got 120 conversations") {
		t.Errorf("a list with one left out: got %v", err)
	}
	for _, bad := range []Options{{Phase: "drain", Run: "5"}, {Phase: "fill"}, {Talks: -1}} {
		bad.Address = o.Address
		if _, err := Conversations(t.Context(), bad); err == nil {
			t.Errorf("%+v: got no error", bad)
		}
	}
	if _, err := Drain(t.Context(), Options{Phase: "ask", Run: "5", QoS: 1}); err == nil {
		t.Error("a drain has no phase ask: got no error")
	}
}

// A receiver acknowledges its inbox and every large group in places of their own, as far as packet ids go.
func TestAcksByPlace(t *testing.T) {
	o := Options{Profile: IM}.Defaults()
	r := newReceiver(&link{version: v311}, &o, 0, 1, new(atomic.Int64))
	r.ackFree = []uint16{2, 1}
	for _, m := range []string{`{"seq":7,"conv":"u/a","cseq":3}`, `{"conv":"g/a","cseq":5}`, `{"conv":"g/b","cseq":9}`,
		`{"conv":"g/a","cseq":4}`, `{"seq":8,"conv":"g/a","cseq":1}`} {
		r.noteSeq([]byte(m))
	}
	if r.waiting != 5 || r.acknowledged() {
		t.Errorf("got %d waiting, acknowledged %v", r.waiting, r.acknowledged())
	}
	said := func() (all []string) {
		r.appendAcks()
		for rd := readerOf(bytes.NewReader(r.out)); ; {
			pk, err := rd.wait()
			if err != nil {
				break
			}
			m, err := parsePublish(v311, pk)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, string(m.payload))
		}
		r.out = nil
		return all
	}
	if got := said(); !slices.Equal(got, []string{`{"seq":8}`, `{"conv":"g/a","cseq":5}`}) || r.waiting == 0 || r.acknowledged() {
		t.Errorf("with two ids: got %q, %d waiting", got, r.waiting)
	}
	r.ackFree = []uint16{1}
	if got := said(); !slices.Equal(got, []string{`{"conv":"g/b","cseq":9}`}) || r.waiting != 0 || r.acknowledged() {
		t.Errorf("with one more: got %q, %d waiting", got, r.waiting)
	}
	if r.ackFree = make([]uint16, ackWindow); !r.acknowledged() || said() != nil {
		t.Error("all is acknowledged, and there is nothing left to say")
	}
}

func TestSubackIsTheWorst(t *testing.T) {
	for _, c := range []struct {
		version byte
		body    string
		want    byte
	}{
		{v311, "\x00\x01\x80\x01", 0x80}, {v311, "\x00\x01\x01", 1}, {v5, "\x00\x01\x00\x87\x00", 0x87},
		{v5, "\x00\x01\x03\x1f\xff\xff\x01", 1}, // a property
	} {
		if _, got, err := subackReason(c.version, packet{kind: typeSuback, body: []byte(c.body)}); err != nil || got != c.want {
			t.Errorf("%q: got 0x%02x, %v, want 0x%02x", c.body, got, err, c.want)
		}
	}
	for _, body := range []string{"", "\x00\x01", "\x00\x01\x00", "\x00\x01\x05\x00"} {
		if _, _, err := subackReason(v5, packet{kind: typeSuback, body: []byte(body)}); err == nil {
			t.Errorf("%q: got no error", body)
		}
	}
}
