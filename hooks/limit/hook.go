// Package limit refuses what is too much: for one client (Hook), and for the whole server (Overload).
package limit

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"golang.org/x/time/rate"

	"github.com/mqim/mqim/hooks/link"
	"github.com/mqim/mqim/transport"
)

// Options are the limits of a Hook; 0 is no limit. None is about topics under im/, whose shape is fixed.
type Options struct {
	ConnectionsPerUser int // client ids of one user that are connected through a listener of package transport
	Subscriptions      int // of one client
	TopicLevels        int // of a topic or a filter
	TopicBytes         int // of a topic or a filter

	Overload *Overload          // nil: none
	Count    func(limit string) // is told of each refusal; nil: nobody
	Log      *slog.Logger       // nil: slog.Default
}

// The limits, as they are counted.
const (
	perUser       = "connections_per_user"
	subscriptions = "subscriptions"
	topicLevels   = "topic_levels"
	topicBytes    = "topic_bytes"
	overload      = "overload"
)

// reserved is the part of the topic tree that is not ordinary.
const reserved = "im/"

// Hook limits single clients. It comes after the hook that authenticates and before all others, and needs
// link.Registry.Guard to be told of its Publish.
type Hook struct {
	mqtt.HookBase
	opt     Options
	loudest rate.Sometimes

	mu    sync.Mutex
	users map[string][]string // client ids by user; one is in it once a connection. Empty where there is no limit
}

// New returns a hook.
func New(o Options) *Hook {
	if o.Count == nil {
		o.Count = func(string) {}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Hook{opt: o, loudest: rate.Sometimes{Interval: time.Second}, users: map[string][]string{}}
}

// ID implements mqtt.Hook.
func (h *Hook) ID() string { return "limit" }

// Provides implements mqtt.Hook.
func (h *Hook) Provides(b byte) bool {
	return b == mqtt.OnConnect || b == mqtt.OnSubscribe
}

var errRefused = errors.New("connection refused: a limit is reached")

// OnConnect counts the user's connections, and looks at the topic of the will.
func (h *Hook) OnConnect(cl *mqtt.Client, _ packets.Packet) error {
	if will := cl.Properties.Will; will.Flag != 0 {
		if over := h.topic(will.TopicName); over != "" {
			h.refused(over, cl)
			Refuse(cl, packets.ErrTopicNameInvalid, "the topic of the will is too long", "")
			return errRefused
		}
	}
	t, ok := cl.Net.Conn.(*transport.Conn)
	if h.opt.ConnectionsPerUser == 0 || !ok {
		return nil
	}
	user, client := string(cl.Properties.Username), cl.ID
	h.mu.Lock()
	ids := h.users[user]
	// The same client id again is no further connection: it takes the older one over.
	if !slices.Contains(ids, client) && distinct(ids) >= h.opt.ConnectionsPerUser {
		h.mu.Unlock()
		h.refused(perUser, cl)
		Refuse(cl, packets.ErrQuotaExceeded, "this user has too many connections", "")
		return errRefused
	}
	h.users[user] = append(ids, client)
	h.mu.Unlock()
	if !t.AfterEnd(func() { h.leave(user, client) }) {
		h.leave(user, client)
	}
	return nil
}

func distinct(ids []string) (n int) {
	for i, id := range ids {
		if !slices.Contains(ids[:i], id) {
			n++
		}
	}
	return n
}

func (h *Hook) leave(user, client string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ids := h.users[user]
	if i := slices.Index(ids, client); i >= 0 {
		ids = slices.Delete(ids, i, i+1)
	}
	if len(ids) == 0 {
		delete(h.users, user)
	} else {
		h.users[user] = ids
	}
}

// OnSubscribe makes invalid what is beyond a limit, so that hooks/im answers it: with 0x97 what is one too many, with
// 0x8F the others (3.1.1: 0x80).
func (h *Hook) OnSubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	var filters packets.Subscriptions // pk's own must not change: other hooks may hold it
	replace := func(i int, by string) {
		if filters == nil {
			filters = slices.Clone(pk.Filters)
		}
		filters[i].Filter = by
	}
	have := cl.State.Subscriptions.Len()
	for i, f := range pk.Filters {
		if strings.HasPrefix(f.Filter, reserved) {
			continue
		}
		if over := h.topic(f.Filter); over != "" {
			h.refused(over, cl)
			replace(i, "")
			continue
		}
		if _, again := cl.State.Subscriptions.Get(f.Filter); again {
			continue
		}
		if have++; h.opt.Subscriptions > 0 && have > h.opt.Subscriptions {
			h.refused(subscriptions, cl)
			replace(i, link.TooMany)
		}
	}
	if filters != nil {
		pk.Filters = filters
	}
	return pk
}

// Publish judges a publish; it is what Registry.Guard is to be given.
func (h *Hook) Publish(c *link.Conn, p *link.Inbound) (no link.Refused) {
	if strings.HasPrefix(p.Topic, reserved) {
		return no
	}
	if over := h.topic(p.Topic); over != "" {
		h.refused(over, c.Client)
		return link.Refused{Code: packets.ErrTopicNameInvalid}
	}
	if h.opt.Overload.Level() >= RefusePublishes {
		h.refused(overload, c.Client)
		return link.Refused{Code: packets.ErrQuotaExceeded, Passing: true}
	}
	return no
}

// topic says which limit a topic or a filter exceeds, "" for none.
func (h *Hook) topic(t string) (over string) {
	if strings.HasPrefix(t, reserved) {
		return ""
	}
	switch {
	case h.opt.TopicBytes > 0 && len(t) > h.opt.TopicBytes:
		return topicBytes
	case h.opt.TopicLevels > 0 && strings.Count(t, "/") >= h.opt.TopicLevels:
		return topicLevels
	}
	return ""
}

// refused counts a refusal, and logs one a second.
func (h *Hook) refused(what string, cl *mqtt.Client) {
	h.opt.Count(what)
	h.loudest.Do(func() {
		h.opt.Log.Info("refused: limit reached (one line a second)", "limit", what, "client", cl.ID, "remote", cl.Net.Remote)
	})
}

// Refuse answers CONNECT: with code, why and, unless it is "", a Server Reference to MQTT 5; 3.1.1 has only "server
// unavailable" for it.
func Refuse(cl *mqtt.Client, code packets.Code, why, server string) {
	ack := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connack}, ReasonCode: packets.Err3ServerUnavailable.Code}
	if cl.Properties.ProtocolVersion == 5 {
		ack.ReasonCode = code.Code
		ack.Properties.ReasonString = why
		ack.Properties.ServerReference = server
	}
	_ = cl.WritePacket(ack) // the connection ends either way
}
