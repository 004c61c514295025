// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package policystatus

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/coverage"
	"github.com/policygate/policygate/controllers/hub"
)

func TestOneNodeAfterTheOtherShows(t *testing.T) {
	b := newBench(t)
	b.connect("n1", "n2")
	b.run(time.Second)
	b.assign(allowJobs, 1, 1, "n1", "n2")
	b.run(100 * time.Millisecond)
	b.refuse(allowJobs, "n1")
	b.refuse(allowJobs, "n2")
	b.run(2 * time.Second)
	b.confirm(allowJobs, "n1")
	b.run(time.Second)
	b.confirm(allowJobs, "n2")
	b.run(2 * time.Second)
	want := []string{
		"Programmed=False/Lagging | Degraded=False/AsExpected | 0/2 | gen=1 | n1:NotAdmitting since 1s | n2:NotAdmitting since 1s",
		"Programmed=False/Lagging | Degraded=False/AsExpected | 1/2 | gen=1 | n2:NotAdmitting since 1s",
		`Programmed=True/InForce | Degraded=False/AsExpected | 2/2 | gen=1 | last: gen=1 at 4s took "3.1s"`,
	}
	if diff := cmp.Diff(want, b.objects.history[allowJobs]); diff != "" {
		t.Errorf("said (-want +got):\n%s", diff)
	}
	o := b.objects.objects[allowJobs]
	if want := []metav1.OwnerReference{{
		APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Name: "allow-jobs", UID: "uid-allow-jobs", Controller: new(true),
	}}; !cmp.Equal(want, o.OwnerReferences) {
		t.Errorf("owned by %v, want %v", o.OwnerReferences, want)
	}
	if a := b.hub.assigned["n1/uid-allow-jobs"]; !a.GetPolicy() || len(a.GetSubject().GetIps()) > 0 || a.GetSubject().GetGeneration() != 1 {
		t.Errorf("asked %v, want a policy without addresses at generation 1", a)
	}
	if len(b.events.events) > 0 {
		t.Errorf("events %q: none is due to what has never been in force", b.events.events)
	}
	for name, want := range map[string]float64{
		"policygate_policies{false}": 0, "policygate_policies{true}": 1, "policygate_policies{unknown}": 0,
		"policygate_policies_degraded{Drifted}": 0, "policygate_policy_programming_seconds": 1,
		"policygate_policystatus_writes_total{create}": 1, "policygate_policystatus_writes_total{transition}": 2,
	} {
		if got := b.metrics()[name]; got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	families, err := b.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v %v", problems, err)
	}
}

func TestAnEditThatChangesNothingDoesNotFlicker(t *testing.T) {
	b := newBench(t)
	b.connect("n1", "n2")
	b.assign(allowJobs, 1, 1, "n1", "n2")
	b.run(500 * time.Millisecond)
	b.confirm(allowJobs, "n1", "n2")
	b.run(time.Second)
	sent := b.hub.sent
	b.assign(allowJobs, 2, 1, "n1", "n2")
	b.run(3 * time.Second)
	if b.hub.sent != sent {
		t.Errorf("%d assignments were sent of a generation that asks the same", b.hub.sent-sent)
	}
	b.assign(allowJobs, 3, 2, "n1", "n2") // this one asks something else
	b.run(300 * time.Millisecond)
	b.confirm(allowJobs, "n1", "n2")
	b.run(3 * time.Second)
	for i, said := range b.objects.history[allowJobs] {
		if !strings.HasPrefix(said, "Programmed=True/InForce | Degraded=False/AsExpected | 2/2") {
			t.Errorf("%d: %s", i, said)
		}
	}
	b.says(allowJobs, `Programmed=True/InForce | Degraded=False/AsExpected | 2/2 | gen=3 | last: gen=3 at 4s took "300ms"`)
}

func TestAnotherSampleDoesNotFlicker(t *testing.T) {
	b := newBench(t)
	b.connect("n1", "n2")
	b.assign(allowJobs, 1, 1, "n1", "n2")
	b.run(time.Second)
	b.confirm(allowJobs, "n1", "n2")
	b.run(2 * time.Second)
	writes := len(b.objects.writes)
	for from := 2; from < 5; from++ {
		b.assign(allowJobs, 1, from, "n1", "n2")
		b.run(5 * time.Second)
		b.confirm(allowJobs, "n1")
		b.run(5 * time.Second)
		b.confirm(allowJobs, "n2")
	}
	b.run(time.Second)
	if got := b.objects.writes[writes:]; len(got) > 0 {
		t.Errorf("wrote %q, want nothing", got)
	}
}

func TestDriftAndItsEndAreSaid(t *testing.T) {
	b := newBench(t)
	b.connect("n1", "n2")
	b.assign(allowJobs, 1, 1, "n1", "n2")
	b.run(time.Second)
	b.confirm(allowJobs, "n1", "n2")
	b.run(10 * time.Second)
	b.report("n2", allowJobs, &hubv1.Report{UnmetRequired: 1, Unmet: []*hubv1.Unmet{{Expectation: 1, Reason: "allowed (no rule of db/secret)"}}})
	b.run(3 * time.Second)
	last := ` | last: gen=1 at 1s took "1s"`
	b.says(allowJobs, "Programmed=False/Drifted | Degraded=True/Drifted | 1/2 | gen=1 | n2:NotIsolating since 11s"+last)
	b.confirm(allowJobs, "n2")
	b.run(2 * time.Second)
	b.says(allowJobs, `Programmed=True/InForce | Degraded=False/AsExpected | 2/2 | gen=1 | last: gen=1 at 14s took "1s"`)
	want := []string{
		"Warning db/allow-jobs: Drifted: was in force and is no more on n2 (NotIsolating)",
		"Normal db/allow-jobs: InForce: in force on 2 nodes",
	}
	if diff := cmp.Diff(want, b.events.events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if strings.Contains(fmt.Sprint(b.objects.objects[allowJobs], b.events.events), "secret") {
		t.Error("a node's text is told")
	}
}

func TestWhatANodeConfirmedIsMissedThoughOthersAreAskedAbout(t *testing.T) {
	for name, tc := range map[string]struct {
		lacks uint32
		why   string
		want  string
	}{
		"a Pod that was isolated is no more": {
			1, "allowed (no rule)", "Programmed=False/Drifted | Degraded=True/Drifted | 1/2 | gen=1 | n2:NotIsolating since 11s",
		},
		"a peer that nobody asked about is not admitted yet": {
			0, "denied (rule)", "Programmed=False/Lagging | Degraded=False/AsExpected | 1/2 | gen=1 | n2:NotAdmitting since 11s",
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.connect("n1", "n2")
			b.assign(allowJobs, 1, 1, "n1", "n2")
			b.run(time.Second)
			b.confirm(allowJobs, "n1", "n2")
			b.run(10 * time.Second)
			for from := 2; from < 4; from++ { // the second before the first is answered
				b.assign(allowJobs, 1, from, "n1", "n2")
				b.run(500 * time.Millisecond)
				b.confirm(allowJobs, "n1")
			}
			b.report("n2", allowJobs, &hubv1.Report{UnmetRequired: 1, Unmet: []*hubv1.Unmet{{Expectation: tc.lacks, Reason: tc.why}}})
			b.run(3 * time.Second)
			b.says(allowJobs, tc.want+` | last: gen=1 at 1s took "1s"`)
		})
	}
}

func TestAnAgentThatRestartsFlipsNothing(t *testing.T) {
	b := newBench(t)
	b.connect("n1", "n2")
	b.assign(allowJobs, 1, 1, "n1", "n2")
	b.run(time.Second)
	b.confirm(allowJobs, "n1", "n2")
	b.run(2 * time.Second)
	writes := len(b.objects.writes)
	for range 3 {
		b.ledger.Disconnected("n2")
		b.run(25 * time.Second)
		b.connect("n2")
		b.report("n2", allowJobs, &hubv1.Report{}) // it has not looked yet
		b.run(4 * time.Second)
		b.confirm(allowJobs, "n2")
		b.run(2 * time.Second)
	}
	if got := b.objects.writes[writes:]; len(got) > 0 {
		t.Errorf("wrote %q, want nothing", got)
	}
	b.ledger.Disconnected("n2")
	b.run(32 * time.Second)
	b.says(allowJobs, `Programmed=Unknown/Unknown | Degraded=True/Unseen | 1/2 | gen=1 | n2:NoAgent since 1m36s | last: gen=1 at 1s took "1s"`)
}

func TestANodeThatLeavesIsPruned(t *testing.T) {
	b := newBench(t)
	b.connect("n1", "n2")
	b.assign(allowJobs, 1, 1, "n1", "n2")
	b.run(time.Second)
	b.confirm(allowJobs, "n1")
	b.refuse(allowJobs, "n2")
	b.run(2 * time.Second)
	b.assign(allowJobs, 1, 1, "n1")
	b.run(2 * time.Second)
	b.says(allowJobs, `Programmed=True/InForce | Degraded=False/AsExpected | 1/1 | gen=1 | last: gen=1 at 3s took "3.1s"`)
	if b.hub.assigned["n2/uid-allow-jobs"] != nil {
		t.Error("n2 is still asked")
	}
	b.ledger.Disconnected("n2")
	b.run(0)
	if b.ledger.nodes["n2"] != nil {
		t.Error("n2 is still known")
	}
}

func TestAnElectedReplicaGoesOnWhereTheFormerWas(t *testing.T) {
	b := newBench(t)
	b.connect("n1", "n2")
	b.assign(allowJobs, 1, 1, "n1", "n2")
	b.run(time.Second)
	b.confirm(allowJobs, "n1", "n2")
	b.run(5 * time.Second)
	writes := len(b.objects.writes)
	said := told(&b.objects.objects[allowJobs].Status)
	b.elect()
	b.connect("n1", "n2")
	b.run(10 * time.Second)
	b.confirm(allowJobs, "n1")
	b.run(10 * time.Second)
	b.confirm(allowJobs, "n2")
	b.run(time.Minute)
	if got := b.objects.writes[writes:]; len(got) > 0 {
		t.Errorf("wrote %q, want nothing", got)
	}
	b.says(allowJobs, said)
}

func TestOneThatIsNotElectedKnowsNodesAndWritesNothing(t *testing.T) {
	b := newBench(t)
	b.ledger.leads = false
	b.connect("n1")
	b.assign(allowJobs, 1, 1, "n1")
	b.run(time.Minute)
	if len(b.objects.writes) > 0 || b.hub.sent > 0 || b.coverage.computed > 0 {
		t.Errorf("%d writes, %d assignments, %d computations: want none", len(b.objects.writes), b.hub.sent, b.coverage.computed)
	}
	if len(b.coverage.changed) > 0 {
		t.Error("what has changed is not taken, so that it would pile up")
	}
	if !b.ledger.nodes["n1"].connected {
		t.Error("n1 is not known to be connected")
	}
}

func TestObjectsWithoutAPolicyAreRemoved(t *testing.T) {
	b := newBench(t)
	made := func(name, owner string) {
		o := newObject(Policy{Name: types.NamespacedName{Namespace: "db", Name: name}, UID: types.UID(owner)})
		o.UID = types.UID("object-of-" + name)
		if owner == "" {
			o.OwnerReferences = nil
		}
		b.objects.put(o)
	}
	made("gone", "uid-gone")          // the collector has not come yet
	made("allow-jobs", "uid-earlier") // of a policy that was there before
	made("hand-made", "")
	b.assign(allowJobs, 1, 1, "n1")
	b.assign(types.NamespacedName{Namespace: "db", Name: "hand-made"}, 1, 1, "n1")
	b.connect("n1")
	b.run(500 * time.Millisecond)
	b.confirm(allowJobs, "n1")
	b.run(5 * time.Second)
	b.says(allowJobs, `Programmed=True/InForce | Degraded=False/AsExpected | 1/1 | gen=1 | last: gen=1 at 0s took "500ms"`)
	if o := b.objects.objects[types.NamespacedName{Namespace: "db", Name: "hand-made"}]; o == nil || !owned(o, "uid-hand-made") {
		t.Errorf("an object that nobody owned is %v, want one of the policy", o)
	}
	gone := types.NamespacedName{Namespace: "db", Name: "gone"}
	if b.objects.objects[gone] == nil {
		t.Error("the collector was not waited for")
	}
	// A policy that goes: the collector forgets its object here.
	delete(b.coverage.assignments, allowJobs)
	b.coverage.changed = []coverage.PolicyChange{{Policy: allowJobs, Meaning: true}}
	b.run(41 * time.Second)
	b.says(allowJobs, "no object")
	b.says(gone, "no object")
	if len(b.hub.assigned) != 1 { // hand-made's
		t.Errorf("nodes are still asked: %v", b.hub.assigned)
	}
	if n := len(b.statuses.slips); n != 1 {
		t.Errorf("%d slips, want that of hand-made alone", n)
	}
}

func TestAPolicyOfAFormerNameIsAnother(t *testing.T) {
	b := newBench(t)
	b.connect("n1")
	b.assign(allowJobs, 1, 1, "n1")
	b.run(time.Second)
	b.confirm(allowJobs, "n1")
	b.run(5 * time.Second)
	a := b.assign(allowJobs, 1, 1, "n1")
	a.Subject.UID = "uid-another"
	b.run(3 * time.Second)
	if b.hub.assigned["n1/uid-allow-jobs"] != nil || b.hub.assigned["n1/uid-another"] == nil {
		t.Errorf("asked %v, want another", b.hub.assigned)
	}
	b.says(allowJobs, "Programmed=Unknown/Unknown | Degraded=False/AsExpected | 0/1 | gen=1 | n1:NoAnswer since 6s")
	if o := b.objects.objects[allowJobs]; !owned(o, "uid-another") {
		t.Errorf("owned by %v, want uid-another", o.OwnerReferences)
	}
}

func TestWhatSomebodyElseWroteIsWrittenOver(t *testing.T) {
	b := newBench(t)
	b.connect("n1")
	b.assign(allowJobs, 1, 1, "n1")
	b.run(time.Second)
	b.refuse(allowJobs, "n1")
	b.run(5 * time.Second)
	want := told(&b.objects.objects[allowJobs].Status)
	forged := b.objects.objects[allowJobs].DeepCopy()
	forged.Status.Conditions[0].Status = metav1.ConditionTrue
	b.objects.put(forged)
	b.run(2 * time.Second)
	b.says(allowJobs, want)
}

func TestWhatCannotBeWrittenIsTriedAgain(t *testing.T) {
	b := newBench(t)
	b.connect("n1")
	b.objects.fail = apierrors.NewInternalError(fmt.Errorf("no disk"))
	b.assign(allowJobs, 1, 1, "n1")
	b.run(20 * time.Second)
	if len(b.objects.writes) > 0 {
		t.Fatal("what fails was written")
	}
	b.objects.fail = nil
	b.run(20 * time.Second)
	b.says(allowJobs, "Programmed=Unknown/Unknown | Degraded=False/AsExpected | 0/1 | gen=1 | n1:NoAnswer since 0s")
}

func TestPodsThatComeBesideAreCountedAtLeisure(t *testing.T) {
	b := newBench(t)
	b.connect("n1")
	b.assign(allowJobs, 1, 1, "n1")
	b.run(time.Second)
	b.confirm(allowJobs, "n1")
	b.run(12 * time.Second)
	computed, writes := b.coverage.computed, len(b.objects.writes)
	for pods := range 300 {
		b.coverage.assignments[allowJobs].Pods = coverage.PolicyPods{Selected: pods, Gated: 3, Pending: 2}
		b.coverage.changed = append(b.coverage.changed, coverage.PolicyChange{Policy: allowJobs})
		b.run(100 * time.Millisecond)
	}
	if n := b.coverage.computed - computed; n < 2 || n > 5 {
		t.Errorf("%d computations in half a minute, want one each ten seconds", n)
	}
	if n := len(b.objects.writes) - writes; n < 2 || n > 4 {
		t.Errorf("%d writes in half a minute, want one each ten seconds", n)
	}
	b.run(11 * time.Second)
	if got := b.objects.objects[allowJobs].Status.Pods; *got.Selected != 299 || *got.Gated != 3 || *got.Pending != 2 {
		t.Errorf("pods %d, %d, %d: want 299, 3, 2", *got.Selected, *got.Gated, *got.Pending)
	}
}

func TestEveryPolicyIsComputedEachMinute(t *testing.T) {
	b := newBench(t)
	const policies = 500
	for i := range policies {
		b.assign(types.NamespacedName{Namespace: fmt.Sprint("ns", i%7), Name: fmt.Sprint("p", i)}, 1, 1)
	}
	b.run(10 * time.Second)
	b.coverage.computed = 0
	b.run(time.Minute)
	if n := b.coverage.computed; n < policies || n > 2*policies {
		t.Errorf("%d computations in a minute, want one or so of each of %d", n, policies)
	}
	b.coverage.computed = 0
	b.run(time.Second)
	if n := b.coverage.computed; n > policies/10 {
		t.Errorf("%d computations in a second: they are not spread", n)
	}
}

func TestWhatTimeChangesIsComputedThen(t *testing.T) {
	b := newBench(t)
	b.connect("n1")
	b.assign(allowJobs, 1, 1).Again = t0.Add(20 * time.Second)
	b.run(19 * time.Second)
	before := b.coverage.computed
	b.coverage.assignments[allowJobs].Again = time.Time{}
	b.run(1100 * time.Millisecond)
	if n := b.coverage.computed - before; n != 1 {
		t.Errorf("%d computations when it was due, want 1", n)
	}
}

func TestAnUnsupportedNodeIsSaidAndUnsaid(t *testing.T) {
	b := newBench(t)
	b.connect("n1")
	b.assign(allowJobs, 1, 1, "n1")
	b.ledger.Changed("n1", hub.State{Unsupported: "XDP on eth0"})
	b.run(3 * time.Second)
	b.says(allowJobs, "Programmed=Unknown/Unknown | Degraded=True/Unseen | 0/1 | gen=1 | n1:Unsupported since 0s")
	b.ledger.Changed("n1", hub.State{})
	b.confirm(allowJobs, "n1")
	b.run(2 * time.Second)
	if got := told(&b.objects.objects[allowJobs].Status); !strings.HasPrefix(got, "Programmed=True/InForce | Degraded=False/AsExpected | 1/1") {
		t.Errorf("says %s", got)
	}
}

func TestATenantReadsNothingOfOthers(t *testing.T) {
	b := newBench(t)
	b.connect("n1")
	a := b.assign(allowJobs, 1, 1, "n1")
	foreign := a.PerNode["n1"][0]
	foreign.Policy = types.NamespacedName{Namespace: "payroll", Name: "secret-plan"}
	foreign.Why = "payroll/secret-plan egress[0]"
	a.PerNode["n1"] = append(a.PerNode["n1"], foreign)
	b.run(time.Second)
	for _, r := range []*hubv1.Report{
		{UnmetRequired: 1, Unmet: []*hubv1.Unmet{{Expectation: 2, Reason: "denied (payroll secret 10.9.9.9)"}}},
		{UnmetRequired: 1, Steady: true, Unrealized: []uint32{2}, Unmet: []*hubv1.Unmet{{Expectation: 2, Reason: "denied (payroll secret 10.9.9.9)"}}},
		{UnmetRequired: 1, Unmet: []*hubv1.Unmet{{Expectation: 0, Reason: "inconclusive (payroll secret 10.9.9.9)"}}},
		{Confirmed: true, UnmetAdvisory: 1, Unmet: []*hubv1.Unmet{{Expectation: 2, Reason: "denied (payroll secret 10.9.9.9)"}}},
	} {
		b.report("n1", allowJobs, r)
		b.run(70 * time.Second)
		o := b.objects.objects[allowJobs]
		text := fmt.Sprintf("%+v %v", o.Status, b.events.events)
		for _, secret := range []string{"payroll", "secret", "10.9.9.9", "10.0."} {
			if strings.Contains(text, secret) {
				t.Errorf("%q is told: %s", secret, text)
			}
		}
	}
	if got := told(&b.objects.objects[allowJobs].Status); !strings.Contains(got, "deviates: a policy in another namespace does not admit all that it allows on n1") {
		t.Errorf("says %s", got)
	}
}

// signalling is a coverage that says when it was first asked.
type signalling struct {
	*fakeCoverage
	once  sync.Once
	asked chan struct{}
}

func (c *signalling) PolicyAssignment(key types.NamespacedName) (coverage.PolicyAssignment, bool) {
	c.once.Do(func() { close(c.asked) })
	return c.fakeCoverage.PolicyAssignment(key)
}

func TestAReplicaAsksFromWhenItIsElected(t *testing.T) {
	b := newBench(t)
	b.assign(allowJobs, 1, 1, "n1")
	elected, asked := make(chan struct{}), make(chan struct{})
	b.ledger = New(Options{
		Coverage: &signalling{fakeCoverage: b.coverage, asked: asked}, Statuses: b.statuses, Events: b.ledger.events,
		Metrics: b.ledger.metrics, Clock: b.clock, Elected: elected, Log: logr.Discard(),
	})
	b.ledger.SetHub(b.hub)
	b.connect("n1")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- b.ledger.Start(ctx) }()
	heard := make(chan struct{})
	b.ledger.inbox.Post(func() { close(heard) })
	<-heard
	select {
	case <-asked:
		t.Error("it computes before it is elected")
	default:
	}
	close(elected)
	<-asked
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Start = %v, want nil", err)
	}
	if !b.ledger.nodes["n1"].connected {
		t.Error("a node that connected before is not known")
	}
	if b.ledger.NeedLeaderElection() || !b.statuses.NeedLeaderElection() {
		t.Error("every replica knows nodes, and one writes")
	}
}
