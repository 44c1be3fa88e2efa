package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/mqim/mqim/store"
)

func testBlocks(t *testing.T, e *env) {
	e.start(store.Retention{})
	e.commit(&store.Batch{Blocks: []store.Block{
		{User: "ann", Peer: "zoe"}, {User: "ann", Peer: "bob"}, {User: "anna", Peer: "x"}, {User: "an", Peer: "y"},
	}})
	check := func(want ...string) {
		t.Helper()
		got, err := e.st.Blocks(ctx, "ann")
		if err != nil {
			t.Fatal(err)
		}
		e.equal("blocks", got, want)
	}
	check("bob", "zoe")
	e.commit(&store.Batch{Blocks: []store.Block{
		{User: "ann", Peer: "zoe", Remove: true}, {User: "ann", Peer: "cyd"}, {User: "ann", Peer: "no", Remove: true},
		{User: "ann", Peer: "cyd", Remove: true}, {User: "ann", Peer: "cyd"},
	}})
	check("bob", "cyd")
	e.reopen()
	check("bob", "cyd")
}

func testUsersAndDevices(t *testing.T, e *env) {
	e.start(store.Retention{})
	u, err := e.st.User(ctx, "ann")
	if err != nil {
		t.Fatal(err)
	}
	e.equal("unknown user", u, store.User{Name: "ann"})
	k := func(user, device string) store.DeviceKey { return store.DeviceKey{User: user, Device: device} }
	if _, err := e.st.Device(ctx, k("ann", "p")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("unknown device: got %v, want %v", err, store.ErrNotFound)
	}
	ann := store.User{Name: "ann", Cursor: 7, LastSeen: 123}
	p := store.Device{DeviceKey: k("ann", "p"), Cursor: 7, LastSeen: 1, Expires: 2, Profile: "im"}
	l := store.Device{DeviceKey: k("ann", "l/2"), Cursor: 9}
	other := store.Device{DeviceKey: k("anna", "p"), Cursor: 1}
	e.commit(&store.Batch{Users: []store.User{{Name: "ann", Cursor: 5, LastSeen: 123}, {Name: "ann", Cursor: 7, LastSeen: 9}}, Devices: []store.Device{p, l, other}})
	e.commit(&store.Batch{Users: []store.User{{Name: "ann", Cursor: 6, LastSeen: 122}}, Lazy: true}) // neither goes back
	for range 2 {
		u, err := e.st.User(ctx, "ann")
		if err != nil {
			t.Fatal(err)
		}
		e.equal("user", u, ann)
		got, err := e.st.Device(ctx, p.DeviceKey)
		if err != nil {
			t.Fatal(err)
		}
		e.equal("device", got, p)
		list, err := e.st.Devices(ctx, "ann")
		if err != nil {
			t.Fatal(err)
		}
		e.equal("devices", list, []store.Device{l, p})
		e.reopen()
	}
	p.Cursor, p.Profile = 3, ""
	e.commit(&store.Batch{Devices: []store.Device{p}, Removed: []store.DeviceKey{l.DeviceKey, k("no", "no")}, Lazy: true})
	list, err := e.st.Devices(ctx, "ann")
	if err != nil {
		t.Fatal(err)
	}
	e.equal("devices", list, []store.Device{p})
}

func testDeviceExpiry(t *testing.T, e *env) {
	e.start(store.Retention{})
	now := time.Now()
	d := func(name string, expires int64) store.Device {
		return store.Device{DeviceKey: store.DeviceKey{User: "ann", Device: name}, Expires: expires}
	}
	e.commit(&store.Batch{Devices: []store.Device{
		d("a", now.Add(-time.Hour).UnixMilli()), d("b", 0), d("c", now.Add(time.Hour).UnixMilli()),
	}})
	e.maintain(now)
	list, err := e.st.Devices(ctx, "ann")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range list {
		got = append(got, x.Device)
	}
	e.equal("devices", got, []string{"b", "c"})
}
