package cluster

import (
	"slices"
	"testing"
	"time"
)

// good is a history in which all went well: alice (two devices), bob and carol, a small group of all three, a large one of
// alice and bob, and a subscriber of a topic.
func good() *history {
	h := newHistory()
	h.TakeOver = 5
	h.Devices = []party{{ID: "a1", User: "alice"}, {ID: "a2", User: "alice"}, {ID: "b1", User: "bob"}, {ID: "c1", User: "carol"},
		{ID: "p1", User: "pump"}, {ID: "s1", User: "sub", Topics: []string{"t/x"}}}
	h.Groups = map[string]group{"team": {Members: []string{"alice", "bob", "carol"}}, "crowd": {Members: []string{"alice", "bob"}, Large: true}}
	h.Sends = []send{
		{Cid: "m1", Device: "a1", Conv: "alice|bob", Begin: 10, End: 20, Outcome: unknown},
		{Cid: "m1", Device: "a1", Conv: "alice|bob", Begin: 25, End: 30, Outcome: ok, ID: "101", Cseq: 1, Dup: true},
		{Cid: "m2", Device: "b1", Conv: "alice|bob", Begin: 40, End: 50, Outcome: refused, Code: "unavailable"},
		{Cid: "m2", Device: "b1", Conv: "alice|bob", Begin: 60, End: 70, Outcome: ok, ID: "102", Cseq: 2},
		{Cid: "m3", Device: "c1", Conv: "g/team", Begin: 80, End: 90, Outcome: ok},
		{Cid: "m4", Device: "b1", Conv: "g/crowd", Begin: 100, End: 110, Outcome: ok, ID: "104", Cseq: 2},
		{Cid: "m5", Device: "b1", Conv: "g/crowd", Begin: 120, End: 130, Outcome: ok, ID: "105", Cseq: 3},
		{Cid: "m6", Device: "a2", Conv: "alice|bob", Begin: 140, End: 150, Outcome: ok, ID: "106", Cseq: 3},
		{Cid: "p1", Device: "p1", Conv: "t/x", Begin: 160, End: 170, Outcome: ok},
		{Cid: "p2", Device: "p1", Conv: "t/x", Begin: 180, End: 190, Outcome: ok},
	}
	h.Logs = map[string][]entry{
		"alice|bob": {{ID: "101", Cid: "m1", From: "alice", Cseq: 1}, {ID: "102", Cid: "m2", From: "bob", Cseq: 2}, {ID: "106", Cid: "m6", From: "alice", Cseq: 3}},
		"g/team":    {{ID: "50", Cseq: 1, Sys: true}, {ID: "103", Cid: "m3", From: "carol", Cseq: 2}},
		"g/crowd":   {{ID: "51", Cseq: 1, Sys: true}, {ID: "104", Cid: "m4", From: "bob", Cseq: 2}, {ID: "105", Cid: "m5", From: "bob", Cseq: 3}},
	}
	inbox := []entry{{ID: "50", Cseq: 1, Seq: 1, Sys: true}, {ID: "101", Cid: "m1", Cseq: 1, Seq: 2}, {ID: "102", Cid: "m2", Cseq: 2, Seq: 3},
		{ID: "103", Cid: "m3", Cseq: 2, Seq: 4}, {ID: "106", Cid: "m6", Cseq: 3, Seq: 5}}
	h.Inboxes = map[string][]entry{"alice": inbox, "bob": slices.Clone(inbox),
		"carol": {{ID: "50", Cseq: 1, Seq: 1, Sys: true}, {ID: "103", Cid: "m3", Cseq: 2, Seq: 2}}}
	full := map[string]delivery{
		"m1": {Cid: "m1", Conv: "alice|bob", ID: "101", Cseq: 1, Seq: 2}, "m2": {Cid: "m2", Conv: "alice|bob", ID: "102", Cseq: 2, Seq: 3},
		"m3": {Cid: "m3", Conv: "g/team", ID: "103", Cseq: 2, Seq: 4}, "m4": {Cid: "m4", Conv: "g/crowd", ID: "104", Cseq: 2},
		"m5": {Cid: "m5", Conv: "g/crowd", ID: "105", Cseq: 3}, "m6": {Cid: "m6", Conv: "alice|bob", ID: "106", Cseq: 3, Seq: 5},
		"p1": {Cid: "p1", Conv: "t/x"}, "p2": {Cid: "p2", Conv: "t/x"},
	}
	for _, x := range []struct {
		device string
		cids   []string
	}{{"a1", []string{"m2", "m4", "m3", "m2", "m5", "m6"}}, {"a2", []string{"m1", "m2", "m3", "m4", "m5"}}, {"b1", []string{"m1", "m3", "m6", "m3", "m6"}}, {"s1", []string{"p1", "p1", "p2"}}} {
		for _, cid := range x.cids {
			d := full[cid]
			d.Device = x.device
			h.Deliveries = append(h.Deliveries, d)
		}
	}
	h.Deliveries[3].ID, h.Deliveries[3].Seq, h.Deliveries[3].Cseq = "", 0, 0 // a profile that tells only the body
	h.Reads = []read{{User: "alice", Conv: "alice|bob", Begin: 200, End: 210, Entries: slices.Clone(h.Logs["alice|bob"])}}
	h.Links = []link{{"a1", 1, 0, 100}, {"a1", 2, 98, 200}, {"b1", 1, 0, 200}}
	return h
}

func TestCheckGood(t *testing.T) {
	for _, f := range check(good()) {
		t.Errorf("%s: %s", f.Kind, f.Text)
	}
}

// TestCheckBad: each kind of fault is found in a history that has it.
func TestCheckBad(t *testing.T) {
	drop := func(h *history, device, cid string) {
		h.Deliveries = slices.DeleteFunc(h.Deliveries, func(d delivery) bool { return d.Device == device && d.Cid == cid })
	}
	first := func(h *history, device, cid string) *delivery {
		return &h.Deliveries[slices.IndexFunc(h.Deliveries, func(d delivery) bool { return d.Device == device && d.Cid == cid })]
	}
	swap := func(h *history, device, one, other string) {
		a, b := first(h, device, one), first(h, device, other)
		*a, *b = *b, *a
	}
	for _, x := range []struct {
		name string
		harm func(h *history)
		want string
	}{
		{"an acknowledged message is not stored", func(h *history) { h.Logs["alice|bob"] = h.Logs["alice|bob"][:2] }, lostAck},
		{"a device misses the last message of its inbox", func(h *history) { drop(h, "a1", "m6") }, lostDevice},
		{"the sender's other device misses one", func(h *history) { drop(h, "a2", "m1") }, lostDevice},
		{"a device misses a message of a large group", func(h *history) { drop(h, "a2", "m5") }, lostDevice},
		{"a subscriber misses an acknowledged publication", func(h *history) { drop(h, "s1", "p2") }, lostDevice},
		{"an inbox has no entry", func(h *history) { h.Inboxes["bob"] = h.Inboxes["bob"][:4] }, lostInbox},
		{"an inbox has what is nobody's", func(h *history) {
			h.Inboxes["carol"] = append(h.Inboxes["carol"], entry{ID: "101", Cid: "m1", Cseq: 1, Seq: 3})
		}, foreignInbox},
		{"an inbox has another id than the log", func(h *history) { h.Inboxes["bob"][1].ID = "999" }, foreignInbox},
		{"two messages of two conversations have one id", func(h *history) { h.Logs["g/team"][1].ID = "104" }, repeatedID},
		{"an id is smaller than the one before", func(h *history) { h.Logs["alice|bob"][2].ID = "99" }, idOrder},
		{"ids are compared as numbers", func(h *history) { h.Logs["g/crowd"][0].ID = "1051" }, idOrder},
		{"a cseq is missing", func(h *history) { h.Logs["g/crowd"] = slices.Delete(h.Logs["g/crowd"], 1, 2) }, cseqHole},
		{"a cseq is there twice", func(h *history) { h.Logs["alice|bob"][2].Cseq = 2 }, cseqHole},
		{"a seq is missing", func(h *history) { h.Inboxes["carol"][1].Seq = 3 }, seqHole},
		{"an inbox has a conversation in another order", func(h *history) {
			in := h.Inboxes["alice"]
			in[1], in[2] = in[2], in[1]
			in[1].Seq, in[2].Seq = 2, 3
		}, seqHole},
		{"a repeated message is stored again", func(h *history) {
			h.Logs["alice|bob"] = append(h.Logs["alice|bob"], entry{ID: "107", Cid: "m1", From: "alice", Cseq: 4})
		}, storedTwice},
		{"a repeated cid is answered with another id", func(h *history) { h.Sends[1].ID = "100" }, otherAnswer},
		{"an answer has another cseq", func(h *history) { h.Sends[3].Cseq = 7 }, otherAnswer},
		{"a refused message is stored", func(h *history) { h.Sends[4].Outcome = refused }, refusedKept},
		{"a refused message turns out to be stored", func(h *history) { h.Sends[3].Dup = true }, refusedKept},
		{"a later message has a smaller cseq", func(h *history) { h.Sends[5].Begin, h.Sends[5].End = 140, 150 }, realTime},
		{"the log has what nobody sent", func(h *history) {
			h.Logs["g/team"] = append(h.Logs["g/team"], entry{ID: "200", Cid: "x", From: "bob", Cseq: 3})
		}, invented},
		{"the log has another sender", func(h *history) { h.Logs["g/team"][1].From = "bob" }, invented},
		{"a device gets what nobody sent", func(h *history) { first(h, "b1", "m3").Cid = "x" }, invented},
		{"a subscriber gets what nobody sent", func(h *history) { first(h, "s1", "p1").Cid = "x" }, invented},
		{"a device gets what is not stored", func(h *history) {
			h.Sends = append(h.Sends, send{Cid: "x", Device: "a1", Conv: "alice|bob", Begin: 300, End: 310})
			h.Deliveries = append(h.Deliveries, delivery{Device: "b1", Cid: "x", Conv: "alice|bob", ID: "300", Cseq: 4, Seq: 6})
		}, unstored},
		{"a device gets its own message", func(h *history) { h.Deliveries = append(h.Deliveries, delivery{Device: "a1", Cid: "m1"}) }, strayed},
		{"a stranger gets a message", func(h *history) { h.Deliveries = append(h.Deliveries, delivery{Device: "c1", Cid: "m4"}) }, strayed},
		{"a subscriber gets another topic", func(h *history) { first(h, "s1", "p1").Conv = "t/y" }, strayed},
		{"a message comes again with another id", func(h *history) { h.Deliveries[len(h.Deliveries)-4].ID = "1" }, otherForm},
		{"a message comes with another seq", func(h *history) { first(h, "b1", "m1").Seq = 9 }, otherForm},
		{"two messages of an inbox change places", func(h *history) { swap(h, "a2", "m1", "m2") }, late},
		{"two messages of a large group change places", func(h *history) { swap(h, "a1", "m4", "m5") }, skipped},
		{"two publications change places", func(h *history) {
			drop(h, "s1", "p1")
			h.Deliveries = append(h.Deliveries, delivery{Device: "s1", Cid: "p1", Conv: "t/x"})
		}, late},
		{"two messages on one of two connections change places", func(h *history) {
			h.Devices[1].Twins = true
			for i := range h.Deliveries {
				h.Deliveries[i].Conn = 1
			}
			first(h, "a2", "m1").Conn = 2 // as if both had it
			swap(h, "a2", "m2", "m3")
		}, late},
		{"history misses what the reader wrote", func(h *history) { h.Reads[0].Entries = h.Reads[0].Entries[:2] }, staleRead},
		{"history has a hole", func(h *history) { h.Reads[0].Entries = slices.Delete(h.Reads[0].Entries, 1, 2) }, wrongRead},
		{"history has another id", func(h *history) { h.Reads[0].Entries[1].ID = "1" }, wrongRead},
		{"two connections live for long", func(h *history) { h.Links[1].From = 90 * time.Nanosecond }, twoLive},
	} {
		t.Run(x.name, func(t *testing.T) {
			h := good()
			x.harm(h)
			list := check(h)
			if !slices.ContainsFunc(list, func(f fault) bool { return f.Kind == x.want }) {
				t.Errorf("got %v, want %q among them", list, x.want)
			}
		})
	}
}
