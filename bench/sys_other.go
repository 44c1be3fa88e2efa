//go:build !linux

package bench

import (
	"errors"
	"time"
)

// alarm sleeps as exactly as the runtime can.
type alarm struct{}

func newAlarm() *alarm { return &alarm{} }

func (*alarm) sleep(d time.Duration) { time.Sleep(d) }

func (*alarm) close() {}

func cpuTime() time.Duration { return 0 }

func residentMemory(int) (int64, error) {
	return 0, errors.New("resident memory of another process is only known on Linux")
}
