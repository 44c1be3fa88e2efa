package auth

import (
	"context"
	"encoding/binary"
	"sync/atomic"
	"time"

	"github.com/mqim/mqim/users"
)

// File authenticates by name and password against a users file.
type File struct {
	path      string
	set       atomic.Pointer[users.Set]
	passwords *passwords
}

// NewFile reads the users file.
func NewFile(path string) (*File, error) {
	f := &File{path: path, passwords: newPasswords()}
	return f, f.Reload()
}

// Reload reads the file again. On an error the old users stay. Connections that are up stay up.
func (f *File) Reload() error {
	set, err := users.Load(f.path)
	if err != nil {
		return err
	}
	f.set.Store(set)
	return nil
}

// Authenticate verifies the password.
func (f *File) Authenticate(ctx context.Context, cred Credentials) (string, time.Time, error) {
	if cred.Username == "" || len(cred.Password) == 0 {
		return "", time.Time{}, errMissing
	}
	set := f.set.Load()
	hash, known := set.Hash(cred.Username)
	if !known {
		hash = f.decoy(set, cred.Username)
	}
	if err := f.passwords.verify(ctx, cred.Username, hash, known, cred.Password); err != nil {
		return "", time.Time{}, err
	}
	return cred.Username, time.Time{}, nil
}

// errMissing is the answer where both name and password are needed.
var errMissing = &Refusal{"user name or password missing"}

// decoy is the hash to spend time on for an unknown user: always the same one of the file's for a name, so that
// kinds and costs are spread among unknown names as they are among the known.
func (f *File) decoy(set *users.Set, user string) string {
	names := set.Names()
	if len(names) == 0 {
		return fallbackHash
	}
	t := f.passwords.key.tag([]byte(user))
	hash, _ := set.Hash(names[binary.BigEndian.Uint64(t[:8])%uint64(len(names))])
	return hash
}
