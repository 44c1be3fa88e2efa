package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
)

func (e *env) notices(to string, since int64, limit int) []store.Notice {
	e.Helper()
	list, _, err := e.st.Notices(ctx, to, since, "", limit)
	if err != nil {
		e.Fatalf("notices to %s: %v", to, err)
	}
	return list
}

func testNotices(t *testing.T, e *env) {
	e.start(store.Retention{})
	e.equal("none yet", e.notices("ann", 0, 5), []store.Notice(nil))
	var want []store.Notice
	for i := range int64(20) {
		want = append(want, store.Notice{To: "ann", TS: e.clock + i, Payload: fmt.Appendf(nil, `{"n":%d}`, i)})
	}
	for i := 19; i >= 0; i -= 4 { // in another order than that of time
		e.commit(&store.Batch{Notices: append([]store.Notice{{To: "g/x", TS: want[i].TS, Payload: []byte("x")}}, want[i-3:i+1]...)})
	}
	e.commit(&store.Batch{Notices: []store.Notice{want[3], want[3], {To: "anna", TS: e.clock, Payload: []byte("y")}}})
	for range 2 {
		e.equal("all", e.notices("ann", 0, 100), want)
		e.equal("since long ago", e.notices("ann", -5, 100), want)
		e.equal("since one", e.notices("ann", want[7].TS, 100), want[7:])
		e.equal("later", e.notices("ann", want[19].TS+1, 100), []store.Notice(nil))
		e.equal("a page", e.notices("ann", want[4].TS, 3), want[4:7])
		e.equal("of a group", len(e.notices("g/x", 0, 100)), 5)
		e.equal("of the next name", len(e.notices("anna", 0, 100)), 1)
		var paged []store.Notice
		since := int64(0)
		for {
			page := e.notices("ann", since, 6)
			if len(page) == 0 {
				break
			}
			paged = append(paged, page...)
			since = page[len(page)-1].TS + 1
		}
		e.equal("in pages", paged, want)
		e.reopen()
	}
	same := e.clock + 100
	for i := range 25 {
		e.commit(&store.Batch{Notices: []store.Notice{{To: "ann", TS: same + int64(i/20), Payload: fmt.Append(nil, i)}}})
	}
	at := e.notices("ann", same, 100)
	e.equal("at two times", len(at), 25)
	for limit := 1; limit <= 26; limit++ {
		var paged []store.Notice
		for after := ""; ; {
			page, next, err := e.st.Notices(ctx, "ann", same, after, limit)
			if err != nil || len(page) != min(limit, 25-len(paged)) {
				t.Fatalf("a page of %d after %d of 25, limit %d: %v", len(page), len(paged), limit, err)
			}
			if paged = append(paged, page...); next == "" {
				break
			}
			after = next
		}
		e.equal(fmt.Sprint("by pages of ", limit), paged, at)
	}
	if err := e.st.Commit(ctx, &store.Batch{Notices: []store.Notice{{TS: 1}}}); err == nil {
		t.Error("a notice to nobody is stored")
	}
}

// testNoticesRetention: notices are kept as long as entries of inboxes, or for 30 days.
func testNoticesRetention(_ *testing.T, e *env) {
	const day = 24 * time.Hour
	for _, ttl := range []time.Duration{0, day} {
		e.dir = e.TempDir()
		e.start(store.Retention{InboxTTL: ttl})
		age := max(ttl, 0)
		if ttl == 0 {
			age = 30 * day
		}
		now := time.UnixMilli(e.clock)
		at := func(age time.Duration) store.Notice {
			return store.Notice{To: "ann", TS: now.Add(-age).UnixMilli(), Payload: []byte("z")}
		}
		young := []store.Notice{at(age - time.Minute), at(0)}
		b := &store.Batch{Notices: append([]store.Notice{at(2 * age), at(age + time.Minute)}, young...)}
		for i := range 3000 { // more than a piece
			n := at(age + time.Hour)
			n.To = fmt.Sprint("u", i)
			b.Notices = append(b.Notices, n)
		}
		e.commit(b)
		e.maintain(now)
		e.reopen()
		e.equal("what is left", e.notices("ann", 0, 10), young)
		for i := range 3000 {
			e.equal("what is left", e.notices(fmt.Sprint("u", i), 0, 1), []store.Notice(nil))
		}
		e.st.Close()
	}
}
