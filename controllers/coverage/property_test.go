// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestRandomEventsLeaveWhatAFreshIndexComputes is the oracle of this package:
// after every event of long random histories, with a gate that computes what
// is affected late or not at all, every held subject's assignment is that of an
// index that never saw the history, and one that is said to stand is the one
// that was handed out last.
func TestRandomEventsLeaveWhatAFreshIndexComputes(t *testing.T) {
	histories := uint64(200)
	if testing.Short() {
		histories = 20
	}
	var sum tally
	for seed := range histories {
		h := newHistory(seed)
		for range 80 {
			what := h.step()
			h.check(t, what, &sum)
			h.gate()
		}
		h.end(t)
	}
	t.Logf("%+v", sum)
	if sum.compared < 1000 || sum.stood < 500 || sum.settled == 0 || sum.fell == 0 {
		t.Errorf("%+v: the histories are too tame to show anything", sum)
	}
}

// tally counts what was compared.
type tally struct{ compared, stood, fell, settled int }

// check compares every held subject with a fresh index.
func (h *history) check(t *testing.T, what string, sum *tally) {
	t.Helper()
	fresh := h.afresh()
	if diff := gocmp.Diff(fresh.Subjects(), h.x.Subjects()); diff != "" {
		t.Fatalf("seed %d, after %s: subjects (-fresh +got):\n%s", h.seed, what, diff)
	}
	for _, uid := range h.x.Subjects() {
		basis, stands := h.x.Standing(uid) // applies what time alone changes
		held := h.x.held[uid]
		want, _ := fresh.compute(fresh.held[uid].pod, held.suspect, held.settle)
		got, _ := h.x.compute(held.pod, held.suspect, held.settle)
		now := got.Basis
		want.Basis, got.Basis = Basis{}, Basis{}
		sum.compared++
		if !reflect.DeepEqual(want, got) {
			t.Fatalf("seed %d, after %s: %s (-fresh +got):\n%s", h.seed, what, uid, h.diff(want, got))
		}
		if got.Settle {
			sum.settled++
		}
		last, known := h.last[uid]
		switch {
		case !stands && known:
			sum.fell++
		case stands && !known:
			t.Fatalf("seed %d, after %s: %s stands and was never computed", h.seed, what, uid)
		case stands:
			sum.stood++
			last.Basis, last.NotAsked, want.NotAsked = Basis{}, 0, 0
			if !reflect.DeepEqual(want, last) {
				t.Fatalf("seed %d, after %s: %s stands and should not (-fresh +handed out):\n%s", h.seed, what, uid, h.diff(want, last))
			}
			if basis != now {
				t.Fatalf("seed %d, after %s: %s stands on %+v, want %+v", h.seed, what, uid, basis, now)
			}
		}
	}
}

func (h *history) diff(want, got Assignment) string {
	return gocmp.Diff(want, got, cmpopts.EquateComparable(h.any))
}

// gate computes, sometimes, what is affected, as the ledger does.
func (h *history) gate() {
	if h.r.IntN(3) == 0 {
		return
	}
	for _, uid := range h.x.Affected() {
		if h.r.IntN(8) == 0 {
			continue // it has no time for this one yet
		}
		a, ok := h.x.Assignment(uid)
		if !ok {
			delete(h.last, uid)
			continue
		}
		h.last[uid] = a
		if h.r.IntN(20) == 0 {
			h.x.Suspect(uid)
		}
	}
}

// afresh feeds what is left to a new index: Pods with the order of their
// addresses, and who gave up addresses before, which is history.
func (h *history) afresh() *Index {
	o := h.x.options
	x := New(o)
	x.started, x.listed = h.x.started, true
	for name, n := range h.nodes {
		x.SetNode(n)
		x.nodes[name].notReadySince = h.x.nodes[name].notReadySince
		x.awaitReady(name)
	}
	for _, ns := range h.namespaces {
		x.SetNamespace(ns)
	}
	for _, q := range h.policies {
		x.SetPolicy(q)
	}
	for _, p := range slices.SortedFunc(maps.Values(h.pods), func(p, q *corev1.Pod) int {
		return cmp.Compare(p.UID, q.UID)
	}) {
		next, known := x.newPod(p), h.x.pods[p.UID]
		if next.Seq = known.Seq; next.gate != nil {
			next.since = known.since
		}
		x.setPod(next)
	}
	x.departed.byAddress = h.x.departed.byAddress
	return x
}

// end deletes everything: nothing is left of it once the window is over.
func (h *history) end(t *testing.T) {
	t.Helper()
	for _, p := range h.pods {
		h.x.DeletePod(p.UID)
	}
	for _, q := range h.policies {
		h.x.DeletePolicy(q)
	}
	for _, ns := range h.namespaces {
		h.x.DeleteNamespace(ns)
	}
	for _, n := range h.nodes {
		h.x.DeleteNode(n.Name)
	}
	for _, s := range h.services {
		h.x.DeleteService(s)
	}
	h.clock.Step(reuseWindow)
	h.x.Affected()
	h.x.ChangedPolicies()
	x := h.x
	left := map[string]int{
		"pods": len(x.pods), "names": len(x.byName), "nodes": len(x.nodes), "not ready nodes": len(x.expiring),
		"namespaces": len(x.namespaces), "services": len(x.services), "held": len(x.held), "affected": len(x.affected),
		"released": len(x.released), "succeeding": len(x.succeeding), "departures": len(x.departed.queue),
		"departed addresses": len(x.departed.byAddress), "policies": len(x.policies), "counts": len(x.counts),
		"policy versions":    len(x.versions[KindNetworkPolicy].present),
		"namespace versions": len(x.versions[KindNamespace].present),
		"dependents":         len(x.dependents), "changed policies": len(x.changed),
	}
	if !x.links.empty() || !x.policyLinks.empty() {
		left["links"]++
	}
	maps.DeleteFunc(left, func(_ string, n int) bool { return n == 0 })
	if len(left) > 0 {
		t.Fatalf("seed %d: left when all is deleted: %v", h.seed, left)
	}
}

// newHistory returns an empty cluster with random options.
func newHistory(seed uint64) *history {
	h := &history{
		api: newAPI(), seed: seed, r: rand.New(rand.NewPCG(seed, 2)),
		last: map[types.UID]Assignment{},
	}
	h.objects = newObjects()
	h.x.options.Services = seed%2 == 0
	if seed%4 == 1 {
		h.x.options.Expect.Budget = 24 // so small that not all is asked
	}
	if seed%4 == 2 {
		h.x.options.Expect.MaxForeignNodes = 1
	}
	if seed%3 == 0 {
		h.x.options.Expect.Northbound = "kube-ovn:northbound"
	}
	for range 4 {
		h.setNode()
	}
	h.setNamespace()
	return h
}

// time passes, most often a little.
func (h *history) wait() {
	d := time.Duration(h.r.IntN(5000)) * time.Millisecond
	switch h.r.IntN(4) {
	case 0:
		d = DefaultNotReadyLimit
	case 1:
		d = reuseWindow / 3
	}
	h.clock.Step(d)
}
