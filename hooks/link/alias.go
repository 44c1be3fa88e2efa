package link

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

const (
	maxAliasProps = 1024  // bytes of scratch that are kept
	maxAliases    = 64    // what a client may announce beyond that is not used
	maxAliased    = 256   // bytes of a topic that is worth remembering
	minAliased    = 4     // and of one that is worth an alias at all
	aliasSize     = 3 + 3 // what setting one adds to a packet at most: the property, and longer lengths
)

// aliases are the topics that the client knows by a number, on one connection: 1, 2, 3 … as they come. When all are set, a
// topic takes one by its hash from the topic that had it: what is sent often is there most of the time, and nothing is to
// be counted. Guarded by outbound.mu, which is held until the packet is in the buffer, so that the client sees aliases set
// and used in that order.
type aliases struct {
	max    uint16 // 0: the client takes none
	topics []string
	places map[string]uint16 // of topics; an alias is a place and 1
	props  []byte            // scratch
}

// appendPublish is appendPublish with an alias, and in the place of the topic if the client knows it. room says whether the
// packet may become larger by aliasSize.
func (a *aliases) appendPublish(b []byte, p *Publication, id uint16, room bool) []byte {
	alias, known := a.of(p.Topic, room)
	if alias == 0 {
		return appendPublish(b, p, id, true)
	}
	q := *p
	if known {
		q.Topic = ""
	}
	a.props = binary.BigEndian.AppendUint16(append(a.props[:0], packets.PropTopicAlias), alias)
	a.props = append(a.props, p.Props...)
	q.Props = a.props
	if cap(a.props) > maxAliasProps {
		a.props = nil
	}
	return appendPublish(b, &q, id, true)
}

// of returns the alias of a topic, 0 for none, and whether the client knows it already. Else it is set by the packet that is
// about to be written, if there is room in that. It is called when nothing can keep the packet from being written.
func (a *aliases) of(topic string, room bool) (alias uint16, known bool) {
	if len(topic) < minAliased || len(topic) > maxAliased {
		return 0, false
	}
	if i, ok := a.places[topic]; ok {
		return i + 1, true
	}
	if !room {
		return 0, false
	}
	i := uint16(len(a.topics))
	if i < a.max {
		a.topics = append(a.topics, topic)
	} else {
		i = uint16(xxhash.Sum64String(topic) % uint64(a.max))
		delete(a.places, a.topics[i])
		a.topics[i] = topic
	}
	if a.places == nil {
		a.places = map[string]uint16{}
	}
	a.places[topic] = i
	return i + 1, false
}
