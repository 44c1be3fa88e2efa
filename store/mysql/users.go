package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/mqim/mqim/store"
)

// User returns what is kept about a user.
func (s *Store) User(ctx context.Context, name string) (store.User, error) {
	u := store.User{Name: name}
	if err := s.enter(ctx); err != nil {
		return u, err
	}
	defer s.life.RUnlock()
	p := s.packet()
	s.askUser(p, &u)
	err := s.read(ctx, p, "user %q", name)
	return u, err
}

func (s *Store) askUser(p *packet, u *store.User) {
	p.get(getUser, func(r *sql.Rows) error { return r.Scan(&u.Cursor, &u.LastSeen) }, u.Name)
}

func scanDevice(r *sql.Rows, user string) (store.Device, error) {
	d := store.Device{DeviceKey: store.DeviceKey{User: user}}
	err := r.Scan(&d.Device, &d.Cursor, &d.LastSeen, &d.Expires, &d.Profile)
	return d, err
}

// Device returns one session.
func (s *Store) Device(ctx context.Context, k store.DeviceKey) (store.Device, error) {
	if err := s.enter(ctx); err != nil {
		return store.Device{}, err
	}
	defer s.life.RUnlock()
	var d store.Device
	found := false
	p := s.packet()
	p.get(getDevice, func(r *sql.Rows) (err error) {
		found = true
		d, err = scanDevice(r, k.User)
		return err
	}, k.User, k.Device)
	if err := s.read(ctx, p, "device %q of %q", k.Device, k.User); err != nil {
		return d, err
	}
	s.touch(k.User) // it connects, and may come from another node
	if !found {
		return d, fmt.Errorf("device %q of %q: %w", k.Device, k.User, store.ErrNotFound)
	}
	return d, nil
}

// Devices lists a user's sessions.
func (s *Store) Devices(ctx context.Context, user string) ([]store.Device, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	return s.devices(ctx, user)
}

func (s *Store) devices(ctx context.Context, user string) ([]store.Device, error) {
	var out []store.Device
	for after := ""; ; {
		before := len(out)
		p := s.packet()
		p.get(listDevices, func(r *sql.Rows) error {
			d, err := scanDevice(r, user)
			out = append(out, d)
			return err
		}, user, after, maxRows)
		if err := s.read(ctx, p, "devices of %q", user); err != nil {
			return nil, err
		}
		if len(out)-before < maxRows {
			return out, nil
		}
		after = out[len(out)-1].Device
	}
}

// Blocks lists whom a user has blocked.
func (s *Store) Blocks(ctx context.Context, user string) ([]string, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	var out []string
	for after := ""; ; {
		before := len(out)
		p := s.packet()
		p.get(listBlocks, func(r *sql.Rows) error {
			var peer string
			err := r.Scan(&peer)
			out = append(out, peer)
			return err
		}, user, after, maxRows)
		if err := s.read(ctx, p, "blocks of %q", user); err != nil {
			return nil, err
		}
		if len(out)-before < maxRows {
			return out, nil
		}
		after = out[len(out)-1]
	}
}

// Sent finds what a cid stands for, as a Commit of now would.
func (s *Store) Sent(ctx context.Context, from, cid string) (m store.Message, hash uint64, ok bool, err error) {
	if err := s.enter(ctx); err != nil {
		return m, 0, false, err
	}
	defer s.life.RUnlock()
	if cid == "" {
		return m, 0, false, nil
	}
	var x cidRecord
	p := s.packet()
	p.names(getCids, func(r *sql.Rows) (err error) {
		_, x, err = scanCid(r)
		return err
	}, []string{cidKey{from, cid}.text()})
	if err := s.read(ctx, p, "cid of %q", from); err != nil {
		return m, 0, false, err
	}
	window := s.opts.Retention.Dedupe.Milliseconds()
	if x.cseq == 0 || window > 0 && time.Now().UnixMilli()-x.ts >= window {
		return m, 0, false, nil
	}
	return store.Message{Conv: x.conv, Cseq: x.cseq, ID: x.id, TS: x.ts}, x.hash, true, nil
}
