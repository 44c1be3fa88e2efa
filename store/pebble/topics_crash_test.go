package pebble_test

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/pebble"
)

// topicModel makes random batches for ordinary topics and is the simplest thing that keeps what they say. The same seed
// makes the same batches, so that whoever has killed the process that commits them knows what must be there after each.
type topicModel struct {
	rng      *rand.Rand
	n        int // batches made
	sessions map[string]*topicSession
	retained map[string]string
	wills    map[string]string
	claimed  map[string]bool
}

type topicSession struct {
	user         string
	subs         map[string]string
	head, passed uint64
	queue        map[uint64]string // what is after passed
	out          map[uint64]store.Outbound
	in           map[uint16]bool
}

// topicLimits are small, so that the oldest are dropped all the time.
var topicLimits = store.Retention{Topics: store.QueueLimits{Messages: 40}}

func newTopicModel(seed uint64, n int) *topicModel {
	m := &topicModel{
		rng: rand.New(rand.NewPCG(seed, 0)), sessions: map[string]*topicSession{}, retained: map[string]string{}, wills: map[string]string{},
		claimed: map[string]bool{},
	}
	for m.n < n {
		m.batch()
	}
	return m
}

// topicMark is the client whose will tells how many batches a store has.
const topicMark = "mark"

func (m *topicModel) client() string { return fmt.Sprint("c", m.rng.IntN(6)) }

// session is one that there is, nil if there is none.
func (m *topicModel) session() (string, *topicSession) {
	for range 10 {
		if c := m.client(); m.sessions[c] != nil {
			return c, m.sessions[c]
		}
	}
	return "", nil
}

// batch makes the next batch and does what it says.
func (m *topicModel) batch() *store.Batch {
	m.n++
	b := &store.Batch{Lazy: m.rng.IntN(3) == 0}
	for range 1 + m.rng.IntN(4) {
		m.change(b)
	}
	for range m.rng.IntN(6) {
		b.Publishes = append(b.Publishes, m.publish(len(b.Publishes)))
	}
	b.Wills = append(b.Wills, store.Will{Client: topicMark, Publication: store.Publication{Topic: "t", Payload: []byte(strconv.Itoa(m.n))}})
	if m.rng.IntN(10) == 0 {
		b.Claims, b.Lazy = append(b.Claims, &store.Claim{Client: m.client()}), false
	}
	if m.rng.IntN(4) == 0 { // by somebody whose claim is older than any, or younger
		b.Fences = append(b.Fences, &store.Fence{Client: m.client(), Epoch: []uint64{1, math.MaxUint64}[m.rng.IntN(2)]})
	}
	m.apply(b)
	return b
}

func (m *topicModel) change(b *store.Batch) {
	filter := fmt.Sprintf("f/%d/+", m.rng.IntN(5))
	c, s := m.session()
	switch k := m.rng.IntN(12); {
	case s == nil || k == 0:
		b.Sessions = append(b.Sessions, store.Session{Client: m.client(), User: fmt.Sprint("u", m.rng.IntN(3)), Expiry: store.NoExpiry, Online: m.rng.IntN(2) == 0})
	case k == 1 && m.rng.IntN(4) == 0:
		b.Sessions = append(b.Sessions, store.Session{Client: c, Over: true})
	case k == 2:
		b.Subscribes = append(b.Subscribes, store.Subscription{Client: c, Filter: filter, Options: fmt.Append(nil, m.n)})
	case k == 3:
		b.Unsubscribes = append(b.Unsubscribes, store.Subscription{Client: c, Filter: filter})
	case k <= 6 && s.head > s.passed:
		b.Passed = append(b.Passed, store.Passed{Client: c, Seq: s.passed + uint64(m.rng.IntN(int(s.head-s.passed)+1))})
	case k <= 8 && s.head > s.passed:
		b.Outbound = append(b.Outbound, store.Outbound{
			Client: c, Seq: s.passed + 1 + uint64(m.rng.IntN(int(s.head-s.passed))), ID: uint16(m.n), Received: k == 8, Done: m.rng.IntN(4) == 0,
		})
	case k <= 10:
		b.Inbound = append(b.Inbound, store.Inbound{Client: c, ID: uint16(m.rng.IntN(20)), Released: k == 10})
	default:
		b.Wills = append(b.Wills, store.Will{
			Client: m.client(), User: "u", Delay: uint32(m.n), Remove: m.rng.IntN(3) == 0,
			Publication: store.Publication{Topic: "w", Payload: fmt.Append(nil, "will ", m.n), QoS: 1},
		})
	}
}

func (m *topicModel) publish(i int) *store.Publish {
	p := &store.Publish{Publication: &store.Publication{
		Topic: fmt.Sprintf("f/%d/%d", m.rng.IntN(5), m.rng.IntN(8)), QoS: 2, From: "p",
		Payload: fmt.Appendf(nil, "%d.%d %s", m.n, i, strings.Repeat("x", m.rng.IntN(200))),
	}, Retain: m.rng.IntN(4) == 0}
	if p.Retain && m.rng.IntN(3) == 0 {
		p.Payload = nil
	}
	for k := range 6 {
		if m.rng.IntN(3) == 0 {
			p.Queues = append(p.Queues, store.QueueRef{Client: fmt.Sprint("c", k), QoS: byte(1 + m.rng.IntN(2)), Options: []byte{byte(m.rng.IntN(2))}})
		}
	}
	return p
}

// apply does what a batch says, in the order of its fields.
func (m *topicModel) apply(b *store.Batch) {
	for _, c := range b.Claims {
		m.claimed[c.Client] = true
	}
	for _, f := range b.Fences {
		b = b.Without(map[string]bool{f.Client: f.Epoch == 1 && m.claimed[f.Client]})
	}
	for _, x := range b.Sessions {
		if s := m.sessions[x.Client]; x.Over {
			delete(m.sessions, x.Client)
		} else if s != nil {
			s.user = x.User
		} else {
			m.sessions[x.Client] = &topicSession{
				user: x.User, subs: map[string]string{}, queue: map[uint64]string{}, out: map[uint64]store.Outbound{}, in: map[uint16]bool{},
			}
		}
	}
	for _, x := range b.Subscribes {
		if s := m.sessions[x.Client]; s != nil {
			s.subs[x.Filter] = string(x.Options)
		}
	}
	for _, x := range b.Unsubscribes {
		if s := m.sessions[x.Client]; s != nil {
			delete(s.subs, x.Filter)
		}
	}
	for _, x := range b.Passed {
		if s := m.sessions[x.Client]; s != nil {
			s.pass(x.Seq)
		}
	}
	for _, x := range b.Outbound {
		if s := m.sessions[x.Client]; s != nil && x.Seq > s.passed {
			s.out[x.Seq] = x
		}
	}
	for _, x := range b.Inbound {
		if s := m.sessions[x.Client]; s != nil && x.Released {
			delete(s.in, x.ID)
		} else if s != nil {
			s.in[x.ID] = true
		}
	}
	for _, x := range b.Wills {
		if delete(m.wills, x.Client); !x.Remove {
			m.wills[x.Client] = fmt.Sprint(x.Delay, " ", string(x.Payload))
		}
	}
	for _, p := range b.Publishes {
		if p.Retain {
			if delete(m.retained, p.Topic); len(p.Payload) > 0 {
				m.retained[p.Topic] = string(p.Payload)
			}
		}
		for _, q := range p.Queues {
			if s := m.sessions[q.Client]; s != nil {
				s.head++
				s.queue[s.head] = fmt.Sprint(min(q.QoS, p.QoS), " ", q.Options, " ", p.Topic, " ", string(p.Payload))
				if limit := topicLimits.Topics.Messages; s.head-s.passed > limit {
					s.pass(s.head - limit)
				}
			}
		}
	}
}

func (s *topicSession) pass(seq uint64) {
	for s.passed < min(seq, s.head) {
		s.passed++
		delete(s.queue, s.passed)
		delete(s.out, s.passed)
	}
}

// dump is all that there is, a line each.
func (m *topicModel) dump() (lines []string) {
	for c, s := range m.sessions {
		lines = append(lines, fmt.Sprintf("session %s of %s: passed %d of %d", c, s.user, s.passed, s.head))
		for f, o := range s.subs {
			lines = append(lines, fmt.Sprintf("%s has subscribed to %s: %s", c, f, o), fmt.Sprintf("%s is found by %s", c, f))
		}
		for seq, e := range s.queue {
			lines = append(lines, fmt.Sprintf("queue %s %d: %s", c, seq, e))
		}
		for seq, o := range s.out {
			lines = append(lines, fmt.Sprintf("out %s %d: %d %t %t", c, seq, o.ID, o.Received, o.Done))
		}
		for id := range s.in {
			lines = append(lines, fmt.Sprintf("in %s: %d", c, id))
		}
	}
	for topic, p := range m.retained {
		lines = append(lines, fmt.Sprintf("retained %s: %s", topic, p))
	}
	lines = append(lines, fmt.Sprint(len(m.retained), " retained messages"))
	for c := range m.claimed {
		lines = append(lines, c+" is claimed")
	}
	for c, w := range m.wills {
		lines = append(lines, fmt.Sprintf("will %s: %s", c, w))
	}
	slices.Sort(lines)
	return lines
}

// dumpStore is the same of a store, and the number of batches that are in it. A read that fails is a line, too.
func dumpStore(s *pebble.Store) (lines []string, batches int, err error) {
	line := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	failed := func(e error) { err = errors.Join(err, e) }
	sessions, e := s.Sessions(ctx, "", 1000)
	failed(e)
	for _, x := range sessions {
		dumpSession(s, &x, line, failed)
	}
	for i := range 5 {
		list, e := s.Match(ctx, fmt.Sprintf("f/%d/x", i))
		failed(e)
		for _, sub := range list {
			line("%s is found by %s", sub.Client, sub.Filter)
		}
	}
	for after := ""; ; {
		list, e := s.Retained(ctx, "#", after, 7, 0)
		failed(e)
		for _, p := range list {
			line("retained %s: %s", p.Topic, p.Payload)
			after = p.Topic
		}
		if len(list) == 0 {
			break
		}
	}
	n, e := s.RetainedCount(ctx)
	failed(e)
	line("%d retained messages", n)
	for i := range 6 {
		epochs, e := s.Epochs(ctx, []string{fmt.Sprint("c", i)}, nil)
		failed(e)
		if e == nil && epochs[0] > 0 {
			line("c%d is claimed", i)
		}
	}
	wills, e := s.Wills(ctx, "", 1000)
	failed(e)
	for _, w := range wills {
		line("will %s: %d %s", w.Client, w.Delay, w.Payload)
		if w.Client == topicMark {
			batches, _ = strconv.Atoi(string(w.Payload))
		}
	}
	slices.Sort(lines)
	return lines, batches, err
}

func dumpSession(s *pebble.Store, x *store.Session, line func(string, ...any), failed func(error)) {
	state, e := s.Queue(ctx, x.Client)
	failed(e)
	line("session %s of %s: passed %d of %d", x.Client, x.User, state.Passed, state.Head)
	subs, e := s.Subscriptions(ctx, x.Client)
	failed(e)
	for _, sub := range subs {
		line("%s has subscribed to %s: %s", x.Client, sub.Filter, sub.Options)
	}
	for after := uint64(0); ; {
		page, e := s.ReadQueue(ctx, x.Client, after, 9, nil)
		failed(e)
		for _, q := range page {
			line("queue %s %d: %d %d %s %s", x.Client, q.Seq, q.QoS, q.Options, q.Topic, q.Payload)
			after = q.Seq
		}
		if e != nil || len(page) == 0 {
			break
		}
	}
	out, e := s.Outbound(ctx, x.Client)
	failed(e)
	for _, o := range out {
		line("out %s %d: %d %t %t", x.Client, o.Seq, o.ID, o.Received, o.Done)
	}
	in, e := s.Inbound(ctx, x.Client)
	failed(e)
	for _, id := range in {
		line("in %s: %d", x.Client, id)
	}
}

// recovered checks a store after a crash: it has all batches up to some number, and nothing of those after it.
func recovered(t *testing.T, s *pebble.Store, seed uint64, least, most int) (batches int) {
	t.Helper()
	got, batches, err := dumpStore(s)
	if err != nil {
		t.Fatal(err)
	}
	if batches < least || batches > most {
		t.Fatalf("got the first %d batches, want %d at least and %d at most", batches, least, most)
	}
	if diff := cmp.Diff(newTopicModel(seed, batches).dump(), got); diff != "" {
		t.Fatalf("after %d batches: -want +got\n%s", batches, diff)
	}
	return batches
}

// writeTopics commits a model's batches and tells of each that is committed. It is a child's, and ends with it.
func writeTopics(s *pebble.Store, seed uint64, from int) error {
	m := newTopicModel(seed, from)
	for {
		b := m.batch()
		if err := s.Commit(ctx, b); err != nil {
			return err
		}
		fmt.Println(m.n, b.Lazy)
	}
}

// killedTopics has a process commit batches and kills it when it has told of so many. What it told of as synced, the
// last of what it told of, and one more that it may not have come to tell of bound what is there.
func killedTopics(t *testing.T, dir string, seed uint64, from, batches int) (least, most int) {
	t.Helper()
	c := startChild(t, "topics", dir)
	c.Env = append(c.Env, fmt.Sprint("MQIM_PEBBLE_SEED=", seed), fmt.Sprint("MQIM_PEBBLE_FROM=", from))
	pipe, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	least, most = from, from
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		var n int
		var lazy bool
		if _, err := fmt.Sscan(lines.Text(), &n, &lazy); err != nil {
			break // the kill cut it
		}
		if most = n; !lazy {
			least = n
		}
		if n == from+batches {
			if err := c.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.Wait(); err == nil || most < from+batches {
		t.Fatalf("the child ended by itself after %d batches: %v", most, err)
	}
	return least, most + 1
}

// TestKillTopics kills a process in the middle of writing sessions, queues, retained messages and wills, several times
// over one store. In the end, when all queues are passed, no publication is left.
func TestKillTopics(t *testing.T) {
	dir := t.TempDir()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	n := 0
	for range 4 {
		least, most := killedTopics(t, dir, seed, n, 100+rng.IntN(600))
		s := open(t, pebble.Options{Path: dir, MinFree: 1, Retention: topicLimits})
		n = recovered(t, s, seed, least, most)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		references(t, dir)
	}
	s := open(t, pebble.Options{Path: dir, MinFree: 1, Retention: topicLimits})
	m := newTopicModel(seed, n)
	b := m.batch() // some of what is to be passed is this process's, which counts its references
	for c, x := range m.sessions {
		b.Passed = append(b.Passed, store.Passed{Client: c, Seq: x.head / 2})
	}
	if err := s.Commit(ctx, b); err != nil {
		t.Fatal(err)
	}
	for c, x := range m.sessions {
		b := &store.Batch{TopicBatch: store.TopicBatch{Passed: []store.Passed{{Client: c, Seq: x.head}}}}
		if rng.IntN(4) == 0 {
			b = &store.Batch{TopicBatch: store.TopicBatch{Sessions: []store.Session{{Client: c, Over: true}}}}
		}
		if err := s.Commit(ctx, b); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if pubs, refs := references(t, dir); pubs+refs > 0 {
		t.Errorf("%d publications and %d references left, all queues being passed", pubs, refs)
	}
}

// references looks at a closed store's tables: publications have references, and references have publications, or else
// they would stay for ever, or be missed.
func references(t *testing.T, dir string) (pubs, refs int) {
	t.Helper()
	db, err := pdb.Open(dir, &pdb.Options{FormatMajorVersion: pdb.FormatNewest, Logger: silentLogger{}})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	it, err := db.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	has, wanted := map[string]bool{}, map[string]bool{}
	for ok := it.First(); ok; ok = it.Next() {
		switch k := it.Key(); k[0] {
		case 'p':
			pubs++
			has[string(k[1:9])] = true
		case 'f':
			refs++
			wanted[string(k[1:9])] = true
		}
	}
	if diff := cmp.Diff(wanted, has); diff != "" {
		t.Errorf("publications that are wanted and that are there: -want +got\n%s", diff)
	}
	return pubs, refs
}

type silentLogger struct{}

func (silentLogger) Infof(string, ...any)         {}
func (silentLogger) Errorf(string, ...any)        {}
func (silentLogger) Fatalf(f string, args ...any) { panic(fmt.Sprintf(f, args...)) }

// TestPowerLossTopics takes what a disk may hold after a power loss: all that was synced and a part of the rest.
func TestPowerLossTopics(t *testing.T) {
	for _, percent := range []int{0, 50, 100} {
		for round := range 4 {
			seed := rand.Uint64()
			t.Run(fmt.Sprintf("%d%%/%d", percent, round), func(t *testing.T) {
				t.Logf("seed %d", seed)
				rng := rand.New(rand.NewPCG(seed, 1))
				fs := vfs.NewCrashableMem()
				s := open(t, pebble.Options{Path: "db", FS: fs, Retention: topicLimits})
				var begun, synced atomic.Int64
				target, reached := int64(100+rng.IntN(500)), make(chan struct{})
				stop, stopped := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(stopped)
					for m := newTopicModel(seed, 0); ; {
						b := m.batch()
						if begun.Store(int64(m.n)); int64(m.n) == target {
							close(reached)
						}
						if err := s.Commit(ctx, b); err != nil {
							t.Error(err)
							return
						}
						if !b.Lazy {
							synced.Store(int64(m.n))
						}
						select {
						case <-stop:
							return
						default:
						}
					}
				}()
				select {
				case <-reached:
				case <-stopped:
					t.FailNow()
				}
				least := synced.Load()
				crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
				most := begun.Load()
				close(stop)
				<-stopped
				r := open(t, pebble.Options{Path: "db", FS: crashed, Retention: topicLimits})
				n := recovered(t, r, seed, int(least), int(most))
				// What the first recovery shows must survive a second crash right after it.
				r2 := open(t, pebble.Options{Path: "db", FS: crashed.CrashClone(vfs.CrashCloneCfg{}), Retention: topicLimits})
				recovered(t, r2, seed, n, n)
			})
		}
	}
}

// TestDamagedTopics damages files that have sessions, queues, retained messages and wills: what is read is right, or the
// error says corrupt.
func TestDamagedTopics(t *testing.T) {
	dir := t.TempDir()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	s := open(t, pebble.Options{Path: dir, MinFree: 1, Retention: topicLimits})
	m := newTopicModel(seed, 0)
	for range 400 {
		if err := s.Commit(ctx, m.batch()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	reopenTwice(t, dir)
	want := map[string]bool{}
	for _, line := range m.dump() {
		want[line] = true
	}
	noticed := 0
	const rounds = 12
	for i := range rounds {
		d := copyDir(t, dir)
		list := files(t, d, "*.sst")
		f := list[rng.IntN(len(list))]
		info, err := os.Stat(f)
		if err == nil {
			switch i % 4 {
			case 0:
				err = os.Truncate(f, rng.Int64N(info.Size()))
			case 1:
				err = os.Remove(f)
			default:
				flip(t, f, rng.Int64N(info.Size()))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := readDamaged(t, d)
		if err != nil {
			noticed++
		} else if len(got) != len(want) {
			t.Errorf("%s damaged: got %d of %d, and no error", f, len(got), len(want))
		}
		for _, line := range got {
			if !want[line] && err == nil {
				t.Errorf("%s damaged: got %q", f, line)
			}
		}
	}
	if noticed < rounds/3 {
		t.Errorf("%d of %d damages were noticed", noticed, rounds)
	}
}

func readDamaged(t *testing.T, dir string) ([]string, error) {
	t.Helper()
	s, err := pebble.Open(pebble.Options{Path: dir, MinFree: 1, Logger: quiet, Retention: topicLimits})
	var lines []string
	if err == nil {
		defer s.Close()
		lines, _, err = dumpStore(s)
	}
	if err != nil && !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("got %v, want %v", err, store.ErrCorrupt)
	}
	return lines, err
}

// TestCutTopicLog cuts the end of the last log, as a torn write does: some of the last batches are missing, whole.
func TestCutTopicLog(t *testing.T) {
	dir := t.TempDir()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	_, most := killedTopics(t, dir, seed, 0, 500)
	for _, where := range []float64{0.2, 0.5, 0.9, 0.99, 1} {
		d := copyDir(t, dir)
		logs := files(t, d, "*.log")
		info, err := os.Stat(logs[len(logs)-1])
		if err == nil {
			err = os.Truncate(logs[len(logs)-1], int64(float64(info.Size())*where))
		}
		if err != nil {
			t.Fatal(err)
		}
		n := recovered(t, open(t, pebble.Options{Path: d, MinFree: 1, Retention: topicLimits}), seed, 0, most)
		t.Logf("%g: %d of %d batches", where, n, most)
	}
}
