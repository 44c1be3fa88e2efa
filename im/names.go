package im

import (
	"strings"

	"github.com/mqim/mqim/store"
)

// ValidName reports whether s may name a user or a group: [A-Za-z0-9][A-Za-z0-9._@-]{0,63}.
func ValidName(s string) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '@' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// ValidDevice reports whether s may name a device: 1 to 128 bytes of UTF-8 without control characters. That it is
// UTF-8 has been checked where the packet was decoded.
func ValidDevice(s string) bool {
	if len(s) == 0 || len(s) > 128 {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r >= 0x7f && r < 0xa0 })
}

// ParseAddress reads "u/{user}" or "g/{group}" as user sees it.
func ParseAddress(user, addr string) (store.Conv, *Error) {
	kind, name, ok := strings.Cut(addr, "/")
	switch {
	case !ok || !ValidName(name):
	case kind == "u":
		return store.Direct(user, name), nil
	case kind == "g":
		return store.GroupConv(name), nil
	}
	return "", errorf(BadRequest, "%q is not an address: want u/{user} or g/{group}", clip(addr))
}

// clip shortens what a client sent before it is shown in an error.
func clip(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:80], "") + "…"
	}
	return s
}
