// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// counted counts how often a selector is matched.
type counted struct {
	labels.Selector
	matches *int
}

func (c counted) Matches(l labels.Labels) bool {
	*c.matches++
	return c.Selector.Matches(l)
}

// count replaces the selectors of q, of which it returns how often they match.
func count(q *Policy) *int {
	n := new(int)
	q.Pods = counted{q.Pods, n}
	for d := range q.Rules {
		for i := range q.Rules[d] {
			for j := range q.Rules[d][i].Peers {
				peer := &q.Rules[d][i].Peers[j]
				peer.Pods = counted{peer.Pods, n}
				if peer.Namespaces != nil {
					peer.Namespaces = counted{peer.Namespaces, n}
				}
			}
		}
	}
	return n
}

func TestWhatAnEventMatches(t *testing.T) {
	w := shop(t)
	near := w.policy("db/near", "mysql", spec{Ingress: []in{{From: from(pods("backup"))}}})
	wide := w.policy("other/wide", "idle1", spec{Ingress: []in{{From: from(podsIn("db", "backup"))}}})
	w.policies = nil
	c := w.cluster()
	var matches []*int
	for _, np := range []*Policy{mustPolicy(t, near), mustPolicy(t, wide)} {
		matches = append(matches, count(np))
		c.SetPolicy(np)
	}
	seq := uint64(100)
	add := func(namespace, app string) {
		seq++
		c.SetPod(&Pod{
			UID: types.UID(fmt.Sprint(seq)), Namespace: namespace, Name: fmt.Sprint(seq), Node: "n1", Seq: seq,
			Labels: labels.Set{"app": app}, IPs: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.0.1.%d", seq))},
		})
	}
	add("db", "backup")
	for name, tc := range map[string]struct {
		event      func()
		near, wide int
	}{
		"a pod of a known label set is matched with nothing":                {func() { add("db", "backup") }, 0, 0},
		"a new label set is matched with each selector that reaches it":     {func() { add("db", "new"+fmt.Sprint(seq)) }, 2, 1},
		"a new label set of another namespace with those of that namespace": {func() { add("other", "new"+fmt.Sprint(seq)) }, 0, 1},
		"a namespace's new labels with the namespaceSelector": {func() {
			c.SetNamespace(&Namespace{Name: "other", Labels: labels.Set{"a": fmt.Sprint(seq)}, Inject: true})
			seq++
		}, 0, 1},
		"a namespace's same labels with nothing":                                 {func() { n := *c.Namespace("db"); c.SetNamespace(&n) }, 0, 0},
		"the end of a pod with nothing":                                          {func() { add("db", "backup"); c.DeletePod(types.UID(fmt.Sprint(seq))) }, 0, 0},
		"a computation of a pod that no policy selects with the policies' names": {func() { c.Selecting(c.Pod("db/mysql")); c.Meaning(c.Pod("db/mysql")) }, 0, 0},
	} {
		before := []int{*matches[0], *matches[1]}
		tc.event()
		if near, wide := *matches[0]-before[0], *matches[1]-before[1]; near != tc.near || wide != tc.wide {
			t.Errorf("%s: the near policy was matched %d times, the wide one %d: want %d and %d", name, near, wide, tc.near, tc.wide)
		}
	}
}

func mustPolicy(t *testing.T, np *networkingv1.NetworkPolicy) *Policy {
	t.Helper()
	q, err := NewPolicy(np)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func TestEqualSelectorsAreOne(t *testing.T) {
	w := shop(t)
	for i := range 5 {
		w.policy(fmt.Sprintf("db/q%d", i), "mysql", spec{Ingress: []in{{From: from(pods("backup"), everywhere())}, {From: from(pods("backup"))}}})
	}
	c := w.cluster()
	if n := len(c.spaces["db"].fixed); n != 2 {
		t.Errorf("%d selectors in namespace db, want that of mysql and that of backup", n)
	}
	if n := len(c.reaches); n != 1 {
		t.Errorf("%d namespaceSelectors, want 1", n)
	}
}

func TestNothingIsLeftOfWhatIsGone(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 3))
		w := randomWorld(t, r)
		c := w.cluster()
		for _, p := range w.pods {
			if NewPod(p).Peer() {
				c.Expect(Subject{Pod: c.Pod(p.UID), Witnesses: true}, DefaultOptions())
			}
		}
		var steps []func()
		for _, p := range w.pods {
			steps = append(steps, func() { c.DeletePod(p.UID) })
		}
		for _, q := range w.policies {
			steps = append(steps, func() { c.DeletePolicy(q.Namespace, q.Name) })
		}
		for _, ns := range w.namespaces {
			steps = append(steps, func() { c.DeleteNamespace(ns.Name) })
		}
		for _, n := range w.nodes {
			steps = append(steps, func() { c.DeleteNode(n.Name) })
		}
		r.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
		for _, step := range steps {
			step()
		}
		for what, n := range map[string]int{
			"pods": len(c.pods), "IPv4 peers": c.family[0].Len(), "IPv6 peers": c.family[1].Len(),
			"addresses of peers": c.addresses.Len(), "nodes of peers": len(c.byNode), "port names": len(c.named),
			"addresses": len(c.byAddr), "namespaces": len(c.spaces), "namespaceSelectors": len(c.reaches),
			"policies": len(c.bound), "concatenations": len(c.sharing), "nodes": len(c.nodes.byName) + len(c.nodes.names),
		} {
			if n != 0 {
				t.Errorf("seed %d: %d %s are left", seed, n, what)
			}
		}
	}
}

// TestFootprintsSayWhatChanged: the Pods of each event are those of the shop.
func TestFootprintsSayWhatChanged(t *testing.T) {
	for name, tc := range map[string]struct {
		event func(c *Cluster) Footprint
		want  func(c *Cluster) Footprint
	}{
		"a pod younger than all is met at its address only": {
			event: func(c *Cluster) Footprint { return c.SetPod(stranger9(99)) },
			want:  func(*Cluster) Footprint { return Footprint{Pods: []types.UID{"p9"}, Addresses: addrs("10.0.1.99")} },
		},
		"a pod that gives a port name a number of its own changes the name": {
			event: func(c *Cluster) Footprint {
				p := stranger9(99)
				p.Ports = []ContainerPort{{Name: "mysql", Protocol: 6, Number: 3307}}
				return c.SetPod(p)
			},
			want: func(*Cluster) Footprint {
				return Footprint{Pods: []types.UID{"p9"}, Addresses: addrs("10.0.1.99"), Ports: []PortName{{"mysql", 6}}}
			},
		},
		"a pod that gives it the number that others give it does not": {
			event: func(c *Cluster) Footprint {
				p := stranger9(99)
				p.Ports = []ContainerPort{{Name: "mysql", Protocol: 6, Number: 3306}}
				return c.SetPod(p)
			},
			want: func(*Cluster) Footprint { return Footprint{Pods: []types.UID{"p9"}, Addresses: addrs("10.0.1.99")} },
		},
		"the end of the only pod with a port's number changes the name": {
			event: func(c *Cluster) Footprint { return c.DeletePod("db/mysql") },
			want: func(*Cluster) Footprint {
				return Footprint{Pods: []types.UID{"db/mysql"}, Addresses: addrs("10.0.2.20"), Ports: []PortName{{"mysql", 6}}}
			},
		},
		"a peer of unknown age can come between any": {
			event: func(c *Cluster) Footprint { return c.SetPod(stranger9(0)) },
			want:  func(*Cluster) Footprint { return Footprint{Everything: true} },
		},
		"a pod of unknown age that is no peer changes nothing": {
			event: func(c *Cluster) Footprint {
				p := stranger9(0)
				p.IPs = nil
				return c.SetPod(p)
			},
			want: func(*Cluster) Footprint { return Footprint{} },
		},
		"the same pod again changes nothing": {
			event: func(c *Cluster) Footprint {
				p := *c.Pod("db/mysql")
				return c.SetPod(&p)
			},
			want: func(*Cluster) Footprint { return Footprint{} },
		},
		"a relabelled pod meets those whom its new policies concern": {
			event: func(c *Cluster) Footprint {
				p := *c.Pod("db/mysql")
				p.Labels = labels.Set{"app": "backup"}
				return c.SetPod(&p)
			},
			want: func(c *Cluster) Footprint {
				return Footprint{Pods: []types.UID{"db/mysql"}, Sets: []*LabelSet{c.spaces["db"].absent}, Ports: []PortName{{"mysql", 6}}}
			},
		},
		"a new label of a namespace that no selector matches changes nothing": {
			event: func(c *Cluster) Footprint {
				ns := *c.Namespace("other")
				ns.Labels = labels.Set{"name": "other", "new": "yes"}
				return c.SetNamespace(&ns)
			},
			want: func(*Cluster) Footprint { return Footprint{} },
		},
		"a namespace of which nothing is left is met by those that looked for its pods": {
			event: func(c *Cluster) Footprint {
				c.DeleteNamespace("other")
				c.DeletePod("other/idle1")
				return c.DeletePod("other/idle2")
			},
			want: func(c *Cluster) Footprint {
				return Footprint{Pods: []types.UID{"other/idle2"}, Addresses: addrs("10.0.2.10"), Sets: []*LabelSet{c.spaces["other"].absent}}
			},
		},
		"a node that goes out is named, its ranges are not": {
			event: func(c *Cluster) Footprint {
				n := *c.Node("n2")
				n.Out = true
				return c.SetNode(&n)
			},
			want: func(*Cluster) Footprint { return Footprint{Nodes: []string{"n2"}} },
		},
		"a policy of the same content changes nothing": {
			event: func(c *Cluster) Footprint {
				q := *c.Policy("db", "allow")
				return c.SetPolicy(&q)
			},
			want: func(*Cluster) Footprint { return Footprint{} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := shop(t)
			w.policy("db/allow", "mysql", spec{Ingress: []in{{From: from(pods("backup")), Ports: tcp("mysql")}}})
			c := w.cluster()
			want := tc.want(c)
			got := tc.event(c)
			if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}), cmp.Comparer(func(a, b *LabelSet) bool { return a == b })); diff != "" {
				t.Errorf("footprint (-want +got):\n%s", diff)
			}
		})
	}
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, text := range list {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

func stranger9(seq uint64) *Pod {
	return &Pod{
		UID: "p9", Namespace: "other", Name: "p9", Node: "n1", Seq: seq,
		Labels: labels.Set{"app": "nine"}, IPs: addrs("10.0.1.99"),
	}
}

func TestSetsMatchingAndWhoMeansThem(t *testing.T) {
	w := shop(t)
	backup(w)
	admitBackup(w)
	w.policy("other/wide", "idle1", spec{Ingress: []in{{From: from(podsIn("db", "backup"))}}})
	c := w.cluster()
	sets := c.SetsMatching("db", labels.SelectorFromSet(labels.Set{"app": "backup"}))
	if len(sets) != 1 || sets[0] != c.LabelSetOf("db/backup") {
		t.Fatalf("%d sets match, want that of db/backup", len(sets))
	}
	selecting, naming := c.PoliciesMeaning(sets[0])
	if len(selecting) != 0 || len(naming) != 2 || naming[0] != c.Policy("db", "allow") || naming[1] != c.Policy("other", "wide") {
		t.Errorf("selected by %v and named by %v, want none, and db/allow and other/wide", selecting, naming)
	}
	if selecting, _ := c.PoliciesMeaning(c.LabelSetOf("db/mysql")); len(selecting) != 1 {
		t.Errorf("db/mysql is selected by %v, want db/allow", selecting)
	}
	if sets := c.SetsMatching("none", labels.Everything()); sets != nil {
		t.Errorf("a namespace that is not there has %d sets", len(sets))
	}
}

// pickByHalves is pick as it is explained: the first subnet that is free.
func pickByHalves(within netip.Prefix, avoid []netip.Prefix) (netip.Addr, bool) {
	free := true
	for _, a := range avoid {
		switch {
		case !a.Overlaps(within):
		case a.Bits() <= within.Bits():
			return netip.Addr{}, false
		default:
			free = false
		}
	}
	switch {
	case free && within.IsSingleIP():
		return within.Addr(), true
	case free:
		return within.Addr().Next(), true
	}
	low := netip.PrefixFrom(within.Addr(), within.Bits()+1)
	if addr, ok := pickByHalves(low, avoid); ok {
		return addr, true
	}
	return pickByHalves(netip.PrefixFrom(last(low).Next(), within.Bits()+1), avoid)
}

func TestPickedAddressesAreOfTheFirstFreeSubnet(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for range 5000 {
		prefix := func(bits int) netip.Prefix {
			a := netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(2)), byte(r.IntN(256))})
			return netip.PrefixFrom(a, bits+r.IntN(33-bits)).Masked()
		}
		var inside, besides []netip.Prefix
		for range r.IntN(12) {
			inside = append(inside, prefix(24))
		}
		for range r.IntN(4) {
			besides = append(besides, prefix(24))
		}
		within := prefix(22)
		want, wantOK := pickByHalves(within, slices.Concat(inside, besides))
		if got, ok := pick(within, newRanges(slices.Clone(inside)), besides); got != want || ok != wantOK {
			t.Fatalf("of %v without %v and %v: got %v, %v, want %v, %v", within, inside, besides, got, ok, want, wantOK)
		}
	}
}
