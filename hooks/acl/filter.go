package acl

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxTopic is the longest topic MQTT can carry, in bytes [MQTT-4.7.3-3].
const maxTopic = 65535

// CheckTopic reports what is wrong with the topic of a rule: it must be an MQTT topic filter in which %u stands for
// the user, %c for the client id and %% for a percent sign.
func CheckTopic(topic string) error {
	_, err := parseTopic(topic)
	return err
}

// validFilter reports whether filter is one by MQTT's rules [MQTT-4.7.1-1] [MQTT-4.7.3-1]. mochi lets pass "a#" and "+a".
func validFilter(filter string) error {
	switch {
	case filter == "":
		return errors.New("expected a topic filter such as devices/%u/#")
	case len(filter) > maxTopic:
		return fmt.Errorf("expected at most %d bytes", maxTopic)
	case !utf8.ValidString(filter) || strings.ContainsRune(filter, 0):
		return errors.New("expected UTF-8 without the null character")
	}
	for rest, more := filter, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		switch {
		case level == "#" && more:
			return errors.New("expected # only at the end")
		case len(level) > 1 && strings.ContainsAny(level, "#+"):
			return errors.New("expected # and + to take a whole level")
		}
	}
	return nil
}

// unshare takes the $share/{group}/ off a shared subscription. mochi compares the prefix without regard to case, so
// this does too. ok is false where the prefix has no group or no filter after it.
func unshare(filter string) (rest string, shared, ok bool) {
	prefix, rest, more := strings.Cut(filter, "/")
	if !strings.EqualFold(prefix, "$share") {
		return filter, false, true
	}
	if !more {
		return "", true, false
	}
	group, rest, more := strings.Cut(rest, "/")
	return rest, true, more && group != "" && !strings.ContainsAny(group, "+#")
}

// level is one level of a rule's topic: "#", "+", or parts that are joined once user and client are known.
type level struct {
	hash, plus bool
	parts      []part
}

// part is a piece of a level: text, or with who 'u' or 'c' a placeholder.
type part struct {
	text string
	who  byte
}

// parseTopic splits the topic of a rule into levels.
func parseTopic(topic string) ([]level, error) {
	if err := validFilter(topic); err != nil {
		return nil, err
	}
	if _, shared, _ := unshare(topic); shared {
		return nil, errors.New("expected the filter without $share/group/: a rule speaks of shared subscriptions too")
	}
	var levels []level
	for text := range strings.SplitSeq(topic, "/") {
		switch text {
		case "#":
			levels = append(levels, level{hash: true})
		case "+":
			levels = append(levels, level{plus: true})
		default:
			parts, err := parseLevel(text)
			if err != nil {
				return nil, err
			}
			levels = append(levels, level{parts: parts})
		}
	}
	// Every topic has a first level, so "+/#" says the same as "#" and has to cover it.
	if len(levels) == 2 && levels[0].plus && levels[1].hash {
		levels = levels[1:]
	}
	return levels, nil
}

func parseLevel(text string) ([]part, error) {
	var parts []part
	var plain strings.Builder
	flush := func() {
		if plain.Len() > 0 {
			parts = append(parts, part{text: plain.String()})
			plain.Reset()
		}
	}
	for i := 0; i < len(text); i++ {
		if text[i] != '%' {
			plain.WriteByte(text[i])
			continue
		}
		i++
		switch {
		case i < len(text) && text[i] == '%':
			plain.WriteByte('%')
		case i < len(text) && (text[i] == 'u' || text[i] == 'c'):
			flush()
			parts = append(parts, part{who: text[i]})
		default:
			return nil, errors.New("expected %u (user), %c (client id) or %% (a percent sign)")
		}
	}
	flush()
	return parts, nil
}

// expand is the text of the level for one client. safe is false where a name would act as more than a name: it is
// empty, holds a character with a meaning in filters, or puts a $ in front of the topic.
func (l level) expand(user, client string, first bool) (text string, safe bool) {
	if len(l.parts) == 1 && l.parts[0].who == 0 {
		return l.parts[0].text, true
	}
	var b strings.Builder
	for _, p := range l.parts {
		name := p.text
		switch p.who {
		case 'u':
			name = user
		case 'c':
			name = client
		}
		if p.who != 0 && (name == "" || strings.ContainsAny(name, "+#/\x00") || first && b.Len() == 0 && name[0] == '$') {
			return "", false
		}
		b.WriteString(name)
	}
	return b.String(), true
}

// covers reports whether every topic that asked matches is matched by the rule. asked is a topic or a valid filter.
func covers(rule []level, user, client, asked string) bool {
	if asked[0] == '$' && (rule[0].hash || rule[0].plus) {
		return false // [MQTT-4.7.2-1]
	}
	rest, more := asked, true
	for i, l := range rule {
		if l.hash {
			return true // the parent level too: a/# matches a
		}
		if !more {
			return false
		}
		var have string
		have, rest, more = strings.Cut(rest, "/")
		if have == "#" {
			return false
		}
		if l.plus {
			continue
		}
		want, safe := l.expand(user, client, i == 0)
		if !safe || have != want {
			return false
		}
	}
	return !more
}

// overlaps reports whether there may be a topic that both asked and the rule match. Where a name is not safe to put
// in, everything from that level on counts as matched: a client must not slip past a deny rule by its client id.
func overlaps(rule []level, user, client, asked string) bool {
	wild := asked[0] == '+' || asked[0] == '#'
	if asked[0] == '$' && (rule[0].hash || rule[0].plus) {
		return false // [MQTT-4.7.2-1]
	}
	rest, more := asked, true
	for i, l := range rule {
		if l.hash {
			return true
		}
		if !more {
			return false
		}
		var have string
		have, rest, more = strings.Cut(rest, "/")
		if l.plus {
			if have == "#" {
				return true
			}
			continue
		}
		want, safe := l.expand(user, client, i == 0)
		switch {
		case i == 0 && wild && strings.HasPrefix(want, "$"):
			return false // [MQTT-4.7.2-1]
		case !safe || have == "#":
			return true
		case have != "+" && have != want:
			return false
		}
	}
	// a/# also matches a.
	return !more || rest == "#"
}
