// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ungated

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/v1alpha1"
)

func newIndex() *Index { return New(v1alpha1.ConditionProgrammed, "kube-system") }

func pod(namespace, name string, change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: map[string]string{}}}
	change(p)
	return p
}

func space(name string, labelled bool) *corev1.Namespace {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if labelled {
		ns.Labels = map[string]string{v1alpha1.KeyInject: v1alpha1.InjectNamespace}
	}
	return ns
}

func annotated(value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Annotations[v1alpha1.KeyInject] = value }
}

func TestWhichPodsShouldHaveAGate(t *testing.T) {
	plain := func(*corev1.Pod) {}
	cases := map[string]struct {
		namespace string
		labelled  bool
		change    func(*corev1.Pod)
		want      bool
	}{
		"a Pod of a labelled namespace":           {"shop", true, plain, true},
		"not one of another namespace":            {"shop", false, plain, false},
		"one that asks for it":                    {"shop", false, annotated("true"), true},
		"one that asks in a way that is no value": {"shop", false, annotated("yes"), true},
		"not one that opts out":                   {"shop", true, annotated("false"), false},
		"not one of an exempt namespace":          {"kube-system", true, annotated("true"), false},
		"not one that has it": {"shop", true, func(p *corev1.Pod) {
			p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: v1alpha1.ConditionProgrammed}}
		}, false},
		"one that has another": {"shop", true, func(p *corev1.Pod) {
			p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/other"}}
		}, true},
		"not one with its node's address": {"shop", true, func(p *corev1.Pod) { p.Spec.HostNetwork = true }, false},
		"not a mirror of a static Pod": {"shop", true, func(p *corev1.Pod) {
			p.Annotations[corev1.MirrorPodAnnotationKey] = "hash"
		}, false},
		"not one of Windows": {"shop", true, func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }, false},
		"not one for Windows nodes": {"shop", true, func(p *corev1.Pod) {
			p.Spec.NodeSelector = map[string]string{corev1.LabelOSStable: "windows"}
		}, false},
		"not one that has succeeded": {"shop", true, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }, false},
		"not one that has failed":    {"shop", true, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, false},
		"not one that is on its way out": {"shop", true, func(p *corev1.Pod) {
			p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1000, 0)}
		}, false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			x := newIndex()
			x.SetNamespace(space(tc.namespace, tc.labelled))
			x.SetPod(pod(tc.namespace, "p", tc.change))
			var want []types.NamespacedName
			if tc.want {
				want = []types.NamespacedName{{Namespace: tc.namespace, Name: "p"}}
			}
			if diff := cmp.Diff(want, x.List(10)); diff != "" || x.Len() != len(want) {
				t.Errorf("%d of them (-want +got):\n%s", x.Len(), diff)
			}
		})
	}
}

func TestTheListIsSortedAndBounded(t *testing.T) {
	x := newIndex()
	x.SetNamespace(space("b", true))
	for _, name := range []string{"2", "1", "3"} {
		x.SetPod(pod("b", name, func(*corev1.Pod) {}))
	}
	x.SetPod(pod("c", "1", annotated("true")))
	x.SetPod(pod("a", "9", annotated("true")))
	x.SetPod(pod("a", "8", func(*corev1.Pod) {}))
	want := []types.NamespacedName{{Namespace: "a", Name: "9"}, {Namespace: "b", Name: "1"}, {Namespace: "b", Name: "2"}}
	if diff := cmp.Diff(want, x.List(3)); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	if got := x.List(0); len(got) != 0 || x.Len() != 5 {
		t.Errorf("list of none: %v, of %d in all, want none of 5", got, x.Len())
	}
}

// Whatever happens in whatever order, the count is that of the list, and both
// are what somebody finds who looks at all objects.
func TestTheCountAgreesWithWhatIsThere(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		x := newIndex()
		pods, labelled := map[types.NamespacedName]*corev1.Pod{}, map[string]bool{}
		for range 300 {
			ns := fmt.Sprintf("ns%d", r.IntN(3))
			key := types.NamespacedName{Namespace: ns, Name: fmt.Sprintf("p%d", r.IntN(4))}
			switch r.IntN(5) {
			case 0:
				labelled[ns] = r.IntN(2) == 0
				x.SetNamespace(space(ns, labelled[ns]))
			case 1:
				delete(labelled, ns)
				x.DeleteNamespace(space(ns, false))
			case 2:
				delete(pods, key)
				x.DeletePod(pod(key.Namespace, key.Name, func(*corev1.Pod) {}))
			default:
				p := pod(key.Namespace, key.Name, func(p *corev1.Pod) {
					p.Spec.HostNetwork = r.IntN(4) == 0
					if value := []string{"", "true", "false"}[r.IntN(3)]; value != "" {
						annotated(value)(p)
					}
				})
				pods[key] = p
				x.SetPod(p)
			}
			want := 0
			for key, p := range pods {
				value := p.Annotations[v1alpha1.KeyInject]
				if !p.Spec.HostNetwork && value != "false" && (labelled[key.Namespace] || value == "true") {
					want++
				}
			}
			if x.Len() != want || len(x.List(100)) != want {
				t.Fatalf("seed %d: %d counted, %d listed, want %d", seed, x.Len(), len(x.List(100)), want)
			}
		}
		for key, p := range pods {
			x.DeletePod(p)
			x.DeleteNamespace(space(key.Namespace, false))
		}
		for ns := range labelled {
			x.DeleteNamespace(space(ns, false))
		}
		if x.Len() != 0 || len(x.namespaces) != 0 {
			t.Errorf("seed %d: %d Pods and %d namespaces are left of none", seed, x.Len(), len(x.namespaces))
		}
	}
}
