package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// alarm sleeps on a timer of the kernel. The runtime's own timers round to a millisecond when the process is otherwise
// idle, and a nanosleep keeps its processor from the other goroutines until the runtime notices, ten milliseconds at
// worst: either would be on every latency of a rate-limited run. A timerfd wakes the poller like a socket does.
type alarm struct {
	fd int
	f  *os.File // nil: there is no timerfd here
}

func newAlarm() *alarm {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return &alarm{}
	}
	return &alarm{fd, os.NewFile(uintptr(fd), "timerfd")}
}

// sleep waits for d, or about as long.
func (a *alarm) sleep(d time.Duration) {
	if a.f != nil && d > 0 {
		spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
		var ticks [8]byte
		if unix.TimerfdSettime(a.fd, 0, &spec, nil) == nil {
			if _, err := a.f.Read(ticks[:]); err == nil {
				return
			}
		}
	}
	time.Sleep(d)
}

func (a *alarm) close() {
	if a.f != nil {
		a.f.Close()
	}
}

// cpuTime is the processor time that this process has taken.
func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// residentMemory is the VmRSS of a process, in bytes.
func residentMemory(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		f := bytes.Fields(lines.Bytes())
		if len(f) == 3 && string(f[0]) == "VmRSS:" {
			kib, err := strconv.ParseInt(string(f[1]), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}
