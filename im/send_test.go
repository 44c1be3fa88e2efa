package im

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mqim/mqim/store"
)

// TestSendTwice: the same cid is the same message, in one batch or later, also for another device of the sender.
func TestSendTwice(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, a2 := w.connect("alice", "a", persistent, IM), w.connect("alice", "a2", persistent, IM)
		b := w.connect("bob", "b", persistent, IM)
		const msg = `{"rid":"1","to":"u/bob","cid":"c1","body":"hi"}`
		release := w.hold()
		a.start("send", `{"to":"u/bob","body":"plug"}`) // the committer waits with it: the next two are one batch
		synctest.Wait()
		first, second := a.start("send", msg), a.start("send", msg)
		release()
		r1, r2 := w.answer(a, first), w.answer(a, second)
		s1, s2 := parseSent(t, r1), parseSent(t, r2)
		if s1.Dup || !s2.Dup || s1.ID != s2.ID || s1.Cseq != s2.Cseq || s1.TS != s2.TS || r2.Cid != "c1" {
			t.Fatalf("got %+v and %+v, want the same message, the second as dup", s1, s2)
		}
		w.ok(b, nil, "ack", `{"seq":2}`)
		var s3 sent
		w.ok(a2, &s3, "send", "%s", msg)
		if !s3.Dup || s3.ID != s1.ID || s3.State != "delivered" {
			t.Errorf("later: got %+v, want a dup that has been delivered", s3)
		}
		w.refused(Conflict, a, "send", `{"to":"u/bob","cid":"c1","body":"other"}`)
		w.refused(Conflict, a, "send", `{"to":"u/carol","cid":"c1","body":"hi"}`)
		if got := b.bodies(); !slices.Equal(got, []string{"plug", "hi"}) {
			t.Errorf("bob got %q", got)
		}
		for range 3 { // nobody is told again of what is there already
			w.ok(a, nil, "send", `{"to":"u/carol","cid":"c2","body":"hi"}`)
			synctest.Wait()
		}
		if rc := a.notesOf(Receipts, "queued"); len(rc) != 1 {
			t.Errorf("got receipts %+v, want one that it is queued", rc)
		}
	})
}

func parseSent(t *testing.T, r reply) (s sent) {
	t.Helper()
	if r.err != nil {
		t.Fatalf("refused: %v", r.err)
	}
	unmarshal(t, r.Data, &s)
	return s
}

// hold keeps the committer in its next Commit until the function returned is called.
func (w *world) hold() (release func()) {
	gate := make(chan struct{})
	w.st.set(func() {
		w.st.onCommit = func(b *store.Batch, commit func() error) error {
			if !b.Lazy {
				<-gate
			}
			return commit()
		}
	})
	return func() { close(gate) }
}

// TestPublish: bodies of any bytes, and what MQTT 5 may say of them.
func TestPublish(t *testing.T) {
	bubble(t, Config{MessageBytes: 10}, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, Plain)
		body := []byte("hi\xff")
		tk := a.ticket()
		a.dev.Publish("u/bob", Outgoing{Body: body, Cid: "c", ContentType: "x/y", CTS: 7}, tk)
		body[0] = 'X' // the body was copied
		if s := parseSent(t, w.answer(a, tk)); s.Cid != "c" || s.Conv != "u/bob" {
			t.Errorf("got %+v", s)
		}
		if got := b.bodies(); !slices.Equal(got, []string{"hi\xff"}) {
			t.Errorf("got bodies %q", got)
		}
		m, err := w.st.Message(t.Context(), store.Direct("alice", "bob"), 1)
		if err != nil || m.Type != "bytes" || m.Encoding != store.Bytes || m.ContentType != "x/y" || m.CTS != 7 {
			t.Errorf("stored %+v, %v", m, err)
		}
		for code, o := range map[Code]struct {
			addr string
			o    Outgoing
		}{
			TooLarge:   {"u/bob", Outgoing{Body: make([]byte, 11)}},
			BadRequest: {"bob", Outgoing{}},
			NotFound:   {"g/team", Outgoing{}},
			Expired:    {"u/bob", Outgoing{CTS: 1, TTL: 5}},
		} {
			tk := a.ticket()
			a.dev.Publish(o.addr, o.o, tk)
			if r := w.answer(a, tk); r.err == nil || r.err.Code != code {
				t.Errorf("%s: got %v, want %s", o.addr, r.err, code)
			}
		}
	})
}

// TestSendRefused: what is wrong is refused to the sender's face.
func TestSendRefused(t *testing.T) {
	bubble(t, Config{CommandBytes: 400, MessageBytes: 100}, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		for _, c := range []struct {
			code    Code
			payload string
		}{
			{BadRequest, `{"to":"u/bob"}`},
			{BadRequest, `{"body":1}`},
			{BadRequest, `{"to":"u/bob","body":1,"cid":""}`},
			{BadRequest, `{"to":"u/bob","body":1,"cid":"` + strings.Repeat("x", 65) + `"}`},
			{BadRequest, `{"to":"u/bob","body":1,"type":"` + strings.Repeat("x", 65) + `"}`},
			{BadRequest, `{"to":"u/bob","body":1,"ttl":0}`},
			{BadRequest, `{"to":"u/bob","body":1,"ttl":1.5}`},
			{BadRequest, `{"to":"u/-bob","body":1}`},
			{BadRequest, `{"to":"u/bob","body":1,"rid":"` + strings.Repeat("x", 65) + `"}`},
			{BadRequest, `{"to":"u/bob","body":`},
			{BadRequest, `[]`},
			{BadRequest, "{\"to\":\"\xff\"}"},
			{NotFound, `{"to":"g/bob","body":1}`},
			{TooLarge, `{"to":"u/bob","body":"` + strings.Repeat("x", 101) + `"}`},
			{TooLarge, `{"to":"u/bob","body":"` + strings.Repeat("x", 400) + `"}`},
			{Expired, `{"to":"u/bob","body":1,"ttl":5,"cts":1000}`},
		} {
			w.refused(c.code, a, "send", "%s", c.payload)
		}
		w.refused(UnknownCommand, a, "sned", `{}`)
		w.refused(UnknownCommand, a, "group.destroy", `{"group":"x"}`)
		w.refused(Forbidden, a, "send", `{"to":"u/bob","type":"sys.group","body":1}`)
		if r := w.refused(BadRequest, a, "send", `{"rid":"7","cid":"c","to":"u/bob"}`); r.Rid != "7" || r.Cid != "c" {
			t.Errorf("got %+v, want rid and cid echoed", r)
		}
	})
}

// TestRateLimit: over the limit sends are refused, not queued; the limit is the user's, not the device's.
func TestRateLimit(t *testing.T) {
	bubble(t, Config{SendsPerSecond: 1, SendBurst: 3}, func(t *testing.T, w *world) {
		a, a2 := w.connect("alice", "a", persistent, IM), w.connect("alice", "a2", persistent, IM)
		b := w.connect("bob", "b", persistent, IM)
		w.sendMany(a, "bob", 1, 2)
		w.send(a2, "bob", "3")
		w.refused(RateLimited, a, "send", `{"to":"u/bob","body":"4"}`)
		w.refused(RateLimited, a2, "send", `{"to":"u/bob","body":"4"}`)
		w.send(b, "alice", "another user")
		time.Sleep(time.Second)
		w.send(a, "bob", "4")
		w.e.Reconfigure(Config{})
		w.sendMany(a, "bob", 5, 20)
	})
}

// TestQueueFull: a full queue makes the sender wait; nothing is refused or lost.
func TestQueueFull(t *testing.T) {
	for name, cfg := range map[string]Config{"messages": {QueueMessages: 3}, "bytes": {QueueBytes: 3 * (1 + pendingBytes)}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, cfg, func(t *testing.T, w *world) {
				a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
				release := w.hold()
				a.start("send", `{"to":"u/bob","body":"0"}`) // the committer has it
				synctest.Wait()
				var accepted atomic.Int32
				go func() {
					for i := 1; i <= 8; i++ {
						a.start("send", `{"to":"u/bob","body":"%d"}`, i)
						accepted.Add(1)
					}
				}()
				synctest.Wait()
				if n := accepted.Load(); n != 3 {
					t.Errorf("%d accepted into a queue of 3", n)
				}
				release()
				synctest.Wait()
				if n := accepted.Load(); n != 8 {
					t.Errorf("%d accepted after there was room, want 8", n)
				}
				wantSeqs(t, b, span(1, 9)...)
			})
		})
	}
}

// TestClose: everything accepted is committed and answered, whoever waits for room is refused.
func TestClose(t *testing.T) {
	bubble(t, Config{QueueMessages: 2}, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		release := w.hold()
		var tickets []Ticket
		for i := range 3 {
			tickets = append(tickets, a.start("send", `{"to":"u/bob","body":"%d"}`, i))
			synctest.Wait()
		}
		late := a.ticket()
		go a.dev.Command("send", []byte(`{"to":"u/bob","body":"late"}`), late, nil)
		drained := make(chan error)
		synctest.Wait()
		closed := make(chan error)
		go func() { closed <- w.e.Close(context.Background()) }()
		synctest.Wait()
		if r := w.answer(a, late); r.err == nil || r.err.Code != Unavailable {
			t.Errorf("who waits for room while the engine is closed: got %v, want unavailable", r.err)
		}
		go func() { drained <- w.e.Drain(context.Background()) }()
		release()
		if err := <-closed; err != nil {
			t.Errorf("Close: %v", err)
		}
		<-drained
		for i, tk := range tickets {
			if s := parseSent(t, w.answer(a, tk)); s.Cseq != uint64(i+1) {
				t.Errorf("message %d: cseq %d", i, s.Cseq)
			}
		}
		if err := w.e.Close(context.Background()); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

// TestDrain waits for what was accepted before, and for no longer than it is told.
func TestDrain(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		release := w.hold()
		tk := a.start("send", `{"to":"u/bob","body":"1"}`)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := w.e.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("while a commit hangs: %v, want a deadline", err)
		}
		release()
		if err := w.e.Drain(context.Background()); err != nil {
			t.Error(err)
		}
		if n := len(a.answersTo(tk)); n != 1 {
			t.Errorf("drained, but %d answers", n)
		}
	})
}

// TestAnswerAfterCommit: nobody hears of a message, neither its sender nor a device, before it is durable (I1, I9).
func TestAnswerAfterCommit(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		release := w.hold()
		send := a.start("send", `{"to":"u/bob","body":"1"}`)
		time.Sleep(time.Minute)
		if n := len(a.answersTo(send)); n != 0 || len(b.deliveries()) != 0 || len(a.notesOf(Receipts, "")) != 0 {
			t.Fatalf("before the commit: %d answers, deliveries %+v", n, b.deliveries())
		}
		release()
		w.answer(a, send)
		wantSeqs(t, b, 1)
	})
}

// TestStoreErrors: what the client is told when the store cannot commit.
func TestStoreErrors(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.send(a, "bob", "0")
		var fail error
		w.st.set(func() {
			w.st.onCommit = func(b *store.Batch, commit func() error) error {
				if !b.Lazy && fail != nil {
					for _, s := range b.Sends { // a driver may fail after it has given numbers
						s.Cseq, s.Inboxes[0].Seq = 2, 2
					}
					return fmt.Errorf("injected: %w", fail)
				}
				return commit()
			}
		})
		commands := map[string]string{
			"send": `{"to":"u/bob","body":"x"}`, "read": `{"conv":"u/bob","cseq":1}`, "recall": `{"conv":"u/bob","cseq":1}`,
			"delete": `{"conv":"u/bob","cseqs":[1]}`, "block.add": `{"user":"eve"}`,
		}
		defer func() {
			if rc := a.notesOf(Receipts, "queued"); len(rc) != 0 {
				t.Errorf("receipts %+v for what was not stored", rc)
			}
		}()
		for _, c := range []struct {
			err  error
			code Code
		}{{store.ErrUnavailable, Unavailable}, {errors.New("other"), Internal}} {
			fail = c.err
			for name, payload := range commands {
				w.refused(c.code, a, name, "%s", payload)
			}
			w.refused(c.code, a, "send", `{"to":"u/carol","body":"x"}`)
		}
		fail = store.ErrUnknownOutcome
		for name, payload := range commands {
			before := len(a.closes())
			tk := a.start(name, "%s", payload)
			synctest.Wait()
			if n := len(a.answersTo(tk)); n != 0 {
				t.Errorf("%s: %d answers although the outcome is unknown", name, n)
			}
			if got := a.closes(); len(got) != before+1 || got[before] != CloseStore {
				t.Errorf("%s: closes %v, want one more for the store", name, got)
			}
		}
		wantSeqs(t, b, 1)

		w.st.set(func() { w.st.healthy = store.ErrUnavailable })
		for name, payload := range commands {
			w.refused(Unavailable, a, name, "%s", payload)
		}
		if w.e.Healthy() == nil {
			t.Error("healthy with a store that is not")
		}
	})
}

// TestPipelinedOrder: messages of one device to one conversation keep their order, and so do the answers.
func TestPipelinedOrder(t *testing.T) {
	bubble(t, Config{QueueMessages: 7}, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, Plain)
		var tickets []Ticket
		for i := range 100 {
			tickets = append(tickets, a.start("send", `{"to":"u/bob","body":"%d"}`, i))
		}
		for i, tk := range tickets {
			if s := parseSent(t, w.answer(a, tk)); s.Cseq != uint64(i+1) {
				t.Fatalf("message %d has cseq %d", i, s.Cseq)
			}
		}
		wantSeqs(t, b, span(1, 100)...)
		for i, d := range b.deliveries() {
			if d.body != fmt.Sprint(i) {
				t.Fatalf("delivery %d is %q", i, d.body)
			}
		}
	})
}
