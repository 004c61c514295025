// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/expect"
)

// ruled is a bench with a Pod "p" of shop on n1 whose own node confirms. Its
// other node, n7, is asked the given expectations.
func ruled(t *testing.T, asked ...expect.Expectation) *bench {
	t.Helper()
	b := newBench(t)
	b.barrier.quick = true
	b.start("p", "shop", "10.0.0.1", map[string][]expect.Expectation{"n1": nil, "n7": asked})
	b.wantSent("assign p to n1 own basis=5", "assign p to n7 basis=5")
	b.answer("p", "n1", confirms)
	b.settled()
	return b
}

// witnessed returns the expectation and one of older Pods under its rule.
func witnessed(e expect.Expectation) []expect.Expectation {
	w := allow(e.Policy, "10.8.8.8", 80)
	w.Witness = true
	return []expect.Expectation{e, w}
}

// unrealized is a report that teaches: n7 does not realize its first rule.
func unrealized(r *hubv1.Report) {
	r.UnmetRequired, r.Unmet = 1, []*hubv1.Unmet{{Reason: "no rule"}}
	r.Unrealized, r.Steady = []uint32{0}, true
}

func advisory(e expect.Expectation) expect.Expectation {
	e.Advisory = true
	return e
}

func TestWhatIsLearned(t *testing.T) {
	other := types.NamespacedName{Namespace: "other", Name: "theirs"}
	required, timeout := allow(shopAllow, "10.0.0.1", 80), v1alpha1.DefaultTimeout
	cases := map[string]struct {
		asked  []expect.Expectation
		answer func(*hubv1.Report)
		after  time.Duration
		// before happens before the answer.
		before func(*bench)
		want   int
	}{
		"a rule that is realized for nobody, at a Pod's timeout": {
			asked: witnessed(required), answer: unrealized, after: timeout, want: 1,
		},
		"a rule of another namespace's policy, too": {
			asked: witnessed(allow(other, "10.0.0.1", 80)), answer: unrealized, after: timeout, want: 1,
		},
		"nothing before the timeout": {
			asked: witnessed(required), answer: unrealized, after: timeout - 2*rereadInterval,
		},
		"nothing if no older Pod was asked of": {
			asked: []expect.Expectation{required}, answer: unrealized, after: timeout,
		},
		"nothing from an answer that is not steady": {
			asked: witnessed(required), after: timeout,
			answer: func(r *hubv1.Report) { unrealized(r); r.Steady = false },
		},
		"nothing from a rule that the node does not name": {
			asked: witnessed(required), after: timeout,
			answer: func(r *hubv1.Report) { unrealized(r); r.Unrealized = nil },
		},
		"nothing from a rule that is not asked": {
			asked: witnessed(required), after: timeout,
			answer: func(r *hubv1.Report) { unrealized(r); r.Unrealized = []uint32{9} },
		},
		"nothing of what must be denied": {
			asked: func() []expect.Expectation {
				denied := required
				denied.Want = flow.Denied
				return []expect.Expectation{denied}
			}(),
			answer: unrealized, after: timeout,
		},
		"nothing of what no policy demands": {
			asked: witnessed(allow(types.NamespacedName{}, "10.0.0.1", 80)), answer: unrealized, after: timeout,
		},
		"nothing from an answer to what would be asked otherwise by now": {
			asked: witnessed(required), answer: unrealized, after: timeout,
			before: func(b *bench) { b.coverage.assignments["p"] = &Assignment{} },
		},
		"advisory expectations that are unmet when a node confirms": {
			asked: []expect.Expectation{advisory(required)},
			answer: func(r *hubv1.Report) {
				r.Confirmed, r.UnmetAdvisory, r.Unrealized, r.Steady = true, 1, []uint32{0}, true
			},
			want: 1,
		},
		"no advisory expectations before the engine has moved": {
			asked: []expect.Expectation{advisory(required)},
			answer: func(r *hubv1.Report) {
				r.Confirmed, r.UnmetAdvisory, r.Unrealized = true, 1, []uint32{0}
			},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			b := ruled(t, tc.asked...)
			if tc.before != nil {
				tc.before(b)
			}
			b.clock.Step(tc.after)
			b.answer("p", "n7", tc.answer)
			b.step()
			b.clock.Step(rereadInterval)
			b.step()
			if got := b.ledger.deviations.Len(); got != tc.want {
				t.Errorf("%d rules were learned, want %d", got, tc.want)
			}
		})
	}
}

func TestWhatIsLearnedIsExcusedAndTold(t *testing.T) {
	b := ruled(t, witnessed(allow(shopAllow, "10.0.0.1", 80))...)
	b.clock.Step(v1alpha1.DefaultTimeout)
	b.ledger.PodChanged(b.pod(func(p *corev1.Pod) {
		p.Annotations[v1alpha1.KeyOnTimeout], p.Name = v1alpha1.OnTimeoutFail, "p"
	}, "10.0.0.1"))
	b.answer("p", "n7", unrealized)
	b.settled()
	b.wantSent("assign p to n7 basis=5 excused=[0]") // in flight
	b.answer("p", "n7", func(r *hubv1.Report) { r.Confirmed, r.Unrealized, r.Steady = true, []uint32{0}, true })
	b.settled()
	b.wantSent("release p at 10.0.0.1 on n1 basis=5: EngineDeviates: confirmed on 2/2 nodes in 1m0s; " +
		"the policy engine does not realize shop/allow on n7")

	// The next Pod does not wait.
	b.start("q", "shop", "10.0.0.2", map[string][]expect.Expectation{
		"n1": nil, "n7": {allow(shopAllow, "10.0.0.2", 80)}, "n8": {allow(shopAllow, "10.0.0.2", 80)},
	})
	b.wantSent("assign q to n1 own basis=5", "assign q to n7 basis=5 excused=[0]", "assign q to n8 basis=5")

	// The engine realizes it after all.
	b.answer("q", "n7", func(r *hubv1.Report) { r.Confirmed, r.Realized = true, []uint32{0} })
	b.settled()
	b.wantSent("assign p to n7 basis=5", "assign q to n7 basis=5")
}

func TestOnlyTheExtentThatWasLearnedIsExcused(t *testing.T) {
	b := ruled(t, advisory(allow(shopAllow, "10.0.0.1", 80)))
	b.answer("p", "n7", func(r *hubv1.Report) {
		r.Confirmed, r.UnmetAdvisory, r.Unrealized, r.Steady = true, 1, []uint32{0}, true
	})
	b.settled()
	b.hub.sent = nil
	b.start("q", "shop", "10.0.0.2", map[string][]expect.Expectation{
		"n1": nil, "n7": {advisory(allow(shopAllow, "10.0.0.2", 80))},
	})
	b.wantSent("assign q to n1 own basis=5", "assign q to n7 basis=5 excused=[0]")
	// A required flow of the same rule is awaited.
	b.start("r", "shop", "10.0.0.3", map[string][]expect.Expectation{
		"n1": nil, "n7": {advisory(allow(shopAllow, "10.0.0.3", 80)), allow(shopAllow, "10.0.0.3", 81)},
	})
	b.wantSent("assign r to n1 own basis=5", "assign r to n7 basis=5")
}

func TestWhatIsUnlearned(t *testing.T) {
	cases := map[string]struct {
		change func(b *bench)
		want   int
	}{
		"all of a policy that is gone":           {func(b *bench) { b.ledger.PolicyDeleted("shop", "allow") }, 0},
		"nothing with another policy":            {func(b *bench) { b.ledger.PolicyDeleted("shop", "other") }, 1},
		"all of a node that is gone":             {func(b *bench) { b.ledger.NodeDeleted("n7") }, 0},
		"nothing with another node":              {func(b *bench) { b.ledger.NodeDeleted("n1") }, 1},
		"all of a node that boots anew":          {func(b *bench) { b.ledger.NodeChanged("n7", "boot-2") }, 0},
		"nothing with a session that comes anew": {func(b *bench) { b.ledger.Disconnected("n7") }, 1},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			b := ruled(t, witnessed(allow(shopAllow, "10.0.0.1", 80))...)
			b.clock.Step(v1alpha1.DefaultTimeout)
			b.answer("p", "n7", unrealized)
			b.settled()
			tc.change(b)
			b.settled()
			if got := b.ledger.deviations.Len(); got != tc.want {
				t.Errorf("%d rules are known, want %d", got, tc.want)
			}
		})
	}
}

func TestOlderPodsAreAskedOfHalfwayToTheTimeout(t *testing.T) {
	b := ruled(t, allow(shopAllow, "10.0.0.1", 80))
	b.report("n7", false)
	b.clock.Step(v1alpha1.DefaultTimeout/2 - time.Second)
	b.settled()
	if len(b.coverage.suspected) > 0 {
		t.Fatal("a rule is suspected too early")
	}
	b.demandFor("p", "shop", "10.0.0.1", 5, map[string][]expect.Expectation{
		"n1": nil, "n7": witnessed(allow(shopAllow, "10.0.0.1", 80)),
	})
	b.coverage.affected = nil
	b.clock.Step(time.Second)
	b.settled()
	b.clock.Step(rereadInterval)
	b.settled()
	if len(b.coverage.suspected) != 1 {
		t.Errorf("suspected %v, want p once", b.coverage.suspected)
	}
	b.wantSent("assign p to n1 own basis=5", "assign p to n7 basis=5")
}
