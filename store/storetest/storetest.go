// Package storetest is the conformance suite for drivers of package store. A driver's own test calls Run and adds
// what only it can break: crashes, full disks, cut connections.
package storetest

import (
	"context"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/mqim/mqim/store"
)

// Open opens the store in dir, making it the first time; opening dir again after Close shows what was stored. The
// retention may differ from one opening to the next. Cleaning up is the driver test's business; a second Close must
// do no harm.
type Open func(t *testing.T, dir string, r store.Retention) store.Store

// Run runs the whole suite.
func Run(t *testing.T, open Open) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, *env)
	}{
		{"Numbering", testNumbering},
		{"NumberingConcurrent", testNumberingConcurrent},
		{"EmptyBatch", testEmptyBatch},
		{"FieldsSurvive", testFields},
		{"LargeBatch", testLargeBatch},
		{"DuplicateSameBatch", testDupSameBatch},
		{"DuplicateOtherBatch", testDupOtherBatch},
		{"DuplicateWindow", testDupWindow},
		{"DuplicateClockBack", testDupClockBack},
		{"Conflict", testConflict},
		{"InboxPaging", testInboxPaging},
		{"InboxPageBytes", testInboxPageBytes},
		{"InboxReadWhileCommitting", testReadWhileCommitting},
		{"InboxMessagesBound", testInboxMessages},
		{"InboxTTL", testInboxTTL},
		{"InboxTTLClockBack", testInboxTTLClockBack},
		{"TrimPassedByCursors", testTrimCursors},
		{"SeqNeverRestarts", testSeqNeverRestarts},
		{"HistoryPaging", testHistoryPaging},
		{"HistoryPageBytes", testHistoryPageBytes},
		{"HistoryTTL", testHistoryTTL},
		{"Message", testMessage},
		{"Recall", testRecall},
		{"Delete", testDelete},
		{"UnreadDirect", testUnreadDirect},
		{"UnreadGroup", testUnreadGroup},
		{"UnreadGroupTTL", testUnreadGroupTTL},
		{"ConversationGroup", testConversationGroup},
		{"Watermarks", testWatermarks},
		{"ConversationLast", testConversationLast},
		{"ListConversations", testList},
		{"ListGroups", testListGroups},
		{"Sent", testSent},
		{"Notices", testNotices},
		{"NoticesRetention", testNoticesRetention},
		{"GroupRecord", testGroupRecord},
		{"GroupSend", testGroupSend},
		{"GroupMembers", testGroupMembers},
		{"GroupSpans", testGroupSpans},
		{"GroupLarge", testGroupLarge},
		{"GroupReceipts", testGroupReceipts},
		{"Blocks", testBlocks},
		{"UsersAndDevices", testUsersAndDevices},
		{"DeviceExpiry", testDeviceExpiry},
		{"Sessions", testSessions},
		{"Match", testMatch},
		{"Queue", testQueue},
		{"QueueShared", testQueueShared},
		{"QueueLimits", testQueueLimits},
		{"QueuePageBytes", testQueuePageBytes},
		{"Inflight", testInflight},
		{"InboundWith", testInboundWith},
		{"Retained", testRetained},
		{"RetainedLimits", testRetainedLimits},
		{"Wills", testWills},
		{"Claims", testClaims},
		{"Living", testLiving},
		{"ClaimsTogether", testClaimsTogether},
		{"Fences", testFences},
		{"FencedInbound", testFencedInbound},
		{"ClaimsGo", testClaimsGo},
		{"Writes", testWrites},
		{"Heads", testHeads},
		{"Epoch", testEpoch},
		{"Closed", testClosed},
		{"Canceled", testCanceled},
		{"Model", testModel},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := &env{T: t, open: open, dir: t.TempDir(), clock: time.Now().UnixMilli()}
			c.run(t, e)
		})
	}
}

// env is one test's store and the shorthands for using it. Every shorthand fails the test on an error.
type env struct {
	*testing.T
	open  Open
	dir   string
	ret   store.Retention
	st    store.Store
	clock int64 // TS of the next message, Unix milliseconds; rises by one with each
}

var ctx = context.Background()

func (e *env) start(r store.Retention) *env {
	e.Helper()
	e.ret = r
	e.st = e.open(e.T, e.dir, r)
	return e
}

func (e *env) reopen() {
	e.Helper()
	if err := e.st.Close(); err != nil {
		e.Fatalf("close: %v", err)
	}
	e.start(e.ret)
}

// msg makes a message from one user to a conversation; everybody in to, and the sender, gets an inbox entry.
func (e *env) msg(conv store.Conv, from string, to ...string) *store.Send {
	e.clock++
	s := &store.Send{Message: store.Message{
		Conv: conv, From: from, Device: "d1", Type: "text", TS: e.clock, Body: fmt.Appendf(nil, "body %d", e.clock),
	}}
	for _, u := range append([]string{from}, to...) {
		s.Inboxes = append(s.Inboxes, store.InboxRef{User: u})
	}
	return s
}

// direct makes a message between two users.
func (e *env) direct(from, to string) *store.Send {
	if from == to {
		return e.msg(store.Direct(from, to), from)
	}
	return e.msg(store.Direct(from, to), from, to)
}

func (e *env) commit(b *store.Batch) {
	e.Helper()
	if err := e.st.Commit(ctx, b); err != nil {
		e.Fatalf("commit: %v", err)
	}
}

func (e *env) send(ms ...*store.Send) {
	e.Helper()
	e.commit(&store.Batch{Sends: ms})
}

// sendN commits n messages, in batches of per.
func (e *env) sendN(n, per int, make func(i int) *store.Send) []*store.Send {
	e.Helper()
	var all, b []*store.Send
	for i := range n {
		b = append(b, make(i))
		if len(b) == per || i == n-1 {
			e.send(b...)
			all = append(all, b...)
			b = nil
		}
	}
	return all
}

func (e *env) inbox(user string) store.Inbox {
	e.Helper()
	b, err := e.st.Inbox(ctx, user)
	if err != nil {
		e.Fatalf("inbox of %s: %v", user, err)
	}
	return b
}

func (e *env) read(user string, after uint64, limit int) []store.Entry {
	e.Helper()
	list, err := e.st.ReadInbox(ctx, user, after, limit, nil)
	if err != nil {
		e.Fatalf("read inbox of %s: %v", user, err)
	}
	return list
}

// drain reads an inbox to its end in pages.
func (e *env) drain(user string, after uint64, limit int) []store.Entry {
	e.Helper()
	var all []store.Entry
	for {
		page := e.read(user, after, limit)
		if len(page) == 0 {
			return all
		}
		if len(page) > limit {
			e.Fatalf("page of %d, limit is %d", len(page), limit)
		}
		for i, x := range page {
			if x.Seq <= after || i > 0 && x.Seq != after+1 {
				e.Fatalf("inbox of %s: seq %d after %d", user, x.Seq, after)
			}
			after = x.Seq
		}
		all = append(all, page...)
	}
}

func (e *env) history(user string, conv store.Conv, r store.Range) []*store.Message {
	e.Helper()
	list, err := e.st.History(ctx, user, conv, r)
	if err != nil {
		e.Fatalf("history of %s: %v", conv, err)
	}
	return list
}

func (e *env) conv(user string, conv store.Conv) store.Conversation {
	e.Helper()
	c, err := e.st.Conversation(ctx, user, conv)
	if err != nil {
		e.Fatalf("conversation %s: %v", conv, err)
	}
	return c
}

func (e *env) unread(user string, conv store.Conv, want uint64) {
	e.Helper()
	if got := e.conv(user, conv).Unread; got != want {
		e.Errorf("unread of %s in %s: got %d, want %d", user, conv, got, want)
	}
}

// maintain runs Maintain until nothing more is waiting.
func (e *env) maintain(now time.Time) {
	e.Helper()
	for range 10_000 {
		more, err := e.st.Maintain(ctx, now)
		if err != nil {
			e.Fatalf("maintain: %v", err)
		}
		if !more {
			return
		}
	}
	e.Fatal("maintain: always more to do")
}

func (e *env) equal(what string, got, want any) {
	e.Helper()
	if reflect.DeepEqual(got, want) {
		return // cmp takes its time over long bodies
	}
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		e.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func cseqs(list []*store.Message) []uint64 {
	var out []uint64
	for _, m := range list {
		out = append(out, m.Cseq)
	}
	return out
}

func seqs(list []store.Entry) []uint64 {
	var out []uint64
	for _, m := range list {
		out = append(out, m.Seq)
	}
	return out
}

// count is the numbers from … to.
func count(from, to uint64) []uint64 {
	var out []uint64
	for n := from; n <= to; n++ {
		out = append(out, n)
	}
	return out
}
