// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"

	"github.com/policygate/policygate/agent/kernel"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// mostNamed is how many bridges a remark names: a text has room for 200 bytes,
// an interface's name takes 15.
const mostNamed = 6

// stateOf returns what a person should know of a node.
func stateOf(s kernel.Survey) *hubv1.State {
	state := &hubv1.State{Dataplanes: s.Dataplanes}
	remark := func(kind, text string) {
		state.Remarks = append(state.Remarks, &hubv1.Remark{Kind: kind, Text: tracev1.Printable(text)})
	}
	if slices.Contains(s.Dataplanes, kernel.LegacyTables) && slices.Contains(s.Dataplanes, kernel.CompatTables) {
		remark(hubv1.RemarkTwoVariants,
			"iptables-legacy and iptables-nft both hold rules that forwarded packets meet: each prints but its own")
	}
	if named := s.Unfiltered; len(named) > 0 {
		remark(hubv1.RemarkBridgeUnfiltered,
			"packets that stay on a bridge meet no rules (bridge-nf-call-iptables is off): "+strings.Join(named[:min(len(named), mostNamed)], ", "))
	}
	if s.VirtualServers {
		remark(hubv1.RemarkIPVS, "there are virtual servers (IPVS), whose packets take other ways than forwarded ones")
	}
	return state
}
