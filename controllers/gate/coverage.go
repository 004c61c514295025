// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"fmt"

	"k8s.io/apimachinery/pkg/types"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/coverage"
	"github.com/policygate/policygate/controllers/demand"
)

// FromIndex returns the Coverage that index computes.
func FromIndex(index *coverage.Index) Coverage { return indexCoverage{index, demand.NewTable()} }

type indexCoverage struct {
	*coverage.Index
	demands *demand.Table
}

// Assignment implements Coverage.
func (c indexCoverage) Assignment(uid types.UID) (*Assignment, error) {
	a, ok := c.Index.Assignment(uid)
	if !ok {
		return nil, nil //nolint:nilnil // nil is "nothing to confirm"
	}
	out := &Assignment{
		Subject: &hubv1.Subject{
			Uid:        string(a.Subject.UID),
			Namespace:  a.Subject.Namespace,
			Name:       a.Subject.Name,
			Ips:        text(a.Subject.IPs),
			Generation: a.Subject.Generation,
		},
		Basis:          basisOf(a.Basis),
		Span:           a.Span,
		Demands:        make(map[string]demand.Demand, len(a.PerNode)),
		Settle:         a.Settle,
		ExcuseFamilies: a.ExcuseFamilies,
		NotAsked:       a.NotAsked,
		Notes:          a.Notes,
	}
	for node, expectations := range a.PerNode {
		d, err := c.demands.Of(expectations, a.Subject.IPs)
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", node, err)
		}
		out.Demands[node] = d
	}
	return out, nil
}

// Standing implements Coverage.
func (c indexCoverage) Standing(uid types.UID) (*hubv1.Basis, bool) {
	b, ok := c.Index.Standing(uid)
	if !ok {
		return nil, false
	}
	return basisOf(b), true
}

func basisOf(b coverage.Basis) *hubv1.Basis {
	return &hubv1.Basis{NetworkPolicies: b.NetworkPolicies, Namespaces: b.Namespaces, Pod: b.Pod}
}
