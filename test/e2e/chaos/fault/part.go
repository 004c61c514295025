// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"

	"github.com/policygate/policygate/test/e2e/testbed"
)

// part is a sort of container of Policy Gate.
type part struct {
	name string
	find func(*testbed.Testbed, context.Context) ([]testbed.Part, error)
}

func managers() part { return part{"manager", (*testbed.Testbed).Managers} }
func agents() part   { return part{"agent", (*testbed.Testbed).Agents} }

// running returns those that run, at least one.
func (p part) running(ctx context.Context, bed *testbed.Testbed) ([]testbed.Part, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	all, err := p.find(bed, ctx)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no %s runs", p.name)
	}
	return all, nil
}

// killed kills one of a part, which kubelet starts again.
func killed(p part) Begin {
	return func(ctx context.Context, bed *testbed.Testbed, random *rand.Rand) (*Fault, error) {
		all, err := p.running(ctx, bed)
		if err != nil {
			return nil, err
		}
		victim := oneOf(random, all)
		if err := victim.Kill(ctx); err != nil {
			return nil, err
		}
		return &Fault{Target: victim.Pod + " on " + victim.Node, End: victim.AwaitRestart}, nil
	}
}

// allKilled kills all of a part at once.
func allKilled(p part) Begin {
	return func(ctx context.Context, bed *testbed.Testbed, _ *rand.Rand) (*Fault, error) {
		all, err := p.running(ctx, bed)
		if err != nil {
			return nil, err
		}
		var names []string
		var errs []error
		for _, victim := range all {
			names = append(names, victim.Pod+" on "+victim.Node)
			errs = append(errs, victim.Kill(ctx))
		}
		if err := errors.Join(errs...); err != nil {
			return nil, err // those that are dead start again by themselves
		}
		return &Fault{Target: strings.Join(names, ", "), End: func(ctx context.Context) error {
			var errs []error
			for _, victim := range all {
				errs = append(errs, victim.AwaitRestart(ctx))
			}
			return errors.Join(errs...)
		}}, nil
	}
}

// frozen freezes one of a part.
func frozen(p part) Begin {
	return func(ctx context.Context, bed *testbed.Testbed, random *rand.Rand) (*Fault, error) {
		all, err := p.running(ctx, bed)
		if err != nil {
			return nil, err
		}
		victim := oneOf(random, all)
		if err := victim.Freeze(); err != nil {
			return nil, err
		}
		return &Fault{
			Target: victim.Pod + " on " + victim.Node,
			End:    func(context.Context) error { return unlessDone(victim.Thaw()) },
		}, nil
	}
}

// unlessDone drops the error that a process has ended: frozen ones can be
// killed, by kubelet or by another fault.
func unlessDone(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}
