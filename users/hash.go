package users

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// The cost of a new hash: the first choice of OWASP's password storage cheat sheet.
const (
	argonMemory  = 19456 // KiB
	argonTime    = 2
	argonThreads = 1
	argonSalt    = 16 // bytes
	argonKey     = 32 // bytes
)

// What a hash in the file may ask for. Somebody's typing error must not let one login take minutes or all memory.
const (
	maxArgonMemory = 1 << 20 // KiB
	maxArgonTime   = 64
	maxArgonBytes  = 64
	maxBcryptCost  = 18
)

// MaxPassword is the longest password that HashPassword takes, in bytes.
const MaxPassword = 1024

var (
	// ErrHash: a text is neither a bcrypt nor an argon2id hash that this version can verify.
	ErrHash = errors.New("expected a bcrypt ($2b$…) or argon2id ($argon2id$v=19$m=…,t=…,p=…$salt$hash) hash")
	// ErrPassword: a new password is empty or too long.
	ErrPassword = fmt.Errorf("a password has 1 to %d bytes", MaxPassword)
)

// argonHash is a PHC string taken apart.
type argonHash struct {
	memory, time uint32
	threads      uint8
	salt, key    []byte
}

// HashPassword makes the argon2id hash of a password with a fresh salt. It takes about 20 ms and 19 MiB.
func HashPassword(password []byte) (string, error) {
	if len(password) == 0 || len(password) > MaxPassword {
		return "", ErrPassword
	}
	salt := make([]byte, argonSalt)
	rand.Read(salt) // never fails: the process ends instead
	key := argon2.IDKey(password, salt, argonTime, argonMemory, argonThreads, argonKey)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonTime, argonThreads,
		b64.EncodeToString(salt), b64.EncodeToString(key)), nil
}

// CheckHash reports whether Verify can work with hash. The error is ErrHash or says which cost is out of bounds.
func CheckHash(hash string) error {
	if strings.HasPrefix(hash, "$argon2id$") {
		_, err := parseArgon(hash)
		return err
	}
	cost, err := bcrypt.Cost([]byte(hash))
	if err != nil || len(hash) != 60 {
		return ErrHash
	}
	if cost > maxBcryptCost {
		return fmt.Errorf("bcrypt cost: found %d, expected at most %d", cost, maxBcryptCost)
	}
	return nil
}

// Verify reports whether password is the one that hash was made of. It takes as long for a wrong one as for the
// right one, and is false at once for what CheckHash refuses. It is heavy by design: callers bound how many run at a time.
func Verify(hash string, password []byte) bool {
	if !strings.HasPrefix(hash, "$argon2id$") {
		return CheckHash(hash) == nil && bcrypt.CompareHashAndPassword([]byte(hash), password) == nil
	}
	h, err := parseArgon(hash)
	if err != nil {
		return false
	}
	got := argon2.IDKey(password, h.salt, h.time, h.memory, h.threads, uint32(len(h.key)))
	return subtle.ConstantTimeCompare(got, h.key) == 1
}

func parseArgon(hash string) (argonHash, error) {
	var h argonHash
	parts := strings.Split(hash, "$") // "", argon2id, v=19, m=…,t=…,p=…, salt, key
	if len(parts) != 6 || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return h, ErrHash
	}
	var rest string
	if n, _ := fmt.Sscanf(parts[3]+" .", "m=%d,t=%d,p=%d %s", &h.memory, &h.time, &h.threads, &rest); n != 4 || rest != "." {
		return h, ErrHash
	}
	var err error
	if h.salt, err = base64.RawStdEncoding.Strict().DecodeString(parts[4]); err != nil {
		return h, ErrHash
	}
	if h.key, err = base64.RawStdEncoding.Strict().DecodeString(parts[5]); err != nil {
		return h, ErrHash
	}
	switch {
	case h.threads < 1 || h.memory < 8*uint32(h.threads) || h.memory > maxArgonMemory:
		return h, fmt.Errorf("argon2id m and p: found m=%d,p=%d, expected m (KiB) from 8 times p to %d", h.memory, h.threads, maxArgonMemory)
	case h.time < 1 || h.time > maxArgonTime:
		return h, fmt.Errorf("argon2id t: found %d, expected 1 to %d", h.time, maxArgonTime)
	case len(h.salt) < 8 || len(h.salt) > maxArgonBytes || len(h.key) < 16 || len(h.key) > maxArgonBytes:
		return h, ErrHash
	}
	return h, nil
}
