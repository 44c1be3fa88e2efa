package pebble

import (
	"context"
	"fmt"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/mqim/mqim/store"
)

// noticeTTL is how long notices are kept where inbox entries are kept for ever.
const noticeTTL = 30 * 24 * time.Hour

// notices stores notices; the same one twice is one.
func (w *writer) notices(list []store.Notice) error {
	for i := range list {
		n := &list[i]
		if err := checkName("addressee of a notice", n.To); err != nil {
			return err
		}
		if n.TS < 0 {
			return fmt.Errorf("store.pebble: time of a notice is %d", n.TS)
		}
		w.key = keyNum(w.key[:0], tabNotice, n.To, uint64(n.TS))
		w.key = appendUint64(w.key, xxhash.Sum64(n.Payload))
		if err := w.pb.Set(w.key, n.Payload, nil); err != nil {
			return err
		}
	}
	return nil
}

// noticeTime is the TS of a notice with this key.
func noticeTime(key []byte) int64 { return int64(tail(key[:len(key)-8])) }

// Notices lists notices in the order of their time. One may show a moment before it is durable, as what it tells of may.
// What a page goes on after is the end of the last key.
func (s *Store) Notices(
	ctx context.Context, to string, since int64, after string, limit int,
) (list []store.Notice, next string, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, "", err
	}
	defer s.life.RUnlock()
	it, err := s.names(tabNotice, to)
	if err != nil {
		return nil, "", err
	}
	defer it.Close()
	seek := keyNum(nil, tabNotice, to, uint64(max(since, 0)))
	if after != "" {
		seek = append(append(keyName(nil, tabNotice, to), after...), 0)
	}
	for ok := it.SeekGE(seek); ok; ok = it.Next() {
		if len(list) >= limit {
			return list, next, nil
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, "", s.wrap(err, "notices to %q", to)
		}
		key := it.Key()
		if len(key) != len(to)+2+16 {
			return nil, "", s.corrupt("key %q", key)
		}
		list = append(list, store.Notice{To: to, TS: noticeTime(key), Payload: append([]byte(nil), v...)})
		next = string(key[len(key)-16:])
	}
	return list, "", s.wrap(it.Error(), "notices to %q", to)
}

// dropNotices removes notices that are as old as inbox entries may be.
func (s *Store) dropNotices(pos []byte, now int64) (next []byte, err error) {
	ttl := s.opts.Retention.InboxTTL
	if ttl == 0 {
		ttl = noticeTTL
	}
	cutoff := now - ttl.Milliseconds()
	keys, next, err := s.scan(tabNotice, pos, func(key, _ []byte) bool {
		return len(key) > 16 && noticeTime(key) < cutoff
	})
	if err != nil || len(keys) == 0 {
		return next, err
	}
	return next, s.remove("old notices", keys)
}
