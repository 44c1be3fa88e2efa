package bench

import (
	"encoding/json"
	"slices"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

var zero atomic.Int64

func TestHeader(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := header{
			run:    rapid.Uint32Range(0, 1<<24-1).Draw(t, "run"),
			stream: rapid.Uint32Range(0, maxStream).Draw(t, "stream"),
			number: rapid.Uint64Range(0, 1<<40-1).Draw(t, "number"),
			due:    rapid.Int64Range(0, 1<<56-1).Draw(t, "due"),
			sent:   rapid.Int64Range(0, 1<<56-1).Draw(t, "sent"),
		}
		b := make([]byte, headerSize)
		putHeader(b, want)
		if got, ok := getHeader(b); !ok || got != want {
			t.Fatalf("got %+v, %v, want %+v", got, ok, want)
		}
		b[rapid.IntRange(0, headerSize-1).Draw(t, "at")] = 'z'
		if _, ok := getHeader(b); ok {
			t.Fatalf("%q was taken for a header", b)
		}
	})
}

func TestIMCommandIsJSON(t *testing.T) {
	tmpl := benchTemplate(IM)
	rd := readerOf(&endless{b: tmpl.appendMessage(nil, 0x1234, header{run: 0xabc, stream: 7, number: 0x2a})})
	pk, err := rd.wait()
	if err != nil {
		t.Fatal(err)
	}
	m, err := parsePublish(v311, pk)
	if err != nil || m.id != 0x1234 || string(m.topic) != "im/cmd/send" {
		t.Fatalf("got topic %q, id %x, %v", m.topic, m.id, err)
	}
	var got struct{ To, CID, Body string }
	if err := json.Unmarshal(m.payload, &got); err != nil {
		t.Fatalf("%v: %s", err, m.payload)
	}
	if got.To != "u/bench-abc-r-7" || got.CID != "000abc000007000000002a" || len(got.Body) != 256 {
		t.Errorf("got to %q, cid %q, a body of %d bytes", got.To, got.CID, len(got.Body))
	}
}

func TestJSONLookup(t *testing.T) {
	b := []byte(`{"cseq":57,"conv":"u/a","seq": 12,"body" :"no","body": "yes"}`)
	if v, ok := jsonNumber(b, keySeq); !ok || v != 12 {
		t.Errorf("seq: got %d, %v, want 12", v, ok)
	}
	if v, ok := jsonNumber(b, keyCSeq); !ok || v != 57 {
		t.Errorf("cseq: got %d, %v, want 57", v, ok)
	}
	if v, ok := jsonString(b, keyBody); !ok || string(v) != "yes" {
		t.Errorf("body: got %q, %v, want yes", v, ok)
	}
	for _, b := range []string{``, `"body":`, `"body":"`, `"body":"open`, `"body":{}`} {
		if v, ok := jsonString([]byte(b), keyBody); ok {
			t.Errorf("%s: got %q, want nothing", b, v)
		}
	}
}

// TestRanges runs a set of intervals against a map.
func TestRanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var set ranges
		model := map[uint64]bool{}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				n := rapid.Uint64Range(0, 40).Draw(t, "from")
				to := n
				for ; to < n+5 && !model[to]; to++ {
					model[to] = true
				}
				set.add(n, to)
			},
			"remove": func(t *rapid.T) {
				n := rapid.Uint64Range(0, 45).Draw(t, "n")
				if got, want := set.remove(n), model[n]; got != want {
					t.Fatalf("remove %d: got %v, want %v", n, got, want)
				}
				delete(model, n)
			},
			"": func(t *rapid.T) {
				if got, want := set.count(), uint64(len(model)); got != want {
					t.Fatalf("count: got %d, want %d of %v", got, want, set)
				}
				for n := range uint64(50) {
					if got, want := set.has(n), model[n]; got != want {
						t.Fatalf("has %d: got %v, want %v in %v", n, got, want, set)
					}
				}
			},
		})
	})
}

// TestChecker delivers 0 … n-1 after losing, repeating and moving some, and counts what the checker noticed.
func TestChecker(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const n = 30
		var arrive []uint64
		lost := uint64(0)
		for i := range uint64(n) {
			if rapid.IntRange(0, 4).Draw(t, "lose") == 0 {
				lost++
				continue
			}
			arrive = append(arrive, i)
		}
		for range rapid.IntRange(0, 3).Draw(t, "swaps") {
			if len(arrive) > 1 {
				i := rapid.IntRange(0, len(arrive)-2).Draw(t, "at")
				arrive[i], arrive[i+1] = arrive[i+1], arrive[i]
			}
		}
		// By definition: out of order is what comes after a higher number.
		late := 0
		for i, v := range arrive {
			if i > 0 && v < slices.Max(arrive[:i]) {
				late++
			}
		}
		var c checker
		var reorderings, duplicates int
		for _, v := range arrive {
			for _, v := range []uint64{v, v} {
				switch c.see(v) {
				case reordered:
					reorderings++
				case duplicate:
					duplicates++
				}
			}
		}
		if got := c.lost(n); got != lost || reorderings != late || duplicates != len(arrive) {
			t.Fatalf("%v: got %d lost, %d late, %d duplicates, want %d, %d, %d", arrive, got, reorderings, duplicates, lost, late, len(arrive))
		}
	})
	var c checker
	c.see(0)
	if got := c.lost(10, ranges{{2, 4}}, ranges{{9, 10}}); got != 6 {
		t.Errorf("9 missing, 3 excused: got %d lost, want 6", got)
	}
}

func TestShare(t *testing.T) {
	for _, c := range []struct {
		count int64
		n     int
	}{{10, 3}, {3, 10}, {0, 4}, {1_000_000, 10_000}} {
		sum := uint64(0)
		for i := range c.n {
			sum += share(c.count, c.n, i)
		}
		if sum != uint64(c.count) {
			t.Errorf("%d among %d: got %d in all", c.count, c.n, sum)
		}
	}
}
