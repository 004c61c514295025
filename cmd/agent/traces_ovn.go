// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"

	"github.com/policygate/policygate/agent/ovn"
	"github.com/policygate/policygate/agent/session"
	"github.com/policygate/policygate/api/flow"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// cacheWait is how long a person's question waits until OVN's answer counts:
// two cycles of the flow cache, and the database where it is not known yet.
const cacheWait = 3 * time.Second

// ovnTraces answers what the node would do with a flow, whichever of its
// dataplanes judges it. Unlike netfilter, OVN is not opened anew: the traces of
// all who ask have to keep within one budget.
type ovnTraces struct {
	ovn       *ovn.Dataplane
	netfilter session.Traces
}

var _ session.Traces = ovnTraces{}

// Trace implements session.Traces.
func (t ovnTraces) Trace(ctx context.Context, f flow.Flow) ([]tracev1.Hop, error) {
	if !t.ovn.Local(f.Src) && !t.ovn.Local(f.Dst) {
		return t.netfilter.Trace(ctx, f)
	}
	waiting, cancel := context.WithTimeout(ctx, cacheWait)
	defer cancel()
	told := make(chan struct{}, 1)
	go t.ovn.Watch(waiting, func(string) {
		select {
		case told <- struct{}{}:
		default:
		}
	})
	for {
		answer, err := t.ask(ctx, f)
		if err == nil && answer.Verdict.Answer != flow.Inconclusive {
			return hopsOfOVN(answer), nil
		}
		select {
		case <-told:
		case <-waiting.Done():
			if err != nil {
				return nil, err
			}
			return hopsOfOVN(answer), nil
		}
	}
}

func (t ovnTraces) ask(ctx context.Context, f flow.Flow) (ovn.Answer, error) {
	look, err := t.ovn.Look(ctx)
	if err != nil {
		return ovn.Answer{}, err
	}
	answers, err := look.Together(ctx, []ovn.Question{{Flow: f, External: true}})
	if err != nil {
		return ovn.Answer{}, err
	}
	return answers[0], nil
}

func hopsOfOVN(a ovn.Answer) []tracev1.Hop {
	h := tracev1.Hop{
		Way: "switched", Routed: a.Routed, Verdict: tracev1.VerdictOf(a.Verdict.Answer), Reason: a.Verdict.Reason,
	}
	return []tracev1.Hop{h.Bound()}
}

// ovnOnce answers one question, for which it opens Open vSwitch's sockets in
// the directory.
type ovnOnce struct {
	runDir    string
	netfilter session.Traces
}

var _ session.Traces = ovnOnce{}

// Trace implements session.Traces.
func (t ovnOnce) Trace(ctx context.Context, f flow.Flow) (hops []tracev1.Hop, err error) {
	client, switched, err := openOVN(t.runDir, logr.Discard(), nil)
	if err != nil {
		return nil, err
	}
	defer switched.Close()
	running, stop := context.WithCancel(ctx)
	group, running := errgroup.WithContext(running)
	group.Go(func() error { return client.Run(running) })
	defer func() {
		stop()
		err = errors.Join(err, group.Wait())
	}()
	hops, err = ovnTraces{switched, t.netfilter}.Trace(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("%w (Open vSwitch's sockets are looked for in %s)", err, t.runDir)
	}
	return hops, nil
}
