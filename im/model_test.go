package im

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/pebble"
)

// The model test has a few users with a few devices each do whatever comes to mind, on a store that loses what was
// not synced, and then checks what must always hold (check_test.go). A run is determined by its seed but for the
// interleaving of goroutines. MQIM_SEED runs one seed, MQIM_TORTURE=1 runs many.

// model is the clients' side of a run: what they were told, and what they told the server.
type model struct {
	t    testing.TB
	seed uint64
	r    *rand.Rand

	fs  *vfs.MemFS
	peb *pebble.Store
	st  *faultStore
	e   *Engine

	users  []string
	groups []string // none where the run is of users alone
	devs   []*modelDevice

	mu     sync.Mutex     // guards what follows
	life   int            // counts crashes: what comes from an earlier life was never sent
	ends   map[int64]bool // when they were, Unix milliseconds
	events []event
	sends  []*modelSend
	shown  []sight
	told   []sight         // receipts of groups
	asked  map[sight]bool  // messages that user wants deleted; whether that was answered
	recall map[sight]bool  // messages whose recall was answered
	acked  map[mark]uint64 // (user, conv) → highest cseq that a device of user may have acknowledged
	reads  map[mark]uint64 // highest cseq that user asked to be marked as read
	readOK map[mark]uint64 // and was told is
	wrong  []string        // what broke a rule at once
	tally  map[string]int

	between func(*modelLink) // what a process dies in the middle of
}

// modelSmall is Config.GroupSmallMax: groups grow beyond it easily.
const modelSmall = 3

type mark struct {
	user string
	conv store.Conv
}

// event is something that happened to a device, in the order in which it did.
type event struct {
	kind  string // connect, deliver, ackSeq, ack, end
	dev   *modelDevice
	fresh bool // connect: the session is a new one
	plain bool
	d     delivery
	conv  store.Conv            // ackSeq, ack: the large group, "": the inbox
	seq   uint64                // and the number there
	heads map[store.Conv]uint64 // connect: of those, then
}

// sight is a message that a user has been shown, or wants to be rid of.
type sight struct {
	user string
	conv store.Conv
	cseq uint64
}

type modelSend struct {
	from, to, cid, body string // to is an address
	tries               int
	start, end          uint64 // the group's log ended there when it was sent the first time, and when it was answered
	sentAt              int64  // the last time, Unix milliseconds
	refused             Code   // what the last try was answered with
	refusedAt           int64
	ttl                 bool
	answers             []sent
	conflict            bool
	done                bool
}

// modelDevice is a device; link is nil while it is not connected.
type modelDevice struct {
	user, id string
	session  Session
	profile  Profile
	link     *modelLink
	alive    bool // it has a session, as far as it knows
	always   bool // from the beginning to the end
}

// modelLink is one connection.
type modelLink struct {
	m       *model
	life    int
	d       *modelDevice
	dev     *Device
	room    int
	refused bool
	over    bool // closed by the engine
	untaken []delivery
	unacked []delivery
	isAcked map[uint64]bool       // places that are acknowledged
	settled map[uint64]bool       // and the engine has it
	upTo    map[store.Conv]uint64 // large groups are acknowledged so far, and the engine has it
	risen   map[store.Conv]uint64 // highest cseq of the first deliveries
	tickets map[Ticket]func(b []byte, err *Error)
	last    Ticket
}

// live runs f unless the connection belongs to an earlier life.
func (l *modelLink) live(f func()) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.life == l.m.life && l.d.link == l {
		f()
	}
}

func (l *modelLink) Deliver(e store.Entry, place uint64, p Profile, attempt int) (ok bool) {
	l.live(func() {
		if l.room == 0 {
			l.refused = true
			return
		}
		l.room--
		ok = true
		d := delivery{
			seq: e.Seq, cseq: e.Cseq, place: place, id: e.ID, conv: e.Conv, from: e.From, body: string(e.Body), attempt: attempt,
			recalled: e.Recalled, profile: p,
		}
		if l.settled[place] || e.Seq == 0 && e.Cseq <= l.upTo[e.Conv] {
			l.m.failf("%s/%s got %s %d, seq %d (attempt %d) after acknowledging it", l.d.user, l.d.id, e.Conv, e.Cseq, e.Seq, attempt)
		}
		if attempt == 0 && e.Cseq <= l.risen[e.Conv] {
			l.m.failf("%s/%s got %s %d after %d", l.d.user, l.d.id, e.Conv, e.Cseq, l.risen[e.Conv])
		}
		l.risen[e.Conv] = max(l.risen[e.Conv], e.Cseq)
		l.m.shown = append(l.m.shown, sight{l.d.user, e.Conv, e.Cseq})
		l.m.events = append(l.m.events, event{kind: "deliver", dev: l.d, plain: p == Plain, d: d})
		l.m.tally["deliver"]++
		if attempt > 0 {
			l.m.tally["retransmit"]++
		}
		l.untaken = append(l.untaken, d)
	})
	return ok
}

func (l *modelLink) Answer(t Ticket, b []byte, err *Error) {
	l.live(func() {
		f := l.tickets[t]
		if f == nil {
			l.m.failf("%s/%s: ticket %d answered twice, or never given", l.d.user, l.d.id, t)
			return
		}
		delete(l.tickets, t)
		f(b, err)
	})
}

func (l *modelLink) Notify(c Channel, payload []byte) bool {
	l.live(func() {
		var n struct {
			State, Conv, By string
			Cseq            uint64
		}
		if json.Unmarshal(payload, &n) != nil {
			return // presence: state is no string
		}
		conv, err := ParseAddress(l.d.user, n.Conv)
		if c != Receipts {
			l.m.noteEvent(l.d.user, conv, payload)
			return
		}
		if err != nil {
			l.m.failf("receipt %s: %v", payload, err)
		}
		l.m.tally["receipt"]++
		k := mark{n.By, conv}
		if _, ok := conv.Group(); ok {
			l.m.tally["group receipt"]++
			l.m.told = append(l.m.told, sight{l.d.user, conv, n.Cseq})
		}
		if limit := map[string]uint64{"delivered": l.m.acked[k], "read": l.m.reads[k], "queued": n.Cseq}[n.State]; n.Cseq > limit {
			l.m.failf("%s was told %s is %s up to %d by %s, who did so up to %d", l.d.user, n.Conv, n.State, n.Cseq, n.By, limit)
		}
	})
	return true
}

func (l *modelLink) Kick() {}

func (l *modelLink) Close(r CloseReason) {
	l.live(func() {
		l.over = true
		l.m.tally[fmt.Sprint("close ", r)]++
	})
}

// failf notes what is wrong; m.mu is held.
func (m *model) failf(format string, args ...any) {
	m.wrong = append(m.wrong, fmt.Sprintf(format, args...))
}

// command runs a command whose answer f takes, under m.mu.
func (l *modelLink) command(name, payload string, f func(b []byte, err *Error)) {
	l.m.mu.Lock()
	l.last++
	t := l.last
	l.tickets[t] = f
	l.m.mu.Unlock()
	l.dev.Command(name, []byte(payload), t, nil)
}

func TestModel(t *testing.T) {
	runSeeds(t, seeds{short: 50, steps: 200, longSteps: 400, sure: 50}, func(t *testing.T, seed uint64, steps int) map[string]int {
		return runModel(t, seed, steps)
	}, "deliver", "retransmit", "receipt", "crash", "dup", "conflict", "refused room", "close 0")
}

// seeds says how many random runs a model test makes, and how long they are.
type seeds struct{ short, steps, longSteps, sure int }

// runSeeds runs a model with one seed after the other, each in a bubble, and adds up what happened. Where there are so many
// runs that it is sure to, everything in want must have happened: else the test does not test it.
func runSeeds(t *testing.T, s seeds, run func(t *testing.T, seed uint64, steps int) map[string]int, want ...string) {
	n, steps := s.short, s.steps
	if os.Getenv("MQIM_TORTURE") != "" {
		n, steps = 1500, s.longSteps
	}
	first := rand.Uint64N(1 << 32)
	if seed := os.Getenv("MQIM_SEED"); seed != "" {
		first, _ = strconv.ParseUint(seed, 10, 64)
		n = 1
	}
	total := map[string]int{}
	for i := range n {
		seed := first + uint64(i)
		synctest.Test(t, func(t *testing.T) {
			for k, n := range run(t, seed, steps) {
				total[k] += n
			}
		})
		if t.Failed() {
			t.Fatalf("run again with MQIM_SEED=%d", seed)
		}
	}
	t.Logf("first seed %d: %v", first, total)
	for _, k := range want {
		if n >= s.sure && total[k] == 0 {
			t.Errorf("no %q in any run: the test does not test it", k)
		}
	}
}

func newModel(t *testing.T, seed uint64) *model {
	return &model{
		t: t, seed: seed, r: rand.New(rand.NewPCG(seed, 1)), fs: vfs.NewCrashableMem(),
		acked: map[mark]uint64{}, reads: map[mark]uint64{}, readOK: map[mark]uint64{}, tally: map[string]int{},
		asked: map[sight]bool{}, recall: map[sight]bool{}, ends: map[int64]bool{},
	}
}

func runModel(t *testing.T, seed uint64, steps int) map[string]int {
	m := newModel(t, seed)
	m.between = m.send
	for i := range 3 + m.r.IntN(3) {
		user := fmt.Sprint("u", i)
		m.users = append(m.users, user)
		for k := range 1 + m.r.IntN(3) {
			m.devs = append(m.devs, &modelDevice{user: user, id: fmt.Sprint("d", k)})
		}
	}
	m.open()
	for range steps {
		m.step()
		if m.r.IntN(3) > 0 {
			synctest.Wait()
		}
	}
	m.heal()
	m.check()
	m.close()
	m.report()
	return m.tally
}

// report says what was wrong, and then what had happened.
func (m *model) report() {
	t := m.t
	for _, s := range m.wrong {
		t.Errorf("seed %d: %s", m.seed, s)
	}
	if t.Failed() {
		for _, ev := range m.events {
			t.Logf("%s/%s %s fresh %v %s %d, %+v", ev.dev.user, ev.dev.id, ev.kind, ev.fresh, ev.conv, ev.seq, ev.d)
		}
	}
}

func (m *model) open() {
	m.peb = openStore(m.t, m.fs, store.Retention{}, nil)
	m.st = &faultStore{Store: m.peb}
	m.e = New(m.st, Config{Window: 4, AckTimeout: 5 * time.Second, MaxAttempts: 3, QueueMessages: 4, GroupSmallMax: modelSmall, Log: quiet})
}

func (m *model) close() {
	if err := errors.Join(m.e.Close(context.Background()), m.peb.Close()); err != nil {
		m.t.Errorf("close: %v", err)
	}
}

// crash ends the process at this moment: of what was not synced a part is lost.
func (m *model) crash() {
	m.mu.Lock()
	m.life++
	m.ends[time.Now().UnixMilli()] = true
	m.tally["crash"]++
	percent := []int{0, 50, 100}[m.r.IntN(3)]
	fs := m.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: m.r})
	for _, d := range m.devs {
		m.gone(d)
	}
	m.mu.Unlock()
	m.st.set(func() { m.st.onCommit = nil })
	m.close() // of the life that nobody will hear of
	m.fs = fs
	m.open()
}

// gone notes that a device's connection has ended; m.mu is held.
func (m *model) gone(d *modelDevice) {
	if d.link == nil {
		return
	}
	d.link = nil
	d.alive = d.alive && d.session.Persistent
}

func (m *model) pick() *modelDevice { return m.devs[m.r.IntN(len(m.devs))] }

// connected picks a device that is connected; nil if there is none.
func (m *model) connected() *modelLink {
	for range 10 {
		if d := m.pick(); d.link != nil {
			return d.link
		}
	}
	return nil
}

func (m *model) step() {
	for _, d := range m.devs {
		m.mu.Lock()
		over := d.link != nil && d.link.over
		m.mu.Unlock()
		if over {
			m.disconnect(d, false)
		}
	}
	n := m.r.IntN(100)
	if n < 14 {
		m.connect(m.pick(), m.r.IntN(8) == 0)
		return
	}
	if n < 17 {
		m.sleep()
		return
	}
	if n < 18 {
		m.faults()
		return
	}
	if n < 20 {
		m.crash()
		return
	}
	l := m.connected()
	if l == nil {
		return
	}
	switch {
	case n < 24:
		m.disconnect(l.d, m.r.IntN(5) == 0)
	case n < 52:
		m.send(l)
	case n < 68:
		m.take(l, m.r.IntN(4) == 0)
	case n < 84:
		m.ack(l)
	case n < 88:
		m.setRoom(l, m.r.IntN(6))
	case n < 91:
		m.sync(l)
	case n < 94:
		m.read(l)
	case n < 96:
		m.withdraw(l)
	case n < 98:
		p := Profile(m.r.IntN(3))
		m.mu.Lock()
		l.d.profile = p
		m.mu.Unlock()
		l.dev.SetProfile(p, everything)
	default:
		m.setRoom(l, 1000)
	}
}

// sleep lets time pass, in half of the cases for peers that have taken everything, so that they are not closed.
func (m *model) sleep() {
	if m.r.IntN(2) == 0 {
		for _, d := range m.devs {
			if d.link != nil {
				m.take(d.link, true)
			}
		}
	}
	time.Sleep([]time.Duration{time.Millisecond, 300 * time.Millisecond, 6 * time.Second, time.Minute}[m.r.IntN(4)])
}

// faults has commits be slow or fail for a while.
func (m *model) faults() {
	kind := m.r.IntN(5)
	if kind == 4 { // the process dies within a commit whose outcome nobody knows
		before := m.r.IntN(2) == 0
		arrived, hang := make(chan struct{}, 64), make(chan struct{})
		m.st.set(func() {
			m.st.onCommit = func(b *store.Batch, commit func() error) error {
				if len(b.Sends) == 0 {
					return commit()
				}
				var err error
				if !before {
					err = commit()
				}
				arrived <- struct{}{}
				<-hang
				return errors.Join(err, store.ErrUnknownOutcome)
			}
		})
		if l := m.connected(); l != nil {
			m.between(l)
			select {
			case <-arrived:
			case <-time.After(time.Second):
			}
			synctest.Wait()
		}
		time.AfterFunc(time.Second, func() { close(hang) })
		m.crash()
		return
	}
	m.st.set(func() {
		m.st.onStream = nil
		if kind == 0 { // a device connects while groups change
			m.st.onStream = func(store.DeviceKey) { time.Sleep(time.Millisecond) }
		}
		m.st.onCommit = func(b *store.Batch, commit func() error) error {
			switch {
			case kind == 0:
				time.Sleep(time.Millisecond)
			case kind == 1 && b.Lazy, kind == 2 && !b.Lazy:
				return fmt.Errorf("injected: %w", store.ErrUnavailable)
			}
			return commit()
		}
	})
}
