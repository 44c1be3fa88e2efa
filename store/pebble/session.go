package pebble

import (
	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/wire"
)

// How a session's record says what becomes of it.
const (
	sessionOffline = iota
	sessionOnline  // in the opening of the store that follows
	sessionCut
)

func appendSession(dst []byte, s *store.Session, boot uint64) []byte {
	dst = wire.AppendString(dst, s.User)
	dst = wire.AppendUvarint(dst, uint64(s.Expiry))
	dst = wire.AppendVarint(dst, s.Since)
	switch {
	case s.Online:
		return wire.AppendUvarint(append(dst, sessionOnline), boot)
	case s.Cut:
		return append(dst, sessionCut)
	}
	return append(dst, sessionOffline)
}

// decodeSession takes a session apart: what another opening of the store has left connected is cut. cutNow says that the
// record does not tell yet.
func decodeSession(client string, v []byte, boot uint64, opened int64) (s store.Session, cutNow, ok bool) {
	d := wire.Decoder{B: v}
	s = store.Session{Client: client, User: d.Str(), Expiry: uint32(d.Uvarint()), Since: d.Varint()}
	switch d.Byte() {
	case sessionOnline:
		if s.Online = d.Uvarint() == boot; !s.Online {
			s.Since, s.Cut, cutNow = opened, true, true
		}
	case sessionCut:
		s.Cut = true
	}
	return s, cutNow, !d.Bad
}
