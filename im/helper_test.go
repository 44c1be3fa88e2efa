package im

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/pebble"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// delivery is a message as a link got it.
type delivery struct {
	seq, cseq uint64
	place     uint64 // set by modelLink
	id        int64
	conv      store.Conv
	from      string
	body      string
	attempt   int
	recalled  bool
	profile   Profile
	at        time.Time
}

// reply is an answer to a command, parsed.
type reply struct {
	Rid    string
	OK     bool
	Cid    string
	Data   json.RawMessage
	Cursor string
	Error  struct{ Code, Message string }

	err *Error
}

// sent is the data of the reply to send.
type sent struct {
	ID, Cid, Conv, State string
	Cseq                 uint64
	TS                   int64
	Dup                  bool
}

// note is a notification.
type note struct {
	Channel    Channel `json:"-"`
	Type       string
	State      string
	Conv       string
	Cseq       uint64
	By, From   string
	User       string
	Online     bool
	Cseqs      []uint64
	Device     string
	To         uint64
	RangeStart uint64 `json:"-"`
	raw        string
}

// fakeLink is a connected device that records what it gets. The peer of a real link takes messages by itself; this one
// does where auto is set, at the next Kick.
type fakeLink struct {
	mu      sync.Mutex
	dev     *Device
	auto    bool // take what is delivered
	ack     bool // and acknowledge it by seq, as an application does
	room    int  // messages that may be delivered; < 0: any number
	deaf    bool // no room for notifications
	refused bool
	got     []delivery
	untaken []uint64
	answers map[Ticket][]reply
	bad     []string // what breaks the contract of Link
	notes   []note
	closed  []CloseReason
	next    Ticket

	onNotify func() // called first of all; set before anything is notified
}

func newLink() *fakeLink { return &fakeLink{room: -1, auto: true, answers: map[Ticket][]reply{}} }

func (l *fakeLink) Deliver(e store.Entry, place uint64, p Profile, attempt int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p == None {
		l.bad = append(l.bad, fmt.Sprintf("seq %d delivered to a device that does not read", e.Seq))
	}
	if l.room == 0 {
		l.refused = true
		return false
	}
	if l.room > 0 {
		l.room--
	}
	l.got = append(l.got, delivery{
		seq: e.Seq, cseq: e.Cseq, id: e.ID, conv: e.Conv, from: e.From, body: string(e.Body), attempt: attempt,
		recalled: e.Recalled, profile: p, at: time.Now(),
	})
	l.untaken = append(l.untaken, place)
	return true
}

func (l *fakeLink) Answer(t Ticket, b []byte, err *Error) {
	r := reply{err: err}
	l.mu.Lock()
	defer l.mu.Unlock()
	if b != nil {
		if jerr := json.Unmarshal(b, &r); jerr != nil {
			l.bad = append(l.bad, fmt.Sprintf("reply is no JSON: %v: %s", jerr, b))
		}
		if r.OK != (err == nil) {
			l.bad = append(l.bad, fmt.Sprintf("reply says %v, Answer says %v", r.OK, err))
		}
	}
	l.answers[t] = append(l.answers[t], r)
}

func (l *fakeLink) Notify(c Channel, payload []byte) bool {
	if l.onNotify != nil {
		l.onNotify()
	}
	n := note{Channel: c, raw: string(payload)}
	var fields map[string]any
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := json.Unmarshal(payload, &fields); err != nil {
		l.bad = append(l.bad, fmt.Sprintf("notification is no JSON: %v: %s", err, payload))
	}
	_, typing := fields["state"].(string)
	if !typing {
		delete(fields, "state")
	}
	if v, ok := fields["from"].(float64); ok { // inbox.trimmed: a number
		n.RangeStart = uint64(v)
		delete(fields, "from")
	}
	b, _ := json.Marshal(fields)
	if err := json.Unmarshal(b, &n); err != nil {
		l.bad = append(l.bad, fmt.Sprintf("notification: %v: %s", err, payload))
	}
	if l.deaf {
		return false
	}
	l.notes = append(l.notes, n)
	return true
}

func (l *fakeLink) Kick() {
	l.mu.Lock()
	var taken []uint64
	if l.auto {
		taken, l.untaken = l.untaken, nil
	}
	ack, dev := l.ack, l.dev
	l.mu.Unlock()
	for _, seq := range taken {
		dev.Taken(seq)
	}
	if ack && len(taken) > 0 {
		dev.Command("ack", fmt.Appendf(nil, `{"seq":%d}`, slices.Max(taken)), 0, nil)
	}
}

func (l *fakeLink) Close(r CloseReason) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = append(l.closed, r)
}

// setRoom changes the room and, as a link does, tells the engine where it had been refused.
func (l *fakeLink) setRoom(n int) {
	l.mu.Lock()
	was := l.refused
	l.room = n
	if n != 0 {
		l.refused = false
	}
	l.mu.Unlock()
	if was && n != 0 {
		l.dev.Ready()
	}
}

func (l *fakeLink) deliveries() []delivery {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.got)
}

// seqs lists the seq of first deliveries, in the order of arrival.
func (l *fakeLink) seqs() []uint64 {
	var list []uint64
	for _, d := range l.deliveries() {
		if d.attempt == 0 {
			list = append(list, d.seq)
		}
	}
	return list
}

func (l *fakeLink) bodies() []string {
	var list []string
	for _, d := range l.deliveries() {
		list = append(list, d.body)
	}
	return list
}

func (l *fakeLink) closes() []CloseReason {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.closed)
}

// notesOf lists notifications on a channel; kind is their type, or for receipts their state; "" means any.
func (l *fakeLink) notesOf(c Channel, kind string) []note {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []note
	for _, n := range l.notes {
		if n.Channel == c && (kind == "" || kind == cmp.Or(n.Type, n.State)) {
			list = append(list, n)
		}
	}
	return list
}

func (l *fakeLink) ticket() Ticket {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	return l.next
}

func (l *fakeLink) answersTo(t Ticket) []reply {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.answers[t])
}

// faultStore is a store whose calls can be made to fail or wait.
type faultStore struct {
	store.Store
	mu       sync.Mutex
	onCommit func(b *store.Batch, commit func() error) error // nil: commits
	onRead   func(user string, after uint64) error           // before ReadInbox
	afterGot func(user string, after uint64)                 // between ReadInbox and its return
	onInbox  func(user string) error                         // before Inbox
	trim     func(user string) uint64                        // entries up to it are gone
	onStream func(k store.DeviceKey)                         // between Streams and its return
	onPage   func(ctx context.Context, call string)          // before History, ListConversations, Members and Memberships
	healthy  error
}

func (s *faultStore) Streams(ctx context.Context, k store.DeviceKey) ([]store.Stream, error) {
	list, err := s.Store.Streams(ctx, k)
	s.mu.Lock()
	f := s.onStream
	s.mu.Unlock()
	if f != nil {
		f(k)
	}
	return list, err
}

func (s *faultStore) Commit(ctx context.Context, b *store.Batch) error {
	s.mu.Lock()
	f := s.onCommit
	s.mu.Unlock()
	if f == nil {
		return s.Store.Commit(ctx, b)
	}
	return f(b, func() error { return s.Store.Commit(ctx, b) })
}

func (s *faultStore) ReadInbox(ctx context.Context, user string, after uint64, limit int, dst []store.Entry) ([]store.Entry, error) {
	s.mu.Lock()
	f, g, trim := s.onRead, s.afterGot, s.trim
	s.mu.Unlock()
	if trim != nil {
		after = max(after, trim(user))
	}
	if f != nil {
		if err := f(user, after); err != nil {
			return dst, err
		}
	}
	page, err := s.Store.ReadInbox(ctx, user, after, limit, dst)
	if g != nil {
		g(user, after)
	}
	return page, err
}

func (s *faultStore) Inbox(ctx context.Context, user string) (store.Inbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.onInbox != nil {
		if err := s.onInbox(user); err != nil {
			return store.Inbox{}, err
		}
	}
	box, err := s.Store.Inbox(ctx, user)
	if s.trim != nil {
		box.Trimmed = max(box.Trimmed, s.trim(user))
	}
	return box, err
}

func (s *faultStore) Healthy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.healthy != nil {
		return s.healthy
	}
	return s.Store.Healthy()
}

func (s *faultStore) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// world is an engine on a store in memory.
type world struct {
	t     testing.TB
	st    *faultStore
	e     *Engine
	links []*fakeLink
}

func openStore(t testing.TB, fs vfs.FS, r store.Retention, ids store.IDs) *pebble.Store {
	t.Helper()
	st, err := pebble.Open(pebble.Options{Path: "data", FS: fs, Retention: r, IDs: ids, Logger: quiet, MinFree: 1})
	if err != nil {
		t.Fatalf("open the store: %v", err)
	}
	return st
}

func newWorld(t testing.TB, cfg Config, r store.Retention) *world {
	t.Helper()
	w := &world{t: t, st: &faultStore{Store: openStore(t, vfs.NewMem(), r, nil)}}
	if cfg.Log == nil {
		cfg.Log = quiet
	}
	w.e = New(w.st, cfg)
	t.Cleanup(func() {
		if err := w.e.Close(context.Background()); err != nil {
			t.Errorf("close the engine: %v", err)
		}
		if err := w.st.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
		for _, l := range w.links {
			for _, s := range l.bad {
				t.Errorf("device %s/%s: %s", l.dev.User(), l.dev.ID(), s)
			}
			for tk, a := range l.answers {
				if len(a) > 1 && tk != 0 {
					t.Errorf("device %s/%s: ticket %d answered %d times", l.dev.User(), l.dev.ID(), tk, len(a))
				}
			}
		}
	})
	return w
}

// bubble runs f in virtual time with a world.
func bubble(t *testing.T, cfg Config, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newWorld(t, cfg, store.Retention{})) })
}

const everything = Replies | Receipts | Events

var persistent = Session{Persistent: true}

// connect connects a device that reads in the profile p and listens to everything.
func (w *world) connect(user, device string, s Session, p Profile) *fakeLink {
	w.t.Helper()
	l := newLink()
	w.attach(l, user, device, s)
	l.dev.SetProfile(p, everything)
	return l
}

// attach connects a device that gets nothing yet.
func (w *world) attach(l *fakeLink, user, device string, s Session) {
	w.t.Helper()
	d, err := w.e.Connect(context.Background(), user, device, s, l)
	if err != nil {
		w.t.Fatalf("connect %s/%s: %v", user, device, err)
	}
	l.dev = d
	w.links = append(w.links, l)
}

// start runs a command and returns its ticket.
func (l *fakeLink) start(name, payload string, args ...any) Ticket {
	t := l.ticket()
	l.dev.Command(name, fmt.Appendf(nil, payload, args...), t, nil)
	return t
}

// run runs a command in a bubble and returns the one answer to it.
func (w *world) run(l *fakeLink, name, payload string, args ...any) reply {
	w.t.Helper()
	return w.answer(l, l.start(name, payload, args...))
}

func (w *world) answer(l *fakeLink, t Ticket) reply {
	w.t.Helper()
	synctest.Wait()
	got := l.answersTo(t)
	if len(got) != 1 {
		w.t.Fatalf("%s/%s: got %d answers to ticket %d, want 1", l.dev.User(), l.dev.ID(), len(got), t)
	}
	return got[0]
}

// ok runs a command that must succeed and decodes its data into to, unless nil.
func (w *world) ok(l *fakeLink, to any, name, payload string, args ...any) {
	w.t.Helper()
	r := w.run(l, name, payload, args...)
	if r.err != nil {
		w.t.Fatalf("%s %s: %v", name, fmt.Sprintf(payload, args...), r.err)
	}
	if to != nil {
		if err := json.Unmarshal(r.Data, to); err != nil {
			w.t.Fatalf("%s: data %s: %v", name, r.Data, err)
		}
	}
}

// refused runs a command that must be refused with the code.
func (w *world) refused(code Code, l *fakeLink, name, payload string, args ...any) reply {
	w.t.Helper()
	r := w.run(l, name, payload, args...)
	if r.err == nil || r.err.Code != code {
		w.t.Fatalf("%s %s: got %v, want %s", name, fmt.Sprintf(payload, args...), r.err, code)
	}
	return r
}

// send sends a text and returns the data of the reply.
func (w *world) send(l *fakeLink, to, body string) (s sent) {
	w.t.Helper()
	w.ok(l, &s, "send", `{"rid":"s","to":"u/%s","body":%q}`, to, body)
	return s
}

// sendMany sends texts named by their number, first to last.
func (w *world) sendMany(l *fakeLink, to string, first, last int) {
	w.t.Helper()
	for i := first; i <= last; i++ {
		w.send(l, to, fmt.Sprint(i))
	}
}

func wantSeqs(t testing.TB, l *fakeLink, want ...uint64) {
	t.Helper()
	if got := l.seqs(); !slices.Equal(got, want) {
		t.Fatalf("%s/%s: got seqs %v, want %v", l.dev.User(), l.dev.ID(), got, want)
	}
}

// span is the numbers from a to b.
func span(a, b uint64) (list []uint64) {
	for ; a <= b; a++ {
		list = append(list, a)
	}
	return list
}

// place is where a connected device stands.
func (l *fakeLink) place() (cursor, next uint64, window int) {
	u := l.dev.u
	u.mu.Lock()
	defer u.mu.Unlock()
	return l.dev.inbox.cursor, l.dev.inbox.next, l.dev.inbox.win.len()
}

func wantCursor(t testing.TB, l *fakeLink, want uint64) {
	t.Helper()
	if got, _, _ := l.place(); got != want {
		t.Fatalf("%s/%s: cursor is %d, want %d", l.dev.User(), l.dev.ID(), got, want)
	}
}

func unmarshal(t testing.TB, b []byte, to any) {
	t.Helper()
	if err := json.Unmarshal(b, to); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
}
