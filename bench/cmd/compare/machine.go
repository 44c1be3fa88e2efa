package main

import (
	"os"
	"runtime"
	"strings"
	"time"
)

// machine is what one has to know of where the numbers are from. What the system does not tell is left out.
func machine() map[string]any {
	m := map[string]any{"time": time.Now().UTC().Format(time.RFC3339), "go": runtime.Version(), "cpus": runtime.NumCPU(),
		"system": runtime.GOOS + "/" + runtime.GOARCH}
	for key, file := range map[string]string{"kernel": "/proc/sys/kernel/osrelease", "load": "/proc/loadavg"} {
		if b, err := os.ReadFile(file); err == nil {
			m[key] = strings.TrimSpace(string(b))
		}
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m["cpu"] = strings.TrimSpace(value)
				break
			}
		}
	}
	return m
}
