package dump

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// parts is how many parts the records of a kind are divided into, by their keys, so that where two stores differ only some
// of them have to be looked at one by one.
const parts = 4096

// sum is what two stores are compared by first: the number of records, and the sum of their hashes, which does not depend on
// their order.
type sum struct{ n, hash uint64 }

// sums are those of a store.
type sums [len(Kinds)][parts]sum

// hasher hashes rows.
type hasher struct{ buf []byte }

// row returns a hash of the key and one of the whole.
func (h *hasher) row(r *Row) (key, whole uint64) {
	h.buf = append(h.buf[:0], byte(r.Kind))
	for i, v := range r.Values {
		switch v := v.(type) {
		case string:
			h.buf = append(binary.AppendUvarint(append(h.buf, 's'), uint64(len(v))), v...)
		case uint64:
			h.buf = binary.AppendUvarint(append(h.buf, 'u'), v)
		case int64:
			h.buf = binary.AppendVarint(append(h.buf, 'i'), v)
		default:
			panic(fmt.Sprintf("dump: %s.%s is a %T", Kinds[r.Kind].Name, Kinds[r.Kind].Names[i], v))
		}
		if i+1 == Kinds[r.Kind].Keys {
			key = xxhash.Sum64(h.buf)
		}
	}
	return key, xxhash.Sum64(h.buf)
}

func (s *sums) add(h *hasher, r *Row) {
	key, whole := h.row(r)
	x := &s[r.Kind][key%parts]
	x.n++
	x.hash += whole
}

// total is the sum over a kind.
func (s *sums) total(k Kind) (t sum) {
	for _, x := range s[k] {
		t.n += x.n
		t.hash += x.hash
	}
	return t
}

// lookAt is how many parts of a kind that differ are looked at record by record.
const lookAt = 8

// mostOfKind is how many records of a kind are named.
const mostOfKind = 20

// differ names the records in which two stores differ, by their keys.
func differ(ctx context.Context, a, b Source, sa, sb *sums, o Options) error {
	var told [len(Kinds)]int
	report := func(r *Row, what string) {
		if told[r.Kind]++; told[r.Kind] <= mostOfKind {
			o.Tell("difference: %s: %s", r.place(), what)
		}
	}
	var wanted [len(Kinds)]map[uint64]bool
	for k := range Kinds {
		for p := range uint64(parts) {
			if sa[k][p] != sb[k][p] && len(wanted[k]) < lookAt {
				if wanted[k] == nil {
					wanted[k] = map[uint64]bool{}
				}
				wanted[k][p] = true
			}
		}
	}
	type place struct {
		kind Kind
		key  uint64
	}
	found := map[place]uint64{}
	var h hasher
	ignore := Options{SkipDamaged: o.SkipDamaged, Tell: func(string, ...any) {}}
	err := a.Dump(ctx, ignore.damaged, func(r Row) error {
		if key, whole := h.row(&r); wanted[r.Kind][key%parts] {
			found[place{r.Kind, key}] = whole
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = b.Dump(ctx, ignore.damaged, func(r Row) error {
		key, whole := h.row(&r)
		if !wanted[r.Kind][key%parts] {
			return nil
		}
		p := place{r.Kind, key}
		if want, ok := found[p]; !ok {
			report(&r, "only the copy has it")
		} else if want != whole {
			report(&r, "the copy has another one")
		}
		delete(found, p)
		return nil
	})
	if err != nil || len(found) == 0 {
		return err
	}
	return a.Dump(ctx, ignore.damaged, func(r Row) error {
		if key, _ := h.row(&r); wanted[r.Kind][key%parts] {
			if _, ok := found[place{r.Kind, key}]; ok {
				report(&r, "the copy does not have it")
			}
		}
		return nil
	})
}

// place names a record by its key.
func (r *Row) place() string {
	c := &Kinds[r.Kind]
	text := c.Name
	for i := range c.Keys {
		text += fmt.Sprintf(" %s=%.100q", c.Names[i], fmt.Sprint(r.Values[i]))
	}
	return text
}
