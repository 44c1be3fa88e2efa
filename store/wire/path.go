package wire

import (
	"bytes"
	"strings"
)

// Topics and filters are keys level by level, so that what lies below a level is a range, and in an order in which a
// level's own key comes after everything below it: levels are joined by 0 and closed by 1. The bytes 1 and 2 within a
// level, which UTF-8 has as control characters, are preceded by 2.
const (
	PathDeeper = 0
	PathEnd    = 1
	PathBeyond = 2 // sorts behind everything below a level, and its own key; also escapes
)

// AppendLevel writes a level without what ends it.
func AppendLevel(dst []byte, level string) []byte {
	for i := range len(level) {
		if c := level[i]; c == PathEnd || c == PathBeyond {
			dst = append(dst, PathBeyond)
		}
		dst = append(dst, level[i])
	}
	return dst
}

// KeyPath is the key of a topic or a filter in a table.
func KeyPath(dst []byte, table byte, path string) []byte {
	dst = append(dst, table)
	for more := true; more; {
		var level string
		level, path, more = strings.Cut(path, "/")
		dst = AppendLevel(dst, level)
		if more {
			dst = append(dst, PathDeeper)
		}
	}
	return append(dst, PathEnd)
}

// PathOf takes the path out of a key, and what follows it; ok is false where the key is none.
func PathOf(key []byte) (path string, rest []byte, ok bool) {
	var b strings.Builder
	for i := 1; i < len(key); i++ {
		switch c := key[i]; c {
		case PathDeeper:
			b.WriteByte('/')
		case PathEnd:
			return b.String(), key[i+1:], true
		case PathBeyond:
			if i++; i == len(key) {
				return "", nil, false
			}
			b.WriteByte(key[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", nil, false
}

// PathMatcher walks over the keys of a table that a filter matches.
type PathMatcher struct {
	levels [][]byte // of the filter, as in keys
}

// NewPathMatcher makes a matcher for a filter without $share.
func NewPathMatcher(filter string) *PathMatcher {
	m := &PathMatcher{}
	for level := range strings.SplitSeq(filter, "/") {
		m.levels = append(m.levels, AppendLevel(nil, level))
	}
	return m
}

// Look says whether the filter matches a key, and where it does not, from which key on the next match may lie; nil: there
// is none. key has the table in front.
func (m *PathMatcher) Look(key []byte) (match bool, seek []byte) {
	at := 1 // where the key's next level begins
	for i, f := range m.levels {
		if at < 0 { // the key has no more levels
			if string(f) == "#" {
				return true, nil // a/# matches a [MQTT-4.7.1-2]
			}
			return false, append(bytes.Clone(key[:len(key)-1]), PathBeyond)
		}
		wild := string(f) == "+" || string(f) == "#"
		if i == 0 && wild && key[at] == '$' { // [MQTT-4.7.2-1]
			return false, []byte{key[0], '$' + 1}
		}
		if string(f) == "#" {
			return true, nil
		}
		end, deeper := levelEnd(key, at)
		if !wild {
			switch c := bytes.Compare(key[at:end], f); {
			case c < 0:
				return false, append(bytes.Clone(key[:at]), f...)
			case c > 0 && i == 0:
				return false, nil
			case c > 0: // past it: on behind the level above
				return false, append(bytes.Clone(key[:at-1]), PathBeyond)
			}
		}
		if at = -1; deeper {
			at = end + 1
		}
	}
	if at < 0 {
		return true, nil
	}
	return false, append(bytes.Clone(key[:at-1]), PathEnd) // deeper than the filter
}

// levelEnd is where the level that begins at a place ends; deeper: another follows.
func levelEnd(key []byte, at int) (end int, deeper bool) {
	for i := at; i < len(key); i++ {
		switch key[i] {
		case PathBeyond:
			i++
		case PathDeeper:
			return i, true
		case PathEnd:
			return i, false
		}
	}
	return len(key), false
}
