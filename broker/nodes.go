package broker

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"

	"github.com/mqim/mqim/hooks/link"
)

// nodeInfo is what a node tells the others of itself.
type nodeInfo struct {
	Connections int        `json:"c"`
	Limit       int        `json:"l,omitempty"` // of connections; 0: none
	Leaving     bool       `json:"x,omitempty"`
	Endpoints   []endpoint `json:"e"`
}

// endpoint is where a node's clients connect.
type endpoint struct {
	Type    string `json:"t"`
	Address string `json:"a"`
	Path    string `json:"p,omitempty"`
}

// node is a node as this one knows it.
type node struct {
	id   string // on the bus; of others
	name string
	nodeInfo
}

// room reports whether further clients may be sent there.
func (n *node) room() bool { return !n.Leaving && (n.Limit == 0 || n.Connections < n.Limit) }

// at is where clients of a type of listener reach the node; "": nowhere.
func (n *node) at(kind string) string {
	for _, e := range n.Endpoints {
		if e.Type == kind {
			return e.Address
		}
	}
	return ""
}

// self is this node.
func (s *Server) self() node {
	n := node{name: s.name, nodeInfo: nodeInfo{Limit: s.current().Limits.Connections, Leaving: s.leaving.Load(), Endpoints: s.served}}
	for _, l := range s.listeners {
		n.Connections += int(l.Counters.Open.Load())
	}
	return n
}

// advertised is the address of a listener as clients know it: what the settings say, or what it is bound to, with the
// host's name in the place of every address.
func advertised(setting, bound string) string {
	if setting != "" {
		return setting
	}
	host, port, err := net.SplitHostPort(bound)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		if name, err := os.Hostname(); err == nil {
			return net.JoinHostPort(name, port)
		}
	}
	return bound
}

// others are the other nodes of the cluster, those with the fewest connections first.
func (s *Server) others() (list []node) {
	if s.bus == nil {
		return nil
	}
	for _, p := range s.bus.Peers() {
		n := node{id: p.ID, name: p.Name}
		if json.Unmarshal(p.Info, &n.nodeInfo) == nil {
			list = append(list, n)
		}
	}
	slices.SortStableFunc(list, func(a, b node) int { return cmp.Compare(a.Connections, b.Connections) })
	return list
}

// announceEvery is how often other nodes are told how many clients this one has.
const announceEvery = time.Second

// strangers is how long a node waits for those that use the database to be on the bus before it says that they are not. One that
// was killed counts as living for half of that.
const strangers = time.Minute

// announce tells the other nodes of this one until the server is closed.
func (s *Server) announce() {
	t := time.NewTicker(announceEvery)
	defer t.Stop()
	var since time.Time // when there was no trust first
	told := false
	for {
		s.announceNow()
		switch {
		case s.trust.Term() != 0 || !s.bus.Up():
			since, told = time.Time{}, false
		case since.IsZero():
			since = time.Now()
		case !told && time.Since(since) > strangers:
			told = true
			s.log.Warn("other nodes use the database and are not heard here: what they do is seen late; " +
				"cluster.redis must be the same on all of them, prefix included")
		}
		select {
		case <-s.settling:
			return
		case <-t.C:
		}
	}
}

func (s *Server) announceNow() {
	info, err := json.Marshal(s.self().nodeInfo)
	if err != nil {
		s.log.Error("the other nodes cannot be told of this one", "error", err) // it has nothing that could fail
		return
	}
	s.bus.Announce(info)
}

// reference is where else the clients of a listener may go; "": nowhere.
func (s *Server) reference(listener string) string {
	if s.elsewhere != "" {
		return s.elsewhere
	}
	kind := s.listenerType(listener)
	for _, n := range s.others() {
		if at := n.at(kind); at != "" && n.room() {
			return at
		}
	}
	return ""
}

func (s *Server) listenerType(name string) string {
	for i, l := range s.listeners {
		if l.ID() == name {
			return s.served[i].Type
		}
	}
	return ""
}

// Handing over: so many clients at a time, and so many times a second at least.
const (
	handOverBatch = 100
	handOverRate  = 20
)

// handOver sends the clients to other nodes, those of MQTT 5 with a Server Reference, and ends the connections of the
// others: spread over cluster.drain, so that they do not all come at once. What they have sent is committed and answered
// first. It returns at once where there is no other node, and ends with ctx.
func (s *Server) handOver(ctx context.Context) {
	nodes := s.others()
	nodes = slices.DeleteFunc(nodes, func(n node) bool { return !n.room() })
	if len(nodes) == 0 {
		return
	}
	clients := slices.Collect(maps.Values(s.mqtt.Clients.GetAll()))
	s.log.Info("handing clients over to other nodes", "clients", len(clients), "nodes", len(nodes))
	batches := (len(clients) + handOverBatch - 1) / handOverBatch
	pause := time.Second / handOverRate
	if batches > 0 {
		pause = min(pause, s.current().Cluster.Drain.D()/time.Duration(batches))
	}
	for batch := range slices.Chunk(clients, handOverBatch) {
		if err := s.drain(ctx); err != nil {
			s.log.Warn("clients are handed over before everything that they have sent is answered", "error", err)
		}
		nodes = staying(nodes, s.others())
		for _, cl := range batch {
			s.redirect(cl, nodes)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// staying are those of nodes that still have room as of now: others may stop at the same time. How many clients they have
// is what nodes says, since those that were just sent there are not announced yet.
func staying(nodes, now []node) []node {
	return slices.DeleteFunc(nodes, func(n node) bool {
		return !slices.ContainsFunc(now, func(x node) bool { return x.id == n.id && x.room() })
	})
}

// redirect ends a client's connection, and tells it of the node with the fewest clients.
func (s *Server) redirect(cl *mqtt.Client, nodes []node) {
	c := link.Of(cl)
	if c == nil || cl.Closed() {
		return
	}
	kind := s.listenerType(cl.Net.Listener)
	var to *node
	for i := range nodes {
		if n := &nodes[i]; n.at(kind) != "" && n.room() && (to == nil || n.Connections < to.Connections) {
			to = n
		}
	}
	if to == nil {
		c.Redirect("")
		return
	}
	to.Connections++
	c.Redirect(to.at(kind))
}

// endpoints answers /v1/endpoints: where clients may connect, at the node with the fewest connections first.
func (s *Server) endpoints(w http.ResponseWriter, r *http.Request) {
	type entry struct {
		Node        string `json:"node"`
		Type        string `json:"type"`
		Address     string `json:"address"`
		URL         string `json:"url"`
		Connections int    `json:"connections"`
		Limit       int    `json:"limit"`
	}
	kind := r.URL.Query().Get("type")
	if _, ok := schemes[kind]; !ok && kind != "" {
		http.Error(w, "type is none of tcp, tls, ws and wss", http.StatusBadRequest)
		return
	}
	list := append(s.others(), s.self())
	slices.SortStableFunc(list, func(a, b node) int { return cmp.Compare(a.Connections, b.Connections) })
	out := struct {
		Endpoints []entry `json:"endpoints"`
	}{Endpoints: []entry{}}
	for i := range list {
		n := &list[i]
		if !n.room() {
			continue
		}
		for _, e := range n.Endpoints {
			if kind == "" || kind == e.Type {
				out.Endpoints = append(out.Endpoints, entry{n.name, e.Type, e.Address, schemes[e.Type] + e.Address + e.Path, n.Connections, n.Limit})
			}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(out)
}

// schemes are those of URLs, by the type of the listener.
var schemes = map[string]string{"tcp": "mqtt://", "tls": "mqtts://", "ws": "ws://", "wss": "wss://"}
