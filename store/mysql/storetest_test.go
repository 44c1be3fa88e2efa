package mysql_test

import (
	"testing"

	"github.com/mqim/mqim/store"
	"github.com/mqim/mqim/store/mysql"
	"github.com/mqim/mqim/store/storetest"
)

func TestStore(t *testing.T) {
	dsns := map[string]string{} // by folder
	storetest.Run(t, func(t *testing.T, dir string, r store.Retention) store.Store {
		if dsns[dir] == "" {
			dsns[dir] = database(t, server)
		}
		return open(t, mysql.Options{DSN: dsns[dir], Retention: r})
	})
}
