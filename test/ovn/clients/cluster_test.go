// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/internal/ovs/ovsdb"
)

// cluster is a raft cluster of three servers.
type cluster struct {
	t       *testing.T
	members []*server
}

func serveCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t}
	for i := range 3 {
		s := &server{t: t, dir: directory(t), database: northbound}
		raft := func(dir string) string { return "unix:" + filepath.Join(dir, "raft.sock") }
		if i == 0 {
			run(t, "ovsdb-tool", "create-cluster", s.file(), northboundSchema, raft(s.dir))
		} else {
			run(t, "ovsdb-tool", "join-cluster", s.file(), northbound, raft(s.dir), raft(c.members[0].dir))
		}
		s.start()
		run(t, "ovsdb-client", "wait", s.endpoint(), northbound, "connected")
		c.members = append(c.members, s)
	}
	return c
}

func (c *cluster) endpoints() []string {
	var all []string
	for _, s := range c.members {
		all = append(all, s.endpoint())
	}
	return all
}

// role returns what the member says that it is in the cluster.
func (s *server) role() string {
	out, err := exec.Command("ovs-appctl", "-t", filepath.Join(s.dir, "ctl"), "cluster/status", northbound).Output()
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(out)) {
		if role, ok := strings.CutPrefix(line, "Role: "); ok {
			return strings.TrimSpace(role)
		}
	}
	return "unknown"
}

// counter returns what the member itself has for nb_cfg.
func (s *server) counter() int64 {
	results := s.transact(object{"op": "select", "table": "NB_Global", "where": []any{}, "columns": []any{"nb_cfg"}})
	for _, row := range results[0].(object)["rows"].([]any) {
		return int64(row.(object)["nb_cfg"].(float64))
	}
	return -1
}

// leader waits for a leader and returns it.
func (c *cluster) leader() *server {
	c.t.Helper()
	var found *server
	await(c.t, "the cluster has a leader", func() bool {
		for _, s := range c.members {
			select {
			case <-s.ended:
				continue
			default:
			}
			if s.role() == "leader" {
				found = s
				return true
			}
		}
		return false
	})
	return found
}

// inSync returns the lines of the log that tell of being in sync.
func inSync(lines []string) []string {
	return slices.DeleteFunc(lines, func(line string) bool { return !strings.Contains(line, "In sync") })
}

func TestLeaderThatDies(t *testing.T) {
	all := serveCluster(t)
	leader := all.leader()
	leader.transact(object{"op": "insert", "table": "NB_Global", "row": object{}})
	// Servers keep no more of the last transactions than the database is large.
	addresses := []any{}
	for i := range 200 {
		addresses = append(addresses, fmt.Sprintf("10.16.0.%d", i))
	}
	leader.transact(object{"op": "insert", "table": "Address_Set", "row": object{"name": "large", "addresses": set(addresses...)}})
	c := follow(t, ovsdb.Options{Endpoints: all.endpoints(), Leader: true})
	c.awaitView("it is in sync", func(v *ovsdb.View) bool { return v.Len("NB_Global") == 1 })
	// It is logged after the view is there.
	logged := func() (lines []string) {
		await(t, "it is logged that it is in sync", func() bool {
			lines = append(lines, inSync(c.logged.drain())...)
			return len(lines) > 0
		})
		return lines
	}
	logged()
	for round := range 2 {
		n, err := c.Increment(t.Context(), "NB_Global", "nb_cfg")
		if err != nil {
			t.Fatal(err)
		}
		before := c.awaitView("the increment is there", func(v *ovsdb.View) bool { return only(t, v, "NB_Global").Int("nb_cfg") == n })
		// A member that had not applied it yet when it becomes the leader
		// would send all rows.
		for _, member := range all.members {
			await(t, "all members have the increment", func() bool { return member.counter() == n })
		}
		leader.kill()
		next := all.leader()
		next.transact(object{"op": "insert", "table": "Address_Set", "row": object{"name": fmt.Sprintf("round%d", round)}})
		v := c.awaitView("what the new leader committed is there", func(v *ovsdb.View) bool { return v.Len("Address_Set") == round+2 })
		if v.Session <= before.Session {
			t.Errorf("session %d with the new leader, %d with the old", v.Session, before.Session)
		}
		if only(t, v, "NB_Global") != only(t, before, "NB_Global") {
			t.Error("a row that did not change is another one")
		}
		for _, line := range logged() {
			if !strings.Contains(line, `"resumed"=true`) {
				t.Errorf("all rows were sent again: %s", line)
			}
		}
		leader.start()
		await(t, "the old leader has joined again", func() bool { return leader.role() == "follower" }, leader.process)
		leader = next
	}
}

// TestLeaderThatStepsDown has the leader change while transactions are
// committed, and holds that the view is what the database has.
func TestLeaderThatStepsDown(t *testing.T) {
	all := serveCluster(t)
	leader := all.leader()
	leader.transact(object{"op": "insert", "table": "NB_Global", "row": object{}})
	c := follow(t, ovsdb.Options{Endpoints: all.endpoints(), Leader: true})
	v := c.awaitView("it is in sync", whatever)
	w := &writer{random: rand.New(rand.NewPCG(3, 4))}
	count := 0
	for range 6 {
		run(t, "ovs-appctl", "-t", filepath.Join(leader.dir, "ctl"), "cluster/failure-test", "transfer-leadership")
		for range 5 {
			count++
			operations := append(w.operations(3), object{"op": "update", "table": "NB_Global", "where": []any{}, "row": object{"nb_cfg": count}})
			leader.transact(operations...)
		}
		before := v.Session
		v = c.awaitView("the last transaction is there", func(v *ovsdb.View) bool {
			return v.Session > before && only(t, v, "NB_Global").Int("nb_cfg") == int64(count)
		})
		leader = all.leader()
		if diff := cmp.Diff(databaseRows(leader), viewRows(v)); diff != "" {
			t.Fatalf("view differs (-database +view):\n%s", diff)
		}
	}
}

func TestMemberWithoutCluster(t *testing.T) {
	all := serveCluster(t)
	leader := all.leader()
	var followers []*server
	for _, s := range all.members {
		if s != leader {
			followers = append(followers, s)
		}
	}
	c := follow(t, ovsdb.Options{Endpoints: []string{followers[0].endpoint()}})
	c.awaitView("a follower will do", whatever)
	strict := follow(t, ovsdb.Options{Endpoints: []string{followers[0].endpoint()}, Leader: true})
	strict.awaitError("the server is not the leader of its cluster")

	// Without a majority it may have missed anything.
	leader.signal(syscall.SIGSTOP)
	followers[1].signal(syscall.SIGSTOP)
	c.awaitError("the server is not connected to its cluster")
	leader.signal(syscall.SIGCONT)
	followers[1].signal(syscall.SIGCONT)
	c.awaitView("it is connected again", whatever)
}
