package auth_test

import (
	"testing"

	"go.uber.org/goleak"
)

// Fetching keys and asking backends leaves nothing behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
