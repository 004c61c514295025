// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/coverage"
	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/hub"
	"github.com/policygate/policygate/controllers/queue"
)

// In each of these, the tenant "crowd" tries to hold the Pods of "shop".

// Crowd has Pods on many nodes, and a policy that names everybody.
func TestATenantWhosePoliciesNameEverybodyHoldsNobodyLong(t *testing.T) {
	cases := map[string]struct {
		labels map[string]string
		// most is how many nodes may be awaited beside the Pod's own.
		most int
	}{
		"at most the limit of foreign nodes is awaited":            {map[string]string{v1alpha1.KeyInject: v1alpha1.InjectNamespace}, expect.DefaultMaxForeignNodes},
		"a namespace that does not use the gate holds nobody else": {nil, 0},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			options := coverage.DefaultOptions()
			options.Clock = b.clock
			index := coverage.New(options)
			b.ledger.coverage = FromIndex(index)
			index.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", UID: "shop", ResourceVersion: "1"}})
			index.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "crowd", UID: "crowd", ResourceVersion: "2", Labels: tc.labels}})
			index.SetPolicy(&networkingv1.NetworkPolicy{
				ObjectMeta: metav1.ObjectMeta{Namespace: "crowd", Name: "all", UID: "all", ResourceVersion: "3", Generation: 1},
				Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{
					From: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{}}},
				}}},
			})
			for i := range 2 * expect.DefaultMaxForeignNodes {
				node := fmt.Sprintf("c%d", i)
				index.SetNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}})
				p := runningPod(fmt.Sprintf("crowd-%d", i), node, fmt.Sprintf("10.1.%d.1", i), "4")
				p.Namespace = "crowd"
				index.SetPod(p)
			}
			p := runningPod("p", "n1", "10.0.0.1", "5")
			p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: v1alpha1.ConditionProgrammed}}
			index.SetPod(p)
			b.ledger.PodChanged(p)
			b.step()
			b.barrier.pass("p")
			b.settled()

			e := b.ledger.entries["p"]
			awaited := 0
			for _, q := range slices.Clone(e.inquiries) {
				if !q.optional {
					awaited++
					b.answer("p", q.name, confirms)
				}
			}
			if awaited > 1+tc.most {
				t.Errorf("%d nodes are awaited, want at most %d", awaited, 1+tc.most)
			}
			b.hub.sent = nil
			b.settled()
			if len(b.hub.sent) != 1 || !strings.HasPrefix(b.hub.sent[0], "release p ") {
				t.Errorf("sent %q, want a release", b.hub.sent)
			}
		})
	}
}

// Crowd waits for a node that never confirms anything: it is dead, or crowd's
// Pods are such as can never be confirmed.
func TestANodeThatConfirmsNothing(t *testing.T) {
	const patient = 10 * time.Minute
	cases := map[string]struct {
		// lead is for how long others waited when p begins to.
		lead   time.Duration
		others []string
		// alive is set if the node confirms others' Pods meanwhile.
		alive    bool
		min, max time.Duration
	}{
		"holds nobody longer than two minutes": {
			min: DefaultStalledAfter, max: DefaultStalledAfter + inspectInterval,
		},
		"holds another's Pods until they have waited themselves, if one tenant's Pods alone waited": {
			lead: patient, others: []string{"crowd"}, min: witnessAfter, max: witnessAfter + inspectInterval,
		},
		"holds nobody more if several tenants' Pods waited": {
			lead: patient, others: []string{"crowd", "third"}, max: inspectInterval,
		},
		"holds a tenant's next Pods no more": {
			lead: patient, others: []string{"shop"}, max: inspectInterval,
		},
		"holds nobody longer than two minutes, whoever began to wait when": {
			lead: time.Minute, others: []string{"crowd"}, min: witnessAfter, max: DefaultStalledAfter + inspectInterval,
		},
		"is awaited as long as it confirms others": {
			lead: patient, others: []string{"crowd", "third"}, alive: true, min: patient / 2, max: patient,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.barrier.quick = true
			begin := func(uid, namespace, ip string) {
				b.demandFor(uid, namespace, ip, 5, map[string][]expect.Expectation{
					"n1": nil, "n9": {allow(types.NamespacedName{Namespace: "crowd", Name: "all"}, ip, 80)},
				})
				b.ledger.PodChanged(b.pod(func(p *corev1.Pod) {
					p.UID, p.Namespace, p.Name = types.UID(uid), namespace, uid
					p.Annotations[v1alpha1.KeyTimeout] = patient.String()
				}, ip))
				b.settled()
				b.barrier.pass(types.UID(uid))
				b.settled()
			}
			round := 0
			pass := func(d time.Duration) {
				for range d / inspectInterval {
					b.clock.Step(inspectInterval)
					if round++; tc.alive && round%6 == 0 {
						b.answer("other-0", "n9", confirms)
						b.answer("other-0", "n9", func(*hubv1.Report) {})
					}
					b.settled()
				}
			}
			for i, namespace := range tc.others {
				begin(fmt.Sprintf("other-%d", i), namespace, fmt.Sprintf("10.0.1.%d", i))
			}
			pass(tc.lead)
			begin("p", "shop", "10.0.0.1")
			b.answer("p", "n1", confirms)
			b.hub.sent = nil
			b.settled()
			var waited time.Duration
			for ; waited < patient/2; waited += inspectInterval {
				if slices.ContainsFunc(b.hub.sent, func(s string) bool {
					return strings.HasPrefix(s, "release p ") && strings.Contains(s, "not awaited: n9 (stalled)")
				}) {
					break
				}
				pass(inspectInterval)
			}
			if waited < tc.min || waited > tc.max {
				t.Errorf("released after %s, want %s to %s", waited, tc.min, tc.max)
			}
			if stalled := b.ledger.nodes["n9"].excuses; stalled == tc.alive {
				t.Errorf("stalled = %v, want %v", stalled, !tc.alive)
			}
		})
	}
}

func TestANodeThatConfirmsLeavesQuarantine(t *testing.T) {
	b := newBench(t)
	b.waiting()
	for range DefaultStalledAfter/inspectInterval + 1 {
		b.clock.Step(inspectInterval)
		b.settled()
	}
	n := b.ledger.nodes["n7"]
	if !n.quarantined("shop") || n.quarantined("other") {
		t.Fatalf("stalled for %v, all: %v; want for shop", n.stalledFor, n.stalled)
	}
	b.report("n7", true)
	b.settled()
	if n.quarantined("shop") || n.excuses {
		t.Error("n7 is stalled though it has confirmed")
	}
}

// Crowd has thousands of Pods to compute, each of which takes a while.
func TestATenantThatCrowdsTheComputationDelaysNobody(t *testing.T) {
	const crowd = 5000
	b := newBench(t)
	b.waiting()
	b.report("n1", true)
	b.settled()
	computed := 0
	b.coverage.compute = func(types.UID) { computed++; b.clock.Step(time.Millisecond) }
	for i := range crowd {
		b.ledger.PodChanged(b.named(fmt.Sprintf("crowd-%d", i), "crowd", "10.1.1.1"))
	}
	b.step()
	if computed > computeBatch || b.ledger.stale.Len() < crowd-computeBatch {
		t.Fatalf("%d were computed at once, want at most %d", computed, computeBatch)
	}
	// One that is confirmed is released before the next is computed.
	computed = 0
	b.coverage.compute = func(types.UID) {
		if computed++; len(b.hub.sent) == 0 {
			t.Error("something is computed before a gate is opened that waits for nothing else")
		}
	}
	b.report("n7", true)
	b.step()
	b.wantSent("release p at 10.0.0.1 on n1 basis=5: Confirmed: confirmed on 2/2 nodes in 2ms")

	// One that is new, and one that has changed, are computed among the first.
	computed = 0
	b.coverage.compute = func(uid types.UID) {
		if computed++; (uid == "p" || uid == "q") && computed > 2*queue.UsualEvery {
			t.Errorf("%s is the %d-th to be computed", uid, computed)
		}
	}
	b.demandFor("q", "shop", "10.0.0.2", 6, map[string][]expect.Expectation{"n1": nil})
	b.demand("10.0.0.1", 6, 81, "n1")
	b.ledger.PodChanged(b.named("q", "shop", "10.0.0.2"))
	b.step()
	b.wantSent("assign p to n1 own basis=6", "assign q to n1 own basis=6", "withdraw p from n7")
}

// Crowd's rules are never realized, and name shop's Pods.
func TestATenantWhoseRulesAreNeverRealizedHoldsAnothersPodsOnce(t *testing.T) {
	theirs := types.NamespacedName{Namespace: "crowd", Name: "never"}
	b := ruled(t, witnessed(allow(theirs, "10.0.0.1", 80))...)
	b.clock.Step(v1alpha1.DefaultTimeout)
	b.answer("p", "n7", unrealized)
	b.settled()
	b.hub.sent = nil
	b.start("q", "shop", "10.0.0.2", map[string][]expect.Expectation{
		"n1": nil, "n7": {allow(theirs, "10.0.0.2", 80), allow(shopAllow, "10.0.0.2", 80)},
	})
	// Crowd has excused its own rule, and no other.
	b.wantSent("assign q to n1 own basis=5", "assign q to n7 basis=5 excused=[0]")
	b.answer("q", "n1", confirms)
	b.answer("q", "n7", func(r *hubv1.Report) { r.Confirmed, r.Unrealized = true, []uint32{0} })
	b.settled()
	b.wantSent("release q at 10.0.0.2 on n1 basis=5: EngineDeviates: confirmed on 2/2 nodes in 0s; " +
		"the policy engine does not realize a policy in another namespace on n7")
}

// What shop's Pods have shown of crowd's rule excuses it for shop's Pods.
func TestATenantExcusesForOthersOnlyRulesOfItsOwn(t *testing.T) {
	theirs := types.NamespacedName{Namespace: "crowd", Name: "never"}
	for uid, namespace := range map[string]string{"of-crowd": "crowd", "of-third": "third"} {
		b := ruled(t, witnessed(allow(theirs, "10.0.0.1", 80))...)
		b.clock.Step(v1alpha1.DefaultTimeout)
		b.answer("p", "n7", unrealized)
		b.settled()
		b.hub.sent = nil
		b.start(uid, namespace, "10.0.0.2", map[string][]expect.Expectation{"n1": nil, "n7": {allow(theirs, "10.0.0.2", 80)}})
		b.wantSent("assign "+uid+" to n1 own basis=5", "assign "+uid+" to n7 basis=5")
	}
}

// Crowd's Pods run into their timeouts, a thousand at once.
func TestATenantsMessagesDelayNobodys(t *testing.T) {
	for name, kind := range map[string]queue.Lane{"urgent": queue.Urgent, "usual": queue.Usual} {
		t.Run(name, func(t *testing.T) {
			m, clk := newMessages(&fakePatcher{})
			for i := range 1000 {
				msg := message(fmt.Sprintf("crowd-%d", i), "timed out")
				msg.Namespace, msg.Reason, msg.Urgent = "crowd", v1alpha1.ReasonTimeout, true
				m.Tell(msg)
			}
			for range messagesPerSecond { // the first second's
				turn(m, clk)
			}
			own := message("p", "shop's")
			own.Urgent = kind == queue.Urgent
			m.Tell(own)
			clk.Step(time.Second)
			for i := range messagesPerSecond {
				if turn(m, clk) == "shop's" {
					if i > queue.UsualEvery {
						t.Errorf("it is the %d-th to be written", i)
					}
					return
				}
			}
			t.Error("it is not written within a second")
		})
	}
}

// Payroll's policies name shop's Pods. Whatever happens, nothing that is told
// of shop's Pods or of nodes has payroll's names, others' addresses or rules.
func TestNothingThatIsToldHoldsAnothersSecrets(t *testing.T) {
	secrets := []string{"payroll", "secret-plan", "10.9.9.9", "10.7.7.7", "10.99.", "KUBE-", "match-set", "--dport"}
	theirs := types.NamespacedName{Namespace: "payroll", Name: "secret-plan"}
	reasons := []string{
		"", "denied (%s)", "allowed (%s)", "inconclusive (%s)", "inconclusive (SourceRewritten: %s)", "inconclusive (NoRoute: %s)",
		"the dataplane could not be read: %s", "malformed expectation 1: %s", "%s",
		"v6 is not enforced on this node, and nothing else was asked: denied (%s)",
	}
	const rule = "nft ip filter/KUBE-NWPLCY-X: -m set --match-set KUBE-SRC src --dport 80 -m comment --comment payroll/secret-plan from 10.99.0.1"
	told := map[string]bool{}
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 2))
		b, w := newWarningBench(t)
		tell := func() {
			for _, text := range b.teller {
				told[text] = true
			}
			for _, sent := range b.hub.sent {
				if strings.HasPrefix(sent, "release ") {
					told[sent] = true
				}
			}
			b.hub.sent = nil
			for _, warned := range w.drain() {
				told[warned] = true
			}
		}
		for range 60 {
			perNode := map[string][]expect.Expectation{"n1": nil}
			for n := range 1 + r.IntN(3) {
				isolates := allow(theirs, "10.7.7.7", 80)
				isolates.Want = flow.Denied
				perNode[[]string{"n1", "n7", "n8"}[n]] = [][]expect.Expectation{
					{allow(theirs, "10.0.0.1", 80), isolates},
					witnessed(allow(theirs, "10.0.0.1", 80)),
					{advisory(allow(theirs, "10.0.0.1", 80)), allow(shopAllow, "10.7.7.7", 80)},
					{allow(types.NamespacedName{}, "10.7.7.7", 80)},
				}[r.IntN(4)]
			}
			b.demandFor("p", "shop", "10.0.0.1", uint64(b.version), perNode)
			a := b.coverage.assignments["p"]
			a.Notes = []expect.Note{{Kind: expect.PolicyNotUnderstood, Text: rule}, {Kind: expect.EngineConflict, Text: rule}}[:r.IntN(3)]
			if r.IntN(8) == 0 {
				a.Span = nil
			}
			b.ledger.PodChanged(b.pod(nil, "10.0.0.1"))
			b.barrier.pass("p")
			b.settled()
			for _, node := range []string{"n1", "n7", "n8"} {
				switch r.IntN(6) {
				case 0:
					b.ledger.Disconnected(node)
				case 1:
					b.ledger.Connected(node, hub.Hello{})
				case 2:
					b.answer("p", node, confirms)
				default:
					b.answer("p", node, func(report *hubv1.Report) {
						report.Confirmed = r.IntN(4) == 0
						report.UnmetAdvisory = uint32(r.IntN(2))
						report.Unmet = []*hubv1.Unmet{{
							Expectation: uint32(r.IntN(3)), Reason: strings.ReplaceAll(reasons[r.IntN(len(reasons))], "%s", rule),
						}}
						report.Unrealized, report.Steady = []uint32{0}, r.IntN(2) == 0
					})
				}
				b.settled()
				tell()
			}
			b.clock.Step(time.Duration(r.IntN(40)) * time.Second)
			b.settled()
			tell()
			if r.IntN(6) == 0 {
				b.ledger.PodDeleted("p")
			}
		}
	}
	for text := range told {
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%q is told, which has %q", text, secret)
			}
		}
	}
	// The test is of use only if it met what could have given them away.
	for _, word := range []string{"a policy in another namespace", "SourceRewritten", "cannot be told", "Timeout", "EngineDeviates", "not understood", "Stalled"} {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(told)), func(text string) bool { return strings.Contains(text, word) }) {
			t.Errorf("nothing of %d texts is about %q", len(told), word)
		}
	}
}

func TestHowLongANodeMayConfirmNothingIsAnOption(t *testing.T) {
	for after, want := range map[time.Duration]time.Duration{
		0: DefaultStalledAfter, MinStalledAfter: MinStalledAfter, 10 * time.Minute: 10 * time.Minute,
	} {
		l := New(Options{StalledAfter: after, Clock: clocktesting.NewFakeClock(time.Unix(1000, 0))})
		n, began := l.node("n1"), l.clock.Now()
		n.await("shop", began)
		if n.inspect(began.Add(want-time.Second), l.stalledAfter) {
			t.Errorf("%s: stalled a second before %s", after, want)
		}
		if !n.inspect(began.Add(want), l.stalledAfter) || !n.quarantined("shop") {
			t.Errorf("%s: not stalled after %s", after, want)
		}
	}
}
