// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/agent/confirm"
	"github.com/policygate/policygate/api/flow"
)

type (
	foreignQuestion struct {
		Flow     flow.Flow
		External bool
	}
	foreignAnswer struct {
		Verdict flow.Verdict
		Routed  bool
		Traced  bool
	}
	// foreign gives each flow back, as routed if it was external.
	foreign struct{ err error }
)

func (f foreign) Together(_ context.Context, questions []foreignQuestion) ([]foreignAnswer, error) {
	var all []foreignAnswer
	for _, q := range questions {
		all = append(all, foreignAnswer{Verdict: flow.Verdict{Reason: q.Flow.String()}, Routed: q.External, Traced: true})
	}
	return all, f.err
}

func (foreign) Rewrites() uint64 { return 7 }

func TestALookIsAskedInConfirmsWords(t *testing.T) {
	look, err := Look[foreignQuestion, foreignAnswer](foreign{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	first, second := question("10.0.0.1", "10.0.0.2"), question("10.0.0.3", "10.0.0.4")
	second.External = true
	answers, err := look.Together(t.Context(), []confirm.Question{first, second})
	if err != nil {
		t.Fatal(err)
	}
	want := []confirm.Answer{
		{Verdict: flow.Verdict{Reason: "tcp 10.0.0.1 -> 10.0.0.2:80"}, Traced: true},
		{Verdict: flow.Verdict{Reason: "tcp 10.0.0.3 -> 10.0.0.4:80"}, Routed: true, Traced: true},
	}
	if diff := cmp.Diff(want, answers); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := look.Rewrites(); n != 7 {
		t.Errorf("%d rewrites, want 7", n)
	}
}

func TestAnErrorOfALookIsPassedOn(t *testing.T) {
	failure := errors.New("no look")
	if look, err := Look[foreignQuestion, foreignAnswer](foreign{}, failure); look != nil || !errors.Is(err, failure) {
		t.Errorf("look %v, error %v", look, err)
	}
	look, err := Look[foreignQuestion, foreignAnswer](foreign{failure}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if answers, err := look.Together(t.Context(), []confirm.Question{question("10.0.0.1", "10.0.0.2")}); answers != nil || !errors.Is(err, failure) {
		t.Errorf("answers %v, error %v", answers, err)
	}
}
