package users

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"go.yaml.in/yaml/v4"
)

// Commands at the same time must not lose each other's changes. Without hashing in between, edits collide often.
func TestEditLocks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users.yaml")
	const writers, each = 4, 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				err := edit(path, true, func(root *yaml.Node) error {
					key := &yaml.Node{Kind: yaml.ScalarNode, Value: fmt.Sprintf("u%d-%d", w, i)}
					root.Content = append(root.Content, key, &yaml.Node{Kind: yaml.ScalarNode, Value: cheapHash})
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	set, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := set.Len(), writers*each; got != want {
		t.Errorf("users: got %d, want %d", got, want)
	}
}

// cheapHash is a well-formed hash of no password.
const cheapHash = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$MDEyMzQ1Njc4OWFiY2RlZg"
