package im

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/mqim/mqim/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestStress has many goroutines send, acknowledge, connect and go at once, in real time and under the race detector;
// then everybody comes back and must have everything, in order.
func TestStress(t *testing.T) {
	span := 1500 * time.Millisecond
	if os.Getenv("MQIM_TORTURE") != "" {
		span = 30 * time.Second
	}
	ids, err := NewSnowflakes(1)
	if err != nil {
		t.Fatal(err)
	}
	st := openStore(t, vfs.NewMem(), store.Retention{}, ids)
	e := New(st, Config{Window: 8, QueueMessages: 64, AckTimeout: 300 * time.Millisecond, MaxAttempts: 3,
		FlushInterval: 5 * time.Millisecond, PresenceGrace: time.Millisecond, Log: quiet})
	const users = 6
	name := func(i int) string { return fmt.Sprint("u", i) }
	var stop atomic.Bool
	var wg sync.WaitGroup
	var answered, sent atomic.Int64
	connect := func(user, device string, l *fakeLink, p Profile) bool {
		d, err := e.Connect(context.Background(), user, device, persistent, l)
		if err != nil {
			t.Errorf("connect: %v", err)
			return false
		}
		l.mu.Lock()
		l.dev = d
		l.mu.Unlock()
		d.SetProfile(p, everything)
		return true
	}
	// Each user has a device that stays and sends, and one that comes and goes.
	var senders [users]*fakeLink
	for i := range users {
		l := newLink()
		l.ack = true
		senders[i] = l
		if !connect(name(i), "stays", l, IM) {
			return
		}
		wg.Go(func() {
			for n := 0; !stop.Load(); n++ {
				to := rand.IntN(users)
				l.start("send", `{"to":"u/%s","cid":"%d","body":"%d"}`, name(to), n, n)
				sent.Add(1)
				switch n % 50 {
				case 1:
					l.start("presence.watch", `{"users":["%s"]}`, name(to))
				case 2:
					l.start("conversations", `{"rid":"1"}`)
				case 3:
					l.start("sync", `{"rid":"1"}`)
				case 4:
					l.start("read", `{"conv":"u/%s","cseq":1}`, name(to))
				case 5:
					l.start("device.list", `{"rid":"1"}`)
				case 6:
					e.Reconfigure(Config{Window: 4 + n%8, AckTimeout: 300 * time.Millisecond, MaxAttempts: 3})
				case 7:
					_ = e.Drain(context.Background())
				}
			}
		})
		wg.Go(func() {
			for n := 0; !stop.Load(); n++ {
				l := newLink()
				l.ack = n%3 == 0
				if n%4 == 0 {
					l.room = n % 7
				}
				if !connect(name(i), "goes", l, []Profile{IM, Plain}[n%2]) {
					return
				}
				time.Sleep(time.Duration(rand.IntN(8)) * time.Millisecond)
				l.setRoom(-1)
				l.dev.SetProfile([]Profile{IM, Plain, None}[n%3], everything)
				time.Sleep(time.Duration(rand.IntN(8)) * time.Millisecond)
				l.dev.Disconnect(false)
				inOrder(t, l)
			}
		})
	}
	time.Sleep(span)
	stop.Store(true)
	wg.Wait()
	if err := e.Drain(context.Background()); err != nil {
		t.Error(err)
	}
	for i := range users {
		back := newLink()
		back.ack = true
		if !connect(name(i), "goes", back, IM) {
			return
		}
		box, err := st.Inbox(context.Background(), name(i))
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range []*fakeLink{senders[i], back} {
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
				cursor, _, win := l.place()
				if cursor == box.Head && win == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s/%s stands at %d, window %d; the head is %d", name(i), l.dev.ID(), cursor, win, box.Head)
				}
			}
			inOrder(t, l)
		}
		senders[i].mu.Lock()
		for tk, a := range senders[i].answers {
			if tk != 0 && len(a) != 1 {
				t.Errorf("%s: ticket %d answered %d times", name(i), tk, len(a))
			}
			if tk != 0 {
				answered.Add(int64(len(a)))
			}
		}
		senders[i].mu.Unlock()
	}
	if err := e.Close(context.Background()); err != nil {
		t.Error(err)
	}
	for i := range users {
		for _, device := range []string{"stays", "goes"} {
			box, _ := st.Inbox(context.Background(), name(i))
			d, err := st.Device(context.Background(), store.DeviceKey{User: name(i), Device: device})
			if err != nil || d.Cursor != box.Head {
				t.Errorf("%s/%s: stored %+v, %v; the head is %d", name(i), device, d, err, box.Head)
			}
		}
	}
	if err := st.Close(); err != nil {
		t.Error(err)
	}
	t.Logf("%d sends, %d answers", sent.Load(), answered.Load())
}

// inOrder checks that first deliveries rise.
func inOrder(t *testing.T, l *fakeLink) {
	last := uint64(0)
	for _, seq := range l.seqs() {
		if seq <= last {
			t.Errorf("%s/%s got %d after %d", l.dev.User(), l.dev.ID(), seq, last)
		}
		last = seq
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.bad {
		t.Errorf("%s/%s: %s", l.dev.User(), l.dev.ID(), s)
	}
}
