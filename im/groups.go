package im

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/mqim/mqim/store"
)

// knownGroup returns the record of a group, though it have ended; NotFound where there never was one.
func (e *Engine) knownGroup(ctx context.Context, id string) (store.Group, *Error) {
	if err := e.unknown(ctx, id); err != nil {
		return store.Group{}, err
	}
	g, err := e.store.Group(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return g, errNoGroup(id)
	}
	if err != nil {
		return g, e.failed("group", err)
	}
	return g, nil
}

// unknown is NotFound where there never was such a group, as far as is remembered: whoever asks for the same one over and over
// does not reach the store.
func (e *Engine) unknown(ctx context.Context, id string) *Error {
	if s, err := e.groups.get(ctx, id); err == nil && !s.exists {
		return errNoGroup(id)
	}
	return nil
}

// group is knownGroup for one that lives.
func (e *Engine) group(ctx context.Context, id string) (store.Group, *Error) {
	g, err := e.knownGroup(ctx, id)
	if err == nil && g.Ended != 0 {
		err = errNoGroup(id)
	}
	return g, err
}

// member returns a user's part in a group, present or past; NoRole and no spans where there is none.
func (e *Engine) member(ctx context.Context, group, user string) (store.Member, *Error) {
	m, err := e.store.Member(ctx, group, user)
	if err != nil {
		return m, e.failed("member", err)
	}
	return m, nil
}

// readable is what user may read of a conversation, ascending: everything of a direct one. It is NotFound where there is
// no such group, NotMember for who has never been in it.
func (e *Engine) readable(ctx context.Context, user string, conv store.Conv) ([]store.Span, *Error) {
	id, isGroup := conv.Group()
	if !isGroup {
		return []store.Span{{From: 1}}, nil
	}
	g, err := e.knownGroup(ctx, id)
	if err != nil {
		return nil, err
	}
	m, err := e.member(ctx, id, user)
	if err != nil {
		return nil, err
	}
	if len(m.Spans) == 0 {
		return nil, errNotMember(id)
	}
	if g.HistoryAll {
		return []store.Span{{From: 1, To: m.Spans[len(m.Spans)-1].To}}, nil
	}
	return m.Spans, nil
}

// standing is what is remembered of a group in Engine.groups.
type standing struct {
	exists   bool // or did
	lives    bool
	receipts store.ReceiptMode
	inboxes  int // that a message is written to
}

// part is what a user is in a group, as remembered in Engine.members.
type part struct {
	role       store.Role
	mutedUntil int64
}

type memberKey struct{ group, user string }

func (e *Engine) readStanding(ctx context.Context, id string) (standing, error) {
	g, err := e.store.Group(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return standing{}, nil
	}
	s := standing{exists: true, lives: g.Ended == 0, receipts: g.ReceiptMode()}
	if g.LargeFrom == 0 {
		s.inboxes = int(g.MemberCount)
	}
	return s, err
}

func (e *Engine) readPart(ctx context.Context, k memberKey) (part, error) {
	m, err := e.store.Member(ctx, k.group, k.user)
	return part{m.Role, m.MutedUntil}, err
}

// forgetGroup has the caches read anew what a change was about.
func (e *Engine) forgetGroup(ch *store.Change) {
	keys := make([]memberKey, len(ch.Members))
	for i := range ch.Members {
		keys[i] = memberKey{ch.Group.ID, ch.Members[i].User}
	}
	e.groups.forget(ch.Group.ID)
	e.members.forget(keys...)
}

// maySend says why user may not send to a group. Whether the user is a member is decided by the store, once more, when
// the message is stored; this spares it what will be refused.
func (e *Engine) maySend(id, user string) (standing, *Error) {
	g, err := e.groups.get(e.ctx, id)
	if err != nil {
		return g, e.failed("group", err)
	}
	if !g.lives {
		return g, errNoGroup(id)
	}
	m, err := e.members.get(e.ctx, memberKey{id, user})
	switch {
	case err != nil:
		return g, e.failed("member", err)
	case m.role == store.NoRole:
		return g, errNotMember(id)
	case m.mutedUntil > time.Now().UnixMilli():
		return g, errorf(Muted, "you are muted in group %q until %d (Unix milliseconds)", id, m.mutedUntil)
	}
	return g, nil
}

func errNoGroup(id string) *Error { return errorf(NotFound, "there is no group %q", clip(id)) }

func errNotMember(id string) *Error {
	return errorf(NotMember, "you are not a member of group %q", clip(id))
}

// mayJoin says why a user may not be in one group more. Two joins at the same moment may both be let in by the last
// place.
func (e *Engine) mayJoin(user string) *Error {
	limit := e.cfg.Load().GroupsPerUser
	if limit == 0 {
		return nil
	}
	// Whether a group has ended takes another read for each, so that is looked at only where it makes the difference.
	for _, look := range []bool{false, true} {
		n := 0
		full, err := e.eachGroup(e.ctx, user, math.MaxInt, func(id string) (bool, error) {
			if look {
				if g, err := e.groups.get(e.ctx, id); err != nil || !g.lives {
					return false, err
				}
			}
			n++
			return n == limit, nil
		})
		if err != nil {
			return e.failed("groups of a user", err)
		}
		if !full {
			return nil
		}
	}
	return errorf(RateLimited, "%s is in %d groups already, the limit", user, limit)
}

// groupState is what the sender of a message to a group learns of it: sent when a device of another member reads, else
// queued. Of a message that was stored before that is not known any more, nor who reads on other nodes.
func (e *Engine) groupState(p *pending) string {
	if p.Dup || e.peers != nil && e.peers.some.Load() || p.Inboxes == nil && e.feeds.read(p.Conv, p.From) {
		return "sent"
	}
	for _, ref := range p.Inboxes {
		if ref.User == p.From {
			continue
		}
		if u := e.user(ref.User); u != nil && u.readers.Load() > 0 {
			return "sent"
		}
	}
	return "queued"
}

// changeEvent is what devices are told of the change of their group that a message makes.
func changeEvent(p *store.Message) []byte {
	b := append([]byte(nil), `{"type":"group"`...)
	b = appendConv(b, "", p.Conv)
	b = appendUint(b, "cseq", p.Cseq)
	return append(append(b, ','), p.Body[1:]...)
}
