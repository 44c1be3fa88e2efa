package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// DefaultFile is read when no file is named, if it exists.
const DefaultFile = "config.yaml"

// envPrefix begins every environment variable that is a setting.
const envPrefix = "MQIM_"

// Load reads file over the defaults and the MQIM_ variables of environ ("NAME=value", as of os.Environ) over both.
// file "" is config.yaml in the working directory if there is one. All mistakes come back at once as Errors; a file
// that cannot be read is another error.
func Load(file string, environ []string) (*Config, error) {
	optional := file == ""
	if optional {
		file = DefaultFile
	}
	text, err := os.ReadFile(file)
	if err != nil && !(optional && errors.Is(err, fs.ErrNotExist)) {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(file, text, environ)
}

// Parse is Load for a text already read; file names it in errors.
func Parse(file string, text []byte, environ []string) (*Config, error) {
	c := Default()
	c.at = positions{"": {source: file}}
	d := &decoder{source: file, lined: true, at: c.at}
	if root := d.parse(text, ""); root != nil {
		d.decode(root, reflect.ValueOf(c).Elem(), "")
	}
	errs := append(d.errs, c.environment(environ)...)
	c.complete()
	// A value that did not decode was left as it was; what is wrong with it, or for want of it, has been said.
	decoded := len(errs)
	for _, e := range c.validate() {
		said := func(old *Error) bool { return within(old.Key, e.Key) || within(e.Key, old.Key) }
		if !slices.ContainsFunc(errs[:decoded], said) {
			errs = append(errs, e)
		}
	}
	if err := errs.orNil(file); err != nil {
		return nil, err
	}
	return c, nil
}

// within reports whether key is section or lies in it. Nothing is said to lie in the file as a whole.
func within(key, section string) bool {
	rest, ok := strings.CutPrefix(key, section)
	return ok && section != "" && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// environment applies the MQIM_ variables: sections before the settings in them, so that the more exact name wins.
func (c *Config) environment(environ []string) Errors {
	values := map[string]string{}
	for _, entry := range environ {
		if name, value, ok := strings.Cut(entry, "="); ok && strings.HasPrefix(name, envPrefix) && !serviceLink(name, value) {
			values[name] = value
		}
	}
	settings := map[string]string{} // key path by variable
	for _, key := range Keys() {
		settings[EnvName(key)] = key
	}
	names := slices.SortedFunc(maps.Keys(values), func(a, b string) int {
		return cmp.Or(cmp.Compare(strings.Count(settings[a], "."), strings.Count(settings[b], ".")), cmp.Compare(a, b))
	})
	var errs Errors
	for _, name := range names {
		key, ok := settings[name]
		if !ok {
			known := slices.Collect(maps.Keys(settings))
			slices.Sort(known)
			errs = append(errs, &Error{Source: name, Text: "unknown environment variable" + suggest(name, known)})
			continue
		}
		d := &decoder{source: name, at: c.at}
		v := valueAt(reflect.ValueOf(c).Elem(), key)
		if v.Kind() != reflect.Struct && v.Kind() != reflect.Slice {
			// The text as it is: a password may look like YAML.
			c.at[key] = position{source: name}
			d.scalar(values[name], v, key, &yaml.Node{})
		} else if root := d.parse([]byte(values[name]), key); root != nil {
			d.decode(root, v, key)
		}
		errs = append(errs, d.errs...)
	}
	return errs
}

// link is a variable that Kubernetes sets in every pod beside a service called mqim or mqim-….
var link = regexp.MustCompile(`^MQIM_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)

// serviceLink tells those variables from mistaken ones: MQIM_PORT=tcp://10.0.0.1:1883 from MQIM_HTTP_PORT=80.
func serviceLink(name, value string) bool {
	return link.MatchString(name) || strings.HasSuffix(name, "_PORT") && strings.Contains(value, "://")
}

// EnvName is the environment variable of a key: MQIM_STORE_DRIVER for store.driver.
func EnvName(key string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// Keys are the paths of all sections, lists and settings, in the order of the file. What a list holds is not among them.
func Keys() []string {
	var all []string
	var walk func(t reflect.Type, prefix string)
	walk = func(t reflect.Type, prefix string) {
		for f := range t.Fields() {
			name := f.Tag.Get("yaml")
			if name == "" {
				continue
			}
			all = append(all, join(prefix, name))
			if f.Type.Kind() == reflect.Struct {
				walk(f.Type, join(prefix, name))
			}
		}
	}
	walk(reflect.TypeFor[Config](), "")
	return all
}

// valueAt is the value of a path of Keys.
func valueAt(v reflect.Value, key string) reflect.Value {
	for name := range strings.SplitSeq(key, ".") {
		v, _ = fieldByKey(v, name)
	}
	return v
}

// complete fills in what an element of a list may leave out.
func (c *Config) complete() {
	for i := range c.Listeners {
		l := &c.Listeners[i]
		if l.Type == "" {
			l.Type = "tcp"
		}
		if l.Name == "" {
			l.Name = fmt.Sprintf("%s-%d", l.Type, i+1)
		}
		if l.Path == "" && l.web() {
			l.Path = "/mqtt"
		}
	}
}

func (l *Listener) web() bool { return l.Type == "ws" || l.Type == "wss" }

// TLS reports whether the listener speaks TLS.
func (l *Listener) TLS() bool { return l.Type == "tls" || l.Type == "wss" }
