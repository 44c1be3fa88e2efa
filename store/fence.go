package store

import "slices"

// FencedOff sets Lost of the batch's fences by the claims that stand (epochs, 0 where there is none), and returns the
// clients whose part is to be left out; nil where there are none.
func (b *Batch) FencedOff(epochs map[string]uint64) (lost map[string]bool) {
	highest := make(map[string]uint64, len(b.Fences))
	for _, f := range b.Fences {
		f.Lost = f.Epoch < epochs[f.Client]
		highest[f.Client] = max(highest[f.Client], f.Epoch)
	}
	for client, epoch := range highest {
		if epoch < epochs[client] {
			if lost == nil {
				lost = map[string]bool{}
			}
			lost[client] = true
		}
	}
	return lost
}

// Without is the batch without what it has of the sessions of some clients, see Fence; b and its slices stay as they are. The
// Inbound of Sends and Publishes is still there: it is the driver's to pass over, since results are written to them.
func (b *Batch) Without(clients map[string]bool) *Batch {
	if len(clients) == 0 {
		return b
	}
	x := *b
	x.Devices = without(b.Devices, clients, func(d *Device) string { return d.Device })
	x.Removed = without(b.Removed, clients, func(k *DeviceKey) string { return k.Device })
	x.Cursors = without(b.Cursors, clients, func(c *Cursor) string { return c.Device })
	x.Sessions = without(b.Sessions, clients, func(s *Session) string { return s.Client })
	x.Subscribes = without(b.Subscribes, clients, func(s *Subscription) string { return s.Client })
	x.Unsubscribes = without(b.Unsubscribes, clients, func(s *Subscription) string { return s.Client })
	x.Passed = without(b.Passed, clients, func(p *Passed) string { return p.Client })
	x.Outbound = without(b.Outbound, clients, func(o *Outbound) string { return o.Client })
	x.Inbound = without(b.Inbound, clients, func(i *Inbound) string { return i.Client })
	x.Wills = without(b.Wills, clients, func(w *Will) string { return w.Client })
	return &x
}

func without[T any](list []T, clients map[string]bool, of func(*T) string) []T {
	gone := func(x T) bool { return clients[of(&x)] }
	if !slices.ContainsFunc(list, gone) {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), gone)
}
