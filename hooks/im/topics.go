package im

import (
	"strings"

	engine "github.com/mqim/mqim/im"
)

// Everything under im/ is the product's; everything else is ordinary MQTT.
const (
	prefix  = "im/"
	userDir = "im/u/"
	cmdDir  = "im/cmd/"
)

// filterKind says what a topic filter has to do with the product.
type filterKind uint8

const (
	ordinary  filterKind = iota // mochi's business, even if it happens to match topics under im/
	own                         // the user's own topics
	forbidden                   // under im/, and not the user's
)

// classify judges a filter that user asks for.
func classify(user, filter string) filterKind {
	const share = "$share/"
	if len(filter) > len(share) && strings.EqualFold(filter[:len(share)], share) { // as mochi reads it
		rest := filter[len(share):]
		if _, f, ok := strings.Cut(rest, "/"); ok && strings.HasPrefix(f, prefix) {
			return forbidden
		}
		return ordinary
	}
	rest, ok := strings.CutPrefix(filter, prefix)
	if !ok {
		return ordinary
	}
	rest, ok = strings.CutPrefix(rest, "u/")
	if !ok {
		return forbidden
	}
	name, level, deeper := strings.Cut(rest, "/")
	if name != user || deeper && !validTail(level) {
		return forbidden
	}
	return own
}

// Decide says whether user may publish to (write) or subscribe to a topic of which hooks/acl says that it is Reserved,
// and why, in words for people. That a topic may be published to does not say that its receiver wants it.
func Decide(user, topic string, write bool) (allowed bool, why string) {
	if write {
		switch {
		case strings.HasPrefix(topic, cmdDir):
			return true, "im/cmd/… takes everybody's commands; each is answered for itself"
		case sendable(topic) && engine.ValidName(topic[len(userDir):]): // im/u/ and im/g/ are of one length
			return true, "everybody sends to im/u/{user} and im/g/{group}; membership, blocks and mutes are looked at with each message"
		}
		return false, "under im/ only im/u/{user}, im/g/{group} and im/cmd/{command} may be published to"
	}
	switch classify(user, topic) {
	case own:
		return true, "it is the user's own"
	case forbidden:
		return false, "under im/ only im/u/" + user + " and what lies under it may be subscribed to, and not as $share/…"
	}
	return true, "nothing under im/ comes through it"
}

// validTail checks what follows im/u/{me}/: levels with wildcards where MQTT allows them.
func validTail(s string) bool {
	for {
		level, rest, more := strings.Cut(s, "/")
		if strings.ContainsAny(level, "+#") && len(level) > 1 || level == "#" && more {
			return false
		}
		if !more {
			return true
		}
		s = rest
	}
}
