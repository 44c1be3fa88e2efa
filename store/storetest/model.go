package storetest

import (
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/mqim/mqim/store"
)

// seedEnv, set to a printed seed, repeats a failed run of the model test.
const seedEnv = "STORETEST_SEED"

// testModel runs random batches against the store and against the simplest thing that could be right, reopening now
// and then, and compares everything that can be read.
func testModel(t *testing.T, e *env) {
	seed := new(maphash.Hash).Sum64()
	if s := os.Getenv(seedEnv); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("%s=%d", seedEnv, seed)
	e.start(store.Retention{})
	m := &model{
		env: e, rng: rand.New(rand.NewPCG(seed, 0)), convs: map[store.Conv][]*store.Message{},
		inbox: map[string][]*store.Message{}, cids: map[[2]string]*store.Send{}, views: map[viewKey]*view{},
		blocks: map[string]map[string]bool{}, devices: map[store.DeviceKey]store.Device{}, users: map[string]store.User{},
		groups: map[string]*modelGroup{}, claims: map[string][]uint64{},
	}
	for step := range 150 {
		m.batch()
		if m.rng.IntN(40) == 0 {
			e.reopen()
			m.reopened()
		}
		if step%15 == 14 {
			m.compare()
		}
		if t.Failed() {
			t.Fatalf("after batch %d", step+1)
		}
	}
}

type viewKey struct {
	user string
	conv store.Conv
}

type view struct {
	read, delivered uint64
	deleted         map[uint64]bool
}

type model struct {
	*env
	rng     *rand.Rand
	convs   map[store.Conv][]*store.Message
	inbox   map[string][]*store.Message
	cids    map[[2]string]*store.Send
	views   map[viewKey]*view
	groups  map[string]*modelGroup
	ended   int               // groups that have ended
	pending map[string]uint64 // changes of groups in the batch being made
	blocks  map[string]map[string]bool
	devices map[store.DeviceKey]store.Device
	users   map[string]store.User
	claims  map[string][]uint64 // epochs by device, as they were given
}

var people = []string{"a", "ab", "b", "c", "ü"}

func (m *model) pick() string { return people[m.rng.IntN(len(people))] }

func (m *model) anyConv() store.Conv {
	if m.rng.IntN(3) == 0 {
		return store.GroupConv(fmt.Sprint("g", max(0, m.ended-1)+m.rng.IntN(3)))
	}
	return store.Direct(m.pick(), m.pick())
}

func (m *model) view(user string, c store.Conv) *view {
	k := viewKey{user, c}
	if m.views[k] == nil {
		m.views[k] = &view{deleted: map[uint64]bool{}}
	}
	return m.views[k]
}

func (m *model) newSend() *store.Send {
	c := m.anyConv()
	var s *store.Send
	if a, b, direct := c.Users(); direct {
		if m.rng.IntN(2) == 0 {
			a, b = b, a
		}
		s = m.direct(a, b)
	} else {
		id, _ := c.Group()
		s = m.toGroup(id, m.pick())
		s.Change = m.newChange(id)
	}
	s.Body = make([]byte, 1+m.rng.IntN(50))
	if m.rng.IntN(50) == 0 {
		s.Body = make([]byte, 100<<10)
	}
	for i := range s.Body {
		s.Body[i] = byte(m.rng.IntN(256))
	}
	s.Device = fmt.Sprint("d", m.rng.IntN(2))
	if m.rng.IntN(3) > 0 {
		s.Cid = fmt.Sprint(m.rng.IntN(400))
		s.Hash = uint64(m.rng.IntN(4) / 3)
	}
	return s
}

// batch commits a random batch and does the same to the model. Marks, recalls and deletions only concern what was
// committed before, so that their order within the batch does not matter.
func (m *model) batch() {
	m.Helper()
	b := &store.Batch{}
	cseq := func(c store.Conv) uint64 { return uint64(m.rng.IntN(len(m.convs[c]) + 1)) }
	for range m.rng.IntN(3) {
		c := m.anyConv()
		switch u := m.pick(); m.rng.IntN(6) {
		case 0, 1:
			b.Reads = append(b.Reads, &store.Mark{User: u, Conv: c, Cseq: cseq(c)})
		case 2:
			b.Delivered = append(b.Delivered, &store.Mark{User: u, Conv: c, Cseq: cseq(c)})
		case 3:
			b.Recalls = append(b.Recalls, &store.Recall{Conv: c, Cseq: cseq(c)})
		case 4:
			b.Deletes = append(b.Deletes, store.Delete{User: u, Conv: c, Cseqs: []uint64{cseq(c), cseq(c), cseq(c) + 1000}})
		case 5:
			b.Blocks = append(b.Blocks, store.Block{User: u, Peer: m.pick(), Remove: m.rng.IntN(2) == 0})
		}
	}
	if m.rng.IntN(5) == 0 {
		k := store.DeviceKey{User: m.pick(), Device: fmt.Sprint("d", m.rng.IntN(3))}
		if m.rng.IntN(3) == 0 {
			b.Removed = append(b.Removed, k)
		} else {
			b.Devices = append(b.Devices, store.Device{DeviceKey: k, Cursor: m.rng.Uint64N(100), Profile: "im"})
		}
		b.Users = append(b.Users, store.User{Name: m.pick(), Cursor: m.rng.Uint64N(100), LastSeen: m.rng.Int64N(1000)})
	}
	m.claim(b)
	fences := m.fence(b)
	m.apply(b.Without(m.fenced(b)))
	m.pending = map[string]uint64{}
	for range m.rng.IntN(12) {
		b.Sends = append(b.Sends, m.newSend())
	}
	before := make([]store.Send, len(b.Sends))
	for i, s := range b.Sends {
		before[i] = *s
		before[i].Inboxes = slices.Clone(s.Inboxes)
		if s.Change != nil {
			c := *s.Change
			c.Members = slices.Clone(c.Members)
			before[i].Change = &c
		}
	}
	moved := map[*store.Mark]bool{}
	missing := map[*store.Recall]error{}
	for _, x := range slices.Concat(b.Reads, b.Delivered) {
		moved[x] = x.Moved
	}
	for _, r := range b.Recalls {
		missing[r] = r.Err
	}
	m.commit(b)
	for x, want := range moved {
		m.equal(fmt.Sprintf("mark %+v moved", *x), x.Moved, want)
	}
	for r, want := range missing {
		if !errors.Is(r.Err, want) {
			m.Errorf("recall of %d in %s: got %v, want %v", r.Cseq, r.Conv, r.Err, want)
		}
	}
	for i, s := range b.Sends {
		m.accept(&before[i], s)
	}
	for _, c := range b.Claims {
		if list := m.claims[c.Client]; c.Epoch <= slices.Max(append(list, 0)) {
			m.Errorf("claim of %s: got %d after %v", c.Client, c.Epoch, list)
		}
		m.claims[c.Client] = append(m.claims[c.Client], c.Epoch)
	}
	for i, f := range b.Fences {
		m.equal(fmt.Sprintf("fence of %s lost", f.Client), f.Lost, fences[i])
	}
}

func (m *model) device() string { return fmt.Sprint("d", m.rng.IntN(3)) }

// reopened takes in that a store which is a copy of what it was has no claims: nobody who made one goes on. That a store
// keeps its own is testClaims' business.
func (m *model) reopened() {
	epochs, err := m.st.Epochs(ctx, []string{"d0", "d1", "d2"}, nil)
	if err != nil {
		m.Fatal(err)
	}
	if slices.Max(epochs) == 0 {
		clear(m.claims)
	}
}

// claim has a batch claim devices now and then.
func (m *model) claim(b *store.Batch) {
	for m.rng.IntN(6) == 0 {
		b.Claims = append(b.Claims, &store.Claim{Client: m.device()})
	}
}

func (m *model) claimed(b *store.Batch, client string) bool {
	return slices.ContainsFunc(b.Claims, func(c *store.Claim) bool { return c.Client == client })
}

// fence adds fences with claims of before, and returns which of them are lost.
func (m *model) fence(b *store.Batch) (lost []bool) {
	for m.rng.IntN(2) == 0 {
		f := &store.Fence{Client: m.device(), Lost: m.rng.IntN(2) == 0}
		list := m.claims[f.Client]
		if len(list) == 0 {
			continue
		}
		f.Epoch = list[max(0, len(list)-1-m.rng.IntN(3))]
		b.Fences = append(b.Fences, f)
		lost = append(lost, f.Epoch < list[len(list)-1] || m.claimed(b, f.Client))
	}
	return lost
}

// fenced are the devices of whom the batch may say nothing.
func (m *model) fenced(b *store.Batch) map[string]bool {
	out := map[string]bool{}
	for _, f := range b.Fences {
		if list := m.claims[f.Client]; f.Epoch == list[len(list)-1] && !m.claimed(b, f.Client) {
			out[f.Client] = false
		} else if _, held := out[f.Client]; !held {
			out[f.Client] = true
		}
	}
	return out
}

// apply does everything of b but the Sends to the model, and sets the results that it expects.
func (m *model) apply(b *store.Batch) {
	for _, r := range b.Recalls {
		r.Err = store.ErrNotFound
		if log := m.convs[r.Conv]; r.Cseq > 0 && r.Cseq <= uint64(len(log)) {
			log[r.Cseq-1].Recalled, log[r.Cseq-1].Body, r.Err = true, nil, nil
		}
	}
	for _, d := range b.Deletes {
		for _, n := range d.Cseqs {
			if n > 0 && n <= uint64(len(m.convs[d.Conv])) && m.sees(d.User, d.Conv, n) {
				m.view(d.User, d.Conv).deleted[n] = true
			}
		}
	}
	for _, x := range b.Reads {
		v := m.view(x.User, x.Conv)
		x.Moved = x.Cseq > v.read
		v.read = max(v.read, x.Cseq)
	}
	for _, x := range b.Delivered {
		v := m.view(x.User, x.Conv)
		x.Moved = x.Cseq > v.delivered
		v.delivered = max(v.delivered, x.Cseq)
	}
	for _, x := range b.Blocks {
		if m.blocks[x.User] == nil {
			m.blocks[x.User] = map[string]bool{}
		}
		m.blocks[x.User][x.Peer] = !x.Remove
	}
	for _, u := range b.Users {
		x := m.users[u.Name]
		m.users[u.Name] = store.User{Cursor: max(x.Cursor, u.Cursor), LastSeen: max(x.LastSeen, u.LastSeen)}
	}
	for _, d := range b.Devices {
		m.devices[d.DeviceKey] = d
	}
	for _, k := range b.Removed {
		delete(m.devices, k)
	}
}

// accept checks what Commit said of a Send and adds it to the model.
func (m *model) accept(in, got *store.Send) {
	m.Helper()
	k := [2]string{in.From, in.Cid}
	if first := m.cids[k]; in.Cid != "" && first != nil {
		switch {
		case first.Hash != in.Hash:
			if !errors.Is(got.Err, store.ErrConflict) {
				m.Errorf("cid %v: got %v, want %v", k, got.Err, store.ErrConflict)
			}
		default:
			m.wantDup(got, first)
		}
		return
	}
	if want := m.refusal(in); want != nil {
		if !errors.Is(got.Err, want) {
			m.Errorf("message of %s to %s: got %v, want %v", in.From, in.Conv, got.Err, want)
		}
		return
	}
	if got.Dup || got.Err != nil {
		m.Errorf("cid %v: got dup %t, err %v of a first message", k, got.Dup, got.Err)
		return
	}
	log := m.convs[in.Conv]
	msg := got.Message
	m.equal("cseq", got.Cseq, uint64(len(log)+1))
	m.convs[in.Conv] = append(log, &msg)
	if id, ok := in.Conv.Group(); ok {
		m.equal("recipients", recipients(got), m.change(id, in, msg.Cseq))
		in.Inboxes = got.Inboxes
	}
	for i, r := range in.Inboxes {
		m.inbox[r.User] = append(m.inbox[r.User], &msg)
		m.equal("seq", got.Inboxes[i].Seq, uint64(len(m.inbox[r.User])))
	}
	if in.Cid != "" {
		c := *got
		m.cids[k] = &c
	}
}

// want is what the store should say of a conversation.
func (m *model) want(user string, c store.Conv) store.Conversation {
	log := m.convs[c]
	out := store.Conversation{Conv: c}
	if len(log) == 0 {
		return out
	}
	for n := uint64(1); n <= uint64(len(log)); n++ {
		if m.sees(user, c, n) {
			out.Head = n
		}
	}
	if out.Head == 0 {
		return out
	}
	v := m.view(user, c)
	out.Read, out.Delivered = v.read, v.delivered
	if p := c.Peer(user); p != "" {
		out.PeerRead, out.PeerDeliv = m.view(p, c).read, m.view(p, c).delivered
	}
	for _, x := range log[v.read:] {
		if x.From != user && !x.Recalled && !v.deleted[x.Cseq] && m.sees(user, c, x.Cseq) {
			out.Unread++
		}
	}
	for n := out.Head; n > out.Head-min(out.Head, 16); n-- {
		if !v.deleted[n] && m.sees(user, c, n) {
			out.Last = log[n-1]
			break
		}
	}
	return out
}

func (m *model) compare() {
	m.Helper()
	for client, list := range m.claims {
		m.equal("epoch of "+client, m.epochs(client), list[len(list)-1:])
	}
	for _, user := range people {
		var listed []store.Conv
		heads := map[store.Conv]uint64{}
		for _, c := range slices.Collect(maps.Keys(m.convs)) {
			state := m.want(user, c)
			m.equal(fmt.Sprintf("%s for %s", c, user), m.conv(user, c), state)
			if _, group := c.Group(); state.Head > 0 && (group || c.Peer(user) != "") {
				listed = append(listed, c)
				heads[c] = state.Head
			}
			var want []*store.Message
			for _, x := range m.convs[c] {
				if !m.view(user, c).deleted[x.Cseq] {
					want = append(want, x)
				}
			}
			got := m.history(user, c, store.Range{Forward: true, Limit: 1 << 20})
			m.equal(fmt.Sprintf("history of %s for %s", c, user), got, want)
			m.page(user, c, want)
		}
		slices.SortFunc(listed, func(a, b store.Conv) int {
			return cmp.Compare(m.convs[b][heads[b]-1].ID, m.convs[a][heads[a]-1].ID)
		})
		m.equal("list of "+user, m.list(user, 1+m.rng.IntN(5)), listed)
		m.compareInbox(user)
		m.compareUser(user)
		m.compareGroups(user)
	}
}

// page compares random pages of a history whose visible messages are all.
func (m *model) page(user string, c store.Conv, all []*store.Message) {
	m.Helper()
	bound := func() uint64 { return uint64(m.rng.IntN(len(m.convs[c]) + 3)) }
	for range 3 {
		r := store.Range{After: bound(), Before: bound(), Forward: m.rng.IntN(2) == 0, Limit: 1 + m.rng.IntN(10)}
		if m.rng.IntN(2) == 0 {
			r.After = 0
		} else if m.rng.IntN(2) == 0 {
			r.Before = 0
		}
		var want []*store.Message
		for _, x := range all {
			if x.Cseq > r.After && (r.Before == 0 || x.Cseq < r.Before) {
				want = append(want, x)
			}
		}
		if n := min(len(want), r.Limit); r.Forward {
			want = want[:n]
		} else {
			want = want[len(want)-n:]
		}
		m.equal(fmt.Sprintf("%+v of %s for %s", r, c, user), m.history(user, c, r), want)
	}
}

func (m *model) compareInbox(user string) {
	m.Helper()
	m.equal("inbox of "+user, m.inboxState(user), store.Inbox{Head: uint64(len(m.inbox[user]))})
	got := m.drain(user, 0, 1+m.rng.IntN(300))
	if len(got) != len(m.inbox[user]) {
		m.Fatalf("inbox of %s: got %d entries, want %d", user, len(got), len(m.inbox[user]))
	}
	for i, x := range got {
		want := *m.inbox[user][i]
		if m.view(user, want.Conv).deleted[want.Cseq] {
			want.Recalled, want.Body = true, nil
		}
		m.equal(fmt.Sprintf("entry %d of %s", x.Seq, user), x.Message, &want)
	}
}

func (m *model) inboxState(user string) store.Inbox { return m.env.inbox(user) }

func (m *model) compareUser(user string) {
	m.Helper()
	var blocks []string
	for p, on := range m.blocks[user] {
		if on {
			blocks = append(blocks, p)
		}
	}
	slices.Sort(blocks)
	got, err := m.st.Blocks(ctx, user)
	if err != nil {
		m.Fatal(err)
	}
	m.equal("blocks of "+user, got, blocks)
	var devices []store.Device
	for k, d := range m.devices {
		if k.User == user {
			devices = append(devices, d)
		}
	}
	slices.SortFunc(devices, func(a, b store.Device) int { return cmp.Compare(a.Device, b.Device) })
	list, err := m.st.Devices(ctx, user)
	if err != nil {
		m.Fatal(err)
	}
	m.equal("devices of "+user, list, devices)
	want := m.users[user]
	want.Name = user
	u, err := m.st.User(ctx, user)
	if err != nil {
		m.Fatal(err)
	}
	m.equal("user "+user, u, want)
}
