package im

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cespare/xxhash/v2"

	"github.com/mqim/mqim/store"
)

const (
	maxCid  = 64
	maxRid  = 64
	maxType = 64
)

// Outgoing is a message as a device publishes it in the plain profile: a body of any bytes and what MQTT 5 may say
// of it.
type Outgoing struct {
	Body        []byte // copied
	Cid         string
	Type        string // default: text, or bytes where the body is no UTF-8
	ContentType string
	CTS         int64 // Unix milliseconds
	TTL         int64 // seconds; 0: it does not expire
	// Inbound is stored with it, in one step; nil: nothing is.
	Inbound *store.Inbound
}

// Publish sends a message to an address. It is answered when the message is durable, or refused. It waits while the
// engine is busy.
func (d *Device) Publish(addr string, o Outgoing, t Ticket) {
	p := &pending{dev: d, ticket: t}
	p.Cid, p.Type, p.ContentType, p.CTS, p.Body = o.Cid, o.Type, o.ContentType, o.CTS, o.Body
	p.Inbound = o.Inbound
	if max := d.e.cfg.Load().MessageBytes; max == 0 || len(o.Body) <= max {
		p.Body = bytes.Clone(o.Body)
	}
	if !utf8.Valid(o.Body) {
		p.Encoding = store.Bytes
	}
	if p.Type == "" {
		p.Type = [...]string{store.Text: "text", store.Bytes: "bytes"}[p.Encoding]
	}
	d.submit(p, addr, o.TTL)
}

// send is the send command.
func (d *Device) send(c *command, t Ticket) {
	p := &pending{dev: d, ticket: t, rid: c.Rid}
	p.Cid, p.Type, p.Inbound = c.Cid, c.Type, c.inbound
	if p.Type == "" {
		p.Type = "text"
	}
	err := c.need(c.To != "", "to")
	if err == nil {
		err = c.need(len(c.Body) > 0, "body")
	}
	if err == nil && len(c.Cid) == 0 && c.has("cid") {
		err = errorf(BadRequest, "cid: want 1 to %d bytes", maxCid)
	}
	if err != nil {
		d.refuse(t, c.Rid, c.Cid, err)
		return
	}
	p.setJSON(c.Body)
	if c.CTS != nil {
		p.CTS = *c.CTS
	}
	var ttl int64
	if c.TTL != nil {
		if ttl = *c.TTL; ttl <= 0 {
			d.refuse(t, c.Rid, c.Cid, errorf(BadRequest, "ttl: want a positive number of seconds, found %d", ttl))
			return
		}
	}
	d.submit(p, c.To, ttl)
}

// setJSON takes a body from a command: a JSON string is text, anything else stays JSON, without white space.
func (p *pending) setJSON(raw json.RawMessage) {
	if raw[0] == '"' {
		if !bytes.ContainsRune(raw, '\\') {
			p.Body = bytes.Clone(raw[1 : len(raw)-1])
			return
		}
		var s string
		if json.Unmarshal(raw, &s) == nil {
			p.Body = []byte(s)
			return
		}
	}
	p.Encoding = store.JSON
	var b bytes.Buffer
	_ = json.Compact(&b, raw) // it has been parsed before
	p.Body = b.Bytes()
}

// submit checks a message and puts it in the queue.
func (d *Device) submit(p *pending, addr string, ttl int64) {
	if err := d.prepare(p, addr, ttl); err != nil {
		d.refuse(p.ticket, p.rid, p.Cid, err)
		return
	}
	if !d.e.queue.put(p) {
		d.refuse(p.ticket, p.rid, p.Cid, errUnavailable)
		return
	}
	d.e.m.Accepted()
}

// prepare fills in what the message needs to be stored, or says why it is refused.
func (d *Device) prepare(p *pending, addr string, ttl int64) *Error {
	e, cfg := d.e, d.e.cfg.Load()
	p.From, p.Device = d.u.name, d.id
	conv, err := ParseAddress(p.From, addr)
	switch {
	case err != nil:
		return err
	case len(p.Cid) > maxCid:
		return errorf(BadRequest, "cid: want 1 to %d bytes, found %d", maxCid, len(p.Cid))
	case len(p.Type) > maxType:
		return errorf(BadRequest, "type: want at most %d bytes, found %d", maxType, len(p.Type))
	case !utf8.ValidString(p.Cid) || !utf8.ValidString(p.Type):
		return errorf(BadRequest, "cid and type must be UTF-8")
	case strings.HasPrefix(p.Type, "sys."):
		return errorf(Forbidden, "type: what begins with sys. comes from the server alone")
	case cfg.MessageBytes > 0 && len(p.Body) > cfg.MessageBytes:
		return errorf(TooLarge, "body of %d bytes, the limit is %d", len(p.Body), cfg.MessageBytes)
	}
	if err := d.allowSend(); err != nil {
		return err
	}
	if serr := e.store.Healthy(); serr != nil {
		return errUnavailable
	}
	p.Conv, p.peer = conv, conv.Peer(p.From)
	if p.Cid != "" {
		p.Hash = hash(conv, p.Encoding, p.Body)
	}
	if err := d.entitled(p); err != nil {
		return err
	}
	p.TS = time.Now().UnixMilli()
	if ttl > 0 {
		from := p.TS
		if p.CTS > 0 && p.CTS < from {
			from = p.CTS
		}
		const tooLong = 100 * 365 * 24 * 3600
		if p.Expires = from + min(ttl, tooLong)*1000; p.Expires <= p.TS {
			return errorf(Expired, "the message's time to live was over before it arrived")
		}
	}
	switch p.peer {
	case "": // a group: the store knows who is in it when the message is stored
	case p.From:
		p.Inboxes = []store.InboxRef{{User: p.From}}
	default:
		p.Inboxes = []store.InboxRef{{User: p.peer}, {User: p.From}}
	}
	return nil
}

// entitled says why the sender may not write to the conversation, as far as is known before the message is stored. One that
// was stored before its sender lost the right is answered again.
func (d *Device) entitled(p *pending) *Error {
	e := d.e
	err := e.mayWrite(p)
	if err == nil || err.Code == Unavailable || p.Cid == "" {
		return err
	}
	if derr := e.Drain(e.ctx); derr != nil { // the first try may be on its way into the store still
		return errUnavailable
	}
	_, _, ok, serr := e.store.Sent(e.ctx, p.From, p.Cid)
	switch {
	case serr != nil:
		return e.failed("cid", serr)
	case ok:
		return nil
	}
	return err
}

func (e *Engine) mayWrite(p *pending) *Error {
	switch p.peer {
	case p.From:
		return nil
	case "":
		id, _ := p.Conv.Group()
		g, err := e.maySend(id, p.From)
		p.cost = inboxBytes * g.inboxes
		return err
	}
	blocked, err := e.blocked(e.ctx, p.peer, p.From)
	if err != nil {
		return e.failed("block list", err)
	}
	if blocked {
		return errorf(Blocked, "%s has blocked you", p.peer)
	}
	return nil
}

// hash tells a repeated message from another one under the same cid.
func hash(conv store.Conv, enc store.Encoding, body []byte) uint64 {
	var h xxhash.Digest
	h.Reset()
	_, _ = h.WriteString(string(conv))
	_, _ = h.Write([]byte{0, byte(enc)})
	_, _ = h.Write(body)
	return h.Sum64()
}

// failed logs what the store said and returns what the client is told.
func (e *Engine) failed(what string, err error) *Error {
	if !errors.Is(err, store.ErrNotFound) && e.ctx.Err() == nil {
		e.log.Error("store: "+what, "error", err)
	}
	return storeError(err)
}
