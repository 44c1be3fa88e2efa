//go:build !linux

package transport

import "net"

// hungUp cannot tell here: the connection has its turn, and ends then.
func hungUp(net.Conn) bool { return false }

// unread cannot tell here.
func unread(net.Conn) bool { return false }
