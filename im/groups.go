package im

import (
	"context"
	"errors"

	"github.com/mqim/mqim/store"
)

// group returns the record of a group that lives; NotFound where there is none, or none any more.
func (e *Engine) group(ctx context.Context, id string) (store.Group, *Error) {
	g, err := e.store.Group(ctx, id)
	if errors.Is(err, store.ErrNotFound) || err == nil && g.Ended != 0 {
		return g, errorf(NotFound, "there is no group %q", clip(id))
	}
	if err != nil {
		return g, e.failed("group", err)
	}
	return g, nil
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
	g, err := e.store.Group(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return nil, errorf(NotFound, "there is no group %q", clip(id))
	}
	if err != nil {
		return nil, e.failed("group", err)
	}
	m, rerr := e.member(ctx, id, user)
	if rerr != nil {
		return nil, rerr
	}
	if len(m.Spans) == 0 {
		return nil, errorf(NotMember, "you are not a member of group %q", clip(id))
	}
	if g.HistoryAll {
		return []store.Span{{From: 1, To: m.Spans[len(m.Spans)-1].To}}, nil
	}
	return m.Spans, nil
}
