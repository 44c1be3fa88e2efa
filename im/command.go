package im

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mqim/mqim/store"
)

// command is the union of the fields of all commands. Absent numbers are nil.
type command struct {
	Rid    string          `json:"rid"`
	To     string          `json:"to"`
	Cid    string          `json:"cid"`
	Type   string          `json:"type"`
	Body   json.RawMessage `json:"body"`
	CTS    *int64          `json:"cts"`
	TTL    *int64          `json:"ttl"`
	Seq    *uint64         `json:"seq"`
	IDs    []string        `json:"ids"`
	Conv   string          `json:"conv"`
	Cseq   *uint64         `json:"cseq"`
	Cseqs  []uint64        `json:"cseqs"`
	After  *uint64         `json:"after"`
	Before *uint64         `json:"before"`
	Limit  *int            `json:"limit"`
	Cursor string          `json:"cursor"`
	State  json.RawMessage `json:"state"`
	User   string          `json:"user"`
	Users  []string        `json:"users"`
	Device string          `json:"device"`
	T0     json.RawMessage `json:"t0"`

	Group    string   `json:"group"`
	Name     *string  `json:"name"`
	Notice   *string  `json:"notice"`
	Kind     *string  `json:"kind"`
	Join     *string  `json:"join"`
	History  *string  `json:"history"`
	Receipts *string  `json:"receipts"`
	Members  []string `json:"members"`
	Role     *string  `json:"role"`
	Until    *int64   `json:"until"`

	name     string
	payload  []byte
	received time.Time
	inbound  *store.Inbound
}

// handlers are the commands beside send. A handler returns the JSON of data, or nil where there is none; a command
// that waits for the committer returns errAnswered and is answered later.
var handlers map[string]handler

type handler = func(*Device, *command, Ticket) ([]byte, *Error)

// errAnswered says that the handler answers, or has answered, by itself.
var errAnswered = &Error{}

func init() {
	handlers = map[string]handler{
		"ack":              (*Device).cmdAck,
		"sync":             (*Device).cmdSync,
		"read":             (*Device).cmdRead,
		"history":          (*Device).cmdHistory,
		"conversations":    (*Device).cmdConversations,
		"receipts":         (*Device).cmdReceipts,
		"recall":           (*Device).cmdRecall,
		"delete":           (*Device).cmdDelete,
		"typing":           (*Device).cmdTyping,
		"presence.get":     (*Device).cmdPresenceGet,
		"presence.watch":   (*Device).cmdPresenceWatch,
		"presence.unwatch": (*Device).cmdPresenceUnwatch,
		"block.add":        (*Device).cmdBlockAdd,
		"block.remove":     (*Device).cmdBlockRemove,
		"block.list":       (*Device).cmdBlockList,
		"device.list":      (*Device).cmdDeviceList,
		"device.remove":    (*Device).cmdDeviceRemove,
		"time":             (*Device).cmdTime,
		"group.create":     (*Device).cmdGroupCreate,
		"group.get":        (*Device).cmdGroupGet,
		"group.list":       (*Device).cmdGroupList,
		"group.members":    (*Device).cmdGroupMembers,
		"group.update":     (*Device).cmdGroupUpdate,
		"group.add":        (*Device).cmdGroupAdd,
		"group.remove":     (*Device).cmdGroupRemove,
		"group.join":       (*Device).cmdGroupJoin,
		"group.leave":      (*Device).cmdGroupLeave,
		"group.role":       (*Device).cmdGroupRole,
		"group.transfer":   (*Device).cmdGroupTransfer,
		"group.mute":       (*Device).cmdGroupMute,
		"group.dissolve":   (*Device).cmdGroupDissolve,
	}
	for _, name := range []string{
		"recall", "delete", "group.create", "group.update", "group.add", "group.remove", "group.join", "group.leave", "group.role",
		"group.transfer", "group.mute", "group.dissolve",
	} {
		handlers[name] = counted(handlers[name])
	}
}

// counted is a command that counts like a send: what it says is stored for others, or for devices that are away, and
// told to them.
func counted(h handler) handler {
	return func(d *Device, c *command, t Ticket) ([]byte, *Error) {
		if err := d.allowSend(); err != nil {
			return nil, err
		}
		return h(d, c, t)
	}
}

// Command runs a command, a JSON object, for the device and has it answered exactly once: here, or after the commit it
// waits for. payload is not kept; in, which may be nil, is stored with what send stores, in one step. It waits while the
// engine is busy.
func (d *Device) Command(name string, payload []byte, t Ticket, in *store.Inbound) {
	c := command{name: name, payload: payload, received: time.Now(), inbound: in}
	if err := d.parse(&c); err != nil {
		if name != "send" {
			c.Cid = ""
		}
		d.refuse(t, c.Rid, c.Cid, err)
		return
	}
	if name == "send" {
		d.send(&c, t)
		return
	}
	h, ok := handlers[name]
	if !ok {
		d.refuse(t, c.Rid, "", errorf(UnknownCommand, "there is no command %q", clip(name)))
		return
	}
	data, err := h(d, &c, t)
	switch {
	case err == errAnswered:
	case err != nil:
		d.refuse(t, c.Rid, "", err)
	default:
		d.accept(t, c.Rid, data)
	}
}

// accept answers a command that succeeded.
func (d *Device) accept(t Ticket, rid string, data []byte) {
	var reply []byte
	if rid != "" && d.wants(Replies) {
		reply = appendReply(nil, rid, true)
		if data != nil {
			reply = append(reply, `,"data":`...)
			reply = append(reply, data...)
		}
		reply = append(reply, '}')
	}
	d.link.Answer(t, reply, nil)
}

// acceptPage answers a command with a page of a list. A list has no place for the cursor of the next page, "" where
// there is none, so it stands beside data.
func (d *Device) acceptPage(c *command, t Ticket, data []byte, cursor string) ([]byte, *Error) {
	if cursor == "" || c.Rid == "" {
		return data, nil
	}
	var reply []byte
	if d.wants(Replies) {
		reply = appendReply(nil, c.Rid, true)
		reply = append(append(reply, `,"data":`...), data...)
		reply = append(appendField(reply, "cursor", cursor), '}')
	}
	d.link.Answer(t, reply, nil)
	return nil, errAnswered
}

// parse reads the JSON. Of a command with a wrong type the other fields are read all the same, so that the refusal
// can carry the rid and the cid.
func (d *Device) parse(c *command) *Error {
	if max := d.e.cfg.Load().CommandBytes; max > 0 && len(c.payload) > max {
		c.identify()
		return errorf(TooLarge, "command of %d bytes, the limit is %d", len(c.payload), max)
	}
	if !utf8.Valid(c.payload) {
		return errorf(BadRequest, "the command is not UTF-8")
	}
	err := json.Unmarshal(c.payload, c)
	if len(c.Rid) > maxRid {
		rid := c.Rid
		c.Rid = ""
		return errorf(BadRequest, "rid: want at most %d bytes, found %d", maxRid, len(rid))
	}
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case err == nil && bytes.HasPrefix(bytes.TrimLeft(c.payload, " \t\r\n"), []byte("{")):
		return nil
	case errors.As(err, &syntax):
		return errorf(BadRequest, "not JSON: %s at byte %d", syntax.Error(), syntax.Offset)
	case errors.As(err, &typ) && typ.Field != "":
		return errorf(BadRequest, "%s: want %s, found %s", typ.Field, jsonName(typ.Type.String()), clip(typ.Value))
	}
	return errorf(BadRequest, "want a JSON object")
}

// identify reads, of a command that is too large, only what its sender knows it by.
func (c *command) identify() {
	var id struct{ Rid, Cid string }
	if json.Unmarshal(c.payload, &id) == nil && len(id.Rid) <= maxRid && len(id.Cid) <= maxCid {
		c.Rid, c.Cid = id.Rid, id.Cid
	}
}

// jsonName names a Go type as the author of a client knows it.
func jsonName(goType string) string {
	switch strings.TrimLeft(goType, "*") {
	case "string":
		return "a string"
	case "uint64":
		return "a number, 0 or more, without fraction"
	case "int64", "int":
		return "a number without fraction"
	case "[]string":
		return "a list of strings"
	case "[]uint64":
		return "a list of numbers"
	}
	return goType
}

// need is an error unless the field is there.
func (c *command) need(ok bool, field string) *Error {
	if ok {
		return nil
	}
	return errorf(BadRequest, "%s: missing field %q", c.name, field)
}

// has reports whether the object has the field at all, be it empty. It is asked only on the way to a refusal, or for
// an empty field.
func (c *command) has(field string) bool {
	var m map[string]json.RawMessage
	if json.Unmarshal(c.payload, &m) != nil {
		return false
	}
	_, ok := m[field]
	return ok
}

// limit is the page size asked for, within 1 and max; def where none is.
func (c *command) limit(def, max int) (int, *Error) {
	if c.Limit == nil {
		return def, nil
	}
	if *c.Limit < 1 {
		return 0, errorf(BadRequest, "limit: want 1 to %d, found %d", max, *c.Limit)
	}
	return min(*c.Limit, max), nil
}
