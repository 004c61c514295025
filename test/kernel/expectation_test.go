// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/controllers/expect"
)

// tally counts what became of expectations.
type tally struct {
	asked, allowed, denied int
	// deviating are advisory ones that do not hold, inconclusive those without
	// an answer, and wrong the others that do not hold.
	deviating, inconclusive, wrong []string
}

// answers puts a subject's expectations in one batch, as the agent does.
func (a assigned) answers(ctx context.Context, look *kernel.Look) ([]kernel.Answer, error) {
	questions := make([]kernel.Question, 0, len(a.expectations))
	for _, e := range a.expectations {
		questions = append(questions, kernel.Question{Flow: e.Flow, External: e.External})
	}
	return look.Together(ctx, questions)
}

// ask holds the expectations against a look.
func (y *tally) ask(ctx context.Context, look *kernel.Look, all []assigned) error {
	for _, a := range all {
		answers, err := a.answers(ctx, look)
		if err != nil {
			return err
		}
		for i, e := range a.expectations {
			if e.External && !answers[i].Routed {
				continue
			}
			y.count(a.name(e), e.Want, e.Advisory, answers[i].Verdict)
		}
	}
	return nil
}

func (y *tally) count(name string, want flow.Answer, advisory bool, got flow.Verdict) {
	y.asked++
	switch {
	case got.Answer == flow.Inconclusive:
		y.inconclusive = append(y.inconclusive, name+": "+got.Reason)
	case got.Answer == want && want == flow.Allowed:
		y.allowed++
	case got.Answer == want:
		y.denied++
	case advisory:
		y.deviating = append(y.deviating, name)
	default:
		y.wrong = append(y.wrong, fmt.Sprintf("%s: want %s, got %s", name, want, got))
	}
}

// report fails the test with what should not be.
func (y *tally) report(t *testing.T) {
	t.Helper()
	t.Logf("%d asked, %d allowed, %d denied, %d deviate by advice, %d inconclusive, %d wrong",
		y.asked, y.allowed, y.denied, len(y.deviating), len(y.inconclusive), len(y.wrong))
	// The objects of the captures ask for nothing that the engine is known
	// never to do.
	for what, list := range map[string][]string{"inconclusive": y.inconclusive, "deviating": y.deviating, "wrong": y.wrong} {
		if len(list) > 0 {
			t.Errorf("%d of %d are %s, as\n%s", len(list), y.asked, what, strings.Join(list[:min(len(list), 10)], "\n"))
		}
	}
	if y.allowed == 0 || y.denied == 0 {
		t.Errorf("%d allowed and %d denied: want some of both", y.allowed, y.denied)
	}
}

// TestTheCapturesConfirmWhatTheirObjectsDemand reads what the engine left in
// the kernel, and asks what the manager asks for each Pod.
func TestTheCapturesConfirmWhatTheirObjectsDemand(t *testing.T) {
	for _, c := range captures {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil, nil)
			c.load(t, r)
			options := expect.DefaultOptions()
			// None is left out because there are too many.
			options.Budget = math.MaxInt
			assignments := c.made(t).assignments(t, options, 1)
			var y tally
			r.look(t, func(look *kernel.Look) error {
				return y.ask(t.Context(), look, assignments)
			})
			y.report(t)
			if len(assignments) < 8 || y.asked < 100 {
				t.Errorf("only %d expectations of %d subjects", y.asked, len(assignments))
			}
		})
	}
}

// oneOtherIn is the share of the Pods on other nodes that are asked about in a
// large capture. With all of the 5,000 the test takes three minutes.
const oneOtherIn = 10

// TestTheLargeCapturesConfirmWhatTheirObjectsDemand does the same where there
// are 5,110 Pods and a budget of flows.
func TestTheLargeCapturesConfirmWhatTheirObjectsDemand(t *testing.T) {
	options := expect.DefaultOptions()
	options.Families = expect.FamiliesV4
	assignments := largeCaptures[0].made(t).assignments(t, options, oneOtherIn)
	for _, c := range largeCaptures {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil, nil)
			c.load(t, r)
			var y tally
			r.look(t, func(look *kernel.Look) error {
				return y.ask(t.Context(), look, assignments)
			})
			t.Logf("%d subjects", len(assignments))
			y.report(t)
		})
	}
}

// TestTheCapturesGiveEveryFlowTheAnswerOfItsPolicies asks of every address, to
// and from every other, not only what the manager chose to ask.
func TestTheCapturesGiveEveryFlowTheAnswerOfItsPolicies(t *testing.T) {
	for _, c := range captures {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, capturePods, captureRemote)
			c.load(t, r)
			cluster := c.made(t).cluster(t)
			var y tally
			undemanded := 0
			r.look(t, func(look *kernel.Look) error {
				for _, f := range captureFlows(r) {
					want, advisory := cluster.Demand(capturedNode, f)
					switch {
					case r.at[f.Src] == r.node || r.at[f.Dst] == r.node:
						// The engine admits the node itself everywhere.
						want = flow.Inconclusive
					case c.denies && (unknown(cluster, f.Src) || unknown(cluster, f.Dst)):
						want, advisory = flow.Denied, false
					}
					if want == flow.Inconclusive {
						undemanded++
						continue
					}
					y.count(f.String(), want, advisory, look.Verdict(f))
				}
				return nil
			})
			y.report(t)
			t.Logf("of %d more nothing is demanded", undemanded)
		})
	}
}

// unknown reports whether an address of the node's network is of no Pod that
// runs.
func unknown(c *expect.Cluster, a netip.Addr) bool {
	for _, pod := range c.Holding(a) {
		if pod.Peer() {
			return false
		}
	}
	for _, cidr := range c.Node(capturedNode).PodCIDRs {
		if cidr.Contains(a) {
			return true
		}
	}
	return false
}
