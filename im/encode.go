package im

import (
	"encoding/base64"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/mqim/mqim/store"
)

// AppendMessage appends the JSON of a message as user sees it (protocol.md, A message and its receipts). seq 0 leaves the seq out,
// attempt 0 the attempt.
func AppendMessage(b []byte, user string, seq uint64, m *store.Message, attempt int) []byte {
	b = append(b, `{"id":"`...)
	b = strconv.AppendInt(b, m.ID, 10)
	b = append(b, '"')
	if seq > 0 {
		b = appendUint(b, "seq", seq)
	}
	b = appendConv(b, user, m.Conv)
	b = appendUint(b, "cseq", m.Cseq)
	b = appendField(b, "from", m.From)
	if cid := ClientCid(m.Cid); cid != "" {
		b = appendField(b, "cid", cid)
	}
	b = appendInt(b, "ts", m.TS)
	if m.CTS != 0 {
		b = appendInt(b, "cts", m.CTS)
	}
	if m.Recalled {
		return append(b, `,"type":"recalled","body":null}`...)
	}
	b = appendField(b, "type", m.Type)
	if m.ContentType != "" {
		b = appendField(b, "content_type", m.ContentType)
	}
	b = appendBody(b, m)
	if attempt > 0 {
		b = appendUint(b, "attempt", uint64(attempt))
	}
	return append(b, '}')
}

// ClientCid is a message's cid as it is shown: "" where the engine made it, which is nobody's business.
func ClientCid(cid string) string {
	if strings.HasPrefix(cid, ownCid) {
		return ""
	}
	return cid
}

// ownCid leads the cids that the engine makes. Those of clients are UTF-8, which has no such byte.
const ownCid = "\xff"

func appendBody(b []byte, m *store.Message) []byte {
	switch m.Encoding {
	case store.JSON:
		b = append(b, `,"body":`...)
		return append(b, m.Body...)
	case store.Text:
		b = append(b, `,"body":`...)
		return appendString(b, m.Body)
	}
	b = append(b, `,"enc":"base64","body":"`...)
	b = base64.StdEncoding.AppendEncode(b, m.Body)
	return append(b, '"')
}

func appendConv(b []byte, user string, c store.Conv) []byte {
	b = append(b, `,"conv":"`...) // names need no escaping
	if p := c.Peer(user); p != "" {
		b = append(b, "u/"...)
		b = append(b, p...)
	} else {
		b = append(b, c...)
	}
	return append(b, '"')
}

func appendField(b []byte, key, val string) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':')
	return appendString(b, val)
}

func appendUint(b []byte, key string, val uint64) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':')
	return strconv.AppendUint(b, val, 10)
}

func appendInt(b []byte, key string, val int64) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':')
	return strconv.AppendInt(b, val, 10)
}

// appendString appends s as a JSON string. Invalid UTF-8 becomes U+FFFD, as encoding/json has it.
func appendString[T string | []byte](b []byte, s T) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
			if r == utf8.RuneError && n == 1 {
				b = append(b, s[start:i]...)
				b = append(b, `\ufffd`...)
				start = i + 1
			}
			i += n
			continue
		}
		if c >= 0x20 && c != '"' && c != '\\' {
			i++
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		start = i
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

// appendReply opens a reply; the caller appends its members, each led by a comma, and the brace that closes it.
func appendReply(b []byte, rid string, ok bool) []byte {
	b = append(b, '{')
	if rid != "" {
		b = append(b, `"rid":`...)
		b = appendString(b, rid)
		b = append(b, ',')
	}
	if ok {
		return append(b, `"ok":true`...)
	}
	return append(b, `"ok":false`...)
}

func appendErrorReply(b []byte, rid, cid string, err *Error) []byte {
	b = appendReply(b, rid, false)
	if cid != "" {
		b = appendField(b, "cid", cid)
	}
	b = append(b, `,"error":{"code":"`...)
	b = append(b, err.Code...)
	b = append(b, '"')
	b = appendField(b, "message", err.Message)
	return append(b, "}}"...)
}
