// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/controllers/expect"
)

// history is a random sequence of events and the objects that it leaves.
type history struct {
	*api
	r          *rand.Rand
	pods       map[string]*corev1.Pod
	policies   map[string]*networkingv1.NetworkPolicy
	namespaces map[string]*corev1.Namespace
	addresses  int
	// last are the assignments as the gate would hold them.
	last map[types.UID]Assignment
}

var teams = []string{"red", "blue"}

func (h *history) one(list ...string) string { return list[h.r.IntN(len(list))] }

// step does one thing to the cluster.
func (h *history) step() {
	ns, node := h.one("a", "b"), h.one("n0", "n1", "n2")
	names := slices.Sorted(maps.Keys(h.pods))
	switch h.r.IntN(10) {
	case 0, 1, 2:
		h.addresses++
		name := fmt.Sprintf("%s/p%d", ns, h.addresses)
		var changes []podChange
		if h.r.IntN(2) == 0 {
			changes = append(changes, gated)
		}
		changes = append(changes, app(h.one("x", "y", "z")))
		h.pods[name] = h.pod(name, node, fmt.Sprintf("10.0.%s.%d", node[1:], h.addresses), changes...)
	case 3:
		if len(names) > 0 {
			name := h.one(names...)
			h.x.DeletePod(h.pods[name].UID)
			delete(h.pods, name)
		}
	case 4:
		if len(names) > 0 {
			name := h.one(names...)
			h.pods[name] = h.again(h.pods[name], app(h.one("x", "y", "z")))
		}
	case 5:
		if len(names) > 0 {
			name := h.one(names...)
			h.pods[name] = h.again(h.pods[name], []podChange{finished, terminating}[h.r.IntN(2)])
		}
	case 6, 7:
		name := fmt.Sprintf("%s/q%d", ns, h.r.IntN(3))
		peer := pods(h.one("x", "y"))
		if h.r.IntN(2) == 0 {
			peer = podsOfTeam(h.one(teams...), h.one("x", "y", "z"))
		}
		h.policies[name] = h.policy(name, h.one("x", "y", ""), peer)
	case 8:
		if name := fmt.Sprintf("%s/q%d", ns, h.r.IntN(3)); h.policies[name] != nil {
			h.x.DeletePolicy(h.policies[name])
			delete(h.policies, name)
		}
	case 9:
		h.namespaces[ns] = h.namespace(ns, "team", h.one(teams...))
	}
}

func (h *history) place() {
	for i := range 3 {
		h.node(fmt.Sprintf("n%d", i), fmt.Sprintf("10.0.%d.0/24", i))
	}
}

// afresh feeds what is left to a new index, Pods in the order of their
// addresses.
func (h *history) afresh() *Index {
	b := newAPI()
	b.place(h)
	for _, ns := range h.namespaces {
		b.x.SetNamespace(ns)
	}
	for _, q := range h.policies {
		b.x.SetPolicy(q)
	}
	for _, p := range slices.SortedFunc(maps.Values(h.pods), func(p, q *corev1.Pod) int {
		return cmp.Compare(h.x.pods[p.UID].Seq, h.x.pods[q.UID].Seq)
	}) {
		b.x.SetPod(p)
	}
	return b.x
}

func (a *api) place(h *history) {
	was := h.api
	h.api = a
	h.place()
	h.api = was
}

func TestRandomEventsLeaveWhatAFreshIndexComputes(t *testing.T) {
	compared := 0
	for seed := range uint64(60) {
		h := &history{
			api: newAPI(), r: rand.New(rand.NewPCG(seed, 2)),
			pods: map[string]*corev1.Pod{}, policies: map[string]*networkingv1.NetworkPolicy{},
			namespaces: map[string]*corev1.Namespace{}, last: map[types.UID]Assignment{},
		}
		h.place()
		for range 60 {
			h.step()
			h.checkUnaffected(t, seed)
		}
		fresh := h.afresh()
		if diff := gocmp.Diff(fresh.Subjects(), h.x.Subjects()); diff != "" {
			t.Fatalf("seed %d: subjects (-fresh +got):\n%s", seed, diff)
		}
		for _, uid := range h.x.Subjects() {
			got, _ := h.x.Assignment(uid)
			want, _ := fresh.Assignment(uid)
			ignore := gocmp.Options{
				cmpopts.IgnoreFields(Assignment{}, "Basis"), cmpopts.IgnoreFields(Subject{}, "Since"),
				cmpopts.EquateComparable(got.Subject.IPs[0]),
			}
			if diff := gocmp.Diff(want, got, ignore); diff != "" {
				t.Fatalf("seed %d, %s (-fresh +got):\n%s", seed, uid, diff)
			}
			compared++
		}
		h.checkLinks(t, seed)
	}
	if compared < 200 {
		t.Fatalf("only %d assignments compared: the histories are too short to show anything", compared)
	}
}

// checkUnaffected: what the gate holds of a subject that an event did not
// affect is still right, and nothing came to be demanded that it lacks.
func (h *history) checkUnaffected(t *testing.T, seed uint64) {
	t.Helper()
	for _, uid := range h.x.Affected() {
		if a, ok := h.x.Assignment(uid); ok {
			h.last[uid] = a
		} else {
			delete(h.last, uid)
		}
	}
	if got, want := slices.Sorted(maps.Keys(h.last)), h.x.Subjects(); !slices.Equal(got, want) {
		t.Fatalf("seed %d: the gate holds %v of the subjects %v", seed, got, want)
	}
	for uid, a := range h.last {
		for node, list := range a.PerNode {
			for _, e := range list {
				if want, _ := h.x.cluster.Demand(node, e.Flow); want != e.Want {
					t.Fatalf("seed %d: %s still holds that %s must say %s of %s, it must say %s", seed, uid, node, e.Want, e.Flow, want)
				}
			}
		}
		now := h.x.cluster.Expect(expect.Subject{Pod: h.x.pods[uid].Pod, Predecessors: h.x.predecessors(h.x.pods[uid])}, h.x.options.Expect)
		for node, list := range now.Nodes {
			for _, e := range list {
				held := slices.ContainsFunc(a.PerNode[node], func(b expect.Expectation) bool { return b.Flow == e.Flow })
				if e.Want == flow.Allowed && e.Flow.Port == 3306 && !held {
					t.Fatalf("seed %d: %s lacks %s on %s", seed, uid, e.Flow, node)
				}
			}
		}
	}
}

// checkLinks: nothing leads to a subject that is not held any more.
func (h *history) checkLinks(t *testing.T, seed uint64) {
	t.Helper()
	for _, uid := range h.x.Subjects() {
		h.x.DeletePod(uid)
	}
	if len(h.x.addresses) != 0 || len(h.x.policies) != 0 || len(h.x.held) != 0 {
		t.Fatalf("seed %d: %d addresses and %d policies still lead to subjects", seed, len(h.x.addresses), len(h.x.policies))
	}
}
