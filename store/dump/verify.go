package dump

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"reflect"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/mqim/mqim/store"
)

// ErrDiffer: the copy is not what the source is.
var ErrDiffer = errors.New("the copy differs from the source")

// mostDiffs is how many differences of what stores answer are told one by one.
const mostDiffs = 50

// Verify compares two stores: all records of both, and what they answer to the questions that a server asks: every message
// of every conversation and every entry of every inbox in full; each user's lists, devices and blocks; groups with their members; sessions with their queues; and
// some of the cids. It tells what it has compared and each difference with its place. Errors: ErrDiffer.
func Verify(ctx context.Context, from, to Source, o Options) error {
	asking, gctx := errgroup.WithContext(ctx)
	asking.SetLimit(askers)
	v := &verifier{ctx: gctx, from: from, to: to, o: o, rate: newRate(o), asking: asking}
	var sa, sb sums
	both, bctx := errgroup.WithContext(gctx)
	both.Go(func() error {
		var h hasher
		return to.Dump(bctx, o.damaged, func(r Row) error {
			sb.add(&h, &r)
			return nil
		})
	})
	both.Go(func() error {
		var h hasher
		return from.Dump(bctx, o.damaged, func(r Row) error {
			sa.add(&h, &r)
			v.rate.count(&r, "compared")
			return v.row(&r)
		})
	})
	err := both.Wait()
	if e := asking.Wait(); e != nil {
		err = e // and what the walks say is a consequence
	}
	v.ctx = ctx // gctx has ended
	if err == nil {
		err = v.rest()
	}
	if err != nil {
		return err
	}
	return v.conclude(&sa, &sb)
}

// askers is how many conversations, inboxes and so on are compared at once.
const askers = 6

// verifier compares what two stores answer.
type verifier struct {
	ctx      context.Context
	from, to Source
	o        Options
	rate     *rate
	asking   *errgroup.Group
	diffs    atomic.Int64

	messages, convs, entries, inboxes, users, groups, sessions, queued, cids atomic.Uint64
	unread                                                                   atomic.Uint64 // places that are damaged in the source
}

func (v *verifier) report(format string, args ...any) {
	if v.diffs.Add(1) <= mostDiffs {
		v.o.Tell("difference: "+format, args...)
	}
}

func (v *verifier) conclude(sa, sb *sums) error {
	same := *sa == *sb
	if !same {
		if err := differ(v.ctx, v.from, v.to, sa, sb, v.o); err != nil {
			return err
		}
	}
	for k := range Kinds {
		if a, b := sa.total(Kind(k)), sb.total(Kind(k)); a != b {
			v.o.Tell("%s: %d records, in the copy %d: they differ", Kinds[k].Name, a.n, b.n)
		} else if a.n > 0 {
			v.o.Tell("%s: %d records, hash %016x in both", Kinds[k].Name, a.n, a.hash)
		}
	}
	v.rate.tell("compared")
	v.o.Tell("read back from both: %d messages of %d conversations, %d entries of %d inboxes, %d users, %d groups, %d sessions with %d queued, %d cids",
		v.messages.Load(), v.convs.Load(), v.entries.Load(), v.inboxes.Load(), v.users.Load(), v.groups.Load(), v.sessions.Load(), v.queued.Load(), v.cids.Load())
	if n := v.unread.Load(); n > 0 {
		v.o.Tell("not compared to their end, being damaged in the source: %d conversations, inboxes or queues", n)
	}
	if v.diffs.Load() > 0 || !same {
		return ErrDiffer
	}
	return nil
}

// cidEvery: of so many cids one is asked for.
const cidEvery = 64

// row has what hangs on a record of the source compared, and waits while that is too much at once.
func (v *verifier) row(r *Row) error {
	name, _ := r.Values[0].(string)
	var ask func() error
	switch r.Kind {
	case Convs:
		ask = func() error { return v.conv(store.Conv(name)) }
	case Inboxes:
		ask = func() error { return errors.Join(v.inbox(name), v.user(name)) }
	case Users:
		ask = func() error {
			b, err := v.from.Inbox(v.ctx, name)
			if err != nil || b.Head > 0 {
				return err // the user is compared with the inbox
			}
			return v.user(name)
		}
	case Groups:
		ask = func() error { return v.group(name) }
	case Sessions:
		ask = func() error { return v.session(name) }
	case Cids:
		if v.cids.Add(1)%cidEvery == 0 {
			ask = func() error { return v.cid(name) }
		}
	}
	if ask != nil {
		v.asking.Go(ask)
	}
	return v.ctx.Err()
}

// both asks both stores and compares the answers.
func both[T any](v *verifier, what string, ask func(store.Store) (T, error)) error {
	a, err := ask(v.from)
	if err != nil && (!damage(err) || !v.o.SkipDamaged) {
		return fmt.Errorf("source: %w", err)
	}
	if err != nil {
		v.unread.Add(1)
		return nil
	}
	b, err := ask(v.to)
	if err != nil {
		return v.failed(what, err)
	}
	if !equal(a, b) {
		v.report("%s", what)
	}
	return nil
}

// failed is what becomes of an error of the copy: damage is a difference.
func (v *verifier) failed(what string, err error) error {
	if damage(err) || errors.Is(err, store.ErrNotFound) {
		v.report("%s: %v", what, err)
		return nil
	}
	return fmt.Errorf("copy: %w", err)
}

// pages reads a list page by page.
type pages[T any] struct {
	fetch func(after uint64) ([]T, error)
	seq   func(T) uint64
	list  []T
	after uint64
}

func (p *pages[T]) next() (x T, ok bool, err error) {
	if len(p.list) == 0 {
		if p.list, err = p.fetch(p.after); err != nil || len(p.list) == 0 {
			return x, false, err
		}
	}
	x, p.list = p.list[0], p.list[1:]
	p.after = p.seq(x)
	return x, true, nil
}

// lists compares two lists, which come in pages of any size, and counts what is equal.
func lists[T any](v *verifier, what string, n *atomic.Uint64, seq func(T) uint64, same func(a, b T) bool, ask func(s store.Store, after uint64) ([]T, error)) error {
	a := pages[T]{seq: seq, fetch: func(after uint64) ([]T, error) { return ask(v.from, after) }}
	b := pages[T]{seq: seq, fetch: func(after uint64) ([]T, error) { return ask(v.to, after) }}
	for {
		x, more, err := a.next()
		if err != nil && damage(err) && v.o.SkipDamaged {
			v.unread.Add(1)
			return nil
		}
		if err != nil {
			return fmt.Errorf("source: %w", err)
		}
		y, more2, err := b.next()
		switch {
		case err != nil && damage(err) && v.o.SkipDamaged: // it lacks what was left out
			v.unread.Add(1)
			return nil
		case err != nil:
			return v.failed(fmt.Sprintf("%s after %d", what, b.after), err)
		case more && !more2:
			v.report("%s: the copy ends before %d", what, seq(x))
			return nil
		case !more && more2:
			v.report("%s: the copy goes on with %d", what, seq(y))
			return nil
		case !more:
			return nil
		case !same(x, y):
			v.report("%s: %d is another one", what, seq(x)) // and perhaps more behind it
			return nil
		}
		n.Add(1)
	}
}

const pageOf = 512

func sameMessage(a, b *store.Message) bool {
	x, y := *a, *b
	x.Body, y.Body = nil, nil
	return bytes.Equal(a.Body, b.Body) && reflect.DeepEqual(x, y) // which is quick where there are no slices
}

func (v *verifier) conv(conv store.Conv) error {
	v.convs.Add(1)
	return lists(v, "messages of "+string(conv), &v.messages, func(m *store.Message) uint64 { return m.Cseq }, sameMessage,
		func(s store.Store, after uint64) ([]*store.Message, error) {
			return s.History(v.ctx, "", conv, store.Range{After: after, Forward: true, Limit: pageOf})
		})
}

func (v *verifier) inbox(user string) error {
	v.inboxes.Add(1)
	return errors.Join(
		both(v, "inbox of "+user, func(s store.Store) (store.Inbox, error) { return s.Inbox(v.ctx, user) }),
		lists(v, "inbox of "+user, &v.entries, func(e store.Entry) uint64 { return e.Seq },
			func(a, b store.Entry) bool { return a.Seq == b.Seq && sameMessage(a.Message, b.Message) },
			func(s store.Store, after uint64) ([]store.Entry, error) {
				return s.ReadInbox(v.ctx, user, after, pageOf, nil)
			}))
}

// listed asks for all pages of a list.
func listed[T any](ask func(after string) ([]T, string, error)) (all []T, err error) {
	for after := ""; ; {
		page, next, err := ask(after)
		if all = append(all, page...); err != nil || next == "" {
			return all, err
		}
		after = next
	}
}

func (v *verifier) user(name string) error {
	v.users.Add(1)
	var devices []store.Device
	err := errors.Join(
		both(v, "user "+name, func(s store.Store) (store.User, error) { return s.User(v.ctx, name) }),
		both(v, "blocks of "+name, func(s store.Store) ([]string, error) { return s.Blocks(v.ctx, name) }),
		both(v, "devices of "+name, func(s store.Store) (list []store.Device, err error) {
			devices, err = s.Devices(v.ctx, name)
			return devices, err
		}),
		both(v, "conversations of "+name, func(s store.Store) ([]store.Conversation, error) {
			return listed(func(after string) ([]store.Conversation, string, error) {
				return s.ListConversations(v.ctx, name, after, pageOf)
			})
		}),
		both(v, "groups of "+name, func(s store.Store) ([]store.Membership, error) {
			return listed(func(after string) ([]store.Membership, string, error) {
				return s.Memberships(v.ctx, name, after, pageOf)
			})
		}),
		v.notices(name),
	)
	for _, d := range devices {
		err = errors.Join(err, both(v, fmt.Sprintf("large groups of %s/%s", name, d.Device), func(s store.Store) ([]store.Stream, error) {
			return s.Streams(v.ctx, d.DeviceKey)
		}))
	}
	return err
}

func (v *verifier) notices(name string) error {
	return both(v, "notices to "+name, func(s store.Store) ([]store.Notice, error) {
		return listed(func(after string) ([]store.Notice, string, error) {
			return s.Notices(v.ctx, name, 0, after, pageOf)
		})
	})
}

func (v *verifier) group(id string) error {
	v.groups.Add(1)
	return errors.Join(
		both(v, "group "+id, func(s store.Store) (store.Group, error) { return s.Group(v.ctx, id) }),
		v.notices(string(store.GroupConv(id))),
		both(v, "members of group "+id, func(s store.Store) ([]store.Member, error) {
			return listed(func(after string) ([]store.Member, string, error) {
				return s.Members(v.ctx, id, after, pageOf)
			})
		}),
	)
}

func (v *verifier) session(client string) error {
	v.sessions.Add(1)
	return errors.Join(
		both(v, "subscriptions of "+client, func(s store.Store) ([]store.Subscription, error) { return s.Subscriptions(v.ctx, client) }),
		both(v, "queue of "+client, func(s store.Store) (store.QueueState, error) { return s.Queue(v.ctx, client) }),
		both(v, "what was sent to "+client, func(s store.Store) ([]store.Outbound, error) { return s.Outbound(v.ctx, client) }),
		both(v, "what was received from "+client, func(s store.Store) ([]uint16, error) { return s.Inbound(v.ctx, client) }),
		lists(v, "queue of "+client, &v.queued, func(q store.Queued) uint64 { return q.Seq },
			func(a, b store.Queued) bool {
				return a.Seq == b.Seq && a.QoS == b.QoS && bytes.Equal(a.Options, b.Options) && samePublication(a.Publication, b.Publication)
			},
			func(s store.Store, after uint64) ([]store.Queued, error) {
				return s.ReadQueue(v.ctx, client, after, pageOf, nil)
			}))
}

func samePublication(a, b *store.Publication) bool {
	x, y := *a, *b
	x.Payload, x.Props, y.Payload, y.Props = nil, nil, nil, nil
	return bytes.Equal(a.Payload, b.Payload) && bytes.Equal(a.Props, b.Props) && reflect.DeepEqual(x, y)
}

// cid asks for what a cid stands for.
func (v *verifier) cid(key string) error {
	type answer struct {
		m    store.Message
		hash uint64
		ok   bool
	}
	from, cid, _ := bytes.Cut([]byte(key), []byte{0})
	return both(v, fmt.Sprintf("cid %q of %s", cid, from), func(s store.Store) (x answer, err error) {
		x.m, x.hash, x.ok, err = s.Sent(v.ctx, string(from), string(cid))
		return x, err
	})
}

// rest compares what does not hang on a record.
func (v *verifier) rest() error {
	return errors.Join(
		both(v, "greatest message id", func(s store.Store) (int64, error) { return s.LastID(v.ctx) }),
		both(v, "epoch", func(s store.Store) (string, error) { return s.Epoch(), nil }),
		both(v, "number of retained messages", func(s store.Store) (uint64, error) { return s.RetainedCount(v.ctx) }),
		named(v, "sessions", func(x store.Session) string { return x.Client }, func(s store.Store, after string) ([]store.Session, error) {
			list, err := s.Sessions(v.ctx, after, pageOf)
			for i := range list {
				if list[i].Cut { // since when is for each opening of a store to say
					list[i].Since = 0
				}
			}
			return list, err
		}),
		named(v, "retained messages", func(x *store.Publication) string { return x.Topic }, func(s store.Store, after string) ([]*store.Publication, error) {
			return s.Retained(v.ctx, "#", after, pageOf, 0)
		}),
		named(v, "wills", func(x store.Will) string { return x.Client }, func(s store.Store, after string) ([]store.Will, error) {
			return s.Wills(v.ctx, after, pageOf)
		}),
	)
}

// named compares lists that come in pages of the same size, each from after a name on.
func named[T any](v *verifier, what string, name func(T) string, ask func(s store.Store, after string) ([]T, error)) error {
	for after := ""; ; {
		var list []T
		err := both(v, fmt.Sprintf("%s after %q", what, after), func(s store.Store) (page []T, err error) {
			page, err = ask(s, after)
			list = page
			return page, err
		})
		if err != nil || len(list) == 0 {
			return err
		}
		after = name(list[len(list)-1])
	}
}

// equal says that two answers are the same; nothing and an empty list are.
func equal(a, b any) bool {
	if reflect.DeepEqual(a, b) {
		return true
	}
	var x, y bytes.Buffer
	return gob.NewEncoder(&x).Encode(a) == nil && gob.NewEncoder(&y).Encode(b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}
