package acl

import (
	"strings"
	"sync/atomic"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Hook applies rules in a mochi server. Add it after the hook that authenticates (the rules speak of the user in
// cl.Properties.Username), and as the only one that provides OnACLCheck: mochi lets any hook's yes win. Publishes and wills
// are for hooks/topics to check, with Allowed: mochi asks nobody about wills, and about a publish by alias too early.
//
// All methods may be called concurrently.
type Hook struct {
	mqtt.HookBase
	rules  atomic.Pointer[Rules]
	denied func(cl *mqtt.Client, topic string, write bool, rule int)
}

// Options configure a Hook. The zero value allows everything that Rules.Decide does without rules.
type Options struct {
	Rules *Rules
	// Denied, if set, hears of everything refused, deliveries too: the topic or filter, and the rule that decided or
	// NoRule. It is for counting; it runs in the goroutine of whoever publishes or subscribes and must not block.
	Denied func(cl *mqtt.Client, topic string, write bool, rule int)
}

// New makes a hook.
func New(opts Options) *Hook {
	h := &Hook{denied: opts.Denied}
	h.rules.Store(opts.Rules)
	return h
}

// SetRules replaces the rules at once, for checks from now on. Subscriptions that were granted stay until hooks/topics is
// told to Recheck them.
func (h *Hook) SetRules(rules *Rules) { h.rules.Store(rules) }

// ID names the hook in mochi's log.
func (h *Hook) ID() string { return "acl" }

// Provides tells mochi which events the hook wants.
func (h *Hook) Provides(event byte) bool {
	switch event {
	case mqtt.OnACLCheck, mqtt.OnSelectSubscribers:
		return true
	}
	return false
}

// Allowed is Rules.Decide for a connected client, with the rules of this moment.
func (h *Hook) Allowed(cl *mqtt.Client, topic string, write bool) bool {
	d := h.rules.Load().Decide(string(cl.Properties.Username), cl.ID, topic, write)
	if d.Allowed {
		return true
	}
	if h.Log != nil {
		h.Log.Debug("denied", "user", string(cl.Properties.Username), "client", cl.ID, "topic", topic, "write", write, "why", d.Why, "rule", d.Rule)
	}
	if h.denied != nil {
		h.denied(cl, topic, write, d.Rule)
	}
	return false
}

// OnACLCheck answers for each filter of a SUBSCRIBE, and for the topic of each message that mochi is about to deliver,
// which is what it publishes under $SYS.
func (h *Hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	return h.Allowed(cl, topic, write)
}

// OnSelectSubscribers keeps topics that begin with $ from shared subscriptions that begin with a wildcard, which
// mochi does for ordinary subscriptions only [MQTT-4.7.2-1]. Without rules nothing else would.
func (h *Hook) OnSelectSubscribers(subs *mqtt.Subscribers, pk packets.Packet) *mqtt.Subscribers {
	if !strings.HasPrefix(pk.TopicName, "$") {
		return subs
	}
	for filter := range subs.Shared {
		if rest, _, _ := unshare(filter); strings.HasPrefix(rest, "+") || strings.HasPrefix(rest, "#") {
			delete(subs.Shared, filter)
		}
	}
	return subs
}
