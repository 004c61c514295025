// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"k8s.io/apimachinery/pkg/types"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/coverage"
	"github.com/policygate/policygate/controllers/expect"
)

// FromIndex returns the Coverage that index computes.
func FromIndex(index *coverage.Index) Coverage { return indexCoverage{index} }

type indexCoverage struct{ *coverage.Index }

func (c indexCoverage) Assignment(uid types.UID) *Assignment {
	a, ok := c.Index.Assignment(uid)
	if !ok {
		return nil
	}
	out := &Assignment{
		Subject: &hubv1.Subject{
			Uid:        string(a.Subject.UID),
			Namespace:  a.Subject.Namespace,
			Name:       a.Subject.Name,
			Ips:        text(a.Subject.IPs),
			Generation: a.Subject.Generation,
		},
		Basis: &hubv1.Basis{
			NetworkPolicies: a.Basis.NetworkPolicies,
			Namespaces:      a.Basis.Namespaces,
			Pod:             a.Basis.Pod,
		},
		Span:           a.Span,
		Demands:        make(map[string]Demand, len(a.PerNode)),
		Settle:         a.Settle,
		ExcuseFamilies: a.ExcuseFamilies,
		NotAsked:       a.NotAsked,
	}
	for node, expectations := range a.PerNode {
		out.Demands[node] = demandOf(expectations)
	}
	return out
}

// Standing implements Coverage.
func (c indexCoverage) Standing(uid types.UID) (*hubv1.Basis, bool) {
	b, ok := c.Index.Standing(uid)
	if !ok {
		return nil, false
	}
	return &hubv1.Basis{NetworkPolicies: b.NetworkPolicies, Namespaces: b.Namespaces, Pod: b.Pod}, true
}

// demandOf returns the expectations as they are sent, each text once.
func demandOf(expectations []expect.Expectation) Demand {
	d := Demand{Expectations: make([]*hubv1.Expectation, len(expectations))}
	type demand struct {
		why    string
		policy types.NamespacedName
	}
	index := map[demand]uint32{}
	for i, e := range expectations {
		key := demand{e.Why, e.Policy}
		why, known := index[key]
		if !known {
			why = uint32(len(d.Whys)) //nolint:gosec // a subject has at most 256 flows
			index[key] = why
			d.Whys, d.Policies = append(d.Whys, e.Why), append(d.Policies, e.Policy)
		}
		d.Expectations[i] = &hubv1.Expectation{
			Flow:     hubv1.FlowOf(e.Flow),
			Want:     hubv1.AnswerOf(e.Want),
			Advisory: e.Advisory,
			External: e.External,
			Why:      why,
		}
	}
	return d
}
