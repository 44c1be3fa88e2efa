package im

import (
	"errors"
	"fmt"

	"github.com/mqim/mqim/store"
)

// Code is an error code of the protocol: what a client program branches on.
type Code string

// The codes; protocol.md, Commands.
const (
	BadRequest     Code = "bad_request"
	UnknownCommand Code = "unknown_command"
	TooLarge       Code = "too_large"
	Forbidden      Code = "forbidden"
	NotFound       Code = "not_found"
	NotMember      Code = "not_member"
	Blocked        Code = "blocked"
	Muted          Code = "muted"
	GroupFull      Code = "group_full"
	Exists         Code = "exists"
	Conflict       Code = "conflict"
	RateLimited    Code = "rate_limited"
	Unavailable    Code = "unavailable"
	Expired        Code = "expired"
	Internal       Code = "internal"
)

// Error is a refusal as the client sees it. Message is written for the person who debugs the client and never holds
// a body or a secret.
type Error struct {
	Code    Code
	Message string
}

func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

func errorf(c Code, format string, args ...any) *Error {
	return &Error{Code: c, Message: fmt.Sprintf(format, args...)}
}

var (
	errUnavailable = &Error{Unavailable, "the store cannot commit now, send again"}
	errInternal    = &Error{Internal, "internal error"}
)

// ErrTaken: another connection has claimed the device meanwhile; this one is over.
var ErrTaken = errors.New("another connection has taken the device")

// storeError turns what the store said into what the client is told. The cause is logged by the caller, once.
func storeError(err error) *Error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrConflict):
		return &Error{Conflict, "this cid was used for another message; the first one stands"}
	case errors.Is(err, store.ErrNotMember):
		return &Error{NotMember, "you are not a member of the group"}
	case errors.Is(err, store.ErrNotFound):
		return &Error{NotFound, "not found"}
	case errors.Is(err, store.ErrCursor):
		return &Error{BadRequest, "cursor: want what the page before ended with"}
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrClosed):
		return errUnavailable
	}
	return errInternal
}
