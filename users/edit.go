package users

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v4"
)

// fileMode: the hashes are for the broker and the administrator alone.
const fileMode fs.FileMode = 0o600

// Add puts a new user into the file at path, which is made if it does not exist. It returns ErrExists for a user
// that is there already.
func Add(path, user string, password []byte) error {
	hash, err := hashFor(user, password)
	if err != nil {
		return err
	}
	return edit(path, true, func(root *yaml.Node) error {
		if find(root, user) >= 0 {
			return fmt.Errorf("%s: %w", user, ErrExists)
		}
		// A name such as 123 or true must stay a text.
		key := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: user}
		root.Content = append(root.Content, key, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: hash})
		return nil
	})
}

// SetPassword changes a user's password. It returns ErrNotFound for a user that is not in the file.
func SetPassword(path, user string, password []byte) error {
	hash, err := hashFor(user, password)
	if err != nil {
		return err
	}
	return edit(path, false, func(root *yaml.Node) error {
		i := find(root, user)
		if i < 0 {
			return fmt.Errorf("%s: %w", user, ErrNotFound)
		}
		value := root.Content[i+1]
		value.Tag, value.Value, value.Style = "!!str", hash, 0
		return nil
	})
}

// Remove deletes a user with the comments on its line. It returns ErrNotFound for a user that is not in the file.
func Remove(path, user string) error {
	return edit(path, false, func(root *yaml.Node) error {
		i := find(root, user)
		if i < 0 {
			return fmt.Errorf("%s: %w", user, ErrNotFound)
		}
		root.Content = append(root.Content[:i:i], root.Content[i+2:]...)
		return nil
	})
}

func hashFor(user string, password []byte) (string, error) {
	if !ValidName(user) {
		return "", ErrName
	}
	return HashPassword(password)
}

// find is the index of the user's key in the mapping, or -1.
func find(root *yaml.Node, user string) int {
	for i := 0; i+1 < len(root.Content); i += 2 {
		if root.Content[i].Value == user {
			return i
		}
	}
	return -1
}

// edit reads the file, lets change alter its mapping, and puts the result in its place in one step. A file with a
// fault is left alone. With create a missing file counts as an empty one.
func edit(path string, create bool, change func(root *yaml.Node) error) error {
	// A symbolic link stays one: what it points to is replaced.
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	unlock, err := lock(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("lock folder of users file: %w", err)
	}
	defer unlock()

	data, err := os.ReadFile(path)
	if err != nil && !(create && errors.Is(err, fs.ErrNotExist)) {
		return fmt.Errorf("read users file: %w", err)
	}
	if _, err := Parse(path, data); err != nil {
		return err
	}
	doc, root, err := parseNode(path, data)
	if err != nil {
		return err
	}
	if err := change(root); err != nil {
		return err
	}
	out, err := dump(doc, root)
	if err != nil {
		return fmt.Errorf("encode users file: %w", err)
	}
	return replace(path, out)
}

// dump is the text of the document. An empty mapping is written as comments alone, not as "{}".
func dump(doc, root *yaml.Node) ([]byte, error) {
	if len(root.Content) == 0 {
		var out []byte
		for _, comment := range []string{doc.HeadComment, root.HeadComment, root.FootComment, doc.FootComment} {
			if comment != "" {
				out = append(out, comment+"\n"...)
			}
		}
		return out, nil
	}
	root.Style = 0 // one user a line, also where the file was written as {a: …, b: …}
	return yaml.Dump(doc, yaml.WithLineWidth(-1))
}

// replace writes data beside path and renames it into place: a reader sees the old file or the new one, also after
// power loss.
func replace(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, filepath.Base(path)+".*.tmp")
	if err != nil {
		return fmt.Errorf("write users file: %w", err)
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
			err = fmt.Errorf("write users file: %w", err)
		}
	}()
	if err := tmp.Chmod(fileMode); err != nil {
		return err
	}
	// Run by root, the file must stay readable for the account that the broker runs as.
	if err := keepOwner(tmp, path); err != nil {
		return err
	}
	if _, err := tmp.Write(data); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}
