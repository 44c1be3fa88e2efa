package transport

import (
	"math"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Refusal says which limit turned a connection away at the door; "" is none.
type Refusal string

// The refusals.
const (
	RefusedFull    Refusal = "full"    // LimitsConfig.Connections
	RefusedAddress Refusal = "address" // LimitsConfig.PerAddress
	RefusedBacklog Refusal = "backlog" // LimitsConfig.Backlog
)

// answersPerSecond bounds how many refused connections are heard out until their CONNECT, to be told why; the others are
// closed at once. Each costs a connection's memory, and perhaps a TLS handshake.
const answersPerSecond = 100

// LimitsConfig are the limits of Limits. 0 is no limit.
type LimitsConfig struct {
	Connections       int     // open at a time, those that wait for their turn included
	PerAddress        int     // of these, from one IPv4 address or one IPv6 network of 64 bits, which is what a customer is given
	ConnectsPerSecond float64 // are let in, a tenth of a second's worth at a time; the others wait for their turn
	Backlog           int     // how many may wait
}

// Limits are kept at the door. One value may serve several listeners, which then share them. Connections that wait for
// their turn do so in the order in which they came, without a goroutine. The zero value does not work, see NewLimits.
type Limits struct {
	answers *rate.Limiter
	queued  atomic.Int64 // len(waiting)

	mu        sync.Mutex // guards what follows; taken after Listener.mu
	cfg       LimitsConfig
	pace      *rate.Limiter
	open      int
	addresses map[netip.Addr]int // connections by address
	waiting   []*visit           // the first is the next
	timer     *time.Timer        // set while there are waiting
}

// visit is a connection from the door on.
type visit struct {
	l       *Listener
	raw     net.Conn
	serve   func(*Conn) error
	address netip.Addr // under which it is counted; not valid: none
	counted bool       // enter gave it a place
	refused Refusal    // it is let in for nothing but to be told
}

// NewLimits returns limits that nothing is counted against yet.
func NewLimits(c LimitsConfig) *Limits {
	l := &Limits{answers: rate.NewLimiter(answersPerSecond, answersPerSecond), addresses: map[netip.Addr]int{}, pace: rate.NewLimiter(rate.Inf, 1)}
	l.Set(c)
	return l
}

// Set changes the limits; connections that are open or wait stay.
func (l *Limits) Set(c LimitsConfig) {
	l.mu.Lock()
	if c.ConnectsPerSecond != l.cfg.ConnectsPerSecond {
		limit, burst := rate.Inf, 1
		if c.ConnectsPerSecond > 0 {
			limit, burst = rate.Limit(c.ConnectsPerSecond), int(math.Ceil(c.ConnectsPerSecond/10))
		}
		l.pace.SetLimit(limit)
		l.pace.SetBurst(burst)
	}
	l.cfg = c
	l.mu.Unlock()
	l.turn()
}

// Waiting is how many connections wait for their turn.
func (l *Limits) Waiting() int64 { return l.queued.Load() }

// enter counts v and lets it in, now or when its turn comes; or it says why not.
func (l *Limits) enter(v *visit) Refusal {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.cfg.Connections > 0 && l.open >= l.cfg.Connections:
		return RefusedFull
	case l.cfg.Backlog > 0 && len(l.waiting) >= l.cfg.Backlog:
		return RefusedBacklog
	case !l.count(v.address):
		return RefusedAddress
	}
	l.open++
	v.counted = true
	if len(l.waiting) == 0 && l.pace.Allow() {
		go v.l.run(v)
		return ""
	}
	l.waiting = append(l.waiting, v)
	l.queued.Store(int64(len(l.waiting)))
	if l.timer == nil {
		l.timer = time.AfterFunc(0, l.turn)
	}
	return ""
}

// arrived counts v under the address that its proxy has told.
func (l *Limits) arrived(v *visit, address netip.Addr) Refusal {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.count(address) {
		return RefusedAddress
	}
	v.address = address
	return ""
}

func (l *Limits) count(address netip.Addr) bool {
	if !address.IsValid() {
		return true
	}
	n := l.addresses[address]
	if l.cfg.PerAddress > 0 && n >= l.cfg.PerAddress {
		return false
	}
	l.addresses[address] = n + 1
	return true
}

// leave gives the place back that enter gave.
func (l *Limits) leave(v *visit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if n := l.addresses[v.address]; n > 1 {
		l.addresses[v.address] = n - 1
	} else {
		delete(l.addresses, v.address)
	}
}

// turn lets in those whose turn has come, and comes back when there will be more.
func (l *Limits) turn() {
	var gone []*visit
	l.mu.Lock()
	for len(l.waiting) > 0 {
		v := l.waiting[0]
		if hungUp(v.raw) { // it takes nobody's turn
			gone = append(gone, v)
		} else if r := l.pace.Reserve(); r.Delay() > 0 {
			wait := r.Delay()
			r.Cancel()
			if l.timer != nil {
				l.timer.Stop()
			}
			l.timer = time.AfterFunc(wait, l.turn)
			break
		} else {
			go v.l.run(v)
		}
		l.waiting[0] = nil
		l.waiting = l.waiting[1:]
	}
	if len(l.waiting) == 0 {
		l.waiting, l.timer = nil, nil
	}
	l.queued.Store(int64(len(l.waiting)))
	l.mu.Unlock()
	for _, v := range gone {
		v.l.Counters.GaveUp.Add(1)
		v.l.end(v)
	}
}

// drop takes a listener's connections out of those that wait.
func (l *Limits) drop(of *Listener) (dropped []*visit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var rest []*visit
	for _, v := range l.waiting {
		if v.l == of {
			dropped = append(dropped, v)
		} else {
			rest = append(rest, v)
		}
	}
	l.waiting = rest
	l.queued.Store(int64(len(rest)))
	if len(rest) == 0 && l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	return dropped
}

// counted is what an address is counted under; not valid where it is none.
func counted(a net.Addr) netip.Addr {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return Network(t.AddrPort().Addr())
}

// Network is what is held to be one client's: an IPv4 address, or an IPv6 network of 64 bits.
func Network(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}
