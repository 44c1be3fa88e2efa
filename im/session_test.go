package im

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqim/mqim/store"
)

// size counts the users that the engine holds in memory.
func (e *Engine) size() (n int) {
	e.users.Range(func(_, _ any) bool { n++; return true })
	return n
}

// failLazy makes writes of cursors fail while the flag is set, and counts those that succeed.
func (w *world) failLazy() (fail *atomic.Bool, written *atomic.Int32) {
	fail, written = &atomic.Bool{}, &atomic.Int32{}
	w.st.set(func() {
		w.st.onCommit = func(b *store.Batch, commit func() error) error {
			if !b.Lazy {
				return commit()
			}
			if fail.Load() {
				return errors.New("injected")
			}
			written.Add(1)
			return commit()
		}
	})
	return fail, written
}

// TestCursors: where a device starts.
func TestCursors(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		w.sendMany(a, "bob", 1, 4)
		b := w.connect("bob", "b", persistent, IM) // never connected: from the first
		synctest.Wait()
		wantSeqs(t, b, 1, 2, 3, 4)
		w.ok(b, nil, "ack", `{"seq":2}`)
		b.dev.Disconnect(false)

		clean := w.connect("bob", "clean", Session{Clean: true}, IM) // at the user's cursor
		synctest.Wait()
		wantSeqs(t, clean, 3, 4)
		w.ok(clean, nil, "ack", `{"seq":4}`)
		for _, flushed := range []bool{false, true} {
			if flushed {
				time.Sleep(time.Second)
			}
			b = w.connect("bob", "b", persistent, IM) // its own
			synctest.Wait()
			wantSeqs(t, b, 3, 4)
			b.dev.Disconnect(false)
		}
		b = w.connect("bob", "b", Session{Clean: true, Persistent: true}, IM) // begun anew
		synctest.Wait()
		wantSeqs(t, b)
		b.dev.Disconnect(true)
		time.Sleep(time.Second)
		if _, err := w.st.Device(t.Context(), store.DeviceKey{User: "bob", Device: "b"}); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the session is over, but: %v", err)
		}
	})
}

// TestExpiry: a session that has expired has no cursor of its own.
func TestExpiry(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		short := Session{Persistent: true, Expiry: time.Minute}
		connect := func(want ...uint64) *fakeLink {
			b := w.connect("bob", "b", short, IM)
			synctest.Wait()
			wantSeqs(t, b, want...)
			return b
		}
		other := w.connect("bob", "other", persistent, Plain)
		b := connect()
		w.send(a, "bob", "1")
		b.dev.Disconnect(false)
		time.Sleep(50 * time.Second)
		b = connect(1)
		b.dev.Disconnect(false)
		time.Sleep(61 * time.Second)
		wantCursor(t, other, 1)
		b = connect()
		b.dev.SetExpiry(time.Hour)
		w.send(a, "bob", "2")
		b.dev.Disconnect(false)
		time.Sleep(5 * time.Minute)
		connect(2)
	})
}

// TestFlush: cursors and watermarks are written within the interval, in one batch however many there are.
func TestFlush(t *testing.T) {
	bubble(t, Config{FlushInterval: time.Second, AckTimeout: time.Hour}, func(t *testing.T, w *world) {
		_, written := w.failLazy()
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.sendMany(a, "bob", 1, 3)
		time.Sleep(2500 * time.Millisecond)
		written.Store(0)
		for i := 1; i <= 3; i++ {
			w.ok(b, nil, "ack", `{"seq":%d}`, i)
		}
		key := store.DeviceKey{User: "bob", Device: "b"}
		time.Sleep(900 * time.Millisecond)
		if d, err := w.st.Device(t.Context(), key); err != nil || d.Cursor != 0 {
			t.Errorf("before the interval: %+v, %v", d, err)
		}
		time.Sleep(200 * time.Millisecond)
		d, err := w.st.Device(t.Context(), key)
		u, uerr := w.st.User(t.Context(), "bob")
		c, cerr := w.st.Conversation(t.Context(), "bob", store.Direct("alice", "bob"))
		if err = errors.Join(err, uerr, cerr); err != nil {
			t.Fatal(err)
		}
		if d.Cursor != 3 || d.Profile != "im" || u.Cursor != 3 || c.Delivered != 3 {
			t.Errorf("flushed: device %+v, user %+v, conversation %+v; want 3 everywhere", d, u, c)
		}
		time.Sleep(5 * time.Second)
		if n := written.Load(); n != 1 {
			t.Errorf("%d writes, want 1", n)
		}
	})
}

// TestFlushRetried: what could not be written is written later; what happened meanwhile stands.
func TestFlushRetried(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		w.sendMany(a, "bob", 1, 3)
		fail, _ := w.failLazy()
		fail.Store(true)
		w.ok(b, nil, "ack", `{"seq":1}`)
		time.Sleep(time.Second)
		w.ok(b, nil, "ack", `{"seq":2}`)
		b.dev.Disconnect(false)
		time.Sleep(time.Second)
		if n := w.e.size(); n != 2 {
			t.Errorf("%d users in memory, want 2: bob's state is not written", n)
		}
		fail.Store(false)
		time.Sleep(15 * time.Second) // failures are tried again at growing intervals
		d, err := w.st.Device(t.Context(), store.DeviceKey{User: "bob", Device: "b"})
		if err != nil || d.Cursor != 2 || d.Profile != "im" {
			t.Errorf("device %+v, %v; want cursor 2", d, err)
		}
		c, err := w.st.Conversation(t.Context(), "alice", store.Direct("alice", "bob"))
		if err != nil || c.PeerDeliv != 2 {
			t.Errorf("conversation %+v, %v; want delivered up to 2", c, err)
		}
		if n := w.e.size(); n != 1 {
			t.Errorf("%d users in memory, want 1", n)
		}
	})
}

// TestFlushFailsWhileResumed: a device whose session had ended connects anew while the write of that end fails. The
// end must not be written over the new session.
func TestFlushFailsWhileResumed(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		b := w.connect("bob", "b", persistent, IM)
		time.Sleep(time.Second)
		gate := make(chan struct{})
		var first atomic.Bool
		w.st.set(func() {
			w.st.onCommit = func(b *store.Batch, commit func() error) error {
				if b.Lazy && !first.Swap(true) {
					<-gate
					return errors.New("injected")
				}
				return commit()
			}
		})
		b.dev.Disconnect(true)
		time.Sleep(time.Second) // the flusher hangs with the end of the session
		time.AfterFunc(time.Second, func() { close(gate) })
		w.connect("bob", "b", persistent, IM)
		time.Sleep(time.Second)
		if _, err := w.st.Device(t.Context(), store.DeviceKey{User: "bob", Device: "b"}); err != nil {
			t.Errorf("the new session: %v", err)
		}
	})
}

// TestFlushDelayed: sessions that are on their way to the store are seen by everybody who asks.
func TestFlushDelayed(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, IM)
		o := w.connect("bob", "o", persistent, IM)
		w.sendMany(a, "bob", 1, 3)
		time.Sleep(time.Second)
		gate := make(chan struct{})
		w.st.set(func() {
			w.st.onCommit = func(b *store.Batch, commit func() error) error {
				if b.Lazy {
					<-gate
				}
				return commit()
			}
		})
		w.ok(b, nil, "ack", `{"seq":2}`)
		b.dev.Disconnect(false)
		o.dev.Disconnect(true)
		time.Sleep(time.Second) // being written
		var list []struct {
			Device string
			Cursor uint64
		}
		c := w.connect("bob", "c", Session{}, None)
		c.dev.SetProfile(None, Replies)
		w.ok(c, &list, "device.list", `{"rid":"1"}`)
		if got := fmt.Sprint(list); got != "[{b 2} {c 2}]" {
			t.Errorf("devices %v", got)
		}
		var convs []struct {
			PeerDelivered uint64 `json:"peer_delivered"`
		}
		w.ok(a, &convs, "conversations", `{"rid":"1"}`)
		if len(convs) != 1 || convs[0].PeerDelivered != 2 {
			t.Errorf("conversations %+v, want delivered up to 2", convs)
		}
		var rc struct{ Delivered, Read int }
		w.ok(a, &rc, "receipts", `{"rid":"1","conv":"u/bob","cseq":2}`)
		if rc.Delivered != 1 || rc.Read != 0 {
			t.Errorf("receipts %+v, want one delivered", rc)
		}
		b = w.connect("bob", "b", persistent, IM)
		synctest.Wait()
		wantSeqs(t, b, 3)
		time.AfterFunc(time.Second, func() { close(gate) })
		o = w.connect("bob", "o", persistent, IM) // its session was over, which is waited for
		synctest.Wait()
		wantSeqs(t, o, 3)
	})
}

// TestLateAck: an acknowledgement that comes after the device has gone, and its user been forgotten, puts nothing back.
func TestLateAck(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a, b := w.connect("alice", "a", persistent, IM), w.connect("bob", "b", persistent, Plain)
		b.auto = false
		w.sendMany(a, "bob", 1, 3)
		synctest.Wait()
		old := b.dev
		old.Disconnect(false)
		time.Sleep(time.Second)
		b = w.connect("bob", "b", persistent, Plain)
		time.Sleep(time.Second)
		wantCursor(t, b, 3)
		old.Taken(1)
		time.Sleep(time.Second)
		if u, err := w.st.User(t.Context(), "bob"); err != nil || u.Cursor != 3 {
			t.Errorf("user %+v, %v; want cursor 3", u, err)
		}
	})
}

// TestReap: a user of whom nothing is going on is not kept in memory; being sent to does not count.
func TestReap(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		for i := range 50 {
			name := fmt.Sprint("user", i)
			l := w.connect(name, "d", Session{Persistent: i%2 == 0}, IM)
			w.send(a, name, "x")
			w.ok(l, nil, "presence.watch", `{"users":["alice"]}`)
			l.dev.Disconnect(false)
			l.dev.Disconnect(false) // a second one does nothing
			w.send(a, fmt.Sprint("never", i), "x")
		}
		time.Sleep(time.Second)
		if n := w.e.size(); n != 1 {
			t.Errorf("%d users in memory, want alice alone", n)
		}
		if n := len(w.e.presence.watched); n != 0 {
			t.Errorf("%d users are watched by nobody", n)
		}
	})
}

// TestLoadFailure: a user whose state cannot be read is refused and not kept half loaded.
func TestLoadFailure(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		a := w.connect("alice", "a", persistent, IM)
		w.sendMany(a, "bob", 1, 2)
		w.st.set(func() { w.st.onInbox = func(string) error { return errors.New("injected") } })
		if _, err := w.e.Connect(t.Context(), "bob", "b", persistent, newLink()); err == nil {
			t.Fatal("connected although the inbox cannot be read")
		}
		if n := w.e.size(); n != 1 {
			t.Errorf("%d users in memory, want 1", n)
		}
		w.st.set(func() { w.st.onInbox = nil })
		b := w.connect("bob", "b", persistent, IM)
		synctest.Wait()
		wantSeqs(t, b, 1, 2)
	})
}

// TestDeviceLimit counts sessions and connected devices.
func TestDeviceLimit(t *testing.T) {
	bubble(t, Config{DevicesPerUser: 2}, func(t *testing.T, w *world) {
		w.connect("bob", "1", persistent, IM).dev.Disconnect(false)
		two := w.connect("bob", "2", Session{}, IM)
		connect := func(id string) error {
			_, err := w.e.Connect(t.Context(), "bob", id, persistent, newLink())
			return err
		}
		var refusal *Error
		if err := connect("3"); !errors.As(err, &refusal) || refusal.Code != RateLimited {
			t.Fatalf("third device: %v", err)
		}
		w.connect("bob", "1", persistent, IM) // a session of old
		two.dev.Disconnect(false)
		w.connect("bob", "3", persistent, IM)
		if err := connect("4"); err == nil {
			t.Fatal("a fourth device was let in")
		}
	})
}

// TestRemoveDevice ends the session and the connection, and tells all devices.
func TestRemoveDevice(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		b1, b2 := w.connect("bob", "1", persistent, IM), w.connect("bob", "2", persistent, IM)
		w.ok(b1, nil, "device.remove", `{"device":"2"}`)
		w.refused(NotFound, b1, "device.remove", `{"device":"3"}`)
		if got := b2.closes(); len(got) != 1 || got[0] != CloseRemoved {
			t.Errorf("closes %v", got)
		}
		for _, l := range []*fakeLink{b1, b2} {
			if ev := l.notesOf(Events, "device.removed"); len(ev) != 1 || ev[0].Device != "2" {
				t.Errorf("%s: events %+v", l.dev.ID(), ev)
			}
		}
		b2.dev.Disconnect(false)
		time.Sleep(time.Second)
		var list []struct{ Device, Profile string }
		w.ok(b1, &list, "device.list", `{"rid":"1"}`)
		if fmt.Sprint(list) != "[{1 im}]" {
			t.Errorf("devices %v", list)
		}
	})
}

// TestNewSessionSurvives: a session that a crash took whole would begin anew at the user's cursor, beyond what the
// device has not seen; so it is durable before the device is told that it has one.
func TestNewSessionSurvives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewCrashableMem()
		peb := openStore(t, fs, store.Retention{}, nil)
		e := New(peb, Config{Log: quiet})
		if _, err := e.Connect(t.Context(), "bob", "b", persistent, newLink()); err != nil {
			t.Fatal(err)
		}
		crashed := fs.CrashClone(vfs.CrashCloneCfg{})
		if err := errors.Join(e.Close(t.Context()), peb.Close()); err != nil {
			t.Fatal(err)
		}
		peb = openStore(t, crashed, store.Retention{}, nil)
		defer peb.Close()
		if d, err := peb.Device(t.Context(), store.DeviceKey{User: "bob", Device: "b"}); err != nil || d.Cursor != 0 {
			t.Errorf("after the crash: %+v, %v", d, err)
		}
	})
}

// TestNewSessionAfterFlush: the end of a session that is being written down takes nothing from the one that begins meanwhile.
func TestNewSessionAfterFlush(t *testing.T) {
	bubble(t, quietly, func(t *testing.T, w *world) {
		b := w.connect("bob", "b", persistent, IM)
		time.Sleep(time.Second)
		release := make(chan struct{})
		w.st.set(func() {
			w.st.onCommit = func(b *store.Batch, commit func() error) error {
				if len(b.Removed) > 0 {
					<-release
				}
				return commit()
			}
		})
		b.dev.Disconnect(true)
		time.Sleep(time.Second) // the flusher is at it
		var began bool
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.attach(newLink(), "bob", "b", persistent)
			began = true
		}()
		synctest.Wait()
		if began {
			t.Error("the session began before the one before had ended")
		}
		close(release)
		<-done
		if d, err := w.st.Device(t.Context(), store.DeviceKey{User: "bob", Device: "b"}); err != nil {
			t.Errorf("the new session: %+v, %v", d, err)
		}
	})
}
