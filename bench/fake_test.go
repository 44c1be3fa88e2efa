package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
)

// fakeBroker is a broker that can be told to err: enough MQTT for this generator, with every delivery under one lock.
// It also speaks as much of the IM profile as pairs need.
type fakeBroker struct {
	listener net.Listener
	// deliver says what becomes of the n-th publish, counting from 0: the payloads to hand on now. nil: hand it on.
	deliver func(n int, payload []byte) [][]byte
	ack     func(n int) byte // the reason code of its PUBACK; noAck: none
	wg      sync.WaitGroup

	mu    sync.Mutex
	n     int
	cids  map[string]bool      // by user, IM profile
	seqs  map[string]int       // last seq per user, IM profile
	acked map[string]uint64    // cumulative acks per user, in a large group by user and conversation; IM profile
	subs  map[string]*fakeConn // by filter
	conns []net.Conn
	fakeIM
}

const noAck = 0xff

// fakeConn is one client of a fakeBroker; all but nc is guarded by the broker's lock.
type fakeConn struct {
	nc      net.Conn
	version byte
	user    string
	nextID  uint16
}

func startFake(t *testing.T, b *fakeBroker) string {
	t.Helper()
	var err error
	if b.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	b.subs, b.seqs, b.acked = map[string]*fakeConn{}, map[string]int{}, map[string]uint64{}
	b.cids = map[string]bool{}
	b.groups, b.talks = map[string]*fakeGroup{}, map[string]map[string]int{}
	b.wg.Go(func() {
		for {
			nc, err := b.listener.Accept()
			if err != nil {
				return
			}
			b.mu.Lock()
			b.conns = append(b.conns, nc)
			b.mu.Unlock()
			b.wg.Go(func() { b.serve(nc) })
		}
	})
	t.Cleanup(func() {
		b.mu.Lock()
		for _, nc := range b.conns {
			nc.Close()
		}
		b.mu.Unlock()
		b.gone()
	})
	return b.listener.Addr().String()
}

// gone takes no more connections, and waits until every client has hung up and all that it wrote was handled.
func (b *fakeBroker) gone() {
	b.listener.Close()
	b.wg.Wait()
}

func (b *fakeBroker) serve(nc net.Conn) {
	defer nc.Close()
	rd := readerOf(nc)
	c := &fakeConn{nc: nc}
	for {
		pk, err := rd.wait()
		if err != nil {
			return
		}
		b.mu.Lock()
		out := b.handle(c, pk)
		if len(out) > 0 {
			nc.Write(out)
		}
		b.mu.Unlock()
	}
}

func (b *fakeBroker) handle(c *fakeConn, pk packet) (out []byte) {
	switch pk.kind {
	case typeConnect:
		c.version = pk.body[6]
		at := 10
		if c.version == v5 {
			n, size := readLength(pk.body[at:])
			at += n + size
		}
		text := func() string {
			n := int(pk.body[at])<<8 + int(pk.body[at+1])
			at += 2 + n
			return string(pk.body[at-n : at])
		}
		c.user = text()
		if pk.body[7]&0x80 != 0 {
			c.user = text()
		}
		if c.version == v5 {
			return []byte{typeConnack << 4, 3, 0, 0, 0}
		}
		return []byte{typeConnack << 4, 2, 0, 0}
	case typeSubscribe:
		at := 2
		if c.version == v5 {
			at++
		}
		filter := string(pk.body[at+2 : len(pk.body)-1])
		b.subs[filter] = c
		suback := []byte{typeSuback << 4, 3, pk.body[0], pk.body[1], 1}
		if c.version == v5 {
			suback = []byte{typeSuback << 4, 4, pk.body[0], pk.body[1], 0, 1}
		}
		return append(suback, b.waiting(c, filter)...)
	case typePublish:
		m, err := parsePublish(c.version, pk)
		if err != nil {
			panic(err)
		}
		switch string(m.topic) {
		case "im/cmd/ack":
			seq, inbox := jsonNumber(m.payload, keySeq)
			place := c.user
			if !inbox {
				conv, _ := jsonString(m.payload, keyConv)
				place += " " + string(conv)
				seq, _ = jsonNumber(m.payload, keyCSeq)
			}
			b.acked[place] = max(b.acked[place], seq)
			return appendAck(nil, typePuback, m.id)
		case "im/cmd/send":
			return b.send(c, m)
		case "im/cmd/group.create", "im/cmd/group.add", "im/cmd/group.members", "im/cmd/conversations":
			return append(appendAck(nil, typePuback, m.id), c.message("im/u/"+c.user+"/reply", b.command(c, m))...)
		}
		reason, payloads := b.script(m.payload)
		to := b.subs[string(m.topic)]
		for _, p := range payloads {
			to.nc.Write(to.message(string(m.topic), p))
		}
		return ackWith(c.version, m.id, reason)
	}
	return nil
}

// script looks up what is to become of the next publish.
func (b *fakeBroker) script(payload []byte) (reason byte, payloads [][]byte) {
	n := b.n
	b.n++
	payloads = [][]byte{payload}
	if b.deliver != nil {
		payloads = b.deliver(n, payload)
	}
	if b.ack != nil {
		if reason = b.ack(n); reason != 0 {
			payloads = nil
		}
	}
	return reason, payloads
}

func ackWith(version byte, id uint16, reason byte) []byte {
	switch {
	case reason == noAck:
		return nil
	case reason == 0 || version != v5:
		return appendAck(nil, typePuback, id)
	}
	return []byte{typePuback << 4, 3, byte(id >> 8), byte(id), reason}
}

// send is im/cmd/send: PUBACK and reply to the sender, msg to the receiver.
func (b *fakeBroker) send(c *fakeConn, m inPublish) []byte {
	var cmd struct{ To, CID, Rid, Body string }
	if err := json.Unmarshal(m.payload, &cmd); err != nil {
		panic(err)
	}
	user := strings.TrimPrefix(cmd.To, "u/")
	reason, payloads := b.script([]byte(cmd.Body))
	if key := c.user + " " + cmd.CID; cmd.CID != "" {
		if b.cids[key] {
			reason, payloads = 0x83, nil // a conflict: no sender of ours repeats one
		}
		b.cids[key] = true
	}
	for _, body := range payloads {
		if group, ok := strings.CutPrefix(cmd.To, "g/"); ok {
			b.toGroup(c, group, cmd.CID, string(body))
			continue
		}
		b.note(user, "u/"+c.user)
		b.seqs[user]++
		to := b.subs["im/u/"+user+"/+"]
		if to == nil {
			continue
		}
		js := fmt.Sprintf(`{"id":"1","seq":%d,"conv":"u/%s","cseq":9,"from":"%s","cid":%q,"ts":1,"type":"text","body":%q}`,
			b.seqs[user], c.user, c.user, cmd.CID, body)
		to.nc.Write(to.message("im/u/"+user+"/msg", []byte(js)))
	}
	if reason == noAck {
		return nil
	}
	reply := fmt.Sprintf(`{"rid":%q,"ok":true,"data":{"cid":%q}}`, cmd.Rid, cmd.CID)
	if reason != 0 {
		reply = fmt.Sprintf(`{"rid":%q,"ok":false,"cid":%q,"error":{"code":"forbidden"}}`, cmd.Rid, cmd.CID)
	}
	return append(ackWith(c.version, m.id, reason), c.message("im/u/"+c.user+"/reply", []byte(reply))...)
}

func (c *fakeConn) message(topic string, payload []byte) []byte {
	c.nextID = c.nextID%1000 + 1
	out, _ := appendPublish(nil, c.version, 1, topic, c.nextID, len(payload))
	return append(out, payload...)
}

// The faults: each takes the n-th publish and lets the others through.

func dropNth(at int) func(int, []byte) [][]byte {
	return func(n int, p []byte) [][]byte {
		if n == at {
			return nil
		}
		return [][]byte{p}
	}
}

func repeatNth(at int) func(int, []byte) [][]byte {
	return func(n int, p []byte) [][]byte {
		if n == at {
			return [][]byte{p, p}
		}
		return [][]byte{p}
	}
}

// swapNth holds the message back until after the next one.
func swapNth(at int) func(int, []byte) [][]byte {
	var held []byte
	return func(n int, p []byte) [][]byte {
		switch {
		case n == at:
			held = bytes.Clone(p)
			return nil
		case held != nil:
			h := held
			held = nil
			return [][]byte{p, h}
		}
		return [][]byte{p}
	}
}

func damageNth(at int) func(int, []byte) [][]byte {
	return func(n int, p []byte) [][]byte {
		if n == at {
			p = bytes.Clone(p)
			p[len(p)-1] ^= 1
		}
		return [][]byte{p}
	}
}
