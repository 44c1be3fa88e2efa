package tests

import (
	"bytes"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqim/mqim/tests/mariadb"
	"github.com/mqim/mqim/tests/mqtest"
)

// TestMySQL: the server on MariaDB does what it does on its own store; kill -9 of either loses nothing that was
// acknowledged, a second server on the database is refused, and
// one that has lost it to another ends.
func TestMySQL(t *testing.T) {
	t.Parallel()
	db := mariadb.Start(t)
	db.Exec("GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX, DROP ON mqim.* TO mqim@'%'") // as operations.md has it
	config := func(node string) mqtest.Config {
		return mqtest.Config{
			"node": "{name: " + node + "}", "store": fmt.Sprintf("{driver: mysql, mysql: {dsn: %q}}", db.DSN()),
			"limits": "{sends_per_second: 0}",
		}
	}
	s := mqtest.New(t, config("one"))
	for i, want := range []string{"applied 00001_log\n", "nothing to do"} {
		out, err := run(s, "migrate")
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("migrate, run %d: got %q, %v, want %q", i+1, out, err, want)
		}
	}
	db.Exec("REVOKE CREATE, ALTER, INDEX, DROP ON mqim.* FROM mqim@'%'")
	s.Run()
	x := &onMySQL{s: s, db: db, alice: name("alice"), bob: name("bob"), group: name("team"), topic: name("log")}
	x.away(t)

	out, err := run(mqtest.New(t, config("two")), "serve")
	if err == nil || !strings.Contains(out, "in use by another process: node one, process ") || strings.Contains(out, mqtest.Secret) {
		t.Errorf("a second server: got %q, %v, want it refused for node one", out, err)
	}

	s.Kill()
	s.Run() // does not wait for the lock of the process that was killed
	x.back(t)
	x.databaseDies(t)
	equal(t, "commits are counted", s.Metric("mqim_store_commits_total") > 0, true)
	equal(t, "messages in commits are counted", s.Metric("mqim_store_committed_messages_total") > 0, true)
	equal(t, "connections are counted", s.Metric("mqim_store_connections") > 0, true)

	// Another process has begun while this one was cut off.
	db.Exec("UPDATE mqim.mqim_meta SET value = 'ff node two' WHERE name = 'owner'", "KILL USER mqim")
	if err := s.Wait(); err == nil || !strings.Contains(s.Log(), "another process has taken over the database") {
		t.Errorf("after another process has taken over: exit %v, want a failure and its reason in the log", err)
	}
}

// TestStopWithoutMySQL: a database that does not answer keeps the server from stopping no longer than it may take.
func TestStopWithoutMySQL(t *testing.T) {
	t.Parallel()
	db := mariadb.Start(t)
	db.Exec("GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX, DROP ON mqim.* TO mqim@'%'")
	s := mqtest.Start(t, mqtest.Config{
		"node": "{shutdown_timeout: 1s}", "store": fmt.Sprintf("{driver: mysql, mysql: {dsn: %q}}", db.DSN()),
	})
	for i := range 4 {
		c := mqtest.Dial(t, s.Addr("mqtt"), mqtest.Options{Version: byte(4 + i%2), User: name("alice"), ID: name("stop"), Persistent: true})
		c.Subscribe("im/u/"+c.User+"/+", "stop/#")
	}
	db.Hang()
	defer db.Resume()
	begun := time.Now()
	s.Signal(syscall.SIGTERM)
	err := s.Wait()
	// shutdown_timeout, what there is after it, and a busy machine; the store's own time-outs add up to more than twice that.
	if d := time.Since(begun); d > 10*time.Second {
		t.Errorf("it took %s", d)
	}
	if err == nil || !strings.Contains(s.Log(), "stopped, but not cleanly") {
		t.Errorf("exit %v, want that it did not stop cleanly", err)
	}
}

// TestMySQLReplica: the server reads history from a replica, and serves on without it.
func TestMySQLReplica(t *testing.T) {
	t.Parallel()
	db := mariadb.Start(t, "--log-bin", "--server-id=1", "--binlog-format=ROW", "--sync-binlog=1")
	replica := mariadb.StartReplica(t, db)
	db.Exec("GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX, DROP ON mqim.* TO mqim@'%'")
	s := mqtest.New(t, mqtest.Config{
		"store": fmt.Sprintf("{driver: mysql, mysql: {dsn: %q, replicas: [%q]}}", db.DSN(), replica.DSN()),
	})
	s.Run()
	s.WaitLog("reading from a replica")
	alice, bob := name("alice"), name("bob")
	a := chat(t, s, 5, alice, "1")
	read := func() {
		t.Helper()
		var page struct{ Messages []mqtest.Message }
		a.OK("history", mqtest.Map{"conv": "u/" + bob}, &page)
		if len(page.Messages) != 1 || page.Messages[0].Text() != "one" {
			t.Fatalf("history: got %v", page.Messages)
		}
	}
	a.Send(bob, "one")
	for end := time.Now().Add(mqtest.Patience); s.Metric("mqim_store_replica_reads_total") == 0; read() {
		if time.Now().After(end) {
			t.Fatal("nothing is read from the replica")
		}
	}
	replica.Stop()
	for end := time.Now().Add(mqtest.Patience); s.Metric("mqim_store_replica_up") == 1; read() {
		if time.Now().After(end) {
			t.Fatal("the dead replica is not left out")
		}
	}
	read()
	equal(t, "reads of the database are counted", s.Metric("mqim_store_replica_passed_total") > 0, true)
	if strings.Contains(s.Log(), mariadb.Password) {
		t.Error("the log has the password in it")
	}
}

// run runs a command of the server's with its configuration, to its end.
func run(s *mqtest.Server, command ...string) (string, error) {
	var out bytes.Buffer
	cmd := s.Command(append(command, "--config", filepath.Join(s.Dir, "config.yaml"))...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	late := time.AfterFunc(mqtest.Patience, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer late.Stop()
	err := cmd.Wait()
	return out.String(), err
}

type onMySQL struct {
	s                        *mqtest.Server
	db                       *mariadb.Server
	alice, bob, group, topic string
}

func (x *onMySQL) subscriber(t *testing.T) *mqtest.Client {
	t.Helper()
	c := mqtest.Dial(t, x.s.Addr("mqtt"), mqtest.Options{Version: 5, User: "sub", ID: "sub", Persistent: true})
	connected(t, c)
	return c
}

// away talks, and leaves messages for who is away: in an inbox, a group and the queue of a session.
func (x *onMySQL) away(t *testing.T) {
	a, b := chat(t, x.s, 5, x.alice, "1"), session(t, x.s, 4, x.bob, "1")
	subscribed(t, b, "im/u/"+x.bob+"/+")
	a.Send(x.bob, "one")
	m := b.Msg()
	equal(t, "message", m.Text(), "one")
	b.Ack(m.Seq)
	a.OK("group.create", mqtest.Map{"group": x.group, "name": "Team", "members": []string{x.bob}}, nil)
	m = b.Msg()
	equal(t, "type", m.Type, "sys.group")
	b.Ack(m.Seq)
	b.Disconnect()
	sub := x.subscriber(t)
	subscribed(t, sub, x.topic)
	sub.Disconnect()

	a.Send(x.bob, "two")
	equal(t, "to the group", a.PublishAck("im/g/"+x.group, "three").ReasonCode, 0)
	equal(t, "to the topic", a.PublishAck(x.topic, "four").ReasonCode, 0)
	// A session that is connected when the server dies.
	subscribed(t, x.subscriber(t), x.topic)
}

// back finds it all after the server was killed.
func (x *onMySQL) back(t *testing.T) {
	b := session(t, x.s, 4, x.bob, "1")
	if !b.Connack.SessionPresent {
		t.Error("bob: no session")
	}
	subscribed(t, b, "im/u/"+x.bob+"/+")
	for _, want := range []string{"two", "three"} {
		m := b.Msg()
		equal(t, "message", m.Text(), want)
		b.Ack(m.Seq)
	}
	b.Disconnect()
	sub := x.subscriber(t)
	if !sub.Connack.SessionPresent {
		t.Error("sub: no session")
	}
	equal(t, "to the topic, again", dial(t, x.s, 5, x.alice, "2").PublishAck(x.topic, "five").ReasonCode, 0)
	for string(sub.Next(x.topic).Payload) != "five" { // four came before the server died, or comes again
	}
	sub.Disconnect()
}

// databaseDies: kill -9 of the database under load. Who sends is told; what was acknowledged is delivered; service goes on.
func (x *onMySQL) databaseDies(t *testing.T) {
	a, b := chat(t, x.s, 5, x.alice, "1"), chat(t, x.s, 5, x.bob, "2")
	const first = 10000 // packet id
	acked := func() (list []string, refused int) {
		for _, pk := range a.Got() {
			if i := int(pk.PacketID) - first; pk.FixedHeader.Type == packets.Puback && i >= 0 {
				if pk.ReasonCode == 0 {
					list = append(list, fmt.Sprint("burst ", i))
				} else {
					refused++
				}
			}
		}
		return list, refused
	}
	// Messages are on their way all the time while the database is killed.
	n, killing, stopped := 0, false, make(chan struct{})
	mqtest.Eventually(t, "the database to be killed", func() bool {
		list, refused := acked()
		for n-len(list)-refused < 800 && n < 40000 { // fewer than may be unanswered
			a.Publish("im/u/"+x.bob, fmt.Sprint("burst ", n), mqtest.PacketID(uint16(first+n)))
			n++
		}
		if len(list) > 100 && !killing {
			killing = true
			go func() { x.db.Stop(); close(stopped) }()
		}
		select {
		case <-stopped:
			return true
		default:
			return false
		}
	})
	mqtest.Eventually(t, "/readyz to answer 503", func() bool { return x.s.Get("/readyz") == http.StatusServiceUnavailable })
	equal(t, "mqim_store_away", x.s.Metric("mqim_store_away"), 1.0)
	late := a.Publish("im/u/"+x.bob, "while it is away")
	x.db.Run()
	mqtest.Eventually(t, "/readyz to answer 200", func() bool { return x.s.Get("/readyz") == http.StatusOK })
	a.CheckReason("while the database was away", a.Acked(late), "unavailable")

	a.Send(x.bob, "after") // what came before it is answered before it, or never
	list, refused := acked()
	t.Logf("%d of %d acknowledged, %d refused", len(list), n, refused)
	came := map[string]int{}
	for text := ""; text != "after"; {
		m := b.Msg()
		text = m.Text()
		came[text]++
		b.Ack(m.Seq)
	}
	for _, text := range list {
		if came[text] == 0 {
			t.Errorf("%q was acknowledged and did not come", text)
		}
	}
	if came["while it is away"] > 0 {
		t.Error("what was refused came")
	}
}
