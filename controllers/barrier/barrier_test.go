// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package barrier

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	metadatafake "k8s.io/client-go/metadata/fake"
	clocktesting "k8s.io/utils/clock/testing"
)

// answers is a Lister that the test answers.
type answers struct {
	asked  chan struct{}
	answer chan func() ([]Version, error)
}

func (a *answers) Kind() Kind { return NetworkPolicies }

func (a *answers) List(ctx context.Context) ([]Version, error) {
	a.asked <- struct{}{}
	select {
	case f := <-a.answer:
		return f()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// index is an Index that the test fills.
type index struct {
	mu   sync.Mutex
	held map[types.UID]uint64
}

func (i *index) Holds(v Version) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.held[v.UID] >= v.ResourceVersion
}

func (i *index) set(uid types.UID, rv uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.held[uid] = rv
}

func TestBarrierPassesOnceTheIndexHoldsWhatWasListed(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Unix(1000, 0))
	lister := &answers{asked: make(chan struct{}, 8), answer: make(chan func() ([]Version, error))}
	idx := &index{held: map[types.UID]uint64{"allow": 6}}
	registry := prometheus.NewRegistry()
	b := start(t, Options{Listers: []Lister{lister}, Index: idx, Clock: clk, Log: testr.New(t), Registerer: registry})

	b.Ticket("p")
	receive(t, lister.asked, "no LIST begins for a ticket")
	lister.answer <- func() ([]Version, error) { return nil, errors.New("unavailable") }

	// A second has to go by before the next attempt.
	waitFor(t, clk.HasWaiters)
	if b.Passed("p") {
		t.Fatal("a failed LIST passed a ticket")
	}
	select {
	case <-lister.asked:
		t.Fatal("a second LIST began within a second of the first")
	default:
	}
	clk.Step(listInterval)
	receive(t, lister.asked, "a failed LIST is not tried again")
	lister.answer <- func() ([]Version, error) { return []Version{{NetworkPolicies, "allow", 7}}, nil }

	waitFor(t, clk.HasWaiters)
	if b.Passed("p") {
		t.Fatal("passed though the index holds an older version than was listed")
	}
	idx.set("allow", 8)
	clk.Step(pollInterval)
	receive(t, b.Wake(), "nobody is woken when the index caught up")
	if !b.Passed("p") {
		t.Fatal("not passed though the index holds a newer version than was listed")
	}
	if diff := cmp.Diff([]types.UID{"p"}, b.TakePassed()); diff != "" {
		t.Errorf("who passed (-want +got):\n%s", diff)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := map[string]float64{}
	for _, m := range families[0].GetMetric() {
		for _, label := range m.GetLabel() {
			counted[label.GetName()+"="+label.GetValue()] += m.GetCounter().GetValue()
		}
	}
	want := map[string]float64{"kind=NetworkPolicy": 2, "kind=Namespace": 0, "failed=false": 1, "failed=true": 1}
	if diff := cmp.Diff(want, counted); diff != "" {
		t.Errorf("LISTs counted (-want +got):\n%s", diff)
	}
}

func TestBarrierListsNothingWithoutTickets(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Unix(1000, 0))
	lister := &answers{asked: make(chan struct{}, 8), answer: make(chan func() ([]Version, error))}
	b := start(t, Options{Listers: []Lister{lister}, Index: &index{}, Clock: clk, Log: testr.New(t)})
	b.Ticket("p")
	receive(t, lister.asked, "no LIST begins for a ticket")
	lister.answer <- func() ([]Version, error) { return nil, nil }
	receive(t, b.Wake(), "an empty cluster does not pass")
	clk.Step(time.Minute)
	b.Ticket("p")
	select {
	case <-lister.asked:
		t.Fatal("a LIST began though no ticket waits")
	case <-time.After(50 * time.Millisecond):
	}
}

func TestMetadataListers(t *testing.T) {
	object := func(apiVersion, kind, namespace, name, rv string) *metav1.PartialObjectMetadata {
		return &metav1.PartialObjectMetadata{
			TypeMeta: metav1.TypeMeta{APIVersion: apiVersion, Kind: kind},
			ObjectMeta: metav1.ObjectMeta{
				Namespace: namespace, Name: name, UID: types.UID(name), ResourceVersion: rv,
			},
		}
	}
	cases := map[string]struct {
		objects []runtime.Object
		want    []Version
		wantErr bool
	}{
		"every object of both kinds is listed": {
			objects: []runtime.Object{
				object("networking.k8s.io/v1", "NetworkPolicy", "db", "allow", "7"),
				object("v1", "Namespace", "", "db", "3"),
			},
			want: []Version{{NetworkPolicies, "allow", 7}, {Namespaces, "db", 3}},
		},
		"a resourceVersion that is no number is an error": {
			objects: []runtime.Object{object("v1", "Namespace", "", "db", "3-a")},
			wantErr: true,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			scheme := metadatafake.NewTestScheme()
			if err := metav1.AddMetaToScheme(scheme); err != nil {
				t.Fatal(err)
			}
			client := metadatafake.NewSimpleMetadataClient(scheme, tc.objects...)
			var got []Version
			var failed bool
			for _, l := range MetadataListers(client) {
				versions, err := l.List(t.Context())
				failed = failed || err != nil
				got = append(got, versions...)
			}
			if failed != tc.wantErr {
				t.Fatalf("failed = %v, want %v", failed, tc.wantErr)
			}
			if diff := cmp.Diff(tc.want, got); !tc.wantErr && diff != "" {
				t.Errorf("versions (-want +got):\n%s", diff)
			}
		})
	}
}

func start(t *testing.T, o Options) *Barrier {
	t.Helper()
	b := New(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Start: %v", err)
		}
	})
	return b
}

func receive(t *testing.T, c <-chan struct{}, otherwise string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Fatal(otherwise)
	}
}

func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatal("the condition did not come true")
		}
		time.Sleep(time.Millisecond)
	}
}
