package im

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqim/mqim/store"
)

// FuzzCommand: any payload to any command is answered exactly once, with valid JSON, without a panic.
func FuzzCommand(f *testing.F) {
	names := append(slices.Sorted(maps.Keys(handlers)), "send", "group.create", "nothing", "")
	for i := range names {
		for _, p := range []string{
			`{}`, `{"rid":"1","to":"u/bob","cid":"c","body":{"a":[1,2]},"ttl":5,"cts":1}`, `{"seq":1}`, `{"ids":["1"]}`,
			`{"conv":"u/bob","cseq":1,"cseqs":[1],"limit":1,"before":1}`, `{"users":["bob"],"user":"bob","device":"x","t0":1e3}`,
			`{"to":"u/alice","state":{"a":"\ud800"},"body":"\u0000"}`, `[`, "\xff", `null`, `{"rid":5}`, `{"seq":-1}`,
		} {
			f.Add(uint8(i), []byte(p))
		}
	}
	st := openStore(f, vfs.NewMem(), store.Retention{}, nil)
	e := New(st, Config{MessageBytes: 1 << 10, CommandBytes: 4 << 10, Log: quiet})
	f.Cleanup(func() {
		if err := e.Close(context.Background()); err != nil {
			f.Error(err)
		}
		st.Close()
	})
	link := newLink()
	dev, err := e.Connect(context.Background(), "alice", "a", persistent, link)
	if err != nil {
		f.Fatal(err)
	}
	link.dev = dev
	dev.SetProfile(IM, everything)
	f.Fuzz(func(t *testing.T, name uint8, payload []byte) {
		tk := link.ticket()
		before := bytes.Clone(payload)
		dev.Command(names[int(name)%len(names)], payload, tk, nil)
		if err := e.Drain(context.Background()); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(payload, before) {
			t.Error("the payload was changed")
		}
		link.mu.Lock()
		defer link.mu.Unlock()
		if n := len(link.answers[tk]); n != 1 {
			t.Errorf("%d answers", n)
		}
		for _, s := range link.bad {
			t.Error(s)
		}
		link.bad, link.got, link.notes = nil, nil, nil
		clear(link.answers)
	})
}

// FuzzAddress: what parses is an address of a conversation that the user takes part in, and prints as it was.
func FuzzAddress(f *testing.F) {
	for _, s := range []string{"u/bob", "g/team", "u/", "u/a/b", "x/bob", "u/.x", "u/alice", "u/" + strings.Repeat("x", 65)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, addr string) {
		conv, err := ParseAddress("alice", addr)
		if err != nil {
			if err.Code != BadRequest || conv != "" || !utf8.ValidString(err.Message) {
				t.Errorf("%q: %q, %v", addr, conv, err)
			}
			return
		}
		if !ValidName(addr[2:]) {
			t.Errorf("%q was taken", addr)
		}
		if got := conv.Address("alice"); got != addr {
			t.Errorf("%q came back as %q", addr, got)
		}
	})
}

// FuzzName: names are what the protocol says, and need no escaping anywhere.
func FuzzName(f *testing.F) {
	for _, s := range []string{"a", "A.b_c@d-9", ".a", "", "a/b", "ä", strings.Repeat("x", 64)} {
		f.Add(s)
	}
	const first, rest = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", "._@-"
	f.Fuzz(func(t *testing.T, s string) {
		want := len(s) >= 1 && len(s) <= 64 && strings.Trim(s, first+rest) == "" && strings.ContainsRune(first, rune(s[0]))
		if ValidName(s) != want {
			t.Errorf("%q: got %v, want %v", s, !want, want)
		}
	})
}

// FuzzDevice: device ids have no control characters.
func FuzzDevice(f *testing.F) {
	for _, s := range []string{"a", "phone 1", "", "a\x00", "a\u0085", "ä", strings.Repeat("x", 129)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !ValidDevice(s) {
			return
		}
		for _, r := range s {
			if r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 {
				t.Errorf("%q has %U", s, r)
			}
		}
		if len(s) == 0 || len(s) > 128 {
			t.Errorf("%q has %d bytes", s, len(s))
		}
	})
}

// FuzzAppendMessage: the output is one line of valid JSON from which the body comes back as it was.
func FuzzAppendMessage(f *testing.F) {
	f.Add("text", "c1", "x/y", []byte("hi\n\"\\\x00\u2028é"), uint8(0), 1, false)
	f.Add("bytes", "", "", []byte{0xff, 0}, uint8(1), 0, false)
	f.Add("json", "", "", []byte(`{"a":[1,null,"\ud834"]}`), uint8(2), 0, true)
	f.Add("\xff", "\xed\xa0\x80", "\x7f", []byte("\xc3"), uint8(0), -1, false)
	f.Fuzz(func(t *testing.T, typ, cid, contentType string, body []byte, enc uint8, attempt int, recalled bool) {
		m := &store.Message{
			Conv: store.Direct("alice", "bob"), Cseq: 3, ID: 1<<62 + 1, From: "bob", Cid: cid, Type: typ, ContentType: contentType,
			Encoding: store.Encoding(enc % 3), Recalled: recalled, TS: 5, CTS: 6, Body: body,
		}
		if m.Encoding == store.JSON && (!json.Valid(body) || body[0] == '"') {
			return // the engine never stores that as JSON
		}
		b := AppendMessage([]byte("x"), "alice", 12, m, attempt)[1:]
		var got struct {
			ID, Conv, From, Cid, Type, Enc string
			ContentType                    string `json:"content_type"`
			Seq, Cseq                      uint64
			TS, CTS                        int64
			Body                           json.RawMessage
			Attempt                        int
		}
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if got.ID != "4611686018427387905" || got.Conv != "u/bob" || got.From != "bob" || got.Seq != 12 || got.Cseq != 3 || got.TS != 5 || got.CTS != 6 {
			t.Errorf("%s", b)
		}
		if want := strings.ToValidUTF8(cid, "\ufffd"); utf8.ValidString(cid) && got.Cid != want {
			t.Errorf("cid %q, want %q", got.Cid, want)
		}
		if recalled {
			if string(got.Body) != "null" || got.Type != "recalled" {
				t.Errorf("tombstone %s", b)
			}
			return
		}
		if got.Attempt != max(attempt, 0) || utf8.ValidString(typ) && got.Type != typ {
			t.Errorf("%s", b)
		}
		switch m.Encoding {
		case store.Text:
			var s string
			if err := json.Unmarshal(got.Body, &s); err != nil || utf8.Valid(body) && s != string(body) {
				t.Errorf("body %q came back as %q, %v", body, s, err)
			}
		case store.Bytes:
			var s string
			err := json.Unmarshal(got.Body, &s)
			back, err2 := base64.StdEncoding.DecodeString(s)
			if err != nil || err2 != nil || got.Enc != "base64" || !bytes.Equal(back, body) {
				t.Errorf("body %q came back as %q, %v, %v", body, back, err, err2)
			}
		case store.JSON:
			if !bytes.Equal(bytes.TrimSpace(got.Body), bytes.TrimSpace(body)) {
				t.Errorf("body %s came back as %s", body, got.Body)
			}
		}
	})
}
