package broker

import (
	"encoding/json"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mqim/mqim/broker/config"
)

func TestAdvertised(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][3]string{
		{"", "127.0.0.1:1883", "127.0.0.1:1883"},
		{"mq1.example:8883", "[::]:8883", "mq1.example:8883"},
		{"", "[::]:1883", host + ":1883"},
		{"", "0.0.0.0:1883", host + ":1883"},
		{"", "10.1.2.3:1883", "10.1.2.3:1883"},
	} {
		if got := advertised(c[0], c[1]); got != c[2] {
			t.Errorf("%q bound to %s: got %s, want %s", c[0], c[1], got, c[2])
		}
	}
}

func TestRoom(t *testing.T) {
	for _, c := range []struct {
		node nodeInfo
		want bool
	}{
		{nodeInfo{Connections: 1_000_000}, true},
		{nodeInfo{Connections: 9, Limit: 10}, true},
		{nodeInfo{Connections: 10, Limit: 10}, false},
		{nodeInfo{Leaving: true}, false},
	} {
		if got := (&node{nodeInfo: c.node}).room(); got != c.want {
			t.Errorf("%+v: got %v, want %v", c.node, got, c.want)
		}
	}
}

// TestEndpoints: a server alone lists itself, and nothing any more once it is being stopped.
func TestEndpoints(t *testing.T) {
	s := startSystem(t, func(*config.Config) {})
	ask := func(query string) (list []map[string]any) {
		t.Helper()
		w := httptest.NewRecorder()
		s.endpoints(w, httptest.NewRequest("GET", "/v1/endpoints"+query, nil))
		var out struct{ Endpoints []map[string]any }
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
			t.Fatalf("%v: %s", err, w.Body)
		}
		if out.Endpoints == nil {
			t.Errorf("no list, want an empty one: %s", w.Body)
		}
		return out.Endpoints
	}
	address := s.Addr("mqtt").String()
	want := []map[string]any{{
		"node": s.cfg.NodeName(), "type": "tcp", "address": address, "url": "mqtt://" + address, "connections": 0.0, "limit": 0.0,
	}}
	if diff := cmp.Diff(want, ask("?type=tcp")); diff != "" {
		t.Error(diff)
	}
	// What needs a restart does not hold yet: the listeners are as they were.
	next := *s.cfg
	next.Node.Name, next.Listeners = "another", []config.Listener{{Name: "x", Type: "ws", Address: "127.0.0.1:1", Path: "/"}}
	read := make(chan struct{})
	go func() { defer close(read); s.self() }()
	if _, _, err := s.Reload(&next); err != nil {
		t.Fatal(err)
	}
	<-read
	if diff := cmp.Diff(want, ask("?type=tcp")); diff != "" {
		t.Errorf("after a reload: %s", diff)
	}
	if got := s.listenerType("mqtt"); got != "tcp" {
		t.Errorf("after a reload the listener mqtt is of type %q", got)
	}
	if got := ask("?type=wss"); len(got) != 0 {
		t.Errorf("wss: got %v, want none", got)
	}
	w := httptest.NewRecorder()
	s.endpoints(w, httptest.NewRequest("GET", "/v1/endpoints?type=mqtt", nil))
	if w.Code != 400 || !strings.Contains(w.Body.String(), "wss") {
		t.Errorf("no such type: got %d %s, want 400 and those there are", w.Code, w.Body)
	}
	s.leaving.Store(true)
	if got := ask(""); len(got) != 0 {
		t.Errorf("of a server that is being stopped: got %v, want none", got)
	}
	if err := s.ready(); err == nil {
		t.Error("a server that is being stopped says that it is ready")
	}
}

// A node that stops while clients are handed over to it gets no more of them.
func TestStaying(t *testing.T) {
	at := func(id string, connections int, leaving bool) node {
		return node{id: id, nodeInfo: nodeInfo{Connections: connections, Leaving: leaving}}
	}
	nodes := []node{at("gone", 1, false), at("stops", 2, false), at("stays", 103, false)}
	got := staying(nodes, []node{at("stops", 2, true), at("stays", 3, false), at("new", 0, false)})
	if len(got) != 1 || got[0].id != "stays" || got[0].Connections != 103 {
		t.Errorf("got %+v, want the node that stays, with the clients that it was sent", got)
	}
}
