package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// decoder puts YAML nodes into the tagged structs of a Config. It goes on after a mistake, so that all are found,
// and leaves the value as it was where the mistake is.
type decoder struct {
	source string // file or variable, for errors
	lined  bool   // whether lines and columns of source mean something
	at     positions
	errs   Errors
}

var secretType = reflect.TypeFor[Secret]()

// parse is the node at the root of a YAML text; nil for one without content.
func (d *decoder) parse(text []byte, key string) *yaml.Node {
	var docs []yaml.Node
	if err := yaml.Load(text, &docs, yaml.WithAllDocuments()); err != nil {
		e := &Error{Source: d.source, Key: key, Text: "not valid YAML"}
		var at *yaml.LoadError
		if errors.As(err, &at) {
			e.Text += ": " + quoted.ReplaceAllStringFunc(at.Message, redact)
			if d.lined && at.Mark.Line > 0 {
				e.Line, e.Column = at.Mark.Line, at.Mark.Column
			}
		}
		d.errs = append(d.errs, e)
		return nil
	}
	if len(docs) > 1 {
		d.fail(&docs[1], key, fmt.Sprintf("found %d YAML documents, expected one", len(docs)))
		return nil
	}
	if len(docs) == 0 {
		return nil
	}
	root := &docs[0]
	if root.Kind == yaml.DocumentNode {
		if len(root.Content) == 0 {
			return nil
		}
		root = root.Content[0]
	}
	return root
}

// quoted is what the parser repeats of the text, which may be a password that began with an asterisk, or what it expected.
var quoted = regexp.MustCompile(`'[^']*'|"[^"]*"`)

// redact keeps what the parser may expect, which says where a bracket is open, and takes away the rest.
func redact(s string) string {
	if strings.Contains("',' ']' '}' ':' '-'", s) {
		return s
	}
	return "…"
}

func (d *decoder) fail(n *yaml.Node, key, text string) {
	at := d.position(n)
	d.errs = append(d.errs, &Error{Source: at.source, Line: at.line, Column: at.column, Key: key, Text: text})
}

func (d *decoder) position(n *yaml.Node) position {
	if !d.lined {
		return position{source: d.source}
	}
	return position{d.source, n.Line, n.Column}
}

// decode puts n into v, the value of key.
func (d *decoder) decode(n *yaml.Node, v reflect.Value, key string) {
	where := n
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	// An emptied section or list, with all its lines turned into comments, means its defaults.
	empty := n.Kind == yaml.ScalarNode && n.Tag == "!!null"
	switch {
	case v.Kind() == reflect.Struct:
		if !empty {
			d.section(n, where, v, key)
		}
	case v.Kind() == reflect.Slice:
		if !empty {
			d.list(n, where, v, key)
		}
	case empty:
		d.fail(where, key, "found nothing, expected "+expected(v))
	case n.Kind != yaml.ScalarNode:
		d.fail(where, key, fmt.Sprintf("found %s, expected %s", found(n, v.Type()), expected(v)))
	default:
		d.at[key] = d.position(where)
		d.scalar(n.Value, v, key, where)
	}
}

func (d *decoder) section(n, where *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.MappingNode {
		d.fail(where, key, fmt.Sprintf("found %s, expected %s", found(n, v.Type()), "a section with "+strings.Join(keys(v.Type()), ", ")))
		return
	}
	d.at[key] = d.position(where)
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		path := join(key, name.Value)
		field, ok := fieldByKey(v, name.Value)
		switch {
		case name.Kind != yaml.ScalarNode:
			d.fail(name, key, "expected the name of a setting before the colon")
		case !ok:
			d.fail(name, path, "unknown key"+suggest(name.Value, keys(v.Type())))
		case seen[name.Value]:
			d.fail(name, path, "given twice")
		default:
			seen[name.Value] = true
			d.decode(value, field, path)
		}
	}
}

// list replaces the whole list: elements have no defaults to keep.
func (d *decoder) list(n, where *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.SequenceNode {
		d.fail(where, key, fmt.Sprintf("found %s, expected a list", found(n, v.Type())))
		return
	}
	d.at.forget(key)
	d.at[key] = d.position(where)
	list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		path := fmt.Sprintf("%s[%d]", key, i)
		d.at[path] = d.position(item)
		d.decode(item, list.Index(i), path)
	}
	if len(n.Content) == 0 {
		list = reflect.Zero(v.Type())
	}
	v.Set(list)
}

// scalar puts a text into v. The text counts, not YAML's idea of its type: name: 123 is a name.
func (d *decoder) scalar(text string, v reflect.Value, key string, n *yaml.Node) {
	switch target := v.Addr().Interface().(type) {
	case encoding.TextUnmarshaler:
		if target.UnmarshalText([]byte(text)) == nil {
			return
		}
	case *int:
		if i, err := strconv.Atoi(text); err == nil {
			*target = i
			return
		}
	case *bool:
		if text == "true" || text == "false" {
			*target = text == "true"
			return
		}
	default:
		v.SetString(text)
		return
	}
	d.fail(n, key, fmt.Sprintf("found %s, expected %s", quote(text), expected(v)))
}

// expected is what a value of v's type looks like.
func expected(v reflect.Value) string {
	switch target := reflect.New(v.Type()).Interface().(type) {
	case encoding.TextUnmarshaler:
		return target.UnmarshalText(nil).Error()
	case *int:
		return "a whole number"
	case *bool:
		return "true or false"
	}
	return "a text"
}

// found names what stands in the file. Texts are repeated, except where a secret was expected.
func found(n *yaml.Node, t reflect.Type) string {
	switch {
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.MappingNode:
		return "a section"
	case holdsSecret(t):
		return "a text"
	}
	return quote(n.Value)
}

// quote repeats a text of the file, cut to a bearable length.
func quote(text string) string {
	const most = 60
	if len(text) > most {
		return strconv.Quote(strings.ToValidUTF8(text[:most], "")) + "…"
	}
	return strconv.Quote(text)
}

func holdsSecret(t reflect.Type) bool {
	switch {
	case t == secretType:
		return true
	case t.Kind() == reflect.Slice:
		return holdsSecret(t.Elem())
	case t.Kind() == reflect.Struct:
		for f := range t.Fields() {
			if f.Tag.Get("yaml") != "" && holdsSecret(f.Type) {
				return true
			}
		}
	}
	return false
}

// keys are the names of a section's settings, in order.
func keys(t reflect.Type) []string {
	var names []string
	for f := range t.Fields() {
		if name := f.Tag.Get("yaml"); name != "" {
			names = append(names, name)
		}
	}
	return names
}

func fieldByKey(v reflect.Value, name string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if name != "" && v.Type().Field(i).Tag.Get("yaml") == name {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}
