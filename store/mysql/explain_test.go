package mysql_test

import (
	"database/sql"
	"slices"
	"strings"
	"testing"

	driver "github.com/go-sql-driver/mysql"

	"github.com/mqim/mqim/store/mysql"
)

// fill puts 20,000 rows into each table: 97 names with some 200 rows of each where the key has more than one part.
var fill = map[string]string{
	"convs":         "conv, cseq, last_id, from_a, from_b SELECT CONCAT('n', seq), seq, seq, 0, 0",
	"writers":       "id, batch, last_id, seen SELECT CONCAT('n', seq), 1, seq, seq",
	"chunks":        "conv, first, n, max_ts, cum_a, cum_b, in_a, in_b, body SELECT CONCAT('n', seq MOD 97), seq, 1, 1, 1, 1, 1, 1, REPEAT('x', 200)",
	"recalls":       "conv, cseq, sender SELECT CONCAT('n', seq MOD 97), seq, 'a'",
	"inboxes":       "user, seq, max_ts, trimmed SELECT CONCAT('n', seq), 1, 1, 0",
	"entries":       "user, first, n, max_ts, min_ts, runs SELECT CONCAT('n', seq MOD 97), seq, 1, 1, 1, 'runs'",
	"cids":          "k, hash, conv, cseq, id, ts SELECT CONCAT('n', seq), 1, 'c', 1, 1, 1",
	"views":         "conv, user, read_to, delivered, deleted, own SELECT CONCAT('n', seq MOD 97), CONCAT('n', seq), 1, 1, 0, 0",
	"owns":          "conv, user, first, total, rest SELECT CONCAT('n', seq MOD 97), CONCAT('n', seq MOD 13), seq, 1, ''",
	"deletions":     "user, conv, cseq, own SELECT CONCAT('n', seq MOD 97), CONCAT('n', seq MOD 13), seq, 0",
	"directs":       "user, conv, last_id SELECT CONCAT('n', seq MOD 97), CONCAT('n', seq), seq",
	"groups":        "id, version, name, notice, is_open, history_all, receipts, owner, created, members, large_from, ended SELECT CONCAT('n', seq), 1, '', '', 0, 0, 0, '', 1, 1, 0, 0",
	"members":       "grp, user, present, role, joined, muted_until, spans SELECT CONCAT('n', seq MOD 97), CONCAT('n', seq), seq MOD 2, 1, 1, 0, 'x'",
	"memberships":   "user, conv, present, large, left_id SELECT CONCAT('n', seq MOD 97), CONCAT('n', seq), 1, 0, 0",
	"blocks":        "user, peer SELECT CONCAT('n', seq MOD 97), CONCAT('n', seq)",
	"users":         "user, cursor_seq, last_seen SELECT CONCAT('n', seq), 1, 1",
	"devices":       "user, device, cursor_seq, last_seen, expires, profile SELECT CONCAT('n', seq MOD 97), CONCAT('n', seq), 1, 1, 0, ''",
	"cursors":       "user, device, conv, cseq SELECT CONCAT('n', seq MOD 97), CONCAT('n', seq MOD 13), CONCAT('n', seq), 1",
	"notices":       "name, ts, hash, payload SELECT CONCAT('n', seq MOD 97), seq, seq, 'x'",
	"nodes":         "id, seen SELECT CONCAT('n', seq), seq",
	"sessions":      "client, user, expiry, since, state, node, queue, head, passed SELECT CONCAT('n', seq), 'u', 1, 1, 0, '', CONCAT('n', seq MOD 97, 'q', seq), 1, 1",
	"subscriptions": "client, filter, options SELECT CONCAT('n', seq MOD 97), CONCAT('n', seq), ''",
	"filters":       "path, share, client, options SELECT CONCAT('n', seq MOD 97), CONCAT('n', seq MOD 3), CONCAT('n', seq), ''",
	"pubs":          "pub, body SELECT CONCAT('n', seq), 'x'",
	"pub_refs":      "pub, queue SELECT CONCAT('n', seq MOD 97), CONCAT('n', seq)",
	"queues":        "queue, first, n, runs SELECT CONCAT('n', seq MOD 97), seq, 1, 'x'",
	"outbound":      "queue, seq, packet_id, received, done SELECT CONCAT('n', seq MOD 97), seq, 1, 0, 0",
	"inbound":       "queue, packet_id SELECT CONCAT('n', seq MOD 97), seq",
	"retained":      "path, expires, body SELECT CONCAT('n', seq), 0, 'x'",
	"counts":        "name, value SELECT CONCAT('n', seq), 1",
	"wills":         "client, body SELECT CONCAT('n', seq), 'x'",
	"claims":        "client, epoch, claimed SELECT CONCAT('n', seq), 1, seq",
	"numbers":       "number, node, name SELECT seq, CONCAT('n', seq), 'x'",
	"meta":          "name, value SELECT CONCAT('n', seq), 'x'",
}

// TestPlans: no statement reads a table or an index from end to end, sorts, or locks more than what it names.
func TestPlans(t *testing.T) {
	dsn := database(t, server)
	open(t, mysql.Options{DSN: dsn})
	c, err := driver.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	c.Collation, c.InterpolateParams = "binary", true
	connector, err := driver.NewConnector(c)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	for table, rows := range fill {
		columns, values, _ := strings.Cut(rows, " SELECT ")
		for _, q := range []string{"INSERT INTO mqim_" + table + " (" + columns + ") SELECT " + values + " FROM seq_1_to_20000", "ANALYZE TABLE mqim_" + table} {
			if _, err := db.Exec(q); err != nil {
				t.Fatalf("%s: %v", q, err)
			}
		}
	}
	explained := 0
	for _, x := range mysql.Statements() {
		verb, _, _ := strings.Cut(x.Text, " ")
		if !slices.Contains([]string{"SELECT", "UPDATE", "DELETE"}, verb) || !strings.Contains(x.Text, "mqim_") {
			continue // of an INSERT there is nothing to be planned
		}
		explained++
		for _, row := range explain(t, db, x) {
			kind, key, extra := row["type"], row["key"], row["Extra"]
			if strings.Contains(extra, "optimized away") || strings.Contains(extra, "no matching row") || strings.Contains(extra, "Impossible WHERE") {
				continue
			}
			if key == "" || kind == "ALL" || kind == "index" || kind == "" {
				t.Errorf("%s: access %q by key %q of %s (%s)", x.Text, kind, key, row["table"], extra)
			}
			if strings.Contains(extra, "filesort") || strings.Contains(extra, "temporary") {
				t.Errorf("%s: %s", x.Text, extra)
			}
			locks := verb != "SELECT" || strings.Contains(x.Text, "FOR UPDATE")
			if n := row["rows"]; locks && len(n) > 3 {
				t.Errorf("%s: locks about %s rows", x.Text, n)
			}
		}
	}
	if explained < 40 {
		t.Errorf("only %d statements were looked at", explained)
	}
}

// explain returns the rows of a plan by column.
func explain(t *testing.T, db *sql.DB, x mysql.Statement) (out []map[string]string) {
	t.Helper()
	rows, err := db.Query("EXPLAIN "+x.Text, x.Args...)
	if err != nil {
		t.Fatalf("%s: %v", x.Text, err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		values := make([]sql.NullString, len(columns))
		places := make([]any, len(columns))
		for i := range values {
			places[i] = &values[i]
		}
		if err := rows.Scan(places...); err != nil {
			t.Fatal(err)
		}
		row := map[string]string{}
		for i, c := range columns {
			row[c] = values[i].String
		}
		out = append(out, row)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}
