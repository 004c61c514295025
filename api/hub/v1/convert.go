// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hubv1

import (
	"fmt"
	"net/netip"

	"github.com/policygate/policygate/api/flow"
)

// FlowOf returns the message for f, which must be valid.
func FlowOf(f flow.Flow) *Flow {
	return &Flow{
		Protocol: uint32(f.Protocol),
		Src:      f.Src.AsSlice(),
		Dst:      f.Dst.AsSlice(),
		Port:     uint32(f.Port),
	}
}

// Value returns the flow that m holds, or an error that names what is
// malformed. A nil message is an error.
func (m *Flow) Value() (flow.Flow, error) {
	if m == nil {
		return flow.Flow{}, fmt.Errorf("flow is missing")
	}
	src, ok := netip.AddrFromSlice(m.GetSrc())
	if !ok {
		return flow.Flow{}, fmt.Errorf("flow source has %d bytes: want 4 or 16", len(m.GetSrc()))
	}
	dst, ok := netip.AddrFromSlice(m.GetDst())
	if !ok {
		return flow.Flow{}, fmt.Errorf("flow destination has %d bytes: want 4 or 16", len(m.GetDst()))
	}
	if m.GetProtocol() > 255 || m.GetPort() > 65535 {
		return flow.Flow{}, fmt.Errorf("flow protocol %d, port %d: out of range", m.GetProtocol(), m.GetPort())
	}
	f := flow.Flow{
		Protocol: flow.Protocol(m.GetProtocol()), //nolint:gosec // bounded above
		Src:      src, Dst: dst,
		Port: uint16(m.GetPort()), //nolint:gosec // bounded above
	}
	return f, f.Validate()
}

// AnswerOf returns the message for a conclusive answer and
// ANSWER_UNSPECIFIED for any other.
func AnswerOf(a flow.Answer) Answer {
	switch a {
	case flow.Allowed:
		return Answer_ANSWER_ALLOWED
	case flow.Denied:
		return Answer_ANSWER_DENIED
	case flow.Inconclusive:
	}
	return Answer_ANSWER_UNSPECIFIED
}

// Value returns the answer that is wanted, or an error: an expectation always
// wants a conclusive one.
func (a Answer) Value() (flow.Answer, error) {
	switch a {
	case Answer_ANSWER_ALLOWED:
		return flow.Allowed, nil
	case Answer_ANSWER_DENIED:
		return flow.Denied, nil
	case Answer_ANSWER_UNSPECIFIED:
	}
	return flow.Inconclusive, fmt.Errorf("expectation wants %v: want ANSWER_ALLOWED or ANSWER_DENIED", a)
}

// Older reports whether b is older than other in any part: then what was
// computed from b must not open a gate that other may keep shut. A nil Basis
// is older than any that is not nil.
func (b *Basis) Older(other *Basis) bool {
	return b.GetNetworkPolicies() < other.GetNetworkPolicies() ||
		b.GetNamespaces() < other.GetNamespaces() ||
		b.GetPod() < other.GetPod()
}
