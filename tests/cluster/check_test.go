package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The kinds of faults that check finds.
const (
	lostAck      = "acknowledged and not stored"
	lostDevice   = "not delivered"
	lostInbox    = "missing in an inbox"
	foreignInbox = "in an inbox it does not belong in"
	repeatedID   = "id used twice"
	idOrder      = "id does not rise with cseq"
	cseqHole     = "cseq has a hole or repeats"
	seqHole      = "seq has a hole or repeats"
	storedTwice  = "stored twice"
	otherAnswer  = "the answers to one cid differ, or differ from what is stored"
	refusedKept  = "refused, and stored"
	realTime     = "stored before a message that was acknowledged before it was sent"
	invented     = "never sent"
	unstored     = "delivered and not stored"
	strayed      = "delivered to a device that should not have it"
	otherForm    = "delivered with another id or number"
	skipped      = "delivered before an earlier one of its stream"
	late         = "delivered after a later one of its stream"
	staleRead    = "history without what the reader has written"
	wrongRead    = "history that differs from the log"
	twoLive      = "two connections of one device live at once"
)

type fault struct{ Kind, Text string }

// check finds what is wrong with a history. What a device has not got by its end it will never get: the caller has waited
// until the cursors had reached their heads.
func check(h *history) []fault {
	c := &checker{h: h, stored: map[string]entry{}, sent: map[string][]send{}, devices: map[string]party{}}
	for _, d := range h.Devices {
		c.devices[d.ID] = d
	}
	for _, s := range h.Sends {
		c.sent[s.Cid] = append(c.sent[s.Cid], s)
	}
	c.logs()
	c.sends()
	c.inboxes()
	for _, d := range h.Devices {
		c.deliveries(d)
		c.topics(d)
	}
	c.reads()
	c.links()
	return c.faults
}

type checker struct {
	h       *history
	devices map[string]party
	sent    map[string][]send // by cid, in the order of their ends
	stored  map[string]entry  // by cid
	faults  []fault
}

func (c *checker) fault(kind, format string, args ...any) {
	c.faults = append(c.faults, fault{kind, fmt.Sprintf(format, args...)})
}

func isTopic(conv string) bool { return strings.HasPrefix(conv, "t/") }

func number(id string) uint64 {
	n, _ := strconv.ParseUint(id, 10, 63)
	return n
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (c *checker) logs() {
	ids := map[string]string{}
	for _, conv := range sortedKeys(c.h.Logs) {
		last := uint64(0)
		for i, e := range c.h.Logs[conv] {
			if e.Cseq != uint64(i+1) {
				c.fault(cseqHole, "%s: message %d of the log has cseq %d (%s)", conv, i+1, e.Cseq, e.Cid)
			}
			if n := number(e.ID); n <= last {
				c.fault(idOrder, "%s: cseq %d has id %d, the one before it %d", conv, e.Cseq, n, last)
			} else {
				last = n
			}
			if at, seen := ids[e.ID]; seen {
				c.fault(repeatedID, "id %s: %s/%d and %s", e.ID, conv, e.Cseq, at)
			}
			ids[e.ID] = fmt.Sprintf("%s/%d", conv, e.Cseq)
			if e.Sys {
				continue
			}
			if first, seen := c.stored[e.Cid]; seen {
				c.fault(storedTwice, "%s: as %s/%d (id %s) and %s/%d (id %s)", e.Cid, first.Conv, first.Cseq, first.ID, conv, e.Cseq, e.ID)
				continue
			}
			e.Conv = conv
			c.stored[e.Cid] = e
			if list := c.sent[e.Cid]; len(list) == 0 || list[0].Conv != conv || c.devices[list[0].Device].User != e.From {
				c.fault(invented, "%s/%d: %q from %s", conv, e.Cseq, e.Cid, e.From)
			}
		}
		c.realTime(conv)
	}
}

// begun is when the first attempt to send a message began, done when it was known to be stored first.
func (c *checker) begun(cid string) time.Duration {
	list := c.sent[cid]
	if len(list) == 0 {
		return 0
	}
	return slices.MinFunc(list, func(a, b send) int { return cmp.Compare(a.Begin, b.Begin) }).Begin
}

const never = time.Duration(1<<63 - 1)

func (c *checker) done(cid string) time.Duration {
	for _, s := range c.sent[cid] {
		if s.Outcome == ok {
			return s.End
		}
	}
	return never
}

// realTime: what was acknowledged before something else was sent comes before it.
func (c *checker) realTime(conv string) {
	earliest, of := never, entry{}
	for _, e := range slices.Backward(c.h.Logs[conv]) {
		if e.Sys {
			continue
		}
		if b := c.begun(e.Cid); earliest < b {
			c.fault(realTime, "%s: %s has cseq %d and was sent at %v, when %s, cseq %d, had been acknowledged at %v", conv, e.Cid, e.Cseq, b, of.Cid, of.Cseq, earliest)
		}
		if d := c.done(e.Cid); d < earliest {
			earliest, of = d, e
		}
	}
}

func (c *checker) sends() {
	for _, cid := range sortedKeys(c.sent) {
		list := c.sent[cid]
		if isTopic(list[0].Conv) {
			continue
		}
		e, kept := c.stored[cid]
		allRefused := true
		for _, s := range list {
			if s.Outcome == ok {
				if !kept {
					c.fault(lostAck, "%s: acknowledged at %v with id %s, not in %s", cid, s.End, s.ID, s.Conv)
				} else if s.ID != "" && s.ID != e.ID || s.Cseq != 0 && s.Cseq != e.Cseq {
					c.fault(otherAnswer, "%s: answered at %v with id %s, cseq %d; stored with %s, %d", cid, s.End, s.ID, s.Cseq, e.ID, e.Cseq)
				}
				if s.Dup && allRefused {
					c.fault(refusedKept, "%s: stored already at %v, when all answers had been refusals", cid, s.Begin)
				}
			}
			allRefused = allRefused && s.Outcome == refused
		}
		if allRefused && kept {
			c.fault(refusedKept, "%s: refused with %q, and in %s", cid, list[0].Code, e.Conv)
		}
	}
}

// has reports whether a user's inbox gets what is sent to a conversation, and large whether it is read from the log instead.
func (c *checker) has(user, conv string) (inbox, large bool) {
	if g, found := c.h.Groups[strings.TrimPrefix(conv, "g/")]; found && strings.HasPrefix(conv, "g/") {
		member := slices.Contains(g.Members, user)
		return member && !g.Large, member && g.Large
	}
	a, b, _ := strings.Cut(conv, "|")
	return user == a || user == b, false
}

func (c *checker) inboxes() {
	for _, user := range sortedKeys(c.h.Inboxes) {
		found := map[string]bool{}
		last := map[string]uint64{}
		for i, e := range c.h.Inboxes[user] {
			if e.Seq != uint64(i+1) {
				c.fault(seqHole, "inbox of %s: entry %d has seq %d (%s)", user, i+1, e.Seq, e.Cid)
			}
			if e.Sys {
				continue
			}
			at, kept := c.stored[e.Cid]
			belongs, _ := c.has(user, at.Conv)
			if !kept || !belongs || at.ID != e.ID || at.Cseq != e.Cseq {
				c.fault(foreignInbox, "inbox of %s, seq %d: %s (id %s, cseq %d); the log of %s has id %s, cseq %d", user, e.Seq, e.Cid, e.ID, e.Cseq, at.Conv, at.ID, at.Cseq)
				continue
			}
			if e.Cseq <= last[at.Conv] || found[e.Cid] {
				c.fault(seqHole, "inbox of %s, seq %d: cseq %d of %s comes after %d", user, e.Seq, e.Cseq, at.Conv, last[at.Conv])
			}
			last[at.Conv] = e.Cseq
			found[e.Cid] = true
		}
		for _, cid := range sortedKeys(c.stored) {
			e := c.stored[cid]
			if belongs, _ := c.has(user, e.Conv); belongs && !found[cid] {
				c.fault(lostInbox, "inbox of %s: %s, %s/%d", user, cid, e.Conv, e.Cseq)
			}
		}
	}
}

// place is where a device expects a message: a stream ("": the inbox) and the position in it.
type place struct {
	stream string
	i      int
}

// where is where the order of deliveries counts: in a stream, and for a device that two clients claim at once, in one of
// its connections, as nobody can tell in which order these two got what.
type where struct {
	stream string
	conn   int
}

// expected are the messages that a device is entitled to: everything of its user's that another device has sent.
func (c *checker) expected(d party) (map[string]place, map[string][]entry) {
	places, streams := map[string]place{}, map[string][]entry{}
	take := func(stream string, list []entry) {
		for _, e := range list {
			if by := c.sent[e.Cid]; e.Sys || len(by) == 0 || by[0].Device == d.ID {
				continue
			}
			places[e.Cid] = place{stream, len(streams[stream])}
			streams[stream] = append(streams[stream], e)
		}
	}
	take("", c.h.Inboxes[d.User])
	for _, conv := range sortedKeys(c.h.Logs) {
		if _, large := c.has(d.User, conv); large {
			take(conv, c.h.Logs[conv])
		}
	}
	return places, streams
}

func (c *checker) deliveries(d party) {
	places, streams := c.expected(d)
	got, seen := map[string]bool{}, map[int]map[string]bool{}
	next := map[where]int{} // the position that comes first now
	for _, x := range c.h.Deliveries {
		if x.Device != d.ID || isTopic(x.Conv) {
			continue
		}
		e, kept := c.stored[x.Cid]
		at, entitled := places[x.Cid]
		switch {
		case len(c.sent[x.Cid]) == 0:
			c.fault(invented, "%s got %q at %v", d.ID, x.Cid, x.At)
			continue
		case !kept:
			c.fault(unstored, "%s got %s at %v", d.ID, x.Cid, x.At)
			continue
		case !entitled:
			c.fault(strayed, "%s got %s of %s at %v", d.ID, x.Cid, e.Conv, x.At)
			continue
		}
		want := streams[at.stream][at.i]
		if x.ID != "" && (x.ID != e.ID || x.Cseq != e.Cseq || x.Conv != e.Conv || at.stream == "" && x.Seq != want.Seq) {
			c.fault(otherForm, "%s got %s at %v as %s/%d, id %s, seq %d; stored is %s/%d, id %s, seq %d",
				d.ID, x.Cid, x.At, x.Conv, x.Cseq, x.ID, x.Seq, e.Conv, e.Cseq, e.ID, want.Seq)
		}
		again := got[x.Cid]
		got[x.Cid] = true
		here := where{at.stream, 0}
		if d.Twins {
			here.conn = x.Conn
			if seen[x.Conn] == nil {
				seen[x.Conn] = map[string]bool{}
			}
			again = seen[x.Conn][x.Cid]
			seen[x.Conn][x.Cid] = true
		}
		if again {
			continue
		}
		switch n := next[here]; {
		case at.i < n:
			c.fault(late, "%s got %s, position %d of %q, at %v on connection %d, after position %d", d.ID, x.Cid, at.i, at.stream, x.At, x.Conn, n-1)
		case at.i > n && !d.Twins:
			c.fault(skipped, "%s got %s, position %d of %q, at %v on connection %d, when %d was next", d.ID, x.Cid, at.i, at.stream, x.At, x.Conn, n)
			fallthrough
		default:
			next[here] = at.i + 1
		}
	}
	for _, stream := range sortedKeys(streams) {
		for _, e := range streams[stream] {
			if !got[e.Cid] {
				c.fault(lostDevice, "%s never got %s, %s/%d seq %d, acknowledged at %v", d.ID, e.Cid, e.Conv, e.Cseq, e.Seq, c.done(e.Cid))
			}
		}
	}
}

// topics: a subscriber whose session lasts gets every publication that was acknowledged, and of one publisher's first what
// was acknowledged before the other was sent.
func (c *checker) topics(d party) {
	got := map[string]bool{}
	var order []string
	for _, x := range c.h.Deliveries {
		if x.Device != d.ID || !isTopic(x.Conv) {
			continue
		}
		list := c.sent[x.Cid]
		switch {
		case len(list) == 0:
			c.fault(invented, "%s got %q on %s", d.ID, x.Cid, x.Conv)
			continue
		case list[0].Conv != x.Conv || !slices.Contains(d.Topics, x.Conv):
			c.fault(strayed, "%s got %s of %s on %s", d.ID, x.Cid, list[0].Conv, x.Conv)
			continue
		}
		if !got[x.Cid] {
			got[x.Cid] = true
			order = append(order, x.Cid)
		}
	}
	type first struct {
		at  time.Duration
		cid string
	}
	earliest := map[string]first{} // by publisher
	for _, cid := range slices.Backward(order) {
		by := c.sent[cid][0].Device
		e, found := earliest[by]
		if b := c.begun(cid); found && e.at < b {
			c.fault(late, "%s got %s, sent at %v, before %s, which had been acknowledged at %v", d.ID, cid, b, e.cid, e.at)
		}
		if at := c.done(cid); !found || at < e.at {
			earliest[by] = first{at, cid}
		}
	}
	for _, cid := range sortedKeys(c.sent) {
		if conv := c.sent[cid][0].Conv; isTopic(conv) && slices.Contains(d.Topics, conv) && !got[cid] && c.done(cid) != never {
			c.fault(lostDevice, "%s never got %s of %s, acknowledged at %v", d.ID, cid, conv, c.done(cid))
		}
	}
}

func (c *checker) reads() {
	for _, r := range c.h.Reads {
		newest := uint64(0)
		for i, e := range r.Entries {
			if i > 0 && e.Cseq != newest+1 {
				c.fault(wrongRead, "%s read %s at %v: cseq %d after %d", r.User, r.Conv, r.Begin, e.Cseq, newest)
			}
			newest = e.Cseq
			if at, kept := c.stored[e.Cid]; !e.Sys && (!kept || at.ID != e.ID || at.Cseq != e.Cseq || at.Conv != r.Conv) {
				c.fault(wrongRead, "%s read %s at %v: %s, id %s, cseq %d; stored is %+v", r.User, r.Conv, r.Begin, e.Cid, e.ID, e.Cseq, at)
			}
		}
		for _, s := range c.h.Sends {
			if e := c.stored[s.Cid]; s.Outcome == ok && s.Conv == r.Conv && s.End < r.Begin && c.devices[s.Device].User == r.User && e.Cseq > newest {
				c.fault(staleRead, "%s read %s at %v up to cseq %d, and had %s, cseq %d, acknowledged at %v", r.User, r.Conv, r.Begin, newest, s.Cid, e.Cseq, s.End)
			}
		}
	}
}

func (c *checker) links() {
	list := slices.SortedFunc(slices.Values(c.h.Links), func(a, b link) int { return cmp.Compare(a.From, b.From) })
	for i, a := range list {
		for _, b := range list[i+1:] {
			if b.Device != a.Device {
				continue
			}
			if both := min(a.To, b.To) - b.From; both > c.h.TakeOver {
				c.fault(twoLive, "%s: connections %d and %d for %v from %v on", a.Device, a.Conn, b.Conn, both, b.From)
			}
		}
	}
}
