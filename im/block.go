package im

import "context"

// blocked reports whether user has blocked peer.
func (e *Engine) blocked(ctx context.Context, user, peer string) (bool, error) {
	set, err := e.blocks.get(ctx, user)
	return set[peer], err
}

// readBlocks reads whom user has blocked; nil: nobody.
func (e *Engine) readBlocks(ctx context.Context, user string) (map[string]bool, error) {
	list, err := e.store.Blocks(ctx, user)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	set := make(map[string]bool, len(list))
	for _, p := range list {
		set[p] = true
	}
	return set, nil
}
