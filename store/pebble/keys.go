package pebble

import (
	"encoding/binary"
	"math"

	"github.com/mqim/mqim/store"
)

// The first byte of a key names its table; doc.go has the list.
const (
	tabLog         = 'l'
	tabChunk       = 'c'
	tabRecall      = 'w'
	tabInbox       = 'i'
	tabFloor       = 'h'
	tabCid         = 'k'
	tabRecent      = 'r'
	tabMembership  = 'g'
	tabView        = 'v'
	tabDeleted     = 'x'
	tabBlock       = 'b'
	tabDevice      = 'd'
	tabUser        = 'u'
	tabMeta        = 'm'
	tabGroupRecord = 'G'
	tabMember      = 'M'
	tabFormer      = 'F'
	tabCursor      = 'z'
	tabOwn         = 'O'
	tabNotice      = 'N'
	tabClaim       = 'E'

	tabPubs     = 'p' // ordinary topics: see the second list
	tabPubRef   = 'f'
	tabSession  = 's'
	tabSub      = 'n'
	tabFilter   = 't'
	tabQueue    = 'q'
	tabPassed   = 'a'
	tabOutbound = 'o'
	tabInbound  = 'j'
	tabRetained = 'e'
	tabWill     = 'y'
)

func keyLog(dst []byte, lsn uint64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, tabLog), lsn)
}

// keyName is a table and one name, closed by a zero byte: the start of all keys of that name.
func keyName(dst []byte, table byte, name string) []byte {
	dst = append(dst, table)
	dst = append(dst, name...)
	return append(dst, 0)
}

func appendUint64(dst []byte, n uint64) []byte { return binary.BigEndian.AppendUint64(dst, n) }

// keyNum is a number within a name: inbox entries, chunks, recalls, recency.
func keyNum(dst []byte, table byte, name string, n uint64) []byte {
	return binary.BigEndian.AppendUint64(keyName(dst, table, name), n)
}

// keyPair is a name within a name; the second one is open at its end.
func keyPair(dst []byte, table byte, name, second string) []byte {
	return append(keyName(dst, table, name), second...)
}

func keyFloor(dst []byte, user string) []byte { return append(append(dst, tabFloor), user...) }

func keyUser(dst []byte, user string) []byte { return append(append(dst, tabUser), user...) }

func keyGroup(dst []byte, id string) []byte { return append(append(dst, tabGroupRecord), id...) }

// keyCursors is the start of a device's cursors in large groups.
func keyCursors(dst []byte, k store.DeviceKey) []byte {
	return append(keyPair(dst, tabCursor, k.User, k.Device), 0)
}

func keyCursor(dst []byte, k store.DeviceKey, conv string) []byte {
	return append(keyCursors(dst, k), conv...)
}

// keyView has the group before the user, so that the watermarks of a group's members lie together.
func keyView(dst []byte, user string, conv store.Conv) []byte {
	if _, group := conv.Group(); group {
		return keyPair(dst, tabView, string(conv), user)
	}
	return keyPair(dst, tabView, user, string(conv))
}

func keyMeta(name string) []byte { return append([]byte{tabMeta}, name...) }

// keyBucket is the start of all keys of a bucket of cids.
func keyBucket(dst []byte, bucket uint64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, tabCid), bucket)
}

// keySender is the start of a sender's keys in a bucket.
func keySender(dst []byte, bucket uint64, from string) []byte {
	return append(append(keyBucket(dst, bucket), from...), 0)
}

// keyCid has the length before the cid, so that counters that grow by a digit stay in order.
func keyCid(dst []byte, bucket uint64, from, cid string) []byte {
	dst = binary.BigEndian.AppendUint16(keySender(dst, bucket, from), cidLength(cid))
	return append(dst, cid...)
}

// cidLength is 0 for cids that begin with 0xff, which no client may send: long as they are, the engine's own must not stand
// behind all that a client counts up.
func cidLength[T string | []byte](cid T) uint16 {
	if len(cid) > 0 && cid[0] == 0xff {
		return 0
	}
	return uint16(min(len(cid), math.MaxUint16))
}

// keyDeletedConv is the start of a user's deletion marks in one conversation.
func keyDeletedConv(dst []byte, user string, conv store.Conv) []byte {
	return append(keyPair(dst, tabDeleted, user, string(conv)), 0)
}

func keyDeleted(dst []byte, user string, conv store.Conv, cseq uint64) []byte {
	return binary.BigEndian.AppendUint64(keyDeletedConv(dst, user, conv), cseq)
}

// after is the end of the range of keys that start with prefix, for a prefix closed by a zero byte.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	end[len(end)-1]++
	return end
}

// tail is the number that ends a key; every key with a number ends with it.
func tail(key []byte) uint64 { return binary.BigEndian.Uint64(key[len(key)-8:]) }
