package wire_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

func random(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func messages(r *rand.Rand) []*store.Message {
	var list []*store.Message
	id, first := r.Int64N(1<<40), 1+r.Uint64N(1000)
	for i := range 1 + r.IntN(20) {
		id += 1 + r.Int64N(1000)
		m := &store.Message{
			Conv: "u/a/b", Cseq: first + uint64(i), ID: id, From: []string{"a", "b"}[r.IntN(2)], Type: []string{"text", "", "x"}[r.IntN(3)],
			Encoding: store.Encoding(r.IntN(3)), TS: r.Int64N(1 << 41),
		}
		if r.IntN(2) == 0 {
			m.Device, m.Cid, m.ContentType = "d", fmt.Sprint(i), "c/t"
			m.CTS, m.Expires = 1+r.Int64N(1<<41), 1+r.Int64N(1<<41)
		}
		if m.Recalled = r.IntN(4) == 0; !m.Recalled && r.IntN(3) > 0 {
			m.Body = make([]byte, 1+r.IntN(30))
		}
		list = append(list, m)
	}
	return list
}

// TestChunk: any stretch of a chunk reads as it was written; a chunk that is cut short or has a bit turned is refused.
func TestChunk(t *testing.T) {
	r := random(t)
	for range 200 {
		list := messages(r)
		last := list[len(list)-1]
		value, _ := wire.AppendChunk(nil, nil, "u/a/b", list, last.ID+7)
		c, err := wire.ParseChunk(value)
		if err != nil || string(c.Conv) != "u/a/b" || c.First != list[0].Cseq || c.Count != len(list) || c.Above != 7 {
			t.Fatalf("got %+v, %v", c, err)
		}
		if id, err := c.LastID(); id != last.ID || err != nil {
			t.Errorf("last id: got %d, %v, want %d", id, err, last.ID)
		}
		i := r.IntN(len(list))
		j := i + 1 + r.IntN(len(list)-i)
		got, err := c.Messages("u/a/b", i, j)
		if err != nil {
			t.Fatal(err)
		}
		for k := range got {
			if d := cmp.Diff(list[i+k], &got[k]); d != "" {
				t.Fatalf("message %d (-want +got):\n%s", i+k, d)
			}
		}
		if _, err := wire.ParseChunk(value[:r.IntN(len(value))]); !errors.Is(err, wire.ErrChunk) {
			t.Errorf("cut short: got %v, want ErrChunk", err)
		}
		value[r.IntN(len(value))] ^= 1 << r.IntN(8)
		if _, err := wire.ParseChunk(value); !errors.Is(err, wire.ErrChunk) {
			t.Errorf("a bit turned: got %v, want ErrChunk", err)
		}
	}
}

func TestPublications(t *testing.T) {
	r := random(t)
	for range 200 {
		var list []*store.Publication
		for i := range 1 + r.IntN(10) {
			m := &store.Publication{Topic: fmt.Sprint("t/", i), From: "f", QoS: byte(r.IntN(3)), TS: r.Int64N(1 << 41), Expires: r.Int64N(1 << 41)}
			if r.IntN(2) == 0 {
				m.Payload, m.Props = make([]byte, 1+r.IntN(20)), []byte("p")
			}
			list = append(list, m)
		}
		value, _ := wire.AppendPubs(nil, nil, list)
		i := r.IntN(len(list))
		j := i + 1 + r.IntN(len(list)-i)
		got, err := wire.ParsePubs(value, i, j)
		if err != nil || len(got) != j-i {
			t.Fatalf("got %d, %v", len(got), err)
		}
		for k := range got {
			if want := list[i+k]; got[k].Topic != want.Topic || string(got[k].Payload) != string(want.Payload) || string(got[k].Props) != string(want.Props) ||
				got[k].QoS != want.QoS || got[k].TS != want.TS || got[k].Expires != want.Expires {
				t.Fatalf("publication %d: got %+v, want %+v", i+k, got[k], want)
			}
		}
		value[r.IntN(len(value))] ^= 1 << r.IntN(8)
		if _, err := wire.ParsePubs(value, i, j); !errors.Is(err, wire.ErrChunk) {
			t.Errorf("a bit turned: got %v, want ErrChunk", err)
		}
	}
}

func TestRunsAndSpans(t *testing.T) {
	r := random(t)
	for range 200 {
		var value []byte
		var want []wire.Run
		prev := store.Conv("")
		for range 1 + r.IntN(8) {
			x := wire.Run{Count: 1 + r.Uint64N(9), Conv: store.Conv(fmt.Sprint("g/", r.IntN(2))), Cseq: r.Uint64(), LSN: r.Uint64(), Index: r.Uint64N(99)}
			value = wire.AppendRun(value, &x, prev)
			prev, want = x.Conv, append(want, x)
		}
		var got []wire.Run
		runs := wire.Runs(value)
		for runs.Next() {
			got = append(got, runs.Run)
		}
		if d := cmp.Diff(want, got); d != "" || runs.D.Bad {
			t.Fatalf("runs (-want +got):\n%s", d)
		}

		var spans []store.Span
		at := uint64(0)
		for range 1 + r.IntN(5) {
			from := at + 1 + r.Uint64N(10)
			at = from + r.Uint64N(10)
			spans = append(spans, store.Span{From: from, To: at})
		}
		if r.IntN(2) == 0 {
			spans[len(spans)-1].To = 0
		}
		d := wire.Decoder{B: wire.AppendSpans(nil, spans)}
		if diff := cmp.Diff(spans, d.Spans()); diff != "" || d.Bad {
			t.Fatalf("spans (-want +got):\n%s", diff)
		}
	}
}
