package bench

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// fakeIM is what a fakeBroker keeps of groups and conversations.
type fakeIM struct {
	// skip says to whom the n-th message of a group does not go.
	skip      func(n int, user string) bool
	forgetful bool // lists leave out their last entry

	groups map[string]*fakeGroup
	talks  map[string]map[string]int // unread messages by user and conversation
	named  int                       // the most users that one command named
}

type fakeGroup struct {
	members []string
	large   bool
	log     []string // messages as members of a large group get them
}

// note counts a message that user has not read.
func (b *fakeBroker) note(user, conv string) {
	if b.talks[user] == nil {
		b.talks[user] = map[string]int{}
	}
	b.talks[user][conv]++
}

// toGroup hands a message to the members of a group who are connected; one of a large group waits for the others.
func (b *fakeBroker) toGroup(c *fakeConn, group, cid, body string) {
	g := b.groups[group]
	if g == nil || !slices.Contains(g.members, c.user) {
		panic("not a member of " + group)
	}
	n := len(g.log)
	js := fmt.Sprintf(`"conv":"g/%s","cseq":%d,"from":"%s","cid":%q,"ts":1,"type":"text","body":%q}`,
		group, n+1, c.user, cid, body)
	g.log = append(g.log, `{"id":"1",`+js)
	for _, user := range g.members {
		if user == c.user {
			continue
		}
		if !g.large { // of ten thousand only a few are there
			b.note(user, "g/"+group)
			b.seqs[user]++
		}
		to := b.subs["im/u/"+user+"/+"]
		if to == nil || b.skip != nil && b.skip(n, user) {
			continue
		}
		msg := g.log[n]
		if !g.large {
			msg = fmt.Sprintf(`{"id":"1","seq":%d,%s`, b.seqs[user], js)
		}
		to.nc.Write(to.message("im/u/"+user+"/msg", []byte(msg)))
	}
}

// waiting is what large groups have for a device that subscribes.
func (b *fakeBroker) waiting(c *fakeConn, filter string) (out []byte) {
	if filter != "im/u/"+c.user+"/+" {
		return nil
	}
	for id, g := range b.groups {
		if !g.large || !slices.Contains(g.members[1:], c.user) {
			continue
		}
		for _, msg := range g.log[b.acked[c.user+" g/"+id]:] {
			out = append(out, c.message("im/u/"+c.user+"/msg", []byte(msg))...)
		}
	}
	return out
}

// command does a command and returns the reply.
func (b *fakeBroker) command(c *fakeConn, m inPublish) []byte {
	var cmd struct {
		Rid, Group, Kind, Cursor string
		Members, Users           []string
		Limit                    int
	}
	if err := json.Unmarshal(m.payload, &cmd); err != nil {
		panic(err)
	}
	b.named = max(b.named, len(cmd.Members), len(cmd.Users))
	reply := map[string]any{"rid": cmd.Rid, "ok": true}
	list := func(all []map[string]any) {
		if b.forgetful {
			all = all[:len(all)-1]
		}
		from := 0
		fmt.Sscan(cmd.Cursor, &from) //nolint:errcheck // none is 0
		to := min(from+cmd.Limit, len(all))
		reply["data"] = all[from:to]
		if to < len(all) {
			reply["cursor"] = fmt.Sprint(to)
		}
	}
	switch strings.TrimPrefix(string(m.topic), "im/cmd/") {
	case "group.create":
		if b.groups[cmd.Group] != nil {
			return fmt.Appendf(nil, `{"rid":%q,"ok":false,"error":{"code":"exists"}}`, cmd.Rid)
		}
		b.groups[cmd.Group] = &fakeGroup{members: append([]string{c.user}, cmd.Members...), large: cmd.Kind == "large"}
	case "group.add":
		b.groups[cmd.Group].members = append(b.groups[cmd.Group].members, cmd.Users...)
	case "group.members":
		var all []map[string]any
		for _, user := range slices.Sorted(slices.Values(b.groups[cmd.Group].members)) {
			all = append(all, map[string]any{"user": user, "role": "member"})
		}
		list(all)
	case "conversations":
		var all []map[string]any
		for _, conv := range slices.Sorted(maps.Keys(b.talks[c.user])) {
			all = append(all, map[string]any{"conv": conv, "unread": b.talks[c.user][conv]})
		}
		list(all)
	}
	out, err := json.Marshal(reply)
	if err != nil {
		panic(err)
	}
	return out
}
