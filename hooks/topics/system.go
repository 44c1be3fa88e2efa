package topics

import (
	"strings"

	"github.com/mqim/mqim/hooks/link"
)

// SystemTopic is a topic under $SYS and what is retained there, which is made up when somebody wants to know.
type SystemTopic struct {
	Topic string
	Value func() string // may be called from any goroutine, with no lock held
}

// systemMatching returns what is retained under $SYS for a filter. It is at QoS 0: the next value is soon to come.
func (h *Hook) systemMatching(filter string) (list []*message) {
	for _, t := range h.opt.System {
		if link.Matches(filter, t.Topic) {
			list = append(list, &message{Topic: t.Topic, Payload: []byte(t.Value())})
		}
	}
	return list
}

// PublishSystem publishes Options.System to those who subscribe to it; what nobody subscribes to is not made up. It is not
// stored: whoever is away learns the values of then.
func (h *Hook) PublishSystem() {
	for _, t := range h.opt.System {
		r, err := h.route(t.Topic, nil)
		if err == nil && len(r.targets)+len(r.durable)+len(r.groups)+len(r.inline) > 0 {
			h.send(&delivery{h: h, o: outgoing{message: message{Topic: t.Topic, Payload: []byte(t.Value())}}})
		}
	}
}

func system(filter string) bool { return strings.HasPrefix(filter, "$SYS/") }
