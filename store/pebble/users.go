package pebble

import (
	"context"
	"fmt"

	"github.com/mqim/mqim/store"
)

// User returns what is kept about a user.
func (s *Store) User(ctx context.Context, name string) (store.User, error) {
	if err := s.enter(ctx); err != nil {
		return store.User{}, err
	}
	defer s.life.RUnlock()
	return s.user(name)
}

func (s *Store) user(name string) (store.User, error) {
	v, err := s.get(keyUser(nil, name))
	if v == nil || err != nil {
		return store.User{Name: name}, err
	}
	u, ok := decodeUser(name, v)
	if !ok {
		return u, s.corrupt("record of user %q", name)
	}
	return u, nil
}

// Device returns one session.
func (s *Store) Device(ctx context.Context, k store.DeviceKey) (store.Device, error) {
	if err := s.enter(ctx); err != nil {
		return store.Device{}, err
	}
	defer s.life.RUnlock()
	v, err := s.get(keyPair(nil, tabDevice, k.User, k.Device))
	if err != nil {
		return store.Device{}, err
	}
	if v == nil {
		return store.Device{}, fmt.Errorf("device %q of %q: %w", k.Device, k.User, store.ErrNotFound)
	}
	d, ok := decodeDevice(k, v)
	if !ok {
		return d, s.corrupt("record of device %q of %q", k.Device, k.User)
	}
	return d, nil
}

// Devices lists a user's sessions.
func (s *Store) Devices(ctx context.Context, user string) ([]store.Device, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	return s.devices(user)
}

func (s *Store) devices(user string) ([]store.Device, error) {
	it, err := s.names(tabDevice, user)
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var out []store.Device
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, s.wrap(err, "devices of %q", user)
		}
		k := store.DeviceKey{User: user, Device: string(it.Key()[len(user)+2:])}
		d, ok := decodeDevice(k, v)
		if !ok {
			return nil, s.corrupt("record of device %q of %q", k.Device, user)
		}
		out = append(out, d)
	}
	return out, s.wrap(it.Error(), "devices of %q", user)
}

// Blocks lists whom a user has blocked.
func (s *Store) Blocks(ctx context.Context, user string) ([]string, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	it, err := s.names(tabBlock, user)
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var out []string
	for ok := it.First(); ok; ok = it.Next() {
		out = append(out, string(it.Key()[len(user)+2:]))
	}
	return out, s.wrap(it.Error(), "blocks of %q", user)
}
