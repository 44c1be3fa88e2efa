package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Error is one mistake in the configuration.
type Error struct {
	Source string // file, or name of the environment variable; "" for a Config made in code
	Line   int    // from 1; 0 where there is none
	Column int
	Key    string // path, such as store.pebble.path or listeners[0].cert; "" for the file as a whole
	Text   string // such as `found "abc", expected a duration such as 10s`
}

// Error is "file:line:column: key: text", without the parts there are none of.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Source != "" {
		b.WriteString(e.Source)
		if e.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
		}
		b.WriteString(": ")
	}
	if e.Key != "" {
		b.WriteString(e.Key + ": ")
	}
	b.WriteString(e.Text)
	return b.String()
}

// Errors are all the mistakes, the file's in the order of its lines.
type Errors []*Error

// Error is one mistake a line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find the single mistakes.
func (e Errors) Unwrap() []error {
	errs := make([]error, len(e))
	for i, err := range e {
		errs[i] = err
	}
	return errs
}

// orNil sorts the mistakes and returns a nil error if there are none. The file's come before the variables'.
func (e Errors) orNil(file string) error {
	if len(e) == 0 {
		return nil
	}
	slices.SortStableFunc(e, func(a, b *Error) int {
		rank := func(x *Error) int {
			if x.Source == file {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Source, b.Source),
			cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return e
}

// position is where a value stands.
type position struct {
	source       string
	line, column int
}

// positions are by key path.
type positions map[string]position

// of is the position of the key or, where it is not there, of what should hold it.
func (p positions) of(key string) position {
	for key != "" {
		if at, ok := p[key]; ok {
			return at
		}
		key = key[:max(strings.LastIndexAny(key, ".["), 0)]
	}
	return p[""]
}

// Place is where the value of a key path such as acl[2] was read, as file:line:column or the environment variable's name.
func (c *Config) Place(key string) string {
	at := c.at.of(key)
	if at.line == 0 {
		return at.source
	}
	return fmt.Sprintf("%s:%d:%d", at.source, at.line, at.column)
}

// forget drops the positions of a list's elements, for when another list takes its place.
func (p positions) forget(list string) {
	for key := range p {
		if strings.HasPrefix(key, list+"[") {
			delete(p, key)
		}
	}
}

// suggest is ` (did you mean "x"?)` for the known word nearest to word, or "" if none is near.
func suggest(word string, known []string) string {
	best, distance := "", max(len(word)/3, 1)+1
	for _, k := range known {
		if d := editDistance(strings.ToLower(word), strings.ToLower(k)); d < distance {
			best, distance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// editDistance counts the insertions, deletions, replacements and swaps of neighbours between two words.
func editDistance(a, b string) int {
	const long = 64 // no key is longer; a typing error of a megabyte gets no suggestion
	if len(a) > long || len(b) > long {
		return long
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
