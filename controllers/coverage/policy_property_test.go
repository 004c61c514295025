// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/expect"
)

// watcher is who takes the changed policies, and computes some of them.
type watcher struct {
	*history
	// last are the assignments that nothing was reported of since, and what they
	// were computed for.
	last map[types.NamespacedName]computedPolicy
	pods map[types.NamespacedName]PolicyPods

	compared, stood, numbers, former int
}

type computedPolicy struct {
	PolicyAssignment
	subject expect.PolicySubject
}

// TestRandomEventsLeaveWhatAFreshIndexComputesOfPolicies is the oracle of
// policies as subjects: after every event of long random histories, an
// assignment stands unless its policy was reported as changed in its meaning,
// an index that never saw the history computes the same, and Pods that are
// counted one by one are as many as is said, reported if they were not before.
func TestRandomEventsLeaveWhatAFreshIndexComputesOfPolicies(t *testing.T) {
	histories := uint64(200)
	if testing.Short() {
		histories = 20
	}
	var compared, stood, numbers, former int
	for seed := range histories {
		w := &watcher{
			history: newHistory(seed),
			last:    map[types.NamespacedName]computedPolicy{}, pods: map[types.NamespacedName]PolicyPods{},
		}
		if seed%3 == 1 {
			w.x.options.Expect.PolicyBudget = 5 // so small that not all is asked
		}
		for range 80 {
			what := w.step()
			w.check(t, what)
			w.compute()
			w.gate()
		}
		w.end(t)
		compared, stood, numbers, former = compared+w.compared, stood+w.stood, numbers+w.numbers, former+w.former
	}
	t.Logf("%d compared, %d stood, %d numbers changed, %d had former generations", compared, stood, numbers, former)
	if compared < 1000 || stood < 500 || numbers < 100 || former < 20 {
		t.Errorf("%d compared, %d stood, %d numbers changed, %d had former generations: the histories are too tame to show anything",
			compared, stood, numbers, former)
	}
}

func (w *watcher) check(t *testing.T, what string) {
	t.Helper()
	reported := map[types.NamespacedName]bool{}
	for _, c := range w.x.ChangedPolicies() {
		reported[c.Policy] = true
		if c.Meaning {
			delete(w.last, c.Policy)
		}
	}
	fresh := w.afresh()
	for key, known := range w.x.policies {
		fresh.policies[key].since = known.since
		if len(known.former) > 0 {
			w.former++
		}
	}
	if diff := gocmp.Diff(fresh.Policies(), w.x.Policies()); diff != "" {
		t.Fatalf("seed %d, after %s: policies (-fresh +got):\n%s", w.seed, what, diff)
	}
	ignored := cmpopts.IgnoreFields(PolicyAssignment{}, "Again", "Basis", "Pods")
	for _, key := range w.x.Policies() {
		s := w.x.policySubject(w.x.policies[key])
		if last, ok := w.last[key]; ok {
			s = last.subject
		}
		got, _ := w.x.computePolicy(s, w.x.policies[key])
		s.Policy = fresh.cluster.Policy(key.Namespace, key.Name)
		want, _ := fresh.computePolicy(s, fresh.policies[key])
		w.compared++
		if diff := gocmp.Diff(want, got, ignored, cmpopts.EquateComparable(w.any)); diff != "" {
			t.Fatalf("seed %d, after %s: %s (-fresh +got):\n%s", w.seed, what, key, diff)
		}
		if last, ok := w.last[key]; ok {
			w.stood++
			if diff := gocmp.Diff(got, last.PolicyAssignment, ignored, cmpopts.EquateComparable(w.any)); diff != "" {
				t.Fatalf("seed %d, after %s: %s is not reported and has changed (-computed +handed out):\n%s", w.seed, what, key, diff)
			}
		}
		pods, _ := w.x.PolicyPods(key)
		if counted := w.countOf(t, key); pods != counted || got.Pods != counted {
			t.Fatalf("seed %d, after %s: %s has %+v, and %+v with its assignment, want %+v", w.seed, what, key, pods, got.Pods, counted)
		}
		if before, ok := w.pods[key]; ok && before != pods {
			w.numbers++
			if !reported[key] {
				t.Fatalf("seed %d, after %s: %s had %+v, has %+v and is not reported", w.seed, what, key, before, pods)
			}
		}
		w.pods[key] = pods
	}
	for key := range w.last {
		if w.x.policies[key] == nil {
			t.Fatalf("seed %d, after %s: %s is gone and not reported", w.seed, what, key)
		}
	}
	for key := range w.pods {
		if w.x.policies[key] == nil {
			delete(w.pods, key)
		}
	}
}

// compute computes some of the policies.
func (w *watcher) compute() {
	for _, key := range w.x.Policies() {
		if w.oneIn(3) {
			continue
		}
		a, _ := w.x.PolicyAssignment(key)
		w.last[key] = computedPolicy{a, w.x.policySubject(w.x.policies[key])}
	}
}

// countOf counts the Pods of a policy one by one.
func (w *watcher) countOf(t *testing.T, key types.NamespacedName) PolicyPods {
	t.Helper()
	var out PolicyPods
	q := w.policies[key.Namespace+"/"+key.Name]
	selector, err := metav1.LabelSelectorAsSelector(&q.Spec.PodSelector)
	if err != nil {
		return out
	}
	for _, p := range w.objects.pods {
		if p.Namespace != key.Namespace || !selector.Matches(labels.Set(p.Labels)) || !expect.NewPod(p).Peer() {
			continue
		}
		out.Selected++
		if len(p.Spec.ReadinessGates) == 0 || p.Spec.ReadinessGates[0].ConditionType != v1alpha1.ConditionProgrammed {
			continue
		}
		out.Gated++
		if w.x.held[p.UID] != nil {
			out.Pending++
		}
	}
	return out
}
