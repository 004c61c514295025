// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package policystatus

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/coverage"
	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/hub"
)

// fakeCoverage answers what the test says.
type fakeCoverage struct {
	assignments map[types.NamespacedName]*coverage.PolicyAssignment
	changed     []coverage.PolicyChange
	computed    int
}

func (c *fakeCoverage) PolicyWake() <-chan struct{} { return nil }

func (c *fakeCoverage) Policies() []types.NamespacedName {
	var out []types.NamespacedName
	for key := range c.assignments {
		out = append(out, key)
	}
	slices.SortFunc(out, compareKeys)
	return out
}

func (c *fakeCoverage) PolicyAssignment(key types.NamespacedName) (coverage.PolicyAssignment, bool) {
	c.computed++
	a := c.assignments[key]
	if a == nil {
		return coverage.PolicyAssignment{}, false
	}
	return *a, true
}

func (c *fakeCoverage) ChangedPolicies() []coverage.PolicyChange {
	out := c.changed
	c.changed = nil
	return out
}

// fakeHub remembers what each node is to confirm, by node and policy.
type fakeHub struct {
	assigned map[string]*hubv1.Assign
	sent     int
}

func (h *fakeHub) Assign(node string, a *hubv1.Assign, _ hub.Description) {
	h.sent++
	h.assigned[node+"/"+a.GetSubject().GetUid()] = a
}

func (h *fakeHub) Withdraw(node, uid string) { delete(h.assigned, node+"/"+uid) }

// fakeObjects is an API server that tells the ledger of what it holds.
type fakeObjects struct {
	ledger  *Ledger
	objects map[types.NamespacedName]*v1alpha1.PolicyStatus
	version int
	// writes are those that were made, and when; history what each object said.
	writes  []string
	times   []time.Time
	history map[types.NamespacedName][]string
	now     func() time.Time
	// fail, if not nil, is what every write ends with.
	fail error
}

func (f *fakeObjects) wrote(what string, o *v1alpha1.PolicyStatus) {
	f.writes = append(f.writes, what+" "+o.Namespace+"/"+o.Name)
	f.times = append(f.times, f.now())
}

func (f *fakeObjects) put(o *v1alpha1.PolicyStatus) *v1alpha1.PolicyStatus {
	f.version++
	o = o.DeepCopy()
	o.ResourceVersion = strconv.Itoa(f.version)
	f.objects[keyOf(o)] = o
	if f.ledger != nil {
		f.ledger.ObjectChanged(o)
	}
	return o
}

func (f *fakeObjects) remove(o *v1alpha1.PolicyStatus) {
	delete(f.objects, keyOf(o))
	f.ledger.ObjectDeleted(o)
}

func keyOf(o *v1alpha1.PolicyStatus) types.NamespacedName {
	return types.NamespacedName{Namespace: o.Namespace, Name: o.Name}
}

func (f *fakeObjects) Create(_ context.Context, o *v1alpha1.PolicyStatus) (*v1alpha1.PolicyStatus, error) {
	if f.fail != nil {
		return nil, f.fail
	}
	if f.objects[keyOf(o)] != nil {
		return nil, apierrors.NewAlreadyExists(schema.GroupResource{}, o.Name)
	}
	f.wrote("create", o)
	o = o.DeepCopy()
	o.UID = types.UID(fmt.Sprintf("object-%d", f.version))
	o.Status = v1alpha1.PolicyStatusStatus{}
	return f.put(o), nil
}

func (f *fakeObjects) UpdateStatus(_ context.Context, o *v1alpha1.PolicyStatus) (*v1alpha1.PolicyStatus, error) {
	if f.fail != nil {
		return nil, f.fail
	}
	known := f.objects[keyOf(o)]
	switch {
	case known == nil:
		return nil, apierrors.NewNotFound(schema.GroupResource{}, o.Name)
	case known.ResourceVersion != o.ResourceVersion:
		return nil, apierrors.NewConflict(schema.GroupResource{}, o.Name, nil)
	}
	f.wrote("status", o)
	next := known.DeepCopy()
	next.Status = *o.Status.DeepCopy()
	f.history[keyOf(o)] = append(f.history[keyOf(o)], told(&next.Status))
	return f.put(next), nil
}

func (f *fakeObjects) Delete(_ context.Context, o *v1alpha1.PolicyStatus) error {
	if f.fail != nil {
		return f.fail
	}
	known := f.objects[keyOf(o)]
	if known == nil || known.UID != o.UID || known.ResourceVersion != o.ResourceVersion {
		return apierrors.NewNotFound(schema.GroupResource{}, o.Name)
	}
	f.wrote("delete", o)
	f.remove(known)
	return nil
}

// fakeRecorder remembers Events.
type fakeRecorder struct{ events []string }

func (r *fakeRecorder) Record(e Event) {
	kind := "Normal"
	if e.Warning {
		kind = "Warning"
	}
	r.events = append(r.events, fmt.Sprintf("%s %s: %s: %s", kind, e.Policy.Name, e.Reason, e.Note))
}

// bench is a ledger that leads, with its writer, on a clock of its own.
type bench struct {
	t        testing.TB
	clock    *clocktesting.FakeClock
	coverage *fakeCoverage
	hub      *fakeHub
	objects  *fakeObjects
	events   *fakeRecorder
	registry *prometheus.Registry
	ledger   *Ledger
	statuses *Statuses
}

func newBench(t testing.TB) *bench {
	b := &bench{
		t:        t,
		clock:    clocktesting.NewFakeClock(t0),
		coverage: &fakeCoverage{assignments: map[types.NamespacedName]*coverage.PolicyAssignment{}},
		hub:      &fakeHub{assigned: map[string]*hubv1.Assign{}},
		events:   &fakeRecorder{},
	}
	b.objects = &fakeObjects{
		objects: map[types.NamespacedName]*v1alpha1.PolicyStatus{},
		history: map[types.NamespacedName][]string{},
		now:     b.clock.Now,
	}
	b.elect()
	return b
}

// elect begins a replica, in place of the one before, that knows the objects
// and the policies, and that leads.
func (b *bench) elect() {
	b.registry = prometheus.NewRegistry()
	metrics := NewMetrics(b.registry)
	b.statuses = NewStatuses(b.objects, metrics, b.clock, logr.Discard())
	b.ledger = New(Options{
		Coverage: b.coverage, Statuses: b.statuses, Events: NewEvents(b.events, b.clock), Metrics: metrics,
		Clock: b.clock, Elected: nil, Log: logr.Discard(),
	})
	b.ledger.SetHub(b.hub)
	b.objects.ledger = b.ledger
	for _, o := range b.objects.objects {
		b.ledger.ObjectChanged(o)
	}
	b.ledger.step()
	b.ledger.lead()
}

// run lets that much time pass, with all that happens in it.
func (b *bench) run(d time.Duration) {
	b.t.Helper()
	for end := b.clock.Now().Add(d); ; {
		for i := 0; b.ledger.step() == 0; i++ {
			if i > 100000 {
				b.t.Fatal("the ledger does not come to rest")
			}
		}
		for write, _ := b.statuses.next(b.clock.Now()); write != nil; write, _ = b.statuses.next(b.clock.Now()) {
			b.statuses.make(context.Background(), write)
		}
		now := b.clock.Now()
		if !now.Before(end) {
			return
		}
		b.clock.SetTime(now.Add(min(10*time.Millisecond, end.Sub(now))))
	}
}

var allowJobs = types.NamespacedName{Namespace: "db", Name: "allow-jobs"}

// assign has the policy at that generation demand of each node that what comes
// from 10.0.0.<from> is allowed and a stranger is not.
func (b *bench) assign(key types.NamespacedName, generation int64, from int, nodes ...string) *coverage.PolicyAssignment {
	a := &coverage.PolicyAssignment{
		Subject: coverage.PolicySubject{
			UID: types.UID("uid-" + key.Name), Namespace: key.Namespace, Name: key.Name,
			Generation: generation, Since: b.clock.Now(),
		},
		PerNode: map[string][]expect.Expectation{},
		Pods:    coverage.PolicyPods{Selected: len(nodes)},
	}
	for _, node := range nodes {
		flowFrom := func(last int) flow.Flow {
			return flow.Flow{
				Protocol: flow.TCP, Port: 3306,
				Src: netip.AddrFrom4([4]byte{10, 0, 0, byte(last)}), Dst: netip.MustParseAddr("10.0.1.1"),
			}
		}
		a.PerNode[node] = []expect.Expectation{
			{Flow: flowFrom(from), Want: flow.Allowed, Policy: key, Generation: generation, Why: key.String() + " ingress[0]"},
			{Flow: flowFrom(250), Want: flow.Denied, Policy: key, Generation: generation, Why: "db/mysql-0 ingress isolation, stranger from another node"},
		}
	}
	b.coverage.assignments[key] = a
	b.coverage.changed = append(b.coverage.changed, coverage.PolicyChange{Policy: key, Meaning: true})
	return a
}

// connect has the nodes' agents connected.
func (b *bench) connect(nodes ...string) {
	for _, node := range nodes {
		b.ledger.Connected(node, hub.Hello{})
	}
}

// report has a node answer what it is asked about the policy.
func (b *bench) report(node string, key types.NamespacedName, r *hubv1.Report) {
	b.t.Helper()
	a := b.hub.assigned[node+"/uid-"+key.Name]
	if a == nil {
		b.t.Fatalf("%s is not asked about %s", node, key)
	}
	r.Uid, r.Generation = a.GetSubject().GetUid(), a.GetGeneration()
	b.ledger.Reported(node, r)
}

func (b *bench) confirm(key types.NamespacedName, nodes ...string) {
	b.t.Helper()
	for _, node := range nodes {
		b.report(node, key, &hubv1.Report{Confirmed: true})
	}
}

// refuse has a node report that it does not admit what the policy allows.
func (b *bench) refuse(key types.NamespacedName, node string) {
	b.t.Helper()
	b.report(node, key, &hubv1.Report{UnmetRequired: 1, Unmet: []*hubv1.Unmet{{Expectation: 0, Reason: "denied (rule)"}}})
}

// says demands what the policy's object says.
func (b *bench) says(key types.NamespacedName, want string) {
	b.t.Helper()
	got := "no object"
	if o := b.objects.objects[key]; o != nil {
		got = told(&o.Status)
	}
	if got != want {
		b.t.Errorf("%s at %s:\n got %s\nwant %s", key, b.clock.Now().Sub(t0), got, want)
	}
}

// metrics returns the values of all metrics by name and label, of histograms
// how much was observed.
func (b *bench) metrics() map[string]float64 {
	b.t.Helper()
	families, err := b.registry.Gather()
	if err != nil {
		b.t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += "{" + l.GetValue() + "}"
			}
			out[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return out
}

// condition returns one that says nothing in particular.
func condition(which string) metav1.Condition {
	return metav1.Condition{Type: which, Status: metav1.ConditionTrue, Reason: "Some", LastTransitionTime: stamp(t0)}
}
