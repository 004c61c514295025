// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllertest"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/ungated"
)

// recorder is both an index and a ledger, and remembers what it is told.
type recorder struct{ events []string }

func (r *recorder) add(format string, args ...any) {
	r.events = append(r.events, fmt.Sprintf(format, args...))
}

func (r *recorder) Listed()                                 { r.add("index: listed") }
func (r *recorder) SetPod(p *corev1.Pod)                    { r.add("index: set pod %s", p.UID) }
func (r *recorder) DeletePod(uid types.UID)                 { r.add("index: delete pod %s", uid) }
func (r *recorder) SetNamespace(o *corev1.Namespace)        { r.add("index: set namespace %s", o.UID) }
func (r *recorder) DeleteNamespace(o *corev1.Namespace)     { r.add("index: delete namespace %s", o.UID) }
func (r *recorder) SetPolicy(o *networkingv1.NetworkPolicy) { r.add("index: set policy %s", o.UID) }
func (r *recorder) DeletePolicy(o *networkingv1.NetworkPolicy) {
	r.add("index: delete policy %s", o.UID)
}
func (r *recorder) SetNode(o *corev1.Node)          { r.add("index: set node %s", o.Name) }
func (r *recorder) DeleteNode(name string)          { r.add("index: delete node %s", name) }
func (r *recorder) SetService(o *corev1.Service)    { r.add("index: set service %s", o.UID) }
func (r *recorder) DeleteService(o *corev1.Service) { r.add("index: delete service %s", o.UID) }
func (r *recorder) PodChanged(p *corev1.Pod)        { r.add("ledger: pod %s", p.UID) }
func (r *recorder) PodDeleted(uid types.UID)        { r.add("ledger: no pod %s", uid) }
func (r *recorder) NodeChanged(name, boot string)   { r.add("ledger: node %s boot %s", name, boot) }
func (r *recorder) NodeDeleted(name string)         { r.add("ledger: no node %s", name) }
func (r *recorder) PolicyDeleted(namespace, name string) {
	r.add("ledger: no policy %s/%s", namespace, name)
}

func newTestFeed(r *recorder) *feed {
	return &feed{
		index: r, ledger: r, ungated: ungated.New(v1alpha1.ConditionProgrammed, "kube-system"),
		counter: newEventCounter(prometheus.NewRegistry()),
	}
}

func TestFeed(t *testing.T) {
	meta := func(uid string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "shop", Name: "x", UID: types.UID(uid)}
	}
	pod := func(uid string) *corev1.Pod { return &corev1.Pod{ObjectMeta: meta(uid)} }
	policy := func(uid string) *networkingv1.NetworkPolicy {
		return &networkingv1.NetworkPolicy{ObjectMeta: meta(uid)}
	}
	namespace := &corev1.Namespace{ObjectMeta: meta("1")}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1"},
		Status:     corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{BootID: "b"}},
	}
	service := &corev1.Service{ObjectMeta: meta("1")}
	tellOfService := func(i *controllertest.FakeInformer) { i.Add(service); i.Delete(service) }
	cases := map[string]struct {
		kind     client.Object
		tell     func(i *controllertest.FakeInformer)
		services bool
		want     []string
	}{
		"services go to the index, if they are watched": {
			kind: service, services: true, tell: tellOfService,
			want: []string{"index: set service 1", "index: delete service 1"},
		},
		"services that are not watched go nowhere": {
			kind: service, tell: tellOfService,
		},
		"the index hears of a Pod before the ledger": {
			kind: pod(""), tell: func(i *controllertest.FakeInformer) { i.Add(pod("1")) },
			want: []string{"index: set pod 1", "ledger: pod 1"},
		},
		"a Pod that took another's name is a deletion and an addition": {
			kind: pod(""), tell: func(i *controllertest.FakeInformer) { i.Update(pod("1"), pod("2")) },
			want: []string{"index: delete pod 1", "ledger: no pod 1", "index: set pod 2", "ledger: pod 2"},
		},
		"a change is one": {
			kind: pod(""), tell: func(i *controllertest.FakeInformer) { i.Update(pod("1"), pod("1")) },
			want: []string{"index: set pod 1", "ledger: pod 1"},
		},
		"policies go to the index": {
			kind: policy(""),
			tell: func(i *controllertest.FakeInformer) {
				i.Add(policy("1"))
				i.Update(policy("1"), policy("2"))
				i.Delete(policy("2"))
			},
			want: []string{"index: set policy 1", "index: delete policy 1", "ledger: no policy shop/x",
				"index: set policy 2", "index: delete policy 2", "ledger: no policy shop/x"},
		},
		"namespaces go to the index": {
			kind: &corev1.Namespace{},
			tell: func(i *controllertest.FakeInformer) { i.Add(namespace); i.Delete(namespace) },
			want: []string{"index: set namespace 1", "index: delete namespace 1"},
		},
		"the ledger is told of a node's boot": {
			kind: &corev1.Node{},
			tell: func(i *controllertest.FakeInformer) { i.Add(node); i.Delete(node) },
			want: []string{"index: set node n1", "ledger: node n1 boot b", "index: delete node n1", "ledger: no node n1"},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			r, informers := &recorder{}, &informertest.FakeInformers{}
			f := newTestFeed(r)
			f.services = tc.services
			if err := f.watch(t.Context(), informers); err != nil {
				t.Fatal(err)
			}
			kinds := 4
			if tc.services {
				kinds = 5
			}
			if len(f.synced) != kinds {
				t.Errorf("%d kinds are waited for, want %d", len(f.synced), kinds)
			}
			i, err := informers.FakeInformerFor(t.Context(), tc.kind)
			if err != nil {
				t.Fatal(err)
			}
			tc.tell(i)
			if diff := cmp.Diff(tc.want, r.events); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			told := 0
			for _, e := range r.events {
				if strings.HasPrefix(e, "index: ") {
					told++
				}
			}
			if got := counted(t, f); got != told {
				t.Errorf("%d events are counted, want %d", got, told)
			}
		})
	}
}

// counted sums the events that were counted.
func counted(t *testing.T, f *feed) int {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(f.counter)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, m := range families[0].GetMetric() {
		sum += m.GetCounter().GetValue()
	}
	return int(sum)
}

func TestTheFeedKnowsPodsWithoutAGate(t *testing.T) {
	informers := &informertest.FakeInformers{}
	f, registry := newTestFeed(&recorder{}), prometheus.NewRegistry()
	exposeUngated(registry, f.ungated)
	if err := f.watch(t.Context(), informers); err != nil {
		t.Fatal(err)
	}
	pods, err := informers.FakeInformerFor(t.Context(), &corev1.Pod{})
	if err != nil {
		t.Fatal(err)
	}
	namespaces, err := informers.FakeInformerFor(t.Context(), &corev1.Namespace{})
	if err != nil {
		t.Fatal(err)
	}
	shop := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: "shop", Labels: map[string]string{v1alpha1.KeyInject: v1alpha1.InjectNamespace},
	}}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "x", UID: "1"}}
	want := func(n float64) {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		if got := families[0].GetMetric()[0].GetGauge().GetValue(); got != n {
			t.Errorf("%s = %v, want %v", families[0].GetName(), got, n)
		}
		if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
			t.Errorf("lint: %v, %v", problems, err)
		}
	}
	pods.Add(pod)
	want(0)
	namespaces.Add(shop)
	want(1)
	pods.Delete(pod)
	want(0)
	pods.Add(pod)
	namespaces.Delete(shop)
	want(0)
}

func TestADeletionThatTheWatchMissedCounts(t *testing.T) {
	r := &recorder{}
	f := newTestFeed(r)
	handler(f.setPod, f.deletePod).OnDelete(toolscache.DeletedFinalStateUnknown{
		Key: "shop/x", Obj: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "1"}},
	})
	if diff := cmp.Diff([]string{"index: delete pod 1", "ledger: no pod 1"}, r.events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// PolicyStatuses are waited for, and are nothing to the index.
func TestAFeedWithoutAnIndexRunsWhatIsBehindIt(t *testing.T) {
	ran := false
	r := (&feed{}).after(manager.RunnableFunc(func(context.Context) error { ran = true; return nil }))
	if err := r.Start(t.Context()); err != nil || !ran {
		t.Errorf("ran: %t, %v", ran, err)
	}
}

func TestNothingRunsBeforeTheCachesAreComplete(t *testing.T) {
	complete := make(chan struct{})
	told := &recorder{}
	f := &feed{index: told, synced: []toolscache.InformerSynced{func() bool {
		select {
		case <-complete:
			return true
		default:
			return false
		}
	}}}
	started := make(chan struct{})
	r := f.after(manager.RunnableFunc(func(context.Context) error { close(started); return nil }))
	done := make(chan error, 1)
	go func() { done <- r.Start(t.Context()) }()
	if f.ready() == nil {
		t.Error("ready before the caches are complete")
	}
	select {
	case <-started:
		t.Fatal("started before the caches are complete")
	case <-time.After(200 * time.Millisecond):
	}
	close(complete)
	select {
	case <-started:
	case <-time.After(10 * time.Second):
		t.Fatal("not started though the caches are complete")
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"index: listed"}, told.events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if err := f.ready(); err != nil {
		t.Error(err)
	}
}
