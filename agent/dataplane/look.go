// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"

	"github.com/policygate/policygate/agent/confirm"
	"github.com/policygate/policygate/api/flow"
)

// Asked is a look of a dataplane whose questions and answers differ from package
// confirm's in name alone.
type Asked[Q questionShape, A answerShape] interface {
	Together(ctx context.Context, questions []Q) ([]A, error)
	Rewrites() uint64
}

type questionShape interface {
	~struct {
		Flow     flow.Flow
		External bool
	}
}

type answerShape interface {
	~struct {
		Verdict flow.Verdict
		Routed  bool
		Traced  bool
	}
}

// Look returns the look as package confirm consumes it, or the error if there is
// one.
func Look[Q questionShape, A answerShape](look Asked[Q, A], err error) (confirm.Look, error) {
	if err != nil {
		return nil, err
	}
	return asked[Q, A]{look}, nil
}

// asked is a look that is asked in confirm's words.
type asked[Q questionShape, A answerShape] struct{ Asked[Q, A] }

// Together implements confirm.Look.
func (l asked[Q, A]) Together(ctx context.Context, questions []confirm.Question) ([]confirm.Answer, error) {
	own := make([]Q, len(questions))
	for i, q := range questions {
		own[i] = Q(q)
	}
	answers, err := l.Asked.Together(ctx, own)
	if err != nil {
		return nil, err
	}
	all := make([]confirm.Answer, len(answers))
	for i, a := range answers {
		all[i] = confirm.Answer(a)
	}
	return all, nil
}
