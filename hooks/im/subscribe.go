package im

import (
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/store"
)

// theirs marks the place of a filter that mochi answers.
const theirs = 0xff

// maxFilters bounds what a session may hold of filters under im/.
const maxFilters = 32

// OnSubscribe takes the filters under im/ out of the packet, so that mochi's trie never holds them, and remembers what
// they are to be answered with.
func (h *Hook) OnSubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	return h.strip(cl, pk, false, (*device).subscribe)
}

// OnUnsubscribe does the same for UNSUBSCRIBE.
func (h *Hook) OnUnsubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	return h.strip(cl, pk, true, func(d *device, s packets.Subscription) byte { return d.unsubscribe(s.Filter) })
}

func (h *Hook) strip(cl *mqtt.Client, pk packets.Packet, remove bool, ours func(*device, packets.Subscription) byte) packets.Packet {
	d := deviceOf(cl)
	if d == nil || d.dev == nil {
		return pk
	}
	codes := make([]byte, 0, len(pk.Filters))
	rest := make(packets.Subscriptions, 0, len(pk.Filters))
	var changed []store.Subscription
	for _, f := range pk.Filters {
		if code := ours(d, f); code != theirs {
			codes = append(codes, code)
			if code < packets.ErrUnspecifiedError.Code {
				changed = append(changed, link.Sub{QoS: code, ID: f.Identifier}.Stored(cl.ID, f.Filter))
			}
			continue
		}
		codes = append(codes, theirs)
		rest = append(rest, f)
	}
	if err := d.c.Remember(changed, remove); err != nil {
		h.log.Warn("a subscription cannot be stored", "user", d.user, "device", cl.ID, "error", err)
		d.c.Disconnect(packets.ErrServerUnavailable) // it is the client's to ask again
	}
	if len(rest) < len(pk.Filters) {
		d.asked = codes
		pk.Filters = rest
	}
	return pk
}

// subscribe returns the code for a filter under im/, or for one that is none.
func (d *device) subscribe(f packets.Subscription) byte {
	refuse := func(code packets.Code) byte {
		if !d.c.V5 {
			return packets.ErrUnspecifiedError.Code
		}
		return code.Code
	}
	switch {
	case f.Filter == link.TooMany:
		return refuse(packets.ErrQuotaExceeded)
	case !link.ValidFilter(f.Filter):
		return refuse(packets.ErrTopicFilterInvalid)
	}
	switch classify(d.user, f.Filter) {
	case ordinary:
		return theirs
	case forbidden:
		return refuse(packets.ErrNotAuthorized)
	}
	s := d.c.Session
	s.Lock()
	defer s.Unlock()
	if _, have := s.Subs[f.Filter]; !have && len(s.Subs) >= maxFilters {
		return refuse(packets.ErrQuotaExceeded)
	}
	if s.Subs == nil {
		s.Subs = map[string]link.Sub{}
	}
	qos := min(f.Qos, 1) // delivery is acknowledged by PUBACK or not at all
	s.Subs[f.Filter] = link.Sub{QoS: qos, ID: f.Identifier}
	return qos
}

func (d *device) unsubscribe(filter string) byte {
	if classify(d.user, filter) == ordinary {
		if _, ok := d.c.Client.State.Subscriptions.Get(filter); !ok {
			return packets.CodeNoSubscriptionExisted.Code // mochi answers 0 where another client has such a subscription
		}
		return theirs
	}
	s := d.c.Session
	s.Lock()
	defer s.Unlock()
	if _, ok := s.Subs[filter]; !ok {
		return packets.CodeNoSubscriptionExisted.Code
	}
	delete(s.Subs, filter)
	return packets.CodeSuccess.Code
}

// OnPacketEncode puts the answers to filters under im/ into SUBACK and UNSUBACK, and into CONNACK what mochi leaves out.
func (h *Hook) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	if pk.FixedHeader.Type == packets.Connack && pk.ReasonCode == packets.CodeSuccess.Code {
		pk.Properties.TopicAliasMaximum = h.reg.TopicAliasMaximum()
		if d := deviceOf(cl); d != nil {
			pk.SessionPresent = pk.SessionPresent && d.present // mochi still has sessions that are over
		}
		pk.SessionPresent = pk.SessionPresent && cl.Properties.ProtocolVersion > 3 // MQTT 3.1 does not know it
		return pk
	}
	if pk.FixedHeader.Type != packets.Suback && pk.FixedHeader.Type != packets.Unsuback {
		return pk
	}
	d := deviceOf(cl)
	if d == nil || d.asked == nil {
		return pk
	}
	codes := d.asked
	d.asked = nil
	answered := pk.ReasonCodes
	for i, c := range codes {
		if c == theirs && len(answered) > 0 {
			codes[i], answered = answered[0], answered[1:]
		}
	}
	pk.ReasonCodes = codes
	return pk
}

// OnPacketProcessed begins delivery when SUBACK is on its way.
func (h *Hook) OnPacketProcessed(cl *mqtt.Client, pk packets.Packet, _ error) {
	if pk.FixedHeader.Type == packets.Subscribe || pk.FixedHeader.Type == packets.Unsubscribe {
		if d := deviceOf(cl); d != nil && d.dev != nil {
			d.look()
		}
	}
}
