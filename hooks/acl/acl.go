// Package acl decides who may publish and subscribe to the topics outside im/, by rules from the configuration.
//
// Topics "im" and "im/…" are another hook's business: this one answers yes for them. A filter that merely could
// match them ("#", "+/x") is judged like any other. The package knows neither the configuration's text nor the
// engine. Rules are immutable; the hook swaps them whole, so a change takes effect between two checks and needs no lock.
package acl

import (
	"fmt"
	"strings"
)

// Action is what a rule speaks of; Pub|Sub is both.
type Action uint8

// The actions.
const (
	Pub Action = 1 << iota
	Sub
)

// ParseAction reads "pub", "sub" or "pubsub".
func ParseAction(text string) (Action, error) {
	switch text {
	case "pub":
		return Pub, nil
	case "sub":
		return Sub, nil
	case "pubsub":
		return Pub | Sub, nil
	}
	return 0, fmt.Errorf("found %q, expected pub, sub or pubsub", text)
}

// Rule allows or denies actions on the topics that match a filter. In Topic %u stands for the user, %c for the
// client id and %% for a percent sign.
type Rule struct {
	Allow  bool // false: the rule denies
	Action Action
	Topic  string
}

// Rules are compiled rules. A nil *Rules has none.
type Rules struct {
	rules []rule
}

type rule struct {
	allow  bool
	action Action
	levels []level
}

// NoRule is a Decision's Rule where none decided.
const NoRule = -1

// Decision is the answer for one topic or filter.
type Decision struct {
	Allowed bool
	Rule    int // index of the rule that decided, or NoRule
	Why     Why
}

// Why is what decided, in words for people.
type Why string

// What decides, in the order in which it is asked.
const (
	Invalid  Why = "not a topic, or topic filter, of MQTT"
	Dollar   Why = "nobody publishes to topics that begin with $"
	Reserved Why = "topics under im/ are not the rules' business" // this package answers yes
	NoRules  Why = "there are no rules"
	ByRule   Why = "by rule"
	NoMatch  Why = "no rule matches, and there are rules"
)

// Compile checks the rules and prepares them. The order matters: the first rule that matches decides.
func Compile(rules []Rule) (*Rules, error) {
	compiled := &Rules{rules: make([]rule, 0, len(rules))}
	for i, r := range rules {
		if r.Action == 0 || r.Action&^(Pub|Sub) != 0 {
			return nil, fmt.Errorf("acl[%d]: found action %d, expected Pub, Sub or both", i, r.Action)
		}
		levels, err := parseTopic(r.Topic)
		if err != nil {
			return nil, fmt.Errorf("acl[%d].topic: found %q, %w", i, r.Topic, err)
		}
		compiled.rules = append(compiled.rules, rule{r.Allow, r.Action, levels})
	}
	return compiled, nil
}

// Decide says whether the client may publish to topic (write) or subscribe to it. For a subscription topic is the
// filter as the client sent it, $share/group/ included.
//
// Without rules everything is allowed, but for publishing to topics that begin with $. Once there is a rule, what no
// rule matches is denied. A rule that allows matches a filter only if it covers the filter as a whole; a rule that
// denies matches as soon as the filter could bring one topic that the rule denies.
func (r *Rules) Decide(user, client, topic string, write bool) Decision {
	action := Sub
	if write {
		action = Pub
		if validTopic(topic) != nil {
			return Decision{false, NoRule, Invalid}
		}
		if topic[0] == '$' {
			return Decision{false, NoRule, Dollar}
		}
	} else {
		var shared, ok bool
		if topic, shared, ok = unshare(topic); !ok || validFilter(topic) != nil {
			return Decision{false, NoRule, Invalid}
		}
		if _, again, _ := unshare(topic); shared && again {
			return Decision{false, NoRule, Invalid}
		}
	}
	if reserved(topic) {
		return Decision{true, NoRule, Reserved}
	}
	if r == nil || len(r.rules) == 0 {
		return Decision{true, NoRule, NoRules}
	}
	for i, rule := range r.rules {
		if rule.action&action == 0 {
			continue
		}
		matches := overlaps
		if rule.allow {
			matches = covers
		}
		if matches(rule.levels, user, client, topic) {
			return Decision{rule.allow, i, ByRule}
		}
	}
	return Decision{false, NoRule, NoMatch}
}

// validTopic reports whether topic is one that can be published to [MQTT-3.3.2-2].
func validTopic(topic string) error {
	if strings.ContainsAny(topic, "+#") {
		return fmt.Errorf("found %q, expected a topic without wildcards", topic)
	}
	return validFilter(topic)
}

// reserved reports whether a topic or filter belongs to the messaging engine.
func reserved(topic string) bool {
	return topic == "im" || strings.HasPrefix(topic, "im/")
}
