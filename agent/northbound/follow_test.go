// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/agent/northbound/match"
	"github.com/policygate/policygate/api/flow"
)

// change makes one change to a database at random. Rows may refer to rows that are
// not there, as they never do in a real one.
func change(r *rand.Rand, d *database) {
	some := func(of string, n int) []string {
		var all []string
		for i := range n {
			if r.IntN(2) == 0 {
				all = append(all, fmt.Sprint(of, i))
			}
		}
		return all
	}
	address := func() string { return fmt.Sprintf("10.16.0.%d", r.IntN(7)) }
	drops := r.IntN(4) == 0
	switch r.IntN(6) {
	case 0:
		id := fmt.Sprint("port", r.IntN(8))
		if drops {
			d.drop(tablePort, id)
			return
		}
		d.put(tablePort, id, map[string]any{
			"name": id, "addresses": []string{"0a:00:00:00:00:01 " + address(), "unknown"}, "external_ids": map[string]string{"pod": "ns/" + id},
		})
	case 1:
		// A port is on one switch at a time: the two are written together.
		all := []string{"port0", "port1", "port2", "port3", "port4", "port5", "port6", "port7"}
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		at := r.IntN(len(all))
		for i, ports := range [][]string{all[:at], all[at:]} {
			d.put(tableSwitch, fmt.Sprint("switch", i), map[string]any{"name": fmt.Sprint("switch", i), "ports": ports, "acls": some("acl", 3)})
		}
	case 2:
		id := fmt.Sprint("group", r.IntN(4))
		if drops {
			d.drop(tableGroup, id)
			return
		}
		d.put(tableGroup, id, map[string]any{
			"name": id, "ports": some("port", 8), "acls": some("acl", 8), "external_ids": map[string]string{"np": "ns/" + id},
		})
	case 3, 4:
		id := fmt.Sprint("acl", r.IntN(8))
		if drops {
			d.drop(tableACL, id)
			return
		}
		direction := []string{"from-lport", "to-lport"}[r.IntN(2)]
		side := map[string]string{"from-lport": "inport", "to-lport": "outport"}[direction]
		text := []string{
			fmt.Sprintf("%s == @group%d && ip", side, r.IntN(4)),
			fmt.Sprintf("%s == @group%d && ip4.src == $set%d", side, r.IntN(4), r.IntN(3)),
			fmt.Sprintf("ip4.src == $set%d", r.IntN(3)),
			fmt.Sprintf("inport == %q", fmt.Sprint("port", r.IntN(8))),
			fmt.Sprintf("ip4.dst == $group%d_ip4", r.IntN(4)),
		}[r.IntN(5)]
		d.acl(id, id, direction, 1000+r.IntN(3), text, []string{"allow", "drop", "pass", "allow-related"}[r.IntN(4)])
	case 5:
		id := fmt.Sprint("set", r.IntN(3))
		if drops {
			d.drop(tableAddress, id)
			return
		}
		d.set(id, "ns/np/ingress", address(), address(), "10.16.0.0/30")
	}
}

// plainHits returns the ACLs that match a packet, or may, without any index.
func plainHits(v *testView, p *place, f flow.Flow) []string {
	holders := map[string][]string{} // by ACL, the ports of the groups that have it
	for _, g := range v.tables[tableGroup] {
		for _, a := range g.Strings("acls") {
			holders[a] = append(holders[a], g.Strings("ports")...)
		}
	}
	on := v.tables[tableSwitch][string(p.on.id)]
	var hits []string
	for id, a := range v.tables[tableACL] {
		here := slices.Contains(on.Strings("acls"), id) ||
			slices.ContainsFunc(holders[id], func(port string) bool { return slices.Contains(on.Strings("ports"), port) })
		if !here || a.String("direction") != p.direction.String() {
			continue
		}
		if t, _ := match.Parse(a.String("match")).Match(f, p); t != match.False {
			hits = append(hits, id)
		}
	}
	slices.Sort(hits)
	return hits
}

// TestFollow makes changes at random, and wants after each the answers of a model
// that is made anew, and of ACLs that are looked for without any index.
func TestFollow(t *testing.T) {
	t.Parallel()
	answers := map[flow.Answer]int{}
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 7))
		d, followed := newDatabase(), newFollower()
		for step := range 80 {
			for range 1 + r.IntN(3) {
				change(r, d)
			}
			followed.follow(d.view)
			fresh := newFollower()
			fresh.follow(d.view)
			for range 6 {
				f := tcp(fmt.Sprintf("10.16.0.%d", r.IntN(7)), fmt.Sprintf("10.16.0.%d", r.IntN(7)), 80)
				got, want := followed.model.verdict(f), fresh.model.verdict(f)
				answers[got.Answer]++
				if got.Answer != want.Answer {
					t.Fatalf("seed %d, step %d: %s: %s, and made anew %s", seed, step, f, got, want)
				}
				src, dst := followed.model.end(f.Src), followed.model.end(f.Dst)
				if src.unclear != "" || dst.unclear != "" {
					continue
				}
				for _, p := range followed.model.places(src, dst) {
					p.model.sort()
					all := map[string]bool{}
					for _, h := range p.hits(f) {
						all[string(h.acl.id)] = true
					}
					if diff := cmp.Diff(plainHits(d.view, &p, f), slices.Sorted(maps.Keys(all))); diff != "" {
						t.Fatalf("seed %d, step %d: %s at %s of %s: ACLs (-want +got):\n%s", seed, step, f, p.direction, p.on.name, diff)
					}
				}
			}
		}
		if n := len(followed.model.matches); n > len(followed.model.acls) {
			t.Errorf("seed %d: %d texts are kept for %d ACLs", seed, n, len(followed.model.acls))
		}
	}
	for _, a := range []flow.Answer{flow.Allowed, flow.Denied, flow.Inconclusive} {
		if answers[a] < 100 {
			t.Errorf("%v: want more of each", answers)
		}
	}
}

func TestFollowReadsOnlyWhatHasChanged(t *testing.T) {
	t.Parallel()
	d, f := example(), newFollower()
	if !f.follow(d.view) {
		t.Error("the first view changed nothing")
	}
	if f.follow(d.view) {
		t.Error("the same view changed something")
	}
	before := f.model.sets[allowSet]
	d.set(exceptSet, "db/np/ingress", other)
	if !f.follow(d.view) || f.model.sets[allowSet] != before {
		t.Error("another set's change was not taken in alone")
	}
	d.next(tableGlobal)
	if f.follow(d.view) {
		t.Error("a table whose rows are the same changed something")
	}
}
