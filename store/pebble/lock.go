package pebble

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/mqim/mqim/store"
)

// lockError tells a folder in use from one that cannot be locked.
func lockError(path string, err error) error {
	// Within one process Pebble says so by a text alone.
	held := errors.Is(err, syscall.EAGAIN) || strings.Contains(err.Error(), "held by current process")
	if held {
		return fmt.Errorf("%w: %s is locked: is another mqim running on it?", store.ErrLocked, path)
	}
	return fmt.Errorf("store.pebble: lock %s: %w", path, err)
}
