package pebble

import (
	"time"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// claimTTL is how long the claim of a client is kept of whom nothing is stored any more: who spoke for it before has
// noticed by then.
const claimTTL = 7 * 24 * time.Hour

func keyClaim(dst []byte, client string) []byte { return append(append(dst, tabClaim), client...) }

// claimed is the epoch of a client's last claim, 0 if there is none.
func (s *Store) claimed(client string) (uint64, error) {
	v, err := s.get(keyClaim(nil, client))
	if v == nil || err != nil {
		return 0, err
	}
	epoch, _, ok := decodeClaim(v)
	if !ok {
		return 0, s.corrupt("claim of %q", client)
	}
	return epoch, nil
}

func decodeClaim(v []byte) (epoch uint64, when int64, ok bool) {
	d := wire.Decoder{B: v}
	epoch, when = d.Uvarint(), d.Varint()
	return epoch, when, !d.Bad
}

// fence writes the claims of a batch and returns the batch without what later claims forbid. A first claim has the time as
// its epoch, in milliseconds, so that it is greater than those that Maintain may have removed.
func (w *writer) fence(b *store.Batch) (*store.Batch, error) {
	if len(b.Claims)+len(b.Fences) == 0 {
		return b, nil
	}
	now := milliseconds()
	epochs := map[string]uint64{}
	look := func(client string) (err error) {
		if _, known := epochs[client]; !known {
			epochs[client], err = w.s.claimed(client)
		}
		return err
	}
	for _, c := range b.Claims {
		if err := checkName("client", c.Client); err != nil {
			return nil, err
		}
		if err := look(c.Client); err != nil {
			return nil, err
		}
		if c.Epoch = epochs[c.Client] + 1; c.Epoch == 1 {
			c.Epoch = uint64(max(now, 1))
		}
		epochs[c.Client] = c.Epoch
		w.key = keyClaim(w.key[:0], c.Client)
		w.val = wire.AppendVarint(wire.AppendUvarint(w.val[:0], c.Epoch), now)
		if err := w.put(false, w.val); err != nil {
			return nil, err
		}
	}
	for _, f := range b.Fences {
		if err := look(f.Client); err != nil {
			return nil, err
		}
	}
	w.fenced = b.FencedOff(epochs)
	return b.Without(w.fenced), nil
}

// dropClaims removes old claims of clients of whom there is no session and no will.
func (s *Store) dropClaims(pos []byte, now int64) (next []byte, err error) {
	old := func(_, v []byte) bool {
		_, when, ok := decodeClaim(v)
		return ok && when <= now-claimTTL.Milliseconds()
	}
	keys, next, err := s.scan(tabClaim, pos, old)
	if err != nil || len(keys) == 0 {
		return next, err
	}
	return next, s.change("remove old claims", func(w *writer) error {
		for _, k := range keys {
			// Looked at again under mu: the client may have come back.
			kept := false
			for _, table := range []byte{tabSession, tabWill} {
				v, err := s.get(append([]byte{table}, k[1:]...))
				if err != nil {
					return err
				}
				kept = kept || v != nil
			}
			v, err := s.get(k)
			if err != nil {
				return err
			}
			if kept || v == nil || !old(k, v) {
				continue
			}
			w.note(w.pb.Delete(k, nil))
		}
		return w.failed
	})
}
