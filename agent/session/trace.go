// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/policygate/policygate/agent/confirm"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

const (
	// maxTraces is hub.proto's: how many traces of all replicas are in work.
	maxTraces = 4
	// traceTimeout bounds one. The largest rulesets that were measured read in
	// about a second.
	traceTimeout = 10 * time.Second
)

// errBusy is the answer to a trace beyond maxTraces.
var errBusy = errors.New("the agent is busy with other traces: ask again")

// trace answers t beside whoever receives, or at once if the agent is busy.
// What it starts is done with working.
func (l *link) trace(ctx context.Context, working *sync.WaitGroup, source confirm.Source, t *hubv1.Trace) {
	answer := func(hops []tracev1.Hop, err error) {
		l.outbox.answer(source.Session, hubv1.TraceResultOf(t.GetId(), hops, err))
	}
	traces := l.client.options.Traces
	if traces == nil {
		answer(nil, errors.New("this agent answers no traces"))
		return
	}
	f, err := t.GetFlow().Value()
	if err != nil {
		answer(nil, err)
		return
	}
	select {
	case l.client.tracing <- struct{}{}:
	default:
		answer(nil, errBusy)
		return
	}
	working.Go(func() {
		defer func() { <-l.client.tracing }()
		ctx, cancel := context.WithTimeout(ctx, traceTimeout)
		defer cancel()
		hops, err := traces.Trace(ctx, f)
		if err != nil {
			err = fmt.Errorf("the node's rules could not be traced: %w", err)
		}
		answer(hops, err)
	})
}
