package mysql

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"time"

	"github.com/mqim/mqim/store"
)

// How much one call of Maintain looks at, per job. It keeps a call to some tens of milliseconds.
const (
	maintainRows    = 1000
	maintainInboxes = 256
	maintainConvs   = 128
	maintainChunks  = 256 // of one conversation
)

const (
	trimPassed  = 1024 // entries that every cursor has passed, before they are worth a deletion
	trimExpired = 64   // the same for entries that retention lets go of
	passRest    = 20   // a job rests for this many times as long as its last pass took: it costs 5 % at most
	writerTTL   = 7 * 24 * time.Hour
	noticeTTL   = 30 * 24 * time.Hour // where inbox entries are kept for ever
)

// job is a walk over a table by its key in pieces, one a call.
type job[K any] struct {
	pos   K
	going bool          // pos is within a pass
	spent time.Duration // so far in this pass
	rest  time.Time     // no new pass before
}

// step runs a piece of the job, unless it rests between two passes; it reports whether the pass goes on.
func (j *job[K]) step(run func(pos K) (next K, more bool, err error)) (more bool, err error) {
	start := time.Now()
	if !j.going && start.Before(j.rest) {
		return false, nil
	}
	next, more, err := run(j.pos)
	if err != nil {
		return false, err
	}
	j.pos, j.going = next, more
	j.spent += time.Since(start)
	if !more {
		var none K
		j.pos = none
		j.rest = time.Now().Add(passRest * j.spent)
		j.spent = 0
	}
	return more, nil
}

// maintainer is where Maintain's jobs have come to.
type maintainer struct {
	inboxes, convs, cids, writers job[string]
	devices                       job[store.DeviceKey]
	deletions, owns               job[userPlace]
	notices                       job[noticeKey]
	topics                        maintainTopics
}

type userPlace struct {
	viewKey
	cseq uint64
}

type noticeKey struct {
	name string
	ts   int64
	hash uint64
}

// Maintain drops cids that are past the window, inbox entries that retention or every cursor has passed, old messages
// and what was noted of them, old notices and sessions that have ended. Nothing of it is needed for reads to be exact.
// Of several processes one at a time does a piece; the others find the lock taken and leave it at that.
func (s *Store) Maintain(ctx context.Context, now time.Time) (more bool, err error) {
	if err := s.enter(ctx); err != nil {
		return false, err
	}
	defer s.life.RUnlock()
	s.maintMu.Lock()
	defer s.maintMu.Unlock()
	_, err = s.locked(ctx, s.db, "maintain", 0, func(*sql.Conn) (err error) {
		more, err = s.maintain(ctx, now)
		return err
	})
	return more, s.wrap(err, "maintain")
}

func (s *Store) maintain(ctx context.Context, now time.Time) (more bool, err error) {
	m := &s.maint
	ms := now.UnixMilli()
	var errs []error
	note := func(on bool, err error) {
		more = more || on
		errs = append(errs, err)
	}
	note(m.devices.step(func(pos store.DeviceKey) (store.DeviceKey, bool, error) { return s.endSessions(ctx, pos, ms) }))
	note(m.inboxes.step(func(pos string) (string, bool, error) { return s.trimInboxes(ctx, pos, now) }))
	note(m.notices.step(func(pos noticeKey) (noticeKey, bool, error) { return s.dropNotices(ctx, pos, ms) }))
	note(m.writers.step(func(pos string) (string, bool, error) { return s.dropWriters(ctx, pos, ms) }))
	s.maintainTopics(ctx, now, note)
	if window := s.opts.Retention.Dedupe; window > 0 {
		note(m.cids.step(func(pos string) (string, bool, error) { return s.dropCids(ctx, pos, now.Add(-window).UnixMilli()) }))
	}
	if ttl := s.opts.Retention.HistoryTTL; ttl > 0 {
		note(m.convs.step(func(pos string) (string, bool, error) { return s.dropChunks(ctx, pos, now.Add(-ttl).UnixMilli()) }))
		note(m.deletions.step(func(pos userPlace) (userPlace, bool, error) { return s.dropDeletions(ctx, pos) }))
		note(m.owns.step(func(pos userPlace) (userPlace, bool, error) { return s.dropOwns(ctx, pos) }))
	}
	return more, errors.Join(errs...)
}

// dropCids removes cids that were sent at cutoff or before.
func (s *Store) dropCids(ctx context.Context, pos string, cutoff int64) (next string, more bool, err error) {
	var old []string
	n := 0
	p := s.packet()
	p.get(listCids, func(r *sql.Rows) error {
		var ts int64
		if err := r.Scan(&next, &ts); err != nil {
			return err
		}
		if n++; ts <= cutoff {
			old = append(old, next)
		}
		return nil
	}, pos, maintainRows)
	if err := s.read(ctx, p, "old cids"); err != nil {
		return "", false, err
	}
	p.names(dropCids, nil, old, cutoff)
	return next, n == maintainRows, s.read(ctx, p, "old cids")
}

// dropWriters removes the rows of processes that are gone, but for the one with the greatest id.
func (s *Store) dropWriters(ctx context.Context, pos string, now int64) (next string, more bool, err error) {
	var last sql.NullInt64
	var old []string
	n := 0
	cutoff := now - writerTTL.Milliseconds()
	p := s.packet()
	p.get(lastID, func(r *sql.Rows) error { return r.Scan(&last) })
	p.get(listWriters, func(r *sql.Rows) error {
		var id, seen int64
		if err := r.Scan(&next, &id, &seen); err != nil {
			return err
		}
		if n++; seen < cutoff && id < last.Int64 {
			old = append(old, next)
		}
		return nil
	}, pos, maintainRows)
	if err := s.read(ctx, p, "processes"); err != nil {
		return "", false, err
	}
	p.names(dropWriters, nil, old, cutoff)
	return next, n == maintainRows, s.read(ctx, p, "processes")
}

// endSessions removes sessions that ended before now (Unix milliseconds).
func (s *Store) endSessions(ctx context.Context, pos store.DeviceKey, now int64) (next store.DeviceKey, more bool, err error) {
	var over []store.DeviceKey
	n := 0
	p := s.packet()
	p.get(walkDevices, func(r *sql.Rows) error {
		var expires int64
		if err := r.Scan(&next.User, &next.Device, &expires); err != nil {
			return err
		}
		if n++; expires != 0 && expires <= now {
			over = append(over, next)
		}
		return nil
	}, pos.User, pos.User, pos.Device, maintainRows)
	if err := s.read(ctx, p, "devices"); err != nil {
		return next, false, err
	}
	for _, k := range over {
		if err := s.endSession(ctx, k, now); err != nil {
			return next, false, err
		}
	}
	return next, n == maintainRows, nil
}

// endSession removes a session, unless it was taken up again meanwhile.
func (s *Store) endSession(ctx context.Context, k store.DeviceKey, now int64) error {
	c, err := s.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	over := false
	p := s.packet()
	s.begin(p, s.lease.Load())
	p.get(lockDevice, func(r *sql.Rows) error {
		var expires int64
		err := r.Scan(&expires)
		over = expires != 0 && expires <= now
		return err
	}, k.User, k.Device)
	if err = p.run(ctx, c); err == nil {
		if over {
			p.do(dropDevice, k.User, k.Device)
			p.do(dropCursors, k.User, k.Device)
		}
		p.do(commit)
		err = p.run(ctx, c)
	}
	if err != nil {
		discard(c)
	}
	return err
}

// trimInboxes trims those inboxes where it is worth it.
func (s *Store) trimInboxes(ctx context.Context, pos string, now time.Time) (next string, more bool, err error) {
	type inbox struct {
		user  string
		state store.Inbox
		list  []record // the first
	}
	var all []*inbox
	p := s.packet()
	p.get(listInboxes, func(r *sql.Rows) error {
		x := &inbox{}
		err := r.Scan(&x.user, &x.state.Head, &x.state.Trimmed)
		all = append(all, x)
		next = x.user
		return err
	}, pos, maintainInboxes)
	if err := s.read(ctx, p, "inboxes"); err != nil {
		return "", false, err
	}
	for _, x := range all {
		p.get(firstEntry, func(rows *sql.Rows) error {
			r, err := scanRecord(rows)
			x.list = append(x.list, r)
			return err
		}, x.user)
	}
	if err := s.read(ctx, p, "inboxes"); err != nil {
		return "", false, err
	}
	for _, x := range all {
		if len(x.list) == 0 || ctx.Err() != nil {
			continue
		}
		if err := s.trimInbox(ctx, x.user, x.state, x.list, now); err != nil {
			return "", false, err
		}
	}
	return next, len(all) == maintainInboxes, nil
}

// trimInbox trims one inbox, whose first record is the one in list.
func (s *Store) trimInbox(ctx context.Context, user string, b store.Inbox, list []record, now time.Time) error {
	first := list[0].first
	if err := s.trim(ctx, user, &b, 0, list, time.Now()); err != nil || b.Head < first {
		return err
	}
	cut := b.Trimmed
	if cut+1 < first+trimExpired && cut < b.Head {
		cut = 0 // not worth it yet
	}
	if b.Head >= first+trimPassed {
		passed, err := s.passed(ctx, user, now.UnixMilli())
		if err != nil {
			return err
		}
		if passed = min(passed, b.Head); passed >= first+trimPassed {
			cut = max(cut, passed)
		}
	}
	if cut < first {
		return nil
	}
	cut = max(cut, b.Trimmed)
	p := s.packet()
	p.do(trimInbox, cut, user)
	p.do(dropEntries, user, cut, cut, maintainRows)
	return s.read(ctx, p, "trim the inbox of %q", user)
}

// passed is the seq that every cursor of the user has reached.
func (s *Store) passed(ctx context.Context, user string, now int64) (uint64, error) {
	u := store.User{Name: user}
	p := s.packet()
	s.askUser(p, &u)
	if err := s.read(ctx, p, "user %q", user); err != nil {
		return 0, err
	}
	list, err := s.devices(ctx, user)
	if err != nil {
		return 0, err
	}
	n := u.Cursor
	for _, d := range list {
		if d.Expires == 0 || d.Expires > now {
			n = min(n, d.Cursor)
		}
	}
	return n, nil
}

// dropChunks removes chunks that are older than cutoff, from the old end of each conversation on. The last chunk stays.
func (s *Store) dropChunks(ctx context.Context, pos string, cutoff int64) (next string, more bool, err error) {
	var convs []string
	p := s.packet()
	p.get(listConvs, func(r *sql.Rows) error {
		err := r.Scan(&next)
		convs = append(convs, next)
		return err
	}, pos, maintainConvs)
	if err := s.read(ctx, p, "conversations"); err != nil {
		return "", false, err
	}
	keep := make([]uint64, len(convs)) // the first that stays
	rest := -1                         // the first conversation that may have more to be removed
	for i, conv := range convs {
		young, looked := false, 0
		p.get(oldChunks, func(r *sql.Rows) error {
			var first, n uint64
			var ts int64
			err := r.Scan(&first, &n, &ts)
			if !young {
				keep[i], young = first, ts >= cutoff
			}
			if looked++; looked == maintainChunks && !young && rest < 0 {
				rest = i
			}
			return err
		}, conv, maintainChunks)
	}
	if err := s.read(ctx, p, "old messages"); err != nil {
		return "", false, err
	}
	for i, conv := range convs {
		p.do(dropChunks, conv, keep[i])
		p.do(dropRecalls, conv, keep[i])
	}
	if err := s.read(ctx, p, "drop old messages"); err != nil {
		return "", false, err
	}
	switch {
	case rest == 0:
		return pos, true, nil
	case rest > 0:
		return convs[rest-1], true, nil
	}
	return next, len(convs) == maintainConvs, nil
}

// firsts are the first cseqs that conversations still have.
func (s *Store) firsts(ctx context.Context, convs []store.Conv) (map[store.Conv]uint64, error) {
	out := map[store.Conv]uint64{}
	slices.Sort(convs)
	p := s.packet()
	for _, conv := range slices.Compact(convs) {
		p.get(firstRef, func(r *sql.Rows) error {
			ref, err := scanRef(r)
			out[conv] = ref.first
			return err
		}, string(conv))
	}
	err := s.read(ctx, p, "first messages")
	return out, err
}

// gone are those of places whose messages retention has removed.
func (s *Store) gone(ctx context.Context, all []userPlace) ([]userPlace, error) {
	var convs []store.Conv
	for _, x := range all {
		convs = append(convs, x.conv)
	}
	firsts, err := s.firsts(ctx, convs)
	return slices.DeleteFunc(all, func(x userPlace) bool { return x.cseq >= firsts[x.conv] }), err
}

// dropDeletions removes the deletion marks of messages that retention has removed.
func (s *Store) dropDeletions(ctx context.Context, pos userPlace) (next userPlace, more bool, err error) {
	var all []userPlace
	p := s.packet()
	p.get(listDeleted, func(r *sql.Rows) error {
		err := r.Scan(&next.user, &next.conv, &next.cseq)
		all = append(all, next)
		return err
	}, pos.user, pos.user, string(pos.conv), pos.user, string(pos.conv), pos.cseq, maintainRows)
	if err := s.read(ctx, p, "deletions"); err != nil {
		return next, false, err
	}
	more = len(all) == maintainRows
	if all, err = s.gone(ctx, all); err != nil {
		return next, false, err
	}
	p.many(dropDeletions, nil, len(all), func(i int, args []any) []any {
		return append(args, all[i].user, string(all[i].conv), all[i].cseq)
	})
	err = s.read(ctx, p, "deletions of old messages")
	return next, more, err
}

// dropOwns removes what is known of who sent which messages of groups that retention has removed.
func (s *Store) dropOwns(ctx context.Context, pos userPlace) (next userPlace, more bool, err error) {
	var all []userPlace
	p := s.packet()
	p.get(listOwns, func(r *sql.Rows) error {
		err := r.Scan(&next.conv, &next.user, &next.cseq)
		all = append(all, next)
		return err
	}, string(pos.conv), string(pos.conv), pos.user, string(pos.conv), pos.user, pos.cseq, maintainRows)
	if err := s.read(ctx, p, "senders"); err != nil {
		return next, false, err
	}
	more = len(all) == maintainRows
	if all, err = s.gone(ctx, all); err != nil {
		return next, false, err
	}
	p.many(dropOwns, nil, len(all), func(i int, args []any) []any {
		return append(args, string(all[i].conv), all[i].user, all[i].cseq)
	})
	err = s.read(ctx, p, "senders of old messages")
	return next, more, err
}

// dropNotices removes notices that are as old as inbox entries may be.
func (s *Store) dropNotices(ctx context.Context, pos noticeKey, now int64) (next noticeKey, more bool, err error) {
	ttl := s.opts.Retention.InboxTTL
	if ttl == 0 {
		ttl = noticeTTL
	}
	cutoff := now - ttl.Milliseconds()
	var old []noticeKey
	n := 0
	p := s.packet()
	p.get(listNotices, func(r *sql.Rows) error {
		if err := r.Scan(&next.name, &next.ts, &next.hash); err != nil {
			return err
		}
		if n++; next.ts < cutoff {
			old = append(old, next)
		}
		return nil
	}, pos.name, pos.name, pos.ts, pos.name, pos.ts, pos.hash, maintainRows)
	if err := s.read(ctx, p, "notices"); err != nil {
		return next, false, err
	}
	p.many(dropNotices, nil, len(old), func(i int, args []any) []any { return append(args, old[i].name, old[i].ts, old[i].hash) })
	err = s.read(ctx, p, "old notices")
	return next, n == maintainRows, err
}
