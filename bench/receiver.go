package bench

import (
	"bytes"
	"fmt"
	"sync/atomic"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// ackWindow is how many acknowledging commands a receiver of the IM profile has out. They are cumulative, so where
// none is free the next one speaks for all.
const ackWindow = 32

// receiver subscribes, acknowledges, and checks the streams base, base+1 … that are meant for it.
type receiver struct {
	*link
	profile  Profile
	run      uint32
	base     uint32
	checks   []checker
	ackEvery int
	size     int    // of every body
	noise    []byte // that bodies are cut from

	from    *atomic.Int64           // messages due before it are not measured
	latency *hdrhistogram.Histogram // from due to here; nil: not measured. µs
	service *hdrhistogram.Histogram // from sent to here, where that is another time
	expect  uint64                  // a drain: the link ends after so many messages; 0: never

	delivered  atomic.Int64 // without duplicates
	lastAt     atomic.Int64 // when the last one came
	duplicates int64
	reordered  int64
	damaged    int64 // messages that are not what was sent
	trimmed    int64 // announcements that an inbox was cut before we had read it
	foreign    int64 // messages that this run did not send

	complete []*completion // of each stream; nil: not measured

	// Guarded by link.mu, since the tail of acks is written by the controller.
	places  []place
	waiting int // messages since the last acknowledgement
	ackFree []uint16
}

// place is how far a receiver has come in one of the logs that it reads: its inbox, or a large group's, whose messages
// carry no seq.
type place struct {
	conv string // "": the inbox
	seq  uint64 // to be acknowledged up to
	sent uint64 // acknowledged so far
}

func newReceiver(l *link, o *Options, base, streams int, from *atomic.Int64) *receiver {
	r := &receiver{link: l, profile: o.Profile, run: o.runID(), base: uint32(base), checks: make([]checker, streams),
		ackEvery: o.AckEvery, size: o.Size, noise: noise(), from: from}
	if o.Profile == IM {
		r.ackFree = make([]uint16, ackWindow)
		for i := range r.ackFree {
			r.ackFree[i] = uint16(ackWindow - i)
		}
	}
	return r
}

func (r *receiver) packet(pk packet) error {
	if pk.kind != typePublish {
		id, reason, err := parseAck(pk)
		if err != nil {
			return err
		}
		if reason >= 0x80 {
			return fmt.Errorf("an ack command was refused with code 0x%02x", reason)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if id == 0 || id > ackWindow || len(r.ackFree) == ackWindow {
			return fmt.Errorf("an ack for packet id %d, which is not ours: %w", id, errMalformed)
		}
		r.ackFree = append(r.ackFree, id)
		return nil
	}
	m, err := parsePublish(r.version, pk)
	if err != nil {
		return err
	}
	if m.qos == 2 {
		return fmt.Errorf("a message at QoS 2 for a subscription at QoS 1: %w", errMalformed)
	}
	body, ours := m.payload, true
	if r.profile == IM {
		if ours = bytes.HasSuffix(m.topic, []byte("/msg")); ours {
			body, _ = jsonString(m.payload, keyBody)
		} else if bytes.Contains(m.payload, inboxTrimmed) {
			r.trimmed++
		}
	}
	if m.qos > 0 || r.profile == IM {
		r.mu.Lock()
		if m.qos > 0 {
			r.out = appendAck(r.out, typePuback, m.id)
		}
		if r.profile == IM && ours {
			r.noteSeq(m.payload)
		}
		r.mu.Unlock()
	}
	if ours {
		r.count(body)
	}
	return nil
}

// count checks one message and measures it.
func (r *receiver) count(body []byte) {
	h, ok := getHeader(body)
	i := h.stream - r.base
	if !ok || h.run != r.run || h.stream < r.base || int(i) >= len(r.checks) {
		r.foreign++
		return
	}
	if len(body) != r.size || !bytes.Equal(body[headerSize:], filler(r.noise, h.stream, h.number, r.size-headerSize)) {
		r.damaged++
	}
	switch r.checks[i].see(h.number) {
	case duplicate:
		r.duplicates++
		return
	case reordered:
		r.reordered++
	}
	r.delivered.Add(1)
	r.lastAt.Store(r.now)
	if r.complete != nil {
		r.complete[i].see(h, r.from.Load())
	}
	if r.latency != nil && h.due >= r.from.Load() {
		r.latency.RecordValue(micros(r.now - h.due)) //nolint:errcheck // micros keeps it in range
		if r.service != nil {
			r.service.RecordValue(micros(r.now - h.sent)) //nolint:errcheck
		}
	}
}

// noteSeq remembers what a message is acknowledged by. The caller holds mu.
func (r *receiver) noteSeq(payload []byte) {
	var conv []byte
	seq, ok := jsonNumber(payload, keySeq)
	if !ok {
		if seq, ok = jsonNumber(payload, keyCSeq); !ok {
			return
		}
		if conv, ok = jsonString(payload, keyConv); !ok {
			return
		}
	}
	r.waiting++
	for i := range r.places {
		if p := &r.places[i]; p.conv == string(conv) {
			p.seq = max(p.seq, seq)
			return
		}
	}
	r.places = append(r.places, place{conv: string(conv), seq: seq})
}

// appendAcks appends an im/cmd/ack for everything so far in each place where there is anything to say, for as long as
// packet ids are free. The caller holds mu.
func (r *receiver) appendAcks() {
	for i := range r.places {
		p := &r.places[i]
		if p.seq <= p.sent {
			continue
		}
		if len(r.ackFree) == 0 {
			return
		}
		id := r.ackFree[len(r.ackFree)-1]
		r.ackFree = r.ackFree[:len(r.ackFree)-1]
		p.sent = p.seq
		var space [256]byte
		body := space[:0]
		if p.conv != "" {
			body = append(append(append(body, `{"conv":"`...), p.conv...), `","cseq":`...)
		} else {
			body = append(body, `{"seq":`...)
		}
		body = append(appendDecimal(body, p.seq), '}')
		r.out, _ = appendPublish(r.out, r.version, 1, "im/cmd/ack", id, len(body))
		r.out = append(r.out, body...)
	}
	r.waiting = 0
}

// acknowledged tells whether all that came is acknowledged, and the broker has said so. The caller holds mu.
func (r *receiver) acknowledged() bool {
	for _, p := range r.places {
		if p.sent < p.seq {
			return false
		}
	}
	return len(r.ackFree) == ackWindow
}

func appendDecimal(b []byte, v uint64) []byte {
	var digits [20]byte
	i := len(digits)
	for {
		i--
		digits[i] = byte('0' + v%10)
		if v /= 10; v == 0 {
			return append(b, digits[i:]...)
		}
	}
}

func (r *receiver) idle() (done bool) {
	complete := r.expect > 0 && uint64(r.delivered.Load()) >= r.expect
	if r.profile != IM {
		return complete
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting >= r.ackEvery || complete {
		r.appendAcks()
	}
	return complete && r.acknowledged()
}

// flushAcks writes the acknowledgement that idle held back for want of AckEvery messages.
func (r *receiver) flushAcks() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.appendAcks()
	r.flush() //nolint:errcheck // a dead link shows in its reader
}

// Latencies are kept from 1 µs to 10 minutes; what is longer counts as that.
const longestMicros = 600_000_000

// newHistogram keeps three digits, or two where there are so many receivers that three would take too much memory.
func newHistogram(receivers int) *hdrhistogram.Histogram {
	digits := 3
	if receivers > 64 {
		digits = 2
	}
	return hdrhistogram.New(1, longestMicros, digits)
}

func micros(ns int64) int64 { return min(max(ns/1000, 0), longestMicros) }
