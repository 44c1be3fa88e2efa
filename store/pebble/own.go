package pebble

import (
	"cmp"
	"slices"
	"strings"

	pdb "github.com/cockroachdb/pebble/v2"
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// An entry of tabOwn lists what one sender has in one chunk of a group: the first cseq in the key, in the value how
// many the sender had before, and the other cseqs, each less the one before it. So "how many up to a cseq" is one
// seek, whatever lies between, and neither chunks nor members are looked at.

// keyOwns is the start of a sender's entries in a group.
func keyOwns(dst []byte, conv store.Conv, user string) []byte {
	return append(keyPair(dst, tabOwn, string(conv), user), 0)
}

// indexOwn notes who has sent what in a chunk of a group.
func (w *writer) indexOwn(ch *openChunk) error {
	order := w.order[:0]
	for i := range ch.msgs {
		order = append(order, i)
	}
	w.order = order
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(strings.Compare(ch.msgs[a].From, ch.msgs[b].From), a-b)
	})
	for len(order) > 0 {
		first := ch.msgs[order[0]]
		k := viewKey{first.From, ch.head.conv}
		total, err := w.sentBefore(k)
		if err != nil {
			return err
		}
		w.val = wire.AppendUvarint(w.val[:0], total)
		prev := first.Cseq
		for ; len(order) > 0 && ch.msgs[order[0]].From == k.user; order = order[1:] {
			if n := ch.msgs[order[0]].Cseq; n != first.Cseq {
				w.val = wire.AppendUvarint(w.val, n-prev)
				prev = n
			}
			total++
		}
		w.owns.put(k, total)
		w.key = appendUint64(keyOwns(w.key[:0], k.conv, k.user), first.Cseq)
		if err := w.pb.Set(w.key, w.val, nil); err != nil {
			return err
		}
	}
	return nil
}

// sentBefore is how many messages a user has sent to a group before this chunk. Those that retention has removed
// count for as long as there are later ones: what matters are differences.
func (w *writer) sentBefore(k viewKey) (uint64, error) {
	if n, ok := w.owns.get(k); ok {
		return n, nil
	}
	if err := checkName("sender", k.user); err != nil {
		return 0, err
	}
	it, err := w.s.owns(k.user, k.conv)
	if err != nil {
		return 0, err
	}
	defer it.Close()
	return w.s.sentUpTo(it, k.user, k.conv, ^uint64(0)-1)
}

// owns is an iterator over a sender's entries in a group.
func (s *Store) owns(user string, conv store.Conv) (*pdb.Iterator, error) {
	lower := keyOwns(make([]byte, 0, len(user)+len(conv)+3), conv, user)
	it, err := s.db.NewIter(&pdb.IterOptions{LowerBound: lower, UpperBound: after(lower)})
	return it, s.wrap(err, "messages of %q in %s", user, conv)
}

// sentUpTo counts the user's messages to a group up to cseq, durable or not, with those that retention has removed.
func (s *Store) sentUpTo(it *pdb.Iterator, user string, conv store.Conv, cseq uint64) (uint64, error) {
	there := it.SeekLT(appendUint64(keyOwns(nil, conv, user), cseq+1))
	if !there && !it.First() {
		return 0, s.wrap(it.Error(), "messages of %q in %s", user, conv)
	}
	v, err := it.ValueAndErr()
	if err != nil {
		return 0, s.wrap(err, "messages of %q in %s", user, conv)
	}
	d := wire.Decoder{B: v}
	n := d.Uvarint()
	if there {
		n++
		for at := tail(it.Key()); d.Off < len(v); n++ {
			if at += d.Uvarint(); at > cseq {
				break
			}
		}
	}
	if d.Bad {
		return 0, s.corrupt("messages of %q in %s from cseq %d", user, conv, tail(it.Key()))
	}
	return n, nil
}
