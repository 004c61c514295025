// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package dataplane makes one dataplane of the two that a node may have: OVN
// and netfilter.
//
// A flow with an end on one of the node's logical ports is judged by OVN alone:
// its packets go from the Pod into the switch, and pass the kernel's hooks only
// as what a tunnel carries. All others are netfilter's. So what a subject is
// asked about may be of two moments, one of each.
//
// It also has the looks of either, and of the northbound database, asked in the
// words of package confirm, which none of them imports: see Look.
//
// The package judges nothing, and reads neither the kernel nor a database.
package dataplane

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/policygate/policygate/agent/confirm"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// Part is one of the node's dataplanes.
type Part interface {
	confirm.Dataplane
	confirm.Surveyor
}

// Ports knows whose Pods are OVN's.
type Ports interface {
	// Local reports whether the address is that of a Pod on one of this node's
	// logical ports. It is called for each question.
	Local(address netip.Addr) bool
}

// Joined is both dataplanes of a node. It is safe for concurrent use as far as
// its parts are.
type Joined struct {
	ovn, netfilter Part
	ports          Ports
	// rewrites is what netfilter counted last: looks that do not ask it count on
	// from there.
	rewrites atomic.Uint64
}

// Join returns the dataplane of a node that has both.
func Join(ovn Part, ports Ports, netfilter Part) *Joined {
	return &Joined{ovn: ovn, netfilter: netfilter, ports: ports}
}

// Look implements confirm.Dataplane. Netfilter is looked at when the first
// question is for it: where OVN carries all Pods, nobody reads the thousands of
// rules of a node's kube-proxy.
func (j *Joined) Look(ctx context.Context) (confirm.Look, error) {
	ovn, err := j.ovn.Look(ctx)
	if err != nil {
		return nil, fmt.Errorf("ovn: %w", err)
	}
	return &look{joined: j, ovn: ovn}, nil
}

// Audit implements confirm.Dataplane: neither may be hidden.
func (j *Joined) Audit(ctx context.Context) (unsupported string) {
	if why := j.ovn.Audit(ctx); why != "" {
		return why
	}
	return j.netfilter.Audit(ctx)
}

// Survey implements confirm.Surveyor: it names the dataplanes and the remarks of
// both.
func (j *Joined) Survey(ctx context.Context) (*hubv1.State, error) {
	state, err := j.ovn.Survey(ctx)
	if err != nil {
		return nil, fmt.Errorf("ovn: %w", err)
	}
	other, err := j.netfilter.Survey(ctx)
	if err != nil {
		return nil, err
	}
	return &hubv1.State{
		Dataplanes: slices.Concat(state.GetDataplanes(), other.GetDataplanes()),
		Remarks:    slices.Concat(state.GetRemarks(), other.GetRemarks()),
	}, nil
}

// look is a look at both.
type look struct {
	joined *Joined
	ovn    confirm.Look
	// netfilter is nil until it is asked for.
	netfilter confirm.Look
}

// Together implements confirm.Look.
func (l *look) Together(ctx context.Context, questions []confirm.Question) ([]confirm.Answer, error) {
	var places [2][]int
	var asked [2][]confirm.Question
	for i, q := range questions {
		part := 1
		if l.joined.ports.Local(q.Flow.Src) || l.joined.ports.Local(q.Flow.Dst) {
			part = 0
		}
		places[part], asked[part] = append(places[part], i), append(asked[part], q)
	}
	answers := make([]confirm.Answer, len(questions))
	for part, of := range asked {
		if len(of) == 0 {
			continue
		}
		from, err := l.part(ctx, part)
		if err != nil {
			return nil, err
		}
		given, err := from.Together(ctx, of)
		if err != nil {
			return nil, err
		}
		if len(given) != len(of) {
			return nil, fmt.Errorf("a dataplane gave %d answers to %d questions", len(given), len(of))
		}
		for i, place := range places[part] {
			answers[place] = given[i]
		}
	}
	return answers, nil
}

func (l *look) part(ctx context.Context, part int) (confirm.Look, error) {
	if part == 0 {
		return l.ovn, nil
	}
	if l.netfilter == nil {
		taken, err := l.joined.netfilter.Look(ctx)
		if err != nil {
			return nil, err
		}
		l.netfilter = taken
	}
	return l.netfilter, nil
}

// Rewrites implements confirm.Look.
func (l *look) Rewrites() uint64 {
	if l.netfilter != nil {
		l.joined.rewrites.Store(l.netfilter.Rewrites())
	}
	return l.ovn.Rewrites() + l.joined.rewrites.Load()
}

// Notices are those of several sources.
type Notices []confirm.Notices

// Watch implements confirm.Notices.
func (n Notices) Watch(ctx context.Context, noticed func(source string)) {
	var watching sync.WaitGroup
	for _, one := range n {
		watching.Go(func() { one.Watch(ctx, noticed) })
	}
	watching.Wait()
}
