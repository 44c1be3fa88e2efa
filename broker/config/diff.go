package config

import (
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// live are the settings, and with a dot at the end the sections, that a running server takes over.
var live = []string{
	"log.level", "acl", "delivery.", "recall.", "limits.sends_per_second", "limits.send_burst", "limits.connections",
	"limits.connects_per_second", "limits.devices_per_user", "limits.groups_per_user", "group.",
	"limits.connections_per_address", "limits.connect_backlog",
}

// Diff lists the keys whose values differ: those that a reload takes over, and those that need a restart. A list is
// one key. What the files named in a configuration hold (users, JWT keys) is read anew on every reload and not listed.
func Diff(old, new *Config) (liveKeys, restart []string) {
	a, b := reflect.ValueOf(old).Elem(), reflect.ValueOf(new).Elem()
	for _, key := range Keys() {
		x, y := valueAt(a, key), valueAt(b, key)
		if x.Kind() == reflect.Struct || same(x, y) {
			continue
		}
		isLive := slices.ContainsFunc(live, func(l string) bool {
			return key == l || strings.HasSuffix(l, ".") && strings.HasPrefix(key, l)
		})
		if isLive {
			liveKeys = append(liveKeys, key)
		} else {
			restart = append(restart, key)
		}
	}
	return liveKeys, restart
}

// same takes a nil list for an empty one.
func same(x, y reflect.Value) bool {
	if x.Kind() == reflect.Slice && x.Len() == 0 && y.Len() == 0 {
		return true
	}
	return reflect.DeepEqual(x.Interface(), y.Interface())
}

// YAML is the configuration as a file, with the secrets shown as ***.
func (c *Config) YAML() ([]byte, error) { return yaml.Dump(c) }
