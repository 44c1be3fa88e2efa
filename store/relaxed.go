package store

import "context"

type relaxedKey struct{}

// Relaxed marks the context of a read on behalf of user whose result may be a moment old: History, ListConversations,
// Members and Memberships may then be answered by a copy of the store. What user has written through this process, what
// was committed by it to the conversations that are asked for, and what user has been told of its inbox, is in the result
// all the same. It is for what people page through, not for what anything is decided by. A driver need not do anything of
// the kind; all other reads ignore it.
func Relaxed(ctx context.Context, user string) context.Context {
	return context.WithValue(ctx, relaxedKey{}, user)
}

// RelaxedFor is the user of Relaxed; ok is false where the context is not marked.
func RelaxedFor(ctx context.Context) (user string, ok bool) {
	user, ok = ctx.Value(relaxedKey{}).(string)
	return user, ok
}
