// Package users is the file of user names and password hashes behind auth.mode: file.
//
// The file is a YAML mapping, one user a line:
//
//	alice: $argon2id$v=19$m=19456,t=2,p=1$…$…
//	bob: $2b$10$…
//
// The package reads and checks it, edits it without losing comments, makes hashes and verifies them. It knows
// neither MQTT nor the broker. A Set is immutable once parsed, so any number of goroutines may read it; the
// functions that edit a file hold a lock on its folder, so that two commands at once cannot lose a change.
// No error ever quotes a hash or a password.
package users

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

var (
	// ErrExists: the user to add is in the file already.
	ErrExists = errors.New("user exists")
	// ErrNotFound: the user is not in the file.
	ErrNotFound = errors.New("no such user")
	// ErrName: the name breaks the rule of ValidName.
	ErrName = errors.New("not a user name: 1 to 64 of A-Z a-z 0-9 . _ @ -, beginning with a letter or digit")
)

// MaxName is the longest user name in bytes.
const MaxName = 64

// ValidName reports whether name may name a user: [A-Za-z0-9][A-Za-z0-9._@-]{0,63}.
func ValidName(name string) bool {
	if name == "" || len(name) > MaxName {
		return false
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '@' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// Set is the content of a users file. The zero value has no users.
type Set struct {
	hashes map[string]string
	names  []string // sorted
}

// Load reads the users file at path.
func Load(path string) (*Set, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read users file: %w", err)
	}
	return Parse(path, data)
}

// Parse checks the text of a users file; file names it in errors. All faults are reported at once, a line each,
// as "file:line:column: user: fault".
func Parse(file string, data []byte) (*Set, error) {
	_, root, err := parseNode(file, data)
	if err != nil {
		return nil, err
	}
	set := &Set{hashes: make(map[string]string, len(root.Content)/2)}
	var faults []error
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		if fault := entryFault(set, key, value); fault != nil {
			faults = append(faults, fmt.Errorf("%s:%d:%d: %w", file, key.Line, key.Column, fault))
			continue
		}
		set.hashes[key.Value] = value.Value
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	set.names = slices.Sorted(maps.Keys(set.hashes))
	return set, nil
}

// entryFault is what is wrong with one line of the file, or nil.
func entryFault(set *Set, key, value *yaml.Node) error {
	if key.Kind != yaml.ScalarNode || !ValidName(key.Value) {
		return ErrName
	}
	if _, twice := set.hashes[key.Value]; twice {
		return fmt.Errorf("%s: named twice", key.Value)
	}
	if value.Kind != yaml.ScalarNode {
		return fmt.Errorf("%s: expected a password hash", key.Value)
	}
	if err := CheckHash(value.Value); err != nil {
		return fmt.Errorf("%s: %w", key.Value, err)
	}
	return nil
}

// parseNode is the document and the mapping at its root; a file without content has an empty mapping.
func parseNode(file string, data []byte) (doc, root *yaml.Node, err error) {
	// All documents, since a file without any (empty, or only comments) is in order.
	var docs []yaml.Node
	if err := yaml.Load(data, &docs, yaml.WithAllDocuments()); err != nil {
		// The parser's own text may quote what it stumbled over, which may be half a hash: it is not passed on.
		const fault = `not YAML, expected lines such as "alice: $argon2id$…"`
		var at *yaml.LoadError
		if errors.As(err, &at) && at.Mark.Line > 0 {
			return nil, nil, fmt.Errorf("%s:%d:%d: %s", file, at.Mark.Line, at.Mark.Column, fault)
		}
		return nil, nil, fmt.Errorf("%s: %s", file, fault)
	}
	if len(docs) > 1 {
		return nil, nil, fmt.Errorf("%s: found %d YAML documents, expected one", file, len(docs))
	}
	empty := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	if len(docs) == 0 || len(docs[0].Content) == 0 {
		return &yaml.Node{Kind: yaml.DocumentNode, HeadComment: comments(data), Content: []*yaml.Node{empty}}, empty, nil
	}
	doc = &docs[0]
	root = doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		doc.Content[0], root = empty, empty
	}
	if root.Kind != yaml.MappingNode {
		return nil, nil, fmt.Errorf(`%s:%d:%d: expected lines such as "alice: $argon2id$…"`, file, root.Line, root.Column)
	}
	return doc, root, nil
}

// comments is the text of a file that holds nothing but comments and blank lines.
func comments(data []byte) string {
	var lines []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

// Hash is the user's password hash; ok is false for an unknown user.
func (s *Set) Hash(user string) (hash string, ok bool) {
	hash, ok = s.hashes[user]
	return hash, ok
}

// Names are the users in alphabetical order. The caller must not change the slice.
func (s *Set) Names() []string { return s.names }

// Len is the number of users.
func (s *Set) Len() int { return len(s.names) }
