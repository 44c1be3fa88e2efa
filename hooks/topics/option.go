package topics

import (
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/store"
)

// What a subscription asks for, as it is stored: flags, and the identifier as an encoded property.
const (
	optQoS     = 3
	optNoLocal = 1 << 2
	optRetain  = 1 << 3 // Retain As Published
)

// encodeSubscription is a subscription as it is stored.
func encodeSubscription(client string, sub *packets.Subscription) store.Subscription {
	b := []byte{sub.Qos & optQoS}
	if sub.NoLocal {
		b[0] |= optNoLocal
	}
	if sub.RetainAsPublished {
		b[0] |= optRetain
	}
	return store.Subscription{Client: client, Filter: sub.Filter, Options: append(b, appendIDs(sub)...)}
}

// decodeSubscription is the reverse, as mochi has it.
func decodeSubscription(s *store.Subscription) (sub packets.Subscription, ok bool) {
	if len(s.Options) == 0 {
		return sub, false
	}
	flags := s.Options[0]
	sub = packets.Subscription{
		Filter: s.Filter, Qos: flags & optQoS, NoLocal: flags&optNoLocal != 0, RetainAsPublished: flags&optRetain != 0,
		RetainHandling: dontSend,
	}
	if len(s.Options) > 1 {
		var p packets.Properties
		if id, ok := link.SubscriptionID(s.Options[1:]); ok {
			sub.Identifier = id
			p.SubscriptionIdentifier = []int{id}
		}
	}
	return sub, true
}

// appendIDs encodes a subscription's identifiers, of which mochi keeps 0 for none.
func appendIDs(sub *packets.Subscription) string {
	var b []byte
	for _, id := range sub.Identifiers {
		if id > 0 {
			b = link.AppendSubscriptionID(b, id) // [MQTT-3.3.4-3] [MQTT-3.3.4-4]
		}
	}
	if sub.Identifiers == nil && sub.Identifier > 0 {
		b = link.AppendSubscriptionID(b, sub.Identifier)
	}
	return string(b)
}

// A reference in a queue carries flags and identifiers of its own: the RETAIN flag to be sent, and what follows it.
func queueOptions(retain bool, ids string) []byte {
	b := make([]byte, 1, 1+len(ids))
	if retain {
		b[0] = retainFlag
	}
	return append(b, ids...)
}

func fromQueueOptions(b []byte) (flags uint8, ids string) {
	if len(b) == 0 {
		return 0, ""
	}
	return b[0] & retainFlag, string(b[1:])
}
